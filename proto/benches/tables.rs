//! `make bench-micro`: tables of up to 250,000 rows of 1,000 peers: a lookup, a change of one row,
//! the memory of all; and 1,000 networks.
//!
//! Divan's column `max alloc` of `fill` is the memory of the table, that of `change_one_row` what
//! one change copies. `cargo test` runs each once, with few rows.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use divan::{AllocProfiler, Bencher, black_box};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, Vni},
    tables::{Gateway, NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate},
};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const PEERS: u32 = 1000;
const SIZES: [u32; 4] = if cfg!(debug_assertions) {
    [10, 100, 1_000, 2_500]
} else {
    [1_000, 10_000, 100_000, 250_000]
};
const NETWORKS: u32 = if cfg!(debug_assertions) { 10 } else { 1000 };
const ROWS_OF_MANY: u32 = 250;
/// Lookups go through rows in steps of a prime, so that the processor cannot foresee them.
const STEP: u32 = 7919;
/// Lookups that are timed together: reading the clock costs as much as one of them.
const LOOKUPS: u32 = 1000;

type Table = NetworkTable<u32>;

fn main() {
    divan::main();
}

fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([2, 0x10, a, b, c, d])
}

fn ip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits((10 << 24) + 256 + number).into()
}

fn row(nodes: &[NodeId], number: u32, rank: u64) -> Row<u32> {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    let peer = number % PEERS;
    let node = nodes[usize::try_from(peer).unwrap_or_default()];
    Row {
        key: RowKey { node, endpoint: EndpointId::from_random(id) },
        mac: mac(number),
        ips: vec![ip(number)],
        rank,
        router: false,
        place: Place::Remote(peer),
    }
}

fn nodes() -> Vec<NodeId> {
    (0..PEERS).map(|number| NodeId::of_public_key(&number.to_be_bytes())).collect()
}

fn spec() -> NetworkSpec {
    NetworkSpec {
        id: NetworkId::from_random([1; 16]),
        vni: Vni::MAX,
        mtu: 1390,
        gateway: Gateway { mac: MacAddr([2, 0, 0, 0, 0, 1]), ips: vec![ip(1 << 23)] },
        subnets: "10.0.0.0/8".parse().into_iter().collect(),
        isolated: false,
        limits: Default::default(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; its value does not matter"
)]
fn table(nodes: &[NodeId], rows: u32) -> Table {
    let members = nodes.iter().zip(0..).map(|(node, peer)| TableUpdate::PutMember(*node, peer));
    let rows = (0..rows).map(|number| TableUpdate::Put(row(nodes, number, 0)));
    Table::new(spec(), 0x5eed, Instant::now()).apply(members.chain(rows))
}

#[divan::bench(args = SIZES, sample_count = 3, sample_size = 1)]
fn fill(bencher: Bencher<'_, '_>, rows: u32) {
    let nodes = nodes();
    bencher.bench_local(|| table(&nodes, rows));
}

/// What every frame needs: the Fdb's answer for a MAC.
#[divan::bench(args = SIZES, sample_size = LOOKUPS)]
fn look_up(bencher: Bencher<'_, '_>, rows: u32) {
    let table = table(&nodes(), rows);
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + STEP) % rows;
        black_box(table.fdb(mac(number))).is_some_and(|row| row.mac == mac(number))
    });
}

/// What the check of a frame's source needs: the NeighborTable's answer for an IP.
#[divan::bench(args = SIZES, sample_size = LOOKUPS)]
fn look_up_neighbor(bencher: Bencher<'_, '_>, rows: u32) {
    let table = table(&nodes(), rows);
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + STEP) % rows;
        black_box(table.neighbor(ip(number))).is_some_and(|row| row.mac == mac(number))
    });
}

/// A new snapshot with one row changed, as a worker gets it: it goes on with the one before until
/// then.
#[divan::bench(args = SIZES)]
fn change_one_row(bencher: Bencher<'_, '_>, rows: u32) {
    let nodes = nodes();
    let current = ArcSwap::from_pointee(table(&nodes, rows));
    let mut number = 0;
    let mut rank = 0;
    bencher.bench_local(|| {
        number = (number + STEP) % rows;
        rank += 1;
        let changed = TableUpdate::Put(row(&nodes, number, rank));
        current.store(Arc::new(current.load().apply([changed])));
    });
}

/// A thousand networks: one look at each in turn.
#[divan::bench(sample_size = LOOKUPS)]
fn look_up_in_many_networks(bencher: Bencher<'_, '_>) {
    let nodes = nodes();
    let tables: Vec<_> = (0..NETWORKS).map(|_| table(&nodes, ROWS_OF_MANY)).collect();
    let mut number = 0;
    bencher.bench_local(|| {
        number += STEP;
        let table = &tables[usize::try_from(number % NETWORKS).unwrap_or_default()];
        black_box(table.fdb(mac(number % ROWS_OF_MANY))).is_some()
    });
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn fill_many_networks(bencher: Bencher<'_, '_>) {
    let nodes = nodes();
    bencher.bench_local(|| (0..NETWORKS).map(|_| table(&nodes, ROWS_OF_MANY)).collect::<Vec<_>>());
}
