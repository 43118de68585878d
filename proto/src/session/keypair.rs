//! The two keys of one finished handshake, shared by all workers: [`Keypair`] seals and opens data
//! messages in place, hands out every counter once (I6) and accepts every counter once.
//!
//! ```text
//! datagram: header 16 | ciphertext | tag 16        AAD: the header
//! nonce   : 0u32 || counter u64 (AES-GCM: big endian, ChaChaPoly: little endian; Noise revision 34 section 12)
//! ```
//!
//! It refuses to seal past its limits, and to open what is too old, forged or replayed. ring keeps
//! expanded keys in memory that it does not wipe; the raw bytes are wiped here.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use super::{
    REJECT_AFTER, REKEY_AFTER,
    noise::{Suite, TransportKeys},
    peer::Peer,
    replay::{COUNTERS, ReplayWindow, Replayed},
    wire::{DataHeader, FLAG_SPARSE, HEADER_LEN, SEAL_OVERHEAD, TAG_LEN},
};
use crate::reason::DropReason;

/// After how many packets a key is replaced, and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// A new handshake begins.
    pub rekey_after: u64,
    /// No counter from here on is sealed or opened.
    pub reject_after: u64,
}

impl KeyLimits {
    /// Half of, and all of the confidentiality limit of AES-GCM for packets up to 2 KiB (RFC 9001
    /// section B.1.1).
    pub const AES_GCM: Self = Self { rekey_after: 1 << 27, reject_after: 1 << 28 };
    /// ChaCha20-Poly1305 outlasts the counter; the window ends at [`COUNTERS`].
    pub const CHACHA_POLY: Self = Self { rekey_after: 1 << 60, reject_after: COUNTERS };

    pub(super) const fn of(suite: Suite) -> Self {
        match suite {
            Suite::AesGcm => Self::AES_GCM,
            Suite::ChaChaPoly => Self::CHACHA_POLY,
        }
    }
}

/// The keys of one finished handshake with one peer.
pub struct Keypair {
    send: LessSafeKey,
    receive: LessSafeKey,
    suite: Suite,
    limits: KeyLimits,
    initiator: bool,
    local: u32,
    remote: u32,
    created: Instant,
    /// The next counter that nobody has.
    counter: AtomicU64,
    /// That of bulk flows and that of sparse ones, whose packets overtake as many of the others as
    /// wait at the receiver: more than a window is wide. The packet says in which flow it is and is
    /// authenticated, so no counter is accepted in both.
    windows: [ReplayWindow; 2],
    /// Whether the peer has shown that it holds the keys, too.
    proven: AtomicBool,
    /// Whether the first packet that was sealed with it is what has shown that.
    by_first: AtomicBool,
    closed: AtomicBool,
    peer: Arc<Peer>,
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keypair")
            .field("peer", &self.peer.id())
            .field("suite", &self.suite)
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// What a handshake agreed on beside the keys.
pub(super) struct Agreed {
    pub(super) suite: Suite,
    pub(super) limits: KeyLimits,
    pub(super) initiator: bool,
    pub(super) local: u32,
    pub(super) remote: u32,
    pub(super) created: Instant,
}

/// A data message that was opened.
#[derive(Debug)]
pub struct Opened<'a> {
    /// `FLAG_*`, authenticated.
    pub flags: u16,
    /// The payload, in place.
    pub payload: &'a mut [u8],
    /// Whether it is the newest of its key: only then may its source address become the peer's.
    pub newest: bool,
    /// Whether it is the first on its key: `Sessions::handle_confirmed` wants to know.
    pub confirms: bool,
    /// Whether the key nears its end: `Sessions::handle_wanted` wants to know (once per
    /// [`Peer::want`]).
    pub refresh: bool,
}

