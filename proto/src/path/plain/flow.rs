//! Which packets belong together, for the outer source port (RFC 7348 section 5): routers between
//! hosts spread flows over paths by it, and packets of one flow stay in order.

use std::{
    hash::{BuildHasher, Hash},
    net::IpAddr,
};

use crate::{
    tables::Seeded,
    wire::{Ethernet, Fragment, Ipv4, Ipv6, Upper, ethernet},
};

/// A number that the packets of one flow share: of addresses, protocol and ports, or of the MAC
/// addresses.
#[must_use]
pub fn flow_hash(seed: u64, frame: &[u8]) -> u64 {
    let Some(eth) = Ethernet::parse(frame) else { return 0 };
    let flow = match eth.ethertype {
        ethernet::IPV4 => Ipv4::parse(eth.payload)
            .map(|ip| flow(IpAddr::V4(ip.source), IpAddr::V4(ip.destination), &ip.upper)),
        ethernet::IPV6 => Ipv6::parse(eth.payload)
            .map(|ip| flow(IpAddr::V6(ip.source), IpAddr::V6(ip.destination), &ip.upper)),
        _ => None,
    };
    let hash = match flow {
        Some(flow) => Seeded(seed).hash_one(flow),
        None => Seeded(seed).hash_one((eth.source, eth.destination)),
    };
    // The multiplication mixes upwards.
    hash >> 32
}

fn flow(source: IpAddr, destination: IpAddr, upper: &Upper<'_>) -> impl Hash + use<> {
    // Only the first fragment has the ports, and it must not overtake the others.
    let ports = if upper.fragment == Fragment::Whole { upper.ports() } else { None };
    (source, destination, upper.protocol, ports)
}
