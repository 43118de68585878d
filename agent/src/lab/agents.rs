//! Owns the agents of a lab: starts, kills and joins them, all through the commands that any user
//! has.
//!
//! The first host makes the mesh (`init`), the others join it with one token; every answer is read
//! as JSON. Nothing waits without end: an agent that dies or is not ready in time fails the command
//! with the end of its log.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    iter,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use super::{
    disk::{HostDir, LabDir},
    enter::{Namespaces, Program},
    error::OrFail,
    interrupt::Interrupt,
    name::HostName,
    output::Output,
    plan::Plan,
    process::Process,
};
use crate::api::{ApiError, ErrorCode, Node, Status, TokenCreated};

/// A debug build that shares two processors with fifty agents is slow.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// In a large lab on few processors the agents go on meeting when the command is over.
const MEET_DEADLINE: Duration = Duration::from_secs(10);
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How often a host tries to join.
const JOINS: usize = 3;
const POLL: Duration = Duration::from_millis(50);
/// How much of a log an error shows.
const LOG_TAIL: u64 = 2000;
/// The exit status of a command that found no agent on the socket.
const UNREACHABLE: u8 = ErrorCode::Unreachable.exit_status();

/// One host with what is needed to act on it.
#[derive(Debug)]
pub(super) struct Host {
    name: HostName,
    dir: HostDir,
    inside: Namespaces,
}

impl Host {
    /// A host that runs.
    pub(super) fn open(lab: &LabDir, name: HostName) -> Result<Self, ApiError> {
        let dir = lab.known_host(name)?;
        let holder = dir.holder()?.ok_or_else(|| dead(lab, name))?;
        let inside = Namespaces::of(holder).map_err(|_gone| dead(lab, name))?;
        Ok(Self { name, dir, inside })
    }

    pub(super) fn inside(&self) -> &Namespaces {
        &self.inside
    }

    fn running_agent(&self) -> Result<Option<Process>, ApiError> {
        Ok(self.dir.agent()?.filter(|agent| agent.is_alive()))
    }

    /// Starts the agent.
    fn launch(&self, plan: &Plan) -> Result<(), ApiError> {
        let what = || format!("cannot start the agent of {}", self.name);
        let log =
            File::options().create(true).append(true).open(self.dir.agent_log()).or_fail(what)?;
        let addresses = plan.addresses(self.name).into_iter();
        let flags = addresses.flat_map(|address| ["--advertise".to_owned(), address.to_string()]);
        let program = Program::own(iter::once("agent".to_owned()).chain(flags));
        let program = program.and_then(|program| program.detached(log));
        let child = self.inside.spawn(program.or_fail(what)?).or_fail(what)?;
        let agent = i32::try_from(child.id())
            .map_err(io::Error::other)
            .and_then(Process::of)
            .or_fail(what)?;
        self.dir.set_agent(agent)
    }

    /// Runs one of our commands in the host and reads what it prints.
    async fn ask<T: DeserializeOwned>(
        &self,
        args: &[&str],
        interrupt: &Interrupt,
    ) -> Result<T, ApiError> {
        let output = self.run(args, interrupt).await?;
        if output.status == 0 {
            return serde_json::from_slice(&output.stdout).or_fail(|| {
                format!("{}: cannot understand what vxmesh {} printed", self.name, args.join(" "))
            });
        }
        let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        Err(self.failed(format!("vxmesh {} failed: {said}", args.first().unwrap_or(&""))))
    }

    /// Joins a mesh; where many agents share few processors, the first answer may come too late.
    async fn join(&self, token: &str, server: &str, interrupt: &Interrupt) -> Result<(), ApiError> {
        let mut tries = 1..=JOINS;
        loop {
            let last = tries.next().is_none_or(|number| number == JOINS);
            let joined = self.ask(&["join", "--token", token, server], interrupt).await;
            match joined {
                Err(_) if !last => interrupt.sleep(POLL).await?,
                joined => return joined.map(|_: serde_json::Value| ()),
            }
        }
    }

