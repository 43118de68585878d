//! Comparisons of objects with other nodes, as far as they are under way ([`SyncState`]).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, watch};
use vxmesh_proto::addr::NodeId;

use crate::lock::lock;

/// Pushes with objects that wait for the disk: 256 KiB each at most, and what is refused comes when
/// the sets are compared.
const PUSHES: usize = 64;

/// A pair of nodes compares its sets no more often than this, so that a difference that neither can
/// mend costs little.
const SYNC_EVERY: Duration = Duration::from_millis(500);

/// And again after this time while they differ.
const SYNC_AGAIN: Duration = Duration::from_secs(10);

/// When objects were compared, and how many wait to be taken.
#[derive(Debug)]
pub(crate) struct SyncState {
    /// Room for pushes that are being taken.
    pub(crate) pushes: Arc<Semaphore>,
    begun: Mutex<BTreeMap<NodeId, Instant>>,
    /// Whether objects were compared with another node since the start.
    pub(crate) met: watch::Sender<bool>,
}

impl Default for SyncState {
    fn default() -> Self {
        let (begun, met) = (Mutex::default(), watch::Sender::new(false));
        Self { pushes: Arc::new(Semaphore::new(PUSHES)), begun, met }
    }
}

impl SyncState {
    /// Whether objects are to be compared with a node now, which then is noted: not if that was
    /// begun a moment ago.
    pub(crate) fn begin(&self, node: NodeId) -> bool {
        let now = Instant::now();
        let mut begun = lock(&self.begun);
        if begun.get(&node).is_some_and(|last| now.duration_since(*last) < SYNC_EVERY) {
            return false;
        }
        begun.insert(node, now);
        true
    }

    /// Whether objects were compared with a node lately, which still has others.
    pub(crate) fn was_lately(&self, node: NodeId) -> bool {
        lock(&self.begun).get(&node).is_some_and(|at| at.elapsed() < SYNC_AGAIN)
    }

    /// Whether objects were compared with another node since the start.
    pub(crate) fn has_met(&self) -> bool {
        *self.met.borrow()
    }
}
