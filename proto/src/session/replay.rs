//! Which counters of one key were accepted: a window over the newest [`WINDOW`] of them (RFC 6479's
//! bitmap that is never shifted), shared by all workers without a lock.
//!
//! RFC 6479 clears the words between the old and the new top. Two workers cannot do that without a
//! lock: one may set a bit in a word that the other is about to clear. So each word carries, above
//! its 32 bits, the number of the lap around the ring that they belong to, and a bit of a newer lap
//! replaces word and lap in one compare-exchange:
//!
//! ```text
//! counter: lap (32 bits) | word in ring (10 bits) | bit (5 bits)
//! word:    lap (32 bits) | accepted (32 bits)
//! ```
//!
//! Whether a counter was accepted is thus decided by one atomic word, exactly once however many
//! threads ask, and a jump of any size costs the same as a step. Laps of 32 bits end the counters
//! at [`COUNTERS`].

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits in the ring. Threads that seal with one key at a million packets a second may be 30 ms
/// apart: several time slices.
const RING: u64 = 32_768;
/// Counters that share a word.
const BITS: u64 = 32;
const WORDS: usize = 1024;
const LAP_SHIFT: u32 = 32;

/// How far behind the newest counter one may come and still be accepted.
pub const WINDOW: u64 = RING - 64;
/// Counters from here on do not exist; keys retire long before, because of their age: this many
/// packets in a key's three minutes are 195 thousand million a second. Less than the laps allow.
pub const COUNTERS: u64 = 1 << 45;

/// The counters that were accepted.
#[derive(Debug)]
pub struct ReplayWindow {
    /// One more than the greatest accepted counter.
    top: AtomicU64,
    words: Box<[AtomicU64]>,
}

