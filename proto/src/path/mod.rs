//! What happens to one frame: out of a local network into the mesh ([`outbound()`]), and back ([`inbound()`]).
//!
//! Both are functions of a frame and of one snapshot. They never wait, never allocate, take no lock, and give
//! every frame exactly one verdict (I4). What a frame claims about its source is checked by the same rule
//! in both directions ([`claims`]), so a node never sends what another would refuse from it (I3).
//!
//! Sealing and file descriptors are not here.

pub mod announce;
mod claims;
mod inbound;
mod isolation;
mod judged;
mod outbound;
pub mod plain;
mod too_big;

pub use inbound::{Inbound, inbound, inbound_vxlan};
pub use judged::Judged;
pub use outbound::{Scratch, outbound};

use crate::{addr::NodeId, reason::DropReason};

/// The fate of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'t, P> {
    /// Seal it for this peer.
    Forward(&'t P),
    /// Seal one copy for each of these members.
    Flood(&'t [(NodeId, P)]),
    /// Write the answer in the [`Scratch`] back to where the frame came from.
    Hairpin,
    /// Write it to the local network.
    Deliver,
    /// Count it and forget it. What [`outbound()`] left in the [`Scratch`], if anything, tells the sender: write it back.
    Drop(DropReason),
}

#[cfg(test)]
mod tests;
