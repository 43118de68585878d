//! A sandbox in several networks: which of them comes first, and which have its default routes.
//!
//! Networks stand in one order: the highest priority first, then by name. In this order names are
//! looked for, and the first network whose gateway the sandbox's own address reaches has the
//! default route of that IP version.

use std::{cmp::Reverse, net::IpAddr};

use ipnet::IpNet;

use crate::addr::{EndpointId, Name, NetworkId};

/// A sandbox's part in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The sandbox's endpoint.
    pub endpoint: EndpointId,
    /// The network.
    pub network: NetworkId,
    /// Its name, unless it was removed.
    pub name: Option<Name>,
    /// What the user set.
    pub gw_priority: i32,
    /// The endpoint's addresses with the length of the subnet's prefix.
    pub ips: Vec<IpNet>,
    /// The network's gateways; an internal network has none that leads anywhere.
    pub gateways: Vec<IpAddr>,
}

/// Where a sandbox's packets of one IP version go when no network has their destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The sandbox's endpoint.
    pub endpoint: EndpointId,
    /// Its network.
    pub network: NetworkId,
    /// The network's gateway.
    pub gateway: IpAddr,
    /// The sandbox's address in the gateway's subnet.
    pub ip: IpAddr,
}

/// Puts a sandbox's networks in order.
pub fn sort(connected: &mut [Connected]) {
    // A network that was removed comes last of its priority.
    connected.sort_by_cached_key(|it| {
        (Reverse(it.gw_priority), it.name.is_none(), it.name.clone(), it.network)
    });
}

/// The default route of one IP version for a sandbox in these networks, which are in order.
#[must_use]
pub fn default_route(connected: &[Connected], ipv4: bool) -> Option<DefaultRoute> {
    connected.iter().find_map(|it| {
        let mut gateways = it.gateways.iter().filter(|gateway| gateway.is_ipv4() == ipv4);
        gateways.find_map(|gateway| {
            let ip = it.ips.iter().find(|ip| ip.contains(gateway))?.addr();
            Some(DefaultRoute { endpoint: it.endpoint, network: it.network, gateway: *gateway, ip })
        })
    })
}

/// The default routes of both IP versions.
pub fn default_routes(connected: &[Connected]) -> impl Iterator<Item = DefaultRoute> {
    [true, false].into_iter().filter_map(|ipv4| default_route(connected, ipv4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u8, name: &str, gw_priority: i32, ips: &[&str]) -> Connected {
        let ips: Vec<IpNet> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        Connected {
            endpoint: EndpointId::from_random([number; 16]),
            network: NetworkId::from_random([number; 16]),
            name: Some(name.parse().unwrap()),
            gw_priority,
            gateways: ips.iter().map(|ip| ip.hosts().next().unwrap()).collect(),
            ips,
        }
    }

    fn internal(mut it: Connected) -> Connected {
        it.gateways.clear();
        it
    }

    fn default_of(mut connected: Vec<Connected>, ipv4: bool) -> Option<String> {
        sort(&mut connected);
        let route = default_route(&connected, ipv4)?;
        connected
            .iter()
            .find(|it| it.endpoint == route.endpoint)?
            .name
            .as_ref()
            .map(Name::to_string)
    }

    #[test]
    fn priority_then_name() {
        let a = network(9, "a", 0, &["10.1.0.2/16", "fd01::2/64"]);
        let b = network(1, "b", 0, &["10.2.0.2/16", "fd02::2/64"]);
        let low = network(2, "aa", -1, &["10.3.0.2/16"]);
        let high = network(3, "z", 1, &["10.4.0.2/16"]);
        for ipv4 in [true, false] {
            assert_eq!(default_of(vec![b.clone(), a.clone(), low.clone()], ipv4).unwrap(), "a");
        }
        let all = vec![b, a, low.clone(), high];
        assert_eq!(default_of(all.clone(), true).unwrap(), "z");
        // It has no IPv6, so the next one has that route.
        assert_eq!(default_of(all.clone(), false).unwrap(), "a");
        let mut order = all;
        sort(&mut order);
        let names: Vec<_> = order.iter().map(|it| it.name.as_ref().unwrap().as_str()).collect();
        assert_eq!(names, ["z", "a", "b", "aa"]);
        assert_eq!(default_of(vec![low], true).unwrap(), "aa");
    }

    #[test]
    fn who_has_no_gateway_has_no_default_route() {
        let dark = internal(network(1, "a", 9, &["10.1.0.2/16", "fd01::2/64"]));
        assert_eq!(default_of(vec![dark.clone()], true), None);
        assert_eq!(default_of(Vec::new(), true), None);
        let open = network(2, "b", 0, &["10.2.0.2/16"]);
        assert_eq!(default_of(vec![dark.clone(), open.clone()], true).unwrap(), "b");
        assert_eq!(default_of(vec![dark, open.clone()], false), None);
        // The gateway of a subnet in which the sandbox has no address is out of reach.
        let mut elsewhere = open;
        elsewhere.gateways = vec!["10.9.0.1".parse().unwrap()];
        assert_eq!(default_of(vec![elsewhere], true), None);
    }

    #[test]
    fn the_address_is_the_one_beside_the_gateway() {
        let mut wide = network(1, "a", 0, &["10.1.0.2/16", "10.2.0.2/16"]);
        wide.gateways = vec!["10.2.0.1".parse().unwrap()];
        let route = default_route(&[wide], true).unwrap();
        assert_eq!(route.ip, "10.2.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_removed_network_comes_after_those_that_are_there() {
        let mut gone = network(1, "a", 0, &["10.1.0.2/16"]);
        gone.name = None;
        let mut order = vec![gone, network(2, "z", 0, &["10.2.0.2/16"])];
        sort(&mut order);
        assert!(order[1].name.is_none());
    }
}
