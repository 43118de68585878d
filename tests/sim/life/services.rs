//! What a simulated node has for services: the flows, what was seen of backends, what their checks
//! say, and how it makes, changes and removes a service, as the agent does.

use std::{cell::RefCell, sync::atomic::AtomicU64};

use vxmesh::services::NodePlace;
use vxmesh_proto::{
    lb::{
        BackendPort, Flows, Protocol, ServiceSpec, Services,
        drain::DrainClock,
        ejection::{ANSWER, Answer, Ejections, PeerSight},
        flows::Shape,
        health::Checks,
    },
    object::holder,
    session::Probe,
    wire::{TCP, UDP},
};

use super::*;
use crate::parts::StoredFlows;

/// The VIP's port, and that of all backends.
pub(crate) const VIP_PORT: u16 = 80;
pub(crate) const BACKEND_PORT: u16 = 8080;
/// How often what was seen is looked at while there are flows, as the agent does.
pub(crate) const LOOK: Duration = Duration::from_millis(25);
/// The round trip of control connections, which are a model here.
const CONTROL: Duration = Duration::from_millis(50);
/// After this time a node that has not heard of all members goes by what it knows.
const SETTLES: Duration = Duration::from_secs(5);
/// After this time what the last life told of checks counts no more.
const LAST_LIFE: Duration = Duration::from_secs(60);
/// Of one client a quarter, which is more than it has in a run.
const SHAPE: Shape = Shape { flows: 512, sources: 64 };

/// A service that was made: its addresses, by network.
pub(crate) struct Made {
    pub(crate) id: ServiceId,
    pub(crate) network: NetworkId,
    pub(crate) vips: Vec<IpAddr>,
}

/// A question that waits for its answer.
#[derive(Clone, Copy)]
struct Asked {
    since: Instant,
    /// Probes that a node was sent.
    probes: u32,
}

pub(crate) struct Serving {
    pub(crate) flows: Arc<Flows>,
    pub(super) version: u64,
    /// Whether its tables were made when it had heard of all members.
    pub(crate) is_settled: bool,
    /// When its tables were made, by its clock.
    pub(crate) looked_ms: u64,
    pub(crate) drains: RefCell<DrainClock>,
    pub(crate) ejections: Ejections,
    checks: Checks,
    started: Instant,
    asked: BTreeMap<Subject, Asked>,
    /// When what was seen is looked at next.
    pub(crate) next_look: Option<Instant>,
    /// Services that were made since the last look.
    pub(crate) made: Vec<Made>,
}

impl Serving {
    pub(super) fn start(disk: &mut Disk, time: Time, rng: &mut Rng) -> Self {
        let seed = rng.next();
        let stored = *disk.flows.get_or_insert_with(|| {
            let words = std::iter::repeat_with(AtomicU64::default).take(SHAPE.words());
            StoredFlows { words: Vec::leak(words.collect()), seed, epoch: time.now }
        });
        let flows = Flows::new(stored.words, SHAPE, stored.seed, stored.epoch).unwrap();
        flows.restore(time.now);
        Self {
            flows: Arc::new(flows),
            version: rng.next(),
            is_settled: false,
            looked_ms: time.wall_ms,
            drains: RefCell::default(),
            ejections: Ejections::default(),
            checks: Checks::after(disk.health.clone()),
            started: time.now,
            asked: BTreeMap::new(),
            next_look: None,
            made: Vec::new(),
        }
    }

    /// What was seen is to be looked at as long as there are flows.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.next_look.get_or_insert(now);
    }
}

/// Whether the rules of the bridge bring answers of local backends to the agent.
pub(super) fn steers(table: &NetworkTable<Arc<Peer>>, specs: &[ServiceSpec], me: NodeId) -> bool {
    let mut backends = specs.iter().flat_map(|spec| &spec.backends);
    let did = table.services().is_some_and(Services::steers_local);
    backends.any(|backend| backend.key.node == me) || (did && !specs.is_empty())
}

impl Life {
    pub(super) fn is_settled(&self, time: Time) -> bool {
        let open = |node: &NodeId| {
            self.set.get(&ObjectId::Member(*node)).is_some_and(|member| !member.closed())
        };
        let mut members = self.set.members().filter(open);
        time.now - self.serving.started >= SETTLES || members.all(|node| self.directory.is_up(node))
    }

    /// Drains all backends of this node, or takes that back.
    pub(crate) fn drain(&mut self, time: Time, is_drained: bool) {
        self.disk.drained = is_drained.then(|| self.disk.drained.unwrap_or(time.wall_ms));
        self.say_node(time);
        self.reconcile(time);
    }

