//! Each lost frame has one reason, also where the kernel lost it, and where one is to blame it is
//! named.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use vxmesh::api::DropRow;
use vxmesh_proto::addr::EndpointId;
use vxmesh_tests::{
    lab::{Allowed, Lab, Options, wait_until},
    outside::{Outside, sh},
    stream::{long, tcp},
    traffic::{ping, udp_to},
};

use super::world::{KERNEL, kernel_vtep, network, of_version};

/// More than a TAP's queue holds.
const FLOOD: u64 = 3000;
const QUEUE: u64 = 1000;

/// How many rows count of this, of an endpoint.
fn of(lab: &Lab, reason: &str, endpoint: Option<EndpointId>) -> Result<u64> {
    let mut rows = lab.drops("h1")?;
    rows.retain(|row: &DropRow| row.reason == reason && row.endpoint == endpoint);
    ensure!(rows.iter().all(|row| row.network.is_some() && !row.normal), "{rows:?}");
    Ok(rows.iter().map(|row| row.count).sum())
}

#[test]
fn each_lost_frame_has_a_reason_and_whoever_is_to_blame_a_name() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    let plain = network(&lab, "plain", &["10.213.0.200"])?;
    let a = lab.sandbox("h1", "plain", "a")?;
    kernel_vtep(&outside.netns, "10.213.0.200", &["10.213.0.1"])?;
    let own = Some(a.endpoint.id);
    for kernel in KERNEL {
        ping(&a.netns, kernel.parse()?, 1)?;
    }

    // Super-frames that are larger than a TAP takes are cut in front of it (BIG TCP).
    sh(&a.netns, "ip link set eth0 gso_max_size 185000")?;
    for kernel in KERNEL {
        tcp(&a.netns, &outside.netns, kernel.parse()?, long())?;
    }

    // What the agent does not read in time, the kernel loses.
    let socket = a.netns.run(|| udp_to(KERNEL[0].parse()?, 9))?;
    let frozen = lab.freeze("h1")?;
    let sent = (0..FLOOD).try_for_each(|_| match socket.send(b"?") {
        // What came before the agent had stopped is refused by the other side.
        Err(error) if error.kind() != ErrorKind::ConnectionRefused => Err(error),
        Ok(_) | Err(_) => Ok(()),
    });
    drop(frozen);
    sent?;
    wait_until("the TAP's losses are counted", || {
        Ok(of(&lab, "tap_full", None)? >= FLOOD - QUEUE - 100)
    })?;

    // What is larger than the port, and what is larger than the network.
    sh(&a.netns, "ip link set eth0 mtu 9000")?;
    for (len, reason) in [(5000, "port_overrun"), (2000, "too_big")] {
        sh(&a.netns, &format!("ping -n -c 1 -W 1 -M do -s {len} {} || true", KERNEL[0]))?;
        wait_until(&format!("{reason} names the endpoint"), || Ok(of(&lab, reason, own)? > 0))?;
    }
    sh(&a.netns, &format!("ip link set eth0 mtu {}", plain.mtu))?;

    // Who sends too large packets from behind a VTEP is told by the gateway.
    sh(&outside.netns, "ip link set vx0 mtu 1450")?;
    let mut gateways = plain.subnets.iter().map(|subnet| subnet.gateway);
    for (kernel, headers) in KERNEL.into_iter().zip([28, 48]) {
        let to = of_version(&a.endpoint.ips, kernel.parse()?)?;
        let len = plain.mtu - headers + 2;
        let told = format!("ping -n -c 1 -W 5 -M do -s {len} {to} 2>&1; true");
        let said = sh(&outside.netns, &told)?;
        let by = gateways.next().context("no gateway")?;
        let wanted = [format!("mtu = {}", plain.mtu), format!("mtu={}", plain.mtu)];
        ensure!(said.contains(&format!("From {by} ")), "{said}");
        ensure!(wanted.iter().any(|mtu| said.contains(mtu)), "{said}");
    }

    // Normal is told from wrong, and the rows go with what they are about.
    let rows = lab.drops("h1")?;
    ensure!(rows.iter().any(|row| row.normal), "nothing is normal in {rows:?}");
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    ensure!(of(&lab, "too_big", own)? == 0 && of(&lab, "too_big", None)? > 0, "of whom?");
    lab.vxmesh("h1", &["network", "rm", "plain"])?;
    let rows = lab.drops("h1")?;
    ensure!(rows.iter().all(|row| row.network.is_none()), "{rows:?}");
    drop((socket, a));
    lab.finish(Allowed { drops: &["too_big"], warnings: &[] })
}
