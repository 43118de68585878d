//! Work inside a network namespace: a thread enters it, does the work and ends.
//!
//! A socket belongs to the namespace of the thread that made it and may be used from anywhere
//! (network_namespaces(7)), so a test can be server and client in many sandboxes at once without
//! starting a program in each.

use std::{fs::File, io, path::Path, thread};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// A network namespace, held open.
#[derive(Debug)]
pub struct NetNs(File);

impl NetNs {
    /// The namespace that this file stands for.
    ///
    /// # Errors
    ///
    /// There is no such file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self(File::open(path).with_context(|| format!("open {}", path.display()))?))
    }

    /// Does work inside.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or the work fails.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Another handle of it.
    ///
    /// # Errors
    ///
    /// There is no file descriptor left.
    pub fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).map_err(|error| anyhow!(error))
    }
}
