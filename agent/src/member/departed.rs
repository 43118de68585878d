//! Whether this node is no member any more ([`Departed`]), and that nobody deals with nodes that
//! were removed.

use tracing::warn;
use vxmesh_proto::{addr::NodeId, object::ObjectId};

use super::Member;
use crate::identity::date;

/// What to do then.
pub(crate) const HINT: &str = "run `vxmesh leave`, then join again with a new token";

/// How the membership ended, and when, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departed {
    Removed(u64),
    Left(u64),
}

impl std::fmt::Display for Departed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Removed(at) => write!(f, "this node was removed from the mesh on {}", date(*at)),
            Self::Left(at) => write!(
                f,
                "this node left the mesh on {}, and its data is an older copy: a node that left does not come back",
                date(*at)
            ),
        }
    }
}

impl Departed {
    /// As `status` says it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Removed(_) => "removed",
            Self::Left(_) => "left",
        }
    }
}

impl Member {
    /// Whether this node is no member any more. While it leaves it is one.
    pub(crate) fn departed(&self) -> Option<Departed> {
        let is_leaving = self.allocation.is_leaving();
        self.objects.read(|set| {
            let at =
                |id| set.get(&id).map(|object| (object.closed(), object.hlc().unix_ms() / 1000));
            if let Some((_, at)) = at(ObjectId::Removed(self.me)) {
                return Some(Departed::Removed(at));
            }
            let member = at(ObjectId::Member(self.me)).filter(|(closed, _)| *closed && !is_leaving);
            member.map(|(_, at)| Departed::Left(at))
        })
    }

    /// Says once in the log that this node left.
    pub(crate) fn tell_departed(&self) {
        if let Some(departed @ Departed::Left(_)) = self.departed()
            && self.logged.departed.is_first()
        {
            warn!("{departed}; {HINT}");
        }
    }

    /// Whether this node was removed.
    pub(crate) fn is_removed(&self) -> bool {
        self.objects.read(|set| set.is_removed(self.me))
    }

    /// The CA's word that a node was removed.
    pub(crate) fn removal_of(&self, node: NodeId) -> Option<String> {
        self.objects.read(|set| Some(set.get(&ObjectId::Removed(node))?.text().to_string()))
    }

    /// Ends what is left of removed nodes here, and of everybody if it is this node that was
    /// removed.
    pub(crate) fn enforce_removals(&self) {
        let Some(control) = self.control.get() else { return };
        let removed: Vec<(NodeId, String)> = self.objects.read(|set| {
            set.removals().map(|(who, object)| (who.node, object.text().to_string())).collect()
        });
        match removed.iter().find(|(node, _word)| *node == self.me) {
            Some((_me, word)) => {
                if self.logged.departed.is_first() {
                    warn!(
                        "this node was removed from the mesh: nothing goes to other hosts any more; run `vxmesh leave` to clean this host"
                    );
                }
                for peer in control.peers() {
                    control.expel(peer.node, word);
                }
            }
            None => removed.iter().for_each(|(node, word)| control.expel(*node, word)),
        }
    }
}
