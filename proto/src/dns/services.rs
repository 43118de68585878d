//! What a name says of a service by the labels before the service's own (SRV: RFC 2782).
//!
//! A lookup of a service's name asks for an address to connect to. These names ask who answers for
//! it, for programs that balance by themselves: all of them, in an order that stays.

use std::net::IpAddr;

use super::{NamedEndpoint, NamesTable, RecordKind};
use crate::{
    addr::{Name, ServiceId},
    object::ServicePort,
    tables::RowKey,
    wire::{TCP, UDP},
};

/// What a weight of 1 is in an SRV record: HAProxy divides by it, and rounds up.
const SRV_WEIGHT: u16 = 256;

/// A service as its names lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedService {
    /// Its id.
    pub id: ServiceId,
    /// Its name.
    pub name: Name,
    /// Its addresses. To one without, its name leads to its backends in turn.
    pub vips: Vec<IpAddr>,
    /// When it was made, in Unix milliseconds.
    pub created: u64,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Who answers for it, in the order of the keys.
    pub backends: Vec<NamedBackend>,
}

/// An endpoint that answers for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedBackend {
    /// Who hosts it, and its id.
    pub key: RowKey,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// How many new connections it gets, beside the others' weights.
    pub weight: u8,
    /// Whether it gets new connections now: it is up and well.
    pub takes_new: bool,
}

/// Whose addresses a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead<'v> {
    /// Who hosts it, and its id.
    pub key: RowKey,
    /// Its addresses.
    pub ips: &'v [IpAddr],
}

impl Lead<'_> {
    /// Those of a kind of record.
    pub(super) fn of_kind(self, kind: RecordKind) -> impl Iterator<Item = IpAddr> {
        self.ips.iter().copied().filter(move |ip| kind.is_address(ip))
    }
}

impl<'v> From<&'v NamedEndpoint> for Lead<'v> {
    fn from(endpoint: &'v NamedEndpoint) -> Self {
        Self { key: endpoint.key, ips: &endpoint.ips }
    }
}

/// Where a port of a service is at one of its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'v> {
    /// The backend.
    pub lead: Lead<'v>,
    /// What it is called in its network; this leads to it alone.
    pub name: String,
    /// The port there.
    pub port: u16,
    /// How many connections it is to get, beside the others' weights.
    pub weight: u16,
}

/// What is asked of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'n> {
    /// Who gets new connections: `tasks`.
    Healthy,
    /// Whoever answers for it: `all`.
    All,
    /// Nothing of its own, as ports are below it: `_tcp`, `_udp`.
    Protocol(u8),
    /// A port by its name or number: `_http._tcp`.
    Port { protocol: u8, port: &'n str },
}

impl<'n> Wanted<'n> {
    /// What a name asks, and of which service.
    pub(super) fn of(name: &'n str) -> Option<(Self, &'n str)> {
        let (asked, service) = name.rsplit_once('.')?;
        let wanted = match asked {
            "tasks" => Self::Healthy,
            "all" => Self::All,
            _ => match asked.split_once('.') {
                Some((port, protocol)) => {
                    Self::Port { protocol: number_of(protocol)?, port: port.strip_prefix('_')? }
                }
                None => Self::Protocol(number_of(asked)?),
            },
        };
        Some((wanted, service))
    }
}

fn number_of(protocol: &str) -> Option<u8> {
    match protocol {
        "_tcp" => Some(TCP),
        "_udp" => Some(UDP),
        _ => None,
    }
}

impl NamedService {
    /// Whether both are found under the same names and addresses.
    pub(super) fn is_named_as(&self, other: &Self) -> bool {
        let names = |it: &Self| (it.id, it.created);
        names(self) == names(other) && self.name == other.name && self.vips == other.vips
    }

    /// Who gets new connections.
    pub(super) fn healthy(&self) -> impl Iterator<Item = &NamedBackend> {
        self.backends.iter().filter(|backend| backend.takes_new)
    }

    /// Who gets new connections, without those of weight 0 where there are others.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &NamedBackend> {
        let all_idle = self.healthy().all(|backend| backend.weight == 0);
        self.healthy().filter(move |backend| all_idle || backend.weight > 0)
    }

    /// Whether it has a port of this protocol.
    pub(super) fn has(&self, protocol: u8) -> bool {
        self.ports.iter().any(|port| port.protocol == protocol)
    }

    /// The port of this name, or of this number: a name may look like a number.
    pub(super) fn port(&self, protocol: u8, asked: &str) -> Option<&ServicePort> {
        let ports = || self.ports.iter().filter(move |port| port.protocol == protocol);
        let is_its_name =
            |port: &&ServicePort| port.name.as_ref().is_some_and(|it| it.as_str() == asked);
        // Written as numbers are, so that one port has one name.
        let is_its_number = |port: &&ServicePort| port.port.to_string() == asked;
        ports().find(is_its_name).or_else(|| ports().find(is_its_number))
    }

    /// Where a port is at each backend.
    pub(super) fn targets<'v>(
        &'v self,
        table: &'v NamesTable,
        port: &'v ServicePort,
    ) -> impl Iterator<Item = Target<'v>> {
        self.wanted().map(|backend| Target {
            lead: backend.lead(),
            name: table.unshared_name(backend),
            port: port.backend_port,
            weight: u16::from(backend.weight).saturating_mul(SRV_WEIGHT),
        })
    }
}

impl NamedBackend {
    pub(super) fn lead(&self) -> Lead<'_> {
        Lead { key: self.key, ips: &self.ips }
    }
}
