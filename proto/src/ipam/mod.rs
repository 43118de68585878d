//! Address arithmetic: who may give out which address, so that none is given twice without any
//! quorum (I12).
//!
//! A [`Subnet`] belongs to the node that created it. Ownership moves in [`Transfer`]s: the owner of
//! a block signs a part of it over to another node, and never touches that part again. A node gives
//! out only addresses of blocks that it owns ([`Pool`]). Nobody but its owner can sign a block
//! away, so what a node believes to own, it owns, however little it has heard of the others:
//! partitions and delays make nodes know less, never know wrong. For that the signer must make a
//! transfer durable *before* it sends it.
//!
//! [`Ownership`] turns a set of transfers into blocks, whatever the order in which they came.
//! Whether signatures are good and how transfers travel is not decided here; nor is anything freed
//! by death.

mod cidr;
mod giving;
mod ownership;
mod pool;
mod subnet;
mod usage;

pub use giving::{Need, Withheld};
pub use ownership::{Block, Ownership, Transfer, first_split};
pub use pool::{AllocateError, Holder, Pool};
pub use subnet::{Subnet, SubnetError, check_disjoint};
pub use usage::{BlockUsage, HandedBlock, Usage};

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod tests;
