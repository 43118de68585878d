//! What the sender of a packet that is larger than the network is told: ICMP "fragmentation needed"
//! (RFC 792, RFC 1191 section 4) or "packet too big" (RFC 4443 section 3.2), with the network's
//! MTU.
//!
//! It comes from the gateway: that is the one router which every endpoint knows, and whose
//! addresses this host has, also where it leads nowhere (RFC 1812 section 4.3.2.4 and RFC 4443
//! section 2.2 want an address of the node that answers). A switch cannot fragment, so a packet
//! that would allow it is answered, too: its sender can.
//!
//! Nobody is told about an error message, a group, a later fragment, or a packet without a source
//! (RFC 1122 section 3.2.2, RFC 4443 section 2.4), and an endpoint not more often than its share
//! (`limits`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4::DestUnreachableHeader as Unreachable,
};

use super::outbound::Scratch;
use crate::{
    addr::MacAddr,
    frame::View,
    tables::NetworkSpec,
    wire::{Fragment, ICMP, ICMPV6, Upper, ethernet, ipv4, ipv6},
};

const ICMP_HEADER_LEN: usize = 8;
/// How much of the packet is sent back: what makes 576 bytes (RFC 1812 section 4.3.2.3) and 1280
/// (RFC 4443 section 3.2).
pub(super) const QUOTE_V4: usize = 576 - ipv4::MIN_HEADER_LEN - ICMP_HEADER_LEN;
pub(super) const QUOTE_V6: usize = 1280 - ipv6::HEADER_LEN - ICMP_HEADER_LEN;
/// Bytes of the largest answer.
pub(super) const LEN: usize = ethernet::HEADER_LEN + 1280;
/// Error messages of ICMP (RFC 1122 section 3.2.2).
const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
/// Those of ICMPv6 are below this.
const FIRST_INFORMATIONAL: u8 = 128;
const REDIRECT: u8 = 137;

/// Leaves the answer to an endpoint in the scratch, if there is one.
pub(super) fn answer(spec: &NetworkSpec, frame: &View<'_>, scratch: &mut Scratch) {
    answer_from(spec, spec.gateway.mac, frame, scratch);
}

/// Leaves the answer in the scratch, if there is one, as a frame from this MAC.
pub(super) fn answer_from(
    spec: &NetworkSpec,
    mac: MacAddr,
    frame: &View<'_>,
    scratch: &mut Scratch,
) {
    let Some(ip) = frame.headers.ip.filter(|_| !frame.headers.destination.is_group()) else {
        return;
    };
    let written = match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let single = !source.is_unspecified()
                && !destination.is_multicast()
                && !destination.is_broadcast();
            let told =
                single && may_be_told(&ip.upper(frame.bytes), ICMP, |it| ERRORS.contains(&it));
            told.then(|| answer_v4(spec, mac, (source, frame), scratch)).flatten()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let single = !source.is_unspecified() && !destination.is_multicast();
            let is_error = |kind| kind < FIRST_INFORMATIONAL || kind == REDIRECT;
            let told = single && may_be_told(&ip.upper(frame.bytes), ICMPV6, is_error);
            told.then(|| answer_v6(spec, mac, (source, frame), scratch)).flatten()
        }
        _ => None,
    };
    debug_assert!(written.is_none_or(|len| len <= LEN));
}

