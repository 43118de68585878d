//! From believed claims to the rows and members of one network's snapshot. Pure.

use std::collections::{BTreeMap, BTreeSet};

use vxmesh_proto::{
    addr::{MacAddr, NetworkId, NodeId},
    object::Network,
    record::EndpointClaim,
    tables::{Gateway, NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate},
};

use super::admit::{Change, Claims, changes};

/// What turns a snapshot that holds the claims `before` into one that holds `after`, as the node
/// `me` sees it. `peer` gives the handle of another node; a claim without one must not be among
/// `after`.
#[must_use]
pub fn updates<P: Clone>(
    table: &NetworkTable<P>,
    before: &Claims,
    after: &Claims,
    me: NodeId,
    peer: impl Fn(NodeId) -> Option<P>,
) -> Vec<TableUpdate<P>> {
    let mut updates = Vec::new();
    for change in changes(before, after) {
        match change {
            Change::Down(key) => updates.push(TableUpdate::Remove(key)),
            Change::Up(key, claim) => {
                let place = if key.node == me {
                    Some(Place::Local)
                } else {
                    peer(key.node).map(Place::Remote)
                };
                let Some(place) = place else { continue };
                let (mac, ips, rank) = (claim.mac, claim.ips, claim.incarnation);
                updates.push(TableUpdate::Put(Row {
                    key,
                    mac,
                    ips,
                    rank,
                    router: claim.router,
                    place,
                }));
            }
        }
    }
    let others = after.iter().filter(|(key, _claim)| key.node != me);
    let (ingress, members): (Vec<_>, Vec<_>) =
        others.partition(|(_key, claim)| only_brings_clients(claim));
    let node = |(key, _claim): (&RowKey, &EndpointClaim)| key.node;
    let members = members.into_iter().map(node);
    let wanted: BTreeMap<NodeId, P> =
        members.filter_map(|node| Some((node, peer(node)?))).collect();
    let ingress: BTreeSet<NodeId> =
        ingress.into_iter().map(node).filter(|node| peer(*node).is_some()).collect();
    let ingress = ingress.into_iter().filter(|node| !wanted.contains_key(node)).collect();
    if *table.ingress_nodes() != ingress {
        updates.push(TableUpdate::IngressNodes(ingress));
    }
    for (node, _peer) in table.members() {
        if !wanted.contains_key(node) {
            updates.push(TableUpdate::RemoveMember(*node));
        }
    }
    for (node, peer) in wanted {
        if !table.is_flooded(&node) {
            updates.push(TableUpdate::PutMember(node, peer));
        }
    }
    updates
}

/// Whether a claim is that of a node which has no endpoint in the network, but leads clients of
/// published ports into it: what is for everybody there is not for it.
fn only_brings_clients(claim: &EndpointClaim) -> bool {
    claim.router && claim.ips.is_empty()
}

/// The change that brings a snapshot in step with its network, if that was extended.
#[must_use]
pub fn respecified<P: Clone>(
    table: &NetworkTable<P>,
    network: Option<&Network>,
) -> Option<TableUpdate<P>> {
    let spec = spec_of(table.spec().id, network?);
    (spec != *table.spec()).then_some(TableUpdate::Spec(spec))
}

/// What is the same on every node of a network.
#[must_use]
pub fn spec_of(id: NetworkId, network: &Network) -> NetworkSpec {
    NetworkSpec {
        id,
        vni: network.vni,
        mtu: network.mtu,
        gateway: Gateway {
            mac: gateway_mac(id),
            ips: network.subnets.iter().map(|subnet| subnet.gateway).collect(),
        },
        subnets: network.subnets.iter().map(|subnet| subnet.cidr).collect(),
        isolated: network.isolated,
        limits: network.limits,
    }
}

/// The anycast gateway's MAC: the same on every host, and outside of those that are bound to a
/// node.
#[must_use]
pub fn gateway_mac(network: NetworkId) -> MacAddr {
    let [a, b, c, d, ..] = *network.bytes();
    MacAddr([0x02, 0xfe, a, b, c, d])
}
