//! Neighbour discovery for IPv6 (RFC 4861 section 4; duplicate address detection: RFC 4862 section
//! 5.4).
//!
//! ```text
//! solicitation  : type 1 = 135 | code 1 = 0 | checksum 2 | reserved 4       | target 16 | options
//! advertisement : type 1 = 136 | code 1 = 0 | checksum 2 | R S O flags 4    | target 16 | options
//! option        : type 1 | length 1, in units of 8 bytes | data      1 = source, 2 = target link-layer address
//! ```
//!
//! Messages that RFC 4861 section 6.1 and 7.1 tell a receiver to ignore (hop limit below 255, a
//! non-zero code, an option without length) and fragments (RFC 6980) are refused. Checksums are
//! left to the receiving kernel.

use std::net::Ipv6Addr;

use etherparse::{
    Icmpv6Type, PacketBuilder,
    icmpv6::{NdpOptionSlice, NdpOptionsIterator, NeighborAdvertisementHeader},
};

use super::{Fragment, ICMPV6, Upper, array, ethernet, ipv6};
use crate::addr::MacAddr;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// ICMPv6 header and target address: where the options begin.
const OPTIONS_AT: usize = 8 + 16;
/// Bytes of the frame that [`Advertisement::to_frame`] makes: the message and one option of 8
/// bytes.
pub const ADVERTISEMENT_LEN: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + OPTIONS_AT + 8;

/// All nodes of the link (RFC 4291 section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The Ethernet group of [`ALL_NODES`] (RFC 2464 section 7).
pub const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// A message of neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Is there a router?
    RouterSolicitation,
    /// I am a router.
    RouterAdvertisement,
    /// Who has the target address?
    Solicitation {
        /// The address in question.
        target: Ipv6Addr,
        /// The sender's MAC; absent in duplicate address detection.
        source_mac: Option<MacAddr>,
    },
    /// I have the target address.
    Advertisement {
        /// The address that the sender claims.
        target: Ipv6Addr,
        /// Its MAC.
        target_mac: Option<MacAddr>,
        /// Whether this answers a solicitation.
        solicited: bool,
    },
    /// Take another way.
    Redirect,
}

/// Why a packet is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNd {
    /// It is something else.
    Other,
    /// It is one that every receiver must ignore.
    Malformed,
}

impl Message {
    /// Reads the message that a packet with this hop limit carries.
    ///
    /// # Errors
    ///
    /// [`NotNd`] says whether the packet is something else or must be ignored.
    pub fn parse(upper: &Upper<'_>, hop_limit: u8) -> Result<Self, NotNd> {
        if upper.protocol != ICMPV6 || upper.fragment == Fragment::Later {
            return Err(NotNd::Other);
        }
        // RFC 7112: the first fragment has the whole header chain.
        let kind = *upper.payload.first().ok_or(NotNd::Malformed)?;
        if !(ROUTER_SOLICITATION..=REDIRECT).contains(&kind) {
            return Err(NotNd::Other);
        }
        let valid = upper.fragment == Fragment::Whole && hop_limit == 255;
        if !valid || upper.payload.get(1) != Some(&0) {
            return Err(NotNd::Malformed);
        }
        match kind {
            ROUTER_SOLICITATION => Ok(Self::RouterSolicitation),
            ROUTER_ADVERTISEMENT => Ok(Self::RouterAdvertisement),
            REDIRECT => Ok(Self::Redirect),
            _ => neighbor(kind, upper.payload).ok_or(NotNd::Malformed),
        }
    }
}

fn neighbor(kind: u8, icmp: &[u8]) -> Option<Message> {
    let target = Ipv6Addr::from(array::<16>(icmp, 8)?);
    if target.is_multicast() {
        return None;
    }
    let (source_mac, target_mac) = link_layer_options(icmp.get(OPTIONS_AT..)?)?;
    if kind == NEIGHBOR_SOLICITATION {
        return Some(Message::Solicitation { target, source_mac });
    }
    debug_assert_eq!(kind, NEIGHBOR_ADVERTISEMENT);
    let flags = NeighborAdvertisementHeader::from_bytes(array(icmp, 4)?);
    Some(Message::Advertisement { target, target_mac, solicited: flags.solicited })
}

/// The source and target link-layer addresses; nothing at all if an option is broken or one comes
/// twice with different contents.
fn link_layer_options(options: &[u8]) -> Option<(Option<MacAddr>, Option<MacAddr>)> {
    let (mut source, mut target) = (None, None);
    for option in NdpOptionsIterator::from_slice(options) {
        let (slot, mac) = match option.ok()? {
            NdpOptionSlice::SourceLinkLayerAddress(o) => (&mut source, o.link_layer_address()),
            NdpOptionSlice::TargetLinkLayerAddress(o) => (&mut target, o.link_layer_address()),
            _ => continue,
        };
        let mac = MacAddr(mac.try_into().ok()?);
        if slot.replace(mac).is_some_and(|earlier| earlier != mac) {
            return None;
        }
    }
    Some((source, target))
}

/// The answer to a solicitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// The address that was asked for.
    pub target: Ipv6Addr,
    /// Who has it.
    pub mac: MacAddr,
    /// Who asked; nothing if it has no address yet, which makes this an answer to all nodes.
    pub asker: Option<(Ipv6Addr, MacAddr)>,
}

