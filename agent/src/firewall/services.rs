//! The table that leads the answers of backends on this host to the agent: [`table`].
//!
//! The agent gives a frame whose destination it rewrote to the bridge, and the backend answers the
//! client itself: the bridge would switch that past the agent, with the backend's own address. So
//! the kernel learns from the frame which answers belong to it.
//!
//! ```text
//! tap0 -> learn   what the agent sends as `Macs::source`: (protocol, client, port, backend, port) into `flows`
//! port -> steer   the same the other way round: to `Macs::service`, which nobody has, so to tap0
//!                 the same, as a client sends it to the backend itself: the agent tells the two apart
//!                 fragments and ICMP errors of a backend: they do not show which flow they are of
//! ```
//!
//! All else is switched as before. The rules stand behind those of the guard ([`super::guard`]):
//! what a sandbox forges never comes here. They are the same whatever services, backends and flows
//! there are.
//!
//! How long a flow is known follows `vxmesh_proto::lb::flows`, of which the kernel sees only TCP's
//! flags. Who closes a connection first says the last word of it, a segment like any other. So it
//! is noted (`ended`) that the backend has closed its half: what the client sends right after that
//! is no sign of life.

use std::{collections::BTreeSet, time::Duration};

use vxmesh_proto::{addr::MacAddr, reason::DropReason};

use super::{
    frame::{
        DESTINATION, Field, SOURCE, any_of, at_least, at_most, carries, flow_is_in, forget_flow,
        from_mac_not, is, is_fragment, is_one_of, masked, remember, remember_flow, write,
    },
    guard::FIRST,
    rule::{Clause, Rule, accept, drop_as, goto, input, is_ip_frame},
    table::{Chain, Family, Hook, Kind, Set, Table, TableId},
};
use crate::netlink::overlay::TAP;

/// Its name: a table of its own, so that what it has learned stays while others are written anew.
pub const TABLE: &str = "vxmesh_services";
/// The table.
pub(super) const ID: TableId = TableId { family: Family::Bridge, name: TABLE };

/// Twice as many as the agent remembers, as some are known here a little longer.
const FLOWS: u32 = 262_144;
/// More endpoints than a host has.
const LOCAL: u32 = 65_536;

/// A connection that begins, and one that ended: for what is still on its way.
const SHORT: Duration = Duration::from_secs(15);
/// One of which the client has closed its half.
const CLOSING: Duration = Duration::from_secs(4 * 60);
/// Longer than the agent remembers an idle one.
const ESTABLISHED: Duration = Duration::from_secs(3 * 3600);
const DATAGRAMS: Duration = Duration::from_secs(3 * 60);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const SOURCE_PORT: Field = Field::transport(0, 2);
const DESTINATION_PORT: Field = Field::transport(2, 2);
const ICMP_TYPE: Field = Field::transport(0, 1);
const TCP_FLAGS: Field = Field::transport(13, 1);
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// Flags and offset of an IPv4 fragment (RFC 791 section 3.1).
const FRAGMENT: Field = Field::network(6, 2);
const MORE_OR_LATER: [u8; 2] = [0x3f, 0xff];
/// Destination unreachable, time exceeded, parameter problem (RFC 792).
const ICMP_ERRORS: [u8; 3] = [3, 11, 12];
/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
const ICMPV6_ERRORS: [u8; 2] = [1, 4];

/// The endpoints here to which the agent led somebody.
const BACKENDS: &str = "backends";

/// The two MACs of a network that are no endpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// That of the services: what is sent to it goes to the agent.
    pub service: MacAddr,
    /// The source of what the agent sends to a backend here.
    pub source: MacAddr,
}

/// What depends on the IP version.
struct Version {
    ipv4: bool,
    addresses: [Field; 2],
    /// nft(8)'s number of the type of an address, and its length.
    address: (u32, u32),
    flows: &'static str,
    ended: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version {
        ipv4: true,
        addresses: [Field::network(12, 4), Field::network(16, 4)],
        address: (7, 4),
        flows: "flows",
        ended: "ended",
    },
    Version {
        ipv4: false,
        addresses: [Field::network(8, 16), Field::network(24, 16)],
        address: (8, 16),
        flows: "flows6",
        ended: "ended6",
    },
];

impl Version {
    /// The flow of a frame from the client.
    const fn sent(&self) -> [Field; 4] {
        let [source, destination] = self.addresses;
        [source, SOURCE_PORT, destination, DESTINATION_PORT]
    }

    /// The flow of a frame from the backend.
    const fn answered(&self) -> [Field; 4] {
        let [source, destination] = self.addresses;
        [destination, DESTINATION_PORT, source, SOURCE_PORT]
    }

    fn rule(&self, what: &str) -> Rule {
        let version = if self.ipv4 { 4 } else { 6 };
        Rule::new(format!("{what}, IPv{version}")).and(is_ip_frame(self.ipv4))
    }

