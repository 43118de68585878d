//! Services in the simulation: connections as clients and servers see them, and what must hold of
//! each.
//!
//! The reference is [`known`]. By it a new connection goes to a backend that the node knew to be
//! there, is refused only where it knew none, and an established one keeps its backend. Who sends
//! datagrams moves when its own backend is gone, drained, failing or silent, and only then. Clients
//! from outside come in by the router of any node, and hear their answers there. The bridge of a
//! host is a model here: what a local backend answers goes to the agent, as its rules have it.

mod clients;
mod datagrams;
mod known;
mod quiet;
mod segment;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

pub(crate) use clients::{Call, Clients};
pub(crate) use quiet::{check_equal, check_moves, check_served};
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId, ServiceId},
    limits::ADDRESS_QUARANTINE,
    object::{self, HealthCheck, PublishedPort, ServicePort, holder},
    wire::{TCP, UDP},
};

use crate::{
    life::{BACKEND_PORT, Life, Made, VIP_PORT},
    world::World,
};

/// Connections that there are at once, and clients that send datagrams.
const OPEN: usize = 60;
const SENDING: usize = 6;
/// Services that a network has at once.
const SERVICES: usize = 3;

const CHECK: HealthCheck =
    HealthCheck { path: None, interval_ms: 1_000, timeout_ms: 500, rise: 2, fall: 2 };

/// What may happen to services.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Create {
        on: usize,
        network: NetworkId,
        name: usize,
        by: By,
    },
    Update {
        on: usize,
        service: ServiceId,
        backend: Name,
        edit: Edit,
    },
    Remove {
        on: usize,
        service: ServiceId,
    },
    /// All backends of a node, or none of them any more.
    Drain {
        on: usize,
        is_drained: bool,
    },
    Connect(Call),
    Talk(u64),
    HangUp(u64),
    Close(u64),
    Send(Call),
    Pause(u64),
    Deafen(EndpointId),
    Hear(EndpointId),
    /// Its checks fail, or pass again.
    Sicken(EndpointId),
    Recover(EndpointId),
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
    /// It gets none, and loses after a while those that it has; or not any more.
    Drain(bool),
    /// Its ports are for clients from outside, too, or are not any more.
    Publish(bool),
    /// Its backends are checked, or are not any more.
    Check(bool),
}

/// An address that was given to a service.
pub(crate) struct Vip {
    service: ServiceId,
    creator: usize,
    closed: Option<Instant>,
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
    let (connections, senders) = (world.clients.connections(), world.clients.senders());
    match dice {
        0..8 => {
            let network = network.filter(|_| services.len() < SERVICES)?;
            let (name, by) = (world.rng.below(SERVICES), by(world));
            Some(Change::Create { on, network, name, by })
        }
        8..20 => {
            let (backend, publish) = (name(world), Edit::Publish(world.rng.chance(750)));
            let check = Edit::Check(world.rng.chance(600));
            let edits = [Edit::Add, Edit::Add, Edit::Remove, Edit::Weigh(0), Edit::Weigh(1)];
            let drains = [Edit::Drain(true), Edit::Drain(false), Edit::Drain(false)];
            let edit =
                *world.rng.pick(&[&edits[..], &drains, &[publish, publish, check]].concat())?;
            Some(Change::Update { on, service: service?, backend, edit })
        }
        20..22 => Some(Change::Remove { on, service: service? }),
        22..24 => Some(Change::Drain { on, is_drained: world.rng.chance(350) }),
        24..40 if connections.len() < OPEN => call(world, &endpoints, TCP).map(Change::Connect),
        40..50 if connections.len() < OPEN => from_outside(world, TCP).map(Change::Connect),
        50..56 if connections.len() < OPEN => world.call_again().map(Change::Connect),
        56..78 => world.rng.pick(&connections).copied().map(Change::Talk),
        78..86 => world.rng.pick(&connections).copied().map(Change::Close),
        24..56 | 86..88 => world.rng.pick(&connections).copied().map(Change::HangUp),
        88..91 if senders.len() < SENDING => call(world, &endpoints, UDP).map(Change::Send),
        91..93 if senders.len() < SENDING => from_outside(world, UDP).map(Change::Send),
        88..95 => world.rng.pick(&senders).copied().map(Change::Pause),
        95..96 => world.rng.pick(&endpoints).copied().map(Change::Deafen),
        96..97 => world.rng.pick(&endpoints).copied().map(Change::Sicken),
        97..98 => world.rng.pick(&endpoints).copied().map(Change::Recover),
        _ => world.rng.pick(&endpoints).copied().map(Change::Hear),
    }
}

/// A client, and a VIP that its node knows.
fn call(world: &mut World, endpoints: &[EndpointId], protocol: u8) -> Option<Call> {
    let client = *world.rng.pick(endpoints)?;
    let (n, claim) = world.endpoints.get(&client)?;
    let vips = vips(world.nodes[*n].life.as_ref()?, claim.network);
    let vip = *world.rng.pick(&vips)?;
    world.new_call(client, vip, protocol)
}

