//! Nodes that are gone for good: [`Removal`], and when what they held may be given to others:
//! [`RollCall`].
//!
//! A removal is signed by the mesh CA, so every member believes it, and nobody can take it back.
//! Whoever holds it takes nothing from that node any more ([`ObjectSet::merge_from`]). What the
//! node owned may have gone to others in transfers that not everybody knows of. So its blocks are
//! reclaimed only when every member that is left holds all departures that the issuer holds, and
//! had nothing to tell that the issuer does not know: then a transfer that the issuer does not know
//! of is in the hands of departed nodes alone, and nobody listens to them (I12).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Content, Object, ObjectId, ObjectSet, sync::Difference};
use crate::addr::{Name, NodeId};

/// A node that was removed from the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Who.
    #[serde(rename = "w")]
    pub node: NodeId,
    /// Its name, which nobody tells any more.
    #[serde(rename = "n")]
    pub name: Name,
}

impl ObjectSet {
    /// Whether a node was removed.
    #[must_use]
    pub fn is_removed(&self, node: NodeId) -> bool {
        self.get(&ObjectId::Removed(node)).is_some()
    }

    /// Nodes that were removed, with the objects that say so, in order.
    pub fn removals(&self) -> impl Iterator<Item = (&Removal, &Arc<Object>)> {
        self.objects().filter_map(|object| match object.content() {
            Content::Removed(removal) => Some((removal, object)),
            _ => None,
        })
    }

    /// Which objects say that a node is gone: those of the removed, and closed members.
    fn departures(&self) -> BTreeSet<ObjectId> {
        let says = |id: &ObjectId, closed| match id {
            ObjectId::Removed(_) => true,
            ObjectId::Member(_) => closed,
            _ => false,
        };
        let gone = self.objects().filter(|object| says(object.id(), object.closed()));
        gone.map(|object| object.id().clone()).collect()
    }
}

/// One comparison of all objects with another node, from the first page to the last.
#[derive(Debug)]
pub struct Comparison {
    departures: BTreeSet<ObjectId>,
    silent: bool,
}

impl Comparison {
    /// Begins, before the first page is asked for.
    #[must_use]
    pub fn begin(set: &ObjectSet) -> Self {
        Self { departures: set.departures(), silent: true }
    }

    /// Takes the answer to one page. Departures stand on an earlier page than transfers.
    pub fn page(&mut self, answer: &Difference) {
        let lacks = answer.wanted.iter().any(|id| self.departures.contains(id));
        self.silent &= answer.texts.is_empty() && !lacks;
    }
}

/// Who has heard of which departures.
#[derive(Debug, Default)]
pub struct RollCall(BTreeMap<NodeId, BTreeSet<ObjectId>>);

impl RollCall {
    /// A comparison with this node came to its end.
    pub fn end(&mut self, node: NodeId, comparison: Comparison) {
        if comparison.silent {
            self.0.insert(node, comparison.departures);
        }
    }

    /// Members other than `me` that may not have heard of every departure, or may know what this
    /// node does not.
    #[must_use]
    pub fn missing(&self, set: &ObjectSet, me: NodeId) -> BTreeSet<NodeId> {
        let departures = set.departures();
        let heard = |node: &NodeId| self.0.get(node).is_some_and(|h| h.is_superset(&departures));
        set.members().filter(|node| *node != me && !heard(node)).collect()
    }
}
