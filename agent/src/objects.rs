//! The mesh-wide objects of this node: the set in memory, its copy on disk, and word of every
//! change.
//!
//! An own object is on disk before anybody sees it, so that a crash never takes back what other
//! nodes were told. What other nodes send is merged, then written; a crash between the two loses
//! nothing that the mesh does not have.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ring::signature::Ed25519KeyPair;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::NodeId,
    object::{Certifier, Draft, Hlc, Merge, Object, ObjectSet, Refused},
};

use crate::store::{Store, StoreError, Table};

/// Why an object was not published.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The set does not admit it; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A later version is there already; nothing changed.
    #[error("somebody changed it at the same time; try again")]
    Overtaken,
    /// It could not be written; nothing changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The objects of this node.
pub struct Objects {
    set: Mutex<ObjectSet>,
    /// Held from merging to writing, and taken before the set: else an older version could be
    /// written last.
    writing: Mutex<()>,
    mesh: NodeId,
    pair: Arc<Ed25519KeyPair>,
    ca: Arc<dyn Certifier + Send + Sync>,
    store: Arc<Store>,
    changed: watch::Sender<u64>,
    complaints: Mutex<Complaints>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl Objects {
    /// Reads the objects that the store holds. One that is not admitted is reported and left out.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load(
        mesh: NodeId,
        pair: Arc<Ed25519KeyPair>,
        ca: Arc<dyn Certifier + Send + Sync>,
        store: Arc<Store>,
    ) -> Result<Self, StoreError> {
        let mut set = ObjectSet::new(mesh);
        // Keys sort as ids do not: members must come first, because their keys check the rest.
        let mut stored: Vec<(String, String)> = store.list(Table::Objects)?;
        stored.sort_by_key(|(id, _text)| !id.starts_with("member/"));
        for (id, text) in stored {
            if let Merge::Refused(reason) = set.restore(&text, ca.as_ref(), unix_ms()) {
                warn!(%id, %reason, "a stored object is not admitted");
            }
        }
        Ok(Self {
            set: Mutex::new(set),
            writing: Mutex::default(),
            mesh,
            pair,
            ca,
            store,
            changed: watch::Sender::new(0),
            complaints: Mutex::default(),
        })
    }

    /// Looks at the set. The closure must be short: merges wait for it.
    pub fn read<R>(&self, look: impl FnOnce(&ObjectSet) -> R) -> R {
        look(&self.lock())
    }

    /// Signals every change of the set.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Signs what `draft` makes of the set, writes it and merges it. Blocks for a disk write.
    ///
    /// # Errors
    /// It is not admitted or cannot be written; nothing changed then.
    pub fn publish<E: From<PublishError>>(
        &self,
        draft: impl FnOnce(&ObjectSet, Hlc) -> Result<Draft, E>,
    ) -> Result<Arc<Object>, E> {
        self.publish_with(&self.pair, draft)
    }

