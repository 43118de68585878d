//! The objects of the admin API, which `--format json` prints as they are: snake_case, full ids.
//!
//! Requests end in `Spec`. An error is [`ApiError`]: what is wrong and what to do next.

mod attachment;
mod connection;
pub(crate) mod driver;
mod flow;
mod ipam;
mod membership;
mod mode;
mod network;
mod sandbox;
mod service;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::{Alias, EndpointId, MacAddr, Name, NetworkId, NodeId};

pub use self::attachment::{Attachment, AttachmentKey, AttachmentSpec, AttachmentsKept};
pub use self::connection::{Connection, ConnectionError, Connections, SandboxNetwork};
pub use self::flow::{FLOWS_SHOWN, Flow, FlowQuery, Flows, MOST_FLOWS_SHOWN};
pub use self::ipam::{
    AddressBlock, AddressOwner, AddressPool, NetworkPools, PoolDetail, RestingAddress, RestingBlock,
};
pub use self::membership::{
    InitSpec, Issuer, JoinSpec, LeaveSpec, Membership, NodeSpec, Token, TokenCreated, TokenSpec,
};
pub use self::network::{
    ExtendSpec, Network, NetworkSpec, NetworkUpdate, Overlap, Plain, Subnet, Way,
};
pub use self::sandbox::{
    Begin, Detached, HostEntry, Hostname, Published, Sandbox, SandboxEnded, SandboxSpec,
    SandboxStarted,
};
pub use self::service::{
    Balancing, HealthWord, Preference, Service, ServiceBackend, ServiceCheck, ServiceCounters,
    ServiceMode, ServicePort, ServicePublish, ServicePublishRange, ServicePublished, ServiceSpec,
    ServiceUpdate, VipLocation,
};
pub use self::{driver::Driver, mode::Mode};

/// The largest number in an object: 2^53 - 1, above which JSON readers that count in floating point
/// are wrong (RFC 8259 section 6). It stands for anything larger.
pub const MOST: u64 = (1 << 53) - 1;

/// What kind of failure an [`ApiError`] is; each has its own exit status and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Something failed on the way (exit 1, HTTP 500).
    Failed,
    /// The request itself is wrong (exit 2, HTTP 400).
    Usage,
    /// No such object (exit 3, HTTP 404).
    NotFound,
    /// It is there already, is in use, or more than one object has this name (exit 4, HTTP 409).
    Conflict,
    /// No agent answers on the socket (exit 5).
    Unreachable,
}

impl ErrorCode {
    /// The exit status of a command that ends with this error.
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
        }
    }
}

/// Why a request was not carried out. Nothing was changed unless the message says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.hint)
    }
}

impl std::error::Error for ApiError {}

/// How an error travels: `{"error":{"code","message","hint"}}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

/// `vxmesh status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// `uninitialised` (neither `init` nor `join` was done), `starting`, `ready`; `removed` or
    /// `left` of who is no member any more; `stopped` where no agent answers, and all else is what
    /// was known when it ran last.
    pub state: String,
    /// The mesh, once known.
    pub mesh_id: Option<NodeId>,
    /// This node, once it has an identity.
    pub node_id: Option<NodeId>,
    /// This node's name.
    pub name: Name,
    /// Where other nodes reach this one for control.
    pub control_addr: Option<SocketAddr>,
    /// Where other nodes send sealed frames.
    pub vtep: Option<SocketAddr>,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Nodes known / of these alive, this one included.
    pub nodes: usize,
    /// See `nodes`.
    pub nodes_alive: usize,
    /// Networks known.
    pub networks: usize,
    /// Endpoints on this node.
    pub endpoints: usize,
    /// Whether this node holds the mesh CA key and may admit others.
    pub issuer: bool,
    /// Networks that forward nothing because an older one has their name or number.
    #[serde(default)]
    pub conflicts: usize,
    /// How long this node's certificate is valid yet, in seconds. It renews itself while an issuer
    /// is reachable.
    #[serde(default)]
    pub certificate_left_s: Option<u64>,
    /// Who holds it: only they admit nodes and renew certificates. Empty if nobody can any more.
    #[serde(default)]
    pub issuers: Vec<Issuer>,
    /// What carries frames, once known.
    pub datapath: Option<Datapath>,
}

