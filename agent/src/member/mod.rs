//! What this node says and believes of the mesh.
//!
//! Nothing in here knows the rest of the agent: `daemon` calls it.

pub(crate) mod peers;
