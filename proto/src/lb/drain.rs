//! Which backends of a service get new flows, and for how long the others keep theirs: what checks
//! and drains make of them. Pure, in Unix milliseconds.
//!
//! ```text
//! ready -drain-> draining -the service's time for it-> drained: no backend any more
//! ```
//!
//! One that drains gets new flows only while no other is ready, so the last one serves until its
//! time is over.

use std::collections::BTreeMap;

use super::Backend;

/// Drains that are remembered without a look at whether they are asked for any more.
const REMEMBERED: usize = 4096;
/// How long one is remembered at least after it was asked for last, in milliseconds: who follows
/// services asks for each drain that there is several times in this.
const FORGOTTEN: u64 = 600_000;

/// When this node first heard of drains, by its own clock: the clocks of nodes may differ by more
/// than a drain takes.
#[derive(Clone, Debug, Default)]
pub struct DrainClock {
    /// The key is what the clock of another said.
    heard: BTreeMap<u64, Heard>,
    /// How many there were after the last look for those that can be forgotten.
    looked: usize,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    first: u64,
    /// When it was asked for last.
    asked: u64,
}

impl DrainClock {
    /// When a drain began by this node's clock, which is `now`, if another's said `since`. Until
    /// the agent is settled after its start, what it hears of may be older than that.
    pub fn begun(&mut self, since: u64, now: u64, is_settled: bool) -> u64 {
        let first = if is_settled { now } else { now.min(since) };
        let heard = self.heard.entry(since).or_insert(Heard { first, asked: now });
        heard.asked = now;
        let first = heard.first;
        // One that ended stays, too, as long as it is asked for: else it would begin anew.
        if self.heard.len() > REMEMBERED.max(self.looked.saturating_mul(2)) {
            self.heard.retain(|_, heard| now.saturating_sub(heard.asked) < FORGOTTEN);
            self.looked = self.heard.len();
        }
        first
    }
}

/// Until when the flows of a backend may go on that is drained, if it is: of its drains, which
/// began at these times, the first counts.
#[must_use]
pub fn deadline(begun: impl IntoIterator<Item = u64>, takes: u64) -> Option<u64> {
    Some(begun.into_iter().min()?.saturating_add(takes))
}

/// How a backend stands, as every node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// It gets connections.
    Ready,
    /// It has not passed its check yet.
    Unchecked,
    /// Its check, or somebody, says that it does not work.
    Failing,
    /// It gets no new connections, and keeps what it has for a while.
    Draining,
    /// It gets nothing any more.
    Drained,
}

