//! The words of `vxmesh service`.

use std::net::IpAddr;

use clap::{ArgGroup, Args, Subcommand};
use vxmesh_proto::{addr::Name, limits::SERVICE_WEIGHT};

use super::{label, reference};
use crate::api::{Balancing, ServiceMode, ServicePort};

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
}

fn weight(text: &str) -> Result<(Name, u8), String> {
    let (name, weight) = label(text).map_err(|_form| "write ENDPOINT=N")?;
    let number = weight.parse().ok().filter(|number| *number <= SERVICE_WEIGHT);
    let number = number.ok_or_else(|| format!("`{weight}` is no number from 0 to 100"))?;
    Ok((name.parse().map_err(|why| format!("`{name}`: {why}"))?, number))
}
