//! What a sandbox may try to be taken for another, or for more than an endpoint: one frame each,
//! and the counter that catches it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use vxmesh::api::Endpoint;
use vxmesh_proto::wire::ipv6::link_local_of;

/// What every forged frame carries, behind what it says.
pub(crate) const FORGED: &[u8; 16] = b"FORGED-BYTES-ALL";
const ALL_NODES: [u8; 16] = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
const BROADCAST: [u8; 6] = [0xff; 6];
const UDP_PORT: u16 = 7;
const IPV6_NEXT_AT: usize = 14 + 6;

/// One attempt.
pub(crate) struct Forgery {
    pub(crate) what: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) frame: Vec<u8>,
}

/// Who takes part: the addresses of one of them.
#[derive(Clone, Copy)]
pub(crate) struct Party {
    pub(crate) mac: [u8; 6],
    pub(crate) v4: [u8; 4],
    pub(crate) v6: [u8; 16],
}

impl Party {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let ips = || endpoint.ips.iter().map(ipnet::IpNet::addr);
        let v4 = ips().find_map(|ip| match ip {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        });
        let v6 = ips().find_map(|ip| match ip {
            IpAddr::V6(v6) => Some(v6.octets()),
            IpAddr::V4(_) => None,
        });
        Ok(Self { mac: endpoint.mac.0, v4: v4.context("no IPv4")?, v6: v6.context("no IPv6")? })
    }

    fn link_local(&self) -> [u8; 16] {
        link_local_of(vxmesh_proto::addr::MacAddr(self.mac)).octets()
    }
}

/// Everything that `me` sends to `to`, pretending to be `other` or the gateway.
pub(super) fn all(me: Party, to: Party, other: Party, gateway: Party) -> Result<Vec<Forgery>> {
    let attempts = [
        addresses(me, to, other, gateway)?,
        arp(me, to, other, gateway),
        discovery(me, to, other)?,
        tags(me, to)?,
        servers(me, to)?,
        groups(me, to, other, gateway)?,
    ];
    let mut all: Vec<Forgery> = attempts.into_iter().flatten().collect();
    for forgery in &mut all {
        forgery.frame.extend(FORGED);
    }
    Ok(all)
}

fn forgery(what: &'static str, reason: &'static str, frame: Vec<u8>) -> Forgery {
    Forgery { what, reason, frame }
}

/// A datagram over IPv4.
pub(super) fn udp4(mac: [u8; 6], ip: [u8; 4], to_mac: [u8; 6], to: [u8; 4]) -> Result<Vec<u8>> {
    ports4((mac, ip), (to_mac, to), (UDP_PORT, UDP_PORT))
}

fn ports4(
    (mac, ip): ([u8; 6], [u8; 4]),
    (to_mac, to): ([u8; 6], [u8; 4]),
    (source, destination): (u16, u16),
) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac, to_mac).ipv4(ip, to, 64);
    builder.udp(source, destination).write(&mut frame, FORGED)?;
    Ok(frame)
}

fn ports6(
    (mac, ip): ([u8; 6], [u8; 16]),
    (to_mac, to): ([u8; 6], [u8; 16]),
    (source, destination): (u16, u16),
) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac, to_mac).ipv6(ip, to, 64);
    builder.udp(source, destination).write(&mut frame, FORGED)?;
    Ok(frame)
}

fn addresses(me: Party, to: Party, other: Party, gateway: Party) -> Result<Vec<Forgery>> {
    let udp = (UDP_PORT, UDP_PORT);
    let to6 = (to.mac, to.v6);
    Ok(vec![
        forgery("MAC", "source_unknown", udp4(other.mac, me.v4, to.mac, to.v4)?),
        forgery("MAC and IPv4", "source_unknown", udp4(other.mac, other.v4, to.mac, to.v4)?),
        forgery("MAC and IPv6", "source_unknown", ports6((other.mac, other.v6), to6, udp)?),
        forgery("gateway's MAC", "gateway_source", udp4(gateway.mac, me.v4, to.mac, to.v4)?),
        forgery("IPv4 source", "ip_spoofed", udp4(me.mac, other.v4, to.mac, to.v4)?),
        forgery("gateway's IPv4", "ip_spoofed", udp4(me.mac, gateway.v4, to.mac, to.v4)?),
        forgery("IPv4 of outside", "ip_spoofed", udp4(me.mac, [192, 0, 2, 1], to.mac, to.v4)?),
        forgery("IPv4 to all", "ip_spoofed", udp4(me.mac, other.v4, BROADCAST, [255; 4])?),
        forgery("no IPv4 source", "ip_spoofed", udp4(me.mac, [0; 4], to.mac, to.v4)?),
        forgery("IPv6 source", "ip_spoofed", ports6((me.mac, other.v6), to6, udp)?),
        forgery("link-local", "ip_spoofed", ports6((me.mac, other.link_local()), to6, udp)?),
        forgery("no IPv6 source", "ip_spoofed", ports6((me.mac, [0; 16]), to6, udp)?),
    ])
}

