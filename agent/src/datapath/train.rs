//! From frames to sealed datagrams on the underlay: a [`Train`] of datagrams for one peer, which
//! leaves with one call ([`GsoBatch`]).
//!
//! ```text
//! | header 16 | VXLAN 8 | frame | tag 16 | header 16 | VXLAN 8 | frame | tag 16 | ...     UDP_SEGMENT = length of the first
//! | header 16 | list of small packets: VXLAN 8, frame   | tag 16 | ...
//! ```
//!
//! All have the same length but the last, which may be shorter, and the congestion mark of what is
//! inside ([`Ecn`]). Each frame is cut to where it is sealed and sealed there. Small frames that
//! follow one another share a datagram, whatever their networks and lengths, if their marks are the
//! same. A train leaves when the next frame does not fit, and whenever the worker has nothing more
//! to read: nothing waits.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use vxmesh_proto::{
    addr::Vni,
    flow::Lane,
    frame::{Frame, Segments, ecn::Ecn},
    path::{Step, Watch},
    reason::DropReason,
    session::{
        Keypair, Peer,
        wire::{FLAG_AGGREGATE, FLAG_SPARSE, HEADER_LEN, SEAL_OVERHEAD},
    },
    wire::{
        aggregate::{List, PACKET_LEN, PAYLOAD_LEN},
        vxlan,
    },
};

use super::{
    Shared,
    drops::DropKey,
    gso::{GsoBatch, Noise, Sealer, datagram_len, put_packet},
    sessions::SessionInput,
};

/// The longest datagram that small packets share.
const SHARED_LEN: usize = PAYLOAD_LEN + SEAL_OVERHEAD;

/// Sealed datagrams that are about to leave.
pub(super) struct Train {
    lane: Lane,
    /// Which of the data sockets it leaves from.
    socket: usize,
    batch: GsoBatch,
    /// Behind them one that is not sealed yet: small packets, and the key that they will be sealed
    /// with.
    open: Option<(Arc<Keypair>, List)>,
    to: Option<(Arc<Peer>, SocketAddr)>,
    /// The mark of all of them.
    ecn: Ecn,
    began: Instant,
}

impl Train {
    pub(super) fn new(lane: Lane, socket: usize) -> Self {
        let (batch, began) = (GsoBatch::new(), Instant::now());
        Self { lane, socket, batch, open: None, to: None, ecn: Ecn::NotEct, began }
    }

