//! `run -d`: a supervisor that stays with the command, without the command line and the agent.
//!
//! ```text
//! run -d                      supervise (also started by the agent, see `daemon/supervisors`)
//!   | POST /v1/sandboxes         |
//!   |---- name, incarnation ---->| setsid, POST .../started: the sandbox's keeper
//!   |                            | start the command, POST .../started: its process; only then
//!   |<--- one line: Report ------| output goes to the sandbox's records, wait
//!                                | start it again, or: note its end, POST .../ended
//! ```
//!
//! SIGTERM is passed on, and nothing is started again after it: the sandbox is being removed, or
//! the host goes down and the agent's next start goes on.

use std::{
    cell::Cell,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::{dup2_stderr, dup2_stdout, setsid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{sleep, timeout};
use vxmesh_proto::restart::Backoff;

use super::{
    Failure, Outcome,
    args::{Global, Supervise},
    client::{Client, segment},
    failed,
    inside::Inside,
    output::Output,
    run::{
        Attended, OURS, RETRY, attend, not_started, open_signals, ours, path, remove, tell_once,
    },
    signals::{self, Signals},
    wait,
};
use crate::{
    api::{ApiError, Detached, ErrorCode, Sandbox, SandboxEnded, SandboxStarted},
    identity::unix_now,
    records::{End, LOG_LEN, Log, Records},
};

/// Starting a command takes milliseconds; an agent that is away or a disk that hangs should not
/// hold the caller forever.
const START: Duration = Duration::from_secs(30);
/// How long the supervisor waits for the agent meanwhile: it has given up when the caller does.
const START_PATIENCE: Duration = Duration::from_secs(25);
/// How long the agent is waited for once the command runs: for ever.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// How long it waits to tell the end; an agent that starts finds it in the records anyway.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long the agent's answer is waited for when the command is over before it: an agent that is
/// away does not keep it from being started again.
const BRIEF: Duration = Duration::from_secs(1);
/// How long the caller waits to take a sandbox back.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long output is waited for that the command left in its pipe; what it started may hold the
/// pipe for ever.
const LAST_OUTPUT: Duration = Duration::from_millis(500);
/// A piece of output; a pipe holds 64 KiB.
const PIECE: usize = 64 << 10;

/// What the supervisor tells `run -d`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The command runs, and the agent has written that down.
    Started(Box<Sandbox>),
    /// The command did not start, and the sandbox is removed.
    Failed { status: u8, error: ApiError },
}

/// Starts the supervisor and prints the sandbox's name once the command runs.
pub(super) async fn detach(
    client: &Client,
    output: Output,
    sandbox: Sandbox,
    signals: &mut Signals,
) -> Outcome {
    let started = match start_supervisor(client, &sandbox) {
        Ok(supervisor) => hear(supervisor).await,
        Err(why) => Err(failed("cannot start a supervisor", &why)),
    };
    let failure = match started {
        Ok(Report::Started(sandbox)) => {
            output.done(&sandbox, sandbox.name.as_str())?;
            return Ok(0);
        }
        Ok(Report::Failed { status, error }) => Failure { status, error },
        Err(error) => ours(error),
    };
    if let Err(why) = remove(client, &sandbox, SHORT_PATIENCE, signals).await {
        output.warn(&format!("sandbox {} is still there: {}", sandbox.name, why.message));
    }
    Err(failure)
}

#[expect(clippy::disallowed_methods, reason = "the supervisor has to outlive this process")]
fn start_supervisor(client: &Client, sandbox: &Sandbox) -> io::Result<Child> {
    // This very program, even if a newer one has taken its place on disk.
    let mut supervisor = Command::new("/proc/self/exe");
    supervisor.arg0("vxmesh").arg("supervise").arg("--socket").arg(client.socket());
    supervisor.arg("--sandbox").arg(sandbox.name.as_str());
    supervisor.arg("--incarnation").arg(sandbox.incarnation.to_string());
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
        () = sleep(START) => {
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

/// The supervisor's own command.
pub(super) fn supervise(global: &Global, output: Output, words: &Supervise) -> Outcome {
    signals::block().map_err(|why| ours(failed("cannot block signals", &why)))?;
    setsid().map_err(|why| ours(failed("cannot begin a session", &why)))?;
    wait(async {
        let client = super::client(global)?;
        let mut signals = open_signals()?;
        let opened = open(&client, words).await;
        let (sandbox, detached, recorder) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                report(output, &Report::Failed { status: failure.status, error: failure.error })?;
                return Ok(0);
            }
        };
        let mut supervisor =
            Supervisor { client, output, sandbox, detached, recorder, told: words.again };
        let Some(end) = supervisor.run(&mut signals).await? else { return Ok(0) };
        supervisor.recorder.finish();
        // Durable before the agent is told: it may be away, and this process may be ended first.
        let noted = supervisor.records().note_end(&end);
        supervisor.tell_end(&end, &mut signals).await?;
        noted.map_err(|why| failed("cannot note the end", &why))?;
        Ok(0)
    })
}

/// Becomes the sandbox's keeper, which the agent writes down, and opens what its output goes to.
async fn open(
    client: &Client,
    words: &Supervise,
) -> Result<(Sandbox, Detached, Recorder), Failure> {
    let ask = async || keep(client, words.sandbox.as_str(), words.incarnation).await;
    let sandbox = patiently(START_PATIENCE, ask).await.map_err(ours)?;
    let detached = sandbox.detached.clone().unwrap_or_default();
    let recorder = Recorder::open(&sandbox, &detached).map_err(|(path, why)| {
        let message = format!("cannot open {path}: {why}");
        ours(ApiError::new(ErrorCode::Failed, message, "choose another --log, or free some space"))
    })?;
    Ok((sandbox, detached, recorder))
}

/// Tells the agent whose the sandbox is.
async fn keep(client: &Client, sandbox: &str, incarnation: u64) -> Result<Sandbox, ApiError> {
    let started = SandboxStarted { pid: None, keeper: Some(std::process::id()), incarnation };
    client.post(&format!("/v1/sandboxes/{}/started", segment(sandbox)), &started).await
}

/// Asks again while the agent is away.
async fn patiently<T: DeserializeOwned>(
    patience: Duration,
    ask: impl AsyncFn() -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Err(why) if why.code == ErrorCode::Unreachable && Instant::now() < deadline => {
                sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

struct Supervisor {
    client: Client,
    output: Output,
    sandbox: Sandbox,
    detached: Detached,
    recorder: Recorder,
    /// Whether the caller has heard.
    told: bool,
}

impl Supervisor {
    fn records(&self) -> Records {
        Records::at(Path::new(self.sandbox.records.as_deref().unwrap_or_default()))
    }

    /// Runs the command until it has ended for good; nothing if the sandbox is gone or this process
    /// is told to end.
    async fn run(&mut self, signals: &mut Signals) -> Result<Option<End>, Failure> {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let status = match self.start() {
                Ok(child) => {
                    let attended = self.attend(child, signals).await?;
                    if attended.refused || (attended.signalled && !self.detached.restart.is_no()) {
                        return Ok(None);
                    }
                    attended.status
                }
                Err(Failure { status, error }) if !self.told => {
                    self.report(&Report::Failed { status, error })?;
                    return Ok(None);
                }
                // Its namespace may have gone with it.
                Err(_) if self.is_gone().await => return Ok(None),
                Err(Failure { status, error }) => {
                    self.recorder.note(&error);
                    status
                }
            };
            if !self.detached.restart.restarts(Some(status)) {
                return Ok(Some(End { exit_status: Some(status), ended_at: unix_now() }));
            }
            tokio::select! {
                () = sleep(backoff.after(began.elapsed())) => {}
                _ = signals.next() => return Ok(None),
            }
        }
    }

    /// Whether the agent is there and does not know the sandbox any more.
    async fn is_gone(&self) -> bool {
        let ask = keep(&self.client, self.sandbox.name.as_str(), self.sandbox.incarnation);
        let answer = timeout(BRIEF, ask).await;
        matches!(answer, Ok(Err(why)) if why.code == ErrorCode::NotFound)
    }

    fn start(&self) -> Result<Child, Failure> {
        let command: Vec<_> = self.sandbox.command.iter().map(Into::into).collect();
        let stdio =
            self.recorder.stdio().map_err(|why| ours(failed("no room for its output", &why)))?;
        let inside = Inside::fresh(&self.sandbox);
        let start = inside.and_then(|inside| inside.start(&command, &self.detached.begin, stdio));
        start.map_err(|why| not_started(&command, &why))
    }

    /// Stays with a command that was just started, and tells the agent of it, then the caller.
    async fn attend(&mut self, child: Child, signals: &mut Signals) -> Result<Attended, Failure> {
        let (pid, output, told) = (child.id(), self.output, self.told);
        let (client, sandbox) = (self.client.clone(), self.sandbox.clone());
        // Before the caller has heard, an agent that stays away ends the attempt; later, the
        // command goes on without it.
        let patience = if told { FOREVER } else { START_PATIENCE };
        // Whether the agent has written the command down, once that is known, and whether it knows
        // the sandbox no more.
        let (noted, gone) = (Cell::new(None), Cell::new(false));
        let mut tell = std::pin::pin!(async {
            let answer =
                patiently(patience, async || tell_once(&client, &sandbox, pid).await).await;
            noted.set(Some(answer.is_ok()));
            gone.set(answer.as_ref().is_err_and(|why| why.code == ErrorCode::NotFound));
            match answer {
                Ok(sandbox) if !told => {
                    report(output, &Report::Started(Box::new(sandbox)))?;
                    let_go().map_err(|why| failed("cannot let go of the caller", &why))
                }
                Ok(_) => Ok(()),
                // The caller is not told 0 for a command that the agent does not know.
                Err(why) if !told => Err(ApiError { code: ErrorCode::NotFound, ..why }),
                Err(why) => Err(why),
            }
        });
        let mut attended = attend(child, signals, output, tell.as_mut()).await?;
        if noted.get().is_none() {
            // A brief command is over before the agent has answered. What went wrong is told below.
            let patience = if told { BRIEF } else { START_PATIENCE };
            drop(timeout(patience, tell).await);
        }
        attended.refused |= gone.get();
        if !told && noted.get() != Some(true) {
            attended.refused = true;
            let message = "the agent does not know the sandbox any more; its command was ended";
            let error = ApiError::new(ErrorCode::NotFound, message, "run it again");
            self.report(&Report::Failed { status: OURS, error })?;
        }
        self.told = true;
        Ok(attended)
    }

    fn report(&self, what: &Report) -> Result<(), ApiError> {
        report(self.output, what)
    }

    /// Tells the agent how the command ended, once it is there.
    async fn tell_end(&self, end: &End, signals: &mut Signals) -> Result<(), ApiError> {
        let path = format!("{}/ended", path(&self.sandbox));
        let ended = SandboxEnded {
            incarnation: self.sandbox.incarnation,
            exit_status: end.exit_status,
            ended_at: end.ended_at,
        };
        let tell = patiently(PATIENCE, async || self.client.post::<Sandbox>(&path, &ended).await);
        tokio::select! {
            told = tell => match told {
                Err(why) if why.code == ErrorCode::NotFound => Ok(()),
                told => told.map(drop),
            },
            _ = signals.next() => Ok(()),
        }
    }
}

fn report(output: Output, report: &Report) -> Result<(), ApiError> {
    let line = serde_json::to_string(report).map_err(|why| failed("cannot report", &why))?;
    output.text(&line)
}

/// Keeps neither the caller's pipes nor its directory in use.
fn let_go() -> io::Result<()> {
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdout(&nowhere)?;
    dup2_stderr(&nowhere)?;
    std::env::set_current_dir("/")
}

/// Where a command's output goes.
#[derive(Debug)]
enum Recorder {
    /// A file that the user named.
    Named(File),
    /// The sandbox's records, through a pipe that a thread reads.
    Kept { pipe: Option<io::PipeWriter>, done: mpsc::Receiver<()> },
}

impl Recorder {
    fn open(sandbox: &Sandbox, detached: &Detached) -> Result<Self, (String, io::Error)> {
        if let Some(path) = &detached.log {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            return opened.map(Self::Named).map_err(|why| (path.clone(), why));
        }
        let path = Records::at(Path::new(sandbox.records.as_deref().unwrap_or_default())).output();
        let open = || {
            let log = Log::open(&path, LOG_LEN)?;
            let (reader, pipe) = io::pipe()?;
            let (sender, done) = mpsc::channel();
            let thread = thread::Builder::new().name("output".into());
            thread.spawn(move || {
                record(reader, log);
                drop(sender);
            })?;
            Ok(Self::Kept { pipe: Some(pipe), done })
        };
        open().map_err(|why| (path.display().to_string(), why))
    }

    fn stdio(&self) -> io::Result<[Stdio; 3]> {
        Ok(match self {
            Self::Named(file) => {
                [Stdio::null(), file.try_clone()?.into(), file.try_clone()?.into()]
            }
            Self::Kept { pipe: Some(pipe), .. } => {
                [Stdio::null(), pipe.try_clone()?.into(), pipe.try_clone()?.into()]
            }
            Self::Kept { pipe: None, .. } => [Stdio::null(), Stdio::null(), Stdio::null()],
        })
    }

    /// Says in the output why a command was not started again.
    fn note(&self, error: &ApiError) {
        let line = format!("vxmesh: {error}\n");
        let written = match self {
            Self::Named(file) => io::Write::write_all(&mut &*file, line.as_bytes()),
            Self::Kept { pipe: Some(pipe), .. } => {
                io::Write::write_all(&mut &*pipe, line.as_bytes())
            }
            Self::Kept { pipe: None, .. } => Ok(()),
        };
        // There is no other place to say it.
        drop(written);
    }

    /// Waits a moment for output that is still on its way.
    fn finish(&mut self) {
        if let Self::Kept { pipe, done } = self {
            drop(pipe.take());
            // An error means that all is written.
            let _late = done.recv_timeout(LAST_OUTPUT);
        }
    }
}

/// Writes down what comes. What cannot be written is lost; the command must not wait for it.
fn record(mut reader: io::PipeReader, mut log: Log) {
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return,
            Ok(len) => drop(log.write(piece.get(..len).unwrap_or_default())),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(_broken) => return,
        }
    }
}
