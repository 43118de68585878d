//! What clients and servers of services say, with the marker and a number in each frame.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, LinkHeader, NetHeaders, PacketBuilder, PacketHeaders, TransportHeader,
    icmpv4, icmpv6,
};
use vxmesh_proto::addr::MacAddr;

use crate::world::MARKER;

/// Where the number is in a frame, from its end.
const ID: usize = size_of::<u64>();

/// What a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
    /// It is none, but a datagram.
    Datagram,
}

/// A segment, as far as anybody here looks at it.
pub(super) struct Segment {
    pub(super) source: MacAddr,
    pub(super) destination: MacAddr,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) flag: Flag,
    /// Its number.
    pub(super) id: u64,
}

/// Nothing if it is neither a segment nor a datagram.
pub(super) fn parse(frame: &[u8]) -> Option<Segment> {
    let packet = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let Some(LinkHeader::Ethernet2(link)) = packet.link else { return None };
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetHeaders::Ipv4(ip, _) => (ip.source.into(), ip.destination.into()),
        NetHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into()),
        NetHeaders::Arp(_) => return None,
    };
    let (ports, flag) = match packet.transport? {
        TransportHeader::Tcp(tcp) => {
            let flag = match (tcp.rst, tcp.syn, tcp.ack, tcp.fin) {
                (true, ..) => Flag::Rst,
                (_, true, true, _) => Flag::SynAck,
                (_, true, false, _) => Flag::Syn,
                (.., true) => Flag::Fin,
                _ => Flag::Ack,
            };
            ((tcp.source_port, tcp.destination_port), flag)
        }
        TransportHeader::Udp(udp) => ((udp.source_port, udp.destination_port), Flag::Datagram),
        _ => return None,
    };
    Some(Segment {
        source: MacAddr(link.source),
        destination: MacAddr(link.destination),
        from: SocketAddr::new(from, ports.0),
        to: SocketAddr::new(to, ports.1),
        flag,
        id: u64::from_be_bytes(*frame.last_chunk()?),
    })
}

pub(super) fn build(
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
    let payload = [MARKER, &id.to_be_bytes()].concat();
    let mut frame = Vec::new();
    if flag == Flag::Datagram {
        builder.udp(from.port(), to.port()).write(&mut frame, &payload).unwrap();
        return frame;
    }
    let builder = builder.tcp(from.port(), to.port(), 1, 1000);
    let builder = match flag {
        Flag::Syn => builder.syn(),
        Flag::SynAck => builder.syn().ack(1),
        Flag::Fin => builder.fin().ack(1),
        Flag::Rst => builder.rst(),
        Flag::Ack | Flag::Datagram => builder.ack(1),
    };
    builder.write(&mut frame, &payload).unwrap();
    frame
}

/// "Port unreachable" about a frame, with a number of its own.
pub(super) fn unreachable(
    macs: (MacAddr, MacAddr),
    ends: (IpAddr, IpAddr),
    about: &[u8],
    id: u64,
) -> Vec<u8> {
    let packet = &about[14..];
    let quote = [&packet[..packet.len() - ID], &id.to_be_bytes()].concat();
    let builder = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    let mut frame = Vec::new();
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
            let builder = builder.ipv4(from.octets(), to.octets(), 64);
            builder.icmpv4(kind).write(&mut frame, &quote)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
            let builder = builder.ipv6(from.octets(), to.octets(), 64);
            builder.icmpv6(kind).write(&mut frame, &quote)
        }
        _ => panic!("two IP versions in one packet"),
    }
    .unwrap();
    frame
}
