//! What this node counted of a service, and of each of its backends, since its agent started.
//!
//! Frames are counted by atomics of their backend, which one snapshot of services leaves to the
//! next ([`Counters`]). A flow's entry says where these are (`BackendAt`), so no frame needs a
//! look-up. How many flows there are now is counted by a walk over the table ([`Services::open`]);
//! what is kept of it for `least-conn` may be wrong for a moment, and is put right by the same walk
//! ([`recount`]).

use std::{
    collections::BTreeMap,
    ops::AddAssign,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use super::{
    flows::{BackendAt, Flow, Found, Sender, Sign, State},
    service::{Choice, Service, ServiceSpec, Services},
    translate::Balancer,
};
use crate::{
    addr::{EndpointId, NetworkId, ServiceId},
    frame::Frame,
    reason::DropReason,
    tables::RowKey,
};

/// Why what would begin a flow is refused.
const REFUSALS: [DropReason; 5] = [
    DropReason::NoBackend,
    DropReason::BackendUnknown,
    DropReason::ServicePort,
    DropReason::FlowUnknown,
    DropReason::FlowTableFull,
];

/// Frames of one direction. Other threads carry the other one, so each has its own cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Traffic {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    fn add(&self, frame: &Frame<'_>) {
        let of = |number: usize| u64::try_from(number).unwrap_or_default();
        self.packets.fetch_add(of(frame.packets()), Ordering::Relaxed);
        self.bytes.fetch_add(of(frame.bytes().len()), Ordering::Relaxed);
    }
}

/// Flows, which change much less often than frames come.
#[derive(Debug, Default)]
#[repr(align(64))]
struct FlowCounts {
    begun: AtomicU64,
    open: AtomicI64,
}

/// What is counted of one backend.
#[derive(Debug, Default)]
pub(super) struct Counts {
    sent: Traffic,
    received: Traffic,
    flows: FlowCounts,
}

impl Counts {
    pub(super) fn begun(&self) {
        self.flows.begun.fetch_add(1, Ordering::Relaxed);
        self.flows.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ended(&self) {
        self.flows.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// The flows that there are, as far as nothing was missed since they were last counted.
    pub(super) fn open(&self) -> u64 {
        u64::try_from(self.flows.open.load(Ordering::Relaxed)).unwrap_or_default()
    }

    fn frame(&self, sender: Sender, frame: &Frame<'_>) {
        match sender {
            Sender::Client => self.sent.add(frame),
            Sender::Backend => self.received.add(frame),
        }
    }

    fn totals(&self, ejections: u64) -> Totals {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            begun: of(&self.flows.begun),
            sent_packets: of(&self.sent.packets),
            sent_bytes: of(&self.sent.bytes),
            received_packets: of(&self.received.packets),
            received_bytes: of(&self.received.bytes),
            ejections,
        }
    }
}

/// What was counted, at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Flows that were begun.
    pub begun: u64,
    /// Packets from clients; those of a super-frame count one by one.
    pub sent_packets: u64,
    /// Bytes of the frames from clients, each as it came, with its Ethernet header.
    pub sent_bytes: u64,
    /// Packets of backends.
    pub received_packets: u64,
    /// Bytes of the frames of backends.
    pub received_bytes: u64,
    /// How often a backend began to get no new flows because it was silent.
    pub ejections: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.begun += more.begun;
        self.sent_packets += more.sent_packets;
        self.sent_bytes += more.sent_bytes;
        self.received_packets += more.received_packets;
        self.received_bytes += more.received_bytes;
        self.ejections += more.ejections;
    }
}

/// The counters of a service.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Those of the backends, in their order, and how often each was out.
    backends: Box<[(Arc<Counts>, u64)]>,
    refused: Arc<[AtomicU64; REFUSALS.len()]>,
    /// What backends had that are none any more.
    past: Totals,
    /// Whether a backend's flows were never counted.
    pub(super) has_new: bool,
}

impl Counters {
    /// Those of a service, with what was counted before.
    pub(super) fn of(spec: &ServiceSpec, before: Option<(&ServiceSpec, &Self)>) -> Self {
        let is_out = |spec: &ServiceSpec, key: &RowKey| {
            let at = spec.out.partition_point(|out| out.key < *key);
            spec.out.get(at).is_some_and(|out| out.key == *key)
        };
        let old = |key: &RowKey| {
            let (spec, counters) = before?;
            let at = spec.backends.binary_search_by_key(key, |it| it.key).ok()?;
            Some((spec, counters.backends.get(at)?))
        };
        let mut has_new = false;
        let backends = spec.backends.iter().map(|backend| {
            let is_out_now = is_out(spec, &backend.key);
            match old(&backend.key) {
                Some((before, (counts, ejections))) => {
                    let is_ejected = is_out_now && !is_out(before, &backend.key);
                    (Arc::clone(counts), ejections + u64::from(is_ejected))
                }
                None => {
                    has_new = true;
                    (Arc::default(), u64::from(is_out_now))
                }
            }
        });
        let backends = backends.collect();
        let mut past = before.map(|(_, counters)| counters.past).unwrap_or_default();
        if let Some((before, counters)) = before {
            for (backend, (counts, ejections)) in before.backends.iter().zip(&counters.backends) {
                if spec.backends.binary_search_by_key(&backend.key, |it| it.key).is_err() {
                    past += counts.totals(*ejections);
                }
            }
        }
        let refused = before.map(|(_, counters)| Arc::clone(&counters.refused));
        Self { backends, refused: refused.unwrap_or_default(), past, has_new }
    }

