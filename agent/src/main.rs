//! The vxmesh binary.

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};
use vxmesh::{
    api::{ApiError, ErrorBody, ErrorCode},
    lab,
};

#[derive(Parser)]
#[command(name = "vxmesh", version)]
struct Cli {
    /// How results are printed.
    #[arg(long, global = true, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    #[command(subcommand)]
    command: Top,
}

#[derive(Subcommand)]
enum Top {
    /// A cluster in namespaces on this machine
    Lab(lab::Command),
}

struct Printer {
    json: bool,
}

impl Printer {
    fn say(line: &str) {
        writeln!(std::io::stderr(), "{line}").unwrap_or_default();
    }
}

impl lab::Output for Printer {
    fn progress(&mut self, line: &str) {
        Self::say(line);
    }

    fn hosts(&mut self, hosts: &[lab::HostStatus]) -> Result<(), ApiError> {
        let text = if self.json {
            serde_json::to_string(hosts).unwrap_or_default()
        } else {
            let row = |host: &lab::HostStatus| {
                let addrs: Vec<String> = host.addrs.iter().map(ToString::to_string).collect();
                let pid = host.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
                format!(
                    "{}\t{}\t{pid}\t{}\t{}",
                    host.host,
                    host.netns,
                    host.socket,
                    addrs.join(",")
                )
            };
            hosts.iter().map(row).collect::<Vec<_>>().join("\n")
        };
        writeln!(std::io::stdout(), "{text}").map_err(|error| {
            ApiError::new(ErrorCode::Failed, error.to_string(), "check where the output goes")
        })
    }

    fn error(&mut self, error: &ApiError) {
        let body = serde_json::to_string(&ErrorBody { error: error.clone() }).unwrap_or_default();
        Self::say(&if self.json { body } else { format!("error: {error}") });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut printer = Printer { json: cli.format == "json" };
    let Top::Lab(command) = cli.command;
    match lab::run(&command, &mut printer).await {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            lab::Output::error(&mut printer, &error);
            ExitCode::from(error.code.exit_status())
        }
    }
}
