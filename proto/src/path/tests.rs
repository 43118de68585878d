//! Every reason and every way on.
//!
//! The network is 10.0.0.0/24 and fd00::/64 (see `tables::tests`): endpoint 10 is local, 11 is on
//! node 1, 12 on node 2, the gateway is .1 with MAC 02:…:fe.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::{
    addr::MacAddr,
    frame::{Frame, Gso, GsoKind, Headers, PartialChecksum, vnet::Offload},
    limits::{FLOOD_BURST, FLOOD_ENDPOINT_BURST, FLOOD_PER_SECOND},
    reason::DropReason,
    tables::{
        NetworkTable, Place, Row, TableUpdate,
        tests::{ip, key, mac, node, now, row, spec},
    },
    wire::{
        Arp, Ethernet, Ipv6,
        arp::Operation,
        ipv6::link_local_of,
        nd::{ALL_NODES, ALL_NODES_MAC, Message},
        vxlan,
    },
};

mod judged;
mod steps;

const LOCAL: u8 = 10;
const LOCAL_2: u8 = 9;
const REMOTE: u8 = 11;
const OTHER: u8 = 12;
const GATEWAY: u8 = 0xfe;
const NOBODY: u8 = 0x77;

struct Net {
    table: NetworkTable<u32>,
    start: Instant,
}

impl Net {
    fn new() -> Self {
        let start = now();
        let table = NetworkTable::new(spec(), 7, start).apply([
            TableUpdate::Put(row(0, LOCAL, Place::Local)),
            TableUpdate::Put(row(0, LOCAL_2, Place::Local)),
            TableUpdate::Put(row(1, REMOTE, Place::Remote(1))),
            TableUpdate::Put(row(2, OTHER, Place::Remote(2))),
            TableUpdate::PutMember(node(1), 1),
            TableUpdate::PutMember(node(2), 2),
        ]);
        Self { table, start }
    }

    fn out(&self, frame: &[u8]) -> OutboundVerdict<'_, u32> {
        self.out_with(frame, &mut Scratch::new())
    }

    fn out_with(&self, frame: &[u8], scratch: &mut Scratch) -> OutboundVerdict<'_, u32> {
        let mut bytes = frame.to_vec();
        // A day later every limit is full again.
        let now = self.start + Duration::from_secs(86_400);
        outbound(&self.table, &mut Frame::plain(&mut bytes), scratch, now, &mut ())
    }

    fn answer(&self, frame: &[u8]) -> Vec<u8> {
        let mut scratch = Scratch::new();
        assert_eq!(self.out_with(frame, &mut scratch), OutboundVerdict::Hairpin);
        scratch.reply().to_vec()
    }

    fn inbound(&self, from: u8, frame: &[u8]) -> InboundVerdict {
        inbound(&self.table, &node(from), frame, &mut ())
    }
}

fn drop<'t>(reason: DropReason) -> OutboundVerdict<'t, u32> {
    OutboundVerdict::Drop(reason)
}

fn v4(n: u8) -> [u8; 4] {
    [10, 0, 0, n]
}

fn v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, n.into()])
}

fn udp4(from: u8, to: MacAddr, source: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(from).0, to.0)
        .ipv4(source, v4(REMOTE), 64)
        .udp(1000, 2000)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

fn udp6(from: u8, to: MacAddr, source: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(from).0, to.0)
        .ipv6(source.octets(), v6(REMOTE).octets(), 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

fn icmp6(from: u8, to: MacAddr, source: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(from).0, to.0)
        .ipv6(source.octets(), ALL_NODES.octets(), 255)
        .icmpv6_raw(kind, 0, [0x60, 0, 0, 0])
        .write(&mut frame, body)
        .unwrap();
    frame
}

fn solicitation(from: u8, source: Ipv6Addr, target: Ipv6Addr, option: Option<u8>) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    if let Some(n) = option {
        body.extend([1, 1]);
        body.extend(mac(n).0);
    }
    icmp6(from, MacAddr([0x33, 0x33, 0xff, 0, 0, 1]), source, 135, &body)
}

fn advertisement(from: u8, to: MacAddr, target: Ipv6Addr, option: u8) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    body.extend([2, 1]);
    body.extend(mac(option).0);
    icmp6(from, to, v6(from), 136, &body)
}

