//! `run` and `exec`: a command in a sandbox with the caller's terminal and the command's own exit
//! status.
//!
//! The agent makes the sandbox and is told the command's process; the sandbox is removed when the
//! command has ended or could not start. 125: it was not tried, 126: it cannot be executed, 127:
//! there is none, 128+N: signal N ended it.

use std::{
    env,
    ffi::OsString,
    future::Future,
    io::ErrorKind,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::{
    Failure, Outcome,
    args::{Exec, Global, Run},
    client::{Client, segment},
    failed,
    inside::{Inside, StartError},
    output::Output,
    signals::{self, Signals},
    supervise, wait,
};
use crate::api::{
    ApiError, Begin, Connection, Connections, Detached, ErrorCode, Mode, Sandbox, SandboxSpec,
    SandboxStarted,
};
use crate::gateway::publish::PublishRange;

/// The exit status of a failure that is not the command's.
pub(super) const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How long a person waits for an agent that restarts; it collects the sandbox at its start anyway.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a command whose sandbox is gone may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// Between two tries to reach an agent that is away.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// `run`: `-d` hands the second half to a supervisor.
pub(super) fn run(global: &Global, output: Output, run: Run) -> Outcome {
    signals::block().map_err(|why| ours(failed("cannot block signals", &why)))?;
    wait(async {
        let client = super::client(global).map_err(ours)?;
        let mut signals = open_signals()?;
        let spec =
            spec(&run).map_err(|error| Failure { status: error.code.exit_status(), error })?;
        let sandbox: Sandbox = client.post("/v1/sandboxes", &spec).await.map_err(ours)?;
        sandbox.warnings.iter().for_each(|warning| output.warn(warning));
        let outcome = match signals.pending() {
            Some(signal) => Ok(signal_status(signal as i32)),
            None if run.detach => {
                return supervise::detach(&client, output, sandbox, &mut signals).await;
            }
            None => foreground(&client, output, &sandbox, run, &mut signals).await,
        };
        if let Err(why) = remove(&client, &sandbox, PATIENCE, &mut signals).await {
            output.warn(&format!("sandbox {} is still there: {}", sandbox.name, why.message));
        }
        outcome
    })
}

/// `exec`
pub(super) fn exec(global: &Global, output: Output, exec: Exec) -> Outcome {
    signals::block().map_err(|why| ours(failed("cannot block signals", &why)))?;
    wait(async {
        let client = super::client(global).map_err(ours)?;
        let mut signals = open_signals()?;
        let path = format!("/v1/sandboxes/{}", segment(&exec.sandbox));
        let sandbox: Sandbox = client.get(path).await.map_err(ours)?;
        if sandbox.ended_at.is_some() {
            return Err(ours(ApiError::new(
                ErrorCode::Conflict,
                format!("sandbox `{}` has ended", sandbox.name),
                "`vxmesh sandbox logs` shows its last output",
            )));
        }
        let Exec { begin, command, .. } = exec;
        let begin = begin.into();
        let inside = Inside::of(&sandbox);
        let start = inside.and_then(|inside| inside.start(&command, &begin, terminal()));
        let child = start.map_err(|why| not_started(&command, &why))?;
        Ok(attend(child, &mut signals, output, std::future::pending()).await?.status)
    })
}

async fn foreground(
    client: &Client,
    output: Output,
    sandbox: &Sandbox,
    run: Run,
    signals: &mut Signals,
) -> Outcome {
    let Run { begin, command, .. } = run;
    let begin = begin.into();
    let inside = Inside::fresh(sandbox);
    let start = inside.and_then(|inside| inside.start(&command, &begin, terminal()));
    let child = start.map_err(|why| not_started(&command, &why))?;
    let pid = child.id();
    let attended = attend(child, signals, output, tell(client, sandbox, pid)).await?;
    if attended.refused {
        let error = ApiError::new(
            ErrorCode::NotFound,
            format!("sandbox `{}` was removed while its command started", sandbox.name),
            "run it again",
        );
        return Err(ours(error));
    }
    Ok(attended.status)
}

/// How a command went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attended {
    /// Its exit status as a shell tells it.
    pub(super) status: u8,
    /// Whether a signal for it came.
    pub(super) signalled: bool,
    /// Whether it was ended because its sandbox is gone.
    pub(super) refused: bool,
}

