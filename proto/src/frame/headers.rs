//! The headers of a frame, read once: [`Headers`], and what its flow is by them ([`FlowKey`]).
//!
//! ```text
//! Ethernet 14 | IPv4 20..60, IPv6 40 and extensions | TCP, UDP, ICMP ...  | padding
//! 0             14                                    upper                 end
//! ```
//!
//! They are numbers and places, not views: they can be kept beside a frame that waits, and stay
//! true while bytes behind them change. Every later step asks them instead of reading the frame
//! again.

use std::net::IpAddr;

use crate::{
    addr::MacAddr,
    wire::{Ethernet, Fragment, Ipv4, Ipv6, Upper, be16, ethernet, ipv6},
};

/// What a frame says of itself in front of what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
    /// The packet in it; none if it is another protocol's, or malformed.
    pub ip: Option<Ip>,
}

/// An IP packet of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The protocol number of what it carries, behind all extension headers.
    pub protocol: u8,
    /// Which part of a packet it is.
    pub fragment: Fragment,
    /// Source and destination port, unless the packet has none or they are cut off.
    pub ports: Option<(u16, u16)>,
    /// Where in the frame that begins which it carries.
    pub upper: usize,
    /// Where in the frame it ends; what is behind is padding.
    pub end: usize,
}

/// A frame to look at, with its headers.
#[derive(Clone, Copy, Debug)]
pub struct View<'f> {
    /// All of it.
    pub bytes: &'f [u8],
    /// Its headers.
    pub headers: &'f Headers,
}

impl<'f> View<'f> {
    /// All behind the Ethernet header, padding included.
    #[must_use]
    pub fn payload(&self) -> &'f [u8] {
        self.bytes.get(ethernet::HEADER_LEN..).unwrap_or_default()
    }
}

/// The protocol of what is a fragment (IPv6-Frag). Behind the fragment header of IPv6 there may be
/// options, and only the first fragment shows what follows them.
const FRAGMENT: u8 = 44;

/// What the packets of one flow have in common, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKey {
    /// An IP packet. Only those that are whole have ports: a first fragment must not overtake the
    /// others.
    Ip {
        /// Who sends.
        source: IpAddr,
        /// To whom.
        destination: IpAddr,
        /// The protocol number; [`FRAGMENT`] of each fragment.
        protocol: u8,
        /// Source and destination port.
        ports: Option<(u16, u16)>,
    },
    /// Anything else.
    Ethernet {
        /// Who sends.
        source: MacAddr,
        /// To whom.
        destination: MacAddr,
        /// What.
        ethertype: u16,
    },
}

impl Headers {
    /// Reads the headers; nothing if there are less than 14 bytes.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let eth = Ethernet::parse(frame)?;
        let ip = match eth.ethertype {
            ethernet::IPV4 => Ipv4::parse(eth.payload).map(|ip| {
                Ip::of((ip.source.into(), ip.destination.into()), ip.hop_limit, ip.len, &ip.upper)
            }),
            ethernet::IPV6 => Ipv6::parse(eth.payload).map(|ip| {
                Ip::of((ip.source.into(), ip.destination.into()), ip.hop_limit, ip.len, &ip.upper)
            }),
            _ => None,
        };
        let Ethernet { destination, source, ethertype, .. } = eth;
        Some(Self { destination, source, ethertype, ip })
    }

    /// Whether the payload should be an IP packet.
    #[must_use]
    pub const fn is_ip(&self) -> bool {
        matches!(self.ethertype, ethernet::IPV4 | ethernet::IPV6)
    }

    /// The flow that the frame is of.
    #[must_use]
    pub fn flow(&self) -> FlowKey {
        match self.ip {
            Some(Ip { source, destination, protocol, fragment, ports, .. }) => {
                let (protocol, ports) = match fragment {
                    Fragment::Whole => (protocol, ports),
                    Fragment::First | Fragment::Later => (FRAGMENT, None),
                };
                FlowKey::Ip { source, destination, protocol, ports }
            }
            None => FlowKey::Ethernet {
                source: self.source,
                destination: self.destination,
                ethertype: self.ethertype,
            },
        }
    }
}

impl Ip {
    fn of(
        (source, destination): (IpAddr, IpAddr),
        hop_limit: u8,
        len: usize,
        upper: &Upper<'_>,
    ) -> Self {
        let end = ethernet::HEADER_LEN + len;
        Self {
            source,
            destination,
            hop_limit,
            protocol: upper.protocol,
            fragment: upper.fragment,
            ports: upper.ports(),
            upper: end.saturating_sub(upper.payload.len()),
            end,
        }
    }

