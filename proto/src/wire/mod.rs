//! Headers as views over bytes: what each field is, never what it means.
//!
//! A view borrows the frame and reads at fixed offsets. `parse` is the only way to make one and
//! checks every length that later reads rely on, so a view that exists is whole. The fast path
//! (Ethernet, the fixed parts of IPv4 and IPv6, VXLAN) is read here; the slow path (options of
//! neighbour discovery, building answers, checksums) is etherparse's.
//!
//! Bytes come from the network and from endpoints, neither of which is trusted: nothing here
//! panics, loops without bound, or allocates (I7).

pub mod aggregate;
pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
mod upper;
pub mod vxlan;

pub use arp::Arp;
pub use ethernet::Ethernet;
pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
pub use upper::{Fragment, ICMP, ICMPV6, IGMP, TCP, UDP, Upper};

/// `N` bytes at `at`, if the slice has them.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A big-endian 16-bit number at `at`.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// A big-endian 32-bit number at `at`.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}
