//! Which issuers keep the CA's key when several give it up at one moment.
//!
//! ```text
//! asks another issuer ─> it promises to keep the key ─> commits, gives the key up
//!                  └──> it gives its own up as well: the one with the smaller id goes, the other stays
//! ```
//!
//! A promise binds for [`PROMISE`], so that whoever got it can go; a commitment until it is taken
//! back.

use std::time::{Duration, Instant};

use crate::addr::NodeId;

/// How long an issuer keeps the key for another one's sake: longer than giving it up takes.
pub const PROMISE: Duration = Duration::from_secs(30);

/// What an issuer is about to do with the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Keeps,
    /// It asks whether another one keeps it.
    Asks,
    /// Another one does, and this one gives it up.
    Goes,
}

/// The state of one issuer.
#[derive(Debug, Default)]
pub struct Succession {
    stage: Stage,
    promised: Option<Instant>,
}

impl Succession {
    /// Begins to look for a successor; refused while another node counts on this one, or it does so
    /// already.
    #[must_use]
    pub fn ask(&mut self, now: Instant) -> bool {
        let bound = self.promised.is_some_and(|at| now.saturating_duration_since(at) < PROMISE);
        if bound || self.stage != Stage::Keeps {
            return false;
        }
        self.stage = Stage::Asks;
        true
    }

    /// Another issuer asks whether this node, `me`, keeps the key.
    #[must_use]
    pub fn promise(&mut self, from: NodeId, me: NodeId, now: Instant) -> bool {
        match self.stage {
            Stage::Goes => return false,
            Stage::Asks if from > me => return false,
            // That one goes, this one stays.
            Stage::Asks => self.stage = Stage::Keeps,
            Stage::Keeps => {}
        }
        self.promised = Some(now);
        true
    }

    /// Another issuer promised; whether this node may go, which it may not if it promised
    /// meanwhile.
    #[must_use]
    pub fn commit(&mut self) -> bool {
        let may = self.stage == Stage::Asks;
        if may {
            self.stage = Stage::Goes;
        }
        may
    }

    /// It stays after all.
    pub const fn stay(&mut self) {
        self.stage = Stage::Keeps;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
mod tests {
    use super::*;

    fn ids() -> (NodeId, NodeId) {
        let (a, b) = (NodeId::of_public_key(b"a"), NodeId::of_public_key(b"b"));
        (a.min(b), a.max(b))
    }

    /// Two issuers ask each other; `order` says whose steps come first.
    fn both_go(order: &[usize]) -> [bool; 2] {
        let (small, large) = ids();
        let now = Instant::now();
        let id = [small, large];
        let mut nodes = [Succession::default(), Succession::default()];
        let mut step = [0; 2];
        let mut answer = [false; 2];
        let mut went = [false; 2];
        for &who in order {
            let other = 1 - who;
            match step[who] {
                0 => answer[who] = nodes[who].ask(now),
                1 => answer[who] = answer[who] && nodes[other].promise(id[who], id[other], now),
                _ => went[who] = answer[who] && nodes[who].commit(),
            }
            step[who] += 1;
        }
        went
    }

    #[test]
    fn of_two_that_go_at_once_one_at_most_does_in_any_order() {
        let mut some_went = 0;
        for pattern in 0_u32..64 {
            let order: Vec<usize> =
                (0..6).map(|bit| usize::from(pattern >> bit & 1 == 1)).collect();
            if order.iter().filter(|who| **who == 0).count() != 3 {
                continue;
            }
            let went = both_go(&order);
            assert!(!(went[0] && went[1]), "{order:?}");
            some_went += usize::from(went[0] || went[1]);
        }
        assert_eq!(some_went, 20, "in each of the orders one may go");
    }

    #[test]
    fn a_promise_binds_for_a_while_and_a_commitment_until_it_is_taken_back() {
        let (small, large) = ids();
        let now = Instant::now();
        let mut node = Succession::default();
        assert!(node.promise(large, small, now));
        assert!(!node.ask(now) && !node.ask(now + PROMISE / 2));
        assert!(node.ask(now + PROMISE) && node.commit());
        assert!(!node.promise(small, large, now + PROMISE) && !node.ask(now + PROMISE));
        node.stay();
        assert!(node.promise(large, small, now + PROMISE));
    }
}
