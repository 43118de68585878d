//! Durable state of one agent: JSON values under text keys in redb, one transaction per change.
//!
//! ```text
//! table : key (text) -> value (JSON)        tables: [`Table`]
//! meta  : "schema"      -> number of the layout; older is migrated after a backup copy, newer refused
//!         "incarnation" -> the last one given, max(last + 1, unix ms)
//! ```
//!
//! A damaged file is an error that says what to do, never a panic: redb's own assertions are caught
//! here. Opening a file writes to it, so a copy in memory is opened before: what is refused stays
//! as it was. Secrets do not belong in it; see [`crate::identity`].

mod cached;
mod mend;
mod schema;
mod snapshot;

use std::{
    any::Any,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use redb::{
    Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction,
    backends::InMemoryBackend,
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

pub use self::{cached::Cached, snapshot::Snapshot};

/// Largest value: a signed object or a row is a few KiB; more is a mistake.
const VALUE_LEN: usize = 1 << 20;
/// Longest key.
const KEY_LEN: usize = 1024;
/// redb's page cache; the state of a busy host is a few MiB.
const CACHE: usize = 8 << 20;
/// Largest file that is opened in memory first; the state of a busy host is a few MiB.
const COPY_LEN: u64 = 256 << 20;

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Mesh-wide objects, each as the text that was signed.
    Objects,
    /// Networks of this host alone.
    Networks,
    /// Endpoints of this node.
    Endpoints,
    /// Join tokens, without their secrets.
    Tokens,
    /// Sandboxes of this node.
    Sandboxes,
    /// Sandboxes of this node that have ended.
    Ended,
    /// This node's own addresses in networks.
    Gateways,
    /// Where other nodes were last reached.
    Peers,
    /// Addresses of this node that were released, and until when they rest.
    Resting,
    /// Addresses of this node that somebody holds for an endpoint that is not there yet.
    Leases,
    /// Networks of the Docker engine of this host.
    DockerNetworks,
    /// Address pools of that engine.
    DockerPools,
    /// Endpoints of that engine.
    DockerEndpoints,
    /// Counters and the schema number.
    Meta,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 14] = [
        Self::Objects,
        Self::Networks,
        Self::Endpoints,
        Self::Tokens,
        Self::Sandboxes,
        Self::Ended,
        Self::Gateways,
        Self::Peers,
        Self::Resting,
        Self::Leases,
        Self::DockerNetworks,
        Self::DockerPools,
        Self::DockerEndpoints,
        Self::Meta,
    ];

    const fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name())
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Networks => "networks",
            Self::Endpoints => "endpoints",
            Self::Tokens => "tokens",
            Self::Sandboxes => "sandboxes",
            Self::Ended => "ended",
            Self::Gateways => "gateways",
            Self::Peers => "peers",
            Self::Resting => "resting",
            Self::Leases => "leases",
            Self::DockerNetworks => "docker_networks",
            Self::DockerPools => "docker_pools",
            Self::DockerEndpoints => "docker_endpoints",
            Self::Meta => "meta",
        }
    }
}

/// Why the store cannot do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The lock is held.
    #[error("{0} is in use by another agent: stop it, or give this one its own --data-dir")]
    Locked(PathBuf),
    /// The bytes are not what was written.
    #[error(
        "{path} is damaged ({reason}): stop the agent, move the file away and start again; networks come back from \
         the other nodes, endpoints of this host must be attached again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Written by a later version.
    #[error(
        "{path} has schema {found}, this agent knows {known}: start the newer vxmesh that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// The newest known one.
        known: u64,
    },
    /// A snapshot of a later version.
    #[error("a newer vxmesh made it: restore it with that one")]
    Foreign,
    /// A key or value above its bound.
    #[error("the key or value is too large to be kept ({0} bytes)")]
    TooLarge(usize),
    /// A value has no JSON form.
    #[error("the value cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The disk said no before; redb then takes nothing more until it is opened again, which
    /// [`Store::mend`] does.
    #[error(
        "the disk of {0} had an error, and nothing is kept there for now: see that the disk works and has room, and try again a few \
         seconds later"
    )]
    Stuck(PathBuf),
    /// The disk said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The open state file. Calls block for a disk write at most.
#[derive(Debug)]
pub struct Store {
    /// None while it is opened anew, and if that failed.
    database: RwLock<Option<Database>>,
    path: PathBuf,
    /// Whether the disk had an error since it was opened.
    stuck: AtomicBool,
    /// How often something was written.
    writes: AtomicU64,
}

