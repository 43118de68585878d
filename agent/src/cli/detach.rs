//! `run -d`: a supervisor, this program again in a session of its own, stays with the command and removes the sandbox
//! at its end. It outlives the command line and the agent.
//!
//! ```text
//! run -d                         supervise
//!   | POST /v1/sandboxes             |
//!   |---- the sandbox, the words --->| setsid, start the command, POST .../started
//!   |<--- one line: Report ----------| stdout and stderr go to /dev/null, wait, DELETE the sandbox
//! ```

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::unistd::{dup2_stderr, dup2_stdout, setsid};
use serde::{Deserialize, Serialize};

use super::{
    Failure, Outcome,
    args::{Global, Supervise},
    client::Client,
    failed,
    inside::Inside,
    output::Output,
    run::{attend, not_started, open_signals, ours, remove, tell, tell_once},
    signals::{self, Signals},
    wait,
};
use crate::api::{ApiError, ErrorCode, Sandbox};

/// Starting a command takes milliseconds; a disk that hangs should not hold the caller forever.
const START: Duration = Duration::from_secs(30);
/// How long the supervisor waits for an agent that is away; it collects dead sandboxes at its start anyway.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long it waits while the caller waits too.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);

/// What the supervisor tells `run -d`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The command runs; the sandbox is as the agent knows it.
    Started(Sandbox),
    /// The command did not start, and the sandbox is removed.
    Failed { status: u8, error: ApiError },
}

/// Starts the supervisor and prints the sandbox's name once the command runs.
pub(super) async fn detach(
    client: &Client,
    output: Output,
    sandbox: Sandbox,
    log: Option<PathBuf>,
    command: &[OsString],
    signals: &mut Signals,
) -> Outcome {
    let started = match start_supervisor(client, &sandbox, log.as_deref(), command) {
        Ok(supervisor) => hear(supervisor).await,
        Err(why) => Err(failed("cannot start a supervisor", &why)),
    };
    match started {
        Ok(Report::Started(sandbox)) => {
            output.done(&sandbox, sandbox.name.as_str())?;
            Ok(0)
        }
        Ok(Report::Failed { status, error }) => Err(Failure { status, error }),
        Err(error) => {
            if let Err(why) = remove(client, &sandbox, SHORT_PATIENCE, signals).await {
                output.warn(&format!("sandbox {} is still there: {}", sandbox.name, why.message));
            }
            Err(ours(error))
        }
    }
}

/// The supervisor's own command.
pub(super) fn supervise(global: &Global, output: Output, supervise: Supervise) -> Outcome {
    signals::block().map_err(|why| ours(failed("cannot block signals", &why)))?;
    setsid().map_err(|why| ours(failed("cannot begin a session", &why)))?;
    wait(async {
        let client = super::client(global)?;
        let Supervise { sandbox, log, command } = supervise;
        let mut signals = open_signals()?;
        let started = nowhere().and_then(|it| Ok((it, start(&sandbox, log.as_deref(), &command)?)));
        let (nowhere, child) = match started {
            Ok(started) => started,
            Err(Failure { status, error }) => {
                remove(&client, &sandbox, SHORT_PATIENCE, &mut signals).await?;
                report(output, &Report::Failed { status, error })?;
                return Ok(0);
            }
        };
        let pid = child.id();
        let told = tell_once(&client, &sandbox, pid).await;
        let is_told = told.is_ok();
        let reported = report(output, &Report::Started(told.unwrap_or_else(|_| sandbox.clone())));
        let let_go = let_go(&nowhere);
        let tell = async { if is_told { Ok(()) } else { tell(&client, &sandbox, pid).await } };
        let ended = attend(child, &mut signals, output, tell).await;
        // Whatever failed before, nobody else does this while the agent runs.
        remove(&client, &sandbox, PATIENCE, &mut signals).await?;
        reported?;
        let_go.map_err(|why| failed("cannot let go of the caller", &why))?;
        ended.map(|_| 0)
    })
}

#[expect(clippy::disallowed_methods, reason = "the supervisor has to outlive this process")]
fn start_supervisor(
    client: &Client,
    sandbox: &Sandbox,
    log: Option<&Path>,
    command: &[OsString],
) -> io::Result<Child> {
    // This very program, even if a newer one has taken its place on disk.
    let mut supervisor = Command::new("/proc/self/exe");
    supervisor.arg0("vxmesh").arg("supervise");
    supervisor.arg("--socket").arg(client.socket());
    supervisor.arg("--sandbox").arg(serde_json::to_string(sandbox)?);
    if let Some(log) = log {
        supervisor.arg("--log").arg(log);
    }
    supervisor.arg("--").args(command);
    supervisor.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

/// Waits for the supervisor's report; one that does not come ends it.
async fn hear(mut supervisor: Child) -> Result<Report, ApiError> {
    let silent = |why: &dyn std::fmt::Display| failed("the supervisor did not report", &why);
    let Some(stdout) = supervisor.stdout.take() else { return Err(silent(&"it has no stdout")) };
    let read = move || read_report(stdout);
    let mut report = tokio::task::spawn_blocking(read);
    tokio::select! {
        read = &mut report => {
            read.map_err(|why| silent(&why))?.map_err(|why| silent(&why))
        }
        () = tokio::time::sleep(START) => {
            supervisor.kill().map_err(|why| silent(&why))?;
            Err(silent(&format_args!("{} s went by", START.as_secs())))
        }
    }
}

fn read_report(stdout: ChildStdout) -> io::Result<Report> {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn report(output: Output, report: &Report) -> Result<(), ApiError> {
    let line = serde_json::to_string(report).map_err(|why| failed("cannot report", &why))?;
    output.text(&line)
}

fn start(sandbox: &Sandbox, log: Option<&Path>, command: &[OsString]) -> Result<Child, Failure> {
    let stdio = stdio(log).map_err(|why| {
        let log = log.unwrap_or_else(|| Path::new("/dev/null")).display();
        ours(ApiError::new(
            ErrorCode::Failed,
            format!("cannot open {log}: {why}"),
            "choose another --log",
        ))
    })?;
    let inside = Inside::fresh(sandbox);
    inside.and_then(|inside| inside.start(command, stdio)).map_err(|why| not_started(command, &why))
}

fn stdio(log: Option<&Path>) -> io::Result<[Stdio; 3]> {
    let Some(log) = log else { return Ok([Stdio::null(), Stdio::null(), Stdio::null()]) };
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    Ok([Stdio::null(), log.try_clone()?.into(), log.into()])
}

fn nowhere() -> Result<File, Failure> {
    let nowhere = File::options().read(true).write(true).open("/dev/null");
    nowhere.map_err(|why| ours(failed("cannot open /dev/null", &why)))
}

/// Keeps neither the caller's pipes nor its directory in use.
fn let_go(nowhere: &File) -> io::Result<()> {
    dup2_stdout(nowhere)?;
    dup2_stderr(nowhere)?;
    std::env::set_current_dir("/")
}
