//! The network is that of `tables::tests`, plain: endpoint 10 is local, 11 is on node 1 (192.0.2.1
//! and 2001:db8::1), 12 on node 2 (192.0.2.2). Static VTEPs are 192.0.2.8 and 192.0.2.9; MAC 20 and
//! above are behind them.

use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::{
    addr::MacAddr,
    frame::{Frame, Gso, GsoKind, Headers, PartialChecksum, Segments, vnet::Offload},
    lb,
    limits::{FLOOD_ENDPOINT_BURST, LEARNED_AGE, LEARNED_STATIONS},
    object::{Network, Subnet},
    path::{InboundVerdict, Scratch, Step, watch::tests::Seen},
    reason::DropReason,
    tables::{
        Place, Row,
        tests::{ip, mac, node, now, row, spec},
    },
    wire::{Arp, arp::Operation, checksum::Sum},
};

const LOCAL: u8 = 10;
const REMOTE: u8 = 11;
const STATION: u8 = 20;
const MEMBER: &str = "192.0.2.1";
const ONE: &str = "192.0.2.8";
const TWO: &str = "192.0.2.9";

fn network(encrypted: bool) -> Network {
    Network {
        name: "n".parse().unwrap(),
        creator: node(0),
        driver: "overlay".parse().unwrap(),
        vni: spec().vni,
        encrypted,
        vteps: vec![ip(ONE), ip(TWO)],
        mtu: 1390,
        subnets: vec![Subnet::whole("10.0.0.0/24".parse().unwrap(), ip("10.0.0.1"))],
        internal: false,
        isolated: false,
        limits: Default::default(),
        dns: Vec::new(),
        labels: Default::default(),
        blocks: Vec::new(),
    }
}

fn vtep(to: Option<&str>, addrs: &[&str]) -> Vtep {
    Vtep::new(to.map(ip), addrs.iter().map(|addr| ip(addr)))
}

fn endpoint(node_number: u8, n: u8, place: Place<Vtep>) -> Row<Vtep> {
    let Row { key, mac, ips, rank, router, .. } = row(node_number, n, Place::Local);
    Row { key, mac, ips, rank, router, place }
}

struct Net {
    plain: PlainTable,
    start: Instant,
}

impl Net {
    fn new() -> Self {
        let start = now();
        let one = vtep(Some(MEMBER), &[MEMBER, "2001:db8::1"]);
        let two = vtep(Some("192.0.2.2"), &["192.0.2.2"]);
        let plain = PlainTable::new(&network(false), spec(), 7, start).unwrap().apply([
            TableUpdate::Put(endpoint(0, LOCAL, Place::Local)),
            TableUpdate::Put(endpoint(1, REMOTE, Place::Remote(one.clone()))),
            TableUpdate::Put(endpoint(2, 12, Place::Remote(two.clone()))),
            TableUpdate::Put(endpoint(3, 13, Place::Remote(vtep(None, &["2001:db8::3"])))),
            TableUpdate::PutMember(node(1), one),
            TableUpdate::PutMember(node(2), two),
        ]);
        Self { plain, start }
    }

    fn alone() -> Self {
        let net = Self::new();
        Self { plain: net.plain.with_statics(&[]), ..net }
    }

    fn out(&self, frame: &[u8]) -> PlainVerdict<'_> {
        self.out_at(frame, Duration::from_secs(86_400))
    }

    fn out_at(&self, frame: &[u8], after: Duration) -> PlainVerdict<'_> {
        let mut bytes = frame.to_vec();
        let mut frame = Frame::plain(&mut bytes);
        plain_outbound(&self.plain, &mut frame, &mut Scratch::new(), self.start + after, &mut ())
    }

    fn inbound(&self, from: &str, frame: &[u8]) -> Result<(), DropReason> {
        self.inbound_at(from, frame, Duration::from_secs(86_400))
    }

    fn inbound_at(&self, from: &str, frame: &[u8], after: Duration) -> Result<(), DropReason> {
        let mut bytes = frame.to_vec();
        let frame = Frame::plain(&mut bytes);
        match plain_inbound(&self.plain, ip(from), &frame, self.start + after, &mut ()) {
            InboundVerdict::Deliver => Ok(()),
            InboundVerdict::Drop(reason) => Err(reason),
        }
    }

    fn statics_only(&self) -> PlainVerdict<'_> {
        PlainVerdict::Flood { members: &[], statics: self.plain.statics() }
    }
}

