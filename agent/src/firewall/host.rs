//! The table in the host's namespace: [`table`].
//!
//! ```text
//! uplink -> elsewhere           source becomes the host's address, or it is dropped; MSS fits
//! elsewhere -> uplink           only what belongs to such a connection, or to a published port
//! elsewhere -> elsewhere        as before: [`closed`](super::closed)
//! anyone -> published port      where it is published ([`ports`](super::ports)): destination becomes the network's uplink and a port
//!                               there; the source stays, but for connections from the host's loopback and from networks of this host
//! ```

use std::net::{IpAddr, Ipv6Addr};

use vxmesh_proto::reason::DropReason;

pub use super::{
    closed::{Closed, Open},
    ports::Port,
};
use super::{
    flows::Flow,
    frame::{Field, is_one_of, key, port_has_not},
    ports::{From, loopback},
    rule::{
        Protocol, Rule, accept, answer, clamp_mss, destination, drop, drop_as, established, input,
        is_ip, masquerade, octets, output, output_not, published, source,
    },
    table::{Chain, Hook, Kind, Set, Table},
};

/// Before connections are tracked and addresses are rewritten (`NF_IP_PRI_RAW`).
const RAW: i32 = -300;
/// Before others filter what is for the host itself: nobody waits for an answer that they would
/// keep back.
const BEFORE_FILTERS: i32 = -10;
/// After addresses were rewritten (`NF_IP_PRI_NAT_SRC`), and after what others do there.
const LAST: i32 = 300;

/// The host's end of a network's uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The interface.
    pub ifname: String,
    /// The addresses of the other end, as which the network's sandboxes come here.
    pub ips: Vec<IpAddr>,
}

/// The counter of what would leave with an address that only this host knows.
pub const INNER_SOURCE: &str = DropReason::InnerSource.as_str();

