//! Bursts that a program behind the kernel's vxlan device has the kernel cut (UDP_SEGMENT): all of
//! it arrives, and none of it is taken for VXLAN.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use vxmesh::api::Network;
use vxmesh_proto::{addr::Vni, wire::vxlan};
use vxmesh_tests::{
    capture::{Capture, containing},
    lab::{Allowed, DEADLINE, Lab, Options, Plugged, tell, wait_until},
    netns::NetNs,
    outside::Outside,
    traffic::{ping, udp_to},
};

use super::world::{KERNEL, kernel_vtep, network, of_version};

const DATAGRAMS: u16 = 10;
const LEN: usize = 1200;
/// VXLAN 8, Ethernet 14, IPv4 20, UDP 8: where a whole burst has its payload.
const HEADERS: usize = 50;
const PAYLOAD: &[u8; 16] = b"PAYLOAD-NO-FRAME";

/// Datagrams with their numbers. Read in steps of their length from the outer header on, each would
/// be a VXLAN packet of the network for the station with this MAC.
fn burst(vni: Vni, to: &Plugged) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..DATAGRAMS)
        .flat_map(|number| number.to_be_bytes().into_iter().cycle().take(LEN))
        .collect();
    let frame = [&to.endpoint.mac.0[..], &[2, 0, 0, 0, 0, 9], &[0x88, 0xb5], PAYLOAD].concat();
    let packet = [&vxlan::header(vni)[..], &frame].concat();
    for at in (LEN - HEADERS..bytes.len()).step_by(LEN) {
        bytes[at..at + packet.len()].copy_from_slice(&packet);
    }
    bytes
}

/// Sends the burst with one call to a server in another namespace, and compares what comes there.
fn arrives_whole(from: &NetNs, to: &NetNs, ip: IpAddr, burst: &[u8]) -> Result<()> {
    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let server = to.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    server.set_read_timeout(Some(DEADLINE))?;
    let client = from.run(|| udp_to(ip, server.local_addr()?.port()))?;
    setsockopt(&client, sockopt::UdpGsoSegment, &i32::try_from(LEN)?)?;
    let begin = Instant::now();
    ensure!(client.send(burst)? == burst.len(), "cut short");
    let mut buffer = [0; 2 * LEN];
    for (number, expected) in burst.chunks(LEN).enumerate() {
        let len = server.recv(&mut buffer).with_context(|| format!("{number} of {ip} came"))?;
        ensure!(buffer.get(..len) == Some(expected), "{ip}: datagram {number} is another");
    }
    tell(&format!("a burst to {ip} came in {:?}", begin.elapsed()));
    Ok(())
}

#[test]
fn a_burst_behind_the_kernels_vxlan_device_arrives_and_its_payload_is_no_header() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    let own = network(&lab, "plain", &["10.213.0.200"])?;
    let create = ["network", "create", "other", "--encrypted=false", "--vtep", "10.213.0.200"];
    let other: Network = lab.json("h1", &create)?;
    let a = lab.sandbox("h1", "plain", "a")?;
    let b = lab.sandbox("h1", "plain", "b")?;
    let c = lab.sandbox("h1", "other", "c")?;
    kernel_vtep(&outside.netns, "10.213.0.200", &["10.213.0.1"])?;
    let inside = [Capture::start(&b.netns, "eth0")?, Capture::start(&c.netns, "eth0")?];
    for kernel in KERNEL {
        let ip = of_version(&a.endpoint.ips, kernel.parse()?)?;
        ping(&outside.netns, ip, 1)?;
        for (network, station) in [(&own, &b), (&other, &c)] {
            let burst = burst(network.vni.context("no VNI")?, station);
            arrives_whole(&outside.netns, &a.netns, ip, &burst)?;
        }
    }
    // The stations hear of something that is sent to them, so they would have seen what came
    // before.
    for (capture, station) in inside.iter().zip([&b, &c]) {
        let ip = of_version(&station.endpoint.ips, KERNEL[0].parse()?)?;
        let to = SocketAddr::new(ip, 9);
        lab.host("h1")?
            .run(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"THE-LAST-OF-THEM", to)?))?;
        wait_until("the last is seen", || {
            Ok(containing(&capture.packets()?, b"THE-LAST-OF-THEM") > 0)
        })?;
        ensure!(containing(&capture.packets()?, PAYLOAD) == 0, "payload became a frame");
    }
    drop((inside, a, b, c));
    lab.finish(Allowed::default())
}