fn arp(operation: Operation, sender: (u8, [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let packet = Arp {
        operation,
        sender_mac: mac(sender.0),
        sender_ip: sender.1.into(),
        target_mac: MacAddr([0; 6]),
        target_ip: target.into(),
    };
    let mut frame = packet.to_frame().to_vec();
    frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    frame
}

fn request(from: u8, target: u8) -> Vec<u8> {
    arp(Operation::Request, (from, v4(from)), v4(target))
}

fn with_ethertype(ethertype: u16) -> Vec<u8> {
    let mut frame = udp4(LOCAL, mac(REMOTE), v4(LOCAL));
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

#[test]
fn unicast_goes_to_the_peer_that_has_the_mac() {
    let net = Net::new();
    assert_eq!(net.out(&udp4(LOCAL, mac(REMOTE), v4(LOCAL))), OutboundVerdict::Forward(&1));
    assert_eq!(net.out(&udp6(LOCAL, mac(OTHER), v6(LOCAL), (1, 2))), OutboundVerdict::Forward(&2));
    assert_eq!(
        net.out(&with_ethertype(0x88b5)),
        OutboundVerdict::Forward(&1),
        "any protocol is carried"
    );
    let mut later_fragment = udp4(LOCAL, mac(REMOTE), v4(LOCAL));
    later_fragment[20..22].copy_from_slice(&[0, 1]);
    later_fragment[34..36].copy_from_slice(&[0, 67]);
    assert_eq!(net.out(&later_fragment), OutboundVerdict::Forward(&1), "it has no ports");
    let link_local = link_local_of(mac(LOCAL));
    assert_eq!(net.out(&udp6(LOCAL, mac(OTHER), link_local, (1, 2))), OutboundVerdict::Forward(&2));
}

#[test]
fn groups_go_to_every_member() {
    let net = Net::new();
    for group in [MacAddr::BROADCAST, MacAddr([1, 0, 0x5e, 1, 2, 3])] {
        let OutboundVerdict::Flood(members) = net.out(&udp4(LOCAL, group, v4(LOCAL))) else {
            panic!("{group}");
        };
        let peers: BTreeSet<_> = members.iter().map(|(_, peer)| *peer).collect();
        assert_eq!(peers, BTreeSet::from([1, 2]));
    }
}

#[test]
fn outbound_drops() {
    use DropReason::*;
    let net = Net::new();
    let to = mac(REMOTE);
    let dhcp4 = |ports: (u16, u16), source: [u8; 4]| {
        let mut frame = udp4(LOCAL, MacAddr::BROADCAST, source);
        frame[34..36].copy_from_slice(&ports.0.to_be_bytes());
        frame[36..38].copy_from_slice(&ports.1.to_be_bytes());
        frame
    };
    let mut cut = udp4(LOCAL, to, v4(LOCAL));
    cut.truncate(40);
    let mut first_fragment = dhcp4((67, 68), v4(LOCAL));
    first_fragment[20] = 0x20;
    let mut wrong_arp = request(LOCAL, REMOTE);
    wrong_arp[14] = 9;
    let table: &[(DropReason, Vec<u8>, &str)] = &[
        (Runt, vec![0; 13], "13 bytes"),
        (Runt, vec![], "nothing"),
        (VlanUnsupported, with_ethertype(0x8100), "802.1Q"),
        (VlanUnsupported, with_ethertype(0x88a8), "802.1ad"),
        (LlcUnsupported, with_ethertype(0x05ff), "LLC"),
        (ReservedGroup, udp4(LOCAL, MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]), v4(LOCAL)), "LLDP"),
        (GatewaySource, udp4(GATEWAY, to, v4(1)), "the gateway stays here"),
        (SourceUnknown, udp4(NOBODY, to, v4(LOCAL)), "a MAC of nobody"),
        (SourceUnknown, udp4(REMOTE, mac(OTHER), v4(REMOTE)), "the MAC of a remote endpoint"),
        (IpSpoofed, udp4(LOCAL, to, v4(LOCAL_2)), "the neighbour's address"),
        (IpSpoofed, udp4(LOCAL, to, v4(REMOTE)), "a remote address"),
        (IpSpoofed, udp4(LOCAL, to, v4(1)), "the gateway's address"),
        (IpSpoofed, udp4(LOCAL, to, [0; 4]), "no address"),
        (IpSpoofed, udp4(LOCAL, to, [8, 8, 8, 8]), "an address outside"),
        (IpSpoofed, udp6(LOCAL, to, v6(REMOTE), (1, 2)), "a remote IPv6 address"),
        (IpSpoofed, udp6(LOCAL, to, Ipv6Addr::UNSPECIFIED, (1, 2)), "no IPv6 address"),
        (IpSpoofed, udp6(LOCAL, to, link_local_of(mac(REMOTE)), (1, 2)), "its link-local"),
        (IpSpoofed, udp6(LOCAL, to, "fe80::1".parse().unwrap(), (1, 2)), "a random link-local"),
        (MalformedIp, cut, "cut IPv4"),
        (MalformedIp, with_ethertype(0x86dd), "IPv4 that says IPv6"),
        (MalformedArp, wrong_arp, "other hardware"),
        (DhcpServer, dhcp4((67, 68), v4(LOCAL)), "DHCP server"),
        (DhcpServer, first_fragment, "DHCP server in a first fragment"),
        (DhcpServer, udp6(LOCAL, to, v6(LOCAL), (547, 546)), "DHCPv6 server"),
        (DhcpClient, dhcp4((68, 67), [0; 4]), "DHCP client"),
        (DhcpClient, udp6(LOCAL, to, v6(LOCAL), (546, 547)), "DHCPv6 client"),
        (RouterAdvertisement, icmp6(LOCAL, ALL_NODES_MAC, v6(LOCAL), 134, &[0; 8]), "RA"),
        (RouterSolicitation, icmp6(LOCAL, ALL_NODES_MAC, v6(LOCAL), 133, &[]), "RS"),
        (Redirect, icmp6(LOCAL, to, v6(LOCAL), 137, &[0; 32]), "redirect"),
        (MalformedNd, icmp6(LOCAL, to, v6(LOCAL), 135, &[0; 8]), "cut solicitation"),
        (FdbUnknown, udp4(LOCAL, mac(NOBODY), v4(LOCAL)), "to nobody"),
        (LocalDestination, udp4(LOCAL, mac(LOCAL_2), v4(LOCAL)), "to a local endpoint"),
        (LocalDestination, udp4(LOCAL, mac(GATEWAY), v4(LOCAL)), "to the gateway"),
    ];
    for (reason, frame, why) in table {
        assert_eq!(net.out(frame), drop(*reason), "{why}");
    }
}

#[test]
fn mtu_is_that_of_each_packet() {
    let net = Net::new();
    let frame = |len: usize| {
        let mut frame = with_ethertype(0x88b5);
        frame.resize(len, 0);
        frame
    };
    assert_eq!(net.out(&frame(1390 + 14)), OutboundVerdict::Forward(&1));
    assert_eq!(net.out(&frame(1390 + 15)), drop(DropReason::TooBig));

    let long = |gso: Option<Gso>, len: usize| {
        let mut bytes = frame(len);
        let mut frame = Frame::new(&mut bytes, Offload { gso, checksum: None });
        outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ())
    };
    let gso =
        |segment_size, header_len| Some(Gso { kind: GsoKind::Tcp4, segment_size, header_len });
    assert_eq!(long(gso(1350, 54), 65_000), OutboundVerdict::Forward(&1), "54 + 1350 = 1404");
    assert_eq!(long(gso(1351, 54), 65_000), drop(DropReason::TooBig));
    for (bad, why) in [
        (gso(0, 54), "no segment"),
        (gso(1000, 53), "headers shorter than headers"),
        (gso(1000, 2000), "headers longer than the frame"),
    ] {
        assert_eq!(long(bad, 2000), drop(DropReason::BadOffload), "{why}");
    }
}

