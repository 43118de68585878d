//! Who is in the mesh and what they claim.
//!
//! [chitchat](https://docs.rs/chitchat) spreads what each node says of itself; everything about it
//! stays in this crate. Its promises are weaker than ours, so each gap has a file:
//!
//! | gap | filled by |
//! |---|---|
//! | any datagram is believed | [`transport`] (authenticated peers only), [`guard`] on [`envelope`] |
//! | a relay can change what it passes on | signed records, checked in [`membership`] |
//! | deletions are not told, resets hide keys | [`diff`], [`directory`]: absence is never a delete |
//! | a starved node calls all others dead | `keeper` |
//! | a change takes rounds | push, which [`membership`] merges with what gossip brings |
//!
//! A rumour passes `diff`, `keeper` and `directory`, and leaves as a [`directory::MeshEvent`].
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod address;
pub mod diff;
pub mod directory;
pub mod envelope;
pub mod guard;
mod keeper;
pub mod limits;
pub mod membership;
pub mod publisher;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
