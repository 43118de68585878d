//! A service as a client sees it, through the steps of both directions.
//!
//! The network is 10.0.0.0/24 and fd00::/64 (see `tables::tests`): client 10 is local, backends 11
//! to 15 are on nodes 1 to 5, each with the service's port 8080, and the VIPs are 10.0.0.200 and
//! fd00::c8.

mod clash;
mod counts;
mod ejected;
mod fragments;
mod ingress;
mod life;
mod local;
mod path_mtu;
mod sticky;
mod super_frames;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::{
    flows::{FlowTable, Shape, State},
    *,
};
use crate::{
    addr::ServiceId,
    frame::{Frame, Headers, PartialChecksum, vnet::Offload},
    path::{InboundVerdict, OutboundVerdict, Scratch, answer, inbound, outbound},
    reason::DropReason,
    tables::{
        NetworkTable, Place, TableUpdate,
        tests::{ip, key, mac, node, now, row, spec},
    },
    wire::{
        Arp, Fragment, TCP, UDP,
        arp::Operation,
        nd::{Advertisement, Message},
    },
};

const CLIENT: u8 = 10;
const VIP: u8 = 200;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

struct Net {
    table: NetworkTable<u32>,
    start: Instant,
    flows: Arc<Flows>,
}

fn service(backends: impl IntoIterator<Item = u8>) -> ServiceSpec {
    let tcp = Port { protocol: Protocol::Tcp, port: 80, backend_port: 8080, published: None };
    let backends = backends.into_iter().map(|n| {
        let node = n - CLIENT;
        Backend { key: key(node, n), weight: 1, takes_new: true, is_near: true }
    });
    ServiceSpec {
        id: ServiceId::from_random([5; 16]),
        vips: vec![address(true, VIP), address(false, VIP)],
        ports: vec![tcp, Port { protocol: Protocol::Udp, ..tcp }],
        backends: backends.collect(),
        choice: Choice::Maglev,
        sticky: None,
        out: Vec::new(),
    }
}

fn address(ipv4: bool, n: u8) -> IpAddr {
    if ipv4 { IpAddr::from([10, 0, 0, n]) } else { ip(&format!("fd00::{n:x}")) }
}

impl Net {
    fn new() -> Self {
        Self::with(64, service(11..16))
    }

    fn with(flows: u32, spec: ServiceSpec) -> Self {
        let (start, shape) = (now(), Shape { flows, sources: 64 });
        let words = std::iter::repeat_with(AtomicU64::default).take(shape.words());
        let memory: &'static [AtomicU64] = Vec::leak(words.collect());
        let flows = Arc::new(FlowTable::new(memory, shape, 7, start).unwrap());
        let table = NetworkTable::new(crate::tables::tests::spec(), 7, start);
        let table = table.apply((11..16).flat_map(|n| {
            let (owner, peer) = (n - CLIENT, u32::from(n - CLIENT));
            [
                TableUpdate::Put(row(owner, n, Place::Remote(peer))),
                TableUpdate::PutMember(node(owner), peer),
            ]
        }));
        let table = table.apply([TableUpdate::Put(row(0, CLIENT, Place::Local))]);
        let mut net = Self { table, start, flows };
        net.serve(1, spec);
        net
    }

    /// Another snapshot of services.
    fn serve(&mut self, version: u64, spec: ServiceSpec) {
        self.serve_as(version, spec, |services| services);
    }

    /// Another one, with more said of it.
    fn serve_as(
        &mut self,
        version: u64,
        spec: ServiceSpec,
        say: impl FnOnce(Services) -> Services,
    ) {
        let services = [Arc::new(Service::new(spec, None))];
        let services = say(Services::new(Arc::clone(&self.flows), (version, true), services));
        self.apply(TableUpdate::Services(Some(Arc::new(services))));
    }

