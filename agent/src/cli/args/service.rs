//! The words of `vxmesh service`.

use std::{net::IpAddr, str::FromStr, time::Duration};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use vxmesh_proto::{
    addr::Name,
    limits::{SERVICE_WEIGHT, STICKY_SECONDS},
};

use super::{ClientArgs, label, reference};
use crate::api::{
    Balancing, Preference, ServiceCheck, ServiceMode, ServicePort, ServicePublishRange,
};
use crate::firewall::clients::{Allowed, Denied};

/// Names and addresses that spread connections over endpoints.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Service {
    /// Make a service, on all nodes at once
    Create(Box<ServiceCreate>),
    /// List the services
    Ls,
    /// Show one with its backends
    Inspect {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        service: String,
    },
    /// Change ports and backends of one, on all nodes and while it is used
    Update(Box<ServiceChange>),
    /// Send a backend no new connections; those that it has may go on for the service's time
    Drain {
        /// Id, beginning of an id, or name of the service
        #[arg(value_parser = reference)]
        service: String,
        /// The endpoint
        backend: Name,
        /// Send it connections again
        #[arg(long)]
        undo: bool,
    },
    /// Say whether a backend on this node works, for a checker of yours
    Health {
        /// Id, beginning of an id, or name of the service
        #[arg(value_parser = reference)]
        service: String,
        /// The endpoint
        backend: Name,
        /// Whether it works
        #[arg(value_enum)]
        state: Working,
        /// For how long this stands [default: until something else is said]
        #[arg(long, value_name = "TIME", value_parser = time)]
        ttl: Option<Duration>,
    },
    /// Remove one, on all nodes; its connections end
    Rm {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        service: String,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("answers").required(true).multiple(true))]
pub(in crate::cli) struct ServiceCreate {
    /// Its name, which endpoints of the network look up
    pub(in crate::cli) name: Name,
    /// Id, beginning of an id, or name of the network
    #[arg(long, value_name = "NET", value_parser = reference)]
    pub(in crate::cli) network: String,
    /// Port, and that of the backends where it is another; may be given more than once
    #[arg(long, short, value_name = "[NAME=]PORT[:PORT][/udp]", required = true)]
    pub(in crate::cli) port: Vec<ServicePort>,
    /// Name of an endpoint that answers; may be given more than once
    #[arg(long, value_name = "ENDPOINT", group = "answers", value_delimiter = ',')]
    pub(in crate::cli) backend: Vec<Name>,
    /// Label of the endpoints that answer; one that has all of them does
    #[arg(long, value_name = "KEY=VALUE", group = "answers", value_parser = label)]
    pub(in crate::cli) selector: Vec<(String, String)>,
    /// Where its name leads
    #[arg(long, value_enum, default_value_t)]
    pub(in crate::cli) mode: ServiceMode,
    /// Its address; once per IP version [default: chosen]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(in crate::cli) vip: Vec<IpAddr>,
    /// How a backend is chosen for a new connection [default: maglev]
    #[arg(long, value_enum)]
    pub(in crate::cli) lb: Option<Balancing>,
    /// How many new connections an endpoint gets beside the others; 0 to 100 [default: 1]
    #[arg(long, value_name = "ENDPOINT=N", value_parser = weight)]
    pub(in crate::cli) weight: Vec<(Name, u8)>,
    /// Which backends a node prefers, as long as one of them works
    #[arg(long, value_enum, default_value_t)]
    pub(in crate::cli) prefer: Preference,
    /// For how long after its last packet a client keeps its backend, by its address; 1s to 1d
    #[arg(long, value_name = "TIME|none")]
    pub(in crate::cli) sticky: Option<Sticky>,
    /// How the nodes of backends see whether these work: by a connection, or by a page
    #[arg(long, value_name = "tcp|http:/PATH")]
    pub(in crate::cli) health: Option<CheckKind>,
    #[command(flatten)]
    pub(in crate::cli) checks: CheckTimes,
    /// How long the connections of a drained backend may go on [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(in crate::cli) drain: Option<Duration>,
    /// Port of the hosts that leads to a port of the service; may be given more than once
    #[arg(long, value_name = "[IP:]HOST[:PORT][/udp][,mode=host]")]
    pub(in crate::cli) publish: Vec<ServicePublishRange>,
    #[command(flatten)]
    pub(in crate::cli) clients: ClientArgs,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub(in crate::cli) struct ServiceChange {
    /// Id, beginning of an id, or name
    #[arg(value_parser = reference)]
    pub(in crate::cli) service: String,
    /// Port to add, or to lead to another port of the backends
    #[arg(long, value_name = "[NAME=]PORT[:PORT][/udp]", group = "change")]
    pub(in crate::cli) add_port: Vec<ServicePort>,
    /// Port to remove
    #[arg(long, value_name = "PORT[/udp]", group = "change")]
    pub(in crate::cli) rm_port: Vec<ServicePort>,
    /// Endpoint to add
    #[arg(long, value_name = "ENDPOINT", group = "change", value_delimiter = ',')]
    pub(in crate::cli) add_backend: Vec<Name>,
    /// Endpoint to remove
    #[arg(long, value_name = "ENDPOINT", group = "change", value_delimiter = ',')]
    pub(in crate::cli) rm_backend: Vec<Name>,
    /// How many new connections an endpoint gets beside the others; 0 to 100
    #[arg(long, value_name = "ENDPOINT=N", group = "change", value_parser = weight)]
    pub(in crate::cli) weight: Vec<(Name, u8)>,
    /// How a backend is chosen for a new connection
    #[arg(long, value_enum, group = "change")]
    pub(in crate::cli) lb: Option<Balancing>,
    /// Which backends a node prefers, as long as one of them works
    #[arg(long, value_enum, group = "change")]
    pub(in crate::cli) prefer: Option<Preference>,
    /// For how long after its last packet a client keeps its backend, by its address; 1s to 1d
    #[arg(long, value_name = "TIME|none", group = "change")]
    pub(in crate::cli) sticky: Option<Sticky>,
    /// How the nodes of backends see whether these work: by a connection, or by a page; not at all.
    /// What of --health-* is not given is the default
    #[arg(long, value_name = "tcp|http:/PATH|none", group = "change")]
    pub(in crate::cli) health: Option<CheckKind>,
    #[command(flatten)]
    pub(in crate::cli) checks: CheckTimes,
    /// How long the connections of a drained backend may go on
    #[arg(long, value_name = "TIME", value_parser = time, group = "change")]
    pub(in crate::cli) drain: Option<Duration>,
    /// Port of the hosts to lead to a port of the service
    #[arg(long, value_name = "[IP:]HOST[:PORT][/udp][,mode=host]", group = "change")]
    pub(in crate::cli) add_publish: Vec<ServicePublishRange>,
    /// Port of the hosts to take back
    #[arg(long, value_name = "[IP:]HOST[:PORT][/udp]", group = "change")]
    pub(in crate::cli) rm_publish: Vec<ServicePublishRange>,
    /// Prefixes of the clients that published ports are for
    #[arg(long, value_name = "CIDR,...|all", group = "change")]
    pub(in crate::cli) allow: Option<Allowed>,
    /// Prefixes of clients that they are not for
    #[arg(long, value_name = "CIDR,...|none", group = "change")]
    pub(in crate::cli) deny: Option<Denied>,
}

/// When checks are made, and what follows from them.
#[derive(Debug, Args)]
pub(in crate::cli) struct CheckTimes {
    /// From one check to the next
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time, requires = "health")]
    health_interval: Duration,
    /// How long a check may take
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time, requires = "health")]
    health_timeout: Duration,
    /// Checks in a row that bring a backend back
    #[arg(long, value_name = "N", default_value_t = 2, requires = "health")]
    health_rise: u8,
    /// Checks in a row that take it out
    #[arg(long, value_name = "N", default_value_t = 3, requires = "health")]
    health_fall: u8,
}

