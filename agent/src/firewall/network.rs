//! The table inside a network's namespace: [`table`].
//!
//! ```text
//! sandbox -> br0 -> uplink      source becomes the uplink's address, or it is dropped; MSS fits; only with an address of the network
//! host -> uplink -> node        source becomes the node's address, unless the connection is to a published port
//! node -> uplink                answers to clients of published ports, and nothing else
//! host -> uplink's own port     destination becomes the sandbox that publishes it, the client's address stays
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use vxmesh_proto::reason::DropReason;

use super::{
    flows::Flow,
    host::INNER_SOURCE,
    rule::{
        Protocol, Rule, accept, answer, clamp_mss, destination, destination_port, drop, drop_as,
        input, input_not, is_ip, masquerade, new, output, output_not, published, redirect_to,
        source, source_not,
    },
    table::{Chain, Hook, Kind, Table},
};

/// After addresses were rewritten (`NF_IP_PRI_NAT_SRC`).
const LAST: i32 = 300;
const ISOLATED: &str = DropReason::Isolated.as_str();
const NOT_A_ROUTER: &str = DropReason::NotARouter.as_str();

/// A port of the uplink that leads to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entrance {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The uplink's address and port.
    pub at: SocketAddr,
    /// The sandbox's.
    pub to: SocketAddr,
}

/// Interfaces in the namespace, by name.
#[derive(Clone, Copy, Debug)]
pub struct Interfaces<'a> {
    /// The bridge, where sandboxes meet the gateway.
    pub bridge: &'a str,
    /// This node as an endpoint of its own.
    pub node: &'a str,
    /// The way to the host.
    pub uplink: &'a str,
    /// Its addresses.
    pub uplink_ips: &'a [IpAddr],
}

/// The table of a network with these subnets; `isolated` ones carry nothing from one endpoint to
/// another.
#[must_use]
pub fn table(
    interfaces: Interfaces<'_>,
    subnets: &[IpNet],
    isolated: bool,
    entrances: &[Entrance],
) -> Table {
    let Interfaces { bridge, node, uplink, uplink_ips } = interfaces;
    let prerouting = entrances
        .iter()
        .map(|entrance| {
            let comment =
                format!("{} {} to {}", entrance.protocol.as_str(), entrance.at, entrance.to);
            Rule::new(comment)
                .and(input(uplink))
                .and(destination(IpNet::from(entrance.at.ip())))
                .and(destination_port(entrance.protocol, entrance.at.port()))
                .and(redirect_to(entrance.to.ip(), entrance.to.port()))
        })
        .collect();
    let mut forward: Vec<Rule> = Vec::new();
    if isolated {
        let inside = Rule::new("endpoints are kept from each other").and(input_not(uplink));
        forward.push(inside.and(output_not(uplink)).and(drop_as(ISOLATED)));
    }
    for ipv4 in [true, false] {
        let of_version: Vec<IpNet> =
            subnets.iter().copied().filter(|net| net.addr().is_ipv4() == ipv4).collect();
        let version = if ipv4 { "IPv4" } else { "IPv6" };
        let mut stray = Rule::new(format!("foreign {version} sources do not leave"))
            .and(input(bridge))
            .and(output(uplink))
            .and(is_ip(ipv4));
        for net in of_version {
            stray = stray.and(source_not(net));
        }
        forward.push(stray.and(drop()));
    }
    for (way, interface) in [("out", uplink), ("in", node)] {
        let clamp = Rule::new(format!("segments fit the way {way}"));
        forward.push(clamp.and(output(interface)).and(clamp_mss()));
    }
    // Others in the network know the node's MAC.
    let by_node = Rule::new("the node is no way out for others").and(input(node));
    forward.push(by_node.and(output(uplink)).and(new()).and(drop_as(NOT_A_ROUTER)));
    let postrouting = vec![
        Rule::new("clients of published ports keep their addresses").and(published()).and(accept()),
        Rule::new("the outside sees the uplink").and(output(uplink)).and(masquerade()),
        Rule::new("the network sees the node")
            .and(input(uplink))
            .and(output(node))
            .and(masquerade()),
    ];
    let chain = |name, kind, hook, priority, rules| Chain::at(name, (kind, hook, priority), rules);
    Table {
        chains: vec![
            chain("prerouting", Kind::Nat, Hook::Prerouting, -100, prerouting),
            chain("forward", Kind::Filter, Hook::Forward, 0, forward),
            chain("postrouting", Kind::Nat, Hook::Postrouting, 100, postrouting),
            chain("leaving", Kind::Filter, Hook::Postrouting, LAST, leaving(uplink, uplink_ips)),
        ],
        counters: vec![ISOLATED, INNER_SOURCE, NOT_A_ROUTER],
        ..Table::default()
    }
}

