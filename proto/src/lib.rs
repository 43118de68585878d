//! The pure rules of vxmesh: headers, Noise sessions, tables and the fate of a frame.
//!
//! Nothing here opens a socket, reads a clock, starts a thread or draws a random number (invariant
//! I1). Inputs are `handle_*`, outputs are `poll_*`, `now` is an argument and randomness is
//! injected, so that every rule can be tested in virtual time.
//!
//! Reading order: [`addr`] (the words), [`limits`] (every bound with its reason), [`reason`] (why
//! something is dropped), [`wire`] (headers), [`session`] (keys between two nodes), [`tables`]
//! (what is known), [`frame`] (one frame, cut and joined), [`flow`] (whose turn it is), [`lb`]
//! (services), [`path`] (what happens to one frame), [`ipam`] (who may give out which address),
//! [`record`] (signed claims), [`dns`] (what names mean).
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod addr;
pub mod clock;
pub mod control;
pub mod dns;
pub mod flow;
pub mod frame;
pub mod ipam;
pub mod lb;
pub mod limits;
pub mod object;
pub mod path;
pub mod reason;
pub mod record;
pub mod restart;
pub mod sandbox;
pub mod session;
pub mod special_names;
pub mod succession;
pub mod tables;
pub mod wire;
