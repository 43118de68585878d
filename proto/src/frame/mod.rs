//! One frame: its headers, read once ([`Headers`]), what a device says of it ([`vnet`]), and how it
//! is cut and joined.
//!
//! What a device takes for one frame may be many packets of the mesh: up to 64 KB, perhaps with a
//! checksum that is not finished (`virtio_net_hdr`, virtio 1.2 section 5.1.6). A [`Frame`] is
//! judged whole, [`Segments`] cuts it, and [`coalesce`] puts packets together again. Whatever
//! rewrites a frame does it here, so that headers and checksums stay those of its bytes. What
//! becomes of a frame is decided in [`path`](crate::path).

pub mod coalesce;
pub mod ecn;
mod headers;
mod quoted;
mod rewrite;
mod segments;
pub mod vnet;

use etherparse::checksum::Sum16BitWords;
pub use headers::{FlowKey, Headers, Ip, View};
pub use quoted::Quoted;
pub use rewrite::Rewrite;
pub use segments::Segments;

use self::{ecn::Ecn, segments::put, vnet::Offload};
use crate::{
    reason::DropReason,
    wire::{Fragment, TCP, UDP, ethernet, ipv4, ipv6},
};

/// What each packet of a super-frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// How a super-frame is cut into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What each is.
    pub kind: GsoKind,
    /// Payload bytes of each but the last.
    pub segment_size: u16,
    /// Bytes of all headers, Ethernet included, which each packet repeats.
    pub header_len: u16,
}

/// A checksum that holds the sum of the pseudo header and waits for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the bytes begin that it covers; they go on to the end of the frame.
    pub start: u16,
    /// Where it is, counted from `start`.
    pub offset: u16,
}

/// One frame with its headers and offloads. Headroom for outer headers is the caller's, before the
/// bytes.
#[derive(Debug)]
pub struct Frame<'a> {
    bytes: &'a mut [u8],
    headers: Option<Headers>,
    offload: Offload,
}

impl<'a> Frame<'a> {
    /// One packet with all its checksums.
    #[must_use]
    pub fn plain(bytes: &'a mut [u8]) -> Self {
        Self::new(bytes, Offload::default())
    }

    /// A frame of which somebody else said how it is to be cut.
    #[must_use]
    pub fn new(bytes: &'a mut [u8], offload: Offload) -> Self {
        let headers = Headers::parse(bytes);
        Self::with_headers(bytes, headers, offload)
    }

    /// A frame with these headers, which are those of its bytes.
    #[must_use]
    pub const fn with_headers(
        bytes: &'a mut [u8],
        headers: Option<Headers>,
        offload: Offload,
    ) -> Self {
        Self { bytes, headers, offload }
    }

    /// A frame that a device gave with this `virtio_net_hdr`; the headers are those of its bytes.
    ///
    /// # Errors
    /// What the device says contradicts the frame.
    pub fn received(
        bytes: &'a mut [u8],
        headers: Option<Headers>,
        vnet: &[u8; vnet::LEN],
    ) -> Result<Self, DropReason> {
        let offload = Offload::parse(vnet, bytes, headers.as_ref())?;
        Ok(Self::with_headers(bytes, headers, offload))
    }

    /// Ethernet header and payload.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Its headers; none if it is shorter than one of Ethernet.
    #[must_use]
    pub const fn headers(&self) -> Option<&Headers> {
        self.headers.as_ref()
    }

    /// How to cut it, if it stands for many packets.
    #[must_use]
    pub const fn gso(&self) -> Option<Gso> {
        self.offload.gso
    }

    /// The unfinished checksum, if it has one.
    #[must_use]
    pub const fn checksum(&self) -> Option<PartialChecksum> {
        self.offload.checksum
    }

