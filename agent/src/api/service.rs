//! Services as `vxmesh service` shows them, and what it asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, Name, NetworkId, NodeId, ServiceId},
    lb::{Protocol, PublishMode, service_mac},
};

use crate::{
    firewall::clients::Clients,
    gateway::publish::{Publish, PublishError, PublishRange},
};

/// A port of a service: `[NAME=]PORT[:BACKENDPORT][/tcp|/udp]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServicePort {
    /// Its name, by which SRV records find it.
    pub name: Option<Name>,
    /// TCP, or UDP.
    pub protocol: Protocol,
    /// Its number at the VIP.
    pub port: u16,
    /// Its number at the backends.
    pub backend_port: u16,
}

impl FromStr for ServicePort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<u16, String> {
            let port = text.parse().ok().filter(|port| *port > 0);
            port.ok_or_else(|| format!("`{text}` is no port: write a number from 1 to 65535"))
        };
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => {
                (Some(name.parse().map_err(|why| format!("`{name}`: {why}"))?), rest)
            }
            None => (None, text),
        };
        let (ports, protocol) = match rest.split_once('/') {
            None => (rest, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => {
                return Err(format!("a service carries tcp and udp, and no `{other}`"));
            }
        };
        let (port, backend_port) = ports.split_once(':').unwrap_or((ports, ports));
        Ok(Self { name, protocol, port: number(port)?, backend_port: number(backend_port)? })
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}=")?;
        }
        write!(f, "{}", self.port)?;
        if self.backend_port != self.port {
            write!(f, ":{}", self.backend_port)?;
        }
        match self.protocol {
            Protocol::Tcp => write!(f, "/tcp"),
            Protocol::Udp => write!(f, "/udp"),
        }
    }
}

impl TryFrom<String> for ServicePort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ServicePort> for String {
    fn from(port: ServicePort) -> Self {
        port.to_string()
    }
}

/// A port of the hosts that leads to a port of a service:
/// `[IP:]HOST:PORT[/tcp|/udp][,mode=ingress|host]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServicePublish {
    /// The port, by which a service's stands for a sandbox's.
    pub port: Publish,
    /// Where it is, and whereto it leads.
    pub mode: PublishMode,
}

/// Several of them, as they are written in one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePublishRange(pub Vec<ServicePublish>);

impl FromStr for ServicePublishRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, mode) = match text.split_once(',') {
            None | Some((_, "mode=ingress")) => {
                (text.trim_end_matches(",mode=ingress"), PublishMode::Ingress)
            }
            Some((ports, "mode=host")) => (ports, PublishMode::Host),
            Some((_, other)) => {
                return Err(format!("`{other}` is not known: write mode=ingress or mode=host"));
            }
        };
        let PublishRange(ports) = ports.parse().map_err(|error: PublishError| error.to_string())?;
        Ok(Self(ports.into_iter().map(|port| ServicePublish { port, mode }).collect()))
    }
}

impl ServicePublish {
    /// The hosts' side of it, as `10.0.0.1:8080`.
    #[must_use]
    pub fn host(&self) -> String {
        let port = self.port.port.map(|port| port.to_string()).unwrap_or_default();
        match self.port.ip {
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
            Some(IpAddr::V4(ip)) => format!("{ip}:{port}"),
            None => port,
        }
    }
}

impl fmt::Display for ServicePublish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Publish { sandbox_port, protocol, .. } = self.port;
        write!(f, "{}:{sandbox_port}/{}", self.host(), protocol.as_str())?;
        match self.mode {
            PublishMode::Ingress => Ok(()),
            PublishMode::Host => write!(f, ",mode=host"),
        }
    }
}

impl TryFrom<String> for ServicePublish {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let ServicePublishRange(ports) = text.parse()?;
        match <[Self; 1]>::try_from(ports) {
            Ok([port]) => Ok(port),
            Err(_several) => Err(format!("`{text}` is more than one port")),
        }
    }
}

impl From<ServicePublish> for String {
    fn from(port: ServicePublish) -> Self {
        port.to_string()
    }
}

/// How a published port of a service stands on the node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePublished {
    /// The port.
    pub port: ServicePublish,
    /// `open`; `faulty`: the node has it, and what leads from there into the network is not as it
    /// should be; `taken`: something else on the node has it, or an older service; `elsewhere`: its
    /// address is not the node's; or `closed`: the node has no part in the network, or no backend
    /// for a port of mode host.
    pub state: String,
    /// Who has it, or what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Balancing {
    /// By a hash of addresses and ports that is the same on every node
    #[default]
    Maglev,
    /// In turn, as far as the connections of one node go
    Rr,
    /// The one with the fewest connections of the client's node for its weight
    LeastConn,
}