    /// What the nodes say of themselves.
    pub(crate) fn places(&self) -> Places {
        let place = |node: NodeId| {
            let claim = self.directory.get(node, Key::Node)?.record.claim();
            let Claim::Node(NodeClaim { drained, zone, .. }) = claim else { return None };
            Some((node, NodePlace { drained: *drained, zone: zone.clone() }))
        };
        self.set.members().filter_map(place).collect()
    }

    // ---- objects

    pub(super) fn publish_service(&mut self, time: Time, service: object::Service, vips: &[IpNet]) {
        let network = service.network;
        let vips_of = vips.iter().map(IpNet::addr).collect();
        let service = object::Service { vips: vips_of, ..service };
        let mut made = None;
        self.publish(time, |hlc| {
            made = Some(Made { id: service.id(hlc), network, vips: service.vips.clone() });
            Content::Service(service)
        });
        let made = made.unwrap();
        let id = made.id;
        for (at, vip) in vips.iter().enumerate() {
            let given = self.addresses.give_to_service(network, *vip, holder(id), time.now);
            let Some(given) = given else {
                vips[at + 1..].iter().for_each(|ip| self.addresses.put_back(network, *ip));
                self.close_service(time, id);
                return;
            };
            self.sign_transfers(time, network, vec![given]);
        }
        self.serving.made.push(made);
        self.reconcile(time);
    }

    /// Changes a service; false if it is not there any more.
    pub(crate) fn edit_service(
        &mut self,
        time: Time,
        id: ServiceId,
        change: impl FnOnce(&mut object::Service),
    ) -> bool {
        let stamp = self.set.stamp(time.wall_ms);
        let held = self.set.service(id).filter(|_| !self.set.is_removed(self.me)).cloned();
        let Some(mut service) = held else { return false };
        change(&mut service);
        let Some(draft) = self.set.update(id, self.me, &service, stamp) else { return false };
        self.publish_draft(time, draft);
        self.reconcile(time);
        true
    }

    /// Removes a service; false if it is not there any more.
    pub(crate) fn close_service(&mut self, time: Time, id: ServiceId) -> bool {
        let held = self.set.get(&ObjectId::Service(id)).filter(|held| !held.closed()).cloned();
        let Some(held) = held.filter(|_| !self.set.is_removed(self.me)) else { return false };
        let draft = held.edit(self.set.stamp(time.wall_ms));
        let Content::Service(service) = &draft.content else { return false };
        let content = Content::Service(service.ended());
        self.publish_draft(time, Draft { closed: true, content, ..draft });
        self.reconcile(time);
        true
    }

    // ---- checks

    /// Checks the backends here whose time has come, and tells what changed.
    pub(super) fn check_backends(&mut self, time: Time) {
        let (mut wanted, mut here) = (BTreeMap::new(), BTreeSet::new());
        for (network, local) in &self.locals {
            let own = self.disk.endpoints.values().filter(|claim| claim.network == *network);
            let own: Vec<EndpointId> = own.map(|claim| claim.id).collect();
            for service in local.table.services().into_iter().flat_map(|it| it.iter()) {
                let spec = service.spec();
                here.extend(own.iter().map(|endpoint| (*endpoint, spec.id)));
                let check = self.set.service(spec.id).and_then(|service| service.check.clone());
                let its = spec.backends.iter().filter(|it| it.key.node == self.me);
                let its = its.map(|it| it.key.endpoint).filter(|it| own.contains(it));
                wanted.extend(its.filter_map(|it| Some(((it, spec.id), check.clone()?))));
            }
        }
        let checks = &mut self.serving.checks;
        if time.now - self.serving.started >= LAST_LIFE {
            checks.forget_last_life();
        }
        checks.follow(time.now, &wanted, |of| here.contains(of));
        for (of, _) in checks.poll(time.now, usize::MAX) {
            let passed = !self.disk.deaf.contains(&of.0) && !self.disk.unwell.contains(&of.0);
            checks.handle_result(time.now, of, passed);
        }
        let told = checks.poll_told(time.now);
        self.disk.health = checks.to_remember();
        for (endpoint, health) in told {
            let Some(claim) = self.disk.endpoints.get_mut(&endpoint) else { continue };
            if claim.health != health {
                claim.health = health;
                let claim = Claim::Endpoint(claim.clone());
                self.say(time, Key::Endpoint(endpoint), &claim);
            }
        }
    }

    // ---- what was seen of backends

