//! A service as the whole mesh knows it, which of its fields its id commits to, and whose its
//! addresses are.
//!
//! A service's addresses (VIPs) are given to it as blocks are given to a node: by a transfer of
//! their owner to [`holder`]. No key signs for that receiver, so nobody claims them for an endpoint
//! or gives them on, and a node that leaves or is removed takes none along. When the service is
//! closed, they are back with who gave them ([`crate::ipam::Ownership::give_back`]). A service
//! object alone therefore takes no address from anybody.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;
use ring::digest;
use serde::{Deserialize, Serialize};

use super::{Content, Hlc, Object, ObjectId, ObjectSet, Refused};
use crate::{
    addr::{Name, NetworkId, NodeId, ServiceId},
    limits::{
        CLIENT_PREFIXES, GONE_SERVICES, NETWORK_LABELS, SERVICE_BACKENDS, SERVICE_PORTS,
        SERVICE_WEIGHT, STICKY_SECONDS,
    },
};

const DOMAIN: &[u8] = b"vxmesh service 1\0";
const HOLDER_DOMAIN: &[u8] = b"vxmesh service holder 1\0";

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    /// The protocol's number (IANA): TCP or UDP.
    #[serde(rename = "t")]
    pub protocol: u8,
    /// The number at the VIP.
    #[serde(rename = "p")]
    pub port: u16,
    /// The number at the backends.
    #[serde(rename = "b")]
    pub backend_port: u16,
    /// Its name.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// A port of the hosts that leads to a port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The protocol's number (IANA): TCP or UDP.
    #[serde(rename = "t")]
    pub protocol: u8,
    /// The number at the hosts.
    #[serde(rename = "h")]
    pub host_port: u16,
    /// The number at the VIP.
    #[serde(rename = "p")]
    pub port: u16,
    /// The address at which it is; all of a host's otherwise.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Whether it is on hosts with backends only, and leads to these.
    #[serde(rename = "l", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_local: bool,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name. Fixed.
    #[serde(rename = "n")]
    pub name: Name,
    /// The network that it is in. Fixed.
    #[serde(rename = "w")]
    pub network: NetworkId,
    /// Who made it. Fixed.
    #[serde(rename = "by")]
    pub creator: NodeId,
    /// Its addresses, at most one of an IP version. Fixed. To one without, its name leads to its
    /// backends themselves.
    #[serde(rename = "v")]
    pub vips: Vec<IpAddr>,
    /// Its ports.
    #[serde(rename = "p")]
    pub ports: Vec<ServicePort>,
    /// Names of endpoints that answer for it.
    #[serde(rename = "e", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub backends: BTreeSet<Name>,
    /// Labels; an endpoint that has all of them answers for it, too. Nobody is chosen by none.
    #[serde(rename = "l", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// How many flows endpoints get, beside the others, where it is not one share.
    #[serde(rename = "g", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<Name, u8>,
    /// How a backend is chosen. A node that does not know the word takes its default.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Name>,
    /// How the nodes of backends see whether these work.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthCheck>,
    /// Names of endpoints that get no new flows, and since when, in Unix milliseconds.
    #[serde(rename = "x", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<Name, u64>,
    /// How long the flows of one that is drained may go on, in milliseconds, if not for
    /// [`DRAIN_MS`].
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
    /// Which backends a node prefers: `node`, its own; or `zone`, those of its zone. A node that
    /// does not know the word prefers none.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Name>,
    /// Ports of the hosts that lead to it.
    #[serde(rename = "u", default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
    /// Prefixes of the clients that these are for; all without one.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// Prefixes of clients that they are not for.
    #[serde(rename = "o", default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<IpNet>,
    /// For how many seconds after its last packet a client keeps its backend. A node that does not
    /// know of it chooses for each flow.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<u32>,
}

/// How long the flows of a drained backend go on: Docker's and Kubernetes' time for a container to
/// stop is 10 and 30 s.
pub const DRAIN_MS: u64 = 30_000;

/// What is in no URI (RFC 3986 section 2), and the fragment, which is not sent.
const NO_PATH: &[u8] = b"\"#<>\\^`{|}";

