//! What comes and goes: agents that die, hosts that are cut off, endpoints and nodes that leave.

mod background;
mod departure;
mod partition;
mod restart;
mod standstill;
mod vanished;
pub(crate) mod world;
