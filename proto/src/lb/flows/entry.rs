//! What is remembered of one flow: [`Flow`], and how it lies in memory.
//!
//! ```text
//! network 2 | client 2 | VIP 2 | backend 2 | ports 1 | MAC, protocol, kind 1 | endpoint 2
//! generation 24, snapshot 40 | next free 1 | service 8, backend 16, snapshot 40 | 1 to make it two
//! cache lines
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::life::Sender;
use crate::addr::{EndpointId, MacAddr, NetworkId};

/// Words of an entry: two cache lines.
pub(super) const WORDS: usize = 16;
/// Those that say what the flow is, and do not change while it lives.
pub(super) const FIXED: usize = 12;
/// Where it is said with which snapshot of services the flow was compared.
pub(super) const EPOCH: usize = 12;
/// Where the number of the next free entry is.
pub(super) const NEXT: usize = 13;
/// Where it is said where the flow's backend is in a snapshot of services.
pub(super) const BACKEND_AT: usize = 14;

const MAC: u64 = (1 << 48) - 1;
const IS_IPV4: u64 = 1 << 56;
const SEES_VIP: u64 = 1 << 57;
const IS_RELAYED: u64 = 1 << 58;

/// A flow of TCP or UDP to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where all of it is.
    pub network: NetworkId,
    /// TCP or UDP.
    pub protocol: u8,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where answers go to.
    pub client_mac: MacAddr,
    /// Whom the client asked.
    pub vip: SocketAddr,
    /// Who answers.
    pub backend: SocketAddr,
    /// The endpoint that has the backend's address.
    pub endpoint: EndpointId,
    /// The port that the backend sees at the client: the client's own unless it was taken.
    pub seen_port: u16,
    /// Whether the backend sees the VIP as the client: it is the client itself.
    pub sees_vip: bool,
    /// Whether its client is outside of the network and came in by another node, whose router has
    /// `client_mac`. That node knows the VIP; here the VIP is the backend itself.
    pub is_relayed: bool,
}

/// What the packets of one direction have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where they are.
    pub network: NetworkId,
    /// TCP or UDP.
    pub protocol: u8,
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// The router of the node by which a client from outside came in, if that is another one than
    /// this: two nodes may bring one address and port.
    pub via: Option<MacAddr>,
}

impl Flow {
    /// The packets of the client.
    #[must_use]
    pub fn forward(&self) -> Tuple {
        let Self { network, protocol, client, vip, .. } = *self;
        let via = self.is_relayed.then_some(self.client_mac);
        Tuple { network, protocol, source: client, destination: vip, via }
    }

    /// The packets of the backend, as it sends them.
    #[must_use]
    pub fn reverse(&self) -> Tuple {
        let Self { network, protocol, backend, .. } = *self;
        Tuple { network, protocol, source: backend, destination: self.seen(), via: None }
    }

    /// The client as the backend sees it.
    #[must_use]
    pub fn seen(&self) -> SocketAddr {
        let ip = if self.sees_vip { self.vip.ip() } else { self.client.ip() };
        SocketAddr::new(ip, self.seen_port)
    }

    /// Whether the client asks the backend itself, and only has another port there.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.vip == self.backend
    }

    /// Whose flow it is to the limits: the client's; or of the node that brought it, since that may
    /// say of any address that it is the client's.
    pub(super) fn counted_for(&self) -> [u64; 2] {
        if self.is_relayed {
            return [u64::MAX, mac_word(self.client_mac)];
        }
        ip_words(self.client.ip())
    }

    pub(super) fn to_words(self) -> [u64; FIXED] {
        let [n0, n1] = id_words(self.network.bytes());
        let [c0, c1] = ip_words(self.client.ip());
        let [v0, v1] = ip_words(self.vip.ip());
        let [b0, b1] = ip_words(self.backend.ip());
        let [e0, e1] = id_words(self.endpoint.bytes());
        let ports = [self.client.port(), self.vip.port(), self.backend.port(), self.seen_port];
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        let kind = u64::from(self.protocol) << 48
            | flag(self.client.is_ipv4(), IS_IPV4)
            | flag(self.sees_vip, SEES_VIP)
            | flag(self.is_relayed, IS_RELAYED);
        let mac = mac_word(self.client_mac);
        [n0, n1, c0, c1, v0, v1, b0, b1, pack(ports), mac | kind, e0, e1]
    }

    pub(super) fn of_words(words: &[u64; FIXED]) -> Self {
        let [n0, n1, c0, c1, v0, v1, b0, b1, ports, kind, e0, e1] = *words;
        let [client, vip, backend, seen_port] = unpack(ports);
        let is_ipv4 = kind & IS_IPV4 != 0;
        let socket = |words, port| SocketAddr::new(ip_of(words, is_ipv4), port);
        let [_, _, a, b, c, d, e, f] = kind.to_be_bytes();
        Self {
            network: NetworkId::from_random(id_of([n0, n1])),
            protocol: protocol_of(kind),
            client: socket([c0, c1], client),
            client_mac: MacAddr([a, b, c, d, e, f]),
            vip: socket([v0, v1], vip),
            backend: socket([b0, b1], backend),
            endpoint: EndpointId::from_random(id_of([e0, e1])),
            seen_port,
            sees_vip: kind & SEES_VIP != 0,
            is_relayed: kind & IS_RELAYED != 0,
        }
    }
}

