//! What a frame says about its source, and whether that is true: one rule for both directions (I3).
//!
//! The frame's source MAC is the row of an endpoint. Then every other address that it speaks for
//! must be the row's too:
//!
//! - IPv4 and IPv6: the source; that of a node's own row may be any of the node's endpoints, since
//!   it routes between subnets. 0.0.0.0 and :: only where a host without an address must speak:
//!   IGMP reports (RFC 3376 section 4.2.13), duplicate address detection and MLD reports (RFC 4862
//!   section 5.4, RFC 3810 section 5.2.13).
//! - ARP: the sender's pair; the address may be 0.0.0.0 in a probe (RFC 5227 section 2.1.1).
//! - Neighbour discovery: the source or target link-layer option; in an advertisement the target.
//!
//! A link-local IPv6 address is an endpoint's if it is made from its MAC (RFC 4291 appendix A) or
//! stands in its row. A random one (RFC 7217) that does not stand there is spoofed: nothing tells
//! it from a stolen one.
//!
//! What a static VTEP of a plain network sends has no row. It may speak for every address that no
//! endpoint has.
//!
//! Refused whoever speaks: DHCP, router advertisements, redirects. Protocols other than IP and ARP
//! carry no address that could be checked, and pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    reason::DropReason,
    tables::{NetworkTable, Row},
    wire::{
        Arp, Ethernet, Fragment, ICMP, ICMPV6, IGMP, Ipv4, Ipv6, UDP, Upper, arp, ethernet,
        nd::{Message, NotNd},
    },
};

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCP6_SERVER: u16 = 547;
const DHCP6_CLIENT: u16 = 546;
/// RFC 792: take another way.
const ICMP_REDIRECT: u8 = 5;
/// Multicast listener reports and "done" (RFC 2710 section 3, RFC 3810 section 5.2).
const MLD: [u8; 3] = [131, 132, 143];

/// What a frame is, where its fate depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// ARP.
    Arp(Arp),
    /// Neighbour discovery, and the packet's IP source.
    Nd(Message, Ipv6Addr),
    /// Anything else.
    Other,
}

/// Header checks that do not depend on who sent the frame.
pub(super) fn ethernet(frame: &[u8]) -> Result<Ethernet<'_>, DropReason> {
    let eth = Ethernet::parse(frame).ok_or(DropReason::Runt)?;
    if eth.is_vlan() {
        return Err(DropReason::VlanUnsupported);
    }
    if ethernet::is_reserved_group(eth.destination) {
        return Err(DropReason::ReservedGroup);
    }
    if eth.is_llc() {
        return Err(DropReason::LlcUnsupported);
    }
    Ok(eth)
}

/// Who speaks.
#[derive(Debug)]
enum Speaker<'t, P> {
    /// An endpoint, for what is its own.
    Endpoint(&'t Row<P>),
    /// Something behind a static VTEP of a plain network, for what no endpoint has.
    Station,
}

impl<P> Speaker<'_, P> {
    /// Whether packets from this address may come from it.
    fn carries(&self, table: &NetworkTable<P>, ip: IpAddr) -> bool {
        match self {
            Self::Endpoint(row) => table.carries(row, ip),
            Self::Station => self.owns(table, ip),
        }
    }

    fn owns(&self, table: &NetworkTable<P>, ip: IpAddr) -> bool {
        match self {
            Self::Endpoint(row) => table.owns(row, ip),
            Self::Station => {
                let of_a_host = !ip.is_unspecified()
                    && !ip.is_multicast()
                    && !ip.is_loopback()
                    && ip != IpAddr::V4(Ipv4Addr::BROADCAST);
                of_a_host && table.neighbor(ip).is_none() && !table.spec().is_gateway(ip)
            }
        }
    }
}

/// Checks all that the frame claims for its source, which is `row`.
pub(super) fn check<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    eth: &Ethernet<'_>,
) -> Result<Content, DropReason> {
    check_speaker(table, &Speaker::Endpoint(row), eth)
}

/// Checks all that a frame from a static VTEP claims for its source: no MAC and no address that an
/// endpoint has, or the gateway.
pub(super) fn check_station<P>(
    table: &NetworkTable<P>,
    eth: &Ethernet<'_>,
) -> Result<Content, DropReason> {
    let mac = eth.source;
    if !mac.is_unicast() || mac == table.spec().gateway.mac || table.fdb(mac).is_some() {
        return Err(DropReason::VtepSourceTaken);
    }
    check_speaker(table, &Speaker::Station, eth)
}

fn check_speaker<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    eth: &Ethernet<'_>,
) -> Result<Content, DropReason> {
    match eth.ethertype {
        ethernet::IPV4 => check_ipv4(table, speaker, eth),
        ethernet::IPV6 => check_ipv6(table, speaker, eth),
        ethernet::ARP => check_arp(table, speaker, eth),
        _ => Ok(Content::Other),
    }
}

