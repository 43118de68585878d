//! What the log says already, so that it says each thing once ([`Logged`]).

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use vxmesh_proto::{addr::NodeId, tables::RowKey};

use super::{conflicts::Conflicts, state_log::StateLog};

/// What is to be said once, until it is over.
#[derive(Debug, Default)]
pub(crate) struct Once(AtomicBool);

impl Once {
    /// Whether it is to be said now.
    pub(crate) fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// It is over: the next time is a first one.
    pub(crate) fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What the log says of the mesh and of this node.
#[derive(Debug, Default)]
pub(crate) struct Logged {
    /// Of nodes and networks.
    pub(crate) states: Mutex<StateLog>,
    /// That this node was removed, or left.
    pub(crate) departed: Once,
    /// That nothing is kept on disk.
    pub(crate) stuck: Once,
    /// That addresses of removed nodes cannot be taken back.
    pub(crate) unreclaimed: Once,
    /// Nodes whose clock shows another time than this host's.
    pub(crate) clocks: Mutex<BTreeSet<NodeId>>,
    /// Claims that are not believed.
    pub(crate) refused: Mutex<BTreeSet<RowKey>>,
    /// Names that were given twice.
    pub(crate) conflicts: Conflicts,
}
