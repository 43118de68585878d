//! Other addresses and ports for a frame of TCP or UDP: [`Rewrite`].
//!
//! Checksums are brought in step with what changed, never computed anew (RFC 1624 equation 3), so
//! one that was wrong stays wrong, and a super-frame is rewritten once, whatever it is cut into:
//!
//! ```text
//! IPv4 header         : addresses
//! TCP, UDP, complete  : addresses (they are in the pseudo header) and ports
//! TCP, UDP, partial   : addresses; it is the sum of the pseudo header, not its complement
//! UDP over IPv4, zero : stays zero, there is none (RFC 768)
//! ```
//!
//! A later fragment has only its addresses. A sandbox chooses where its partial checksum is
//! (packet(7), PACKET_VNET_HDR): one that is elsewhere than where TCP and UDP have theirs is
//! refused.

use std::net::{IpAddr, SocketAddr};

use super::{Frame, Headers, checksum_offset, segments::put};
use crate::{
    addr::MacAddr,
    reason::DropReason,
    wire::{Fragment, UDP, array, checksum::Sum, ethernet},
};

/// What a frame gets instead of what it has; nothing stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Another source.
    pub source: Option<SocketAddr>,
    /// Another destination.
    pub destination: Option<SocketAddr>,
    /// Another source MAC.
    pub source_mac: Option<MacAddr>,
    /// Another destination MAC.
    pub destination_mac: Option<MacAddr>,
}

impl Rewrite {
    /// To all ends of a packet with these headers; nothing if it has no ports.
    pub(super) fn to_ends_of(headers: &Headers) -> Option<Self> {
        let ip = headers.ip?;
        let (source, destination) = ip.ports?;
        Some(Self {
            source: Some(SocketAddr::new(ip.source, source)),
            destination: Some(SocketAddr::new(ip.destination, destination)),
            source_mac: Some(headers.source),
            destination_mac: Some(headers.destination),
        })
    }
}

/// Where a header has an address and a port.
#[derive(Clone, Copy)]
pub(super) struct Place {
    v4: usize,
    v6: usize,
    pub(super) port: usize,
}

pub(super) const SOURCE: Place = Place { v4: 12, v6: 8, port: 0 };
pub(super) const DESTINATION: Place = Place { v4: 16, v6: 24, port: 2 };
/// Where the checksum of an IPv4 header is.
pub(super) const IPV4_CHECKSUM: usize = ethernet::HEADER_LEN + 10;

