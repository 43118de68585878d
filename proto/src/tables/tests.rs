//! Tables against a naive model, in every order.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use proptest::prelude::*;

use super::*;
use crate::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, Vni},
    object::NetworkLimits,
    wire::ipv6::link_local_of,
};

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; its value does not matter"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::of_public_key(&[n])
}

pub(crate) fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

pub(crate) fn key(node_number: u8, endpoint: u8) -> RowKey {
    RowKey { node: node(node_number), endpoint: EndpointId::from_random([endpoint; 16]) }
}

/// 10.0.0.0/24 and fd00::/64 with the gateway 02:…:fe at .1 and ::1.
pub(crate) fn spec() -> NetworkSpec {
    NetworkSpec {
        id: NetworkId::from_random([1; 16]),
        vni: Vni::new(42).unwrap(),
        mtu: 1390,
        gateway: Gateway { mac: mac(0xfe), ips: vec![ip("10.0.0.1"), ip("fd00::1")] },
        subnets: vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        isolated: false,
        limits: Default::default(),
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Endpoint `n` of a node: MAC 02:…:n, 10.0.0.n and fd00::n.
pub(crate) fn row(node_number: u8, n: u8, place: Place<u32>) -> Row<u32> {
    let ips = vec![IpAddr::from([10, 0, 0, n]), ip(&format!("fd00::{n:x}"))];
    Row { key: key(node_number, n), mac: mac(n), ips, rank: 0, router: false, place }
}

fn empty() -> NetworkTable<u32> {
    NetworkTable::new(spec(), 7, now())
}

#[test]
fn lookups_of_one_row() {
    let table = empty().apply([TableUpdate::Put(row(1, 5, Place::Remote(9)))]);
    let found = table.fdb(mac(5)).unwrap();
    assert_eq!(found.place, Place::Remote(9));
    for address in [ip("10.0.0.5"), ip("fd00::5"), IpAddr::V6(link_local_of(mac(5)))] {
        assert_eq!(table.neighbor(address), Some(found), "{address}");
        assert!(table.owns(found, address));
    }
    assert_eq!(table.neighbor(ip("10.0.0.6")), None);
    assert_eq!(table.fdb(mac(6)), None);
    assert_eq!(table.row(&key(1, 5)), Some(found));
    assert_eq!(empty().fdb(mac(5)), None, "a table is replaced, not edited (I2)");
}

#[test]
fn a_change_of_one_row_copies_one_shard_of_each_index() {
    let numbered = |n: u16, rank| {
        let [high, low] = n.to_be_bytes();
        let mut row = row(1, 1, Place::Remote(9));
        let mut endpoint = [0; 16];
        endpoint[..2].copy_from_slice(&[high, low]);
        row.key.endpoint = EndpointId::from_random(endpoint);
        (row.mac, row.rank) = (MacAddr([2, 0, 0, 1, high, low]), rank);
        row.ips = vec![IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 1, n])];
        TableUpdate::Put(row)
    };
    let before = empty().apply((0..20_000).map(|n| numbered(n, 0)));
    assert_eq!(before.clone().copied_since(&before), [0, 0, 0]);
    for n in [0, 7, 19_999] {
        assert_eq!(before.apply([numbered(n, 1)]).copied_since(&before), [1, 1, 1]);
    }
    let fewer = before.apply([TableUpdate::Remove(before.rows().next().unwrap().key)]);
    assert_eq!(fewer.copied_since(&before), [1, 1, 1]);
}

/// The order of claims by the rule as tables/mod.rs words it.
fn precedence(row: &Row<u32>, address: &[u8]) -> (u64, NodeId, u64, EndpointId) {
    let claim = [b"vxmesh lot 1\0", address, row.key.node.as_str().as_bytes()].concat();
    let hash = ring::digest::digest(&ring::digest::SHA256, &claim);
    let lot = u64::from_be_bytes(*hash.as_ref().first_chunk().unwrap());
    (lot, row.key.node, row.rank, row.key.endpoint)
}

