//! What this node says and believes of the mesh ([`Member`]).
//!
//! Nothing in here knows the rest of the agent: `daemon` calls it.

pub(crate) mod allocation;
mod believed;
mod called;
pub(crate) mod conflicts;
pub(crate) mod departed;
pub(crate) mod issuers;
pub(crate) mod keeper;
pub(crate) mod location;
pub(crate) mod logged;
pub(crate) mod peers;
mod push;
pub(crate) mod state_log;
pub(crate) mod sync;

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::addr::NodeId;

use self::{
    allocation::Allocation,
    issuers::Issuers,
    keeper::Keeper,
    location::Location,
    logged::Logged,
    peers::{Ca, Peers},
    sync::SyncState,
};
use crate::{control::Control, objects::Objects, reconcile::addresses::Addresses};

/// A member of the mesh: what it has of others, and how it hears of them.
pub(crate) struct Member {
    pub(crate) me: NodeId,
    pub(crate) objects: Arc<Objects>,
    pub(crate) peers: Peers,
    pub(crate) addresses: Addresses,
    /// Set once, at the start.
    pub(crate) control: OnceLock<Control>,
    /// Set once, at the start.
    pub(crate) gossip: OnceLock<Gossip>,
    pub(crate) location: Location,
    pub(crate) issuing: Issuers,
    pub(crate) sync: SyncState,
    pub(crate) allocation: Allocation,
    pub(crate) keeper: Keeper,
    pub(crate) logged: Logged,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl Member {
    /// One that has these objects, which others reach at these addresses, and that is connected
    /// with nobody yet.
    pub(crate) fn new(me: NodeId, objects: Objects, ca: Arc<Ca>, own_addrs: Vec<IpAddr>) -> Self {
        Self {
            me,
            objects: Arc::new(objects),
            peers: Peers::default(),
            addresses: Addresses::new(me),
            control: OnceLock::new(),
            gossip: OnceLock::new(),
            location: Location::new(own_addrs),
            issuing: Issuers::new(ca),
            sync: SyncState::default(),
            allocation: Allocation::default(),
            keeper: Keeper::default(),
            logged: Logged::default(),
        }
    }
}
