//! Whatever strangers send to the data port is counted and goes nowhere: before there is a peer,
//! with peers, and after a peer left.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use vxmesh::api::{Network, Node, Peer, Status};
use vxmesh_proto::{
    reason::DropReason,
    session::wire::{
        COOKIE_LEN, DataHeader, HEADER_LEN, INIT_LEN, Kind, RESPONSE_LEN, SEAL_OVERHEAD,
    },
    wire::vxlan,
};
use vxmesh_tests::{
    capture::{Capture, containing},
    lab::{Allowed, DATA_PORT, Lab, MARKER, Options, Plugged, wait_until},
    traffic::{Echo, ask_udp, send_datagrams, send_frames},
};

/// Ethernet, IPv4 without options, UDP.
const OUTER_LEN: usize = 14 + 20 + 8;
/// What these tests cause on purpose.
const CAUSED: &[&str] = &[
    "bad_length",
    "bad_type",
    "bad_version",
    "bad_mac1",
    "unsolicited_cookie",
    "unknown_index",
    "unknown_peer",
    "replay",
    "replayed_handshake",
    "auth_failed",
];

/// What forged frames carry; the underlay shows it, sandboxes must not.
const FORGED: &[u8; 16] = b"FORGED-BYTES-ALL";

fn filler(len: usize) -> Vec<u8> {
    FORGED.iter().copied().cycle().take(len).collect()
}

/// Ends a capture inside of a sandbox, which neither a forged nor a replayed frame may have
/// reached.
fn nothing_arrived(inside: Capture) -> Result<()> {
    let packets = inside.stop()?;
    for bytes in [FORGED, MARKER] {
        ensure!(containing(&packets, bytes) == 0, "a forged frame was delivered");
    }
    Ok(())
}

fn message(number: u8, version: u8, len: usize) -> Vec<u8> {
    let mut bytes = filler(len);
    for (byte, value) in bytes.iter_mut().zip([number, version]) {
        *byte = value;
    }
    bytes
}

/// A frame to everybody as the kernel's vxlan device would send it in this network.
fn plain_vxlan(network: &Network) -> Result<Vec<u8>> {
    let mut bytes = vxlan::header(network.vni.context("no VNI")?).to_vec();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 99], [0xff; 6]);
    builder.ipv4([10, 0, 0, 99], [255; 4], 64).udp(7, 7).write(&mut bytes, &filler(100))?;
    Ok(bytes)
}

/// Every message type with garbage inside, a plain frame, and bytes of every kind; each with the
/// reason to drop it.
fn forged(network: &Network) -> Result<Vec<(DropReason, Vec<u8>)>> {
    let mut all = vec![
        (DropReason::BadLength, vec![]),
        (DropReason::BadLength, vec![4]),
        (DropReason::BadType, message(0, 1, 100)),
        (DropReason::BadType, message(5, 1, 100)),
        (DropReason::BadMac1, message(1, 1, INIT_LEN)),
        (DropReason::BadVersion, message(1, 2, INIT_LEN)),
        (DropReason::BadLength, message(1, 1, INIT_LEN - 1)),
        (DropReason::BadMac1, message(2, 1, RESPONSE_LEN)),
        (DropReason::BadLength, message(2, 1, RESPONSE_LEN + 1)),
        (DropReason::UnsolicitedCookie, message(3, 1, COOKIE_LEN)),
        (DropReason::UnknownIndex, message(4, 1, 1400)),
        (DropReason::UnknownIndex, message(4, 1, SEAL_OVERHEAD)),
        (DropReason::BadLength, message(4, 1, SEAL_OVERHEAD - 1)),
        (DropReason::BadVersion, message(4, 0, 100)),
        (DropReason::BadType, plain_vxlan(network)?),
    ];
    // The bytes of a linear congruential generator: different lengths and types, the same in each
    // run.
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    for _ in 0..200 {
        let len = usize::from(next());
        let bytes: Vec<u8> = (0..len).map(|_| next()).collect();
        let reason = match Kind::of(&bytes) {
            Err(reason) => reason,
            Ok(Kind::Data) => DropReason::UnknownIndex,
            Ok(Kind::Cookie) => DropReason::UnsolicitedCookie,
            Ok(Kind::Init | Kind::Response) => DropReason::BadMac1,
        };
        all.push((reason, bytes));
    }
    Ok(all)
}

/// How often a host has dropped for each reason.
fn counts(lab: &Lab, host: &str) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for row in lab.drops(host)? {
        if CAUSED.contains(&row.reason.as_str()) {
            *counts.entry(row.reason).or_default() += row.count;
        }
    }
    Ok(counts)
}

/// After the deed, exactly these drops more are counted at a host.
fn counts_more(
    lab: &Lab,
    host: &str,
    reasons: &[DropReason],
    deed: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut expected = counts(lab, host)?;
    for reason in reasons {
        *expected.entry(reason.as_str().to_owned()).or_default() += 1;
    }
    deed()?;
    let mut got = BTreeMap::new();
    wait_until("all drops are counted", || {
        got = counts(lab, host)?;
        Ok(got.values().sum::<u64>() >= expected.values().sum())
    })?;
    ensure!(got == expected, "{host} counts {got:?} instead of {expected:?}");
    Ok(())
}

