//! One other node as the workers see it: [`Peer`], where to send, with which key, and what waits
//! for a key.
//!
//! The fast path reads and writes atomics only. The times it leaves here are what the session's
//! timers go by, so a worker owes nobody a message per packet.

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;

use super::{keypair::Keypair, noise::Suite};
use crate::{addr::NodeId, limits::STAGED_FRAMES, reason::DropReason};

/// How it stands with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// No key, and nobody wants one.
    Idle,
    /// A handshake is under way and there is no key to send with.
    Handshake,
    /// There is a key to send with.
    Established,
}

impl PeerState {
    /// The state as `peer ls` shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Handshake => "handshake",
            Self::Established => "established",
        }
    }
}

/// Payloads that wait for a key.
#[derive(Default)]
struct Staged {
    payloads: VecDeque<Vec<u8>>,
    /// So many of them have seen a handshake go unanswered.
    late: usize,
}

impl Staged {
    /// Takes all, and those that come later have seen nothing.
    fn take(&mut self) -> VecDeque<Vec<u8>> {
        std::mem::take(self).payloads
    }
}

/// One other node.
pub struct Peer {
    id: NodeId,
    start: Instant,
    current: ArcSwapOption<Keypair>,
    addr: ArcSwapOption<SocketAddr>,
    staged: Mutex<Staged>,
    wanted: AtomicBool,
    shaking: AtomicBool,
    removed: AtomicBool,
    last_sent: AtomicTime,
    last_received: AtomicTime,
    /// When a message of its handshakes last came.
    last_shaken: AtomicTime,
    /// Since when data was sent without anything coming back.
    unanswered: AtomicTime,
    /// Since when data was received without anything being sent.
    unacknowledged: AtomicTime,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
    rtt_us: AtomicU64,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .field("addr", &self.addr())
            .finish_non_exhaustive()
    }
}

impl Peer {
    pub(super) fn new(id: NodeId, start: Instant, addr: Option<SocketAddr>) -> Self {
        Self {
            id,
            start,
            current: ArcSwapOption::empty(),
            addr: ArcSwapOption::from(addr.map(Arc::new)),
            staged: Mutex::default(),
            wanted: AtomicBool::new(false),
            shaking: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            last_sent: AtomicTime::default(),
            last_received: AtomicTime::default(),
            last_shaken: AtomicTime::default(),
            unanswered: AtomicTime::default(),
            unacknowledged: AtomicTime::default(),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            rtt_us: AtomicU64::new(0),
        }
    }

    /// Who it is.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// The key to send with, if there is one that may still be used. Without:
    /// [`stage`](Self::stage) the payload.
    #[must_use]
    pub fn sender(&self, now: Instant) -> Option<Arc<Keypair>> {
        self.current.load_full().filter(|key| key.is_usable(now))
    }

    /// Keeps a payload until there is a key; call [`want`](Self::want) afterwards.
    ///
    /// # Errors
    /// One frame is lost and to be counted: this one if the peer was removed, else the oldest that
    /// waited.
    pub fn stage(&self, payload: Vec<u8>) -> Result<(), DropReason> {
        let mut staged = self.staged();
        if self.removed.load(Ordering::Acquire) {
            return Err(DropReason::PeerRemoved);
        }
        let full = staged.payloads.len() >= STAGED_FRAMES;
        if full {
            staged.payloads.pop_front();
            staged.late = staged.late.saturating_sub(1);
        }
        staged.payloads.push_back(payload);
        if full { Err(DropReason::NoSession) } else { Ok(()) }
    }

    /// Whether the caller is the one to tell the sessions' owner that a key is wanted
    /// (`Sessions::handle_wanted`); false while an earlier call is yet to be heard.
    pub fn want(&self) -> bool {
        !self.wanted.load(Ordering::Acquire) && !self.wanted.swap(true, Ordering::AcqRel)
    }

