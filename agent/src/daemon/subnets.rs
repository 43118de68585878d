//! Which subnets a network gets: those that were asked for, or free ones of the default pools; and
//! what they overlap.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::{IpNet, Ipv6Net};
use rand::{Rng, RngExt};
use vxmesh_proto::{
    ipam::{self, SubnetError, check_disjoint},
    object::Subnet,
};

use crate::{
    api::{ApiError, ErrorCode},
    config::DefaultPool,
    netlink::hosts::HostRoute,
};

/// Attempts to find a free subnet at random before all are searched in order.
const RANDOM_TRIES: usize = 64;
/// Subnets of one pool that are looked at in order: more than there may be networks.
const ORDERED_TRIES: u64 = 65_536;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

impl Version {
    const fn is_of(self, subnet: &IpNet) -> bool {
        matches!((self, subnet), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What a user says about the subnets of a network.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) subnets: Vec<IpNet>,
    pub(super) gateways: Vec<IpAddr>,
    pub(super) ip_ranges: Vec<IpNet>,
    pub(super) aux: BTreeMap<String, IpAddr>,
}

fn usage(message: impl fmt::Display, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Usage, message.to_string(), hint)
}

fn overlaps(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl Wanted {
    /// Whether nothing was said.
    fn is_empty(&self) -> bool {
        self.subnets.is_empty()
            && self.gateways.is_empty()
            && self.ip_ranges.is_empty()
            && self.aux.is_empty()
    }

    /// The IP versions for which a subnet is to be chosen: those that are wanted by name, and
    /// without a word both.
    pub(super) fn missing(
        &self,
        ipv4: Option<bool>,
        ipv6: Option<bool>,
    ) -> Result<Vec<Version>, ApiError> {
        let mut missing = Vec::new();
        for (version, said) in [(Version::V4, ipv4), (Version::V6, ipv6)] {
            let there = self.subnets.iter().find(|subnet| version.is_of(subnet));
            match (said, there) {
                (Some(false), Some(subnet)) => {
                    return Err(usage(
                        format!(
                            "{subnet} is a subnet of {version}, and the network is to have none"
                        ),
                        "leave one of --subnet and the option out",
                    ));
                }
                (Some(true), None) => missing.push(version),
                (None, None) if self.is_empty() => missing.push(version),
                (Some(_) | None, _) => {}
            }
        }
        if missing.is_empty() && self.is_empty() {
            return Err(usage(
                "a network without IPv4 and IPv6 has no addresses to give",
                "leave --ipv4=false or --ipv6=false out",
            ));
        }
        Ok(missing)
    }

    /// The subnets that were asked for, checked by themselves and against each other.
    pub(super) fn subnets(&self) -> Result<Vec<(Subnet, ipam::Subnet)>, ApiError> {
        let bad = |error: SubnetError| usage(error, "see `vxmesh network create --help`");
        self.check_strays()?;
        let made = self.subnets.iter().map(|cidr| {
            let subnet = self.subnet(*cidr)?;
            let usable = ipam::Subnet::try_from(&subnet).map_err(bad)?;
            Ok((subnet, usable))
        });
        let made = made.collect::<Result<Vec<_>, ApiError>>()?;
        check_disjoint(made.iter().map(|(_, usable)| usable)).map_err(bad)?;
        Ok(made)
    }

    fn subnet(&self, cidr: IpNet) -> Result<Subnet, ApiError> {
        let gateway = self.gateways.iter().copied().find(|ip| cidr.contains(ip));
        // Refuses what has no default gateway.
        let whole = ipam::Subnet::new(cidr, gateway, [])
            .map_err(|error| usage(error, "see `vxmesh network create --help`"))?;
        let mut ranges = self.ip_ranges.iter().copied().filter(|range| cidr.contains(range));
        let range = ranges.next();
        if let (Some(one), Some(other)) = (range, ranges.next()) {
            return Err(usage(
                format!("{one} and {other} are two ranges of {cidr}"),
                "give one --ip-range per subnet",
            ));
        }
        let aux = self.aux.iter().filter(|(_, ip)| cidr.contains(*ip));
        let aux: BTreeMap<_, _> = aux.map(|(name, ip)| (name.clone(), *ip)).collect();
        if let Some((name, ip)) = aux.iter().find(|(_, ip)| **ip == whole.gateway()) {
            return Err(usage(
                format!("{ip} cannot be reserved for `{name}`: it is the gateway"),
                "choose another address for either",
            ));
        }
        Ok(Subnet { cidr, gateway: whole.gateway(), range, aux })
    }

    /// What belongs to none of the subnets.
    fn check_strays(&self) -> Result<(), ApiError> {
        let inside = |ip: &IpAddr| self.subnets.iter().any(|subnet| subnet.contains(ip));
        let stray = |what: String| {
            Err(usage(
                format!("{what} lies in none of the subnets"),
                "give its subnet with --subnet",
            ))
        };
        if let Some(gateway) = self.gateways.iter().find(|ip| !inside(ip)) {
            return stray(format!("the gateway {gateway}"));
        }
        if let Some(range) =
            self.ip_ranges.iter().find(|range| !self.subnets.iter().any(|s| s.contains(*range)))
        {
            return stray(format!("the range {range}"));
        }
        match self.aux.iter().find(|(_, ip)| !inside(ip)) {
            Some((name, ip)) => stray(format!("the address {ip} of `{name}`")),
            None => Ok(()),
        }
    }
}

/// A free subnet of each of these IP versions. Two nodes that choose at once choose at random, so
/// that they seldom choose the same.
pub(super) fn free_subnets(
    pools: &[DefaultPool],
    taken: &[IpNet],
    routes: &[HostRoute],
    versions: &[Version],
) -> Result<Vec<IpNet>, ApiError> {
    let mut rng = rand::rng();
    let is_free = |cidr: &IpNet| {
        !taken.iter().any(|other| overlaps(other, cidr))
            && !routes.iter().any(|route| overlaps(&route.destination, cidr))
    };
    let free = |version: Version, rng: &mut dyn Rng| {
        let mut pools = pools.iter().filter(|pool| version.is_of(&pool.base)).peekable();
        if version == Version::V6 && pools.peek().is_none() {
            let random = std::iter::repeat_with(|| unique_local(rng));
            return random.take(RANDOM_TRIES).flatten().find(is_free);
        }
        pools.find_map(|pool| free_in(pool, rng, &is_free))
    };
    let full = |version: Version| {
        ApiError::new(
            ErrorCode::Conflict,
            format!(
                "every {version} subnet of the default pools overlaps a network or a route of this host"
            ),
            "give one with --subnet, or more default_pools in agent.toml",
        )
    };
    let each =
        versions.iter().map(|version| free(*version, &mut rng).ok_or_else(|| full(*version)));
    each.collect()
}

/// RFC 4193 section 3.2: fd, 40 random bits, a subnet number.
fn unique_local(rng: &mut dyn Rng) -> Option<IpNet> {
    let [a, b, c] = rng.random::<[u16; 3]>();
    let segments = [0xfd00 | (a & 0xff), b, c, 1, 0, 0, 0, 0];
    Ipv6Net::new(segments.into(), 64).ok().map(IpNet::V6)
}

fn free_in(
    pool: &DefaultPool,
    rng: &mut dyn Rng,
    is_free: &impl Fn(&IpNet) -> bool,
) -> Option<IpNet> {
    let DefaultPool { base, size } = *pool;
    let bits = u32::from(size.checked_sub(base.prefix_len())?);
    let count = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    let nth = |n: u64| -> Option<IpNet> {
        let shift = u32::from(base.max_prefix_len() - size);
        let offset = u128::from(n).checked_shl(shift)?;
        let network = match base.network() {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | u32::try_from(offset).ok()?).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | offset).into()),
        };
        IpNet::new(network, size).ok()
    };
    let random: Vec<u64> = (0..RANDOM_TRIES).map(|_| rng.random_range(0..count)).collect();
    let ordered = 0..count.min(ORDERED_TRIES);
    random.into_iter().chain(ordered).filter_map(nth).find(is_free)
}

