//! What the kernel says of a frame in front of it: `virtio_net_hdr` (virtio 1.2 section 5.1.6), 10
//! bytes in the host's byte order:
//!
//! ```text
//! flags 1 | gso type 1 | header length 2 | segment size 2 | checksum start 2 | checksum offset 2
//! ```

use std::net::IpAddr;

use super::{Gso, GsoKind, Headers, PartialChecksum};
use crate::{
    reason::DropReason,
    wire::{Fragment, TCP, UDP, array},
};

/// Bytes of the header.
pub const LEN: usize = 10;
/// The header of a frame that is one packet with all its checksums.
pub const PLAIN: [u8; LEN] = [0; LEN];

const NEEDS_CHECKSUM: u8 = 1;
const NO_GSO: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Beside a TCP type: the first segment has CWR set. The frame itself says so, too.
const GSO_ECN: u8 = 0x80;
/// Bytes of a TCP header without options, and of a UDP header.
const TCP_MIN: usize = 20;
const UDP_LEN: usize = 8;

/// How a frame is to be cut and which checksum is to be finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// How to cut it, if it stands for many packets.
    pub gso: Option<Gso>,
    /// The unfinished checksum, if it has one.
    pub checksum: Option<PartialChecksum>,
}

impl Offload {
    /// What `header` says of `frame`, which has these headers. The header's own length field is
    /// only a hint, so lengths come from the frame.
    ///
    /// # Errors
    /// The header contradicts the frame, or asks for what is not known here.
    pub fn parse(
        header: &[u8; LEN],
        frame: &[u8],
        headers: Option<&Headers>,
    ) -> Result<Self, DropReason> {
        let [flags, kind, _, _, size_0, size_1, start_0, start_1, offset_0, offset_1] = *header;
        let checksum = (flags & NEEDS_CHECKSUM != 0).then(|| PartialChecksum {
            start: u16::from_ne_bytes([start_0, start_1]),
            offset: u16::from_ne_bytes([offset_0, offset_1]),
        });
        let kind = match kind & !GSO_ECN {
            NO_GSO => return Ok(Self { gso: None, checksum }),
            GSO_TCP4 => GsoKind::Tcp4,
            GSO_TCP6 => GsoKind::Tcp6,
            GSO_UDP => GsoKind::Udp,
            _ => return Err(DropReason::BadOffload),
        };
        let segment_size = u16::from_ne_bytes([size_0, size_1]);
        // A super-frame's checksum cannot be complete: it would be that of no packet.
        let checksum = checksum.ok_or(DropReason::BadOffload)?;
        let header_len =
            header_len(kind, checksum, frame, headers).ok_or(DropReason::BadOffload)?;
        if segment_size == 0 || usize::from(header_len) >= frame.len() {
            return Err(DropReason::BadOffload);
        }
        Ok(Self { gso: Some(Gso { kind, segment_size, header_len }), checksum: Some(checksum) })
    }

    /// The header that says this.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let [start_0, start_1, offset_0, offset_1] = match self.checksum {
            Some(PartialChecksum { start, offset }) => {
                let ([a, b], [c, d]) = (start.to_ne_bytes(), offset.to_ne_bytes());
                [a, b, c, d]
            }
            None => [0; 4],
        };
        let flags = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let (kind, [len_0, len_1], [size_0, size_1]) = match self.gso {
            Some(gso) => {
                let kind = match gso.kind {
                    GsoKind::Tcp4 => GSO_TCP4,
                    GsoKind::Tcp6 => GSO_TCP6,
                    GsoKind::Udp => GSO_UDP,
                };
                (kind, gso.header_len.to_ne_bytes(), gso.segment_size.to_ne_bytes())
            }
            None => (NO_GSO, [0; 2], [0; 2]),
        };
        [flags, kind, len_0, len_1, size_0, size_1, start_0, start_1, offset_0, offset_1]
    }
}

/// How many packets the header says that a frame of this length stands for, at most.
#[must_use]
pub fn packets(header: &[u8; LEN], len: usize) -> usize {
    let [_, kind, _, _, size_0, size_1, ..] = *header;
    let size = usize::from(u16::from_ne_bytes([size_0, size_1]));
    if kind == NO_GSO || size == 0 { 1 } else { len.div_ceil(size) }
}

/// Bytes of all headers of a super-frame, if the frame is what `kind` says and its checksum is
/// where that has it.
pub(crate) fn header_len(
    kind: GsoKind,
    checksum: PartialChecksum,
    frame: &[u8],
    headers: Option<&Headers>,
) -> Option<u16> {
    let ip = headers?.ip?;
    let upper = match (kind, ip.source) {
        (GsoKind::Tcp4 | GsoKind::Udp, IpAddr::V4(_))
        | (GsoKind::Tcp6 | GsoKind::Udp, IpAddr::V6(_)) => ip.upper(frame),
        _ => return None,
    };
    let start = usize::from(checksum.start);
    // The checksum's place is the sender's word. It begins where the packet's own headers end, and
    // the packet ends with the frame: padding would be cut as payload.
    let whole = upper.fragment == Fragment::Whole && start == ip.upper && ip.end == frame.len();
    let end = match kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            let [words] = array::<1>(upper.payload, 12)?;
            let len = usize::from(words >> 4) * 4;
            (upper.protocol == TCP && checksum.offset == 16 && len >= TCP_MIN).then_some(len)?
        }
        GsoKind::Udp => (upper.protocol == UDP && checksum.offset == 6).then_some(UDP_LEN)?,
    };
    let fits = whole && upper.payload.len() >= end;
    fits.then(|| u16::try_from(start + end).ok()).flatten()
}