    /// The same with another key than this node's: the CA's, for what only an issuer may say.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn publish_with<E: From<PublishError>>(
        &self,
        pair: &Ed25519KeyPair,
        draft: impl FnOnce(&ObjectSet, Hlc) -> Result<Draft, E>,
    ) -> Result<Arc<Object>, E> {
        // Whoever changes the set holds this; who only reads it does not wait for the disk.
        let _in_order = self.in_order();
        let (id, text) = {
            let mut set = self.lock();
            let stamp = set.stamp(unix_ms());
            let draft = draft(&set, stamp)?;
            let refused = |refused: Refused| E::from(refused.into());
            let text = draft.sign_as(self.author(), pair, self.mesh).map_err(refused)?;
            if !set.check(&text, self.ca.as_ref(), unix_ms()).map_err(refused)? {
                return Err(E::from(PublishError::Overtaken));
            }
            (draft.id(self.author()).map_err(refused)?, text)
        };
        self.store
            .put(Table::Objects, &id.to_string(), &&*text)
            .map_err(|error| E::from(error.into()))?;
        // Checked above, and nobody changed the set since.
        match self.lock().merge(&text, self.ca.as_ref(), unix_ms()) {
            Merge::New(object) | Merge::Updated { new: object, .. } => {
                self.notify();
                Ok(object)
            }
            Merge::Refused(refused) => Err(E::from(refused.into())),
            Merge::Stale => Err(E::from(PublishError::Overtaken)),
        }
    }

    /// Writes down all objects that the disk does not have as they are. Blocks for a disk write.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn save_all(&self) -> Result<(), StoreError> {
        let _in_order = self.in_order();
        let held: Vec<(String, Arc<str>)> = {
            let set = self.lock();
            set.objects()
                .map(|object| (object.id().to_string(), Arc::clone(object.text())))
                .collect()
        };
        self.store.write(|txn| {
            for (id, text) in &held {
                if txn.get::<String>(Table::Objects, id)?.as_deref() != Some(&**text) {
                    txn.put(Table::Objects, id, &&**text)?;
                }
            }
            Ok(())
        })
    }

    /// Waits until what the set shows is on disk. Blocks for a disk write that is under way.
    pub fn settle(&self) {
        drop(self.in_order());
    }

    /// Forgets what was deleted long ago. Blocks for a disk write if there is any.
    ///
    /// # Errors
    /// It cannot be deleted from the disk; it is forgotten all the same and goes after a restart.
    pub fn collect(&self) -> Result<(), StoreError> {
        let _in_order = self.in_order();
        let collected = self.lock().collect(unix_ms());
        if collected.is_empty() {
            return Ok(());
        }
        info!(count = collected.len(), "forgot objects of what was deleted");
        self.notify();
        self.store.write(|txn| {
            collected
                .iter()
                .try_for_each(|id| txn.delete(Table::Objects, &id.to_string()).map(|_was| ()))
        })
    }

    /// Merges what `from` sent; returns what was new here. Blocks for a disk write if anything was.
    ///
    /// # Errors
    /// What was new could not be written; it is merged all the same and comes again after a
    /// restart.
    pub fn merge<'a>(
        &self,
        from: NodeId,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Arc<Object>>, StoreError> {
        let mut fresh = Vec::new();
        let _in_order = self.in_order();
        let mut set = self.lock();
        for text in texts {
            match set.merge_from(from, text, self.ca.as_ref(), unix_ms()) {
                Merge::New(object) | Merge::Updated { new: object, .. } => {
                    debug!(id = %object.id(), author = %object.author(), %from, "learned an object");
                    fresh.push(object);
                }
                Merge::Stale => {}
                Merge::Refused(reason) => self.complain(from, &reason),
            }
        }
        drop(set);
        if fresh.is_empty() {
            return Ok(fresh);
        }
        self.notify();
        self.store.write(|txn| {
            fresh.iter().try_for_each(|object| {
                txn.put(Table::Objects, &object.id().to_string(), &&**object.text())
            })
        })?;
        Ok(fresh)
    }

    fn complain(&self, from: NodeId, reason: &Refused) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let due = complaints.count(from, Instant::now());
        drop(complaints);
        if let Some(since_last) = due {
            warn!(from = %from.short(), %reason, since_last, "refused an object");
        }
    }

    fn author(&self) -> NodeId {
        use ring::signature::KeyPair;
        NodeId::of_public_key(self.pair.public_key().as_ref())
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn in_order(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, ObjectSet> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wall time, for stamps and certificates only.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A peer that sends bad objects is complained about no more often than this: it decides how many
/// it sends, and must not decide how much is logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What each peer sent that was refused, since it was last complained about. As many rows as
/// members at most.
#[derive(Debug, Default)]
struct Complaints(BTreeMap<NodeId, (Instant, u64)>);

impl Complaints {
    /// Counts one; how many there were since the last complaint, if the next one is due.
    fn count(&mut self, from: NodeId, now: Instant) -> Option<u64> {
        match self.0.get_mut(&from) {
            Some((last, count)) if now.saturating_duration_since(*last) < COMPLAIN_EVERY => {
                *count += 1;
                None
            }
            _ => Some(self.0.insert(from, (now, 0)).map_or(0, |(_last, count)| count) + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_does_not_decide_how_much_is_logged() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        let (bad, other) = (NodeId::of_public_key(b"bad"), NodeId::of_public_key(b"other"));
        let said: Vec<_> = (0..1000).filter_map(|_| complaints.count(bad, start)).collect();
        assert_eq!(said, [1]);
        assert_eq!(complaints.count(other, start), Some(1), "another peer is another matter");
        assert_eq!(complaints.count(bad, start + COMPLAIN_EVERY), Some(1000), "none is uncounted");
    }
}
