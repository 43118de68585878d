//! Plain networks of this host: which snapshot a network has, where its members are, and how its
//! port is.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::{
    addr::{NetworkId, NodeId, Vni},
    limits::PLAIN_PORT,
    object::{self, Content},
    path::{
        announce::touched,
        plain::{PlainTable, Vtep},
    },
    record::{Claim, Key},
    tables::TableUpdate,
};

use super::{
    doctor::check,
    mesh::Mesh,
    reconcile::{changed_macs, report_rivals},
};
use crate::{
    api::{self, Diagnosis, Health},
    host::table::{Local, LocalTable},
    lock::lock,
    member::peers::reachable,
    reconcile::{
        admit::Claims,
        tables::{respecified, spec_of, updates},
    },
};

impl Mesh {
    /// The first snapshot of a plain network, nobody in it; nothing if the network is encrypted.
    pub(super) fn empty_plain_table(
        &self,
        id: NetworkId,
        network: &object::Network,
    ) -> Option<PlainTable> {
        let plain = PlainTable::new(network, spec_of(id, network), self.host.seed, Instant::now())?;
        Some(plain.with_statics(self.statics_of(network)))
    }

    /// The VTEPs without an agent that this node deals with: none once it is no member any more,
    /// which they do not hear of.
    fn statics_of<'a>(&self, network: &'a object::Network) -> &'a [IpAddr] {
        if self.member.departed().is_some() { &[] } else { &network.vteps }
    }

    /// Brings the snapshot of a plain network in step with its claims.
    pub(super) fn follow_plain(
        &self,
        gossip: &Gossip,
        (local, plain): (&mut Local, &PlainTable),
        claims: &Claims,
        network: Option<&object::Network>,
    ) {
        let mut vteps: HashMap<NodeId, Vtep> = HashMap::new();
        for key in claims.keys().filter(|key| key.node != self.member.me) {
            vteps.entry(key.node).or_insert_with(|| self.vtep_of(gossip, key.node));
        }
        // Who is somewhere else by now is met anew, with all that is behind it.
        let table = plain.table();
        let moved = |node: &NodeId| {
            let was = table.members().iter().find(|(member, _vtep)| member == node);
            was.is_some_and(|(_node, vtep)| vteps.get(node) != Some(vtep))
        };
        let before = local.claims.iter().filter(|(key, _claim)| !moved(&key.node));
        let before = before.map(|(key, claim)| (*key, claim.clone())).collect();
        let mut updates =
            updates(table, &before, claims, self.member.me, |node| vteps.get(&node).cloned());
        let members = table.members().iter().map(|(node, _vtep)| *node);
        let again = members
            .filter(moved)
            .filter_map(|node| Some(TableUpdate::PutMember(node, vteps.get(&node).cloned()?)));
        updates.extend(again);
        let moved_away = local.claims.keys().filter(|key| moved(&key.node));
        let gone = moved_away.filter(|key| !claims.contains_key(key));
        updates.extend(gone.map(|key| TableUpdate::Remove(*key)));
        updates.splice(0..0, respecified(table, network));
        let statics = network.map_or_else(|| plain.statics(), |network| self.statics_of(network));
        if updates.is_empty() && statics == plain.statics() {
            return;
        }
        let (macs, touched) = (changed_macs(&updates), touched(table, &updates));
        let next = Arc::new(plain.apply(updates).with_statics(statics));
        self.host.plane.plain().publish(Arc::clone(&next));
        let news = local.heard.changes(next.table(), touched);
        self.host.plane.plain().announce(next.spec().id, &news);
        report_rivals(next.table(), &mut local.rivals, &macs);
        local.table = LocalTable::Plain(next);
    }

    /// Where a node says that it is.
    fn vtep_of(&self, gossip: &Gossip, node: NodeId) -> Vtep {
        gossip.with_directory(|directory| {
            let claim = match directory.get(node, Key::Node).map(|entry| entry.record.claim()) {
                Some(Claim::Node(claim)) => claim,
                Some(Claim::Endpoint(_) | Claim::Gone) | None => return Vtep::new(None, []),
            };
            vtep_at(&claim.vteps, &self.member.location.own())
        })
    }

    /// The numbers of all encrypted networks of the mesh.
    pub(super) fn sealed_vnis(&self) -> HashMap<Vni, NetworkId> {
        let networks = self.member.objects.read(object::ObjectSet::networks);
        let sealed = networks.iter().filter_map(|(id, object, _)| match object.content() {
            Content::Network(network) if network.encrypted => Some((network.vni, *id)),
            _ => None,
        });
        sealed.collect()
    }

    /// A network with what this host knows of its plain port.
    pub(super) fn with_plain(&self, mut network: api::Network) -> api::Network {
        let locals = lock(&self.host.locals);
        let Some(LocalTable::Plain(plain)) = locals.get(&network.id).map(|local| &local.table)
        else {
            return network;
        };
        let fault = self.host.plane.plain().fault();
        if fault.is_some() && network.state == "active" {
            "degraded".clone_into(&mut network.state);
        }
        let learned = plain.learned();
        network.plain = Some(api::Plain {
            port: PLAIN_PORT,
            fault,
            learned: learned.len(),
            learn_refused: learned.refused(),
        });
        network
    }

    /// How the plain port is, where a plain network is on this host.
    pub(super) fn plain_diagnosis(&self) -> Option<Diagnosis> {
        let plain = self.host.plane.plain();
        let hint = "another program or a vxlan device of the kernel (Docker's overlay, flannel) has it: plain networks carry nothing here until it is free; it is tried again every second";
        plain.is_needed().then(|| match plain.fault() {
            Some(fault) => check("plain port", Health::Fail, fault, hint),
            None => check("plain port", Health::Ok, format!("UDP {PLAIN_PORT} is open"), ""),
        })
    }
}

/// A member by what it claims. It may claim anything: a group or this host itself gets no copy of a
/// frame.
fn vtep_at(claimed: &[SocketAddr], own: &[IpAddr]) -> Vtep {
    let mut addrs = claimed.to_vec();
    addrs.retain(|addr| object::may_be_vtep(&addr.ip()));
    Vtep::new(reachable(&addrs, own).map(|addr| addr.ip()), addrs.iter().map(SocketAddr::ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_where_a_host_can_be() {
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 7761);
        let own = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let claimed =
            ["239.1.1.1", "127.0.0.1", "0.0.0.0", "ff02::1", "::1", "192.0.2.7", "2001:db8::7"];
        let vtep = vtep_at(&claimed.map(at), &own);
        assert_eq!(vtep.to(), Some("192.0.2.7".parse().unwrap()));
        let heard: Vec<&str> =
            claimed.into_iter().filter(|ip| vtep.has(ip.parse().unwrap())).collect();
        assert_eq!(heard, ["192.0.2.7", "2001:db8::7"]);
        assert_eq!(vtep_at(&[at("255.255.255.255")], &own), Vtep::new(None, []));
    }
}
