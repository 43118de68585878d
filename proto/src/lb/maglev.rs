//! Which backend a flow gets, the same on every node without a word between them: Maglev hashing
//! (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each backend has a permutation of the table's places, made from its key alone. In turns, a
//! backend with weight 2 twice as often as one with weight 1, each takes the next place of its
//! permutation that is still free. So all have their share to within a place or so, and when one
//! goes, nearly all others keep what they have.
//!
//! The size of the table depends on nothing that changes often, because another size is another
//! permutation of everything (decision 30).

use ring::digest;

use crate::{
    limits::{SERVICE_BACKENDS, SERVICE_WEIGHT},
    tables::RowKey,
};

/// Places of a table, a prime, and for how many backends: 128 places each at least, so that shares
/// are equal to within a hundredth, and a change of one moves few flows of the others.
const SMALL: (u32, usize) = (16_411, 128);
/// The same for more: as many as a `u16` counts.
const LARGE: u32 = 65_521;
/// Places that are looked at for one flow: where half of the backends are out, more are never
/// needed.
const TRIES: usize = 64;
/// No backend.
const FREE: u16 = u16::MAX;

/// A table of places, each of which is a backend's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Maglev {
    places: Box<[u16]>,
    backends: u16,
    /// Those with weight 0, in order.
    idle: Box<[u16]>,
}

/// Where a backend is in its permutation, and how much it may take.
struct Turn {
    backend: u16,
    weight: u32,
    /// What it has been due so far less what it took, in parts of the largest weight.
    due: u32,
    next: u32,
    skip: u32,
}

impl Maglev {
    /// The table of these backends. Their order is the same everywhere: by their keys, which are
    /// unlike. Those with weight 0 get nothing.
    #[must_use]
    pub(super) fn new(backends: &[(RowKey, u8)]) -> Self {
        debug_assert!(backends.is_sorted_by(|one, two| one.0 < two.0));
        let backends = backends.get(..SERVICE_BACKENDS).unwrap_or(backends);
        let size = if backends.len() <= SMALL.1 { SMALL.0 } else { LARGE };
        let mut turns: Vec<Turn> = backends
            .iter()
            .zip(0u16..)
            .filter(|((_id, weight), _)| *weight > 0)
            .map(|((id, weight), backend)| Turn::of(id, *weight, backend, size))
            .collect();
        let Some(most) = turns.iter().map(|turn| turn.weight).max() else {
            return Self::default();
        };
        let mut places = vec![FREE; size as usize].into_boxed_slice();
        let mut free = places.len();
        while free > 0 {
            for turn in &mut turns {
                turn.due += turn.weight;
                if turn.due < most || free == 0 {
                    continue;
                }
                turn.due -= most;
                turn.take(&mut places, size);
                free -= 1;
            }
        }
        let numbered = || backends.iter().zip(0u16..);
        let idle = numbered().filter(|((_id, weight), _)| *weight == 0).map(|(_, at)| at);
        Self { places, backends: u16::try_from(backends.len()).unwrap_or(0), idle: idle.collect() }
    }

    /// The backend at the place of a flow's hash, then those at the places behind it until one is
    /// `usable`; none if nobody is.
    pub(super) fn choose(&self, hash: u64, usable: impl Fn(u16) -> bool) -> Option<u16> {
        let first = place(hash, self.places.len());
        let (before, behind) = self.places.split_at_checked(first)?;
        // Neighbouring places are nobody's in particular, so that the share of one who is out is
        // spread over all others.
        let tried = behind.iter().chain(before).take(TRIES).copied();
        // Where hardly anybody is left, who comes next is good enough, and does not cost more the
        // fewer there are.
        let from = u16::try_from(place(hash, self.backends.into())).unwrap_or_default();
        let rest = (from..self.backends).chain(0..from);
        tried.chain(rest.filter(|backend| self.has_places(*backend))).find(|it| usable(*it))
    }

    fn has_places(&self, backend: u16) -> bool {
        self.idle.binary_search(&backend).is_err()
    }
}

impl Turn {
    fn of(key: &RowKey, weight: u8, backend: u16, size: u32) -> Self {
        let hash = digest::digest(
            &digest::SHA256,
            &[b"vxmesh maglev 1\0".as_slice(), key.endpoint.bytes(), key.node.as_str().as_bytes()]
                .concat(),
        );
        let word = |at: usize| {
            let bytes = hash.as_ref().get(at..).and_then(<[u8]>::first_chunk).copied();
            u64::from_be_bytes(bytes.unwrap_or_default())
        };
        let within = |word: u64, most: u32| u32::try_from(word % u64::from(most)).unwrap_or(0);
        Self {
            backend,
            weight: weight.min(SERVICE_WEIGHT).into(),
            due: 0,
            next: within(word(0), size),
            skip: within(word(8), size - 1) + 1,
        }
    }

    /// Takes the next free place of the permutation; there is one.
    fn take(&mut self, places: &mut [u16], size: u32) {
        for _ in 0..size {
            let at = self.next as usize;
            self.next = (self.next + self.skip) % size;
            if let Some(place) = places.get_mut(at).filter(|place| **place == FREE) {
                *place = self.backend;
                return;
            }
        }
    }
}

