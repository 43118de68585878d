//! What keeps packets of other nodes from this one's data port, as far as it is noticed
//! ([`Reach`]): translations (NAT) in between, and peers that leave everything unanswered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use vxmesh_proto::addr::NodeId;

use crate::lock::lock;

/// A handshake takes one round trip; this is after the second try.
const SILENT: Duration = Duration::from_secs(8);

/// What is known of the ways to other nodes.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Nodes that see this one behind a translation (NAT).
    translations: Mutex<BTreeSet<NodeId>>,
    /// Whether the log says that.
    told_translated: AtomicBool,
    /// Peers whose data port does not answer.
    silent: Mutex<Silent>,
}

impl Reach {
    /// A node sees this one where it is.
    pub(crate) fn forget_translation(&self, node: NodeId) {
        lock(&self.translations).remove(&node);
    }

    /// A node sees this one behind a translation. Whether that is to be said.
    pub(crate) fn note_translation(&self, node: NodeId) -> bool {
        lock(&self.translations).insert(node) && !self.told_translated.swap(true, Ordering::Relaxed)
    }

    /// Nodes that see this one behind a translation.
    pub(crate) fn translated(&self) -> Vec<NodeId> {
        lock(&self.translations).iter().copied().collect()
    }

    /// Whether it is to be told now that a peer, which is connected on the control port since
    /// `connected`, is silent, or that it is not any more.
    pub(crate) fn look(
        &self,
        node: NodeId,
        waits: bool,
        connected: Instant,
        now: Instant,
    ) -> Option<bool> {
        lock(&self.silent).look(node, waits, connected, now)
    }

    /// It is not to be told of a peer that it is silent: it is away.
    pub(crate) fn forget_silence(&self, node: NodeId) {
        lock(&self.silent).forget(node);
    }
}

/// Since when peers have left handshakes or data unanswered, and which of these were told.
#[derive(Debug, Default)]
struct Silent(BTreeMap<NodeId, (Instant, bool)>);

impl Silent {
    /// Whether it is to be told now that a peer is silent, or that it is not any more. The time
    /// before it was connected does not count: an agent that was away was silent everywhere.
    fn look(
        &mut self,
        node: NodeId,
        waits: bool,
        connected: Instant,
        now: Instant,
    ) -> Option<bool> {
        if !waits {
            return self.0.remove(&node).and_then(|(_since, told)| told.then_some(false));
        }
        let (since, told) = self.0.entry(node).or_insert((now, false));
        let answers_since = connected.max(*since);
        let due = !*told && now.saturating_duration_since(answers_since) >= SILENT;
        *told |= due;
        due.then_some(true)
    }

    fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_told_once_and_once_when_it_answers() {
        let (mut silent, start) = (Silent::default(), Instant::now());
        let node = NodeId::of_public_key(b"h2");
        assert_eq!(silent.look(node, true, start, start), None);
        assert_eq!(silent.look(node, true, start, start + SILENT / 2), None);
        assert_eq!(silent.look(node, true, start, start + SILENT), Some(true));
        assert_eq!(silent.look(node, true, start, start + SILENT * 9), None, "not twice");
        assert_eq!(silent.look(node, false, start, start + SILENT * 9), Some(false));
        assert_eq!(silent.look(node, false, start, start + SILENT * 9), None);
        assert_eq!(silent.look(node, true, start, start + SILENT * 9), None, "it begins anew");
        assert_eq!(
            silent.look(node, false, start, start + SILENT * 9),
            None,
            "a short one is not told"
        );
    }

    #[test]
    fn the_time_before_a_peer_came_back_does_not_count() {
        let (mut silent, start) = (Silent::default(), Instant::now());
        let node = NodeId::of_public_key(b"h2");
        assert_eq!(silent.look(node, true, start, start), None);
        let back = start + SILENT;
        assert_eq!(silent.look(node, true, back, back), None, "its agent was away until now");
        assert_eq!(silent.look(node, true, back, back + SILENT), Some(true));
    }
}