impl Frame<'_> {
    /// Gives the frame other addresses and ports. If it is refused it stays as it was.
    ///
    /// # Errors
    /// It is not TCP or UDP of this IP version with all its header, or its partial checksum is not
    /// where that has it.
    pub fn rewrite(&mut self, to: &Rewrite) -> Result<(), DropReason> {
        let ip = self.headers.and_then(|headers| headers.ip).ok_or(DropReason::MalformedIp)?;
        let offset = checksum_offset(ip.protocol).ok_or(DropReason::MalformedIp)?;
        let fits = |socket: &SocketAddr| socket.is_ipv4() == ip.source.is_ipv4();
        if !to.source.iter().chain(&to.destination).all(fits) {
            return Err(DropReason::MalformedIp);
        }
        if self.offload.checksum.is_some_and(|checksum| !self.has_checksum_at(checksum)) {
            return Err(DropReason::BadOffload);
        }
        let has_upper = ip.fragment != Fragment::Later;
        let checksum = ip.upper + usize::from(offset);
        if has_upper && (ip.ports.is_none() || checksum + 2 > self.bytes.len().min(ip.end)) {
            return Err(DropReason::MalformedIp);
        }
        let mut changes = Changes::default();
        for (place, socket) in [(SOURCE, to.source), (DESTINATION, to.destination)] {
            let Some(socket) = socket else { continue };
            let at = ethernet::HEADER_LEN;
            exchange_ip(self.bytes, at, place, socket.ip(), &mut changes.addresses);
            if has_upper {
                let port = socket.port().to_be_bytes();
                exchange(self.bytes, ip.upper + place.port, port, &mut changes.ports);
            }
        }
        if ip.source.is_ipv4() {
            complete(self.bytes, IPV4_CHECKSUM, changes.addresses, false);
        }
        if has_upper {
            self.update_checksum(checksum, ip.protocol == UDP, &changes);
        }
        self.note(to, has_upper);
        Ok(())
    }

    /// Gives the frame other MACs. If it is refused it stays as it was.
    ///
    /// # Errors
    /// Its partial checksum is not where TCP or UDP has one: it might be another packet in the end.
    pub fn rewrite_macs(
        &mut self,
        source: Option<MacAddr>,
        destination: MacAddr,
    ) -> Result<(), DropReason> {
        if self.offload.checksum.is_some_and(|checksum| !self.has_checksum_at(checksum)) {
            return Err(DropReason::BadOffload);
        }
        let destination_mac = Some(destination);
        self.note(&Rewrite { source_mac: source, destination_mac, ..Rewrite::default() }, false);
        Ok(())
    }

    fn update_checksum(&mut self, at: usize, is_udp: bool, changes: &Changes) {
        if self.offload.checksum.is_some() {
            let field: [u8; 2] = array(self.bytes, at).unwrap_or_default();
            put(self.bytes, at, changes.addresses.bytes(&field).folded());
        } else {
            complete(self.bytes, at, changes.addresses.with(changes.ports), is_udp);
        }
    }

    /// Writes the MACs, and makes the headers those of the bytes.
    pub(super) fn note(&mut self, to: &Rewrite, has_upper: bool) {
        let Some(headers) = &mut self.headers else { return };
        if let Some(mac) = to.destination_mac {
            put(self.bytes, 0, mac.0);
            headers.destination = mac;
        }
        if let Some(mac) = to.source_mac {
            put(self.bytes, mac.0.len(), mac.0);
            headers.source = mac;
        }
        let Some(ip) = &mut headers.ip else { return };
        ip.source = to.source.map_or(ip.source, |socket| socket.ip());
        ip.destination = to.destination.map_or(ip.destination, |socket| socket.ip());
        if let Some((source, destination)) = ip.ports.as_mut().filter(|_| has_upper) {
            *source = to.source.map_or(*source, |socket| socket.port());
            *destination = to.destination.map_or(*destination, |socket| socket.port());
        }
    }
}

/// What the changed fields add to a sum: the complement of the old value, and the new one.
#[derive(Default)]
struct Changes {
    addresses: Sum,
    ports: Sum,
}

/// Replaces an address in the IP header that begins there.
pub(super) fn exchange_ip(bytes: &mut [u8], at: usize, place: Place, ip: IpAddr, change: &mut Sum) {
    match ip {
        IpAddr::V4(v4) => exchange(bytes, at + place.v4, v4.octets(), change),
        IpAddr::V6(v6) => exchange(bytes, at + place.v6, v6.octets(), change),
    }
}

pub(super) fn exchange<const N: usize>(
    bytes: &mut [u8],
    at: usize,
    new: [u8; N],
    change: &mut Sum,
) {
    let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) else { return };
    let old: [u8; N] = std::mem::replace(field, new);
    *change = change.bytes(&old.map(|byte| !byte)).bytes(&new);
}

/// RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
pub(super) fn complete(bytes: &mut [u8], at: usize, change: Sum, is_udp: bool) {
    let field: [u8; 2] = array(bytes, at).unwrap_or_default();
    if is_udp && field == [0; 2] {
        return;
    }
    let checksum = match change.bytes(&field.map(|byte| !byte)).checksum() {
        [0, 0] if is_udp => [0xff; 2],
        checksum => checksum,
    };
    put(bytes, at, checksum);
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, UdpHeader};
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Gso, GsoKind, PartialChecksum, vnet::Offload};

    const MAC: [MacAddr; 4] = [
        MacAddr([2, 0, 0, 0, 0, 1]),
        MacAddr([2, 0, 0, 0, 0, 2]),
        MacAddr([2, 0, 0, 0, 0, 3]),
        MacAddr([2, 0, 0, 0, 0, 4]),
    ];

    fn socket(ipv4: bool, ip: [u8; 16], port: u16) -> SocketAddr {
        let [a, b, c, d, ..] = ip;
        let ip = if ipv4 { IpAddr::from([a, b, c, d]) } else { IpAddr::from(ip) };
        SocketAddr::new(ip, port)
    }

    /// A frame that etherparse wrote with these ends, with all its checksums.
    fn written(
        tcp: bool,
        (from, to): (MacAddr, MacAddr),
        ends: (SocketAddr, SocketAddr),
        payload: &[u8],
    ) -> Vec<u8> {
        let eth = PacketBuilder::ethernet2(from.0, to.0);
        let ip = match (ends.0.ip(), ends.1.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => eth.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => eth.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("one version"),
        };
        let (from, to) = (ends.0.port(), ends.1.port());
        let mut frame = Vec::new();
        if tcp {
            ip.tcp(from, to, 77, 1024).ack(5).write(&mut frame, payload).unwrap();
        } else {
            ip.udp(from, to).write(&mut frame, payload).unwrap();
        }
        frame
    }

    /// The same frame, its checksum replaced by the sum of the pseudo header.
    fn partial(mut frame: Vec<u8>) -> (Vec<u8>, PartialChecksum) {
        let headers = Headers::parse(&frame).unwrap();
        let ip = headers.ip.unwrap();
        let offset = checksum_offset(ip.protocol).unwrap();
        let addresses = if ip.source.is_ipv4() { 26..34 } else { 22..54 };
        let len = u16::try_from(ip.end - ip.upper).unwrap();
        let sum = Sum::default().bytes(&frame[addresses]).number(ip.protocol.into()).number(len);
        let at = ip.upper + usize::from(offset);
        frame[at..at + 2].copy_from_slice(&sum.folded());
        (frame, PartialChecksum { start: u16::try_from(ip.upper).unwrap(), offset })
    }

    fn rewritten(
        frame: &mut [u8],
        offload: Offload,
        to: &Rewrite,
    ) -> Result<Option<Headers>, DropReason> {
        let mut frame = Frame::new(frame, offload);
        frame.rewrite(to)?;
        assert_eq!(frame.headers().copied(), Headers::parse(frame.bytes()));
        Ok(frame.headers().copied())
    }

    proptest! {
        #[test]
        fn equals_a_frame_written_with_the_other_ends(
            (tcp, ipv4, with_partial) in any::<(bool, bool, bool)>(), ips: [[u8; 16]; 4], ports: [u16; 4],
            which in 0u8..16, payload in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let [a, b, c, d] = std::array::from_fn(|at| socket(ipv4, ips[at], ports[at]));
            let has = |bit: u8| which & bit != 0;
            let to = Rewrite {
                source: has(1).then_some(c),
                destination: has(2).then_some(d),
                source_mac: has(4).then_some(MAC[2]),
                destination_mac: has(8).then_some(MAC[3]),
            };
            let macs = (to.source_mac.unwrap_or(MAC[0]), to.destination_mac.unwrap_or(MAC[1]));
            let ends = (to.source.unwrap_or(a), to.destination.unwrap_or(b));
            let mut frame = written(tcp, (MAC[0], MAC[1]), (a, b), &payload);
            let mut expected = written(tcp, macs, ends, &payload);
            let mut offload = Offload::default();
            if with_partial {
                let (bytes, checksum) = partial(frame);
                frame = bytes;
                offload.checksum = Some(checksum);
                expected = partial(expected).0;
            }
            rewritten(&mut frame, offload, &to).unwrap();
            prop_assert_eq!(frame, expected);
        }

        #[test]
        fn bytes_of_all_kinds_are_refused_or_stay_a_frame(
            mut frame in prop::collection::vec(any::<u8>(), 0..90), ipv4: bool, protocol in 0usize..3,
            start in 0u16..60, offset in 0u16..20, with_partial: bool, ip: [u8; 16], port: u16,
        ) {
            if frame.len() > 24 {
                let kind = if ipv4 { ethernet::IPV4 } else { ethernet::IPV6 };
                frame[12..14].copy_from_slice(&kind.to_be_bytes());
                frame[14] = if ipv4 { 0x45 } else { 0x60 };
                let protocol = [6, 17, 1][protocol];
                let (at, len) = if ipv4 { (23, frame.len() - 14) } else { (20, frame.len().saturating_sub(54)) };
                frame[at] = protocol;
                let at = if ipv4 { 16 } else { 18 };
                frame[at..at + 2].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
            }
            let checksum = with_partial.then_some(PartialChecksum { start, offset });
            let to = Rewrite { source: Some(socket(ipv4, ip, port)), ..Rewrite::default() };
            let before = frame.clone();
            if rewritten(&mut frame, Offload { gso: None, checksum }, &to).is_err() {
                prop_assert_eq!(frame, before);
            }
        }
    }

    #[test]
    fn a_datagram_without_a_checksum_gets_none() {
        let [a, b, c] =
            [1, 2, 3].map(|n| socket(true, [10, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 9));
        let mut frame = written(false, (MAC[0], MAC[1]), (a, b), b"payload");
        frame[40..42].copy_from_slice(&[0; 2]);
        let to = Rewrite { destination: Some(c), ..Rewrite::default() };
        rewritten(&mut frame, Offload::default(), &to).unwrap();
        assert_eq!(frame[40..42], [0; 2]);
        assert_eq!(frame[30..34], [10, 0, 0, 3]);
    }

    /// In UDP zero says that there is no checksum (RFC 768), so the other zero stands for it.
    #[test]
    fn a_sum_that_becomes_zero_is_written_as_the_other_zero() {
        let [a, b] =
            [1, 2].map(|n| socket(true, [10, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 9));
        let mut zeros = 0;
        for port in 0..=u16::MAX {
            let mut frame = written(false, (MAC[0], MAC[1]), (a, b), &[]);
            let c = SocketAddr::new(a.ip(), port);
            let to = Rewrite { source: Some(c), ..Rewrite::default() };
            rewritten(&mut frame, Offload::default(), &to).unwrap();
            assert_ne!(frame[40..42], [0; 2], "port {port}");
            zeros += usize::from(frame[40..42] == [0xff; 2]);
        }
        assert_eq!(zeros, 1);
    }

    #[test]
    fn of_a_fragment_the_first_has_ports_and_the_others_addresses_only() {
        let [a, b, c] = [1, 2, 3]
            .map(|n| socket(true, [10, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], n.into()));
        let whole = written(false, (MAC[0], MAC[1]), (a, b), &[7; 64]);
        let to = Rewrite { destination: Some(c), ..Rewrite::default() };
        let mut expected = whole.clone();
        rewritten(&mut expected, Offload::default(), &to).unwrap();
        let cut = |range: std::ops::Range<usize>, flags: u16| {
            let mut header = Ipv4Header::from_slice(&whole[14..]).unwrap().0;
            header.total_len = u16::try_from(20 + range.len()).unwrap();
            header.more_fragments = flags == 1;
            header.fragment_offset = u16::try_from(range.start / 8).unwrap().try_into().unwrap();
            header.header_checksum = header.calc_header_checksum();
            let mut frame = whole[..14].to_vec();
            header.write_raw(&mut frame).unwrap();
            frame.extend(&whole[34..][range]);
            frame
        };
        let (mut first, mut later) = (cut(0..32, 1), cut(32..72, 0));
        for fragment in [&mut first, &mut later] {
            rewritten(fragment, Offload::default(), &to).unwrap();
            let header = Ipv4Header::from_slice(&fragment[14..]).unwrap().0;
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(header.destination, [10, 0, 0, 3]);
        }
        assert_eq!([&first[34..], &later[34..]].concat(), expected[34..]);
    }

    #[test]
    fn a_super_frame_is_rewritten_by_its_headers_alone() {
        let [a, b, c] = [1, 2, 3].map(|n| socket(false, [n; 16], n.into()));
        let (mut frame, checksum) = partial(written(true, (MAC[0], MAC[1]), (a, b), &[7; 3000]));
        let gso = Some(Gso { kind: GsoKind::Tcp6, segment_size: 1000, header_len: 74 });
        let offload = Offload { gso, checksum: Some(checksum) };
        let to = Rewrite { source: Some(c), ..Rewrite::default() };
        let mut headers_only = frame[..74].to_vec();
        let headers = Headers::parse(&frame);
        rewritten(&mut frame, offload, &to).unwrap();
        let mut short = Frame::with_headers(&mut headers_only, headers, offload);
        short.rewrite(&to).unwrap();
        assert_eq!(headers_only, frame[..74]);
    }

    #[test]
    fn what_cannot_be_rewritten_stays_as_it_was() {
        let [a, b, c] = [1, 2, 3].map(|n| socket(true, [n; 16], 9));
        let other = socket(false, [3; 16], 9);
        let (frame, checksum) = partial(written(false, (MAC[0], MAC[1]), (a, b), b"payload"));
        let to = |socket| Rewrite { source: Some(socket), ..Rewrite::default() };
        let elsewhere = PartialChecksum { offset: checksum.offset + 2, ..checksum };
        let mut icmp = frame.clone();
        icmp[23] = 1;
        let mut cut = frame[..38].to_vec();
        cut[16..18].copy_from_slice(&24u16.to_be_bytes());
        for (what, frame, checksum, socket, reason) in [
            ("checksum elsewhere", &frame, Some(elsewhere), c, DropReason::BadOffload),
            ("another version", &frame, None, other, DropReason::MalformedIp),
            ("no ports", &icmp, None, c, DropReason::MalformedIp),
            ("cut off", &cut, None, c, DropReason::MalformedIp),
            ("no packet", &vec![0; 20], None, c, DropReason::MalformedIp),
        ] {
            let mut bytes = frame.clone();
            let offload = Offload { gso: None, checksum };
            assert_eq!(rewritten(&mut bytes, offload, &to(socket)), Err(reason), "{what}");
            assert_eq!(bytes, *frame, "{what}");
        }
    }

    #[test]
    fn checksums_are_right_to_an_independent_reader() {
        for ipv4 in [true, false] {
            for tcp in [true, false] {
                let [a, b, c, d] = [1, 2, 3, 4].map(|n| socket(ipv4, [n; 16], n.into()));
                let mut frame = written(tcp, (MAC[0], MAC[1]), (a, b), b"payload");
                let to = Rewrite { source: Some(c), destination: Some(d), ..Rewrite::default() };
                rewritten(&mut frame, Offload::default(), &to).unwrap();
                let upper = if ipv4 { 34 } else { 54 };
                let rest = &frame[upper..];
                let (said, right) = if tcp {
                    let (header, payload) = TcpHeader::from_slice(rest).unwrap();
                    (
                        header.checksum,
                        match ipv4 {
                            true => header.calc_checksum_ipv4(
                                &Ipv4Header::from_slice(&frame[14..]).unwrap().0,
                                payload,
                            ),
                            false => header.calc_checksum_ipv6(
                                &Ipv6Header::from_slice(&frame[14..]).unwrap().0,
                                payload,
                            ),
                        },
                    )
                } else {
                    let (header, payload) = UdpHeader::from_slice(rest).unwrap();
                    (
                        header.checksum,
                        match ipv4 {
                            true => header.calc_checksum_ipv4(
                                &Ipv4Header::from_slice(&frame[14..]).unwrap().0,
                                payload,
                            ),
                            false => header.calc_checksum_ipv6(
                                &Ipv6Header::from_slice(&frame[14..]).unwrap().0,
                                payload,
                            ),
                        },
                    )
                };
                assert_eq!(said, right.unwrap(), "ipv4 {ipv4}, tcp {tcp}");
            }
        }
    }
}
