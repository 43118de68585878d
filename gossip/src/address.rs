//! The socket address under which chitchat knows a node. It is made of the node's id alone, so
//! it is the same on all hosts, and nothing is ever sent to it: the pipe knows nodes by id.
//!
//! ```text
//! 130 bits of id = 128 bits of IPv6 address | 2 bits of port - 1
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use vxmesh_proto::addr::NodeId;

/// The address that stands for a node.
#[must_use]
pub fn of_node(node: NodeId) -> SocketAddr {
    let mut high = 0u128;
    let mut low = 0u16;
    for (at, c) in node.as_str().bytes().enumerate() {
        let digit = digit(c);
        if at + 1 < NodeId::LEN {
            high = (high << 5) | u128::from(digit);
        } else {
            high = (high << 3) | u128::from(digit >> 2);
            low = u16::from(digit & 3);
        }
    }
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(high)), low + 1)
}

/// The node that an address stands for.
#[must_use]
pub fn to_node(addr: SocketAddr) -> Option<NodeId> {
    let IpAddr::V6(ip) = addr.ip() else { return None };
    let low = u8::try_from(addr.port().checked_sub(1).filter(|low| *low < 4)?).ok()?;
    let high = u128::from(ip);
    let last = u8::try_from(high & 7).ok()? << 2 | low;
    let mut text = String::with_capacity(NodeId::LEN);
    for at in (0..NodeId::LEN - 1).rev() {
        let digit = u8::try_from((high >> (3 + 5 * at)) & 31).ok()?;
        text.push(character(digit));
    }
    text.push(character(last));
    text.parse().ok()
}

/// RFC 4648 section 6, in lower case.
const fn digit(c: u8) -> u8 {
    match c {
        b'a'..=b'z' => c - b'a',
        b'2'..=b'7' => c - b'2' + 26,
        // INVARIANT: an id has no other characters.
        _ => 0,
    }
}

fn character(digit: u8) -> char {
    char::from(if digit < 26 { b'a' + digit } else { b'2' + digit - 26 })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nodes_and_addresses_are_one_to_one() {
        let mut addrs = BTreeSet::new();
        for key in 0..1000u32 {
            let node = NodeId::of_public_key(&key.to_be_bytes());
            let addr = of_node(node);
            assert_eq!(to_node(addr), Some(node));
            // Chitchat passes addresses on as text and as bytes.
            assert_eq!(addr.to_string().parse::<SocketAddr>().unwrap(), addr);
            assert!(addrs.insert(addr));
        }
    }

    #[test]
    fn other_addresses_stand_for_nobody() {
        for addr in ["127.0.0.1:1", "[::1]:0", "[::1]:5", "[::1]:65535"] {
            assert_eq!(to_node(addr.parse().unwrap()), None, "{addr}");
        }
    }
}
