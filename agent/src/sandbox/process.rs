//! Processes of sandboxes: told from later ones with the same number, and ended.

use std::{
    fs,
    io::{self, ErrorKind},
    sync::OnceLock,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::netlink::watch;

/// How long a process may take to end after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// How often one is looked at that cannot be watched.
const LOOK: Duration = Duration::from_millis(20);

/// Why a process does not end.
#[derive(Debug, Error)]
pub(crate) enum ProcessError {
    /// It takes no signal from the agent.
    #[error("cannot end process {pid}: {errno}")]
    Signal {
        /// Its number.
        pid: i32,
        /// What the kernel says.
        errno: Errno,
    },
    /// It runs on after SIGKILL.
    #[error("process {0} does not end")]
    Stays(i32),
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// Clock ticks since boot, field 22 of proc_pid_stat(5).
    started: u64,
    /// Which boot.
    #[serde(default)]
    boot: Option<String>,
}

impl Process {
    /// The process with this number, if it runs.
    pub(crate) fn look(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let started = started(pid).ok()??;
        Some(Self { pid, started, boot: boot().clone() })
    }

    /// Its number.
    pub(crate) fn pid(&self) -> Option<u32> {
        u32::try_from(self.pid).ok()
    }

    /// Whether it has not ended. What cannot be looked at now, because too many files are open for
    /// example, has not.
    pub(crate) fn is_alive(&self) -> bool {
        if let (Some(its), Some(this)) = (&self.boot, boot())
            && its != this
        {
            return false;
        }
        started(self.pid).map_or(true, |started| started == Some(self.started))
    }

    /// Sends a signal; a process that has ended needs none.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let pid = Pid::from_raw(self.pid);
        if !self.is_alive() {
            return Ok(());
        }
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(ProcessError::Signal { pid: self.pid, errno }),
        }
    }

    /// Waits a while for its end. Whether it came.
    pub(crate) async fn ends(&self) -> bool {
        tokio::time::timeout(GRACE, self.ended()).await.is_ok()
    }

    /// Waits for its end, however long that takes.
    pub(crate) async fn ended(&self) {
        while self.is_alive() {
            // Looked at once more: the number may have been another's already.
            if let Ok(watched) = watch::Process::open(self.pid)
                && self.is_alive()
                && watched.ended().await.is_ok()
                && !self.is_alive()
            {
                return;
            }
            // It cannot be watched now.
            tokio::time::sleep(LOOK).await;
        }
    }

    /// SIGTERM, and SIGKILL if that does not do.
    pub(crate) async fn end(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGTERM)?;
        if self.ends().await {
            return Ok(());
        }
        self.kill().await
    }

    /// SIGKILL.
    pub(crate) async fn kill(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGKILL)?;
        if self.ends().await {
            return Ok(());
        }
        Err(ProcessError::Stays(self.pid))
    }
}

/// When a process was started; nothing if it has ended.
fn started(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The name in parentheses may hold anything; what follows it is numbers, the state first.
    let Some((_name, rest)) = stat.rsplit_once(')') else { return Ok(None) };
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next();
    if matches!(state, Some("Z" | "X") | None) {
        return Ok(None);
    }
    Ok(fields.nth(18).and_then(|ticks| ticks.parse().ok()))
}

/// The kernel's name for this boot.
pub(crate) fn boot() -> &'static Option<String> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_and_from_one_of_another_boot() {
        let own = Process::look(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own.clone() }.is_alive());
        assert!(!Process { boot: Some("another".into()), ..own }.is_alive());
        // Rows of agents that did not note it.
        assert!(Process { boot: None, ..own }.is_alive());
        assert_eq!(Process::look(u32::MAX), None);
    }
}
