//! `make bench-micro`: what a frame of a service's flow costs beside any other: finding its flow
//! and noting the packet, beginning and forgetting a flow, a sweep of all and a walk over them, the
//! rewriting of a frame, its whole way through the steps, and making a service's table of choices.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use divan::{Bencher, black_box};
use etherparse::PacketBuilder;
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, ServiceId, Vni},
    frame::{Frame, Rewrite},
    lb::{
        Backend, Choice, Port, Protocol, Service, ServiceSpec, Services,
        flows::{Flow, FlowTable, Shape, Sign, State},
        service_mac,
    },
    path::{InboundVerdict, OutboundVerdict, Scratch, answer, outbound},
    tables::{Gateway, NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate},
};

const SIZES: [u32; 3] =
    if cfg!(debug_assertions) { [10, 100, 1000] } else { [1_000, 30_000, 100_000] };
/// Flows are asked for in steps of a prime, so that the processor cannot foresee them.
const STEP: u32 = 7919;
/// What is timed together: reading the clock costs as much as one of them.
const TOGETHER: u32 = 1000;

type Table = FlowTable<Vec<AtomicU64>>;

fn main() {
    divan::main();
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; its value does not matter"
)]
fn now() -> Instant {
    Instant::now()
}

fn flow(n: u32) -> Flow {
    let [_, vip, high, low] = n.to_be_bytes();
    let port = u16::from_be_bytes([high, low]);
    let client = u8::try_from(n % 16).unwrap_or_default();
    Flow {
        network: NetworkId::from_random([1; 16]),
        protocol: 6,
        client: SocketAddr::from(([10, 0, 0, client], port)),
        client_mac: MacAddr([2, 0, 0, 0, 0, client]),
        vip: SocketAddr::from(([10, 9, 9, vip], 80)),
        backend: SocketAddr::from(([10, 0, 1, vip], 8080)),
        endpoint: EndpointId::from_random([9; 16]),
        seen_port: port,
        sees_vip: false,
        is_relayed: false,
    }
}

/// A table with so many established flows; none if there is no memory for it.
fn table(count: u32, start: Instant) -> Option<Table> {
    let words = std::iter::repeat_with(AtomicU64::default).take(Shape::FULL.words());
    let table = FlowTable::new(words.collect(), Shape::FULL, 7, start)?;
    for n in 0..count {
        let found = table.insert(&flow(n), 0, start).ok()?;
        let answer = table.find(&flow(n).reverse())?;
        table.note(&answer, Sign::SynAck, start)?;
        table.note(&found, Sign::Segment, start)?;
    }
    Some(table)
}

#[divan::bench(args = SIZES)]
fn find_and_note(bencher: Bencher<'_, '_>, count: u32) {
    let start = now();
    let Some(table) = table(count, start) else { return };
    let tuples: Vec<_> = (0..count)
        .map(|n| if n % 2 == 0 { flow(n).forward() } else { flow(n).reverse() })
        .collect();
    let mut n = 0u32;
    bencher.counter(TOGETHER).bench_local(|| {
        for _ in 0..TOGETHER {
            n = (n + STEP) % count;
            let found = table.find(&tuples[n as usize]);
            black_box(found.and_then(|found| table.note(&found, Sign::Segment, start)));
        }
    });
}

#[divan::bench]
fn find_the_same(bencher: Bencher<'_, '_>) {
    let start = now();
    let Some(table) = table(1000, start) else { return };
    let tuple = flow(7).forward();
    bencher.counter(TOGETHER).bench_local(|| {
        for _ in 0..TOGETHER {
            let found = table.find(black_box(&tuple));
            black_box(found.and_then(|found| table.note(&found, Sign::Segment, start)));
        }
    });
}

#[divan::bench(args = SIZES)]
fn find_none(bencher: Bencher<'_, '_>, count: u32) {
    let Some(table) = table(count, now()) else { return };
    let tuples: Vec<_> = (0..count)
        .map(|n| {
            let mut flow = flow(n);
            flow.vip.set_port(81);
            flow.forward()
        })
        .collect();
    let mut n = 0u32;
    bencher.counter(TOGETHER).bench_local(|| {
        for _ in 0..TOGETHER {
            n = (n + STEP) % count;
            black_box(table.find(&tuples[n as usize]));
        }
    });
}

#[divan::bench(args = SIZES)]
fn begin_and_forget(bencher: Bencher<'_, '_>, count: u32) {
    let start = now();
    let Some(table) = table(count, start) else { return };
    let mut n = 0u32;
    bencher.counter(TOGETHER).bench_local(|| {
        for _ in 0..TOGETHER {
            n = (n + 1) % 4096;
            if let Ok(found) = table.insert(&flow(200_000 + n), 0, start) {
                black_box(table.remove(&found));
            }
        }
    });
}

#[divan::bench]
fn sweep_a_full_table(bencher: Bencher<'_, '_>) {
    let start = now();
    let Some(table) = table(100_000, start) else { return };
    bencher.bench_local(|| table.sweep(start + Duration::from_secs(1)));
}

#[divan::bench]
fn walk_over_a_full_table(bencher: Bencher<'_, '_>) {
    let Some(table) = table(100_000, now()) else { return };
    bencher.bench_local(|| table.iter().filter(|found| found.state < State::Closed).count());
}

