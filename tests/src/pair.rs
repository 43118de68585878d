//! Two hosts of one network, as their tables: what one sends, the other judges.

use std::{net::IpAddr, sync::LazyLock, time::Instant};

use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, Vni},
    tables::{Gateway, NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate},
};

/// MAC of the endpoint on the first host: 10.0.0.10 and fd00::a.
pub const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0a]);
/// MAC of the endpoint on the second host: 10.0.0.11 and fd00::b.
pub const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0b]);
/// MAC of the gateway: 10.0.0.1 and fd00::1.
pub const MAC_GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x01]);

/// The tables of two hosts; the handle of a peer is its number, 0 or 1.
#[derive(Debug)]
pub struct Pair {
    /// The hosts.
    pub nodes: [NodeId; 2],
    /// What each knows.
    pub tables: [NetworkTable<usize>; 2],
    /// When the tables were made.
    pub start: Instant,
}

/// One pair for all who only read.
pub static PAIR: LazyLock<Pair> = LazyLock::new(Pair::new);

impl Pair {
    /// Network 42 with MTU 1500, one endpoint on each host.
    #[must_use]
    pub fn new() -> Self {
        let nodes = [NodeId::of_public_key(b"a"), NodeId::of_public_key(b"b")];
        let start = Instant::now();
        let tables = [0, 1].map(|here| table(&nodes, here, 1 - here, start));
        Self { nodes, tables, start }
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

/// What the host `here` of the two knows; `peer` is its handle of the other one.
#[must_use]
pub fn table<P: Clone>(
    nodes: &[NodeId; 2],
    here: usize,
    peer: P,
    start: Instant,
) -> NetworkTable<P> {
    let mut updates = vec![];
    for (at, node) in nodes.iter().enumerate() {
        let place = if at == here { Place::Local } else { Place::Remote(peer.clone()) };
        updates.push(TableUpdate::Put(endpoint(*node, at, place)));
        if at != here {
            updates.push(TableUpdate::PutMember(*node, peer.clone()));
        }
    }
    NetworkTable::new(spec(), 0x5eed, start).apply(updates)
}

/// Network 42 of the pair.
#[must_use]
pub fn spec() -> NetworkSpec {
    let ips = vec![IpAddr::from([10, 0, 0, 1]), v6(1)];
    NetworkSpec {
        id: NetworkId::from_random([1; 16]),
        vni: Vni::MAX,
        mtu: 1500,
        gateway: Gateway { mac: MAC_GATEWAY, ips },
        subnets: ["10.0.0.0/24", "fd00::/64"].iter().filter_map(|net| net.parse().ok()).collect(),
        isolated: false,
        limits: Default::default(),
    }
}

/// The endpoint of the first (0) or the second host.
#[must_use]
pub fn endpoint<P>(node: NodeId, at: usize, place: Place<P>) -> Row<P> {
    let (mac, last, endpoint) =
        if at == 0 { (MAC_A, 10, [0xa; 16]) } else { (MAC_B, 11, [0xb; 16]) };
    Row {
        key: RowKey { node, endpoint: EndpointId::from_random(endpoint) },
        mac,
        ips: vec![IpAddr::from([10, 0, 0, last]), v6(last.into())],
        rank: 0,
        router: false,
        place,
    }
}

fn v6(last: u16) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])
}
