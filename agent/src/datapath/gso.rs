//! Datagrams that leave with one call ([`GsoBatch`]), and how a packet becomes one ([`Sealer`]).
//!
//! ```text
//! | datagram | datagram | ... | shorter |     UDP_SEGMENT = length of the first
//! datagram = what a Sealer puts in front | VXLAN 8 | frame | what it puts behind
//! ```
//!
//! The kernel or the card cuts a batch to the length of its first datagram; only the last may be
//! shorter. Where an interface cannot, the datagrams leave one by one.

use std::{io, net::SocketAddr};

use nix::errno::Errno;
use vxmesh_proto::{
    addr::Vni,
    frame::Segments,
    path::plain::PlainTable,
    reason::DropReason,
    session::{
        Batch,
        wire::{HEADER_LEN, TAG_LEN},
    },
    wire::vxlan,
};

use super::offloads::Offloads;

/// The longest payload of a UDP datagram over IPv4, which holds for a batch as a whole.
const ROOM: usize = 65_507;
/// Datagrams that the kernel cuts from one (`UDP_MAX_SEGMENTS`; 128 in newer ones).
const MAX_DATAGRAMS: usize = 64;
/// Destinations that do without segmentation. One that comes when this is full tries again what did
/// not work.
const SINGLE_DESTINATIONS: usize = 1024;

/// Makes a datagram of a packet where it lies.
pub(super) trait Sealer {
    /// Bytes that it needs in front of the packet.
    const FRONT: usize;
    /// Bytes that it needs behind.
    const BEHIND: usize;

    /// Makes the datagram: the packet is written, and what is around it is not.
    fn seal(&mut self, datagram: &mut [u8]) -> Result<(), DropReason>;
}

/// Seals for a peer, with counters that were reserved and these flags.
pub(super) struct Noise<'k>(pub Batch<'k>, pub u16);

impl Sealer for Noise<'_> {
    const FRONT: usize = HEADER_LEN;
    const BEHIND: usize = TAG_LEN;

    fn seal(&mut self, datagram: &mut [u8]) -> Result<(), DropReason> {
        self.0.seal(self.1, datagram)
    }
}

/// Leaves a packet as it is.
pub(super) struct Clear(());

impl Clear {
    /// Only who has the snapshot of a plain network has this (I10).
    pub(super) const fn of(_plain: &PlainTable) -> Self {
        Self(())
    }
}

impl Sealer for Clear {
    const FRONT: usize = 0;
    const BEHIND: usize = 0;

    fn seal(&mut self, _datagram: &mut [u8]) -> Result<(), DropReason> {
        Ok(())
    }
}

/// Datagrams that are about to leave together: all to one peer, or each to several VTEPs.
pub(super) struct GsoBatch {
    buffer: Vec<u8>,
    used: usize,
    count: usize,
    /// Length of the first.
    stride: usize,
    /// Packets in all of them.
    packets: usize,
    /// Where the interface cannot cut datagrams.
    single: Vec<SocketAddr>,
}

impl GsoBatch {
    pub(super) fn new() -> Self {
        let (buffer, single) = (vec![0; ROOM], Vec::new());
        Self { buffer, used: 0, count: 0, stride: 0, packets: 0, single }
    }

    /// How many datagrams there are.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// How many bytes they have.
    pub(super) const fn len(&self) -> usize {
        self.used
    }

    /// Length of the first; the others have no more.
    pub(super) const fn stride(&self) -> usize {
        self.stride
    }

    /// Whether a datagram can follow that has this length, or one that may become as short as it
    /// must be but needs so much room.
    pub(super) fn fits(&self, len: usize, may_be_shorter: bool) -> bool {
        let whole = self.used == self.count * self.stride;
        self.count == 0
            || (whole
                && (may_be_shorter || len <= self.stride)
                && self.count < MAX_DATAGRAMS
                && self.used + len <= ROOM)
    }