/// What users should know about subnets that overlap something: nothing breaks inside the network.
pub(super) fn warnings<'a>(
    subnets: &[IpNet],
    others: impl IntoIterator<Item = (&'a str, IpNet)>,
    routes: &[HostRoute],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, other) in others {
        for subnet in subnets.iter().filter(|subnet| overlaps(subnet, &other)) {
            warnings.push(format!(
                "{subnet} overlaps {other} of network `{name}`: the host reaches only one of the two by address, and no sandbox can be in both"
            ));
        }
    }
    for route in routes {
        for subnet in subnets.iter().filter(|subnet| overlaps(subnet, &route.destination)) {
            warnings.push(format!(
                "{subnet} overlaps this host's route to {} by {}: the host may not reach the network by address, and sandboxes may not reach what is there",
                route.destination, route.interface
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pool(base: &str, size: u8) -> DefaultPool {
        DefaultPool { base: net(base), size }
    }

    const BOTH: [Version; 2] = [Version::V4, Version::V6];

    #[test]
    fn a_version_is_had_as_it_was_said() {
        use Version::{V4, V6};
        let of = |subnets: &[&str]| Wanted {
            subnets: subnets.iter().map(|text| net(text)).collect(),
            ..Wanted::default()
        };
        let (v4, v6) = (["10.1.0.0/24"].as_slice(), ["fd01::/64"].as_slice());
        for (subnets, ipv4, ipv6, missing) in [
            ([].as_slice(), None, None, Some([V4, V6].as_slice())),
            (&[], None, Some(false), Some(&[V4])),
            (&[], Some(false), None, Some(&[V6])),
            (&[], Some(true), None, Some(&[V4, V6])),
            (&[], Some(false), Some(false), None),
            (v4, None, None, Some(&[])),
            (v4, None, Some(true), Some(&[V6])),
            (v4, None, Some(false), Some(&[])),
            (v4, Some(false), None, None),
            (v6, None, Some(false), None),
            (v6, Some(true), None, Some(&[V4])),
        ] {
            let told = of(subnets).missing(ipv4, ipv6);
            assert_eq!(told.as_deref().ok(), missing, "{subnets:?} {ipv4:?} {ipv6:?}");
        }
        let only = free_subnets(&[], &[], &[], &[V6]).unwrap();
        assert!(only.len() == 1 && V6.is_of(&only[0]), "no IPv4 pool is needed: {only:?}");
    }

    #[test]
    fn pools_are_cut_and_searched_to_their_end() {
        let pools = [pool("10.64.0.0/18", 20), pool("172.30.0.0/16", 24), pool("fd77::/60", 64)];
        let route = HostRoute { destination: net("172.30.0.0/17"), interface: "eth0".into() };
        let mut taken: Vec<IpNet> = Vec::new();
        let error = loop {
            match free_subnets(&pools, &taken, std::slice::from_ref(&route), &BOTH) {
                Ok(made) => taken.extend(made),
                Err(error) => break error,
            }
        };
        assert!(error.message.contains("IPv6"), "{error}");
        let unique: BTreeSet<_> = taken.iter().collect();
        assert_eq!((taken.len(), unique.len()), (32, 32), "16 /64 in a /60, and as many IPv4");
        assert_eq!(taken.iter().filter(|net| net.prefix_len() == 20).count(), 4, "{taken:?}");
        assert!(!taken.iter().any(|net| overlaps(net, &route.destination)), "{taken:?}");
        let full =
            free_subnets(&[pool("10.0.0.0/24", 24)], &[net("10.0.0.0/8")], &[], &BOTH).unwrap_err();
        assert!(full.message.contains("IPv4") && full.code == ErrorCode::Conflict, "{full}");
    }

    #[test]
    fn two_nodes_seldom_choose_the_same() {
        let pools = [pool("10.64.0.0/10", 20)];
        let chosen: BTreeSet<_> =
            (0..32).map(|_| free_subnets(&pools, &[], &[], &BOTH).unwrap()).collect();
        assert!(chosen.len() > 24, "{chosen:?}");
        assert!(chosen.iter().flatten().all(|net| [20, 64].contains(&net.prefix_len())));
    }

    #[test]
    fn what_is_wrong_with_a_wish_is_named() {
        let wanted = || Wanted { subnets: vec![net("10.1.0.0/24")], ..Wanted::default() };
        let aux = |name: &str, ip: &str| [(name.to_owned(), ip.parse().unwrap())].into();
        for (wanted, says) in [
            (Wanted { gateways: vec!["10.2.0.1".parse().unwrap()], ..wanted() }, "10.2.0.1"),
            (Wanted { ip_ranges: vec![net("10.2.0.0/25")], ..wanted() }, "the range 10.2.0.0/25"),
            (Wanted { ip_ranges: vec![net("10.1.0.0/23")], ..wanted() }, "lies in none"),
            (
                Wanted { ip_ranges: vec![net("10.1.0.0/25"), net("10.1.0.128/25")], ..wanted() },
                "two ranges of 10.1.0.0/24",
            ),
            (Wanted { ip_ranges: vec![net("10.1.0.0/31")], ..wanted() }, "no address of the range"),
            (Wanted { aux: aux("printer", "10.2.0.7"), ..wanted() }, "10.2.0.7 of `printer`"),
            (Wanted { aux: aux("printer", "10.1.0.1"), ..wanted() }, "it is the gateway"),
            (
                Wanted { subnets: vec![net("10.1.0.0/24"), net("10.1.0.128/25")], ..wanted() },
                "overlap",
            ),
        ] {
            let error = wanted.subnets().unwrap_err();
            assert!(error.message.contains(says) && error.code == ErrorCode::Usage, "{error}");
        }
        let good = Wanted {
            ip_ranges: vec![net("10.1.0.128/25")],
            aux: aux("printer", "10.1.0.200"),
            ..wanted()
        };
        let made = good.subnets().unwrap();
        assert!(!made[0].1.is_assignable("10.1.0.200".parse().unwrap()));
        assert_eq!(made[0].0.gateway, "10.1.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn overlaps_are_told_in_both_directions() {
        let route = HostRoute { destination: net("10.1.0.0/16"), interface: "eth0".into() };
        let told = warnings(
            &[net("10.1.2.0/24"), net("fd00::/64")],
            [("red", net("10.0.0.0/8")), ("blue", net("fd00:1::/64"))],
            &[route],
        );
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("`red`") && told[1].contains("eth0"), "{told:?}");
    }
}
