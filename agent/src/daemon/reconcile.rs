//! The single writer of peers and tables (I2): from what is known to what the data path does.
//!
//! State-based: each round looks at directory and objects whole and brings peers and tables in step. A lost or doubled event costs
//! a round, never the truth.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use tracing::{info, warn};
use vxmesh_gossip::{directory::MeshEvent, membership::Gossip};
use vxmesh_proto::{
    addr::{MacAddr, NetworkId, NodeId},
    object::{self, ObjectSet},
    record::{Claim, EndpointClaim, Key, NodeClaim},
    session::Peer,
    tables::{Gateway, NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate},
};

use super::{
    addresses::Elsewhere,
    mesh::{Local, Mesh, lock},
    peers::{left_members, members, reachable},
};
use crate::{
    datapath::port::Table,
    reconcile::admit::{Change, Claims, changes, foreign_address},
    store::Table as StoreTable,
};

impl Mesh {
    /// Brings peers and tables in step with what is known.
    pub(super) async fn reconcile(self: &Arc<Self>) {
        let _one_at_a_time = self.reconciling.lock().await;
        let Some(gossip) = self.gossip.get() else { return };
        let hash = self.objects.read(ObjectSet::content_hash);
        gossip.set_objects_hash(&hash);
        for event in gossip.poll_events() {
            if let MeshEvent::Objects { node, hash: theirs } = event
                && *theirs != *hash
            {
                self.sync_soon(node);
            }
        }
        self.objects.read(|set| self.addresses.follow(set));
        self.forget_refused(gossip);
        self.follow_peers(gossip).await;
        // A handshake before the first frame: it saves that frame the wait, and tells a peer that still seals for this
        // node's last life.
        for node in self.follow_tables(gossip) {
            self.plane.want(node).await;
        }
    }

    async fn follow_peers(&self, gossip: &Gossip) {
        let members = self.objects.read(|set| members(set, &self.ca, self.me));
        let claims: BTreeMap<NodeId, NodeClaim> = gossip.with_directory(|directory| {
            let claim = |node: &NodeId| match directory.get(*node, Key::Node)?.record.claim() {
                Claim::Node(claim) => Some((*node, claim.clone())),
                Claim::Endpoint(_) | Claim::Gone => None,
            };
            members.keys().filter_map(claim).collect()
        });
        self.peers.follow(&self.plane, &members, &claims, &self.own_addrs()).await;
        let mut addrs = lock(&self.addrs);
        for (node, claim) in &claims {
            if let Some(addr) = reachable(&claim.control, &self.own_addrs())
                && addrs.insert(*node, addr) != Some(addr)
                && let Err(error) = self.store.put(StoreTable::Peers, node.as_str(), &addr)
            {
                warn!(%error, "a peer's address is not kept");
            }
        }
        // Also nodes whose certificate is not known yet: meeting them is how it becomes known.
        let left = self.objects.read(left_members);
        addrs.retain(|node, _addr| !left.contains(node));
        let wanted: Vec<_> = addrs.iter().map(|(node, addr)| (*node, *addr)).collect();
        drop(addrs);
        if let Some(control) = self.control.get() {
            control.set_peers(wanted);
        }
    }

    /// Publishes what changed in the hosted networks; returns the nodes that have a part in one of them since.
    fn follow_tables(&self, gossip: &Gossip) -> BTreeSet<NodeId> {
        let mut met = BTreeSet::new();
        let active = self.objects.read(ObjectSet::active_networks);
        let mut locals = lock(&self.locals);
        self.plane.serve(|id| active.contains(&id));
        for (id, local) in locals.iter_mut() {
            let mut claims =
                if active.contains(id) { self.believed(gossip, *id) } else { Claims::new() };
            // A claim whose node is no peer yet waits for the round that knows it; what is noted here is in the table.
            claims.retain(|key, _claim| key.node == self.me || self.peers.get(key.node).is_some());
            let updates = self.updates(local, &claims);
            met.extend(updates.iter().filter_map(|update| match update {
                TableUpdate::PutMember(node, _peer) => Some(*node),
                _ => None,
            }));
            if !updates.is_empty() {
                local.table = Arc::new(local.table.apply(updates));
                self.plane.publish(Arc::clone(&local.table));
            }
            local.claims = claims;
        }
        met
    }

