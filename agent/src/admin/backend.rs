//! What the admin API asks of an agent: one method per call.
//!
//! A reference (`&str`) is a full id, a unique prefix of one, or a unique name; see
//! [`super::resolve`]. The calls that show one object have default bodies that pick it from the
//! list. A call that changes something runs to its end even if the client goes away, and returns
//! the object as it is afterwards (or was, when it is removed).

use async_trait::async_trait;

use super::resolve;
use crate::api::{
    Address, AddressPool, ApiError, AttachSpec, Attachment, AttachmentKey, AttachmentSpec,
    AttachmentsKept, Connection, Diagnosis, DnsQuery, DnsRecord, DropRow, Endpoint, EndpointSpec,
    ExtendSpec, FlowQuery, Flows, HealthWord, InitSpec, JoinSpec, LeaveSpec, Location, MapDiffRow,
    MapRow, Membership, Network, NetworkPools, NetworkSpec, NetworkUpdate, Node, NodeSpec, Peer,
    Sandbox, SandboxEnded, SandboxSpec, SandboxStarted, Service, ServiceSpec, ServiceUpdate,
    Status, Token, TokenCreated, TokenSpec,
};
use crate::identity::backup::Backup;

/// An agent as its admin API sees it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// `status`
    async fn status(&self) -> Result<Status, ApiError>;

    /// `init`: conflict if this node has an identity.
    async fn init(&self, spec: InitSpec) -> Result<Membership, ApiError>;
    /// `join`: conflict if this node has an identity.
    async fn join(&self, spec: JoinSpec) -> Result<Membership, ApiError>;
    /// `leave`: returns what was left; conflict if it costs more than the spec allows.
    async fn leave(&self, spec: LeaveSpec) -> Result<Membership, ApiError>;

    /// `backup`: what this node is, with its secrets.
    async fn backup(&self) -> Result<Backup, ApiError>;

    /// `token create`
    async fn token_create(&self, spec: TokenSpec) -> Result<TokenCreated, ApiError>;
    /// `token ls`
    async fn tokens(&self) -> Result<Vec<Token>, ApiError>;
    /// `token revoke`
    async fn token_revoke(&self, reference: &str) -> Result<Token, ApiError>;

    /// `node ls`
    async fn nodes(&self) -> Result<Vec<Node>, ApiError>;
    /// `node inspect`
    async fn node(&self, reference: &str) -> Result<Node, ApiError> {
        resolve::one(&self.nodes().await?, reference).cloned()
    }

    /// `node update`: conflict where this node may not say it, or the node is not up.
    async fn node_update(&self, reference: &str, spec: NodeSpec) -> Result<Node, ApiError>;
    /// `node rm`: conflict if it is up and this is not forced, or if it is this node.
    async fn node_rm(&self, reference: &str, force: bool) -> Result<Node, ApiError>;

    /// `peer ls`
    async fn peers(&self) -> Result<Vec<Peer>, ApiError>;
    /// `peer inspect`: the reference is a node's.
    async fn peer(&self, reference: &str) -> Result<Peer, ApiError> {
        resolve::peer(&self.nodes().await?, &self.peers().await?, reference).cloned()
    }

    /// `network ls`
    async fn networks(&self) -> Result<Vec<Network>, ApiError>;
    /// `network inspect`
    async fn network(&self, reference: &str) -> Result<Network, ApiError> {
        resolve::one(&self.networks().await?, reference).cloned()
    }
    /// `network create`
    async fn network_create(&self, spec: NetworkSpec) -> Result<Network, ApiError>;
    /// `network extend`: conflict if a subnet overlaps one of the network.
    async fn network_extend(&self, reference: &str, spec: ExtendSpec) -> Result<Network, ApiError>;
    /// `network update`: options that are not named stay.
    async fn network_update(
        &self,
        reference: &str,
        update: NetworkUpdate,
    ) -> Result<Network, ApiError>;
    /// `network rm`: conflict while endpoints are in it; `force` counts only those of nodes that
    /// are up.
    async fn network_rm(&self, reference: &str, force: bool) -> Result<Network, ApiError>;

    /// `service ls`
    async fn services(&self) -> Result<Vec<Service>, ApiError>;
    /// `service inspect`, with what this node counted of it.
    async fn service(&self, reference: &str) -> Result<Service, ApiError> {
        resolve::one(&self.services().await?, reference).cloned()
    }
    /// `service create`: conflict if the network has the name, or cannot have services.
    async fn service_create(&self, spec: ServiceSpec) -> Result<Service, ApiError>;
    /// `service update`: what is not named stays.
    async fn service_update(
        &self,
        reference: &str,
        update: ServiceUpdate,
    ) -> Result<Service, ApiError>;
    /// `service health`: somebody's word about a backend of this node.
    async fn service_health(&self, reference: &str, word: HealthWord) -> Result<Service, ApiError>;
    /// `service rm`
    async fn service_rm(&self, reference: &str) -> Result<Service, ApiError>;

    /// `ipam ls`
    async fn pools(&self) -> Result<Vec<AddressPool>, ApiError>;
    /// `ipam trust`: this node's state is the last one, so its addresses are its own.
    async fn trust_pools(&self) -> Result<Vec<AddressPool>, ApiError>;
    /// `ipam inspect`: the reference is a network's.
    async fn network_pools(&self, reference: &str) -> Result<NetworkPools, ApiError>;

    /// `endpoint ls`
    async fn endpoints(&self) -> Result<Vec<Endpoint>, ApiError>;
    /// `endpoint inspect`
    async fn endpoint(&self, reference: &str) -> Result<Endpoint, ApiError> {
        resolve::one(&self.endpoints().await?, reference).cloned()
    }
    /// `endpoint attach`
    async fn endpoint_attach(&self, spec: AttachSpec) -> Result<Endpoint, ApiError>;
    /// `endpoint update`: conflict if it is on another node.
    async fn endpoint_update(
        &self,
        reference: &str,
        spec: EndpointSpec,
    ) -> Result<Endpoint, ApiError>;
    /// `endpoint detach`
    async fn endpoint_detach(&self, reference: &str) -> Result<Endpoint, ApiError>;

    /// A container runtime attaches a container; the same twice has the same answer.
    async fn attachment_add(&self, spec: AttachmentSpec) -> Result<Attachment, ApiError>;
    /// The attachment of this key: not found unless it is whole.
    async fn attachment(&self, key: AttachmentKey) -> Result<Attachment, ApiError>;
    /// The runtime detaches a container; none is fine. What was removed comes back.
    async fn attachment_rm(&self, key: AttachmentKey) -> Result<Vec<Endpoint>, ApiError>;
    /// Removes the attachments of a runtime's network configuration that it does not know.
    async fn attachments_keep(&self, kept: AttachmentsKept) -> Result<Vec<Endpoint>, ApiError>;

    /// `sandbox ls`
    async fn sandboxes(&self) -> Result<Vec<Sandbox>, ApiError>;
    /// Sandboxes that have ended, for `sandbox ls --all`.
    async fn sandboxes_ended(&self) -> Result<Vec<Sandbox>, ApiError>;
    /// `sandbox inspect`, and for `exec`.
    async fn sandbox(&self, reference: &str) -> Result<Sandbox, ApiError> {
        let mut all = self.sandboxes().await?;
        all.extend(self.sandboxes_ended().await?);
        resolve::one(&all, reference).cloned()
    }
    /// The first half of `run`: a namespace with its endpoints.
    async fn sandbox_create(&self, spec: SandboxSpec) -> Result<Sandbox, ApiError>;
    /// The second half of `run`: this process runs in it.
    async fn sandbox_started(
        &self,
        reference: &str,
        started: SandboxStarted,
    ) -> Result<Sandbox, ApiError>;
    /// Tells that a sandbox's command has ended for good.
    async fn sandbox_ended(
        &self,
        reference: &str,
        ended: SandboxEnded,
    ) -> Result<Sandbox, ApiError>;
    /// `sandbox rm`: ends its process and removes it with its endpoints.
    async fn sandbox_rm(&self, reference: &str) -> Result<Sandbox, ApiError>;
    /// `network connect`: conflict if it is in the network.
    async fn sandbox_connect(
        &self,
        reference: &str,
        connection: Connection,
    ) -> Result<Endpoint, ApiError>;
    /// `network disconnect`: not found if it is not in the network.
    async fn sandbox_disconnect(
        &self,
        reference: &str,
        network: &str,
    ) -> Result<Endpoint, ApiError>;

    /// `doctor`
    async fn doctor(&self) -> Result<Vec<Diagnosis>, ApiError>;
    /// `drops`
    async fn drops(&self) -> Result<Vec<DropRow>, ApiError>;
    /// `flows`: usage if more are asked for than are shown at once.
    async fn flows(&self, query: FlowQuery) -> Result<Flows, ApiError>;
    /// `locate`: every endpoint that has the address, in any network.
    async fn locate(&self, address: Address) -> Result<Vec<Location>, ApiError>;

    /// `dns query`: the records that answer for a name or an address; not found if there are none.
    async fn dns_query(&self, name: &str, query: DnsQuery) -> Result<Vec<DnsRecord>, ApiError>;

    /// `map ls`
    async fn map(&self) -> Result<Vec<MapRow>, ApiError>;
    /// `map diff`: the reference is a node's.
    async fn map_diff(&self, reference: &str) -> Result<Vec<MapDiffRow>, ApiError>;
}
