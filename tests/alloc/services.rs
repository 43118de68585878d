//! A frame through the address of a service allocates nothing: not on its way to the backend, nor
//! back, and not with the first frame of a flow either.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use etherparse::PacketBuilder;
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NodeId, ServiceId},
    frame::{
        Frame, Gso, GsoKind, Headers, PartialChecksum, Segments,
        coalesce::{Accepts, Coalescer},
        vnet::Offload,
    },
    lb::{
        Backend, Choice, Port, Protocol, Service, ServiceSpec, Services,
        flows::{FlowTable, Shape},
        service_mac,
    },
    path::{InboundVerdict, OutboundVerdict, Scratch, answer, inbound, outbound},
    tables::{NetworkTable, Place, Row, RowKey, TableUpdate},
    wire::checksum::Sum,
};
use vxmesh_tests::pair::{MAC_A, MAC_B, Pair, spec};

use crate::allocations;

/// A second endpoint of the client's host: 10.0.0.12 and fd00::c.
const MAC_C: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0c]);
/// The hosts' parts of the client's address, of the backends' on the other host and on this one,
/// and of the addresses of the services that these answer.
const CLIENT: u8 = 10;
const THERE: u8 = 11;
const HERE: u8 = 12;
const VIP_THERE: u8 = 200;
const VIP_HERE: u8 = 201;
const VIP_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
/// Flows that are begun, and frames of each after its first three.
const FLOWS: u16 = 40;
const FRAMES: usize = 10;
/// The first ones may give the buffers their size.
const FIRST: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flag {
    Syn,
    SynAck,
    Ack,
    Datagram,
}

/// What becomes of a frame that an endpoint of the client's host sends, or that comes to it.
#[derive(Clone, Copy)]
enum Fate {
    ToPeer,
    ToBridge,
    FromPeer,
}

/// What the client's host knows, with a backend on each of two hosts.
struct Host {
    table: NetworkTable<usize>,
    other: NodeId,
    now: Instant,
    /// The MAC of its services.
    service: MacAddr,
    scratch: Scratch,
    bytes: Vec<u8>,
}

impl Host {
    fn new() -> Self {
        let Pair { nodes, tables: [table, _], start: now } = Pair::new();
        let here = Row {
            key: RowKey { node: nodes[0], endpoint: EndpointId::from_random([0xc; 16]) },
            mac: MAC_C,
            ips: vec![address(true, HERE), address(false, HERE)],
            rank: 0,
            router: false,
            place: Place::Local,
        };
        let there = RowKey { node: nodes[1], endpoint: EndpointId::from_random([0xb; 16]) };
        let services = [service(VIP_THERE, there), service(VIP_HERE, here.key)];
        let shape = Shape { flows: 1024, sources: 64 };
        let words = std::iter::repeat_with(AtomicU64::default).take(shape.words());
        let flows = FlowTable::new(&*Vec::leak(words.collect()), shape, 7, now).unwrap();
        let services = services.map(|spec| Arc::new(Service::new(spec, None)));
        let services = Services::new(Arc::new(flows), (1, true), services).steering_local(true);
        let table =
            table.apply([TableUpdate::Put(here), TableUpdate::Services(Some(Arc::new(services)))]);
        let bytes = Vec::with_capacity(20_000);
        let service = service_mac(spec().id);
        Self { table, other: nodes[1], now, service, scratch: Scratch::new(), bytes }
    }

    /// Lets a frame go its way, in a buffer of its own.
    fn carry(&mut self, frame: &[u8], offload: Offload, fate: Fate) {
        self.bytes.clear();
        self.bytes.extend_from_slice(frame);
        let Self { table, other, now, service, scratch, bytes } = self;
        if matches!(fate, Fate::FromPeer) {
            let verdict = inbound(table, other, bytes, &mut ());
            assert_eq!(verdict, InboundVerdict::Deliver);
            let verdict = answer(table, &mut Frame::new(bytes, offload), *now, &mut ());
            assert_eq!(verdict, InboundVerdict::Deliver);
            assert_eq!(bytes[6..12], service.0, "not in the service's name");
            return;
        }
        let verdict = outbound(table, &mut Frame::new(bytes, offload), scratch, *now, &mut ());
        let expected = match fate {
            Fate::ToPeer => OutboundVerdict::Forward(&1),
            Fate::ToBridge | Fate::FromPeer => OutboundVerdict::Deliver,
        };
        assert_eq!(verdict, expected);
    }

    fn carry_all(&mut self, frames: &[(Vec<u8>, Fate)]) {
        frames.iter().for_each(|(frame, fate)| self.carry(frame, PLAIN, *fate));
    }
}

const PLAIN: Offload = Offload { gso: None, checksum: None };

fn service(vip: u8, key: RowKey) -> ServiceSpec {
    let port =
        |protocol| Port { protocol, port: VIP_PORT, backend_port: BACKEND_PORT, published: None };
    ServiceSpec {
        id: ServiceId::from_random([vip; 16]),
        vips: vec![address(true, vip), address(false, vip)],
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        backends: vec![Backend { key, weight: 1, takes_new: true, is_near: true }],
        choice: Choice::Maglev,
        sticky: Some(60),
        out: Vec::new(),
    }
}

fn address(ipv4: bool, n: u8) -> IpAddr {
    if ipv4 {
        IpAddr::from([10, 0, 0, n])
    } else {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)])
    }
}