/// A network of a client here and a backend elsewhere, with a service of that.
fn served(start: Instant) -> Option<NetworkTable<u32>> {
    let subnets = "10.0.0.0/24".parse().into_iter().collect();
    let gateway = Gateway { mac: mac(1), ips: vec![[10, 0, 0, 1].into()] };
    let spec = NetworkSpec {
        id: NetworkId::from_random([1; 16]),
        vni: Vni::MAX,
        mtu: 1500,
        gateway,
        subnets,
        isolated: false,
        limits: Default::default(),
    };
    let row = |n: u8, place| Row {
        key: RowKey {
            node: NodeId::of_public_key(&[n]),
            endpoint: EndpointId::from_random([n; 16]),
        },
        mac: mac(n),
        ips: vec![[10, 0, 0, n].into()],
        rank: 0,
        router: false,
        place,
    };
    let (client, backend) = (row(10, Place::Local), row(11, Place::Remote(11)));
    let service = ServiceSpec {
        id: ServiceId::from_random([5; 16]),
        vips: vec![[10, 0, 0, 200].into()],
        ports: vec![Port {
            protocol: Protocol::Udp,
            port: 80,
            backend_port: 8080,
            published: None,
        }],
        backends: vec![Backend { key: backend.key, weight: 1, takes_new: true, is_near: true }],
        choice: Choice::Maglev,
        sticky: None,
        out: Vec::new(),
    };
    let words: Vec<_> =
        std::iter::repeat_with(AtomicU64::default).take(Shape::FULL.words()).collect();
    let flows = Arc::new(FlowTable::new(&*words.leak(), Shape::FULL, 7, start)?);
    let services = Services::new(flows, (1, true), [Arc::new(Service::new(service, None))]);
    Some(NetworkTable::new(spec, 7, start).apply([
        TableUpdate::PutMember(backend.key.node, 11),
        TableUpdate::Put(client),
        TableUpdate::Put(backend),
        TableUpdate::Services(Some(Arc::new(services))),
    ]))
}

const fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// A datagram of 64 bytes.
fn datagram(macs: [MacAddr; 2], from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(macs[0].0, macs[1].0)
        .ipv4([10, 0, 0, from.0], [10, 0, 0, to.0], 64)
        .udp(from.1, to.1);
    // A vector takes all that is written to it.
    let _written = builder.write(&mut frame, &[7; 64]);
    frame
}

/// The client's datagrams to a service, or the answers to them, at the client's node.
#[divan::bench(args = [true, false])]
fn carry(bencher: Bencher<'_, '_>, is_to_backend: bool) {
    let start = now();
    let Some(table) = served(start) else { return };
    let vip_mac = service_mac(NetworkId::from_random([1; 16]));
    let asked = datagram([mac(10), vip_mac], (10, 4000), (200, 80));
    let answered = datagram([mac(11), mac(10)], (11, 8080), (10, 4000));
    let (mut bytes, mut scratch) = (asked.clone(), Scratch::new());
    let mut carry = |is_to_backend: bool| {
        if is_to_backend {
            bytes.copy_from_slice(&asked);
            let frame = &mut Frame::plain(&mut bytes);
            let verdict = outbound(&table, frame, &mut scratch, start, &mut ());
            assert!(matches!(verdict, OutboundVerdict::Forward(11)));
        } else {
            bytes.copy_from_slice(&answered);
            let verdict = answer(&table, &mut Frame::plain(&mut bytes), start, &mut ());
            assert_eq!(verdict, InboundVerdict::Deliver);
        }
    };
    carry(true);
    carry(false);
    bencher.counter(TOGETHER).bench_local(|| {
        for _ in 0..TOGETHER {
            carry(is_to_backend);
        }
    });
}

#[divan::bench(args = [true, false])]
fn rewrite(bencher: Bencher<'_, '_>, ipv4: bool) {
    let mut frame = vec![0; 14];
    let ip: &[u8] = if ipv4 { &[0x45, 0, 0, 104] } else { &[0x60, 0, 0, 0, 0, 84, 6, 64] };
    frame.extend(ip);
    frame.resize(if ipv4 { 118 } else { 138 }, 7);
    frame[12..14].copy_from_slice(if ipv4 { &[8, 0] } else { &[0x86, 0xdd] });
    if ipv4 {
        frame[20..24].copy_from_slice(&[0, 0, 64, 6]);
    }
    let address = |n: u8| -> SocketAddr {
        if ipv4 {
            SocketAddr::from(([10, 0, 0, n], 80))
        } else {
            SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, n.into()], 80))
        }
    };
    let to = [1, 2].map(|n| Rewrite {
        destination: Some(address(n)),
        destination_mac: Some(MacAddr([2, 0, 0, 0, 0, n])),
        ..Rewrite::default()
    });
    let mut frame = Frame::plain(&mut frame);
    let mut n = 0usize;
    bencher.counter(TOGETHER).bench_local(|| {
        for _ in 0..TOGETHER {
            n ^= 1;
            assert!(black_box(frame.rewrite(&to[n])).is_ok());
        }
    });
}

#[divan::bench(args = [5, 20, 128, 1000])]
fn make_a_service(bencher: Bencher<'_, '_>, count: u16) {
    let backends = (0..count).map(|n| {
        let [high, low] = n.to_be_bytes();
        let mut id = [7; 16];
        (id[0], id[1]) = (high, low);
        let node = NodeId::of_public_key(&[low]);
        let key = RowKey { node, endpoint: EndpointId::from_random(id) };
        Backend { key, weight: 1, takes_new: true, is_near: true }
    });
    let spec = ServiceSpec {
        id: ServiceId::from_random([5; 16]),
        vips: Vec::new(),
        ports: Vec::new(),
        backends: backends.collect(),
        choice: Choice::Maglev,
        sticky: None,
        out: Vec::new(),
    };
    bencher.bench_local(|| Service::new(black_box(spec.clone()), None));
}
