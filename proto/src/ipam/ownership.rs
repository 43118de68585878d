//! Who owns which block: [`Ownership`].
//!
//! The rule, a function of the set of transfers alone:
//!
//! 1. At epoch 0 the network's own list of blocks says who claims what, and its creator claims the
//!    rest.
//! 2. A transfer (block, from, to, epoch) *chains* to a claim (block', owner, epoch') if from =
//!    owner, epoch = epoch' + 1, and block lies in block'. Then it is itself a claim of `to`, and
//!    the chain goes on.
//! 3. Two transfers that chain to one claim and overlap contradict each other: their signer gave
//!    the same address away twice, which an honest node never does. The larger block is valid, of
//!    equal ones that of the smaller receiver; the other is void as a whole. (Blocks are nested or
//!    disjoint, so nothing is cut.)
//! 4. A block that an issuer reclaims from a removed node chains as a transfer of that node would,
//!    and stands against every transfer of it that contradicts this.
//! 5. What was given to a holder that is to give back is its giver's again in the next epoch, by
//!    itself: no key signs for a holder ([`crate::object::holder`]).
//! 6. An address belongs to the claim of the highest epoch that chains and contains it.
//!
//! A transfer that does not chain does nothing until the one before it has come.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    Subnet,
    cidr::{Cidr, cover, number},
};
use crate::{addr::NodeId, object};

/// Fewer addresses than this are not split off at creation; nodes ask when they need one.
const SMALLEST_SHARE: u128 = 4;

/// A block that its owner signs over to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transfer {
    /// Which addresses.
    pub block: IpNet,
    /// The owner, who signs this.
    pub from: NodeId,
    /// The next owner.
    pub to: NodeId,
    /// One more than the block had.
    pub epoch: u64,
}

/// Addresses of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Which addresses.
    pub cidr: IpNet,
    /// Who may give them out.
    pub owner: NodeId,
    /// How many times they changed hands.
    pub epoch: u64,
}

impl Block {
    /// The lower half, which the owner keeps, and the transfer of the upper one; nothing if this is
    /// one address.
    #[must_use]
    pub fn split(&self, to: NodeId) -> Option<(Self, Transfer)> {
        let v6 = self.cidr.network().is_ipv6();
        let (low, high) = Cidr::of(&self.cidr)?.halves()?;
        let given = self.give(high.net(v6), to)?;
        Some((Self { cidr: low.net(v6), ..*self }, given))
    }

    /// The transfer of a part of this block.
    pub(super) fn give(&self, block: IpNet, to: NodeId) -> Option<Transfer> {
        let epoch = self.epoch.checked_add(1)?;
        Some(Transfer { block, from: self.owner, to, epoch })
    }
}

impl From<&object::Transfer> for Transfer {
    fn from(object: &object::Transfer) -> Self {
        Self { block: object.cidr, from: object.from, to: object.to, epoch: object.epoch }
    }
}

/// The order in which transfers are resolved: those that may chain to one claim together, by
/// address, larger blocks first. A transfer of a block that is valid thus comes before all that
/// contradict it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: NodeId,
    epoch: u64,
    first: u128,
    prefix_len: u8,
}

/// Whose each address of a subnet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    v6: bool,
    initial: Vec<Claim>,
    /// Each with its receiver; of several receivers of one block only the smallest counts.
    transfers: BTreeMap<Key, NodeId>,
    /// The same of what was taken back from removed nodes.
    reclaims: BTreeMap<Key, NodeId>,
    /// Holders that give back what they have.
    returning: BTreeSet<NodeId>,
    /// What they gave back, as whose it was then.
    returned: Vec<Claim>,
    blocks: Vec<Claim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    cidr: Cidr,
    owner: NodeId,
    epoch: u64,
    /// Whose it was before.
    from: Option<NodeId>,
}

impl Ownership {
    /// Before any transfer: these blocks belong to these nodes, the rest to the creator. Blocks
    /// that do not lie in the subnet are ignored.
    #[must_use]
    pub fn new(
        subnet: &Subnet,
        creator: NodeId,
        initial: impl IntoIterator<Item = (IpNet, NodeId)>,
    ) -> Self {
        let (root, v6) = (subnet.block(), subnet.is_v6());
        let claim = |cidr, owner| Claim { cidr, owner, epoch: 0, from: None };
        let mut given = BTreeMap::new();
        for (net, to) in initial {
            if let Some(key) = key_of(&net, creator, 0, v6) {
                add(&mut given, key, to);
            }
        }
        let (mut claims, mut rest) = (Vec::new(), Vec::new());
        let whole = claim(root, creator);
        share_out(&whole, given.iter(), v6, &mut claims, &mut rest);
        claims.append(&mut rest);
        claims.sort_unstable_by_key(|claim| claim.cidr.first);
        Self {
            v6,
            initial: claims.clone(),
            transfers: BTreeMap::new(),
            reclaims: BTreeMap::new(),
            returning: BTreeSet::new(),
            returned: Vec::new(),
            blocks: claims,
        }
    }

