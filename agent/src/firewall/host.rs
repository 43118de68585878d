//! The table in the host's namespace: [`table`].
//!
//! ```text
//! uplink -> elsewhere           source becomes the host's address; MSS fits
//! elsewhere -> uplink           only what belongs to such a connection, or to a published port
//! elsewhere -> elsewhere        as before: between interfaces that did not forward nothing passes, but for what a bridge switches
//! anyone -> published port      destination becomes the network's uplink and a port there; the source stays, but for
//!                               connections from the host's loopback and from the network itself
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use vxmesh_proto::addr::MacAddr;

use super::{
    flows::Flow,
    frame::{DESTINATION, is_not},
    rule::{
        Clause, Protocol, Rule, accept, clamp_mss, destination, destination_is_local,
        destination_not, destination_port, drop, established, from_bridge, input, is_ip, jump,
        masquerade, output, output_not, published, redirect_to, source,
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
    /// The MAC by which neighbours call the host there.
    pub mac: Option<MacAddr>,
}

/// What stays closed though the host forwards.
const GUARD: &str = "guard";

const fn version(ipv4: bool) -> u8 {
    if ipv4 { 4 } else { 6 }
}

/// Whether a flow goes another way than it would if it began now: to a port that is published no more or leads elsewhere,
/// past one that was not published yet, or out of a network without having been rewritten. `is_uplink` knows the addresses
/// of uplinks' insides, of now and of before, `is_local` the host's.
#[must_use]
pub fn is_stale(
    flow: &Flow,
    is_uplink: impl Fn(IpAddr) -> bool,
    is_local: impl Fn(IpAddr) -> bool,
    ports: &[Port],
) -> bool {
    let leads = |port: &Port| port.takes(flow) && port.to.contains(&flow.server);
    if is_uplink(flow.server.ip()) && !flow.is_direct() {
        return !ports.iter().any(leads);
    }
    let before = flow.protocol == Some(Protocol::Udp)
        && flow.is_direct()
        && flow.to.ip() != IpAddr::V6(Ipv6Addr::LOCALHOST)
        && is_local(flow.to.ip())
        && ports.iter().any(|port| port.takes(flow));
    let between = flow.is_bare()
        && is_uplink(flow.from.ip())
        && !is_uplink(flow.to.ip())
        && !is_local(flow.to.ip());
    before || between
}

impl Port {
    /// Whether a flow is meant for it.
    fn takes(&self, flow: &Flow) -> bool {
        let ip = flow.to.ip();
        flow.protocol == Some(self.protocol)
            && flow.to.port() == self.port
            && self.ip.is_none_or(|own| own.is_unspecified() || own == ip)
            && self.to.iter().any(|to| to.is_ipv4() == ip.is_ipv4())
    }
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
    forward.extend(hosts.iter().flat_map(Unrouted::guarded));
    let guard = hosts.iter().map(|Unrouted { ifname, ipv4, .. }| {
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

impl Unrouted {
    /// With `br_netfilter`, frames that a bridge only switches come to this hook, too, as if from the bridge and to it. Those
    /// that the host would route back go to the host's own MAC, and are guarded as all others.
    fn guarded(&self) -> [Rule; 2] {
        let Self { ifname, ipv4, mac } = self;
        let from = |what: &str| {
            Rule::new(format!("{what} {ifname}, IP version {}", version(*ipv4)))
                .and(input(ifname))
                .and(is_ip(*ipv4))
        };
        let to_others = mac.map(|mac| is_not(DESTINATION, &mac.0)).unwrap_or_default();
        [
            from("switched by").and(output(ifname)).and(from_bridge()).and(to_others).and(accept()),
            from("from").and(jump(GUARD)),
        ]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::frame::is;

    #[test]
    fn what_a_bridge_switches_passes_before_anything_is_guarded() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        for mac in [Some(mac), None] {
            let host = Unrouted { ifname: "br0".to_owned(), ipv4: true, mac };
            let table = table("vxm*", &[], &[], &[host]);
            let forward = table.chains.iter().find(|chain| chain.name == "forward").unwrap();
            let of = |rule: &&Rule| rule.exprs.starts_with(&input("br0").0);
            let rules: Vec<&Rule> = forward.rules.iter().filter(of).collect();
            let [switched, guarded] = rules.as_slice() else { panic!("{rules:?}") };
            let says = |rule: &Rule, clause: Clause| {
                rule.exprs.windows(clause.0.len()).any(|exprs| exprs == clause.0)
            };
            assert!(says(switched, output("br0")) && says(switched, from_bridge()));
            assert!(says(switched, accept()) && says(guarded, jump(GUARD)));
            if let Some(mac) = mac {
                assert!(says(switched, is_not(DESTINATION, &mac.0)));
                assert!(!says(switched, is(DESTINATION, &mac.0)));
            }
        }
    }

    fn flow(from: &str, to: &str, server: &str, client: &str, answered: bool) -> Flow {
        let [from, to, server, client] = [from, to, server, client].map(|it| it.parse().unwrap());
        Flow { protocol: Some(Protocol::Udp), from, to, server, client, answered }
    }

    #[test]
    fn flows_of_other_rules_are_stale() {
        let port = |ip: Option<&str>, to: &str| Port {
            protocol: Protocol::Udp,
            ip: ip.map(|ip| ip.parse().unwrap()),
            port: 53,
            to: vec![to.parse().unwrap()],
        };
        let is_uplink = |ip: IpAddr| ip.to_string().starts_with("169.254.96.");
        let is_local = |ip: IpAddr| ip.to_string() == "10.0.0.1";
        let redirected =
            flow("10.0.0.9:1000", "10.0.0.1:53", "169.254.96.1:53", "10.0.0.9:1000", true);
        let past = flow("10.0.0.9:1000", "10.0.0.1:53", "10.0.0.1:53", "10.0.0.9:1000", true);
        let through = flow("10.0.0.9:1000", "10.7.0.1:53", "10.7.0.1:53", "10.0.0.9:1000", true);
        let bare =
            flow("169.254.96.1:1000", "10.0.0.9:53", "10.0.0.9:53", "169.254.96.1:1000", false);
        let masked = Flow { client: "10.0.0.1:1000".parse().unwrap(), ..bare };
        let to_host = Flow {
            to: "10.0.0.1:9".parse().unwrap(),
            server: "10.0.0.1:9".parse().unwrap(),
            ..bare
        };
        let docker = flow("10.0.0.9:1000", "10.0.0.1:53", "172.17.0.2:53", "10.0.0.9:1000", true);
        let all = [redirected, past, through, bare, masked, to_host, docker];
        let published = [port(None, "169.254.96.1:53")];
        let elsewhere = [port(None, "169.254.96.3:53")];
        let on_other = [port(Some("10.0.0.2"), "169.254.96.1:53")];
        let on_own = [port(Some("10.0.0.1"), "169.254.96.1:53")];
        let of_v6 = [port(None, "[fd00::1]:53")];
        for (ports, stale) in [
            (&[][..], vec![redirected, bare]),
            (&published, vec![past, bare]),
            (&elsewhere, vec![redirected, past, bare]),
            (&on_other, vec![redirected, bare]),
            (&on_own, vec![past, bare]),
            (&of_v6, vec![redirected, bare]),
        ] {
            let stale_now = |flow: &Flow| is_stale(flow, is_uplink, is_local, ports);
            let found: Vec<Flow> = all.into_iter().filter(stale_now).collect();
            assert_eq!(found, stale, "{ports:?}");
        }
    }
}
