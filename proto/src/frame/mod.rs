//! One frame: what a device says of it ([`vnet`]), and how it is cut and joined.
//!
//! What a device takes for one frame may be many packets of the mesh: [`SuperFrame`] is judged
//! whole, [`Segments`] cuts it, and [`coalesce`] puts packets together again. What becomes of a
//! frame is decided in [`path`](crate::path).

pub mod coalesce;
pub mod ecn;
mod segments;
mod superframe;
pub mod vnet;

pub use segments::Segments;
pub use superframe::{Gso, GsoKind, PartialChecksum, SuperFrame};

#[cfg(test)]
mod differential;