/// What carries frames between the bridges and the underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// What drives the TAPs: `offload` (super-frames) or `tun-tap` (one packet per call).
    pub backend: String,
    /// What the kernel granted.
    pub offloads: Vec<String>,
    /// How often one was switched off because it was refused at work.
    pub refused: u64,
}

/// `vxmesh node ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Who it is.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where it receives sealed frames.
    pub vtep: Option<SocketAddr>,
    /// `alive`, `suspect`, `dead`, `left`, `removed`.
    pub state: String,
    /// Whether this is the node that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
    /// Whether it holds the mesh's CA key.
    #[serde(default)]
    pub issuer: bool,
    /// Whether the backends of services on it get no new connections.
    #[serde(default)]
    pub drained: bool,
    /// The zone that it is in.
    #[serde(default)]
    pub zone: Option<Name>,
}

impl Node {
    /// Whether it is no member any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.state.as_str(), "left" | "removed")
    }
}

/// `vxmesh peer ls`: the Noise session with one other node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Who it is.
    pub node_id: NodeId,
    /// Where its last authenticated packet came from, else its announced address.
    pub addr: Option<SocketAddr>,
    /// `idle`, `handshake`, `established`.
    pub state: String,
    /// `aes-256-gcm`, `chacha20-poly1305`, or nothing without a session.
    pub cipher: Option<String>,
    /// Smoothed round trip to the node now, in microseconds, as its control connection sees it;
    /// without one, that of the last handshakes.
    pub rtt_us: Option<u64>,
    /// Largest inner packet that this path carries.
    pub mtu: u16,
    /// Age of the current key in seconds.
    pub key_age_s: Option<u64>,
    /// Sealed bytes received, headers of VXLAN and Noise included.
    pub rx_bytes: u64,
    /// Sealed bytes sent.
    pub tx_bytes: u64,
}

/// `vxmesh endpoint ls|inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Its name in the network.
    pub name: Name,
    /// The network's id.
    pub network: NetworkId,
    /// The node that hosts it.
    pub node: NodeId,
    /// What it is plugged into: a sandbox's name or a namespace's path.
    pub sandbox: Option<String>,
    /// The interface inside the sandbox.
    pub ifname: Option<String>,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its addresses with the length of the subnet's prefix.
    pub ips: Vec<IpNet>,
    /// Other names of it.
    pub aliases: Vec<Alias>,
    /// Grows with each new life of the endpoint.
    pub incarnation: u64,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// An older endpoint of the network that has its name; this one is found by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<EndpointId>,
    /// Ports of its host that lead to it, as its host tells them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
}

/// `vxmesh endpoint attach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachSpec {
    /// Name or id of the network.
    pub network: String,
    /// Absolute path of the network namespace file to plug the endpoint into.
    pub netns: String,
    /// Its name; `ep-` and the short id otherwise.
    #[serde(default)]
    pub name: Option<Name>,
    /// Other names of it.
    #[serde(default)]
    pub aliases: Vec<Alias>,
    /// Wanted addresses, one per IP version at most; the others are chosen.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Wanted MAC address.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// Wanted interface name; the first free `ethN` otherwise.
    #[serde(default)]
    pub ifname: Option<String>,
    /// Free-form labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The sandbox it belongs to, when the agent made the namespace.
    #[serde(default)]
    pub sandbox: Option<String>,
}

/// `vxmesh endpoint update`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// Labels to set.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Keys of labels to remove.
    #[serde(default)]
    pub remove_labels: Vec<String>,
}

