//! The commands whose work is done elsewhere: the agent, the lab; and the version.

use std::io::IsTerminal;

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::{
    Outcome,
    args::{Agent, Global},
    failed,
    output::Output,
    words::Words,
};
use crate::{
    api::ApiError,
    config::{Config, RawConfig},
    daemon,
    lab::{self, Check, HostStatus, Line},
};

/// Runs the agent until it is told to stop.
pub(super) fn agent(global: &Global, agent: Agent) -> Outcome {
    let config = Config::load(global.config.as_deref(), raw_config(global, agent))?;
    let filter = EnvFilter::try_new(&config.log).map_err(|why| failed("cannot log", &why))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|why| failed("cannot start", &why))?;
    runtime.block_on(daemon::run(config))?;
    Ok(0)
}

/// Carries out a lab command.
pub(super) async fn lab(output: Output, command: &lab::Command) -> Outcome {
    Ok(lab::run(command, &mut LabOutput(output)).await?)
}

/// Prints the version of this program.
pub(super) fn version(output: Output) -> Outcome {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
    }
    let version = env!("CARGO_PKG_VERSION");
    output.done(&Version { version }, &format!("vxmesh {version}"))?;
    Ok(0)
}

/// The flags and the environment as one source of configuration.
fn raw_config(global: &Global, agent: Agent) -> RawConfig {
    RawConfig {
        data_dir: agent.data.data_dir,
        socket: global.socket.clone(),
        name: agent.name,
        advertise: (!agent.advertise.is_empty()).then_some(agent.advertise),
        control_port: agent.control_port,
        data_port: agent.data_port,
        tap: agent.tap,
        log: agent.log,
        docker: agent.docker.then_some(true),
        init: agent.init.then_some(true),
        join: (!agent.join.is_empty()).then_some(agent.join),
        token_file: agent.token_file,
        ..RawConfig::default()
    }
}

struct LabOutput(Output);

impl lab::Output for LabOutput {
    fn progress(&mut self, line: &str) {
        self.0.note(line);
    }

    fn hosts(&mut self, hosts: &[HostStatus]) -> Result<(), ApiError> {
        self.0.list(hosts, &Words::default())
    }

    fn line(&mut self, line: Line<'_>) -> Result<(), ApiError> {
        if self.0.is_json() {
            return Ok(());
        }
        let (bold, dim, plain) = if std::io::stdout().is_terminal() {
            ("\x1b[1m", "\x1b[2m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        self.0.text(&match line {
            Line::Title(text) => format!("\n{bold}== {text}{plain}"),
            Line::Command(prompt, text) => format!("{dim}{prompt}${plain} {bold}{text}{plain}"),
            Line::Printed(text) => text.to_owned(),
            Line::Remark(text) => format!("-- {text}"),
        })
    }

    fn checks(&mut self, checks: &[Check]) -> Result<(), ApiError> {
        self.0.list(checks, &Words::default())
    }

    fn error(&mut self, error: &ApiError) {
        self.0.error(error);
    }
}
