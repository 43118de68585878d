//! The hybrid logical clock of the mesh objects: wall time that never goes back and never ties.
//!
//! ```text
//! hlc = unix milliseconds << 16 | counter
//! ```
//!
//! A stamp that is made is greater than every stamp that was seen. A stamp further ahead of the own
//! wall clock than [`HLC_AHEAD`] is refused: one node with a wrong clock must not win every
//! argument until the others catch up with it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

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

    /// Its wall time.
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }
}

/// A stamp is too far ahead of the own wall clock.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("its time is {ahead_ms} ms ahead of this node's clock; set the clocks of both nodes right")]
pub struct TooFarAhead {
    /// How far.
    pub ahead_ms: u64,
}

/// Makes stamps and learns from those of others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Hlc,
}

impl Clock {
    /// A stamp greater than all that were made or seen.
    pub fn tick(&mut self, wall_ms: u64) -> Hlc {
        self.last = Hlc::at(wall_ms).max(Hlc(self.last.0.saturating_add(1)));
        self.last
    }

    /// Learns a stamp of another node.
    ///
    /// # Errors
    /// It is too far ahead of this node's wall clock, and is not learned.
    pub fn observe(&mut self, stamp: Hlc, wall_ms: u64) -> Result<(), TooFarAhead> {
        let ahead_ms = stamp.unix_ms().saturating_sub(wall_ms);
        if u128::from(ahead_ms) > HLC_AHEAD.as_millis() {
            return Err(TooFarAhead { ahead_ms });
        }
        self.learn(stamp);
        Ok(())
    }

    /// Learns a stamp that was admitted earlier, whatever the wall clock says by now.
    pub fn learn(&mut self, stamp: Hlc) {
        self.last = self.last.max(stamp);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stamp_60_seconds_ahead_is_the_last_that_is_learned() {
        let mut clock = Clock::default();
        assert_eq!(clock.observe(Hlc::at(61_000), 1_000), Ok(()));
        assert_eq!(clock.observe(Hlc::at(61_001), 1_000), Err(TooFarAhead { ahead_ms: 60_001 }));
        assert!(clock.tick(1_000) > Hlc::at(61_000));
        assert!(clock.tick(1_000) < Hlc::at(61_001));
    }

    #[test]
    fn the_ends_of_time() {
        assert_eq!(Hlc::at(u64::MAX), Hlc(u64::MAX));
        assert_eq!(Hlc::at((1 << 48) - 1).unix_ms(), (1 << 48) - 1);
        let mut clock = Clock { last: Hlc(u64::MAX) };
        assert_eq!(clock.tick(0), Hlc(u64::MAX));
    }

    proptest! {
        #[test]
        fn stamps_grow_whatever_the_wall_clock_does(
            events in proptest::collection::vec((0u64..200_000, proptest::option::of(0u64..200_000)), 1..40),
        ) {
            let mut clock = Clock::default();
            let mut greatest = None;
            for (wall, seen) in events {
                match seen {
                    Some(seen) => {
                        let seen = Hlc::at(seen);
                        if clock.observe(seen, wall).is_ok() {
                            greatest = greatest.max(Some(seen));
                        }
                    }
                    None => {
                        let made = Some(clock.tick(wall));
                        prop_assert!(made > greatest);
                        greatest = made;
                    }
                }
            }
        }
    }
}