    fn apply(&mut self, update: TableUpdate<u32>) {
        self.table = self.table.apply([update]);
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    /// What becomes of a client's frame: the peer and the frame that it gets.
    fn out(&self, frame: &[u8]) -> Result<(u32, Vec<u8>), DropReason> {
        let mut bytes = frame.to_vec();
        let mut scratch = Scratch::new();
        match outbound(
            &self.table,
            &mut Frame::plain(&mut bytes),
            &mut scratch,
            self.start,
            &mut (),
        ) {
            OutboundVerdict::Forward(peer) => Ok((*peer, bytes)),
            OutboundVerdict::Drop(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// What a client gets of a frame that a node sent.
    fn back(&self, from: u8, frame: &[u8]) -> Vec<u8> {
        let verdict = inbound(&self.table, &node(from), frame, &mut ());
        assert_eq!(verdict, InboundVerdict::Deliver);
        let mut bytes = frame.to_vec();
        let verdict = answer(&self.table, &mut Frame::plain(&mut bytes), self.start, &mut ());
        assert_eq!(verdict, InboundVerdict::Deliver);
        bytes
    }

    /// A connection up to where both ends speak. Which backend has it.
    fn connect(&self, ipv4: bool, port: u16) -> u8 {
        let (peer, _) = self.out(&asks(TCP, ipv4, port, SYN)).unwrap();
        let backend = CLIENT + u8::try_from(peer).unwrap();
        self.back(backend - CLIENT, &answers(TCP, ipv4, backend, port, SYN | ACK));
        assert_eq!(self.out(&asks(TCP, ipv4, port, ACK)).unwrap().0, peer);
        backend
    }

    fn state(&self, port: u16) -> Option<State> {
        let flow = self.flows.iter().find(|it| it.flow.client.port() == port)?;
        Some(flow.state)
    }
}

/// A frame with all its checksums.
fn frame(
    protocol: u8,
    (from, to): (MacAddr, MacAddr),
    (source, destination): (SocketAddr, SocketAddr),
    flags: u8,
) -> Vec<u8> {
    let eth = PacketBuilder::ethernet2(from.0, to.0);
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => eth.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => eth.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("one version"),
    };
    let mut frame = Vec::new();
    if protocol == UDP {
        ip.udp(source.port(), destination.port()).write(&mut frame, b"payload").unwrap();
        return frame;
    }
    let mut tcp = ip.tcp(source.port(), destination.port(), 1000, 2000);
    for (flag, set) in [
        (SYN, etherparse::PacketBuilderStep::syn as fn(_) -> _),
        (RST, etherparse::PacketBuilderStep::rst),
        (FIN, etherparse::PacketBuilderStep::fin),
    ] {
        if flags & flag != 0 {
            tcp = set(tcp);
        }
    }
    if flags & ACK != 0 {
        tcp = tcp.ack(77);
    }
    tcp.write(&mut frame, b"payload").unwrap();
    frame
}

/// What the client sends to the service's port 80.
fn asks(protocol: u8, ipv4: bool, port: u16, flags: u8) -> Vec<u8> {
    let macs = (mac(CLIENT), service_mac(spec().id));
    let ends = (address(ipv4, CLIENT), address(ipv4, VIP));
    frame(protocol, macs, (SocketAddr::new(ends.0, port), SocketAddr::new(ends.1, 80)), flags)
}

/// What a backend answers.
fn answers(protocol: u8, ipv4: bool, backend: u8, port: u16, flags: u8) -> Vec<u8> {
    let (from, to) = (address(ipv4, backend), address(ipv4, CLIENT));
    let ends = (SocketAddr::new(from, 8080), SocketAddr::new(to, port));
    frame(protocol, (mac(backend), mac(CLIENT)), ends, flags)
}

#[test]
fn a_client_speaks_with_a_backend_and_sees_the_service_only() {
    for ipv4 in [true, false] {
        for protocol in [TCP, UDP] {
            let net = Net::new();
            let (peer, there) = net.out(&asks(protocol, ipv4, 4000, SYN)).unwrap();
            let backend = CLIENT + u8::try_from(peer).unwrap();
            let (from, to) = (address(ipv4, CLIENT), address(ipv4, backend));
            let ends = (SocketAddr::new(from, 4000), SocketAddr::new(to, 8080));
            let expected = frame(protocol, (mac(CLIENT), mac(backend)), ends, SYN);
            assert_eq!(there, expected, "the client's own address, all checksums right");
            // As the peer judges it: nothing in it is untrue.
            let peers = net.table.apply([
                TableUpdate::Put(row(0, CLIENT, Place::Remote(9))),
                TableUpdate::PutMember(node(0), 9),
                TableUpdate::Put(row(peer.try_into().unwrap(), backend, Place::Local)),
            ]);
            assert_eq!(inbound(&peers, &node(0), &there, &mut ()), InboundVerdict::Deliver);
            let reply = answers(protocol, ipv4, backend, 4000, SYN | ACK);
            let macs = (service_mac(spec().id), mac(CLIENT));
            let ends = (SocketAddr::new(address(ipv4, VIP), 80), SocketAddr::new(from, 4000));
            assert_eq!(net.back(backend - CLIENT, &reply), frame(protocol, macs, ends, SYN | ACK));
        }
    }
}

#[test]
fn a_flow_keeps_its_backend_and_flows_are_spread() {
    let net = Net::with(1024, service(11..16));
    let mut used = BTreeSet::new();
    for port in 1..200 {
        let backend = net.connect(port % 2 == 0, port);
        used.insert(backend);
        for _ in 0..3 {
            let peer = net.out(&asks(TCP, port % 2 == 0, port, ACK)).unwrap().0;
            assert_eq!(peer, u32::from(backend - CLIENT));
        }
    }
    assert_eq!(used.len(), 5);
}

/// The client asks everybody who has the VIP.
fn question() -> (Arp, Vec<u8>) {
    let request = Arp {
        operation: Operation::Request,
        sender_mac: mac(CLIENT),
        sender_ip: [10, 0, 0, CLIENT].into(),
        target_mac: MacAddr([0; 6]),
        target_ip: [10, 0, 0, VIP].into(),
    };
    let mut asked = request.to_frame().to_vec();
    asked[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    (request, asked)
}

#[test]
fn the_vip_is_asked_for_and_found_at_the_services_mac() {
    let net = Net::new();
    let (request, mut asked) = question();
    let mut scratch = Scratch::new();
    let verdict =
        outbound(&net.table, &mut Frame::plain(&mut asked), &mut scratch, net.start, &mut ());
    assert_eq!(verdict, OutboundVerdict::Hairpin);
    let reply = request.reply_from(service_mac(spec().id)).to_frame();
    assert_eq!(scratch.reply(), reply);

    let (IpAddr::V6(from), IpAddr::V6(target)) = (address(false, CLIENT), address(false, VIP))
    else {
        panic!("IPv6")
    };
    let mut asked = Vec::new();
    let body = [&target.octets()[..], &[1, 1], &mac(CLIENT).0].concat();
    PacketBuilder::ethernet2(mac(CLIENT).0, [0x33, 0x33, 0xff, 0, 0, VIP])
        .ipv6(from.octets(), target.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut asked, &body)
        .unwrap();
    let verdict =
        outbound(&net.table, &mut Frame::plain(&mut asked), &mut scratch, net.start, &mut ());
    assert_eq!(verdict, OutboundVerdict::Hairpin);
    let asker = Some((from, mac(CLIENT)));
    let mac = service_mac(spec().id);
    assert_eq!(scratch.reply(), Advertisement { target, mac, asker }.to_frame());
    let headers = Headers::parse(scratch.reply()).unwrap();
    let ip = headers.ip.unwrap();
    assert!(matches!(
        Message::parse(&ip.upper(scratch.reply()), ip.hop_limit),
        Ok(Message::Advertisement { solicited: true, .. })
    ));
}

/// A member claims a MAC of the services for its endpoint.
#[test]
fn no_endpoint_has_a_mac_of_the_services() {
    for taken in [service_mac(spec().id), service_source_mac(spec().id)] {
        let mut net = Net::new();
        for (owner, place) in [(1, Place::Remote(1)), (0, Place::Local)] {
            let mut thief = row(owner, 66, place);
            thief.mac = taken;
            net.apply(TableUpdate::Put(thief));
        }
        assert_eq!(net.table.fdb(taken), None);
        let (peer, there) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
        assert_eq!(there[..6], mac(CLIENT + u8::try_from(peer).unwrap()).0);
        let mut forged = asks(TCP, true, 4000, SYN);
        forged[..6].copy_from_slice(&mac(11).0);
        forged[6..12].copy_from_slice(&taken.0);
        assert_eq!(net.out(&forged).unwrap_err(), DropReason::SourceUnknown);
        let from_peer = inbound(&net.table, &node(1), &forged, &mut ());
        assert_eq!(from_peer, InboundVerdict::Drop(DropReason::SourceNotOwned));
    }
}

#[test]
fn what_a_service_does_not_have_goes_nowhere() {
    let mut net = Net::new();
    let with_ip = |destination: u8, port: u16| {
        let macs = (mac(CLIENT), service_mac(spec().id));
        let ends = (address(true, CLIENT), address(true, destination));
        frame(TCP, macs, (SocketAddr::new(ends.0, 4000), SocketAddr::new(ends.1, port)), SYN)
    };
    assert_eq!(net.out(&with_ip(VIP, 81)).unwrap_err(), DropReason::ServicePort);
    assert_eq!(net.out(&with_ip(11, 80)).unwrap_err(), DropReason::ServicePort, "no VIP");
    let mut icmp = with_ip(VIP, 80);
    icmp[23] = 1;
    assert_eq!(net.out(&icmp).unwrap_err(), DropReason::ServicePort);
    let mut later = with_ip(VIP, 80);
    later[20..22].copy_from_slice(&[0, 1]);
    assert_eq!(Headers::parse(&later).unwrap().ip.unwrap().fragment, Fragment::Later);
    assert_eq!(net.out(&later).unwrap_err(), DropReason::FlowUnknown);
    for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
        assert_eq!(net.out(&asks(TCP, true, 4000, flags)).unwrap_err(), DropReason::FlowUnknown);
    }
    net.serve(2, service([]));
    assert_eq!(net.out(&asks(TCP, true, 4000, SYN)).unwrap_err(), DropReason::NoBackend);
    assert_eq!(net.out(&asks(UDP, true, 4000, 0)).unwrap_err(), DropReason::NoBackend);
    assert_eq!(net.flows.iter().count(), 0, "nothing is remembered of it");
    net.apply(TableUpdate::Services(None));
    assert_eq!(net.out(&asks(TCP, true, 4000, SYN)).unwrap_err(), DropReason::FdbUnknown);
}

#[test]
fn a_ping_is_answered_by_the_service() {
    let net = Net::new();
    for ipv4 in [true, false] {
        let (client, vip) = (address(ipv4, CLIENT), address(ipv4, VIP));
        let ping = |from: MacAddr, to: MacAddr, ends: (IpAddr, IpAddr), asks: bool, ttl: u8| {
            let eth = PacketBuilder::ethernet2(from.0, to.0);
            let mut frame = Vec::new();
            match ends {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let ip = eth.ipv4(from.octets(), to.octets(), ttl);
                    let icmp = if asks {
                        ip.icmpv4_echo_request(7, 9)
                    } else {
                        ip.icmpv4_echo_reply(7, 9)
                    };
                    icmp.write(&mut frame, &[7; 1300]).unwrap();
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    let ip = eth.ipv6(from.octets(), to.octets(), ttl);
                    let icmp = if asks {
                        ip.icmpv6_echo_request(7, 9)
                    } else {
                        ip.icmpv6_echo_reply(7, 9)
                    };
                    icmp.write(&mut frame, &[7; 1300]).unwrap();
                }
                _ => panic!("one version"),
            }
            frame
        };
        let service = service_mac(spec().id);
        let mut asked = ping(mac(CLIENT), service, (client, vip), true, 33);
        let mut scratch = Scratch::new();
        let verdict =
            outbound(&net.table, &mut Frame::plain(&mut asked), &mut scratch, net.start, &mut ());
        assert_eq!(verdict, OutboundVerdict::Hairpin);
        assert_eq!(scratch.reply(), ping(service, mac(CLIENT), (vip, client), false, 64));
        let nobody = ping(mac(CLIENT), service, (client, address(ipv4, 99)), true, 64);
        assert_eq!(net.out(&nobody).unwrap_err(), DropReason::ServicePort);
    }
}

/// "Port unreachable" about a frame, as much of it as is asked for.
fn error(macs: (MacAddr, MacAddr), ends: (IpAddr, IpAddr), about: &[u8], quote: usize) -> Vec<u8> {
    use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4, icmpv6};
    let v4 = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
    let v6 = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
    error_of((v4, v6), macs, ends, (about, quote))
}

/// The error of this kind, by the IP version.
fn error_of(
    (v4, v6): (etherparse::Icmpv4Type, etherparse::Icmpv6Type),
    macs: (MacAddr, MacAddr),
    ends: (IpAddr, IpAddr),
    (about, quote): (&[u8], usize),
) -> Vec<u8> {
    let quote = &about[14..(14 + quote).min(about.len())];
    let eth = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    let mut frame = Vec::new();
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let ip = eth.ipv4(from.octets(), to.octets(), 64);
            ip.icmpv4(v4).write(&mut frame, quote).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = eth.ipv6(from.octets(), to.octets(), 64);
            ip.icmpv6(v6).write(&mut frame, quote).unwrap();
        }
        _ => panic!("one version"),
    }
    frame
}

