//! What becomes of the addresses of a subnet, for people: [`Usage`].

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;

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
    /// Blocks that this node got a moment ago of one that left, by address: they rest as a whole.
    pub handed: Vec<HandedBlock>,
}

/// A block that rests, as who had it before may have released some of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandedBlock {
    /// Which addresses.
    pub cidr: IpNet,
    /// How many of them can be given out unasked after that.
    pub resting: u128,
    /// How long it rests yet.
    pub left: Duration,
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
                let awake = self.awake(cidr).into_iter();
                (used as u128, awake.map(|cidr| self.free_in(cidr, &busy)).sum())
            });
            BlockUsage { block, used, free }
        };
        let handed = |(cidr, resting, until): (Cidr, u128, Instant)| HandedBlock {
            cidr: cidr.net(v6),
            resting,
            left: until - now,
        };
        let rest = |(number, until): (&u128, &Instant)| (address(*number, v6), *until - now);
        Usage {
            blocks: self.ownership().blocks().map(block).collect(),
            resting: self.resting.iter().map(rest).collect(),
            handed: self.handed(&busy).into_iter().map(handed).collect(),
        }
    }
}
