//! The table that guards the ports of a network's bridge: [`table`]. The agent sees no frame
//! between two sandboxes of one host, so here stands for the kernel what `vxmesh_proto::path`
//! decides on frames of the mesh, in the same order and with the same names ([`DropReason`]).
//!
//! ```text
//! port v...   -> guard    untagged, to no reserved group, from the endpoint's MAC
//!   IPv4      -> ipv4     from one of its addresses; no DHCP, no redirect
//!   IPv6      -> ipv6     the same; what carries ICMPv6 or UDP shows its ports and its type
//!   ND        -> nd       solicitations and advertisements that speak for the endpoint alone; nothing of routers
//!   ARP       -> arp      the sender is the endpoint
//! port v... to port v...  not in an isolated network
//! ```
//!
//! What is refused goes to a chain of its reason, which counts it for the port and drops it.
//! Counting stands in a rule of its own: where there is no room for another port's counter, the
//! frame is dropped all the same.
//!
//! Who may speak as whom stands in three sets of (port, address), so that a port comes and goes
//! with a change of its keys. A port without keys is let say nothing. Options of neighbour
//! discovery cannot be walked here: a message has none, or exactly the one that the systems send
//! (RFC 4861 section 4.3 and 4.4, RFC 7527 section 4.2). The gateway, this node's own port and the
//! TAP, behind which the agent has judged, are not guarded. A bridge hides frames for reserved
//! groups from its rules unless a port is told otherwise (`Links::show_groups`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ring::digest::{SHA256, digest};
use vxmesh_proto::{
    addr::MacAddr,
    reason::DropReason,
    wire::{ethernet, ipv6::link_local_of},
};

use super::{
    TABLE,
    frame::{
        DESTINATION, Field, SOURCE, TYPE, at_least, at_most, carries, from_mac, is, is_fragment,
        is_later_fragment, is_not, is_whole, key, masked, port_has, port_has_not,
    },
    rule::{Clause, Rule, accept, count_for, drop_as, goto, input, jump, octets, output},
    table::{Chain, Family, Hook, Kind, Set, Table, TableId},
};

/// The table.
pub(super) const ID: TableId = TableId { family: Family::Bridge, name: TABLE };
/// Before other rules for frames (`NF_BR_PRI_NAT_DST_BRIDGED`).
pub(super) const FIRST: i32 = -300;
/// Names of the ports that lead to sandboxes.
const PORTS: &str = "v*";

const MACS: &str = "macs";
/// Which port had how much refused, and why.
pub(super) const BLAMED: &str = "blamed";
const IPV4: &str = "ipv4_addresses";
const IPV6: &str = "ipv6_addresses";
/// nft(8)'s numbers of types, six bits each in a key of two: ifname, then ether_addr, ipv4_addr,
/// ipv6_addr.
const KEY_TYPES: [(&str, u32, u32); 3] =
    [(MACS, 41 << 6 | 9, 24), (IPV4, 41 << 6 | 7, 20), (IPV6, 41 << 6 | 8, 32)];

const ICMP: u8 = 1;
const IGMP: u8 = 2;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const IPV4_SOURCE: Field = Field::network(12, 4);
const IPV6_SOURCE: Field = Field::network(8, 16);
const IPV6_LEN: Field = Field::network(4, 2);
const IPV6_NEXT: Field = Field::network(6, 1);
const HOP_LIMIT: Field = Field::network(7, 1);
const SOURCE_PORT: Field = Field::transport(0, 2);
const BOTH_PORTS: Field = Field::transport(0, 4);
const ICMP_TYPE: Field = Field::transport(0, 1);
const ICMP_CODE: Field = Field::transport(1, 1);
const ND_TARGET: Field = Field::transport(8, 16);
const ND_OPTION: Field = Field::transport(24, 2);
const ND_OPTION_MAC: Field = Field::transport(26, 6);
/// Bytes of a solicitation or advertisement without options, and with one.
const ND_BARE: [u8; 2] = [0, 24];
const ND_ONE_OPTION: [u8; 2] = [0, 32];
const SOURCE_MAC: [u8; 2] = [1, 1];
const TARGET_MAC: [u8; 2] = [2, 1];
const NONCE: [u8; 2] = [14, 1];
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const ICMPV4_REDIRECT: u8 = 5;
/// Multicast listener reports and "done" (RFC 2710 section 3, RFC 3810 section 5.2).
const MLD: [u8; 3] = [131, 132, 143];

