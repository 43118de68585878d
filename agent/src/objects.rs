//! The mesh-wide objects of this node: the set in memory, its copy on disk, and word of every change.
//!
//! An own object is on disk before anybody sees it, so that a crash never takes back what other nodes were told. What other
//! nodes send is merged, then written; a crash between the two loses nothing that the mesh does not have.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use ring::signature::Ed25519KeyPair;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};
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
    /// Held from merging to writing, and taken before the set: else an older version could be written last.
    writing: Mutex<()>,
    mesh: NodeId,
    pair: Arc<Ed25519KeyPair>,
    ca: Arc<dyn Certifier + Send + Sync>,
    store: Arc<Store>,
    changed: watch::Sender<u64>,
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
            if let Merge::Refused(reason) = set.restore(&text, ca.as_ref()) {
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
        let _in_order = self.in_order();
        let mut set = self.lock();
        let stamp = set.stamp(unix_ms());
        let draft = draft(&set, stamp)?;
        let text = draft.sign(&self.pair, self.mesh).map_err(|refused| E::from(refused.into()))?;
        let id = draft.id(self.author()).map_err(|refused| E::from(refused.into()))?;
        let before = set.get(&id).map(|object| Arc::clone(object.text()));
        self.store
            .put(Table::Objects, &id.to_string(), &&*text)
            .map_err(|error| E::from(error.into()))?;
        match set.merge(&text, self.ca.as_ref(), unix_ms()) {
            Merge::New(object) | Merge::Updated { new: object, .. } => {
                drop(set);
                self.notify();
                Ok(object)
            }
            not_admitted => {
                let undo = match before {
                    Some(text) => self.store.put(Table::Objects, &id.to_string(), &&*text),
                    None => self.store.delete(Table::Objects, &id.to_string()).map(|_was| ()),
                };
                undo.map_err(|error| E::from(error.into()))?;
                Err(E::from(match not_admitted {
                    Merge::Refused(refused) => refused.into(),
                    Merge::Stale | Merge::New(_) | Merge::Updated { .. } => PublishError::Overtaken,
                }))
            }
        }
    }

    /// Merges what `from` sent; returns what was new here. Blocks for a disk write if anything was.
    ///
    /// # Errors
    /// What was new could not be written; it is merged all the same and comes again after a restart.
    pub fn merge<'a>(
        &self,
        from: NodeId,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Arc<Object>>, StoreError> {
        let mut fresh = Vec::new();
        let _in_order = self.in_order();
        let mut set = self.lock();
        for text in texts {
            match set.merge(text, self.ca.as_ref(), unix_ms()) {
                Merge::New(object) | Merge::Updated { new: object, .. } => {
                    info!(id = %object.id(), author = %object.author(), %from, "learned an object");
                    fresh.push(object);
                }
                Merge::Stale => {}
                Merge::Refused(reason) => warn!(%from, %reason, "refused an object"),
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