#[test]
fn partial_checksums_are_finished_in_place() {
    let net = Net::new();
    let good = udp4(LOCAL, mac(REMOTE), v4(LOCAL));
    let run = |bytes: &mut Vec<u8>, checksum, gso| {
        let mut frame = Frame::new(bytes, Offload { gso, checksum: Some(checksum) });
        let verdict = outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ());
        (verdict, frame.checksum())
    };
    // The kernel leaves the sum of the pseudo header: addresses, protocol and length.
    let mut pseudo: u32 =
        [0x0a00, u32::from(LOCAL), 0x0a00, u32::from(REMOTE), 17, 15].iter().sum();
    pseudo = (pseudo & 0xffff) + (pseudo >> 16);
    let mut partial = good.clone();
    partial[40..42].copy_from_slice(&u16::try_from(pseudo).unwrap().to_be_bytes());
    let checksum = PartialChecksum { start: 34, offset: 6 };

    let mut bytes = partial.clone();
    assert_eq!(run(&mut bytes, checksum, None), (OutboundVerdict::Forward(&1), None));
    assert_eq!(bytes, good);

    let gso = Gso { kind: GsoKind::Udp, segment_size: 4, header_len: 42 };
    let mut bytes = partial.clone();
    assert_eq!(
        run(&mut bytes, checksum, Some(gso)),
        (OutboundVerdict::Forward(&1), Some(checksum))
    );
    assert_eq!(bytes, partial, "a super-frame's is finished where it is cut");

    let len = u16::try_from(good.len()).unwrap();
    for bad in [
        PartialChecksum { start: 13, offset: 6 },
        PartialChecksum { start: 34, offset: len - 34 - 1 },
        PartialChecksum { start: u16::MAX, offset: u16::MAX },
    ] {
        let mut bytes = partial.clone();
        assert_eq!(run(&mut bytes, bad, None).0, drop(DropReason::BadOffload), "{bad:?}");
        assert_eq!(bytes, partial);
    }
    let last = PartialChecksum { start: 34, offset: len - 34 - 2 };
    assert_eq!(run(&mut partial.clone(), last, None).0, OutboundVerdict::Forward(&1));
}

