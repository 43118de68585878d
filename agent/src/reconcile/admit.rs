//! Which claims about endpoints become rows of a network's tables. Pure.
//!
//! A claim is admitted when every address of it lies in a block that its owner holds, and when no other admitted claim of
//! the network has its MAC or one of its addresses. Of two that clash the one with the lower (incarnation, owner, id)
//! stays: the order of arrival never matters, so all nodes that know the same claims admit the same rows (I11, I12).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use vxmesh_proto::addr::{EndpointId, MacAddr, Name, NodeId};

/// A claim about one endpoint of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The node that signed the claim and hosts the endpoint.
    pub owner: NodeId,
    /// Its name.
    pub name: Name,
    /// Other names of it.
    pub aliases: Vec<Name>,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Grows with each new life of the endpoint.
    pub incarnation: u64,
}

/// Why a claim has no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An address lies in no block of the owner.
    ForeignAddress(IpAddr),
    /// An older claim has the address.
    TakenAddress(IpAddr),
    /// An older claim has the MAC.
    TakenMac,
    /// A group address or all zeros is no endpoint's MAC.
    BadMac,
}

/// The admitted rows of one network, and what was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Admitted rows.
    pub rows: BTreeMap<EndpointId, Row>,
    /// Refused claims.
    pub refused: BTreeMap<EndpointId, Refusal>,
}

/// Decides all claims of one network; `holds` says whether a node holds the block of an address.
pub fn admit(
    claims: impl IntoIterator<Item = Row>,
    holds: impl Fn(NodeId, IpAddr) -> bool,
) -> Admission {
    let mut claims: Vec<Row> = claims.into_iter().collect();
    claims.sort_by(|a, b| {
        (a.incarnation, a.owner, a.endpoint).cmp(&(b.incarnation, b.owner, b.endpoint))
    });

    let mut admission = Admission::default();
    let mut macs = BTreeSet::new();
    let mut ips = BTreeSet::new();
    for claim in claims {
        match refusal(&claim, &holds, &macs, &ips) {
            Some(refusal) => {
                admission.refused.insert(claim.endpoint, refusal);
            }
            None => {
                macs.insert(claim.mac);
                ips.extend(claim.ips.iter().copied());
                admission.rows.insert(claim.endpoint, claim);
            }
        }
    }
    admission
}

fn refusal(
    claim: &Row,
    holds: impl Fn(NodeId, IpAddr) -> bool,
    macs: &BTreeSet<MacAddr>,
    ips: &BTreeSet<IpAddr>,
) -> Option<Refusal> {
    if !claim.mac.is_unicast() {
        return Some(Refusal::BadMac);
    }
    if macs.contains(&claim.mac) {
        return Some(Refusal::TakenMac);
    }
    if let Some(ip) = claim.ips.iter().find(|ip| !holds(claim.owner, **ip)) {
        return Some(Refusal::ForeignAddress(*ip));
    }
    claim.ips.iter().find(|ip| ips.contains(ip)).map(|ip| Refusal::TakenAddress(*ip))
}

/// One difference between two admissions of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row went away; it comes before any row that takes its place.
    Down(Row),
    /// The row is there, new or different.
    Up(Row),
}