/// How a backend is checked: at its first TCP port, by a connection, or by a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Path of the HTTP request; without, a connection is enough.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// From one check to the next, in milliseconds.
    #[serde(rename = "i")]
    pub interval_ms: u64,
    /// How long one may take, in milliseconds.
    #[serde(rename = "t")]
    pub timeout_ms: u64,
    /// How many in a row bring one back that failed.
    #[serde(rename = "u")]
    pub rise: u8,
    /// How many in a row take one out.
    #[serde(rename = "f")]
    pub fall: u8,
}

impl HealthCheck {
    /// Within what a check's times may be: one in 100 ms, to one an hour; a minute for one.
    const INTERVALS: RangeInclusive<u64> = 100..=3_600_000;
    const TIMEOUTS: RangeInclusive<u64> = 100..=60_000;
    /// Longest path: a record of the mesh is no place for more.
    const PATH_LEN: usize = 256;

    /// Whether its path, if it has one, is one.
    #[must_use]
    pub fn has_path(&self) -> bool {
        self.path.as_ref().is_none_or(|path| {
            path.starts_with('/')
                && path.len() <= Self::PATH_LEN
                && path.bytes().all(|byte| byte.is_ascii_graphic() && !NO_PATH.contains(&byte))
        })
    }

    /// Whether all of it can be meant.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        Self::INTERVALS.contains(&self.interval_ms)
            && Self::TIMEOUTS.contains(&self.timeout_ms)
            && self.rise > 0
            && self.fall > 0
            && self.has_path()
    }
}

impl Service {
    /// The id of a service that was made then: the hash of its fixed fields.
    #[must_use]
    pub fn id(&self, created: Hlc) -> ServiceId {
        let fixed = (self.creator, created, self.network, &self.name, &self.vips);
        // INVARIANT: these types have no map with keys other than strings, so JSON can hold them.
        let json = serde_json::to_vec(&fixed).unwrap_or_default();
        let hash = digest::digest(&digest::SHA256, &[DOMAIN, json.as_slice()].concat());
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
        ServiceId::from_random(id)
    }

    pub(super) fn check(&self) -> Result<(), Refused> {
        let v4 = self.vips.iter().filter(|ip| ip.is_ipv4()).count();
        let numbers: BTreeSet<_> =
            self.ports.iter().map(|port| (port.protocol, port.port)).collect();
        let is_weight = |weight: &u8| *weight <= SERVICE_WEIGHT;
        let fault = if v4 > 1 || self.vips.len() - v4 > 1 {
            "it has two addresses of one IP version"
        } else if self.ports.len() > SERVICE_PORTS || numbers.len() != self.ports.len() {
            "it has too many ports, or one twice"
        } else if self.ports.iter().any(|port| port.port == 0 || port.backend_port == 0) {
            "one of its ports is 0"
        } else if self.backends.len() > SERVICE_BACKENDS || self.weights.len() > SERVICE_BACKENDS {
            "it names too many backends"
        } else if self.selector.len() > NETWORK_LABELS {
            "it selects by too many labels"
        } else if !self.weights.values().all(is_weight) {
            "a weight is above 100"
        } else if self.draining.len() > SERVICE_BACKENDS {
            "it drains too many backends"
        } else if !self.check.as_ref().is_none_or(HealthCheck::is_sound) {
            "its check has a path that is none, or times or counts that are too small or too large"
        } else if let Some(fault) = self.fault_of_published() {
            fault
        } else if !self.sticky.is_none_or(|seconds| (1..=STICKY_SECONDS).contains(&seconds)) {
            "its clients keep their backends for less than a second, or more than a day"
        } else {
            return Ok(());
        };
        Err(Refused::Content(fault))
    }
}

impl PublishedPort {
    /// Whether a host can have one of the two only.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        (self.protocol, self.host_port) == (other.protocol, other.host_port)
            && share_address(self.ip, other.ip)
    }

    /// Whether they lead to one port in different modes.
    pub(super) fn differs(&self, other: &Self) -> bool {
        (self.protocol, self.port) == (other.protocol, other.port)
            && self.is_local != other.is_local
    }
}