#[test]
fn arp_for_remote_endpoints_is_answered_from_the_table() {
    let net = Net::new();
    for target in [REMOTE, OTHER] {
        let reply = net.answer(&request(LOCAL, target));
        let eth = Ethernet::parse(&reply).unwrap();
        assert_eq!((eth.source, eth.destination), (mac(target), mac(LOCAL)));
        let arp = Arp::parse(eth.payload).unwrap();
        assert_eq!(arp.operation, Operation::Reply);
        assert_eq!((arp.sender_mac, arp.sender_ip.octets()), (mac(target), v4(target)));
        assert_eq!((arp.target_mac, arp.target_ip.octets()), (mac(LOCAL), v4(LOCAL)));
    }
    let probe = net.answer(&arp(Operation::Request, (LOCAL, [0; 4]), v4(REMOTE)));
    assert_eq!(
        Arp::parse(&probe[14..]).unwrap().sender_ip.octets(),
        v4(REMOTE),
        "a conflict shows"
    );
}

/// The first node from 2 on whose claim loses its addresses by lot.
fn loser(table: &NetworkTable<u32>, claim: impl Fn(u8) -> Row<u32>) -> (u8, Row<u32>) {
    let claims = (2..).map(|n| (n, claim(n)));
    let mut losers = claims.filter(|(_n, row)| {
        let table = table.apply([TableUpdate::Put(row.clone())]);
        table.fdb(row.mac).is_none_or(|owner| owner.key != row.key)
            || row.ips.iter().any(|ip| table.neighbor(*ip).is_none_or(|owner| owner.key != row.key))
    });
    losers.next().unwrap()
}

#[test]
fn an_answer_never_has_a_mac_that_the_endpoint_does_not_own() {
    let net = Net::new();
    for claimed in [GATEWAY, LOCAL, REMOTE] {
        let (_node, liar) =
            loser(&net.table, |node| Row { mac: mac(claimed), ..row(node, 13, Place::Remote(2)) });
        let table = net.table.apply([TableUpdate::Put(liar)]);
        for frame in [request(LOCAL, 13), solicitation(LOCAL, v6(LOCAL), v6(13), Some(LOCAL))] {
            let mut bytes = frame;
            let mut frame = Frame::plain(&mut bytes);
            let verdict = outbound(&table, &mut frame, &mut Scratch::new(), net.start, &mut ());
            assert_eq!(verdict, drop(DropReason::NeighborUnknown), "claims {}", mac(claimed));
        }
    }
}

#[test]
fn arp_that_nobody_needs_or_that_lies() {
    use DropReason::*;
    use Operation::*;
    let net = Net::new();
    let mut other_sender = request(LOCAL, REMOTE);
    other_sender[27] = LOCAL_2;
    let mut unicast_reply = arp(Reply, (LOCAL, v4(LOCAL)), v4(REMOTE));
    unicast_reply[..6].copy_from_slice(&mac(REMOTE).0);
    assert_eq!(net.out(&unicast_reply), OutboundVerdict::Forward(&1));
    for (reason, frame, why) in [
        (NeighborUnknown, request(LOCAL, 99), "nobody has it"),
        (NeighborUnknown, arp(Request, (LOCAL, v4(LOCAL)), [9, 9, 9, 9]), "outside"),
        (AnsweredLocally, request(LOCAL, 1), "the gateway answers"),
        (AnsweredLocally, request(LOCAL, LOCAL_2), "the neighbour answers"),
        (AnsweredLocally, arp(Request, (LOCAL, [0; 4]), v4(LOCAL)), "a probe for its own"),
        (Announcement, request(LOCAL, LOCAL), "gratuitous request"),
        (Announcement, arp(Reply, (LOCAL, v4(LOCAL)), v4(LOCAL)), "gratuitous reply"),
        (Announcement, arp(Reply, (LOCAL, v4(LOCAL)), v4(REMOTE)), "a reply to everybody"),
        (ArpSpoofed, arp(Request, (LOCAL, v4(REMOTE)), v4(OTHER)), "a remote address"),
        (ArpSpoofed, arp(Request, (LOCAL, v4(1)), v4(1)), "announces the gateway"),
        (ArpSpoofed, arp(Reply, (LOCAL, [0; 4]), v4(REMOTE)), "a reply without an address"),
        (ArpSpoofed, other_sender, "the sender's MAC is not the frame's"),
    ] {
        assert_eq!(net.out(&frame), drop(reason), "{why}");
    }
}

