//! What the kernel leaves to a network card that a frame never meets: where the VTEP is on the same
//! machine (a namespace, a VM), the inner packet comes with its checksum unfinished, and a burst of
//! TCP comes as one packet.
//!
//! An unfinished checksum is the sum of the pseudo header (RFC 9293 section 3.1), as for a partial
//! checksum of a TAP. To finish one that was finished already and only looks so gives the same
//! bytes.

use std::net::IpAddr;

use crate::{
    frame::{Frame, Gso, GsoKind, Headers, PartialChecksum, checksum_offset, vnet, vnet::Offload},
    wire::{Fragment, TCP, array, checksum::Sum, ethernet},
};

/// A burst that would be cut into smaller segments than these is none: headers that leave so little
/// room were made to have one datagram cut into thousands.
const SMALLEST_SEGMENT: usize = 512;

/// What is undone of a frame that came in clear and has these headers; where it is longer than the
/// network's MTU allows, how to cut it.
#[must_use]
pub fn undone(frame: &[u8], headers: Option<&Headers>, mtu: u16) -> Offload {
    look(frame, headers, mtu).unwrap_or_default()
}

/// Finishes the checksum of a frame that is one packet.
pub fn finish_received(frame: &mut Frame<'_>) {
    // It is where the protocol has it: no header changes.
    let _finished = frame.finish_checksum(|_| true);
}

fn look(frame: &[u8], headers: Option<&Headers>, mtu: u16) -> Option<Offload> {
    let ip = headers?.ip?;
    let upper = ip.upper(frame);
    let (addresses, kind) = match (ip.source, ip.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (Sum::default().bytes(&from.octets()).bytes(&to.octets()), GsoKind::Tcp4)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (Sum::default().bytes(&from.octets()).bytes(&to.octets()), GsoKind::Tcp6)
        }
        _ => return None,
    };
    let offset = checksum_offset(ip.protocol)?;
    let len = u16::try_from(upper.payload.len()).ok()?;
    let pseudo = addresses.number(u16::from(ip.protocol)).number(len);
    let field: [u8; 2] = array(upper.payload, usize::from(offset))?;
    // The packet ends with the frame: no padding, so that what it carries begins where it should.
    let whole = ip.fragment == Fragment::Whole && ip.end == frame.len();
    if !whole || field != pseudo.folded() {
        return None;
    }
    let checksum = PartialChecksum { start: u16::try_from(ip.upper).ok()?, offset };
    let longest = usize::from(mtu) + ethernet::HEADER_LEN;
    if ip.protocol != TCP || frame.len() <= longest {
        return Some(Offload { gso: None, checksum: Some(checksum) });
    }
    let header_len = vnet::header_len(kind, checksum, frame, headers)?;
    let room = longest.checked_sub(usize::from(header_len));
    let room = room.filter(|room| *room >= SMALLEST_SEGMENT)?;
    let gso = Gso { kind, segment_size: u16::try_from(room).ok()?, header_len };
    Some(Offload { gso: Some(gso), checksum: Some(checksum) })
}
