//! A sandbox that claims to be another one is stopped on its own host.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use vxmesh::api::Endpoint;
use vxmesh_tests::{
    capture::{Capture, containing},
    lab::{Allowed, Lab, MARKER, wait_until},
    traffic::{Echo, ask_udp, payload, send_frames},
};

fn ipv4(endpoint: &Endpoint) -> Result<[u8; 4]> {
    let found = endpoint.ips.iter().find_map(|ip| match ip.addr() {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    found.context("no IPv4 address")
}

#[test]
fn a_source_that_belongs_to_another_node_goes_nowhere() -> Result<()> {
    let lab = Lab::captured(Default::default())?;
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let b = lab.sandbox("h2", "blue", "b")?;
    let c = lab.sandbox("h3", "blue", "c")?;
    lab.all_know(&[&a.endpoint, &b.endpoint, &c.endpoint])?;
    let _server = Echo::start(&b.netns)?;
    let to_b = ipv4(&b.endpoint)?;
    ask_udp(&a.netns, to_b.into())?;

    let inside = Capture::start(&b.netns, "eth0")?;
    let frame = |mac: [u8; 6], ip: [u8; 4]| -> Result<Vec<u8>> {
        let builder = PacketBuilder::ethernet2(mac, b.endpoint.mac.0);
        let mut bytes = Vec::new();
        builder.ipv4(ip, to_b, 64).udp(7, 7).write(&mut bytes, &payload(100))?;
        Ok(bytes)
    };
    let (mine, theirs) = (&a.endpoint, &c.endpoint);
    let cases = [
        ("source_unknown", frame(theirs.mac.0, ipv4(theirs)?)?),
        ("source_unknown", frame(theirs.mac.0, ipv4(mine)?)?),
        ("ip_spoofed", frame(mine.mac.0, ipv4(theirs)?)?),
    ];
    for (reason, frame) in cases {
        let before = lab.dropped("h1", reason)?;
        send_frames(&a.netns, "eth0", &[frame])?;
        wait_until(&format!("{reason} is counted"), || {
            Ok(lab.dropped("h1", reason)? == before + 1)
        })?;
    }
    let arrived = containing(&inside.stop()?, MARKER);
    ensure!(arrived == 0, "{arrived} spoofed frames arrived");
    ask_udp(&a.netns, to_b.into())?;
    lab.finish(Allowed { drops: &["source_unknown", "ip_spoofed"], ..Allowed::default() })
}
