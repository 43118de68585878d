//! The Docker engine of this host: asked about containers (`engine`), and served as its network and
//! IPAM driver `vxmesh` (`router`, `driver`).
//!
//! ```text
//! docker network create : RequestPool, RequestAddress (gateway), CreateNetwork     -> a network of the mesh, made or joined
//! docker run            : RequestAddress, CreateEndpoint, Join                     -> address held, endpoint, cable
//! docker run -p         : ProgramExternalConnectivity after that                   -> published ports
//! docker stop           : RevokeExternalConnectivity, Leave, DeleteEndpoint, ReleaseAddress
//! docker network rm     : ReleaseAddress (gateway), ReleasePool, DeleteNetwork
//! ```
//!
//! The engine calls in this order and repeats nothing after a restart, its own or the agent's: what
//! it was told is in the store. A container that joins twice has one interface. What it wanted
//! removed while no agent answered is looked for when the agent starts (`reconcile`). What
//! containers say of themselves (other names, labels, health) it tells apart from these calls
//! (`follow`).

mod drift;
mod driver;
mod endpoint;
mod engine;
mod events;
mod follow;
mod inspect;
mod ipam;
mod label;
mod names;
mod network;
mod offer;
mod ports;
mod reconcile;
mod router;
mod rows;
#[cfg(test)]
mod tests;
mod wire;
mod wish;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use ipnet::IpNet;
use vxmesh_proto::addr::{Alias, EndpointId, MacAddr, Name, NetworkId};

pub use self::engine::{Container, DockerError, container};
pub(crate) use self::{
    drift::diagnose,
    follow::follow,
    label::{ServiceLabel, is_selector},
    names::{alias_of, name_of, name_on},
    offer::{OFFERED, offer_networks},
    reconcile::{Kept, reconcile},
    router::{PLUGIN_SOCKET, router},
};
use crate::{
    api::{ApiError, AttachSpec, Endpoint, Network, NetworkSpec},
    gateway::publish::Publish,
    store::Store,
};

/// What the driver asks of the agent while it is a member of a mesh.
#[async_trait]
pub(crate) trait Node: Send + Sync {
    /// What this node remembers.
    fn store(&self) -> &Store;
    /// This node's name.
    fn name(&self) -> String;
    /// All networks, with those that others are about to tell of if one of this name is wanted.
    async fn networks(&self, wanted: Option<&str>) -> Vec<Network>;
    /// Makes a network of the mesh.
    async fn create_network(&self, spec: NetworkSpec) -> Result<Network, ApiError>;
    /// Removes one, unless endpoints are in it.
    async fn remove_network(&self, id: NetworkId) -> Result<(), ApiError>;
    /// A subnet that nothing uses, nor one of these.
    fn free_subnet(&self, is_ipv6: bool, taken: &[IpNet]) -> Result<IpNet, ApiError>;
    /// Holds any free address of a subnet, or this one; `again` if the engine had it last.
    async fn lease(
        &self,
        network: NetworkId,
        subnet: IpNet,
        wanted: Option<(IpAddr, bool)>,
    ) -> Result<IpNet, ApiError>;
    /// The addresses that are held for the engine.
    fn leases(&self) -> Result<Vec<(NetworkId, IpNet)>, ApiError>;
    /// Gives a held address back; one that is not held is fine.
    async fn release(&self, network: NetworkId, ip: IpAddr) -> Result<(), ApiError>;
    /// A MAC that no endpoint of this node has, nor one of these; that of this number if it is
    /// free.
    fn free_mac(
        &self,
        network: NetworkId,
        number: u16,
        taken: &[MacAddr],
    ) -> Result<MacAddr, ApiError>;
    /// Plugs an endpoint with held addresses in; its end of the cable stays on the host.
    async fn attach(
        &self,
        id: EndpointId,
        spec: AttachSpec,
        ips: Vec<IpNet>,
    ) -> Result<Endpoint, ApiError>;
    /// An endpoint that is plugged in.
    fn endpoint(&self, id: EndpointId) -> Option<Endpoint>;
    /// Leads ports of the host to an endpoint, and no others: of each list the first that is free.
    async fn publish(&self, id: EndpointId, wanted: &[Vec<Publish>]) -> Result<(), ApiError>;
    /// Takes them back; none is fine.
    async fn unpublish(&self, id: EndpointId) -> Result<(), ApiError>;
    /// Says how an endpoint is called from now on.
    async fn describe(&self, id: EndpointId, description: Description) -> Result<(), ApiError>;
    /// Makes a service that endpoints name themselves, or gives it the ports that it lacks.
    async fn offer(&self, network: NetworkId, service: &ServiceLabel) -> Result<(), ApiError>;
    /// Says whether an endpoint works; one that does not gets no new connections of services.
    fn tell_endpoint(&self, id: EndpointId, works: bool);
    /// Unplugs one; none is fine.
    async fn detach(&self, id: EndpointId) -> Result<(), ApiError>;
}

/// What a container says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// Its names, of which it has one that nobody else in the network has: the first that is free.
    pub(crate) names: Vec<Name>,
    pub(crate) aliases: Vec<Alias>,
    pub(crate) labels: BTreeMap<String, String>,
}

/// An agent, which may be a member of a mesh.
#[async_trait]
pub(crate) trait Agent: Send + Sync {
    /// The node that it is; an error that says what to do where it is none.
    async fn node(&self) -> Result<Arc<dyn Node>, ApiError>;
}