/// Waits for the command, passes signals on to it, and carries `aside` on meanwhile: if that finds
/// that there is no such sandbox any more, the command is ended, and any other failure is only
/// noted.
pub(super) async fn attend(
    mut child: Child,
    signals: &mut Signals,
    output: Output,
    aside: impl Future<Output = Result<(), ApiError>>,
) -> Result<Attended, Failure> {
    let cannot_wait =
        |why: &dyn std::fmt::Display| ours(failed("cannot wait for the command", &why));
    let pid = i32::try_from(child.id()).map(Pid::from_raw).map_err(|why| cannot_wait(&why))?;
    let pass_on = |signal| {
        if let Err(why) = kill(pid, signal) {
            output.warn(&format!("the command did not get {signal}: {why}"));
        }
    };
    let mut attended = Attended { status: OURS, signalled: false, refused: false };
    // The terminal may have sent these before there was a command to get them.
    while let Some(signal) = signals.pending() {
        attended.signalled = true;
        pass_on(signal);
    }
    // It stays a zombie until no signal can be sent any more, lest another process get its number
    // and the signal.
    let ended = move || waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    let mut ended = tokio::task::spawn_blocking(ended);
    let mut aside = std::pin::pin!(aside);
    let mut aside_done = false;
    let mut grace = std::pin::pin!(sleep(GRACE));
    loop {
        tokio::select! {
            waited = &mut ended => {
                waited.map_err(|why| cannot_wait(&why))?.map_err(|why| cannot_wait(&why))?;
                attended.status = child.wait().map(exit_status).map_err(|why| cannot_wait(&why))?;
                // Whoever ends a whole service signals the command, too, which may be over first.
                attended.signalled |= signals.pending().is_some();
                return Ok(attended);
            }
            caught = signals.next() => {
                attended.signalled = true;
                if !caught.from_terminal {
                    pass_on(caught.signal);
                }
            }
            () = &mut grace, if attended.refused => {
                pass_on(Signal::SIGKILL);
                grace.as_mut().reset(Instant::now() + GRACE);
            }
            result = &mut aside, if !aside_done => {
                aside_done = true;
                // A command that is over is one that the agent need not know.
                if let Err(why) = result && !has_ended(pid) {
                    if why.code == ErrorCode::NotFound {
                        attended.refused = true;
                        pass_on(Signal::SIGTERM);
                        grace.as_mut().reset(Instant::now() + GRACE);
                        continue;
                    }
                    output.warn(&format!("the agent does not know the command's process: {}", why.message));
                }
            }
        }
    }
}

fn has_ended(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    waitid(Id::Pid(pid), flags) != Ok(WaitStatus::StillAlive)
}

/// Tells the agent which process the sandbox has, as soon as the agent is there.
pub(super) async fn tell(client: &Client, sandbox: &Sandbox, pid: u32) -> Result<(), ApiError> {
    loop {
        match tell_once(client, sandbox, pid).await {
            Ok(_) => return Ok(()),
            Err(why) if why.code == ErrorCode::Unreachable => sleep(RETRY).await,
            Err(why) => return Err(why),
        }
    }
}

/// As [`tell`], for an agent that is there.
pub(super) async fn tell_once(
    client: &Client,
    sandbox: &Sandbox,
    pid: u32,
) -> Result<Sandbox, ApiError> {
    let started = SandboxStarted { pid: Some(pid), keeper: None, incarnation: sandbox.incarnation };
    client.post(format!("{}/started", path(sandbox)), &started).await
}

/// Removes the sandbox unless that is done; an agent that is away is waited for until a signal
/// comes.
pub(super) async fn remove(
    client: &Client,
    sandbox: &Sandbox,
    patience: Duration,
    signals: &mut Signals,
) -> Result<(), ApiError> {
    let deadline = Instant::now() + patience;
    loop {
        match remove_once(client, sandbox).await {
            Err(why) if why.code == ErrorCode::NotFound => return Ok(()),
            Err(why) if why.code == ErrorCode::Unreachable && Instant::now() < deadline => {
                tokio::select! {
                    () = sleep(RETRY) => {}
                    _ = signals.next() => return Err(why),
                }
            }
            done => return done,
        }
    }
}

async fn remove_once(client: &Client, sandbox: &Sandbox) -> Result<(), ApiError> {
    let there: Sandbox = client.get(path(sandbox)).await?;
    // While the agent was away the name may have gone to a newer sandbox.
    if there.incarnation != sandbox.incarnation {
        return Ok(());
    }
    client.delete::<Sandbox>(path(sandbox)).await.map(|_| ())
}

