//! A subnet that a network can have: [`Subnet`]. What cannot work is refused with the reason and
//! what to write in its place.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use thiserror::Error;

use super::cidr::{Cidr, address, number};
use crate::object;

/// Shortest IPv4 prefix: more hosts than anything here can serve.
const SHORTEST_V4: u8 = 8;
/// Longest IPv4 prefix: network, broadcast, gateway and one endpoint.
const LONGEST_V4: u8 = 30;
/// Shortest IPv6 prefix: a link has 64 bits for its hosts (RFC 4291 section 2.5.1).
const SHORTEST_V6: u8 = 64;
/// Longest IPv6 prefix: the anycast address of routers, gateway and two endpoints.
const LONGEST_V6: u8 = 126;

/// Why a subnet is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// It is an address in a network.
    #[error("{0} has host bits set: write {network}", network = .0.trunc())]
    HostBits(IpNet),
    /// There is no room for a gateway and an endpoint.
    #[error("{0} is too small: use at most /{longest}", longest = longest(.0))]
    TooSmall(IpNet),
    /// No link is so wide.
    #[error("{0} is too large: use at least /{shortest}", shortest = shortest(.0))]
    TooLarge(IpNet),
    /// Its addresses are not for hosts of a network.
    #[error("{0} cannot be used, it is {1}: choose a private range such as 10.0.0.0/8 or fd00::/8")]
    Unusable(IpNet, &'static str),
    /// The gateway is somewhere else.
    #[error("the gateway {gateway} is not a host of {cidr}: choose an address inside, such as {}", default_gateway(.cidr))]
    Gateway {
        /// The subnet.
        cidr: IpNet,
        /// The gateway that was asked for.
        gateway: IpAddr,
    },
    /// A reserved address is somewhere else.
    #[error("the reserved address {address} is not in {cidr}")]
    Reserved {
        /// The subnet.
        cidr: IpNet,
        /// The address that was to be left out.
        address: IpAddr,
    },
    /// The range is somewhere else.
    #[error("the range {range} is not a part of {cidr}")]
    Range {
        /// The subnet.
        cidr: IpNet,
        /// The part that was asked for.
        range: IpNet,
    },
    /// There is nothing to choose in the range.
    #[error("no address of the range {0} can be given to an endpoint: make it larger")]
    Empty(IpNet),
    /// Two subnets of one network share addresses.
    #[error("{0} and {1} overlap: the subnets of a network must not share addresses")]
    Overlap(IpNet, IpNet),
}

/// A subnet with its gateway. One that exists is usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    cidr: IpNet,
    gateway: IpAddr,
    reserved: BTreeSet<IpAddr>,
    /// Where addresses are chosen; all others only by name.
    range: IpNet,
}

impl Subnet {
    /// A subnet with this gateway, or else with its first host as gateway. Reserved addresses are
    /// given to nobody.
    ///
    /// # Errors
    ///
    /// [`SubnetError`] says what is wrong and what to write.
    pub fn new(
        cidr: IpNet,
        gateway: Option<IpAddr>,
        reserved: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self, SubnetError> {
        check_cidr(&cidr)?;
        let gateway = gateway.unwrap_or_else(|| default_gateway(&cidr));
        if !is_host(&cidr, gateway) {
            return Err(SubnetError::Gateway { cidr, gateway });
        }
        let reserved: BTreeSet<_> = reserved.into_iter().collect();
        if let Some(&address) = reserved.iter().find(|ip| !cidr.contains(*ip)) {
            return Err(SubnetError::Reserved { cidr, address });
        }
        Ok(Self { cidr, gateway, reserved, range: cidr })
    }

    /// The subnet with addresses chosen from this part of it only. The others are given to who
    /// names them.
    ///
    /// # Errors
    ///
    /// It is no part of the subnet, or no endpoint can have any address of it.
    pub fn with_range(self, range: IpNet) -> Result<Self, SubnetError> {
        if range.trunc() != range {
            return Err(SubnetError::HostBits(range));
        }
        if !self.cidr.contains(&range) {
            return Err(SubnetError::Range { cidr: self.cidr, range });
        }
        let block = block_of(&range);
        let excluded = self.excluded();
        let taken = excluded.range(block.first..=block.last()).count() as u128;
        if taken >= block.size() {
            Err(SubnetError::Empty(range))
        } else {
            Ok(Self { range, ..self })
        }
    }

    /// Its addresses.
    #[must_use]
    pub const fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The address of the gateway.
    #[must_use]
    pub const fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Addresses that are given to nobody.
    #[must_use]
    pub const fn reserved(&self) -> &BTreeSet<IpAddr> {
        &self.reserved
    }

    /// Whether an endpoint can have this address.
    #[must_use]
    pub fn is_assignable(&self, ip: IpAddr) -> bool {
        is_host(&self.cidr, ip) && ip != self.gateway && !self.reserved.contains(&ip)
    }

    pub(super) fn is_v6(&self) -> bool {
        self.gateway.is_ipv6()
    }

    /// The part of it in which addresses are chosen.
    #[must_use]
    pub const fn range(&self) -> IpNet {
        self.range
    }

    pub(super) fn block(&self) -> Cidr {
        block_of(&self.cidr)
    }

    pub(super) fn range_block(&self) -> Cidr {
        block_of(&self.range)
    }

    /// The numbers of all addresses that no endpoint can have.
    pub(super) fn excluded(&self) -> BTreeSet<u128> {
        let own = [self.gateway, self.cidr.network()];
        let broadcast = (!self.is_v6()).then(|| self.cidr.broadcast());
        own.into_iter().chain(broadcast).chain(self.reserved.iter().copied()).map(number).collect()
    }
}

impl TryFrom<&object::Subnet> for Subnet {
    type Error = SubnetError;