    /// The claims to a network that are believed: their owner is up and holds the addresses.
    pub(super) fn believed(&self, gossip: &Gossip, network: NetworkId) -> Claims {
        let claims: Vec<(NodeId, EndpointClaim)> = gossip.with_directory(|directory| {
            let of_network = directory.records().filter_map(|entry| match entry.record.claim() {
                Claim::Endpoint(claim) if claim.network == network => {
                    Some((entry.record.owner(), claim.clone()))
                }
                Claim::Endpoint(_) | Claim::Node(_) | Claim::Gone => None,
            });
            of_network.filter(|(owner, _)| directory.is_up(*owner)).collect()
        });
        let holds = |node, ip| self.addresses.holds(network, node, ip);
        let mut refused = lock(&self.refused);
        let mut believed = Claims::new();
        for (node, claim) in claims {
            let key = RowKey { node, endpoint: claim.id };
            match foreign_address(node, &claim, holds) {
                None => {
                    refused.remove(&key);
                    believed.insert(key, claim);
                }
                // A record may be faster than the transfer that makes it true.
                Some(ip) if refused.insert(key) => {
                    info!(%node, endpoint = %claim.id, %ip, "claim not believed: its node does not hold the address");
                }
                Some(_) => {}
            }
        }
        believed
    }

    /// Forgets unbelieved claims that were withdrawn, so that nobody can grow the list of them (I5).
    fn forget_refused(&self, gossip: &Gossip) {
        let mut refused = lock(&self.refused);
        gossip.with_directory(|directory| {
            refused.retain(|key| {
                let entry = directory.get(key.node, Key::Endpoint(key.endpoint));
                entry.is_some_and(|entry| matches!(entry.record.claim(), Claim::Endpoint(_)))
            });
        });
    }

    fn updates(&self, local: &Local, claims: &Claims) -> Vec<TableUpdate<Arc<Peer>>> {
        let mut updates = Vec::new();
        for change in changes(&local.claims, claims) {
            match change {
                Change::Down(key) => updates.push(TableUpdate::Remove(key)),
                Change::Up(key, claim) => {
                    let place = if key.node == self.me {
                        Some(Place::Local)
                    } else {
                        self.peers.get(key.node).map(Place::Remote)
                    };
                    let Some(place) = place else { continue };
                    let (mac, ips, rank) = (claim.mac, claim.ips, claim.incarnation);
                    updates.push(TableUpdate::Put(Row { key, mac, ips, rank, place }));
                }
            }
        }
        let wanted: BTreeMap<NodeId, _> = claims
            .keys()
            .filter(|key| key.node != self.me)
            .filter_map(|key| Some((key.node, self.peers.get(key.node)?)))
            .collect();
        for (node, _peer) in local.table.members() {
            if !wanted.contains_key(node) {
                updates.push(TableUpdate::RemoveMember(*node));
            }
        }
        for (node, peer) in wanted {
            if !local.table.is_member(&node) {
                updates.push(TableUpdate::PutMember(node, peer));
            }
        }
        updates
    }

    /// The first snapshot of a network: nobody in it.
    pub(super) fn empty_table(&self, id: NetworkId, network: &object::Network) -> Table {
        let spec = NetworkSpec {
            id,
            vni: network.vni,
            mtu: network.mtu,
            gateway: Gateway {
                mac: gateway_mac(id),
                ips: network.subnets.iter().map(|subnet| subnet.gateway).collect(),
            },
            subnets: network.subnets.iter().map(|subnet| subnet.cidr).collect(),
        };
        NetworkTable::new(spec, self.seed, Instant::now())
    }

    /// Addresses that other nodes claim in a network, whether they are up or not.
    pub(super) fn elsewhere(&self, network: NetworkId) -> Elsewhere {
        let Some(gossip) = self.gossip.get() else { return Elsewhere::new() };
        gossip.with_directory(|directory| {
            let claims = directory.records().filter(|entry| entry.record.owner() != self.me);
            let ips = claims.filter_map(|entry| match entry.record.claim() {
                Claim::Endpoint(claim) if claim.network == network => Some(claim.ips.clone()),
                Claim::Endpoint(_) | Claim::Node(_) | Claim::Gone => None,
            });
            ips.flatten().collect()
        })
    }
}

/// The anycast gateway's MAC: the same on every host, and no endpoint's, whose MACs have another second byte at random.
pub(super) fn gateway_mac(network: NetworkId) -> MacAddr {
    let [a, b, c, d, ..] = *network.bytes();
    MacAddr([0x02, 0xfe, a, b, c, d])
}
