//! Services in the simulation: connections as clients and servers see them, and what must hold of
//! each.
//!
//! The reference is [`known`]: what a node knew of a VIP at one moment, read from its objects and
//! records alone. By it a new connection goes to a backend that the node knew to be there, is
//! refused only where it knew none, and an established one keeps its backend. The bridge of a host
//! is a model here: what a local backend answers goes to the agent, as its rules have it.

mod segment;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use segment::{Flag, Segment, segment, tcp};
use vxmesh::reconcile::admit::claims_to;
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, Name, NetworkId, ServiceId},
    lb::{
        BackendPort, Choice, Protocol, ServiceSpec, ejection::Subject, flows::Tuple, service_mac,
        service_source_mac,
    },
    limits::ADDRESS_QUARANTINE,
    object::{self, ServicePort, holder},
    record::EndpointClaim,
    tables::RowKey,
    wire::TCP,
};

use crate::{
    life::{BACKEND_PORT, Life, Made, VIP_PORT},
    world::{Fate, World},
};

/// When a SYN is sent again, after the one before it (Linux).
const SYN_AGAIN: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Connections that there are at once.
const OPEN: usize = 60;
/// Services that a network has at once.
const SERVICES: usize = 3;
/// Tuples for which all nodes must choose alike.
const SAMPLES: u16 = 200;

/// What may happen to services.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Create { on: usize, network: NetworkId, name: usize, by: By },
    Update { on: usize, service: ServiceId, backend: Name, edit: Edit },
    Remove { on: usize, service: ServiceId },
    Connect { from: EndpointId, vip: IpAddr },
    Talk(u64),
    HangUp(u64),
    Deafen(EndpointId),
    Hear(EndpointId),
}

/// Whom a service names.
#[derive(Clone, Debug)]
pub(crate) enum By {
    Names(BTreeSet<Name>),
    Label(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit {
    Add,
    Remove,
    /// It gets no new connections, or gets some again.
    Weigh(u8),
}

/// A connection, as its client sees it.
#[derive(Clone, Debug)]
struct Connection {
    client: EndpointId,
    vip: IpAddr,
    port: u16,
    /// Where its last SYN went.
    tried: Option<EndpointId>,
    tries: usize,
    /// When the SYN is sent again.
    again: Instant,
    /// Whether it is established.
    open: bool,
}

/// An address that was given to a service.
struct Vip {
    service: ServiceId,
    creator: usize,
    closed: Option<Instant>,
}

/// What became of connections.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    begun: u64,
    established: u64,
    refused: u64,
    retried: u64,
    said: u64,
    held: u64,
    ended: u64,
    made: u64,
    closed: u64,
    passed_over: u64,
}

/// All clients and servers.
#[derive(Default)]
pub(crate) struct Clients {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// What servers know: a backend, a client as it sees it, and where its answers go.
    served: BTreeMap<(EndpointId, SocketAddr), MacAddr>,
    vips: BTreeMap<(NetworkId, IpAddr), Vip>,
    counts: Counts,
}

impl Clients {
    pub(crate) fn counts(&self) -> String {
        format!("{:?}", self.counts)
    }
}

/// How a backend stands with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It gets new connections.
    Healthy,
    /// It has the weight 0.
    Idle,
    /// Another has its address or MAC.
    Hidden,
    /// Its node is not up.
    Away,
}

/// What a node knows of the service that has a VIP.
struct Known {
    backends: BTreeMap<EndpointId, (RowKey, Standing)>,
    is_settled: bool,
}

impl Known {
    fn standing(&self, endpoint: EndpointId) -> Option<Standing> {
        self.backends.get(&endpoint).map(|(_, standing)| *standing)
    }

    /// Whether an established connection to it goes on.
    fn has(&self, endpoint: EndpointId) -> bool {
        matches!(self.standing(endpoint), Some(Standing::Healthy | Standing::Idle))
    }

    fn healthy(&self) -> Vec<EndpointId> {
        let healthy = self.backends.iter().filter(|(_, it)| it.1 == Standing::Healthy);
        healthy.map(|(endpoint, _)| *endpoint).collect()
    }
}