    /// Adds transfers whose signatures were checked. Says whether any of them changed something
    /// known. Those of another family, with host bits, or from a node to itself are ignored.
    pub fn extend(&mut self, transfers: impl IntoIterator<Item = Transfer>) -> bool {
        let changed = add_all(&mut self.transfers, transfers, self.v6);
        if changed {
            self.resolve();
        }
        changed
    }

    /// Takes back a transfer that nobody was told of. Says whether it was known.
    pub fn retract(&mut self, transfer: &Transfer) -> bool {
        let key = key_of(&transfer.block, transfer.from, transfer.epoch, self.v6);
        let known = key.filter(|key| self.transfers.get(key) == Some(&transfer.to));
        if let Some(key) = &known {
            self.transfers.remove(key);
            self.resolve();
        }
        known.is_some()
    }

    /// Adds blocks that were taken back from removed nodes, as [`Self::extend`] does.
    pub fn reclaim(&mut self, reclaims: impl IntoIterator<Item = Transfer>) -> bool {
        let changed = add_all(&mut self.reclaims, reclaims, self.v6);
        if changed {
            self.resolve();
        }
        changed
    }

    /// Has these holders give back what they have and will have. Says whether that is news.
    pub fn give_back(&mut self, holders: impl IntoIterator<Item = NodeId>) -> bool {
        let known = self.returning.len();
        self.returning.extend(holders);
        let changed = self.returning.len() > known;
        if changed {
            self.resolve();
        }
        changed
    }

    /// All that holders gave back, as whose it was then.
    pub fn returned(&self) -> impl Iterator<Item = Block> {
        self.returned.iter().map(|claim| self.block_of(claim))
    }

    /// The blocks that nodes have by a transfer, each with who had it before.
    pub fn handed(&self) -> impl Iterator<Item = (Block, NodeId)> {
        self.blocks.iter().filter_map(|claim| Some((self.block_of(claim), claim.from?)))
    }

    /// All blocks, by address.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        self.blocks.iter().map(|claim| self.block_of(claim))
    }

    /// The block that has this address; nothing if it lies outside the subnet.
    #[must_use]
    pub fn block_at(&self, ip: IpAddr) -> Option<Block> {
        if ip.is_ipv6() != self.v6 {
            return None;
        }
        let number = number(ip);
        let at = self.blocks.partition_point(|claim| claim.cidr.last() < number);
        self.blocks.get(at).filter(|c| c.cidr.first <= number).map(|claim| self.block_of(claim))
    }

    /// Whether both are of one subnet with the same owners before any transfer.
    pub(super) fn begins_as(&self, other: &Self) -> bool {
        self.initial == other.initial
    }

    pub(super) fn cidrs(&self) -> impl Iterator<Item = (NodeId, Cidr)> {
        self.blocks.iter().map(|claim| (claim.owner, claim.cidr))
    }

    fn block_of(&self, claim: &Claim) -> Block {
        Block { cidr: claim.cidr.net(self.v6), owner: claim.owner, epoch: claim.epoch }
    }

    fn resolve(&mut self) {
        let mut blocks = Vec::new();
        let mut claims = self.initial.clone();
        let (mut left, mut returned) = (Vec::new(), Vec::new());
        while let Some(claim) = claims.pop() {
            if let Some(back) = self.back(&claim) {
                returned.push(back);
                claims.push(back);
                continue;
            }
            let reclaimed = chained_to(&self.reclaims, &claim);
            share_out(&claim, reclaimed, self.v6, &mut claims, &mut left);
            // A transfer of what is left lies in one of these blocks, which are as large as they
            // can be.
            for rest in left.drain(..) {
                let given = chained_to(&self.transfers, &rest);
                share_out(&rest, given, self.v6, &mut claims, &mut blocks);
            }
        }
        blocks.sort_unstable_by_key(|claim| claim.cidr.first);
        returned.sort_unstable_by_key(|claim| (claim.cidr.first, claim.epoch));
        self.returned = returned;
        self.blocks = blocks;
    }

    /// What a claim becomes if its owner gives back what it has.
    fn back(&self, claim: &Claim) -> Option<Claim> {
        let owner = claim.from.filter(|_| self.returning.contains(&claim.owner))?;
        let epoch = claim.epoch.checked_add(1)?;
        Some(Claim { owner, epoch, from: Some(claim.owner), ..*claim })
    }
}

