//! The reference: what a node knew of a VIP at one moment, by its objects and records alone,
//! without the product's own steps from these to the data path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use vxmesh::reconcile::admit::claims_to;
use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    object::{self, holder},
    record::EndpointClaim,
    tables::RowKey,
};

use crate::life::{Life, VIP_PORT};

/// How a backend stands with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It gets new connections.
    Healthy,
    /// It has the weight 0.
    Idle,
    /// It is drained, and its time is not over.
    Draining,
    /// Its check has not passed.
    Failing,
    /// Another has its address or MAC.
    Hidden,
    /// The same of one that would get no new connections either.
    Lost,
    /// Its node is not up.
    Away,
}

/// What a node knows of the service that has a VIP.
pub(super) struct Known {
    pub(super) backends: BTreeMap<EndpointId, (RowKey, Standing)>,
    pub(super) is_settled: bool,
    /// The protocols whose port is published.
    published: BTreeSet<u8>,
}

impl Known {
    /// Whether clients from outside may use the port of a protocol.
    pub(super) fn publishes(&self, protocol: u8) -> bool {
        self.published.contains(&protocol)
    }

    pub(super) fn standing(&self, endpoint: EndpointId) -> Option<Standing> {
        self.backends.get(&endpoint).map(|(_, standing)| *standing)
    }

    /// Whether an established connection to it goes on.
    pub(super) fn has(&self, endpoint: EndpointId) -> bool {
        let standing = self.standing(endpoint);
        matches!(
            standing,
            Some(Standing::Healthy | Standing::Idle | Standing::Draining | Standing::Failing)
        )
    }

    /// Whether datagrams go on to it as well, whoever else is there.
    pub(super) fn keeps(&self, endpoint: EndpointId) -> bool {
        matches!(self.standing(endpoint), Some(Standing::Healthy | Standing::Idle))
    }

    pub(super) fn healthy(&self) -> Vec<EndpointId> {
        let healthy = self.backends.iter().filter(|(_, it)| it.1 == Standing::Healthy);
        healthy.map(|(endpoint, _)| *endpoint).collect()
    }
}

pub(super) fn known(life: &Life, network: NetworkId, vip: IpAddr) -> Known {
    let holds = |node, ip| life.addresses.holds(network, node, ip);
    let mut open = life.set.all_services().filter(|(id, object, service)| {
        !object.closed()
            && service.network == network
            && service.vips.contains(&vip)
            && holds(holder(*id), vip)
    });
    let (backends, published) = (BTreeMap::new(), BTreeSet::new());
    // Time alone may settle it: it finds that out with its next tick.
    let is_settled = life.serving.is_settled;
    let mut known = Known { backends, is_settled, published };
    let Some((id, _, service)) = open.next() else { return known };
    let at_vip = service.published.iter().filter(|it| it.port == VIP_PORT);
    known.published = at_vip.map(|it| it.protocol).collect();
    let is_active = life.set.active_networks().contains(&network);
    let (mut here, mut away) = (Vec::new(), Vec::new());
    for (node, claim) in claims_to(&life.directory, network) {
        let is_its = claim.mac.may_be_of(node) && claim.ips.iter().all(|ip| holds(node, *ip));
        let key = RowKey { node, endpoint: claim.id };
        // A removed node is left with its own.
        let is_member = node == life.me || life.set.members().any(|member| member == node);
        if !is_its || !is_member {
            continue;
        } else if !life.directory.is_up(node) {
            away.push((key, claim));
        } else if is_active && (node == life.me || life.peers.contains_key(&node)) {
            here.push((key, claim));
        }
    }
    for (key, _) in serving(service, &away) {
        known.backends.insert(key.endpoint, (key, Standing::Away));
    }
    let mut serving = serving(service, &here);
    let is_idle = |claim: &EndpointClaim| service.weights.get(&claim.name) == Some(&0);
    let deadline = |(key, claim): &(RowKey, &EndpointClaim)| deadline(life, service, key, claim);
    serving.retain(|of| deadline(of).is_none_or(|at| at > life.serving.looked_ms));
    let passes =
        |claim: &EndpointClaim| claim.health_for(id).unwrap_or_else(|| service.check.is_none());
    let is_ready =
        |of: &(RowKey, &EndpointClaim)| deadline(of).is_none() && !is_idle(of.1) && passes(of.1);
    let has_ready = serving.iter().any(is_ready);
    for (key, claim) in &serving {
        let drains = has_ready && deadline(&(*key, claim)).is_some();
        let standing = match is_reached(life, network, key, claim, vip) {
            false if drains || is_idle(claim) || !passes(claim) => Standing::Lost,
            false => Standing::Hidden,
            true if !passes(claim) => Standing::Failing,
            true if drains => Standing::Draining,
            true if is_idle(claim) => Standing::Idle,
            true => Standing::Healthy,
        };
        known.backends.insert(key.endpoint, (*key, standing));
    }
    known
}

/// When a backend's time is over, if it is drained: it began when the node first heard of it.
fn deadline(
    life: &Life,
    service: &object::Service,
    key: &RowKey,
    claim: &EndpointClaim,
) -> Option<u64> {
    let of_node = life.places().get(&key.node).and_then(|place| place.drained);
    let said = of_node.into_iter().chain(service.draining.get(&claim.name).copied());
    let (now, is_settled) = (life.serving.looked_ms, life.serving.is_settled);
    let mut clock = life.serving.drains.borrow().clone();
    let begun = said.map(|since| clock.begun(since, now, is_settled)).min()?;
    Some(begun + service.drain_ms.unwrap())
}

/// Those of the endpoints that a service names.
fn serving<'c>(
    service: &object::Service,
    claims: &[(RowKey, &'c EndpointClaim)],
) -> Vec<(RowKey, &'c EndpointClaim)> {
    let is_oldest = |(key, claim): &(RowKey, &EndpointClaim)| {
        let same = claims.iter().filter(|(_, other)| other.name == claim.name);
        same.map(|(key, claim)| (claim.incarnation, *key)).min() == Some((claim.incarnation, *key))
    };
    let mut all = claims.to_vec();
    all.retain(|of| {
        let is_named = service.backends.contains(&of.1.name) && is_oldest(of);
        let mut labels = service.selector.iter();
        let has_all = labels.all(|(key, value)| of.1.labels.get(key) == Some(value));
        is_named || (has_all && !service.selector.is_empty())
    });
    all
}

/// Whether no other endpoint has the addresses of this one before it.
fn is_reached(
    life: &Life,
    network: NetworkId,
    key: &RowKey,
    claim: &EndpointClaim,
    vip: IpAddr,
) -> bool {
    let Some(local) = life.locals.get(&network) else { return false };
    let has_mac = local.table.fdb(claim.mac).is_some_and(|row| row.key == *key);
    let mut ips = claim.ips.iter().filter(|ip| ip.is_ipv4() == vip.is_ipv4());
    has_mac && ips.any(|ip| local.table.neighbor(*ip).is_some_and(|row| row.key == *key))
}