    async fn run(&self, args: &[&str], interrupt: &Interrupt) -> Result<Captured, ApiError> {
        let what = || format!("cannot run vxmesh {} in {}", args.first().unwrap_or(&""), self.name);
        let args = args.iter().chain(["--format", "json"].iter()).copied();
        self.capture(Program::own(args).or_fail(what)?, what, interrupt).await
    }

    /// Runs a program in the host without input and keeps what it says.
    pub(super) async fn capture(
        &self,
        program: Program,
        what: impl Fn() -> String,
        interrupt: &Interrupt,
    ) -> Result<Captured, ApiError> {
        let program = program.stdio(Stdio::null(), Stdio::piped(), Stdio::piped());
        let child = self.inside.spawn(program).or_fail(&what)?;
        let process = i32::try_from(child.id())
            .map_err(io::Error::other)
            .and_then(Process::of)
            .or_fail(&what)?;
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
        let why = tokio::select! {
            output = ended => {
                let output = output.map_err(io::Error::other).and_then(|output| output).or_fail(&what)?;
                let status = super::exec::exit_status(output.status);
                return Ok(Captured { status, stdout: output.stdout, stderr: output.stderr });
            }
            why = interrupt.wanted() => why,
            () = tokio::time::sleep(COMMAND_DEADLINE) => {
                self.failed(format!("{}: no answer in {} s", what(), COMMAND_DEADLINE.as_secs()))
            }
        };
        process.kill(KILL_DEADLINE).await.or_fail(&what)?;
        Err(why)
    }

    /// Waits until the agent answers with one of these states.
    async fn wait_for(&self, states: &[&str], interrupt: &Interrupt) -> Result<(), ApiError> {
        let end = Instant::now() + READY_DEADLINE;
        let mut last = "it does not answer".to_owned();
        while Instant::now() < end {
            if self.running_agent()?.is_none() {
                return Err(self.failed("its agent ended".to_owned()));
            }
            let output = self.run(&["status"], interrupt).await?;
            if output.status == 0 {
                let status: Status = serde_json::from_slice(&output.stdout).or_fail(|| {
                    format!("{}: cannot understand what vxmesh status printed", self.name)
                })?;
                if states.contains(&status.state.as_str()) {
                    return Ok(());
                }
                last = format!("its state is {}", status.state);
            } else if output.status != UNREACHABLE {
                let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
                return Err(self.failed(format!("vxmesh status failed: {said}")));
            }
            interrupt.sleep(POLL).await?;
        }
        Err(self
            .failed(format!("its agent is not ready after {} s: {last}", READY_DEADLINE.as_secs())))
    }

    /// Waits a while for the host to know where all others are; what begins before that finds a
    /// smaller mesh.
    async fn meet(
        &self,
        hosts: usize,
        end: Instant,
        interrupt: &Interrupt,
    ) -> Result<(), ApiError> {
        while Instant::now() < end {
            let nodes: Vec<Node> = self.ask(&["node", "ls"], interrupt).await?;
            let met = nodes.iter().filter(|node| node.state == "alive" && node.vtep.is_some());
            if met.count() >= hosts {
                break;
            }
            interrupt.sleep(POLL).await?;
        }
        Ok(())
    }

    fn failed(&self, what: String) -> ApiError {
        let path = self.dir.agent_log();
        let tail = tail(&path).unwrap_or_default();
        let message =
            format!("{}: {what}\nthe end of its agent's log:\n{}", self.name, tail.trim_end());
        ApiError::new(
            ErrorCode::Failed,
            message,
            "start the lab with --no-agents to look around in it",
        )
    }
}

/// How a program in a host ended and what it said.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Its exit status, 128+n for signal n.
    pub status: u8,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Starts the agents of a new lab and makes one mesh of them.
