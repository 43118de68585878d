//! The words of the command line. Which command does what is DESIGN's table; help texts say it in
//! one line.

mod membership;
mod sandbox;
mod service;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use vxmesh_proto::addr::{Alias, MacAddr, Name, Vni};

pub(super) use self::membership::{Backup, DataDir, Join, Node, Token};
pub(super) use self::sandbox::{Exec, Run, Sandbox, Supervise};
pub(super) use self::service::{
    CheckKind, Service, ServiceChange, ServiceCreate, Sticky, Working, millis,
};
use crate::{
    api::{Address, DnsType, Driver, FLOWS_SHOWN},
    config,
    datapath::backend::Backend,
    firewall::clients::{Allowed, Clients, Denied},
    lab,
};

/// One private encrypted network out of many hosts.
#[derive(Debug, Parser)]
#[command(name = "vxmesh", version, max_term_width = 100, disable_help_subcommand = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(super) struct Global {
    /// The agent's socket [default: what the configuration says, else /run/vxmesh/api.sock]
    #[arg(long, global = true, env = "VXMESH_SOCKET", hide_env_values = true, value_name = "PATH", value_parser = absolute)]
    pub(super) socket: Option<PathBuf>,
    /// The agent's configuration [default: /etc/vxmesh/agent.toml, if there]
    #[arg(long, global = true, env = "VXMESH_CONFIG", hide_env_values = true, value_name = "FILE", value_parser = absolute)]
    pub(super) config: Option<PathBuf>,
    /// How to print
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
}

/// Whom published ports are for.
#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    /// Prefixes of the clients that published ports are for [default: all]
    #[arg(long, value_name = "CIDR,...", requires = "publish")]
    allow: Option<Allowed>,
    /// Prefixes of clients that they are not for
    #[arg(long, value_name = "CIDR,...", requires = "publish")]
    deny: Option<Denied>,
}

impl ClientArgs {
    pub(super) fn clients(&self) -> Clients {
        Clients {
            allow: self.allow.as_ref().map(|it| it.0.clone()).unwrap_or_default(),
            deny: self.deny.as_ref().map(|it| it.0.clone()).unwrap_or_default(),
        }
    }
}

/// How results and errors look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people: tables, lines
    Table,
    /// For programs: the objects of the admin API
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new mesh with this node as its first
    Init(DataDir),
    /// Join a mesh
    Join(Join),
    /// Write all that makes this node what it is into one file: keys, the CA key if it has it,
    /// state
    Backup(Backup),
    /// Make this host the node that a backup was made of; that one must not run any more
    Restore(Backup),
    /// Run the agent in the foreground
    Agent(Box<Agent>),
    #[command(flatten)]
    Ask(Ask),
    /// Run a command in a sandbox of its own
    ///
    /// The exit status is the command's own; 125: it was not tried, 126: it cannot be executed,
    /// 127: there is none, 128+N: signal N ended it.
    Run(Box<Run>),
    /// Run a command in a sandbox that is there
    ///
    /// The exit status is as that of `run`.
    Exec(Exec),
    /// A cluster on this machine, in namespaces
    Lab(lab::Command),
    /// The plug-in that container runtimes call (CNI), as does the name `vxmesh-cni`
    ///
    /// What is asked is in the environment and on stdin.
    Cni,
    /// The version of this program
    Version,
    /// The process that stays with the command of `run -d`
    #[command(hide = true)]
    Supervise(Supervise),
}

/// Commands that are one call of the admin API each.
#[derive(Debug, Subcommand)]
pub(super) enum Ask {
    /// Leave the mesh: this node's endpoints and identity are removed
    Leave {
        /// Also if nobody can admit nodes and renew certificates without this one; asks nothing
        #[arg(long)]
        force: bool,
        /// End sandboxes that run here without a question
        #[arg(long, short)]
        yes: bool,
    },
    /// Join tokens
    #[command(subcommand)]
    Token(Token),
    /// How the agent is
    Status,
    /// The nodes of the mesh
    #[command(subcommand)]
    Node(Node),
    /// This node's sessions with the others
    #[command(subcommand)]
    Peer(Look),
    /// Networks
    #[command(subcommand)]
    Network(Network),
    /// Services: a name and an address whose connections are spread over endpoints
    #[command(subcommand)]
    Service(Service),
    /// Addresses of the networks: who holds them, what is free
    #[command(subcommand)]
    Ipam(Ipam),
    /// Endpoints
    #[command(subcommand)]
    Endpoint(Endpoint),
    /// Sandboxes of this node
    #[command(subcommand)]
    Sandbox(Sandbox),
    /// What this host lacks, and what is wrong
    ///
    /// The exit status is 1 if something does not work.
    Doctor(DoctorOf),
    /// Frames that were not delivered, and why
    Drops,
    /// Connections to services that this node remembers, those that were used last first
    Flows(FlowsOf),
    /// Where an address is, and who says so
    Locate(Locate),
    /// Names as sandboxes are answered
    #[command(subcommand)]
    Dns(Dns),
    /// The endpoints that this node knows
    #[command(subcommand)]
    Map(Map),
}

