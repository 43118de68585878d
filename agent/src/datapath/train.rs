//! From frames to sealed datagrams on the underlay: a [`Train`] of datagrams for one peer, which leaves with one call.
//!
//! ```text
//! | header 16 | VXLAN 8 | frame | tag 16 | header 16 | VXLAN 8 | frame | tag 16 | ...     UDP_SEGMENT = length of the first
//! ```
//!
//! All have the same length but the last, which may be shorter. Each frame is cut to where it is sealed and sealed there. A
//! train leaves when the next frame does not fit, and whenever the worker has nothing more to read: nothing waits.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use nix::errno::Errno;
use vxmesh_proto::{
    addr::Vni,
    datapath::{Lane, Segments, SuperFrame},
    session::{
        Peer, SessionDrop,
        wire::{FLAG_SPARSE, HEADER_LEN, SEAL_OVERHEAD, TAG_LEN},
    },
    wire::vxlan,
};

use super::{Shared, drops::DropKey, port::Port, sessions::SessionInput};

/// The longest payload of a UDP datagram over IPv4, which holds for a train as a whole.
const ROOM: usize = 65_507;
/// Datagrams that the kernel cuts from one (`UDP_MAX_SEGMENTS`; 128 in newer ones).
const MAX_DATAGRAMS: usize = 64;
/// Where the frame is in a datagram.
const FRAME_AT: usize = HEADER_LEN + vxlan::HEADER_LEN;
/// Destinations that do without segmentation. One that comes when this is full tries again what did not work.
const PLAIN_DESTINATIONS: usize = 1024;

/// Sealed datagrams that are about to leave.
pub(super) struct Train {
    lane: Lane,
    buffer: Vec<u8>,
    used: usize,
    count: usize,
    /// Length of the first.
    stride: usize,
    /// The last is shorter: nothing can follow.
    ended: bool,
    to: Option<(Arc<Peer>, SocketAddr)>,
    began: Instant,
    /// Where the interface cannot cut datagrams.
    plain: Vec<SocketAddr>,
}

impl Train {
    pub(super) fn new(lane: Lane) -> Self {
        Self {
            lane,
            buffer: vec![0; ROOM],
            used: 0,
            count: 0,
            stride: 0,
            ended: false,
            to: None,
            began: Instant::now(),
            plain: Vec::new(),
        }
    }

