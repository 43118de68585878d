//! From frames to sealed datagrams on the underlay: a [`Train`] of datagrams for one peer, which
//! leaves with one call.
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

use nix::errno::Errno;
use vxmesh_proto::{
    addr::Vni,
    flow::Lane,
    frame::{Frame, Segments, ecn::Ecn},
    path::{Step, Watch},
    reason::DropReason,
    session::{
        Keypair, Peer,
        wire::{FLAG_AGGREGATE, FLAG_SPARSE, HEADER_LEN, SEAL_OVERHEAD, TAG_LEN},
    },
    wire::{
        aggregate::{List, PACKET_LEN, PAYLOAD_LEN},
        vxlan,
    },
};

use super::{Shared, drops::DropKey, sessions::SessionInput};

/// The longest payload of a UDP datagram over IPv4, which holds for a train as a whole.
const ROOM: usize = 65_507;
/// Datagrams that the kernel cuts from one (`UDP_MAX_SEGMENTS`; 128 in newer ones).
const MAX_DATAGRAMS: usize = 64;
/// The longest datagram that small packets share.
const SHARED_LEN: usize = PAYLOAD_LEN + SEAL_OVERHEAD;
/// Destinations that do without segmentation. One that comes when this is full tries again what did
/// not work.
const PLAIN_DESTINATIONS: usize = 1024;

/// Sealed datagrams that are about to leave.
pub(super) struct Train {
    lane: Lane,
    /// Which of the data sockets it leaves from.
    socket: usize,
    buffer: Vec<u8>,
    used: usize,
    count: usize,
    /// Length of the first.
    stride: usize,
    /// The last is shorter: nothing can follow.
    ended: bool,
    /// Packets in all of them.
    packets: usize,
    /// Behind them one that is not sealed yet: small packets, and the key that they will be sealed
    /// with.
    open: Option<(Arc<Keypair>, List)>,
    to: Option<(Arc<Peer>, SocketAddr)>,
    /// The mark of all of them.
    ecn: Ecn,
    began: Instant,
    /// Where the interface cannot cut datagrams.
    plain: Vec<SocketAddr>,
}

