//! Why a service was not made, changed or removed.

use std::net::IpAddr;

use thiserror::Error;
use vxmesh_proto::{
    addr::{Name, ParseError},
    limits::SERVICES_OF_NETWORK,
};

use crate::{
    api::{ApiError, ErrorCode, MOST_FLOWS_SHOWN, ServicePort, ServicePublish},
    objects::PublishError,
    store::StoreError,
};

/// Why something was not done to a service. Nothing was changed.
#[derive(Debug, Error)]
pub(crate) enum ServiceError {
    /// The network cannot have services.
    #[error("network `{network}` has no services: {why}")]
    Unfit {
        /// The network.
        network: Name,
        /// What it is that services are not made for.
        why: &'static str,
    },
    /// The network has something of this name.
    #[error("the network has {what} `{name}` already")]
    NameTaken {
        /// The name.
        name: Name,
        /// What has it.
        what: &'static str,
    },
    /// It has no port.
    #[error("service `{0}` has no port")]
    NoPort(Name),
    /// One port was given twice.
    #[error("port {0} is there twice")]
    PortTwice(ServicePort),
    /// It has no such port.
    #[error("service `{name}` has no port {port}")]
    PortMissing {
        /// The service.
        name: Name,
        /// The port.
        port: ServicePort,
    },
    /// It has no such backend.
    #[error("service `{name}` names no backend `{backend}`")]
    BackendMissing {
        /// The service.
        name: Name,
        /// The backend.
        backend: Name,
    },
    /// It is to have no address, and so takes no such option.
    #[error("service `{name}` has no address, so `{option}` says nothing of it")]
    NoAddress {
        /// The service.
        name: Name,
        /// The option.
        option: &'static str,
    },
    /// Another service has a port of the hosts.
    #[error("port {} of the hosts is published by service `{by}`", .port.host())]
    Published {
        /// The port.
        port: ServicePublish,
        /// The service.
        by: Name,
    },
    /// It would have one port of the hosts twice.
    #[error("port {} of the hosts is published twice", .0.host())]
    PublishedTwice(ServicePublish),
    /// Clients of one port cannot be told apart by their modes.
    #[error("port {0} is published in both modes")]
    BothModes(u16),
    /// It has no such port.
    #[error("service `{name}` has no port {} that could be published", .port.port.sandbox_port)]
    NoPortToPublish {
        /// The service.
        name: Name,
        /// The port.
        port: ServicePublish,
    },
    /// It does not publish this.
    #[error("service `{name}` does not publish port {}", .port.host())]
    NotPublished {
        /// The service.
        name: Name,
        /// The port.
        port: ServicePublish,
    },
    /// It has no address of this version.
    #[error("service `{name}` has no address of {ip}'s version")]
    OtherVersion {
        /// The service.
        name: Name,
        /// The address of a host.
        ip: IpAddr,
    },
    /// Nothing of the network is published.
    #[error("network `{0}` is internal, so nothing of it is published")]
    Internal(Name),
    /// Two ports of one protocol were given one name.
    #[error("two ports are called `{0}`")]
    PortNameTwice(Name),
    /// The network has as many as it may.
    #[error("the network has {SERVICES_OF_NETWORK} services, which is as many as it may have")]
    TooMany,
    /// Nobody would answer for it.
    #[error("service `{0}` has neither backends nor a selector")]
    NoBackend(Name),
    /// An address is in none of the network's subnets.
    #[error("{0} is in no subnet of the network")]
    Outside(IpAddr),
    /// The service or its network was removed meanwhile.
    #[error("the service is gone")]
    Gone,
    /// The address was not given to it.
    #[error("the address {0} could not be given to the service")]
    NotGiven(IpAddr),
    /// It has no TCP port that could be checked.
    #[error("service `{0}` has no TCP port, and checks are made by TCP")]
    Uncheckable(Name),
    /// A path is none.
    #[error("`{0}` is no path of a page")]
    Path(String),
    /// A time or a count of a check is too small or too large.
    #[error("the check's times are not from 100ms to 1h, or it rises or falls by no result")]
    Check,
    /// Clients cannot keep their backends for this long.
    #[error("clients keep their backends for a second at least, and a day at most")]
    Sticky,
    /// The endpoint is none of its backends here.
    #[error("service `{name}` has no backend `{backend}` on this node")]
    NotHere {
        /// The service.
        name: Name,
        /// The endpoint.
        backend: Name,
    },
    /// So many flows are not shown at once.
    #[error("{0} is no number of flows from 1 to {MOST_FLOWS_SHOWN}")]
    Limit(usize),
    /// A zone is no name.
    #[error("the zone is no name: {0}")]
    Zone(ParseError),
    /// Another node did not do what it was asked for.
    #[error("node `{0}` was not changed: {1}")]
    NodeSilent(Name, String),
    /// The agent does not speak with others yet.
    #[error("the agent is starting")]
    Starting,
    /// The state cannot be written.
    #[error(transparent)]
    Store(StoreError),
    /// The object was not taken.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// What the mesh itself refused.
    #[error(transparent)]
    Mesh(#[from] ApiError),
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        use ServiceError as E;
        let (code, hint) = match &error {
            E::Mesh(_) | E::Publish(_) => (ErrorCode::Failed, ""),
            E::Unfit { .. } => (ErrorCode::Conflict, "make it in an encrypted overlay network"),
            E::NameTaken { .. } => {
                (ErrorCode::Conflict, "choose another name, or remove what has it")
            }
            E::NoPort(_) => (ErrorCode::Usage, "give one with --port, as 80 or 80:8080"),
            E::NoAddress { .. } => {
                (ErrorCode::Usage, "leave it out; a service of `--mode vip` has an address")
            }
            E::Published { .. } => {
                (ErrorCode::Conflict, "choose another port, or leave it out: :80")
            }
            E::NoPortToPublish { .. } => {
                (ErrorCode::Usage, "write HOSTPORT:PORT with a port of the service, as 8080:80")
            }
            E::PublishedTwice(_) => (ErrorCode::Usage, "give each port of the hosts once"),
            E::BothModes(_) => (ErrorCode::Usage, "add a port of the service for the other mode"),
            E::NotPublished { .. } => (ErrorCode::NotFound, "see `vxmesh service inspect`"),
            E::OtherVersion { .. } => {
                (ErrorCode::Usage, "publish on an address of the other IP version")
            }
            E::Internal(_) => (ErrorCode::Usage, "make it in a network that is not internal"),
            E::PortNameTwice(_) => (ErrorCode::Usage, "give each port of a protocol its own name"),
            E::PortTwice(_) => (ErrorCode::Usage, "give each port and protocol once"),
            E::PortMissing { .. } | E::BackendMissing { .. } => {
                (ErrorCode::NotFound, "see `vxmesh service inspect`")
            }
            E::NoBackend(_) => (
                ErrorCode::Usage,
                "name endpoints with --backend, or their labels with --selector KEY=VALUE",
            ),
            E::Outside(_) => (ErrorCode::Usage, "see `vxmesh network inspect` for its subnets"),
            E::TooMany => (ErrorCode::Conflict, "remove some, or make it in another network"),
            E::Uncheckable(_) => (ErrorCode::Usage, "give it a TCP port, or no --health"),
            E::Path(_) => (ErrorCode::Usage, "write http:/PATH, as http:/health"),
            E::Sticky => (ErrorCode::Usage, "write --sticky 10m, or --sticky 30s"),
            E::Check => (ErrorCode::Usage, "see `vxmesh service create --help`"),
            E::NotHere { .. } => (
                ErrorCode::NotFound,
                "see `vxmesh service inspect` for its backends, and say it on the backend's node",
            ),
            E::Limit(_) => (ErrorCode::Usage, "choose some with --service or --network"),
            E::Zone(_) => (ErrorCode::Usage, "write it as a name: zone=west-1"),
            E::NodeSilent(..) => (ErrorCode::Failed, "see `vxmesh node ls`, or run it there"),
            E::Starting => (ErrorCode::Failed, "try again"),
            E::Store(_) => (ErrorCode::Failed, "see whether its disk is full"),
            E::Gone => (ErrorCode::NotFound, "see `vxmesh service ls`"),
            E::NotGiven(_) => (
                ErrorCode::Failed,
                "the service was not made: try again, in a minute if you named an address",
            ),
        };
        match error {
            E::Mesh(error) => error,
            E::Publish(error) => error.into(),
            error => Self::new(code, error.to_string(), hint),
        }
    }
}