    fn sets(&self) -> [Set; 2] {
        // nft(8)'s numbers of types, six bits each: inet_proto, the address, inet_service, and
        // these two again.
        const INET_PROTO: u32 = 12;
        const INET_SERVICE: u32 = 13;
        let (address, len) = self.address;
        let types = [INET_PROTO, address, INET_SERVICE, address, INET_SERVICE];
        let key_type = types.into_iter().fold(0, |key, part| key << 6 | part);
        [self.flows, self.ended].map(|name| learned(name, (key_type, 2 * len + 3 * 4), FLOWS))
    }

    fn learn(&self) -> Vec<Rule> {
        let sent = self.sent();
        let keep = |time| remember_flow(&sent, self.flows, time).and(accept());
        let tcp =
            |what, flag: u8| self.rule(what).and(carries(TCP)).and(any_of(TCP_FLAGS, &[flag]));
        let full = |protocol: u8| {
            let rule = self.rule(DropReason::FlowTableFull.as_str()).and(carries(protocol));
            let rule = rule.and(at_least(SOURCE_PORT, &[0; 2]));
            rule.and(drop_as(DropReason::FlowTableFull.as_str()))
        };
        vec![
            tcp("begins", SYN).and(forget_flow(&sent, self.ended)).and(keep(SHORT)),
            tcp("reset", RST).and(keep(SHORT)),
            self.rule("ended by the backend")
                .and(carries(TCP))
                .and(flow_is_in(&sent, self.ended))
                .and(keep(SHORT)),
            tcp("closing", FIN).and(keep(CLOSING)),
            self.rule("established").and(carries(TCP)).and(keep(ESTABLISHED)),
            self.rule("datagrams").and(carries(UDP)).and(keep(DATAGRAMS)),
            // Its answer would come from an address that the client has not called.
            full(TCP),
            full(UDP),
        ]
    }

    fn steer(&self, to_agent: impl Fn() -> Clause) -> Vec<Rule> {
        let answered = self.answered();
        let flow = flow_is_in(&answered, self.flows);
        let keep = |set, time| remember_flow(&answered, set, time);
        let mut rules = vec![
            self.rule("the backend's last")
                .and(carries(TCP))
                .and(any_of(TCP_FLAGS, &[FIN | RST]))
                .and(flow.clone())
                .and(keep(self.ended, SHORT))
                .and(keep(self.flows, SHORT))
                .and(to_agent()),
            self.rule("the backend's datagrams")
                .and(carries(UDP))
                .and(flow.clone())
                .and(keep(self.flows, DATAGRAMS))
                .and(to_agent()),
            self.rule("answers").and(flow).and(to_agent()),
            self.rule("to a backend itself")
                .and(flow_is_in(&self.sent(), self.flows))
                .and(to_agent()),
        ];
        let fragment = if self.ipv4 { any_of(FRAGMENT, &MORE_OR_LATER) } else { is_fragment(true) };
        rules.push(
            self.rule("fragments of a backend")
                .and(fragment)
                .and(to_one())
                .and(is_one_of(SOURCE, BACKENDS))
                .and(to_agent()),
        );
        let errors: Vec<Clause> = if self.ipv4 {
            ICMP_ERRORS.map(|kind| carries(ICMP).and(is(ICMP_TYPE, &[kind]))).to_vec()
        } else {
            let [first, last] = ICMPV6_ERRORS.map(|kind| [kind]);
            vec![carries(ICMPV6).and(at_least(ICMP_TYPE, &first)).and(at_most(ICMP_TYPE, &last))]
        };
        rules.extend(errors.into_iter().map(|error| {
            let rule = self.rule("ICMP errors of a backend").and(error);
            rule.and(is_one_of(SOURCE, BACKENDS)).and(to_agent())
        }));
        rules
    }
}

/// A set that rules fill.
const fn learned(name: &'static str, (key_type, key_len): (u32, u32), size: u32) -> Set {
    let keys = BTreeSet::new();
    Set { by_rules: true, stays: true, name, key_type, key_len, size: Some(size), keys }
}

/// To no group.
fn to_one() -> Clause {
    masked(DESTINATION, &[1, 0, 0, 0, 0, 0], &[0; 6])
}

/// The table of a network.
#[must_use]
pub fn table(macs: Macs) -> Table {
    /// nft(8)'s number of the type ether_addr.
    const ETHER_ADDR: u32 = 9;
    let mut sets: Vec<Set> = VERSIONS.iter().flat_map(Version::sets).collect();
    sets.push(learned(BACKENDS, (ETHER_ADDR, 6), LOCAL));
    let mut learn = vec![
        Rule::new("not to a backend here").and(from_mac_not(macs.source)).and(accept()),
        Rule::new("a backend").and(remember(DESTINATION, BACKENDS, ESTABLISHED)),
    ];
    learn.extend(VERSIONS.iter().flat_map(Version::learn));
    let mut steer = vec![Rule::new("the agent").and(input(TAP)).and(goto("learn"))];
    let to_agent = || write(DESTINATION, &macs.service.0).and(accept());
    steer.extend(VERSIONS.iter().flat_map(|version| version.steer(to_agent)));
    Table {
        id: ID,
        counters: vec![DropReason::FlowTableFull.as_str()],
        sets,
        chains: vec![
            Chain { name: "learn", base: None, rules: learn },
            Chain::at("steer", (Kind::Filter, Hook::Prerouting, FIRST + 1), steer),
        ],
    }
}
