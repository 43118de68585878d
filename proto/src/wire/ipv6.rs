//! The IPv6 header (RFC 8200 section 3) and the walk over its extension headers (section 4).
//!
//! The walk exists so that a router advertisement cannot hide behind a chain of headers (RFC 7113):
//! it is bounded, and a chain that it cannot finish within the first fragment is refused (RFC
//! 7112).

use std::net::Ipv6Addr;

use super::{Fragment, Upper, array, be16, be32};
use crate::addr::MacAddr;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Extension headers that one packet may have; RFC 8200 section 4.1 orders seven, and none sends
/// more.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// One packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    /// Who sent it.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
    /// Routers that it may still pass; 255 means that it passed none.
    pub hop_limit: u8,
    /// Bytes of the packet; what is behind is padding.
    pub len: usize,
    /// What it carries behind the extension headers.
    pub upper: Upper<'a>,
}

impl<'a> Ipv6<'a> {
    /// Reads a packet; nothing if version or lengths contradict the bytes, or the chain of headers
    /// does not end within them. Bytes behind the payload length are padding.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if *bytes.first()? >> 4 != 6 {
            return None;
        }
        let end = HEADER_LEN + usize::from(be16(bytes, 4)?);
        Some(Self {
            source: Ipv6Addr::from(array::<16>(bytes, 8)?),
            destination: Ipv6Addr::from(array::<16>(bytes, 24)?),
            hop_limit: *bytes.get(7)?,
            len: end,
            upper: walk(*bytes.get(6)?, bytes.get(HEADER_LEN..end)?)?,
        })
    }
}

/// The identification of a packet's fragment header (section 4.5), if it has one.
#[must_use]
pub fn fragment_id(bytes: &[u8]) -> Option<u32> {
    let (mut next, mut rest) = (*bytes.get(6)?, bytes.get(HEADER_LEN..)?);
    for _ in 0..=MAX_EXTENSIONS {
        if next == FRAGMENT {
            return be32(rest, 4);
        }
        let len = extension_len(next, rest)?;
        next = *rest.first()?;
        rest = rest.get(len..)?;
    }
    None
}

/// Bytes of an extension header that has its length in itself.
fn extension_len(kind: u8, rest: &[u8]) -> Option<usize> {
    match kind {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => Some(8 + usize::from(*rest.get(1)?) * 8),
        AUTHENTICATION => Some(8 + usize::from(*rest.get(1)?) * 4),
        _ => None,
    }
}

fn walk(mut next: u8, mut rest: &[u8]) -> Option<Upper<'_>> {
    let mut fragment = Fragment::Whole;
    for _ in 0..=MAX_EXTENSIONS {
        let len = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {
                extension_len(next, rest)?
            }
            FRAGMENT => {
                let offset_and_more = be16(rest, 2)?;
                if offset_and_more & 0xfff8 != 0 {
                    // What follows is the middle of something: the header chain is in the first
                    // fragment.
                    let payload = rest.get(8..)?;
                    return Some(Upper {
                        protocol: *rest.first()?,
                        fragment: Fragment::Later,
                        payload,
                    });
                }
                fragment = Fragment::First;
                8
            }
            protocol => return Some(Upper { protocol, fragment, payload: rest }),
        };
        next = *rest.first()?;
        rest = rest.get(len..)?;
    }
    None
}

/// Whether this is a link-local unicast address (RFC 4291 section 2.5.6).
#[must_use]
pub const fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

/// The link-local address that an interface makes from its MAC (RFC 4291 appendix A).
#[must_use]
pub fn link_local_of(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
}

