//! What an IP packet carries, the same for both versions: a protocol number, its bytes, and which
//! part of the whole they are.

use super::be16;

/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv4 (RFC 792).
pub const ICMP: u8 = 1;
/// IGMP (RFC 3376).
pub const IGMP: u8 = 2;
/// ICMP for IPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;

/// Which part of a packet the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The beginning, with the headers of the upper layer.
    First,
    /// Something from the middle or the end.
    Later,
}

/// The payload of an IP packet.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// The protocol number (IANA).
    pub protocol: u8,
    /// Which part of the packet this is.
    pub fragment: Fragment,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl Upper<'_> {
    /// Source and destination port of TCP or UDP; nothing in a later fragment or where they are cut
    /// off.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        if self.fragment == Fragment::Later || !matches!(self.protocol, TCP | UDP) {
            return None;
        }
        Some((be16(self.payload, 0)?, be16(self.payload, 2)?))
    }
}