impl Balancing {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Maglev => "maglev",
            Self::Rr => "rr",
            Self::LeastConn => "least-conn",
        }
    }
}

/// Where the name of a service leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ServiceMode {
    /// To an address of its own (VIP), whose connections are spread
    #[default]
    Vip,
    /// To its healthy backends themselves, one of them in turn
    Dnsrr,
}

/// Which backends a node prefers, as long as one of them works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preference {
    /// None: all are equal
    #[default]
    Any,
    /// Those on the client's node
    Node,
    /// Those on nodes of the client's zone (`vxmesh node update --label zone=NAME`)
    Zone,
}

impl Preference {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Node => "node",
            Self::Zone => "zone",
        }
    }
}

/// How the nodes of backends see whether these work: at the service's first TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceCheck {
    /// Path of an HTTP request, which is answered with a status from 200 to 399; a connection is
    /// enough without.
    #[serde(default)]
    pub path: Option<String>,
    /// From one check to the next, in milliseconds.
    pub interval_ms: u64,
    /// How long one may take, in milliseconds.
    pub timeout_ms: u64,
    /// How many in a row bring a backend back.
    pub rise: u8,
    /// How many in a row take it out.
    pub fall: u8,
}

/// `vxmesh service ls|inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Stable id.
    pub id: ServiceId,
    /// Its name.
    pub name: Name,
    /// The network that it is in.
    pub network: NetworkId,
    /// Where its name leads.
    pub mode: ServiceMode,
    /// Its addresses (VIPs).
    pub vips: Vec<IpAddr>,
    /// `active`; or `conflict`: an older service of the network has the name; or `pending`: the
    /// node that answers has not heard yet that the addresses were given to it.
    pub state: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// How a backend is chosen; by whoever looks it up where it has no address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lb: Option<String>,
    /// Which backends a node prefers.
    #[serde(default)]
    pub prefer: String,
    /// For how many seconds after its last packet a client keeps its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_s: Option<u32>,
    /// How backends are checked.
    #[serde(default)]
    pub check: Option<ServiceCheck>,
    /// How long the connections of a drained backend may go on, in milliseconds.
    #[serde(default)]
    pub drain_ms: u64,
    /// Labels of endpoints that answer for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// Who answers for it, and who is named and not there.
    #[serde(default)]
    pub backends: Vec<ServiceBackend>,
    /// Ports of the hosts that lead to it, as they stand on the node that answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<ServicePublished>,
    /// Nodes on which something else has one of these ports; `vxmesh service inspect` there says
    /// what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_on: Vec<NodeId>,
    /// Whom these are for.
    #[serde(default, skip_serializing_if = "Clients::are_all")]
    pub clients: Clients,
    /// What the node that answers counted of all backends, also of those that are none any more.
    /// Only for one service at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<ServiceCounters>,
    /// How many packets that would have begun a connection that node refused, by the reason that
    /// `vxmesh drops` has. Only for one service at a time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, u64>,
    /// Who made it.
    pub creator: NodeId,
    /// What works, but not as it may be thought. Only for one service at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An endpoint that answers for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceBackend {
    /// The endpoint's name.
    pub name: Name,
    /// `ready`; `unchecked`: it has not passed its check yet; `failing`: its check, or `vxmesh
    /// service health`, says that it does not work; `silent`: this node gets no answer from it;
    /// `draining`: it keeps the connections that it has for a while; `drained`; or `missing`: no
    /// endpoint of this name is up. All but those that are ready get no new connections, as long as
    /// others are there.
    pub state: String,
    /// Why it is in this state, or gets no new connections, where that needs a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Its id, while it is there.
    #[serde(default)]
    pub endpoint: Option<EndpointId>,
    /// Whose it is.
    pub node: Option<NodeId>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// How many new connections it gets, beside the others' weights.
    pub weight: u8,
    /// What the node that answers counted of it. Only for one service at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<ServiceCounters>,
}

/// What a node counted of connections of its own clients since its agent started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounters {
    /// Connections, and flows of datagrams, that there are.
    pub open: u64,
    /// Those that began.
    pub begun: u64,
    /// Packets from clients to backends.
    pub tx_packets: u64,
    /// Their bytes, with Ethernet headers.
    pub tx_bytes: u64,
    /// Packets from backends to clients.
    pub rx_packets: u64,
    /// Their bytes, with Ethernet headers.
    pub rx_bytes: u64,
    /// How often a backend was out because it answered nothing.
    pub ejections: u64,
}

