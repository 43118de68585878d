//! The table in the host's namespace: [`table`].
//!
//! ```text
//! uplink -> elsewhere           source becomes the host's address; MSS fits
//! elsewhere -> uplink           only what belongs to such a connection, or to a published port
//! elsewhere -> elsewhere        as before: between interfaces that did not forward nothing passes
//! anyone -> published port      destination becomes the network's uplink and a port there; the source stays, but for
//!                               connections from the host's loopback and from the network itself
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::{
    rule::{
        Clause, Protocol, Rule, accept, clamp_mss, destination, destination_is_local,
        destination_not, destination_port, drop, established, input, is_ip, jump, masquerade,
        output, output_not, published, redirect_to, source,
    },
    table::{Chain, Hook, Kind, Table},
};

/// Before connections are tracked and addresses are rewritten (`NF_IP_PRI_RAW`).
const RAW: i32 = -300;

/// The host's end of a network's uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The interface.
    pub ifname: String,
    /// The addresses of the other end, as which the network's sandboxes come here.
    pub ips: Vec<IpAddr>,
}

/// A port of the host that leads to a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address on which it is published; all of the host's otherwise, or of one IP version if it is unspecified.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// The uplink's address and port, one of each IP version at most.
    pub to: Vec<SocketAddr>,
}

/// An interface of the host that packets of one IP version did not pass from and to before networks had a way out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unrouted {
    /// The interface.
    pub ifname: String,
    /// The IP version.
    pub ipv4: bool,
}

/// What stays closed though the host forwards.
const GUARD: &str = "guard";

const fn version(ipv4: bool) -> u8 {
    if ipv4 { 4 } else { 6 }
}

fn loopback() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))
}

/// The table for these uplinks, all of whose interfaces have names that match `all`, and these published ports.
#[must_use]
pub fn table(all: &str, uplinks: &[Uplink], ports: &[Port], hosts: &[Unrouted]) -> Table {
    let raw = vec![
        Rule::new("the host's loopback is not for networks")
            .and(input(all))
            .and(destination(loopback()))
            .and(drop()),
    ];
    let mut forward = vec![
        Rule::new("segments fit the way out").and(input(all)).and(clamp_mss()),
        Rule::new("segments fit the way in").and(output(all)).and(clamp_mss()),
        Rule::new("answers").and(output(all)).and(established()).and(accept()),
        Rule::new("published ports").and(output(all)).and(published()).and(accept()),
        Rule::new("nothing else into a network, also from another one")
            .and(output(all))
            .and(drop()),
    ];
    forward.extend(hosts.iter().map(|Unrouted { ifname, ipv4 }| {
        Rule::new(format!("from {ifname}, IP version {}", version(*ipv4)))
            .and(input(ifname))
            .and(is_ip(*ipv4))
            .and(jump(GUARD))
    }));
    let guard = hosts.iter().map(|Unrouted { ifname, ipv4 }| {
        Rule::new(format!("{ifname} is no router of IP version {}", version(*ipv4)))
            .and(output(ifname))
            .and(is_ip(*ipv4))
            .and(drop())
    });
    let redirects: Vec<Rule> = ports.iter().flat_map(redirects).collect();
    let chain = |name, kind, hook, priority, rules| Chain::at(name, (kind, hook, priority), rules);
    Table {
        chains: vec![
            Chain { name: GUARD, base: None, rules: guard.collect() },
            chain("raw", Kind::Filter, Hook::Prerouting, RAW, raw),
            chain("prerouting", Kind::Nat, Hook::Prerouting, -100, redirects.clone()),
            chain("output", Kind::Nat, Hook::Output, -100, redirects),
            chain("forward", Kind::Filter, Hook::Forward, 0, forward),
            chain("postrouting", Kind::Nat, Hook::Postrouting, 100, sources(all, uplinks)),
        ],
        ..Table::default()
    }
}

fn redirects(port: &Port) -> Vec<Rule> {
    let rule = |to: &SocketAddr| {
        let ipv4 = to.is_ipv4();
        let bind = match port.ip {
            Some(ip) if !ip.is_unspecified() => destination(ip.into()),
            Some(_) | None => destination_is_local(),
        };
        let at = port.ip.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
        let comment = format!("{} {at} {} to {to}", port.protocol.as_str(), port.port);
        Rule::new(comment)
            .and(is_ip(ipv4))
            .and(bind)
            .and(not_own_loopback(ipv4))
            .and(destination_port(port.protocol, port.port))
            .and(redirect_to(to.ip(), to.port()))
    };
    port.to.iter().map(rule).collect()
}

/// The kernel routes nothing from ::1 to another interface, so such a connection is better refused than lost.
fn not_own_loopback(ipv4: bool) -> Clause {
    if ipv4 { Clause::default() } else { destination_not(IpAddr::V6(Ipv6Addr::LOCALHOST).into()) }
}

fn sources(all: &str, uplinks: &[Uplink]) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new("from the host's loopback to published ports")
            .and(output(all))
            .and(source(loopback()))
            .and(masquerade()),
    ];
    for Uplink { ifname, ips } in uplinks {
        for ip in ips {
            let own = || source(IpNet::from(*ip));
            rules.push(
                Rule::new(format!("from {ifname} to its own published ports, {ip}"))
                    .and(output(ifname))
                    .and(own())
                    .and(masquerade()),
            );
            rules.push(
                Rule::new(format!("from {ifname} to the outside, {ip}"))
                    .and(output_not(all))
                    .and(own())
                    .and(masquerade()),
            );
        }
    }
    rules
}
