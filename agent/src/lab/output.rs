//! Owns what a lab command has to say; the command line decides how it looks.

use std::net::IpAddr;

use serde::Serialize;

use crate::api::ApiError;

/// A line of the demo.
#[derive(Clone, Copy, Debug)]
pub enum Line<'a> {
    /// Begins a part.
    Title(&'a str),
    /// A command, with the prompt of the host where it runs.
    Command(&'a str, &'a str),
    /// What a command printed.
    Printed(&'a str),
    /// What to see in it.
    Remark(&'a str),
}

/// One thing that the demo looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What should be.
    pub what: String,
    /// What was measured.
    pub measured: String,
    /// Whether it is as it should.
    pub ok: bool,
}

/// Where a lab command says what it has to say.
pub trait Output {
    /// One step is done, for people to read.
    fn progress(&mut self, line: &str);
    /// The result of `lab up` and `lab status`.
    ///
    /// # Errors
    /// It cannot be written.
    fn hosts(&mut self, hosts: &[HostStatus]) -> Result<(), ApiError>;
    /// A line of `lab demo`, for people to read.
    ///
    /// # Errors
    /// It cannot be written.
    fn line(&mut self, line: Line<'_>) -> Result<(), ApiError>;
    /// The result of `lab demo`.
    ///
    /// # Errors
    /// It cannot be written.
    fn checks(&mut self, checks: &[Check]) -> Result<(), ApiError>;
    /// A failure of `lab exec`, whose exit status the error does not tell.
    fn error(&mut self, error: &ApiError);
}

/// One host of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostStatus {
    /// `h1` to `hN`.
    pub host: String,
    /// The name of its network namespace.
    pub netns: String,
    /// Its agent, if that runs.
    pub pid: Option<i32>,
    /// The agent's socket, as the machine sees it.
    pub socket: String,
    /// The agent's data directory, as the machine sees it.
    pub data_dir: String,
    /// Its addresses in the underlay.
    pub addrs: Vec<IpAddr>,
}