    fn try_from(subnet: &object::Subnet) -> Result<Self, SubnetError> {
        let reserved = subnet.aux.values().copied();
        let whole = Self::new(subnet.cidr, Some(subnet.gateway), reserved)?;
        match subnet.range {
            Some(range) => whole.with_range(range),
            None => Ok(whole),
        }
    }
}

/// A network without host bits as a block.
fn block_of(net: &IpNet) -> Cidr {
    Cidr { first: number(net.network()), bits: net.max_prefix_len() - net.prefix_len() }
}

/// Checks that the subnets of one network share no address.
///
/// # Errors
///
/// [`SubnetError::Overlap`] names the first two that do.
pub fn check_disjoint<'a>(
    subnets: impl IntoIterator<Item = &'a Subnet>,
) -> Result<(), SubnetError> {
    let mut seen: Vec<IpNet> = Vec::new();
    for subnet in subnets {
        let cidr = subnet.cidr;
        if let Some(other) = seen.iter().find(|o| o.contains(&cidr) || cidr.contains(*o)) {
            return Err(SubnetError::Overlap(*other, cidr));
        }
        seen.push(cidr);
    }
    Ok(())
}

fn check_cidr(cidr: &IpNet) -> Result<(), SubnetError> {
    if cidr.addr() != cidr.network() {
        return Err(SubnetError::HostBits(*cidr));
    }
    if let Some(what) = unusable(cidr) {
        return Err(SubnetError::Unusable(*cidr, what));
    }
    if cidr.prefix_len() > longest(cidr) {
        return Err(SubnetError::TooSmall(*cidr));
    }
    if cidr.prefix_len() < shortest(cidr) {
        return Err(SubnetError::TooLarge(*cidr));
    }
    Ok(())
}

/// What the addresses are, if they are not for hosts. A prefix that is shorter than a special range
/// and begins with it is too large anyway.
fn unusable(cidr: &IpNet) -> Option<&'static str> {
    match cidr.network() {
        IpAddr::V4(ip) => match ip.octets() {
            [0, ..] => Some("\"this network\" (RFC 1122)"),
            [127, ..] => Some("loopback"),
            [169, 254, ..] => Some("link-local"),
            [224..=239, ..] => Some("multicast"),
            [240..=255, ..] => Some("reserved (RFC 1112)"),
            _ => None,
        },
        IpAddr::V6(ip) => match ip.segments() {
            [0, 0, 0, 0, 0, 0, ..] => Some("loopback or unspecified"),
            [0, 0, 0, 0, 0, 0xffff, ..] => Some("for mapped IPv4 addresses"),
            [0xff00..=0xffff, ..] => Some("multicast"),
            [0xfe80..=0xfebf, ..] => Some("link-local"),
            _ => None,
        },
    }
}

const fn longest(cidr: &IpNet) -> u8 {
    match cidr {
        IpNet::V4(_) => LONGEST_V4,
        IpNet::V6(_) => LONGEST_V6,
    }
}

const fn shortest(cidr: &IpNet) -> u8 {
    match cidr {
        IpNet::V4(_) => SHORTEST_V4,
        IpNet::V6(_) => SHORTEST_V6,
    }
}

fn default_gateway(cidr: &IpNet) -> IpAddr {
    address(number(cidr.network()).saturating_add(1), cidr.network().is_ipv6())
}