/// What turns `before` into `after`, all that goes first, in the order of endpoint ids.
#[must_use]
pub fn changes(
    before: &BTreeMap<EndpointId, Row>,
    after: &BTreeMap<EndpointId, Row>,
) -> Vec<Change> {
    let gone = before
        .values()
        .filter(|row| after.get(&row.endpoint) != Some(row))
        .cloned()
        .map(Change::Down);
    let come = after
        .values()
        .filter(|row| before.get(&row.endpoint) != Some(row))
        .cloned()
        .map(Change::Up);
    gone.chain(come).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::of_public_key(&[n])
    }

    fn row(id: u8, owner: u8, mac: u8, ip: u8, incarnation: u64) -> Row {
        Row {
            endpoint: EndpointId::from_random([id; 16]),
            owner: node(owner),
            name: "x".parse().unwrap(),
            aliases: Vec::new(),
            mac: MacAddr([2, 0, 0, 0, 0, mac]),
            ips: vec![IpAddr::from([10, 0, owner, ip])],
            incarnation,
        }
    }

    /// Node n holds 10.0.n.0/24.
    fn holds(owner: NodeId, ip: IpAddr) -> bool {
        let IpAddr::V4(v4) = ip else { return false };
        node(v4.octets()[2]) == owner
    }

    #[test]
    fn refuses_what_the_owner_does_not_hold() {
        let mut claim = row(1, 1, 1, 1, 1);
        claim.ips.push(IpAddr::from([10, 0, 2, 9]));
        let admission = admit([claim], holds);
        assert!(admission.rows.is_empty());
        let refusal = admission.refused.values().next().unwrap();
        assert_eq!(*refusal, Refusal::ForeignAddress(IpAddr::from([10, 0, 2, 9])));
    }

    #[test]
    fn the_older_claim_keeps_mac_and_address() {
        let admission = admit([row(1, 1, 7, 1, 5), row(2, 2, 7, 1, 4), row(3, 2, 8, 1, 9)], holds);
        assert_eq!(
            admission.rows.keys().copied().collect::<Vec<_>>(),
            [EndpointId::from_random([2; 16])]
        );
        assert_eq!(admission.refused[&EndpointId::from_random([1; 16])], Refusal::TakenMac);
        assert_eq!(
            admission.refused[&EndpointId::from_random([3; 16])],
            Refusal::TakenAddress(IpAddr::from([10, 0, 2, 1]))
        );
    }

    #[test]
    fn a_group_mac_is_nobodys() {
        let mut claim = row(1, 1, 1, 1, 1);
        claim.mac = MacAddr::BROADCAST;
        assert_eq!(admit([claim], holds).refused.values().next(), Some(&Refusal::BadMac));
    }

    proptest! {
        /// I11 and I12: the order of claims does not matter, and no address is admitted twice.
        #[test]
        fn i12_no_two_rows_share_an_address_in_any_order(
            seeds in proptest::collection::vec((0u8..20, 1u8..4, 0u8..6, 0u8..6, 0u64..4), 0..24),
            swaps in proptest::collection::vec((0usize..24, 0usize..24), 0..24),
        ) {
            let mut claims: BTreeMap<EndpointId, Row> = BTreeMap::new();
            for (id, owner, mac, ip, incarnation) in seeds {
                let claim = row(id, owner, mac, ip, incarnation);
                claims.insert(claim.endpoint, claim);
            }
            let ordered: Vec<Row> = claims.into_values().collect();
            let mut shuffled = ordered.clone();
            for (a, b) in swaps {
                if a < shuffled.len() && b < shuffled.len() {
                    shuffled.swap(a, b);
                }
            }
            let admission = admit(ordered, holds);
            prop_assert_eq!(&admission, &admit(shuffled, holds));
            let ips: Vec<IpAddr> = admission.rows.values().flat_map(|row| row.ips.clone()).collect();
            let unique: BTreeSet<IpAddr> = ips.iter().copied().collect();
            prop_assert_eq!(ips.len(), unique.len());
        }

        #[test]
        fn changes_turn_one_set_into_the_other(
            before in proptest::collection::btree_map(0u8..10, 0u64..3, 0..8),
            after in proptest::collection::btree_map(0u8..10, 0u64..3, 0..8),
        ) {
            let build = |seeds: BTreeMap<u8, u64>| -> BTreeMap<EndpointId, Row> {
                seeds.into_iter().map(|(id, incarnation)| row(id, 1, id, id, incarnation)).map(|r| (r.endpoint, r)).collect()
            };
            let (mut state, target) = (build(before), build(after));
            for change in changes(&state.clone(), &target) {
                match change {
                    Change::Down(row) => prop_assert!(state.remove(&row.endpoint).is_some()),
                    Change::Up(row) => prop_assert!(state.insert(row.endpoint, row).is_none()),
                }
            }
            prop_assert_eq!(state, target);
        }
    }
}