/// The kernel does not rewrite what it does not count to a connection: a late RST, a segment
/// outside of the window, an ICMP error about nothing. The host hears this network's own addresses
/// in answers to itself alone.
fn leaving(uplink: &str, ips: &[IpAddr]) -> Vec<Rule> {
    // Its neighbours on the uplink are asked for by link-local addresses, or before it has any.
    let link_local = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).into();
    let nameless = IpNet::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let own = ips.iter().map(|ip| IpNet::from(*ip)).chain([link_local, nameless]);
    let passes = |net: IpNet| {
        Rule::new(format!("from {net}")).and(output(uplink)).and(source(net)).and(accept())
    };
    let mut rules: Vec<Rule> = own.map(passes).collect();
    rules.push(Rule::new("answers to the host").and(output(uplink)).and(answer()).and(accept()));
    let rest = Rule::new("addresses of the network do not leave").and(output(uplink));
    rules.push(rest.and(drop_as(INNER_SOURCE)));
    rules
}

/// Whether a flow goes another way than it would if it began now; see [`super::host::is_stale`].
#[must_use]
pub fn is_stale(flow: &Flow, subnets: &[IpNet], entrances: &[Entrance]) -> bool {
    let at =
        |entrance: &&Entrance| flow.protocol == Some(entrance.protocol) && flow.to == entrance.at;
    let entrance = entrances.iter().find(at);
    if !flow.is_direct() {
        return entrance.is_none_or(|entrance| entrance.to != flow.server);
    }
    let within = |end: SocketAddr| subnets.iter().any(|net| net.contains(&end.ip()));
    let before = flow.protocol == Some(Protocol::Udp) && entrance.is_some();
    before || (flow.is_bare() && within(flow.from) != within(flow.to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_of_other_rules_are_stale() {
        let [client, uplink, a, b] =
            ["10.0.0.9:1000", "169.254.96.1:53", "10.5.0.2:53", "10.5.0.3:53"]
                .map(|end| end.parse::<SocketAddr>().unwrap());
        let to = |to| Entrance { protocol: Protocol::Udp, at: uplink, to };
        let flow = |from, to, server, client, answered| Flow {
            protocol: Some(Protocol::Udp),
            from,
            to,
            server,
            client,
            answered,
        };
        let published = flow(client, uplink, a, client, true);
        let past = flow(client, uplink, uplink, client, false);
        let bare = flow(a, client, client, a, false);
        let masked = flow(a, client, client, uplink, false);
        let inner = flow(a, b, b, a, false);
        let subnets = ["10.5.0.0/24".parse().unwrap()];
        for (entrances, stale) in [
            (&[][..], vec![published, bare]),
            (&[to(a)], vec![past, bare]),
            (&[to(b)], vec![published, past, bare]),
        ] {
            let all = [published, past, bare, masked, inner];
            let found: Vec<Flow> =
                all.into_iter().filter(|flow| is_stale(flow, &subnets, entrances)).collect();
            assert_eq!(found, stale, "{entrances:?}");
        }
    }
}