const ARP_KIND: Field = Field::network(0, 6);
const ARP_OPERATION: Field = Field::network(6, 2);
const ARP_MAC: Field = Field::network(8, 6);
const ARP_IP: Field = Field::network(14, 4);
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

/// What is the same for all ports of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// MAC of the gateway, which nobody else may have.
    pub gateway: MacAddr,
    /// Whether endpoints must not talk to each other.
    pub isolated: bool,
}

/// The addresses of the endpoint behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses; the link-local one of its MAC goes without saying.
    pub ips: Vec<IpAddr>,
}

/// The keys that let a port speak: the set, and the key.
pub(super) fn keys(name: &str, port: &Port) -> Vec<(&'static str, Vec<u8>)> {
    let ips = port.ips.iter().copied().chain([IpAddr::V6(link_local_of(port.mac))]);
    let of_ip = |ip: IpAddr| (if ip.is_ipv4() { IPV4 } else { IPV6 }, key(name, &octets(ip)));
    [(MACS, key(name, &port.mac.0))].into_iter().chain(ips.map(of_ip)).collect()
}

/// The table for these ports, by name.
#[must_use]
pub fn table(rules: Rules, ports: &BTreeMap<String, Port>) -> Table {
    let mut sets: Vec<Set> = KEY_TYPES
        .into_iter()
        .map(|(name, key_type, key_len)| Set {
            name,
            key_type,
            key_len,
            size: None,
            stays: false,
            keys: BTreeSet::new(),
            by_rules: false,
        })
        .collect();
    for (name, key) in ports.iter().flat_map(|(name, port)| keys(name, port)) {
        if let Some(set) = sets.iter_mut().find(|set| set.name == name) {
            set.keys.insert(key);
        }
    }
    sets.push(Set {
        name: BLAMED,
        // Of a name of an interface and a number (`mark`).
        key_type: 41 << 6 | 19,
        key_len: 20,
        size: None,
        stays: false,
        keys: BTreeSet::new(),
        by_rules: true,
    });
    let chain = |name, rules| Chain { name, base: None, rules };
    let entrance = vec![Rule::new("sandboxes").and(input(PORTS)).and(jump("guard"))];
    let refusal = |reason: &DropReason| {
        let count = Rule::new("for the port").and(count_for(BLAMED, number(*reason)));
        let name = reason.as_str();
        chain(name, vec![count, Rule::new(name).and(drop_as(name))])
    };
    let mut chains: Vec<Chain> = COUNTED.iter().map(refusal).collect();
    chains.extend([
        chain("ipv6_source", ipv6_source()),
        chain("nd", nd()),
        chain("icmpv6", icmpv6()),
        chain("ipv6_udp", ipv6_udp()),
        chain("ipv6", ipv6()),
        chain("ipv4", ipv4()),
        chain("arp", arp()),
        chain("guard", guard(rules.gateway)),
        Chain::at("prerouting", (Kind::Filter, Hook::Prerouting, FIRST), entrance),
    ]);
    if rules.isolated {
        let apart = refuse(DropReason::Isolated, "sandbox to sandbox", input(PORTS));
        let apart = vec![with(output(PORTS), apart)];
        chains.push(Chain::at("forward", (Kind::Filter, Hook::Forward, FIRST), apart));
    }
    // A counter for each, whatever the network is like: they are few.
    Table { id: ID, counters: COUNTED.map(DropReason::as_str).to_vec(), sets, chains }
}

