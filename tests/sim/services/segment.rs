//! Segments of TCP, with the marker in each.

use std::net::{IpAddr, SocketAddr};

use etherparse::{LinkHeader, NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use vxmesh_proto::addr::MacAddr;

use crate::world::MARKER;

/// What a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    Syn,
    SynAck,
    Ack,
    Rst,
}

/// A segment, as far as anybody here looks at it.
pub(super) struct Segment {
    pub(super) source: MacAddr,
    pub(super) destination: MacAddr,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) flag: Flag,
}

/// Nothing if it is no segment.
pub(super) fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let Some(LinkHeader::Ethernet2(link)) = packet.link else { return None };
    let Some(TransportHeader::Tcp(tcp)) = packet.transport else { return None };
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetHeaders::Ipv4(ip, _) => (ip.source.into(), ip.destination.into()),
        NetHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into()),
        NetHeaders::Arp(_) => return None,
    };
    let flag = match (tcp.rst, tcp.syn, tcp.ack) {
        (true, ..) => Flag::Rst,
        (_, true, true) => Flag::SynAck,
        (_, true, false) => Flag::Syn,
        _ => Flag::Ack,
    };
    Some(Segment {
        source: MacAddr(link.source),
        destination: MacAddr(link.destination),
        from: SocketAddr::new(from, tcp.source_port),
        to: SocketAddr::new(to, tcp.destination_port),
        flag,
    })
}

pub(super) fn tcp(
    (source, destination): (MacAddr, MacAddr),
    (from, to): (SocketAddr, SocketAddr),
    flag: Flag,
    id: u64,
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(source.0, destination.0);
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two IP versions in one packet"),
    };
    let builder = builder.tcp(from.port(), to.port(), 1, 1000);
    let builder = match flag {
        Flag::Syn => builder.syn(),
        Flag::SynAck => builder.syn().ack(1),
        Flag::Ack => builder.ack(1),
        Flag::Rst => builder.rst(),
    };
    let payload = [MARKER, &id.to_be_bytes()].concat();
    let mut frame = Vec::new();
    builder.write(&mut frame, &payload).unwrap();
    frame
}