impl Keypair {
    pub(super) fn new(
        peer: Arc<Peer>,
        agreed: &Agreed,
        keys: &TransportKeys,
    ) -> Result<Self, DropReason> {
        let key = |bytes: &[u8; 32]| {
            UnboundKey::new(agreed.suite.algorithm(), bytes)
                .map(LessSafeKey::new)
                .map_err(|_unspecified| DropReason::AuthFailed)
        };
        Ok(Self {
            send: key(&keys.send)?,
            receive: key(&keys.receive)?,
            suite: agreed.suite,
            limits: agreed.limits,
            initiator: agreed.initiator,
            local: agreed.local,
            remote: agreed.remote,
            created: agreed.created,
            counter: AtomicU64::new(0),
            windows: Default::default(),
            proven: AtomicBool::new(agreed.initiator),
            by_first: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            peer,
        })
    }

    /// Takes `count` counters that nobody else gets (I6), to seal that many packets.
    ///
    /// # Errors
    /// If the key has not that many left, or its peer was removed.
    pub fn reserve(&self, count: u32) -> Result<Batch<'_>, DropReason> {
        self.check_open()?;
        let step = u64::from(count);
        let within =
            |next: u64| next.checked_add(step).filter(|end| *end <= self.limits.reject_after);
        let next = self
            .counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .map_err(|_next| DropReason::KeyExpired)?;
        Ok(Batch { key: self, next, end: next.saturating_add(step) })
    }

    /// Opens a data message in place: cheap checks, then the AEAD, and only then is the counter
    /// marked as used.
    ///
    /// # Errors
    /// Why it is refused; the datagram's bytes are of no use then.
    pub fn open<'a>(&self, now: Instant, datagram: &'a mut [u8]) -> Result<Opened<'a>, DropReason> {
        let header = DataHeader::parse(datagram)?;
        if header.receiver != self.local {
            return Err(DropReason::UnknownIndex);
        }
        self.check_open()?;
        if self.age(now) >= REJECT_AFTER || header.counter >= self.limits.reject_after {
            return Err(DropReason::KeyExpired);
        }
        let (window, other) = self.windows(header.flags);
        window.peek(header.counter).map_err(|Replayed| DropReason::Replay)?;
        let (aad, sealed) = datagram.split_at_mut(HEADER_LEN);
        let payload = self
            .receive
            .open_in_place(nonce(self.suite, header.counter), Aad::from(aad), sealed)
            .map_err(|_unspecified| DropReason::AuthFailed)?;
        let newest = window.commit(header.counter).map_err(|Replayed| DropReason::Replay)?
            && !other.is_past(header.counter);
        let confirms = !self.proven.load(Ordering::Relaxed) && {
            self.by_first.fetch_or(header.counter == 0, Ordering::Relaxed);
            !self.proven.swap(true, Ordering::AcqRel)
        };
        let refresh = self.initiator && self.age(now) >= REFRESH_AFTER;
        Ok(Opened { flags: header.flags, payload, newest, confirms, refresh })
    }

    /// Whose key it is.
    #[must_use]
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Which AEAD it is for.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// The index by which the peer names this key.
    #[must_use]
    pub const fn local_index(&self) -> u32 {
        self.local
    }

    /// The index by which this side names the key in what it sends.
    #[must_use]
    pub const fn remote_index(&self) -> u32 {
        self.remote
    }

    /// Whether this node began the handshake.
    #[must_use]
    pub const fn is_initiator(&self) -> bool {
        self.initiator
    }

    /// Time since the handshake.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.created)
    }

    /// How many packets were, or are about to be, sealed.
    #[must_use]
    pub fn sent_packets(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    /// Whether frames may be sealed with it.
    #[must_use]
    pub fn is_usable(&self, now: Instant) -> bool {
        self.age(now) < REJECT_AFTER
            && self.sent_packets() < self.limits.reject_after
            && self.check_open().is_ok()
    }

    /// Whether the sender of a packet should ask for a new key: the initiator by age, both by
    /// packets.
    #[must_use]
    pub fn wants_rekey(&self, now: Instant) -> bool {
        (self.initiator && self.age(now) >= REKEY_AFTER)
            || self.sent_packets() >= self.limits.rekey_after
    }

    pub(super) const fn created(&self) -> Instant {
        self.created
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Acquire)
    }

    /// Whether its very first packet has shown it.
    pub(super) fn is_proven_by_first(&self) -> bool {
        self.is_proven() && self.by_first.load(Ordering::Relaxed)
    }

    /// From here on it neither seals nor opens, whoever still holds it.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// The window for a packet of these flags, and the other one.
    const fn windows(&self, flags: u16) -> (&ReplayWindow, &ReplayWindow) {
        let [bulk, sparse] = &self.windows;
        if flags & FLAG_SPARSE == 0 { (bulk, sparse) } else { (sparse, bulk) }
    }

    fn check_open(&self) -> Result<(), DropReason> {
        if self.closed.load(Ordering::Acquire) { Err(DropReason::PeerRemoved) } else { Ok(()) }
    }

    fn seal(&self, counter: u64, flags: u16, datagram: &mut [u8]) -> Result<(), DropReason> {
        if datagram.len() < SEAL_OVERHEAD {
            return Err(DropReason::BadLength);
        }
        let header = DataHeader { flags, receiver: self.remote, counter }.to_bytes();
        let (head, body) = datagram.split_at_mut(HEADER_LEN);
        let (payload, tag_room) = body.split_at_mut(body.len() - TAG_LEN);
        head.copy_from_slice(&header);
        let tag = self
            .send
            .seal_in_place_separate_tag(nonce(self.suite, counter), Aad::from(&header), payload)
            .map_err(|_unspecified| DropReason::BadLength)?;
        tag_room.copy_from_slice(tag.as_ref());
        Ok(())
    }
}

