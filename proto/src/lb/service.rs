//! What the data path knows of the services of one network: [`Services`], a snapshot with one
//! writer, as the tables are (I2).
//!
//! A [`Service`] names its backends by the keys of their rows. Where these are, and which addresses
//! and MACs they have, is in the network's table of the same snapshot; so a backend without a row
//! is chosen by nobody, and one whose row changes needs no other service.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, Hasher},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    Flows,
    affinity::{Affinity, beginning},
    counts::{Counters, Counts},
    flows::{BackendAt, Flow, Tuple},
    maglev::Maglev,
    observed::{BackendPort, Observed},
};
use crate::{
    addr::{EndpointId, NodeId, ServiceId},
    limits::{SERVICE_BACKENDS, SERVICE_WEIGHT},
    reason::DropReason,
    tables::{RowKey, Seeded},
    wire::{TCP, UDP},
};

/// What a service carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// The one with this number (IANA).
    #[must_use]
    pub const fn of_number(number: u8) -> Option<Self> {
        match number {
            TCP => Some(Self::Tcp),
            UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

/// A port of the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// That of the backends.
    pub backend_port: u16,
    /// Whether clients outside of the network have it.
    pub published: Option<PublishMode>,
}

/// By whom clients outside of the network are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublishMode {
    /// By any backend, whichever node they come in by.
    Ingress,
    /// By the backends of the node that they come in by.
    Host,
}

/// An endpoint that answers for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The key of its row.
    pub key: RowKey,
    /// How many new flows it gets, beside the others' weights; [`SERVICE_WEIGHT`] at most. One with
    /// 0 keeps those that it has.
    pub weight: u8,
    /// Whether it gets new flows now: it does not while it fails or is about to go. Other than with
    /// weight 0, the flows that it would get are spread over all others.
    pub takes_new: bool,
    /// Whether this node prefers it. Others get new flows while none that is preferred can.
    pub is_near: bool,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// By the flow's addresses and ports, the same on every node; by the client's address alone
    /// where the service is sticky.
    Maglev,
    /// In turn, as far as this node's flows go.
    RoundRobin,
    /// The one that has the fewest flows of this node for its weight.
    LeastConn,
}

/// A service as somebody made it, with the backends that it has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// The service.
    pub id: ServiceId,
    /// Its addresses; one of an IP version.
    pub vips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Who answers, in any order; [`SERVICE_BACKENDS`] at most.
    pub backends: Vec<Backend>,
    /// How one is chosen.
    pub choice: Choice,
    /// For how many seconds after its last packet a client keeps its backend, if it does: all
    /// flows of its address go there then.
    pub sticky: Option<u32>,
    /// Ports of backends that get no new flows while others do, in order
    /// ([`Ejections::out`](super::ejection::Ejections::out)).
    pub out: Vec<BackendPort>,
}

/// A service, ready to be asked.
#[derive(Debug)]
pub struct Service {
    spec: ServiceSpec,
    /// Where the backend of an endpoint is, in order.
    places: Box<[(EndpointId, u16)]>,
    maglev: Arc<Maglev>,
    observed: Arc<Observed>,
    counters: Counters,
    /// Whether it goes by flows of backends that nobody has counted yet.
    is_uncounted: AtomicBool,
    affinity: Option<Arc<Affinity>>,
    turns: Turns,
    /// How many flows were begun in turn; goes on from one snapshot to the next.
    turn: Arc<AtomicU64>,
}

