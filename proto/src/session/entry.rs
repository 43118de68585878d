//! What the slow path knows of one peer: [`Entry`], its handshake under way and its key slots.
//!
//! ```text
//! next    : we answered an initiation; the peer has not used the key yet, so we must not send with it
//! current : what we send with (the workers see it in `Peer`)
//! retired : what the peer may still send with; two, since two handshakes can cross
//! ```
//!
//! When two handshakes cross, both sides keep the key of the node with the smaller static key as
//! current, and the other one for receiving; so they agree without a further message, and nothing
//! under way is lost.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    BACKOFF_MAX, BACKOFF_MIN, MAX_TRIES,
    keypair::Keypair,
    noise::{Initiation, Suite},
    peer::Peer,
    sessions::PeerConfig,
    stamp::Stamp,
    table::IndexTable,
    wire::MacKey,
};

const RETIRED: usize = 2;

/// One peer.
pub(super) struct Entry {
    pub(super) config: PeerConfig,
    pub(super) mac: MacKey,
    pub(super) peer: Arc<Peer>,
    pub(super) attempt: Option<Attempt>,
    /// The index of an initiation of ours that the peer's own handshake overtook: its response may
    /// still come, and is not needed.
    pub(super) overtaken: Option<u32>,
    /// Initiations since the peer was last heard of.
    pub(super) tries: u32,
    /// No initiation before this moment; then one if it is still wanted.
    pub(super) hold_until: Option<Instant>,
    pub(super) next: Option<Next>,
    pub(super) retired: VecDeque<Arc<Keypair>>,
    /// When the initiation of the current key was sent, if it was ours.
    current_begun: Option<Instant>,
    /// Greatest timestamp of its initiations.
    pub(super) greatest: Option<Stamp>,
    pub(super) boot_id: Option<[u8; 8]>,
    pub(super) last_init: Option<Instant>,
    /// When we began a handshake because the peer's initiation looked old.
    pub(super) begun_instead: Option<Instant>,
    /// Where its row in the timers is.
    pub(super) deadline: Option<Instant>,
}

/// An initiation that waits for its response.
pub(super) struct Attempt {
    pub(super) state: Initiation,
    pub(super) suite: Suite,
    pub(super) local: u32,
    pub(super) begun: Instant,
    pub(super) retry_at: Instant,
}

/// A key that the peer has not used yet.
pub(super) struct Next {
    pub(super) key: Arc<Keypair>,
    /// Where its initiation came from.
    pub(super) from: SocketAddr,
}

impl Entry {
    pub(super) fn new(config: PeerConfig, peer: Arc<Peer>, greatest: Option<Stamp>) -> Self {
        Self {
            mac: MacKey::of(&config.noise_public),
            config,
            peer,
            attempt: None,
            overtaken: None,
            tries: 0,
            hold_until: None,
            next: None,
            retired: VecDeque::new(),
            current_begun: None,
            greatest,
            boot_id: None,
            last_init: None,
            begun_instead: None,
            deadline: None,
        }
    }

    /// Takes over new records. An address that was announced anew wins over one that was learned.
    pub(super) fn update(&mut self, config: PeerConfig) {
        if config.addr != self.config.addr {
            self.peer.set_addr(config.addr);
            self.heard();
        }
        self.mac = MacKey::of(&config.noise_public);
        self.config = config;
    }

    /// The peer is there, or may be found elsewhere: try as if for the first time.
    pub(super) fn heard(&mut self) {
        self.tries = 0;
        self.hold_until = None;
    }

    /// We answered an initiation.
    pub(super) fn set_next(&mut self, key: Arc<Keypair>, from: SocketAddr, table: &IndexTable) {
        table.insert(Arc::clone(&key));
        if let Some(old) = self.next.replace(Next { key, from }) {
            erase(&old.key, table);
        }
    }

    /// Our own handshake is done.
    pub(super) fn finish_own(
        &mut self,
        key: Arc<Keypair>,
        begun: Instant,
        wins: bool,
        table: &IndexTable,
    ) {
        table.insert(Arc::clone(&key));
        let crossed = self
            .peer
            .current()
            .is_some_and(|current| !current.is_initiator() && current.created() >= begun);
        if crossed && !wins {
            self.retire(key, table);
        } else {
            self.replace_current(key, Some(begun), table);
        }
    }

    /// The peer has used the next key.
    pub(super) fn promote(&mut self, wins: bool, table: &IndexTable) -> Option<Next> {
        let next = self.next.take_if(|next| next.key.is_proven())?;
        let answered = next.key.created();
        let own_is_later = self.peer.current().is_some_and(|current| {
            current.is_initiator()
                && current.created() >= answered
                && (wins || self.current_begun.is_some_and(|begun| begun > answered))
        });
        if own_is_later {
            self.retire(Arc::clone(&next.key), table);
        } else {
            self.replace_current(Arc::clone(&next.key), None, table);
        }
        Some(next)
    }

    /// Erases keys whose time is over.
    pub(super) fn expire(&mut self, now: Instant, table: &IndexTable) {
        self.retired.retain(|key| {
            let keep = key.age(now) < super::REJECT_AFTER;
            if !keep {
                erase(key, table);
            }
            keep
        });
        if let Some(next) = self.next.take_if(|next| next.key.age(now) >= super::REJECT_AFTER) {
            erase(&next.key, table);
        }
        if self.peer.current().is_some_and(|key| key.age(now) >= super::ERASE_AFTER)
            && let Some(key) = self.peer.set_current(None)
        {
            erase(&key, table);
        }
    }

    /// Erases all keys.
    pub(super) fn close_keys(&mut self, table: &IndexTable) {
        let next = self.next.take().map(|next| next.key);
        let current = self.peer.set_current(None);
        for key in self.retired.drain(..).chain(next).chain(current) {
            erase(&key, table);
        }
    }

    /// Enough initiations for now: how long to pause.
    pub(super) fn back_off(&mut self, now: Instant) {
        let doublings = self.tries.saturating_sub(MAX_TRIES).min(8);
        let pause: Duration = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
        self.hold_until = Some(now + pause);
    }

    fn replace_current(&mut self, key: Arc<Keypair>, begun: Option<Instant>, table: &IndexTable) {
        self.current_begun = begun;
        if let Some(old) = self.peer.set_current(Some(key)) {
            self.retire(old, table);
        }
    }

    fn retire(&mut self, key: Arc<Keypair>, table: &IndexTable) {
        self.retired.push_front(key);
        for old in self.retired.drain(self.retired.len().min(RETIRED)..) {
            erase(&old, table);
        }
    }
}

fn erase(key: &Arc<Keypair>, table: &IndexTable) {
    key.close();
    table.remove(key.local_index());
}