    /// The room behind the datagrams.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.used..).unwrap_or_default()
    }

    /// Counts the first bytes of the room as a datagram with so many packets in.
    pub(super) fn push(&mut self, len: usize, packets: usize) {
        if self.count == 0 {
            self.stride = len;
        }
        self.used += len;
        self.count += 1;
        self.packets += packets;
    }

    /// Adds the datagram of a packet of a network.
    pub(super) fn add<S: Sealer>(
        &mut self,
        sealer: &mut S,
        vni: Vni,
        segments: &Segments<'_>,
        index: usize,
    ) -> Result<(), DropReason> {
        let len = datagram_len::<S>(segments, index);
        let datagram = self.room().get_mut(..len).ok_or(DropReason::BadLength)?;
        let packet = datagram.get_mut(S::FRONT..len - S::BEHIND).unwrap_or_default();
        put_packet(packet, vni, segments, index);
        sealer.seal(datagram)?;
        self.push(len, 1);
        Ok(())
    }

    /// Forgets the datagrams.
    pub(super) const fn clear(&mut self) {
        (self.used, self.count, self.packets) = (0, 0, 0);
    }

    /// Forgets the datagrams, and has the room begin with so many bytes of what it began with.
    pub(super) fn clear_before(&mut self, len: usize) {
        self.buffer.copy_within(self.used..self.used + len, 0);
        self.clear();
    }

    /// Sends the datagrams with `send`, which takes bytes and the length to cut them to. Tells
    /// `lost` how many packets did not go, and why.
    pub(super) fn send(
        &mut self,
        to: SocketAddr,
        offloads: &Offloads,
        send: impl Fn(&[u8], Option<usize>) -> io::Result<()>,
        lost: impl Fn(&io::Error, usize),
    ) {
        let datagrams = self.buffer.get(..self.used).unwrap_or_default();
        if self.count == 0 {
            return;
        }
        let segment = (self.count > 1).then_some(self.stride);
        let mut refused = None;
        if segment.is_none() || !self.single.contains(&to) {
            let Err(error) = send(datagrams, segment) else { return };
            let errno = error.raw_os_error().map(Errno::from_raw);
            // An interface without checksum offload refuses batches (EIO), others refuse this one
            // (EINVAL).
            if segment.is_none() || !matches!(errno, Some(Errno::EIO | Errno::EINVAL)) {
                return lost(&error, self.packets);
            }
            refused = Some(error);
        }
        let mut carried = false;
        for datagram in datagrams.chunks(self.stride) {
            match send(datagram, None) {
                // One shorter than the others may be all that the path carries.
                Ok(()) => carried |= datagram.len() == self.stride,
                Err(error) => lost(&error, 1),
            }
        }
        if let Some(error) = refused.filter(|_| carried) {
            offloads.refuse_segments(to, &error);
            self.single.truncate(SINGLE_DESTINATIONS - 1);
            self.single.push(to);
        }
    }
}

/// How long the datagram of a packet is.
pub(super) fn datagram_len<S: Sealer>(segments: &Segments<'_>, index: usize) -> usize {
    S::FRONT + vxlan::HEADER_LEN + segments.frame_len(index) + S::BEHIND
}