fn frame(
    (from, to): (MacAddr, MacAddr),
    (source, destination): (SocketAddr, SocketAddr),
    flag: Flag,
    payload: &[u8],
) -> Vec<u8> {
    let eth = PacketBuilder::ethernet2(from.0, to.0);
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => eth.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => eth.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two IP versions in one packet"),
    };
    let ports = (source.port(), destination.port());
    let mut frame = Vec::new();
    let written = match flag {
        Flag::Datagram => ip.udp(ports.0, ports.1).write(&mut frame, payload),
        Flag::Syn => ip.tcp(ports.0, ports.1, 1, 100).syn().write(&mut frame, payload),
        Flag::SynAck => ip.tcp(ports.0, ports.1, 1, 100).syn().ack(2).write(&mut frame, payload),
        Flag::Ack => ip.tcp(ports.0, ports.1, 1, 100).ack(2).write(&mut frame, payload),
    };
    written.unwrap();
    frame
}

/// Client, VIP and backend of a flow.
fn ends(ipv4: bool, (vip, backend): (u8, u8), port: u16) -> [SocketAddr; 3] {
    [(CLIENT, port), (vip, VIP_PORT), (backend, BACKEND_PORT)]
        .map(|(n, port)| SocketAddr::new(address(ipv4, n), port))
}

/// A flow from its first frame on.
fn exchange(ipv4: bool, is_tcp: bool, is_here: bool, port: u16) -> Vec<(Vec<u8>, Fate)> {
    let of = if is_here { (VIP_HERE, HERE) } else { (VIP_THERE, THERE) };
    let [client, vip, backend] = ends(ipv4, of, port);
    let service = service_mac(spec().id);
    let asks = |flag| {
        let fate = if is_here { Fate::ToBridge } else { Fate::ToPeer };
        (frame((MAC_A, service), (client, vip), flag, b"asks"), fate)
    };
    // What a backend of this host answers, the bridge brings here.
    let answers = |flag| match is_here {
        true => (frame((MAC_C, service), (backend, client), flag, b"answers"), Fate::ToBridge),
        false => (frame((MAC_B, MAC_A), (backend, client), flag, b"answers"), Fate::FromPeer),
    };
    let [first, second, later] = match is_tcp {
        true => [Flag::Syn, Flag::SynAck, Flag::Ack],
        false => [Flag::Datagram; 3],
    };
    let more = (0..FRAMES).map(|at| if at % 2 == 0 { asks(later) } else { answers(later) });
    [asks(first), answers(second)].into_iter().chain(more).collect()
}

#[test]
fn a_frame_through_a_service_allocates_nothing() {
    let mut host = Host::new();
    for is_here in [false, true] {
        for (ipv4, is_tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let flows: Vec<_> =
                (0..FLOWS).map(|n| exchange(ipv4, is_tcp, is_here, 1000 + n)).collect();
            flows[..FIRST].iter().for_each(|flow| host.carry_all(flow));
            let asked = allocations(|| flows[FIRST..].iter().for_each(|flow| host.carry_all(flow)));
            assert_eq!(asked, 0, "IPv4 {ipv4}, TCP {is_tcp}, on the client's host {is_here}");
        }
    }
}

/// A super-frame of IPv4 as the kernel hands it over, and the packets that it is cut into.
fn large(macs: (MacAddr, MacAddr), ends: (SocketAddr, SocketAddr)) -> (Vec<u8>, Offload) {
    let mut bytes = frame(macs, ends, Flag::Ack, &[0x5a; 14_000]);
    let len = u16::try_from(bytes.len() - 34).unwrap();
    let pseudo = Sum::default().bytes(&bytes[26..34]).number(6).number(len).folded();
    bytes[50..52].copy_from_slice(&pseudo);
    let gso = Some(Gso { kind: GsoKind::Tcp4, segment_size: 1390, header_len: 54 });
    (bytes, Offload { gso, checksum: Some(PartialChecksum { start: 34, offset: 16 }) })
}

fn packets((bytes, offload): &(Vec<u8>, Offload)) -> Vec<Vec<u8>> {
    let mut bytes = bytes.clone();
    let whole = Frame::new(&mut bytes, *offload);
    let segments = Segments::of(&whole).unwrap();
    let cut = |at| {
        let mut packet = vec![0; segments.frame_len(at)];
        segments.write(at, &mut packet);
        packet
    };
    (0..segments.count()).map(cut).collect()
}

#[test]
fn a_super_frame_through_a_service_allocates_nothing() {
    let mut host = Host::new();
    host.carry_all(&exchange(true, true, false, 1000));
    let [client, vip, backend] = ends(true, (VIP_THERE, THERE), 1000);
    let sent = large((MAC_A, service_mac(spec().id)), (client, vip));
    let answered = packets(&large((MAC_B, MAC_A), (backend, client)));
    let mut arena = answered.concat();
    let mut coalescer = Coalescer::default();
    let accepts = Accepts { tcp4: true, tcp6: true, udp: true };
    let mut joined = 0;
    let mut carry = || {
        host.carry(&sent.0, sent.1, Fate::ToPeer);
        let mut at = 0;
        for packet in &answered {
            let range = at..at + packet.len();
            arena[range.clone()].copy_from_slice(packet);
            at = range.end;
            coalescer.push((), accepts, &arena, range, Headers::parse(packet).as_ref());
        }
        let mut merged = coalescer.frame_at(0, &arena).unwrap();
        joined = merged.count;
        let verdict = merged.rewrite(&mut arena, |it| answer(&host.table, it, host.now, &mut ()));
        assert_eq!(verdict, InboundVerdict::Deliver);
        assert_eq!(merged.headers()[6..12], host.service.0);
        coalescer.clear();
    };
    carry();
    let asked = allocations(|| (0..100).for_each(|_| carry()));
    assert_eq!((joined, asked), (11, 0));
}
