//! The IPv4 header (RFC 791 section 3.1), as far as the fate of a frame depends on it.
//!
//! Checksums are left to the receiving kernel: a wrong one harms nobody but its sender.

use std::net::Ipv4Addr;

use super::{Upper, array, be16};
use crate::wire::Fragment;

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;

/// One packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    /// Who sent it.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// Routers that it may still pass.
    pub hop_limit: u8,
    /// Bytes of the packet; what is behind is padding.
    pub len: usize,
    /// What it carries.
    pub upper: Upper<'a>,
}

impl<'a> Ipv4<'a> {
    /// Reads a header; nothing if the version, header length or total length contradict the bytes.
    /// Bytes behind the total length are padding.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let header_len = usize::from(first & 0x0f) * 4;
        let total_len = usize::from(be16(bytes, 2)?);
        if first >> 4 != 4 || header_len < MIN_HEADER_LEN || total_len < header_len {
            return None;
        }
        let flags_and_offset = be16(bytes, 6)?;
        let fragment = match (flags_and_offset & 0x1fff, flags_and_offset & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            (_, _) => Fragment::Later,
        };
        Some(Self {
            source: Ipv4Addr::from(array::<4>(bytes, 12)?),
            destination: Ipv4Addr::from(array::<4>(bytes, 16)?),
            hop_limit: *bytes.get(8)?,
            len: total_len,
            upper: Upper {
                protocol: *bytes.get(9)?,
                fragment,
                payload: bytes.get(header_len..total_len)?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::wire::UDP;

    fn packet() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(67, 68)
            .write(&mut bytes, b"hello")
            .unwrap();
        bytes
    }

    #[test]
    fn fields_and_padding() {
        let mut bytes = packet();
        bytes.extend([0; 9]);
        let ip = Ipv4::parse(&bytes).unwrap();
        assert_eq!(ip.source, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(ip.destination, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(ip.upper.protocol, UDP);
        assert_eq!(ip.upper.fragment, Fragment::Whole);
        assert_eq!(ip.upper.payload.len(), 8 + 5);
        assert_eq!(ip.upper.ports(), Some((67, 68)));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let good = packet();
        for (at, value, why) in [
            (0, 0x65, "version 6"),
            (0, 0x44, "header of 16 bytes"),
            (0, 0x4f, "header longer than the packet"),
            (3, 19, "total shorter than the header"),
            (3, 34, "total longer than the bytes"),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Ipv4::parse(&bad).is_none(), "{why}");
        }
        for len in 0..good.len() {
            assert!(Ipv4::parse(&good[..len]).is_none(), "{len}");
        }
    }

    #[test]
    fn fragments() {
        let mut bytes = packet();
        bytes[6] = 0x20;
        assert_eq!(Ipv4::parse(&bytes).unwrap().upper.fragment, Fragment::First);
        bytes[7] = 1;
        let later = Ipv4::parse(&bytes).unwrap();
        assert_eq!(later.upper.fragment, Fragment::Later);
        assert_eq!(later.upper.ports(), None, "a later fragment has no ports");
        bytes[6] = 0x40;
        bytes[7] = 0;
        assert_eq!(Ipv4::parse(&bytes).unwrap().upper.fragment, Fragment::Whole, "DF alone");
    }
}
