//! ARP for IPv4 over Ethernet (RFC 826), 28 bytes:
//!
//! ```text
//! hardware type 2 = 1 | protocol 2 = 0x0800 | hardware length 1 = 6 | protocol length 1 = 4 | operation 2
//! sender hardware 6   | sender protocol 4   | target hardware 6     | target protocol 4
//! ```
//!
//! Probes and announcements are RFC 5227. Every other hardware or protocol is refused.

use std::net::Ipv4Addr;

use super::{array, be16, ethernet};
use crate::addr::MacAddr;

/// Bytes of the packet.
pub const LEN: usize = 28;
/// The first six bytes of every packet that this module reads or writes.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// Request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has its address.
    Reply,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Question or answer.
    pub operation: Operation,
    /// Who speaks.
    pub sender_mac: MacAddr,
    /// The address that the sender claims; 0.0.0.0 in a probe.
    pub sender_ip: Ipv4Addr,
    /// Who is meant; ignored in a request.
    pub target_mac: MacAddr,
    /// The address in question.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Reads a packet; nothing if it is short or not for IPv4 over Ethernet.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        if array(payload, 0)? != ETHERNET_IPV4 {
            return None;
        }
        let operation = match be16(payload, 6)? {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: MacAddr(array(payload, 8)?),
            sender_ip: Ipv4Addr::from(array::<4>(payload, 14)?),
            target_mac: MacAddr(array(payload, 18)?),
            target_ip: Ipv4Addr::from(array::<4>(payload, 24)?),
        })
    }

    /// Whether this only announces the sender's own address (RFC 5227 section 3).
    #[must_use]
    pub fn is_announcement(&self) -> bool {
        self.sender_ip == self.target_ip
    }

    /// The answer of `mac`, as bytes behind an Ethernet header.
    #[must_use]
    pub fn reply_from(&self, mac: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }

    /// The packet as a frame from its sender to its target.
    #[must_use]
    pub fn to_frame(&self) -> [u8; ethernet::HEADER_LEN + LEN] {
        let operation: [u8; 2] = match self.operation {
            Operation::Request => [0, 1],
            Operation::Reply => [0, 2],
        };
        let mut frame = [0; ethernet::HEADER_LEN + LEN];
        let fields: [&[u8]; 9] = [
            &self.target_mac.0,
            &self.sender_mac.0,
            &ethernet::ARP.to_be_bytes(),
            &ETHERNET_IPV4,
            &operation,
            &self.sender_mac.0,
            &self.sender_ip.octets(),
            &self.target_mac.0,
            &self.target_ip.octets(),
        ];
        for (to, from) in frame.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Ethernet;

    fn request() -> Arp {
        Arp {
            operation: Operation::Request,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender_ip: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: MacAddr([0; 6]),
            target_ip: Ipv4Addr::new(10, 0, 0, 2),
        }
    }

    #[test]
    fn reply_swaps_the_sides() {
        let reply = request().reply_from(MacAddr([2, 0, 0, 0, 0, 9]));
        let frame = reply.to_frame();
        let eth = Ethernet::parse(&frame).unwrap();
        assert_eq!(eth.destination, request().sender_mac);
        assert_eq!(eth.source, MacAddr([2, 0, 0, 0, 0, 9]));
        assert_eq!(eth.ethertype, ethernet::ARP);
        assert_eq!(Arp::parse(eth.payload), Some(reply));
        assert_eq!(reply.sender_ip, request().target_ip);
    }

    #[test]
    fn foreign_hardware_protocol_and_operation_are_refused() {
        let frame = request().to_frame();
        for at in 0..8 {
            let mut bad = frame[14..].to_vec();
            bad[at] ^= 0x40;
            assert_eq!(Arp::parse(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let frame = request().to_frame();
        for len in 0..LEN {
            assert_eq!(Arp::parse(&frame[14..14 + len]), None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(a: [u8; 6], b: [u8; 6], x: [u8; 4], y: [u8; 4], reply: bool) {
            let arp = Arp {
                operation: if reply { Operation::Reply } else { Operation::Request },
                sender_mac: MacAddr(a),
                sender_ip: x.into(),
                target_mac: MacAddr(b),
                target_ip: y.into(),
            };
            prop_assert_eq!(Arp::parse(&arp.to_frame()[14..]), Some(arp));
        }
    }
}
