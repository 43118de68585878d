//! A whole cluster on one machine: `vxmesh lab`.
//!
//! Each host is a network namespace `LAB-hN` with mount, UTS and PID namespaces around it (`enter`,
//! `mounts`), kept alive by its first process (`holder`); `wire` joins them through bridges in
//! `LAB-wire`; `agents` runs in them the same binary that runs anywhere. `disk` is the only memory
//! between commands, `down` needs none of it.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};
use nix::unistd::geteuid;

mod agents;
mod capacity;
mod demo;
mod disk;
mod down;
mod enter;
mod error;
mod exec;
mod holder;
mod interrupt;
mod links;
mod mounts;
mod name;
mod output;
mod plan;
mod process;
mod status;
mod up;
mod wire;

pub use agents::Captured;
pub use name::{HostName, LabName, NameError};
pub use output::{Check, HostStatus, Line, Output};
pub use plan::{Plan, Underlay};

use self::{agents::Host, disk::LabDir, enter::Program, error::OrFail, interrupt::Interrupt};
use crate::api::{ApiError, ErrorCode};

/// `vxmesh lab`: a cluster of hosts in namespaces on this machine.
#[derive(Debug, Args)]
pub struct Command {
    /// Which lab.
    #[arg(long, global = true, default_value = "vxlab", value_name = "NAME")]
    pub name: LabName,
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with a lab.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make a lab: hosts h1 to hN, an agent on each, all in one mesh
    Up {
        /// How many hosts [default: 3]
        #[arg(long, value_name = "N")]
        hosts: Option<u8>,
        /// Make the hosts only
        #[arg(long)]
        no_agents: bool,
        /// Also if this machine is too small for so many hosts with agents
        #[arg(long)]
        force: bool,
        /// TOML file with the keys hosts, underlay ("v4", "v6", "dual") and mtu
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// See it work: three hosts, real traffic, a look at the wire, a failure
    Demo {
        /// Leave the lab there for you
        #[arg(long)]
        keep: bool,
    },
    /// Run a command in a host
    Exec {
        /// The host
        host: HostName,
        /// The command with its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Show the hosts
    Status,
    /// Remove the lab and everything in it
    Down,
    /// Kill the agent of a host; its sandboxes stay
    Kill {
        /// The host
        host: HostName,
    },
    /// Start the agent of a host again
    Start {
        /// The host
        host: HostName,
    },
    /// Separate some hosts from all others
    Cut {
        /// The hosts, which go on reaching one another
        #[arg(value_delimiter = ',', required = true, value_name = "HOST,..")]
        hosts: Vec<HostName>,
    },
    /// Join what was cut
    Heal,
    /// The first process of a host.
    #[command(hide = true)]
    Holder {
        /// The host
        host: HostName,
    },
}

/// Carries a lab command out and gives its exit status.
///
/// # Errors
/// What failed, with the exit status of its kind. `exec` tells its own failures to `out` and gives
/// their status.
pub async fn run(command: &Command, out: &mut dyn Output) -> Result<u8, ApiError> {
    let name = &command.name;
    if let Action::Exec { host, command } = &command.action {
        let done = match require_root() {
            Ok(()) => exec::exec(name, *host, command).await,
            Err(error) => Err((exec::OURS, error)),
        };
        return Ok(done.unwrap_or_else(|(status, error)| {
            out.error(&error);
            status
        }));
    }
    require_root()?;
    match &command.action {
        Action::Up { hosts, no_agents, force, file } => {
            let plan = Plan::load(file.as_deref(), *hosts)?;
            if !no_agents && !force {
                capacity::check(&plan)?;
            }
            up(name, &plan, !no_agents, out).await?;
            out.hosts(&status(name)?)?;
        }
        Action::Demo { keep } => return demo::demo(name, *keep, &watch()?, out).await,
        Action::Status => out.hosts(&status(name)?)?,
        Action::Down => {
            let there = down(name).await?;
            out.progress(&if there {
                format!("lab {name} is removed")
            } else {
                format!("there is no lab {name}")
            });
        }
        Action::Kill { host } => kill(name, *host).await?,
        Action::Start { host } => start(name, *host).await?,
        Action::Cut { hosts } => cut(name, hosts).await?,
        Action::Heal => heal(name).await?,
        Action::Holder { host: _ } => match holder::hold().await? {},
        Action::Exec { .. } => {}
    }
    Ok(0)
}

/// Makes a lab; a failure or Ctrl-C removes what it made. With agents, they form one mesh.
///
/// # Errors
/// A lab of this name is there, a step failed, or the user stopped it.
pub async fn up(
    name: &LabName,
    plan: &Plan,
    agents: bool,
    out: &mut dyn Output,
) -> Result<(), ApiError> {
    let interrupt = watch()?;
    up::up(name, plan, agents, &interrupt, out).await
}

/// Removes a lab in any state; tells whether there was one.
///
/// # Errors
/// Another command is at work on it, or something of it resists.
pub async fn down(name: &LabName) -> Result<bool, ApiError> {
    let _interrupt = watch()?;
    down::down(name).await
}

/// The hosts of a lab.
///
/// # Errors
/// There is no such lab.
pub fn status(name: &LabName) -> Result<Vec<HostStatus>, ApiError> {
    status::status(&LabDir::open(name)?)
}

/// Runs a command in a host, without input, and keeps what it says.
///
/// # Errors
/// There is no such host, no such command, or the command takes longer than a minute.
pub async fn capture(
    name: &LabName,
    host: HostName,
    command: &[&str],
) -> Result<Captured, ApiError> {
    let (program, args) = command.split_first().unwrap_or((&"", &[]));
    let what = || format!("cannot run {program} in {host}");
    let opened = Host::open(&LabDir::open(name)?, host)?;
    opened.capture(Program::any(program, args), what, &watch()?).await
}

/// Kills the agent of a host.
///
/// # Errors
/// There is no such host, or its agent is not running.
pub async fn kill(name: &LabName, host: HostName) -> Result<(), ApiError> {
    let lab = LabDir::open(name)?;
    let _lock = lab.lock()?;
    agents::kill(&lab, host).await
}

/// Starts the agent of a host again and waits until it answers.
///
/// # Errors
/// There is no such host, or its agent is running already or fails.
pub async fn start(name: &LabName, host: HostName) -> Result<(), ApiError> {
    let lab = LabDir::open(name)?;
    let _lock = lab.lock()?;
    agents::start(&lab, host, &watch()?).await
}

/// Separates these hosts from all others; they go on reaching one another.
///
/// # Errors
/// There is no such host.
pub async fn cut(name: &LabName, hosts: &[HostName]) -> Result<(), ApiError> {
    let lab = LabDir::open(name)?;
    let _lock = lab.lock()?;
    for host in hosts {
        lab.known_host(*host)?;
    }
    wire::cut(name, &lab.plan()?, hosts).await
}

/// Joins all that was cut.
///
/// # Errors
/// There is no such lab.
pub async fn heal(name: &LabName) -> Result<(), ApiError> {
    let lab = LabDir::open(name)?;
    let _lock = lab.lock()?;
    wire::heal(name).await
}

fn watch() -> Result<Interrupt, ApiError> {
    Interrupt::watch().or_fail(|| "cannot watch for Ctrl-C".to_owned())
}

fn require_root() -> Result<(), ApiError> {
    if geteuid().is_root() {
        return Ok(());
    }
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    Err(ApiError::new(
        ErrorCode::Failed,
        "a lab needs root to make namespaces",
        format!("run it as root: sudo vxmesh {}", args.join(" ")),
    ))
}
