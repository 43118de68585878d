//! Who sees which frame, and that those which reach the agent are whole.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use etherparse::{NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords};
use vxmesh::datapath::{backend::Backend, steering::Queues};
use vxmesh_proto::addr::MacAddr;
use vxmesh_tests::topology::{Capture, Sandbox, Topology, Wire, ok, wait_until};

use super::{GATEWAY_MAC, MTU, host, inside, mac, port, sandbox};

/// For experiments (IEEE 802, local experimental ethertype 1): nobody answers.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

fn frame(to: MacAddr, from: MacAddr, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &EXPERIMENT, payload].concat()
}

fn is_to(frame: &[u8], mac: MacAddr) -> bool {
    frame.starts_with(&mac.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tap_gets_what_is_unknown_here_and_nothing_local() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let wire = Wire::open(overlay.open_tap(Backend::TunTap, Queues::ONE).await?);
    let a = sandbox(&topology, &overlay, 11).await?;
    let b = sandbox(&topology, &overlay, 12).await?;
    let at_b = Capture::start(&topology, &b.netns, "eth0", "")?;

    assert!(a.pings("10.10.0.12")? && a.pings("fd10::12")?);
    let afar = mac(0x99);
    ok(&a.netns, &format!("ip neigh replace 10.10.0.99 lladdr {afar} dev eth0 nud permanent"))?;
    wait_until("unicast for afar reaches the TAP", || {
        a.pings("10.10.0.99")?;
        Ok(wire.seen(0).iter().any(|frame| is_to(frame, afar)))
    })?;
    wait_until("a broadcast reaches the TAP and the neighbour", || {
        a.pings("10.10.0.98")?;
        let broadcast =
            |frame: &Vec<u8>| is_to(frame, MacAddr::BROADCAST) && frame.ends_with(&[10, 10, 0, 98]);
        Ok(wire.seen(0).iter().any(broadcast) && at_b.frames()?.iter().any(broadcast))
    })?;
    // From afar: what nobody here has is flooded to nobody, what somebody has arrives. The second
    // tells that the first was handled.
    wire.inject(&frame(mac(0x77), afar, b"for nobody here"))?;
    wire.inject(&frame(mac(12), afar, b"for b"))?;
    wait_until("a frame from afar arrives", || {
        Ok(at_b.frames()?.iter().any(|frame| frame.ends_with(b"for b")))
    })?;

    let tap = wire.seen(0);
    assert!(
        !tap.iter().any(|frame| is_to(frame, mac(11)) || is_to(frame, mac(12))),
        "local unicast"
    );
    // Bridge ports and the TAP never speak for themselves.
    let known = [mac(11), mac(12), GATEWAY_MAC];
    let stranger =
        tap.iter().find(|frame| !known.iter().any(|mac| frame.get(6..12) == Some(&mac.0[..])));
    assert!(stranger.is_none(), "{stranger:02x?}");
    let at_b = at_b.stop()?;
    assert!(
        !at_b.iter().any(|frame| is_to(frame, afar) || is_to(frame, mac(0x77))),
        "flooded to a sandbox"
    );
    Ok(())
}

/// Whether the transport's checksum is right (RFC 1071 over the pseudo header of RFC 9293 section
/// 3.1 or RFC 8200 section 8.1); nothing if the frame carries neither TCP nor UDP.
fn is_whole(frame: &[u8]) -> Result<Option<bool>> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let (sum, number) = match (&packet.net, &packet.transport) {
        (Some(net), Some(TransportSlice::Tcp(_))) => (pseudo_header(net), 6_u8),
        (Some(net), Some(TransportSlice::Udp(_))) => (pseudo_header(net), 17),
        _ => return Ok(None),
    };
    let header = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => 14 + ip.header().slice().len(),
        _ => 14 + 40,
    };
    let segment = &frame[header..];
    let length = u32::try_from(segment.len())?;
    let sum = sum.add_2bytes([0, number]).add_4bytes(length.to_be_bytes()).add_slice(segment);
    Ok(Some(sum.ones_complement() == 0))
}

