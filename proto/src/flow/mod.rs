//! The packets that belong together: which of them may overtake others ([`Lanes`]), and whose turn
//! it is to leave ([`fair`]).

pub mod fair;
mod lanes;

pub use lanes::{Chosen, Lane, Lanes};
