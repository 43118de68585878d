//! The last output of a command, in two files of bounded length.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The length of one file; when it is full it becomes the older one.
pub const LOG_LEN: u64 = 1 << 20;

/// A file that is written at its end.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    len: u64,
    most: u64,
}

impl Log {
    /// Goes on with what is there. A file has `most` bytes at most, and a piece is not cut.
    ///
    /// # Errors
    /// The disk is full, or the directory is gone.
    pub fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len, most })
    }

    /// Writes a piece of output.
    ///
    /// # Errors
    /// The disk is full, or the directory is gone.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        let add = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        if self.len > 0 && self.len.saturating_add(add) > self.most {
            fs::rename(&self.path, older(&self.path))?;
            *self = Self::open(&self.path, self.most)?;
        }
        self.file.write_all(piece)?;
        self.len += add;
        Ok(())
    }

    /// What was written last.
    ///
    /// # Errors
    /// The files cannot be read; none there is fine.
    pub fn read(path: &Path) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for path in [older(path), path.to_owned()] {
            match fs::read(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Err(_absent) => {}
                Ok(text) => all.extend(text),
            }
        }
        Ok(all)
    }
}

fn older(path: &Path) -> PathBuf {
    let mut older = path.to_owned().into_os_string();
    older.push(".1");
    older.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_output_stays_and_takes_no_more_than_two_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("output.log");
        assert_eq!(Log::read(&path).unwrap(), b"");
        let mut log = Log::open(&path, 10).unwrap();
        for n in 0..100 {
            log.write(format!("{n:03}\n").as_bytes()).unwrap();
            if n % 7 == 0 {
                log = Log::open(&path, 10).unwrap();
            }
        }
        let text = String::from_utf8(Log::read(&path).unwrap()).unwrap();
        assert!(text.ends_with("098\n099\n") && text.len() <= 20, "{text}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        // A piece that is longer than a file is kept whole.
        log.write(b"a whole long line\n").unwrap();
        assert!(Log::read(&path).unwrap().ends_with(b"a whole long line\n"));
    }
}