/// Throws everything at the data port of a host over both IP versions.
fn bombard(lab: &Lab, from: &str, to: u8, network: &Network) -> Result<()> {
    let (reasons, datagrams): (Vec<_>, Vec<_>) = forged(network)?.into_iter().unzip();
    let target = format!("h{to}");
    for ip in [format!("10.213.0.{to}"), format!("fd13::{to}")] {
        let to = SocketAddr::new(ip.parse()?, DATA_PORT);
        counts_more(lab, &target, &reasons, || send_datagrams(&lab.host(from)?, to, &datagrams))?;
    }
    let status: Status = lab.json(&target, &["status"])?;
    ensure!(status.state == "ready", "{status:?}");
    Ok(())
}

/// The UDP ports that are open in a host.
fn open_ports(lab: &Lab, host: &str) -> Result<Vec<u16>> {
    let table = lab.sh(host, "cat /proc/net/udp /proc/net/udp6")?;
    let local = table.lines().filter_map(|line| line.split_whitespace().nth(1)?.rsplit_once(':'));
    Ok(local.filter_map(|(_, port)| u16::from_str_radix(port, 16).ok()).collect())
}

fn ipv4(plugged: &Plugged) -> Result<IpAddr> {
    let mut ips = plugged.endpoint.ips.iter().map(ipnet::IpNet::addr);
    ips.find(IpAddr::is_ipv4).context("no IPv4 address")
}

#[test]
fn before_any_peer_exists() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, agents: false, ..Options::default() })?;
    lab.lab(&["start", "h1"])?;
    lab.vxmesh("h1", &["init"])?;
    wait_until("h1 is ready", || Ok(lab.get::<Status>("h1", "/v1/status")?.state == "ready"))?;
    let network: Network = lab.json("h1", &["network", "create", "blue"])?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let inside = Capture::start(&a.netns, "eth0")?;
    bombard(&lab, "h2", 1, &network)?;
    nothing_arrived(inside)?;
    lab.finish(Allowed { drops: CAUSED, ..Allowed::default() })
}

/// A datagram of the underlay.
struct Datagram<'a> {
    frame: &'a [u8],
    from: u8,
    to: u8,
    kind: Kind,
}

impl Datagram<'_> {
    fn payload(&self) -> Vec<u8> {
        self.frame.get(OUTER_LEN..).unwrap_or_default().to_vec()
    }

    /// As it was on the wire, with another content of the same length, and without the UDP
    /// checksum, which the sender's kernel leaves to a device that does not exist.
    fn with(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.frame.get(..OUTER_LEN).unwrap_or_default().to_vec();
        frame.truncate(OUTER_LEN - 2);
        frame.extend([0, 0]);
        frame.extend(payload);
        frame
    }
}

/// What a captured frame is, if it is one for the data port over IPv4.
fn datagram(frame: &[u8]) -> Option<Datagram<'_>> {
    let (outer, payload) = frame.split_at_checked(OUTER_LEN)?;
    let [.., 10, 213, 0, from, 10, 213, 0, to] = *outer.get(..34)? else { return None };
    let is_udp = outer.get(12..15) == Some(&[8, 0, 0x45]) && outer.get(23) == Some(&17);
    let to_data = outer.get(36..38) == Some(&DATA_PORT.to_be_bytes());
    let kind = Kind::of(payload).ok().filter(|_| is_udp && to_data)?;
    Some(Datagram { frame, from, to, kind })
}

