//! This node's own keys: what it signs, what chitchat must be told, and when a `gone` record has
//! been kept long enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Instant,
};

use chitchat::NodeState;
use ring::signature::Ed25519KeyPair;
use vxmesh_proto::{
    addr::NodeId,
    limits::GONE_KEPT,
    record::{Claim, Key, Record, RecordError, SignedRecord, Stamp},
};

/// The key under which the hash of the mesh objects stands.
pub(crate) const OBJECTS_KEY: &str = "objects";

/// What this node says, newest version of each.
pub struct Publisher {
    pair: Arc<Ed25519KeyPair>,
    mesh: NodeId,
    stamp: Stamp,
    values: BTreeMap<String, Arc<str>>,
    said: BTreeMap<Key, Said>,
    dirty: BTreeSet<String>,
}

struct Said {
    claim: Claim,
    stamp: Stamp,
    gone: Option<Instant>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Nothing said yet in this life.
    #[must_use]
    pub fn new(pair: Arc<Ed25519KeyPair>, mesh: NodeId, incarnation: u64) -> Self {
        Self {
            pair,
            mesh,
            stamp: Stamp { incarnation, seq: 0 },
            values: BTreeMap::new(),
            said: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// Signs a claim with the next stamp. [`Claim::Gone`] is forgotten again when its time is over.
    ///
    /// # Errors
    /// The claim is too large or does not belong under the key.
    pub fn sign(
        &mut self,
        key: Key,
        claim: &Claim,
        now: Instant,
    ) -> Result<SignedRecord, RecordError> {
        let stamp = Stamp { seq: self.stamp.seq.saturating_add(1), ..self.stamp };
        let record = SignedRecord::sign(&self.pair, self.mesh, key, stamp, claim)?;
        self.stamp = stamp;
        let gone = matches!(claim, Claim::Gone).then_some(now);
        self.said.insert(key, Said { claim: claim.clone(), stamp, gone });
        self.set(key.to_string(), Arc::clone(&record.text));
        Ok(record)
    }

    /// What stands under a key, if it was not withdrawn.
    #[must_use]
    pub fn said(&self, key: Key) -> Option<&Claim> {
        self.said.get(&key).map(|said| &said.claim).filter(|claim| **claim != Claim::Gone)
    }

    /// What to say when a record of this node comes back that it did not sign in this life: what it
    /// says now, once more and with a greater stamp; that the key is gone if it says nothing.
    pub fn answer_to(&mut self, own: &Record) -> Option<Claim> {
        let said = self.said.get(&own.key());
        if said.is_some_and(|said| said.stamp >= own.stamp()) {
            return None;
        }
        let claim = said.map_or(Claim::Gone, |said| said.claim.clone());
        // What was said of old and is gone needs no answer.
        if claim == *own.claim() && claim == Claim::Gone {
            return None;
        }
        self.stamp = self.stamp.max(own.stamp());
        Some(claim)
    }

    /// Whatever is signed from here on is of this incarnation or a later one.
    pub(crate) fn live_on_as(&mut self, incarnation: u64) {
        self.stamp = self.stamp.max(Stamp { incarnation, seq: 0 });
    }

    pub(crate) fn set(&mut self, key: String, value: Arc<str>) {
        if self.values.get(&key) != Some(&value) {
            self.dirty.insert(key.clone());
            self.values.insert(key, value);
        }
    }

    /// Forgets `gone` records that were kept long enough.
    pub fn expire(&mut self, now: Instant) {
        self.said.retain(|key, said| {
            let kept = said.gone.is_none_or(|at| now.saturating_duration_since(at) < GONE_KEPT);
            if !kept {
                self.values.remove(&key.to_string());
                self.dirty.insert(key.to_string());
            }
            kept
        });
    }

    /// After this, the next flush tells everything again.
    pub(crate) fn start_over(&mut self) {
        self.dirty = self.values.keys().cloned().collect();
    }

    /// Tells chitchat what changed. The caller holds chitchat's lock, so that no older value can
    /// come later.
    pub(crate) fn flush(&mut self, state: &mut NodeState) {
        for key in std::mem::take(&mut self.dirty) {
            match self.values.get(&key) {
                Some(value) => state.set(&key, value),
                None if state.contains_key(&key) => state.delete(&key),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::KeyPair;
    use vxmesh_proto::addr::{EndpointId, Name};
    use vxmesh_proto::record::NodeClaim;

    use super::*;

    fn pair() -> Arc<Ed25519KeyPair> {
        Arc::new(Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap())
    }

    fn mesh() -> NodeId {
        NodeId::of_public_key(b"mesh")
    }

    fn key() -> Key {
        Key::Endpoint(EndpointId::from_random([1; 16]))
    }

    fn node(name: &str) -> Claim {
        let name: Name = name.parse().unwrap();
        Claim::Node(NodeClaim {
            name,
            control: Vec::new(),
            vteps: Vec::new(),
            aes: false,
            drained: None,
            zone: None,
            unpublished: Default::default(),
        })
    }

    fn old(key: Key, stamp: (u64, u64), claim: &Claim) -> Record {
        let record = SignedRecord::sign(&pair(), mesh(), key, stamp.into(), claim).unwrap();
        record.verify(mesh(), pair().public_key().as_ref().try_into().unwrap()).unwrap()
    }

    #[test]
    fn chitchat_is_told_each_change_once_and_everything_after_a_restart() {
        let mut publisher = Publisher::new(pair(), mesh(), 7);
        let mut state = NodeState::for_test();
        let first = publisher.sign(Key::Node, &node("a"), Instant::now()).unwrap();
        let second = publisher.sign(Key::Node, &node("b"), Instant::now()).unwrap();
        publisher.set(OBJECTS_KEY.to_owned(), "aa".into());
        publisher.flush(&mut state);
        assert_ne!(first.text, second.text);
        assert_eq!(state.get("node"), Some(&*second.text));
        let version = state.max_version();
        publisher.set(OBJECTS_KEY.to_owned(), "aa".into());
        publisher.flush(&mut state);
        assert_eq!(state.max_version(), version);
        let mut fresh = NodeState::for_test();
        publisher.start_over();
        publisher.flush(&mut fresh);
        assert_eq!(fresh.key_values().count(), 2);
    }

    #[test]
    fn a_gone_record_is_published_for_ten_minutes() {
        let (mut publisher, mut state, now) =
            (Publisher::new(pair(), mesh(), 7), NodeState::for_test(), Instant::now());
        publisher.sign(key(), &Claim::Gone, now).unwrap();
        publisher.sign(Key::Node, &node("a"), now).unwrap();
        publisher.expire(now + GONE_KEPT - std::time::Duration::from_millis(1));
        publisher.flush(&mut state);
        assert_eq!(state.key_values().count(), 2);
        publisher.expire(now + GONE_KEPT);
        publisher.flush(&mut state);
        assert_eq!(state.key_values().map(|(key, _value)| key).collect::<Vec<_>>(), ["node"]);
    }

    #[test]
    fn records_of_a_forgotten_life_are_answered_with_a_greater_stamp() {
        let mut publisher = Publisher::new(pair(), mesh(), 7);
        publisher.sign(Key::Node, &node("a"), Instant::now()).unwrap();
        // Of this life, or older.
        assert_eq!(publisher.answer_to(&old(Key::Node, (7, 1), &node("x"))), None);
        assert_eq!(publisher.answer_to(&old(Key::Node, (6, 9), &node("x"))), None);
        // Not claimed by this life.
        assert_eq!(publisher.answer_to(&old(key(), (6, 1), &Claim::Gone)), None);
        let endpoint = old(Key::Node, (9, 5), &node("x"));
        assert_eq!(publisher.answer_to(&endpoint), Some(node("a")));
        let record = publisher.sign(Key::Node, &node("a"), Instant::now()).unwrap();
        let record =
            record.verify(mesh(), pair().public_key().as_ref().try_into().unwrap()).unwrap();
        assert!(record.stamp() > endpoint.stamp());
    }
}
