//! The single writer of peers and tables (I2): from what is known to what the data path does.
//!
//! State-based: each round looks at directory and objects whole and brings peers and tables in
//! step. A lost or doubled event costs a round, never the truth.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use tracing::warn;
use vxmesh_gossip::{directory::MeshEvent, membership::Gossip};
use vxmesh_proto::{
    addr::{MacAddr, NetworkId, NodeId},
    lb::ServiceSpec,
    object::{self, ObjectSet},
    path::announce::touched,
    record::{Claim, EndpointClaim, Key, NodeClaim},
    tables::{NetworkTable, RowKey, TableUpdate},
};

use super::mesh::Mesh;
use crate::{
    datapath::port::Table,
    host::table::{Local, LocalTable},
    lock::lock,
    member::peers::{left_members, members, reachable},
    objects::unix_ms,
    reconcile::{
        admit::Claims,
        tables::{respecified, spec_of, updates},
    },
    services::{self, Drains, Viewpoint},
    store::Table as StoreTable,
};

/// Whether the claims differ in nothing that names are made of.
fn is_same_but_health(before: &Claims, after: &Claims) -> bool {
    let is_same = |(one, other): (&EndpointClaim, &EndpointClaim)| {
        one == other || {
            let health = other.health.clone();
            EndpointClaim { health, ..one.clone() } == *other
        }
    };
    before.keys().eq(after.keys()) && before.values().zip(after.values()).all(is_same)
}

/// Whether a node's own endpoints are others, or elsewhere.
fn is_other_here(me: NodeId, before: &Claims, after: &Claims) -> bool {
    let own = |claims: &Claims| {
        let own = claims.iter().filter(|(key, _)| key.node == me);
        own.map(|(key, claim)| (*key, claim.ips.clone())).collect::<Vec<_>>()
    };
    own(before) != own(after)
}

/// Reports once each claim to one of these MACs that a claim of another node has.
pub(super) fn report_rivals<P>(
    table: &NetworkTable<P>,
    rivals: &mut BTreeSet<RowKey>,
    changed: &[MacAddr],
) {
    rivals.retain(|loser| table.mac_rival(loser).is_some());
    for mac in changed {
        for row in table.claims_to(*mac) {
            if let Some(winner) = table.mac_rival(&row.key)
                && rivals.insert(row.key)
            {
                warn!(
                    %mac, has = %winner.key.node, claims = %row.key.node, endpoint = %row.key.endpoint,
                    "two nodes claim one MAC; detach one of the endpoints and attach it without --mac"
                );
            }
        }
    }
}

/// The MACs of claims that are new or different.
pub(super) fn changed_macs<P>(updates: &[TableUpdate<P>]) -> Vec<MacAddr> {
    updates.iter().filter_map(mac_of).collect()
}

/// What a network's snapshot follows.
struct Followed<'a> {
    claims: &'a Claims,
    services: &'a [ServiceSpec],
    gone_vips: BTreeSet<IpAddr>,
    network: Option<&'a object::Network>,
    /// Whether all members were heard since the start.
    settled: bool,
}

impl Mesh {
    /// Brings peers and tables in step with what is known by now. Of many who ask meanwhile, one
    /// does it for all.
    pub(crate) async fn reconcile(self: &Arc<Self>) {
        self.member.keeper.reconcile_once(self.reconcile_now()).await;
    }

    async fn reconcile_now(self: &Arc<Self>) {
        let Some(gossip) = self.member.gossip.get() else { return };
        let hash = self.member.objects.read(ObjectSet::content_hash);
        gossip.set_objects_hash(&hash);
        for event in gossip.poll_events() {
            if let MeshEvent::Objects { node, hash: theirs } = event
                && *theirs != *hash
            {
                self.sync_soon(node);
            }
        }
        self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
        self.member.forget_refused(gossip);
        self.member.enforce_removals();
        self.follow_peers(gossip).await;
        self.tell_changes();
        // A handshake before the first frame: it saves that frame the wait, and tells a peer that
        // still seals for this node's last life.
        for node in self.follow_tables(gossip, &hash) {
            self.host.plane.want(node).await;
        }
    }

