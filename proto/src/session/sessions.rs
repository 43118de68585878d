//! The slow path: [`Sessions`], all peers of this node and their handshakes, with one owner.
//!
//! Inputs are `handle_*`, outputs `poll_*`; after any input all outputs are to be polled. It
//! refuses what it cannot attribute to a peer that was set, and holds no state for a stranger.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    entry::Entry,
    keypair::KeyLimits,
    noise::{self, Entropy, Psk, Suite},
    peer::Peer,
    stamp::{Stamp, Stamper},
    table::IndexTable,
    wire::{Kind, MacKey},
};
use crate::{
    addr::NodeId,
    limits::{SESSION_EVENTS, SESSION_PEERS, SESSION_STAMPS, SESSION_TRANSMITS},
    reason::DropReason,
};

/// What a node brings to its sessions.
pub struct Config {
    /// Its X25519 private key.
    pub static_private: Zeroizing<[u8; 32]>,
    /// Whether its certified record says that it has AES in hardware.
    pub aes: bool,
    /// The mesh.
    pub mesh: NodeId,
    /// The mesh secret.
    pub psk: Psk,
    /// The mesh secret of the epoch before, while it is still accepted.
    pub previous_psk: Option<Psk>,
    /// Drawn anew each time the agent starts.
    pub boot_id: [u8; 8],
    /// The wall clock at the `now` of [`Sessions::new`], since 1970.
    pub wall_at_start: Duration,
    /// Packet limits other than the suite's own; only lower ones make sense.
    pub key_limits: Option<KeyLimits>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("mesh", &self.mesh)
            .field("aes", &self.aes)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The secret of this epoch.
    pub(super) fn psk(&self, epoch: u16) -> Option<&Psk> {
        [Some(&self.psk), self.previous_psk.as_ref()]
            .into_iter()
            .flatten()
            .find(|psk| psk.epoch == epoch)
    }

    pub(super) fn limits(&self, suite: Suite) -> KeyLimits {
        self.key_limits.unwrap_or_else(|| KeyLimits::of(suite))
    }
}

/// What certified records say of one other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Who it is.
    pub id: NodeId,
    /// Its X25519 public key.
    pub noise_public: [u8; 32],
    /// Where it says it receives sealed frames.
    pub addr: Option<SocketAddr>,
    /// Whether it has AES in hardware.
    pub aes: bool,
}

/// Why a peer was not set; nothing was changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SetPeerError {
    /// Any key agreement with it would give zero.
    #[error("the Noise key is a point of low order; the node must make a new one")]
    WeakKey,
    /// It is our own.
    #[error("the Noise key is this node's own; the other node was copied and must make a new one")]
    OwnKey,
    /// Another node has it.
    #[error("the Noise key is that of node {0}; one of the two was copied and must make a new one")]
    KeyTaken(NodeId),
    /// The mesh is too large.
    #[error(
        "there are {SESSION_PEERS} peers already, which is the limit; remove nodes that are gone"
    )]
    TooMany,
}

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// There is a new key to send with.
    Established {
        /// With whom.
        peer: NodeId,
    },
    /// The peer was started anew; its old keys are gone.
    Restarted {
        /// Who.
        peer: NodeId,
    },
    /// It answered none of [`MAX_TRIES`](super::MAX_TRIES) initiations, or of the single ones
    /// since.
    Unreachable {
        /// Who.
        peer: NodeId,
    },
    /// A handshake could not begin.
    Failed {
        /// With whom.
        peer: NodeId,
        /// Why.
        reason: DropReason,
    },
    /// Frames that waited for a key are lost and to be counted.
    Dropped {
        /// For whom they were.
        peer: NodeId,
        /// Why.
        reason: DropReason,
        /// How many.
        count: usize,
    },
}

