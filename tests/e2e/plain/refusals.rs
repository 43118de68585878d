//! What is not taken in clear: from strangers, of encrypted and unknown networks, and for endpoints
//! from who does not have them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use vxmesh_proto::{addr::Vni, wire::vxlan};
use vxmesh_tests::{
    capture::{Capture, containing},
    lab::{Allowed, Lab, Options, Plugged, wait_until},
    outside::{Outside, sh},
    traffic::{ping, send_datagrams},
};

use super::world::{KERNEL, VNI, kernel_vtep, network};

const FORGED: &[u8; 16] = b"FORGED-BYTES-ALL";

/// A VXLAN packet for the sandbox from a MAC and an IPv4 address.
fn packet(vni: Vni, to: &Plugged, mac: [u8; 6], ip: [u8; 4]) -> Result<Vec<u8>> {
    let mut bytes = vxlan::header(vni).to_vec();
    PacketBuilder::ethernet2(mac, to.endpoint.mac.0)
        .ipv4(ip, [10, 77, 0, 255], 64)
        .udp(7, 7)
        .write(&mut bytes, FORGED)?;
    Ok(bytes)
}

/// After this datagram to h1 the counter is one higher.
fn is_counted(lab: &Lab, outside: &Outside, reason: &str, datagram: Vec<u8>) -> Result<()> {
    let before = lab.dropped("h1", reason)?;
    let to = SocketAddr::new("10.213.0.1".parse()?, 4789);
    send_datagrams(&outside.netns, to, &[datagram])?;
    wait_until(&format!("{reason} is counted"), || Ok(lab.dropped("h1", reason)? == before + 1))
}

#[test]
fn i10_only_known_vteps_and_plain_networks_are_heard() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    // The static VTEP is somebody else.
    network(&lab, "plain", &["10.213.0.222"])?;
    let blue = lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "plain", "a")?;
    let c = lab.sandbox("h1", "blue", "c")?;
    let inside = [Capture::start(&a.netns, "eth0")?, Capture::start(&c.netns, "eth0")?];
    let (mac, ip, vni) = ([2, 0, 0, 0, 0, 9], [10, 77, 0, 9], Vni::try_from(VNI)?);
    let sealed = blue.vni.context("no VNI")?;
    let other = Vni::try_from(if sealed.get() == 4711 { 4712 } else { 4711 })?;
    let (short, no_flag) = (vec![8; 7], vec![0; 60]);
    for (reason, datagram) in [
        ("unknown_vtep", packet(vni, &a, mac, ip)?),
        ("sealed_vni", packet(sealed, &c, mac, ip)?),
        ("vni_unknown", packet(other, &a, mac, ip)?),
        ("malformed_vxlan", short),
        ("malformed_vxlan", no_flag),
        ("malformed_vxlan", Vec::new()),
    ] {
        is_counted(&lab, &outside, reason, datagram)?;
    }
    for capture in inside {
        ensure!(containing(&capture.stop()?, FORGED) == 0, "a forged frame was delivered");
    }
    drop((a, c));
    let drops = &["unknown_vtep", "sealed_vni", "vni_unknown", "malformed_vxlan"];
    lab.finish(Allowed { drops, warnings: &[] })
}

#[test]
fn a_static_vtep_does_not_speak_for_endpoints() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    network(&lab, "plain", &["10.213.0.200"])?;
    let a = lab.sandbox("h1", "plain", "a")?;
    let b = lab.sandbox("h1", "plain", "b")?;
    let inside = Capture::start(&a.netns, "eth0")?;
    let (mac, ip, vni) = ([2, 0, 0, 0, 0, 9], [10, 77, 0, 9], Vni::try_from(VNI)?);
    let of_b = b.endpoint.ips.iter().find_map(|ip| match ip.addr() {
        std::net::IpAddr::V4(v4) => Some(v4.octets()),
        std::net::IpAddr::V6(_) => None,
    });
    is_counted(&lab, &outside, "vtep_source_taken", packet(vni, &a, b.endpoint.mac.0, ip)?)?;
    let stolen = packet(vni, &a, mac, of_b.unwrap_or_default())?;
    is_counted(&lab, &outside, "ip_spoofed", stolen)?;
    ensure!(containing(&inside.packets()?, FORGED) == 0, "a forged frame was delivered");
    // What is its own goes through: the same frame with an address that nobody has.
    let to = SocketAddr::new("10.213.0.1".parse()?, 4789);
    send_datagrams(&outside.netns, to, &[packet(vni, &a, mac, ip)?])?;
    wait_until("the sandbox gets it", || Ok(containing(&inside.packets()?, FORGED) == 1))?;
    drop((a, b));
    lab.finish(Allowed { drops: &["vtep_source_taken", "ip_spoofed"], warnings: &[] })
}

/// It is told of no removal, so the node itself has to stop.
#[test]
fn a_removed_node_and_a_static_vtep_are_strangers() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    network(&lab, "plain", &["10.213.0.200"])?;
    let b = lab.sandbox("h2", "plain", "b")?;
    kernel_vtep(&outside.netns, "10.213.0.200", &["10.213.0.2"])?;
    let kernel = KERNEL[0].parse()?;
    ping(&b.netns, kernel, 2)?;
    lab.vxmesh("h1", &["node", "rm", "--force", "h2"])?;
    wait_until("it is reached no more", || Ok(ping(&b.netns, kernel, 1).is_err()))?;
    let received =
        || sh(&outside.netns, r#"ip -j -s link show vx0 | grep -o '"rx":{"bytes":[0-9]*'"#);
    let before = received()?;
    ensure!(ping(&b.netns, kernel, 1).is_err(), "it is reached again");
    ensure!(received()? == before, "a frame came");
    // The agent of a removed node still runs over a restart.
    lab.lab(&["kill", "h2"])?;
    lab.lab(&["start", "h2"])?;
    ensure!(ping(&b.netns, kernel, 1).is_err(), "the next agent does");
    drop(b);
    let drops = &["unknown_vtep", "neighbor_unknown", "fdb_unknown", "no_members"];
    lab.finish(Allowed { drops, warnings: &["this node was removed from the mesh"] })
}

#[test]
fn vteps_are_for_plain_networks_only() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    for args in [
        &["--vtep", "10.213.0.200"][..],
        &["--encrypted=true", "--vtep", "10.213.0.200"],
        &["--encrypted=false", "--vtep", "224.0.0.1"],
        &["--encrypted=false", "--vtep", "fe80::1"],
        &["--encrypted=false", "--isolated", "--vtep", "10.213.0.200"],
        &["--encrypted=maybe"],
    ] {
        let output = lab.try_vxmesh("h1", &[&["network", "create", "n"], args].concat())?;
        ensure!(output.status.code() == Some(2), "{args:?}: {output:?}");
    }
    let networks: Vec<vxmesh::api::Network> = lab.get("h1", "/v1/networks")?;
    ensure!(networks.is_empty(), "{networks:?}");
    lab.finish(Allowed::default())
}
