//! Which claims about endpoints are believed, and what changes from one set of them to the next.
//! Pure.
//!
//! A claim is believed when its owner is up and can be a peer, holds the block of every address of
//! it, and claims no MAC that is bound to another node. Of two believed claims to one address the
//! table decides (`vxmesh_proto::tables`); neither depends on the order of arrival, so all nodes
//! agree (I11, I12).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use vxmesh_gossip::directory::Directory;
use vxmesh_proto::{
    addr::{MacAddr, Name, NetworkId, NodeId},
    record::{Claim, EndpointClaim},
    tables::RowKey,
};

use super::addresses::Elsewhere;

/// The claims of one network that are believed.
pub type Claims = BTreeMap<RowKey, EndpointClaim>;

/// What a node claims that is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Another node holds the block of this address.
    Ip(IpAddr),
    /// This MAC is bound to another node.
    Mac(MacAddr),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Mac(mac) => write!(f, "{mac}"),
        }
    }
}

/// The claims to a network that are believed. One whose owner cannot be a peer yet is left out, not
/// remembered as applied: it comes up with the peer. With them, the claims to what is not their
/// owner's.
#[must_use]
pub fn believed(
    directory: &Directory,
    network: NetworkId,
    is_peer: impl Fn(NodeId) -> bool,
    holds: impl Fn(NodeId, IpAddr) -> bool,
) -> (Claims, Vec<(RowKey, Foreign)>) {
    let (mut believed, mut foreign) = (Claims::new(), Vec::new());
    for (owner, claim) in claims_to(directory, network) {
        if !directory.is_up(owner) || !is_peer(owner) {
            continue;
        }
        let key = RowKey { node: owner, endpoint: claim.id };
        match foreign_address(owner, claim, &holds) {
            Some(address) => foreign.push((key, address)),
            None => {
                believed.insert(key, claim.clone());
            }
        }
    }
    (believed, foreign)
}

/// The claims of members that are not there, of what is theirs: these are not up, or are no peers
/// yet.
#[must_use]
pub fn away(
    directory: &Directory,
    network: NetworkId,
    members: &BTreeSet<NodeId>,
    is_there: impl Fn(NodeId) -> bool,
    holds: impl Fn(NodeId, IpAddr) -> bool,
) -> Claims {
    let away = claims_to(directory, network)
        .filter(|(owner, _)| members.contains(owner) && !is_there(*owner))
        .filter(|(owner, claim)| foreign_address(*owner, claim, &holds).is_none());
    away.map(|(node, claim)| (RowKey { node, endpoint: claim.id }, claim.clone())).collect()
}

/// Addresses that nodes other than `me` claim in a network, whether they are up or not.
#[must_use]
pub fn claimed_elsewhere(directory: &Directory, network: NetworkId, me: NodeId) -> Elsewhere {
    let others = claims_to(directory, network).filter(|(owner, _claim)| *owner != me);
    others.flat_map(|(_owner, claim)| claim.ips.iter().copied()).collect()
}

/// The endpoint that has an address by its node's word, whether that is up or not.
#[must_use]
pub fn claimant(directory: &Directory, network: NetworkId, ip: IpAddr) -> Option<(NodeId, Name)> {
    let (node, claim) = claims_to(directory, network).find(|(_, claim)| claim.ips.contains(&ip))?;
    Some((node, claim.name.clone()))
}

/// All claims to a network that their owners signed, true or not.
pub fn claims_to(
    directory: &Directory,
    network: NetworkId,
) -> impl Iterator<Item = (NodeId, &EndpointClaim)> {
    directory.records_in(network).filter_map(|entry| match entry.record.claim() {
        Claim::Endpoint(claim) => Some((entry.record.owner(), claim)),
        Claim::Node(_) | Claim::Gone => None,
    })
}

/// An address of the claim that its owner may not claim, if there is one.
#[must_use]
pub fn foreign_address(
    owner: NodeId,
    claim: &EndpointClaim,
    holds: impl Fn(NodeId, IpAddr) -> bool,
) -> Option<Foreign> {
    if !claim.mac.may_be_of(owner) {
        return Some(Foreign::Mac(claim.mac));
    }
    claim.ips.iter().copied().find(|ip| !holds(owner, *ip)).map(Foreign::Ip)
}

/// One difference between two sets of claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The claim is gone.
    Down(RowKey),
    /// The claim is there, new or different.
    Up(RowKey, EndpointClaim),
}

/// What turns `before` into `after`.
#[must_use]
pub fn changes(before: &Claims, after: &Claims) -> Vec<Change> {
    let gone = before.keys().filter(|key| !after.contains_key(key)).map(|key| Change::Down(*key));
    let come = after
        .iter()
        .filter(|(key, claim)| before.get(key) != Some(claim))
        .map(|(key, claim)| Change::Up(*key, claim.clone()));
    gone.chain(come).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vxmesh_proto::addr::{EndpointId, MacAddr, NetworkId};

    use super::*;

    fn claim(id: u8, incarnation: u64) -> (RowKey, EndpointClaim) {
        let endpoint = EndpointId::from_random([id; 16]);
        let claim = EndpointClaim {
            id: endpoint,
            network: NetworkId::from_random([9; 16]),
            name: "x".parse().unwrap(),
            aliases: Vec::new(),
            mac: MacAddr([2, 0, 0, 0, 0, id]),
            ips: vec![IpAddr::from([10, 0, 0, id]), IpAddr::from([10, 0, 1, id])],
            incarnation,
            labels: BTreeMap::new(),
            router: false,
            health: BTreeMap::new(),
        };
        (RowKey { node: NodeId::of_public_key(&[id]), endpoint }, claim)
    }

    #[test]
    fn one_foreign_address_is_enough() {
        let (key, mut claim) = claim(7, 1);
        let foreign = IpAddr::from([10, 0, 1, 7]);
        let holds = |_owner, ip: IpAddr| ip != foreign;
        assert_eq!(foreign_address(key.node, &claim, holds), Some(Foreign::Ip(foreign)));
        assert_eq!(foreign_address(key.node, &claim, |_, _| true), None);
        claim.mac = MacAddr::of_node(key.node, 1);
        assert_eq!(foreign_address(key.node, &claim, |_, _| true), None);
        claim.mac = MacAddr::of_node(NodeId::of_public_key(&[8]), 1);
        let mac = Some(Foreign::Mac(claim.mac));
        assert_eq!(foreign_address(key.node, &claim, |_, _| true), mac);
    }

    proptest! {
        #[test]
        fn changes_turn_one_set_into_the_other(
            before in proptest::collection::btree_map(0u8..10, 0u64..3, 0..8),
            after in proptest::collection::btree_map(0u8..10, 0u64..3, 0..8),
        ) {
            let build = |seeds: BTreeMap<u8, u64>| -> Claims { seeds.into_iter().map(|(id, n)| claim(id, n)).collect() };
            let (mut state, target) = (build(before), build(after));
            for change in changes(&state.clone(), &target) {
                match change {
                    Change::Down(key) => prop_assert!(state.remove(&key).is_some()),
                    Change::Up(key, claim) => { state.insert(key, claim); }
                }
            }
            prop_assert_eq!(state, target);
        }
    }
}
