//! Owns `lab exec`: one program in a host, with the caller's terminal and the program's own exit
//! status.
//!
//! As docker does it: 125 the lab failed, 126 the program cannot be executed, 127 there is none,
//! 128+n it died of signal n. Keyboard signals reach the program by itself, the others are passed
//! on to it.

use std::{
    ffi::OsString,
    io::{self, ErrorKind},
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::signal::unix::{self, SignalKind, signal};

use super::{
    agents::Host,
    disk::LabDir,
    enter::{EnterError, Program},
    error::{OrFail, failed},
    name::{HostName, LabName},
};
use crate::api::{ApiError, ErrorCode};

/// The exit status of a failure that is the lab's.
pub(super) const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a program in a host; an error comes with the exit status that stands for it.
pub(super) async fn exec(
    lab: &LabName,
    host: HostName,
    command: &[OsString],
) -> Result<u8, (u8, ApiError)> {
    let ours = |error| (OURS, error);
    let Some((name, args)) = command.split_first() else {
        return Err(ours(ApiError::new(
            ErrorCode::Usage,
            "no command given",
            "vxmesh lab exec HOST -- CMD",
        )));
    };
    let opened = LabDir::open(lab).and_then(|lab| Host::open(&lab, host)).map_err(ours)?;
    // Before there is a command: a signal that ended this process would leave it behind.
    let signals =
        Signals::watch().or_fail(|| "cannot watch for signals".to_owned()).map_err(ours)?;
    let child = match opened.inside().spawn(Program::any(name, args)) {
        Ok(child) => child,
        Err(error @ EnterError::Enter(_)) => {
            return Err(ours(failed(&format!("cannot run in {host}"), &error)));
        }
        Err(EnterError::Start(error)) => {
            let status =
                if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            let message = format!("cannot run {} in {host}: {error}", name.to_string_lossy());
            return Err((
                status,
                ApiError::new(ErrorCode::Failed, message, "check the command and its path"),
            ));
        }
    };
    wait(child, signals).await.map_err(ours)
}

/// The signals that would end this process before its command.
struct Signals {
    terminate: unix::Signal,
    hangup: unix::Signal,
    /// The terminal sends these to every process of the group; only the command decides what they
    /// mean.
    _keyboard: [unix::Signal; 2],
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            _keyboard: [signal(SignalKind::interrupt())?, signal(SignalKind::quit())?],
        })
    }
}

async fn wait(mut child: Child, mut signals: Signals) -> Result<u8, ApiError> {
    let what = || "cannot wait for the command".to_owned();
    let pid =
        i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other).or_fail(what)?;
    let mut ended = tokio::task::spawn_blocking(move || child.wait());
    loop {
        let passed_on = tokio::select! {
            status = &mut ended => {
                let status = status.map_err(io::Error::other).and_then(|status| status).or_fail(what)?;
                return Ok(exit_status(status));
            }
            _ = signals.terminate.recv() => Signal::SIGTERM,
            _ = signals.hangup.recv() => Signal::SIGHUP,
        };
        if let Err(error) = kill(pid, passed_on) {
            tracing::debug!(%error, "the command ended first");
        }
    }
}

/// The exit status as a shell tells it.
pub(super) fn exit_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(OURS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        // Wait statuses of Linux: the exit code in the second byte, the signal in the first.
        for (raw, status) in
            [(0, 0), (1 << 8, 1), (255 << 8, 255), (9, 137), (15, 143), (11 | 0x80, 139)]
        {
            assert_eq!(exit_status(ExitStatus::from_raw(raw)), status, "{raw}");
        }
    }
}