    /// Cuts a frame of a network and seals each packet for each of the peers; sends what becomes full.
    pub(super) fn carry<'p>(
        &mut self,
        shared: &Shared,
        port: &Port,
        peers: impl IntoIterator<Item = &'p Arc<Peer>>,
        frame: &SuperFrame<'_>,
        now: Instant,
    ) {
        match Segments::of(frame) {
            Ok(segments) => {
                for peer in peers {
                    self.push(shared, peer, port.vni(), &segments, now);
                }
            }
            Err(reason) => port.dropped(&shared.drops, reason, None),
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
            let key = DropKey { reason: reason.as_str(), network: None, peer: Some(peer.id()) };
            shared.drops.add(key, u64::try_from(lost).unwrap_or(u64::MAX));
        }
    }

    fn try_push(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        vni: Vni,
        segments: &Segments<'_>,
        now: Instant,
    ) -> Result<(), (SessionDrop, usize)> {
        let count = segments.count();
        let all = |reason| (reason, count);
        let Some(keypair) = peer.sender(now) else {
            return stage(shared, peer, vni, segments);
        };
        let addr = peer.addr().ok_or_else(|| all(SessionDrop::NoSession))?;
        let counters = u32::try_from(count).map_err(|_too_many| all(SessionDrop::BadLength))?;
        let flags = match self.lane {
            Lane::Sparse => FLAG_SPARSE,
            Lane::Bulk => 0,
        };
        let mut batch = keypair.reserve(counters).map_err(all)?;
        for index in 0..count {
            let len = vxlan::HEADER_LEN + segments.frame_len(index) + SEAL_OVERHEAD;
            let lost = |reason| (reason, count - index);
            self.make_room(shared, (peer, addr), len, now);
            let room = self.buffer.get_mut(self.used..self.used + len);
            let room = room.ok_or_else(|| lost(SessionDrop::BadLength))?;
            put_packet(room, vni, segments, index);
            batch.seal(flags, room).map_err(lost)?;
            self.used += len;
            self.count += 1;
            self.ended = len < self.stride;
        }
        if keypair.wants_rekey(now) {
            want(shared, peer);
        }
        Ok(())
    }

    /// Sends what is there if a datagram of `len` bytes cannot follow it.
    fn make_room(
        &mut self,
        shared: &Shared,
        (peer, addr): (&Arc<Peer>, SocketAddr),
        len: usize,
        now: Instant,
    ) {
        let same = self.to.as_ref().is_some_and(|(is, at)| Arc::ptr_eq(is, peer) && *at == addr);
        let fits = same
            && !self.ended
            && len <= self.stride
            && self.count < MAX_DATAGRAMS
            && self.used + len <= ROOM
            && !self.is_plain(addr);
        if self.count > 0 && fits {
            return;
        }
        self.flush(shared);
        self.stride = len;
        self.began = now;
        if !same {
            self.to = Some((Arc::clone(peer), addr));
        }
    }

    /// Sends what is there.
    pub(super) fn flush(&mut self, shared: &Shared) {
        let (count, used) = (self.count, self.used);
        (self.count, self.used, self.ended) = (0, 0, false);
        let (Some((peer, addr)), Some(bytes)) = (&self.to, self.buffer.get(..used)) else { return };
        if count == 0 {
            return;
        }
        // Noted first: an answer must not find that nothing was sent.
        peer.note_sent(self.began, u64::try_from(used).unwrap_or(u64::MAX), true);
        let segment = (count > 1).then_some(self.stride);
        let socket = shared.socket(self.lane);
        let Err(error) = socket.send(*addr, bytes, segment) else { return };
        let refused = error.raw_os_error().map(Errno::from_raw);
        if segment.is_none() || !matches!(refused, Some(Errno::EIO | Errno::EINVAL)) {
            let lost = u64::try_from(count).unwrap_or(u64::MAX);
            return shared.not_sent(*addr, &error, Some(peer.id()), lost);
        }
        // An interface without checksum offload refuses trains (EIO), others refuse this one (EINVAL).
        let addr = *addr;
        let mut carried = false;
        for datagram in bytes.chunks(self.stride) {
            carried |= shared.send(addr, datagram, Some(peer.id()));
        }
        if carried {
            shared.offloads.refuse_segments(addr, &error);
            self.plain.truncate(PLAIN_DESTINATIONS - 1);
            self.plain.push(addr);
        }
    }

    fn is_plain(&self, addr: SocketAddr) -> bool {
        self.plain.contains(&addr)
    }
}

/// Writes a packet to where it is to be sealed: room for the header, VXLAN header, frame, room for the tag.
fn put_packet(datagram: &mut [u8], vni: Vni, segments: &Segments<'_>, index: usize) {
    let end = datagram.len().saturating_sub(TAG_LEN);
    if let Some(header) = datagram.get_mut(HEADER_LEN..FRAME_AT) {
        header.copy_from_slice(&vxlan::header(vni));
    }
    segments.write(index, datagram.get_mut(FRAME_AT..end).unwrap_or_default());
}

/// Keeps packets until there is a key.
fn stage(
    shared: &Shared,
    peer: &Peer,
    vni: Vni,
    segments: &Segments<'_>,
) -> Result<(), (SessionDrop, usize)> {
    let mut lost = None;
    for index in 0..segments.count() {
        let len = vxlan::HEADER_LEN + segments.frame_len(index) + SEAL_OVERHEAD;
        let mut datagram = vec![0; len];
        put_packet(&mut datagram, vni, segments, index);
        datagram.truncate(len - TAG_LEN);
        datagram.drain(..HEADER_LEN);
        if let Err(reason) = peer.stage(datagram) {
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