impl Service {
    /// The service as `spec` says. `before` is what it was in the last snapshot.
    #[must_use]
    pub fn new(mut spec: ServiceSpec, before: Option<&Self>) -> Self {
        spec.ports.sort_unstable();
        spec.ports.dedup_by_key(|port| (port.protocol, port.port));
        spec.backends.sort_unstable();
        spec.backends.dedup_by_key(|backend| backend.key);
        spec.backends.truncate(SERVICE_BACKENDS);
        spec.out.sort_unstable();
        spec.backends.iter_mut().for_each(|it| it.weight = it.weight.min(SERVICE_WEIGHT));
        let weights = |spec: &ServiceSpec| -> Vec<(RowKey, u8)> {
            spec.backends.iter().map(|backend| (backend.key, backend.weight)).collect()
        };
        let weighted = weights(&spec);
        let kept = before.filter(|before| before.spec.id == spec.id);
        let same = kept.filter(|before| weights(&before.spec) == weighted);
        let places = spec.backends.iter().map(|backend| backend.key.endpoint).zip(0u16..);
        let mut places: Box<[_]> = places.collect();
        places.sort_unstable();
        let counters = Counters::of(&spec, kept.map(|before| (&before.spec, &before.counters)));
        let went_by_flows = kept.is_some_and(|before| before.spec.choice == Choice::LeastConn);
        let is_new = counters.has_new || !went_by_flows;
        let affinity = || kept.and_then(|before| before.affinity.clone()).unwrap_or_default();
        Self {
            affinity: spec.sticky.map(|_| affinity()),
            places,
            is_uncounted: AtomicBool::new(is_new && spec.choice == Choice::LeastConn),
            counters,
            maglev: same.map_or_else(
                || Arc::new(Maglev::new(&weighted)),
                |before| Arc::clone(&before.maglev),
            ),
            observed: Observed::of(&spec, kept.map(|before| &before.observed)),
            turns: Turns::new(weighted.iter().map(|(_key, weight)| *weight)),
            turn: kept.map(|before| Arc::clone(&before.turn)).unwrap_or_default(),
            spec,
        }
    }

    /// What it was made of, in order.
    #[must_use]
    pub const fn spec(&self) -> &ServiceSpec {
        &self.spec
    }

    /// The backends' port behind one of the VIP.
    #[must_use]
    pub fn backend_port(&self, protocol: Protocol, port: u16) -> Option<u16> {
        self.port(protocol, port).map(|port| port.backend_port)
    }

    /// What is known of a port of the VIP.
    pub(super) fn port(&self, protocol: Protocol, port: u16) -> Option<&Port> {
        let ports = &self.spec.ports;
        let at = ports.binary_search_by_key(&(protocol, port), |it| (it.protocol, it.port));
        ports.get(at.ok()?)
    }

    /// The ports that clients outside of the network have.
    pub(super) fn published(&self) -> impl Iterator<Item = (&Port, PublishMode)> {
        self.spec.ports.iter().filter_map(|port| Some((port, port.published?)))
    }

    /// The backend that is this endpoint, if it is one of them.
    #[must_use]
    pub fn backend(&self, endpoint: EndpointId) -> Option<&Backend> {
        self.spec.backends.get(usize::from(self.number_of(endpoint)?))
    }

    /// The number of the backend that is this endpoint.
    pub(super) fn number_of(&self, endpoint: EndpointId) -> Option<u16> {
        let at = self.places.partition_point(|(other, _)| *other < endpoint);
        let (_, at) = self.places.get(at).filter(|(other, _)| *other == endpoint)?;
        Some(*at)
    }

    /// The first backend whose endpoint's id begins so.
    pub(super) fn backend_with(&self, begins: u64) -> Option<&Backend> {
        let at = self.places.partition_point(|(other, _)| beginning(*other) < begins);
        let (_, at) = self.places.get(at).filter(|(other, _)| beginning(*other) == begins)?;
        self.spec.backends.get(usize::from(*at))
    }

    /// Which backends its clients have, and for how many seconds they keep them.
    pub(super) fn affinity(&self) -> Option<(&Affinity, u32)> {
        self.affinity.as_deref().zip(self.spec.sticky)
    }

    /// Whether it has a backend with this port.
    #[must_use]
    pub fn has(&self, of: &BackendPort) -> bool {
        let has_port = |port: &Port| (port.protocol, port.backend_port) == (of.protocol, of.port);
        self.backend(of.key.endpoint).is_some_and(|backend| backend.key == of.key)
            && self.spec.ports.iter().any(has_port)
    }