impl Store {
    /// Opens or makes the file (0600), checks it whole and brings it to the current schema.
    ///
    /// # Errors
    ///
    /// In use, damaged, newer than this program, or the disk fails.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self::open_unchecked(path)?;
        schema::migrate(&store, schema::CURRENT, schema::MIGRATIONS)?;
        Ok(store)
    }

    /// A copy in memory of a file that nobody has open, for who looks at it while no agent runs. It
    /// stays as it is.
    ///
    /// # Errors
    ///
    /// Not there, in use, damaged, newer than this program, or larger than is read.
    pub fn copy(path: &Path) -> Result<Self, StoreError> {
        let io_error = |source| StoreError::Io { path: path.into(), source };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .map_err(io_error)?;
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(path.into())),
            Err(TryLockError::Error(error)) => return Err(io_error(error)),
        }
        let store = in_memory(path, &file)?;
        store.ok_or_else(|| io_error(io::Error::other("it is empty or too large to be looked at")))
    }

    fn open_unchecked(path: &Path) -> Result<Self, StoreError> {
        let io_error = |source| StoreError::Io { path: path.into(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {
                rehearse(path, &file)?;
                file.unlock().map_err(io_error)?;
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(path.into())),
            Err(TryLockError::Error(e)) => return Err(io_error(e)),
        }
        let database = guard(path, || {
            let mut database = Database::builder().set_cache_size(CACHE).create_file(file)?;
            // A flipped bit is found at the start, not when its page is first read.
            database.check_integrity()?;
            Ok(database)
        })?;
        Ok(Self::of(database, path))
    }

    fn of(database: Database, path: &Path) -> Self {
        let database = RwLock::new(Some(database));
        let (stuck, writes) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { database, path: path.into(), stuck, writes }
    }

    fn open_database(&self) -> Result<OpenDatabase<'_>, StoreError> {
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        if open.is_some() {
            Ok(OpenDatabase(open))
        } else {
            Err(StoreError::Stuck(self.path.clone()))
        }
    }

    /// Refuses at once what would be written while the disk takes nothing: nobody begins then what
    /// only its end would refuse.
    ///
    /// # Errors
    ///
    /// The disk had an error, and the file was not opened anew yet.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        if self.is_stuck() { Err(StoreError::Stuck(self.path.clone())) } else { Ok(()) }
    }

    /// How often something was written: while it is the same, so is all that is read.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    /// One value.
    ///
    /// # Errors
    ///
    /// The file is damaged or unreadable.
    pub fn get<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        let open = self.open_database()?;
        let bytes = guard(&self.path, || {
            let txn = open.get()?.begin_read()?;
            match txn.open_table(table.definition()) {
                Ok(table) => Ok(table.get(key)?.map(|value| value.value().to_vec())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(e) => Err(e.into()),
            }
        })?;
        bytes.map(|bytes| parse(&self.path, key, &bytes)).transpose()
    }

    /// All values of a table, by key.
    ///
    /// # Errors
    ///
    /// The file is damaged or unreadable.
    pub fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, StoreError> {
        let open = self.open_database()?;
        let rows = guard(&self.path, || {
            let txn = open.get()?.begin_read()?;
            match txn.open_table(table.definition()) {
                Ok(table) => rows(&table),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
                Err(e) => Err(e.into()),
            }
        })?;
        parse_rows(&self.path, rows)
    }

    /// Writes one value; durable when it returns.
    ///
    /// # Errors
    ///
    /// The value is too large, or the disk fails.
    pub fn put<T: Serialize>(&self, table: Table, key: &str, value: &T) -> Result<(), StoreError> {
        self.write(|txn| txn.put(table, key, value))
    }

    /// Removes one value. Whether there was one.
    ///
    /// # Errors
    ///
    /// The disk fails.
    pub fn delete(&self, table: Table, key: &str) -> Result<bool, StoreError> {
        self.write(|txn| txn.delete(table, key))
    }

    /// Several changes at once: all of them are durable when it returns, or none.
    ///
    /// # Errors
    ///
    /// What `change` returned, or the disk fails.
    pub fn write<R>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        // Held to the end: the file is not opened anew under a transaction.
        let open = self.open_database()?;
        let written = guard(&self.path, || Ok(open.get()?.begin_write()?)).and_then(|inner| {
            let mut txn = Txn { inner, path: &self.path };
            // Dropping a transaction aborts it.
            let result = change(&mut txn)?;
            guard(&self.path, || Ok(txn.inner.commit()?))?;
            self.writes.fetch_add(1, Ordering::AcqRel);
            Ok(result)
        });
        if matches!(written, Err(StoreError::Io { .. } | StoreError::Stuck(_))) {
            self.stuck.store(true, Ordering::Release);
        }
        written
    }

    /// The next incarnation of anything on this node: greater than all before, even if the clock
    /// went back.
    ///
    /// # Errors
    ///
    /// The disk fails.
    pub fn next_incarnation(&self, unix_ms: u64) -> Result<u64, StoreError> {
        self.write(|txn| {
            let last: u64 = txn.get(Table::Meta, "incarnation")?.unwrap_or(0);
            let next = unix_ms.max(last.saturating_add(1));
            txn.put(Table::Meta, "incarnation", &next)?;
            Ok(next)
        })
    }
}