/// What the rules count.
const COUNTED: [DropReason; 18] = [
    DropReason::VlanUnsupported,
    DropReason::ReservedGroup,
    DropReason::LlcUnsupported,
    DropReason::GatewaySource,
    DropReason::SourceUnknown,
    DropReason::MalformedIp,
    DropReason::DhcpServer,
    DropReason::DhcpClient,
    DropReason::IpSpoofed,
    DropReason::MalformedNd,
    DropReason::RouterSolicitation,
    DropReason::RouterAdvertisement,
    DropReason::Redirect,
    DropReason::NdSpoofed,
    DropReason::MalformedArp,
    DropReason::ArpSpoofed,
    DropReason::Runt,
    DropReason::Isolated,
];

fn refuse(reason: DropReason, what: &str, clause: Clause) -> Rule {
    Rule::new(format!("{reason}: {what}")).and(clause).and(goto(reason.as_str()))
}

/// The number of a reason in the set of who is to blame: the same whatever reasons there are, as an
/// agent of another version may have written the rules.
fn number(reason: DropReason) -> u32 {
    let digest = digest(&SHA256, reason.as_str().as_bytes());
    let first = digest.as_ref().first_chunk().copied().unwrap_or_default();
    u32::from_be_bytes(first)
}

/// What an element of the set of who is to blame is about: a port, and why.
pub(super) fn blame(key: &[u8]) -> Option<(String, DropReason)> {
    let (name, rest) = key.split_at_checked(16)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let of = u32::from_be_bytes(rest.first_chunk().copied()?);
    let reason = COUNTED.into_iter().find(|reason| number(*reason) == of)?;
    Some((String::from_utf8_lossy(name).into_owned(), reason))
}

/// A rule that must fulfil this first.
fn with(clause: Clause, rule: Rule) -> Rule {
    rule.after(clause)
}

fn guard(gateway: MacAddr) -> Vec<Rule> {
    let tag = |kind: u16| {
        refuse(DropReason::VlanUnsupported, &format!("{kind:#06x}"), is(TYPE, &kind.to_be_bytes()))
    };
    let type_is = |kind: u16| is(TYPE, &kind.to_be_bytes());
    let group =
        masked(DESTINATION, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0], &[0x01, 0x80, 0xc2, 0, 0, 0]);
    vec![
        tag(0x8100),
        tag(0x88a8),
        tag(0x9100),
        refuse(DropReason::ReservedGroup, "bridges keep it", group),
        refuse(DropReason::LlcUnsupported, "a length as type", at_most(TYPE, &[0x05, 0xff])),
        refuse(DropReason::GatewaySource, "the gateway is the bridge", from_mac(gateway)),
        refuse(DropReason::SourceUnknown, "not the endpoint's MAC", port_has_not(SOURCE, MACS)),
        Rule::new("IPv4").and(type_is(ethernet::IPV4)).and(goto("ipv4")),
        Rule::new("IPv6").and(type_is(ethernet::IPV6)).and(goto("ipv6")),
        Rule::new("ARP").and(type_is(ethernet::ARP)).and(goto("arp")),
        Rule::new("no address to check").and(at_least(TYPE, &[0x06, 0x00])).and(accept()),
        refuse(DropReason::Runt, "no type", Clause::default()),
    ]
}

fn ports(source: u16, destination: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    [a, b, c, d]
}

fn ipv4() -> Vec<Rule> {
    let no_redirect = refuse(DropReason::Redirect, "ICMP", is(ICMP_TYPE, &[ICMPV4_REDIRECT]));
    let nameless = Rule::new("IGMP of a host without an address").and(carries(IGMP));
    vec![
        with(carries(UDP), refuse(DropReason::DhcpServer, "offers", is(SOURCE_PORT, &[0, 67]))),
        with(
            carries(UDP),
            refuse(DropReason::DhcpClient, "requests", is(BOTH_PORTS, &ports(68, 67))),
        ),
        with(carries(ICMP), no_redirect),
        Rule::new("its address").and(is_whole()).and(port_has(IPV4_SOURCE, IPV4)).and(accept()),
        nameless.and(is(IPV4_SOURCE, &[0; 4])).and(accept()),
        refuse(DropReason::IpSpoofed, "not its IPv4 address", is_whole()),
        refuse(DropReason::MalformedIp, "IPv4", Clause::default()),
    ]
}

