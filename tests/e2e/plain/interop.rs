//! Sandboxes and the kernel's vxlan device reach each other, and sealed networks beside stay
//! sealed.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::{
    capture::{containing, to_port},
    lab::{Allowed, DEADLINE, Lab, MARKER, Options, wait_until},
    outside::{Outside, call_tcp, call_udp, sh},
    traffic::{Echo, ask_udp, ping, udp_to},
};

use super::world::{KERNEL, kernel_vtep, network, of_version};

/// What crosses the plain network; the marker of sealed traffic is another.
const READABLE: &[u8] = b"vxmesh-in-clear!";
/// The kernel floods what it does not know to every host.
const FLOODED: Allowed<'_> = Allowed { drops: &["not_local"], warnings: &[] };

/// Both ways over both IP versions, with a static VTEP at this address, and hosts at those.
///
/// The kernel on the same machine leaves packets unfinished; `finished` has it do what a card does.
fn reaches(underlay: &'static str, vtep: &str, hosts: [&str; 2], finished: bool) -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, underlay, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    network(&lab, "plain", &[vtep])?;
    let a = lab.sandbox("h1", "plain", "a")?;
    let b = lab.sandbox("h2", "plain", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    kernel_vtep(&outside.netns, vtep, &hosts)?;
    if finished {
        sh(&outside.netns, "ethtool -K vx0 tx off")?;
    }
    for kernel in KERNEL {
        let kernel: IpAddr = kernel.parse()?;
        for sandbox in [&a, &b] {
            let own = of_version(&sandbox.endpoint.ips, kernel)?;
            // The first packet of each side asks for the other's MAC.
            ping(&sandbox.netns, kernel, 3)?;
            ping(&outside.netns, own, 3)?;
            let from = call_tcp(&sandbox.netns, (kernel, 80).into(), &outside.netns, 80)?;
            ensure!(from == own, "{from}");
            let from = call_tcp(&outside.netns, (own, 80).into(), &sandbox.netns, 80)?;
            ensure!(from == kernel, "{from}");
            call_udp(&sandbox.netns, (kernel, 81).into(), &outside.netns, 81)?;
            call_udp(&outside.netns, (own, 81).into(), &sandbox.netns, 81)?;
        }
        let to = of_version(&b.endpoint.ips, kernel)?;
        ping(&a.netns, to, 3)?;
        call_tcp(&a.netns, (to, 82).into(), &b.netns, 82)?;
    }
    let inspected: Network = lab.json("h1", &["network", "inspect", "plain"])?;
    let plain = inspected.plain.as_ref();
    ensure!(plain.is_some_and(|plain| plain.learned == 1 && plain.fault.is_none()), "{plain:?}");
    drop((a, b));
    lab.finish(FLOODED)
}

#[test]
fn sandboxes_and_the_kernels_vxlan_device_reach_each_other() -> Result<()> {
    reaches("dual", "10.213.0.200", ["10.213.0.1", "10.213.0.2"], false)
}

#[test]
fn they_do_over_ipv6() -> Result<()> {
    reaches("v6", "fd13::200", ["fd13::1", "fd13::2"], true)
}

#[test]
fn broadcasts_go_both_ways() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    network(&lab, "plain", &["10.213.0.200"])?;
    let a = lab.sandbox("h1", "plain", "a")?;
    kernel_vtep(&outside.netns, "10.213.0.200", &["10.213.0.1"])?;
    for (from, to) in [(&a.netns, &outside.netns), (&outside.netns, &a.netns)] {
        let receiver = to.run(|| Ok(UdpSocket::bind("0.0.0.0:90")?))?;
        receiver.set_read_timeout(Some(DEADLINE))?;
        let sender = from.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        sender.set_broadcast(true)?;
        sender.send_to(READABLE, "10.77.0.255:90")?;
        let mut buffer = [0; 100];
        let len = receiver.recv(&mut buffer)?;
        ensure!(buffer.get(..len) == Some(READABLE), "{len} bytes");
    }
    let kernel: IpAddr = KERNEL[0].parse()?;
    ping(&a.netns, kernel, 2)?;
    drop(a);
    lab.finish(FLOODED)
}

#[test]
fn i10_a_sealed_network_beside_a_plain_one_stays_sealed() -> Result<()> {
    let lab = Lab::captured(Options { hosts: 2, ..Options::default() })?;
    network(&lab, "plain", &["10.213.0.200"])?;
    lab.network("h1", "blue")?;
    let run = |host, name| lab.sandbox(host, "plain", name);
    let (a, b) = (run("h1", "a")?, run("h2", "b")?);
    let c = lab.sandbox("h1", "blue", "c")?;
    let d = lab.sandbox("h2", "blue", "d")?;
    lab.all_know(&[&a.endpoint, &b.endpoint, &c.endpoint, &d.endpoint])?;
    let server = Echo::start(&d.netns)?;
    for ip in &d.endpoint.ips {
        ask_udp(&c.netns, ip.addr())?;
    }
    // To an endpoint, and to everybody: to the other host and to the static VTEP.
    let ip = of_version(&b.endpoint.ips, KERNEL[0].parse()?)?;
    let receiver = b.netns.run(|| Ok(UdpSocket::bind("0.0.0.0:90")?))?;
    receiver.set_read_timeout(Some(DEADLINE))?;
    let sender = a.netns.run(|| udp_to(ip, 90))?;
    sender.send(READABLE)?;
    ensure!(receiver.recv(&mut [0; 100])? == READABLE.len(), "another datagram");
    let everybody = c.netns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    everybody.set_broadcast(true)?;
    everybody.send_to(MARKER, SocketAddr::new([255; 4].into(), 90))?;

    wait_until("the plain frame is captured", || {
        let packets = lab.recorded()?;
        Ok(containing(&packets, READABLE) > 0 && to_port(&packets, 4789) > 0)
    })?;
    let packets = lab.recorded()?;
    let plain: Vec<_> =
        packets.iter().filter(|it| containing(&[(*it).clone()], READABLE) > 0).collect();
    for packet in plain {
        let port = packet.get(34..36).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]));
        ensure!(port >= 49152, "from port {port}");
        ensure!(packet.get(36..38) == Some(&4789_u16.to_be_bytes()), "to another port");
        ensure!(packet.get(40..42) != Some(&[0, 0]), "without a checksum");
        ensure!(packet.get(42..50) == Some(&[8, 0, 0, 0, 0, 0x1c, 0xb4, 0]), "another header");
    }
    drop((server, a, b, c, d));
    // It also says that the marker was nowhere.
    lab.finish(FLOODED)
}