    async fn follow_peers(&self, gossip: &Gossip) {
        let members =
            self.member.objects.read(|set| members(set, &self.member.issuing.ca, self.member.me));
        let issuing = members.iter().filter(|(_node, member)| member.issuer);
        self.member.issuing.others.store(Arc::new(issuing.map(|(node, _member)| *node).collect()));
        let claims: BTreeMap<NodeId, NodeClaim> = gossip.with_directory(|directory| {
            let claim = |node: &NodeId| match directory.get(*node, Key::Node)?.record.claim() {
                Claim::Node(claim) => Some((*node, claim.clone())),
                Claim::Endpoint(_) | Claim::Gone => None,
            };
            members.keys().filter_map(claim).collect()
        });
        self.member
            .peers
            .follow(&self.host.plane, &members, &claims, &self.member.location.own())
            .await;
        let own = self.member.location.own();
        // Also nodes whose certificate is not known yet: meeting them is how it becomes known.
        let left = self.member.objects.read(left_members);
        let mut moved = Vec::new();
        let wanted: Vec<_> = {
            let mut addrs = lock(&self.member.location.known);
            for (node, claim) in &claims {
                if let Some(addr) = reachable(&claim.control, &own)
                    && addrs.insert(*node, addr) != Some(addr)
                {
                    moved.push((*node, addr));
                }
            }
            addrs.retain(|node, _addr| !left.contains(node));
            if left.contains(&self.member.me) {
                addrs.clear();
            }
            addrs.iter().map(|(node, addr)| (*node, *addr)).collect()
        };
        self.keep_addrs(&moved);
        if let Some(control) = self.member.control.get() {
            control.set_peers(wanted);
        }
    }

    /// Writes down where peers are, for the next start.
    fn keep_addrs(&self, moved: &[(NodeId, SocketAddr)]) {
        if moved.is_empty() {
            return;
        }
        let write = || {
            self.store.write(|txn| {
                moved
                    .iter()
                    .try_for_each(|(node, addr)| txn.put(StoreTable::Peers, node.as_str(), addr))
            })
        };
        // The runtime gives this thread up meanwhile.
        if let Err(error) = tokio::task::block_in_place(write) {
            warn!(%error, "addresses of peers are not kept");
        }
    }

    /// Publishes what changed in the hosted networks; returns the nodes that have a part in one of
    /// them since.
    fn follow_tables(&self, gossip: &Gossip, objects: &str) -> BTreeSet<NodeId> {
        let (mut met, mut checks) = (BTreeSet::new(), self.services.changed.note_objects(objects));
        let active = self.member.objects.read(ObjectSet::active_networks);
        let network_names = self.network_names();
        // Asked for all networks at once: each question goes through all services.
        let (with_services, mut gone_vips) =
            self.member.objects.read(|set| (set.with_services(), set.gone_vips()));
        let settled =
            self.services.settle(self.member.hears_all(gossip), self.host.name_servers.age());
        let mut names = BTreeMap::new();
        let mut locals = lock(&self.host.locals);
        self.host.plane.serve(|id| active.contains(&id));
        self.host.plane.plain().serve(|id| active.contains(&id), || self.sealed_vnis());
        for (id, local) in locals.iter_mut() {
            let claims =
                if active.contains(id) { self.member.believed(gossip, *id) } else { Claims::new() };
            let network = self.member.objects.read(|set| set.extended(*id));
            let has_services = with_services.contains(id);
            let away = if has_services { self.member.away(*id) } else { Claims::new() };
            let services = match has_services {
                true => self.services_of(*id, (&claims, &away)),
                false => Vec::new(),
            };
            checks |= self.services.note(*id, &services);
            checks |= is_other_here(self.member.me, &local.claims, &claims);
            match &local.table {
                LocalTable::Sealed(table) => {
                    let table = Arc::clone(table);
                    let network = network.as_ref();
                    let followed = Followed {
                        claims: &claims,
                        services: &services,
                        gone_vips: gone_vips.remove(id).unwrap_or_default(),
                        network,
                        settled,
                    };
                    met.extend(self.follow_sealed((local, &table), &followed));
                }
                LocalTable::Plain(plain) => {
                    let plain = Arc::clone(plain);
                    self.follow_plain(gossip, (local, &plain), &claims, network.as_ref());
                }
            }
            if let Some(domain) = network_names.get(id) {
                let unchanged = is_same_but_health(&local.claims, &claims);
                let spec = local.table.spec();
                let services = self
                    .member
                    .objects
                    .read(|set| services::named(set, *id, &services, (&claims, &away)));
                let table = self.host.name_servers.table(
                    (*id, domain),
                    &spec.subnets,
                    &services,
                    &claims,
                    unchanged,
                );
                names.insert(*id, table);
            }
            local.claims = claims;
        }
        checks |= self.services.keep(|id| locals.contains_key(id));
        self.services.changed.notify_ports();
        if checks {
            self.services.changed.notify_checks();
        }
        drop(locals);
        names.extend(self.local_names());
        self.publish_names(gossip, names);
        met
    }