/// The file while it is open.
struct OpenDatabase<'a>(RwLockReadGuard<'a, Option<Database>>);

impl OpenDatabase<'_> {
    fn get(&self) -> Result<&Database, redb::Error> {
        self.0.as_ref().ok_or(redb::Error::PreviousIo)
    }
}

/// One transaction that writes.
pub struct Txn<'a> {
    inner: WriteTransaction,
    path: &'a Path,
}

impl std::fmt::Debug for Txn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Txn").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Txn<'_> {
    /// One value, as this transaction sees it.
    ///
    /// # Errors
    ///
    /// The file is damaged or unreadable.
    pub fn get<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        let bytes = guard(self.path, || {
            let table = self.inner.open_table(table.definition())?;
            let value = table.get(key)?;
            Ok(value.map(|value| value.value().to_vec()))
        })?;
        bytes.map(|bytes| parse(self.path, key, &bytes)).transpose()
    }

    /// All values of a table, by key, as this transaction sees them.
    ///
    /// # Errors
    ///
    /// The file is damaged or unreadable.
    pub fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, StoreError> {
        let rows = guard(self.path, || rows(&self.inner.open_table(table.definition())?))?;
        parse_rows(self.path, rows)
    }

    /// Writes one value.
    ///
    /// # Errors
    ///
    /// The value is too large, or the disk fails.
    pub fn put<T: Serialize>(
        &mut self,
        table: Table,
        key: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(StoreError::Encode)?;
        if bytes.len() > VALUE_LEN || key.len() > KEY_LEN {
            return Err(StoreError::TooLarge(bytes.len().max(key.len())));
        }
        guard(self.path, || {
            self.inner.open_table(table.definition())?.insert(key, bytes.as_slice())?;
            Ok(())
        })
    }

    /// Removes one value. Whether there was one.
    ///
    /// # Errors
    ///
    /// The disk fails.
    pub fn delete(&mut self, table: Table, key: &str) -> Result<bool, StoreError> {
        guard(self.path, || {
            let mut table = self.inner.open_table(table.definition())?;
            let old = table.remove(key)?;
            Ok(old.is_some())
        })
    }
}

/// Refuses a damaged or newer file without a change to it.
fn rehearse(path: &Path, file: &File) -> Result<(), StoreError> {
    in_memory(path, file).map(drop)
}

/// The copy; none of a file that is empty, or larger than is read.
fn in_memory(path: &Path, mut file: &File) -> Result<Option<Store>, StoreError> {
    let io_error = |source| StoreError::Io { path: path.into(), source };
    let len = file.metadata().map_err(io_error)?.len();
    if len == 0 || len > COPY_LEN {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io_error)?;
    let database = guard(path, || {
        let memory = InMemoryBackend::new();
        memory.set_len(len).and_then(|()| memory.write(0, &bytes))?;
        let mut database = Database::builder().set_cache_size(CACHE).create_with_backend(memory)?;
        database.check_integrity()?;
        Ok(database)
    });
    // Memory does not fail: a length or place beyond its end is the file's fault.
    let database = database.map_err(|error| match error {
        StoreError::Io { source, .. } => damaged(path, source.to_string()),
        error => error,
    })?;
    let store = Store::of(database, path);
    schema::refuse_newer(&store, schema::CURRENT)?;
    Ok(Some(store))
}

fn rows(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let mut rows = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        rows.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(rows)
}

fn parse_rows<T: DeserializeOwned>(
    path: &Path,
    rows: Vec<(String, Vec<u8>)>,
) -> Result<Vec<(String, T)>, StoreError> {
    rows.into_iter()
        .map(|(key, bytes)| {
            let value = parse(path, &key, &bytes)?;
            Ok((key, value))
        })
        .collect()
}

fn parse<T: DeserializeOwned>(path: &Path, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|e| damaged(path, format!("the value of `{key}` does not parse: {e}")))
}

fn damaged(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.into(), reason: reason.into() }
}

/// Runs redb, whose assertions about its own pages may fire on a damaged file.
fn guard<R>(path: &Path, run: impl FnOnce() -> Result<R, redb::Error>) -> Result<R, StoreError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(classify(path, error)),
        Err(panic) => Err(damaged(path, panic_text(panic.as_ref()))),
    }
}

fn classify(path: &Path, error: redb::Error) -> StoreError {
    match error {
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked(path.into()),
        redb::Error::PreviousIo => StoreError::Stuck(path.into()),
        // redb reports a foreign or cut file as invalid data or as an early end.
        redb::Error::Io(e)
            if !matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            StoreError::Io { path: path.into(), source: e }
        }
        other => damaged(path, other.to_string()),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    format!("its pages contradict each other {text}").trim_end().to_owned()
}

#[cfg(test)]
mod tests;
