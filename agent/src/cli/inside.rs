//! Starting a command inside a sandbox: its network namespace, and a mount and a UTS namespace of
//! its own or of its process.
//!
//! There /etc/resolv.conf, /etc/hosts and the hostname are the sandbox's, and what would answer for
//! them out of the host's is hidden.
//!
//! Namespaces belong to threads (namespaces(7)), so a thread made for this enters them, starts the
//! command as a child of this process and ends.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Group, Uid, User, sethostname},
};

use super::signals;
use crate::{
    api::{Begin, Sandbox},
    dns::ETC_FILES,
};

/// Where systemd-resolved, nscd and avahi listen: they answer for the host, and by nsswitch.conf's
/// order before our server.
const DAEMONS: [&str; 3] = ["/run/systemd/resolve", "/run/nscd", "/run/avahi-daemon"];

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The sandbox could not be entered.
    #[error("cannot enter the sandbox: {0}")]
    Enter(#[source] io::Error),
    /// What was said about how it begins does not fit this host.
    #[error("{0}")]
    Begin(String),
    /// The command could not be executed there.
    #[error("{0}")]
    Execute(#[source] io::Error),
}

/// The namespaces to enter.
#[derive(Debug)]
pub(super) struct Inside {
    net: File,
    /// Mounts and hostname of the sandbox's process; new ones otherwise.
    of_process: Option<OfProcess>,
    /// What `hostname` says; the host's name otherwise.
    hostname: Option<String>,
    /// Where the sandbox's files for /etc are.
    etc: Option<PathBuf>,
}

#[derive(Debug)]
struct OfProcess {
    mnt: File,
    uts: File,
}

impl Inside {
    /// A sandbox without a process.
    pub(super) fn fresh(sandbox: &Sandbox) -> Result<Self, StartError> {
        let net = File::open(&sandbox.netns).map_err(StartError::Enter)?;
        let etc = sandbox.etc.as_ref().map(PathBuf::from);
        Ok(Self { net, of_process: None, hostname: sandbox.hostname.clone(), etc })
    }

    /// A sandbox as its process sees it; without one that lives, as a fresh one.
    pub(super) fn of(sandbox: &Sandbox) -> Result<Self, StartError> {
        let mut inside = Self::fresh(sandbox)?;
        if let Some(pid) = sandbox.pid {
            inside.of_process = inside.namespaces_of(pid).map_err(StartError::Enter)?;
        }
        Ok(inside)
    }

    /// Starts the command with these files as its standard ones.
    pub(super) fn start(
        &self,
        command: &[OsString],
        begin: &Begin,
        stdio: [Stdio; 3],
    ) -> Result<Child, StartError> {
        let directory = env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        thread::scope(|scope| {
            let start = || {
                self.enter().map_err(StartError::Enter)?;
                signals::unblock_here().map_err(StartError::Enter)?;
                let mut command = prepare(command, &directory, begin, self.hostname.as_deref())?;
                let [input, output, error] = stdio;
                command.stdin(input).stdout(output).stderr(error);
                command.spawn().map_err(StartError::Execute)
            };
            match scope.spawn(start).join() {
                Ok(started) => started,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The namespaces of a process, if it is one of this sandbox: its number may have gone to
    /// another one.
    fn namespaces_of(&self, pid: u32) -> io::Result<Option<OfProcess>> {
        let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
        let (Ok(mnt), Ok(uts), Ok(net)) = (open("mnt"), open("uts"), open("net")) else {
            return Ok(None);
        };
        let (theirs, ours) = (net.metadata()?, self.net.metadata()?);
        let same = (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino());
        Ok(same.then_some(OfProcess { mnt, uts }))
    }

    fn enter(&self) -> io::Result<()> {
        setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        match &self.of_process {
            Some(OfProcess { mnt, uts }) => {
                setns(uts, CloneFlags::CLONE_NEWUTS)?;
                // The kernel lets nobody change mount namespaces who shares root and working
                // directory with others.
                unshare(CloneFlags::CLONE_FS)?;
                setns(mnt, CloneFlags::CLONE_NEWNS)?;
                Ok(())
            }
            None => {
                if let Some(hostname) = &self.hostname {
                    unshare(CloneFlags::CLONE_NEWUTS)?;
                    sethostname(hostname)?;
                }
                own_mounts(self.etc.as_deref())
            }
        }
    }
}

/// A mount namespace whose changes stay inside, with the sandbox's own files in /etc and a /sys
/// that shows the namespace's interfaces.
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
        // Some containers forbid it; the command then sees the names of interfaces outside, and all
        // else works.
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

/// Names as the sandbox's files say. Daemons of the host that libc asks before them would answer
/// with the host's names.
fn own_names(etc: &Path) -> io::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for daemon in DAEMONS.iter().filter(|daemon| Path::new(daemon).is_dir()) {
        mount(Some("tmpfs"), *daemon, Some("tmpfs"), quiet, Some("size=64k,mode=755"))?;
    }
    for name in ETC_FILES {
        // Those of a container are where its engine put them, and older agents made fewer.
        let file = etc.join(name);
        if !file.exists() {
            continue;
        }
        let Some(place) = place_of(&Path::new("/etc").join(name))? else { continue };
        mount(Some(&file), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

/// The file to mount on. A link may lead to what a daemon makes when it runs: without it there is
/// no file, which means to libc what an empty one does.
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
fn prepare(
    command: &[OsString],
    here: &Path,
    begin: &Begin,
    hostname: Option<&str>,
) -> Result<Command, StartError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(StartError::Execute(io::ErrorKind::NotFound.into()));
    };
    let is_there = |path: &Path| fs::metadata(path).is_ok_and(|it| it.is_dir());
    let directory = match &begin.workdir {
        Some(workdir) if !is_there(Path::new(workdir)) => {
            return Err(StartError::Begin(format!("there is no directory {workdir}")));
        }
        Some(workdir) => Path::new(workdir),
        // The other mount namespace may lack the directory.
        None if is_there(here) => here,
        None => Path::new("/"),
    };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    if let Some(hostname) = hostname {
        // Shells have handed on the host's.
        command.env("HOSTNAME", hostname);
    }
    if let Some(user) = &begin.user {
        let (user, group) = identify(user).map_err(StartError::Begin)?;
        command.gid(group.as_raw()).uid(user.uid.as_raw());
        command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    let variables = begin.env.iter().filter_map(|variable| variable.split_once('='));
    command.envs(variables);
    Ok(command)
}

/// The user and the group that `USER[:GROUP]` means, each a name or a number. A number need not be
/// known.
fn identify(text: &str) -> Result<(User, Gid), String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(u, group)| (u, Some(group)));
    let cannot = |error| format!("cannot look for user `{text}`: {error}");
    let found = match user.parse() {
        Ok(uid) => {
            let uid = Uid::from_raw(uid);
            let unnamed = User {
                name: user.to_owned(),
                passwd: Default::default(),
                uid,
                gid: Gid::from_raw(0),
                gecos: Default::default(),
                dir: PathBuf::from("/"),
                shell: PathBuf::new(),
            };
            Some(User::from_uid(uid).map_err(cannot)?.unwrap_or(unnamed))
        }
        Err(_name) => User::from_name(user).map_err(cannot)?,
    };
    let found = found.ok_or_else(|| format!("there is no user `{user}`"))?;
    let Some(group) = group else {
        let gid = found.gid;
        return Ok((found, gid));
    };
    let gid = match group.parse() {
        Ok(gid) => Some(Gid::from_raw(gid)),
        Err(_name) => Group::from_name(group).map_err(cannot)?.map(|group| group.gid),
    };
    Ok((found, gid.ok_or_else(|| format!("there is no group `{group}`"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        let ids = |text: &str| identify(text).map(|(user, gid)| (user.uid.as_raw(), gid.as_raw()));
        assert_eq!(ids("root"), Ok((0, 0)));
        assert_eq!(ids("0:7"), Ok((0, 7)));
        // Numbers that nobody has.
        assert_eq!(ids("3999999:root"), Ok((3_999_999, 0)));
        assert_eq!(ids("3999999"), Ok((3_999_999, 0)));
        for unknown in ["no-such-user", "root:no-such-group", "", "root:", ":"] {
            assert!(ids(unknown).is_err(), "{unknown}");
        }
    }
}
