//! The whole state as one value, as it was at one moment.

use std::collections::BTreeMap;

use redb::ReadableDatabase;
use serde_json::Value;

use super::{Store, StoreError, Table, guard, parse_rows, rows, schema};

/// Table, key, value.
pub type Snapshot = BTreeMap<String, BTreeMap<String, Value>>;

impl Store {
    /// All that is kept, as one transaction sees it.
    ///
    /// # Errors
    ///
    /// The file is damaged or unreadable.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let open = self.open_database()?;
        let tables = guard(&self.path, || {
            let txn = open.get()?.begin_read()?;
            let mut tables = Vec::new();
            for table in Table::ALL {
                match txn.open_table(table.definition()) {
                    Ok(open) => tables.push((table, rows(&open)?)),
                    Err(redb::TableError::TableDoesNotExist(_)) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(tables)
        })?;
        let parsed = |(table, rows): (Table, Vec<_>)| {
            let rows = parse_rows(&self.path, rows)?;
            Ok((table.name().to_owned(), rows.into_iter().collect()))
        };
        tables.into_iter().map(parsed).collect()
    }

    /// Keeps what a snapshot holds and nothing else; all of it is durable when it returns. The
    /// incarnation never goes back. A snapshot of an older schema is migrated when the file is
    /// opened next.
    ///
    /// # Errors
    ///
    /// [`StoreError::Foreign`], or the disk fails; nothing changed then.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let known = snapshot.keys().all(|name| Table::named(name).is_some());
        if !known || !schema::is_known(snapshot) {
            return Err(StoreError::Foreign);
        }
        self.write(|txn| {
            let last: u64 = txn.get(Table::Meta, "incarnation")?.unwrap_or(0);
            for table in Table::ALL {
                for (key, _value) in txn.list::<Value>(table)? {
                    txn.delete(table, &key)?;
                }
                for (key, value) in snapshot.get(table.name()).into_iter().flatten() {
                    txn.put(table, key, value)?;
                }
            }
            let kept: u64 = txn.get(Table::Meta, "incarnation")?.unwrap_or(0);
            txn.put(Table::Meta, "incarnation", &kept.max(last))
        })
    }
}