fn udp(from: u8, to: MacAddr, source: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(from).0, to.0).ipv4(source, [10, 0, 0, 99], 64);
    builder.udp(1000, 2000).write(&mut frame, b"payload").unwrap();
    frame
}

fn from_local(to: MacAddr) -> Vec<u8> {
    udp(LOCAL, to, [10, 0, 0, LOCAL])
}

fn from_station(to: MacAddr) -> Vec<u8> {
    udp(STATION, to, [10, 0, 0, STATION])
}

fn arp(operation: Operation, sender: (u8, u8), target: u8, to: MacAddr) -> Vec<u8> {
    let packet = Arp {
        operation,
        sender_mac: mac(sender.0),
        sender_ip: [10, 0, 0, sender.1].into(),
        target_mac: to,
        target_ip: [10, 0, 0, target].into(),
    };
    let mut frame = packet.to_frame().to_vec();
    frame[..6].copy_from_slice(&to.0);
    frame
}

#[test]
fn i10_an_encrypted_network_has_no_plain_table() {
    assert!(PlainTable::new(&network(true), spec(), 7, now()).is_none());
    let another = Network { vni: crate::addr::Vni::new(43).unwrap(), ..network(false) };
    assert!(PlainTable::new(&another, spec(), 7, now()).is_none(), "nor has another's spec");
}

#[test]
fn endpoints_are_where_their_claims_say() {
    let net = Net::new();
    assert_eq!(net.out(&from_local(mac(REMOTE))), PlainVerdict::Forward(ip(MEMBER)));
    let unreached = PlainVerdict::Drop(DropReason::VtepUnreachable);
    assert_eq!(net.out(&from_local(mac(13))), unreached);
    let request = arp(Operation::Request, (LOCAL, LOCAL), REMOTE, MacAddr::BROADCAST);
    assert_eq!(net.out(&request), PlainVerdict::Hairpin);
    let spoofed = PlainVerdict::Drop(DropReason::IpSpoofed);
    assert_eq!(net.out(&udp(LOCAL, mac(STATION), [10, 0, 0, 99])), spoofed);
    assert_eq!(
        net.out(&from_station(mac(REMOTE))),
        PlainVerdict::Drop(DropReason::SourceUnknown),
        "what came from the underlay does not go back"
    );
}

#[test]
fn groups_go_to_members_and_static_vteps() {
    let net = Net::new();
    let all =
        PlainVerdict::Flood { members: net.plain.table().members(), statics: net.plain.statics() };
    assert_eq!(net.out(&from_local(MacAddr::BROADCAST)), all);
    let alone = PlainTable::new(&network(false), spec(), 7, net.start).unwrap();
    let alone = alone.apply([TableUpdate::Put(endpoint(0, LOCAL, Place::Local))]);
    let alone = Net { plain: alone, ..net };
    assert_eq!(alone.out(&from_local(MacAddr::BROADCAST)), alone.statics_only());
}

#[test]
fn what_no_endpoint_has_is_asked_of_static_vteps() {
    let net = Net::new();
    assert_eq!(net.out(&from_local(mac(STATION))), net.statics_only());
    let request = arp(Operation::Request, (LOCAL, LOCAL), STATION, MacAddr::BROADCAST);
    assert_eq!(net.out(&request), net.statics_only());
    let announcement = arp(Operation::Request, (LOCAL, LOCAL), LOCAL, MacAddr::BROADCAST);
    assert_eq!(net.out(&announcement), net.statics_only());

    let alone = Net::alone();
    for (frame, reason) in [
        (from_local(mac(STATION)), DropReason::FdbUnknown),
        (request, DropReason::NeighborUnknown),
        (announcement, DropReason::Announcement),
    ] {
        assert_eq!(alone.out(&frame), PlainVerdict::Drop(reason));
    }
}

#[test]
fn what_goes_to_static_vteps_takes_the_steps_of_every_frame() {
    let net = Net::new();
    let announcement = arp(Operation::Request, (LOCAL, LOCAL), LOCAL, MacAddr::BROADCAST);
    let mut long = announcement.clone();
    long.resize(usize::from(net.plain.spec().mtu) + 15, 0);
    let too_big = PlainVerdict::Drop(DropReason::TooBig);
    for (frame, verdict, last) in [
        (from_local(mac(STATION)), net.statics_only(), Step::Checksum),
        (announcement, net.statics_only(), Step::Checksum),
        (long, too_big, Step::Mtu),
    ] {
        let (mut bytes, mut seen) = (frame, Seen::default());
        let (mut frame, mut scratch) = (Frame::plain(&mut bytes), Scratch::new());
        let now = net.start + Duration::from_secs(86_400);
        let said = plain_outbound(&net.plain, &mut frame, &mut scratch, now, &mut seen);
        assert_eq!(said, verdict);
        let at = |step| Step::OUT.iter().position(|other| *other == step).unwrap();
        assert_eq!(seen.steps, Step::OUT[at(Step::Ethernet)..=at(last)]);
    }
}

