//! The layout's number and the way from an older one to the current one.
//!
//! A migration from N to N+1 runs in one transaction with the number's change, after
//! `<file>.schema-N` was made as a copy; an interrupted one leaves the old state.

use std::{fs, path::PathBuf};

use super::{Snapshot, Store, StoreError, Table, Txn};

/// The schema that this program reads and writes.
pub(super) const CURRENT: u64 = 1;

/// Brings the state from one schema to the next.
pub(super) type Migration = fn(&mut Txn<'_>) -> Result<(), StoreError>;

/// From 1 to 2, from 2 to 3 and so on: one entry less than [`CURRENT`].
pub(super) const MIGRATIONS: &[Migration] = &[];

const KEY: &str = "schema";

/// Refuses what is newer than `current`, migrates what is older.
pub(super) fn migrate(
    store: &Store,
    current: u64,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    refuse_newer(store, current)?;
    let Some(found) = store.get::<u64>(Table::Meta, KEY)? else {
        return store.put(Table::Meta, KEY, &current);
    };
    if found == current {
        return Ok(());
    }
    backup(store, found)?;
    store.write(|txn| {
        let done = usize::try_from(found.saturating_sub(1)).unwrap_or(usize::MAX);
        for migration in migrations.iter().skip(done) {
            migration(txn)?;
        }
        txn.put(Table::Meta, KEY, &current)
    })
}

/// Whether this version can read what a snapshot holds.
pub(super) fn is_known(snapshot: &Snapshot) -> bool {
    let meta = snapshot.get(Table::Meta.name());
    let found = meta.and_then(|meta| meta.get(KEY)).and_then(serde_json::Value::as_u64);
    found.is_some_and(|found| (1..=CURRENT).contains(&found))
}

/// Refuses what is newer than `current`.
pub(super) fn refuse_newer(store: &Store, current: u64) -> Result<(), StoreError> {
    match store.get::<u64>(Table::Meta, KEY)? {
        Some(found) if found > current => {
            Err(StoreError::Newer { path: store.path.clone(), found, known: current })
        }
        Some(_) | None => Ok(()),
    }
}

fn backup(store: &Store, found: u64) -> Result<(), StoreError> {
    let mut name = store.path.clone().into_os_string();
    name.push(format!(".schema-{found}"));
    let copy = PathBuf::from(name);
    // The permissions go with the copy. Nothing is written meanwhile: the caller holds the only
    // handle.
    fs::copy(&store.path, &copy)
        .and_then(|_| fs::File::open(&copy)?.sync_all())
        .map_err(|source| StoreError::Io { path: copy, source })
}
