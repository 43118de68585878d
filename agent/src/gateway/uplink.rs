//! The cable from a network's namespace to the host's: its addresses and what leads over it.
//!
//! Addresses at both ends are this host's alone: nobody else ever sees them, since the host
//! rewrites them. The IPv4 pair is the first that no route of the host covers: link-local (RFC
//! 3927) or, on a host that has a link of these addresses, of those for measurements (RFC 2544)
//! or for later (RFC 1112 section 4); the IPv6 address is unique-local (RFC 4193), with the
//! global id made from the node's id. The host's own end has no address with which it could
//! speak to anybody else.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ring::digest;
use thiserror::Error;
use tokio::sync::Mutex;
use vxmesh_proto::addr::{MacAddr, NetworkId, NodeId};

use crate::netlink::{
    hosts::leads_everywhere,
    link::{LinkError, Links},
    netns::Netns,
    settings::Settings,
    whole::State,
};

/// The end in the network's namespace.
pub const INSIDE: &str = "uplink0";
/// How the names of the host's ends begin; a network's number follows.
pub const PREFIX: &str = "vxm";
/// All of them, as a firewall names them.
pub const ALL: &str = "vxm*";

/// Where pairs are looked for, in this order, each 4096 pairs inside of a block. A route to more
/// than the block leads there by chance: none of these is anybody's whom a router could reach. What
/// clouds serve at link-local addresses lies elsewhere (169.254.169.0/24 and neighbours).
const POOLS: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(169, 254, 96, 0), 16),
    (Ipv4Addr::new(198, 19, 96, 0), 15),
    (Ipv4Addr::new(240, 0, 96, 0), 4),
];
const PAIRS: u32 = 4096;
/// Held by who chooses a pair, until an interface has it.
static CHOOSING: Mutex<()> = Mutex::const_new(());
pub(super) const HOST_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub(super) const INSIDE_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Why there is no way out.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// An interface, an address or a route.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A namespace or a setting.
    #[error("cannot set up the uplink: {0}")]
    Io(#[from] std::io::Error),
    /// The host has routes to all of the pools.
    #[error(
        "no pair of addresses is free for the uplink: this host has routes to all of 169.254.96.0/19, 198.19.96.0/19 and 240.0.96.0/19; remove one that is not needed"
    )]
    NoAddress,
}

/// A network's uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The host's end.
    pub ifname: String,
    /// Its link-local address.
    pub host: Ipv4Addr,
    /// The address of the end inside, as which sandboxes come to the host.
    pub inside: Ipv4Addr,
    /// The same for IPv6, unless the host has none.
    pub inside6: Option<Ipv6Addr>,
}

impl Uplink {
    /// The addresses of the end inside.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        let v6 = self.inside6.map(IpAddr::V6);
        std::iter::once(IpAddr::V4(self.inside)).chain(v6).collect()
    }
}

/// The name of the host's end.
#[must_use]
pub fn ifname(network: NetworkId) -> String {
    format!("{PREFIX}{}", network.short())
}

