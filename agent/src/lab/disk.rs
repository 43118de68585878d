//! Owns what a lab keeps on disk, from which later commands find everything; there is no daemon.
//!
//! ```text
//! /run/vxmesh-lab/made              directories that the first lab had to make on this machine
//! /run/vxmesh-lab/NAME/lab.json     the plan; written before anything else exists
//! /run/vxmesh-lab/NAME/hN/          holder.json agent.json: processes; holder.log agent.log
//! /run/vxmesh-lab/NAME/hN/{run,var-lib,etc-vxmesh}/   what the host sees as /run, /var/lib, /etc/vxmesh
//! ```
//! Two locks, released by the kernel when their process dies: one on the lab's directory for
//! commands that change it, one on the whole for making and removing labs. Refuses to make a lab
//! that is there.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, umount2},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::OrFail,
    name::{HostName, LabName},
    plan::Plan,
    process::Process,
};
use crate::api::{ApiError, ErrorCode};

const BASE: &str = "/run/vxmesh-lab";
const MADE: &str = "/run/vxmesh-lab/made";
/// Where named network namespaces are pinned.
pub(super) const NETNS_DIR: &str = "/run/netns";
/// A private mount needs a directory to lie on; these may be missing on a machine without an agent.
const MOUNT_POINTS: [&str; 2] = ["/etc/vxmesh", NETNS_DIR];

/// The directory of one lab.
#[derive(Clone, Debug)]
pub(super) struct LabDir {
    name: LabName,
    path: PathBuf,
}

/// Held by a command that changes a lab.
#[derive(Debug)]
pub(super) struct LabLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl LabDir {
    /// Makes the directory of a new lab, locked and empty.
    pub(super) fn create(name: &LabName) -> Result<(Self, LabLock), ApiError> {
        let _machine = lock_machine().or_fail(|| format!("cannot lock {BASE}"))?;
        let lab = Self { name: name.clone(), path: Path::new(BASE).join(name.as_str()) };
        let conflict = |what: String| {
            // The lock may have made an empty one.
            if let Err(error) = fs::remove_dir(BASE) {
                tracing::trace!(%error, "other labs are there");
            }
            let hint =
                format!("choose another --name, or remove it: vxmesh lab --name {name} down");
            Err(ApiError::new(ErrorCode::Conflict, what, hint))
        };
        if lab.path.exists() {
            return conflict(format!("lab {name} is there already"));
        }
        if let Some(netns) =
            pinned_netns(name).or_fail(|| format!("cannot read {NETNS_DIR}"))?.first()
        {
            return conflict(format!("network namespace {netns} is there already"));
        }
        make_dir(&lab.path).or_fail(|| format!("cannot make {}", lab.path.display()))?;
        let lock = lab.lock()?;
        Ok((lab, lock))
    }

