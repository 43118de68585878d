//! Services: one address (VIP) whose connections are spread over backends.
//!
//! [`service`] is what the data path knows of a network's services, [`maglev`] says which backend a
//! new flow gets, [`flows`] remembers it, and [`translate`] gives each frame its other end: on the
//! way to the backend and on the way back, both at the client's node. Backends see the client's own
//! address.

pub mod flows;
mod maglev;
mod service;
mod translate;

use std::sync::atomic::AtomicU64;

pub use service::{Backend, Choice, Port, Protocol, Service, ServiceSpec, Services};
pub(crate) use translate::{from_backend, to_backend};

use crate::addr::{MacAddr, NetworkId};

/// The flows of an agent. Its one table is made with the first service, and is never given back.
pub type Flows = flows::FlowTable<&'static [AtomicU64]>;

/// The MAC that has all VIPs of a network: the same on every host, and no endpoint's.
#[must_use]
pub fn service_mac(network: NetworkId) -> MacAddr {
    let [a, b, c, d, ..] = *network.bytes();
    MacAddr([0x02, 0xfd, a, b, c, d])
}

#[cfg(test)]
mod tests;
