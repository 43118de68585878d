//! A fast hash for the keys of the tables (MAC and IP addresses, row keys), and sets in shards.
//!
//! SipHash costs more than the rest of a lookup. This one folds 8 bytes at a time with a 64 by 64
//! bit multiplication, keyed with a random seed that the caller gives, so that a member who chooses
//! addresses cannot choose collisions without knowing the seed. It is for maps of one process and
//! for nothing else.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use hashbrown::HashTable;

/// Shards of an empty set. A change copies the pointers to all shards and the rows of one.
const SHARDS: usize = 4;
/// A set doubles its shards when one has more than this times as many rows as there are shards: so
/// both parts of what a change copies grow with the square root of the rows.
const ROWS_PER_SHARD: usize = 2;
/// The first digits of the golden ratio, odd, as multiplicative hashing wants (Knuth, TAOCP 6.4).
const FOLD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Makes hashers of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Seeded(pub u64);

impl BuildHasher for Seeded {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding(self.0)
    }
}

/// The state of one hash.
#[derive(Debug)]
pub struct Folding(u64);

impl Folding {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the high half was folded into the low one"
    )]
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(FOLD);
        // The multiplication spreads each bit upwards, the high half brings it back down.
        self.0 = ((product ^ (product >> 64)) as u64).rotate_left(23);
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.fold(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.fold(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.fold(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A set of entries whose clone is cheap and whose change copies one shard of it. An entry is found
/// by the hash of a key and a test that tells it from others of the same hash; so that a key need
/// not be stored twice.
#[derive(Clone, Debug)]
pub struct Sharded<T> {
    seed: Seeded,
    /// A power of two of them.
    shards: Arc<[Arc<Shard<T>>]>,
}

/// Entries with their hashes, half of which is enough.
type Shard<T> = HashTable<(u32, T)>;

/// The bits of a hash that a shard uses: the seven highest of 64, and the lowest, which must not be
/// those that chose the shard.
fn within_shard(hash: u32) -> u64 {
    (u64::from(hash) << 32) | u64::from(hash >> 12)
}

impl<T> Sharded<T> {
    /// The entry of a key.
    pub fn find(&self, key: &impl Hash, is: impl Fn(&T) -> bool) -> Option<&T> {
        let hash = self.hash(key);
        let shard = self.shards.get(self.shard_of(hash))?;
        shard.find(within_shard(hash), |(held, entry)| *held == hash && is(entry)).map(|(_, it)| it)
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|(_, entry)| entry)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What its hashes depend on.
    #[must_use]
    pub const fn seed(&self) -> Seeded {
        self.seed
    }

    fn hash(&self, key: &impl Hash) -> u32 {
        u32::try_from(self.seed.hash_one(key) >> 32).unwrap_or_default()
    }

    fn shard_of(&self, hash: u32) -> usize {
        hash as usize & (self.shards.len() - 1)
    }

    /// How many shards are not those of another set.
    #[cfg(test)]
    pub(crate) fn copied_since(&self, before: &Self) -> usize {
        let shared = |shard: &Arc<_>| before.shards.iter().any(|other| Arc::ptr_eq(shard, other));
        self.shards.iter().filter(|shard| !shared(shard)).count()
    }
}

impl<T: Clone> Sharded<T> {
    /// An empty set.
    #[must_use]
    pub fn new(seed: Seeded) -> Self {
        let empty = Arc::new(HashTable::new());
        Self { seed, shards: vec![empty; SHARDS].into() }
    }

    /// Sets the entry of a key and gives the one before.
    pub fn put(&mut self, key: &impl Hash, entry: T, is: impl Fn(&T) -> bool) -> Option<T> {
        let hash = self.hash(key);
        let shard = self.shard_mut(hash);
        match shard.find_mut(within_shard(hash), |(held, it)| *held == hash && is(it)) {
            Some((_, it)) => Some(std::mem::replace(it, entry)),
            None => {
                insert(shard, hash, entry);
                let full = shard.len() > ROWS_PER_SHARD * self.shards.len();
                if full {
                    self.split();
                }
                None
            }
        }
    }

    /// Takes the entry of a key out; copies nothing if it is not there.
    pub fn take(&mut self, key: &impl Hash, is: impl Fn(&T) -> bool) -> Option<T> {
        self.find(key, &is)?;
        let hash = self.hash(key);
        let found = self
            .shard_mut(hash)
            .find_entry(within_shard(hash), |(held, it)| *held == hash && is(it));
        Some(found.ok()?.remove().0.1)
    }

    /// Keeps the entries for which this is true; copies the shards that lose one.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for shard in Arc::make_mut(&mut self.shards) {
            if !shard.iter().all(|(_, entry)| keep(entry)) {
                Arc::make_mut(shard).retain(|(_, entry)| keep(entry));
            }
        }
    }

    #[expect(clippy::indexing_slicing, reason = "`shard_of` is less than the number of shards")]
    fn shard_mut(&mut self, hash: u32) -> &mut Shard<T> {
        let at = self.shard_of(hash);
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[at])
    }

    /// Twice as many shards, all of them new. Until the next time there are four times as many
    /// rows.
    fn split(&mut self) {
        let empty = Arc::new(HashTable::new());
        let shards = vec![empty; self.shards.len() * 2].into();
        let old = std::mem::replace(&mut self.shards, shards);
        for (hash, entry) in old.iter().flat_map(|shard| shard.iter()) {
            insert(self.shard_mut(*hash), *hash, entry.clone());
        }
    }
}