#[test]
fn of_one_nodes_claims_the_smaller_rank_has_the_address_and_the_next_one_inherits() {
    let claim = |endpoint: u8, rank| {
        let mut claim = row(1, 5, Place::Remote(1));
        claim.key = key(1, endpoint);
        claim.rank = rank;
        TableUpdate::Put(claim)
    };
    let table = empty().apply([claim(3, 7), claim(1, 9), claim(2, 8)]);
    let owner = |table: &NetworkTable<u32>| table.neighbor(ip("10.0.0.5")).map(|row| row.key);
    assert_eq!(owner(&table), Some(key(1, 3)));
    let loser = table.row(&key(1, 2)).unwrap();
    assert!(!table.owns(loser, ip("10.0.0.5")), "who lost the address does not own it");
    let table = table.apply([TableUpdate::Remove(key(1, 3))]);
    assert_eq!(owner(&table), Some(key(1, 2)));
    assert_eq!(table.fdb(mac(5)).map(|row| row.key), Some(key(1, 2)));
    let table = table.apply([TableUpdate::Remove(key(1, 2)), TableUpdate::Remove(key(1, 1))]);
    assert_eq!(owner(&table), None);
    assert_eq!(table.rows().count(), 0);
}

/// A hostile member claims a MAC with the rank of its choice.
#[test]
fn no_rank_takes_another_nodes_mac() {
    let claim = |owner: u8, mac, rank| {
        let mut claim = row(owner, owner, Place::Remote(u32::from(owner)));
        (claim.mac, claim.rank) = (mac, rank);
        TableUpdate::Put(claim)
    };
    let owner = |table: &NetworkTable<u32>, mac| table.fdb(mac).map(|row| row.key.node);
    for (victim, thief) in [(2, 3), (3, 2)] {
        let bound = MacAddr::of_node(node(victim), 7);
        let table = empty().apply([claim(thief, bound, 0), claim(victim, bound, 9)]);
        assert_eq!(owner(&table, bound), Some(node(victim)));
        let rival = table.mac_rival(&key(thief, thief)).map(|row| row.key.node);
        assert_eq!(rival, Some(node(victim)), "the conflict shows");
        assert_eq!(table.mac_rival(&key(victim, victim)), None);
        let table = table.apply([TableUpdate::Remove(key(victim, victim))]);
        assert_eq!(owner(&table, bound), None, "nobody inherits a bound MAC");
        // One that is bound to none: whoever has it, has it whatever the ranks are.
        let ranks = [(0, 9), (5, 5), (9, 0)].map(|(one, other)| {
            owner(&empty().apply([claim(thief, mac(9), one), claim(victim, mac(9), other)]), mac(9))
        });
        assert!(ranks.windows(2).all(|pair| pair[0] == pair[1]), "{ranks:?}");
    }
}

#[test]
fn no_node_wins_every_lot() {
    let wins = (0..64)
        .filter(|n| {
            let claim = |owner: u8| {
                let mut claim = row(owner, owner, Place::Remote(0));
                claim.mac = mac(*n);
                TableUpdate::Put(claim)
            };
            let table = empty().apply([claim(1), claim(2)]);
            table.fdb(mac(*n)).is_some_and(|row| row.key.node == node(1))
        })
        .count();
    assert!((16..=48).contains(&wins), "{wins} of 64");
}

#[test]
fn impossible_claims_have_nothing() {
    let mut greedy = row(1, 5, Place::Remote(1));
    greedy.mac = mac(0xfe);
    let other_link_local = IpAddr::V6(link_local_of(mac(9)));
    let free_link_local = ip("fe80::77");
    greedy.ips = vec![
        ip("10.0.0.1"),
        ip("10.0.0.0"),
        ip("10.0.0.255"),
        ip("10.0.1.5"),
        ip("0.0.0.0"),
        ip("224.0.0.1"),
        ip("fd00::1"),
        ip("fd00::"),
        ip("ff02::1"),
        ip("::"),
        other_link_local,
        free_link_local,
    ];
    let table = empty().apply([TableUpdate::Put(greedy.clone())]);
    assert_eq!(table.fdb(mac(0xfe)), None, "the gateway's MAC");
    for address in &greedy.ips {
        let expected = *address == free_link_local;
        assert_eq!(table.neighbor(*address).is_some(), expected, "{address}");
    }
    for group in [MacAddr::BROADCAST, MacAddr([0; 6])] {
        greedy.mac = group;
        assert_eq!(empty().apply([TableUpdate::Put(greedy.clone())]).fdb(group), None);
    }
}

