//! The Ethernet II header (IEEE 802.3 clause 3): destination 6, source 6, ethertype 2.
//!
//! A frame here has no preamble and no check sequence, as the kernel hands it over. Tags are
//! recognised ([`is_vlan`]) and not looked behind.

use super::{array, be16};
use crate::addr::MacAddr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;
/// IPv4 (RFC 894).
pub const IPV4: u16 = 0x0800;
/// ARP (RFC 826).
pub const ARP: u16 = 0x0806;
/// IPv6 (RFC 2464).
pub const IPV6: u16 = 0x86dd;
/// Smaller values of the type field are the length of an LLC frame.
const SMALLEST_TYPE: u16 = 0x0600;

/// One frame.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
    /// All behind the header, padding included.
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Reads the header; nothing if there are less than 14 bytes.
    #[must_use]
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        Some(Self {
            destination: MacAddr(array(frame, 0)?),
            source: MacAddr(array(frame, 6)?),
            ethertype: be16(frame, 12)?,
            payload: frame.get(HEADER_LEN..)?,
        })
    }
}

/// Whether the type field is a length: an LLC frame (IEEE 802.2).
#[must_use]
pub const fn is_llc(ethertype: u16) -> bool {
    ethertype < SMALLEST_TYPE
}

/// Whether a VLAN tag follows: 802.1Q, 802.1ad, and the older 0x9100 of stacked tags.
#[must_use]
pub const fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}

/// Whether bridges must not forward this group (IEEE 802.1Q table 8-1: 01:80:c2:00:00:00 to :0f).
#[must_use]
pub const fn is_reserved_group(mac: MacAddr) -> bool {
    matches!(mac.0, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_they_belong() {
        let mut frame = [0u8; 15];
        frame[..6].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        frame[6..12].copy_from_slice(&[7, 8, 9, 10, 11, 12]);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        let eth = Ethernet::parse(&frame).unwrap();
        assert_eq!(eth.destination, MacAddr([1, 2, 3, 4, 5, 6]));
        assert_eq!(eth.source, MacAddr([7, 8, 9, 10, 11, 12]));
        assert_eq!(eth.ethertype, IPV6);
        assert_eq!(eth.payload.len(), 1);
        assert!(!is_vlan(eth.ethertype) && !is_llc(eth.ethertype));
    }

    #[test]
    fn short_frames_are_none() {
        for len in 0..HEADER_LEN {
            assert!(Ethernet::parse(&[0; HEADER_LEN][..len]).is_none(), "{len}");
        }
        assert!(Ethernet::parse(&[0; HEADER_LEN]).is_some());
    }

    #[test]
    fn reserved_groups_end_at_0f() {
        assert!(is_reserved_group(MacAddr([1, 0x80, 0xc2, 0, 0, 0])));
        assert!(is_reserved_group(MacAddr([1, 0x80, 0xc2, 0, 0, 0x0f])));
        assert!(!is_reserved_group(MacAddr([1, 0x80, 0xc2, 0, 0, 0x10])));
        assert!(!is_reserved_group(MacAddr([1, 0, 0x5e, 0, 0, 1])));
    }
}