/// The reference: by a node's objects and records, without the product's own steps from these to
/// the data path.
fn known(life: &Life, is_settled: bool, network: NetworkId, vip: IpAddr) -> Known {
    let holds = |node, ip| life.addresses.holds(network, node, ip);
    let mut open = life.set.all_services().filter(|(id, object, service)| {
        !object.closed()
            && service.network == network
            && service.vips.contains(&vip)
            && holds(holder(*id), vip)
    });
    let mut known = Known { backends: BTreeMap::new(), is_settled };
    let Some((_, _, service)) = open.next() else { return known };
    let is_active = life.set.active_networks().contains(&network);
    let (mut here, mut away) = (Vec::new(), Vec::new());
    for (node, claim) in claims_to(&life.directory, network) {
        let is_its = claim.mac.may_be_of(node) && claim.ips.iter().all(|ip| holds(node, *ip));
        let key = RowKey { node, endpoint: claim.id };
        // A removed node is left with its own.
        let is_member = node == life.me || life.set.members().any(|member| member == node);
        if !is_its || !is_member {
            continue;
        } else if !life.directory.is_up(node) {
            away.push((key, claim));
        } else if is_active && (node == life.me || life.peers.contains_key(&node)) {
            here.push((key, claim));
        }
    }
    for (key, _) in serving(service, &away) {
        known.backends.insert(key.endpoint, (key, Standing::Away));
    }
    for (key, claim) in serving(service, &here) {
        let standing = if !is_reached(life, network, &key, claim, vip) {
            Standing::Hidden
        } else if service.weights.get(&claim.name) == Some(&0) {
            Standing::Idle
        } else {
            Standing::Healthy
        };
        known.backends.insert(key.endpoint, (key, standing));
    }
    known
}

