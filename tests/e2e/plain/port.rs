//! The plain port: open only while a plain network is on the host, and often another's.

use anyhow::{Context, Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    traffic::ping,
};

use super::world::{is_open, network};

#[test]
fn a_taken_port_degrades_plain_networks_only_and_is_tried_again() -> Result<()> {
    let lab = Lab::up(2)?;
    let h1 = lab.host("h1")?;
    lab.sh(
        "h1",
        "ip link add dk0 type vxlan id 77 dstport 4789 local 10.213.0.1 && ip link set dk0 up",
    )?;
    network(&lab, "plain", &[])?;
    ensure!(!is_open(&lab.host("h2")?)?, "no endpoint is there");
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "plain", "a")?;
    let b = lab.sandbox("h2", "plain", "b")?;
    let c = lab.sandbox("h1", "blue", "c")?;
    let d = lab.sandbox("h2", "blue", "d")?;
    lab.all_know(&[&a.endpoint, &b.endpoint, &c.endpoint, &d.endpoint])?;

    let inspect = || lab.json::<Network>("h1", &["network", "inspect", "plain"]);
    let degraded = inspect()?;
    let fault = degraded.plain.and_then(|plain| plain.fault).context("no fault is shown")?;
    ensure!(degraded.state == "degraded" && fault.contains("4789"), "{fault}");
    let doctor = lab.try_vxmesh("h1", &["doctor"])?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    ensure!(doctor.status.code() == Some(1) && said.contains("plain port"), "{doctor:?}");
    for ip in &d.endpoint.ips {
        ping(&c.netns, ip.addr(), 2)?;
    }

    lab.sh("h1", "ip link delete dk0")?;
    wait_until("the port is open", || {
        let network = inspect()?;
        Ok(network.state == "active" && network.plain.is_some_and(|plain| plain.fault.is_none()))
    })?;
    ensure!(is_open(&h1)?, "nobody has the port");
    for ip in &b.endpoint.ips {
        ping(&a.netns, ip.addr(), 2)?;
    }

    for (host, name) in [("h1", "a"), ("h2", "b")] {
        lab.vxmesh(host, &["sandbox", "rm", name])?;
    }
    lab.vxmesh("h1", &["network", "rm", "plain"])?;
    for host in lab.hosts() {
        let host = lab.host(host)?;
        wait_until("the port is closed", || Ok(!is_open(&host)?))?;
    }
    drop((a, b, c, d));
    lab.finish(Allowed {
        drops: &["plain_closed"],
        warnings: &["plain networks are without their port"],
    })
}

#[test]
fn a_restarted_agent_opens_it_again() -> Result<()> {
    let lab = Lab::up(1)?;
    network(&lab, "plain", &[])?;
    let a = lab.sandbox("h1", "plain", "a")?;
    let h1 = lab.host("h1")?;
    ensure!(is_open(&h1)?, "nobody has the port");
    lab.lab(&["kill", "h1"])?;
    wait_until("the port is closed", || Ok(!is_open(&h1)?))?;
    lab.lab(&["start", "h1"])?;
    wait_until("the port is open", || is_open(&h1))?;
    drop(a);
    lab.finish(Allowed::default())
}
