//! What the log says of the mesh: one line for each change of a node's or a network's state
//! ([`StateLog`]).

use std::collections::{BTreeMap, BTreeSet};

use tracing::info;
use vxmesh_proto::addr::{Name, NetworkId, NodeId};

use crate::api::{Network, Node};

/// What states follow from: the hash of the objects, the networks of this host alone, and the nodes
/// that are up.
pub(crate) type Causes = (String, Vec<NetworkId>, BTreeSet<NodeId>);

/// What the log says already.
#[derive(Debug, Default)]
pub(crate) struct StateLog {
    /// What the states below follow from; nothing is looked at while it is the same.
    seen: Option<Causes>,
    nodes: BTreeMap<NodeId, String>,
    networks: BTreeMap<NetworkId, (Name, String)>,
    /// Nodes that were heard in this life of the agent.
    heard: BTreeSet<NodeId>,
    /// Whether at most half of the members that were heard are reached.
    apart: bool,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Node { name: Name, id: String, now: &'static str },
    Network { name: Name, id: String, now: &'static str },
    Reach { alive: usize, members: usize, now: &'static str },
}

impl Change {
    fn tell(&self) {
        match self {
            Self::Node { name, id, now } => info!(node = %name, %id, "{now}"),
            Self::Network { name, id, now } => info!(network = %name, %id, "{now}"),
            Self::Reach { alive, members, now } => info!(alive, members, "{now}"),
        }
    }
}

impl StateLog {
    /// Says in the log what changed among these nodes and networks, unless what they follow from is
    /// as it was.
    pub(crate) fn tell(&mut self, seen: Causes, rows: impl FnOnce() -> (Vec<Node>, Vec<Network>)) {
        if self.seen.as_ref() == Some(&seen) {
            return;
        }
        self.seen = Some(seen);
        let (nodes, networks) = rows();
        for change in self.changes(&nodes, &networks) {
            change.tell();
        }
    }

    /// The changes since the last look. At the first, nodes that are not heard yet are no news, nor
    /// are networks.
    fn changes(&mut self, nodes: &[Node], networks: &[Network]) -> Vec<Change> {
        let first = self.nodes.is_empty();
        let mut changes = Vec::new();
        for node in nodes.iter().filter(|node| !node.is_self) {
            let before = self.nodes.insert(node.id, node.state.clone());
            let now = match (before.as_deref(), node.state.as_str()) {
                (before, now) if before == Some(now) => continue,
                (_, "alive") => "the node is alive",
                (Some(_), "dead") => "the node is dead: nothing is heard from it",
                (Some(_), "left") => "the node left the mesh",
                (Some(_), "removed") => "the node was removed from the mesh",
                _ => continue,
            };
            let id = node.id.as_str().chars().take(12).collect();
            changes.push(Change::Node { name: node.name.clone(), id, now });
        }
        // The node itself is in the list.
        self.nodes.extend(nodes.iter().map(|node| (node.id, node.state.clone())));
        changes.extend(self.reach(nodes));
        changes.extend(self.network_changes(networks).into_iter().filter(|_| !first));
        changes
    }

    /// Whether this node seems to be cut off. A member that was never heard yet is only on its way.
    fn reach(&mut self, nodes: &[Node]) -> Option<Change> {
        let alive = |node: &&Node| node.is_self || node.state == "alive";
        self.heard.extend(nodes.iter().filter(alive).map(|node| node.id));
        let members = nodes.iter().filter(|node| !node.is_gone() && self.heard.contains(&node.id));
        let alive = members.clone().filter(alive).count();
        let members = members.count();
        let apart = members > 1 && alive * 2 <= members;
        let before = std::mem::replace(&mut self.apart, apart);
        let now = match (before, apart) {
            (false, true) => {
                "only a part of the mesh is reached: this node is cut off, or the others are down"
            }
            (true, false) if alive > 1 => "most of the mesh is reached",
            _ => return None,
        };
        Some(Change::Reach { alive, members, now })
    }

    fn network_changes(&mut self, networks: &[Network]) -> Vec<Change> {
        let mut gone = std::mem::take(&mut self.networks);
        let mut changes = Vec::new();
        for network in networks {
            let state = (network.name.clone(), network.state.clone());
            let before = gone.remove(&network.id).map(|(_name, state)| state);
            let now = match (before.as_deref(), network.state.as_str()) {
                (before, now) if before == Some(now) => None,
                (_, "conflict") => Some(
                    "the network is in conflict and forwards nothing: an older one has its name or number",
                ),
                (None, _) => Some("the network is there"),
                (Some("conflict"), _) => Some("the network is in conflict no more"),
                _ => None,
            };
            let id = network.id.short();
            changes.extend(now.map(|now| Change::Network { name: network.name.clone(), id, now }));
            self.networks.insert(network.id, state);
        }
        changes.extend(gone.into_iter().map(|(id, (name, _state))| {
            let now = "the network was removed";
            Change::Network { name, id: id.short(), now }
        }));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8, state: &str) -> Node {
        Node {
            id: NodeId::of_public_key(&[n]),
            name: format!("h{n}").parse().unwrap(),
            vtep: None,
            state: state.to_owned(),
            is_self: n == 1,
            issuer: false,
            drained: false,
            zone: None,
        }
    }

    fn said(told: &mut StateLog, states: &[&str]) -> Vec<String> {
        let nodes: Vec<_> = (1..).zip(states).map(|(n, state)| node(n, state)).collect();
        let line = |change: Change| match change {
            Change::Node { name, now, .. } => format!("{name} {now}"),
            Change::Network { name, now, .. } => format!("{name} {now}"),
            Change::Reach { alive, members, now } => format!("{alive}/{members} {now}"),
        };
        told.changes(&nodes, &[]).into_iter().map(line).collect()
    }

    #[test]
    fn each_change_of_a_node_is_told_once() {
        let mut told = StateLog::default();
        let none: [&str; 0] = [];
        assert_eq!(said(&mut told, &["alive", "dead", "dead", "left"]), none, "not heard yet");
        assert_eq!(
            said(&mut told, &["alive", "alive", "alive", "left"]),
            ["h2 the node is alive", "h3 the node is alive"]
        );
        assert_eq!(said(&mut told, &["alive", "alive", "alive", "left"]), none);
        assert_eq!(
            said(&mut told, &["alive", "dead", "alive", "left"]),
            ["h2 the node is dead: nothing is heard from it"]
        );
        let cut = said(&mut told, &["alive", "dead", "dead", "left"]);
        assert!(cut.len() == 2 && cut[1].starts_with("1/3 only a part"), "{cut:?}");
        assert_eq!(
            said(&mut told, &["alive", "alive", "left", "left"]),
            [
                "h2 the node is alive",
                "h3 the node left the mesh",
                "2/2 most of the mesh is reached"
            ]
        );
        assert_eq!(
            said(&mut told, &["alive", "removed", "left", "left", "alive"]),
            ["h2 the node was removed from the mesh", "h5 the node is alive"]
        );
    }
}