    /// What the packet carries.
    #[must_use]
    pub fn upper<'f>(&self, frame: &'f [u8]) -> Upper<'f> {
        Upper {
            protocol: self.protocol,
            fragment: self.fragment,
            payload: frame.get(self.upper..self.end).unwrap_or_default(),
        }
    }

    /// The number that all fragments of its packet have, if it is one of them.
    #[must_use]
    pub fn fragment_id(&self, frame: &[u8]) -> Option<u32> {
        let packet = frame.get(ethernet::HEADER_LEN..)?;
        match self.source {
            _ if self.fragment == Fragment::Whole => None,
            IpAddr::V4(_) => be16(packet, 4).map(u32::from),
            IpAddr::V6(_) => ipv6::fragment_id(packet),
        }
    }

    /// Whether the packet has no options and no extension headers, and the frame no padding.
    #[must_use]
    pub fn is_bare(&self, frame_len: usize) -> bool {
        self.upper == bare(self.source) && self.end == frame_len && self.fragment == Fragment::Whole
    }
}

/// Where what a packet without options carries begins.
const fn bare(source: IpAddr) -> usize {
    ethernet::HEADER_LEN
        + match source {
            IpAddr::V4(_) => crate::wire::ipv4::MIN_HEADER_LEN,
            IpAddr::V6(_) => ipv6::HEADER_LEN,
        }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(7, 9)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn places_are_those_of_the_frame() {
        let mut frame = udp(b"payload");
        let whole = frame.len();
        frame.extend([0; 5]);
        let ip = Headers::parse(&frame).unwrap().ip.unwrap();
        assert_eq!((ip.upper, ip.end, ip.ports), (34, whole, Some((7, 9))));
        assert_eq!(ip.upper(&frame).payload, &frame[34..whole]);
        assert!(!ip.is_bare(frame.len()) && ip.is_bare(whole));
    }

    #[test]
    fn fragments_of_a_packet_are_of_one_flow_without_ports() {
        let mut frame = udp(b"payload");
        let flow = |frame: &[u8]| Headers::parse(frame).unwrap().flow();
        let whole = flow(&frame);
        frame[20] = 0x20;
        let first = flow(&frame);
        frame[20..22].copy_from_slice(&[0, 1]);
        assert_eq!(first, flow(&frame));
        assert_ne!(first, whole);
    }

    /// Destination options behind the fragment header: only the first fragment has them.
    #[test]
    fn fragments_are_of_one_flow_whatever_only_the_first_one_shows() {
        const OPTIONS: u8 = 60;
        let flow = |offset_and_more: [u8; 2], payload: &[u8]| {
            let mut frame = [&[2; 6][..], &[4; 6], &ethernet::IPV6.to_be_bytes()].concat();
            let len = u8::try_from(8 + payload.len()).unwrap();
            frame.extend([0x60, 0, 0, 0, 0, len, 44, 64]);
            frame.extend([[1; 16], [2; 16]].concat());
            let [high, low] = offset_and_more;
            frame.extend([OPTIONS, 0, high, low, 0, 0, 0, 9]);
            frame.extend(payload);
            let headers = Headers::parse(&frame).unwrap();
            assert!(headers.ip.is_some());
            headers.flow()
        };
        let options = [crate::wire::UDP, 0, 1, 4, 0, 0, 0, 0];
        let first = flow([0, 1], &[&options[..], &[0, 7, 0, 9, 0, 16, 0, 0]].concat());
        assert_eq!(first, flow([0, 16], &[5; 8]));
    }

    proptest! {
        #[test]
        fn bytes_of_all_kinds_are_read_within_the_frame(
            mut frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..3,
        ) {
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&[ethernet::IPV4, ethernet::IPV6, ethernet::ARP][kind].to_be_bytes());
                frame[14] = [0x45, 0x60, 0x01][kind];
            }
            let headers = Headers::parse(&frame);
            prop_assert_eq!(headers.is_some(), frame.len() >= ethernet::HEADER_LEN);
            if let Some(ip) = headers.and_then(|headers| headers.ip) {
                prop_assert!(ip.upper <= ip.end && ip.end <= frame.len());
                prop_assert_eq!(ip.upper(&frame).payload.len(), ip.end - ip.upper);
            }
        }
    }
}
