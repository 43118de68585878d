//! Plain networks: RFC 7348 between this mesh and VTEPs that have no agent.
//!
//! ```text
//! UDP, source port 49152..=65535 by flow, destination port 4789 | VXLAN header 8 | frame
//! ```
//!
//! Endpoints are known by their signed claims, as on every network. What is behind a static VTEP is
//! learned from its frames ([`Learned`]), and never instead of a claim. A frame leaves for a
//! member, for the static VTEP that its destination was learned from, or for all static VTEPs;
//! nothing from the underlay goes back to it.
//!
//! I10: plain frames are judged with a [`PlainTable`], which no encrypted network has:
//! [`PlainTable::new`] makes none. Its handle of a member is a [`Vtep`], an address; that of an
//! encrypted network is a peer, which can only be sealed for.

mod flow;
mod inbound;
mod learned;
mod outbound;
mod undone;

use std::{net::IpAddr, sync::Arc, time::Instant};

pub use self::{
    flow::flow_hash,
    inbound::{plain_inbound, tell_station},
    learned::Learned,
    outbound::{PlainVerdict, plain_outbound},
    undone::{finish_received, undone},
};
use crate::{
    object::Network,
    tables::{NetworkSpec, NetworkTable, TableUpdate},
};

/// Where a member sends and takes plain frames, by its own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    to: Option<IpAddr>,
    addrs: Arc<[IpAddr]>,
}

impl Vtep {
    /// A member with these addresses, of which `to` is the one that this host reaches.
    #[must_use]
    pub fn new(to: Option<IpAddr>, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { to, addrs: addrs.into_iter().collect() }
    }

    /// Where frames for it go.
    #[must_use]
    pub const fn to(&self) -> Option<IpAddr> {
        self.to
    }

    /// Whether a frame from this address may be its.
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        self.addrs.contains(&ip)
    }
}

/// What is known about one plain network: its claims, its static VTEPs, and what is behind them.
#[derive(Clone, Debug)]
pub struct PlainTable {
    table: NetworkTable<Vtep>,
    statics: Arc<[IpAddr]>,
    learned: Arc<Learned>,
}

impl PlainTable {
    /// A plain network without endpoints and members; nothing if the network is encrypted, or
    /// another one than the spec's.
    #[must_use]
    pub fn new(network: &Network, spec: NetworkSpec, seed: u64, now: Instant) -> Option<Self> {
        if network.encrypted || network.vni != spec.vni {
            return None;
        }
        Some(Self {
            table: NetworkTable::new(spec, seed, now),
            statics: network.vteps.as_slice().into(),
            learned: Arc::new(Learned::new(seed, now)),
        })
    }

    /// The snapshot after these changes. What was learned is the same. There are no services here:
    /// what is behind a static VTEP could not be kept from their addresses.
    #[must_use]
    pub fn apply(&self, updates: impl IntoIterator<Item = TableUpdate<Vtep>>) -> Self {
        let updates = updates.into_iter().filter(|it| !matches!(it, TableUpdate::Services(_)));
        Self { table: self.table.apply(updates), ..self.clone() }
    }

    /// The snapshot with these static VTEPs.
    #[must_use]
    pub fn with_statics(&self, statics: &[IpAddr]) -> Self {
        Self { statics: statics.into(), ..self.clone() }
    }

    /// What is claimed.
    #[must_use]
    pub const fn table(&self) -> &NetworkTable<Vtep> {
        &self.table
    }

    /// What is the same on every node.
    #[must_use]
    pub fn spec(&self) -> &NetworkSpec {
        self.table.spec()
    }

    /// The VTEPs without an agent.
    #[must_use]
    pub fn statics(&self) -> &[IpAddr] {
        &self.statics
    }

    /// What is behind them.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Whether plain frames of the network may come from this address.
    fn knows(&self, from: IpAddr) -> bool {
        self.statics.contains(&from) || self.is_member(from)
    }

    fn is_member(&self, from: IpAddr) -> bool {
        self.table.members().iter().any(|(_node, vtep)| vtep.has(from))
    }
}

#[cfg(test)]
mod tests;
