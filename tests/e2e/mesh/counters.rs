//! The byte counters of a session tell exactly what was sealed.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Node, Peer};
use vxmesh_proto::{session::wire::SEAL_OVERHEAD, wire::vxlan};
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    traffic::ping,
};

const PINGS: u64 = 50;
/// Ethernet header, ICMP header, 56 bytes.
const ECHO_LEN: u64 = 14 + 8 + 56;
const IPV4_LEN: u64 = 20;
const IPV6_LEN: u64 = 40;

/// Received and sent bytes by (host, peer).
type Counters = BTreeMap<(String, String), (u64, u64)>;

fn counters(lab: &Lab) -> Result<Counters> {
    let nodes: Vec<Node> = lab.json("h1", &["node", "ls"])?;
    let mut all = Counters::new();
    for host in lab.hosts() {
        for peer in lab.json::<Vec<Peer>>(host, &["peer", "ls"])? {
            let node = nodes.iter().find(|node| node.id == peer.node_id).context("who is it")?;
            all.insert((host.clone(), node.name.to_string()), (peer.rx_bytes, peer.tx_bytes));
        }
    }
    Ok(all)
}

/// What a kernel says when an interface is new (multicast groups, routers) and the keepalive after
/// it must be through.
fn quiet(lab: &Lab) -> Result<Counters> {
    let mut last = counters(lab)?;
    let mut same = 0;
    wait_until("the underlay is quiet", || {
        thread::sleep(Duration::from_millis(500));
        let next = counters(lab)?;
        same = if next == last { same + 1 } else { 0 };
        last = next;
        Ok(same >= 4)
    })?;
    Ok(last)
}

#[test]
fn pings_are_counted_to_the_byte() -> Result<()> {
    let lab = Lab::captured(Default::default())?;
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let b = lab.sandbox("h2", "blue", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    for ip in &b.endpoint.ips {
        ping(&a.netns, ip.addr(), 1)?;
    }
    for ip in &b.endpoint.ips {
        let header = if ip.addr().is_ipv4() { IPV4_LEN } else { IPV6_LEN };
        let sealed = u64::try_from(SEAL_OVERHEAD + vxlan::HEADER_LEN)?;
        let bytes = PINGS * (sealed + ECHO_LEN + header);
        let before = quiet(&lab)?;
        // One by one: two frames that wait together share a datagram, which saves bytes.
        for _ in 0..PINGS {
            ping(&a.netns, ip.addr(), 1)?;
        }
        let mut expected = before.clone();
        for (host, peer) in [("h1", "h2"), ("h2", "h1")] {
            let row = expected.get_mut(&(host.into(), peer.into())).context("no such peer")?;
            *row = (row.0 + bytes, row.1 + bytes);
        }
        let after = counters(&lab)?;
        ensure!(after == expected, "{ip}: {before:?}, then {after:?} instead of {expected:?}");
    }
    lab.finish(Allowed::default())
}