/// The same of a client outside, which comes in by the router of any node. Some call by two.
fn from_outside(world: &mut World, protocol: u8) -> Option<Call> {
    let routers = world.routers();
    let client = *world.rng.pick(&routers)?;
    let (n, claim) = world.endpoints.get(&client)?;
    let vips = vips(world.nodes[*n].life.as_ref()?, claim.network);
    let vip = *world.rng.pick(&vips)?;
    let host = u8::try_from(1 + world.rng.below(3)).unwrap();
    let call = world.new_call_from(client, outside(vip.is_ipv4(), host), vip, protocol);
    let others = world.clients.outside_of(vip.is_ipv4());
    let same = world.rng.pick(&others).copied().filter(|_| world.rng.chance(300));
    Some(Call { own: same.unwrap_or(call.own), ..call })
}

/// An address in none of the networks.
fn outside(is_ipv4: bool, host: u8) -> IpAddr {
    if is_ipv4 {
        IpAddr::from([203, 0, 113, host])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)])
    }
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
                life.edit_service(time, *service, |service| match edit {
                    Edit::Add => service.backends.extend([backend.clone()]),
                    Edit::Remove => service.backends.retain(|name| name != backend),
                    Edit::Weigh(weight) => service.weights.extend([(backend.clone(), *weight)]),
                    Edit::Drain(true) => {
                        service.draining.entry(backend.clone()).or_insert(time.wall_ms);
                    }
                    Edit::Drain(false) => drop(service.draining.remove(backend)),
                    Edit::Publish(is_published) => publish(service, *is_published),
                    Edit::Check(is_checked) => service.check = is_checked.then_some(CHECK),
                })
            });
            if matches!(edit, Edit::Publish(true)) {
                world.plug_routers();
            }
        }
        Change::Remove { on, service } => {
            let time = world.time(*on);
            if world.with(*on, |life| life.close_service(time, *service)) == Some(true) {
                world.closed(*on, *service);
            }
        }
        Change::Drain { on, is_drained } => {
            let time = world.time(*on);
            world.with(*on, |life| life.drain(time, *is_drained));
        }
        Change::Connect(call) => {
            world.connect(*call);
        }
        Change::Talk(connection) => world.talk(*connection),
        Change::HangUp(connection) => world.hang_up(*connection),
        Change::Close(connection) => world.close(*connection),
        Change::Send(call) => {
            world.send_on(*call);
        }
        Change::Pause(sender) => world.pause(*sender),
        Change::Deafen(endpoint) => world.deafen(*endpoint, true),
        Change::Hear(endpoint) => world.deafen(*endpoint, false),
        Change::Sicken(endpoint) => world.sicken(*endpoint, true),
        Change::Recover(endpoint) => world.sicken(*endpoint, false),
    }
}

fn create(world: &mut World, on: usize, network: NetworkId, name: usize, by: &By) {
    let time = world.time(on);
    let choice = world.rng.chance(300).then(|| "rr".parse().unwrap());
    let sticky = world.rng.chance(300).then_some(20);
    // Less than a mesh takes to come to rest: all nodes are to see the same then.
    let drain_ms = *world.rng.pick(&[1_000, 10_000]).unwrap();
    let (backends, selector) = match by {
        By::Names(names) => (names.clone(), BTreeMap::new()),
        By::Label(app) => {
            (BTreeSet::new(), BTreeMap::from([("app".to_owned(), (*app).to_owned())]))
        }
    };
    world.with(on, |life| {
        let port = |protocol| ServicePort {
            protocol,
            port: VIP_PORT,
            backend_port: BACKEND_PORT,
            name: None,
        };
        let service = object::Service {
            name: format!("s{name}").parse().unwrap(),
            network,
            creator: life.me,
            vips: Vec::new(),
            ports: vec![port(TCP), port(UDP)],
            backends,
            selector,
            weights: BTreeMap::new(),
            choice,
            check: None,
            draining: BTreeMap::new(),
            drain_ms: Some(drain_ms),
            prefer: None,
            published: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            sticky,
        };
        life.create_service(time, service)
    });
}

fn publish(service: &mut object::Service, is_published: bool) {
    let port = |protocol| PublishedPort {
        protocol,
        host_port: VIP_PORT,
        port: VIP_PORT,
        ip: None,
        is_local: false,
    };
    service.published = if is_published { vec![port(TCP), port(UDP)] } else { Vec::new() };
}

impl World {
    /// Nodes that have a network whose services are published get a router in it.
    fn plug_routers(&mut self) {
        for n in self.alive() {
            let (time, life) = (self.time(n), self.nodes[n].life.as_ref().unwrap());
            let networks: Vec<NetworkId> = life.locals.keys().copied().collect();
            for network in networks {
                self.with(n, |life| life.plug_router(time, network));
            }
        }
    }

    pub(super) fn routers(&self) -> Vec<EndpointId> {
        let routers = self.endpoints.iter().filter(|(_, (_, claim))| claim.router);
        routers.map(|(endpoint, _)| *endpoint).collect()
    }

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
}