#[test]
fn flooding_has_the_limits_of_every_network() {
    let net = Net::new();
    let sent = (0..FLOOD_ENDPOINT_BURST * 2)
        .filter(|_| net.out_at(&from_local(mac(STATION)), Duration::ZERO) == net.statics_only());
    assert_eq!(sent.count(), usize::try_from(FLOOD_ENDPOINT_BURST).unwrap());
    let limited = PlainVerdict::Drop(DropReason::FloodLimited);
    assert_eq!(net.out_at(&from_local(mac(STATION)), Duration::ZERO), limited);
}

#[test]
fn a_superframe_to_nobody_known_costs_as_much_as_its_packets() {
    let net = Net::new();
    let flood = |segment_size: u16| {
        let mut bytes = from_local(mac(STATION));
        bytes.resize(42 + 200, 0);
        let gso = Some(Gso { kind: GsoKind::Udp, segment_size, header_len: 42 });
        let checksum = Some(PartialChecksum { start: 34, offset: 6 });
        let mut frame = Frame::new(&mut bytes, Offload { gso, checksum });
        plain_outbound(&net.plain, &mut frame, &mut Scratch::new(), net.start, &mut ())
    };
    assert_eq!(flood(1), PlainVerdict::Drop(DropReason::FloodLimited), "200 packets");
    assert_eq!(flood(2), net.statics_only(), "100 packets, and nothing was taken before");
    assert_eq!(flood(200), PlainVerdict::Drop(DropReason::FloodLimited));
}

#[test]
fn a_station_is_learned_moves_and_is_forgotten() {
    let net = Net::new();
    let s = Duration::from_secs;
    assert_eq!(net.inbound_at(ONE, &from_station(mac(LOCAL)), s(1)), Ok(()));
    let to = from_local(mac(STATION));
    assert_eq!(net.out_at(&to, s(2)), PlainVerdict::Forward(ip(ONE)));
    assert_eq!(net.inbound_at(TWO, &from_station(mac(LOCAL)), s(3)), Ok(()));
    assert_eq!(net.out_at(&to, s(4)), PlainVerdict::Forward(ip(TWO)));

    // A frame in between keeps it.
    assert_eq!(net.inbound_at(TWO, &from_station(mac(LOCAL)), s(200)), Ok(()));
    let end = s(200) + LEARNED_AGE;
    assert_eq!(net.out_at(&to, end - Duration::from_millis(1)), PlainVerdict::Forward(ip(TWO)));
    assert_eq!(net.out_at(&to, end), net.statics_only());
    net.plain.learned().expire(net.start + end - Duration::from_millis(1));
    assert_eq!(net.plain.learned().len(), 1);
    net.plain.learned().expire(net.start + end);
    assert!(net.plain.learned().is_empty());
}

#[test]
fn what_was_learned_outlives_a_snapshot_but_not_its_vtep() {
    let net = Net::new();
    assert_eq!(net.inbound(ONE, &from_station(mac(LOCAL))), Ok(()));
    let next = Net { plain: net.plain.apply([]), start: net.start };
    assert_eq!(next.out(&from_local(mac(STATION))), PlainVerdict::Forward(ip(ONE)));
    let without = Net { plain: next.plain.with_statics(&[ip(TWO)]), start: net.start };
    assert_eq!(without.out(&from_local(mac(STATION))), without.statics_only());
}