    /// Whether a port of a backend gets new flows, as far as others could have them.
    pub(super) fn takes_new(&self, backend: &Backend, (protocol, port): (Protocol, u16)) -> bool {
        let of = BackendPort { key: backend.key, protocol, port };
        backend.takes_new && self.spec.out.binary_search(&of).is_err()
    }

    /// What was seen of its backends.
    pub(super) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The counters of the backend that is this endpoint.
    pub(super) fn counts_of(&self, endpoint: EndpointId) -> Option<&Counts> {
        self.counters.of_backend(self.number_of(endpoint)?)
    }

    /// What is counted of it.
    pub(super) const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the flows that it goes by are to be counted. They are then.
    pub(super) fn take_uncounted(&self) -> bool {
        self.is_uncounted.swap(false, Ordering::Relaxed)
    }

    /// The backends that get new flows.
    pub(super) fn for_new_flows(&self) -> impl Iterator<Item = &Backend> {
        self.spec.backends.iter().filter(|backend| backend.takes_new && backend.weight > 0)
    }

    /// The backend for a new flow, of those that take one and are `usable`.
    pub fn choose(&self, flow: &Tuple, usable: impl Fn(&Backend) -> bool) -> Option<&Backend> {
        let is_usable = |at: u16| {
            let backend = self.spec.backends.get(usize::from(at));
            backend.is_some_and(|backend| backend.takes_new && usable(backend))
        };
        let chosen = match self.spec.choice {
            Choice::Maglev => self.maglev.choose(self.hash(flow), is_usable),
            Choice::RoundRobin => self.turns.next(&self.turn, is_usable),
            Choice::LeastConn => self.least(is_usable),
        };
        self.spec.backends.get(usize::from(chosen?))
    }

    /// The backend with the fewest flows for its weight, of all or at least of [`COMPARED`]; of
    /// equal ones whose turn is next.
    fn least(&self, usable: impl Fn(u16) -> bool) -> Option<u16> {
        let count = u16::try_from(self.spec.backends.len()).unwrap_or(u16::MAX);
        let first = self.turns.whose(self.turn.fetch_add(1, Ordering::Relaxed)).min(count);
        let numbered = (first..count).chain(0..first);
        let weighted = numbered.filter_map(|at| {
            let weight = self.spec.backends.get(usize::from(at))?.weight;
            (weight > 0).then_some((at, u64::from(weight)))
        });
        let mut least: Option<(u16, u64, u64)> = None;
        for ((at, weight), compared) in weighted.zip(0..) {
            if compared >= COMPARED && least.is_some() {
                break;
            }
            let open = self.counters.of_backend(at).map_or(0, Counts::open);
            let is_less = |(_, fewest, its): (u16, u64, u64)| {
                open.saturating_mul(its) < fewest.saturating_mul(weight)
            };
            // Whether one can be reached costs more to know than what it has.
            if least.is_none_or(is_less) && usable(at) {
                least = Some((at, open, weight));
            }
        }
        least.map(|(at, ..)| at)
    }

    /// The same number on every node; where the service is sticky, for all flows of a client.
    fn hash(&self, flow: &Tuple) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *self.spec.id.bytes();
        let mut hasher = Seeded(u64::from_be_bytes([a, b, c, d, e, f, g, h])).build_hasher();
        match flow.source.ip() {
            IpAddr::V4(v4) => hasher.write_u64(v4.to_bits().into()),
            IpAddr::V6(v6) => hasher.write(&v6.octets()),
        }
        let ports = match self.spec.sticky {
            // Neighbours would have one distance from each other without a second word.
            Some(_) => [0; 3],
            None => [flow.source.port(), flow.destination.port(), flow.protocol.into()],
        };
        hasher.write_u64(ports.into_iter().fold(0, |word, port| word << 16 | u64::from(port)));
        hasher.finish()
    }
}

