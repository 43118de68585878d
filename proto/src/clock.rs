//! How far the wall clocks of two hosts are apart: [`Offset`], and what follows from it; and
//! whether this host stood still: [`Pulse`].
//!
//! Certificates, join tokens and the dates of objects are read by the clock of whoever reads them.
//! A small offset harms nothing; one above [`CLOCKS_APART`] is an error of the host, and a host
//! that has it is not let in.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::limits::{CLOCKS_APART, CLOCKS_TOLD, STOOD_STILL};

/// One clock less another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offset {
    millis: i64,
}

impl Offset {
    /// This clock less that one, both in Unix milliseconds.
    #[must_use]
    pub fn between(this: u64, that: u64) -> Self {
        let millis = i128::from(this) - i128::from(that);
        let least = i128::from(i64::MIN + 1);
        let millis = i64::try_from(millis.max(least)).unwrap_or(i64::MAX);
        Self { millis }
    }

    /// As the other side sees it.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { millis: -self.millis }
    }

    /// How far the clocks are apart, whichever is ahead.
    #[must_use]
    pub const fn size(self) -> Duration {
        Duration::from_millis(self.millis.unsigned_abs())
    }

    /// Whether a host with it is not let in.
    #[must_use]
    pub fn is_too_large(self) -> bool {
        self.size() > CLOCKS_APART
    }

    /// Whether people should hear of it.
    #[must_use]
    pub fn is_worth_telling(self) -> bool {
        self.size() > CLOCKS_TOLD
    }
}

/// `2h 3m ahead of`, to be followed by whose clock it is compared with.
impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.size().as_secs();
        let units = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m")];
        let units = units.into_iter().chain([(seconds % 60, "s")]);
        // The two largest that there are: nobody needs the seconds of a day.
        let shown: Vec<String> = units
            .skip_while(|(count, _unit)| *count == 0)
            .take(2)
            .filter(|(count, _unit)| *count > 0)
            .map(|(count, unit)| format!("{count}{unit}"))
            .collect();
        let shown = if shown.is_empty() { "0s".to_owned() } else { shown.join(" ") };
        write!(f, "{shown} {}", if self.millis < 0 { "behind" } else { "ahead of" })
    }
}

/// Notices that this host was suspended or goes on from an image: its monotonic clock did not count
/// meanwhile, and its wall clock was set afterwards. A wall clock that was wrong looks the same.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    now: Instant,
    wall: u64,
}

impl Pulse {
    /// The first beat, with the wall clock in Unix milliseconds.
    #[must_use]
    pub const fn new(now: Instant, wall: u64) -> Self {
        Self { now, wall }
    }

    /// The next one. How much longer the wall clock went on since the last than the other, if that
    /// is worth a word.
    pub fn beat(&mut self, now: Instant, wall: u64) -> Option<Duration> {
        let ran = now.saturating_duration_since(self.now);
        let passed = Duration::from_millis(wall.saturating_sub(self.wall));
        *self = Self::new(now, wall);
        passed.checked_sub(ran).filter(|missed| *missed >= STOOD_STILL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
    fn only_a_wall_clock_that_leaps_ahead_shows_a_standstill() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pulse = Pulse::new(start, 1_000_000);
        for (now, wall, missed) in [
            (1000, 1_001_000, None),
            // The whole process was stopped: timers tell, and the others are met again by them.
            (61_000, 1_061_000, None),
            // An hour in the life of the others.
            (62_000, 4_662_000, Some(3600)),
            (63_000, 4_663_000, None),
            // A clock that is drawn near by a time server.
            (64_000, 4_666_900, None),
            (65_000, 4_670_900, Some(3)),
            // Set back.
            (66_000, 1_000_000, None),
            (67_000, 1_001_000, None),
        ] {
            assert_eq!(pulse.beat(at(now), wall), missed.map(Duration::from_secs), "{now}");
        }
    }

    #[test]
    fn offsets_are_said_in_the_two_largest_units() {
        let said = |this, that| Offset::between(this, that).to_string();
        assert_eq!(said(7_380_000, 0), "2h 3m ahead of");
        assert_eq!(said(0, 120_500), "2m behind");
        assert_eq!(said(0, 121_000), "2m 1s behind");
        assert_eq!(said(90_061_000, 0), "1d 1h ahead of");
        assert_eq!(said(86_400_000, 0), "1d ahead of");
        assert_eq!(said(5, 0), "0s ahead of");
        assert_eq!(said(0, u64::MAX), said(0, u64::MAX - 1));
    }

    #[test]
    fn five_minutes_are_the_last_that_are_let_in() {
        for sign in [Offset::reversed, |offset| offset] {
            assert!(!sign(Offset::between(300_000, 0)).is_too_large());
            assert!(sign(Offset::between(300_001, 0)).is_too_large());
            assert!(!sign(Offset::between(10_000, 0)).is_worth_telling());
            assert!(sign(Offset::between(10_001, 0)).is_worth_telling());
        }
        assert!(Offset::between(u64::MAX, 0).is_too_large());
        assert!(Offset::between(0, u64::MAX).reversed().is_too_large());
    }
}