/// Nor has the address that is made from one.
#[test]
fn nothing_behind_a_static_vtep_has_a_mac_of_services() {
    let net = Net::new();
    let id = spec().id;
    for taken in [lb::service_mac(id), lb::service_source_mac(id)] {
        let mut frame = from_station(mac(LOCAL));
        frame[6..12].copy_from_slice(&taken.0);
        assert_eq!(net.inbound(ONE, &frame), Err(DropReason::VtepSourceTaken));
        let to = PlainVerdict::Drop(DropReason::FdbUnknown);
        assert_eq!(net.out(&from_local(taken)), to, "and nobody there gets what is for it");
        let mut frame = Vec::new();
        let its = crate::wire::ipv6::link_local_of(taken).octets();
        let builder = PacketBuilder::ethernet2(mac(STATION).0, mac(LOCAL).0);
        let builder = builder.ipv6(its, [0xfd; 16], 64).udp(1000, 2000);
        builder.write(&mut frame, b"payload").unwrap();
        assert_eq!(net.inbound(ONE, &frame), Err(DropReason::IpSpoofed));
    }
}

#[test]
fn a_claim_is_never_overridden() {
    let net = Net::new();
    assert_eq!(net.inbound(ONE, &from_station(mac(LOCAL))), Ok(()));
    // Now the MAC becomes an endpoint's, and the station cannot take it back.
    let claimed = endpoint(1, STATION, Place::Remote(vtep(Some("192.0.2.7"), &["192.0.2.7"])));
    let net = Net { plain: net.plain.apply([TableUpdate::Put(claimed)]), start: net.start };
    let to = from_local(mac(STATION));
    assert_eq!(net.out(&to), PlainVerdict::Forward(ip("192.0.2.7")));
    let taken = Err(DropReason::VtepSourceTaken);
    assert_eq!(net.inbound(ONE, &from_station(mac(LOCAL))), taken);
    for mac in [LOCAL, REMOTE, 0xfe] {
        assert_eq!(net.inbound(ONE, &udp(mac, mac_to_local(), [10, 0, 0, STATION])), taken);
    }
}

fn mac_to_local() -> MacAddr {
    mac(LOCAL)
}

#[test]
fn a_full_table_keeps_what_it_knows() {
    const MOST: usize = LEARNED_STATIONS;
    let start = now();
    let learned = Learned::new(7, start);
    let mac = |n: usize| {
        let [.., a, b] = n.to_be_bytes();
        MacAddr([2, 1, 0, 0, a, b])
    };
    for n in 0..MOST {
        assert!(learned.learn(mac(n), ip(ONE), MOST, start + Duration::from_secs(10)), "{n}");
    }
    let later = start + Duration::from_secs(20);
    assert!(!learned.learn(mac(MOST), ip(ONE), MOST, later));
    assert_eq!((learned.len(), learned.refused()), (MOST, 1));
    assert!(learned.learn(mac(0), ip(TWO), MOST, later), "a move needs no room");
    assert!(learned.learn(mac(MOST + 1), ip(ONE), MOST + 1, later), "the network allows more");
    assert_eq!(learned.vtep_of(mac(0), later), Some(ip(TWO)));
    // What is old makes room; the one that moved is younger.
    let end = start + Duration::from_secs(10) + LEARNED_AGE;
    assert!(learned.learn(mac(MOST), ip(ONE), MOST, end));
    assert_eq!(learned.len(), 3);
}

#[test]
fn a_member_speaks_for_its_endpoints_only() {
    let net = Net::new();
    let frame = udp(REMOTE, mac(LOCAL), [10, 0, 0, REMOTE]);
    assert_eq!(net.inbound(MEMBER, &frame), Ok(()));
    assert_eq!(net.inbound("2001:db8::1", &frame), Ok(()), "any of its addresses");
    assert_eq!(net.inbound("192.0.2.2", &frame), Err(DropReason::SourceNotOwned));
    assert_eq!(net.inbound("192.0.2.77", &frame), Err(DropReason::UnknownVtep));
    assert_eq!(net.inbound(MEMBER, &from_station(mac(LOCAL))), Err(DropReason::SourceNotOwned));
    assert!(net.plain.learned().is_empty(), "nothing is learned from members");
    let spoofed = udp(REMOTE, mac(LOCAL), [10, 0, 0, 12]);
    assert_eq!(net.inbound(MEMBER, &spoofed), Err(DropReason::IpSpoofed));
    assert_eq!(net.inbound(MEMBER, &[0; 9]), Err(DropReason::Runt));
}

