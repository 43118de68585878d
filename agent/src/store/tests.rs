use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use super::*;

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    (dir, path)
}

#[test]
fn values_survive_a_restart() {
    let (_dir, path) = fresh();
    let store = Store::open(&path).unwrap();
    for table in Table::ALL {
        if table != Table::Meta {
            assert_eq!(store.list::<Value>(table).unwrap(), vec![]);
        }
        assert_eq!(store.get::<Value>(table, "k").unwrap(), None);
        store.put(table, "k", &json!({"t": format!("{table:?}")})).unwrap();
    }
    drop(store);
    let store = Store::open(&path).unwrap();
    for table in Table::ALL {
        assert_eq!(
            store.get::<Value>(table, "k").unwrap(),
            Some(json!({"t": format!("{table:?}")}))
        );
        assert!(store.delete(table, "k").unwrap());
        assert!(!store.delete(table, "k").unwrap());
    }
}

#[test]
fn a_transaction_that_fails_changes_nothing() {
    let (_dir, path) = fresh();
    let store = Store::open(&path).unwrap();
    store.put(Table::Objects, "a", &1).unwrap();
    let result: Result<(), StoreError> = store.write(|txn| {
        txn.put(Table::Objects, "a", &2)?;
        txn.put(Table::Objects, "b", &3)?;
        assert_eq!(txn.list::<u8>(Table::Objects)?.len(), 2);
        Err(StoreError::TooLarge(0))
    });
    assert!(result.is_err());
    assert_eq!(store.list::<u8>(Table::Objects).unwrap(), vec![("a".into(), 1)]);
    let large = "x".repeat(VALUE_LEN);
    assert!(matches!(store.put(Table::Objects, "c", &large), Err(StoreError::TooLarge(_))));
}

#[test]
fn incarnations_only_grow() {
    let (_dir, path) = fresh();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.next_incarnation(1000).unwrap(), 1000);
    assert_eq!(store.next_incarnation(1000).unwrap(), 1001);
    assert_eq!(store.next_incarnation(5).unwrap(), 1002);
    drop(store);
    assert_eq!(Store::open(&path).unwrap().next_incarnation(5).unwrap(), 1003);
}

/// A disk that can be full.
#[derive(Debug, Default)]
struct Disk {
    memory: InMemoryBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        let full = self.full.load(Ordering::Relaxed);
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.memory.write(offset, data)
    }
}

#[test]
fn a_disk_that_was_full_is_not_a_damaged_file() {
    let disk = Disk::default();
    let full = Arc::clone(&disk.full);
    let database = Database::builder().create_with_backend(disk).unwrap();
    let store = Store::of(database, Path::new("state.redb"));
    store.put(Table::Objects, "a", &1).unwrap();
    full.store(true, Ordering::Relaxed);
    let error = store.put(Table::Objects, "b", &2).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    full.store(false, Ordering::Relaxed);
    let error = store.put(Table::Objects, "b", &2).unwrap_err();
    assert!(matches!(error, StoreError::Stuck(_)), "{error}");
    assert!(error.to_string().contains("try again"), "{error}");
    assert!(store.is_stuck());
}

#[test]
fn only_one_agent_has_it_open() {
    let (_dir, path) = fresh();
    let _store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
}

#[test]
fn an_older_schema_is_migrated_with_a_backup_and_a_newer_one_refused() {
    let (_dir, path) = fresh();
    let store = Store::open(&path).unwrap();
    store.put(Table::Objects, "old", &1).unwrap();
    let migrations: [schema::Migration; 2] = [
        |txn| txn.put(Table::Objects, "first", &2),
        |txn| {
            let first: u8 = txn.get(Table::Objects, "first")?.unwrap_or(0);
            txn.put(Table::Objects, "second", &(first + 1))
        },
    ];
    let failing: [schema::Migration; 2] = [migrations[0], |_| Err(StoreError::TooLarge(0))];
    assert!(schema::migrate(&store, 3, &failing).is_err());
    assert_eq!(store.list::<u8>(Table::Objects).unwrap().len(), 1);
    schema::migrate(&store, 3, &migrations).unwrap();
    assert_eq!(store.get::<u8>(Table::Objects, "second").unwrap(), Some(3));
    drop(store);

    let before = fs::read(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 3, known: 1, .. }), "{error}");
    assert!(fs::read(&path).unwrap() == before, "the newer file was written");

    let backup = path.with_extension("redb.schema-1");
    let old = Store::open(&backup).unwrap();
    assert_eq!(old.list::<u8>(Table::Objects).unwrap(), vec![("old".into(), 1)]);
}

