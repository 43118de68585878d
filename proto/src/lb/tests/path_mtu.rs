//! Packets to and from a service that are too large for a part of their way.

use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4::DestUnreachableHeader};

use super::*;
use crate::wire::checksum::Sum;

const MTU: u16 = 1280;

/// "Too big" about a frame.
fn too_big(macs: (MacAddr, MacAddr), ends: (IpAddr, IpAddr), about: &[u8]) -> Vec<u8> {
    let next_hop_mtu = MTU;
    let v4 = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
    let v4 = Icmpv4Type::DestinationUnreachable(v4);
    let v6 = Icmpv6Type::PacketTooBig { mtu: MTU.into() };
    error_of((v4, v6), macs, ends, (about, 1000))
}

/// Where it is that a packet is too large for, each end hears it of what it sent itself.
#[test]
fn both_ends_learn_the_mtu_of_the_path_through_a_vip() {
    let service = service_mac(spec().id);
    for ipv4 in [true, false] {
        let net = Net::new();
        let asked = asks(TCP, ipv4, 4000, SYN);
        let (peer, there) = net.out(&asked).unwrap();
        let n = CLIENT + u8::try_from(peer).unwrap();
        let (client, vip, backend) = (address(ipv4, CLIENT), address(ipv4, VIP), address(ipv4, n));
        let by_backend = too_big((mac(n), mac(CLIENT)), (backend, client), &there);
        let told = too_big((service, mac(CLIENT)), (vip, client), &asked);
        assert_eq!(net.back(n - CLIENT, &by_backend), told);

        let sent = answers(TCP, ipv4, n, 4000, SYN | ACK);
        let seen = net.back(n - CLIENT, &sent);
        let by_client = too_big((mac(CLIENT), service), (client, vip), &seen);
        let told = too_big((mac(CLIENT), mac(n)), (client, backend), &sent);
        assert_eq!(net.out(&by_client).unwrap(), (peer, told));
    }
}

/// What the network itself has no room for is told by its gateway, about the packet to the VIP.
#[test]
fn a_packet_to_a_vip_that_is_too_large_for_the_network_is_told() {
    for ipv4 in [true, false] {
        let net = Net::new();
        let short = asks(UDP, ipv4, 4000, 0);
        let mut long = short.clone();
        let ip = Headers::parse(&short).unwrap().ip.unwrap();
        let more = usize::from(spec().mtu);
        long.resize(short.len() + more, 0);
        let (at, len) = if ipv4 { (16, long.len() - 14) } else { (18, long.len() - 54) };
        long[at..at + 2].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        if ipv4 {
            long[24..26].fill(0);
            let sum = Sum::default().bytes(&long[14..34]).checksum();
            long[24..26].copy_from_slice(&sum);
        }
        let udp = u16::try_from(long.len() - ip.upper).unwrap();
        long[ip.upper + 4..ip.upper + 6].copy_from_slice(&udp.to_be_bytes());
        assert_eq!(net.out(&long).unwrap_err(), DropReason::TooBig);
        let told = told(&net, &long);
        let headers = Headers::parse(&told).unwrap();
        let ip = headers.ip.unwrap();
        assert!(spec().gateway.ips.contains(&ip.source) && ip.destination == address(ipv4, CLIENT));
        let icmp = ip.upper(&told).payload;
        assert_eq!(icmp[..2], if ipv4 { [3, 4] } else { [2, 0] });
        let quoted = if ipv4 { &icmp[8 + 16..8 + 20] } else { &icmp[8 + 24..8 + 40] };
        let vip = match address(ipv4, VIP) {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        assert_eq!(quoted, vip, "of what the client sent");
        assert_eq!(net.flows.iter().count(), 0);
    }
}