    /// Writes the plan down and makes the directories of its hosts.
    pub(super) fn fill(&self, plan: &Plan) -> Result<(), ApiError> {
        write_json(&self.path.join("lab.json"), plan)?;
        {
            let _machine = lock_machine().or_fail(|| format!("cannot lock {BASE}"))?;
            make_mount_points().or_fail(|| "cannot make the lab's mount points".to_owned())?;
        }
        for host in HostName::first(plan.hosts) {
            let host = self.host(host);
            for path in [&host.path, &host.run(), &host.data(), &host.config()] {
                make_dir(path).or_fail(|| format!("cannot make {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The directory of a lab that is there, perhaps half made.
    pub(super) fn open(name: &LabName) -> Result<Self, ApiError> {
        Self::find(name).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("there is no lab {name}"),
                format!("make one: vxmesh lab --name {name} up"),
            )
        })
    }

    pub(super) fn find(name: &LabName) -> Option<Self> {
        let path = Path::new(BASE).join(name.as_str());
        path.is_dir().then(|| Self { name: name.clone(), path })
    }

    /// Keeps other commands from changing the lab.
    pub(super) fn lock(&self) -> Result<LabLock, ApiError> {
        let file =
            File::open(&self.path).or_fail(|| format!("cannot open {}", self.path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(LabLock(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(ApiError::new(
                ErrorCode::Conflict,
                format!("another command is at work on lab {}", self.name),
                "wait until it is done, or stop it with Ctrl-C",
            )),
            Err((_, error)) => {
                Err(error).or_fail(|| format!("cannot lock {}", self.path.display()))
            }
        }
    }

    pub(super) fn name(&self) -> &LabName {
        &self.name
    }

    pub(super) fn plan(&self) -> Result<Plan, ApiError> {
        read_json(&self.path.join("lab.json"))?.ok_or_else(|| {
            ApiError::new(
                ErrorCode::Failed,
                format!("lab {} is only half made", self.name),
                format!("remove it: vxmesh lab --name {} down", self.name),
            )
        })
    }

    pub(super) fn host(&self, host: HostName) -> HostDir {
        HostDir { path: self.path.join(host.to_string()) }
    }

    /// The directory of a host that the plan has.
    pub(super) fn known_host(&self, host: HostName) -> Result<HostDir, ApiError> {
        let hosts = self.plan()?.hosts;
        if host.number() > hosts {
            return Err(ApiError::new(
                ErrorCode::NotFound,
                format!("lab {} has no host {host}", self.name),
                format!("its hosts are h1 to h{hosts}"),
            ));
        }
        Ok(self.host(host))
    }

    /// Every host directory on disk, whatever the plan says.
    pub(super) fn host_dirs(&self) -> Result<Vec<HostDir>, ApiError> {
        let names = list(&self.path).or_fail(|| format!("cannot read {}", self.path.display()))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).map(|host| self.host(host)).collect())
    }

    /// Removes it, and with the last lab all that the first one had to make on this machine.
    pub(super) fn remove(self) -> Result<(), ApiError> {
        let _machine = lock_machine().or_fail(|| format!("cannot lock {BASE}"))?;
        fs::remove_dir_all(&self.path)
            .or_fail(|| format!("cannot remove {}", self.path.display()))?;
        let rest = list(Path::new(BASE)).or_fail(|| format!("cannot read {BASE}"))?;
        if rest.iter().any(|name| name != "made") {
            return Ok(());
        }
        remove_mount_points().or_fail(|| "cannot remove the lab's mount points".to_owned())?;
        fs::remove_dir(BASE).or_fail(|| format!("cannot remove {BASE}"))
    }
}

/// The directory of one host.
#[derive(Clone, Debug)]
pub(super) struct HostDir {
    path: PathBuf,
}

impl HostDir {
    /// The host's `/run`.
    pub(super) fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The host's `/var/lib`.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("var-lib")
    }

    /// The host's `/etc/vxmesh`.
    pub(super) fn config(&self) -> PathBuf {
        self.path.join("etc-vxmesh")
    }

    /// The agent's socket as the machine sees it.
    pub(super) fn socket(&self) -> PathBuf {
        self.run().join("vxmesh/api.sock")
    }

    /// The agent's data directory as the machine sees it.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.data().join("vxmesh")
    }

    pub(super) fn agent_log(&self) -> PathBuf {
        self.path.join("agent.log")
    }

    pub(super) fn holder_log(&self) -> PathBuf {
        self.path.join("holder.log")
    }

    pub(super) fn holder(&self) -> Result<Option<Process>, ApiError> {
        read_json(&self.path.join("holder.json"))
    }

    pub(super) fn set_holder(&self, process: Process) -> Result<(), ApiError> {
        write_json(&self.path.join("holder.json"), &process)
    }

    pub(super) fn agent(&self) -> Result<Option<Process>, ApiError> {
        read_json(&self.path.join("agent.json"))
    }

    pub(super) fn set_agent(&self, process: Process) -> Result<(), ApiError> {
        write_json(&self.path.join("agent.json"), &process)
    }
}

/// The lock under which labs come and go. The directory may be removed and made anew while one
/// waits for it.
fn lock_machine() -> io::Result<Flock<File>> {
    loop {
        match make_dir(Path::new(BASE)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = match File::open(BASE) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        match fs::metadata(BASE) {
            Ok(there) if there.ino() == lock.metadata()?.ino() => return Ok(lock),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Notes what is missing before it makes it, so that a death in between leaves no unknown
/// directory.
fn make_mount_points() -> io::Result<()> {
    for path in MOUNT_POINTS.map(Path::new) {
        if !path.is_dir() {
            let mut made = File::options().create(true).append(true).open(MADE)?;
            writeln!(made, "{}", path.display())?;
            fs::create_dir(path)?;
        }
    }
    Ok(())
}

/// Whatever somebody else came to use in the meantime (a mount, a file) stays.
fn remove_mount_points() -> io::Result<()> {
    let made = match fs::read_to_string(MADE) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    for path in MOUNT_POINTS.iter().filter(|path| made.lines().any(|line| line == **path)) {
        match umount2(*path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(Errno::EBUSY) => continue,
            Err(error) => return Err(error.into()),
        }
        match fs::remove_dir(path) {
            Err(error) if !is_in_use(&error) && error.kind() != ErrorKind::NotFound => {
                return Err(error);
            }
            Ok(()) | Err(_) => {}
        }
    }
    fs::remove_file(MADE)
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy)
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Names of the pinned network namespaces of a lab.
pub(super) fn pinned_netns(name: &LabName) -> io::Result<Vec<String>> {
    match list(Path::new(NETNS_DIR)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        names => Ok(names?.into_iter().filter(|netns| name.owns_netns(netns)).collect()),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ApiError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.or_fail(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .or_fail(|| format!("cannot understand {}", path.display()))
}

/// Replaces the file in one step: a reader sees the old or the new one.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ApiError> {
    let write = || {
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(value)?)?;
        fs::rename(new, path)
    };
    write().or_fail(|| format!("cannot write {}", path.display()))
}