#[test]
fn a_static_vtep_stays_one_whoever_claims_its_address() {
    let net = Net::new();
    let liar = vtep(Some("192.0.2.2"), &["192.0.2.2", ONE]);
    let claimed = net.plain.apply([
        TableUpdate::Put(endpoint(2, 12, Place::Remote(liar.clone()))),
        TableUpdate::PutMember(node(2), liar),
    ]);
    let net = Net { plain: claimed, ..net };
    assert_eq!(net.inbound(ONE, &from_station(mac(LOCAL))), Ok(()));
    assert_eq!(net.out(&from_local(mac(STATION))), PlainVerdict::Forward(ip(ONE)));
    let taken = Err(DropReason::VtepSourceTaken);
    assert_eq!(net.inbound(ONE, &udp(REMOTE, mac(LOCAL), [10, 0, 0, REMOTE])), taken);
    assert_eq!(net.inbound(ONE, &udp(12, mac(LOCAL), [10, 0, 0, 12])), Ok(()), "it said so");
    // The member's other address is a member's only.
    let own = Err(DropReason::SourceNotOwned);
    assert_eq!(net.inbound("192.0.2.2", &from_station(mac(LOCAL))), own);
}

#[test]
fn a_static_vtep_speaks_for_what_no_endpoint_has() {
    let net = Net::new();
    let everybody = MacAddr::BROADCAST;
    assert_eq!(net.inbound(ONE, &from_station(everybody)), Ok(()));
    assert_eq!(net.inbound(ONE, &from_station(mac(REMOTE))), Err(DropReason::NotLocal));
    let request = |sender, target| arp(Operation::Request, (STATION, sender), target, everybody);
    assert_eq!(net.inbound(ONE, &request(STATION, LOCAL)), Ok(()));
    assert_eq!(net.inbound(ONE, &request(STATION, STATION)), Ok(()), "it may announce itself");
    for taken in [LOCAL, REMOTE, 1] {
        assert_eq!(net.inbound(ONE, &request(taken, LOCAL)), Err(DropReason::ArpSpoofed));
        let frame = udp(STATION, mac(LOCAL), [10, 0, 0, taken]);
        assert_eq!(net.inbound(ONE, &frame), Err(DropReason::IpSpoofed));
    }
    let mut lying = request(STATION, LOCAL);
    lying[22..28].copy_from_slice(&mac(STATION + 1).0);
    assert_eq!(net.inbound(ONE, &lying), Err(DropReason::ArpSpoofed));
    for source in [[0; 4], [255; 4], [127, 0, 0, 1], [224, 0, 0, 1]] {
        let frame = udp(STATION, mac(LOCAL), source);
        assert_eq!(net.inbound(ONE, &frame), Err(DropReason::IpSpoofed), "{source:?}");
    }
    let mut long = from_station(mac(LOCAL));
    long.resize(1390 + 15, 0);
    assert_eq!(net.inbound(ONE, &long), Err(DropReason::TooBig));
    let mut tagged = from_station(mac(LOCAL));
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    assert_eq!(net.inbound(ONE, &tagged), Err(DropReason::VlanUnsupported));
    let mut from_group = from_station(mac(LOCAL));
    from_group[6] |= 1;
    assert_eq!(net.inbound(ONE, &from_group), Err(DropReason::VtepSourceTaken));
}