/// Each end hears of the packet that it sent, in full or in part, from whom it sent it to.
#[test]
fn errors_are_about_what_their_receiver_sent() {
    let service = service_mac(spec().id);
    for (ipv4, protocol, quote) in
        [(true, UDP, 1000), (true, TCP, 28), (false, UDP, 1000), (false, TCP, 60)]
    {
        let net = Net::new();
        let asked = asks(protocol, ipv4, 4000, SYN);
        let (peer, there) = net.out(&asked).unwrap();
        let n = CLIENT + u8::try_from(peer).unwrap();
        let (client, vip, backend) = (address(ipv4, CLIENT), address(ipv4, VIP), address(ipv4, n));
        let by_backend = error((mac(n), mac(CLIENT)), (backend, client), &there, quote);
        let expected = error((service, mac(CLIENT)), (vip, client), &asked, quote);
        assert_eq!(net.back(n - CLIENT, &by_backend), expected, "{ipv4} {protocol}");
        let by_router = error((mac(n), mac(CLIENT)), (address(ipv4, n), client), &asked, quote);
        assert_eq!(net.back(n - CLIENT, &by_router), by_router, "of no flow that it saw");

        let sent = answers(protocol, ipv4, n, 4000, SYN | ACK);
        let seen = net.back(n - CLIENT, &sent);
        let by_client = error((mac(CLIENT), service), (client, vip), &seen, quote);
        let expected = error((mac(CLIENT), mac(n)), (client, backend), &sent, quote);
        assert_eq!(net.out(&by_client).unwrap(), (peer, expected), "{ipv4} {protocol}");
        let mut other = seen;
        let at = if ipv4 { 37 } else { 57 };
        other[at] ^= 1;
        let by_client = error((mac(CLIENT), service), (client, vip), &other, quote);
        assert_eq!(net.out(&by_client).unwrap_err(), DropReason::FlowUnknown);
    }
}