fn ipv6() -> Vec<Rule> {
    vec![
        Rule::new("ICMPv6").and(carries(ICMPV6)).and(goto("icmpv6")),
        Rule::new("UDP").and(carries(UDP)).and(goto("ipv6_udp")),
        Rule::new("all else").and(is_whole()).and(goto("ipv6_source")),
        refuse(DropReason::MalformedIp, "IPv6", Clause::default()),
    ]
}

/// A first fragment that hides what it carries in a later one is refused (RFC 7112).
fn shown(field: Field, reason: DropReason) -> [Rule; 3] {
    let zeroes = [0; 2];
    let zeroes = zeroes.get(..field.width()).unwrap_or_default();
    [
        Rule::new("it shows what it is").and(at_least(field, zeroes)).and(goto("ipv6_source")),
        Rule::new("a later fragment").and(is_later_fragment()).and(goto("ipv6_source")),
        refuse(reason, "it hides what it is", Clause::default()),
    ]
}

fn ipv6_udp() -> Vec<Rule> {
    let mut rules = vec![
        refuse(DropReason::DhcpServer, "DHCPv6", is(SOURCE_PORT, &547_u16.to_be_bytes())),
        refuse(DropReason::DhcpClient, "DHCPv6", is(BOTH_PORTS, &ports(546, 547))),
    ];
    rules.extend(shown(SOURCE_PORT, DropReason::MalformedIp));
    rules
}

fn icmpv6() -> Vec<Rule> {
    let discovery = at_least(ICMP_TYPE, &[ROUTER_SOLICITATION]);
    let mut rules = vec![
        Rule::new("neighbour discovery")
            .and(discovery)
            .and(at_most(ICMP_TYPE, &[REDIRECT]))
            .and(goto("nd")),
    ];
    rules.extend(shown(ICMP_TYPE, DropReason::MalformedNd));
    rules
}

fn ipv6_source() -> Vec<Rule> {
    let nameless = |kind: u8| {
        Rule::new(format!("type {kind} of a host without an address"))
            .and(is(IPV6_SOURCE, &[0; 16]))
            .and(carries(ICMPV6))
            .and(is_fragment(false))
            .and(is(ICMP_TYPE, &[kind]))
            .and(accept())
    };
    let mut rules = vec![Rule::new("its address").and(port_has(IPV6_SOURCE, IPV6)).and(accept())];
    rules.extend(MLD.map(nameless));
    rules.push(refuse(DropReason::IpSpoofed, "not its IPv6 address", Clause::default()));
    rules
}

