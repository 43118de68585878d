//! Services: one address (VIP) whose connections are spread over backends.
//!
//! [`maglev`] says which backend a new flow gets, [`flows`] remembers it, [`service`] is the
//! snapshot of a network's services, and [`translate`] gives a frame its other end: on the way to
//! the backend at the client's node, and on the way back at the same node.

pub mod flows;
pub mod maglev;