impl BackendState {
    /// That of a backend of which this was heard, where the service has a check or none; with the
    /// [`deadline`] of its drains.
    #[must_use]
    pub fn of(has_check: bool, health: Option<bool>, (deadline, now): (Option<u64>, u64)) -> Self {
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Self::Drained;
        }
        match health {
            Some(false) => Self::Failing,
            None if has_check => Self::Unchecked,
            None | Some(true) if deadline.is_some() => Self::Draining,
            None | Some(true) => Self::Ready,
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unchecked => "unchecked",
            Self::Failing => "failing",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// The backends that are left, and which of them get new flows.
#[must_use]
pub fn serving(all: impl IntoIterator<Item = (BackendState, Backend)>) -> Vec<Backend> {
    let left = all.into_iter().filter(|(state, _)| *state != BackendState::Drained);
    let left: Vec<(BackendState, Backend)> = left.collect();
    let is_ready =
        |(state, it): &(BackendState, Backend)| *state == BackendState::Ready && it.weight > 0;
    let is_last = !left.iter().any(is_ready);
    let serves = |state| state == BackendState::Ready || is_last && state == BackendState::Draining;
    let left = left.into_iter();
    left.map(|(state, backend)| Backend { takes_new: serves(state), ..backend }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::tests::key;

    fn backend(n: u8, weight: u8) -> Backend {
        Backend { key: key(n, n), weight, takes_new: true, is_near: true }
    }

    /// What gets new flows of these, and what is left of them.
    fn taking(states: &[BackendState]) -> Vec<bool> {
        let all = states.iter().zip(1..).map(|(state, n)| (*state, backend(n, 1)));
        serving(all).iter().map(|backend| backend.takes_new).collect()
    }

    #[test]
    fn a_backend_stands_as_its_check_and_its_drains_say() {
        let at = |has_check, health, deadline| BackendState::of(has_check, health, (deadline, 500));
        assert_eq!(at(false, None, None), BackendState::Ready);
        assert_eq!(at(true, None, None), BackendState::Unchecked);
        assert_eq!(at(true, Some(true), None), BackendState::Ready);
        assert_eq!(at(true, Some(false), None), BackendState::Failing);
        assert_eq!(at(false, Some(false), None), BackendState::Failing, "somebody's word");
        assert_eq!(at(true, Some(true), Some(501)), BackendState::Draining);
        assert_eq!(at(true, None, Some(501)), BackendState::Unchecked, "it never served");
        assert_eq!(at(true, Some(false), Some(501)), BackendState::Failing, "nor does it now");
        for health in [None, Some(false), Some(true)] {
            assert_eq!(at(true, health, Some(500)), BackendState::Drained);
        }
    }

    /// A drain of ten seconds as two nodes see it whose clocks differ by a minute, and as one that
    /// starts in the middle does.
    #[test]
    fn each_node_counts_the_time_by_its_own_clock() {
        let takes = 10_000;
        for ahead in [0, 60_000] {
            let (mut clock, said) = (DrainClock::default(), 100_000);
            let mut states = Vec::new();
            for passed in [200, 5_000, 10_199, 10_200] {
                let now = said + ahead + passed;
                let begun = clock.begun(said, now, true);
                assert_eq!(begun, said + ahead + 200, "when it was first heard");
                states.push(BackendState::of(false, None, (deadline([begun], takes), now)));
            }
            let draining = [BackendState::Draining; 3];
            assert_eq!(states, [&draining[..], &[BackendState::Drained]].concat());
        }
        // An agent that starts takes another's word for it, but for none that is ahead of it.
        let mut clock = DrainClock::default();
        assert_eq!(clock.begun(100_000, 107_000, false), 100_000);
        assert_eq!(clock.begun(100_000, 108_000, true), 100_000, "it stays");
        assert_eq!(clock.begun(200_000, 108_000, false), 108_000);
    }

    #[test]
    fn of_two_drains_the_first_counts() {
        assert_eq!(deadline([900, 1000], 500), Some(1400));
        assert_eq!(deadline([], 500), None);
        assert_eq!(deadline([u64::MAX], 500), Some(u64::MAX));
    }

    #[test]
    fn the_last_one_serves_until_its_time_is_over() {
        use BackendState::{Drained, Draining, Failing, Ready, Unchecked};
        assert_eq!(taking(&[Ready, Ready]), [true, true]);
        assert_eq!(taking(&[Ready, Draining]), [true, false]);
        assert_eq!(taking(&[Draining, Draining]), [true, true]);
        assert_eq!(taking(&[Draining, Drained]), [true]);
        assert_eq!(taking(&[Drained, Drained]), [] as [bool; 0]);
        assert_eq!(taking(&[Failing, Draining]), [false, true], "whoever fails is no other");
        assert_eq!(taking(&[Unchecked, Draining]), [false, true]);
        assert_eq!(taking(&[Failing, Unchecked]), [false, false]);
        // Nor is one that gets no new flows by its weight.
        let all = [(Ready, backend(1, 0)), (Draining, backend(2, 1))];
        assert!(serving(all).iter().all(|backend| backend.takes_new));
    }

    #[test]
    fn drains_that_are_asked_for_are_not_forgotten_however_many_there_are() {
        let mut clock = DrainClock::default();
        let many = 2 * REMEMBERED as u64;
        for round in 0..10 {
            for since in 0..many {
                let begun = clock.begun(since, 1_000_000 + round * FORGOTTEN / 4, true);
                assert_eq!(begun, 1_000_000, "{since} in round {round}");
            }
        }
        // Others come and go: those that nobody asks for any more make room.
        let late = 1_000_000 + 10 * FORGOTTEN;
        for since in 0..20 * many {
            let now = late + since * FORGOTTEN / many;
            clock.begun(many + since, now, true);
            assert_eq!(clock.begun(7, now, true), 1_000_000, "it is still there");
            assert!(clock.heard.len() as u64 <= 4 * many, "{}", clock.heard.len());
        }
        assert_eq!(clock.begun(8, late, true), late, "it was not");
    }
}