fn arp(me: Party, to: Party, other: Party, gateway: Party) -> Vec<Forgery> {
    let packet = |operation: u8, (mac, ip): ([u8; 6], [u8; 4]), to_mac: [u8; 6], about: [u8; 4]| {
        let head: &[&[u8]] = &[&to_mac, &me.mac, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]];
        [head.concat(), mac.to_vec(), ip.to_vec(), to.mac.to_vec(), about.to_vec()].concat()
    };
    let spoofed = |what, frame| forgery(what, "arp_spoofed", frame);
    let mut odd = packet(2, (me.mac, me.v4), to.mac, to.v4);
    if let Some(operation) = odd.get_mut(21) {
        *operation = 9;
    }
    vec![
        spoofed("ARP reply for another", packet(2, (me.mac, other.v4), to.mac, to.v4)),
        spoofed("ARP reply for the gateway", packet(2, (me.mac, gateway.v4), to.mac, to.v4)),
        spoofed("gratuitous ARP", packet(1, (me.mac, other.v4), BROADCAST, other.v4)),
        spoofed("gratuitous ARP reply", packet(2, (me.mac, other.v4), BROADCAST, other.v4)),
        spoofed("ARP with another's MAC", packet(2, (other.mac, me.v4), to.mac, to.v4)),
        spoofed("ARP question as another", packet(1, (me.mac, other.v4), BROADCAST, to.v4)),
        forgery("odd ARP", "malformed_arp", odd),
    ]
}

fn icmp6(
    (mac, ip): ([u8; 6], [u8; 16]),
    (to_mac, to): ([u8; 6], [u8; 16]),
    kind: u8,
    body: &[&[u8]],
) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac, to_mac).ipv6(ip, to, 255);
    builder.icmpv6_raw(kind, 0, [0x60, 0, 0, 0]).write(&mut frame, &body.concat())?;
    Ok(frame)
}

/// The same packet behind another header of eight bytes.
fn behind(frame: &[u8], kind: u8, header: [u8; 8]) -> Result<Vec<u8>> {
    let (head, rest) = frame.split_at_checked(14 + 40).context("short")?;
    let mut head = head.to_vec();
    let next = head.get_mut(IPV6_NEXT_AT).context("short")?;
    let mut header = header;
    header[0] = std::mem::replace(next, kind);
    let len = u16::try_from(rest.len() + 8)?.to_be_bytes();
    head.splice(18..20, len);
    Ok([head, header.to_vec(), rest.to_vec()].concat())
}

fn discovery(me: Party, to: Party, other: Party) -> Result<Vec<Forgery>> {
    let (mine, theirs) = ((me.mac, me.v6), (to.mac, to.v6));
    let all_nodes = ([0x33, 0x33, 0, 0, 0, 1], ALL_NODES);
    let option = |kind: u8, mac: [u8; 6]| [&[kind, 1], mac.as_slice()].concat();
    let (own, stolen) = (option(2, me.mac), option(2, other.mac));
    let asks_as_other = option(1, other.mac);
    let routers_mac = option(1, me.mac);
    let spoofed = |what, frame| forgery(what, "nd_spoofed", frame);
    let local = (me.mac, me.link_local());
    let advertised: [&[u8]; 3] = [&[0, 0, 0, 0], &[0, 0, 0, 0], &routers_mac];
    let router = icmp6(local, all_nodes, 134, &advertised)?;
    Ok(vec![
        spoofed("NA for another", icmp6(mine, theirs, 136, &[&other.v6, &own])?),
        spoofed("NA to all", icmp6(mine, all_nodes, 136, &[&other.v6, &own])?),
        spoofed("NA without option", icmp6(mine, theirs, 136, &[&other.v6])?),
        spoofed("NA with another's MAC", icmp6(mine, theirs, 136, &[&me.v6, &stolen])?),
        spoofed("two options", icmp6(mine, theirs, 136, &[&me.v6, &own, &stolen])?),
        spoofed("NS with another's MAC", icmp6(mine, theirs, 135, &[&to.v6, &asks_as_other])?),
        forgery(
            "NA as another",
            "ip_spoofed",
            icmp6((me.mac, other.v6), theirs, 136, &[&other.v6])?,
        ),
        forgery("RA", "router_advertisement", router.clone()),
        forgery(
            "RA behind options",
            "malformed_nd",
            behind(&router, 60, [0, 0, 1, 4, 0, 0, 0, 0])?,
        ),
        forgery("RA in a fragment", "malformed_nd", behind(&router, 44, [0, 0, 0, 1, 0, 0, 0, 9])?),
        forgery("ICMPv6 redirect", "redirect", icmp6(local, theirs, 137, &[&other.v6, &me.v6])?),
        forgery("ICMP redirect", "redirect", redirect4(me, to)?),
    ])
}