/// What a checker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Working {
    /// It works
    Up,
    /// It does not
    Down,
    /// Nothing: its check counts again
    Check,
}

/// The kinds of checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum CheckKind {
    /// None.
    None,
    /// A connection.
    Tcp,
    /// A page at this path.
    Http(String),
}

impl FromStr for CheckKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "tcp" => Ok(Self::Tcp),
            None if text == "none" => Ok(Self::None),
            Some(("http", path)) if path.starts_with('/') => Ok(Self::Http(path.to_owned())),
            _ => Err("write tcp, or http:/PATH as http:/health".to_owned()),
        }
    }
}

impl CheckKind {
    /// The check, if there is to be one.
    pub(in crate::cli) fn check(self, checks: &CheckTimes) -> Option<ServiceCheck> {
        let path = match self {
            Self::None => return None,
            Self::Tcp => None,
            Self::Http(path) => Some(path),
        };
        Some(ServiceCheck {
            path,
            interval_ms: millis(checks.health_interval),
            timeout_ms: millis(checks.health_timeout),
            rise: checks.health_rise,
            fall: checks.health_fall,
        })
    }
}

/// For how long clients keep their backends, in seconds; not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Sticky {
    None,
    For(u32),
}

impl FromStr for Sticky {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let time = time(text)?;
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        match time.subsec_nanos() == 0 && (1..=STICKY_SECONDS).contains(&seconds) {
            true => Ok(Self::For(seconds)),
            false => Err("write whole seconds, 1s to 1d".to_owned()),
        }
    }
}

impl Sticky {
    pub(in crate::cli) const fn seconds(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::For(seconds) => Some(seconds),
        }
    }
}

/// A time in milliseconds.
pub(in crate::cli) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|why| format!("{why}; write 500ms, 30s or 5m"))
}

fn weight(text: &str) -> Result<(Name, u8), String> {
    let (name, weight) = label(text).map_err(|_form| "write ENDPOINT=N")?;
    let number = weight.parse().ok().filter(|number| *number <= SERVICE_WEIGHT);
    let number = number.ok_or_else(|| format!("`{weight}` is no number from 0 to 100"))?;
    Ok((name.parse().map_err(|why| format!("`{name}`: {why}"))?, number))
}
