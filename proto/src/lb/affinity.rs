//! Which backend each client of a service had last: [`Affinity`]. Its next flows go there, too.
//!
//! ```text
//! place  : tag 20 | second 22 | backend 22
//! bucket : 8 places, one cache line
//! ```
//!
//! One word says all of a client, so nobody waits, and of two threads that choose for a client at
//! the same time one sees what the other chose. The tag is a part of the hash of the client's
//! address, the backend is the beginning of its endpoint's id. Clients or backends that look alike
//! here, two of many millions, go where the other one goes. Where all places of a bucket are taken,
//! the client that was not seen for longest is forgotten.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{addr::EndpointId, limits::STICKY_CLIENTS};

const PLACES: usize = 8;
const BUCKETS: usize = STICKY_CLIENTS / PLACES;
const TAG_AT: u32 = 44;
const SECOND_AT: u32 = 22;
/// What there is room for of a second, 48 days, and of an endpoint's id.
const PART: u64 = (1 << SECOND_AT) - 1;
/// Threads may be so far apart: what one of them wrote is not old.
const AHEAD: u64 = 16;

/// The clients of one service, by the hashes of their addresses.
#[derive(Debug)]
pub(super) struct Affinity(Box<[AtomicU64]>);

/// Where it is noted which backend a client has, and what was found there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    at: usize,
    tag: u64,
    word: u64,
}

/// The beginning of an endpoint's id, by which a client's backend is known.
pub(super) fn beginning(endpoint: EndpointId) -> u64 {
    let [a, b, c, d, ..] = *endpoint.bytes();
    u64::from(u32::from_be_bytes([a, b, c, d])) >> (32 - SECOND_AT)
}

impl Default for Affinity {
    fn default() -> Self {
        Self(std::iter::repeat_with(AtomicU64::default).take(STICKY_CLIENTS).collect())
    }
}

impl Affinity {
    /// The place of the client with this hash: its own, or one to have. `second` is now.
    pub(super) fn place(&self, client: u64, second: u32) -> Place {
        let tag = (client >> TAG_AT).max(1);
        let bucket = usize::try_from(client & (BUCKETS as u64 - 1)).unwrap_or_default();
        let mut oldest = Place { at: bucket * PLACES, tag, word: 0 };
        let mut age = None;
        for at in bucket * PLACES..(bucket + 1) * PLACES {
            let word = self.0.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
            let place = Place { at, tag, word };
            if place.is_its() {
                return place;
            }
            // Of equal ones the first: who looks for the same client now finds that, too.
            let its = if word == 0 { u64::MAX } else { place.age(second) };
            if age.is_none_or(|age| its > age) {
                (oldest, age) = (place, Some(its));
            }
        }
        oldest
    }

    /// Notes a client's backend. False if another thread has changed the place meanwhile.
    pub(super) fn claim(&self, place: &Place, backend: EndpointId, second: u32) -> bool {
        let second = u64::from(second) & PART;
        let word = place.tag << TAG_AT | second << SECOND_AT | beginning(backend);
        let Some(held) = self.0.get(place.at) else { return true };
        word == place.word
            || held.compare_exchange(place.word, word, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Place {
    /// The beginning of its backend's id, if the client has one and used it within `ttl` seconds.
    pub(super) fn backend(&self, second: u32, ttl: u32) -> Option<u64> {
        (self.is_its() && self.age(second) <= ttl.into()).then_some(self.word & PART)
    }

    const fn is_its(&self) -> bool {
        self.word >> TAG_AT == self.tag
    }

    /// Seconds since it was written.
    fn age(&self, second: u32) -> u64 {
        let age = u64::from(second).wrapping_sub(self.word >> SECOND_AT) & PART;
        if age > PART - AHEAD { 0 } else { age }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn endpoint(n: u8) -> EndpointId {
        EndpointId::from_random([n; 16])
    }

    /// Clients of one bucket.
    const fn client(n: u64) -> u64 {
        (n + 1) << TAG_AT
    }

    fn held(table: &Affinity, n: u64, second: u32, ttl: u32) -> Option<u64> {
        table.place(client(n), second).backend(second, ttl)
    }

    fn note(table: &Affinity, n: u64, backend: u8, second: u32) {
        assert!(table.claim(&table.place(client(n), second), endpoint(backend), second));
    }

    #[test]
    fn a_client_is_known_for_its_time_and_not_after() {
        let table = Affinity::default();
        assert_eq!(held(&table, 0, 5, 100), None);
        note(&table, 0, 7, 5);
        for (second, is_known) in [(5, true), (4, true), (105, true), (106, false)] {
            let its = held(&table, 0, second, 100);
            assert_eq!(its, is_known.then_some(beginning(endpoint(7))), "{second}");
        }
        // Days pass, and the clock's part begins anew.
        let late = u32::try_from(PART).unwrap();
        note(&table, 0, 8, late);
        assert_eq!(held(&table, 0, late + 9, 10), Some(beginning(endpoint(8))));
        assert_eq!(held(&table, 0, late + 11, 10), None);
    }

    #[test]
    fn of_two_threads_one_sees_what_the_other_chose() {
        let table = Affinity::default();
        let (one, other) = (table.place(client(3), 9), table.place(client(3), 9));
        assert!(table.claim(&one, endpoint(1), 9));
        assert!(!table.claim(&other, endpoint(2), 9));
        assert_eq!(held(&table, 3, 9, 0), Some(beginning(endpoint(1))));
    }

    #[test]
    fn where_there_is_no_room_the_one_not_seen_for_longest_goes() {
        let table = Affinity::default();
        for n in 0..8 {
            note(&table, n, 1, 10 + u32::try_from(n).unwrap());
        }
        note(&table, 0, 1, 30);
        note(&table, 8, 2, 31);
        let known = (0..9).filter(|n| held(&table, *n, 31, 100).is_some());
        assert_eq!(known.collect::<Vec<_>>(), [0, 2, 3, 4, 5, 6, 7, 8]);
    }

    proptest! {
        /// As long as there is room, it says what a map would say.
        #[test]
        fn it_is_a_map_with_a_time(
            steps in prop::collection::vec((0u64..8, 0u8..4, 0u32..50, prop::bool::ANY), 1..200),
        ) {
            let (table, mut model, mut now) = (Affinity::default(), HashMap::new(), 0);
            for (n, backend, pause, notes) in steps {
                now += pause;
                let known = model.get(&n).filter(|(_, at)| now - at <= 60);
                prop_assert_eq!(held(&table, n, now, 60), known.map(|(it, _)| *it));
                if notes {
                    note(&table, n, backend, now);
                    model.insert(n, (beginning(endpoint(backend)), now));
                }
            }
        }
    }
}