/// `vxmesh locate` of an address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipLocation {
    /// The network.
    pub network: NetworkId,
    /// The service.
    pub service: ServiceId,
    /// Its name.
    pub name: Name,
    /// Its addresses (VIPs).
    pub vips: Vec<IpAddr>,
    /// The MAC address at which endpoints find them, on each host.
    pub mac: MacAddr,
    /// How it stands.
    pub state: String,
    /// Who answers for it.
    pub backends: Vec<ServiceBackend>,
}

impl From<Service> for VipLocation {
    fn from(service: Service) -> Self {
        let Service { network, id, name, vips, state, backends, .. } = service;
        Self { network, service: id, name, vips, mac: service_mac(network), state, backends }
    }
}

/// `vxmesh service create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its name.
    pub name: Name,
    /// The network: id, beginning of an id, or name.
    pub network: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Names of endpoints that answer for it.
    #[serde(default)]
    pub backends: BTreeSet<Name>,
    /// Labels; an endpoint that has all of them answers for it, too.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Where its name leads.
    #[serde(default)]
    pub mode: ServiceMode,
    /// Its addresses; chosen otherwise.
    #[serde(default)]
    pub vips: Vec<IpAddr>,
    /// How a backend is chosen.
    #[serde(default)]
    pub lb: Option<Balancing>,
    /// How many new connections endpoints get, where it is not one share.
    #[serde(default)]
    pub weights: BTreeMap<Name, u8>,
    /// Which backends a node prefers.
    #[serde(default)]
    pub prefer: Preference,
    /// For how many seconds after its last packet a client keeps its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_s: Option<u32>,
    /// How backends are checked.
    #[serde(default)]
    pub check: Option<ServiceCheck>,
    /// How long the connections of a drained backend may go on, in milliseconds.
    #[serde(default)]
    pub drain_ms: Option<u64>,
    /// Ports of the hosts that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<ServicePublish>,
    /// Whom these are for.
    #[serde(default, skip_serializing_if = "Clients::are_all")]
    pub clients: Clients,
}

/// `vxmesh service update`: what is not named stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceUpdate {
    /// Ports to add, or to lead elsewhere.
    pub add_ports: Vec<ServicePort>,
    /// Ports to remove.
    pub remove_ports: Vec<ServicePort>,
    /// Backends to add.
    pub add_backends: BTreeSet<Name>,
    /// Backends to remove.
    pub remove_backends: BTreeSet<Name>,
    /// Weights to set; 1 is the default again.
    pub weights: BTreeMap<Name, u8>,
    /// How a backend is chosen.
    pub lb: Option<Balancing>,
    /// Which backends a node prefers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Preference>,
    /// For how many seconds after its last packet a client keeps its backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky_s: Option<u32>,
    /// Clients do not keep their backends any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_sticky: bool,
    /// How backends are checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<ServiceCheck>,
    /// Backends are not checked any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_check: bool,
    /// How long the connections of a drained backend may go on, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
    /// Backends that get no new connections from now on.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub drain: BTreeSet<Name>,
    /// Backends that get some again.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub undrain: BTreeSet<Name>,
    /// Ports of the hosts to add.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add_published: Vec<ServicePublish>,
    /// Ports of the hosts to take back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove_published: Vec<ServicePublish>,
    /// Prefixes of the clients that published ports are for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<IpNet>>,
    /// Prefixes of clients that they are not for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<IpNet>>,
}

/// `vxmesh service health`: somebody's word about a backend of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthWord {
    /// The backend.
    pub backend: Name,
    /// Whether it works; nothing takes back what was said before.
    #[serde(default)]
    pub up: Option<bool>,
    /// For how long this stands, in milliseconds; until something else is said, or its agent
    /// starts anew, without.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_written_as_it_is_read() {
        for (text, shown) in [
            ("80", "80/tcp"),
            ("80:8080", "80:8080/tcp"),
            ("53/udp", "53/udp"),
            ("dns=53:5353/udp", "dns=53:5353/udp"),
            ("80:80/tcp", "80/tcp"),
        ] {
            let port: ServicePort = text.parse().unwrap();
            assert_eq!(port.to_string(), shown);
            assert_eq!(shown.parse::<ServicePort>().unwrap(), port);
        }
        for bad in ["", "0", "80:", ":80", "80/sctp", "65536", "=80", "80:0", "a:b", "80/tcp/udp"] {
            assert!(bad.parse::<ServicePort>().is_err(), "{bad}");
        }
    }
}
