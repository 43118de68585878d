//! Sandboxes whose keepers are watched ([`Keepers`]).

use std::{collections::BTreeSet, sync::Mutex};

use crate::lock::lock;

/// Incarnations of sandboxes whose keepers are watched.
#[derive(Debug, Default)]
pub(crate) struct Keepers {
    watched: Mutex<BTreeSet<u64>>,
}

impl Keepers {
    /// Whether nobody watched this one's yet; whoever gets that does it now.
    pub(crate) fn begin(&self, incarnation: u64) -> bool {
        lock(&self.watched).insert(incarnation)
    }

    /// This one's is watched no more.
    pub(crate) fn end(&self, incarnation: u64) {
        lock(&self.watched).remove(&incarnation);
    }
}
