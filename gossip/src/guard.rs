//! What may reach chitchat. It trusts its peers with everything: one message can rewrite a node's
//! own keys, stop its versions for ever or end its task. Here each message of an authenticated peer
//! is judged first, and what a peer may not say is cut out of it.
//!
//! Refused whole: what honest agents never send. Cut out: what an honest agent may pass on because
//! somebody gave it to it, or because it knows more or less than we do:
//! - nodes that are no members (here, or not yet), and lives beyond the bounds;
//! - keys and values that are too long or not printable ASCII, versions that leap;
//! - a delta about ourselves, or a later life of ourselves than this one.
//!
//! What a later life of ourselves is said to claim goes past chitchat to whoever checks signatures
//! ([`Admitted::later`]): the agent was copied, or its clock and its memory were set back, and the
//! others believe that life more than this one.
//!
//! If a peer says that our own state is ahead of us, somebody forged it, or we go on from an image
//! of an earlier moment: our true state would not be taken any more. [`Admitted::poisoned`] says
//! so, and the remedy is a new generation.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use thiserror::Error;
use vxmesh_proto::addr::NodeId;

use crate::{
    envelope::{DigestEntry, Life, Malformed, Message, NodeDelta},
    limits::{HEARTBEAT_SLACK, KEY_LEN, LIVES, LIVES_PER_NODE, VALUE_LEN, VERSION, VERSION_JUMP},
};

/// Why a message was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// It is no message.
    #[error("malformed gossip: {0}")]
    Malformed(#[from] Malformed),
    /// The sender is not a member.
    #[error("gossip from a node that is no member")]
    Stranger,
    /// Its digest does not speak of its sender.
    #[error("gossip that was not made by its sender")]
    NotTheirs,
    /// It is for another mesh.
    #[error("gossip of another mesh")]
    OtherMesh,
    /// It would not fit into a datagram once cut.
    #[error("gossip that does not fit")]
    TooLong,
}

/// A message that may go on.
#[derive(Debug)]
pub struct Admitted<'a> {
    /// The bytes as they came, or what is left of them.
    pub bytes: Cow<'a, [u8]>,
    /// How many nodes were cut out.
    pub cut: usize,
    /// Others hold more of our own state than we do.
    pub poisoned: bool,
    /// Keys and values that a later life of this node is said to have set.
    pub later: Vec<(String, String)>,
}

/// Judges the messages for one life of this node.
#[derive(Debug)]
pub struct Guard {
    me: Life,
    mesh: NodeId,
    own_version: AtomicU64,
    own_heartbeat: AtomicU64,
    lives: Mutex<Lives>,
}

#[derive(Debug, Default)]
struct Lives {
    // Whether chitchat was seen to hold it; a life admitted since the last tick may be on its way.
    held: BTreeMap<Life, bool>,
    full: BTreeSet<Life>,
}

impl Guard {
    /// A guard of this life of this node.
    #[must_use]
    pub fn new(me: Life, mesh: NodeId) -> Self {
        Self {
            me,
            mesh,
            own_version: AtomicU64::new(0),
            own_heartbeat: AtomicU64::new(0),
            lives: Mutex::default(),
        }
    }

    /// Tells how far our own state is. Told before any message can say so.
    pub fn set_own_version(&self, version: u64) {
        self.own_version.store(version, Ordering::SeqCst);
    }

    /// Tells how far our own heartbeat is, on each tick.
    pub fn set_own_heartbeat(&self, heartbeat: u64) {
        self.own_heartbeat.store(heartbeat, Ordering::Relaxed);
    }

    /// Tells which lives chitchat holds, on each tick, and which of them have as many keys as they
    /// may.
    pub fn set_lives(&self, held: &BTreeSet<Life>, full: BTreeSet<Life>) {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.held.retain(|life, seen| held.contains(life) || !std::mem::replace(seen, true));
        lives.held.extend(held.iter().map(|life| (*life, true)));
        lives.full = full;
    }

