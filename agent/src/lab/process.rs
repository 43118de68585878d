//! Owns one fact: which process a number on disk means.
//!
//! A process is its id and its start time (`/proc/PID/stat`, field 22, proc(5)), so that a number
//! that the kernel gave to another process since is never taken for ours. A zombie without threads
//! counts as gone: its memory, files and namespaces are, and only its parent can remove it. Refuses
//! to signal anything whose start time differs.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{self, Signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// How often a dying process is looked at.
const POLL: Duration = Duration::from_millis(5);

/// One process, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its id in the caller's PID namespace.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub start: u64,
}

impl Process {
    /// The process that has this id.
    ///
    /// # Errors
    /// There is none, or `/proc` is not mounted.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let Stat { start, .. } = read_stat(pid)?;
        Ok(Self { pid, start })
    }

    /// Whether it still runs.
    #[must_use]
    pub(super) fn is_alive(self) -> bool {
        read_stat(self.pid).is_ok_and(|stat| stat.start == self.start && !stat.is_gone())
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// The kernel refused the signal, or it outlived the deadline, as a process that waits for a
    /// disk can.
    pub(super) async fn kill(self, deadline: Duration) -> io::Result<()> {
        if self.is_alive() {
            match signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let end = Instant::now() + deadline;
        while self.is_alive() {
            if Instant::now() >= end {
                let message = format!(
                    "process {} still runs {} s after SIGKILL",
                    self.pid,
                    deadline.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            tokio::time::sleep(POLL).await;
        }
        self.reap();
        Ok(())
    }

    /// Takes the zombie away if it was a child of this process; somebody else's is theirs to take.
    fn reap(self) {
        let same = read_stat(self.pid).is_ok_and(|stat| stat.start == self.start);
        if same && let Err(error) = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG)) {
            tracing::trace!(pid = self.pid, %error, "not our child");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    threads: u32,
    start: u64,
}

impl Stat {
    /// The first thread may be a zombie while others still hold the process's files open.
    const fn is_gone(self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

fn read_stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed /proc/PID/stat"))
}

/// State, number of threads (field 20) and start time. The command's name stands in parentheses and
/// may itself hold any of `( )`.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, threads, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        for name in ["sh", "a b", "x) R 1 (y", ""] {
            let stat = Stat { state: 'S', threads: 17, start: 777 };
            assert_eq!(parse_stat(&format!("42 ({name}) {tail}\n")), Some(stat), "{name:?}");
        }
        for bad in [
            "",
            "42",
            "42 (sh)",
            "42 (sh) S 1 2",
            "42 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x",
        ] {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_process_is_gone_when_its_last_thread_is() {
        for (state, threads, gone) in
            [('S', 1, false), ('R', 9, false), ('Z', 2, false), ('Z', 1, true), ('X', 0, true)]
        {
            assert_eq!(Stat { state, threads, start: 1 }.is_gone(), gone, "{state} {threads}");
        }
    }

    #[tokio::test]
    async fn this_process_lives_and_its_double_does_not() {
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        let other = Process { start: me.start + 1, ..me };
        assert!(!other.is_alive());
        other.kill(Duration::ZERO).await.unwrap(); // must not hit this process
        assert!(Process::of(i32::MAX).is_err());
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a real process is what is tested")]
    async fn a_killed_child_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive());
        process.kill(Duration::from_secs(10)).await.unwrap();
        assert!(!process.is_alive());
        process.kill(Duration::ZERO).await.unwrap();
        assert!(child.wait().is_err(), "its zombie is gone too");
    }
}
