//! A token bucket that many threads share without a lock: the generic cell rate algorithm (ITU-T
//! I.371 annex A), whose whole state is one number, the time at which the bucket is full again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// One bucket.
#[derive(Debug)]
pub struct TokenBucket {
    epoch: Instant,
    /// Nanoseconds between two tokens.
    interval: u64,
    /// Nanoseconds that a full bucket is worth.
    depth: u64,
    /// When the bucket is full again, in nanoseconds since `epoch`.
    full_at: AtomicU64,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens that gets `per_second` new ones.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let interval = 1_000_000_000 / u64::from(per_second.max(1));
        let depth = interval * u64::from(burst.max(1));
        Self { epoch: now, interval, depth, full_at: AtomicU64::new(0) }
    }

    /// Takes one token if there is one.
    pub fn take(&self, now: Instant) -> bool {
        self.take_many(1, now)
    }

    /// Takes this many tokens, or none if there are fewer; so never more than a burst.
    pub fn take_many(&self, count: usize, now: Instant) -> bool {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let cost = self.interval.saturating_mul(count);
        let since = now.saturating_duration_since(self.epoch);
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX / 2);
        self.full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let full_at = full_at.max(now).saturating_add(cost);
                (full_at - now <= self.depth).then_some(full_at)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::tables::tests::now;

    #[test]
    fn burst_then_rate() {
        let start = now();
        let bucket = TokenBucket::new(10, 3, start);
        assert_eq!((0..10).filter(|_| bucket.take(start)).count(), 3);
        assert!(!bucket.take(start + Duration::from_millis(99)));
        assert!(bucket.take(start + Duration::from_millis(100)));
        assert!(!bucket.take(start + Duration::from_millis(100)));
        let later = start + Duration::from_secs(30);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 3, "it never holds more");
    }

    #[test]
    fn many_are_taken_at_once_or_none() {
        let start = now();
        let bucket = TokenBucket::new(10, 5, start);
        assert!(!bucket.take_many(6, start), "more than it holds");
        assert!(!bucket.take_many(usize::MAX, start));
        assert!(bucket.take_many(3, start), "what was refused took nothing");
        assert!(!bucket.take_many(3, start) && bucket.take_many(2, start));
        assert!(!bucket.take(start));
        assert!(bucket.take_many(3, start + Duration::from_millis(300)));
    }

    #[test]
    fn a_time_before_the_epoch_takes_from_the_burst() {
        let start = now() + Duration::from_secs(5);
        let bucket = TokenBucket::new(1, 2, start);
        let before = start - Duration::from_secs(3);
        assert_eq!((0..5).filter(|_| bucket.take(before)).count(), 2);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_plus_rate(rate in 1u32..5000, burst in 1u32..500, gaps in prop::collection::vec(0u64..20_000, 1..400)) {
            let start = now();
            let bucket = TokenBucket::new(rate, burst, start);
            let mut now = start;
            let mut taken = 0u64;
            for gap in gaps {
                now += Duration::from_micros(gap);
                taken += u64::from(bucket.take(now));
                let allowed = (now - start).as_nanos() / u128::from(1_000_000_000 / rate) + u128::from(burst);
                prop_assert!(u128::from(taken) <= allowed);
            }
        }
    }
}