#[test]
fn solicitations_for_remote_endpoints_are_answered_from_the_table() {
    let net = Net::new();
    for target in [v6(REMOTE), link_local_of(mac(REMOTE))] {
        let reply = net.answer(&solicitation(LOCAL, v6(LOCAL), target, Some(LOCAL)));
        let eth = Ethernet::parse(&reply).unwrap();
        assert_eq!((eth.source, eth.destination), (mac(REMOTE), mac(LOCAL)));
        let ip = Ipv6::parse(eth.payload).unwrap();
        assert_eq!((ip.source, ip.destination), (target, v6(LOCAL)));
        let expected =
            Message::Advertisement { target, target_mac: Some(mac(REMOTE)), solicited: true };
        assert_eq!(Message::parse(&ip.upper, ip.hop_limit), Ok(expected));
    }
    let taken = net.answer(&solicitation(LOCAL, Ipv6Addr::UNSPECIFIED, v6(REMOTE), None));
    let eth = Ethernet::parse(&taken).unwrap();
    assert_eq!(eth.destination, ALL_NODES_MAC);
    let ip = Ipv6::parse(eth.payload).unwrap();
    assert_eq!(ip.destination, ALL_NODES);
    assert!(matches!(
        Message::parse(&ip.upper, ip.hop_limit),
        Ok(Message::Advertisement { solicited: false, .. })
    ));
}

#[test]
fn discovery_that_nobody_needs_or_that_lies() {
    use DropReason::*;
    let net = Net::new();
    let none = Ipv6Addr::UNSPECIFIED;
    let to = mac(REMOTE);
    let gateway_link_local = link_local_of(mac(GATEWAY));
    assert_eq!(net.out(&advertisement(LOCAL, to, v6(LOCAL), LOCAL)), OutboundVerdict::Forward(&1));
    for (reason, frame, why) in [
        (NeighborUnknown, solicitation(LOCAL, v6(LOCAL), v6(99), Some(LOCAL)), "nobody has it"),
        (AnsweredLocally, solicitation(LOCAL, v6(LOCAL), v6(1), Some(LOCAL)), "the gateway"),
        (AnsweredLocally, solicitation(LOCAL, v6(LOCAL), gateway_link_local, None), "its other"),
        (AnsweredLocally, solicitation(LOCAL, v6(LOCAL), v6(LOCAL_2), None), "the neighbour"),
        (AnsweredLocally, solicitation(LOCAL, none, v6(LOCAL), None), "detection for its own"),
        (NdSpoofed, solicitation(LOCAL, v6(LOCAL), v6(REMOTE), Some(REMOTE)), "another's MAC"),
        (IpSpoofed, solicitation(LOCAL, none, v6(REMOTE), Some(LOCAL)), "no source, but a MAC"),
        (IpSpoofed, solicitation(LOCAL, v6(REMOTE), v6(OTHER), None), "another's address"),
        (NdSpoofed, advertisement(LOCAL, to, v6(OTHER), LOCAL), "advertises another's address"),
        (NdSpoofed, advertisement(LOCAL, to, v6(1), LOCAL), "advertises the gateway"),
        (NdSpoofed, advertisement(LOCAL, to, v6(LOCAL), OTHER), "advertises another's MAC"),
        (Announcement, advertisement(LOCAL, ALL_NODES_MAC, v6(LOCAL), LOCAL), "to all nodes"),
    ] {
        assert_eq!(net.out(&frame), drop(reason), "{why}");
    }
}

#[test]
fn hosts_without_an_address_may_report_their_groups() {
    let net = Net::new();
    let group = MacAddr([0x33, 0x33, 0, 0, 0, 0x16]);
    let report = icmp6(LOCAL, group, Ipv6Addr::UNSPECIFIED, 143, &[0; 24]);
    assert!(matches!(net.out(&report), OutboundVerdict::Flood(_)));
    assert_eq!(net.inbound(1, &swap_source(&report, REMOTE)), InboundVerdict::Deliver);
    let mut igmp = udp4(LOCAL, MacAddr([1, 0, 0x5e, 0, 0, 0x16]), [0; 4]);
    igmp[23] = 2;
    assert!(matches!(net.out(&igmp), OutboundVerdict::Flood(_)));
}

#[test]
fn floods_are_limited_for_each_endpoint_and_for_the_network() {
    let net = Net::new();
    let flood = |n: u8, at: Duration| {
        let mut bytes = udp4(n, MacAddr::BROADCAST, v4(n));
        let mut frame = Frame::plain(&mut bytes);
        outbound(&net.table, &mut frame, &mut Scratch::new(), net.start + at, &mut ())
    };
    let burst =
        |n, at| (0..1000).filter(|_| matches!(flood(n, at), OutboundVerdict::Flood(_))).count();
    let zero = Duration::ZERO;
    assert_eq!(burst(LOCAL, zero), FLOOD_ENDPOINT_BURST as usize);
    assert_eq!(flood(LOCAL, zero), drop(DropReason::FloodLimited));
    let rest = (FLOOD_BURST - FLOOD_ENDPOINT_BURST) as usize;
    assert_eq!(burst(LOCAL_2, zero), rest.min(FLOOD_ENDPOINT_BURST as usize), "the other's part");
    let later = Duration::from_secs(1);
    assert!(burst(LOCAL, later) > 0, "tokens come back: {FLOOD_PER_SECOND} in a second");
}

