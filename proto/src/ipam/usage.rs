//! What becomes of the addresses of a subnet, for people: [`Usage`].

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    Block, Pool,
    cidr::{Cidr, address},
};

/// The addresses of one subnet, as one node knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Every block, by address.
    pub blocks: Vec<BlockUsage>,
    /// Addresses that this node released a moment ago, and how long they rest yet.
    pub resting: Vec<(IpAddr, Duration)>,
}

/// The addresses of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockUsage {
    /// The block.
    pub block: Block,
    /// How many addresses of it endpoints have.
    pub used: u128,
    /// How many can be given out unasked.
    pub free: u128,
}

impl Pool {
    /// What becomes of the addresses. `elsewhere` are the addresses that other nodes' endpoints
    /// claim.
    pub fn usage(&mut self, elsewhere: &BTreeSet<IpAddr>, now: Instant) -> Usage {
        self.wake(now);
        let v6 = self.subnet().is_v6();
        let busy = self.busy(elsewhere);
        let block = |block: Block| {
            let (used, free) = Cidr::of(&block.cidr).map_or((0, 0), |cidr| {
                let taken = busy.range(cidr.first..=cidr.last());
                let used = taken.filter(|number| !self.resting.contains_key(*number)).count();
                (used as u128, self.free_in(cidr, &busy))
            });
            BlockUsage { block, used, free }
        };
        let rest = |(number, until): (&u128, &Instant)| (address(*number, v6), *until - now);
        Usage {
            blocks: self.ownership().blocks().map(block).collect(),
            resting: self.resting.iter().map(rest).collect(),
        }
    }
}
