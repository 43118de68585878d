//! podman and containerd on hosts of one mesh.

use anyhow::{Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, UNDERWAY, wait_until},
    runtime::{Containerd, Podman},
};

use super::address;

const PODS: &str = r#"{ "cniVersion": "0.4.0", "name": "app", "plugins": [
  { "type": "vxmesh-cni", "capabilities": { "aliases": true, "ips": true, "mac": true } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }"#;
const CTR: &str =
    r#"{ "cniVersion": "1.0.0", "name": "app", "plugins": [ { "type": "vxmesh-cni" } ] }"#;
const SERVE: &str = "nc -ll -p 80 -e /bin/busybox echo hello";

#[test]
fn containers_of_podman_and_containerd_share_a_network() -> Result<()> {
    let lab = Lab::captured(vxmesh_tests::lab::Options { hosts: 2, ..Default::default() })?;
    lab.vxmesh("h1", &["network", "create", "app", "--subnet", "10.77.0.0/24"])?;
    let podman = Podman::new(&lab, "h1", PODS)?;
    let containerd = Containerd::start(&lab, "h2", CTR)?;
    let flags = "--network app --ip 10.77.0.50 --network-alias www -p 8080:80";
    podman.run(&lab, "Web_1", flags, SERVE)?;
    containerd.run(&lab, "call")?;
    let call = format!("{}-call", lab.name());
    lab.named("h2", &[&call, "web-1"])?;
    let other = address(&lab, "h2", &call)?;
    // The containers of ctr have no files of their own that name a server.
    let ask = |name: &str| {
        let words =
            format!("task exec --exec-id {name} call /bin/busybox nslookup {name} 10.77.0.1");
        containerd.ctr(&lab, &words)
    };
    wait_until("names across hosts", || {
        Ok(ask("www").is_ok_and(|said| said.contains("10.77.0.50"))
            && podman
                .podman(&lab, &format!("exec Web_1 /bin/busybox ping -c 1 -W 2 {call}"))
                .is_ok())
    })?;
    podman.podman(&lab, &format!("exec Web_1 /bin/busybox ping -c 1 -W 5 {other}"))?;
    // Published by the plug-in behind: to the host itself, and to another one.
    for (host, at) in [("h1", "127.0.0.1"), ("h1", "10.213.0.1"), ("h2", "10.213.0.1")] {
        let ask = format!("curl -s -m 5 --http0.9 http://{at}:8080");
        wait_until(&format!("{host} reaches {at}"), || {
            Ok(lab.sh(host, &ask).is_ok_and(|said| said.trim() == "hello"))
        })?;
    }
    // Restarted, and its network made anew: it has its address all the time.
    podman.podman(&lab, "restart -t 0 Web_1")?;
    podman.podman(&lab, "network reload Web_1")?;
    ensure!(address(&lab, "h1", "web-1")? == "10.77.0.50");
    let ping = "task exec --exec-id ping call /bin/busybox ping -c 1 -W 5 10.77.0.50";
    containerd.ctr(&lab, ping)?;
    let taken = podman.try_run(&lab, "other", "--network app --ip 10.77.0.50", "true")?;
    let said = String::from_utf8_lossy(&taken.stderr);
    ensure!(!taken.status.success() && said.contains("10.77.0.50"), "{said}");

    lab.lab(&["kill", "h1"])?;
    let away = podman.try_run(&lab, "late", "--network app", "true")?;
    let said = String::from_utf8_lossy(&away.stderr);
    ensure!(!away.status.success() && said.contains("no agent answers"), "{said}");
    lab.lab(&["start", "h1"])?;
    wait_until("it is reached again", || {
        Ok(podman.podman(&lab, &format!("exec Web_1 /bin/busybox ping -c 1 -W 2 {other}")).is_ok())
    })?;

    // It ends, and nobody sends DEL.
    containerd.ctr(&lab, "task kill -s KILL call")?;
    lab.named("h1", &["web-1"])?;
    podman.podman(&lab, "rm -f -t 0 -a")?;
    lab.named("h1", &[])?;
    ensure!(lab.endpoint_names("h2")?.is_empty());
    containerd.stop(&lab)?;
    lab.finish(Allowed { drops: &[UNDERWAY, &["unknown_index"]].concat(), ..Allowed::default() })
}