fn nd() -> Vec<Rule> {
    let kind = |kind: u8| is(ICMP_TYPE, &[kind]);
    let with_option = |option: [u8; 2]| {
        let one = is(IPV6_LEN, &ND_ONE_OPTION);
        Rule::new(format!("option {}", option[0])).and(one).and(is(ND_OPTION, &option))
    };
    let bare = || Rule::new("no option").and(is(IPV6_LEN, &ND_BARE)).and(accept());
    // What must be so of a message that a receiver takes: RFC 4861 sections 6.1 and 7.1, RFC 6980.
    let must_be = |what: &str, field: Field, value: &[u8]| {
        refuse(DropReason::MalformedNd, what, is_not(field, value))
    };
    let unnamed = with(
        is(IPV6_SOURCE, &[0; 16]),
        Rule::new("an address is asked for before it is used").and(kind(SOLICITATION)),
    );
    vec![
        must_be("behind other headers", IPV6_NEXT, &[ICMPV6]),
        must_be("from another link", HOP_LIMIT, &[255]),
        must_be("code", ICMP_CODE, &[0]),
        refuse(DropReason::RouterSolicitation, "routers", kind(ROUTER_SOLICITATION)),
        refuse(DropReason::RouterAdvertisement, "it is no router", kind(ROUTER_ADVERTISEMENT)),
        refuse(DropReason::Redirect, "ND", kind(REDIRECT)),
        unnamed.clone().and(is(IPV6_LEN, &ND_BARE)).and(accept()),
        unnamed.and(is(IPV6_LEN, &ND_ONE_OPTION)).and(is(ND_OPTION, &NONCE)).and(accept()),
        refuse(DropReason::IpSpoofed, "not its IPv6 address", port_has_not(IPV6_SOURCE, IPV6)),
        with(
            kind(ADVERTISEMENT),
            refuse(DropReason::NdSpoofed, "target", port_has_not(ND_TARGET, IPV6)),
        ),
        bare(),
        with(
            kind(SOLICITATION),
            with_option(SOURCE_MAC).and(port_has(ND_OPTION_MAC, MACS)).and(accept()),
        ),
        with(kind(SOLICITATION), with_option(NONCE).and(accept())),
        with(
            kind(ADVERTISEMENT),
            with_option(TARGET_MAC).and(port_has(ND_OPTION_MAC, MACS)).and(accept()),
        ),
        refuse(DropReason::NdSpoofed, "options", Clause::default()),
    ]
}

fn arp() -> Vec<Rule> {
    let operation = is_not(ARP_OPERATION, &ARP_REQUEST);
    let unknown = refuse(DropReason::MalformedArp, "operation", is_not(ARP_OPERATION, &ARP_REPLY));
    let probe = Rule::new("a probe").and(is(ARP_OPERATION, &ARP_REQUEST));
    vec![
        refuse(
            DropReason::MalformedArp,
            "not for IPv4 over Ethernet",
            is_not(ARP_KIND, &[0, 1, 0x08, 0x00, 6, 4]),
        ),
        with(operation, unknown),
        refuse(DropReason::ArpSpoofed, "not its MAC", port_has_not(ARP_MAC, MACS)),
        Rule::new("its address").and(port_has(ARP_IP, IPV4)).and(accept()),
        probe.and(is(ARP_IP, &[0; 4])).and(accept()),
        refuse(DropReason::ArpSpoofed, "not its address", at_least(ARP_IP, &[0; 4])),
        refuse(DropReason::MalformedArp, "short", Clause::default()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_key_for_each_address_and_the_link_local_one() {
        let port = Port {
            mac: MacAddr([0x06, 0, 0, 0, 0, 1]),
            ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        };
        let keys = keys("vabc", &port);
        let sets: Vec<&str> = keys.iter().map(|(set, _)| *set).collect();
        assert_eq!(sets, [MACS, IPV4, IPV6, IPV6]);
        for (set, key) in &keys {
            let (.., len) = KEY_TYPES.iter().find(|(name, ..)| name == set).unwrap();
            assert_eq!(key.len(), usize::try_from(*len).unwrap(), "{set}");
            assert!(key.starts_with(b"vabc\0"), "{set}");
        }
    }

    #[test]
    fn it_is_told_whom_an_element_blames() {
        let numbers: BTreeSet<u32> = COUNTED.into_iter().map(number).collect();
        assert_eq!(numbers.len(), COUNTED.len());
        let key = key("vabc", &number(DropReason::IpSpoofed).to_be_bytes());
        assert_eq!(blame(&key), Some(("vabc".to_owned(), DropReason::IpSpoofed)));
        for bad in [&key[..16], &[0; 20], &[]] {
            assert_eq!(blame(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_counter_that_a_rule_names_is_there_once() {
        let rules = Rules { gateway: MacAddr([2; 6]), isolated: true };
        let table = table(rules, &BTreeMap::new());
        let names: BTreeSet<&str> = table.counters.iter().copied().collect();
        assert_eq!(names.len(), table.counters.len());
        let said = table.chains.iter().flat_map(|chain| &chain.rules);
        let used: BTreeSet<&str> = said.filter_map(Rule::counter).collect();
        assert_eq!(used, names);
    }
}