fn pseudo_header(net: &NetSlice<'_>) -> Sum16BitWords {
    match net {
        NetSlice::Ipv4(ip) => Sum16BitWords::new()
            .add_4bytes(ip.header().source())
            .add_4bytes(ip.header().destination()),
        NetSlice::Ipv6(ip) => Sum16BitWords::new()
            .add_16bytes(ip.header().source())
            .add_16bytes(ip.header().destination()),
        NetSlice::Arp(_) => Sum16BitWords::new(),
    }
}

/// Sends bytes over TCP, has them sent back, and sends a datagram.
fn exchange(from: &Sandbox, to: &Sandbox, ip: IpAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let deadline = Some(Duration::from_secs(30));
    let at: SocketAddr = (ip, 7000).into();
    let listener = to.netns.run(|| TcpListener::bind(at))?;
    let server = thread::spawn(move || -> Result<()> {
        let (mut stream, _peer) = listener.accept()?;
        stream.set_read_timeout(deadline)?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        Ok(stream.write_all(&got)?)
    });
    let mut client = from.netns.run(|| TcpStream::connect(at))?;
    client.set_read_timeout(deadline)?;
    client.write_all(bytes)?;
    client.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    client.read_to_end(&mut back)?;
    server.join().map_err(|_panic| anyhow!("the server panicked"))??;

    let receiver = to.netns.run(|| UdpSocket::bind(at))?;
    receiver.set_read_timeout(deadline)?;
    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    from.netns.run(|| UdpSocket::bind((any, 0))?.send_to(b"datagram", at))?;
    let mut datagram = [0; 16];
    assert_eq!(receiver.recv(&mut datagram)?, 8);
    Ok(back)
}

/// Sandboxes leave checksums and cutting to the hardware that they think they have. The TAP offers
/// none of that, so the kernel must have done both before the agent reads a frame.
#[tokio::test(flavor = "multi_thread")]
async fn frames_reach_the_agent_cut_and_with_whole_checksums() -> Result<()> {
    let topology = Topology::new()?;
    let one = host(&topology, "h1").await?;
    let other = host(&topology, "h2").await?;
    let wire = Wire::join(
        one.open_tap(Backend::TunTap, Queues::ONE).await?,
        other.open_tap(Backend::TunTap, Queues::ONE).await?,
    );
    let a = sandbox(&topology, &one, 11).await?;
    let b = sandbox(&topology, &other, 12).await?;
    let filter = "tcp or udp";
    let at_port = Capture::start(&topology, &inside(&topology, "h1")?, &port(11), filter)?;

    let bytes: Vec<u8> =
        (0..2_u32 << 20).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect();
    for ip in ["10.10.0.12", "fd10::12"] {
        let back = exchange(&a, &b, ip.parse()?, &bytes)?;
        assert!(back == bytes, "{ip}: {} bytes came back", back.len());
    }

    let longest = usize::from(MTU) + 14;
    for (host, seen) in [wire.seen(0), wire.seen(1)].iter().enumerate() {
        let mut checked = 0;
        for frame in seen {
            assert!(frame.len() <= longest, "host {host}: a frame of {} bytes", frame.len());
            if let Some(whole) = is_whole(frame)? {
                assert!(whole, "host {host}: {frame:02x?}");
                checked += 1;
            }
        }
        // Each direction of each IP version carried all the bytes.
        assert!(checked >= 2 * bytes.len() / usize::from(MTU), "host {host}: {checked} frames");
    }
    // The same frames one step before the TAP: the proof would be worth nothing if they were whole
    // there already.
    let before = at_port.stop()?;
    assert!(before.iter().any(|frame| frame.len() > longest), "no super-frame at the port");
    let partial = before.iter().any(|frame| matches!(is_whole(frame), Ok(Some(false))));
    assert!(partial, "no partial checksum at the port");
    Ok(())
}