/// What a client is told of a packet that is dropped.
fn told(net: &Net, frame: &[u8]) -> Vec<u8> {
    let (mut bytes, mut scratch) = (frame.to_vec(), Scratch::new());
    let verdict =
        outbound(&net.table, &mut Frame::plain(&mut bytes), &mut scratch, net.start, &mut ());
    assert!(matches!(verdict, OutboundVerdict::Drop(_)), "{verdict:?}");
    scratch.reply().to_vec()
}

#[test]
fn what_leads_nowhere_is_refused_at_once() {
    let mut net = Net::new();
    net.serve(2, service([]));
    for ipv4 in [true, false] {
        let (client, vip) = (address(ipv4, CLIENT), address(ipv4, VIP));
        for (flags, sequence, acknowledges) in
            [(SYN, 0, Some(1000 + 7 + 1)), (ACK, 77, None), (FIN, 0, Some(1008))]
        {
            let macs = (service_mac(spec().id), mac(CLIENT));
            let eth = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
            let ip = match (vip, client) {
                (IpAddr::V4(from), IpAddr::V4(to)) => eth.ipv4(from.octets(), to.octets(), 64),
                (IpAddr::V6(from), IpAddr::V6(to)) => eth.ipv6(from.octets(), to.octets(), 64),
                _ => panic!("one version"),
            };
            let mut reset = ip.tcp(80, 4000, sequence, 0).rst();
            if let Some(number) = acknowledges {
                reset = reset.ack(number);
            }
            let mut expected = Vec::new();
            reset.write(&mut expected, &[]).unwrap();
            assert_eq!(told(&net, &asks(TCP, ipv4, 4000, flags)), expected, "{flags}");
        }
        assert_eq!(told(&net, &asks(TCP, ipv4, 4000, RST)), [0; 0]);
        let asked = asks(UDP, ipv4, 4000, 0);
        let unreachable = told(&net, &asked);
        let headers = Headers::parse(&unreachable).unwrap();
        let ip = headers.ip.unwrap();
        assert_eq!((ip.source, ip.destination, headers.destination), (vip, client, mac(CLIENT)));
        let icmp = ip.upper(&unreachable).payload;
        assert_eq!(icmp[..2], if ipv4 { [3, 3] } else { [1, 4] });
        assert_eq!(&icmp[8..], &asked[14..]);
    }
    let told_of = (0..1000).filter(|_| !told(&net, &asks(UDP, true, 4000, 0)).is_empty());
    assert!(told_of.count() <= 20, "no more than its share");
}

