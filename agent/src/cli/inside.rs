//! Starting a command inside a sandbox: its network namespace, and a mount namespace of its own or of its process.
//!
//! Namespaces belong to threads (namespaces(7)), so a thread made for this enters them, starts the command as a child
//! of this process and ends.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::signals;

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The sandbox could not be entered.
    #[error("cannot enter the sandbox: {0}")]
    Enter(#[source] io::Error),
    /// The command could not be executed there.
    #[error("{0}")]
    Execute(#[source] io::Error),
}

/// The namespaces to enter.
#[derive(Debug)]
pub(super) struct Inside {
    net: File,
    /// That of the sandbox's process; a new one otherwise.
    mnt: Option<File>,
}

impl Inside {
    /// A sandbox without a process, by the path of its network namespace.
    pub(super) fn fresh(netns: &Path) -> Result<Self, StartError> {
        Ok(Self { net: File::open(netns).map_err(StartError::Enter)?, mnt: None })
    }

    /// A sandbox as its process sees it; without one that lives, as a fresh one.
    pub(super) fn of(netns: &Path, pid: Option<u32>) -> Result<Self, StartError> {
        let mut inside = Self::fresh(netns)?;
        if let Some(pid) = pid {
            inside.mnt = inside.mounts_of(pid).map_err(StartError::Enter)?;
        }
        Ok(inside)
    }

    /// Starts the command with these files as its standard ones.
    pub(super) fn start(
        &self,
        command: &[OsString],
        stdio: [Stdio; 3],
    ) -> Result<Child, StartError> {
        let directory = env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        thread::scope(|scope| {
            let start = || {
                self.enter().map_err(StartError::Enter)?;
                signals::unblock_here().map_err(StartError::Enter)?;
                spawn(command, &directory, stdio).map_err(StartError::Execute)
            };
            match scope.spawn(start).join() {
                Ok(started) => started,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The mounts of a process, if it is one of this sandbox: its number may have gone to another one.
    fn mounts_of(&self, pid: u32) -> io::Result<Option<File>> {
        let open = || -> io::Result<(File, File)> {
            let mnt = File::open(format!("/proc/{pid}/ns/mnt"))?;
            Ok((mnt, File::open(format!("/proc/{pid}/ns/net"))?))
        };
        let Ok((mnt, net)) = open() else { return Ok(None) };
        let (theirs, ours) = (net.metadata()?, self.net.metadata()?);
        let same = (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino());
        Ok(same.then_some(mnt))
    }

    fn enter(&self) -> io::Result<()> {
        setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        match &self.mnt {
            Some(mnt) => {
                // The kernel lets nobody change mount namespaces who shares root and working directory with others.
                unshare(CloneFlags::CLONE_FS)?;
                setns(mnt, CloneFlags::CLONE_NEWNS)?;
                Ok(())
            }
            None => own_mounts(),
        }
    }
}

/// A mount namespace whose changes stay inside, with a /sys that shows the namespace's interfaces.
fn own_mounts() -> io::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Slave: an unmount outside is carried out inside too, and keeps no disk busy.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    // The new /sys would hide the control groups, by which programs know their limits.
    let cgroups = File::open("/sys/fs/cgroup").ok();
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if mount(Some("sysfs"), "/sys", Some("sysfs"), quiet, none).is_err() {
        // Some containers forbid it; the command then sees the names of interfaces outside, and all else works.
        return Ok(());
    }
    if let Some(cgroups) = cgroups {
        let path = format!("/proc/self/fd/{}", cgroups.as_raw_fd());
        mount(
            Some(path.as_str()),
            "/sys/fs/cgroup",
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )?;
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "running the user's command is what `run` and `exec` are for"
)]
fn spawn(command: &[OsString], directory: &Path, stdio: [Stdio; 3]) -> io::Result<Child> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let [input, output, error] = stdio;
    // The other mount namespace may lack the directory.
    let directory = if fs::metadata(directory).is_ok_and(|it| it.is_dir()) {
        directory
    } else {
        Path::new("/")
    };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    command.stdin(input).stdout(output).stderr(error).spawn()
}