    /// Those of the backend with this number.
    pub(super) fn of_backend(&self, number: u16) -> Option<&Counts> {
        self.backends.get(usize::from(number)).map(|(counts, _)| counts.as_ref())
    }

    /// Something that would have begun a flow did not.
    pub(super) fn refused(&self, reason: DropReason) {
        let at = REFUSALS.iter().position(|it| *it == reason);
        if let Some(count) = at.and_then(|at| self.refused.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Service {
    /// What was counted of a backend.
    #[must_use]
    pub fn totals(&self, endpoint: EndpointId) -> Option<Totals> {
        let (counts, ejections) =
            self.counters().backends.get(usize::from(self.number_of(endpoint)?))?;
        Some(counts.totals(*ejections))
    }

    /// What was counted of all backends, also of those that are none any more.
    #[must_use]
    pub fn total(&self) -> Totals {
        let mut total = self.counters().past;
        for (counts, ejections) in &self.counters().backends {
            total += counts.totals(*ejections);
        }
        total
    }

    /// How many packets that would have begun a flow were refused, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let counts = self.counters().refused.iter().map(|count| count.load(Ordering::Relaxed));
        REFUSALS.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }
}

impl Services {
    /// How many flows each backend of a service has now, in this network.
    #[must_use]
    pub fn open(&self, network: NetworkId, service: ServiceId) -> BTreeMap<EndpointId, u64> {
        let mut open = BTreeMap::new();
        for flow in open_flows(self).filter(|flow| flow.network == network) {
            if self.at(flow.vip.ip()).is_some_and(|it| it.spec().id == service) {
                *open.entry(flow.endpoint).or_default() += 1;
            }
        }
        open
    }

    /// Whether how many flows there are is something that a service goes by.
    #[must_use]
    pub fn goes_by_flows(&self) -> bool {
        self.iter().any(|service| service.spec().choice == Choice::LeastConn)
    }

    /// Counts the flows of backends that are new to a service that goes by them. Before anybody
    /// uses this snapshot.
    pub fn count_new(&self, network: NetworkId) {
        let uncounted = self.iter().filter(|service| service.take_uncounted());
        if uncounted.count() > 0 {
            recount(&[(network, self)]);
        }
    }
}

/// Counts the flows of all backends of these networks' services that go by them. Those that begin
/// or end meanwhile may be counted wrongly until it is done again, once a second.
pub fn recount(networks: &[(NetworkId, &Services)]) {
    let goes = networks.iter().filter(|(_, services)| services.goes_by_flows());
    let mut counted: BTreeMap<NetworkId, (&Services, BTreeMap<BackendAt, i64>)> = goes
        .map(|(network, services)| {
            let all = services.numbered().map(|(at, counts)| {
                let before = counts.flows.open.load(Ordering::Relaxed);
                (at, 0i64.wrapping_sub(before))
            });
            (*network, (*services, all.collect()))
        })
        .collect();
    let Some((services, _)) = counted.values().next() else { return };
    for flow in open_flows(services) {
        if let Some((services, all)) = counted.get_mut(&flow.network)
            && let Some(missed) = services.backend_at(&flow).and_then(|at| all.get_mut(&at))
        {
            *missed += 1;
        }
    }
    for (services, all) in counted.values() {
        for (at, missed) in all {
            if let Some(counts) = services.counts(*at) {
                counts.flows.open.fetch_add(*missed, Ordering::Relaxed);
            }
        }
    }
}

/// The flows to services that have not ended.
fn open_flows(services: &Services) -> impl Iterator<Item = Flow> {
    let all = services.flows().iter().filter(|found| found.state < State::Closed);
    all.map(|found| found.flow).filter(|flow| !flow.is_direct())
}

impl<P> Balancer<'_, P> {
    /// The counters of a flow's backend; nothing of a flow that is no service's.
    fn counts_of(&self, found: &Found) -> Option<&Counts> {
        if found.flow.is_direct() {
            return None;
        }
        let version = self.services.version();
        let at = found.backend_at(version).or_else(|| {
            let at = self.services.backend_at(&found.flow)?;
            self.services.flows().keep_backend_at(found, at, version);
            Some(at)
        });
        self.services.counts(at?)
    }

    /// Counts a frame of a flow, as it goes on.
    pub(super) fn count(&self, found: &Found, frame: &Frame<'_>) {
        if let Some(counts) = self.counts_of(found) {
            counts.frame(found.sender, frame);
        }
    }

    /// Notes that a flow was forgotten.
    pub(super) fn count_removed(&self, found: &Found) {
        if found.state < State::Closed
            && let Some(counts) = self.counts_of(found)
        {
            counts.ended();
        }
    }

    /// Notes a packet of a flow, and says how far that is then; nothing if it is gone.
    pub(super) fn note(&self, found: &Found, sign: Sign) -> Option<State> {
        let (before, state) = self.services.flows().noted(found, sign, self.now)?;
        if before < State::Closed
            && state == State::Closed
            && let Some(counts) = self.counts_of(found)
        {
            counts.ended();
        }
        Some(state)
    }
}
