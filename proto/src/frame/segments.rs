//! A frame cut into the packets that cross the mesh: [`Segments`].
//!
//! What comes out is what the kernel's own segmentation would have put on a wire. Each packet has a
//! copy of all headers, in which change
//!
//! ```text
//! IPv4 : total length, identification (counts up), checksum      IPv6 : payload length
//! TCP  : sequence number, CWR only in the first, FIN and PSH only in the last, checksum
//! UDP  : length, checksum
//! ```

use super::{Frame, Gso, GsoKind, ecn::Ecn, vnet};
use crate::{
    reason::DropReason,
    wire::{array, be16, checksum::Sum, ethernet, ipv6},
};

/// Packets of one frame: more than TCP makes of 64 KB with the smallest segments that can be asked
/// for (`TCP_MIN_MSS`, 88).
const MAX_PACKETS: usize = 2048;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Where the flags are in a TCP header.
const TCP_FLAGS: usize = 13;

/// The packets that a frame stands for; one if it is no super-frame.
#[derive(Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    cut: Option<Cut>,
    count: usize,
}

/// How a super-frame is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    is_tcp: bool,
    is_ipv4: bool,
    /// Where the transport header begins.
    upper: usize,
    /// Bytes of all headers.
    header_len: usize,
    /// Payload bytes of each packet but the last.
    size: usize,
    /// Where the transport checksum is.
    checksum: usize,
    /// The sum of the pseudo header less its length.
    pseudo: Sum,
}

impl<'a> Segments<'a> {
    /// How `frame` is cut.
    ///
    /// # Errors
    /// Its offloads contradict it.
    pub fn of(frame: &'a Frame<'_>) -> Result<Self, DropReason> {
        let bytes = frame.bytes();
        let Some(gso) = frame.gso() else { return Ok(Self { frame: bytes, cut: None, count: 1 }) };
        let cut = Cut::of(frame, gso).ok_or(DropReason::BadOffload)?;
        let count = (bytes.len() - cut.header_len).div_ceil(cut.size);
        if count > MAX_PACKETS {
            return Err(DropReason::BadOffload);
        }
        Ok(Self { frame: bytes, cut: Some(cut), count })
    }

    /// How many packets there are; one at least.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The congestion mark, which all of them have.
    #[must_use]
    pub fn ecn(&self) -> Ecn {
        Ecn::of(self.frame)
    }

    /// Bytes of the packet at `index`, Ethernet header included.
    #[must_use]
    pub fn frame_len(&self, index: usize) -> usize {
        let Some(cut) = self.cut else { return self.frame.len() };
        let begin = index.saturating_mul(cut.size);
        let payload = self.frame.len().saturating_sub(cut.header_len).saturating_sub(begin);
        cut.header_len + payload.min(cut.size)
    }

    /// Writes the packet at `index` to `out`, which has its length.
    pub fn write(&self, index: usize, out: &mut [u8]) {
        let Some(cut) = self.cut else {
            if out.len() == self.frame.len() {
                out.copy_from_slice(self.frame);
            }
            return;
        };
        let begin = index.saturating_mul(cut.size);
        let Some((header, payload)) = self.frame.split_at_checked(cut.header_len) else { return };
        let chunk = payload.get(begin..).map(|rest| rest.get(..cut.size).unwrap_or(rest));
        let (Some(chunk), Some((out_header, out_payload))) =
            (chunk, out.split_at_mut_checked(cut.header_len))
        else {
            return;
        };
        if chunk.len() != out_payload.len() {
            return;
        }
        out_header.copy_from_slice(header);
        out_payload.copy_from_slice(chunk);
        cut.patch(out_header, index, index + 1 == self.count, begin, chunk);
    }
}

impl Cut {
    fn of(frame: &Frame<'_>, gso: Gso) -> Option<Self> {
        let (bytes, checksum) = (frame.bytes(), frame.checksum()?);
        // Whoever said how to cut it, the headers have the last word.
        let header_len = vnet::header_len(gso.kind, checksum, bytes, frame.headers())?;
        if header_len != gso.header_len || gso.segment_size == 0 {
            return None;
        }
        let (upper, header_len) = (usize::from(checksum.start), usize::from(header_len));
        let at = upper + usize::from(checksum.offset);
        let transport_len = u16::try_from(bytes.len() - upper).ok()?;
        let field: [u8; 2] = array(bytes, at)?;
        (bytes.len() > header_len).then_some(Self {
            is_tcp: matches!(gso.kind, GsoKind::Tcp4 | GsoKind::Tcp6),
            is_ipv4: frame.headers()?.ethertype == ethernet::IPV4,
            upper,
            header_len,
            size: usize::from(gso.segment_size),
            checksum: at,
            pseudo: Sum::default().bytes(&field).without(transport_len),
        })
    }

    /// Makes the copied headers those of one packet. `begin` is where its payload begins in that of
    /// the whole.
    fn patch(&self, header: &mut [u8], index: usize, last: bool, begin: usize, payload: &[u8]) {
        let transport_len = self.header_len - self.upper + payload.len();
        let packet_len = self.upper - ethernet::HEADER_LEN + transport_len;
        // A frame's length fits 16 bits, as its headers were found to say.
        let short = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        if self.is_ipv4 {
            patch_ipv4(header, short(packet_len), short(index), self.upper);
        } else {
            let len = packet_len - ipv6::HEADER_LEN;
            put(header, ethernet::HEADER_LEN + 4, short(len).to_be_bytes());
        }
        if self.is_tcp {
            let at = self.upper + 4;
            let first = u32::from_be_bytes(array(header, at).unwrap_or_default());
            let begin = u32::try_from(begin).unwrap_or(u32::MAX);
            put(header, at, first.wrapping_add(begin).to_be_bytes());
            if let Some(flags) = header.get_mut(self.upper + TCP_FLAGS) {
                *flags &= if index == 0 { !0 } else { !CWR };
                *flags &= if last { !0 } else { !(FIN | PSH) };
            }
        } else {
            put(header, self.upper + 4, short(transport_len).to_be_bytes());
        }
        put(header, self.checksum, [0; 2]);
        let transport = header.get(self.upper..).unwrap_or_default();
        let sum = self.pseudo.number(short(transport_len)).bytes(transport).bytes(payload);
        let checksum = match sum.checksum() {
            // In UDP zero means that there is none; the other zero is sent instead (RFC 768).
            [0, 0] if !self.is_tcp => [0xff; 2],
            checksum => checksum,
        };
        put(header, self.checksum, checksum);
    }
}

fn patch_ipv4(header: &mut [u8], total_len: u16, index: u16, end: usize) {
    const AT: usize = ethernet::HEADER_LEN;
    put(header, AT + 2, total_len.to_be_bytes());
    let first = be16(header, AT + 4).unwrap_or_default();
    put(header, AT + 4, first.wrapping_add(index).to_be_bytes());
    put(header, AT + 10, [0; 2]);
    let sum = Sum::default().bytes(header.get(AT..end).unwrap_or_default());
    put(header, AT + 10, sum.checksum());
}

/// Writes a field, if it lies within.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *field = value;
    }
}
