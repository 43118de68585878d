//! What happens after the disk had an error: redb takes nothing more until its file is opened anew.

use std::{
    io::Write,
    sync::{PoisonError, atomic::Ordering},
};

use super::{Store, StoreError, guard};

/// What must fit before the file is opened anew, which writes to it.
const ROOM: usize = 1 << 20;

impl Store {
    /// Whether something was not kept, and nothing is at the moment.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }

    /// Opens the file anew if the disk takes bytes again. What was kept before the error is there;
    /// what was not, is not.
    ///
    /// # Errors
    ///
    /// The disk still says no; this is to be tried again.
    pub fn mend(&self) -> Result<(), StoreError> {
        if !self.is_stuck() {
            return Ok(());
        }
        self.try_disk()?;
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Its lock on the file goes with it.
        let old = database.take();
        guard(&self.path, || {
            drop(old);
            Ok(())
        })?;
        let fresh = Self::open_unchecked(&self.path)?;
        *database = fresh.database.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.stuck.store(false, Ordering::Release);
        // A change of which only its end was refused may be there, or not.
        self.writes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn try_disk(&self) -> Result<(), StoreError> {
        let dir = self.path.parent().unwrap_or(&self.path);
        let tried =
            tempfile::Builder::new().prefix(".room.").tempfile_in(dir).and_then(|mut file| {
                file.write_all(&vec![1; ROOM])?;
                file.as_file().sync_all()
            });
        tried.map_err(|source| StoreError::Io { path: self.path.clone(), source })
    }
}
