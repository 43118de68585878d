//! Services: one address (VIP) whose connections are spread over backends.
//!
//! [`service`] is what the data path knows of a network's services, [`maglev`] says which backend a
//! new flow gets, [`flows`] remembers it, and [`translate`] gives each frame its other end: on the
//! way to the backend and on the way back ([`answers`]), both at the client's node. Backends see
//! the client's own address, and its port unless it uses that for them, too ([`clash`]). Those that
//! answer nobody get no new ones ([`ejection`]), nor do those that are drained ([`drain`]). Where a
//! service is sticky, a client's flows go where the ones before went ([`affinity`]). Clients from
//! outside of the network come in by its nodes ([`ingress`]). What a node counted of them is in
//! [`counts`].

mod affinity;
mod answers;
mod clash;
mod counts;
pub mod drain;
pub mod ejection;
pub mod flows;
pub mod health;
mod ingress;
mod maglev;
mod observed;
mod service;
mod translate;

use std::sync::atomic::AtomicU64;

pub use counts::{Totals, recount};
pub(crate) use ingress::is_admitted;
pub use observed::BackendPort;
pub use service::{Backend, Choice, Port, Protocol, PublishMode, Service, ServiceSpec, Services};
pub(crate) use translate::{Balancer, Way};

use crate::addr::{MacAddr, NetworkId};

/// The flows of an agent. Its one table is made with the first service, and is never given back.
pub type Flows = flows::FlowTable<&'static [AtomicU64]>;

/// The MAC that has all VIPs of a network: the same on every host, and no endpoint's.
#[must_use]
pub fn service_mac(network: NetworkId) -> MacAddr {
    let [a, b, c, d, ..] = *network.bytes();
    MacAddr([0x02, 0xfd, a, b, c, d])
}

/// The MAC from which local backends get what is for them: by it the rules of the bridge know of
/// which flows the answers are to be brought here. No endpoint has it, and it crosses no mesh.
#[must_use]
pub fn service_source_mac(network: NetworkId) -> MacAddr {
    let [a, b, c, d, ..] = *network.bytes();
    MacAddr([0x02, 0xfc, a, b, c, d])
}

/// Whether the MAC is one of those that services have in this network.
#[must_use]
pub fn is_service_mac(network: NetworkId, mac: MacAddr) -> bool {
    mac == service_mac(network) || mac == service_source_mac(network)
}

#[cfg(test)]
mod tests;
