//! A real Docker engine on a lab's host, started before and after the agent's networks. Its policy
//! for what is forwarded is DROP, and bridged frames pass its rules, too (`br_netfilter`).

use anyhow::{Result, ensure};
use vxmesh_tests::{
    engine::Engine,
    lab::{Allowed, Lab, wait_until},
    netns::NetNs,
    outside::{self, Outside, sh},
};

use super::{Site, saved};

/// A container that says hello at port 90, published as 9090.
const CONTAINER: &str = "run -d --name box --restart always --stop-signal KILL -p 9090:90 box:1 \
                         /bin/busybox nc -ll -p 90 -e /bin/busybox echo hello";

/// The container is reached from everywhere, and reaches the outside.
fn engine_works(
    (lab, engine): (&Lab, &Engine),
    clients: &[(&NetNs, &str)],
    what: &str,
) -> Result<()> {
    for (client, to) in clients {
        let call = format!("busybox nc -w 2 {to} 9090 </dev/null");
        wait_until(&format!("{what}: {to}"), || {
            Ok(sh(client, &call).is_ok_and(|said| said == "hello"))
        })?;
    }
    let ping = format!("exec box /bin/busybox ping -c 1 -W 1 {}", outside::IPV4);
    wait_until(&format!("{what}: out of the container"), || Ok(engine.docker(lab, &ping).is_ok()))
}

#[test]
fn docker_and_networks_work_side_by_side_in_any_order() -> Result<()> {
    let lab = Lab::up(2)?;
    let engine = Engine::start(&lab, "h1")?;
    engine.docker(&lab, CONTAINER)?;
    let h1 = lab.host("h1")?;
    let before = saved(&h1)?;
    let site = Site::on(lab)?;
    let lab = &site.lab;
    let all_works = |what: &str| {
        site.works(what)?;
        let clients = [
            (&site.outside.netns, "10.213.0.1"),
            (&site.a.netns, "10.213.0.1"),
            (&h1, "127.0.0.1"),
        ];
        engine_works((lab, &engine), &clients, what)
    };
    all_works("after Docker")?;
    let shown = lab.vxmesh("h1", &["doctor"])?;
    ensure!(shown.contains("two rules each in ip filter FORWARD"), "{shown}");
    // A port that Docker publishes is taken, and nothing is left of the attempt.
    let run =
        ["run", "-d", "--name", "x", "--network", "blue", "--publish", "9090:80", "--", "true"];
    let output = lab.try_vxmesh("h1", &run)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && said.contains("port 9090/tcp"), "{output:?}");

    let restart = || engine.stop(lab).and_then(|()| engine.start_again(lab));
    restart()?;
    all_works("after a restart of Docker")?;
    lab.lab(&["kill", "h1"])?;
    restart()?;
    lab.lab(&["start", "h1"])?;
    all_works("after a restart of both")?;
    site.leaves(&before)?;
    engine_works((lab, &engine), &[(&site.outside.netns, "10.213.0.1")], "alone again")?;
    engine.docker(lab, "rm -f box")?;
    engine.stop(lab)?;
    // What was sealed for the agent before.
    site.lab.finish(Allowed { drops: &["unknown_index"], warnings: &[] })
}

#[test]
fn what_docker_needs_stays_when_the_node_leaves() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let h1 = lab.host("h1")?;
    let engine = Engine::start(&lab, "h1")?;
    engine.docker(&lab, CONTAINER)?;
    let clients = [(&outside.netns, "10.213.0.1"), (&a.netns, "10.213.0.1")];
    engine_works((&lab, &engine), &clients, "beside a network")?;
    lab.vxmesh("h1", &["leave", "--force"])?;
    ensure!(sh(&h1, "sysctl -n net.ipv4.ip_forward")? == "1", "forwarding is off");
    engine_works((&lab, &engine), &[(&outside.netns, "10.213.0.1")], "after leaving")?;
    let rules = saved(&h1)?;
    ensure!(!rules.contains("vxm") && rules.contains("DOCKER"), "{rules}");
    engine.docker(&lab, "rm -f box")?;
    engine.stop(&lab)?;
    lab.finish(Allowed { drops: &[], warnings: &["gossip ended"] })
}