/// Source and destination of the packet, if it is one. What is malformed was refused before.
pub(super) fn addresses(eth: &Ethernet<'_>) -> Option<(IpAddr, IpAddr)> {
    match eth.ethertype {
        ethernet::IPV4 => {
            Ipv4::parse(eth.payload).map(|ip| (ip.source.into(), ip.destination.into()))
        }
        ethernet::IPV6 => {
            Ipv6::parse(eth.payload).map(|ip| (ip.source.into(), ip.destination.into()))
        }
        _ => None,
    }
}

fn check_ipv4<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    eth: &Ethernet<'_>,
) -> Result<Content, DropReason> {
    let ip = Ipv4::parse(eth.payload).ok_or(DropReason::MalformedIp)?;
    refuse_dhcp(&ip.upper, DHCP_SERVER, DHCP_CLIENT)?;
    if is_redirect(&ip.upper) {
        return Err(DropReason::Redirect);
    }
    let nameless = ip.source == Ipv4Addr::UNSPECIFIED && ip.upper.protocol == IGMP;
    if !nameless && !speaker.carries(table, IpAddr::V4(ip.source)) {
        return Err(DropReason::IpSpoofed);
    }
    Ok(Content::Other)
}

fn check_ipv6<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    eth: &Ethernet<'_>,
) -> Result<Content, DropReason> {
    let ip = Ipv6::parse(eth.payload).ok_or(DropReason::MalformedIp)?;
    refuse_dhcp(&ip.upper, DHCP6_SERVER, DHCP6_CLIENT)?;
    let message = match Message::parse(&ip) {
        Ok(message) => Some(message),
        Err(NotNd::Other) => None,
        Err(NotNd::Malformed) => return Err(DropReason::MalformedNd),
    };
    let nameless = ip.source.is_unspecified() && may_be_nameless(message.as_ref(), &ip.upper);
    if !nameless && !speaker.carries(table, IpAddr::V6(ip.source)) {
        return Err(DropReason::IpSpoofed);
    }
    let Some(message) = message else { return Ok(Content::Other) };
    check_nd(table, speaker, eth, &message)?;
    Ok(Content::Nd(message, ip.source))
}

fn may_be_nameless(message: Option<&Message>, upper: &Upper<'_>) -> bool {
    match message {
        // RFC 4861 section 7.1.1: without a source there is no source link-layer address either.
        Some(Message::Solicitation { source_mac, .. }) => source_mac.is_none(),
        Some(Message::RouterSolicitation) => true,
        Some(Message::RouterAdvertisement | Message::Advertisement { .. } | Message::Redirect) => {
            false
        }
        None => {
            upper.protocol == ICMPV6
                && upper.fragment == Fragment::Whole
                && upper.payload.first().is_some_and(|kind| MLD.contains(kind))
        }
    }
}

fn check_nd<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    eth: &Ethernet<'_>,
    message: &Message,
) -> Result<(), DropReason> {
    let honest = match message {
        Message::RouterAdvertisement => return Err(DropReason::RouterAdvertisement),
        Message::RouterSolicitation => return Err(DropReason::RouterSolicitation),
        Message::Redirect => return Err(DropReason::Redirect),
        Message::Solicitation { source_mac, .. } => source_mac.is_none_or(|mac| mac == eth.source),
        Message::Advertisement { target, target_mac, .. } => {
            target_mac.is_none_or(|mac| mac == eth.source)
                && speaker.owns(table, IpAddr::V6(*target))
        }
    };
    if honest { Ok(()) } else { Err(DropReason::NdSpoofed) }
}

fn check_arp<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    eth: &Ethernet<'_>,
) -> Result<Content, DropReason> {
    let arp = Arp::parse(eth.payload).ok_or(DropReason::MalformedArp)?;
    let probe = arp.sender_ip.is_unspecified() && arp.operation == arp::Operation::Request;
    let honest =
        arp.sender_mac == eth.source && (probe || speaker.owns(table, IpAddr::V4(arp.sender_ip)));
    if honest { Ok(Content::Arp(arp)) } else { Err(DropReason::ArpSpoofed) }
}

fn is_redirect(upper: &Upper<'_>) -> bool {
    upper.protocol == ICMP
        && upper.fragment != Fragment::Later
        && upper.payload.first() == Some(&ICMP_REDIRECT)
}

fn refuse_dhcp(upper: &Upper<'_>, server: u16, client: u16) -> Result<(), DropReason> {
    if upper.protocol != UDP || upper.fragment == Fragment::Later {
        return Ok(());
    }
    let (source, destination) = upper.ports().ok_or(DropReason::MalformedIp)?;
    if source == server {
        return Err(DropReason::DhcpServer);
    }
    if source == client && destination == server {
        return Err(DropReason::DhcpClient);
    }
    Ok(())
}