/// Whether a flow goes another way than it would if it began now: to a port that is published no
/// more or leads elsewhere, past one that was not published yet, or out of a network without having
/// been rewritten. `is_uplink` knows the addresses of uplinks' insides, of now and of before,
/// `is_local` the host's.
#[must_use]
pub fn is_stale(
    flow: &Flow,
    is_uplink: impl Fn(IpAddr) -> bool,
    is_local: impl Fn(IpAddr) -> bool,
    ports: &[Port],
) -> bool {
    // An address that went to another host takes its flows along.
    let here = is_local(flow.to.ip());
    let leads = |port: &Port| here && port.takes(flow) && port.to.contains(&flow.server);
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

/// The table for these uplinks, all of whose interfaces have names that match `all`, and these
/// published ports.
#[must_use]
pub fn table(all: &str, uplinks: &[Uplink], ports: &[Port], closed: &Closed) -> Table {
    let raw = vec![
        Rule::new("the host's loopback is not for networks")
            .and(input(all))
            .and(destination(loopback()))
            .and(drop()),
    ];
    let mut forward = vec![
        Rule::new("segments fit the way out").and(input(all)).and(clamp_mss()),
        Rule::new("segments fit the way in").and(output(all)).and(clamp_mss()),
        // Somebody's rules led a client to an endpoint itself; what they rewrote is undone behind
        // this chain.
        Rule::new("answers to clients that were led in")
            .and(input(all))
            .and(published())
            .and(answer())
            .and(accept()),
    ];
    forward.extend(strays(all));
    forward.extend([
        Rule::new("answers").and(output(all)).and(established()).and(accept()),
        Rule::new("published ports").and(output(all)).and(published()).and(accept()),
        Rule::new("nothing else into a network, also from another one")
            .and(output(all))
            .and(drop()),
    ]);
    forward.extend(closed.rules(all));
    let redirects =
        |from: From| -> Vec<Rule> { ports.iter().flat_map(|port| port.redirects(from)).collect() };
    let refusals = ports.iter().flat_map(Port::refusals).collect();
    let chain = |name, kind, hook, priority, rules| Chain::at(name, (kind, hook, priority), rules);
    let mut chains = closed.chains();
    chains.extend([
        chain("raw", Kind::Filter, Hook::Prerouting, RAW, raw),
        chain("prerouting", Kind::Nat, Hook::Prerouting, -100, redirects(From::Elsewhere)),
        chain("output", Kind::Nat, Hook::Output, -100, redirects(From::ThisHost)),
        chain("input", Kind::Filter, Hook::Input, BEFORE_FILTERS, refusals),
        chain("forward", Kind::Filter, Hook::Forward, 0, forward),
        chain("postrouting", Kind::Nat, Hook::Postrouting, 100, sources(all, uplinks)),
        chain("leaving", Kind::Filter, Hook::Postrouting, LAST, leaving(all)),
    ]);
    Table {
        counters: vec![INNER_SOURCE],
        sets: addresses(uplinks).into_iter().chain(closed.sets()).collect(),
        chains,
        ..Table::default()
    }
}

/// Fields and sets by IP version: the source, who sends by which uplink, and who sends by any.
const VERSIONS: [(bool, Field, &str, &str); 2] = [
    (true, Field::network(12, 4), "uplinks4", "inner4"),
    (false, Field::network(8, 16), "uplinks6", "inner6"),
];

/// An uplink carries what its own end inside sends, and of that nothing leaves that was not
/// rewritten: neither what belongs to no connection, nor what somebody's rules keep from being
/// tracked. These rules are met by every packet, and so do not grow with the networks.
fn strays(all: &str) -> impl Iterator<Item = Rule> {
    VERSIONS.into_iter().map(move |(ipv4, source, uplinks, _)| {
        let rule = Rule::new(format!("other sources of IP version {}", if ipv4 { 4 } else { 6 }));
        let rule = rule.and(input(all)).and(is_ip(ipv4)).and(port_has_not(source, uplinks));
        rule.and(drop_as(INNER_SOURCE))
    })
}

fn leaving(all: &str) -> Vec<Rule> {
    let rule = |(ipv4, source, _, inner): (bool, Field, &str, &'static str)| {
        let rule = Rule::new(format!("known here alone, IP version {}", if ipv4 { 4 } else { 6 }));
        let rule = rule.and(output_not(all)).and(is_ip(ipv4)).and(is_one_of(source, inner));
        rule.and(drop_as(INNER_SOURCE))
    };
    VERSIONS.map(rule).to_vec()
}

/// The sets that these rules use. nft(8)'s numbers of types: ipv4_addr, ipv6_addr, behind ifname
/// where that belongs to it.
fn addresses(uplinks: &[Uplink]) -> Vec<Set> {
    const IFNAME: u32 = 41;
    let set = |name, key_type, key_len, keys| Set {
        by_rules: false,
        name,
        key_type,
        key_len,
        size: None,
        stays: false,
        keys,
    };
    let sets = VERSIONS.into_iter().flat_map(|(ipv4, _, uplinks_name, inner)| {
        let (kind, len) = if ipv4 { (7, 4) } else { (8, 16) };
        let all = uplinks.iter().flat_map(|uplink| uplink.ips.iter().map(move |ip| (uplink, *ip)));
        let of: Vec<_> = all.filter(|(_, ip)| ip.is_ipv4() == ipv4).collect();
        let by = of.iter().map(|(uplink, ip)| key(&uplink.ifname, &octets(*ip))).collect();
        let ips = of.iter().map(|(_, ip)| octets(*ip)).collect();
        [set(uplinks_name, IFNAME << 6 | kind, 16 + len, by), set(inner, kind, len, ips)]
    });
    sets.collect()
}

fn sources(all: &str, uplinks: &[Uplink]) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new("from the host's loopback to published ports")
            .and(output(all))
            .and(source(loopback()))
            .and(masquerade()),
    ];
    for (ipv4, source, _, inner) in VERSIONS {
        let version = if ipv4 { 4 } else { 6 };
        rules.push(
            Rule::new(format!("from networks to published ports, IP version {version}"))
                .and(output(all))
                .and(is_ip(ipv4))
                .and(is_one_of(source, inner))
                .and(masquerade()),
        );
    }
    for Uplink { ifname, ips } in uplinks {
        for ip in ips {
            let own = || source((*ip).into());
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
    use super::{super::clients::Clients, *};

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
            clients: Clients::default(),
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
        // What was led on by an address that another host has by now.
        assert!(!is_stale(&redirected, is_uplink, is_local, &on_own));
        assert!(is_stale(&redirected, is_uplink, |_| false, &on_own));
    }
}