/// All sessions of this node.
pub struct Sessions {
    pub(super) config: Config,
    pub(super) public: [u8; 32],
    pub(super) mac: MacKey,
    pub(super) stamper: Stamper,
    pub(super) entropy: Box<dyn Entropy>,
    pub(super) entries: BTreeMap<NodeId, Entry>,
    pub(super) by_static: HashMap<[u8; 32], NodeId>,
    /// Indices of handshakes under way; those of finished ones are in the table.
    pub(super) pending: HashMap<u32, NodeId>,
    pub(super) table: Arc<IndexTable>,
    pub(super) timers: BTreeSet<(Instant, NodeId)>,
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) events: VecDeque<SessionEvent>,
    /// Greatest timestamps of static keys that were removed: they may be set again.
    stamps: BTreeMap<[u8; 32], Stamp>,
    start: Instant,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("peers", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// No sessions yet.
    #[must_use]
    pub fn new(config: Config, entropy: Box<dyn Entropy>, now: Instant) -> Self {
        let public = noise::public_key(&config.static_private);
        Self {
            public,
            mac: MacKey::of(&public),
            stamper: Stamper::new(now, config.wall_at_start),
            config,
            entropy,
            entries: BTreeMap::new(),
            by_static: HashMap::new(),
            pending: HashMap::new(),
            table: Arc::default(),
            timers: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            stamps: BTreeMap::new(),
            start: now,
        }
    }

    /// The table by which workers find keys.
    #[must_use]
    pub fn index_table(&self) -> Arc<IndexTable> {
        Arc::clone(&self.table)
    }

    /// The peer as workers see it.
    #[must_use]
    pub fn peer(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.entries.get(&id).map(|entry| Arc::clone(&entry.peer))
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.entries.values().map(|entry| &entry.peer)
    }

    /// Adds a peer or takes over what its records say by now. Another key ends its sessions.
    ///
    /// # Errors
    /// If its key cannot be used.
    pub fn set_peer(&mut self, now: Instant, peer: PeerConfig) -> Result<Arc<Peer>, SetPeerError> {
        self.check_key(&peer)?;
        let id = peer.id;
        if let Some(entry) = self.entries.get(&id) {
            if entry.config.noise_public != peer.noise_public {
                let old = entry.config.noise_public;
                self.end_session(id);
                self.remember_stamp(old, id);
                self.by_static.remove(&old);
            }
        } else if self.entries.len() >= SESSION_PEERS {
            return Err(SetPeerError::TooMany);
        }
        let greatest = self.stamps.remove(&peer.noise_public);
        self.by_static.insert(peer.noise_public, id);
        let shared = if let Some(entry) = self.entries.get_mut(&id) {
            entry.greatest = entry.greatest.max(greatest);
            entry.update(peer);
            Arc::clone(&entry.peer)
        } else {
            let shared = Arc::new(Peer::new(id, self.start, peer.addr));
            let entry = Entry::new(peer, Arc::clone(&shared), greatest);
            self.entries.insert(id, entry);
            shared
        };
        if shared.has_staged() {
            self.handle_wanted(now, id);
        }
        Ok(shared)
    }

    /// Ends all sessions with a peer at once: nothing of it is opened and nothing is sealed for it,
    /// whoever still holds its keys.
    pub fn remove_peer(&mut self, id: NodeId) {
        self.end_session(id);
        let Some(entry) = self.entries.get(&id) else { return };
        let public = entry.config.noise_public;
        let count = entry.peer.remove();
        self.remember_stamp(public, id);
        self.by_static.remove(&public);
        if let Some(entry) = self.entries.remove(&id)
            && let Some(deadline) = entry.deadline
        {
            self.timers.remove(&(deadline, id));
        }
        self.report_dropped(id, DropReason::PeerRemoved, count);
    }

    /// The mesh secret was rotated: sessions go on, new handshakes use the new one.
    pub fn set_psk(&mut self, psk: Psk, previous: Option<Psk>) {
        self.config.psk = psk;
        self.config.previous_psk = previous;
    }

    /// A datagram that is not of type data.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        match Kind::of(datagram)? {
            Kind::Init => self.handle_init(now, from, datagram),
            Kind::Response => self.handle_response(now, from, datagram),
            Kind::Cookie => Err(DropReason::UnsolicitedCookie),
            Kind::Data => Err(DropReason::BadType),
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(deadline, _)| *deadline)
    }

    /// False if there was no room for it.
    pub(super) fn transmit(&mut self, to: SocketAddr, bytes: Vec<u8>) -> bool {
        if self.transmits.len() >= SESSION_TRANSMITS {
            return false;
        }
        self.transmits.push_back(Transmit { to, bytes });
        true
    }

    pub(super) fn report(&mut self, event: SessionEvent) {
        if self.events.len() >= SESSION_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn report_dropped(&mut self, peer: NodeId, reason: DropReason, count: usize) {
        if count > 0 {
            self.report(SessionEvent::Dropped { peer, reason, count });
        }
    }

    /// A random index that no other handshake or key has.
    pub(super) fn fresh_index(&mut self) -> Result<u32, DropReason> {
        loop {
            let mut bytes = [0; 4];
            self.entropy.fill(&mut bytes)?;
            let index = u32::from_le_bytes(bytes);
            // Ends soon: fewer than 2^15 of 2^32 are taken.
            if !self.pending.contains_key(&index) && self.table.get(index).is_none() {
                return Ok(index);
            }
        }
    }

    fn check_key(&self, peer: &PeerConfig) -> Result<(), SetPeerError> {
        if noise::is_weak(&peer.noise_public) {
            return Err(SetPeerError::WeakKey);
        }
        if peer.noise_public == self.public {
            return Err(SetPeerError::OwnKey);
        }
        match self.by_static.get(&peer.noise_public) {
            Some(other) if *other != peer.id => Err(SetPeerError::KeyTaken(*other)),
            _ => Ok(()),
        }
    }

    fn remember_stamp(&mut self, public: [u8; 32], id: NodeId) {
        let Some(stamp) = self.entries.get_mut(&id).and_then(|entry| entry.greatest.take()) else {
            return;
        };
        if self.stamps.len() >= SESSION_STAMPS {
            // The oldest is the one whose replay is least likely to be at hand.
            let oldest =
                self.stamps.iter().min_by_key(|(_, stamp)| **stamp).map(|(public, _)| *public);
            if let Some(oldest) = oldest {
                self.stamps.remove(&oldest);
            }
        }
        self.stamps.insert(public, stamp);
    }
}

impl Drop for Sessions {
    /// Keys hold their peer and peers their key; this opens the ring.
    fn drop(&mut self) {
        for entry in self.entries.values_mut() {
            entry.close_keys(&self.table);
        }
    }
}
