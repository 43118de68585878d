//! Files that hold secrets: 0600 in a 0700 directory, whole or not there at all.
//!
//! ```text
//! new directory : mkdir .identity.<random> (0700), files O_EXCL|O_NOFOLLOW 0600 + fsync, fsync(dir), rename, fsync(parent)
//! one file      : <name>.new O_EXCL|O_NOFOLLOW 0600 + fsync, rename, fsync(dir)
//! ```
//!
//! rename(2) refuses to put a directory over one that is not empty, so of two writers one wins
//! whole. Reading refuses what is open to others, belongs to another user, or is a symbolic link.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::libc;
use zeroize::Zeroizing;

use super::IdentityError;

/// A file here is a key, a certificate or a list of a few thousand addresses.
const FILE_LEN: u64 = 4 << 20;

/// Called before each step that leaves a trace on disk, with its name; tests stop there.
pub(super) type Step<'a> = &'a mut dyn FnMut(&str) -> io::Result<()>;

/// Writes all files into a new directory `target`, or nothing.
pub(super) fn write_directory(
    target: &Path,
    files: &[(&str, &[u8])],
    step: Step<'_>,
) -> Result<(), IdentityError> {
    let parent = target.parent().unwrap_or_else(|| Path::new("."));
    let staging = staging(parent)?;
    for (name, bytes) in files {
        let path = staging.path().join(name);
        step(name).and_then(|()| create(&path, bytes)).map_err(|e| IdentityError::io(&path, e))?;
    }
    step("directory")
        .and_then(|()| sync(staging.path()))
        .map_err(|e| IdentityError::io(staging.path(), e))?;
    step("rename").map_err(|e| IdentityError::io(target, e))?;
    match fs::rename(staging.path(), target) {
        Ok(()) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {
            return Err(IdentityError::AlreadyMember(target.into()));
        }
        Err(e) => return Err(IdentityError::io(target, e)),
    }
    step("parent").and_then(|()| sync(parent)).map_err(|e| IdentityError::io(parent, e))
}

/// A new directory for secrets inside another, which is made or checked; [`sweep`] removes what a
/// crash leaves of it.
pub(super) fn staging(parent: &Path) -> Result<tempfile::TempDir, IdentityError> {
    make_private(parent)?;
    tempfile::Builder::new()
        .prefix(".identity.")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|e| IdentityError::io(parent, e))
}

/// Writes one file that nobody else can read; the file that was there is replaced when the new one
/// is whole.
///
/// # Errors
///
/// A link, a device or a directory is there, or the file cannot be written; what was there stays.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => return Err(IdentityError::Symlink(path.into())),
        Ok(there) if !there.is_file() => return Err(IdentityError::NotAFile(path.into())),
        Ok(_) | Err(_) => {}
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    fs::metadata(parent).map_err(|e| IdentityError::io(parent, e))?;
    let written = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .tempfile_in(parent)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|e| e.error)?;
            sync(parent)
        });
    written.map_err(|e| IdentityError::io(path, e))
}

/// Replaces one file of a directory that was made by [`write_directory`].
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let fresh = path.with_extension("new");
    let done = remove_if_there(&fresh)
        .and_then(|()| create(&fresh, bytes))
        .and_then(|()| fs::rename(&fresh, path))
        .and_then(|()| path.parent().map_or(Ok(()), sync));
    done.map_err(|e| IdentityError::io(path, e))
}

/// Overwrites a file with zeros and removes it. A disk may keep what was overwritten, as SSDs and
/// copying file systems do.
pub(super) fn wipe(path: &Path) -> Result<(), IdentityError> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let zeros = |mut file: File| {
        let len = usize::try_from(file.metadata()?.len().min(FILE_LEN)).unwrap_or(0);
        file.write_all(&vec![0; len])?;
        file.sync_all()
    };
    let wiped = match file {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.and_then(zeros),
    };
    wiped
        .and_then(|()| remove_if_there(path))
        .and_then(|()| path.parent().map_or(Ok(()), sync))
        .map_err(|e| IdentityError::io(path, e))
}

/// Reads a file, if it is there, that nobody else could have read or replaced.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    read_up_to(path, FILE_LEN)
}

/// The same for a file that may be of this size.
pub(super) fn read_up_to(
    path: &Path,
    limit: u64,
) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            return Err(IdentityError::Symlink(path.into()));
        }
        Err(e) => return Err(IdentityError::io(path, e)),
    };
    let metadata = file.metadata().map_err(|e| IdentityError::io(path, e))?;
    check_owner(path, &metadata, 0o077, 0o600)?;
    if !metadata.is_file() || metadata.len() > limit {
        return Err(IdentityError::damaged(path, "it is no regular file of a sensible size"));
    }
    // Filled without growing: a vector that grows leaves copies of the secret behind.
    let mut bytes =
        Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
    Read::take(&mut file, metadata.len())
        .read_to_end(&mut bytes)
        .map_err(|e| IdentityError::io(path, e))?;
    Ok(Some(bytes))
}

/// Whether a directory is there; it must be private.
pub(super) fn is_private_directory(path: &Path) -> Result<bool, IdentityError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            check_owner(path, &metadata, 0o077, 0o700)?;
            Ok(true)
        }
        Ok(metadata) if metadata.is_symlink() => Err(IdentityError::Symlink(path.into())),
        Ok(_) => Err(IdentityError::damaged(path, "it is no directory")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(IdentityError::io(path, e)),
    }
}

/// Makes the data directory 0700 with its parents, or checks that nobody else can put files into
/// it.
pub(super) fn make_private(path: &Path) -> Result<(), IdentityError> {
    match fs::metadata(path) {
        Ok(metadata) => return check_owner(path, &metadata, 0o022, 0o700),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(IdentityError::io(path, e)),
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| IdentityError::io(path, e))
}

/// Removes what an interrupted [`write_directory`] left in the parent.
pub(super) fn sweep(parent: &Path) -> Result<(), IdentityError> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(IdentityError::io(parent, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| IdentityError::io(parent, e))?;
        if entry.file_name().to_string_lossy().starts_with(".identity.") {
            fs::remove_dir_all(entry.path()).map_err(|e| IdentityError::io(&entry.path(), e))?;
        }
    }
    Ok(())
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn check_owner(
    path: &Path,
    metadata: &fs::Metadata,
    forbidden: u32,
    mode: u32,
) -> Result<(), IdentityError> {
    if metadata.mode() & forbidden != 0 {
        return Err(IdentityError::TooOpen {
            path: path.into(),
            mode: metadata.mode() & 0o7777,
            wanted: mode,
        });
    }
    let me = nix::unistd::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(IdentityError::NotOurs { path: path.into(), owner: metadata.uid(), me });
    }
    Ok(())
}

/// The directory of the identity inside a data directory.
pub(super) fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

/// Removes the identity directory: first out of the way in one step, then for good.
pub(super) fn retire(data_dir: &Path) -> Result<(), IdentityError> {
    let dir = directory(data_dir);
    if is_private_directory(&dir)? {
        let aside = data_dir.join(".identity.retired");
        fs::rename(&dir, &aside).map_err(|e| IdentityError::io(&dir, e))?;
    }
    sweep(data_dir)?;
    sync(data_dir).map_err(|e| IdentityError::io(data_dir, e))
}
