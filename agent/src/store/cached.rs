//! Rows of a table that are read again only after something was written: [`Cached`].

use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;

use super::{Store, StoreError, Table};

/// The rows of a table as they were read last, in the order of their keys.
#[derive(Debug)]
pub struct Cached<T> {
    table: Table,
    /// And how often something had been written before.
    rows: Mutex<Option<(u64, Arc<Vec<T>>)>>,
}

impl<T: DeserializeOwned> Cached<T> {
    /// Nothing was read yet.
    #[must_use]
    pub const fn new(table: Table) -> Self {
        Self { table, rows: Mutex::new(None) }
    }

    /// The rows as they are now.
    ///
    /// # Errors
    ///
    /// The file is damaged or unreadable.
    pub fn rows(&self, store: &Store) -> Result<Arc<Vec<T>>, StoreError> {
        // Asked for first: what is written meanwhile is read the next time.
        let writes = store.writes();
        let known = || self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, rows)) = &*known()
            && *at == writes
        {
            return Ok(Arc::clone(rows));
        }
        let rows = store.list(self.table)?.into_iter().map(|(_key, row)| row).collect();
        let rows = Arc::new(rows);
        *known() = Some((writes, Arc::clone(&rows)));
        Ok(rows)
    }
}
