//! What the named counters of our tables counted since the last time: [`Counted`].

use std::collections::BTreeMap;

use super::{
    FirewallError,
    socket::Socket,
    table::{CounterId, TableId, counts},
};

/// What the counters of a namespace said last.
#[derive(Debug, Default)]
pub struct Counted(BTreeMap<CounterId, u64>);

impl Counted {
    /// The table is a new one, and so are its counters.
    pub fn anew(&mut self, id: TableId) {
        let is_its =
            |(family, table, _name): &CounterId| (*family, *table) == (id.family.number(), id.name);
        self.0.retain(|counter, _count| !is_its(counter));
    }

    /// What was counted since the last time in the network namespace of the calling thread, by
    /// name.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn more(&mut self) -> Result<BTreeMap<String, u64>, FirewallError> {
        let socket = Socket::open();
        self.more_by(&socket.map_err(|error| FirewallError::new("list", "counters", error))?)
    }

    /// The same in the namespace to which a socket belongs.
    pub(super) fn more_by(
        &mut self,
        socket: &Socket,
    ) -> Result<BTreeMap<String, u64>, FirewallError> {
        let counts = counts(socket)?;
        let mut more = BTreeMap::new();
        for (key, count) in &counts {
            let before = self.0.get(key).copied().unwrap_or_default();
            // A smaller one is that of a new table.
            let new = if *count < before { *count } else { *count - before };
            if new > 0 {
                *more.entry(key.2.clone()).or_default() += new;
            }
        }
        self.0 = counts;
        Ok(more)
    }
}