/// Whose turn it is: each backend as often in a round as its weight says, and not all at once.
#[derive(Debug)]
struct Turns {
    /// The sums of the weights up to each.
    ends: Box<[u32]>,
    round: u32,
    /// From one turn to the next in the round, without a common divisor with it: about its golden
    /// section, so that those of one backend lie apart (Knuth, TAOCP 6.4).
    stride: u32,
}

/// Backends among which the one with the fewest flows is looked for: more make hardly a difference
/// (Mitzenmacher, "The power of two choices", 2001), and a flow costs no more with more of them.
const COMPARED: u32 = 64;

/// Turns that may pass without anybody usable before all are asked one after the other.
const PASSED: u32 = 64;

impl Turns {
    fn new(weights: impl Iterator<Item = u8>) -> Self {
        let ends: Box<[u32]> = weights
            .scan(0, |sum, weight| {
                *sum += u32::from(weight);
                Some(*sum)
            })
            .collect();
        let round = ends.last().copied().unwrap_or(0);
        let golden = (u64::from(round) * 618 / 1000).max(1);
        let golden = u32::try_from(golden).unwrap_or(1);
        let stride = (golden..).find(|stride| divisor(*stride, round.max(1)) == 1).unwrap_or(1);
        Self { ends, round, stride }
    }

    fn next(&self, turn: &AtomicU64, usable: impl Fn(u16) -> bool) -> Option<u16> {
        if self.round == 0 {
            return None;
        }
        let turns = (0..PASSED).map(|_| self.whose(turn.fetch_add(1, Ordering::Relaxed)));
        let all = (0u16..).zip(&self.ends).map(|(backend, _end)| backend);
        turns.chain(all.filter(|backend| self.has_turns(*backend))).find(|it| usable(*it))
    }

    fn whose(&self, turn: u64) -> u16 {
        let at = u128::from(turn) * u128::from(self.stride) % u128::from(self.round.max(1));
        let behind = self.ends.partition_point(|end| u128::from(*end) <= at);
        u16::try_from(behind).unwrap_or(u16::MAX)
    }

    fn has_turns(&self, backend: u16) -> bool {
        let at = usize::from(backend);
        let begin = at.checked_sub(1).and_then(|before| self.ends.get(before)).unwrap_or(&0);
        self.ends.get(at).is_some_and(|end| end > begin)
    }
}

