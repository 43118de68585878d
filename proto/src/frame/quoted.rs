//! The packet that an ICMP error is about, as far as the error quotes it: [`Quoted`].
//!
//! ```text
//! IP | ICMP: type, code, checksum, 4 bytes | IP | TCP, UDP: ports ... | cut off anywhere
//! ```
//!
//! Whoever rewrites a flow rewrites it here, too (RFC 3022 section 4.3): all checksums that the
//! quote holds, and that of the error over the quote.

use std::net::{IpAddr, SocketAddr};

use super::{
    Frame, Headers, checksum_offset,
    rewrite::{DESTINATION, IPV4_CHECKSUM, Rewrite, SOURCE, complete, exchange, exchange_ip},
};
use crate::{
    reason::DropReason,
    wire::{Fragment, ICMP, ICMPV6, UDP, array, be16, checksum::Sum, ethernet, ipv4, ipv6},
};

/// Unreachable, time exceeded, parameter problem (RFC 792).
const ERRORS: [u8; 3] = [UNREACHABLE, 11, 12];
const UNREACHABLE: u8 = 3;
/// The code of an "unreachable" that is about the size (RFC 1191 section 4).
const TOO_BIG: u8 = 4;
/// Unreachable, too big, time exceeded, parameter problem (RFC 4443 section 3).
const ERRORS_V6: [u8; 4] = [UNREACHABLE_V6, 2, 3, 4];
const UNREACHABLE_V6: u8 = 1;
/// Bytes of ICMP in front of the quote, and where its checksum is.
const ICMP_LEN: usize = 8;
const ICMP_CHECKSUM: usize = 2;

/// What an error says of the packet that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// TCP or UDP.
    pub protocol: u8,
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Whether it did not come there: not that it was too large, or too long under way.
    pub is_unreachable: bool,
    /// Where it begins in the frame.
    at: usize,
    /// Where its ports are.
    upper: usize,
}

impl Quoted {
    /// Nothing if the frame is no ICMP error, or what it quotes has no ports.
    #[must_use]
    pub fn of(frame: &Frame<'_>) -> Option<Self> {
        Self::within(frame.bytes, frame.headers.as_ref()?)
    }

    /// The same of a frame that is only looked at.
    #[must_use]
    pub fn within(bytes: &[u8], headers: &Headers) -> Option<Self> {
        let ip = headers.ip.filter(|ip| ip.fragment == Fragment::Whole)?;
        let packet = bytes.get(..ip.end)?;
        let kind = packet.get(ip.upper)?;
        let at = ip.upper + ICMP_LEN;
        let first = packet.get(at)?;
        let is_unreachable = match ip.protocol {
            ICMP => *kind == UNREACHABLE && *packet.get(ip.upper + 1)? != TOO_BIG,
            _ => *kind == UNREACHABLE_V6,
        };
        let (protocol, upper, ips) = match (ip.protocol, first >> 4) {
            (ICMP, 4) if ip.source.is_ipv4() && ERRORS.contains(kind) => {
                let header = usize::from(first & 0x0f) * 4;
                let is_later = be16(packet, at + 6)? & 0x1fff != 0;
                if is_later || header < ipv4::MIN_HEADER_LEN {
                    return None;
                }
                let ip = |place| Some(IpAddr::from(array::<4>(packet, place)?));
                (*packet.get(at + 9)?, at + header, (ip(at + 12)?, ip(at + 16)?))
            }
            (ICMPV6, 6) if ip.source.is_ipv6() && ERRORS_V6.contains(kind) => {
                let ip = |place| Some(IpAddr::from(array::<16>(packet, place)?));
                (*packet.get(at + 6)?, at + ipv6::HEADER_LEN, (ip(at + 8)?, ip(at + 24)?))
            }
            _ => return None,
        };
        checksum_offset(protocol)?;
        Some(Self {
            protocol,
            source: SocketAddr::new(ips.0, be16(packet, upper)?),
            destination: SocketAddr::new(ips.1, be16(packet, upper + 2)?),
            is_unreachable,
            at,
            upper,
        })
    }
}

impl Frame<'_> {
    /// Gives an ICMP error other addresses, as far as they are said, and what it quotes other
    /// addresses and ports.
    ///
    /// # Errors
    /// Its checksum is not finished.
    pub fn rewrite_error(
        &mut self,
        quoted: &Quoted,
        outer: &Rewrite,
        inner: &Rewrite,
    ) -> Result<(), DropReason> {
        let ip = self.headers.and_then(|headers| headers.ip).ok_or(DropReason::MalformedIp)?;
        let sockets = [outer.source, outer.destination, inner.source, inner.destination];
        if sockets.iter().flatten().any(|it| it.is_ipv4() != ip.source.is_ipv4()) {
            return Err(DropReason::MalformedIp);
        }
        if self.offload.checksum.is_some() {
            return Err(DropReason::BadOffload);
        }
        let mut change = self.put_quote(quoted, inner, ip.end);
        let mut addresses = Sum::default();
        for (place, socket) in [(SOURCE, outer.source), (DESTINATION, outer.destination)] {
            if let Some(socket) = socket {
                let at = ethernet::HEADER_LEN;
                exchange_ip(self.bytes, at, place, socket.ip(), &mut addresses);
            }
        }
        if ip.source.is_ipv4() {
            complete(self.bytes, IPV4_CHECKSUM, addresses, false);
        } else {
            change = change.with(addresses);
        }
        complete(self.bytes, ip.upper + ICMP_CHECKSUM, change, false);
        self.note(outer, false);
        Ok(())
    }

    /// Rewrites the quote, and says what that adds to the sum over it.
    fn put_quote(&mut self, quoted: &Quoted, to: &Rewrite, end: usize) -> Sum {
        let (mut addresses, mut ports) = (Sum::default(), Sum::default());
        for (place, socket) in [(SOURCE, to.source), (DESTINATION, to.destination)] {
            let Some(socket) = socket else { continue };
            exchange_ip(self.bytes, quoted.at, place, socket.ip(), &mut addresses);
            let port = socket.port().to_be_bytes();
            exchange(self.bytes, quoted.upper + place.port, port, &mut ports);
        }
        let mut change = addresses.with(ports);
        let mut complete = |at: usize, sum: Sum, is_udp: bool| {
            let before: [u8; 2] = array(self.bytes, at).unwrap_or_default();
            complete(self.bytes, at, sum, is_udp);
            let after: [u8; 2] = array(self.bytes, at).unwrap_or_default();
            change = change.bytes(&before.map(|byte| !byte)).bytes(&after);
        };
        if quoted.source.is_ipv4() {
            complete(quoted.at + IPV4_CHECKSUM - ethernet::HEADER_LEN, addresses, false);
        }
        let offset = checksum_offset(quoted.protocol).map(usize::from);
        if let Some(at) = offset.map(|offset| quoted.upper + offset).filter(|at| at + 2 <= end) {
            complete(at, addresses.with(ports), quoted.protocol == UDP);
        }
        change
    }
}
