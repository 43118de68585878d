//! Which rows claim an address, the one that has it first: [`Index`]. Rows are numbers of the slab.

use std::{hash::Hash, net::IpAddr};

use ring::digest;

use super::{Seeded, Sharded};
use crate::addr::{MacAddr, NodeId};

const LOT_DOMAIN: &[u8] = b"vxmesh lot 1\0";

/// An address with which a node draws against others that claim it, too: a number that no node can
/// choose, because its id is what it is. It differs from address to address, so that no id wins
/// everywhere.
pub(super) trait Address: Clone + Eq + Hash {
    fn bytes(&self) -> Vec<u8>;

    fn lot(&self, node: NodeId) -> u64 {
        let claim = [LOT_DOMAIN, self.bytes().as_slice(), node.as_str().as_bytes()].concat();
        let hash = digest::digest(&digest::SHA256, &claim);
        hash.as_ref().first_chunk().copied().map_or(0, u64::from_be_bytes)
    }
}

impl Address for MacAddr {
    fn bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl Address for IpAddr {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::V4(v4) => v4.octets().to_vec(),
            Self::V6(v6) => v6.octets().to_vec(),
        }
    }
}

/// The claims to all addresses of a kind.
#[derive(Clone, Debug)]
pub(super) struct Index<K> {
    winners: Sharded<(K, u32)>,
    /// Those that would inherit, in their order. Few addresses have any.
    others: Sharded<(K, Vec<u32>)>,
}

impl<K: Address> Index<K> {
    pub(super) fn new(seed: Seeded) -> Self {
        Self { winners: Sharded::new(seed), others: Sharded::new(seed) }
    }

    /// The row that has the address.
    pub(super) fn winner(&self, address: &K) -> Option<u32> {
        self.winners.get(address).copied()
    }

    /// All rows that claim the address, the one that has it first.
    pub(super) fn claims(&self, address: &K) -> impl Iterator<Item = u32> + use<K> {
        let others = self.others.get(address).cloned().unwrap_or_default();
        self.winner(address).into_iter().chain(others)
    }

    /// Adds a claim behind those that come `before` it. A row may name an address twice.
    pub(super) fn add(&mut self, address: &K, row: u32, before: impl Fn(u32) -> bool) {
        let mut claims: Vec<_> = self.claims(address).collect();
        if !claims.contains(&row) {
            let at = claims.partition_point(|other| before(*other));
            claims.insert(at, row);
            self.set(address, &claims);
        }
    }

    /// Takes a claim out.
    pub(super) fn remove(&mut self, address: &K, row: u32) {
        let claims: Vec<_> = self.claims(address).collect();
        if claims.contains(&row) {
            let rest: Vec<_> = claims.into_iter().filter(|other| *other != row).collect();
            self.set(address, &rest);
        }
    }

    fn set(&mut self, address: &K, claims: &[u32]) {
        match claims.split_first() {
            Some((winner, _)) => self.winners.insert(address.clone(), *winner),
            None => self.winners.remove(address),
        };
        match claims.get(1..) {
            Some([]) | None => self.others.remove(address),
            Some(others) => self.others.insert(address.clone(), others.to_vec()),
        };
    }

    #[cfg(test)]
    pub(super) fn copied_since(&self, before: &Self) -> usize {
        self.winners.copied_since(&before.winners)
    }
}
