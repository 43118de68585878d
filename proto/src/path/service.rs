//! What a service says for itself, from its VIP: that it is there ([`answer_echo`], RFC 792, RFC
//! 4443 section 4), and that a packet leads nowhere ([`refuse`]): RST (RFC 9293 section 3.10.7.1)
//! or ICMP "port unreachable" (RFC 1122 section 3.2.2.1, RFC 4443 section 3.1).
//!
//! Nobody is told about a later fragment or about an RST. Of ICMP errors an endpoint gets no more
//! than its share (`limits`).

use std::{net::IpAddr, time::Instant};

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, icmpv4, icmpv6};

use super::{
    outbound::Scratch,
    too_big::{QUOTE_V4, QUOTE_V6, quote},
};
use crate::{
    frame::{Frame, Headers, Ip, View},
    tables::{NetworkTable, Row},
    wire::{Fragment, ICMP, ICMPV6, TCP, UDP, array, be16, be32, checksum::Sum, ethernet},
};

/// Type and code of a question, and the type of its answer.
const ECHO: ([u8; 2], u8) = ([8, 0], 0);
const ECHO_V6: ([u8; 2], u8) = ([128, 0], 129);
/// Routers that an answer may pass.
const HOP_LIMIT: u8 = 64;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Leaves the answer to a ping in the scratch. False if the frame is none: it has other contents,
/// is a fragment, or has a checksum that is not finished.
pub(super) fn answer_echo(frame: &Frame<'_>, scratch: &mut Scratch) -> bool {
    let Some(headers) = frame.headers().filter(|_| frame.checksum().is_none()) else {
        return false;
    };
    let Some(ip) = headers.ip.filter(|ip| ip.fragment == Fragment::Whole) else { return false };
    let (asks, answer) = match ip.protocol {
        ICMP if ip.source.is_ipv4() => ECHO,
        ICMPV6 if ip.source.is_ipv6() => ECHO_V6,
        _ => return false,
    };
    if array(frame.bytes(), ip.upper) != Some(asks) {
        return false;
    }
    scratch.write(|room| turn(frame.bytes(), headers, &ip, answer, room)).is_some()
}

/// The packet back to its sender, as this kind of ICMP.
fn turn(bytes: &[u8], headers: &Headers, ip: &Ip, kind: u8, room: &mut [u8]) -> Option<usize> {
    let packet = bytes.get(..ip.end)?;
    let reply = room.get_mut(..packet.len())?;
    reply.copy_from_slice(packet);
    reply.get_mut(..6)?.copy_from_slice(&headers.source.0);
    reply.get_mut(6..12)?.copy_from_slice(&headers.destination.0);
    let (source, destination, hop_limit) = match ip.source {
        IpAddr::V4(_) => (26..30, 30..34, 22),
        IpAddr::V6(_) => (22..38, 38..54, 21),
    };
    reply.get_mut(source.clone())?.copy_from_slice(packet.get(destination.clone())?);
    reply.get_mut(destination)?.copy_from_slice(packet.get(source)?);
    *reply.get_mut(hop_limit)? = HOP_LIMIT;
    if ip.source.is_ipv4() {
        reply.get_mut(24..26)?.fill(0);
        let len = usize::from(reply.get(ethernet::HEADER_LEN)? & 0x0f) * 4;
        let header = reply.get(ethernet::HEADER_LEN..ethernet::HEADER_LEN + len)?;
        let sum = Sum::default().bytes(header).checksum();
        reply.get_mut(24..26)?.copy_from_slice(&sum);
    }
    // RFC 1624 equation 3. In a pseudo header the two addresses have changed places.
    let (before, sum) = (array::<2>(packet, ip.upper)?, array::<2>(packet, ip.upper + 2)?);
    let after = [kind, 0];
    let sum = Sum::default().bytes(&sum.map(|byte| !byte)).bytes(&before.map(|byte| !byte));
    reply.get_mut(ip.upper..ip.upper + 2)?.copy_from_slice(&after);
    reply.get_mut(ip.upper + 2..ip.upper + 4)?.copy_from_slice(&sum.bytes(&after).checksum());
    Some(packet.len())
}

/// Leaves in the scratch what the sender of a packet to a service is told, if it is told something.
pub(super) fn refuse<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    frame: &View<'_>,
    scratch: &mut Scratch,
    now: Instant,
) {
    let Some(ip) = frame.headers.ip.filter(|ip| ip.fragment != Fragment::Later) else { return };
    match ip.protocol {
        TCP => {
            if let Some(reset) = Reset::of(frame, &ip) {
                scratch.write(|room| reset.write(frame.headers, &ip, room));
            }
        }
        UDP if table.admit_error(row, now) => {
            scratch.write(|room| unreachable(frame, &ip, room));
        }
        _ => {}
    }
}

/// The answer to a segment of no connection.
struct Reset {
    ports: (u16, u16),
    sequence: u32,
    acknowledges: Option<u32>,
}

impl Reset {
    fn of(frame: &View<'_>, ip: &Ip) -> Option<Self> {
        let tcp = frame.bytes.get(ip.upper..ip.end)?;
        let (ports, flags) = (ip.ports?, *tcp.get(13)?);
        if flags & RST != 0 {
            return None;
        }
        if flags & ACK != 0 {
            return Some(Self { ports, sequence: be32(tcp, 8)?, acknowledges: None });
        }
        let header = usize::from(be16(tcp, 12)? >> 12) * 4;
        let payload = u32::try_from(tcp.len().checked_sub(header)?).ok()?;
        let len = payload + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let acknowledges = Some(be32(tcp, 4)?.wrapping_add(len));
        Some(Self { ports, sequence: 0, acknowledges })
    }

    fn write(&self, headers: &Headers, ip: &Ip, room: &mut [u8]) -> Option<usize> {
        let eth = PacketBuilder::ethernet2(headers.destination.0, headers.source.0);
        let step: PacketBuilderStep<_> = match (ip.destination, ip.source) {
            (IpAddr::V4(from), IpAddr::V4(to)) => eth.ipv4(from.octets(), to.octets(), HOP_LIMIT),
            (IpAddr::V6(from), IpAddr::V6(to)) => eth.ipv6(from.octets(), to.octets(), HOP_LIMIT),
            _ => return None,
        };
        let (to, from) = self.ports;
        let tcp = step.tcp(from, to, self.sequence, 0).rst();
        match self.acknowledges {
            Some(number) => tcp.ack(number).write_to_slice(room, &[]).ok(),
            None => tcp.write_to_slice(room, &[]).ok(),
        }
    }
}

/// "Port unreachable", with the beginning of the packet.
fn unreachable(frame: &View<'_>, ip: &Ip, room: &mut [u8]) -> Option<usize> {
    let eth = PacketBuilder::ethernet2(frame.headers.destination.0, frame.headers.source.0);
    match (ip.destination, ip.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
            let builder = eth.ipv4(from.octets(), to.octets(), HOP_LIMIT).icmpv4(kind);
            builder.write_to_slice(room, quote(frame, QUOTE_V4)).ok()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
            let builder = eth.ipv6(from.octets(), to.octets(), HOP_LIMIT).icmpv6(kind);
            builder.write_to_slice(room, quote(frame, QUOTE_V6)).ok()
        }
        _ => None,
    }
}