/// What becomes of 1000 bytes in segments of this size.
fn flood(net: &Net, to: MacAddr, segment_size: u16) -> OutboundVerdict<'_, u32> {
    let mut bytes = udp4(LOCAL, to, v4(LOCAL));
    bytes.resize(42 + 1000, 0);
    let gso = Some(Gso { kind: GsoKind::Udp, segment_size, header_len: 42 });
    let checksum = Some(PartialChecksum { start: 34, offset: 6 });
    let mut frame = Frame::new(&mut bytes, Offload { gso, checksum });
    outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ())
}

#[test]
fn a_superframe_to_a_group_costs_as_much_as_its_packets() {
    let net = Net::new();
    assert!(matches!(flood(&net, MacAddr::BROADCAST, 25), OutboundVerdict::Flood(_)), "40 packets");
    assert!(matches!(flood(&net, MacAddr::BROADCAST, 17), OutboundVerdict::Flood(_)), "59");
    assert_eq!(flood(&net, MacAddr::BROADCAST, 500), drop(DropReason::FloodLimited), "2 of 1");
    let net = Net::new();
    assert_eq!(flood(&net, MacAddr::BROADCAST, 1), drop(DropReason::FloodLimited));
    assert!(
        matches!(flood(&net, MacAddr::BROADCAST, 10), OutboundVerdict::Flood(_)),
        "it took nothing"
    );
    assert_eq!(flood(&net, mac(REMOTE), 1), OutboundVerdict::Forward(&1), "one member is no flood");
}

#[test]
fn a_flood_that_nobody_gets_takes_no_token() {
    let net = Net::new();
    let alone =
        net.table.apply([TableUpdate::RemoveMember(node(1)), TableUpdate::RemoveMember(node(2))]);
    for _ in 0..FLOOD_ENDPOINT_BURST * 2 {
        let mut bytes = udp4(LOCAL, MacAddr::BROADCAST, v4(LOCAL));
        let mut frame = Frame::plain(&mut bytes);
        let verdict = outbound(&alone, &mut frame, &mut Scratch::new(), net.start, &mut ());
        assert_eq!(verdict, drop(DropReason::NoMembers));
    }
}

fn swap_source(frame: &[u8], n: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[6..12].copy_from_slice(&mac(n).0);
    frame
}

#[test]
fn inbound_delivers_what_the_peer_owns() {
    let net = Net::new();
    let to = mac(LOCAL);
    for (frame, why) in [
        (udp4(REMOTE, to, v4(REMOTE)), "IPv4"),
        (udp6(REMOTE, to, v6(REMOTE), (1, 2)), "IPv6"),
        (udp6(REMOTE, to, link_local_of(mac(REMOTE)), (1, 2)), "link-local"),
        (udp4(REMOTE, MacAddr::BROADCAST, v4(REMOTE)), "broadcast"),
        (request(REMOTE, LOCAL), "ARP"),
        (solicitation(REMOTE, v6(REMOTE), v6(LOCAL), Some(REMOTE)), "solicitation"),
        (advertisement(REMOTE, to, v6(REMOTE), REMOTE), "advertisement"),
    ] {
        assert_eq!(net.inbound(1, &frame), InboundVerdict::Deliver, "{why}");
    }
}

/// I3: a frame is delivered only if the peer that sent it owns its source address in that network.
#[test]
fn i3_the_peer_owns_the_source() {
    use DropReason::*;
    let net = Net::new();
    let to = mac(LOCAL);
    for (from, reason, frame, why) in [
        (2, SourceNotOwned, udp4(REMOTE, to, v4(REMOTE)), "another node's endpoint"),
        (1, SourceNotOwned, udp4(LOCAL_2, to, v4(LOCAL_2)), "an endpoint of this host"),
        (1, SourceNotOwned, udp4(GATEWAY, to, v4(1)), "the gateway"),
        (1, SourceNotOwned, udp4(NOBODY, to, v4(REMOTE)), "nobody's MAC"),
        (1, SourceNotOwned, swap_source(&udp4(REMOTE, to, v4(REMOTE)), 0xff), "an unknown MAC"),
        (3, NotAMember, udp4(REMOTE, to, v4(REMOTE)), "a node outside the network"),
        (0, NotAMember, udp4(LOCAL_2, to, v4(LOCAL_2)), "this host itself"),
        (1, IpSpoofed, udp4(REMOTE, to, v4(OTHER)), "another node's address"),
        (1, IpSpoofed, udp4(REMOTE, to, v4(LOCAL_2)), "an address of this host"),
        (1, IpSpoofed, udp4(REMOTE, to, v4(1)), "the gateway's address"),
        (1, IpSpoofed, udp4(REMOTE, to, [8, 8, 8, 8]), "an outside address"),
        (1, IpSpoofed, udp6(REMOTE, to, link_local_of(mac(OTHER)), (1, 2)), "a link-local"),
        (1, ArpSpoofed, arp(Operation::Reply, (REMOTE, v4(OTHER)), v4(LOCAL)), "ARP"),
        (1, NdSpoofed, advertisement(REMOTE, to, v6(OTHER), REMOTE), "advertisement"),
        (1, NdSpoofed, solicitation(REMOTE, v6(REMOTE), v6(LOCAL), Some(OTHER)), "solicitation"),
    ] {
        assert_eq!(net.inbound(from, &frame), InboundVerdict::Drop(reason), "{why}");
    }
}

