//! Owns what the demo does with a lab: commands that are shown, questions that are not, and what
//! was found.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::super::{
    agents::Captured,
    capture,
    interrupt::Interrupt,
    name::{HostName, LabName},
    output::{Check, Line, Output},
};
use crate::api::{ApiError, ErrorCode};

/// How often a question is asked again.
const POLL: Duration = Duration::from_millis(20);

/// A lab that runs, and where to tell about it.
pub(super) struct Stage<'a> {
    lab: &'a LabName,
    interrupt: &'a Interrupt,
    out: &'a mut dyn Output,
    up: Duration,
    begun: Instant,
    checks: Vec<Check>,
}

impl<'a> Stage<'a> {
    /// A stage on a lab that took this long to make.
    pub(super) fn new(
        lab: &'a LabName,
        interrupt: &'a Interrupt,
        out: &'a mut dyn Output,
        up: Duration,
    ) -> Self {
        Self { lab, interrupt, out, up, begun: Instant::now(), checks: Vec::new() }
    }

    pub(super) fn lab(&self) -> &'a LabName {
        self.lab
    }

    pub(super) fn interrupt(&self) -> &Interrupt {
        self.interrupt
    }

    /// From the first step of making the lab.
    pub(super) fn since_up(&self) -> Duration {
        self.up + self.begun.elapsed()
    }

    pub(super) fn into_checks(self) -> Vec<Check> {
        self.checks
    }

    pub(super) fn title(&mut self, text: &str) -> Result<(), ApiError> {
        self.out.line(Line::Title(text))
    }

    pub(super) fn remark(&mut self, text: &str) -> Result<(), ApiError> {
        self.out.line(Line::Remark(text))
    }

    pub(super) fn printed(&mut self, text: &str) -> Result<(), ApiError> {
        self.out.line(Line::Printed(text))
    }

    /// A command on the machine itself.
    pub(super) fn prompt(&mut self, text: &str) -> Result<(), ApiError> {
        self.out.line(Line::Command("", text))
    }

    /// Keeps a finding for the end, and tells it.
    pub(super) fn check(&mut self, what: &str, measured: String, ok: bool) -> Result<(), ApiError> {
        let result = if ok { "" } else { "FAILED: " };
        self.remark(&format!("{result}{what}: {measured}"))?;
        self.checks.push(Check { what: what.to_owned(), measured, ok });
        Ok(())
    }

    /// Shows a command of vxmesh and what it prints.
    pub(super) async fn show(&mut self, host: HostName, args: &[&str]) -> Result<(), ApiError> {
        self.show_lines(host, args, |_line| true).await
    }

    /// Shows a command of vxmesh and some of the lines that it prints.
    pub(super) async fn show_lines(
        &mut self,
        host: HostName,
        args: &[&str],
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), ApiError> {
        self.out.line(Line::Command(&host.to_string(), &format!("vxmesh {}", args.join(" "))))?;
        let captured = self.run(host, args).await?;
        let said = succeeded(host, args, &captured)?;
        for line in said.lines().map(str::trim_end).filter(|line| !line.is_empty() && wanted(line))
        {
            self.printed(line)?;
        }
        Ok(())
    }

    /// Runs a command of vxmesh in a host.
    pub(super) async fn run(&self, host: HostName, args: &[&str]) -> Result<Captured, ApiError> {
        self.interrupt.check()?;
        capture(self.lab, host, &[&["vxmesh"], args].concat()).await
    }

    /// What a command of vxmesh answers.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        host: HostName,
        args: &[&str],
    ) -> Result<T, ApiError> {
        let captured = self.run(host, &[&["--format", "json"], args].concat()).await?;
        let said = succeeded(host, args, &captured)?;
        serde_json::from_str(&said).map_err(|error| {
            failed(format!("{host}: vxmesh {} printed something else: {error}", args.join(" ")))
        })
    }

    /// Asks until the answer is the one that is wanted.
    pub(super) async fn until<T: DeserializeOwned>(
        &self,
        host: HostName,
        args: &[&str],
        wanted: impl Fn(&T) -> bool,
        patience: Duration,
    ) -> Result<T, ApiError> {
        let end = Instant::now() + patience;
        loop {
            let answer = self.ask(host, args).await?;
            if wanted(&answer) {
                return Ok(answer);
            }
            if Instant::now() > end {
                let seconds = patience.as_secs();
                let what = args.join(" ");
                return Err(failed(format!(
                    "{host}: vxmesh {what} is not as expected after {seconds} s"
                )));
            }
            self.interrupt.sleep(POLL).await?;
        }
    }
}

fn succeeded(host: HostName, args: &[&str], captured: &Captured) -> Result<String, ApiError> {
    if captured.status == 0 {
        return Ok(String::from_utf8_lossy(&captured.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&captured.stderr);
    let output = String::from_utf8_lossy(&captured.stdout);
    Err(failed(format!(
        "{host}: vxmesh {} ended with status {}: {}{}",
        args.join(" "),
        captured.status,
        output.trim_end(),
        said.trim_end()
    )))
}

pub(super) fn failed(what: String) -> ApiError {
    let hint = "look at it yourself: vxmesh lab up, and the agents' logs below /run/vxmesh-lab";
    ApiError::new(ErrorCode::Failed, what, hint)
}
