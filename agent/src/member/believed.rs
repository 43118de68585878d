//! What this node believes of what others claim, and who of them is up.

use std::{collections::BTreeSet, time::Instant};

use tracing::{info, warn};
use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::{
    addr::{NetworkId, NodeId},
    object::ObjectId,
    record::{Claim, Key},
    tables::RowKey,
};

use super::Member;
use crate::{
    lock::lock,
    reconcile::{
        addresses::Elsewhere,
        admit::{Claims, away, believed, claimed_elsewhere},
    },
};

impl Member {
    /// The claims to a network that are believed, of nodes that are peers.
    pub(crate) fn believed(&self, gossip: &Gossip, network: NetworkId) -> Claims {
        let is_peer = |node| node == self.me || self.peers.get(node).is_some();
        let holds = |node, ip| self.addresses.holds(network, node, ip);
        let (believed, foreign) =
            gossip.with_directory(|directory| believed(directory, network, is_peer, holds));
        let mut refused = lock(&self.logged.refused);
        refused.retain(|key| !believed.contains_key(key));
        for (RowKey { node, endpoint }, address) in foreign {
            // A record may be faster than the transfer that makes it true.
            if refused.insert(RowKey { node, endpoint }) {
                let (node, endpoint) = (self.name_of(node), endpoint.short());
                info!(%node, %endpoint, %address, "claim not believed: the address is not its node's");
            }
        }
        believed
    }

    /// The same for whoever shows them; nothing while the agent starts.
    pub(crate) fn claims_of(&self, network: NetworkId) -> Claims {
        self.gossip.get().map(|gossip| self.believed(gossip, network)).unwrap_or_default()
    }

    /// The claims to a network that would be believed if their nodes were up.
    pub(crate) fn away(&self, network: NetworkId) -> Claims {
        let Some(gossip) = self.gossip.get() else { return Claims::new() };
        let members: BTreeSet<NodeId> = self.objects.read(|set| set.members().collect());
        let holds = |node, ip| self.addresses.holds(network, node, ip);
        let is_peer = |node| node == self.me || self.peers.get(node).is_some();
        gossip.with_directory(|directory| {
            let is_there = |node| is_peer(node) && directory.is_up(node);
            away(directory, network, &members, is_there, holds)
        })
    }

    /// Addresses that other nodes claim in a network, whether they are up or not. What they
    /// released a moment ago rests here, too, if its block came to this node since.
    pub(crate) fn elsewhere(&self, network: NetworkId) -> Elsewhere {
        let Some(gossip) = self.gossip.get() else { return Elsewhere::new() };
        gossip.with_directory(|directory| {
            self.addresses.rest_own(network, directory.released(network), Instant::now());
            claimed_elsewhere(directory, network, self.me)
        })
    }

    /// Forgets unbelieved claims that were withdrawn, so that nobody can grow the list of them
    /// (I5).
    pub(crate) fn forget_refused(&self, gossip: &Gossip) {
        let mut refused = lock(&self.logged.refused);
        gossip.with_directory(|directory| {
            refused.retain(|key| {
                let entry = directory.get(key.node, Key::Endpoint(key.endpoint));
                entry.is_some_and(|entry| matches!(entry.record.claim(), Claim::Endpoint(_)))
            });
        });
    }

    /// Says something of this node anew, to all at once, if `change` makes something else of what
    /// it says.
    pub(crate) fn republish(&self, key: Key, change: impl FnOnce(&Claim) -> Option<Claim>) {
        let Some(gossip) = self.gossip.get() else { return };
        match gossip.edit(key, change) {
            Ok(Some(record)) => {
                self.spread(&record);
                self.keeper.kick();
            }
            Ok(None) => {}
            Err(error) => warn!(
                %error, %key,
                "the mesh is not told of a change; use fewer or shorter labels and aliases"
            ),
        }
    }

    /// What this node claims in a network. The cables of the agent's last life bring frames before
    /// the first reconciliation: they must not look like forgeries.
    pub(crate) fn own_claims(&self, network: NetworkId) -> Claims {
        let Some(gossip) = self.gossip.get() else { return Claims::new() };
        let mut claims = self.believed(gossip, network);
        claims.retain(|key, _claim| key.node == self.me);
        claims
    }

    /// Whether every member is up.
    pub(crate) fn hears_all(&self, gossip: &Gossip) -> bool {
        let members: Vec<_> = self.objects.read(|set| {
            let members = set.members();
            let stays =
                |node: &_| set.get(&ObjectId::Member(*node)).is_some_and(|member| !member.closed());
            members.filter(stays).collect()
        });
        gossip.with_directory(|directory| members.iter().all(|node| directory.is_up(*node)))
    }

    /// Nodes that are up, this one included.
    pub(crate) fn live_nodes(&self) -> Vec<NodeId> {
        self.gossip
            .get()
            .map(|gossip| gossip.with_directory(|d| d.up().collect()))
            .unwrap_or_default()
    }
}