    /// Whether a port of an endpoint here accepts; nothing if no service has it.
    pub(super) fn accepts(&self, network: NetworkId, of: &BackendPort) -> Option<bool> {
        let services = self.locals.get(&network)?.table.services()?;
        services.iter().find(|service| service.has(of))?;
        let endpoint = of.key.endpoint;
        Some(self.disk.endpoints.contains_key(&endpoint) && !self.disk.deaf.contains(&endpoint))
    }

    /// Looks at what was seen, asks about who is suspect, and follows what came of earlier
    /// questions.
    pub(crate) fn look(&mut self, time: Time) {
        for (subject, asked) in self.serving.asked.clone() {
            self.follow_question(time, subject, asked);
        }
        let locals = self.locals.iter();
        let services: Vec<_> =
            locals.filter_map(|(id, local)| Some((*id, local.table.services()?))).collect();
        let sight = |node| match self.peers.get(&node) {
            _ if node == self.me => PeerSight::HERE,
            None => PeerSight::default(),
            Some((_, peer)) => PeerSight {
                unanswered: peer.unanswered_since(),
                heard: peer.last_heard(),
                round_trip: peer.rtt().or(Some(CONTROL)),
            },
        };
        let subjects = self.serving.ejections.look(time.now, &services, sight);
        for subject in subjects {
            self.question(time, subject);
        }
        self.follow_ejections(time);
        let count = self.serving.flows.count();
        let has_flows = count.open + count.closed > 0;
        self.serving.next_look = has_flows.then(|| time.now + LOOK);
    }

    fn question(&mut self, time: Time, subject: Subject) {
        let answer = match subject {
            Subject::Node(node) if node == self.me => Answer::Well,
            Subject::Node(node) if !self.peers.contains_key(&node) => Answer::Unknown,
            Subject::Port(network, of) if of.key.node == self.me => {
                answer_of(self.accepts(network, &of))
            }
            Subject::Node(node) => {
                self.serving.asked.insert(subject, Asked { since: time.now, probes: 1 });
                return self.sessions.handle_probe(time.now, node, Probe::Echo);
            }
            Subject::Port(network, BackendPort { key, protocol, port }) => {
                self.serving.asked.insert(subject, Asked { since: time.now, probes: 0 });
                let (node, endpoint) = (key.node, key.endpoint);
                let protocol = match protocol {
                    Protocol::Tcp => TCP,
                    Protocol::Udp => UDP,
                };
                let request = Request::CheckBackend { network, endpoint, protocol, port };
                return self.ask(time, node, &request, Waiting::Backend(subject));
            }
        };
        self.serving.ejections.handle_answer(time.now, subject, answer);
    }

    fn follow_question(&mut self, time: Time, subject: Subject, asked: Asked) {
        let heard = |node| {
            let peer = self.peers.get(&node);
            peer.and_then(|(_, peer)| peer.last_heard()).is_some_and(|at| at >= asked.since)
        };
        let waited = time.now - asked.since;
        let answer = match subject {
            Subject::Node(node) if heard(node) => Answer::Well,
            Subject::Node(_) if waited >= ANSWER => Answer::Fails,
            Subject::Node(node) if waited >= ANSWER / 2 && asked.probes == 1 => {
                self.serving.asked.insert(subject, Asked { probes: 2, ..asked });
                return self.sessions.handle_probe(time.now, node, Probe::Handshake);
            }
            Subject::Port(..) if waited >= ANSWER => Answer::Unknown,
            _ => return,
        };
        self.serving.asked.remove(&subject);
        self.serving.ejections.handle_answer(time.now, subject, answer);
    }

    pub(super) fn backend_answered(
        &mut self,
        time: Time,
        subject: Subject,
        response: Option<Response>,
    ) {
        // Nobody waits for one that is late.
        if self.serving.asked.remove(&subject).is_none() {
            return;
        }
        let answer = match response {
            Some(Response::BackendChecked { accepts }) => answer_of(accepts),
            _ => Answer::Unknown,
        };
        self.serving.ejections.handle_answer(time.now, subject, answer);
        self.follow_ejections(time);
    }

    fn follow_ejections(&mut self, time: Time) {
        let events = std::iter::from_fn(|| self.serving.ejections.poll_event());
        if events.count() > 0 {
            self.reconcile(time);
        }
    }
}

const fn answer_of(accepts: Option<bool>) -> Answer {
    match accepts {
        Some(true) => Answer::Well,
        Some(false) => Answer::Fails,
        None => Answer::Unknown,
    }
}
