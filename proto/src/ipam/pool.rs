//! The addresses that this node gives out: [`Pool`].

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use thiserror::Error;

use super::{
    Ownership, Subnet, Transfer,
    cidr::{Cidr, address, number},
};
use crate::{addr::NodeId, limits::ADDRESS_QUARANTINE};

/// Why there is no address. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// This node has none left.
    #[error("{}", exhausted(.cidr, .holders))]
    Exhausted {
        /// The subnet.
        cidr: IpNet,
        /// Who still has some, the largest first. Ask one that is alive.
        holders: Vec<Holder>,
    },
    /// It lies somewhere else.
    #[error("{ip} is not in {cidr}")]
    Outside {
        /// What was asked for.
        ip: IpAddr,
        /// The subnet.
        cidr: IpNet,
    },
    /// No endpoint can have it.
    #[error(
        "{ip} cannot be given to an endpoint: it is the gateway's, reserved, or the address of {cidr} itself"
    )]
    Reserved {
        /// What was asked for.
        ip: IpAddr,
        /// The subnet.
        cidr: IpNet,
    },
    /// An endpoint has it.
    #[error("{0} is in use: choose another address or detach the endpoint that has it")]
    InUse(IpAddr),
    /// It was released a moment ago.
    #[error("{ip} was released a moment ago and rests for {}s more", seconds(.left))]
    Resting {
        /// What was asked for.
        ip: IpAddr,
        /// How long it rests yet.
        left: Duration,
    },
    /// Another node must be asked for it.
    #[error("{ip} is for node {owner} to give: it must be reachable")]
    NotOurs {
        /// What was asked for.
        ip: IpAddr,
        /// Who owns its block.
        owner: NodeId,
    },
}

/// A node that has free addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub node: NodeId,
    /// How many, as far as this node knows.
    pub free: u128,
}

/// One subnet, as the node `me` sees it and gives out its part.
///
/// Durable are the transfers and the addresses in use; after a restart they are put in again with
/// [`Pool::extend`] and [`Pool::adopt`].
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) subnet: Subnet,
    pub(super) me: NodeId,
    pub(super) ownership: Ownership,
    excluded: BTreeSet<u128>,
    used: BTreeSet<u128>,
    /// Released addresses and when they may be given again.
    pub(super) resting: BTreeMap<u128, Instant>,
    /// Blocks of which another node has released addresses, nobody knows which, and until when they
    /// rest as a whole.
    handed: Vec<(Cidr, Instant)>,
    /// Where the next search begins: addresses are given in turn, so one that was released comes
    /// late again.
    cursor: u128,
    /// Who got blocks, and when it may have as many at once again.
    pub(super) paced: BTreeMap<NodeId, Instant>,
}

impl Pool {
    /// A subnet whose blocks belong to these nodes.
    #[must_use]
    pub fn new(subnet: Subnet, ownership: Ownership, me: NodeId) -> Self {
        let (excluded, cursor) = (subnet.excluded(), subnet.block().first);
        let (used, resting) = (BTreeSet::new(), BTreeMap::new());
        let (handed, paced) = (Vec::new(), BTreeMap::new());
        Self { subnet, me, ownership, excluded, used, resting, handed, cursor, paced }
    }

    /// The subnet.
    #[must_use]
    pub const fn subnet(&self) -> &Subnet {
        &self.subnet
    }

    /// Who owns what.
    #[must_use]
    pub const fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Learns of transfers; see [`Ownership::extend`].
    pub fn extend(&mut self, transfers: impl IntoIterator<Item = Transfer>) -> bool {
        self.ownership.extend(transfers)
    }

    /// Takes back a transfer that nobody was told of; see [`Ownership::retract`].
    pub fn retract(&mut self, transfer: &Transfer) -> bool {
        self.ownership.retract(transfer)
    }

    /// Learns of blocks taken back from removed nodes; see [`Ownership::reclaim`].
    pub fn reclaim(&mut self, reclaims: impl IntoIterator<Item = Transfer>) -> bool {
        self.ownership.reclaim(reclaims)
    }