/// A [`Tuple`] as it is compared with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    network: [u64; 2],
    source: [u64; 2],
    destination: [u64; 2],
    ports: [u16; 2],
    protocol: u8,
    is_ipv4: bool,
    /// The MAC of a router; 0 without one.
    via: u64,
}

impl Key {
    pub(super) fn of(tuple: &Tuple) -> Self {
        Self {
            network: id_words(tuple.network.bytes()),
            source: ip_words(tuple.source.ip()),
            destination: ip_words(tuple.destination.ip()),
            ports: [tuple.source.port(), tuple.destination.port()],
            protocol: tuple.protocol,
            is_ipv4: tuple.source.is_ipv4(),
            via: tuple.via.map_or(0, mac_word),
        }
    }

    /// What it is found by. The halves of addresses are put together: nobody chooses both of many.
    pub(super) fn words(&self) -> [u64; 4] {
        let of = |[high, low]: [u64; 2]| high.rotate_left(32) ^ low;
        let [from, to] = self.ports;
        let rest = pack([from, to, self.protocol.into(), self.is_ipv4.into()]);
        [of(self.network) ^ self.via, of(self.source), of(self.destination), rest]
    }

    /// Who sends packets with this key in the flow of these words.
    pub(super) fn sender_in(&self, words: &[u64; FIXED]) -> Option<Sender> {
        let [n0, n1, c0, c1, v0, v1, b0, b1, ports, kind, _, _] = *words;
        let is_same = [n0, n1] == self.network
            && protocol_of(kind) == self.protocol
            && (kind & IS_IPV4 != 0) == self.is_ipv4;
        let [client, vip, backend, seen] = unpack(ports);
        let (client_ip, vip_ip) = ([c0, c1], [v0, v1]);
        let seen_ip = if kind & SEES_VIP != 0 { vip_ip } else { client_ip };
        let is = |source, destination, ports| {
            (self.source, self.destination, self.ports) == (source, destination, ports)
        };
        let via = if kind & IS_RELAYED != 0 { kind & MAC } else { 0 };
        match is_same {
            true if self.via == via && is(client_ip, vip_ip, [client, vip]) => Some(Sender::Client),
            true if self.via == 0 && is([b0, b1], seen_ip, [backend, seen]) => {
                Some(Sender::Backend)
            }
            _ => None,
        }
    }
}

fn mac_word(mac: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

const fn protocol_of(kind: u64) -> u8 {
    kind.to_be_bytes()[1]
}

fn pack([a, b, c, d]: [u16; 4]) -> u64 {
    u64::from(a) << 48 | u64::from(b) << 32 | u64::from(c) << 16 | u64::from(d)
}

fn unpack(word: u64) -> [u16; 4] {
    let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
    [[a, b], [c, d], [e, f], [g, h]].map(u16::from_be_bytes)
}

fn id_words(id: &[u8; 16]) -> [u64; 2] {
    words(u128::from_be_bytes(*id))
}

fn id_of(words: [u64; 2]) -> [u8; 16] {
    number(words).to_be_bytes()
}

/// IPv4 addresses as IPv6 has them (RFC 4291 section 2.5.5.2).
pub(super) fn ip_words(ip: IpAddr) -> [u64; 2] {
    let v6 = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    words(v6.to_bits())
}

fn ip_of(words: [u64; 2], is_ipv4: bool) -> IpAddr {
    let v6 = Ipv6Addr::from_bits(number(words));
    if is_ipv4 {
        let [.., a, b, c, d] = v6.octets();
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        v6.into()
    }
}

const fn words(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, (number & 0xffff_ffff_ffff_ffff) as u64]
}

fn number([high, low]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}
