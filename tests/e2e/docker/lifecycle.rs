//! Containers on two hosts in one network: from `docker run` to `docker rm`, while agents and
//! engines come and go.

use anyhow::{Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::lab::{Allowed, Lab, UNDERWAY, tell, wait_until};

use super::{address, doctor, engines, reaches, run};

/// Made on the first host and joined by its name on the other.
const CREATE: &str = "network create -d vxmesh --ipam-driver vxmesh --subnet 10.77.0.0/24 \
                      -o network=app app";
const JOIN: &str = "network create -d vxmesh --ipam-driver vxmesh --ipam-opt network=app \
                    --subnet 10.77.0.0/24 app";
const FLAGS: &str = "--network app --dns 10.77.0.1";

/// Links of the host that lead into networks.
fn free_ends(lab: &Lab, host: &str) -> Result<String> {
    lab.sh(host, "ip -o link | grep -o ' vx[0-9a-f]*' || true")
}

#[test]
fn containers_of_two_hosts_share_a_network() -> Result<()> {
    let lab = Lab::captured(Default::default())?;
    let engines @ [one, two] = &engines(&lab)?;
    one.docker(&lab, CREATE)?;
    two.docker(&lab, JOIN)?;
    let web = run(&lab, one, "web", FLAGS)?;
    let call = run(&lab, two, "call", FLAGS)?;
    lab.named("h2", &["call", "web"])?;
    ensure!(web != call, "{web} twice");
    ensure!(reaches(&lab, two, "call", &web) && reaches(&lab, one, "web", &call), "no ping");
    ensure!(reaches(&lab, two, "call", "web"), "no name across hosts");
    let serve = "exec -d web /bin/busybox nc -ll -p 80 -e /bin/busybox echo VXMESH-PLAINTEXT";
    one.docker(&lab, serve)?;
    let ask = "exec call /bin/busybox nc -w 2 web 80";
    wait_until("an answer over TCP", || {
        Ok(two.docker(&lab, ask).is_ok_and(|said| said == "VXMESH-PLAINTEXT"))
    })?;
    // The name of a container of another host does not keep one from starting.
    let other = run(&lab, two, "web", FLAGS)?;
    lab.named("h1", &["call", "web", "web-h2"])?;
    ensure!(reaches(&lab, one, "web", &other), "no ping of the second one");

    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("both are reached after the agent's restart", || {
        Ok(reaches(&lab, two, "call", &web) && reaches(&lab, one, "web", &call))
    })?;
    one.docker(&lab, "restart -t 0 web")?;
    let again = address(&lab, one, "web")?;
    wait_until("it is reached again", || Ok(reaches(&lab, two, "call", &again)))?;
    for host in ["h1", "h2"] {
        let (is_well, said) = doctor(&lab, host)?;
        ensure!(is_well && said.contains("the same networks and containers"), "{said}");
    }
    // A container of an engine is not the agent's to unplug.
    let output = lab.try_vxmesh("h1", &["endpoint", "detach", "web"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("docker"), "{said}");

    // One whose interface somebody takes away has no endpoint any more, and that is said.
    let pid = one.docker(&lab, "inspect web -f '{{.State.Pid}}'")?;
    lab.sh("h1", &format!("nsenter -t {pid} -n ip link del eth0"))?;
    wait_until("the loss is named", || {
        let (is_well, said) = doctor(&lab, "h1")?;
        Ok(!is_well && said.contains("container `web` has no endpoint in network `app`"))
    })?;
    one.docker(&lab, "restart -t 0 web")?;
    let again = address(&lab, one, "web")?;
    wait_until("it is reached once more", || Ok(reaches(&lab, two, "call", &again)))?;
    one.docker(&lab, "rm -f web")?;
    two.docker(&lab, "rm -f web call")?;
    for (host, engine) in [("h1", one), ("h2", two)] {
        lab.named(host, &[])?;
        ensure!(free_ends(&lab, host)?.is_empty(), "{}", free_ends(&lab, host)?);
        engine.docker(&lab, "network rm app")?;
    }
    let left: Vec<Network> = lab.get("h1", "/v1/networks")?;
    ensure!(left.len() == 1, "a network with a name of its own went: {left:?}");
    lab.vxmesh("h1", &["network", "rm", "app"])?;
    engines.iter().try_for_each(|engine| engine.stop(&lab))?;
    let drops = &[UNDERWAY, &["unknown_index"]].concat();
    lab.finish(Allowed { drops, ..Allowed::default() })
}

#[test]
fn containers_outlive_the_agent_and_the_engine() -> Result<()> {
    let lab = Lab::up(2)?;
    let engines @ [one, two] = &engines(&lab)?;
    one.docker(&lab, CREATE)?;
    two.docker(&lab, JOIN)?;
    let begun = std::time::Instant::now();
    let web = run(&lab, one, "web", &format!("{FLAGS} --ip 10.77.0.50"))?;
    tell(&format!("`docker run` took {:.0?}", begun.elapsed()));
    ensure!(web == "10.77.0.50", "{web}");
    run(&lab, two, "call", FLAGS)?;
    wait_until("it is reached", || Ok(reaches(&lab, two, "call", "web")))?;
    // The address that a container has is nobody else's, on either host.
    super::refused(&lab, two, &format!("run --rm {FLAGS} --ip {web} box:1 true"), &[&web])?;
    super::refused(&lab, one, &format!("run --rm {FLAGS} --ip {web} box:1 true"), &[&web])?;

    // It ends while the agent is away: nothing of it is left afterwards.
    lab.lab(&["kill", "h2"])?;
    lab.sh("h2", "kill -9 $(docker -H unix:///run/docker.sock inspect call -f '{{.State.Pid}}')")?;
    lab.lab(&["start", "h2"])?;
    lab.named("h1", &["web"])?;
    wait_until("the engine is done with it", || {
        let state = two.docker(&lab, "inspect call -f '{{.State.Running}}'")?;
        Ok(state == "false" && lab.endpoint_names("h2")? == ["web"])
    })?;
    two.docker(&lab, "start call")?;
    wait_until("it is reached again", || Ok(reaches(&lab, two, "call", "web")))?;

    // The engine is killed; the container goes on, and the engine finds it again or ends it.
    lab.sh("h1", "kill -9 $(cat /run/docker.pid); rm -f /run/docker.pid")?;
    ensure!(reaches(&lab, two, "call", &web), "it ended with the engine");
    one.start_again(&lab)?;
    one.docker(&lab, "rm -f web")?;
    lab.named("h2", &["call"])?;
    // Its address is had again by who asks for it, and so it keeps it over a restart.
    run(&lab, one, "web", &format!("{FLAGS} --ip {web}"))?;
    one.docker(&lab, "restart -t 0 web")?;
    wait_until("it is reached after its restart", || Ok(reaches(&lab, two, "call", &web)))?;
    one.docker(&lab, "rm -f web")?;
    two.docker(&lab, "rm -f call")?;
    engines.iter().try_for_each(|engine| engine.stop(&lab))?;
    let drops = &[UNDERWAY, &["unknown_index"]].concat();
    lab.finish(Allowed { drops, ..Allowed::default() })
}
