//! Counters of frames that were not delivered: (reason, network, peer) -> count (I4).
//!
//! Dropping is off the fast path, so one lock guards the table. Its keys are reasons from the code, networks that
//! exist and peers that were authenticated, so it cannot be grown from outside.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use vxmesh_proto::addr::{NetworkId, NodeId};

/// What a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropKey {
    /// The reason, snake_case.
    pub reason: &'static str,
    /// The network, where one was known.
    pub network: Option<NetworkId>,
    /// The peer, where one was authenticated.
    pub peer: Option<NodeId>,
}

/// The table of counters.
#[derive(Debug, Default)]
pub struct Drops {
    rows: Mutex<BTreeMap<DropKey, u64>>,
}

impl Drops {
    /// Counts `count` more frames.
    pub fn add(&self, key: DropKey, count: u64) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let row = rows.entry(key).or_default();
        *row = row.saturating_add(count);
    }

    /// Counts one frame of which neither network nor peer is known.
    pub fn unknown(&self, reason: &'static str) {
        self.add(DropKey { reason, network: None, peer: None }, 1);
    }

    /// All rows, in the order of their keys.
    #[must_use]
    pub fn rows(&self) -> Vec<(DropKey, u64)> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().map(|(key, count)| (*key, *count)).collect()
    }

    /// Forgets the rows of a network that was removed.
    pub fn forget_network(&self, network: NetworkId) {
        self.rows
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, _| key.network != Some(network));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_key_and_forgets_networks() {
        let drops = Drops::default();
        let network = NetworkId::from_random([1; 16]);
        let key = DropKey { reason: "fdb_unknown", network: Some(network), peer: None };
        drops.add(key, 2);
        drops.add(key, 3);
        drops.unknown("bad_length");
        assert_eq!(drops.rows().len(), 2);
        assert!(drops.rows().contains(&(key, 5)));
        drops.forget_network(network);
        assert_eq!(drops.rows().len(), 1);
    }
}
