//! One network namespace: made, pinned under a path, entered.
//!
//! A namespace is entered only by a thread that is made for it and ends with the work: no thread of
//! the runtime ever changes its namespace. A socket or a TAP that was opened inside belongs to it
//! for good.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    libc::{Ioctl, O_NONBLOCK, ioctl},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::fstatfs,
};
use thiserror::Error;

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespace files.
const NSFS: i64 = 0x6e73_6673;
/// Of linux/nsfs.h: `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: Ioctl = 0xb703;
const NONE: Option<&str> = None;

/// Why a namespace cannot be had.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// There is nothing, or it cannot be opened.
    #[error("cannot open the network namespace {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of another kind.
    #[error(
        "{0} is not a network namespace: name a file such as /run/netns/NAME or /proc/PID/ns/net"
    )]
    NotANamespace(PathBuf),
    /// It cannot be made or removed.
    #[error("cannot {what} the network namespace {path}: {source}; this needs root")]
    Change {
        /// `make` or `remove`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl NetnsError {
    /// Whether the namespace is known to be gone: nothing is at the path, or something else. Any
    /// other error says nothing about it.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Open { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
            Self::NotANamespace(_) => true,
            Self::Change { .. } => false,
        }
    }
}

/// A network namespace, kept open. Clones share a descriptor.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    identity: (u64, u64),
}

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace behind a file.
    ///
    /// # Errors
    /// There is none, or the file is no network namespace.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let open = |source| NetnsError::Open { path: path.into(), source };
        // Without O_NONBLOCK a FIFO would keep the caller until somebody writes into it.
        let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path).map_err(open)?;
        let kind = fstatfs(&file).map_err(|errno| open(errno.into()))?.filesystem_type();
        if kind.0 != NSFS {
            return Err(NetnsError::NotANamespace(path.into()));
        }
        let metadata = file.metadata().map_err(open)?;
        // All kinds of namespaces live in one file system.
        if kind_of(&file).is_ok_and(|kind| kind != CloneFlags::CLONE_NEWNET.bits()) {
            return Err(NetnsError::NotANamespace(path.into()));
        }
        Ok(Self { identity: (metadata.dev(), metadata.ino()), file: Arc::new(file) })
    }

    /// Makes a namespace and pins it at `path`, whose directory is made too. One that is there
    /// already is opened.
    ///
    /// # Errors
    /// The rights are missing, or something else is at the path.
    pub fn create(path: &Path) -> Result<Self, NetnsError> {
        match Self::open(path) {
            // A second pin would hide one that is there and cannot be opened now.
            Err(error) if !error.is_absence() => return Err(error),
            Err(_absent) => {}
            there => return there,
        }
        let change = |source| NetnsError::Change { what: "make", path: path.into(), source };
        make_pin(path).map_err(change)?;
        let made = Self::open(path);
        if made.is_err() {
            Self::remove(path)?;
        }
        made
    }

    /// Pins a namespace that is there at one more path: it lives on as long as one of its pins.
    ///
    /// # Errors
    /// There is no namespace at `from`, or the rights are missing.
    pub fn share(from: &Path, path: &Path) -> Result<Self, NetnsError> {
        let shared = Self::open(from)?;
        shared.pin(path)?;
        Ok(shared)
    }

    /// Pins this namespace at one more path.
    ///
    /// # Errors
    /// The rights are missing.
    pub fn pin(&self, path: &Path) -> Result<(), NetnsError> {
        let change = |source| NetnsError::Change { what: "share", path: path.into(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(change)?;
        }
        File::options().write(true).create(true).truncate(false).open(path).map_err(change)?;
        // By the open file, so that the pin is of what was looked at.
        let source = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        match mount(Some(&source), path, NONE, MsFlags::MS_BIND, NONE) {
            Ok(()) => Ok(()),
            Err(errno) => {
                Self::remove(path)?;
                Err(change(errno.into()))
            }
        }
    }

    /// Takes the pin away; the namespace ends with the last process in it. Nothing there is fine.
    ///
    /// # Errors
    /// The rights are missing.
    pub fn remove(path: &Path) -> Result<(), NetnsError> {
        let change = |source| NetnsError::Change { what: "remove", path: path.into(), source };
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Only the file was made, or both are gone.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(change(errno.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(change(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether both are the same namespace.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Whether a file is this namespace.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity)
    }

    /// Runs work on a thread of its own inside the namespace and waits for it.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the work failed.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        apart(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Writes a kernel setting below `/proc/sys/net`, which shows the namespace of whoever opens
    /// it.
    ///
    /// # Errors
    /// The kernel has no such setting or refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(format!("/proc/sys/net/{path}"), value))
            .map_err(|error| io::Error::new(error.kind(), format!("net/{path}: {error}")))
    }

    /// Writes a setting of an interface about IPv6. Not every kernel has each of them, or IPv6 at
    /// all.
    ///
    /// # Errors
    /// The kernel refuses the value.
    pub fn ipv6_setting(&self, ifname: &str, setting: &str, value: &str) -> io::Result<()> {
        match self.sysctl(&format!("ipv6/conf/{ifname}/{setting}"), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Which kind of namespace a file is (ioctl_ns(2), since Linux 4.11).
#[expect(unsafe_code, reason = "ioctl(2) NS_GET_NSTYPE, which nix does not know")]
fn kind_of(file: &File) -> io::Result<i32> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    let kind = unsafe { ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    Ok(Errno::result(kind)?)
}

fn make_pin(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let made = match File::options().write(true).create_new(true).open(path) {
        Ok(_) => true,
        // A file without a mount is what a crash between the two steps leaves.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let pinned = apart(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), path, NONE, MsFlags::MS_BIND, NONE)?;
        Ok(())
    });
    if pinned.is_err() && made {
        // The first error is the one to tell.
        drop(fs::remove_file(path));
    }
    pinned
}

/// Runs work on a thread that ends with it, so that whatever the work entered is left.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
