//! The hybrid logical clock of the mesh objects: wall time that never ties, and follows what was
//! seen.
//!
//! ```text
//! hlc = unix milliseconds << 16 | counter
//! ```
//!
//! A stamp that is made is greater than those that were made and seen, within [`HLC_AHEAD`] of the
//! own wall clock. What is stamped further ahead is admitted, because a fact that only some nodes
//! hold is worse than a wrong date, but no clock follows it: one node with a wrong clock must not
//! set those of others. So a stamp may be smaller than one that was seen; whoever edits an object
//! stamps it later than the version that it replaces ([`Hlc::next`]).

use serde::{Deserialize, Serialize};

use crate::limits::HLC_AHEAD;

/// A stamp of the hybrid logical clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Hlc(u64);

impl Hlc {
    const COUNTER_BITS: u32 = 16;

    /// The first stamp of a millisecond; beyond the year 10889 the last stamp there is.
    #[must_use]
    pub const fn at(unix_ms: u64) -> Self {
        if unix_ms > u64::MAX >> Self::COUNTER_BITS {
            Self(u64::MAX)
        } else {
            Self(unix_ms << Self::COUNTER_BITS)
        }
    }

    /// The stamp right after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Its wall time.
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }
}

/// Makes stamps and learns from those of others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Hlc,
}

impl Clock {
    /// A stamp greater than all that were made or learned, unless the wall clock was set back far
    /// since.
    pub fn tick(&mut self, wall_ms: u64) -> Hlc {
        let now = Hlc::at(wall_ms);
        self.last = if is_near(self.last, wall_ms) { now.max(self.last.next()) } else { now };
        self.last
    }

    /// Learns a stamp of an object, unless it is too far ahead of this node's wall clock.
    pub fn observe(&mut self, stamp: Hlc, wall_ms: u64) {
        if is_near(stamp, wall_ms) {
            self.last = self.last.max(stamp);
        }
    }
}

/// Whether a stamp is not further ahead of the wall clock than clocks follow.
fn is_near(stamp: Hlc, wall_ms: u64) -> bool {
    u128::from(stamp.unix_ms().saturating_sub(wall_ms)) <= HLC_AHEAD.as_millis()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stamp_60_seconds_ahead_is_the_last_that_is_followed() {
        let mut clock = Clock::default();
        clock.observe(Hlc::at(61_000), 1_000);
        clock.observe(Hlc::at(61_001), 1_000);
        clock.observe(Hlc::at(u64::MAX), 1_000);
        assert!(clock.tick(1_000) > Hlc::at(61_000));
        assert!(clock.tick(1_000) < Hlc::at(61_001));
    }

    #[test]
    fn a_clock_that_is_set_right_is_believed() {
        let mut clock = Clock::default();
        assert_eq!(clock.tick(7_200_000), Hlc::at(7_200_000));
        assert_eq!(clock.tick(1_000), Hlc::at(1_000));
        assert_eq!(clock.tick(1_000), Hlc::at(1_000).next());
    }

    #[test]
    fn the_ends_of_time() {
        assert_eq!(Hlc::at(u64::MAX), Hlc(u64::MAX));
        assert_eq!(Hlc::at(u64::MAX).next(), Hlc(u64::MAX));
        assert_eq!(Hlc::at((1 << 48) - 1).unix_ms(), (1 << 48) - 1);
        let mut clock = Clock { last: Hlc(u64::MAX) };
        assert_eq!(clock.tick((1 << 48) - 1), Hlc(u64::MAX));
    }

    proptest! {
        #[test]
        fn stamps_grow_and_stay_near_the_wall_clock(
            events in proptest::collection::vec((0u64..200_000, proptest::option::of(0u64..200_000)), 1..40),
        ) {
            let mut clock = Clock::default();
            let mut greatest = Hlc::default();
            for (wall, seen) in events {
                match seen {
                    Some(seen) => {
                        clock.observe(Hlc::at(seen), wall);
                        if seen <= wall + 60_000 {
                            greatest = greatest.max(Hlc::at(seen));
                        }
                    }
                    None => {
                        let made = clock.tick(wall);
                        prop_assert!(made > greatest || greatest.unix_ms() > wall + 60_000);
                        prop_assert!(made.unix_ms() <= wall + 60_000);
                        greatest = made;
                    }
                }
            }
        }
    }
}