/// The greatest common divisor.
const fn divisor(one: u32, other: u32) -> u32 {
    let (mut one, mut other) = (one, other);
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// All services of a network.
#[derive(Debug)]
pub struct Services {
    flows: Arc<Flows>,
    version: u64,
    is_settled: bool,
    steers_local: bool,
    services: Box<[Arc<Service>]>,
    backend_ports: Box<[(Protocol, u16)]>,
    nodes: Box<[NodeId]>,
    by_vip: HashMap<IpAddr, usize, Seeded>,
    /// Those that have published ports.
    published: Box<[Arc<Service>]>,
}

impl Services {
    /// These services. `version` is another number for each snapshot. It is settled once the
    /// agent, after its start, has heard of all members: before, a backend that is unknown may be
    /// there. Of two services that have one VIP the first keeps it.
    #[must_use]
    pub fn new(
        flows: Arc<Flows>,
        (version, is_settled): (u64, bool),
        services: impl IntoIterator<Item = Arc<Service>>,
    ) -> Self {
        let services: Box<[_]> = services.into_iter().collect();
        let mut by_vip = HashMap::with_hasher(Seeded(version));
        for (at, service) in services.iter().enumerate() {
            for vip in &service.spec.vips {
                by_vip.entry(*vip).or_insert(at);
            }
        }
        let ports = services.iter().flat_map(|service| &service.spec.ports);
        let mut backend_ports: Vec<_> =
            ports.map(|port| (port.protocol, port.backend_port)).collect();
        backend_ports.sort_unstable();
        backend_ports.dedup();
        let backends = services.iter().flat_map(|service| &service.spec.backends);
        let nodes: BTreeSet<NodeId> = backends.map(|backend| backend.key.node).collect();
        let published = services.iter().filter(|service| service.published().next().is_some());
        Self {
            published: published.cloned().collect(),
            flows,
            version,
            is_settled,
            steers_local: false,
            services,
            backend_ports: backend_ports.into(),
            nodes: nodes.into_iter().collect(),
            by_vip,
        }
    }

    /// The same where the rules of the local bridge bring the answers of local backends here, or do
    /// not. Local backends are chosen only where they do.
    #[must_use]
    pub fn steering_local(self, steers_local: bool) -> Self {
        Self { steers_local, ..self }
    }

    /// The service that has this VIP.
    #[must_use]
    pub fn at(&self, vip: IpAddr) -> Option<&Service> {
        self.services.get(*self.by_vip.get(&vip)?).map(Arc::as_ref)
    }

    /// Where the backend of a flow is; nothing if it is none any more.
    pub(super) fn backend_at(&self, flow: &Flow) -> Option<BackendAt> {
        let number = *self.by_vip.get(&flow.vip.ip())?;
        let backend = self.services.get(number)?.number_of(flow.endpoint)?;
        Some(BackendAt { service: u8::try_from(number).ok()?, backend })
    }

    /// The counters of the backend that is there.
    pub(super) fn counts(&self, at: BackendAt) -> Option<&Counts> {
        self.services.get(usize::from(at.service))?.counters.of_backend(at.backend)
    }

    /// The counters of all backends, and where these are.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (BackendAt, &Counts)> {
        let backends = |(service, it): (u8, _)| {
            let it: &Arc<Service> = it;
            let counts = move |backend| {
                Some((BackendAt { service, backend }, it.counters.of_backend(backend)?))
            };
            (0u16..).map_while(counts)
        };
        (0u8..=u8::MAX).zip(&self.services).flat_map(backends)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// Those with ports that clients outside of the network have.
    pub(super) fn published(&self) -> &[Arc<Service>] {
        &self.published
    }

    /// The nodes that have backends, in order.
    pub(super) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The flows of all networks.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Whether a service has backends with this port.
    pub(super) fn has_backend_port(&self, protocol: u8, port: u16) -> bool {
        let protocol = Protocol::of_number(protocol);
        protocol.is_some_and(|it| self.backend_ports.binary_search(&(it, port)).is_ok())
    }

    /// Whether answers of local backends are brought here.
    #[must_use]
    pub const fn steers_local(&self) -> bool {
        self.steers_local
    }

    /// Whether what does not reach a service for this reason is not going to: its sender may be
    /// told. A backend without a row may be back soon, and a connection to it goes on then.
    pub(crate) const fn is_sure_of(&self, reason: DropReason) -> bool {
        match reason {
            DropReason::NoBackend | DropReason::FlowUnknown => self.is_settled,
            DropReason::ServicePort | DropReason::FlowTableFull => true,
            _ => false,
        }
    }

    /// Whether the agent had heard of all members.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Which snapshot it is.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }
}

/// A port that a flow's client may have at the backend instead of its own.
pub(super) fn other_port(flow: &Tuple, backend: SocketAddr, attempt: u64) -> u16 {
    let mut hasher = Seeded(attempt).build_hasher();
    for end in [flow.source, flow.destination, backend] {
        match end.ip() {
            IpAddr::V4(v4) => hasher.write_u64(v4.to_bits().into()),
            IpAddr::V6(v6) => hasher.write(&v6.octets()),
        }
        hasher.write_u64(end.port().into());
    }
    let [high, low, ..] = hasher.finish().to_be_bytes();
    // Above all ports that servers have (RFC 6056 section 3.2).
    u16::from_be_bytes([high, low]) | 0x8000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::NetworkId,
        tables::tests::{key, node},
    };

    fn spec(choice: Choice, weights: &[u8]) -> ServiceSpec {
        let backends = weights.iter().zip(1u8..).map(|(weight, n)| Backend {
            key: key(n, n),
            weight: *weight,
            takes_new: true,
            is_near: true,
        });
        ServiceSpec {
            id: ServiceId::from_random([3; 16]),
            vips: vec!["10.0.0.200".parse().unwrap(), "fd00::200".parse().unwrap()],
            ports: vec![
                Port { protocol: Protocol::Udp, port: 53, backend_port: 5353, published: None },
                Port { protocol: Protocol::Tcp, port: 80, backend_port: 8080, published: None },
                Port { protocol: Protocol::Tcp, port: 53, backend_port: 53, published: None },
            ],
            backends: backends.collect(),
            choice,
            sticky: None,
            out: Vec::new(),
        }
    }

    fn flow(n: u16) -> Tuple {
        Tuple {
            network: NetworkId::from_random([1; 16]),
            protocol: TCP,
            source: SocketAddr::from(([10, 0, 0, 10], n)),
            destination: SocketAddr::from(([10, 0, 0, 200], 80)),
            via: None,
        }
    }

    /// How many of so many flows each backend gets.
    fn spread(
        service: &Service,
        flows: u16,
        usable: impl Fn(&Backend) -> bool,
    ) -> HashMap<RowKey, u32> {
        let mut counts = HashMap::new();
        for n in 0..flows {
            if let Some(backend) = service.choose(&flow(n), &usable) {
                *counts.entry(backend.key).or_default() += 1;
            }
        }
        counts
    }

    #[test]
    fn ten_thousand_flows_are_spread_over_five() {
        let maglev = Service::new(spec(Choice::Maglev, &[1; 5]), None);
        let counts = spread(&maglev, 10_000, |_| true);
        assert!(
            counts.len() == 5 && counts.values().all(|n| (1800..=2200).contains(n)),
            "{counts:?}"
        );
        let in_turn = Service::new(spec(Choice::RoundRobin, &[1; 5]), None);
        let counts = spread(&in_turn, 10_000, |_| true);
        assert!(counts.len() == 5 && counts.values().all(|n| *n == 2000), "{counts:?}");
    }

    #[test]
    fn who_is_out_or_weighs_nothing_gets_nothing() {
        for choice in [Choice::Maglev, Choice::RoundRobin] {
            let mut out = spec(choice, &[1, 0, 3, 2]);
            out.backends[3].takes_new = false;
            let service = Service::new(out, None);
            let counts = spread(&service, 4000, |_| true);
            assert_eq!(counts.len(), 2, "{choice:?}: {counts:?}");
            let share = f64::from(counts[&key(3, 3)]) / 4000.0;
            assert!((0.65..0.85).contains(&share), "{choice:?}: {counts:?}");
            let only = spread(&service, 100, |backend| backend.key == key(1, 1));
            assert_eq!(only, HashMap::from([(key(1, 1), 100)]));
            assert!(spread(&service, 10, |_| false).is_empty());
            assert!(spread(&service, 10, |backend| backend.key == key(2, 2)).is_empty());
            let empty = Service::new(spec(choice, &[]), None);
            assert!(spread(&empty, 10, |_| true).is_empty());
        }
    }

    #[test]
    fn turns_are_exact_by_weight_and_lie_apart() {
        let service = Service::new(spec(Choice::RoundRobin, &[5, 1, 4]), None);
        let round: Vec<_> =
            (0..10).map(|n| service.choose(&flow(n), |_| true).unwrap().key).collect();
        for (n, weight) in [(1, 5), (2, 1), (3, 4)] {
            assert_eq!(round.iter().filter(|it| **it == key(n, n)).count(), weight);
        }
        assert!(round.windows(3).all(|three| three.iter().any(|it| *it != three[0])), "{round:?}");
    }

    #[test]
    fn who_has_the_fewest_flows_is_found_among_many() {
        let service = Service::new(spec(Choice::LeastConn, &[1; 200]), None);
        let last = service.spec().backends[150].key;
        let counts = |at| service.counters().of_backend(at).unwrap();
        (0..200).filter(|at| *at != 150).for_each(|at| counts(at).begun());
        // Of some at least, it is found by all of those whose turn is near.
        let found = (0..200).filter(|n| service.choose(&flow(*n), |_| true).unwrap().key == last);
        assert!(found.count() >= 50);
        for n in 0..200 {
            let only = service.choose(&flow(n), |backend| backend.key == last);
            assert_eq!(only.map(|backend| backend.key), Some(last));
        }
        assert!(service.choose(&flow(1), |_| false).is_none());
        counts(150).begun();
        counts(150).begun();
        assert!((0..200).all(|n| service.choose(&flow(n), |_| true).unwrap().key != last));
        let empty = Service::new(spec(Choice::LeastConn, &[]), None);
        assert!(empty.choose(&flow(1), |_| true).is_none());
    }

    #[test]
    fn the_choice_is_the_same_whatever_the_order_and_on_every_node() {
        let one = spec(Choice::Maglev, &[1; 7]);
        let mut other = one.clone();
        other.backends.reverse();
        other.ports.reverse();
        let (one, other) = (Service::new(one, None), Service::new(other, None));
        assert_eq!(one.spec(), other.spec());
        for n in 0..1000 {
            assert_eq!(one.choose(&flow(n), |_| true), other.choose(&flow(n), |_| true));
        }
        // What an older program chose, this one must choose, too.
        let nodes: Vec<_> = (1..8u8).map(node).collect();
        let chosen = (0..8).map(|n| {
            let backend = one.choose(&flow(n), |_| true).unwrap();
            nodes.iter().position(|node| *node == backend.key.node).unwrap()
        });
        assert_eq!(chosen.collect::<Vec<_>>(), [2, 6, 4, 2, 1, 3, 4, 1]);
    }

    #[test]
    fn the_table_and_the_turn_stay_while_the_backends_do() {
        let first = Service::new(spec(Choice::RoundRobin, &[1, 2]), None);
        let begun = first.choose(&flow(1), |_| true).unwrap().key;
        let mut failing = spec(Choice::RoundRobin, &[1, 2]);
        failing.backends[0].takes_new = false;
        let second = Service::new(failing, Some(&first));
        assert!(
            Arc::ptr_eq(&first.maglev, &second.maglev) && Arc::ptr_eq(&first.turn, &second.turn)
        );
        let third = Service::new(spec(Choice::RoundRobin, &[2, 2]), Some(&second));
        assert!(
            !Arc::ptr_eq(&third.maglev, &second.maglev) && Arc::ptr_eq(&third.turn, &second.turn)
        );
        let mut other = spec(Choice::RoundRobin, &[1, 2]);
        other.id = ServiceId::from_random([4; 16]);
        let other = Service::new(other, Some(&first));
        assert_eq!(other.choose(&flow(1), |_| true).unwrap().key, begun, "it begins anew");
    }

    #[test]
    fn ports_are_told_apart_by_protocol() {
        let service = Service::new(spec(Choice::Maglev, &[1]), None);
        for (protocol, port, backend) in [
            (Protocol::Tcp, 80, Some(8080)),
            (Protocol::Udp, 80, None),
            (Protocol::Tcp, 53, Some(53)),
            (Protocol::Udp, 53, Some(5353)),
            (Protocol::Tcp, 8080, None),
        ] {
            assert_eq!(service.backend_port(protocol, port), backend, "{protocol:?} {port}");
        }
        assert_eq!(service.backend(key(1, 1).endpoint).map(|it| it.key), Some(key(1, 1)));
        assert_eq!(service.backend(key(2, 2).endpoint), None);
    }
}