/// Whether an interface of the host is an uplink's end.
#[must_use]
pub fn is_uplink(interface: &str) -> bool {
    interface
        .strip_prefix(PREFIX)
        .is_some_and(|id| id.len() == 12 && id.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Whether an address may be that of an uplink's inside: of the pool, or unique-local as this
/// program makes them.
#[must_use]
pub fn is_inside(node: NodeId, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_of_pool(v4),
        IpAddr::V6(v6) => v6.octets().starts_with(&global_id(node)),
    }
}

/// Makes the cable with its addresses and the default routes inside, or adopts what is there. The
/// host's links are those of this namespace.
///
/// # Errors
/// The kernel refuses a step, or no address is free; a half-made cable is gone with the namespace.
pub async fn ensure(
    network: NetworkId,
    node: NodeId,
    (host, netns, inside): (&Links, &Netns, &Links),
    mtu: u16,
) -> Result<Uplink, UplinkError> {
    let host_netns = Netns::current().map_err(std::io::Error::other)?;
    let name = ifname(network);
    let mac = MacAddr::of_node(node, rand::random());
    cable((&name, mac), (host, &host_netns), inside, mtu).await?;
    // Without its MTU an end may have no settings of IPv6.
    host.set_mtu(&name, mtu).await?;
    inside.set_mtu(INSIDE, mtu).await?;
    let mut choosing = None;
    let pair = match adopted(&host.addresses(&name).await?) {
        Some(pair) => pair,
        None => {
            // Of several who choose at a time each sees what the others chose.
            choosing = Some(CHOOSING.lock().await);
            let taken: Vec<IpNet> =
                host.routes().await?.into_iter().map(|route| route.destination).collect();
            free_pair(network, &taken).ok_or(UplinkError::NoAddress)?
        }
    };
    let (here, there) = (pair, Ipv4Addr::from(u32::from(pair) | 1));
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    // Before an interface is up it has not chosen an address. A setting that is refused keeps no
    // link down.
    let settings = ipv6_values(INSIDE);
    let mut set = Ok(());
    if v6 && !inside.sees_settings(&settings) {
        inside.look_away();
        set = netns.run(|| set_all(&settings));
    }
    let (settings, forwards) = (set_all(&host_settings(&name, v6)), forward(&name));
    set = set.and(settings).and(forwards);
    host.add_link_address(&name, pair_net(here)).await?;
    drop(choosing);
    host.set_up(&name, mtu).await?;
    inside.add_address(INSIDE, pair_net(there)).await?;
    inside.set_up(INSIDE, mtu).await?;
    inside.set_route(Ipv4Net::default().into(), Some(here.into()), INSIDE).await?;
    let inside6 = v6.then(|| unique_local(node, network));
    if let Some(ip) = inside6 {
        ipv6((host, &name), inside, ip).await?;
    }
    set?;
    Ok(Uplink { ifname: name, host: here, inside: there, inside6 })
}

async fn cable(
    (name, mac): (&str, MacAddr),
    (host, host_netns): (&Links, &Netns),
    inside: &Links,
    mtu: u16,
) -> Result<(), LinkError> {
    let (ours, theirs) = (host.get(name).await?, inside.get(INSIDE).await?);
    if let (Some(ours), Some(theirs)) = (&ours, &theirs)
        && ours.peer == Some(theirs.index)
        && theirs.peer == Some(ours.index)
    {
        return Ok(());
    }
    // Ends of an earlier life that lead elsewhere.
    inside.delete(INSIDE).await?;
    host.delete(name).await?;
    inside.create_veth(INSIDE, (name, mac), host_netns, mtu).await
}

/// The settings of the host's end, below /proc/sys/net.
pub(super) fn host_settings(name: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    let mut settings = vec![(format!("ipv4/conf/{name}/route_localnet"), "1")];
    settings.extend(ipv6_values(name).into_iter().filter(|_| ipv6));
    settings
}

/// What forwards by the host's end: to be as the host as a whole. Where that is closed, these are
/// opened with it.
pub(super) fn switches(name: &str) -> Vec<(String, &'static str)> {
    let mut kernel = Settings::default();
    let mut is_on = |family: &&str| {
        kernel.is(&format!("{family}/conf/all/forwarding"), "1").unwrap_or_default()
    };
    let on = ["ipv4", "ipv6"].into_iter().filter(|family| is_on(family));
    on.map(|family| (format!("{family}/conf/{name}/forwarding"), "1")).collect()
}

fn forward(name: &str) -> std::io::Result<()> {
    let mut kernel = Settings::default();
    switches(name).iter().try_for_each(|(path, value)| kernel.set_if_there(path, value))
}

fn ipv6_values(name: &str) -> [(String, &'static str); 4] {
    [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")]
        .map(|(setting, value)| (format!("ipv6/conf/{name}/{setting}"), value))
}

/// Sets all that can be set, and says what could not first.
fn set_all(settings: &[(String, &str)]) -> std::io::Result<()> {
    let mut kernel = Settings::default();
    let mut done = Ok(());
    for (path, value) in settings {
        let set = kernel.set(path, value);
        done = done.and(set);
    }
    done
}

/// Both ends have fixed link-local addresses, by which each is the other's router.
async fn ipv6((host, name): (&Links, &str), inside: &Links, ip: Ipv6Addr) -> Result<(), LinkError> {
    for (links, name, link_local) in [(host, name, HOST_LL), (inside, INSIDE, INSIDE_LL)] {
        links.add_link_address(name, IpNet::new_assert(link_local.into(), 64)).await?;
    }
    inside.add_address(INSIDE, IpNet::V6(ip.into())).await?;
    inside.set_route(Ipv6Net::default().into(), Some(HOST_LL.into()), INSIDE).await?;
    host.set_route(IpNet::V6(ip.into()), Some(INSIDE_LL.into()), name).await
}

/// Brings the host's routes to a network in step: to each subnet that no other route of the host
/// touches. Says which subnets are left out, and for which route. `now` is the host's state.
///
/// # Errors
/// The kernel refuses a step.
pub async fn follow_routes(
    uplink: &Uplink,
    subnets: &[IpNet],
    (host, now): (&Links, &State),
) -> Result<Vec<(IpNet, IpNet)>, UplinkError> {
    let own = now.link(&uplink.ifname).map(|link| link.index);
    let routes = &now.routes;
    let others: Vec<IpNet> = routes
        .iter()
        .filter(|route| route.interface != own)
        .map(|route| route.destination)
        .collect();
    let has = |subnet: &IpNet| {
        routes.iter().any(|route| route.interface == own && route.destination == *subnet)
    };
    let mut overlaps = Vec::new();
    for subnet in subnets {
        let via = match subnet {
            IpNet::V4(_) => IpAddr::V4(uplink.inside),
            IpNet::V6(_) if uplink.inside6.is_none() => continue,
            IpNet::V6(_) => IpAddr::V6(INSIDE_LL),
        };
        match (overlapping(subnet, &others), has(subnet)) {
            (None, false) => host.set_route(*subnet, Some(via), &uplink.ifname).await?,
            (Some(other), there) => {
                if there {
                    host.remove_route(*subnet, &uplink.ifname).await?;
                }
                overlaps.push((*subnet, other));
            }
            (None, true) => {}
        }
    }
    Ok(overlaps)
}

/// Leads nothing of the host to these subnets any more.
///
/// # Errors
/// The kernel keeps a route.
pub async fn remove_routes(
    uplink: &Uplink,
    subnets: &[IpNet],
    (host, now): (&Links, &State),
) -> Result<(), UplinkError> {
    let Some(link) = now.link(&uplink.ifname) else { return Ok(()) };
    for subnet in subnets.iter().filter(|subnet| now.has_route(link, **subnet)) {
        host.remove_route(*subnet, &uplink.ifname).await?;
    }
    Ok(())
}

/// A route that shares addresses with the subnet; those that lead everywhere share with all and do
/// not count.
fn overlapping(subnet: &IpNet, routes: &[IpNet]) -> Option<IpNet> {
    let touches = |route: &&IpNet| {
        !leads_everywhere(route) && (route.contains(subnet) || subnet.contains(*route))
    };
    routes.iter().find(touches).copied()
}

pub(super) fn pair_net(ip: Ipv4Addr) -> IpNet {
    IpNet::new_assert(ip.into(), 31)
}

/// The host's address of an uplink that is there.
fn adopted(addresses: &[IpNet]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|address| match address.addr() {
        IpAddr::V4(ip) if is_of_pool(ip) && address.prefix_len() == 31 => Some(ip),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    })
}

fn is_of_pool(ip: Ipv4Addr) -> bool {
    POOLS.iter().any(|(pool, _)| u32::from(ip) & !(PAIRS * 2 - 1) == u32::from(*pool))
}

/// The lower address of the first free pair. The search begins where the network's id says, so that
/// a network mostly keeps its pair.
fn free_pair(network: NetworkId, taken: &[IpNet]) -> Option<Ipv4Addr> {
    let [a, b, ..] = *network.bytes();
    let start = u32::from(u16::from_be_bytes([a, b])) % PAIRS;
    POOLS.iter().find_map(|(pool, block)| {
        let meant: Vec<IpNet> =
            taken.iter().copied().filter(|route| route.prefix_len() >= *block).collect();
        let touches =
            |pair: IpNet| meant.iter().any(|route| route.contains(&pair) || pair.contains(route));
        let pairs = (0..PAIRS).map(|n| Ipv4Addr::from(u32::from(*pool) + (start + n) % PAIRS * 2));
        let mut free = pairs.filter(|pair| !touches(pair_net(*pair)));
        free.next()
    })
}

/// The first 48 bits of a node's unique-local addresses.
fn global_id(node: NodeId) -> [u8; 6] {
    let hash = digest::digest(&digest::SHA256, node.as_str().as_bytes());
    let mut octets = [0xfd; 6];
    for (to, from) in octets.iter_mut().skip(1).zip(hash.as_ref()) {
        *to = *from;
    }
    octets
}

fn unique_local(node: NodeId, network: NetworkId) -> Ipv6Addr {
    let mut octets = [0; 16];
    for (to, from) in octets.iter_mut().zip(global_id(node)) {
        *to = from;
    }
    for (to, from) in octets.iter_mut().skip(8).zip(network.bytes()) {
        *to = *from;
    }
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_pair_lies_in_no_route_and_is_found_again() {
        let network = NetworkId::from_random([0xff; 16]);
        let first = free_pair(network, &[net("0.0.0.0/0")]).unwrap();
        assert_eq!(u32::from(first) % 2, 0);
        let next = free_pair(network, &[pair_net(first)]).unwrap();
        assert_ne!(first, next);
        // A link of such addresses, and a VPN that takes everything.
        let other = free_pair(network, &[net("169.254.0.0/16")]).unwrap();
        assert!(net("198.19.96.0/19").contains(&IpAddr::V4(other)), "{other}");
        let links = [net("169.254.0.0/16"), net("198.18.0.0/15")];
        let third = free_pair(network, &links).unwrap();
        assert!(net("240.0.96.0/19").contains(&IpAddr::V4(third)), "{third}");
        assert_eq!(free_pair(network, &[&links[..], &[net("240.0.0.0/4")]].concat()), None);
        for vpn in [["0.0.0.0/1", "128.0.0.0/1"], ["168.0.0.0/6", "160.0.0.0/5"]] {
            assert_eq!(free_pair(network, &vpn.map(net)), Some(first), "{vpn:?}");
        }
        assert_eq!(adopted(&[net("198.19.96.2/31")]), Some([198, 19, 96, 2].into()));
        assert_eq!(
            adopted(&[net("10.0.0.1/31"), net("169.254.96.2/31")]),
            Some([169, 254, 96, 2].into())
        );
        assert_eq!(adopted(&[net("169.254.1.2/31"), net("169.254.96.2/16")]), None);
    }

    #[test]
    fn the_pool_wraps_around() {
        let network =
            NetworkId::from_random([0x0f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let last = free_pair(network, &[]).unwrap();
        assert_eq!(last, Ipv4Addr::new(169, 254, 127, 254));
        assert_eq!(free_pair(network, &[pair_net(last)]), Some(POOLS[0].0));
    }

    #[test]
    fn unique_local_addresses_differ_by_node_and_network() {
        let node = |n: u8| NodeId::of_public_key(&[n]);
        let network = |n: u8| NetworkId::from_random([n; 16]);
        let all: BTreeSet<_> = [(1, 1), (1, 2), (2, 1)]
            .map(|(a, b)| unique_local(node(a), network(b)))
            .into_iter()
            .collect();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|ip| ip.is_unique_local()));
        let own = all.iter().filter(|ip| is_inside(node(1), (**ip).into()));
        assert_eq!(own.count(), 2);
        for (ip, inside) in [
            ("169.254.96.1", true),
            ("169.254.127.255", true),
            ("169.254.128.0", false),
            ("198.19.96.1", true),
            ("240.0.127.255", true),
        ] {
            assert_eq!(is_inside(node(1), ip.parse().unwrap()), inside, "{ip}");
        }
    }

    #[test]
    fn names_of_uplinks() {
        let name = ifname(NetworkId::from_random([0xab; 16]));
        assert_eq!(name, "vxmabababababab");
        assert!(is_uplink(&name));
        for other in ["vxm", "vxmesh0", "vxm-abababababa", "eth0"] {
            assert!(!is_uplink(other), "{other}");
        }
    }

    #[test]
    fn overlaps_are_found_both_ways_and_defaults_are_none() {
        let everywhere = ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "::/1", "2000::/3"];
        let mut routes = vec![net("10.1.0.0/16"), net("10.2.3.0/24")];
        routes.extend(everywhere.map(net));
        for (subnet, other) in [
            ("10.1.4.0/24", Some("10.1.0.0/16")),
            ("10.2.0.0/16", Some("10.2.3.0/24")),
            ("10.1.0.0/16", Some("10.1.0.0/16")),
            ("10.3.0.0/16", None),
            ("fd00::/64", None),
        ] {
            assert_eq!(overlapping(&net(subnet), &routes), other.map(net), "{subnet}");
        }
    }
}
