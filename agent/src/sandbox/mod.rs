//! Sandboxes of `vxmesh run`: what is known of their processes.
//!
//! Nothing in here knows the rest of the agent: `daemon` calls it.

pub(crate) mod keepers;
pub(crate) mod process;
