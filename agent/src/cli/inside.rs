//! Starting a command inside a sandbox: its network namespace, and a mount namespace of its own or of its process.
//!
//! In the mount namespace /etc/resolv.conf and /etc/hosts are the sandbox's, and what would answer for them out of the host's is hidden.
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
use crate::api::Sandbox;

/// Where systemd-resolved and nscd listen.
const DAEMONS: [&str; 2] = ["/run/systemd/resolve", "/run/nscd"];

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
    /// Where the sandbox's files for /etc are.
    etc: Option<PathBuf>,
}

impl Inside {
    /// A sandbox without a process.
    pub(super) fn fresh(sandbox: &Sandbox) -> Result<Self, StartError> {
        let net = File::open(&sandbox.netns).map_err(StartError::Enter)?;
        Ok(Self { net, mnt: None, etc: sandbox.etc.as_ref().map(PathBuf::from) })
    }

    /// A sandbox as its process sees it; without one that lives, as a fresh one.
    pub(super) fn of(sandbox: &Sandbox) -> Result<Self, StartError> {
        let mut inside = Self::fresh(sandbox)?;
        if let Some(pid) = sandbox.pid {
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
            None => own_mounts(self.etc.as_deref()),
        }
    }
}

/// A mount namespace whose changes stay inside, with the sandbox's own files in /etc and a /sys that shows the namespace's
/// interfaces.
fn own_mounts(etc: Option<&Path>) -> io::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Slave: an unmount outside is carried out inside too, and keeps no disk busy.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    if let Some(etc) = etc {
        own_names(etc)?;
    }
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

/// Names as the sandbox's files say. Daemons of the host that libc asks before them would answer with the host's names.
fn own_names(etc: &Path) -> io::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for daemon in DAEMONS.iter().filter(|daemon| Path::new(daemon).is_dir()) {
        mount(Some("tmpfs"), *daemon, Some("tmpfs"), quiet, Some("size=64k,mode=755"))?;
    }
    for name in ["resolv.conf", "hosts"] {
        let Some(place) = place_of(&Path::new("/etc").join(name))? else { continue };
        mount(Some(&etc.join(name)), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

/// The file to mount on. A link may lead to what a daemon makes when it runs: without it there is no file, which means
/// to libc what an empty one does.
fn place_of(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::canonicalize(path) {
        Ok(place) => return Ok(Some(place)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_missing) => {}
    }
    let Ok(target) = fs::read_link(path) else { return Ok(None) };
    let place = path.parent().unwrap_or(path).join(target);
    if let Some(directory) = place.parent() {
        fs::create_dir_all(directory)?;
    }
    File::options().append(true).create(true).open(&place)?;
    fs::canonicalize(place).map(Some)
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