/// The MAC from which a link-local address was made, if it was made so: inverse of
/// [`link_local_of`].
#[must_use]
pub const fn mac_of_link_local(ip: Ipv6Addr) -> Option<MacAddr> {
    match ip.octets() {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
            Some(MacAddr([a ^ 0x02, b, c, d, e, f]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{ICMPV6, UDP};

    fn packet() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 255).udp(547, 546).write(&mut bytes, b"hi").unwrap();
        bytes
    }

    /// A packet whose chain of headers is `chain`: (kind, bytes), then `last`.
    fn chained(chain: &[(u8, Vec<u8>)], last: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, chain.first().map_or(last, |c| c.0), 64];
        bytes.extend([1; 16]);
        bytes.extend([2; 16]);
        for (i, (_, header)) in chain.iter().enumerate() {
            let mut header = header.clone();
            header[0] = chain.get(i + 1).map_or(last, |c| c.0);
            bytes.extend(header);
        }
        bytes.extend(payload);
        let len = u16::try_from(bytes.len() - HEADER_LEN).unwrap();
        bytes[4..6].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    #[test]
    fn fields_and_padding() {
        let mut bytes = packet();
        bytes.extend([0; 3]);
        let ip = Ipv6::parse(&bytes).unwrap();
        assert_eq!(ip.hop_limit, 255);
        assert_eq!(ip.source, Ipv6Addr::from([1; 16]));
        assert_eq!(ip.destination, Ipv6Addr::from([2; 16]));
        assert_eq!(ip.upper.protocol, UDP);
        assert_eq!(ip.upper.payload.len(), 10);
        assert_eq!(ip.upper.ports(), Some((547, 546)));
    }

    #[test]
    fn every_prefix_and_the_wrong_version_are_refused() {
        let mut good = packet();
        for len in 0..good.len() {
            assert!(Ipv6::parse(&good[..len]).is_none(), "{len}");
        }
        good[0] = 0x45;
        assert!(Ipv6::parse(&good).is_none());
    }

    #[test]
    fn the_walk_finds_what_is_behind_all_headers() {
        let mut routing = vec![0, 1];
        routing.resize(16, 0);
        let mut auth = vec![0, 4];
        auth.resize(24, 0);
        let chain = [
            (HOP_BY_HOP, vec![0; 8]),
            (DESTINATION_OPTIONS, vec![0; 8]),
            (ROUTING, routing),
            (FRAGMENT, vec![0, 0, 0, 1, 0, 0, 0, 0]),
            (AUTHENTICATION, auth),
        ];
        let bytes = chained(&chain, ICMPV6, &[134, 0, 9, 9]);
        let upper = Ipv6::parse(&bytes).unwrap().upper;
        assert_eq!((upper.protocol, upper.fragment), (ICMPV6, Fragment::First));
        assert_eq!(upper.payload, [134, 0, 9, 9]);
    }

    #[test]
    fn a_later_fragment_ends_the_walk() {
        let bytes = chained(&[(FRAGMENT, vec![0, 0, 0, 8, 0, 0, 0, 0])], HOP_BY_HOP, &[1, 2, 3]);
        let upper = Ipv6::parse(&bytes).unwrap().upper;
        assert_eq!(upper.fragment, Fragment::Later);
        assert_eq!(upper.payload, [1, 2, 3]);
    }

    #[test]
    fn endless_and_cut_chains_are_refused() {
        let options = |n: usize| vec![(DESTINATION_OPTIONS, vec![0; 8]); n];
        assert!(Ipv6::parse(&chained(&options(MAX_EXTENSIONS), UDP, &[0; 8])).is_some());
        assert!(Ipv6::parse(&chained(&options(MAX_EXTENSIONS + 1), UDP, &[0; 8])).is_none());
        let mut long = chained(&options(1), UDP, &[]);
        long[HEADER_LEN + 1] = 200;
        assert!(Ipv6::parse(&long).is_none(), "an option header longer than the packet");
    }

    #[test]
    fn link_local_of_a_mac() {
        let mac = MacAddr([0x02, 0x42, 0x0a, 0, 0, 0x05]);
        assert_eq!(link_local_of(mac), "fe80::42:aff:fe00:5".parse::<Ipv6Addr>().unwrap());
        assert_eq!(mac_of_link_local("fe80::1".parse().unwrap()), None);
        assert_eq!(mac_of_link_local("fd00::42:aff:fe00:5".parse().unwrap()), None);
        assert!(is_link_local("febf::1".parse().unwrap()));
        assert!(!is_link_local("fec0::1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn link_local_round_trip(mac: [u8; 6]) {
            let ip = link_local_of(MacAddr(mac));
            prop_assert!(is_link_local(ip));
            prop_assert_eq!(mac_of_link_local(ip), Some(MacAddr(mac)));
        }
    }
}
