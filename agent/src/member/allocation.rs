//! Address blocks that this node asks for, gives and takes back, as far as that is under way
//! ([`Allocation`]).

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;
use vxmesh_proto::object::RollCall;

/// What keeps address blocks from being asked for twice, or given while they may not be.
#[derive(Debug)]
pub(crate) struct Allocation {
    /// Held by who asks other nodes for address blocks.
    pub(crate) fetching: tokio::sync::Mutex<()>,
    prefetching: AtomicBool,
    /// Held while addresses of removed nodes are taken back.
    pub(crate) reclaiming: tokio::sync::Mutex<()>,
    /// Who has heard of which departures.
    pub(crate) roll: Mutex<RollCall>,
    /// Whether this node's state may be older than the node.
    pub(crate) unproven: watch::Sender<bool>,
    /// Set while this node leaves: who hands its addresses over must not ask for new ones.
    leaving: AtomicBool,
}

impl Default for Allocation {
    fn default() -> Self {
        Self {
            fetching: tokio::sync::Mutex::default(),
            prefetching: AtomicBool::new(false),
            reclaiming: tokio::sync::Mutex::default(),
            roll: Mutex::default(),
            unproven: watch::Sender::new(false),
            leaving: AtomicBool::new(false),
        }
    }
}

impl Allocation {
    /// Whether blocks are being asked for in advance.
    pub(crate) fn is_prefetching(&self) -> bool {
        self.prefetching.load(Ordering::Acquire)
    }

    /// Notes whether blocks are being asked for in advance.
    pub(crate) fn set_prefetching(&self, is_it: bool) {
        self.prefetching.store(is_it, Ordering::Release);
    }

    /// Whether this node leaves.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Notes whether this node leaves.
    pub(crate) fn set_leaving(&self, is_it: bool) {
        self.leaving.store(is_it, Ordering::Release);
    }
}
