//! What is known about one network: an immutable snapshot with one writer (I2).
//!
//! A [`NetworkTable`] answers three questions of the data path without a lock and without an
//! allocation: who has this MAC (the Fdb), who has this IP (the NeighborTable), who gets broadcast
//! (the FloodList). [`NetworkTable::apply`] makes the next snapshot; it copies only the shards that
//! change.
//!
//! Its rows are *claims*: node N says that its endpoint E has a MAC and addresses. Every claim is
//! kept under (N, E), so no node can displace what another said. Where two claims of one node want
//! one address, the one of smaller [`Row::rank`] has it, then of smaller endpoint. Between two
//! nodes a lot decides, SHA-256 of address and node id: nothing in a claim is of weight there,
//! because the claimer chooses it. All of it is a function of the claims, not of the order in which
//! they came, so that all nodes agree (I11). When the winner leaves, the next one has it.
//!
//! No claim has the gateway's MAC or addresses, the MAC of the network's services, a MAC that is
//! bound to another node ([`may_be_of`]), an address outside the subnets, a group address, or the
//! link-local address that belongs to another MAC (RFC 4291 appendix A). Those parts of a claim are
//! kept and do nothing.
//! Deciding which claims to believe at all (signatures, ownership of blocks) is not done here.
//!
//! [`may_be_of`]: crate::addr::MacAddr::may_be_of

mod bucket;
mod hash;
mod index;
mod network;
mod slab;

pub use bucket::TokenBucket;
pub use hash::{Seeded, Sharded};
pub use network::{Gateway, NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate};

#[cfg(test)]
pub(crate) mod tests;
