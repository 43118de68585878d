//! How two nodes make their sets of mesh objects equal, as values that the agent carries.
//!
//! ```text
//! A                                                   B
//! |-- Digest: ids and hashes of one page ------------>|
//! |<- Difference: texts that A lacks, ids B wants ----|
//! |-- Push: the texts that B wants ------------------>|     and the next page, until there is none
//! ```
//!
//! A digest covers a range of ids, so that B can tell what A lacks in it. Answers are bounded: what
//! does not fit goes in the next round, because the sets' hashes still differ.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{ObjectId, ObjectSet, set::text_hash};
use crate::limits::{DIGEST_ENTRIES, OBJECT_BATCH_LEN};

/// What a node holds of a range of ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The range begins after this id; at the first without one.
    pub after: Option<ObjectId>,
    /// The range ends with this id; at the last without one.
    pub until: Option<ObjectId>,
    /// Each id with the first 8 bytes of SHA-256 of its text.
    pub entries: Vec<(ObjectId, u64)>,
}

/// The answer to a [`Digest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Texts that the asker lacks or has otherwise, members first.
    pub texts: Vec<Arc<str>>,
    /// Ids that the answerer lacks or has otherwise.
    pub wanted: Vec<ObjectId>,
}

impl ObjectSet {
    /// One page of what is held; the next page comes after its `until`.
    #[must_use]
    pub fn digest(&self, after: Option<ObjectId>) -> Digest {
        let mut held = self.range_after(after.as_ref());
        let entries: Vec<_> = held
            .by_ref()
            .take(DIGEST_ENTRIES)
            .map(|object| (object.id().clone(), short_hash(object.text())))
            .collect();
        let until = held.next().and_then(|_more| entries.last()).map(|(id, _hash)| id.clone());
        Digest { after, until, entries }
    }

    /// What the sender of a digest lacks, and what it has that is wanted here.
    #[must_use]
    pub fn difference(&self, digest: &Digest) -> Difference {
        let mut theirs: BTreeMap<&ObjectId, u64> =
            digest.entries.iter().take(DIGEST_ENTRIES).map(|(id, hash)| (id, *hash)).collect();
        let mut batch = Batch::default();
        let mut wanted = Vec::new();
        for object in self.range_after(digest.after.as_ref()) {
            if digest.until.as_ref().is_some_and(|until| object.id() > until) {
                break;
            }
            let hash = theirs.remove(object.id());
            if hash == Some(short_hash(object.text())) {
                continue;
            }
            batch.offer(object.text());
            if hash.is_some() {
                wanted.push(object.id().clone());
            }
        }
        wanted.extend(theirs.into_keys().cloned());
        wanted.sort();
        Difference { texts: batch.texts, wanted }
    }

    /// The texts of these objects, as many as one message may hold, members first.
    #[must_use]
    pub fn texts(&self, wanted: &[ObjectId]) -> Vec<Arc<str>> {
        let mut wanted: Vec<&ObjectId> = wanted.iter().take(DIGEST_ENTRIES).collect();
        wanted.sort();
        wanted.dedup();
        let mut batch = Batch::default();
        for object in wanted.into_iter().filter_map(|id| self.get(id)) {
            batch.offer(object.text());
        }
        batch.texts
    }
}

#[derive(Default)]
struct Batch {
    texts: Vec<Arc<str>>,
    bytes: usize,
}

impl Batch {
    fn offer(&mut self, text: &Arc<str>) {
        if self.texts.is_empty() || self.bytes + text.len() <= OBJECT_BATCH_LEN {
            self.bytes += text.len();
            self.texts.push(Arc::clone(text));
        }
    }
}

fn short_hash(text: &str) -> u64 {
    let [first, ..] = text_hash(text);
    first
}
