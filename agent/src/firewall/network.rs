//! The table inside a network's namespace: [`table`].
//!
//! ```text
//! sandbox -> br0 -> uplink      source becomes the uplink's address, or it is dropped; MSS fits; only with an address of the network
//! host -> uplink -> node        source becomes the node's address, unless the connection is to a published port
//! node -> uplink                answers to clients of published ports, and nothing else
//! host -> uplink's own port     destination becomes the sandbox that publishes it, the client's address stays
//! container -> name server      a question to one of the host's goes to the gateway, which knows the mesh's names
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use vxmesh_proto::reason::DropReason;

use super::{
    flows::Flow,
    frame::{Field, is_one_of},
    host::INNER_SOURCE,
    rule::{
        Protocol, Rule, accept, answer, clamp_mss, destination, destination_port, drop, drop_as,
        input, input_not, is_ip, masquerade, new, octets, output, output_not, published,
        redirect_to, source, source_not,
    },
    table::{Chain, Hook, Kind, Set, Table},
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

/// Questions about names that the gateway answers, although its clients ask others: an engine asks
/// the host's name servers for its containers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Questions<'a> {
    /// Who asks.
    pub clients: &'a [IpAddr],
    /// Whom they ask.
    pub servers: &'a [IpAddr],
    /// Where the network's own name servers are.
    pub gateways: &'a [IpAddr],
}

/// Where name servers are asked.
const DNS: u16 = 53;
/// Fields and sets by IP version: who asks.
const CLIENTS: [(bool, Field, &str); 2] =
    [(true, Field::network(12, 4), "clients4"), (false, Field::network(8, 16), "clients6")];

impl Questions<'_> {
    fn gateway(&self, ipv4: bool) -> Option<IpAddr> {
        let any = !self.clients.is_empty() && !self.servers.is_empty();
        self.gateways.iter().copied().find(|ip| any && ip.is_ipv4() == ipv4)
    }

    fn rules(&self, bridge: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (ipv4, source, set) in CLIENTS {
            let Some(gateway) = self.gateway(ipv4) else { continue };
            for server in self.servers.iter().filter(|ip| ip.is_ipv4() == ipv4) {
                for protocol in [Protocol::Udp, Protocol::Tcp] {
                    let what = format!("questions to {server} over {}", protocol.as_str());
                    rules.push(
                        Rule::new(what)
                            .and(input(bridge))
                            .and(destination(IpNet::from(*server)))
                            .and(destination_port(protocol, DNS))
                            .and(is_one_of(source, set))
                            .and(redirect_to(gateway, DNS)),
                    );
                }
            }
        }
        rules
    }

    /// The sets that these rules use, of nft(8)'s types ipv4_addr and ipv6_addr.
    fn sets(&self) -> Vec<Set> {
        let set = |(ipv4, _, name): (bool, Field, &'static str)| {
            self.gateway(ipv4)?;
            let (key_type, key_len) = if ipv4 { (7, 4) } else { (8, 16) };
            let keys = self.clients.iter().filter(|ip| ip.is_ipv4() == ipv4);
            let keys = keys.map(|ip| octets(*ip)).collect();
            let (by_rules, size, stays) = (false, None, false);
            Some(Set { by_rules, name, key_type, key_len, size, stays, keys })
        };
        CLIENTS.into_iter().filter_map(set).collect()
    }

    /// Whether a flow is of such a question.
    fn began(&self, flow: &Flow) -> bool {
        flow.server.port() == DNS && self.gateways.contains(&flow.server.ip())
    }
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
    questions: Questions<'_>,
) -> Table {
    let Interfaces { bridge, node, uplink, uplink_ips } = interfaces;
    let mut prerouting: Vec<Rule> = entrances
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
    prerouting.extend(questions.rules(bridge));
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
        sets: questions.sets(),
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
pub fn is_stale(
    flow: &Flow,
    subnets: &[IpNet],
    entrances: &[Entrance],
    questions: Questions<'_>,
) -> bool {
    if questions.began(flow) {
        return false;
    }
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
    fn questions_of_an_engine_are_answered_at_the_gateway() {
        let ips =
            |all: &[&str]| -> Vec<IpAddr> { all.iter().map(|ip| ip.parse().unwrap()).collect() };
        let (clients, gateways) = (ips(&["10.5.0.9"]), ips(&["10.5.0.1", "fd05::1"]));
        let servers = ips(&["192.0.2.53", "2001:db8::53"]);
        let questions = Questions { clients: &clients, servers: &servers, gateways: &gateways };
        // Two servers by UDP and TCP each, and a set of each version that has clients.
        assert_eq!(questions.rules("br0").len(), 4);
        let sets = questions.sets();
        assert_eq!(sets.len(), 2);
        assert!(sets[0].keys.contains(&vec![10, 5, 0, 9]) && sets[1].keys.is_empty());
        let nobody = Questions { clients: &[], ..questions };
        assert!(nobody.rules("br0").is_empty() && nobody.sets().is_empty());
        let [client, server, gateway] = ["10.5.0.9:1000", "192.0.2.53:53", "10.5.0.1:53"]
            .map(|end| end.parse::<SocketAddr>().unwrap());
        let protocol = Some(Protocol::Udp);
        let flow =
            Flow { protocol, from: client, to: server, server: gateway, client, answered: true };
        let subnets = ["10.5.0.0/24".parse().unwrap()];
        assert!(!is_stale(&flow, &subnets, &[], questions));
        assert!(is_stale(&flow, &subnets, &[], Questions::default()));
    }

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
            let found: Vec<Flow> = all
                .into_iter()
                .filter(|flow| is_stale(flow, &subnets, entrances, Questions::default()))
                .collect();
            assert_eq!(found, stale, "{entrances:?}");
        }
    }
}