/// A receiving initiator asks for a new key early enough that the old one outlasts the handshake.
const REFRESH_AFTER: Duration = Duration::from_secs(165);

/// Counters of one key that only this holder has. Each packet uses one up; what is left unused is
/// lost, which costs nothing.
#[derive(Debug)]
pub struct Batch<'a> {
    key: &'a Keypair,
    next: u64,
    end: u64,
}

impl Batch<'_> {
    /// Seals in place: `datagram` is 16 bytes of room for the header, the payload, 16 bytes of room
    /// for the tag.
    ///
    /// # Errors
    /// If there is no room, the batch is used up, or the peer was removed.
    pub fn seal(&mut self, flags: u16, datagram: &mut [u8]) -> Result<(), DropReason> {
        self.key.check_open()?;
        if self.next >= self.end {
            return Err(DropReason::KeyExpired);
        }
        let counter = self.next;
        self.next += 1;
        self.key.seal(counter, flags, datagram)
    }

    /// How many packets may still be sealed.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.end - self.next
    }
}

fn nonce(suite: Suite, counter: u64) -> Nonce {
    let [a, b, c, d, e, f, g, h] = match suite {
        Suite::AesGcm => counter.to_be_bytes(),
        Suite::ChaChaPoly => counter.to_le_bytes(),
    };
    Nonce::assume_unique_for_key([0, 0, 0, 0, a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use proptest::prelude::*;
    use snow::Builder;

    use super::*;
    use crate::{
        addr::NodeId,
        session::noise::{Resolver, public_key},
    };

    #[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
    fn now() -> Instant {
        Instant::now()
    }

    fn pair(suite: Suite, limits: KeyLimits, start: Instant) -> (Keypair, Keypair) {
        pair_of(suite, limits, start, [1; 32], [2; 32])
    }

    fn pair_of(
        suite: Suite,
        limits: KeyLimits,
        start: Instant,
        one: [u8; 32],
        two: [u8; 32],
    ) -> (Keypair, Keypair) {
        let peer = |name: &[u8]| Arc::new(Peer::new(NodeId::of_public_key(name), start, None));
        let agreed = |initiator, local, remote| Agreed {
            suite,
            limits,
            initiator,
            local,
            remote,
            created: start,
        };
        let keys = |send, receive| TransportKeys { send, receive };
        let a = Keypair::new(peer(b"b"), &agreed(true, 10, 20), &keys(one, two)).unwrap();
        let b = Keypair::new(peer(b"a"), &agreed(false, 20, 10), &keys(two, one)).unwrap();
        (a, b)
    }

    fn room(payload: &[u8]) -> Vec<u8> {
        [&[0; HEADER_LEN], payload, &[0; TAG_LEN]].concat()
    }

    #[test]
    fn i6_a_counter_is_never_used_twice_with_a_key() {
        let limits = KeyLimits { rekey_after: 10_000, reject_after: 20_011 };
        let (key, _) = pair(Suite::AesGcm, limits, now());
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 1..=8 {
                let (key, seen) = (&key, &seen);
                scope.spawn(move || {
                    while let Ok(mut batch) = key.reserve(thread * 7) {
                        let mut mine = Vec::new();
                        let mut datagram = room(b"x");
                        while batch.seal(0, &mut datagram).is_ok() {
                            mine.push(DataHeader::parse(&datagram).unwrap().counter);
                        }
                        seen.lock().unwrap_or_else(PoisonError::into_inner).extend(mine);
                    }
                });
            }
        });
        let mut seen = seen.into_inner().unwrap();
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count);
        assert!(seen.last().is_some_and(|last| *last < limits.reject_after));
        // What is left is less than the smallest step.
        assert!(limits.reject_after - key.sent_packets() < 7);
    }

    #[test]
    fn counters_do_not_wrap() {
        let limits = KeyLimits { rekey_after: u64::MAX, reject_after: u64::MAX };
        let (key, _) = pair(Suite::ChaChaPoly, limits, now());
        key.counter.store(u64::MAX - 3, Ordering::Relaxed);
        assert!(key.reserve(4).is_err());
        assert_eq!(key.reserve(3).unwrap().left(), 3);
        assert!(key.reserve(1).is_err());
        assert!(key.reserve(0).is_ok_and(|mut batch| batch.seal(0, &mut room(b"")).is_err()));
    }

    /// What ring seals with the raw split is what snow's own transport seals.
    #[test]
    fn bytes_equal_those_of_snows_transport() {
        for suite in [Suite::AesGcm, Suite::ChaChaPoly] {
            let name = match suite {
                Suite::AesGcm => "Noise_IKpsk2_25519_AESGCM_BLAKE2s",
                Suite::ChaChaPoly => "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
            };
            let builder = |ephemeral| {
                let resolver = Box::new(Resolver::new(&[ephemeral; 32]));
                Builder::with_resolver(name.parse().unwrap(), resolver)
            };
            let remote = public_key(&[5; 32]);
            let mut initiator = builder(3)
                .local_private_key(&[4; 32])
                .and_then(|builder| builder.remote_public_key(&remote))
                .and_then(|builder| builder.psk(2, &[6; 32]))
                .and_then(Builder::build_initiator)
                .unwrap();
            let mut responder = builder(7)
                .local_private_key(&[5; 32])
                .and_then(|builder| builder.psk(2, &[6; 32]))
                .and_then(Builder::build_responder)
                .unwrap();
            let (mut message, mut payload) = ([0; 200], [0; 200]);
            let length = initiator.write_message(b"", &mut message).unwrap();
            responder.read_message(&message[..length], &mut payload).unwrap();
            let length = responder.write_message(b"", &mut message).unwrap();
            initiator.read_message(&message[..length], &mut payload).unwrap();

            let (one, two) = initiator.dangerously_get_raw_split();
            let (a, b) = pair_of(suite, KeyLimits::of(suite), now(), one, two);
            let theirs_a = initiator.into_stateless_transport_mode().unwrap();
            let theirs_b = responder.into_stateless_transport_mode().unwrap();
            for counter in [0, 1, 255, 256, 1 << 33, u64::MAX - 1] {
                for (key, theirs) in [(&a, &theirs_a), (&b, &theirs_b)] {
                    let text = b"the same bytes";
                    let length = theirs.write_message(counter, text, &mut message).unwrap();
                    let mut ours = text.to_vec();
                    key.send
                        .seal_in_place_append_tag(nonce(suite, counter), Aad::empty(), &mut ours)
                        .unwrap();
                    assert_eq!(ours, message[..length]);
                }
            }
        }
    }

    #[test]
    fn opens_what_was_sealed_and_counts_its_first() {
        let start = now();
        let (a, b) = pair(Suite::AesGcm, KeyLimits::AES_GCM, start);
        let mut batch = a.reserve(2).unwrap();
        for (counter, payload) in [b"first".as_slice(), b""].into_iter().enumerate() {
            let mut datagram = room(payload);
            batch.seal(0x0102, &mut datagram).unwrap();
            assert!(payload.is_empty() || !datagram.windows(5).any(|bytes| bytes == payload));
            let mut again = datagram.clone();
            let opened = b.open(start, &mut datagram).unwrap();
            assert_eq!((opened.flags, &*opened.payload), (0x0102, payload));
            assert_eq!((opened.newest, opened.confirms), (true, counter == 0));
            assert!(matches!(b.open(start, &mut again), Err(DropReason::Replay)));
        }
        assert_eq!(batch.seal(0, &mut room(b"")), Err(DropReason::KeyExpired));
        assert_eq!(a.reserve(1).unwrap().seal(0, &mut [0; 31]), Err(DropReason::BadLength));
    }

    /// A socket of 8 MiB holds more packets than these even if they come alone.
    #[test]
    fn packets_of_sparse_flows_make_no_waiting_packet_old() {
        let start = now();
        let (a, b) = pair(Suite::AesGcm, KeyLimits::AES_GCM, start);
        let mut waiting = Vec::new();
        for packet in 0..20_000 {
            let sparse = packet % 1000 == 999;
            let mut datagram = room(b"");
            let flags = if sparse { FLAG_SPARSE } else { 0 };
            a.reserve(1).unwrap().seal(flags, &mut datagram).unwrap();
            if sparse {
                let mut again = datagram.clone();
                assert!(b.open(start, &mut datagram).unwrap().newest);
                assert!(matches!(b.open(start, &mut again), Err(DropReason::Replay)));
                // The lane cannot be changed on the way, so nothing is accepted in both.
                again[2] ^= FLAG_SPARSE.to_le_bytes()[0];
                assert!(b.open(start, &mut again).is_err());
            } else {
                waiting.push(datagram);
            }
        }
        for (at, datagram) in waiting.iter_mut().enumerate() {
            let mut again = datagram.clone();
            let newest = b.open(start, datagram).unwrap().newest;
            assert!(
                !newest,
                "{at}: an address is believed of the newest packet of either lane only"
            );
            assert!(matches!(b.open(start, &mut again), Err(DropReason::Replay)));
        }
    }

    #[test]
    fn who_asks_for_a_new_key_and_when() {
        let start = now();
        let (a, b) = pair(Suite::AesGcm, KeyLimits { rekey_after: 5, reject_after: 10 }, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!a.wants_rekey(at(119)) && a.wants_rekey(at(120)) && !b.wants_rekey(at(179)));
        assert!(a.is_usable(at(179)) && !a.is_usable(at(180)));
        let _used = b.reserve(5).unwrap();
        assert!(b.wants_rekey(at(0)));
        let mut datagram = room(b"x");
        b.reserve(1).unwrap().seal(0, &mut datagram).unwrap();
        let mut late = datagram.clone();
        assert!(!a.open(at(164), &mut datagram).unwrap().refresh);
        assert!(matches!(a.open(at(180), &mut late), Err(DropReason::KeyExpired)));
        b.reserve(1).unwrap().seal(0, &mut datagram).unwrap();
        assert!(a.open(at(165), &mut datagram).unwrap().refresh);
    }

    proptest! {
        #[test]
        fn no_datagram_panics(mut datagram in prop::collection::vec(any::<u8>(), 0..100), ours: bool) {
            let start = now();
            let (a, _) = pair(Suite::ChaChaPoly, KeyLimits::CHACHA_POLY, start);
            if ours && datagram.len() >= 8 {
                datagram[..8].copy_from_slice(&[4, 1, 0, 0, 10, 0, 0, 0]);
            }
            prop_assert!(a.open(start, &mut datagram).is_err());
        }
    }
}
