//! What changed in chitchat's state since the last look.
//!
//! Chitchat's own watcher copies everything on every change, and tells of no deletion. This looks
//! at versions and walks only what is newer. A key that is missing is not a change: tombstones are
//! unsigned, and a reset of a node's state hides its keys for a moment.

use std::collections::BTreeMap;

use chitchat::{ChitchatId, NodeState};
use vxmesh_proto::addr::NodeId;

use crate::{address, envelope::Life};

/// One key of one life of one node has a new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose it is said to be.
    pub life: Life,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// How far each life was seen.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<Life, u64>);

impl Seen {
    /// What is new, in the order of node, generation and key.
    pub fn changes<'a>(
        &mut self,
        states: impl Iterator<Item = (&'a ChitchatId, &'a NodeState)>,
    ) -> Vec<Change> {
        let mut seen = BTreeMap::new();
        let mut changes = Vec::new();
        for (id, state) in states {
            let Some(life) = life_of(id) else { continue };
            // A version below the last one is a reset: whatever came since is looked at again.
            let from =
                self.0.get(&life).copied().filter(|from| *from <= state.max_version()).unwrap_or(0);
            seen.insert(life, state.max_version());
            if from == state.max_version() {
                continue;
            }
            let new =
                state.key_values_including_deleted().filter(|(_key, value)| value.version > from);
            changes.extend(new.filter(|(_key, value)| !value.is_deleted()).map(|(key, value)| {
                Change { life, key: key.to_owned(), value: value.value.clone() }
            }));
        }
        self.0 = seen;
        changes.sort_by(|a, b| (a.life, &a.key).cmp(&(b.life, &b.key)));
        changes
    }
}

/// Chitchat's name of a life as ours.
#[must_use]
pub fn life_of(id: &ChitchatId) -> Option<Life> {
    let node: NodeId = id.node_id.parse().ok()?;
    (id.gossip_advertise_addr == address::of_node(node))
        .then_some(Life { node, generation: id.generation_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: u8) -> ChitchatId {
        let node = NodeId::of_public_key(&[node]);
        ChitchatId::new(node.as_str(), 1, address::of_node(node))
    }

    fn keys(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|change| change.key.as_str()).collect()
    }

    #[test]
    fn only_new_versions_are_walked_and_nothing_is_ever_deleted() {
        let (id, mut state, mut seen) = (id(1), NodeState::for_test(), Seen::default());
        state.set("a", "1");
        state.set("b", "1");
        assert_eq!(keys(&seen.changes([(&id, &state)].into_iter())), ["a", "b"]);
        assert!(seen.changes([(&id, &state)].into_iter()).is_empty());
        state.set("b", "2");
        state.delete("a");
        let changes = seen.changes([(&id, &state)].into_iter());
        assert_eq!(keys(&changes), ["b"]);
        assert_eq!(changes[0].value, "2");
    }

    #[test]
    fn a_reset_state_is_walked_again() {
        let (id, mut state, mut seen) = (id(1), NodeState::for_test(), Seen::default());
        for key in ["a", "b", "c"] {
            state.set(key, "1");
        }
        assert_eq!(seen.changes([(&id, &state)].into_iter()).len(), 3);
        let mut refilled = NodeState::for_test();
        refilled.set("a", "1");
        assert_eq!(keys(&seen.changes([(&id, &refilled)].into_iter())), ["a"]);
        refilled.set("b", "1");
        assert_eq!(keys(&seen.changes([(&id, &refilled)].into_iter())), ["b"]);
    }

    #[test]
    fn a_node_that_chitchat_forgot_is_new_when_it_returns() {
        let (id, mut state, mut seen) = (id(1), NodeState::for_test(), Seen::default());
        state.set("a", "1");
        assert_eq!(seen.changes([(&id, &state)].into_iter()).len(), 1);
        assert!(seen.changes(std::iter::empty()).is_empty());
        assert_eq!(seen.changes([(&id, &state)].into_iter()).len(), 1);
    }

    #[test]
    fn an_id_with_a_foreign_address_is_nobody() {
        let node = NodeId::of_public_key(b"1");
        let foreign = ChitchatId::new(node.as_str(), 1, "127.0.0.1:1".parse().unwrap());
        let mut state = NodeState::for_test();
        state.set("a", "1");
        assert!(Seen::default().changes([(&foreign, &state)].into_iter()).is_empty());
    }
}
