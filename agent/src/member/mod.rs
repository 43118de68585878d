//! What this node says and believes of the mesh.
//!
//! Nothing in here knows the rest of the agent: `daemon` calls it.

pub(crate) mod allocation;
pub(crate) mod conflicts;
pub(crate) mod issuers;
pub(crate) mod keeper;
pub(crate) mod location;
pub(crate) mod logged;
pub(crate) mod peers;
pub(crate) mod state_log;
pub(crate) mod sync;