    /// Where it is.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr.load().as_deref().copied()
    }

    /// It is at `addr` from here on. Only for the source of the newest packet of a key, after it
    /// was opened.
    pub fn roam(&self, addr: SocketAddr) {
        if self.addr() != Some(addr) {
            self.addr.store(Some(Arc::new(addr)));
        }
    }

    /// Notes that datagrams of `bytes` in sum went out; `data` unless all of them were control
    /// messages.
    pub fn note_sent(&self, now: Instant, bytes: u64, data: bool) {
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_sent.set(self.micros(now));
        self.unacknowledged.clear();
        if data {
            self.unanswered.set_once(self.micros(now));
        }
    }

    /// Notes that datagrams of `bytes` in sum were opened; `data` unless all of them were control
    /// messages.
    pub fn note_received(&self, now: Instant, bytes: u64, data: bool) {
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_received.set(self.micros(now));
        self.unanswered.clear();
        if data {
            self.unacknowledged.set_once(self.micros(now));
        }
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self, now: Instant) -> PeerState {
        if self.sender(now).is_some() {
            PeerState::Established
        } else if self.shaking.load(Ordering::Relaxed) {
            PeerState::Handshake
        } else {
            PeerState::Idle
        }
    }

    /// Which AEAD protects what is sent.
    #[must_use]
    pub fn cipher(&self, now: Instant) -> Option<Suite> {
        self.sender(now).map(|key| key.suite())
    }

    /// Age of the key that protects what is sent.
    #[must_use]
    pub fn key_age(&self, now: Instant) -> Option<Duration> {
        self.sender(now).map(|key| key.age(now))
    }

    /// Smoothed round trip of the handshakes.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match self.rtt_us.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// When something was last sent.
    #[must_use]
    pub fn last_sent(&self) -> Option<Instant> {
        self.last_sent.get(self.start)
    }

    /// When something authentic last came.
    #[must_use]
    pub fn last_received(&self) -> Option<Instant> {
        self.last_received.get(self.start)
    }

    /// When something authentic last came, messages of handshakes among it.
    #[must_use]
    pub fn last_heard(&self) -> Option<Instant> {
        self.last_received().max(self.last_shaken.get(self.start))
    }

    /// Bytes of opened datagrams, headers included.
    #[must_use]
    pub fn rx_bytes(&self) -> u64 {
        self.rx_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of sealed datagrams, headers included.
    #[must_use]
    pub fn tx_bytes(&self) -> u64 {
        self.tx_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn current(&self) -> Option<Arc<Keypair>> {
        self.current.load_full()
    }

    pub(super) fn set_current(&self, key: Option<Arc<Keypair>>) -> Option<Arc<Keypair>> {
        self.current.swap(key)
    }

    pub(super) fn set_shaking(&self, shaking: bool) {
        self.shaking.store(shaking, Ordering::Relaxed);
    }

    pub(super) fn set_addr(&self, addr: Option<SocketAddr>) {
        self.addr.store(addr.map(Arc::new));
    }

    /// Clears the wish before it is looked at, so that one that comes meanwhile is heard again.
    pub(super) fn hear_want(&self) {
        self.wanted.store(false, Ordering::Release);
    }

    pub(super) fn take_staged(&self) -> VecDeque<Vec<u8>> {
        self.staged().take()
    }

    /// A handshake went unanswered: gives up what has seen that before, and says how many payloads
    /// that was. Whoever sent them has sent them again or given up by now.
    pub(super) fn expire_staged(&self) -> usize {
        let mut staged = self.staged();
        let late = staged.late.min(staged.payloads.len());
        staged.payloads.drain(..late);
        staged.late = staged.payloads.len();
        late
    }

    pub(super) fn has_staged(&self) -> bool {
        !self.staged().payloads.is_empty()
    }

    /// Refuses all further frames; gives the number of those that waited.
    pub(super) fn remove(&self) -> usize {
        let mut staged = self.staged();
        self.removed.store(true, Ordering::Release);
        staged.take().len()
    }

    /// Since when data is sent and nothing comes; a peer that is sound says something within
    /// [`super::KEEPALIVE`].
    #[must_use]
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered.get(self.start)
    }

    /// Whether a handshake is under way, be there a key to send with or not.
    #[must_use]
    pub fn is_shaking(&self) -> bool {
        self.shaking.load(Ordering::Relaxed)
    }

    pub(super) fn forget_unanswered(&self) {
        self.unanswered.clear();
    }

    pub(super) fn unacknowledged_since(&self) -> Option<Instant> {
        self.unacknowledged.get(self.start)
    }

    pub(super) fn forget_unacknowledged(&self) {
        self.unacknowledged.clear();
    }

    pub(super) fn note_shaken(&self, now: Instant) {
        self.last_shaken.set(self.micros(now));
    }

    pub(super) fn add_rtt(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.rtt_us.load(Ordering::Relaxed) {
            0 => sample,
            old => old - old / 8 + sample / 8,
        };
        self.rtt_us.store(smoothed.max(1), Ordering::Relaxed);
    }

    fn staged(&self) -> MutexGuard<'_, Staged> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

/// A moment, or none, as microseconds + 1 since the sessions' start.
#[derive(Default)]
struct AtomicTime(AtomicU64);

impl AtomicTime {
    fn set(&self, micros: u64) {
        self.0.store(micros.saturating_add(1), Ordering::Relaxed);
    }

    /// Sets it unless it is set. Reads first: workers share the line.
    fn set_once(&self, micros: u64) {
        if self.0.load(Ordering::Relaxed) == 0 {
            // A worker that comes second finds the earlier moment, which is the one that counts.
            let _earlier = self.0.compare_exchange(
                0,
                micros.saturating_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    fn clear(&self) {
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    fn get(&self, start: Instant) -> Option<Instant> {
        let micros = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        start.checked_add(Duration::from_micros(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
    fn one_slow_handshake_is_not_the_round_trip() {
        let peer = Peer::new(NodeId::of_public_key(b"h2"), Instant::now(), None);
        let ms = Duration::from_millis;
        assert_eq!(peer.rtt(), None);
        peer.add_rtt(ms(8));
        assert_eq!(peer.rtt(), Some(ms(8)));
        peer.add_rtt(ms(80));
        assert_eq!(peer.rtt(), Some(ms(17)));
        (0..64).for_each(|_| peer.add_rtt(ms(80)));
        assert!(peer.rtt() > Some(ms(79)), "a path that became longer is told in the end");
    }
}