/// An agent that has just started does not know who is there.
#[test]
fn nobody_is_refused_by_who_has_not_heard_all() {
    let mut net = Net::new();
    let services = [Arc::new(Service::new(service([]), None))];
    let services = Services::new(Arc::clone(&net.flows), (2, false), services);
    net.apply(TableUpdate::Services(Some(Arc::new(services))));
    for frame in [asks(TCP, true, 4000, SYN), asks(TCP, true, 4000, ACK), asks(UDP, true, 1, 0)] {
        assert_eq!(told(&net, &frame), [0; 0]);
    }
}

#[test]
fn direct_traffic_is_left_alone() {
    let net = Net::new();
    net.connect(true, 4000);
    let ends = (address(true, CLIENT), address(true, 12));
    let direct = |port| {
        let ends = (SocketAddr::new(ends.0, port), SocketAddr::new(ends.1, 22));
        frame(TCP, (mac(CLIENT), mac(12)), ends, SYN)
    };
    assert_eq!(net.out(&direct(4000)).unwrap(), (2, direct(4000)));
    let back = answers(TCP, true, 12, 4001, ACK);
    assert_eq!(net.back(2, &back), back);
    assert_eq!(net.flows.iter().count(), 1);
}

#[test]
fn a_connection_ends_and_its_port_begins_another() {
    let net = Net::new();
    let backend = net.connect(true, 4000);
    assert_eq!(net.state(4000), Some(State::Established));
    net.out(&asks(TCP, true, 4000, FIN | ACK)).unwrap();
    assert_eq!(net.state(4000), Some(State::Closing));
    net.back(backend - CLIENT, &answers(TCP, true, backend, 4000, FIN | ACK));
    assert_eq!(net.state(4000), Some(State::Closed));
    net.out(&asks(TCP, true, 4000, ACK)).unwrap();
    assert_eq!(net.state(4000), Some(State::Closed), "the last segment passes");
    net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    assert_eq!(net.state(4000), Some(State::HalfOpen));
    net.flows.sweep(net.at(60));
    assert_eq!(net.flows.count().open, 1);
    net.flows.sweep(net.at(80));
    assert_eq!(net.flows.iter().count(), 0);
}