fn insert<T>(shard: &mut Shard<T>, hash: u32, entry: T) {
    shard.insert_unique(within_shard(hash), (hash, entry), |(hash, _)| within_shard(*hash));
}

/// A map: entries with their keys.
impl<K: Clone + Eq + Hash, V: Clone> Sharded<(K, V)> {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key, |(other, _)| other == key).map(|(_, value)| value)
    }

    /// Sets the value of a key and gives the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.put(&key.clone(), (key.clone(), value), |(other, _)| *other == key).map(|(_, it)| it)
    }

    /// Takes a key out; copies nothing if it is not there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.take(key, |(other, _)| other == key).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::addr::MacAddr;

    fn mac(n: u32) -> MacAddr {
        let [a, b, c, d] = n.to_be_bytes();
        MacAddr([2, 0, a, b, c, d])
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut map = Sharded::new(Seeded(7));
        for n in 0..10_000 {
            map.insert(mac(n), n);
        }
        let before = map.clone();
        map.insert(mac(5), 0);
        assert_eq!(map.copied_since(&before), 1);
        assert_eq!((before.get(&mac(5)), map.get(&mac(5))), (Some(&5), Some(&0)));
        let again = map.clone();
        assert_eq!(map.remove(&mac(20_000)), None);
        assert!(Arc::ptr_eq(&again.shards, &map.shards), "removing nothing copies nothing");
    }

    #[test]
    fn shards_become_more_as_rows_do() {
        let mut map = Sharded::new(Seeded(7));
        for n in 0..60_000 {
            map.insert(mac(n), n);
            if n % 10_000 == 0 {
                let longest = map.shards.iter().map(|shard| shard.len()).max().unwrap();
                assert!(longest <= ROWS_PER_SHARD * map.shards.len() + 1, "{longest} at {n}");
            }
        }
        assert!((256..=512).contains(&map.shards.len()), "{} shards", map.shards.len());
        assert_eq!(map.len(), 60_000);
        assert!((0..60_000).all(|n| map.get(&mac(n)) == Some(&n)));
    }

    #[test]
    fn shards_and_buckets_fill_evenly() {
        for seed in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let mut map = Sharded::new(Seeded(seed));
            for n in 0..6400 {
                map.insert(mac(n), ());
            }
            for shard in map.shards.iter() {
                assert!((40..=200).contains(&shard.len()), "{} of 100, seed {seed}", shard.len());
            }
            // What a shard finds an entry by: the bucket and the tag.
            let within = (0..6400).map(|n| within_shard(map.hash(&mac(n))));
            let (low, high): (BTreeSet<_>, BTreeSet<_>) =
                within.map(|bits| (bits & 0xffff, bits >> 48)).unzip();
            assert!(low.len() > 5500, "{} of 6400 low parts differ, seed {seed}", low.len());
            assert!(high.len() > 5500, "{} of 6400 high parts differ, seed {seed}", high.len());
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(seed: u64, ops: Vec<(u8, Option<u16>)>) {
            let mut model = std::collections::BTreeMap::new();
            let mut map = Sharded::new(Seeded(seed));
            for (key, value) in ops {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
            }
            prop_assert_eq!(map.len(), model.len());
            prop_assert_eq!(map.is_empty(), model.is_empty());
            for (key, value) in &model {
                prop_assert_eq!(map.get(key), Some(value));
            }
            let mut values: Vec<_> = map.iter().map(|(_, value)| *value).collect();
            let mut expected: Vec<_> = model.into_values().collect();
            values.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(values, expected);
        }
    }
}
