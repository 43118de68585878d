//! No address twice (I12), whatever is lost, late, cut off or restarted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::{
    addr::NodeId,
    limits::{ADDRESS_QUARANTINE, BLOCKS_AT_ONCE},
    tables::tests::now,
};

pub(super) fn node(n: u8) -> NodeId {
    NodeId::of_public_key(&[n])
}

pub(super) fn subnet(cidr: &str) -> Subnet {
    Subnet::new(cidr.parse().unwrap(), None, []).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn transfer(block: &str, from: u8, to: u8, epoch: u64) -> Transfer {
    Transfer { block: net(block), from: node(from), to: node(to), epoch }
}

pub(super) fn blocks(ownership: &Ownership) -> Vec<(String, NodeId, u64)> {
    ownership.blocks().map(|b| (b.cidr.to_string(), b.owner, b.epoch)).collect()
}

fn pool(cidr: &str, me: u8) -> Pool {
    let subnet = subnet(cidr);
    let ownership = Ownership::new(&subnet, node(0), []);
    Pool::new(subnet, ownership, node(me))
}

pub(super) const NOWHERE: &BTreeSet<IpAddr> = &BTreeSet::new();

/// A member signs a transfer of what it never had to a holder, before and after that gives back.
#[test]
fn a_holder_gives_back_to_who_gave_and_to_nobody_else() {
    let holder = 9;
    let mut ownership = Ownership::new(&subnet("10.0.0.0/24"), node(0), []);
    let vip = "10.0.0.7/32";
    let forged: Vec<_> = (1..8).map(|thief| transfer(vip, thief, holder, 1)).collect();
    ownership.extend(forged);
    ownership.extend([transfer(vip, 0, holder, 1)]);
    let at = |ownership: &Ownership| ownership.block_at(ip("10.0.0.7")).map(|b| (b.owner, b.epoch));
    assert_eq!(at(&ownership), Some((node(holder), 1)));
    // What its giver signs on counts from then on, and not before.
    ownership.extend([transfer(vip, 0, 3, 3)]);
    assert_eq!(at(&ownership), Some((node(holder), 1)));
    assert!(ownership.give_back([node(holder)]) && !ownership.give_back([node(holder)]));
    assert_eq!(at(&ownership), Some((node(3), 3)));
    ownership.extend((1..8).map(|thief| transfer(vip, thief, holder, 3)));
    assert_eq!(at(&ownership), Some((node(3), 3)));
    let mut other = Ownership::new(&subnet("10.0.0.0/24"), node(0), []);
    other.give_back([node(holder)]);
    other.extend([transfer(vip, 0, holder, 1)]);
    assert_eq!(at(&other), Some((node(0), 2)), "in any order");
}

#[test]
fn a_chain_of_transfers() {
    let mut ownership = Ownership::new(&subnet("10.0.0.0/24"), node(0), []);
    assert_eq!(blocks(&ownership), [("10.0.0.0/24".into(), node(0), 0)]);
    let given = transfer("10.0.0.128/25", 0, 1, 1);
    let on = transfer("10.0.0.192/26", 1, 2, 2);
    let back = transfer("10.0.0.192/26", 2, 0, 3);
    assert!(ownership.extend([on]), "one that does not chain yet is kept");
    assert_eq!(blocks(&ownership), [("10.0.0.0/24".into(), node(0), 0)]);
    assert!(ownership.extend([given]));
    assert_eq!(
        blocks(&ownership),
        [
            ("10.0.0.0/25".into(), node(0), 0),
            ("10.0.0.128/26".into(), node(1), 1),
            ("10.0.0.192/26".into(), node(2), 2),
        ]
    );
    assert!(ownership.extend([back]));
    assert!(!ownership.extend([given, on, back]), "what is known changes nothing");
    assert_eq!(
        ownership.block_at(ip("10.0.0.200")).map(|b| (b.owner, b.epoch)),
        Some((node(0), 3))
    );
    assert_eq!(ownership.block_at(ip("10.0.0.130")).map(|b| b.owner), Some(node(1)));
    assert_eq!(ownership.block_at(ip("10.0.1.0")), None);
    assert_eq!(ownership.block_at(ip("::a00:0")), None);
}

#[test]
fn who_does_not_own_cannot_give() {
    let mut ownership = Ownership::new(&subnet("10.0.0.0/24"), node(0), []);
    ownership.extend([
        transfer("10.0.0.0/25", 1, 2, 1),
        transfer("10.0.0.0/25", 0, 2, 2),
        transfer("10.0.0.0/25", 0, 2, 0),
        transfer("10.0.0.0/25", 0, 0, 1),
        transfer("10.0.0.0/16", 0, 2, 1),
        transfer("10.0.0.1/25", 0, 2, 1),
        transfer("10.1.0.0/25", 0, 2, 1),
        transfer("fd00::/64", 0, 2, 1),
        transfer("0.0.0.0/0", 0, 2, 1),
        transfer("::/0", 0, 2, 1),
        transfer("10.0.0.0/25", 0, 2, u64::MAX),
    ]);
    assert_eq!(blocks(&ownership), [("10.0.0.0/24".into(), node(0), 0)]);
}

#[test]
fn contradictions_have_one_winner() {
    let ownership = |transfers: &[Transfer]| {
        let mut ownership = Ownership::new(&subnet("10.0.0.0/24"), node(0), []);
        for transfer in transfers {
            ownership.extend([*transfer]);
        }
        blocks(&ownership)
    };
    let large = transfer("10.0.0.128/25", 0, 1, 1);
    let small = transfer("10.0.0.128/26", 0, 2, 1);
    let expected =
        [("10.0.0.0/25".to_owned(), node(0), 0), ("10.0.0.128/25".to_owned(), node(1), 1)];
    assert_eq!(ownership(&[large, small]), expected, "the smaller is void as a whole");
    assert_eq!(ownership(&[small, large]), expected);

    let equal = transfer("10.0.0.128/25", 0, 2, 1);
    let winner = node(1).min(node(2));
    for order in [[large, equal], [equal, large]] {
        assert_eq!(ownership(&order)[1].1, winner);
    }
}

#[test]
fn the_first_split_is_equal_and_leaves_a_reserve() {
    for (cidr, nodes, each) in [
        ("10.0.0.0/24", 1, 0),
        ("10.0.0.0/24", 2, 96),
        ("10.0.0.0/24", 3, 64),
        ("10.0.0.0/24", 4, 48),
        ("10.0.0.0/24", 5, 32),
        ("10.0.0.0/24", 48, 4),
        ("10.0.0.0/24", 49, 0),
        ("10.0.0.0/30", 2, 0),
        ("10.0.0.0/8", 100, 98_304),
        ("fd00::/64", 3, 1 << 62),
        ("fd00::/126", 2, 0),
    ] {
        let subnet = subnet(cidr);
        let initial = first_split(&subnet, node(0), (0..nodes).map(node));
        let ownership = Ownership::new(&subnet, node(0), initial.clone());
        let mut sizes: BTreeMap<NodeId, u128> = BTreeMap::new();
        for (owner, cidr) in ownership.cidrs() {
            *sizes.entry(owner).or_default() += cidr.size();
        }
        let creators = sizes.remove(&node(0)).unwrap();
        let total: u128 = creators + sizes.values().sum::<u128>();
        assert_eq!(total, subnet.block().size(), "{cidr}");
        let expected = if each == 0 { 0 } else { usize::from(nodes) - 1 };
        assert_eq!(sizes.len(), expected, "{cidr} for {nodes}");
        assert!(sizes.values().all(|size| *size == each), "{cidr} for {nodes}: {sizes:?}");
        assert!(creators >= total / 4, "{cidr}: {creators} of {total}");
        assert!(initial.len() <= 3 * usize::from(nodes), "few blocks: {}", initial.len());
        let gateway = ownership.block_at(subnet.gateway()).unwrap();
        assert_eq!(gateway.owner, node(0));
    }
}

#[test]
fn initial_blocks_may_go_on() {
    let subnet = subnet("10.0.0.0/24");
    let initial = first_split(&subnet, node(0), [node(1), node(2)]);
    assert_eq!(initial.len(), 2);
    let mut ownership = Ownership::new(&subnet, node(0), initial.clone());
    let (block, owner) = initial[0];
    let next = Transfer { block, from: owner, to: node(7), epoch: 1 };
    ownership.extend([next]);
    assert_eq!(ownership.block_at(block.addr()).map(|b| (b.owner, b.epoch)), Some((node(7), 1)));
    let bad = Ownership::new(
        &subnet,
        node(0),
        [(net("10.0.0.3/25"), node(1)), (net("fd00::/65"), node(1)), (net("10.9.0.0/24"), node(1))],
    );
    assert_eq!(blocks(&bad), [("10.0.0.0/24".into(), node(0), 0)]);
}

#[test]
fn a_block_splits_in_halves() {
    let block = Block { cidr: net("10.0.0.0/24"), owner: node(0), epoch: 4 };
    let (kept, given) = block.split(node(1)).unwrap();
    assert_eq!(kept, Block { cidr: net("10.0.0.0/25"), ..block });
    assert_eq!(given, transfer("10.0.0.128/25", 0, 1, 5));
    assert_eq!(Block { cidr: net("10.0.0.1/32"), ..block }.split(node(1)), None);
    assert_eq!(Block { epoch: u64::MAX, ..block }.split(node(1)), None);
}

#[test]
fn addresses_come_in_turn_and_rest_when_released() {
    let start = now();
    let mut pool = pool("10.0.0.0/29", 0);
    let take = |pool: &mut Pool, at| pool.allocate(NOWHERE, at).map(|ip| ip.to_string());
    assert_eq!(take(&mut pool, start).unwrap(), "10.0.0.2", "not the network, not the gateway");
    assert_eq!(take(&mut pool, start).unwrap(), "10.0.0.3");
    pool.release(ip("10.0.0.2"), start);
    pool.release(ip("10.0.0.2"), start + Duration::from_secs(30));
    for expected in ["10.0.0.4", "10.0.0.5", "10.0.0.6"] {
        assert_eq!(take(&mut pool, start).unwrap(), expected);
    }
    let almost = start + ADDRESS_QUARANTINE - Duration::from_millis(1);
    let error = take(&mut pool, almost).unwrap_err().to_string();
    assert_eq!(error, "every address of 10.0.0.0/29 is in use: detach endpoints or add a subnet");
    assert_eq!(take(&mut pool, start + ADDRESS_QUARANTINE).unwrap(), "10.0.0.2");
}

#[test]
fn static_requests_say_what_is_wrong() {
    let mut pool = pool("10.0.0.0/24", 0);
    pool.extend([transfer("10.0.0.128/25", 0, 1, 1)]);
    let seen = BTreeSet::from([ip("10.0.0.9")]);
    assert_eq!(pool.allocate_static(ip("10.0.0.7"), &seen, now()), Ok(()));
    for (address, text) in [
        ("10.0.0.7", "10.0.0.7 is in use"),
        ("10.0.0.9", "10.0.0.9 is in use"),
        ("10.0.0.1", "10.0.0.1 cannot be given to an endpoint"),
        ("10.0.0.0", "10.0.0.0 cannot be given"),
        ("10.0.0.255", "10.0.0.255 cannot be given"),
        ("10.0.1.7", "10.0.1.7 is not in 10.0.0.0/24"),
        ("fd00::7", "fd00::7 is not in 10.0.0.0/24"),
    ] {
        let error = pool.allocate_static(ip(address), &seen, now()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let owner = node(1);
    assert_eq!(
        pool.allocate_static(ip("10.0.0.200"), NOWHERE, now()),
        Err(AllocateError::NotOurs { ip: ip("10.0.0.200"), owner })
    );
    assert_eq!(pool.allocate(NOWHERE, now()).unwrap(), ip("10.0.0.2"));
}

#[test]
fn an_address_that_rests_is_given_to_nobody_and_says_how_long() {
    let start = now();
    let mut pool = pool("10.0.0.0/29", 0);
    let wanted = ip("10.0.0.5");
    pool.allocate_static(wanted, NOWHERE, start).unwrap();
    pool.release(wanted, start);
    let later = start + Duration::from_millis(17_500);
    for error in [
        pool.allocate_static(wanted, NOWHERE, later).unwrap_err(),
        pool.give_address(wanted, node(1), NOWHERE, later).unwrap_err(),
    ] {
        let text = error.to_string();
        assert_eq!(text, "10.0.0.5 was released a moment ago and rests for 43s more");
    }
    // Who had it last may have it again.
    assert_eq!(pool.end_rest(wanted), Some(start + ADDRESS_QUARANTINE));
    assert_eq!(pool.allocate_static(wanted, NOWHERE, later), Ok(()));
    // A restart forgets nothing that the disk remembers; what is in use again does not rest.
    let mut restarted = self::pool("10.0.0.0/29", 0);
    restarted.adopt(ip("10.0.0.4"));
    restarted.rest(wanted, start + ADDRESS_QUARANTINE);
    restarted.rest(ip("10.0.0.4"), start + ADDRESS_QUARANTINE);
    let given: Vec<_> = (0..5).filter_map(|_| restarted.allocate(NOWHERE, later).ok()).collect();
    assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.6"].map(ip));
    assert_eq!(restarted.allocate_static(wanted, NOWHERE, start + ADDRESS_QUARANTINE), Ok(()));
    restarted.put_back(wanted);
    assert_eq!(restarted.allocate(NOWHERE, start + ADDRESS_QUARANTINE), Ok(wanted));
}

#[test]
fn what_the_tables_show_is_skipped() {
    let mut pool = pool("10.0.0.0/24", 0);
    let seen: BTreeSet<_> = (2..9).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    assert_eq!(pool.allocate(&seen, now()), Ok(ip("10.0.0.9")));
}

#[test]
fn exhaustion_names_who_holds_space() {
    let mut pool = pool("10.0.0.0/24", 0);
    pool.extend([
        transfer("10.0.0.128/25", 0, 1, 1),
        transfer("10.0.0.0/26", 0, 2, 1),
        transfer("10.0.0.64/26", 0, 3, 1),
    ]);
    let seen: BTreeSet<_> = (64..128).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    let error = pool.allocate(&seen, now()).unwrap_err();
    let holders = vec![Holder { node: node(1), free: 127 }, Holder { node: node(2), free: 62 }];
    assert_eq!(error, AllocateError::Exhausted { cidr: net("10.0.0.0/24"), holders });
    let text = error.to_string();
    assert!(text.contains(&format!("{} (127 free), {} (62 free)", node(1), node(2))), "{text}");
    assert!(text.contains("vxmesh node rm"), "{text}");
}

#[test]
fn addresses_are_chosen_in_the_range_and_given_elsewhere_by_name() {
    let subnet = subnet("10.0.0.0/24").with_range(net("10.0.0.64/28")).unwrap();
    let split = first_split(&subnet, node(0), [node(1)]);
    assert!(split.iter().all(|(block, _)| subnet.range().contains(block)), "{split:?}");
    assert!(!split.is_empty(), "the other gets a part of what is chosen from");
    let ownership = Ownership::new(&subnet, node(0), split);
    let pools = [0, 1].map(|me| Pool::new(subnet.clone(), ownership.clone(), node(me)));
    let mut chosen = BTreeSet::new();
    for mut pool in pools {
        assert!(pool.has_block());
        while let Ok(ip) = pool.allocate(NOWHERE, now()) {
            assert!(subnet.range().contains(&ip) && chosen.insert(ip), "{ip}");
        }
    }
    assert_eq!(chosen.len(), 16, "all of the range");
    let mut creator = Pool::new(subnet.clone(), Ownership::new(&subnet, node(0), []), node(0));
    assert_eq!(creator.allocate_static(ip("10.0.0.200"), NOWHERE, now()), Ok(()));
    let given = creator.give(node(1), Need::Now, NOWHERE, now()).unwrap();
    let helps = |given: &Transfer| subnet.range().contains(&given.block);
    assert!(given.iter().all(helps), "only this helps who asks: {given:?}");
    assert_eq!(creator.usage(NOWHERE, now()).blocks.iter().map(|b| b.free).sum::<u128>(), 16);
    // A block beside the range is none to choose from.
    let mut other = Pool::new(subnet.clone(), Ownership::new(&subnet, node(0), []), node(1));
    other.extend([transfer("10.0.0.128/25", 0, 1, 1)]);
    assert!(!other.has_block() && other.allocate(NOWHERE, now()).is_err());
    assert_eq!(other.holders(NOWHERE), [Holder { node: node(0), free: 16 }]);
}

#[test]
fn usage_counts_every_address_once() {
    let start = now();
    let mut pool = pool("10.0.0.0/24", 0);
    pool.extend([transfer("10.0.0.128/25", 0, 1, 1), transfer("10.0.0.64/26", 0, 2, 1)]);
    for _ in 0..3 {
        pool.allocate(NOWHERE, start).unwrap();
    }
    pool.release(ip("10.0.0.2"), start);
    // Another node's own, and one that this node gave to an endpoint of another's block.
    let elsewhere = BTreeSet::from([ip("10.0.0.200"), ip("10.0.0.65"), ip("10.9.0.1")]);
    let usage = pool.usage(&elsewhere, start + Duration::from_secs(20));
    let rows: Vec<_> =
        usage.blocks.iter().map(|b| (b.block.cidr.to_string(), b.used, b.free)).collect();
    // Without network, gateway, broadcast and what rests.
    let expected =
        [("10.0.0.0/26", 2, 64 - 2 - 3), ("10.0.0.64/26", 1, 63), ("10.0.0.128/25", 1, 126)];
    assert_eq!(rows, expected.map(|(cidr, used, free)| (cidr.to_owned(), used, free)));
    assert_eq!(usage.resting, [(ip("10.0.0.2"), Duration::from_secs(40))]);
    assert_eq!(pool.usage(&elsewhere, start + ADDRESS_QUARANTINE).resting, []);
}

/// A block whose giver left a moment ago, one that lies in it, and one of this node's own.
#[test]
fn what_rests_as_a_whole_is_not_free_and_says_how_long() {
    let start = now();
    let mut pool = pool("10.0.0.0/24", 0);
    pool.extend([transfer("10.0.0.0/25", 0, 1, 1), transfer("10.0.0.0/25", 1, 0, 2)]);
    let until = |seconds| start + Duration::from_secs(seconds);
    pool.rest_block(net("10.0.0.64/26"), until(50));
    pool.rest_block(net("10.0.0.0/25"), until(40));
    pool.rest_block(net("10.0.0.0/25"), until(30));
    let elsewhere = BTreeSet::from([ip("10.0.0.65")]);
    let mut free = |seconds| {
        let usage = pool.usage(&elsewhere, until(seconds));
        let free: Vec<_> = usage.blocks.iter().map(|b| (b.used, b.free)).collect();
        let rests = |it: &HandedBlock| (it.cidr.to_string(), it.resting, it.left.as_secs());
        (free, usage.handed.iter().map(rests).collect::<Vec<_>>())
    };
    // Without network, gateway, broadcast and what is used elsewhere.
    let own = (0, 127);
    assert_eq!(free(10), (vec![(1, 0), own], vec![("10.0.0.0/25".to_owned(), 125, 30)]));
    assert_eq!(free(40), (vec![(1, 62), own], vec![("10.0.0.64/26".to_owned(), 63, 10)]));
    assert_eq!(free(50), (vec![(1, 125), own], vec![]));
    let mut heir = self::pool("10.0.0.0/24", 0);
    heir.rest_block(net("10.0.0.0/24"), until(40));
    let refused = heir.give(node(1), Need::Now, NOWHERE, until(10)).unwrap_err();
    assert_eq!(refused, Withheld::Resting(Duration::from_secs(30)));
    assert!(refused.to_string().contains("rests for 30s more"), "{refused}");
    assert!(heir.give(node(1), Need::Now, NOWHERE, until(40)).is_ok());
}

#[test]
fn wide_v6_blocks_are_not_walked() {
    let mut pool = pool("fd00::/64", 0);
    let start = now();
    for n in 2..2000u128 {
        assert_eq!(
            pool.allocate(NOWHERE, start).unwrap(),
            IpAddr::from((0xfd_u128 << 120 | n).to_be_bytes())
        );
    }
    let given = pool.give(node(1), Need::InAdvance, NOWHERE, start).unwrap();
    let blocks: Vec<_> = given.iter().map(|given| given.block).collect();
    assert_eq!(blocks, [net("fd00:0:0:0:c000::/66")], "half of the largest free half");
    assert_eq!(pool.holders(NOWHERE), [Holder { node: node(1), free: 1 << 62 }]);
    assert_eq!(pool.allocate_static(ip("fd00::7fff:0:0:1"), NOWHERE, now()), Ok(()));
}

#[test]
fn giving_spares_what_is_in_use_or_rests() {
    let start = now();
    let mut pool = pool("10.0.0.0/24", 0);
    pool.allocate_static(ip("10.0.0.200"), NOWHERE, now()).unwrap();
    pool.allocate_static(ip("10.0.0.100"), NOWHERE, now()).unwrap();
    pool.release(ip("10.0.0.100"), start);
    // Free: 0-63, 64-95, 112-127, 128-191, …: the largest are 0-63 and 128-191.
    let given = pool.give(node(1), Need::InAdvance, NOWHERE, start).unwrap();
    assert_eq!(given, [transfer("10.0.0.128/26", 0, 1, 1)]);
    assert_eq!(pool.ownership().block_at(ip("10.0.0.160")).map(|b| b.owner), Some(node(1)));
    assert!(pool.give(node(0), Need::Now, NOWHERE, start).is_err(), "not to itself");
    assert_eq!(pool.strays().count(), 0);
}

#[test]
fn the_last_address_is_given_to_who_needs_one_and_has_none() {
    let mut pool = pool("10.0.0.0/29", 0);
    let mut used = BTreeSet::new();
    while let Ok(gift) = pool.give(node(1), Need::InAdvance, &used, now()) {
        for given in &gift {
            let all = (0..8).map(|n| IpAddr::from([10, 0, 0, n]));
            let hosts =
                all.filter(|ip| given.block.contains(ip) && pool.subnet().is_assignable(*ip));
            let before = used.len();
            used.extend(hosts);
            assert!(used.len() > before, "a worthless gift: {given:?}");
        }
    }
    assert_eq!(used.len(), 4, "one is left");
    assert_eq!(pool.give(node(2), Need::InAdvance, &used, now()), Err(Withheld::None));
    let unused = BTreeSet::new();
    assert_eq!(pool.give(node(1), Need::Now, &unused, now()), Err(Withheld::Enough));
    let last = pool.give(node(2), Need::Now, &used, now()).unwrap();
    assert_eq!(last.len(), 1, "{last:?}");
    assert_eq!(pool.give(node(2), Need::Now, &used, now()), Err(Withheld::None));
    assert!(pool.allocate(&used, now()).is_err());
}

#[test]
fn free_addresses_in_pieces_are_given_in_several_blocks() {
    let mut pool = pool("10.0.0.0/27", 0);
    let odd = (0..16).map(|n| IpAddr::from([10, 0, 0, 2 * n + 1])).collect();
    // Free are the even ones but the first.
    let gift = pool.give(node(1), Need::Now, &odd, now()).unwrap();
    let hosts: Vec<_> = gift.iter().map(|given| given.block.to_string()).collect();
    let expected: Vec<_> = (9..16).rev().map(|n| format!("10.0.0.{}/32", 2 * n)).collect();
    assert_eq!(hosts, expected, "most of a half");
}

#[test]
fn addresses_that_look_like_a_network_or_a_broadcast_are_given_only_by_name() {
    let mut pool = pool("10.0.0.0/22", 0);
    let mut given = BTreeSet::new();
    while let Ok(ip) = pool.allocate(NOWHERE, now()) {
        given.insert(ip);
    }
    assert_eq!(given.len(), 1024 - 8 - 1, "all but four times two, and the gateway");
    for odd in ["10.0.0.255", "10.0.1.0", "10.0.3.0"] {
        assert!(!given.contains(&ip(odd)), "{odd}");
        assert_eq!(
            pool.allocate_static(ip(odd), NOWHERE, now()),
            Ok(()),
            "{odd} is a host all the same"
        );
    }
    let reserved = pool.allocate_static(ip("10.0.3.255"), NOWHERE, now());
    assert!(matches!(reserved, Err(AllocateError::Reserved { .. })), "this is the broadcast");
    let mut wide = self::pool("fd00::/64", 0);
    let v6: Vec<_> = (0..260).map(|_| wide.allocate(NOWHERE, now()).unwrap()).collect();
    assert!(v6.contains(&ip("fd00::ff")) && v6.contains(&ip("fd00::100")), "IPv6 has no such ends");
}

/// A block of which nothing can be given out unasked is no help: it must not count as space.
#[test]
fn what_is_not_given_unasked_is_not_free() {
    let mut giver = pool("10.0.0.0/22", 0);
    giver.extend(["10.0.0.0/24", "10.0.2.0/23"].map(|block| transfer(block, 0, 2, 1)));
    giver.extend([transfer("10.0.1.128/25", 0, 2, 1), transfer("10.0.1.2/31", 0, 2, 1)]);
    giver.extend(
        (2..7).map(|bits| transfer(&format!("10.0.1.{}/{}", 1 << bits, 32 - bits), 0, 2, 1)),
    );
    assert_eq!(
        giver.give(node(1), Need::InAdvance, NOWHERE, now()).ok(),
        None,
        "10.0.1.1 stays, 10.0.1.0 is none"
    );
    let asker = Pool::new(subnet("10.0.0.0/22"), giver.ownership().clone(), node(1));
    let free = asker.holders(NOWHERE).into_iter().find(|holder| holder.node == node(0));
    assert_eq!(free.map(|holder| holder.free), Some(1));
}

/// A hostile member asks again and again, uses nothing, or says that it uses all it got.
#[test]
fn who_has_enough_gets_nothing_and_nobody_asks_without_pause() {
    let mut giver = pool("10.0.0.0/16", 0);
    let start = now();
    assert!(giver.give(node(1), Need::Now, NOWHERE, start).is_ok());
    let hour = |n: u64| start + Duration::from_secs(n * 3600);
    for n in 1..50 {
        assert_eq!(giver.give(node(1), Need::Now, NOWHERE, hour(n)), Err(Withheld::Enough));
    }
    assert!(giver.give(node(2), Need::Now, NOWHERE, hour(50)).is_ok(), "the others are served");
    // All that it holds is in use, it says.
    let mut claimed = BTreeSet::new();
    let mut answers = Vec::new();
    for _ in 0..2 * BLOCKS_AT_ONCE {
        let blocks = giver.ownership().blocks().filter(|block| block.owner == node(1));
        claimed.extend(blocks.flat_map(|block| block.cidr.hosts()));
        answers.push(giver.give(node(1), Need::Now, &claimed, hour(51)).map(|_gift| ()));
    }
    let refused = answers.iter().position(|answer| *answer == Err(Withheld::TooOften));
    assert!(refused.is_some_and(|asked| asked <= BLOCKS_AT_ONCE as usize), "{answers:?}");
    assert!(giver.allocate(&claimed, hour(51)).is_ok(), "the giver has addresses left");
}

#[test]
fn a_lost_contradiction_shows_strays() {
    let mut receiver = pool("10.0.0.0/24", 2);
    receiver.extend([transfer("10.0.0.128/26", 0, 2, 1)]);
    let mine = receiver.allocate(NOWHERE, now()).unwrap();
    assert_eq!(receiver.strays().count(), 0);
    receiver.extend([transfer("10.0.0.128/25", 0, 1, 1)]);
    assert_eq!(receiver.strays().collect::<Vec<_>>(), [mine]);
}

proptest! {
    /// A hostile member takes what it gets, uses some of it and asks on.
    #[test]
    fn no_member_drains_a_pool(
        asks in prop::collection::vec((any::<bool>(), 0u8..4), 1..80),
        cidr in prop::sample::select(vec!["10.0.0.0/16", "10.0.0.0/24", "10.0.0.0/28"]),
    ) {
        let mut giver = pool(cidr, 0);
        let (mut time, mut claimed) = (now(), BTreeSet::new());
        let free = |pool: &Pool, claimed: &BTreeSet<IpAddr>, n: u8| {
            let viewer = Pool::new(pool.subnet().clone(), pool.ownership().clone(), node(9));
            let holders = viewer.holders(claimed);
            holders.into_iter().find(|holder| holder.node == node(n)).map_or(0, |holder| holder.free)
        };
        for (ask, uses) in asks {
            time += Duration::from_secs(10);
            let (before, had) = (free(&giver, &claimed, 0), free(&giver, &claimed, 1));
            if ask && giver.give(node(1), Need::Now, &claimed, time).is_ok() {
                let (mine, theirs) = (free(&giver, &claimed, 0), free(&giver, &claimed, 1));
                prop_assert!(mine >= before / 2 && had < before, "{} of {}", mine, before);
                prop_assert!(4 * mine + 4 >= mine + theirs, "{} here, {} there", mine, theirs);
            }
            let blocks: Vec<_> = giver.ownership().blocks().filter(|b| b.owner == node(1)).collect();
            let hosts = blocks.iter().flat_map(|block| block.cidr.hosts());
            let unused: Vec<_> = hosts.filter(|ip| !claimed.contains(ip)).take(uses.into()).collect();
            claimed.extend(unused);
        }
        // What it may drain is what it uses, or says that it uses.
        prop_assert!(giver.allocate(&claimed, time).is_ok() || free(&giver, &claimed, 1) <= 1);
    }

    /// Any set of transfers, honest or not, in any order and in any portions, gives the same
    /// blocks, and they tile the subnet.
    #[test]
    fn order_does_not_matter(
        transfers in prop::collection::vec((0u8..8, 29u8..=32, 0u8..3, 0u8..3, 0u64..4), 0..40),
        order in any::<prop::sample::Index>(),
        portion in 1usize..7,
    ) {
        let transfers: Vec<_> = transfers
            .into_iter()
            .map(|(host, len, from, to, epoch)| {
                let block = IpNet::new(IpAddr::from([10, 0, 0, host]), len).unwrap().trunc();
                Transfer { block, from: node(from), to: node(to), epoch }
            })
            .collect();
        let subnet = subnet("10.0.0.0/29");
        let mut whole = Ownership::new(&subnet, node(0), []);
        whole.extend(transfers.iter().copied());
        let mut turned = transfers;
        if !turned.is_empty() {
            let middle = order.index(turned.len());
            turned.rotate_left(middle);
            turned[..].reverse();
        }
        let mut parts = Ownership::new(&subnet, node(0), []);
        for part in turned.chunks(portion) {
            parts.extend(part.iter().copied());
        }
        prop_assert_eq!(&whole, &parts);
        let mut next = 0u128;
        for (i, (_, cidr)) in whole.cidrs().enumerate() {
            if i > 0 {
                prop_assert_eq!(cidr.first, next);
            }
            next = cidr.last() + 1;
        }
        prop_assert_eq!(whole.cidrs().map(|(_, cidr)| cidr.size()).sum::<u128>(), 8);
    }

    /// The pool against a naive list of 256 addresses.
    #[test]
    fn allocation_is_the_next_free_address(steps in prop::collection::vec(prop_oneof![Just(None), (2u8..40).prop_map(Some)], 0..200)) {
        let mut pool = pool("10.0.0.0/24", 0);
        let mut free = [true; 256];
        for taken in [0, 1, 255] {
            free[taken] = false;
        }
        let mut cursor = 0;
        let start = now();
        for step in steps {
            match step {
                None => {
                    let expected = (cursor..256).chain(0..cursor).find(|n| free[*n]);
                    let got = pool.allocate(NOWHERE, start).ok();
                    prop_assert_eq!(got, expected.map(|n| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()])));
                    if let Some(n) = expected {
                        free[n] = false;
                        cursor = n + 1;
                    }
                }
                Some(n) => {
                    let ip = IpAddr::from([10, 0, 0, n]);
                    prop_assert_eq!(pool.allocate_static(ip, NOWHERE, now()).is_ok(), free[usize::from(n)]);
                    free[usize::from(n)] = false;
                }
            }
        }
    }
}

#[test]
fn what_is_reclaimed_stands_against_what_a_removed_node_signs_later() {
    let all = ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"].map(net);
    let [given, kept, late] = all;
    let t = |block, from, to, epoch| Transfer { block, from: node(from), to: node(to), epoch };
    let half = net("10.0.0.0/25");
    let honest = [t(half, 0, 1, 1), t(given, 1, 2, 2)];
    let reclaim = t(kept, 1, 0, 2);
    // Larger than what was reclaimed, the same to a smaller node, a part of it, and of what is not
    // its own.
    let lies =
        [t(half, 1, 3, 2), t(kept, 1, 3, 2), t(net("10.0.0.64/28"), 1, 3, 2), t(late, 1, 3, 2)];
    let fresh = || Ownership::new(&subnet("10.0.0.0/24"), node(0), []);
    let mut first = fresh();
    first.extend(honest);
    first.reclaim([reclaim]);
    let expected = blocks(&first);
    first.extend(lies);
    assert_eq!(blocks(&first), expected);
    let mut second = fresh();
    second.extend(lies);
    second.extend(honest);
    second.reclaim([reclaim]);
    assert_eq!(blocks(&second), expected);
    let owner = |ip: &str| first.block_at(ip.parse().unwrap()).map(|block| block.owner);
    assert_eq!(owner("10.0.0.70"), Some(node(0)));
    assert_eq!(owner("10.0.0.7"), Some(node(2)), "what it gave in time is its receiver's");
}
