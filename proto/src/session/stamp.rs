//! TAI64N timestamps (<https://cr.yp.to/libtai/tai64.html>) that only grow: what makes a replayed
//! initiation old.
//!
//! The wall clock enters at the start; from there on monotonic time carries it, so a clock that is
//! set back while the agent runs harms nothing. It enters again after the host stood still or was
//! set back to an earlier moment, for what was sent since would be newer otherwise.

use std::time::{Duration, Instant};

/// Seconds since 1970 TAI as 2^62 + n big endian, then nanoseconds: compares as bytes.
pub(super) type Stamp = [u8; 12];

/// Makes timestamps.
pub(super) struct Stamper {
    start: Instant,
    wall_at_start: Duration,
    last: Duration,
}

impl Stamper {
    pub(super) const fn new(start: Instant, wall_at_start: Duration) -> Self {
        Self { start, wall_at_start, last: Duration::ZERO }
    }

    /// Goes on from the wall clock, if that is ahead.
    pub(super) fn catch_up(&mut self, now: Instant, wall: Duration) {
        let own = self.wall_at_start.saturating_add(now.saturating_duration_since(self.start));
        if wall > own {
            (self.start, self.wall_at_start) = (now, wall);
        }
    }

    /// A timestamp greater than all before it.
    pub(super) fn next(&mut self, now: Instant) -> Stamp {
        let wall = self.wall_at_start.saturating_add(now.saturating_duration_since(self.start));
        self.last = wall.max(self.last.saturating_add(Duration::from_nanos(1)));
        let mut stamp = [0; 12];
        let (seconds, nanos) = stamp.split_at_mut(8);
        seconds.copy_from_slice(&(TAI_EPOCH.saturating_add(self.last.as_secs())).to_be_bytes());
        nanos.copy_from_slice(&self.last.subsec_nanos().to_be_bytes());
        stamp
    }
}

/// 1970-01-01 00:00:00 UTC: TAI was 10 seconds ahead by convention of the format.
const TAI_EPOCH: u64 = (1 << 62) + 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
    fn known_value_and_growth() {
        let start = Instant::now();
        let mut stamper = Stamper::new(start, Duration::new(0x2a2b_2c2d - 10, 0));
        // The example of the format's definition: 1992-06-02 08:07:09 TAI.
        assert_eq!(stamper.next(start)[..8], [0x40, 0, 0, 0, 0x2a, 0x2b, 0x2c, 0x2d]);
        let second = stamper.next(start);
        let earlier = stamper.next(start);
        let later = stamper.next(start + Duration::from_secs(1));
        assert!(second < earlier && earlier < later);
        assert_eq!(later[8..], [0; 4]);
        // Behind, so nothing changes; then ahead.
        stamper.catch_up(start + Duration::from_secs(1), Duration::from_secs(5));
        let next = stamper.next(start + Duration::from_secs(1));
        assert!(later < next && next[..8] == later[..8]);
        stamper.catch_up(start + Duration::from_secs(1), Duration::new(0x2a2b_2d2d - 10, 0));
        let caught_up = stamper.next(start + Duration::from_secs(2));
        assert_eq!(caught_up[..8], [0x40, 0, 0, 0, 0x2a, 0x2b, 0x2d, 0x2e]);
    }
}