/// Why a command did not start, with its exit status.
pub(super) fn not_started(command: &[OsString], why: &StartError) -> Failure {
    let (status, hint) = match why {
        StartError::Enter(_) => (OURS, "this needs root, and the sandbox must be on this host"),
        StartError::Begin(_) => (OURS, "check --user and --workdir"),
        StartError::Execute(why) if why.kind() == ErrorKind::NotFound => {
            (NOT_FOUND, "check the command's name and PATH")
        }
        StartError::Execute(_) => (NOT_EXECUTABLE, "check the command's permissions and format"),
    };
    let name = command.first().map(|it| it.to_string_lossy()).unwrap_or_default();
    let error = ApiError::new(ErrorCode::Failed, format!("cannot run `{name}`: {why}"), hint);
    Failure { status, error }
}

/// A failure that is not the command's.
pub(super) const fn ours(error: ApiError) -> Failure {
    Failure { status: OURS, error }
}

pub(super) fn open_signals() -> Result<Signals, Failure> {
    Signals::new().map_err(|why| ours(failed("cannot read signals", &why)))
}

fn spec(run: &Run) -> Result<SandboxSpec, ApiError> {
    let networks = networks(run)?;
    let mode = Mode::of(&networks)?;
    Ok(SandboxSpec {
        name: run.name.clone(),
        networks: if mode.is_some() { Vec::new() } else { networks },
        mode,
        dns: run.dns.clone(),
        hosts: run.add_host.clone(),
        publish: run.publish.iter().flat_map(|PublishRange(ports)| ports.clone()).collect(),
        clients: run.clients.clients(),
        command: words(run)?,
        hostname: run.hostname.clone(),
        labels: run.wanted.label.iter().cloned().collect(),
        keeper: Some(std::process::id()),
        detached: run.detach.then(|| detached(run)).transpose()?,
    })
}

/// The command's words, as `sandbox ls` shows them; a supervisor that is started later has nothing
/// else.
fn words(run: &Run) -> Result<Vec<String>, ApiError> {
    let word = |word: &OsString| match word.to_str() {
        None if run.detach => Err(not_text(&word.to_string_lossy())),
        _ => Ok(word.to_string_lossy().into_owned()),
    };
    run.command.iter().map(word).collect()
}

fn detached(run: &Run) -> Result<Detached, ApiError> {
    let text = |path: PathBuf| path.into_os_string().into_string();
    let text = |path| text(path).map_err(|path| not_text(&path.to_string_lossy()));
    let mut begin: Begin = run.begin.clone().into();
    if begin.workdir.is_none() && !run.restart.is_no() {
        // A supervisor that the agent starts is in no directory of the user's.
        begin.workdir = env::current_dir().ok().map(text).transpose()?;
    }
    let log = run.log.clone().map(text).transpose()?;
    Ok(Detached { restart: run.restart, remove: run.rm, log, begin })
}

fn not_text(what: &str) -> ApiError {
    let message = format!("`{what}` is not UTF-8, and with -d it is written down");
    ApiError::new(ErrorCode::Usage, message, "use another name, or leave -d out")
}

/// The networks with what the other flags say about them.
fn networks(run: &Run) -> Result<Vec<Connection>, ApiError> {
    let named = run.network.iter().flat_map(|Connections(networks)| networks.clone());
    let mut networks: Vec<Connection> = named.collect();
    let twice = |flag: &str| {
        let message = format!("{flag} is given for the first network, which has one with its name");
        ApiError::new(ErrorCode::Usage, message, "give it once")
    };
    if let Some(first) = networks.first_mut() {
        match (run.wanted.ip.is_empty(), first.ips.is_empty()) {
            (true, _) => {}
            (false, true) => first.ips.clone_from(&run.wanted.ip),
            (false, false) => return Err(twice("--ip")),
        }
        match (run.wanted.mac, first.mac) {
            (None, _) => {}
            (mac, None) => first.mac = mac,
            (Some(_), Some(_)) => return Err(twice("--mac")),
        }
    }
    for network in &mut networks {
        network.aliases.extend(run.wanted.alias.iter().cloned());
    }
    Ok(networks)
}

pub(super) fn path(sandbox: &Sandbox) -> String {
    format!("/v1/sandboxes/{}", segment(sandbox.name.as_str()))
}

fn terminal() -> [Stdio; 3] {
    [Stdio::inherit(), Stdio::inherit(), Stdio::inherit()]
}

/// The exit status as a shell tells it.
fn exit_status(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(OURS),
        (None, Some(signal)) => signal_status(signal),
        (None, None) => OURS,
    }
}

fn signal_status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(OURS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses() {
        // Linux's wait statuses: the exit code in the second byte, the signal in the first, 0x80
        // for a core dump.
        for (raw, status) in
            [(0, 0), (1 << 8, 1), (255 << 8, 255), (9, 137), (15, 143), (11 | 0x80, 139)]
        {
            assert_eq!(exit_status(ExitStatus::from_raw(raw)), status, "{raw}");
        }
    }
}
