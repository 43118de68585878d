//! Which entries may be those of a key: two buckets of eight slots.
//!
//! ```text
//! slot : tag 14 | number + 1, 18        0 is empty
//! ```
//!
//! A slot stays where it is for as long as its flow lives, so that a search misses none. Two
//! choices of a bucket, of which the emptier one is taken, and room for twice as many keys: a full
//! pair is not to be expected (Azar et al., "Balanced Allocations", STOC 1994).

use std::sync::atomic::Ordering;

use super::memory::{BUCKET, Memory, Shape};

const NUMBER_BITS: u32 = 18;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;
/// How often a slot is tried for, while others take slots of the same buckets.
const TRIES: usize = 64;

/// Where a key is looked for, and under which tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    buckets: [usize; 2],
    tag: u32,
}

impl Slots {
    pub(super) fn of(shape: Shape, hash: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
        let most = shape.buckets() - 1;
        let buckets = [u32::from_be_bytes([0, a, b, c]), u32::from_be_bytes([0, d, e, f])];
        let tag = u32::from(u16::from_be_bytes([g, h])) << NUMBER_BITS;
        Self { buckets: buckets.map(|bits| shape.bucket(bits & most)), tag }
    }

    fn slot(&self, number: u32) -> u32 {
        self.tag | ((number + 1) & NUMBER)
    }

    /// The first that `look` gives of the entries that may be the key's.
    pub(super) fn find<M: Memory, R>(
        &self,
        memory: &M,
        order: Ordering,
        mut look: impl FnMut(u32) -> Option<R>,
    ) -> Option<R> {
        for bucket in self.buckets {
            for at in bucket..bucket + BUCKET {
                for slot in halves(memory.load(at, order)) {
                    if (slot ^ self.tag) >> NUMBER_BITS == 0
                        && let Some(number) = (slot & NUMBER).checked_sub(1)
                        && let Some(found) = look(number)
                    {
                        return Some(found);
                    }
                }
            }
        }
        None
    }

    /// Takes a slot for an entry. False if there is none.
    pub(super) fn put<M: Memory>(&self, memory: &M, number: u32) -> bool {
        for _ in 0..TRIES {
            let [first, second] = self.buckets.map(|bucket| Room::of(memory, bucket));
            let room = if second.free > first.free { second } else { first };
            let Some((at, word)) = room.first else { return false };
            if memory.exchange(at, word, with(word, 0, self.slot(number))).is_ok() {
                return true;
            }
        }
        false
    }

    /// Gives up the slot of an entry.
    pub(super) fn take<M: Memory>(&self, memory: &M, number: u32) {
        let slot = self.slot(number);
        for at in self.buckets.iter().flat_map(|bucket| *bucket..bucket + BUCKET) {
            let mut word = memory.load(at, Ordering::Relaxed);
            while halves(word).contains(&slot) {
                match memory.exchange(at, word, with(word, slot, 0)) {
                    Ok(()) => return,
                    Err(other) => word = other,
                }
            }
        }
    }
}

/// What is free in a bucket.
struct Room {
    free: usize,
    first: Option<(usize, u64)>,
}

impl Room {
    fn of<M: Memory>(memory: &M, bucket: usize) -> Self {
        let mut room = Self { free: 0, first: None };
        for at in bucket..bucket + BUCKET {
            let word = memory.load(at, Ordering::Relaxed);
            let free = halves(word).into_iter().filter(|slot| *slot == 0).count();
            room.free += free;
            if free > 0 && room.first.is_none() {
                room.first = Some((at, word));
            }
        }
        room
    }
}

const fn halves(word: u64) -> [u32; 2] {
    [(word >> 32) as u32, (word & 0xffff_ffff) as u32]
}

/// The word with one slot instead of another.
fn with(word: u64, old: u32, new: u32) -> u64 {
    let [high, low] = halves(word);
    let (high, low) = if high == old { (new, low) } else { (high, new) };
    u64::from(high) << 32 | u64::from(low)
}
