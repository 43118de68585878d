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

use super::mesh::failed;
use crate::{api::ApiError, netlink::watch};

/// How long a process may take to end after SIGTERM.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// How often one is looked at that cannot be watched.
const LOOK: Duration = Duration::from_millis(20);

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    /// Clock ticks since boot, field 22 of proc_pid_stat(5).
    started: u64,
    /// Which boot.
    #[serde(default)]
    boot: Option<String>,
}

impl Process {
    /// The process with this number, if it runs.
    pub(super) fn look(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let started = started(pid).ok()??;
        Some(Self { pid, started, boot: boot().clone() })
    }

    /// Its number.
    pub(super) fn pid(&self) -> Option<u32> {
        u32::try_from(self.pid).ok()
    }

    /// Whether it has not ended. What cannot be looked at now, because too many files are open for
    /// example, has not.
    pub(super) fn is_alive(&self) -> bool {
        if let (Some(its), Some(this)) = (&self.boot, boot())
            && its != this
        {
            return false;
        }
        started(self.pid).map_or(true, |started| started == Some(self.started))
    }

    /// Sends a signal; a process that has ended needs none.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), ApiError> {
        let pid = Pid::from_raw(self.pid);
        if !self.is_alive() {
            return Ok(());
        }
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => {
                Err(failed(format!("cannot end process {pid}: {errno}"), "end it yourself"))
            }
        }
    }

    /// Waits a while for its end. Whether it came.
    pub(super) async fn ends(&self) -> bool {
        tokio::time::timeout(GRACE, self.ended()).await.is_ok()
    }

    /// Waits for its end, however long that takes.
    pub(super) async fn ended(&self) {
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
    pub(super) async fn end(&self) -> Result<(), ApiError> {
        self.signal(Signal::SIGTERM)?;
        if self.ends().await {
            return Ok(());
        }
        self.kill().await
    }

    /// SIGKILL.
    pub(super) async fn kill(&self) -> Result<(), ApiError> {
        self.signal(Signal::SIGKILL)?;
        if self.ends().await {
            return Ok(());
        }
        let message = format!("process {} does not end", self.pid);
        Err(failed(message, "see what it waits for with `ps`"))
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
pub(super) fn boot() -> &'static Option<String> {
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