pub(super) async fn start_all(
    lab: &LabDir,
    plan: &Plan,
    interrupt: &Interrupt,
    out: &mut dyn Output,
) -> Result<(), ApiError> {
    let hosts = HostName::first(plan.hosts)
        .map(|name| Host::open(lab, name))
        .collect::<Result<Vec<_>, _>>()?;
    for host in &hosts {
        host.launch(plan)?;
        out.progress(&format!(
            "{}: agent started, log in {}",
            host.name,
            host.dir.agent_log().display()
        ));
    }
    for host in &hosts {
        host.wait_for(&["uninitialised"], interrupt).await?;
    }
    let Some((first, others)) = hosts.split_first() else { return Ok(()) };
    let _made: serde_json::Value = first.ask(&["init"], interrupt).await?;
    out.progress(&format!("{}: made the mesh", first.name));
    if !others.is_empty() {
        // An answer that is lost takes a use, too.
        let uses = (others.len() * JOINS).to_string();
        let token: TokenCreated =
            first.ask(&["token", "create", "--uses", &uses], interrupt).await?;
        let server =
            plan.addresses(first.name).first().map(ToString::to_string).unwrap_or_default();
        for host in others {
            host.join(&token.token, &server, interrupt).await?;
            out.progress(&format!("{}: joined", host.name));
        }
    }
    for host in &hosts {
        host.wait_for(&["ready"], interrupt).await?;
    }
    let end = Instant::now() + MEET_DEADLINE;
    for host in &hosts {
        host.meet(hosts.len(), end, interrupt).await?;
    }
    out.progress("all agents are ready");
    Ok(())
}

/// Kills the agent of a host and nothing else of it.
pub(super) async fn kill(lab: &LabDir, name: HostName) -> Result<(), ApiError> {
    let dir = lab.known_host(name)?;
    let Some(agent) = dir.agent()?.filter(|agent| agent.is_alive()) else {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("the agent of {name} is not running"),
            format!("start it: vxmesh lab --name {} start {name}", lab.name()),
        ));
    };
    agent.kill(KILL_DEADLINE).await.or_fail(|| format!("cannot kill the agent of {name}"))
}

/// Starts the agent of a host again and waits until it answers.
pub(super) async fn start(
    lab: &LabDir,
    name: HostName,
    interrupt: &Interrupt,
) -> Result<(), ApiError> {
    let host = Host::open(lab, name)?;
    if host.running_agent()?.is_some() {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("the agent of {name} is running already"),
            format!("kill it first: vxmesh lab --name {} kill {name}", lab.name()),
        ));
    }
    host.launch(&lab.plan()?)?;
    // A host that never joined has an agent that waits for it, and one that was removed stays so.
    host.wait_for(&["ready", "uninitialised", "removed", "left"], interrupt).await
}

fn dead(lab: &LabDir, name: HostName) -> ApiError {
    ApiError::new(
        ErrorCode::Failed,
        format!("host {name} of lab {} is dead", lab.name()),
        format!("remove the lab and make it anew: vxmesh lab --name {} down", lab.name()),
    )
}

fn tail(path: &std::path::Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let skip = file.metadata()?.len().saturating_sub(LOG_TAIL);
    file.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // The first line is only a part of one.
    Ok(if skip == 0 {
        text
    } else {
        text.split_once('\n').map(|(_, rest)| rest.to_owned()).unwrap_or(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_starts_with_a_whole_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(tail(&path).is_err());
        for (text, expected) in [
            (String::new(), String::new()),
            ("one\ntwo\n".to_owned(), "one\ntwo\n".to_owned()),
            (
                format!("{}\n{}\n", "a".repeat(1990), "b".repeat(100)),
                format!("{}\n", "b".repeat(100)),
            ),
            ("c".repeat(3000), "c".repeat(2000)),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(tail(&path).unwrap(), expected);
        }
    }
}