#[test]
fn a_backend_that_goes_takes_connections_with_it_and_datagrams_go_to_another() {
    let mut net = Net::with(256, service(11..16));
    let tcp = net.connect(true, 4000);
    let (udp, _) = net.out(&asks(UDP, true, 4000, 0)).unwrap();
    // Out of the service, and back: who spoke meanwhile was told, and the others go on.
    let without = |gone: u8| service((11..16).filter(move |n| *n != gone));
    let spoke = (4001..).find(|port| net.connect(true, *port) == tcp).unwrap();
    net.serve(2, without(tcp));
    assert_eq!(net.out(&asks(TCP, true, spoke, ACK)).unwrap_err(), DropReason::NoBackend);
    net.serve(3, service(11..16));
    assert_eq!(net.out(&asks(TCP, true, spoke, ACK)).unwrap_err(), DropReason::FlowUnknown);
    assert_eq!(net.out(&asks(TCP, true, 4000, ACK)).unwrap().0, u32::from(tcp - CLIENT));
    let udp = CLIENT + u8::try_from(udp).unwrap();
    net.serve(4, without(udp));
    let (other, _) = net.out(&asks(UDP, true, 4000, 0)).unwrap();
    assert_ne!(other, u32::from(udp - CLIENT));
    assert_eq!(net.out(&asks(UDP, true, 4000, 0)).unwrap().0, other);
    // Its row is gone.
    net.serve(5, service(11..16));
    net.apply(TableUpdate::Remove(key(tcp - CLIENT, tcp)));
    assert_eq!(net.out(&asks(TCP, true, 4000, ACK)).unwrap_err(), DropReason::BackendUnknown);
    let (anew, _) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    assert_ne!(anew, u32::from(tcp - CLIENT));
    // Another endpoint has its address.
    let mut heir = row(9, tcp, Place::Remote(9));
    heir.key = key(9, 99);
    net.apply(TableUpdate::Put(heir));
    for port in 1..40 {
        assert_ne!(net.out(&asks(TCP, true, port, SYN)).unwrap().0, 9);
    }
}