#[test]
fn who_lost_an_address_cannot_speak_for_it() {
    let net = Net::new();
    let (thiefs_node, thief) = loser(&net.table, |node| Row {
        ips: vec![ip("10.0.0.11")],
        ..row(node, 13, Place::Remote(2))
    });
    let table =
        net.table.apply([TableUpdate::Put(thief), TableUpdate::PutMember(node(thiefs_node), 2)]);
    let frame = udp4(13, mac(LOCAL), v4(REMOTE));
    assert_eq!(
        inbound(&table, &node(thiefs_node), &frame, &mut ()),
        InboundVerdict::Drop(DropReason::IpSpoofed)
    );
    let frame = udp4(REMOTE, mac(LOCAL), v4(REMOTE));
    assert_eq!(inbound(&table, &node(1), &frame, &mut ()), InboundVerdict::Deliver);
    let table = table.apply([TableUpdate::Remove(key(1, REMOTE))]);
    let frame = udp4(13, mac(LOCAL), v4(REMOTE));
    assert_eq!(
        inbound(&table, &node(thiefs_node), &frame, &mut ()),
        InboundVerdict::Deliver,
        "until it inherits"
    );
    assert_eq!(table.neighbor(IpAddr::from(v4(REMOTE))).map(|row| row.mac), Some(mac(13)));
}

#[test]
fn inbound_drops() {
    use DropReason::*;
    let net = Net::new();
    let to = mac(LOCAL);
    let mut tagged = udp4(REMOTE, to, v4(REMOTE));
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    let mut long = udp4(REMOTE, to, v4(REMOTE));
    long.resize(1390 + 15, 0);
    for (reason, frame, why) in [
        (Runt, vec![0; 13], "13 bytes"),
        (VlanUnsupported, tagged, "tagged"),
        (ReservedGroup, udp4(REMOTE, MacAddr([1, 0x80, 0xc2, 0, 0, 0]), v4(REMOTE)), "STP"),
        (TooBig, long, "one byte too long"),
        (NotLocal, udp4(REMOTE, mac(OTHER), v4(REMOTE)), "split horizon"),
        (NotLocal, udp4(REMOTE, mac(GATEWAY), v4(REMOTE)), "the gateway"),
        (NotLocal, udp4(REMOTE, mac(NOBODY), v4(REMOTE)), "nobody"),
        (DhcpServer, udp6(REMOTE, to, v6(REMOTE), (547, 546)), "DHCPv6"),
        (RouterAdvertisement, icmp6(REMOTE, ALL_NODES_MAC, v6(REMOTE), 134, &[0; 8]), "RA"),
        (Redirect, icmp6(REMOTE, to, v6(REMOTE), 137, &[0; 32]), "redirect"),
    ] {
        assert_eq!(net.inbound(1, &frame), InboundVerdict::Drop(reason), "{why}");
    }
}

#[test]
fn vxlan_names_the_network() {
    let net = Net::new();
    let vni = net.table.spec().vni;
    let frame = udp4(REMOTE, mac(LOCAL), v4(REMOTE));
    let run = |header: [u8; 8], expected: InboundVerdict| {
        let mut packet = [&header[..], &frame].concat();
        let table_of = |asked| (asked == vni).then_some(&net.table);
        let result = inbound_vxlan(table_of, &node(1), &mut packet, &mut ());
        assert_eq!(result.verdict, expected);
        (result.vni, result.frame.to_vec())
    };
    assert_eq!(run(vxlan::header(vni), InboundVerdict::Deliver), (Some(vni), frame.clone()));
    let other = crate::addr::Vni::new(43).unwrap();
    assert_eq!(
        run(vxlan::header(other), InboundVerdict::Drop(DropReason::VniUnknown)).0,
        Some(other)
    );
    assert_eq!(run([0; 8], InboundVerdict::Drop(DropReason::MalformedVxlan)), (None, vec![]));
}

