//! The control of every test that finds no plaintext on the underlay: the same capture finds each
//! packet that has some.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use vxmesh_tests::{
    capture::containing,
    lab::{DEADLINE, Lab, MARKER, Options},
    traffic::{Echo, ask_udp},
};

/// Where packets in clear go to; somebody listens there, because an ICMP error would show the
/// marker once more.
const CLEAR_PORT: u16 = 9;

/// Sends a datagram in clear from h1 to an address of h2, and sees it arrive.
fn send_clear(lab: &Lab, to: &str, payload: &[u8]) -> Result<()> {
    let to = SocketAddr::new(to.parse()?, CLEAR_PORT);
    let receiver = lab.host("h2")?.run(|| Ok(UdpSocket::bind(to)?))?;
    receiver.set_read_timeout(Some(DEADLINE))?;
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    lab.host("h1")?.run(|| Ok(UdpSocket::bind(any)?.send_to(payload, to)?))?;
    let mut buffer = [0; 2000];
    let len = receiver.recv(&mut buffer)?;
    ensure!(buffer.get(..len) == Some(payload), "{len} bytes arrived");
    Ok(())
}

#[test]
fn i10_the_capture_that_finds_no_marker_would_find_one() -> Result<()> {
    let lab = Lab::captured(Options { hosts: 2, ..Options::default() })?;
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let b = lab.sandbox("h2", "blue", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    let server = Echo::start(&b.netns)?;
    for ip in &b.endpoint.ips {
        ask_udp(&a.netns, ip.addr())?;
    }
    ensure!(containing(&lab.recorded()?, MARKER) == 0, "sealed traffic shows the marker");

    // At the beginning of a packet, in its middle and at the end of the longest, over both
    // versions.
    let longest = |header: usize| [vec![0; 1500 - header - MARKER.len()], MARKER.to_vec()].concat();
    let middle = [b"before ".as_slice(), MARKER, b" after"].concat();
    let mut sent = 0;
    for (to, header) in [("10.213.0.2", 20 + 8), ("fd13::2", 40 + 8)] {
        for payload in [MARKER.to_vec(), middle.clone(), longest(header)] {
            send_clear(&lab, to, &payload)?;
            sent += 1;
            ensure!(containing(&lab.recorded()?, MARKER) == sent, "{sent} were sent, to {to}");
        }
        // One byte less than the marker is none.
        send_clear(&lab, to, &MARKER[1..])?;
    }
    let packets = lab.recorded()?;
    ensure!(containing(&packets, MARKER) == sent, "{sent} were sent");
    ensure!(containing(&packets, &MARKER[1..]) == sent + 2, "packets with most of it");
    drop((server, a, b));

    // What ends all tests of sealed traffic says so.
    let refused = lab.finish(Default::default()).err().map(|error| error.to_string());
    ensure!(refused.as_deref() == Some("plaintext on the underlay"), "{refused:?}");
    Ok(())
}
