//! A frame as the kernel hands it over: perhaps 64 KB that stand for many packets, perhaps with a
//! checksum that is not finished ([`SuperFrame`]; the meaning of `virtio_net_hdr`, virtio 1.2
//! section 5.1.6).

use etherparse::checksum::Sum16BitWords;

use crate::{
    reason::DropReason,
    wire::{ethernet, ipv4, ipv6},
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

/// One frame with its offloads. Headroom for outer headers is the caller's, before `bytes`.
#[derive(Debug)]
pub struct SuperFrame<'a> {
    /// Ethernet header and payload.
    pub bytes: &'a mut [u8],
    /// How to cut it, if it stands for many packets.
    pub gso: Option<Gso>,
    /// The unfinished checksum, if it has one.
    pub checksum: Option<PartialChecksum>,
}

impl<'a> SuperFrame<'a> {
    /// One packet with all its checksums.
    #[must_use]
    pub const fn plain(bytes: &'a mut [u8]) -> Self {
        Self { bytes, gso: None, checksum: None }
    }

    /// Bytes of the largest frame that this one becomes; nothing if its offloads contradict it.
    pub(crate) fn largest_frame(&self) -> Result<usize, DropReason> {
        if let Some(checksum) = self.checksum
            && self.checksum_at(checksum).is_none()
        {
            return Err(DropReason::BadOffload);
        }
        let Some(gso) = self.gso else { return Ok(self.bytes.len()) };
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
        let Some(gso) = self.gso else { return 1 };
        let payload = self.bytes.len().saturating_sub(usize::from(gso.header_len));
        payload.div_ceil(usize::from(gso.segment_size).max(1)).max(1)
    }

    /// Finishes the checksum of a frame that is one packet, and says where it is and what was
    /// there. Those of a super-frame are finished where it is cut.
    pub(crate) fn finish_checksum(&mut self) -> Option<(usize, [u8; 2])> {
        if self.gso.is_some() {
            return None;
        }
        let checksum = self.checksum.take()?;
        let at = self.checksum_at(checksum)?;
        let covered = self.bytes.get(usize::from(checksum.start)..)?;
        let sum = Sum16BitWords::new().add_slice(covered).to_ones_complement_with_no_zero();
        let field = self.bytes.get_mut(at..)?.first_chunk_mut()?;
        // The sum was taken over words as they lie in memory (RFC 1071 section 2.B).
        Some((at, std::mem::replace(field, sum.to_ne_bytes())))
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
