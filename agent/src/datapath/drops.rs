//! Counters of frames that were not delivered: (reason, network, peer, endpoint) -> count (I4).
//!
//! Dropping is off the fast path, so one lock guards the table. Its keys are reasons from the code,
//! networks and endpoints that exist and peers that were authenticated, so it cannot be grown from
//! outside. What goes takes its rows along.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use vxmesh_proto::{
    addr::{EndpointId, NetworkId, NodeId},
    path::Watch,
    reason::DropReason,
};

/// What a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropKey {
    /// The reason.
    pub reason: DropReason,
    /// The network, where one was known.
    pub network: Option<NetworkId>,
    /// The peer, where one was authenticated.
    pub peer: Option<NodeId>,
    /// The endpoint of this host that sent the frame or was to get it, where that is to blame.
    pub endpoint: Option<EndpointId>,
}

impl DropKey {
    /// Of which nothing but the reason is known.
    #[must_use]
    pub const fn of(reason: DropReason) -> Self {
        Self { reason, network: None, peer: None, endpoint: None }
    }

    /// That of the reason with this name, if there is one.
    #[must_use]
    pub fn named(reason: &str) -> Option<Self> {
        DropReason::ALL.iter().find(|known| known.as_str() == reason).copied().map(Self::of)
    }

    /// In this network, if one is known.
    #[must_use]
    pub fn in_network(self, network: impl Into<Option<NetworkId>>) -> Self {
        Self { network: network.into(), ..self }
    }

    /// From this peer or for it, if one is known.
    #[must_use]
    pub fn with_peer(self, peer: impl Into<Option<NodeId>>) -> Self {
        Self { peer: peer.into(), ..self }
    }

    /// From this endpoint or for it, if one is known.
    #[must_use]
    pub fn with_endpoint(self, endpoint: impl Into<Option<EndpointId>>) -> Self {
        Self { endpoint: endpoint.into(), ..self }
    }
}

/// How many, and when the last.
#[derive(Clone, Copy, Debug)]
struct Tally {
    count: u64,
    last: Instant,
}

/// The table of counters.
#[derive(Debug, Default)]
pub struct Drops {
    rows: Mutex<BTreeMap<DropKey, Tally>>,
}

impl Drops {
    /// Counts `count` more frames.
    pub fn add(&self, key: DropKey, count: u64) {
        add(&mut self.rows_mut(), key, Tally { count, last: Instant::now() });
    }

    /// Counts one frame of which neither network nor peer is known.
    pub fn unknown(&self, reason: DropReason) {
        self.add(DropKey::of(reason), 1);
    }

    /// Counts the frames that go no further on the way that this looks on, under the key that
    /// `key` has for a frame.
    pub fn watch<F: Fn(DropReason, &[u8]) -> DropKey>(&self, key: F) -> Counted<'_, F> {
        Counted { drops: self, key }
    }

    /// All rows, in the order of their reasons' names.
    #[must_use]
    pub fn rows(&self) -> Vec<(DropKey, u64)> {
        let mut rows: Vec<_> = self.rows_mut().iter().map(|(key, row)| (*key, row.count)).collect();
        rows.sort_by_key(|(key, _)| (key.reason.as_str(), *key));
        rows
    }

    /// The rows that were added to since then.
    #[must_use]
    pub fn since(&self, time: Instant) -> Vec<(DropKey, u64)> {
        let rows = self.rows_mut();
        let recent = rows.iter().filter(|(_, row)| row.last >= time);
        recent.map(|(key, row)| (*key, row.count)).collect()
    }

    /// Forgets the rows of networks that are gone; those of endpoints that are gone are counted
    /// without them.
    pub fn forget_gone(
        &self,
        has_network: impl Fn(NetworkId) -> bool,
        has_endpoint: impl Fn(EndpointId) -> bool,
    ) {
        let mut rows = self.rows_mut();
        rows.retain(|key, _| key.network.is_none_or(&has_network));
        let is_gone = |key: &DropKey| key.endpoint.is_some_and(|endpoint| !has_endpoint(endpoint));
        let gone: Vec<DropKey> = rows.keys().filter(|key| is_gone(key)).copied().collect();
        for key in gone {
            if let Some(row) = rows.remove(&key) {
                add(&mut rows, key.with_endpoint(None), row);
            }
        }
    }

    fn rows_mut(&self) -> MutexGuard<'_, BTreeMap<DropKey, Tally>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks on while frames go their way and counts those that are dropped.
#[derive(Debug)]
pub struct Counted<'d, F> {
    drops: &'d Drops,
    key: F,
}

impl<F: Fn(DropReason, &[u8]) -> DropKey> Watch for Counted<'_, F> {
    fn drop(&mut self, reason: DropReason, frame: &[u8]) {
        self.drops.add((self.key)(reason, frame), 1);
    }
}

fn add(rows: &mut BTreeMap<DropKey, Tally>, key: DropKey, more: Tally) {
    let row = rows.entry(key).or_insert(Tally { count: 0, ..more });
    row.count = row.count.saturating_add(more.count);
    row.last = row.last.max(more.last);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counts_by_key_and_forgets_what_is_gone() {
        let drops = Drops::default();
        let network = NetworkId::from_random([1; 16]);
        let [here, gone] = [2, 3].map(|n| EndpointId::from_random([n; 16]));
        let key = DropKey::of(DropReason::FdbUnknown).in_network(network);
        drops.add(key, 2);
        drops.add(key, 3);
        drops.unknown(DropReason::BadLength);
        drops.add(key.with_endpoint(here), 7);
        drops.add(key.with_endpoint(gone), 10);
        assert_eq!(drops.rows().len(), 4);
        drops.watch(|reason, _| DropKey::of(reason)).drop(DropReason::BadLength, &[]);
        drops.forget_gone(|_| true, |id| id == here);
        let bad = (DropKey::of(DropReason::BadLength), 2);
        assert_eq!(drops.rows(), [bad, (key, 15), (key.with_endpoint(here), 7)]);
        drops.forget_gone(|_| false, |_| true);
        assert_eq!(drops.rows(), [bad]);
        assert_eq!(drops.since(Instant::now() + Duration::from_secs(1)), []);
        assert_eq!(drops.since(Instant::now() - Duration::from_secs(60)), [bad]);
    }
}