    /// The services of a network as they are now, and soon will be.
    pub(super) fn services_of(
        &self,
        id: NetworkId,
        (claims, away): (&Claims, &Claims),
    ) -> Vec<ServiceSpec> {
        let places = services::places(self);
        let at_ms = unix_ms();
        let is_settled = self.host.name_servers.names.snapshot().settled;
        let since = |since| self.services.drained_since(since, at_ms, is_settled);
        let drains = Drains { since: &since };
        let seen = Viewpoint { by: self.member.me, at_ms, places: &places, drains };
        let holds = |node, ip| self.member.addresses.holds(id, node, ip);
        self.member.objects.read(|set| {
            if let Some(at) = seen.next_deadline(set, id, claims) {
                self.services.await_deadline(at);
            }
            services::specs(set, id, (claims, away), holds, &seen)
        })
    }

    /// Brings the snapshot of an encrypted network in step with its claims; returns the nodes that
    /// have a part in it since.
    fn follow_sealed(
        &self,
        (local, table): (&mut Local, &Table),
        Followed { claims, services, gone_vips, network, settled }: &Followed<'_>,
    ) -> Vec<NodeId> {
        let peer = |node| self.member.peers.get(node);
        let mut updates = updates(table, &local.claims, claims, self.member.me, peer);
        // Claims to addresses of a new subnet are judged by it.
        updates.splice(0..0, respecified(table, *network));
        let id = table.spec().id;
        // The others are only names.
        let with_vips = services.iter().filter(|service| !service.vips.is_empty());
        let services: Vec<ServiceSpec> = with_vips.cloned().collect();
        // Before the data path has this snapshot, so that the kernel learns from the first frame.
        let mut backends = services.iter().flat_map(|service| &service.backends);
        let is_backend_here = backends.any(|backend| backend.key.node == self.member.me);
        let steers = self.steer(id, is_backend_here, !services.is_empty());
        updates.extend(self.services.follow(table, services, (*settled, steers)));
        if table.gone_vips() != gone_vips {
            updates.push(TableUpdate::GoneVips(gone_vips.clone()));
        }
        if updates.is_empty() {
            return Vec::new();
        }
        let met = updates.iter().filter_map(|update| match update {
            TableUpdate::PutMember(node, _peer) => Some(*node),
            _ => None,
        });
        let (met, macs) = (met.collect(), changed_macs(&updates));
        let touched = touched(table, &updates);
        let next = Arc::new(table.apply(updates));
        self.host.plane.publish(Arc::clone(&next));
        self.host.plane.announce(next.spec().id, &local.heard.changes(&next, touched));
        report_rivals(&next, &mut local.rivals, &macs);
        local.table = LocalTable::Sealed(next);
        met
    }

    /// What the data path has of each network here that has services.
    pub(crate) fn tables_with_services(&self) -> Vec<Arc<Table>> {
        let locals = lock(&self.host.locals);
        let tables = locals.values().filter_map(|local| match &local.table {
            LocalTable::Sealed(table) => Some(Arc::clone(table)),
            LocalTable::Plain(_) => None,
        });
        tables.filter(|table| table.services().is_some()).collect()
    }

    /// The first snapshot of a network: nobody in it.
    pub(super) fn empty_table(&self, id: NetworkId, network: &object::Network) -> Table {
        NetworkTable::new(spec_of(id, network), self.host.seed, Instant::now())
    }
}

fn mac_of<P>(update: &TableUpdate<P>) -> Option<MacAddr> {
    match update {
        TableUpdate::Put(row) => Some(row.mac),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use vxmesh_proto::addr::EndpointId;

    use super::*;

    fn claim(id: u8, last: u8) -> EndpointClaim {
        EndpointClaim {
            id: EndpointId::from_random([id; 16]),
            network: NetworkId::from_random([9; 16]),
            name: "a".parse().unwrap(),
            aliases: Vec::new(),
            mac: MacAddr([2, 0, 0, 0, 0, id]),
            ips: vec![[10, 0, 0, last].into()],
            incarnation: 1,
            labels: BTreeMap::new(),
            router: false,
            health: BTreeMap::new(),
        }
    }

    /// What is to be checked here is looked for again only if it may be something else.
    #[test]
    fn endpoints_of_others_and_the_health_of_own_ones_change_nothing_here() {
        let nodes = [1, 2].map(|n| NodeId::of_public_key(&[n]));
        let [me, other] = nodes;
        let claims = |all: &[(NodeId, EndpointClaim)]| -> Claims {
            let row = |(node, claim): &(NodeId, EndpointClaim)| {
                (RowKey { node: *node, endpoint: claim.id }, claim.clone())
            };
            all.iter().map(row).collect()
        };
        let before = claims(&[(me, claim(1, 1))]);
        let told = EndpointClaim { health: [("s".to_owned(), true)].into(), ..claim(1, 1) };
        let same = claims(&[(me, told), (other, claim(2, 2))]);
        assert!(!is_other_here(me, &before, &same));
        for after in [claims(&[]), claims(&[(me, claim(1, 3))]), claims(&[(me, claim(3, 1))])] {
            assert!(is_other_here(me, &before, &after), "{after:?}");
        }
    }
}