/// Writes a packet to where it is to be sealed: VXLAN header, frame.
pub(super) fn put_packet(packet: &mut [u8], vni: Vni, segments: &Segments<'_>, index: usize) {
    if let Some((header, frame)) = packet.split_at_mut_checked(vxlan::HEADER_LEN) {
        header.copy_from_slice(&vxlan::header(vni));
        segments.write(index, frame);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use vxmesh_proto::frame::Frame;

    use super::*;

    /// One byte in front of the packet and one behind.
    struct Around;

    impl Sealer for Around {
        const FRONT: usize = 1;
        const BEHIND: usize = 1;

        fn seal(&mut self, datagram: &mut [u8]) -> Result<(), DropReason> {
            let [first, .., last] = datagram else { return Err(DropReason::BadLength) };
            (*first, *last) = (b'<', b'>');
            Ok(())
        }
    }

    fn to() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 7761))
    }

    /// A batch with frames of these lengths.
    fn batch(lens: &[usize]) -> GsoBatch {
        let mut batch = GsoBatch::new();
        for len in lens {
            let mut bytes = vec![7; *len];
            let frame = Frame::plain(&mut bytes);
            let segments = Segments::of(&frame).unwrap();
            assert!(batch.fits(datagram_len::<Around>(&segments, 0), false));
            batch.add(&mut Around, Vni::MAX, &segments, 0).unwrap();
        }
        batch
    }

    /// The lengths that `send` was called with, where batches are refused with this error, and how
    /// many packets were lost.
    fn sent(
        batch: &mut GsoBatch,
        offloads: &Offloads,
        refuses: impl Fn(&[u8], Option<usize>) -> Option<Errno>,
    ) -> (Vec<(usize, Option<usize>)>, usize) {
        let (calls, all_lost) = (RefCell::new(Vec::new()), RefCell::new(0));
        batch.send(
            to(),
            offloads,
            |bytes, segment| {
                calls.borrow_mut().push((bytes.len(), segment));
                assert!(bytes.starts_with(b"<") && bytes.ends_with(b">"));
                refuses(bytes, segment).map_or(Ok(()), |errno| Err(errno.into()))
            },
            |_error, lost| *all_lost.borrow_mut() += lost,
        );
        (calls.into_inner(), all_lost.into_inner())
    }

    #[test]
    fn only_the_last_datagram_is_shorter() {
        let mut batch = batch(&[100, 100, 60]);
        assert!(!batch.fits(70, false) && !batch.fits(70, true), "nothing follows a shorter one");
        assert_eq!(batch.stride(), 110);
        let (calls, lost) = sent(&mut batch, &Offloads::default(), |_, _| None);
        assert_eq!((calls, lost), (vec![(110 + 110 + 70, Some(110))], 0));
        batch.clear();
        assert_eq!(sent(&mut batch, &Offloads::default(), |_, _| None), (vec![], 0));
    }

    #[test]
    fn a_batch_has_no_more_than_the_kernel_cuts() {
        let mut full = batch(&[100; MAX_DATAGRAMS]);
        assert!(!full.fits(110, false));
        full.clear();
        assert!(full.fits(110, false));
        let long = batch(&[9000; ROOM / 9010]);
        assert!(!long.fits(9010, false) && !long.fits(9010, true));
        let short = batch(&[100]);
        assert!(!short.fits(111, false) && short.fits(111, true), "it may still become shorter");
    }

    #[test]
    fn where_batches_are_refused_datagrams_go_singly_from_then_on() {
        let (offloads, whole) = (Offloads::default(), Some(110));
        let no_batches = |_: &[u8], segment: Option<usize>| segment.map(|_| Errno::EIO);
        let mut batch = batch(&[100, 100, 60]);
        let (calls, lost) = sent(&mut batch, &offloads, no_batches);
        assert_eq!(calls, [(290, whole), (110, None), (110, None), (70, None)]);
        assert_eq!((lost, offloads.refused()), (0, 1));
        let (calls, _) = sent(&mut batch, &offloads, no_batches);
        assert_eq!(calls, [(110, None), (110, None), (70, None)], "it is not tried again");
    }

    #[test]
    fn what_no_path_carries_is_lost_and_says_nothing_about_batches() {
        let offloads = Offloads::default();
        let only_short = |bytes: &[u8], _| (bytes.len() > 100).then_some(Errno::EINVAL);
        let mut batch = batch(&[100, 100, 60]);
        let (calls, lost) = sent(&mut batch, &offloads, only_short);
        assert_eq!((calls.len(), lost, offloads.refused()), (4, 2, 0));
        let (calls, lost) = sent(&mut batch, &offloads, |_, _| Some(Errno::ENETUNREACH));
        assert_eq!((calls.len(), lost), (1, 3), "other errors are no refusal");
    }
}