impl Train {
    pub(super) fn new(lane: Lane, socket: usize) -> Self {
        Self {
            lane,
            socket,
            buffer: vec![0; ROOM],
            used: 0,
            count: 0,
            stride: 0,
            ended: false,
            packets: 0,
            open: None,
            to: None,
            ecn: Ecn::NotEct,
            began: Instant::now(),
            plain: Vec::new(),
        }
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
        let mut batch = keypair.reserve(counters).map_err(all)?;
        for index in 0..count {
            let len = vxlan::HEADER_LEN + segments.frame_len(index) + SEAL_OVERHEAD;
            let lost = |reason| (reason, count - index);
            self.make_room(shared, (peer, addr, ecn), Some(len), now);
            let room = self.buffer.get_mut(self.used..self.used + len);
            let room = room.ok_or_else(|| lost(DropReason::BadLength))?;
            let end = len - TAG_LEN;
            put_packet(room.get_mut(HEADER_LEN..end).unwrap_or_default(), vni, segments, index);
            batch.seal(flags(self.lane), room).map_err(lost)?;
            self.sealed(len, 1);
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
        let begin = self.used + HEADER_LEN;
        let room = self.buffer.get_mut(begin..begin + PAYLOAD_LEN).unwrap_or_default();
        let place = list.add(room, vxlan::HEADER_LEN + segments.frame_len(0));
        place.map(|packet| put_packet(packet, vni, segments, 0)).is_some()
    }

    /// Seals the packets that share a datagram. Where more of them follow (`is_full`) it gets the
    /// length of the next ones.
    fn close(&mut self, shared: &Shared, is_full: bool) {
        let Some((keypair, mut list)) = self.open.take() else { return };
        let shares = list.packets() > 1;
        if is_full && shares && (self.count == 0 || self.stride == SHARED_LEN) {
            let begin = self.used + HEADER_LEN;
            list.fill(self.buffer.get_mut(begin..begin + PAYLOAD_LEN).unwrap_or_default());
        }
        let len = list.len() + SEAL_OVERHEAD;
        if self.count > 0 && len > self.stride {
            let at = self.used;
            self.leave(shared);
            self.buffer.copy_within(at..at + len, 0);
        }
        let flags = flags(self.lane) | if shares { FLAG_AGGREGATE } else { 0 };
        let room = self.buffer.get_mut(self.used..self.used + len).unwrap_or_default();
        match keypair.reserve(1).and_then(|mut counter| counter.seal(flags, room)) {
            Ok(()) => self.sealed(len, list.packets()),
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
        let fits = same
            && !self.ended
            && len.is_none_or(|len| len <= self.stride)
            && self.count < MAX_DATAGRAMS
            && self.used + len.unwrap_or(SHARED_LEN) <= ROOM
            && !self.is_plain(addr);
        if self.count > 0 && fits {
            return;
        }
        self.leave(shared);
        self.began = now;
        if !same {
            self.to = Some((Arc::clone(peer), addr));
            self.ecn = ecn;
        }
    }

    /// Counts a datagram of this length and with so many packets in, behind the others.
    fn sealed(&mut self, len: usize, packets: usize) {
        if self.count == 0 {
            self.stride = len;
        }
        self.used += len;
        self.count += 1;
        self.packets += packets;
        self.ended = len < self.stride;
    }

    /// Sends what is there.
    pub(super) fn flush(&mut self, shared: &Shared) {
        self.close(shared, false);
        self.leave(shared);
    }

    /// Sends what is sealed.
    fn leave(&mut self, shared: &Shared) {
        let (count, used, packets) = (self.count, self.used, self.packets);
        (self.count, self.used, self.packets, self.ended) = (0, 0, 0, false);
        let (Some((peer, addr)), Some(bytes)) = (&self.to, self.buffer.get(..used)) else { return };
        if count == 0 {
            return;
        }
        // Noted first: an answer must not find that nothing was sent.
        peer.note_sent(self.began, u64::try_from(used).unwrap_or(u64::MAX), true);
        let segment = (count > 1).then_some(self.stride);
        let socket = shared.sender(self.lane, self.socket);
        let Err(error) = socket.send(*addr, bytes, segment, self.ecn) else { return };
        let refused = error.raw_os_error().map(Errno::from_raw);
        if segment.is_none() || !matches!(refused, Some(Errno::EIO | Errno::EINVAL)) {
            let lost = u64::try_from(packets).unwrap_or(u64::MAX);
            return shared.not_sent(*addr, &error, Some(peer.id()), lost);
        }
        // An interface without checksum offload refuses trains (EIO), others refuse this one
        // (EINVAL).
        let addr = *addr;
        let mut carried = false;
        for datagram in bytes.chunks(self.stride) {
            match socket.send(addr, datagram, None, self.ecn) {
                // One shorter than the others may be all that the path carries.
                Ok(()) => carried |= datagram.len() == self.stride,
                Err(error) => shared.not_sent(addr, &error, Some(peer.id()), 1),
            }
        }
        if carried {
            shared.offloads.refuse_segments(addr, &error);
            self.plain.truncate(PLAIN_DESTINATIONS - 1);
            self.plain.push(addr);
        }
    }

    /// Whether something waits to leave that came before this time.
    pub(super) fn waits_since(&self, time: Instant) -> bool {
        !self.is_empty() && self.began < time
    }

    /// Whether nothing waits to leave.
    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0 && self.open.is_none()
    }

    /// Whether the datagrams are for this peer and have this mark.
    fn is_to(&self, peer: &Arc<Peer>, ecn: Ecn) -> bool {
        self.ecn == ecn && self.to.as_ref().is_some_and(|(is, _)| Arc::ptr_eq(is, peer))
    }

    fn is_plain(&self, addr: SocketAddr) -> bool {
        self.plain.contains(&addr)
    }
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

/// Writes a packet to where it is to be sealed: VXLAN header, frame.
fn put_packet(packet: &mut [u8], vni: Vni, segments: &Segments<'_>, index: usize) {
    if let Some((header, frame)) = packet.split_at_mut_checked(vxlan::HEADER_LEN) {
        header.copy_from_slice(&vxlan::header(vni));
        segments.write(index, frame);
    }
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