/// A hash as one of so many places, evenly (Lemire, "Fast random integer generation in an
/// interval").
fn place(hash: u64, places: usize) -> usize {
    let product = u128::from(hash) * (places as u128);
    usize::try_from(product >> 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{addr::EndpointId, tables::tests::node};

    /// Ids that look like those of endpoints, another set for each seed.
    fn backends(seed: u16, count: u16) -> Vec<(RowKey, u8)> {
        let mut all: Vec<_> = (0..count)
            .map(|n| {
                let bytes = [seed.to_be_bytes(), n.to_be_bytes()].concat();
                let hash = digest::digest(&digest::SHA256, &bytes);
                (
                    RowKey {
                        node: node(1),
                        endpoint: EndpointId::from_random(*hash.as_ref().first_chunk().unwrap()),
                    },
                    1,
                )
            })
            .collect();
        all.sort_unstable();
        all
    }

    fn owners(table: &Maglev, backends: &[(RowKey, u8)]) -> Vec<RowKey> {
        table.places.iter().map(|at| backends[usize::from(*at)].0).collect()
    }

    fn shares(table: &Maglev, count: usize) -> Vec<f64> {
        let mut shares = vec![0.0; count];
        table.places.iter().for_each(|at| shares[usize::from(*at)] += 1.0);
        shares.into_iter().map(|share| share / table.places.len() as f64).collect()
    }

    #[test]
    fn five_backends_have_equal_shares_within_a_fiftieth() {
        for seed in 0..20 {
            let backends = backends(seed, 5);
            for share in shares(&Maglev::new(&backends), 5) {
                assert!((share / 0.2 - 1.0).abs() < 0.02, "{share}, seed {seed}");
            }
        }
    }

    /// A removed backend gives up its own share. What the others have moves little.
    #[test]
    fn a_removal_moves_little_of_what_the_others_have() {
        for (count, seeds) in [(5, 40), (9, 11), (16, 7), (128, 1)] {
            let mut moves = Vec::new();
            for seed in 0..seeds {
                let all = backends(seed, count);
                let before = owners(&Maglev::new(&all), &all);
                for gone in 0..usize::from(count.min(30)) {
                    let mut rest = all.clone();
                    rest.remove(gone);
                    let after = owners(&Maglev::new(&rest), &rest);
                    assert_eq!(before.len(), after.len(), "the size stays");
                    let kept = before.iter().zip(&after).filter(|(old, _)| **old != all[gone].0);
                    let (of, moved) = kept.fold((0u32, 0u32), |(of, moved), (old, new)| {
                        (of + 1, moved + u32::from(old != new))
                    });
                    moves.push(f64::from(moved) / f64::from(of));
                }
            }
            moves.sort_by(f64::total_cmp);
            let mean = moves.iter().sum::<f64>() / moves.len() as f64;
            let usual = moves[moves.len() * 98 / 100];
            let most = moves.last().unwrap();
            println!(
                "{count} backends: {:.2} % on average, {:.2} % in 98 of 100 cases, {:.2} % at most",
                mean * 100.0,
                usual * 100.0,
                most * 100.0,
            );
            assert!(mean <= 0.025 && usual <= 0.04, "{mean}, {usual}, {count} backends");
            // Where one place follows from another to the end of the table, it is rarely more.
            assert!(*most <= 0.06, "{most}, {count} backends");
        }
    }

    #[test]
    fn weights_are_shares() {
        let mut backends = backends(7, 4);
        for (backend, weight) in backends.iter_mut().zip([1, 2, 0, 5]) {
            backend.1 = weight;
        }
        let shares = shares(&Maglev::new(&backends), 4);
        for (share, wanted) in shares.iter().zip([0.125, 0.25, 0.0, 0.625]) {
            assert!((share - wanted).abs() < 0.001, "{shares:?}");
        }
    }

    #[test]
    fn who_is_out_leaves_its_share_to_all_others() {
        let table = Maglev::new(&backends(3, 5));
        let step = u64::MAX / 50_000;
        let mut shares = [0u32; 5];
        for n in 0..50_000 {
            let chosen = table.choose(n * step, |backend| backend != 2).unwrap();
            shares[usize::from(chosen)] += 1;
            if let Some(first) = table.choose(n * step, |_| true).filter(|first| *first != 2) {
                assert_eq!(chosen, first, "who is not out keeps its flows");
            }
        }
        assert_eq!(shares[2], 0);
        for share in [shares[0], shares[1], shares[3], shares[4]] {
            assert!((12_000..13_000).contains(&share), "{shares:?}");
        }
        assert_eq!(table.choose(7, |_| false), None);
    }

    #[test]
    fn the_last_one_of_many_is_found() {
        let mut backends = backends(3, 500);
        backends[400].1 = 0;
        let table = Maglev::new(&backends);
        for hash in [0, 7, u64::MAX / 2, u64::MAX] {
            assert_eq!(table.choose(hash, |backend| backend == 499), Some(499));
            assert_eq!(table.choose(hash, |backend| backend == 400), None, "its weight is 0");
        }
    }

    #[test]
    fn nobody_to_choose_from() {
        assert_eq!(Maglev::new(&[]).choose(7, |_| true), None);
        let mut idle = backends(1, 2);
        idle.iter_mut().for_each(|backend| backend.1 = 0);
        assert_eq!(Maglev::new(&idle).choose(7, |_| true), None);
        assert_eq!(Maglev::new(&backends(1, 1)).choose(u64::MAX, |_| true), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_table_is_full_and_the_same_each_time(seed: u16, weights in prop::collection::vec(0u8..=100, 1..40)) {
            let mut backends = backends(seed, u16::try_from(weights.len()).unwrap());
            for (backend, weight) in backends.iter_mut().zip(&weights) {
                backend.1 = *weight;
            }
            let table = Maglev::new(&backends);
            let total: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            prop_assert_eq!(table.places.is_empty(), total == 0);
            prop_assert!(!table.places.contains(&FREE));
            prop_assert_eq!(&Maglev::new(&backends), &table);
            if total > 0 {
                for (share, weight) in shares(&table, weights.len()).iter().zip(&weights) {
                    let wanted = f64::from(*weight) / f64::from(total);
                    prop_assert!((share - wanted).abs() < 0.001, "{} for {}", share, wanted);
                }
            }
        }
    }
}