#[derive(Debug, Args)]
pub(super) struct Agent {
    #[command(flatten)]
    pub(super) data: DataDir,
    /// This node's name [default: the host's name]
    #[arg(long)]
    pub(super) name: Option<Name>,
    /// Address that other nodes use for this one; once per IP version
    #[arg(long, value_name = "IP")]
    pub(super) advertise: Vec<IpAddr>,
    /// UDP port of the control plane [default: 7760]
    #[arg(long, value_name = "PORT")]
    pub(super) control_port: Option<u16>,
    /// UDP port of sealed frames [default: 7761]
    #[arg(long, value_name = "PORT")]
    pub(super) data_port: Option<u16>,
    /// What drives the TAPs: auto, offload or tun-tap [default: auto]
    #[arg(long, env = "VXMESH_TAP", hide_env_values = true, value_name = "BACKEND")]
    pub(super) tap: Option<Backend>,
    /// What to log, such as `debug` or `info,vxmesh::control=debug` [default: info]
    #[arg(long, env = "VXMESH_LOG", hide_env_values = true, value_name = "FILTER")]
    pub(super) log: Option<String>,
    /// Serve this host's Docker engine as its network driver `vxmesh`
    #[arg(long)]
    pub(super) docker: bool,
    /// Make a new mesh if this node has no identity
    #[arg(long, conflicts_with = "join")]
    pub(super) init: bool,
    /// Join a mesh if this node has no identity; several nodes are asked in order
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',', requires = "token_file", value_parser = server)]
    pub(super) join: Vec<String>,
    /// A file that holds the join token
    #[arg(long, requires = "join", value_name = "FILE", value_parser = absolute)]
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Look {
    /// List them
    Ls,
    /// Show one
    Inspect {
        /// Id, beginning of an id, or name of the node
        #[arg(value_parser = reference)]
        node: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Network {
    /// Make a network, on all nodes at once unless its driver is of one host
    Create(NetworkCreate),
    /// List the networks
    Ls,
    /// Show one
    Inspect {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        network: String,
    },
    /// Put a sandbox of this node into one, while its command runs
    Connect(Connect),
    /// Take a sandbox of this node out of one, while its command runs
    Disconnect {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        network: String,
        /// Name of the sandbox
        #[arg(value_parser = reference)]
        sandbox: String,
    },
    /// Add subnets to one, on all nodes and while endpoints are in it
    Extend(Extend),
    /// Change how much the endpoints of one may do, on all nodes and while they are in it
    Update {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        network: String,
        /// Option to change, as of `network create`; without a VALUE it is the default again
        #[arg(long = "opt", short, value_name = "KEY=[VALUE]", value_parser = label, required = true)]
        options: Vec<(String, String)>,
    },
    /// Remove one, on all nodes
    Rm {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        network: String,
        /// Also if nodes that are not reachable have endpoints in it: they are unplugged when their
        /// node is back
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct NetworkCreate {
    /// Its name
    pub(super) name: Name,
    /// What carries it
    #[arg(long, short, value_enum, default_value_t, value_name = "DRIVER")]
    pub(super) driver: Driver,
    /// What the driver is told; may be given more than once
    #[arg(long = "opt", short, value_name = "KEY=VALUE", value_parser = label)]
    pub(super) options: Vec<(String, String)>,
    /// Subnet; may be given more than once [default: a free private IPv4 and IPv6 subnet]
    #[arg(long, value_name = "CIDR")]
    pub(super) subnet: Vec<IpNet>,
    #[command(flatten)]
    pub(super) versions: Versions,
    #[command(flatten)]
    pub(super) within: Within,
    /// Whether frames are sealed. With =false they cross the underlay readable, as RFC 7348 has it,
    /// also to VTEPs without an agent
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(super) encrypted: bool,
    /// With --encrypted=false: VTEP without an agent; may be given more than once
    #[arg(long, value_name = "IP")]
    pub(super) vtep: Vec<IpAddr>,
    /// MTU inside [default: 1390; 1430 with --encrypted=false; 1500 of local networks]
    #[arg(long)]
    pub(super) mtu: Option<u16>,
    /// Number on the wire [default: a free one]
    #[arg(long)]
    pub(super) vni: Option<Vni>,
    /// Name server for names outside the mesh; up to three [default: the hosts' own]
    #[arg(long, value_name = "IP")]
    pub(super) dns: Vec<IpAddr>,
    /// Without a way out: no gateway, nothing from the host
    #[arg(long)]
    pub(super) internal: bool,
    /// Keep endpoints from each other: they reach the gateway, the hosts and the outside
    #[arg(long)]
    pub(super) isolated: bool,
    /// Label; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(super) label: Vec<(String, String)>,
    /// Have the Docker engines of all hosts, whose agents run with --docker, have it, too
    #[arg(long)]
    pub(super) docker: bool,
}

/// The IP versions of a network.
#[derive(Debug, Args)]
pub(super) struct Versions {
    /// Whether it has IPv4; =true chooses a free subnet where none is given [default: as the
    /// subnets say, or true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(super) ipv4: Option<bool>,
    /// The same of IPv6
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(super) ipv6: Option<bool>,
}

#[derive(Debug, Args)]
pub(super) struct Connect {
    /// Id, beginning of an id, or name
    #[arg(value_parser = reference)]
    pub(super) network: String,
    /// Name of the sandbox
    #[arg(value_parser = reference)]
    pub(super) sandbox: String,
    #[command(flatten)]
    pub(super) wanted: Wanted,
    /// Name of the interface [default: the first free ethN]
    #[arg(long)]
    pub(super) ifname: Option<String>,
    /// The network with the highest one has the default route, unless it is internal
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(super) gw_priority: i32,
}

#[derive(Debug, Args)]
pub(super) struct Extend {
    /// Id, beginning of an id, or name of the network
    #[arg(value_parser = reference)]
    pub(super) network: String,
    /// Subnet to add; may be given more than once
    #[arg(long, value_name = "CIDR", required = true)]
    pub(super) subnet: Vec<IpNet>,
    #[command(flatten)]
    pub(super) within: Within,
}

/// What is special within subnets.
#[derive(Debug, Args)]
pub(super) struct Within {
    /// Gateway, inside a subnet [default: the subnet's first address]
    #[arg(long, value_name = "IP")]
    pub(super) gateway: Vec<IpAddr>,
    /// Part of a subnet from which addresses are chosen [default: all of it]
    #[arg(long, value_name = "CIDR")]
    pub(super) ip_range: Vec<IpNet>,
    /// Address that no endpoint gets because something else has it; may be given more than once
    #[arg(long, value_name = "NAME=IP", value_parser = aux_address)]
    pub(super) aux_address: Vec<(String, IpAddr)>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Ipam {
    /// List the subnets with what is used and free
    Ls,
    /// Show the blocks of a network and who owns them
    Inspect {
        /// Id, beginning of an id, or name of the network
        #[arg(value_parser = reference)]
        network: String,
    },
    /// Say that this node's data was not set back, so that it gives out addresses before it has met
    /// another node
    Trust,
}

#[derive(Debug, Subcommand)]
pub(super) enum Endpoint {
    /// Plug a network namespace into a network
    Attach(Attach),
    /// Change the labels of an endpoint of this node
    #[command(group = ArgGroup::new("change").required(true).multiple(true))]
    Update {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        endpoint: String,
        /// Label to set; may be given more than once
        #[arg(long, group = "change", value_name = "KEY=VALUE", value_parser = label)]
        label: Vec<(String, String)>,
        /// Label to remove; may be given more than once
        #[arg(long, group = "change", value_name = "KEY")]
        rm_label: Vec<String>,
    },
    /// Unplug an endpoint and release its addresses
    Detach {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        endpoint: String,
    },
    /// List the endpoints of the mesh
    Ls,
    /// Show one
    Inspect {
        /// Id, beginning of an id, or name
        #[arg(value_parser = reference)]
        endpoint: String,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("sandbox").required(true))]
pub(super) struct Attach {
    /// Id, beginning of an id, or name of the network
    #[arg(value_parser = reference)]
    pub(super) network: String,
    /// The namespace: a name that `ip netns` knows, or a path
    #[arg(long, group = "sandbox", value_name = "NAME|PATH", value_parser = netns)]
    pub(super) netns: Option<PathBuf>,
    /// The namespace of this process
    #[arg(long, group = "sandbox", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) pid: Option<u32>,
    #[command(flatten)]
    pub(super) wanted: Wanted,
    /// Its name [default: ep- and its short id]
    #[arg(long)]
    pub(super) name: Option<Name>,
    /// Name of the interface [default: the first free ethN]
    #[arg(long)]
    pub(super) ifname: Option<String>,
}

/// What an endpoint shall be like.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// Address; once per IP version [default: chosen]
    #[arg(long, value_delimiter = ',')]
    pub(super) ip: Vec<IpAddr>,
    /// MAC address [default: chosen]
    #[arg(long)]
    pub(super) mac: Option<MacAddr>,
    /// Another name, which other endpoints may have too; may be given more than once
    #[arg(long, value_delimiter = ',')]
    pub(super) alias: Vec<Alias>,
    /// Label; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(super) label: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(super) struct Locate {
    /// MAC or IP address
    #[arg(value_name = "MAC|IP")]
    pub(super) address: Address,
    /// Look in this network only
    #[arg(long, value_name = "NET", value_parser = reference)]
    pub(super) network: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct DoctorOf {
    /// Only what the Docker engine and this node have that the other does not know
    #[arg(long)]
    pub(super) docker: bool,
}

#[derive(Debug, Args)]
pub(super) struct FlowsOf {
    /// Those of this service only
    #[arg(long, value_name = "SERVICE", value_parser = reference)]
    pub(super) service: Option<String>,
    /// Those of this network only
    #[arg(long, value_name = "NET", value_parser = reference)]
    pub(super) network: Option<String>,
    /// How many at most, up to 10000
    #[arg(long, short = 'n', value_name = "N", default_value_t = FLOWS_SHOWN)]
    pub(super) limit: usize,
}

#[derive(Debug, Subcommand)]
pub(super) enum Dns {
    /// Show the records behind a name, who signed them and how old they are
    Query {
        /// A name, NAME.NETWORK, or an address
        #[arg(value_parser = reference)]
        name: String,
        /// Look in this network only [default: all that have the name]
        #[arg(long, value_name = "NET", value_parser = reference)]
        network: Option<String>,
        /// Show this type of record only
        #[arg(long = "type", value_name = "TYPE", value_enum, ignore_case = true)]
        kind: Option<DnsType>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Map {
    /// List them
    Ls,
    /// Show where this node and another differ
    Diff {
        /// Id, beginning of an id, or name of the other node
        #[arg(value_parser = reference)]
        node: String,
    },
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|why| why.to_string())
}

fn netns(text: &str) -> Result<PathBuf, String> {
    if text.contains('/') { absolute(text) } else { Ok(Path::new("/run/netns").join(text)) }
}

fn reference(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.into()) }
}

fn server(text: &str) -> Result<String, String> {
    config::check_server(text)?;
    Ok(text.into())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.is_empty() { Err("the key is empty".into()) } else { Ok((key.into(), value.into())) }
}

fn aux_address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, ip) = label(text).map_err(|_form| "write NAME=IP")?;
    Ok((name, ip.parse().map_err(|why| format!("`{ip}`: {why}"))?))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_words_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_word_is_explained_in_one_line() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(
                    !help.is_empty() && !help.ends_with('.'),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            for command in command.get_subcommands().filter(|it| !it.is_hide_set()) {
                assert!(command.get_about().is_some(), "{}", command.get_name());
                check(command);
            }
        }
        check(&Cli::command());
    }

    /// `command: [..]` of each service, in the flow style that the file keeps to.
    fn compose_commands(file: &str) -> Vec<Vec<String>> {
        let lists = file.lines().filter_map(|line| line.trim().strip_prefix("command: ["));
        lists
            .map(|list| {
                let words = list.trim_end_matches(']').split(',');
                words.map(|word| word.trim().trim_matches('"').to_owned()).collect()
            })
            .collect()
    }

    #[test]
    fn the_compose_file_says_what_the_command_line_understands() {
        let file = include_str!("../../../docker-compose.yml");
        let commands = compose_commands(file);
        assert_eq!(commands.len(), file.matches("command:").count());
        assert_eq!(commands.iter().filter(|words| words[0] == "agent").count(), 3);
        assert_eq!(commands.iter().filter(|words| words[0] == "network").count(), 2);
        for words in commands {
            let parsed =
                Cli::try_parse_from(std::iter::once("vxmesh".to_owned()).chain(words.clone()));
            assert!(parsed.is_ok(), "{words:?}: {parsed:?}");
        }
        assert!(!file.contains('\t'), "YAML has no tabs");
    }
}