    /// Bytes of the largest frame that this one becomes; nothing if its offloads contradict it.
    pub(crate) fn largest_frame(&self) -> Result<usize, DropReason> {
        if let Some(checksum) = self.offload.checksum
            && self.checksum_at(checksum).is_none()
        {
            return Err(DropReason::BadOffload);
        }
        let Some(gso) = self.offload.gso else { return Ok(self.bytes.len()) };
        let header_len = usize::from(gso.header_len);
        let smallest = ethernet::HEADER_LEN
            + match gso.kind {
                GsoKind::Tcp4 => ipv4::MIN_HEADER_LEN + 20,
                GsoKind::Tcp6 => ipv6::HEADER_LEN + 20,
                GsoKind::Udp => ipv4::MIN_HEADER_LEN + 8,
            };
        let whole = header_len >= smallest && header_len < self.bytes.len() && gso.segment_size > 0;
        if !whole {
            return Err(DropReason::BadOffload);
        }
        Ok(self.bytes.len().min(header_len + usize::from(gso.segment_size)))
    }

    /// How many packets it becomes.
    pub(crate) fn packets(&self) -> usize {
        let Some(gso) = self.offload.gso else { return 1 };
        let payload = self.bytes.len().saturating_sub(usize::from(gso.header_len));
        payload.div_ceil(usize::from(gso.segment_size).max(1)).max(1)
    }

    /// Finishes the checksum of a frame that is one packet. Those of a super-frame are finished
    /// where it is cut. A sandbox chooses where its checksum is: if it is not where the packet's
    /// protocol has one, other headers may come of it, and if `still` does not hold for the frame
    /// with these, the frame stays as it was. False then.
    pub(crate) fn finish_checksum(&mut self, still: impl FnOnce(&Self) -> bool) -> bool {
        if self.offload.gso.is_some() {
            return true;
        }
        let Some(checksum) = self.offload.checksum.take() else { return true };
        let Some((at, before)) = self.put_checksum(checksum) else { return true };
        if self.has_checksum_at(checksum) {
            return true;
        }
        let headers = self.headers;
        self.headers = Headers::parse(self.bytes);
        if still(self) {
            return true;
        }
        self.headers = headers;
        put(self.bytes, at, before);
        false
    }

    /// Gives a frame that came out of a tunnel the mark of congestion that it has now
    /// ([`ecn::arrive`]).
    ///
    /// # Errors
    /// It is to be dropped.
    pub fn arrive(&mut self, outer: Ecn) -> Result<(), DropReason> {
        ecn::arrive(self.bytes, outer)
    }

    /// Writes a complete checksum, and says where and what was there.
    fn put_checksum(&mut self, checksum: PartialChecksum) -> Option<(usize, [u8; 2])> {
        let at = self.checksum_at(checksum)?;
        let covered = self.bytes.get(usize::from(checksum.start)..)?;
        let sum = Sum16BitWords::new().add_slice(covered).to_ones_complement_with_no_zero();
        let field = self.bytes.get_mut(at..)?.first_chunk_mut()?;
        // The sum was taken over words as they lie in memory (RFC 1071 section 2.B).
        Some((at, std::mem::replace(field, sum.to_ne_bytes())))
    }

    /// Whether this is where TCP and UDP have theirs, behind all that the headers say.
    fn has_checksum_at(&self, PartialChecksum { start, offset }: PartialChecksum) -> bool {
        let ip = self.headers.and_then(|headers| headers.ip);
        ip.is_some_and(|ip| {
            ip.fragment == Fragment::Whole
                && ip.upper == usize::from(start)
                && checksum_offset(ip.protocol) == Some(offset)
        })
    }

    /// Where the two bytes of the checksum are, if they lie behind the Ethernet header and in the
    /// frame.
    fn checksum_at(&self, checksum: PartialChecksum) -> Option<usize> {
        let at = usize::from(checksum.start) + usize::from(checksum.offset);
        let inside =
            usize::from(checksum.start) >= ethernet::HEADER_LEN && at + 2 <= self.bytes.len();
        inside.then_some(at)
    }
}

/// Where in the header of TCP or UDP its checksum is.
pub(crate) const fn checksum_offset(protocol: u8) -> Option<u16> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

#[cfg(test)]
mod differential;