#[test]
fn a_backend_that_drains_keeps_what_it_has() {
    let mut net = Net::with(256, service(11..16));
    let backend = net.connect(true, 4000);
    let mut draining = service(11..16);
    draining.backends[usize::from(backend - 11)].takes_new = false;
    net.serve(2, draining);
    for port in 1..60 {
        assert_ne!(net.out(&asks(TCP, true, port, SYN)).unwrap().0, u32::from(backend - CLIENT));
    }
    assert_eq!(net.out(&asks(TCP, true, 4000, ACK)).unwrap().0, u32::from(backend - CLIENT));
}

/// Two VIPs lead to one port of one backend, and a client uses one port of its own for both.
#[test]
fn two_flows_that_would_look_alike_get_two_ports() {
    let mut spec_of_both = service([11]);
    spec_of_both.ports.push(Port {
        protocol: Protocol::Tcp,
        port: 81,
        backend_port: 8080,
        published: None,
    });
    let net = Net::with(64, spec_of_both);
    let (_, first) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    let macs = (mac(CLIENT), service_mac(spec().id));
    let client = SocketAddr::new(address(true, CLIENT), 4000);
    let to = SocketAddr::new(address(true, VIP), 81);
    let (_, second) = net.out(&frame(TCP, macs, (client, to), SYN)).unwrap();
    let ports = |frame: &[u8]| Headers::parse(frame).unwrap().ip.unwrap().ports.unwrap();
    assert_eq!(ports(&first), (4000, 8080));
    let (port, _) = ports(&second);
    assert!(port >= 0x8000, "{port}");
    let seen = SocketAddr::new(client.ip(), port);
    let backend = SocketAddr::new(address(true, 11), 8080);
    assert_eq!(second, frame(TCP, (mac(CLIENT), mac(11)), (seen, backend), SYN));
    let back = net.back(1, &answers(TCP, true, 11, port, SYN | ACK));
    assert_eq!(back, frame(TCP, (macs.1, mac(CLIENT)), (to, client), SYN | ACK));
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_others() {
    let net = Net::with(64, service(11..16));
    for port in 1..17 {
        net.connect(true, port);
    }
    // The client has all that one source may have.
    assert_eq!(net.out(&asks(TCP, true, 17, SYN)).unwrap_err(), DropReason::FlowTableFull);
    assert!((1..17).all(|port| net.out(&asks(TCP, true, port, ACK)).is_ok()));
}

#[test]
fn a_checksum_elsewhere_reaches_no_backend() {
    let net = Net::new();
    let mut bytes = asks(UDP, true, 4000, 0);
    let checksum = Some(PartialChecksum { start: 34, offset: 4 });
    let mut sent = Frame::new(&mut bytes, Offload { gso: None, checksum });
    let verdict = outbound(&net.table, &mut sent, &mut Scratch::new(), net.start, &mut ());
    assert_eq!(verdict, OutboundVerdict::Drop(DropReason::BadOffload));
}

proptest! {
    /// Whatever bytes go to the services' MAC: nothing panics, and a peer believes what goes on.
    #[test]
    fn bytes_of_all_kinds_are_carried_truly_or_dropped(
        changes in prop::collection::vec((0usize..80, any::<u8>()), 0..6), cut in 0usize..80,
        (tcp, ipv4, cuts) in any::<(bool, bool, bool)>(), flags: u8,
        checksum in prop::option::of((0u16..80, 0u16..40)),
    ) {
        let net = Net::new();
        let mut bytes = asks(if tcp { TCP } else { UDP }, ipv4, 4000, SYN);
        if tcp {
            let at = if ipv4 { 47 } else { 67 };
            bytes[at] = flags;
        }
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(12 + at) {
                *place = byte;
            }
        }
        if cuts {
            bytes.truncate(14 + cut);
        }
        let checksum = checksum.map(|(start, offset)| PartialChecksum { start, offset });
        let mut frame = Frame::new(&mut bytes, Offload { gso: None, checksum });
        let verdict = outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ());
        prop_assert_eq!(frame.headers().copied(), Headers::parse(frame.bytes()));
        if let OutboundVerdict::Forward(peer) = verdict {
            let owner = u8::try_from(*peer).unwrap();
            let there = net.table.apply([
                TableUpdate::Put(row(0, CLIENT, Place::Remote(9))),
                TableUpdate::PutMember(node(0), 9),
                TableUpdate::Put(row(owner, CLIENT + owner, Place::Local)),
            ]);
            prop_assert_eq!(inbound(&there, &node(0), frame.bytes(), &mut ()), InboundVerdict::Deliver);
        }
        let mut answered = frame.bytes().to_vec();
        let _malformed = answer(&net.table, &mut Frame::plain(&mut answered), net.start, &mut ());
    }
}
