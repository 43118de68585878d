//! What a frame says about its source, and whether that is true: one rule for both directions (I3).
//!
//! The frame's source MAC is the row of an endpoint. Then every other address that it speaks for
//! must be the row's too:
//!
//! - IPv4 and IPv6: the source; that of a node's own row may be any of the node's endpoints, since
//!   it routes between subnets, or one outside of the network that asks for a published port of a
//!   service ([`is_admitted`]). 0.0.0.0 and :: only where a host without an address must speak:
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

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    addr::MacAddr,
    frame::{Headers, Ip, View},
    lb::{is_admitted, is_service_mac},
    reason::DropReason,
    tables::{NetworkTable, Row},
    wire::{
        Arp, Fragment, ICMP, ICMPV6, IGMP, UDP, Upper, arp, ethernet,
        ipv6::mac_of_link_local,
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
    /// Neighbour discovery.
    Nd(Message),
    /// Anything else.
    Other,
}

/// Header checks that do not depend on who sent the frame.
pub(super) fn ethernet<'f>(
    bytes: &'f [u8],
    headers: Option<&'f Headers>,
) -> Result<View<'f>, DropReason> {
    let eth = headers.ok_or(DropReason::Runt)?;
    if ethernet::is_vlan(eth.ethertype) {
        return Err(DropReason::VlanUnsupported);
    }
    if ethernet::is_reserved_group(eth.destination) {
        return Err(DropReason::ReservedGroup);
    }
    if ethernet::is_llc(eth.ethertype) {
        return Err(DropReason::LlcUnsupported);
    }
    Ok(View { bytes, headers: eth })
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

    /// Whether the packet comes from outside of the network and may come in by it.
    fn brings_in(&self, table: &NetworkTable<P>, ip: &Ip, frame: &View<'_>) -> bool {
        match self {
            Self::Endpoint(row) => is_admitted(table, row, ip, frame),
            Self::Station => false,
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
                of_a_host
                    && table.neighbor(ip).is_none()
                    && !table.spec().is_gateway(ip)
                    && !is_of_services(table, ip)
            }
        }
    }
}

/// Whether the address is made from a MAC of the services.
fn is_of_services<P>(table: &NetworkTable<P>, ip: IpAddr) -> bool {
    let IpAddr::V6(v6) = ip else { return false };
    mac_of_link_local(v6).is_some_and(|mac| is_service_mac(table.spec().id, mac))
}

/// Checks all that the frame claims for its source, which is `row`.
pub(super) fn check<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    frame: &View<'_>,
) -> Result<Content, DropReason> {
    check_speaker(table, &Speaker::Endpoint(row), frame)
}

/// Checks all that a frame from a static VTEP claims for its source: no MAC and no address that an
/// endpoint has, or the gateway, or services.
pub(super) fn check_station<P>(
    table: &NetworkTable<P>,
    frame: &View<'_>,
) -> Result<Content, DropReason> {
    let (mac, spec) = (frame.headers.source, table.spec());
    let is_reserved = mac == spec.gateway.mac || is_service_mac(spec.id, mac);
    if !mac.is_unicast() || is_reserved || table.fdb(mac).is_some() {
        return Err(DropReason::VtepSourceTaken);
    }
    check_speaker(table, &Speaker::Station, frame)
}

fn check_speaker<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    frame: &View<'_>,
) -> Result<Content, DropReason> {
    match frame.headers.ethertype {
        ethernet::IPV4 => check_ipv4(table, speaker, frame),
        ethernet::IPV6 => check_ipv6(table, speaker, frame),
        ethernet::ARP => check_arp(table, speaker, frame),
        _ => Ok(Content::Other),
    }
}

fn check_ipv4<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    frame: &View<'_>,
) -> Result<Content, DropReason> {
    let ip = frame.headers.ip.ok_or(DropReason::MalformedIp)?;
    refuse_dhcp(&ip, DHCP_SERVER, DHCP_CLIENT)?;
    if is_redirect(&ip, frame) {
        return Err(DropReason::Redirect);
    }
    let nameless = ip.source.is_unspecified() && ip.protocol == IGMP;
    if !nameless && !speaker.carries(table, ip.source) && !speaker.brings_in(table, &ip, frame) {
        return Err(DropReason::IpSpoofed);
    }
    Ok(Content::Other)
}

fn check_ipv6<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    frame: &View<'_>,
) -> Result<Content, DropReason> {
    let ip = frame.headers.ip.ok_or(DropReason::MalformedIp)?;
    refuse_dhcp(&ip, DHCP6_SERVER, DHCP6_CLIENT)?;
    let upper = ip.upper(frame.bytes);
    let message = match Message::parse(&upper, ip.hop_limit) {
        Ok(message) => Some(message),
        Err(NotNd::Other) => None,
        Err(NotNd::Malformed) => return Err(DropReason::MalformedNd),
    };
    let nameless = ip.source.is_unspecified() && may_be_nameless(message.as_ref(), &upper);
    if !nameless && !speaker.carries(table, ip.source) && !speaker.brings_in(table, &ip, frame) {
        return Err(DropReason::IpSpoofed);
    }
    let Some(message) = message else { return Ok(Content::Other) };
    check_nd(table, speaker, frame.headers.source, &message)?;
    Ok(Content::Nd(message))
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
    mac: MacAddr,
    message: &Message,
) -> Result<(), DropReason> {
    let honest = match message {
        Message::RouterAdvertisement => return Err(DropReason::RouterAdvertisement),
        Message::RouterSolicitation => return Err(DropReason::RouterSolicitation),
        Message::Redirect => return Err(DropReason::Redirect),
        Message::Solicitation { source_mac, .. } => source_mac.is_none_or(|said| said == mac),
        Message::Advertisement { target, target_mac, .. } => {
            target_mac.is_none_or(|said| said == mac) && speaker.owns(table, IpAddr::V6(*target))
        }
    };
    if honest { Ok(()) } else { Err(DropReason::NdSpoofed) }
}

fn check_arp<P>(
    table: &NetworkTable<P>,
    speaker: &Speaker<'_, P>,
    frame: &View<'_>,
) -> Result<Content, DropReason> {
    let arp = Arp::parse(frame.payload()).ok_or(DropReason::MalformedArp)?;
    let probe = arp.sender_ip.is_unspecified() && arp.operation == arp::Operation::Request;
    let honest = arp.sender_mac == frame.headers.source
        && (probe || speaker.owns(table, IpAddr::V4(arp.sender_ip)));
    if honest { Ok(Content::Arp(arp)) } else { Err(DropReason::ArpSpoofed) }
}

fn is_redirect(ip: &Ip, frame: &View<'_>) -> bool {
    ip.protocol == ICMP
        && ip.fragment != Fragment::Later
        && ip.upper(frame.bytes).payload.first() == Some(&ICMP_REDIRECT)
}

fn refuse_dhcp(ip: &Ip, server: u16, client: u16) -> Result<(), DropReason> {
    if ip.protocol != UDP || ip.fragment == Fragment::Later {
        return Ok(());
    }
    let (source, destination) = ip.ports.ok_or(DropReason::MalformedIp)?;
    if source == server {
        return Err(DropReason::DhcpServer);
    }
    if source == client && destination == server {
        return Err(DropReason::DhcpClient);
    }
    Ok(())
}