fn answer_v4(
    spec: &NetworkSpec,
    mac: MacAddr,
    (to, frame): (Ipv4Addr, &View<'_>),
    scratch: &mut Scratch,
) -> Option<usize> {
    let IpAddr::V4(from) = gateway(spec, to.into())? else { return None };
    let kind = Unreachable::FragmentationNeeded { next_hop_mtu: spec.mtu };
    let builder = PacketBuilder::ethernet2(mac.0, frame.headers.source.0)
        .ipv4(from.octets(), to.octets(), 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(kind));
    scratch.write(|room| builder.write_to_slice(room, quote(frame, QUOTE_V4)).ok())
}

fn answer_v6(
    spec: &NetworkSpec,
    mac: MacAddr,
    (to, frame): (Ipv6Addr, &View<'_>),
    scratch: &mut Scratch,
) -> Option<usize> {
    let IpAddr::V6(from) = gateway(spec, to.into())? else { return None };
    let builder = PacketBuilder::ethernet2(mac.0, frame.headers.source.0)
        .ipv6(from.octets(), to.octets(), 64)
        .icmpv6(Icmpv6Type::PacketTooBig { mtu: spec.mtu.into() });
    scratch.write(|room| builder.write_to_slice(room, quote(frame, QUOTE_V6)).ok())
}

fn may_be_told(upper: &Upper<'_>, icmp: u8, is_error: impl Fn(u8) -> bool) -> bool {
    let is_error = || upper.payload.first().is_none_or(|kind| is_error(*kind));
    upper.fragment != Fragment::Later && !(upper.protocol == icmp && is_error())
}

/// The gateway's address in the sender's subnet, or another of its IP version.
fn gateway(spec: &NetworkSpec, sender: IpAddr) -> Option<IpAddr> {
    let subnet = spec.subnets.iter().find(|subnet| subnet.contains(&sender));
    let of_version = || spec.gateway.ips.iter().filter(|ip| ip.is_ipv4() == sender.is_ipv4());
    let beside = of_version().find(|ip| subnet.is_some_and(|subnet| subnet.contains(*ip)));
    beside.or_else(|| of_version().next()).copied()
}

pub(super) fn quote<'a>(frame: &View<'a>, len: usize) -> &'a [u8] {
    let payload = frame.payload();
    payload.get(..len).unwrap_or(payload)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use data_encoding::HEXLOWER;

    use super::*;
    use crate::{
        frame::Frame,
        limits::ICMP_BURST,
        path::{OutboundVerdict, outbound},
        reason::DropReason,
        tables::{
            NetworkTable, Place, TableUpdate,
            tests::{mac, now, row, spec},
        },
    };

    fn table(start: Instant) -> NetworkTable<u32> {
        NetworkTable::new(spec(), 7, start).apply([
            TableUpdate::Put(row(0, 10, Place::Local)),
            TableUpdate::Put(row(1, 11, Place::Remote(1))),
        ])
    }

    fn told(table: &NetworkTable<u32>, frame: &[u8], at: Instant) -> Vec<u8> {
        let (mut bytes, mut scratch) = (frame.to_vec(), Scratch::new());
        let verdict = outbound(table, &mut Frame::plain(&mut bytes), &mut scratch, at, &mut ());
        assert_eq!(verdict, OutboundVerdict::Drop(DropReason::TooBig));
        scratch.reply().to_vec()
    }

    fn v4(
        to: [u8; 6],
        source: [u8; 4],
        build: impl FnOnce(&mut Vec<u8>, etherparse::PacketBuilderStep<etherparse::IpHeaders>),
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        build(&mut frame, PacketBuilder::ethernet2(mac(10).0, to).ipv4(source, [10, 0, 0, 11], 64));
        frame
    }

    fn big_v4(to: [u8; 6]) -> Vec<u8> {
        v4(to, [10, 0, 0, 10], |frame, ip| ip.udp(7, 9).write(frame, &[7; 2000]).unwrap())
    }

    fn hex(digits: &str) -> Vec<u8> {
        let digits: String = digits.split_whitespace().collect();
        HEXLOWER.decode(digits.as_bytes()).unwrap()
    }

    /// The checksum of RFC 1071.
    fn checksum(parts: &[&[u8]]) -> [u8; 2] {
        let words = parts.iter().flat_map(|part| part.chunks_exact(2));
        let mut sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).unwrap()).to_be_bytes()
    }

    #[test]
    fn a_sender_of_ipv4_is_told_in_these_bytes() {
        let sent = big_v4(mac(11).0);
        let mut ip = hex("4500 0240 0000 4000 4001 0000 0a000001 0a00000a");
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum);
        let mut icmp = [&hex("0304 0000 0000 056e")[..], &sent[14..14 + 548]].concat();
        let sum = checksum(&[&icmp]);
        icmp[2..4].copy_from_slice(&sum);
        let eth = [&mac(10).0[..], &spec().gateway.mac.0, &[8, 0]].concat();
        assert_eq!(told(&table(now()), &sent, now()), [eth, ip, icmp].concat());
    }

    #[test]
    fn a_sender_of_ipv6_is_told_in_these_bytes() {
        let mut sent = Vec::new();
        let (from, to) = (row(0, 10, Place::Local).ips[1], row(1, 11, Place::Local).ips[1]);
        let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else { panic!("IPv6") };
        let builder = PacketBuilder::ethernet2(mac(10).0, mac(11).0);
        let builder = builder.ipv6(from.octets(), to.octets(), 64);
        builder.udp(7, 9).write(&mut sent, &[7; 2000]).unwrap();

        let gateway = spec().gateway.ips.into_iter().find(IpAddr::is_ipv6);
        let Some(IpAddr::V6(gateway)) = gateway else { panic!("IPv6") };
        let addrs = [gateway.octets(), from.octets()].concat();
        let ip = [&hex("6000 0000 04d8 3a40")[..], &addrs].concat();
        let mut icmp = [&hex("0200 0000 0000 056e")[..], &sent[14..14 + 1232]].concat();
        let sum = checksum(&[&addrs, &hex("0000 04d8 0000 003a"), &icmp]);
        icmp[2..4].copy_from_slice(&sum);
        let eth = [&mac(10).0[..], &spec().gateway.mac.0, &[0x86, 0xdd]].concat();
        let reply = told(&table(now()), &sent, now());
        assert_eq!(reply, [eth, ip, icmp].concat());
        assert_eq!(reply.len(), LEN);
    }

    #[test]
    fn nobody_is_told_about_groups_errors_and_fragments() {
        let table = table(now());
        assert!(told(&table, &big_v4([0xff; 6]), now()).is_empty(), "a group");
        let error = v4(mac(11).0, [10, 0, 0, 10], |frame, ip| {
            ip.icmpv4_raw(3, 1, [0; 4]).write(frame, &[7; 2000]).unwrap();
        });
        assert!(told(&table, &error, now()).is_empty(), "an error message");
        let echo = v4(mac(11).0, [10, 0, 0, 10], |frame, ip| {
            ip.icmpv4_echo_request(1, 1).write(frame, &[7; 2000]).unwrap();
        });
        assert!(!told(&table, &echo, now()).is_empty(), "a ping");
        let mut later = big_v4(mac(11).0);
        later[14 + 7] = 1;
        assert!(told(&table, &later, now()).is_empty(), "a later fragment");
        let mut first = big_v4(mac(11).0);
        first[14 + 6] = 0x20;
        assert!(!told(&table, &first, now()).is_empty(), "a first fragment");
    }

    #[test]
    fn an_endpoint_is_told_as_often_as_its_share_allows() {
        let start = now();
        let table = table(start);
        let sent = big_v4(mac(11).0);
        let answers =
            |at| (0..3 * ICMP_BURST).filter(|_| !told(&table, &sent, at).is_empty()).count();
        assert_eq!(answers(start), usize::try_from(ICMP_BURST).unwrap());
        assert!(answers(start + Duration::from_secs(1)) > 0);
    }
}
