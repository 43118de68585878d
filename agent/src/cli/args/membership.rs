//! The words of who is in the mesh: `init`, `join`, `token`, `node`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Subcommand};

use super::{absolute, reference, server};

#[derive(Debug, Args)]
pub(in crate::cli) struct DataDir {
    /// Where the agent's state lives, for use while no agent runs [default: /var/lib/vxmesh]
    #[arg(long, env = "VXMESH_DATA_DIR", hide_env_values = true, value_name = "DIR", value_parser = absolute)]
    pub(in crate::cli) data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Backup {
    /// The file; it is as secret as the node's keys
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) data: DataDir,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("secret"))]
pub(in crate::cli) struct Join {
    /// The token that `vxmesh token create` printed
    #[arg(long, group = "secret")]
    pub(in crate::cli) token: Option<String>,
    /// A file that holds the token
    #[arg(long, group = "secret", value_name = "FILE")]
    pub(in crate::cli) token_file: Option<PathBuf>,
    /// Nodes to ask, in order; a member without a token looks for its mesh there
    #[arg(required = true, value_name = "HOST[:PORT]", value_parser = server)]
    pub(in crate::cli) servers: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) data: DataDir,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Token {
    /// Make a token and print it, this once
    Create {
        /// How long it is good for
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = time_to_live)]
        ttl: Duration,
        /// How many nodes it admits [default: any number]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        uses: Option<u32>,
    },
    /// List the tokens
    Ls,
    /// Make a token useless
    Revoke {
        /// Its id
        #[arg(value_parser = reference)]
        token: String,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Node {
    /// List them
    Ls {
        /// Also those that left the mesh
        #[arg(long)]
        all: bool,
    },
    /// Show one
    Inspect {
        /// Id, beginning of an id, or name of the node
        #[arg(value_parser = reference)]
        node: String,
    },
    /// Change one
    Update {
        /// Id, beginning of an id, or name of the node
        #[arg(value_parser = reference)]
        node: String,
        /// Give it the mesh's CA key, so that it admits nodes and renews certificates, too; =false
        /// takes it away
        #[arg(long, value_name = "BOOL", required_unless_present = "label", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        issuer: Option<bool>,
        /// The zone that it is in, which services may prefer (`--prefer zone`); zone= for none
        #[arg(long, value_name = "zone=NAME", value_parser = zone)]
        label: Option<String>,
    },
    /// Send the backends of services on a node no new connections; those that they have may go on
    /// for the services' time
    Drain {
        /// Id, beginning of an id, or name of the node
        #[arg(value_parser = reference)]
        node: String,
        /// Send them connections again
        #[arg(long)]
        undo: bool,
    },
    /// Remove one that is gone for good, or that must not be a member any more; its addresses come
    /// back
    Rm {
        /// Id, beginning of an id, or name of the node
        #[arg(value_parser = reference)]
        node: String,
        /// Also if it is up: it is cut off at once and can only join again as another node
        #[arg(long)]
        force: bool,
    },
}

fn zone(text: &str) -> Result<String, String> {
    let zone = text.strip_prefix("zone=");
    zone.map(str::to_owned).ok_or_else(|| "a node has the label zone=NAME only".to_owned())
}

fn time_to_live(text: &str) -> Result<Duration, String> {
    let ttl =
        humantime::parse_duration(text).map_err(|why| format!("{why}; write 30m, 1h or 7d"))?;
    if ttl.as_secs() == 0 { Err("give it a second at least".into()) } else { Ok(ttl) }
}
