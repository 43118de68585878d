//! What the agent keeps on this host: rules of the firewall, guarded ports, servers of names,
//! what the kernel counts and what it tells.
//!
//! Nothing in here knows the rest of the agent: `daemon` calls it.

pub(crate) mod guards;
pub(crate) mod losses;
pub(crate) mod names;
pub(crate) mod reach;
pub(crate) mod rules;
pub(crate) mod watch;