/// Whether two ports of one number, each at an address or at all that a host has, are at one of
/// them both.
#[must_use]
pub fn share_address(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return true };
    let is_any = one.is_unspecified() || other.is_unspecified();
    one == other || (is_any && one.is_ipv4() == other.is_ipv4())
}

impl Service {
    fn fault_of_published(&self) -> Option<&'static str> {
        let before = |at: usize| self.published.iter().take(at);
        let mut all = self.published.iter().enumerate();
        if self.published.len() > SERVICE_PORTS {
            Some("it publishes too many ports")
        } else if self.allow.len() > CLIENT_PREFIXES || self.deny.len() > CLIENT_PREFIXES {
            Some("it has too many prefixes of clients")
        } else if self.published.iter().any(|it| it.host_port == 0 || it.port == 0) {
            Some("one of its published ports is 0")
        } else if all.any(|(at, it)| before(at).any(|other| it.meets(other) || it.differs(other))) {
            Some("one of its published ports is there twice, or in both modes")
        } else {
            None
        }
    }
}

/// Who has the addresses of a service: a node that there is not. No key is as long as what its id
/// is the hash of.
#[must_use]
pub fn holder(service: ServiceId) -> NodeId {
    NodeId::of_public_key(&[HOLDER_DOMAIN, service.bytes().as_slice()].concat())
}

/// Whether a service has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// It has.
    Active,
    /// An older one of the network has it.
    Conflict {
        /// That service.
        with: ServiceId,
    },
}

/// One service of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceOf<'a> {
    /// Which one.
    pub id: ServiceId,
    /// When it was made.
    pub created: Hlc,
    /// What it is.
    pub service: &'a Service,
    /// Whether it has its name.
    pub state: ServiceState,
}

impl ObjectSet {
    /// The services of a network that were not closed, oldest first. Of two with one name the older
    /// is active.
    #[must_use]
    pub fn services(&self, network: NetworkId) -> Vec<ServiceOf<'_>> {
        let open = self.all_services().filter(|(_, object, _)| !object.closed());
        let mut open: Vec<_> = open.filter(|(_, _, service)| service.network == network).collect();
        open.sort_by_key(|(id, object, _)| (object.created(), *id));
        let mut names = BTreeMap::new();
        open.into_iter()
            .map(|(id, object, service)| {
                let with = *names.entry(&service.name).or_insert(id);
                let state =
                    if with == id { ServiceState::Active } else { ServiceState::Conflict { with } };
                ServiceOf { id, created: object.created(), service, state }
            })
            .collect()
    }

    /// The addresses of the services of each network that were closed last.
    #[must_use]
    pub fn gone_vips(&self) -> BTreeMap<NetworkId, BTreeSet<IpAddr>> {
        let closed = self.all_services().filter(|(_, object, _)| object.closed());
        let mut of: BTreeMap<NetworkId, Vec<_>> = BTreeMap::new();
        for (id, object, service) in closed.filter(|(.., service)| !service.vips.is_empty()) {
            of.entry(service.network).or_default().push((Reverse(object.hlc()), id, service));
        }
        let last = |mut closed: Vec<(_, _, &Service)>| {
            closed.sort_by_key(|(closed, id, _)| (*closed, *id));
            let last = closed.into_iter().take(GONE_SERVICES);
            last.flat_map(|(.., service)| service.vips.iter().copied()).collect()
        };
        of.into_iter().map(|(network, closed)| (network, last(closed))).collect()
    }

    /// The networks that have services.
    #[must_use]
    pub fn with_services(&self) -> BTreeSet<NetworkId> {
        let open = self.all_services().filter(|(_, object, _)| !object.closed());
        open.map(|(.., service)| service.network).collect()
    }

    /// All services, closed ones too, in the order of ids: their objects, and what they are after
    /// all that was changed of them.
    pub fn all_services(&self) -> impl Iterator<Item = (ServiceId, &Arc<Object>, &Service)> {
        let first = ObjectId::Service(ServiceId::from_random([0; 16]));
        let rest = self.range_from(&first);
        rest.map_while(|object| match (object.id(), object.content()) {
            (ObjectId::Service(id), Content::Service(service)) => {
                Some((*id, object, self.merged.get(id).unwrap_or(service)))
            }
            _ => None,
        })
    }
}
