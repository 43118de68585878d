//! What the kernel leaves to a network card that a frame never meets: where the VTEP is on the same
//! machine (a namespace, a VM), the inner packet comes with its checksum unfinished, and a burst of
//! TCP comes as one packet.
//!
//! An unfinished checksum is the sum of the pseudo header (RFC 9293 section 3.1), as for a partial
//! checksum of a TAP. To finish one that was finished already and only looks so gives the same
//! bytes.

use crate::{
    frame::{Gso, GsoKind, PartialChecksum, SuperFrame, vnet, vnet::Offload},
    wire::{Ethernet, Fragment, Ipv4, Ipv6, TCP, UDP, array, be16, checksum::Sum, ethernet, ipv6},
};

/// A burst that would be cut into smaller segments than these is none: headers that leave so little
/// room were made to have one datagram cut into thousands.
const SMALLEST_SEGMENT: usize = 512;

/// What is undone of a frame that came in clear; where it is longer than the network's MTU allows,
/// how to cut it.
#[must_use]
pub fn undone(frame: &[u8], mtu: u16) -> Offload {
    look(frame, mtu).unwrap_or_default()
}

/// Finishes the checksum of a frame that is one packet.
pub fn finish_received(frame: &mut SuperFrame<'_>) {
    // What was there before is of no use.
    let _was = frame.finish_checksum();
}

fn look(frame: &[u8], mtu: u16) -> Option<Offload> {
    let eth = Ethernet::parse(frame)?;
    let (upper, addresses, end, kind) = match eth.ethertype {
        ethernet::IPV4 => {
            let ip = Ipv4::parse(eth.payload)?;
            let sum = Sum::default().bytes(&ip.source.octets()).bytes(&ip.destination.octets());
            (ip.upper, sum, usize::from(be16(eth.payload, 2)?), GsoKind::Tcp4)
        }
        ethernet::IPV6 => {
            let ip = Ipv6::parse(eth.payload)?;
            let sum = Sum::default().bytes(&ip.source.octets()).bytes(&ip.destination.octets());
            let end = ipv6::HEADER_LEN + usize::from(be16(eth.payload, 4)?);
            (ip.upper, sum, end, GsoKind::Tcp6)
        }
        _ => return None,
    };
    let offset: u16 = match upper.protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let len = u16::try_from(upper.payload.len()).ok()?;
    let pseudo = addresses.number(u16::from(upper.protocol)).number(len);
    let field: [u8; 2] = array(upper.payload, usize::from(offset))?;
    // The packet ends with the frame: no padding, so that what it carries begins where it should.
    let whole = upper.fragment == Fragment::Whole && end == eth.payload.len();
    if !whole || field != pseudo.folded() {
        return None;
    }
    let start = u16::try_from(frame.len() - upper.payload.len()).ok()?;
    let checksum = PartialChecksum { start, offset };
    let longest = usize::from(mtu) + ethernet::HEADER_LEN;
    if upper.protocol != TCP || frame.len() <= longest {
        return Some(Offload { gso: None, checksum: Some(checksum) });
    }
    let header_len = vnet::header_len(kind, checksum, frame)?;
    let room = longest.checked_sub(usize::from(header_len));
    let room = room.filter(|room| *room >= SMALLEST_SEGMENT)?;
    let gso = Gso { kind, segment_size: u16::try_from(room).ok()?, header_len };
    Some(Offload { gso: Some(gso), checksum: Some(checksum) })
}