    /// Steps 9 and 10: cuts a frame of a network and seals each packet for each of the peers; sends
    /// what becomes full.
    pub(super) fn carry<'p>(
        &mut self,
        shared: &Shared,
        (vni, watch): (Vni, &mut impl Watch),
        peers: impl IntoIterator<Item = &'p Arc<Peer>>,
        frame: &Frame<'_>,
        now: Instant,
    ) {
        watch.step(Step::Cut, frame.bytes());
        match Segments::of(frame) {
            Ok(segments) => {
                watch.step(Step::Seal, frame.bytes());
                for peer in peers {
                    self.push(shared, peer, vni, &segments, now);
                }
            }
            Err(reason) => watch.drop(reason, frame.bytes()),
        }
    }

    /// Without a key the packets wait at the peer and the session thread is asked for one.
    fn push(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        vni: Vni,
        segments: &Segments<'_>,
        now: Instant,
    ) {
        if let Err((reason, lost)) = self.try_push(shared, peer, vni, segments, now) {
            not_sealed(shared, peer, reason, lost);
        }
    }

    fn try_push(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        vni: Vni,
        segments: &Segments<'_>,
        now: Instant,
    ) -> Result<(), (DropReason, usize)> {
        let count = segments.count();
        let is_small = count == 1 && vxlan::HEADER_LEN + segments.frame_len(0) <= PACKET_LEN;
        if is_small && self.share(peer, vni, segments) {
            return Ok(());
        }
        let ecn = segments.ecn();
        self.close(shared, is_small && self.is_to(peer, ecn));
        let all = |reason| (reason, count);
        let Some(keypair) = peer.sender(now) else {
            return stage(shared, peer, vni, segments);
        };
        let addr = peer.addr().ok_or_else(|| all(DropReason::NoSession))?;
        if is_small {
            self.make_room(shared, (peer, addr, ecn), None, now);
            self.open = Some((keypair, List::default()));
            let fits = self.share(peer, vni, segments);
            return fits.then_some(()).ok_or_else(|| all(DropReason::BadLength));
        }
        let counters = u32::try_from(count).map_err(|_too_many| all(DropReason::BadLength))?;
        let mut sealer = Noise(keypair.reserve(counters).map_err(all)?, flags(self.lane));
        for index in 0..count {
            let len = datagram_len::<Noise<'_>>(segments, index);
            self.make_room(shared, (peer, addr, ecn), Some(len), now);
            let added = self.batch.add(&mut sealer, vni, segments, index);
            added.map_err(|reason| (reason, count - index))?;
        }
        if keypair.wants_rekey(now) {
            want(shared, peer);
        }
        Ok(())
    }

    /// Adds a small packet to those that are not sealed yet. False if there are none for its peer,
    /// or no room.
    fn share(&mut self, peer: &Arc<Peer>, vni: Vni, segments: &Segments<'_>) -> bool {
        let is_to = self.is_to(peer, segments.ecn());
        let Some((_, list)) = self.open.as_mut().filter(|_| is_to) else { return false };
        let room = payload(&mut self.batch);
        let place = list.add(room, vxlan::HEADER_LEN + segments.frame_len(0));
        place.map(|packet| put_packet(packet, vni, segments, 0)).is_some()
    }

    /// Seals the packets that share a datagram. Where more of them follow (`is_full`) it gets the
    /// length of the next ones.
    fn close(&mut self, shared: &Shared, is_full: bool) {
        let Some((keypair, mut list)) = self.open.take() else { return };
        let shares = list.packets() > 1;
        if is_full && shares && (self.batch.count() == 0 || self.batch.stride() == SHARED_LEN) {
            list.fill(payload(&mut self.batch));
        }
        let len = list.len() + SEAL_OVERHEAD;
        if self.batch.count() > 0 && len > self.batch.stride() {
            self.send(shared);
            self.batch.clear_before(len);
        }
        let flags = flags(self.lane) | if shares { FLAG_AGGREGATE } else { 0 };
        let room = self.batch.room().get_mut(..len).unwrap_or_default();
        match keypair.reserve(1).and_then(|counter| Noise(counter, flags).seal(room)) {
            Ok(()) => self.batch.push(len, list.packets()),
            Err(reason) => not_sealed(shared, keypair.peer(), reason, list.packets()),
        }
        if keypair.wants_rekey(self.began) {
            want(shared, keypair.peer());
        }
    }

    /// Sends what is there if a datagram cannot follow it: one of this length, or one for small
    /// packets.
    fn make_room(
        &mut self,
        shared: &Shared,
        (peer, addr, ecn): (&Arc<Peer>, SocketAddr, Ecn),
        len: Option<usize>,
        now: Instant,
    ) {
        let same = self.is_to(peer, ecn) && self.to.as_ref().is_some_and(|(_, at)| *at == addr);
        let fits = same && self.batch.fits(len.unwrap_or(SHARED_LEN), len.is_none());
        if self.batch.count() > 0 && fits {
            return;
        }
        self.leave(shared);
        self.began = now;
        if !same {
            self.to = Some((Arc::clone(peer), addr));
            self.ecn = ecn;
        }
    }

    /// Sends what is there.
    pub(super) fn flush(&mut self, shared: &Shared) {
        self.close(shared, false);
        self.leave(shared);
    }

    /// Sends what is sealed, and forgets it.
    fn leave(&mut self, shared: &Shared) {
        self.send(shared);
        self.batch.clear();
    }

    fn send(&mut self, shared: &Shared) {
        let Some((peer, addr)) = self.to.as_ref().filter(|_| self.batch.count() > 0) else {
            return;
        };
        // Noted first: an answer must not find that nothing was sent.
        peer.note_sent(self.began, u64::try_from(self.batch.len()).unwrap_or(u64::MAX), true);
        let (socket, ecn) = (shared.sender(self.lane, self.socket), self.ecn);
        self.batch.send(
            *addr,
            &shared.offloads,
            |bytes, segment| socket.send(*addr, bytes, segment, ecn),
            |error, lost| {
                let lost = u64::try_from(lost).unwrap_or(u64::MAX);
                shared.not_sent(*addr, error, Some(peer.id()), lost);
            },
        );
    }

    /// Whether something waits to leave that came before this time.
    pub(super) fn waits_since(&self, time: Instant) -> bool {
        !self.is_empty() && self.began < time
    }

    /// Whether nothing waits to leave.
    pub(super) const fn is_empty(&self) -> bool {
        self.batch.count() == 0 && self.open.is_none()
    }

    /// Whether the datagrams are for this peer and have this mark.
    fn is_to(&self, peer: &Arc<Peer>, ecn: Ecn) -> bool {
        self.ecn == ecn && self.to.as_ref().is_some_and(|(is, _)| Arc::ptr_eq(is, peer))
    }
}

/// Where the payload of the next datagram is.
fn payload(batch: &mut GsoBatch) -> &mut [u8] {
    batch.room().get_mut(HEADER_LEN..HEADER_LEN + PAYLOAD_LEN).unwrap_or_default()
}

const fn flags(lane: Lane) -> u16 {
    match lane {
        Lane::Sparse => FLAG_SPARSE,
        Lane::Bulk => 0,
    }
}

fn not_sealed(shared: &Shared, peer: &Peer, reason: DropReason, packets: usize) {
    let key = DropKey::of(reason).with_peer(peer.id());
    shared.drops.add(key, u64::try_from(packets).unwrap_or(u64::MAX));
}

/// Keeps packets until there is a key.
fn stage(
    shared: &Shared,
    peer: &Peer,
    vni: Vni,
    segments: &Segments<'_>,
) -> Result<(), (DropReason, usize)> {
    let mut lost = None;
    for index in 0..segments.count() {
        let mut packet = vec![0; vxlan::HEADER_LEN + segments.frame_len(index)];
        put_packet(&mut packet, vni, segments, index);
        if let Err(reason) = peer.stage(packet) {
            let (_, before) = lost.unwrap_or((reason, 0));
            lost = Some((reason, before + 1));
        }
    }
    want(shared, peer);
    lost.map_or(Ok(()), Err)
}

/// Asks the session thread for a key, once until it has heard.
pub(super) fn want(shared: &Shared, peer: &Peer) {
    if peer.want() {
        shared.to_sessions(SessionInput::Wanted(peer.id()));
    }
}