/// Whatever is done to the file, opening and reading it ends in values that were written or in an
/// error.
#[test]
fn a_damaged_file_is_an_error_and_no_panic() {
    let (dir, path) = fresh();
    let store = Store::open(&path).unwrap();
    for i in 0..200 {
        store.put(Table::Objects, &format!("key-{i}"), &"v".repeat(100)).unwrap();
    }
    drop(store);
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    let copy = dir.path().join("copy.redb");
    for (n, length) in [1, 100, 4095, 4096, good.len() / 2, good.len() - 1].into_iter().enumerate()
    {
        fs::write(&copy, &good[..length]).unwrap();
        let error = Store::open(&copy).expect_err(&format!("cut {n} to {length} bytes"));
        assert!(matches!(error, StoreError::Damaged { .. }), "{length}: {error}");
        assert!(error.to_string().contains("move the file away"));
    }
    // A stride that is odd meets every position within the pages.
    for at in (0..good.len()).step_by(good.len() / 150 * 2 + 1) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        fs::write(&copy, &bytes).unwrap();
        match Store::open(&copy).and_then(|store| store.list::<String>(Table::Objects)) {
            Ok(rows) => assert!(rows.iter().all(|(_, value)| *value == "v".repeat(100)), "{at}"),
            Err(StoreError::Damaged { .. } | StoreError::Newer { .. }) => {
                assert!(fs::read(&copy).unwrap() == bytes, "{at}: the damaged file was written");
                refused += 1;
            }
            Err(error) => panic!("{at}: {error}"),
        }
    }
    assert!(refused > 0);
    for (foreign, len) in [(0u8, 8192), (0xff, 8192), (b'x', 3)] {
        fs::write(&copy, vec![foreign; len]).unwrap();
        match Store::open(&copy) {
            Err(StoreError::Damaged { .. }) => {}
            other => panic!("{foreign}: {other:?}"),
        }
    }
}

#[test]
fn a_snapshot_comes_back_whole_and_the_incarnation_never_goes_back() {
    let (_dir, path) = fresh();
    let store = Store::open(&path).unwrap();
    store.put(Table::Objects, "a", &1).unwrap();
    store.next_incarnation(1000).unwrap();
    let snapshot = store.snapshot().unwrap();
    store.put(Table::Objects, "b", &2).unwrap();
    store.next_incarnation(2000).unwrap();
    store.restore(&snapshot).unwrap();
    assert_eq!(store.list::<u8>(Table::Objects).unwrap(), vec![("a".into(), 1)]);
    assert_eq!(store.next_incarnation(5).unwrap(), 2001);
    drop(store);
    // Another host's file becomes the same.
    let (_dir, other) = fresh();
    let other = Store::open(&other).unwrap();
    other.restore(&snapshot).unwrap();
    let restored = other.snapshot().unwrap();
    assert!(snapshot.iter().all(|(table, rows)| restored.get(table) == Some(rows)), "{restored:?}");
    let mut newer = snapshot.clone();
    newer.get_mut("meta").unwrap().insert("schema".into(), 99.into());
    assert!(matches!(other.restore(&newer), Err(StoreError::Foreign)));
    let mut unknown = snapshot;
    unknown.insert("later".into(), Default::default());
    assert!(matches!(other.restore(&unknown), Err(StoreError::Foreign)));
    assert_eq!(other.list::<u8>(Table::Objects).unwrap().len(), 1, "nothing changed");
}

#[test]
fn a_store_that_is_stuck_is_mended_without_a_new_life() {
    let (_dir, path) = fresh();
    let kept = Store::open(&path).unwrap();
    kept.put(Table::Objects, "a", &1).unwrap();
    drop(kept);
    let disk = Disk::default();
    let full = Arc::clone(&disk.full);
    let store = Store::of(Database::builder().create_with_backend(disk).unwrap(), &path);
    assert!(store.mend().is_ok() && !store.is_stuck());
    full.store(true, Ordering::Relaxed);
    store.put(Table::Objects, "b", &2).unwrap_err();
    assert!(store.is_stuck());
    store.mend().unwrap();
    // What the file kept is there, and it takes more.
    assert!(!store.is_stuck());
    assert_eq!(store.list::<u8>(Table::Objects).unwrap(), vec![("a".into(), 1)]);
    store.put(Table::Objects, "c", &3).unwrap();
}

#[test]
fn rows_are_read_again_after_a_change_and_only_then() {
    let (_dir, path) = fresh();
    let store = Store::open(&path).unwrap();
    let cached = Cached::<u64>::new(Table::Resting);
    assert!(cached.rows(&store).unwrap().is_empty());
    store.put(Table::Resting, "a", &1u64).unwrap();
    let first = cached.rows(&store).unwrap();
    assert_eq!(*first, [1]);
    let given_up = store.write(|txn| {
        txn.put(Table::Resting, "b", &2u64)?;
        Err::<(), _>(StoreError::Foreign)
    });
    assert!(given_up.is_err());
    assert!(Arc::ptr_eq(&first, &cached.rows(&store).unwrap()));
    assert!(store.delete(Table::Resting, "a").unwrap());
    assert!(cached.rows(&store).unwrap().is_empty());
}