/// `vxmesh drops`: frames that were not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    /// The drop reason, snake_case.
    pub reason: String,
    /// The network, where one was known.
    pub network: Option<NetworkId>,
    /// The peer, where one was authenticated.
    pub peer: Option<NodeId>,
    /// The endpoint of this host that sent them or was to get them, where that is to blame.
    #[serde(default)]
    pub endpoint: Option<EndpointId>,
    /// How many.
    pub count: u64,
    /// Whether a healthy network shows this too, and nobody misses them.
    #[serde(default)]
    pub normal: bool,
}

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It works, but not all of it.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One row of `vxmesh doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub hint: String,
}

/// What `vxmesh locate` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// A MAC address.
    Mac(MacAddr),
    /// An IP address.
    Ip(IpAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, ApiError> {
        let ip = text.parse().ok().map(Self::Ip);
        ip.or_else(|| text.parse().ok().map(Self::Mac)).ok_or_else(|| {
            ApiError::new(
                ErrorCode::Usage,
                format!("`{text}` is neither a MAC nor an IP address"),
                "write it like 02:00:00:00:00:01, 10.0.0.1 or fd00::1",
            )
        })
    }
}

/// `vxmesh locate`: where an address is, who says so and how old the word is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The network.
    pub network: NetworkId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its name.
    pub name: Name,
    /// The node that hosts it, which signed this.
    pub node: NodeId,
    /// Where frames to it are sent; nothing for endpoints of this node.
    pub vtep: Option<SocketAddr>,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// `local`, `push` or `gossip`: how this node learned it.
    pub source: String,
    /// Milliseconds since this node learned it.
    pub age_ms: u64,
}

/// What has an address that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Located {
    /// An endpoint.
    Endpoint(Location),
    /// A service.
    Service(VipLocation),
}

impl Located {
    /// The network that it is in.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        match self {
            Self::Endpoint(location) => location.network,
            Self::Service(location) => location.network,
        }
    }
}

/// One record of `vxmesh dns query`: what a sandbox would be answered, who says so and how old the
/// word is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// The name that was asked for, in full.
    pub name: String,
    /// `A`, `AAAA`, `PTR`, `SRV`.
    #[serde(rename = "type")]
    pub kind: DnsType,
    /// The address, the name, or what an SRV record says.
    pub value: String,
    /// Seconds that the answer may be kept.
    pub ttl: u32,
    /// The network.
    pub network: NetworkId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The node that hosts it, which signed the record.
    pub node: NodeId,
    /// The record's stamp: incarnation of the node's agent, number in that life.
    pub stamp: (u64, u64),
    /// `local`, `push` or `gossip`: how this node learned it.
    pub source: String,
    /// Milliseconds since this node learned it.
    pub age_ms: u64,
}

/// A type of record that endpoints have.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "UPPER")]
pub enum DnsType {
    /// An IPv4 address
    A,
    /// An IPv6 address
    Aaaa,
    /// The name of an address
    Ptr,
    /// Where a port of a service is: priority, weight, port, name
    Srv,
}

impl fmt::Display for DnsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Ptr => "PTR",
            Self::Srv => "SRV",
        })
    }
}

/// `vxmesh dns query`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsQuery {
    /// Name or id of the only network to look in.
    #[serde(default)]
    pub network: Option<String>,
    /// The only type of record to show.
    #[serde(default, rename = "type")]
    pub kind: Option<DnsType>,
}

/// One row of `vxmesh map ls`: an endpoint as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MapRow {
    /// The network.
    pub network: NetworkId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The node that hosts it.
    pub node: NodeId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its incarnation.
    pub incarnation: u64,
}

/// One row of `vxmesh map diff`: what this node and another see differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDiffRow {
    /// `only_here`, `only_there`, `differs`.
    pub kind: String,
    /// As this node sees it.
    pub here: Option<MapRow>,
    /// As the other sees it.
    pub there: Option<MapRow>,
}