/// Whether one interface can have this address: neither the network's nor its broadcast address in
/// IPv4, nor the anycast address of routers in IPv6 (RFC 4291 section 2.6.1).
fn is_host(cidr: &IpNet, ip: IpAddr) -> bool {
    cidr.contains(&ip) && ip != cidr.network() && (ip.is_ipv6() || ip != cidr.broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(cidr: &str, gateway: Option<&str>) -> Result<Subnet, SubnetError> {
        Subnet::new(cidr.parse().unwrap(), gateway.map(|ip| ip.parse().unwrap()), [])
    }

    #[test]
    fn usable_subnets() {
        for (cidr, gateway) in [
            ("10.0.0.0/8", "10.0.0.1"),
            ("10.1.2.0/24", "10.1.2.1"),
            ("192.168.0.4/30", "192.168.0.5"),
            ("100.64.0.0/10", "100.64.0.1"),
            ("fd00::/64", "fd00::1"),
            ("fd00::40/126", "fd00::41"),
            ("2001:db8::/64", "2001:db8::1"),
        ] {
            let made = subnet(cidr, None).unwrap();
            assert_eq!(made.gateway().to_string(), gateway);
        }
        assert_eq!(
            subnet("10.0.0.0/24", Some("10.0.0.254")).unwrap().gateway().to_string(),
            "10.0.0.254"
        );
    }

    #[test]
    fn a_range_is_a_part_with_something_to_choose() {
        let with_range = |cidr: &str, range: &str| {
            subnet(cidr, None).unwrap().with_range(range.parse().unwrap())
        };
        for range in ["10.0.0.0/24", "10.0.0.128/25", "10.0.0.7/32", "10.0.0.0/30"] {
            assert_eq!(with_range("10.0.0.0/24", range).unwrap().range().to_string(), range);
        }
        for (cidr, range, text) in [
            ("10.0.0.0/24", "10.0.1.0/25", "the range 10.0.1.0/25 is not a part of 10.0.0.0/24"),
            ("10.0.0.0/24", "10.0.0.0/16", "is not a part of"),
            ("10.0.0.0/24", "fd00::/64", "is not a part of"),
            ("10.0.0.0/24", "10.0.0.129/25", "has host bits set: write 10.0.0.128/25"),
            ("10.0.0.0/24", "10.0.0.0/31", "no address of the range 10.0.0.0/31"),
            ("10.0.0.0/24", "10.0.0.255/32", "no address of the range"),
            ("fd00::/64", "fd00::/127", "no address of the range"),
        ] {
            let error = with_range(cidr, range).unwrap_err().to_string();
            assert!(error.contains(text), "{cidr}, {range}: {error}");
        }
    }

    #[test]
    fn refused_subnets_say_why_and_what_to_write() {
        for (cidr, gateway, text) in [
            ("10.0.0.5/24", None, "10.0.0.5/24 has host bits set: write 10.0.0.0/24"),
            ("fd00::1/64", None, "fd00::1/64 has host bits set: write fd00::/64"),
            ("10.0.0.0/31", None, "10.0.0.0/31 is too small: use at most /30"),
            ("10.0.0.0/32", None, "10.0.0.0/32 is too small: use at most /30"),
            ("fd00::/127", None, "fd00::/127 is too small: use at most /126"),
            ("fd00::/128", None, "fd00::/128 is too small: use at most /126"),
            ("10.0.0.0/7", None, "10.0.0.0/7 is too large: use at least /8"),
            ("fd00::/63", None, "fd00::/63 is too large: use at least /64"),
            ("127.0.0.0/8", None, "it is loopback"),
            ("::/64", None, "it is loopback or unspecified"),
            ("0.0.0.0/8", None, "it is \"this network\""),
            ("0.0.0.0/0", None, "it is \"this network\""),
            ("224.0.0.0/24", None, "it is multicast"),
            ("ff02::/64", None, "it is multicast"),
            ("169.254.0.0/16", None, "it is link-local"),
            ("fe80::/64", None, "it is link-local"),
            ("240.0.0.0/8", None, "it is reserved"),
            ("255.255.255.0/24", None, "it is reserved"),
            ("::ffff:10.0.0.0/120", None, "mapped"),
            ("10.0.0.0/24", Some("10.0.1.1"), "the gateway 10.0.1.1 is not a host of 10.0.0.0/24"),
            ("10.0.0.0/24", Some("10.0.0.0"), "such as 10.0.0.1"),
            ("10.0.0.0/24", Some("10.0.0.255"), "is not a host"),
            ("10.0.0.0/24", Some("fd00::1"), "is not a host"),
            ("fd00::/64", Some("fd00::"), "is not a host"),
        ] {
            let error = subnet(cidr, gateway).unwrap_err().to_string();
            assert!(error.contains(text), "{cidr}: {error}");
        }
    }

    #[test]
    fn reserved_addresses_lie_inside() {
        let cidr = "10.0.0.0/24".parse().unwrap();
        let outside = Subnet::new(cidr, None, ["10.0.1.1".parse().unwrap()]);
        assert_eq!(
            outside.unwrap_err().to_string(),
            "the reserved address 10.0.1.1 is not in 10.0.0.0/24"
        );
        let made = Subnet::new(cidr, None, ["10.0.0.9".parse().unwrap()]).unwrap();
        for (ip, assignable) in [
            ("10.0.0.0", false),
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("10.0.0.9", false),
            ("10.0.0.254", true),
            ("10.0.0.255", false),
            ("10.0.1.0", false),
        ] {
            assert_eq!(made.is_assignable(ip.parse().unwrap()), assignable, "{ip}");
        }
    }

    #[test]
    fn overlap_is_found_whichever_contains_the_other() {
        let make = |cidr| subnet(cidr, None).unwrap();
        let (wide, narrow) = (make("10.0.0.0/16"), make("10.0.4.0/24"));
        let (other, v6) = (make("10.1.0.0/16"), make("fd00::/64"));
        assert_eq!(check_disjoint([&wide, &other, &v6]), Ok(()));
        for pair in [[&wide, &narrow], [&narrow, &wide], [&wide, &wide]] {
            assert!(matches!(check_disjoint(pair), Err(SubnetError::Overlap(..))));
        }
    }
}
