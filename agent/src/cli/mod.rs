//! The command line: reads the words, asks the agent, prints the answer.
//!
//! | exit status | means |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | the words or the configuration are wrong |
//! | 3 | no such object |
//! | 4 | it is there already, is in use, or the word means several |
//! | 5 | no agent answers |
//!
//! `cni`, which is also the program by the name `vxmesh-cni`, ends with 0 or 1, as container
//! runtimes have it. `run`, `exec` and `lab exec` end with their command's own status; 125, 126 and
//! 127 are theirs.

mod args;
mod ask;
mod backup;
mod client;
mod cni;
mod doctor;
mod inside;
mod logs;
mod membership;
mod output;
mod rows;
mod run;
mod shell;
mod signals;
mod status;
mod supervise;
mod usage;
mod words;

use std::{ffi::OsString, future::Future, process::ExitCode};

use clap::Parser;

use self::{
    args::{Cli, Command, Global},
    client::Client,
    output::Output,
};
use crate::{
    api::{ApiError, ErrorCode},
    config,
};

/// How a command ended: with an exit status, or with an error and the exit status that goes with
/// it.
type Outcome = Result<u8, Failure>;

/// An error and its exit status, which `run` and `exec` choose themselves.
#[derive(Debug)]
struct Failure {
    status: u8,
    error: ApiError,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { status: error.code.exit_status(), error }
    }
}

/// Runs the command that these words mean, the program's name first.
pub fn main(words: Vec<OsString>) -> ExitCode {
    if words.first().is_some_and(|program| cni::is_called(program)) {
        return ExitCode::from(cni::main(None));
    }
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(refused) => return ExitCode::from(usage::answer(&refused, &words)),
    };
    let output = Output::new(cli.global.format);
    let status = dispatch(cli, output).unwrap_or_else(|failure| {
        output.error(&failure.error);
        failure.status
    });
    ExitCode::from(status)
}

fn dispatch(cli: Cli, output: Output) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Agent(agent) => shell::agent(&global, *agent),
        Command::Run(run) => run::run(&global, output, *run),
        Command::Exec(exec) => run::exec(&global, output, exec),
        Command::Supervise(words) => supervise::supervise(&global, output, &words),
        Command::Init(data) => wait(membership::init(&global, output, data)),
        Command::Join(join) => wait(membership::join(&global, output, join)),
        Command::Ask(args::Ask::Doctor(of)) => wait(doctor::doctor(&global, output, of)),
        Command::Ask(args::Ask::Status) => wait(status::status(&global, output)),
        Command::Backup(backup) => wait(backup::backup(&global, output, backup)),
        Command::Restore(backup) => wait(backup::restore(&global, output, backup)),
        Command::Ask(ask) => wait(ask::ask(&client(&global)?, output, ask)),
        Command::Cni => Ok(cni::main(global.socket)),
        Command::Lab(lab) => wait(shell::lab(output, &lab)),
        Command::Version => shell::version(output),
    }
}

/// A client of the agent that flags, environment or configuration name.
fn client(global: &Global) -> Result<Client, ApiError> {
    let socket = match &global.socket {
        Some(socket) => socket.clone(),
        None => config::socket(global.config.as_deref())?,
    };
    Ok(Client::new(socket))
}

/// Drives one command on this thread.
fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|why| failed("cannot start", &why))?.block_on(work)
}

fn failed(what: impl std::fmt::Display, why: &impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Failed, format!("{what}: {why}"), "mend that and try again")
}