/// The transfers that may chain to a claim, in order.
fn chained_to<'a>(
    transfers: &'a BTreeMap<Key, NodeId>,
    claim: &Claim,
) -> impl Iterator<Item = (&'a Key, &'a NodeId)> + use<'a> {
    let (from, first, last) = (claim.owner, claim.cidr.first, claim.cidr.last());
    let next = claim.epoch.checked_add(1);
    next.into_iter().flat_map(move |epoch| {
        let begin = Key { from, epoch, first, prefix_len: 0 };
        transfers
            .range(begin..)
            .take_while(move |(k, _)| k.from == from && k.epoch == epoch && k.first <= last)
    })
}

/// Adds those that are of this family, without host bits, and from one node to another; false if
/// that changes nothing.
fn add_all(
    known: &mut BTreeMap<Key, NodeId>,
    transfers: impl IntoIterator<Item = Transfer>,
    v6: bool,
) -> bool {
    let mut changed = false;
    for t in transfers.into_iter().filter(|t| t.from != t.to && t.epoch > 0) {
        if let Some(key) = key_of(&t.block, t.from, t.epoch, v6) {
            changed |= add(known, key, t.to);
        }
    }
    changed
}

/// Cuts what was given away out of a claim: `given` are new claims, `rest` stays with the owner.
fn share_out<'a>(
    claim: &Claim,
    keys: impl Iterator<Item = (&'a Key, &'a NodeId)>,
    v6: bool,
    given: &mut Vec<Claim>,
    rest: &mut Vec<Claim>,
) {
    let mut keep = |first, last| {
        rest.extend(cover(first, last).into_iter().map(|cidr| Claim { cidr, ..*claim }));
    };
    let mut next = Some(claim.cidr.first);
    for (key, to) in keys {
        let cidr = Cidr { first: key.first, bits: longest_prefix(v6) - key.prefix_len };
        // Larger blocks come first: one that begins before `next` lies in one that is valid.
        let Some(at) = next.filter(|at| *at <= key.first) else { continue };
        if !claim.cidr.contains(cidr) {
            continue;
        }
        if at < key.first {
            keep(at, key.first - 1);
        }
        given.push(Claim { cidr, owner: *to, epoch: key.epoch, from: Some(claim.owner) });
        next = cidr.last().checked_add(1);
    }
    if let Some(at) = next.filter(|at| *at <= claim.cidr.last()) {
        keep(at, claim.cidr.last());
    }
}

/// Adds a transfer; false if it changes nothing.
fn add(transfers: &mut BTreeMap<Key, NodeId>, key: Key, to: NodeId) -> bool {
    match transfers.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(to);
            true
        }
        Entry::Occupied(mut entry) => {
            let smaller = to < *entry.get();
            if smaller {
                entry.insert(to);
            }
            smaller
        }
    }
}

fn key_of(net: &IpNet, from: NodeId, epoch: u64, v6: bool) -> Option<Key> {
    let first = Cidr::of(net)?.first;
    let family = net.network().is_ipv6() == v6;
    family.then(|| Key { from, epoch, first, prefix_len: net.prefix_len() })
}

const fn longest_prefix(v6: bool) -> u8 {
    if v6 { 128 } else { 32 }
}

/// How the creator of a subnet shares it at once: every other live node gets an equal part of three
/// quarters of what addresses are chosen from, the rest stays with the creator for those who come
/// later. The blocks of the others, for [`Ownership::new`].
#[must_use]
pub fn first_split(
    subnet: &Subnet,
    creator: NodeId,
    live: impl IntoIterator<Item = NodeId>,
) -> Vec<(IpNet, NodeId)> {
    let others: BTreeSet<_> = live.into_iter().filter(|node| *node != creator).collect();
    let root = subnet.range_block();
    let nodes = others.len() as u128 + 1;
    let share = two_digits(root.size() / 4 * 3 / nodes);
    if share < SMALLEST_SHARE {
        return Vec::new();
    }
    let mut end = root.last();
    let mut blocks = Vec::new();
    // The creator's part holds the network's address and the gateway, so the others get theirs from
    // the end.
    for node in others {
        let first = end - (share - 1);
        let part = cover(first, end).into_iter();
        blocks.extend(part.map(|cidr| (cidr.net(subnet.is_v6()), node)));
        end = first - 1;
    }
    blocks
}

/// Rounds down to two binary digits, so that equal parts in a row are few aligned blocks each.
const fn two_digits(number: u128) -> u128 {
    match number.checked_ilog2() {
        Some(log) if log > 1 => number >> (log - 1) << (log - 1),
        _ => number,
    }
}
