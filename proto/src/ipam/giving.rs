//! How a node parts with addresses for another: [`Pool::give`], [`Need`], [`Withheld`].
//!
//! All addresses of nodes that are up can be used: who has none left gets some as long as anybody
//! has, down to the last one. So that asking often is not needed, a gift is about half of what the
//! giver has, in several blocks where it is in pieces.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    Pool, Transfer,
    cidr::{Cidr, address},
    pool::seconds,
};
use crate::{
    addr::NodeId,
    limits::{BLOCK_EVERY, BLOCKS_AT_ONCE, BLOCKS_PER_GIFT},
};

/// What a node that asks for addresses wants them for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To have some when it is cut off later: nobody gives its last one for that.
    InAdvance,
    /// An endpoint waits for one.
    Now,
}

impl Need {
    /// As the request for a block says it: how many addresses are wanted now.
    #[must_use]
    pub const fn of_wanted(want: u32) -> Self {
        if want == 0 { Self::InAdvance } else { Self::Now }
    }

    /// See [`Self::of_wanted`].
    #[must_use]
    pub const fn wanted(self) -> u32 {
        match self {
            Self::InAdvance => 0,
            Self::Now => 1,
        }
    }
}

/// Why no block is given away. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Withheld {
    /// There is nothing to spare.
    #[error("this node has no addresses to spare")]
    None,
    /// What there is to spare rests for so long.
    #[error("what this node has to spare was handed over a moment ago and rests for {}s more", seconds(.0))]
    Resting(Duration),
    /// The receiver has as much as this node.
    #[error("as far as this node knows, the node that asks has as many free addresses as this one")]
    Enough,
    /// The receiver got much a moment ago.
    #[error("the node that asks got {BLOCKS_AT_ONCE} gifts a moment ago; it may ask again in {}s", BLOCK_EVERY.as_secs())]
    TooOften,
}

impl Pool {
    /// Parts with about half of the free addresses for another node, with the last one only if that
    /// node needs one now and has none. The blocks are given up here and now: the transfers must be
    /// durable before they are sent.
    ///
    /// As long as the receiver does not use what it gets, this node keeps a quarter at least of
    /// what neither of the two uses, however often it is asked.
    ///
    /// # Errors
    /// [`Withheld`] says why all stays here.
    pub fn give(
        &mut self,
        to: NodeId,
        need: Need,
        elsewhere: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Result<Vec<Transfer>, Withheld> {
        self.wake(now);
        self.paced.retain(|_, until| *until > now);
        if to == self.me {
            return Err(Withheld::None);
        }
        let busy = self.busy(elsewhere);
        let free = self.free_of(self.me, &busy);
        if free == 0 || (free == 1 && need == Need::InAdvance) {
            return Err(self.withheld(&busy, now));
        }
        let next = self.paced.get(&to).copied().unwrap_or(now) + BLOCK_EVERY;
        if next > now + BLOCK_EVERY * BLOCKS_AT_ONCE {
            return Err(Withheld::TooOften);
        }
        if self.free_of(to, &busy) >= free {
            return Err(Withheld::Enough);
        }
        let gift = self.gift(to, need, free.div_ceil(2), &busy);
        if gift.is_empty() {
            return Err(Withheld::None);
        }
        self.paced.insert(to, next);
        self.ownership.extend(gift.iter().copied());
        Ok(gift)
    }

    /// Why there is nothing to spare.
    fn withheld(&self, busy: &BTreeSet<u128>, now: Instant) -> Withheld {
        let handed = self.handed(busy).into_iter().filter(|(_, free, _)| *free > 0);
        let first = handed.map(|(.., until)| until - now).min();
        first.map_or(Withheld::None, Withheld::Resting)
    }

    /// At most so many free addresses, and most of these unless they lie in too many pieces. In
    /// advance half of these do, if one block is that large.
    fn gift(&self, to: NodeId, need: Need, most: u128, busy: &BTreeSet<u128>) -> Vec<Transfer> {
        let enough = match need {
            Need::InAdvance => most.div_ceil(2),
            Need::Now => most - most / 8,
        };
        let v6 = self.subnet.is_v6();
        let mut free = Vec::new();
        for cidr in self.mine() {
            self.free_blocks(cidr, busy, &mut free);
        }
        // The largest first, of equal ones the upper: endpoints of this node are in the lower part
        // more often.
        free.sort_unstable_by_key(|cidr| (cidr.bits, cidr.first));
        let (mut gift, mut moved) = (Vec::new(), 0);
        for cidr in free.into_iter().rev() {
            if gift.len() == BLOCKS_PER_GIFT || moved >= enough {
                break;
            }
            let Some((part, worth)) = self.part(cidr, most - moved, busy) else { continue };
            let block = self.ownership.block_at(address(part.first, v6));
            if let Some(transfer) = block.and_then(|block| block.give(part.net(v6), to)) {
                gift.push(transfer);
                moved += worth;
            }
        }
        gift
    }

    /// The largest upper part of a free block that is worth so many addresses at most, and its
    /// worth.
    fn part(&self, mut cidr: Cidr, most: u128, busy: &BTreeSet<u128>) -> Option<(Cidr, u128)> {
        loop {
            let worth = self.worth(cidr, busy);
            if worth <= most {
                return (worth > 0).then_some((cidr, worth));
            }
            let (low, high) = cidr.halves()?;
            cidr = if self.worth(high, busy) > 0 { high } else { low };
        }
    }

    /// How many addresses of a block its owner may choose.
    fn worth(&self, cidr: Cidr, busy: &BTreeSet<u128>) -> u128 {
        cidr.size() - self.unavailable(cidr, busy)
    }

    /// Finds the blocks without a busy address of which something can be given out, each as large
    /// as it can be.
    fn free_blocks(&self, cidr: Cidr, busy: &BTreeSet<u128>, free: &mut Vec<Cidr>) {
        if busy.range(cidr.first..=cidr.last()).next().is_none() {
            free.extend((self.worth(cidr, busy) > 0).then_some(cidr));
        } else if let Some((low, high)) = cidr.halves() {
            self.free_blocks(low, busy, free);
            self.free_blocks(high, busy, free);
        }
    }
}
