//! What outlives a command in the background: its output and its end, in one directory for each
//! sandbox below the data directory.
//!
//! ```text
//! <data dir>/sandboxes/NAME-INCARNATION/   output.log, output.log.1   the last output, see `Log`
//!                                          exit.json                  how the command ended for good
//! ```
//!
//! The supervisor writes, so that an agent that was away finds it; the agent makes and removes the
//! directory.

mod log;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::Name;

pub use self::log::{LOG_LEN, Log};

/// Below the data directory.
const SANDBOXES: &str = "sandboxes";
const OUTPUT: &str = "output.log";
const EXIT: &str = "exit.json";

/// How a command ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its exit status as a shell tells it; nothing if nobody saw it.
    pub exit_status: Option<u8>,
    /// When, in Unix seconds.
    pub ended_at: u64,
}

/// The directory of one sandbox.
#[derive(Clone, Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// The place for a sandbox.
    #[must_use]
    pub fn of(data_dir: &Path, sandbox: &Name, incarnation: u64) -> Self {
        Self { directory: data_dir.join(SANDBOXES).join(format!("{sandbox}-{incarnation}")) }
    }

    /// What is in this directory.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory, for its owner alone.
    ///
    /// # Errors
    /// The disk is full or the rights are missing.
    pub fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)
    }

    /// The file with the last output; an older one of the same name with `.1` may be beside it.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.directory.join(OUTPUT)
    }

    /// Writes down how the command ended; durable when it returns.
    ///
    /// # Errors
    /// The disk is full, or the directory was removed.
    pub fn note_end(&self, end: &End) -> io::Result<()> {
        let partial = self.directory.join("exit.new");
        let mut options = File::options();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec(end)?)?;
        file.sync_all()?;
        fs::rename(partial, self.directory.join(EXIT))?;
        File::open(&self.directory)?.sync_all()
    }

    /// How the command ended, if it has ended for good and somebody saw it.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        let text = fs::read(self.directory.join(EXIT)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Removes the directory; none there is fine.
    ///
    /// # Errors
    /// The rights are missing.
    pub fn remove(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(&self.directory))
    }
}

/// Removes the directories of all sandboxes but these.
///
/// # Errors
/// The rights are missing.
pub fn sweep(data_dir: &Path, kept: &BTreeSet<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(data_dir.join(SANDBOXES)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if !kept.contains(&path) {
            absent_is_fine(fs::remove_dir_all(path))?;
        }
    }
    Ok(())
}

/// Removes what is kept of all sandboxes.
///
/// # Errors
/// The rights are missing.
pub fn forget(data_dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_dir_all(data_dir.join(SANDBOXES)))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_as_it_was_written_and_goes_with_the_directory() {
        let data = tempfile::tempdir().unwrap();
        let name: Name = "web".parse().unwrap();
        let (one, other) = (Records::of(data.path(), &name, 7), Records::of(data.path(), &name, 8));
        assert!(
            one.note_end(&End { exit_status: None, ended_at: 1 }).is_err(),
            "removed meanwhile"
        );
        one.make().unwrap();
        other.make().unwrap();
        assert_eq!(one.end(), None);
        let end = End { exit_status: Some(3), ended_at: 12 };
        one.note_end(&end).unwrap();
        assert_eq!((one.end(), other.end()), (Some(end), None));
        sweep(data.path(), &BTreeSet::from([other.directory().to_owned()])).unwrap();
        assert_eq!((one.directory().exists(), other.directory().exists()), (false, true));
        other.remove().unwrap();
        other.remove().unwrap();
        sweep(&data.path().join("nowhere"), &BTreeSet::new()).unwrap();
        forget(data.path()).unwrap();
        forget(data.path()).unwrap();
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
    }
}
