//! The words about sandboxes.

use std::{env, ffi::OsString, net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};
use vxmesh_proto::{addr::Name, restart::RestartPolicy};

use super::{ClientArgs, Wanted, absolute, reference};
use crate::{
    api::{Begin, ConnectionError, Connections, HostEntry, Hostname},
    gateway::publish::{PublishError, PublishRange},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Run {
    /// Go on in the background; prints the sandbox's name
    #[arg(short, long)]
    pub(in crate::cli) detach: bool,
    /// With -d: start the command again when it ends: no, on-failure, always; also after the host
    /// was started anew
    #[arg(long, requires = "detach", default_value_t, value_name = "POLICY")]
    pub(in crate::cli) restart: RestartPolicy,
    /// Keep nothing of the sandbox when the command has ended, as without -d
    #[arg(long)]
    pub(in crate::cli) rm: bool,
    /// With -d: append the command's output to this file [default: `sandbox logs` shows the last 1
    /// to 2 MiB]
    #[arg(long, requires = "detach", value_name = "FILE", value_parser = absolute)]
    pub(in crate::cli) log: Option<PathBuf>,
    /// Name of the sandbox [default: chosen]
    #[arg(long)]
    pub(in crate::cli) name: Option<Name>,
    /// What `hostname` says in it [default: its name]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) hostname: Option<Hostname>,
    #[command(flatten)]
    pub(in crate::cli) begin: BeginWords,
    /// Networks to be in; more than once, also as
    /// name=NET,ip=IP,mac=MAC,alias=NAME,ifname=IF,gw-priority=N
    ///
    /// The network with the highest gw-priority that is not internal has the default route; of
    /// equal ones, the first by name. --ip and --mac are for the first network that is named,
    /// --alias is for all. Instead of networks: none, host, sandbox:NAME or container:NAME.
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
    /// Lead ports of this host here, such as 8080:80, :80 (a free port), 127.0.0.1:53:53/udp or
    /// 8000-8009:80-89
    #[arg(long, value_name = "[IP:]HOST[:SANDBOX][/tcp|udp]", value_parser = publish)]
    pub(in crate::cli) publish: Vec<PublishRange>,
    #[command(flatten)]
    pub(in crate::cli) clients: ClientArgs,
    /// The command with its arguments, also without --
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(in crate::cli) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Exec {
    /// Name of the sandbox
    #[arg(value_parser = reference)]
    pub(in crate::cli) sandbox: String,
    #[command(flatten)]
    pub(in crate::cli) begin: BeginWords,
    /// The command with its arguments, also without --
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(in crate::cli) command: Vec<OsString>,
}

/// How a command begins.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct BeginWords {
    /// Set a variable, or hand on the one of this name; may be given more than once
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    pub(in crate::cli) env: Vec<Option<String>>,
    /// Begin in this directory [default: this one, if it is there]
    #[arg(short, long, value_name = "DIR", value_parser = workdir)]
    pub(in crate::cli) workdir: Option<String>,
    /// Run as this user of the host
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(in crate::cli) user: Option<String>,
}

impl From<BeginWords> for Begin {
    fn from(words: BeginWords) -> Self {
        let BeginWords { env, workdir, user } = words;
        Self { env: env.into_iter().flatten().collect(), workdir, user }
    }
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Sandbox {
    /// List the sandboxes
    Ls {
        /// Also those that have ended
        #[arg(long, short)]
        all: bool,
    },
    /// Show one with its networks
    Inspect {
        /// Its name
        #[arg(value_parser = reference)]
        sandbox: String,
    },
    /// Print the last output of a sandbox of `run -d`, also after its end
    Logs {
        /// Its name
        #[arg(value_parser = reference)]
        sandbox: String,
        /// The last lines only
        #[arg(long, short = 'n', value_name = "N")]
        tail: Option<usize>,
    },
    /// End the command of a sandbox and remove it, or remove what is kept of an ended one
    Rm {
        /// Its name
        #[arg(value_parser = reference)]
        sandbox: String,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Supervise {
    #[arg(long)]
    pub(in crate::cli) sandbox: Name,
    #[arg(long)]
    pub(in crate::cli) incarnation: u64,
    /// Nobody waits for the report: the command ran before.
    #[arg(long)]
    pub(in crate::cli) again: bool,
}

/// A variable with its value; nothing where this process has none of that name.
fn variable(text: &str) -> Result<Option<String>, String> {
    let (name, value) = text.split_once('=').map_or((text, None), |(n, value)| (n, Some(value)));
    if name.is_empty() {
        return Err("write NAME=VALUE".into());
    }
    let value = match value {
        Some(value) => Some(value.to_owned()),
        None => env::var_os(name)
            .map(OsString::into_string)
            .transpose()
            .map_err(|_bytes| format!("the value of {name} is not UTF-8"))?,
    };
    Ok(value.map(|value| format!("{name}={value}")))
}

fn workdir(text: &str) -> Result<String, String> {
    let path = absolute(text)?.into_os_string();
    path.into_string().map_err(|_bytes| "it is not UTF-8".to_owned())
}

fn publish(text: &str) -> Result<PublishRange, String> {
    text.parse().map_err(|why: PublishError| why.to_string())
}

fn connections(text: &str) -> Result<Connections, String> {
    text.parse().map_err(|why: ConnectionError| why.to_string())
}
