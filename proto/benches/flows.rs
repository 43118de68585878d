//! `make bench-micro`: what a frame of a service's flow costs beside any other: finding its flow
//! and noting the packet, beginning and forgetting a flow, a sweep of all, the rewriting of a
//! frame, and making a service's table of choices.

use std::{
    net::SocketAddr,
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use divan::{Bencher, black_box};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, ServiceId},
    frame::{Frame, Rewrite},
    lb::{
        Backend, Choice, Service, ServiceSpec,
        flows::{Flow, FlowTable, Shape, Sign},
    },
    tables::RowKey,
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
        out: Vec::new(),
    };
    bencher.bench_local(|| Service::new(black_box(spec.clone()), None));
}
