//! What happens to one frame: out of a local network into the mesh ([`outbound()`]), and back
//! ([`inbound()`]).
//!
//! Both are functions of a frame and of one snapshot. They never wait, never allocate, take no
//! lock, and give every frame exactly one verdict (I4). What a frame claims about its source is
//! checked by the same rule in both directions ([`claims`]), so a node never sends what another
//! would refuse from it (I3). A [`Watch`] is told each [`Step`] that a frame comes to, and why it
//! goes no further if it does not.
//!
//! Sealing and file descriptors are not here.

pub mod announce;
mod claims;
mod inbound;
mod isolation;
mod judged;
mod outbound;
pub mod plain;
mod service;
mod too_big;
mod watch;

pub use inbound::{Inbound, InboundVerdict, answer, inbound, inbound_vxlan};
pub use judged::Judged;
pub use outbound::{OutboundVerdict, Scratch, outbound};
pub use watch::{Step, Watch};

#[cfg(test)]
mod tests;
