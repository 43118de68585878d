//! Which key a datagram is for: [`IndexTable`], receiver index -> [`Keypair`]. One writer (the
//! sessions' owner), any number of readers, no lock: sharded maps that are replaced, not edited
//! (I2).

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;

use super::keypair::Keypair;

/// A change copies one shard: with 1000 peers some 50 rows.
const SHARDS: u32 = 64;

type Shard = HashMap<u32, Arc<Keypair>>;

/// Receiver index -> key.
#[derive(Debug)]
pub struct IndexTable {
    shards: Box<[ArcSwap<Shard>]>,
}

impl Default for IndexTable {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| ArcSwap::default()).collect() }
    }
}

impl IndexTable {
    /// The key with this index.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Arc<Keypair>> {
        self.shard(index)?.load().get(&index).cloned()
    }

    pub(super) fn insert(&self, key: Arc<Keypair>) {
        let Some(shard) = self.shard(key.local_index()) else { return };
        let mut rows = Shard::clone(&shard.load());
        rows.insert(key.local_index(), key);
        shard.store(Arc::new(rows));
    }

    pub(super) fn remove(&self, index: u32) {
        let Some(shard) = self.shard(index) else { return };
        let mut rows = Shard::clone(&shard.load());
        if rows.remove(&index).is_some() {
            shard.store(Arc::new(rows));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.load().len()).sum()
    }

    fn shard(&self, index: u32) -> Option<&ArcSwap<Shard>> {
        self.shards.get(usize::try_from(index % SHARDS).ok()?)
    }
}