/// The counter was accepted before, or is too old to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed;

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { top: AtomicU64::new(0), words: (0..WORDS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl ReplayWindow {
    /// Whether `counter` would be refused. Cheap, changes nothing: for use before the packet is
    /// authenticated.
    ///
    /// # Errors
    /// [`Replayed`].
    pub fn peek(&self, counter: u64) -> Result<(), Replayed> {
        let (word, lap, bit) = self.place(counter)?;
        let held = word.load(Ordering::Relaxed);
        if held >> LAP_SHIFT > lap || (held >> LAP_SHIFT == lap && held & bit != 0) {
            return Err(Replayed);
        }
        Ok(())
    }

    /// Accepts `counter`, once. Only for packets that were authenticated. True if it is the newest
    /// so far.
    ///
    /// # Errors
    /// [`Replayed`].
    pub fn commit(&self, counter: u64) -> Result<bool, Replayed> {
        let (word, lap, bit) = self.place(counter)?;
        word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let held_lap = held >> LAP_SHIFT;
            if held_lap > lap || (held_lap == lap && held & bit != 0) {
                None
            } else if held_lap == lap {
                Some(held | bit)
            } else {
                Some((lap << LAP_SHIFT) | bit)
            }
        })
        .map_err(|_seen| Replayed)?;
        Ok(self.top.fetch_max(counter + 1, Ordering::Relaxed) <= counter)
    }

    /// Whether a counter greater than this one was accepted.
    pub(super) fn is_past(&self, counter: u64) -> bool {
        self.top.load(Ordering::Relaxed) > counter + 1
    }

    fn place(&self, counter: u64) -> Result<(&AtomicU64, u64, u64), Replayed> {
        if counter >= COUNTERS || counter.saturating_add(WINDOW) < self.top.load(Ordering::Relaxed)
        {
            return Err(Replayed);
        }
        let index = (counter % RING) / BITS;
        let word =
            usize::try_from(index).ok().and_then(|index| self.words.get(index)).ok_or(Replayed)?;
        Ok((word, counter / RING, 1 << (counter % BITS)))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use proptest::prelude::*;

    use super::*;

    /// The rule said naively: every accepted counter, and the window behind the greatest.
    #[derive(Default)]
    struct Naive {
        seen: HashSet<u64>,
        top: u64,
    }

    impl Naive {
        fn commit(&mut self, counter: u64) -> Result<bool, Replayed> {
            if counter >= COUNTERS || counter + WINDOW < self.top || !self.seen.insert(counter) {
                return Err(Replayed);
            }
            let newest = counter >= self.top;
            self.top = self.top.max(counter + 1);
            Ok(newest)
        }
    }

    fn counters() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0u64..20_000,
            2 => 100_000u64..100_600,
            1 => (1u64 << 40)..(1 << 40) + 9000,
            1 => COUNTERS - 9000..COUNTERS + 3,
            1 => Just(u64::MAX),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_set(counters in prop::collection::vec(counters(), 1..400)) {
            let window = ReplayWindow::default();
            let mut naive = Naive::default();
            for counter in counters {
                let expected = naive.commit(counter);
                prop_assert_eq!(window.peek(counter).is_ok(), expected.is_ok(), "peek {}", counter);
                prop_assert_eq!(window.commit(counter), expected, "commit {}", counter);
            }
        }

        #[test]
        fn a_walk_with_jitter_agrees(steps in prop::collection::vec((0u64..40, 0u64..9000), 1..2000)) {
            let window = ReplayWindow::default();
            let mut naive = Naive::default();
            let mut head = 0u64;
            for (step, back) in steps {
                head += step;
                let counter = head.saturating_sub(back);
                prop_assert_eq!(window.commit(counter), naive.commit(counter), "{}", counter);
            }
        }
    }

    #[test]
    fn edges() {
        // (accepted before, asked, answer)
        let cases: &[(&[u64], u64, bool)] = &[
            (&[], 0, true),
            (&[0], 0, false),
            (&[1], 0, true),
            (&[WINDOW - 1], 0, true),
            (&[WINDOW], 0, false),
            (&[WINDOW], 1, true),
            (&[WINDOW + 1], 1, false),
            (&[RING], 0, false),
            (&[RING], RING - 1, true),
            (&[0, RING], RING, false),
            (&[7], 7 + RING, true),
            (&[7], 7 + 3 * RING, true),
            (&[7, 7 + 3 * RING], 7, false),
            (&[COUNTERS - 1], COUNTERS - 1, false),
            (&[0], COUNTERS - 1, true),
            (&[0], COUNTERS, false),
            (&[0], u64::MAX, false),
            (&[5, 1 << 44], (1 << 44) - WINDOW, false),
            (&[5, 1 << 44], (1 << 44) - WINDOW + 1, true),
        ];
        for (before, asked, answer) in cases {
            let window = ReplayWindow::default();
            for counter in *before {
                window.commit(*counter).unwrap();
            }
            assert_eq!(window.peek(*asked).is_ok(), *answer, "peek {before:?} {asked}");
            assert_eq!(window.commit(*asked).is_ok(), *answer, "commit {before:?} {asked}");
        }
    }

    #[test]
    fn a_huge_jump_forgets_the_whole_ring() {
        let window = ReplayWindow::default();
        for counter in 0..RING {
            window.commit(counter).unwrap();
        }
        let base = RING * (1 << 29);
        window.commit(base + WINDOW - 1).unwrap();
        for counter in base..base + WINDOW - 1 {
            assert_eq!(window.commit(counter), Ok(false), "{counter}");
        }
    }

    #[test]
    fn many_threads_accept_each_counter_once() {
        const THREADS: u64 = 8;
        const COUNT: u64 = 40_000;
        let window = Arc::new(ReplayWindow::default());
        let accepted: Vec<AtomicU64> = (0..COUNT).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (window, accepted) = (&window, &accepted);
                scope.spawn(move || {
                    for i in 0..COUNT {
                        // Each thread walks the same counters in its own order within runs of 512.
                        let counter = (i & !511) | ((i ^ (thread * 73)) & 511);
                        if counter < COUNT && window.commit(counter).is_ok() {
                            accepted[usize::try_from(counter).unwrap()]
                                .fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(accepted.iter().all(|times| times.load(Ordering::Relaxed) <= 1));
        let total: u64 = accepted.iter().map(|times| times.load(Ordering::Relaxed)).sum();
        assert!(total > WINDOW, "{total}");
        for counter in COUNT - 512..COUNT {
            assert_eq!(window.commit(counter), Err(Replayed));
        }
    }
}