#[test]
fn a_claim_outside_of_the_subnets_counts_once_they_grow() {
    let mut early = row(1, 5, Place::Remote(1));
    early.ips = vec![ip("10.0.1.5")];
    let table = empty().apply([TableUpdate::Put(early)]);
    assert_eq!(table.neighbor(ip("10.0.1.5")), None);
    let mut grown = spec();
    grown.subnets.push("10.0.1.0/24".parse().unwrap());
    let table = table.apply([TableUpdate::Spec(grown)]);
    assert!(table.neighbor(ip("10.0.1.5")).is_some());
}

#[test]
fn members_are_sorted_and_replaced() {
    let table = empty().apply([
        TableUpdate::PutMember(node(1), 1),
        TableUpdate::PutMember(node(2), 2),
        TableUpdate::PutMember(node(3), 3),
        TableUpdate::PutMember(node(2), 20),
        TableUpdate::RemoveMember(node(3)),
        TableUpdate::RemoveMember(node(4)),
    ]);
    assert!(table.members().is_sorted_by_key(|(id, _)| *id));
    assert!(table.is_member(&node(1)) && table.is_member(&node(2)) && !table.is_member(&node(3)));
    assert!(table.members().contains(&(node(2), 20)));
    assert_eq!(table.members().len(), 2);
}

#[test]
fn a_node_that_only_brings_clients_may_send_and_gets_no_broadcast() {
    let ingress = TableUpdate::IngressNodes([node(3)].into());
    let table = empty().apply([TableUpdate::PutMember(node(1), 1), ingress]);
    assert!(table.is_member(&node(3)) && !table.is_flooded(&node(3)));
    assert_eq!(table.members(), [(node(1), 1)]);
    // It takes part in the network now, and then no more.
    let table =
        table.apply([TableUpdate::PutMember(node(3), 3), TableUpdate::IngressNodes([].into())]);
    assert!(table.is_flooded(&node(3)));
    let table = table.apply([TableUpdate::RemoveMember(node(3))]);
    assert!(!table.is_member(&node(3)));
}

#[test]
fn replacing_a_row_does_not_refill_its_flood_limit() {
    let put = || TableUpdate::Put(row(1, 5, Place::Local));
    let start = now();
    let mut table = NetworkTable::new(spec(), 7, start).apply([put()]);
    let mut admitted = 0;
    for _ in 0..300 {
        let sender = table.fdb(mac(5)).unwrap();
        admitted += u32::from(table.admit_flood(sender, 1, start));
        table = table.apply([put()]);
    }
    assert_eq!(admitted, crate::limits::FLOOD_ENDPOINT_BURST);
}

/// The last two are bound, to nodes 1 and 2.
fn any_mac(n: u8) -> MacAddr {
    match n {
        4 | 5 => MacAddr::of_node(node(n - 3), 1),
        _ => mac(n),
    }
}

fn any_row() -> impl Strategy<Value = Row<u32>> {
    let ips = prop::collection::vec(1u8..6, 0..4);
    (1u8..4, 1u8..4, 1u8..6, ips, 0u64..3, any::<bool>()).prop_map(
        |(owner, endpoint, mac_number, ips, rank, local)| Row {
            key: key(owner, endpoint),
            mac: any_mac(mac_number),
            ips: ips.into_iter().map(|n| IpAddr::from([10, 0, 0, n])).collect(),
            rank,
            router: false,
            place: if local { Place::Local } else { Place::Remote(u32::from(owner)) },
        },
    )
}

fn any_update() -> impl Strategy<Value = TableUpdate<u32>> {
    prop_oneof![
        4 => any_row().prop_map(TableUpdate::Put),
        2 => (1u8..4, 1u8..4).prop_map(|(n, e)| TableUpdate::Remove(key(n, e))),
        1 => (1u8..5, any::<u32>()).prop_map(|(n, p)| TableUpdate::PutMember(node(n), p)),
        1 => (1u8..5).prop_map(|n| TableUpdate::RemoveMember(node(n))),
        1 => any::<bool>().prop_map(|small| {
            let mut spec = spec();
            if small {
                spec.subnets = vec!["10.0.0.0/30".parse().unwrap()];
                spec.gateway.mac = mac(1);
            }
            TableUpdate::Spec(spec)
        }),
    ]
}

/// All that a table answers, as values that can be compared.
fn answers(table: &NetworkTable<u32>) -> impl PartialEq + std::fmt::Debug + use<> {
    let macs: Vec<_> = (0..6).map(|n| table.fdb(any_mac(n)).cloned()).collect();
    let ips: Vec<_> =
        (0..7).map(|n| table.neighbor(IpAddr::from([10, 0, 0, n])).cloned()).collect();
    let rows: BTreeMap<_, _> = table.rows().map(|row| (row.key, row.clone())).collect();
    (macs, ips, rows, table.members().to_vec(), table.spec().clone())
}