impl Advertisement {
    /// The message as a frame from the target. It has the override flag, as the tables are the
    /// truth, and the solicited flag if it answers one asker (RFC 4861 section 7.2.4).
    #[must_use]
    pub fn to_frame(&self) -> [u8; ADVERTISEMENT_LEN] {
        let (ip, mac) = self.asker.unwrap_or((ALL_NODES, ALL_NODES_MAC));
        let flags = NeighborAdvertisementHeader {
            router: false,
            solicited: self.asker.is_some(),
            r#override: true,
        };
        let [a, b, c, d, e, f] = self.mac.0;
        let mut payload = [0; 24];
        for (to, from) in
            payload.iter_mut().zip(self.target.octets().into_iter().chain([2, 1, a, b, c, d, e, f]))
        {
            *to = from;
        }
        let mut frame = [0; ADVERTISEMENT_LEN];
        let written = PacketBuilder::ethernet2(self.mac.0, mac.0)
            .ipv6(self.target.octets(), ip.octets(), 255)
            .icmpv6(Icmpv6Type::NeighborAdvertisement(flags))
            .write_to_slice(&mut frame, &payload);
        // INVARIANT: the sizes are constants that add up.
        debug_assert_eq!(written.ok(), Some(ADVERTISEMENT_LEN));
        frame
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::wire::{Ethernet, Ipv6};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    fn target() -> Ipv6Addr {
        "fd00::7".parse().unwrap()
    }

    fn icmp(kind: u8, hop_limit: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6([0xfd; 16], ALL_NODES.octets(), hop_limit)
            .icmpv6_raw(kind, 0, [0; 4])
            .write(&mut bytes, body)
            .unwrap();
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Message, NotNd> {
        let ip = Ipv6::parse(bytes).unwrap();
        Message::parse(&ip.upper, ip.hop_limit)
    }

    fn body(options: &[u8]) -> Vec<u8> {
        [&target().octets()[..], options].concat()
    }

    #[test]
    fn solicitation_with_and_without_option() {
        let with = icmp(135, 255, &body(&[1, 1, 2, 0, 0, 0, 0, 9]));
        let source_mac = Some(MacAddr([2, 0, 0, 0, 0, 9]));
        assert_eq!(parse(&with), Ok(Message::Solicitation { target: target(), source_mac }));
        let nonce = icmp(135, 255, &body(&[14, 1, 1, 2, 3, 4, 5, 6]));
        assert_eq!(parse(&nonce), Ok(Message::Solicitation { target: target(), source_mac: None }));
    }

    #[test]
    fn what_receivers_must_ignore_is_malformed() {
        let mut code = icmp(135, 255, &body(&[]));
        code[41] = 1;
        for (bytes, why) in [
            (icmp(135, 254, &body(&[])), "passed a router"),
            (code, "code"),
            (icmp(135, 255, &target().octets()[..15]), "cut target"),
            (icmp(135, 255, &body(&[1, 0, 0, 0, 0, 0, 0, 0])), "option without length"),
            (icmp(135, 255, &body(&[1, 2, 0, 0, 0, 0, 0, 0])), "option longer than the message"),
            (icmp(135, 255, &body(&[1])), "half an option"),
            (
                icmp(135, 255, &body(&[1, 1, 2, 0, 0, 0, 0, 1, 1, 1, 2, 0, 0, 0, 0, 2])),
                "two source addresses",
            ),
            (icmp(135, 255, &ALL_NODES.octets()), "multicast target"),
            (icmp(134, 64, &[]), "router advertisement that passed a router"),
        ] {
            assert_eq!(parse(&bytes), Err(NotNd::Malformed), "{why}");
        }
    }

    #[test]
    fn others_are_other() {
        assert_eq!(parse(&icmp(128, 64, &[])), Err(NotNd::Other));
        assert_eq!(parse(&icmp(143, 1, &[])), Err(NotNd::Other));
        assert_eq!(parse(&icmp(134, 255, &[])), Ok(Message::RouterAdvertisement));
        assert_eq!(parse(&icmp(133, 255, &[])), Ok(Message::RouterSolicitation));
        assert_eq!(parse(&icmp(137, 255, &[])), Ok(Message::Redirect));
    }

    #[test]
    fn fragmented_discovery_is_malformed() {
        let whole = icmp(135, 255, &body(&[]));
        let mut bytes = whole[..40].to_vec();
        bytes[6] = 44;
        let len = u16::from_be_bytes([bytes[4], bytes[5]]) + 8;
        bytes[4..6].copy_from_slice(&len.to_be_bytes());
        bytes.extend([ICMPV6, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(&whole[40..]);
        assert_eq!(parse(&bytes), Err(NotNd::Malformed));
    }

    #[test]
    fn answers_are_valid_to_an_independent_reader() {
        let asker = (Ipv6Addr::from([0xfd; 16]), MacAddr([2, 0, 0, 0, 0, 1]));
        for (asker, to, mac) in [(Some(asker), asker.0, asker.1), (None, ALL_NODES, ALL_NODES_MAC)]
        {
            let frame = Advertisement { target: target(), mac: MAC, asker }.to_frame();
            let eth = Ethernet::parse(&frame).unwrap();
            assert_eq!((eth.source, eth.destination), (MAC, mac));
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("no IPv6") };
            assert_eq!(ip.header().hop_limit(), 255);
            assert_eq!(ip.header().destination(), to.octets());
            let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
            assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
            assert_eq!(
                parse(eth.payload),
                Ok(Message::Advertisement {
                    target: target(),
                    target_mac: Some(MAC),
                    solicited: asker.is_some()
                })
            );
        }
    }
}