#[test]
fn replayed_and_forged_among_peers_and_after_one_left() -> Result<()> {
    let lab = Lab::captured(Options::default())?;
    let network = lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let b = lab.sandbox("h2", "blue", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    let servers = [Echo::start(&a.netns)?, Echo::start(&b.netns)?];
    for _ in 0..5 {
        ask_udp(&a.netns, ipv4(&b)?)?;
    }
    let packets = lab.recorded()?;
    let recorded: Vec<Datagram<'_>> = packets.iter().filter_map(|frame| datagram(frame)).collect();

    let inside = [Capture::start(&a.netns, "eth0")?, Capture::start(&b.netns, "eth0")?];
    for host in lab.hosts() {
        let ports = open_ports(&lab, host)?;
        ensure!(ports.contains(&DATA_PORT) && !ports.contains(&4789), "{host}: {ports:?}");
    }
    bombard(&lab, "h3", 2, &network)?;
    replay_data(&lab, &recorded, (1, 2))?;
    replay_data(&lab, &recorded, (2, 1))?;
    replay_handshakes(&lab, &recorded)?;
    tamper(&lab, &recorded)?;
    inside.into_iter().try_for_each(nothing_arrived)?;
    ask_udp(&a.netns, ipv4(&b)?)?;

    after_leaving(&lab, &recorded, &network, &a)?;
    drop(servers);
    lab.finish(Allowed { drops: CAUSED, ..Allowed::default() })
}

fn replay_data(lab: &Lab, recorded: &[Datagram<'_>], (from, to): (u8, u8)) -> Result<()> {
    let of_them = recorded.iter().filter(|it| (it.from, it.to, it.kind) == (from, to, Kind::Data));
    let sealed: Vec<_> = of_them.collect();
    ensure!(sealed.len() >= 5, "only {} sealed datagrams were recorded", sealed.len());
    let (host, reasons) = (format!("h{to}"), vec![DropReason::Replay; sealed.len()]);
    // With the address of their sender, from the middle of the underlay.
    let frames: Vec<_> = sealed.iter().map(|it| it.with(&it.payload())).collect();
    counts_more(lab, &host, &reasons, || send_frames(&lab.wire()?, "wire", &frames))?;
    // From another member's address, which must not become the peer's.
    let datagrams: Vec<_> = sealed.iter().map(|it| it.payload()).collect();
    let port = SocketAddr::new(format!("10.213.0.{to}").parse()?, DATA_PORT);
    counts_more(lab, &host, &reasons, || send_datagrams(&lab.host("h3")?, port, &datagrams))?;
    let sender: Status = lab.get(&format!("h{from}"), "/v1/status")?;
    let peers: Vec<Peer> = lab.json(&host, &["peer", "ls"])?;
    let peer = peers.iter().find(|peer| Some(peer.node_id) == sender.node_id);
    ensure!(peer.is_some_and(|peer| peer.addr == sender.vtep), "it moved: {peer:?}");
    Ok(())
}

fn replay_handshakes(lab: &Lab, recorded: &[Datagram<'_>]) -> Result<()> {
    let mut seen = 0;
    for it in recorded {
        let reason = match it.kind {
            Kind::Init => DropReason::ReplayedHandshake,
            Kind::Response => DropReason::UnknownIndex,
            Kind::Cookie | Kind::Data => continue,
        };
        seen += 1;
        let frame = it.with(&it.payload());
        counts_more(lab, &format!("h{}", it.to), &[reason], || {
            send_frames(&lab.wire()?, "wire", &[frame])
        })?;
    }
    ensure!(seen >= 2, "no handshake was recorded");
    Ok(())
}

/// A sealed datagram with one part changed: index, counter, content, tag.
fn tamper(lab: &Lab, recorded: &[Datagram<'_>]) -> Result<()> {
    let sealed = recorded.iter().rfind(|it| (it.from, it.to, it.kind) == (1, 2, Kind::Data));
    let sealed = sealed.context("no sealed datagram was recorded")?;
    let original = sealed.payload();
    let header = DataHeader::parse(&original)?;
    let later = DataHeader { counter: header.counter + 1_000_000, ..header };
    let with = |header: DataHeader, at: Option<usize>| {
        let mut bytes = original.clone();
        bytes.splice(..HEADER_LEN, header.to_bytes());
        if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
            *byte ^= 1;
        }
        sealed.with(&bytes)
    };
    let other = DataHeader { receiver: !header.receiver, ..header };
    let cases = [
        (DropReason::AuthFailed, with(later, None)),
        (DropReason::AuthFailed, with(later, Some(HEADER_LEN))),
        (DropReason::AuthFailed, with(later, Some(original.len() - 1))),
        (DropReason::AuthFailed, with(DataHeader { flags: 1, ..later }, None)),
        (DropReason::UnknownIndex, with(other, None)),
    ];
    for (reason, frame) in cases {
        counts_more(lab, "h2", &[reason], || send_frames(&lab.wire()?, "wire", &[frame]))?;
    }
    Ok(())
}

/// The second host leaves; what it once sealed is worth nothing, and the others go on.
fn after_leaving(
    lab: &Lab,
    recorded: &[Datagram<'_>],
    network: &Network,
    a: &Plugged,
) -> Result<()> {
    let c = lab.sandbox("h3", "blue", "c")?;
    let left: Status = lab.get("h2", "/v1/status")?;
    lab.vxmesh("h2", &["leave", "--yes"])?;
    wait_until("h1 knows that h2 left", || {
        let nodes: Vec<Node> = lab.get("h1", "/v1/nodes")?;
        let peers: Vec<Peer> = lab.get("h1", "/v1/peers")?;
        let stays = |node: &Node| Some(node.id) == left.node_id && node.state != "left";
        Ok(!nodes.iter().any(stays) && !peers.iter().any(|it| Some(it.node_id) == left.node_id))
    })?;
    let inside = Capture::start(&a.netns, "eth0")?;
    let from_it = recorded.iter().filter(|it| (it.from, it.to) == (2, 1));
    for it in from_it {
        let reason = match it.kind {
            Kind::Init => DropReason::UnknownPeer,
            Kind::Response | Kind::Data => DropReason::UnknownIndex,
            Kind::Cookie => continue,
        };
        let frame = it.with(&it.payload());
        counts_more(lab, "h1", &[reason], || send_frames(&lab.wire()?, "wire", &[frame]))?;
    }
    bombard(lab, "h2", 1, network)?;
    nothing_arrived(inside)?;
    ask_udp(&c.netns, ipv4(a)?)
}
