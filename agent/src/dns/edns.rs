//! Which upstreams are asked without EDNS: those that refuse it, and those that were silent with it
//! and answered without.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

/// After this they are asked with EDNS again: somebody may have mended them.
const KEPT: Duration = Duration::from_secs(300);
/// Upstreams that are remembered; others are found out anew.
const UPSTREAMS: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// A refusal is certain. Silence may be a lost packet, so it takes two.
const CERTAIN: u8 = 2;

/// What is known of upstreams.
#[derive(Debug)]
pub(super) struct Plain(Mutex<LruCache<SocketAddr, (u8, Instant)>>);

impl Default for Plain {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(UPSTREAMS)))
    }
}

impl Plain {
    /// Whether an upstream is asked without EDNS.
    pub(super) fn is(&self, upstream: SocketAddr, now: Instant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = known.get(&upstream);
        last.is_some_and(|(signs, since)| *signs >= CERTAIN && now.duration_since(*since) < KEPT)
    }

    /// It refused a question with EDNS.
    pub(super) fn refused(&self, upstream: SocketAddr, now: Instant) {
        self.note(upstream, CERTAIN, now);
    }

    /// It was silent with EDNS and answered without.
    pub(super) fn ignored(&self, upstream: SocketAddr, now: Instant) {
        self.note(upstream, 1, now);
    }

    /// It answered with EDNS.
    pub(super) fn knows(&self, upstream: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop(&upstream);
    }

    fn note(&self, upstream: SocketAddr, signs: u8, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(&upstream).map_or(0, |(signs, _since)| *signs);
        known.put(upstream, (before.saturating_add(signs), now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_certain_and_silence_may_be_chance() {
        let (plain, now) = (Plain::default(), Instant::now());
        let [a, b, c] =
            ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"].map(|a| a.parse().unwrap());
        plain.refused(a, now);
        assert!(plain.is(a, now) && !plain.is(b, now));
        assert!(!plain.is(a, now + KEPT), "it may have been mended");
        plain.ignored(b, now);
        assert!(!plain.is(b, now));
        plain.ignored(b, now);
        assert!(plain.is(b, now));
        plain.ignored(c, now);
        plain.knows(c);
        plain.ignored(c, now);
        assert!(!plain.is(c, now), "it answered in between");
    }
}