/// Those of the endpoints that a service names.
fn serving<'c>(
    service: &object::Service,
    claims: &[(RowKey, &'c EndpointClaim)],
) -> Vec<(RowKey, &'c EndpointClaim)> {
    let is_oldest = |(key, claim): &(RowKey, &EndpointClaim)| {
        let same = claims.iter().filter(|(_, other)| other.name == claim.name);
        same.map(|(key, claim)| (claim.incarnation, *key)).min() == Some((claim.incarnation, *key))
    };
    let mut all = claims.to_vec();
    all.retain(|of| {
        let is_named = service.backends.contains(&of.1.name) && is_oldest(of);
        let mut labels = service.selector.iter();
        let has_all = labels.all(|(key, value)| of.1.labels.get(key) == Some(value));
        is_named || (has_all && !service.selector.is_empty())
    });
    all
}

/// Whether no other endpoint has the addresses of this one before it.
fn is_reached(
    life: &Life,
    network: NetworkId,
    key: &RowKey,
    claim: &EndpointClaim,
    vip: IpAddr,
) -> bool {
    let Some(local) = life.locals.get(&network) else { return false };
    let has_mac = local.table.fdb(claim.mac).is_some_and(|row| row.key == *key);
    let mut ips = claim.ips.iter().filter(|ip| ip.is_ipv4() == vip.is_ipv4());
    has_mac && ips.any(|ip| local.table.neighbor(*ip).is_some_and(|row| row.key == *key))
}

// ---- what happens

pub(crate) fn choose(world: &mut World) -> Option<Change> {
    let alive = world.alive();
    let on = *world.rng.pick(&alive)?;
    let dice = world.rng.below(100);
    let life = world.nodes[on].life.as_ref()?;
    let networks: Vec<NetworkId> = life.set.active_networks().into_iter().collect();
    let network = world.rng.pick(&networks).copied();
    let services: Vec<ServiceId> = network.map_or_else(Vec::new, |network| {
        life.set.services(network).iter().map(|of| of.id).collect()
    });
    let service = world.rng.pick(&services).copied();
    let endpoints: Vec<EndpointId> = world.endpoints.keys().copied().collect();
    let connections: Vec<u64> = world.clients.connections.keys().copied().collect();
    match dice {
        0..10 => {
            let network = network.filter(|_| services.len() < SERVICES)?;
            let (name, by) = (world.rng.below(SERVICES), by(world));
            Some(Change::Create { on, network, name, by })
        }
        10..20 => {
            let backend = name(world);
            let edits = [Edit::Add, Edit::Add, Edit::Remove, Edit::Weigh(0), Edit::Weigh(1)];
            let edit = *world.rng.pick(&edits)?;
            Some(Change::Update { on, service: service?, backend, edit })
        }
        20..23 => Some(Change::Remove { on, service: service? }),
        23..55 if connections.len() < OPEN => connect(world, &endpoints),
        55..88 => world.rng.pick(&connections).copied().map(Change::Talk),
        23..95 => world.rng.pick(&connections).copied().map(Change::HangUp),
        95..97 => world.rng.pick(&endpoints).copied().map(Change::Deafen),
        _ => world.rng.pick(&endpoints).copied().map(Change::Hear),
    }
}

/// A client and a VIP that its node knows.
fn connect(world: &mut World, endpoints: &[EndpointId]) -> Option<Change> {
    let from = *world.rng.pick(endpoints)?;
    let (n, claim) = world.endpoints.get(&from)?;
    let vips = vips(world.nodes[*n].life.as_ref()?, claim.network);
    let vip = *world.rng.pick(&vips)?;
    Some(Change::Connect { from, vip })
}

/// The addresses of a network's services, given to them or not.
fn vips(life: &Life, network: NetworkId) -> Vec<IpAddr> {
    let services = life.set.services(network);
    services.iter().flat_map(|of| of.service.vips.clone()).collect()
}

fn name(world: &mut World) -> Name {
    format!("e{}", world.rng.below(6)).parse().unwrap()
}

fn by(world: &mut World) -> By {
    if world.rng.chance(500) {
        By::Label(if world.rng.chance(500) { "web" } else { "db" })
    } else {
        By::Names((0..3).map(|_| name(world)).collect())
    }
}

pub(crate) fn apply(world: &mut World, change: &Change) {
    match change {
        Change::Create { on, network, name, by } => create(world, *on, *network, *name, by),
        Change::Update { on, service, backend, edit } => {
            let time = world.time(*on);
            world.with(*on, |life| {
                life.edit_service(time, *service, |service, _| match edit {
                    Edit::Add => service.backends.extend([backend.clone()]),
                    Edit::Remove => service.backends.retain(|name| name != backend),
                    Edit::Weigh(weight) => service.weights.extend([(backend.clone(), *weight)]),
                })
            });
        }
        Change::Remove { on, service } => {
            let time = world.time(*on);
            if world.with(*on, |life| life.close_service(time, *service)) == Some(true) {
                world.closed(*on, *service);
            }
        }
        Change::Connect { from, vip } => {
            world.connect(*from, *vip);
        }
        Change::Talk(connection) => world.talk(*connection),
        Change::HangUp(connection) => world.hang_up(*connection),
        Change::Deafen(endpoint) => world.deafen(*endpoint, true),
        Change::Hear(endpoint) => world.deafen(*endpoint, false),
    }
}

fn create(world: &mut World, on: usize, network: NetworkId, name: usize, by: &By) {
    let time = world.time(on);
    let choice = world.rng.chance(300).then(|| "rr".parse().unwrap());
    let sticky = world.rng.chance(300).then_some(20);
    let (backends, selector) = match by {
        By::Names(names) => (names.clone(), BTreeMap::new()),
        By::Label(app) => {
            (BTreeSet::new(), BTreeMap::from([("app".to_owned(), (*app).to_owned())]))
        }
    };
    world.with(on, |life| {
        let port =
            ServicePort { protocol: TCP, port: VIP_PORT, backend_port: BACKEND_PORT, name: None };
        let service = object::Service {
            name: format!("s{name}").parse().unwrap(),
            network,
            creator: life.me,
            vips: Vec::new(),
            ports: vec![port],
            backends,
            selector,
            weights: BTreeMap::new(),
            choice,
            check: None,
            draining: BTreeMap::new(),
            drain_ms: None,
            prefer: None,
            published: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            sticky,
        };
        life.create_service(time, service)
    });
}

impl World {
    // ---- addresses

    /// A service was made: nobody else has its addresses, and none of them rests.
    pub(crate) fn made(&mut self, n: usize, made: &Made) {
        for vip in &made.vips {
            if self.is_admitted(n) {
                self.check_given(made.network, *vip, &format!("service {}", made.id));
            }
            for (other, claim) in self.endpoints.values() {
                let is_its = claim.network == made.network && claim.ips.contains(vip);
                let both = self.is_admitted(n) && self.is_admitted(*other);
                assert!(!is_its || !both, "VIP {vip} of node {n} is that of {claim:?}");
            }
            let of = Vip { service: made.id, creator: n, closed: None };
            self.clients.vips.insert((made.network, *vip), of);
            self.clients.counts.made += 1;
        }
        self.forget_vips();
    }

    /// No pool gives out the address of an open service, nor one that rests.
    pub(crate) fn check_given(&self, network: NetworkId, ip: IpAddr, to: &str) {
        let Some(vip) = self.clients.vips.get(&(network, ip)) else { return };
        let is_free = vip.closed.is_some_and(|at| at + ADDRESS_QUARANTINE <= self.now);
        let since = vip.closed.map(|at| self.now - at);
        let service = vip.service;
        assert!(is_free, "{to} was given {ip} of service {service}, which ended {since:?} ago");
    }

    fn closed(&mut self, n: usize, service: ServiceId) {
        let is_member = !self.nodes[n].removed;
        let now = self.now;
        self.clients.counts.closed += 1;
        for vip in self.clients.vips.values_mut().filter(|vip| vip.service == service) {
            vip.closed.get_or_insert(now);
        }
        // What a removed node says holds nowhere but there.
        self.clients.vips.retain(|_, vip| vip.service != service || is_member);
    }

    /// What a removed node gave before anybody heard of it is void.
    pub(crate) fn forget_vips(&mut self) {
        let nodes = &self.nodes;
        self.clients.vips.retain(|(network, ip), vip| {
            let knows = |n: &usize| {
                let life = nodes[*n].life.as_ref();
                life.is_some_and(|it| it.addresses.holds(*network, holder(vip.service), *ip))
            };
            let mut others = (0..nodes.len()).filter(|n| *n != vip.creator);
            !nodes[vip.creator].removed || vip.closed.is_some() || others.any(|n| knows(&n))
        });
    }

    /// No VIP is a believed endpoint's address, on any node.
    pub(crate) fn check_vips(&self) {
        for n in self.alive() {
            for (network, local) in &self.nodes[n].life.as_ref().unwrap().locals {
                let specs = local.table.services().into_iter().flat_map(|services| services.iter());
                let vips: BTreeSet<IpAddr> = specs.flat_map(|it| it.spec().vips.clone()).collect();
                let mut claims = local.claims.values();
                let taken = claims.find(|claim| claim.ips.iter().any(|ip| vips.contains(ip)));
                assert!(taken.is_none(), "a VIP of {network} on node {n} is that of {taken:?}");
            }
        }
    }

    // ---- clients

    /// A client begins a connection; nothing if its node does not live.
    pub(crate) fn connect(&mut self, client: EndpointId, vip: IpAddr) -> Option<u64> {
        let (n, claim) = self.endpoints.get(&client)?;
        self.nodes[*n].life.as_ref()?;
        claim.ips.iter().find(|ip| ip.is_ipv4() == vip.is_ipv4())?;
        let id = self.clients.next;
        self.clients.next += 1;
        let port = 10_000 + u16::try_from(id % 20_000).unwrap();
        let again = self.now + SYN_AGAIN[0];
        let connection =
            Connection { client, vip, port, tried: None, tries: 0, again, open: false };
        self.clients.connections.insert(id, connection);
        self.clients.counts.begun += 1;
        self.begin(id);
        Some(id)
    }

    /// What a node knows of a client's service.
    fn known_of(&self, connection: &Connection) -> Option<Known> {
        let (n, claim) = self.endpoints.get(&connection.client)?;
        let life = self.nodes[*n].life.as_ref()?;
        let is_settled = life.is_settled(self.time(*n));
        Some(known(life, is_settled, claim.network, connection.vip))
    }

    /// What becomes of a segment of a client, and the endpoint that it goes to.
    fn say(&mut self, connection: &Connection, flag: Flag) -> Option<(Fate, Option<EndpointId>)> {
        let (n, claim) = self.endpoints.get(&connection.client).cloned()?;
        let ip = *claim.ips.iter().find(|ip| ip.is_ipv4() == connection.vip.is_ipv4())?;
        let id = self.next_id();
        let (from, to) = (SocketAddr::new(ip, connection.port), connection.vip);
        let ends = (from, SocketAddr::new(to, VIP_PORT));
        let frame = tcp((claim.mac, service_mac(claim.network)), ends, flag, id);
        let now = self.now;
        if let Some(life) = self.nodes[n].life.as_mut() {
            life.serving.wake(now);
        }
        let fate = self.offer(connection.client, None, frame, id)?;
        let to = match &fate {
            Fate::Sealed(frame) | Fate::Local(frame) => {
                let mac = segment(frame).unwrap().destination;
                let local = &self.nodes[n].life.as_ref().unwrap().locals[&claim.network];
                Some(local.table.fdb(mac).unwrap().key.endpoint)
            }
            Fate::Answered(_) | Fate::Dropped(..) => None,
        };
        if let Some(sent) = self.sent.get_mut(&id) {
            sent.to = to;
        }
        Some((fate, to))
    }

    /// What a node gave back to its bridge comes to the endpoint that it is for.
    fn pass(&mut self, client: EndpointId, fate: Fate) {
        if let (Some((n, claim)), Fate::Local(frame)) = (self.endpoints.get(&client), fate) {
            let (n, network) = (*n, claim.network);
            self.reached(n, network, &frame);
        }
    }

    /// Sends the SYN of a connection.
    fn begin(&mut self, id: u64) {
        let connection = self.clients.connections[&id].clone();
        let Some(known) = self.known_of(&connection) else { return };
        let Some((fate, to)) = self.say(&connection, Flag::Syn) else { return };
        let is_again = connection.tries > 0;
        if let Some(to) = to {
            self.check_chosen(&connection, &known, to);
        }
        if let Fate::Dropped(reason, answer) = &fate {
            let healthy = known.healthy();
            // A backend that is not known yet may have answered the one before.
            let may_wait = is_again && !known.is_settled && answer.is_empty();
            assert!(
                healthy.is_empty() || may_wait,
                "refused ({reason:?}) while {healthy:?} were known: {connection:?}"
            );
            if answer.is_empty() {
                self.clients.counts.held += 1;
            } else {
                self.clients.counts.refused += 1;
                self.clients.connections.remove(&id);
                return;
            }
        }
        let now = self.now;
        if let Some(connection) = self.clients.connections.get_mut(&id) {
            connection.tried = to.or(connection.tried);
            let wait = SYN_AGAIN.get(connection.tries).copied();
            connection.again = now + wait.unwrap_or(Duration::from_secs(8));
            connection.tries += 1;
        }
        self.pass(connection.client, fate);
    }

    /// A SYN goes to a backend that its node knew to be there, and to none that is out while enough
    /// others are not.
    fn check_chosen(&mut self, connection: &Connection, known: &Known, to: EndpointId) {
        let standing = known.standing(to);
        let stays = connection.tried == Some(to) && standing == Some(Standing::Idle);
        assert!(
            standing == Some(Standing::Healthy) || stays,
            "a new connection to {to}, which is {standing:?}: {connection:?}"
        );
        let (n, claim) = &self.endpoints[&connection.client];
        let life = self.nodes[*n].life.as_ref().unwrap();
        let is_out = |key: &RowKey| {
            let of = BackendPort { key: *key, protocol: Protocol::Tcp, port: BACKEND_PORT };
            let subjects = [Subject::Node(key.node), Subject::Port(claim.network, of)];
            subjects.into_iter().any(|subject| life.serving.ejections.is_out(subject))
        };
        let all = known.backends.values();
        let candidates: Vec<&(RowKey, Standing)> =
            all.filter(|it| matches!(it.1, Standing::Healthy | Standing::Hidden)).collect();
        let out = candidates.iter().filter(|(key, _)| is_out(key)).count();
        let mut others = candidates.iter().filter(|it| it.1 == Standing::Healthy);
        let is_well = others.any(|(key, _)| !is_out(key) && key.endpoint != to);
        if connection.tries == 0 && is_well && is_out(&known.backends[&to].0) {
            let most = candidates.len() / 2;
            assert!(out > most, "{to} is out, one of {out}, at most {most}: {connection:?}");
        }
        self.clients.counts.passed_over += u64::from(out > 0);
    }

    /// Says something in an established connection.
    pub(crate) fn talk(&mut self, id: u64) {
        let Some(connection) = self.clients.connections.get(&id).cloned() else { return };
        let Some(backend) = connection.tried.filter(|_| connection.open) else { return };
        let Some(known) = self.known_of(&connection) else { return };
        let Some((fate, to)) = self.say(&connection, Flag::Ack) else { return };
        let has = known.has(backend);
        match &fate {
            Fate::Dropped(reason, answer) => {
                assert!(!has, "{backend} is there, but lost ({reason:?}): {connection:?}");
                self.clients.counts.held += 1;
                if !answer.is_empty() {
                    assert!(known.is_settled, "reset by who has not heard of all: {connection:?}");
                    self.clients.counts.ended += 1;
                    self.clients.connections.remove(&id);
                }
            }
            _ => {
                assert_eq!(to, Some(backend), "moved to another backend: {connection:?}");
                assert!(has, "{backend} is not there any more: {connection:?}");
                self.clients.counts.said += 1;
            }
        }
        self.pass(connection.client, fate);
    }

    /// Ends a connection.
    pub(crate) fn hang_up(&mut self, id: u64) {
        let Some(connection) = self.clients.connections.remove(&id) else { return };
        let Some((fate, to)) = self.say(&connection, Flag::Rst) else { return };
        assert!(to.is_none() || to == connection.tried, "moved to another: {connection:?}");
        self.pass(connection.client, fate);
    }

    /// Sends again what nobody has answered, of the clients on a node.
    pub(crate) fn retry(&mut self, n: usize) {
        let endpoints = &self.endpoints;
        self.clients.connections.retain(|_, it| endpoints.contains_key(&it.client));
        self.clients.served.retain(|(server, _), _| endpoints.contains_key(server));
        let is_due =
            |it: &Connection| !it.open && it.again <= self.now && self.endpoints[&it.client].0 == n;
        let all = self.clients.connections.iter();
        let due: Vec<u64> = all.filter(|(_, it)| is_due(it)).map(|(id, _)| *id).collect();
        for id in due {
            if self.clients.connections[&id].tries > SYN_AGAIN.len() {
                self.clients.connections.remove(&id);
            } else {
                self.clients.counts.retried += 1;
                self.begin(id);
            }
        }
    }

    /// Whether a server accepts connections.
    pub(crate) fn deafen(&mut self, endpoint: EndpointId, is_deaf: bool) {
        let Some((n, _)) = self.endpoints.get(&endpoint) else { return };
        if let Some(life) = self.nodes[*n].life.as_mut() {
            if is_deaf {
                life.disk.deaf.insert(endpoint);
            } else {
                life.disk.deaf.remove(&endpoint);
            }
        }
    }

    // ---- what comes to an endpoint

    /// A frame comes to whichever endpoint of a node it is for.
    pub(crate) fn reached(&mut self, n: usize, network: NetworkId, frame: &[u8]) {
        let Some(segment) = segment(frame) else { return };
        let mut here = self.endpoints.iter().filter(|(_, (node, it))| {
            *node == n && it.network == network && it.mac == segment.destination
        });
        let Some(endpoint) = here.next().map(|(endpoint, _)| *endpoint) else { return };
        if segment.to.port() == BACKEND_PORT {
            self.serve(endpoint, &segment);
        } else {
            self.hear(endpoint, &segment);
        }
    }

    /// A server takes a segment.
    fn serve(&mut self, endpoint: EndpointId, segment: &Segment) {
        let (n, claim) = self.endpoints[&endpoint].clone();
        let key = (endpoint, segment.from);
        // What came from the services' own MAC, the bridge learned: its answers go to the agent.
        let is_local = segment.source == service_source_mac(claim.network);
        let mac = if is_local { service_mac(claim.network) } else { segment.source };
        let is_deaf =
            self.nodes[n].life.as_ref().is_some_and(|it| it.disk.deaf.contains(&endpoint));
        let flag = match segment.flag {
            Flag::Syn if is_deaf => return,
            Flag::Syn => {
                self.clients.served.insert(key, mac);
                Flag::SynAck
            }
            Flag::Rst => {
                self.clients.served.remove(&key);
                return;
            }
            _ if self.clients.served.contains_key(&key) => Flag::Ack,
            _ => Flag::Rst,
        };
        let id = self.next_id();
        let frame = tcp((claim.mac, mac), (segment.to, segment.from), flag, id);
        if let Some(fate) = self.offer(endpoint, None, frame, id) {
            self.pass(endpoint, fate);
        }
    }

    /// A client takes a segment; what is of no connection of its own is nothing to it.
    fn hear(&mut self, client: EndpointId, segment: &Segment) {
        let mut own = self.clients.connections.iter_mut().filter(|(_, it)| {
            (it.client, it.vip, it.port) == (client, segment.from.ip(), segment.to.port())
        });
        let Some((id, connection)) = own.next() else { return };
        let id = *id;
        match segment.flag {
            Flag::SynAck if !connection.open => {
                connection.open = true;
                self.clients.counts.established += 1;
                self.talk(id);
            }
            Flag::Rst => {
                self.clients.counts.ended += 1;
                self.clients.connections.remove(&id);
            }
            _ => {}
        }
    }
}

// ---- after quiet

/// The backends of the samples.
type Choices = Vec<Option<RowKey>>;

/// All nodes of a network have the same services, and choose alike.
pub(crate) fn check_equal(world: &World) {
    let mut first: BTreeMap<NetworkId, (usize, Vec<ServiceSpec>, Choices)> = BTreeMap::new();
    for n in world.members() {
        for (network, local) in &world.nodes[n].life.as_ref().unwrap().locals {
            let services: Vec<_> =
                local.table.services().into_iter().flat_map(|it| it.iter()).collect();
            let specs =
                services.iter().map(|it| ServiceSpec { out: Vec::new(), ..it.spec().clone() });
            let specs: Vec<ServiceSpec> = specs.collect();
            let mut choices = Choices::new();
            for service in services.iter().filter(|it| it.spec().choice == Choice::Maglev) {
                let vip = service.spec().vips[0];
                choices.extend((0..SAMPLES).map(|sample| {
                    let flow = Tuple {
                        network: *network,
                        protocol: TCP,
                        source: SocketAddr::new(vip, sample),
                        destination: SocketAddr::new(vip, VIP_PORT),
                        via: None,
                    };
                    let is_there = |key: &RowKey| local.table.row(key).is_some();
                    service.choose(&flow, |backend| is_there(&backend.key)).map(|it| it.key)
                }));
            }
            let (other, held, chosen) =
                first.entry(*network).or_insert_with(|| (n, specs.clone(), choices.clone()));
            assert_eq!(*held, specs, "services of {network} on nodes {other} and {n}");
            assert!(*chosen == choices, "nodes {other} and {n} choose differently in {network}");
        }
    }
}

/// Whoever shares a network with a service is served, or refused where nobody answers.
pub(crate) fn check_served(world: &mut World) {
    let endpoints = world.endpoints.clone();
    endpoints.keys().for_each(|endpoint| world.deafen(*endpoint, false));
    // Also those that are out longest are tried again by then.
    world.run(Duration::from_secs(31));
    let mut begun = Vec::new();
    for (endpoint, (n, claim)) in &endpoints {
        let Some(life) = world.nodes[*n].life.as_ref() else { continue };
        for vip in vips(life, claim.network) {
            begun.extend(world.connect(*endpoint, vip));
        }
    }
    world.run(Duration::from_secs(10));
    let waiting: Vec<&Connection> = begun
        .iter()
        .filter_map(|id| world.clients.connections.get(id))
        .filter(|it| !it.open && world.known_of(it).is_some_and(|it| !it.healthy().is_empty()))
        .collect();
    assert!(waiting.is_empty(), "not served: {waiting:?}");
}