#[test]
fn packets_of_one_flow_share_a_hash() {
    let frame = from_local(mac(REMOTE));
    let mut longer = frame.clone();
    longer.extend([0; 30]);
    assert_eq!(
        flow_hash(1, Headers::parse(&frame).as_ref()),
        flow_hash(1, Headers::parse(&longer).as_ref())
    );
    let mut ports: Vec<u64> = (0..64)
        .map(|port: u8| {
            let mut other = frame.clone();
            other[35] = port;
            flow_hash(1, Headers::parse(&other).as_ref()) % 16
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    assert!(ports.len() > 8, "64 flows use {} of 16 ports", ports.len());
    assert_eq!(flow_hash(1, None), 0);
}

/// A TCP or UDP frame of the station, and the same as the kernel leaves it to a card.
fn finished_and_not(is_tcp: bool, is_ipv4: bool, payload: usize) -> [Vec<u8>; 2] {
    let builder = PacketBuilder::ethernet2(mac(STATION).0, mac(LOCAL).0);
    let builder = if is_ipv4 {
        builder.ipv4([10, 0, 0, STATION], [10, 0, 0, LOCAL], 64)
    } else {
        builder.ipv6([0xfd; 16], [0xfc; 16], 64)
    };
    let (mut frame, data) = (Vec::new(), vec![0x5a; payload]);
    if is_tcp {
        builder.tcp(80, 1000, 7, 500).write(&mut frame, &data).unwrap();
    } else {
        builder.udp(80, 1000).write(&mut frame, &data).unwrap();
    }
    let (upper, offset, protocol) =
        (if is_ipv4 { 34 } else { 54 }, if is_tcp { 16 } else { 6 }, if is_tcp { 6 } else { 17 });
    let addresses = if is_ipv4 { 26..34 } else { 22..54 };
    let len = u16::try_from(frame.len() - upper).unwrap();
    let pseudo = Sum::default().bytes(&frame[addresses]).number(protocol).number(len);
    let mut left = frame.clone();
    left[upper + offset..upper + offset + 2].copy_from_slice(&pseudo.folded());
    [frame, left]
}

#[test]
fn what_a_card_would_do_is_done() {
    for (is_tcp, is_ipv4) in [(true, true), (true, false), (false, true), (false, false)] {
        let [finished, mut left] = finished_and_not(is_tcp, is_ipv4, 101);
        assert_eq!(undone(&finished, Headers::parse(&finished).as_ref(), 1390), Offload::default());
        let Offload { gso, checksum } = undone(&left, Headers::parse(&left).as_ref(), 1390);
        assert!(gso.is_none() && checksum.is_some());
        finish_received(&mut Frame::new(&mut left, Offload { gso, checksum }));
        assert_eq!(left, finished);
        left.push(0);
        assert_eq!(
            undone(&left, Headers::parse(&left).as_ref(), 1390),
            Offload::default(),
            "padding"
        );
    }
}

#[test]
fn a_burst_is_cut_to_the_networks_mtu() {
    for is_ipv4 in [true, false] {
        let [_, mut left] = finished_and_not(true, is_ipv4, 5000);
        let Offload { gso, checksum } = undone(&left, Headers::parse(&left).as_ref(), 1390);
        let frame = Frame::new(&mut left, Offload { gso, checksum });
        let segments = Segments::of(&frame).unwrap();
        assert_eq!(segments.count(), 4);
        assert_eq!(segments.frame_len(0), 1404);
        let from = if is_ipv4 { ip(ONE) } else { ip(MEMBER) };
        let net = Net::new();
        let verdict = plain_inbound(&net.plain, from, &frame, net.start, &mut ());
        assert_eq!(verdict == InboundVerdict::Deliver, is_ipv4, "a member's frames are never so");
    }
    let [_, udp] = finished_and_not(false, true, 5000);
    assert!(undone(&udp, Headers::parse(&udp).as_ref(), 1390).gso.is_none(), "it is one datagram");
}

/// One datagram must not become 60,000 packets.
#[test]
fn a_burst_whose_headers_leave_no_room_is_not_cut() {
    // With destination options (RFC 8200 section 4.6) of 1280 bytes: headers of 1354 in all.
    let mut options = vec![0; 1280];
    (options[0], options[1]) = (6, u8::try_from(1280 / 8 - 1).unwrap());
    let [_, left] = finished_and_not(true, false, 5000);
    let mut frame = [&left[..54], &options, &left[54..]].concat();
    frame[20] = 60;
    let len = u16::try_from(frame.len() - 54).unwrap();
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    let fits =
        |mtu| undone(&frame, Headers::parse(&frame).as_ref(), mtu).gso.map(|gso| gso.segment_size);
    assert_eq!(fits(1340 + 512), Some(512));
    assert_eq!(fits(1340 + 511), None);
    assert_eq!(fits(1340 + 1), None);
}

proptest! {
    #[test]
    fn no_bytes_from_the_underlay_speak_for_an_endpoint(
        bytes in prop::collection::vec(any::<u8>(), 0..128),
        source in 0u8..32,
        arp_like: bool,
    ) {
        let net = Net::new();
        let mut frame = if arp_like {
            arp(Operation::Reply, (source, source), LOCAL, mac(LOCAL))
        } else {
            udp(source, mac(LOCAL), [10, 0, 0, source])
        };
        frame.extend(&bytes);
        let from_static = net.inbound(ONE, &frame);
        prop_assert_eq!(from_static.is_ok(), ![LOCAL, REMOTE, 12, 13, 1].contains(&source), "{:?}", from_static);
        let from_member = net.inbound(MEMBER, &frame);
        prop_assert_eq!(from_member.is_ok(), source == REMOTE, "{:?}", from_member);
        // Whatever it is, it ends in a verdict.
        let _fate = (net.inbound(ONE, &bytes), net.inbound(MEMBER, &bytes), net.out(&bytes));
    }
}
