//! Owns how a program is started, or a piece of work done, inside a host of a lab.
//!
//! Namespaces belong to threads (namespaces(7)): a thread made for this joins or makes them, starts
//! the program as its child and ends, so that the rest of this process stays where it is. A new PID
//! namespace holds the thread's children only (pid_namespaces(7)), which is what is wanted here.
//! Refuses a host whose holder is dead.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::sethostname,
};

use super::{disk::HostDir, mounts, name::HostName, process::Process};

/// The agent's socket as its host sees it.
const SOCKET: &str = "/run/vxmesh/api.sock";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnterError {
    /// The host could not be entered.
    #[error("cannot enter the host: {0}")]
    Enter(#[source] io::Error),
    /// The program could not be started there, or the work failed.
    #[error("{0}")]
    Start(#[source] io::Error),
}

/// The namespaces of a host that runs.
#[derive(Debug)]
pub(super) struct Namespaces {
    net: File,
    uts: File,
    pid: File,
    mnt: File,
}

impl Namespaces {
    /// Those of the host with this holder.
    pub(super) fn of(holder: Process) -> io::Result<Self> {
        let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", holder.pid));
        let all =
            Self { net: open("net")?, uts: open("uts")?, pid: open("pid")?, mnt: open("mnt")? };
        // Asked last: what was opened before is the holder's if it lives still.
        if holder.is_alive() {
            Ok(all)
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "its holder is dead"))
        }
    }

    /// Starts a program inside, in the caller's directory if the host has it.
    pub(super) fn spawn(&self, program: Program) -> Result<Child, EnterError> {
        let directory = if program.detached { None } else { env::current_dir().ok() };
        on_own_thread(move || {
            self.join_all().map_err(EnterError::Enter)?;
            let mut command = program.into_command();
            command.current_dir(
                directory.as_deref().filter(|path| path.is_dir()).unwrap_or_else(|| Path::new("/")),
            );
            command.spawn().map_err(EnterError::Start)
        })
    }

    /// Does something in a network namespace that has this path in the host.
    pub(super) fn in_netns<T: Send>(
        &self,
        netns: &Path,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, EnterError> {
        on_own_thread(|| {
            let enter = || {
                self.join_all()?;
                setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
                io::Result::Ok(())
            };
            enter().map_err(EnterError::Enter)?;
            work().map_err(EnterError::Start)
        })
    }

    fn join_all(&self) -> io::Result<()> {
        // The kernel lets nobody change mount namespaces who shares root and working directory with
        // others.
        unshare(CloneFlags::CLONE_FS)?;
        setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        setns(&self.uts, CloneFlags::CLONE_NEWUTS)?;
        setns(&self.pid, CloneFlags::CLONE_NEWPID)?;
        setns(&self.mnt, CloneFlags::CLONE_NEWNS)?;
        Ok(())
    }
}

/// Makes a host's namespaces around its network namespace and starts the first process in them.
pub(super) fn spawn_first(
    program: Program,
    netns: &File,
    name: HostName,
    host: &HostDir,
) -> Result<Child, EnterError> {
    on_own_thread(move || {
        let make = || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWPID)?;
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            sethostname(name.to_string())?;
            mounts::make_private(host)
        };
        make().map_err(EnterError::Enter)?;
        program.into_command().current_dir("/").spawn().map_err(EnterError::Start)
    })
}

/// Does something in a network namespace of the machine.
pub(super) fn in_machine_netns<T: Send>(
    netns: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, EnterError> {
    on_own_thread(|| {
        let enter = || Ok(setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?);
        enter().map_err(EnterError::Enter)?;
        work().map_err(EnterError::Start)
    })
}

fn on_own_thread<T: Send>(
    work: impl FnOnce() -> Result<T, EnterError> + Send,
) -> Result<T, EnterError> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// What to start, and with which files.
#[derive(Debug)]
pub(super) struct Program {
    file: ProgramFile,
    args: Vec<OsString>,
    search_path: OsString,
    stdio: Option<[Stdio; 3]>,
    detached: bool,
}

#[derive(Debug)]
enum ProgramFile {
    /// Looked for in `PATH` unless it is a path.
    Named(OsString),
    /// This program's own file.
    Own { path: PathBuf, dev: u64, ino: u64 },
}

impl Program {
    /// Any program with its arguments, found by the caller's `PATH` with this program's own
    /// directory in front.
    pub(super) fn any<S: Into<OsString>>(
        name: impl Into<OsString>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        Self::new(ProgramFile::Named(name.into()), args)
    }

    /// This program itself.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(super) fn own<S: Into<OsString>>(args: impl IntoIterator<Item = S>) -> io::Result<Self> {
        let file = fs::metadata("/proc/self/exe")?;
        let path = env::current_exe()?;
        Ok(Self::new(ProgramFile::Own { path, dev: file.dev(), ino: file.ino() }, args))
    }

    fn new<S: Into<OsString>>(file: ProgramFile, args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { file, args, search_path: search_path(), stdio: None, detached: false }
    }

    /// Its standard input, output and error; the caller's otherwise.
    pub(super) fn stdio(mut self, input: Stdio, output: Stdio, error: Stdio) -> Self {
        self.stdio = Some([input, output, error]);
        self
    }

    /// Sends what it says to a file, and keeps it away from the caller's terminal and directory.
    pub(super) fn detached(mut self, log: File) -> io::Result<Self> {
        self.stdio = Some([Stdio::null(), log.try_clone()?.into(), log.into()]);
        self.detached = true;
        Ok(self)
    }

    /// The command; called inside the host, because what file a path means depends on that.
    #[expect(
        clippy::disallowed_methods,
        reason = "starting programs in hosts is what a lab is for"
    )]
    fn into_command(self) -> Command {
        let mut command = match self.file {
            ProgramFile::Named(name) => Command::new(name),
            ProgramFile::Own { path, dev, ino } => {
                // Hidden below a private directory, or replaced by a newer one since this process
                // started.
                let same =
                    fs::metadata(&path).is_ok_and(|file| (file.dev(), file.ino()) == (dev, ino));
                let mut command =
                    Command::new(if same { path.as_path() } else { Path::new("/proc/self/exe") });
                command.arg0("vxmesh");
                command
            }
        };
        command.args(self.args).env("PATH", self.search_path).env("VXMESH_SOCKET", SOCKET);
        // These name files of the machine; a host has its own.
        command.env_remove("VXMESH_CONFIG").env_remove("VXMESH_DATA_DIR");
        if let Some([input, output, error]) = self.stdio {
            command.stdin(input).stdout(output).stderr(error);
        }
        if self.detached {
            command.process_group(0);
        }
        command
    }
}

/// The caller's `PATH`, with the directory of this program in front: `vxmesh` in a host is the
/// program that made it.
fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let own = env::current_exe().ok().and_then(|file| file.parent().map(Path::to_owned));
    env::join_paths(own.into_iter().chain(env::split_paths(&path))).unwrap_or(path)
}