/// Frames that are often nearly right.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let n = || prop::sample::select(vec![LOCAL, LOCAL_2, REMOTE, OTHER, GATEWAY, NOBODY, 1]);
    let frame = prop_oneof![
        (n(), n(), n()).prop_map(|(a, b, c)| udp4(a, mac(b), v4(c))),
        (n(), n()).prop_map(|(a, c)| udp4(a, MacAddr::BROADCAST, v4(c))),
        (n(), n(), n()).prop_map(|(a, b, c)| udp6(a, mac(b), v6(c), (1, 2))),
        (n(), n(), n()).prop_map(|(a, b, c)| arp(Operation::Request, (a, v4(b)), v4(c))),
        (n(), n(), n()).prop_map(|(a, b, c)| arp(Operation::Reply, (a, v4(b)), v4(c))),
        (n(), n(), n()).prop_map(|(a, b, c)| solicitation(a, v6(b), v6(c), Some(a))),
        (n(), n(), n(), n()).prop_map(|(a, b, c, d)| advertisement(a, mac(b), v6(c), d)),
        prop::collection::vec(any::<u8>(), 0..120),
    ];
    let change = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (frame, change, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut frame, change, cut, whole)| {
            if let (Some((at, value)), false) = (change, frame.is_empty()) {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            if !whole && !frame.is_empty() {
                frame.truncate(cut.index(frame.len()));
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// I4: every frame ends in one verdict.
    #[test]
    fn i4_every_frame_ends_in_one_verdict(frame in any_frame(), from in 0u8..4) {
        let net = Net::new();
        match net.out(&frame) {
            OutboundVerdict::Forward(_) | OutboundVerdict::Flood(_) => {
                let source = Ethernet::parse(&frame).unwrap().source;
                prop_assert!([mac(LOCAL), mac(LOCAL_2)].contains(&source));
            }
            OutboundVerdict::Deliver => prop_assert!(false, "there are no services"),
            OutboundVerdict::Hairpin | OutboundVerdict::Drop(_) => {}
        }
        match net.inbound(from, &frame) {
            InboundVerdict::Deliver => {
                let eth = Ethernet::parse(&frame).unwrap();
                prop_assert_eq!(eth.source, mac(from + LOCAL), "owned by node {}", from);
                prop_assert!(eth.destination.is_group() || [mac(LOCAL), mac(LOCAL_2)].contains(&eth.destination));
            }
            InboundVerdict::Drop(_) => {}
        }
    }
}

#[test]
fn a_router_carries_packets_of_its_own_nodes_endpoints_only() {
    let net = Net::new();
    let router = |node, n, place| Row { router: true, ..row(node, n, place) };
    let table = net.table.apply([
        TableUpdate::Put(router(0, 20, Place::Local)),
        TableUpdate::Put(router(1, 21, Place::Remote(1))),
    ]);
    let sent = |from: u8, source: u8| {
        let mut bytes = udp4(from, mac(REMOTE), v4(source));
        let verdict = outbound(
            &table,
            &mut Frame::plain(&mut bytes),
            &mut Scratch::new(),
            net.start,
            &mut (),
        );
        let mut bytes = udp6(from, mac(REMOTE), v6(source), (1, 2));
        let mut frame = Frame::plain(&mut bytes);
        assert_eq!(outbound(&table, &mut frame, &mut Scratch::new(), net.start, &mut ()), verdict);
        verdict
    };
    assert_eq!(sent(20, 20), OutboundVerdict::Forward(&1), "its own");
    assert_eq!(sent(20, LOCAL), OutboundVerdict::Forward(&1), "an endpoint of its node");
    for stranger in [REMOTE, OTHER, NOBODY, 1] {
        assert_eq!(sent(20, stranger), drop(DropReason::IpSpoofed), "{stranger}");
    }
    assert_eq!(sent(LOCAL, 20), drop(DropReason::IpSpoofed), "an endpoint is no router");

    let came = |from: u8, source: u8| {
        inbound(&table, &node(1), &udp4(from, mac(LOCAL), v4(source)), &mut ())
    };
    assert_eq!(came(21, REMOTE), InboundVerdict::Deliver);
    for stranger in [LOCAL, OTHER, NOBODY, 1] {
        assert_eq!(came(21, stranger), InboundVerdict::Drop(DropReason::IpSpoofed), "{stranger}");
    }
    let arp = arp(Operation::Request, (21, v4(REMOTE)), v4(LOCAL));
    assert_eq!(
        inbound(&table, &node(1), &arp, &mut ()),
        InboundVerdict::Drop(DropReason::ArpSpoofed),
        "it speaks for nobody"
    );
}
