//! Where flows lie: [`Memory`], words that all threads share, and [`Shape`], what is where in them.
//!
//! ```text
//! header 8 | sources 2 rows | lives 1 a flow | index 2 a flow (4 slots) | entries 16 a flow
//! fragments
//! ```
//!
//! So a flow has 152 bytes. Nothing is a pointer: the words may be mapped from a file.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{entry, fragments};
use crate::limits::SERVICE_FLOWS;

/// Words that all threads share. What lies outside reads as zero, and is not written.
pub trait Memory: Debug {
    /// How many there are.
    fn words(&self) -> usize;
    /// Reads a word.
    fn load(&self, at: usize, order: Ordering) -> u64;
    /// Writes a word.
    fn store(&self, at: usize, word: u64, order: Ordering);
    /// Replaces a word, if it is what it is thought to be.
    ///
    /// # Errors
    /// What it is.
    fn exchange(&self, at: usize, old: u64, new: u64) -> Result<(), u64>;
    /// Adds to a word, modulo its size, and gives what it was.
    fn add(&self, at: usize, number: u64) -> u64;
}

impl<T: AsRef<[AtomicU64]> + Debug> Memory for T {
    fn words(&self) -> usize {
        self.as_ref().len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.as_ref().get(at).map_or(0, |word| word.load(order))
    }

    fn store(&self, at: usize, word: u64, order: Ordering) {
        if let Some(place) = self.as_ref().get(at) {
            place.store(word, order);
        }
    }

    fn exchange(&self, at: usize, old: u64, new: u64) -> Result<(), u64> {
        let word = self.as_ref().get(at).ok_or(0u64)?;
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ())
    }

    fn add(&self, at: usize, number: u64) -> u64 {
        self.as_ref().get(at).map_or(0, |word| word.fetch_add(number, Ordering::Relaxed))
    }
}

/// The first of the free entries: version 32 | number + 1, 32.
pub(super) const FREE: usize = 0;
/// How many entries have ever been used.
pub(super) const FRESH: usize = 1;
/// How many flows are half-open.
pub(super) const HALF_OPEN: usize = 2;
/// How many have ended, and still lie there.
pub(super) const CLOSED: usize = 3;
/// How many lie there.
pub(super) const HELD: usize = 4;
/// Where the search for an entry goes on.
pub(super) const HAND: usize = 5;
/// Words of all these.
const HEADER: usize = 8;
/// Slots of a bucket, two in a word.
const SLOTS: u32 = 8;
/// Words of a bucket: half a cache line.
pub(super) const BUCKET: usize = SLOTS as usize / 2;

/// How large a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Flows that it holds.
    pub flows: u32,
    /// Counters in each of two rows, by which sources are told apart.
    pub sources: u32,
}

impl Shape {
    /// The shape of the agent's table.
    pub const FULL: Self = Self { flows: SERVICE_FLOWS, sources: 1024 };

    /// As many as a slot of the index tells apart.
    pub(super) const MOST: u32 = (1 << 18) - 2;

    /// How many words it needs, all zero at first.
    #[must_use]
    pub const fn words(self) -> usize {
        self.fragments(0) + self.fragment_buckets() * fragments::PLACES * fragments::WORDS
    }

    /// A power of two, twice as many slots as there are keys, of which each flow has two.
    pub(super) const fn buckets(self) -> u32 {
        (self.flows * 4).div_ceil(SLOTS).next_power_of_two()
    }

    pub(super) const fn source(self, row: usize, at: usize) -> usize {
        HEADER + row * self.sources as usize + at
    }

    pub(super) const fn life(self, number: u32) -> usize {
        HEADER + 2 * self.sources as usize + number as usize
    }

    pub(super) const fn bucket(self, bucket: u32) -> usize {
        self.life(self.flows) + bucket as usize * BUCKET
    }

    pub(super) const fn entry(self, number: u32) -> usize {
        self.entries() + number as usize * entry::WORDS
    }

    /// A bucket of fragments, the one of these bits.
    pub(super) const fn fragments(self, bits: usize) -> usize {
        let bucket = bits & (self.fragment_buckets() - 1);
        self.entry(self.flows) + bucket * fragments::PLACES * fragments::WORDS
    }

    /// A power of two, of 1024 packets in the agent's table.
    const fn fragment_buckets(self) -> usize {
        (self.flows as usize / 512).next_power_of_two()
    }

    /// At a multiple of a cache line, if the memory is.
    const fn entries(self) -> usize {
        self.bucket(self.buckets()).next_multiple_of(8)
    }
}