    /// Judges a message of an authenticated peer.
    ///
    /// # Errors
    /// Nothing of it may go on.
    pub fn check<'a>(
        &self,
        from: NodeId,
        bytes: &'a [u8],
        is_member: &dyn Fn(NodeId) -> bool,
    ) -> Result<Admitted<'a>, Refusal> {
        if from == self.me.node || !is_member(from) {
            return Err(Refusal::Stranger);
        }
        let mut message = Message::decode(bytes)?;
        let mut cut = 0;
        let mut poisoned = false;
        let mut later = Vec::new();
        if let Message::Syn { digest, .. } | Message::SynAck { digest, .. } = &mut message {
            if !digest.iter().any(|entry| entry.life.node == from) {
                return Err(Refusal::NotTheirs);
            }
            poisoned = digest.iter().any(|entry| self.is_forged(entry));
            cut += keep(digest, |entry| self.admits_entry(entry, is_member));
        }
        match &mut message {
            Message::Syn { cluster, .. } if cluster != self.mesh.as_str() => {
                return Err(Refusal::OtherMesh);
            }
            Message::Syn { .. } => {}
            Message::SynAck { delta, .. } | Message::Ack { delta } => {
                later = self.later(delta);
                cut += keep(delta, |node| self.admits_delta(node, is_member));
            }
        }
        let bytes = if cut == 0 {
            Cow::Borrowed(bytes)
        } else {
            Cow::Owned(message.encode().ok_or(Refusal::TooLong)?)
        };
        Ok(Admitted { bytes, cut, poisoned, later })
    }

    fn later(&self, deltas: &[NodeDelta]) -> Vec<(String, String)> {
        let is_later = |delta: &&NodeDelta| {
            delta.life.node == self.me.node && delta.life.generation > self.me.generation
        };
        let mutations = deltas.iter().filter(is_later).flat_map(|delta| &delta.mutations);
        mutations.map(|mutation| (mutation.key.clone(), mutation.value.clone())).collect()
    }

    fn is_forged(&self, entry: &DigestEntry) -> bool {
        let heartbeat = self.own_heartbeat.load(Ordering::Relaxed).saturating_add(HEARTBEAT_SLACK);
        entry.life == self.me
            && (entry.max_version > self.own_version.load(Ordering::SeqCst)
                || entry.heartbeat > heartbeat)
    }

    fn admits_entry(&self, entry: &DigestEntry, is_member: &dyn Fn(NodeId) -> bool) -> bool {
        let life = entry.life;
        if life.node == self.me.node {
            if life.generation >= self.me.generation {
                return life == self.me;
            }
        } else if !is_member(life.node) {
            return false;
        }
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        if lives.held.contains_key(&life) {
            return true;
        }
        let first = Life { node: life.node, generation: 0 };
        let last = Life { node: life.node, generation: u64::MAX };
        let room =
            lives.held.len() < LIVES && lives.held.range(first..=last).count() < LIVES_PER_NODE;
        if room {
            lives.held.insert(life, false);
        }
        room
    }

    fn admits_delta(&self, node: &NodeDelta, is_member: &dyn Fn(NodeId) -> bool) -> bool {
        let own = node.life.node == self.me.node;
        let max = node
            .max_version
            .or_else(|| node.mutations.last().map(|last| last.version))
            .unwrap_or(0);
        !(own && node.life.generation >= self.me.generation)
            && (own || is_member(node.life.node))
            && max <= VERSION
            && max.saturating_sub(node.from_version) <= VERSION_JUMP
            && node.from_version <= VERSION
            && node.last_gc <= VERSION
            && node.mutations.iter().all(|mutation| {
                (1..=KEY_LEN).contains(&mutation.key.len())
                    && mutation.key.bytes().all(|c| c.is_ascii_graphic())
                    && mutation.value.len() <= VALUE_LEN
                    && mutation.value.bytes().all(|c| (0x20..0x7f).contains(&c))
            })
            && !self.lives.lock().unwrap_or_else(PoisonError::into_inner).full.contains(&node.life)
    }
}

/// Keeps what is admitted; says how many were not.
fn keep<T>(items: &mut Vec<T>, mut admitted: impl FnMut(&T) -> bool) -> usize {
    let before = items.len();
    items.retain(|item| admitted(item));
    before - items.len()
}

#[cfg(test)]
mod tests;