fn redirect4(me: Party, to: Party) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(me.mac, to.mac).ipv4(me.v4, to.v4, 64);
    builder.icmpv4_raw(5, 1, me.v4).write(&mut frame, FORGED)?;
    Ok(frame)
}

fn tags(me: Party, to: Party) -> Result<Vec<Forgery>> {
    let plain = udp4(me.mac, me.v4, to.mac, to.v4)?;
    let tagged = |tags: &[[u8; 4]]| {
        let (macs, rest) = plain.split_at(12);
        [macs, &tags.concat(), rest].concat()
    };
    let refused = |what, tags: &[[u8; 4]]| forgery(what, "vlan_unsupported", tagged(tags));
    let mut llc = plain.clone();
    llc.splice(12..14, [0, 40]);
    Ok(vec![
        refused("802.1Q", &[[0x81, 0, 0, 5]]),
        refused("802.1Q, priority only", &[[0x81, 0, 0xe0, 0]]),
        refused("802.1ad", &[[0x88, 0xa8, 0, 5]]),
        refused("two tags", &[[0x88, 0xa8, 0, 5], [0x81, 0, 0, 6]]),
        refused("two 802.1Q tags", &[[0x81, 0, 0, 5], [0x81, 0, 0, 6]]),
        forgery("LLC", "llc_unsupported", llc),
    ])
}

fn servers(me: Party, to: Party) -> Result<Vec<Forgery>> {
    let (v4, v6) = ((me.mac, me.v4), (me.mac, me.v6));
    let mut versionless = udp4(me.mac, me.v4, to.mac, to.v4)?;
    if let Some(version) = versionless.get_mut(14) {
        *version = 0x55;
    }
    let offered = |to| ports4(v4, to, (67, 68));
    Ok(vec![
        forgery("DHCP offer", "dhcp_server", offered((to.mac, to.v4))?),
        forgery("DHCP offer to all", "dhcp_server", offered((BROADCAST, [255; 4]))?),
        forgery("DHCPv6 advertise", "dhcp_server", ports6(v6, (to.mac, to.v6), (547, 546))?),
        forgery("no IP", "malformed_ip", versionless),
    ])
}

/// The name server's port.
const DNS: u16 = 53;

/// What bridges keep to themselves, and the gateway must not take in past the rules: its answer
/// would go to `other`.
fn groups(me: Party, to: Party, other: Party, gateway: Party) -> Result<Vec<Forgery>> {
    let question = |group: u8| -> Result<Vec<u8>> {
        let name = u8::try_from(FORGED.len())?;
        let (head, tail) = ([0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name], [0, 0, 1, 0, 1]);
        let question = [head.as_slice(), FORGED, tail.as_slice()].concat();
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(me.mac, [0x01, 0x80, 0xc2, 0, 0, group]);
        let builder = builder.ipv4(other.v4, gateway.v4, 64).udp(UDP_PORT, DNS);
        builder.write(&mut frame, &question)?;
        Ok(frame)
    };
    let refused = |what, frame| forgery(what, "reserved_group", frame);
    Ok(vec![
        refused("DNS question in a BPDU's place", question(0x00)?),
        refused("DNS question in LACP's place", question(0x02)?),
        refused("DNS question in 802.1X's place", question(0x03)?),
        refused("DNS question in LLDP's place", question(0x0e)?),
        refused("in LLDP's place", udp4(me.mac, me.v4, [0x01, 0x80, 0xc2, 0, 0, 0x0e], to.v4)?),
    ])
}

/// The gateway of a network.
pub(super) fn gateway(network: &vxmesh::api::Network) -> Result<Party> {
    let ips = || network.subnets.iter().map(|subnet| subnet.gateway);
    let v4 = ips().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None });
    let v6 = ips().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None });
    let mac = vxmesh::reconcile::tables::gateway_mac(network.id).0;
    let (v4, v6): (Ipv4Addr, Ipv6Addr) = (v4.context("no IPv4")?, v6.context("no IPv6")?);
    Ok(Party { mac, v4: v4.octets(), v6: v6.octets() })
}
