//! The words about sandboxes.

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};
use vxmesh_proto::addr::Name;

use super::{Wanted, absolute, reference};
use crate::{
    api::{self, ConnectionError, Connections, HostEntry},
    gateway::publish::{PublishError, PublishRange},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Run {
    /// Go on in the background; prints the sandbox's name
    #[arg(short, long)]
    pub(in crate::cli) detach: bool,
    /// With -d: append the command's output to this file [default: it is thrown away]
    #[arg(long, requires = "detach", value_name = "FILE", value_parser = absolute)]
    pub(in crate::cli) log: Option<PathBuf>,
    /// Name of the sandbox [default: chosen]
    #[arg(long)]
    pub(in crate::cli) name: Option<Name>,
    /// Networks to be in; more than once, also as name=NET,ip=IP,mac=MAC,alias=NAME,ifname=IF,gw-priority=N
    ///
    /// The network with the highest gw-priority that is not internal has the default route; of equal ones, the first by name.
    /// --ip and --mac are for the first network that is named, --alias is for all. Instead of networks: none, host,
    /// sandbox:NAME or container:NAME.
    #[arg(long, required = true, value_name = "NET[,NET]|name=NET[,KEY=VALUE]", value_parser = connections)]
    pub(in crate::cli) network: Vec<Connections>,
    #[command(flatten)]
    pub(in crate::cli) wanted: Wanted,
    /// Name server for names outside the mesh; up to three [default: those of the networks]
    #[arg(long, value_name = "IP")]
    pub(in crate::cli) dns: Vec<IpAddr>,
    /// A name for an address in /etc/hosts; may be given more than once
    #[arg(long, value_name = "NAME:IP")]
    pub(in crate::cli) add_host: Vec<HostEntry>,
    /// Lead ports of this host here, such as 8080:80, :80 (a free port), 127.0.0.1:53:53/udp or 8000-8009:80-89
    #[arg(long, value_name = "[IP:]HOST[:SANDBOX][/tcp|udp]", value_parser = publish)]
    pub(in crate::cli) publish: Vec<PublishRange>,
    /// The command with its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(in crate::cli) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Exec {
    /// Name of the sandbox
    #[arg(value_parser = reference)]
    pub(in crate::cli) sandbox: String,
    /// The command with its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(in crate::cli) command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Sandbox {
    /// List the sandboxes
    Ls,
    /// Show one with its networks
    Inspect {
        /// Its name
        #[arg(value_parser = reference)]
        sandbox: String,
    },
    /// End the command of a sandbox and remove it
    Rm {
        /// Its name
        #[arg(value_parser = reference)]
        sandbox: String,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Supervise {
    #[arg(long, value_parser = sandbox)]
    pub(in crate::cli) sandbox: api::Sandbox,
    #[arg(long)]
    pub(in crate::cli) log: Option<PathBuf>,
    #[arg(last = true, required = true)]
    pub(in crate::cli) command: Vec<OsString>,
}

fn sandbox(text: &str) -> Result<api::Sandbox, serde_json::Error> {
    serde_json::from_str(text)
}

fn publish(text: &str) -> Result<PublishRange, String> {
    text.parse().map_err(|why: PublishError| why.to_string())
}

fn connections(text: &str) -> Result<Connections, String> {
    text.parse().map_err(|why: ConnectionError| why.to_string())
}