proptest! {
    #[test]
    fn incremental_equals_rebuilt(updates in prop::collection::vec(any_update(), 0..60), step in 1usize..9) {
        let mut incremental = empty();
        for chunk in updates.chunks(step) {
            incremental = incremental.apply(chunk.to_vec());
        }
        let rebuilt = empty().apply(
            std::iter::once(TableUpdate::Spec(incremental.spec().clone()))
                .chain(incremental.members().iter().map(|(id, peer)| TableUpdate::PutMember(*id, *peer)))
                .chain(incremental.rows().cloned().map(TableUpdate::Put)),
        );
        prop_assert_eq!(answers(&incremental), answers(&rebuilt));
    }

    #[test]
    fn the_order_of_claims_does_not_matter(
        rows in prop::collection::vec(any_row(), 0..9),
        order in prop::collection::vec(any::<prop::sample::Index>(), 9),
    ) {
        // One claim per key: later ones of the same key are later words of the same node.
        let claims: BTreeMap<_, _> = rows.into_iter().map(|row| (row.key, row)).collect();
        let mut shuffled: Vec<_> = claims.values().cloned().collect();
        for (i, index) in order.iter().enumerate() {
            if !shuffled.is_empty() {
                let last = shuffled.len();
                shuffled.swap(i % last, index.index(last));
            }
        }
        let sorted = empty().apply(claims.into_values().map(TableUpdate::Put));
        let shuffled = empty().apply(shuffled.into_iter().map(TableUpdate::Put));
        prop_assert_eq!(answers(&sorted), answers(&shuffled));
    }

    #[test]
    fn winners_are_those_of_a_naive_search(updates in prop::collection::vec(any_update(), 0..40)) {
        let table = empty().apply(updates);
        let rows: Vec<_> = table.rows().cloned().collect();
        for n in 0..7 {
            let address = IpAddr::from([10, 0, 0, n]);
            let spec = table.spec();
            let inside = spec.subnets.iter().any(|net| {
                net.contains(&address) && address != net.network() && address != net.broadcast()
            }) && !spec.gateway.ips.contains(&address);
            let expected = rows
                .iter()
                .filter(|row| inside && row.ips.contains(&address))
                .min_by_key(|row| precedence(row, &[10, 0, 0, n]));
            prop_assert_eq!(table.neighbor(address), expected);
            let expected = rows
                .iter()
                .filter(|row| row.mac == any_mac(n) && row.mac != spec.gateway.mac)
                .filter(|row| n < 4 || row.key.node == node(n.wrapping_sub(3)))
                .min_by_key(|row| precedence(row, &any_mac(n).0));
            prop_assert_eq!(table.fdb(any_mac(n)), expected);
        }
    }
}

#[test]
fn a_network_may_have_other_limits_of_multicast() {
    let start = now();
    let limits = NetworkLimits { multicast: Some(6000), ..NetworkLimits::default() };
    assert_eq!((limits.multicast_of_endpoint(), limits.multicast_of_host()), (6000, 6000));
    let table = NetworkTable::new(NetworkSpec { limits, ..spec() }, 7, start)
        .apply([TableUpdate::Put(row(0, 5, Place::Local))]);
    let of = table.fdb(mac(5)).unwrap();
    let admitted = (0..5000).filter(|_| table.admit_flood(of, 1, start)).count();
    assert_eq!(admitted, 1200, "a fifth of the host's");
    // Changed while an endpoint is there, they hold from then on.
    let few = NetworkLimits { multicast: Some(9), ..NetworkLimits::default() };
    let changed = table.apply([TableUpdate::Spec(NetworkSpec { limits: few, ..spec() })]);
    let of = changed.fdb(mac(5)).unwrap();
    assert_eq!((0..5000).filter(|_| changed.admit_flood(of, 1, start)).count(), 3);
    // Nothing else that changes fills a bucket again.
    let limits = NetworkLimits { dns: Some(9), ..few };
    let wider = NetworkSpec { limits, mtu: 1400, ..spec() };
    let changed = changed.apply([TableUpdate::Spec(wider)]);
    assert!(!changed.admit_flood(changed.fdb(mac(5)).unwrap(), 1, start));
}