    /// Has holders give back what they have; see [`Ownership::give_back`].
    pub fn give_back(&mut self, holders: impl IntoIterator<Item = NodeId>) -> bool {
        self.ownership.give_back(holders)
    }

    /// The transfers to this node of all blocks that nodes hold which were removed.
    #[must_use]
    pub fn reclaimable(&self, is_removed: impl Fn(NodeId) -> bool) -> Vec<Transfer> {
        let theirs = self.ownership.blocks().filter(|block| is_removed(block.owner));
        theirs.filter_map(|block| block.give(block.cidr, self.me)).collect()
    }

    /// Takes the next free address. `elsewhere` are the addresses that the tables show in this
    /// network: they are skipped, and counted against what other nodes have.
    ///
    /// # Errors
    ///
    /// [`AllocateError::Exhausted`] names the nodes that have space.
    pub fn allocate(
        &mut self,
        elsewhere: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Result<IpAddr, AllocateError> {
        self.wake(now);
        let found = self
            .next_free(self.cursor, u128::MAX, elsewhere)
            .or_else(|| self.next_free(0, self.cursor, elsewhere));
        let Some(found) = found else {
            let holders = self.holders(elsewhere);
            return Err(AllocateError::Exhausted { cidr: self.subnet.cidr(), holders });
        };
        self.used.insert(found);
        self.cursor = found.saturating_add(1);
        Ok(address(found, self.subnet.is_v6()))
    }

    /// Takes this address.
    ///
    /// # Errors
    ///
    /// [`AllocateError::NotOurs`] names the node to ask; the others say why nobody can have it.
    pub fn allocate_static(
        &mut self,
        ip: IpAddr,
        elsewhere: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Result<(), AllocateError> {
        self.wake(now);
        let cidr = self.subnet.cidr();
        let block = self.ownership.block_at(ip).ok_or(AllocateError::Outside { ip, cidr })?;
        if !self.subnet.is_assignable(ip) {
            return Err(AllocateError::Reserved { ip, cidr });
        }
        if self.used.contains(&number(ip)) || elsewhere.contains(&ip) {
            return Err(AllocateError::InUse(ip));
        }
        if let Some(until) = self.rests_until(number(ip)) {
            return Err(AllocateError::Resting { ip, left: until - now });
        }
        if block.owner != self.me {
            return Err(AllocateError::NotOurs { ip, owner: block.owner });
        }
        self.adopt(ip);
        Ok(())
    }

    /// Takes back an address that nobody has seen yet: it need not rest.
    pub fn put_back(&mut self, ip: IpAddr) {
        self.used.remove(&number(ip));
    }

    /// Lets an address rest that was released before a restart.
    pub fn rest(&mut self, ip: IpAddr, until: Instant) {
        if !self.used.contains(&number(ip)) {
            self.resting.insert(number(ip), until);
        }
    }

    /// Lets all addresses of a block rest that nobody has: who had the block before released some
    /// of them, and says no more which. This node's others are given meanwhile.
    pub fn rest_block(&mut self, block: IpNet, until: Instant) {
        self.handed.extend(Cidr::of(&block).map(|cidr| (cidr, until)));
    }

    /// The parts of a block that do not rest as a whole.
    pub(super) fn awake(&self, cidr: Cidr) -> Vec<Cidr> {
        let handed = self.handed.iter().map(|(block, _)| *block);
        cidr.without(&handed.filter(|block| block.common(cidr).is_some()).collect::<Vec<_>>())
    }

    /// The blocks that rest as a whole, each with how many of its addresses are free but for that
    /// and until when they rest. What lies in another one counts there.
    pub(super) fn handed(&self, busy: &BTreeSet<u128>) -> Vec<(Cidr, u128, Instant)> {
        let mut all = self.handed.clone();
        all.sort_unstable_by_key(|(cidr, until)| (Reverse(cidr.bits), cidr.first, Reverse(*until)));
        let mut kept: BTreeMap<u128, (Cidr, Instant)> = BTreeMap::new();
        for (cidr, until) in all {
            let before = kept.range(..=cidr.first).next_back();
            if !before.is_some_and(|(_, (other, _))| other.contains(cidr)) {
                kept.insert(cidr.first, (cidr, until));
            }
        }
        let row = |(cidr, until)| (cidr, self.free_in(cidr, busy), until);
        kept.into_values().map(row).collect()
    }

    fn rests_until(&self, number: u128) -> Option<Instant> {
        let holds = |(cidr, _): &&(Cidr, Instant)| cidr.first <= number && number <= cidr.last();
        let of_block = self.handed.iter().filter(holds).map(|(_, until)| *until);
        self.resting.get(&number).copied().into_iter().chain(of_block).max()
    }

    /// Lets an address rest no more, for who had it last and wants it again. Until when it rested.
    pub fn end_rest(&mut self, ip: IpAddr) -> Option<Instant> {
        self.resting.remove(&number(ip))
    }

    /// Marks an address as in use, as found at a restart.
    pub fn adopt(&mut self, ip: IpAddr) {
        self.resting.remove(&number(ip));
        self.used.insert(number(ip));
    }

    /// Gives an address back. It rests before it is given again, as others still remember who had
    /// it.
    pub fn release(&mut self, ip: IpAddr, now: Instant) {
        if self.used.remove(&number(ip)) {
            self.resting.insert(number(ip), now + ADDRESS_QUARANTINE);
        }
    }

    /// Whether another pool is of the same subnet with the same owners at first.
    #[must_use]
    pub fn follows(&self, other: &Self) -> bool {
        self.subnet == other.subnet && self.ownership.begins_as(&other.ownership)
    }

    /// Addresses of this node's own endpoints.
    pub fn in_use(&self) -> impl Iterator<Item = IpAddr> {
        self.used.iter().map(|number| address(*number, self.subnet.is_v6()))
    }

    /// Addresses in use that are not this node's to give: their block went to another by a
    /// contradiction among transfers, and their endpoints must be addressed anew.
    pub fn strays(&self) -> impl Iterator<Item = IpAddr> {
        self.in_use()
            .filter(|ip| self.ownership.block_at(*ip).is_none_or(|block| block.owner != self.me))
    }

    /// Gives exactly this address to another node, as a block of one.
    ///
    /// # Errors
    /// As [`Self::allocate_static`].
    pub fn give_address(
        &mut self,
        ip: IpAddr,
        to: NodeId,
        elsewhere: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Result<Transfer, AllocateError> {
        self.allocate_static(ip, elsewhere, now)?;
        self.used.remove(&number(ip));
        let owner = self.me;
        let block = self.ownership.block_at(ip).filter(|_| to != owner);
        let transfer = block.and_then(|block| block.give(ip.into(), to));
        let transfer = transfer.ok_or(AllocateError::NotOurs { ip, owner })?;
        self.ownership.extend([transfer]);
        Ok(transfer)
    }

    /// Other nodes that have free addresses, the largest first.
    #[must_use]
    pub fn holders(&self, elsewhere: &BTreeSet<IpAddr>) -> Vec<Holder> {
        let busy = self.busy(elsewhere);
        let mut free: BTreeMap<NodeId, u128> = BTreeMap::new();
        for (owner, cidr) in self.ownership.cidrs().filter(|(owner, _)| *owner != self.me) {
            *free.entry(owner).or_default() += self.free_in(cidr, &busy);
        }
        let mut holders: Vec<_> = free
            .into_iter()
            .filter(|(_, free)| *free > 0)
            .map(|(node, free)| Holder { node, free })
            .collect();
        holders.sort_by_key(|holder| (u128::MAX - holder.free, holder.node));
        holders
    }

    /// Whether this node has a block from which it may choose addresses.
    #[must_use]
    pub fn has_block(&self) -> bool {
        self.mine().next().is_some()
    }

    /// Where this node may choose addresses now.
    pub(super) fn mine(&self) -> impl Iterator<Item = Cidr> {
        let range = self.subnet.range_block();
        let own = self.ownership.cidrs().filter(|(owner, _)| *owner == self.me);
        let chosen = own.filter_map(move |(_, cidr)| cidr.common(range));
        chosen.flat_map(|cidr| self.awake(cidr))
    }

    /// The first free address of ours from `from` to `to`. Each step passes an address that
    /// somebody has, so the size of a block does not matter.
    fn next_free(&self, from: u128, to: u128, elsewhere: &BTreeSet<IpAddr>) -> Option<u128> {
        let v6 = self.subnet.is_v6();
        self.mine().find_map(|cidr| {
            let mut at = cidr.first.max(from);
            let last = cidr.last().min(to);
            while at <= last {
                let taken = self.is_edge(at)
                    || self.excluded.contains(&at)
                    || self.used.contains(&at)
                    || self.resting.contains_key(&at)
                    || elsewhere.contains(&address(at, v6));
                if !taken {
                    return Some(at);
                }
                at = at.checked_add(1)?;
            }
            None
        })
    }

    /// How many addresses a node has to give, as far as this one knows.
    pub(super) fn free_of(&self, node: NodeId, busy: &BTreeSet<u128>) -> u128 {
        if node == self.me {
            return self.mine().map(|cidr| self.free_in(cidr, busy)).sum();
        }
        let cidrs = self.ownership.cidrs().filter(|(owner, _)| *owner == node);
        cidrs.map(|(_, cidr)| self.free_in(cidr, busy)).sum()
    }

    /// How many addresses of a block can be given out unasked.
    pub(super) fn free_in(&self, cidr: Cidr, busy: &BTreeSet<u128>) -> u128 {
        let chosen = cidr.common(self.subnet.range_block());
        chosen.map_or(0, |cidr| cidr.size() - self.unavailable(cidr, busy))
    }

    /// Lets addresses go that have rested long enough.
    pub(super) fn wake(&mut self, now: Instant) {
        self.resting.retain(|_, until| *until > now);
        self.handed.retain(|(_, until)| *until > now);
    }

    /// All addresses that somebody has or had a moment ago.
    pub(super) fn busy(&self, elsewhere: &BTreeSet<IpAddr>) -> BTreeSet<u128> {
        let v6 = self.subnet.is_v6();
        let others = elsewhere.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| number(*ip));
        self.used.iter().chain(self.resting.keys()).copied().chain(others).collect()
    }

    /// How many addresses of a block cannot be given out unasked.
    pub(super) fn unavailable(&self, cidr: Cidr, busy: &BTreeSet<u128>) -> u128 {
        let range = cidr.first..=cidr.last();
        let taken = busy.range(range.clone()).chain(self.excluded.range(range));
        let taken = taken.filter(|number| !self.is_edge(**number)).collect::<BTreeSet<_>>();
        taken.len() as u128 + self.edges(cidr)
    }

    /// Whether an IPv4 address ends in .0 or .255. In a subnet wider than /24 it is as good as any,
    /// but it looks like a network or a broadcast, and there is software that refuses it: only who
    /// asks for it by --ip gets it.
    fn is_edge(&self, number: u128) -> bool {
        !self.subnet.is_v6() && matches!(number & 0xff, 0 | 0xff)
    }

    /// How many of them a block has.
    fn edges(&self, cidr: Cidr) -> u128 {
        if self.subnet.is_v6() {
            0
        } else if cidr.bits >= 8 {
            cidr.size() >> 7
        } else {
            let ends = BTreeSet::from([cidr.first, cidr.last()]);
            ends.into_iter().filter(|end| self.is_edge(*end)).count() as u128
        }
    }
}

/// Those that have begun.
pub(super) const fn seconds(left: &Duration) -> u64 {
    left.as_secs() + (left.subsec_nanos() > 0) as u64
}

fn exhausted(cidr: &IpNet, holders: &[Holder]) -> String {
    if holders.is_empty() {
        return format!("every address of {cidr} is in use: detach endpoints or add a subnet");
    }
    let names: Vec<_> = holders.iter().map(|h| format!("{} ({} free)", h.node, h.free)).collect();
    format!(
        "this node has no free address of {cidr} left; these hold some: {}. Bring one of them back, or remove it with `vxmesh node rm`",
        names.join(", ")
    )
}
