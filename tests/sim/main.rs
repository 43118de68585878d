//! Many nodes in virtual time: the real sessions, tables, data path, objects, records, address
//! pools and reconciliation, over a network that loses, doubles, delays and cuts. Chitchat and QUIC
//! are models here; one seed decides everything. `VXMESH_SIM_SEEDS=100` tries more of them.
//!
//! ```text
//! VXMESH_SIM_SEED=7 VXMESH_SIM_STEPS=400 cargo test -p vxmesh-tests --test sim
//! ```
//!
//! At every step: no address twice (I12), nothing delivered that its sender does not own (I3), no
//! plaintext on the wire (I10), one verdict for each frame (I4), and what is said of connections to
//! services in [`services`]. After quiet: equal objects, records, tables and services (I11),
//! whoever shares a network reaches each other, and its services, and who sends datagrams to a
//! backend that falls silent hears another one within a second.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod life;
mod parts;
mod rng;
mod services;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::IpAddr,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use ipnet::IpNet;
use vxmesh_proto::{
    addr::{EndpointId, NetworkId, Vni},
    ipam::{Subnet, first_split},
    object::{self, Content},
    record::{Claim, EndpointClaim},
    wire::Ethernet,
};
use world::{Link, World};

const SEEDS: u64 = 6;
/// Those of which services are tried.
const SERVED: u64 = 10;
const STEPS: usize = 60;
/// Nodes of the longest run.
const NODES: usize = 6;
/// A step is followed by less than so many that concern services.
const SERVING: usize = 4;

/// What may happen.
#[derive(Clone, Debug)]
enum Transition {
    CreateNetwork { on: usize, name: usize },
    ExtendNetwork { on: usize, network: NetworkId },
    RemoveNetwork { on: usize, network: NetworkId },
    Attach { on: usize, network: NetworkId, wanted: Option<u8> },
    Detach { endpoint: EndpointId },
    Send { from: EndpointId, to: EndpointId },
    Broadcast { from: EndpointId },
    Forge { by: usize, as_of: EndpointId },
    Noise { from: usize, to: usize },
    Cut,
    Heal,
    Weather,
    Kill(usize),
    Restart(usize),
    Leave(usize),
    Remove(usize),
    Join,
    Wait(u64),
}

#[test]
fn a_mesh_keeps_its_promises_whatever_happens() {
    let steps = number("VXMESH_SIM_STEPS").map_or(STEPS, |steps| usize::try_from(steps).unwrap());
    for seed in seeds(SEEDS) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| simulate(seed, steps))) {
            eprintln!(
                "replay: VXMESH_SIM_SEED={seed} VXMESH_SIM_STEPS={steps} cargo test -p vxmesh-tests --test sim -- --nocapture"
            );
            resume_unwind(panic);
        }
    }
}

#[test]
fn a_seed_says_everything() {
    let run = || {
        let world = simulate(3, 25);
        let hashes: Vec<String> = world.members().iter().map(|n| hash(&world, *n)).collect();
        (hashes, format!("{:?} {}", world.counts, world.clients.counts()))
    };
    assert_eq!(run(), run());
}

fn simulate(seed: u64, steps: usize) -> World {
    let count = 5 + usize::try_from(seed % 3).unwrap() * 4;
    let mut world = World::new(count, seed);
    world.run(Duration::from_secs(5));
    for _ in 0..steps {
        let transition = choose(&mut world);
        if env::var_os("VXMESH_SIM_SEED").is_some() {
            println!("{transition:?}");
        }
        apply(&mut world, &transition);
        for _ in 0..world.rng.below(SERVING) {
            serve(&mut world);
        }
        let pause = 20 + u64::try_from(world.rng.below(400)).unwrap();
        world.run(Duration::from_millis(pause));
    }
    end(&mut world);
    world
}

/// Ten minutes of joins, kills, drains and partitions, with a connection begun or used at most
/// steps.
#[test]
fn services_keep_their_promises_for_ten_minutes() {
    serve_for(Duration::from_secs(600), number("VXMESH_SIM_SEED").unwrap_or(1));
}

/// Two minutes of each of several seeds: what they begin with finds more than one that goes on.
#[test]
fn services_keep_their_promises_by_many_seeds() {
    for seed in seeds(SERVED) {
        if let Err(panic) =
            catch_unwind(AssertUnwindSafe(|| serve_for(Duration::from_secs(120), seed)))
        {
            eprintln!(
                "replay: VXMESH_SIM_SEED={seed} cargo test -p vxmesh-tests --test sim -- by_many_seeds --nocapture"
            );
            resume_unwind(panic);
        }
    }
}

/// The seed that is asked for, or as many as are asked for, or `count`.
fn seeds(count: u64) -> Range<u64> {
    match (number("VXMESH_SIM_SEED"), number("VXMESH_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, asked) => 0..asked.unwrap_or(count),
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect(name))
}

fn serve_for(span: Duration, seed: u64) {
    let mut world = World::new(5, seed);
    world.run(Duration::from_secs(5));
    let end_at = world.now + span;
    while world.now < end_at {
        let transition = choose(&mut world);
        // What a step costs grows with the square of the number of nodes.
        if !matches!(transition, Transition::Join) || world.members().len() < NODES {
            if env::var_os("VXMESH_SIM_SEED").is_some() {
                println!("{transition:?}");
            }
            apply(&mut world, &transition);
        }
        (0..2).for_each(|_| serve(&mut world));
        // Most are up: otherwise there is nobody to be known.
        let is_dead = |node: &world::Node| node.life.is_none() && !node.left && !node.removed;
        let dead = world.nodes.iter().position(is_dead);
        if let Some(n) = dead.filter(|_| world.rng.chance(100)) {
            apply(&mut world, &Transition::Restart(n));
        }
        let pause = 50 + u64::try_from(world.rng.below(900)).unwrap();
        world.run(Duration::from_millis(pause));
    }
    end(&mut world);
}

/// What happens to services in a step.
fn serve(world: &mut World) {
    if let Some(change) = services::choose(world) {
        if env::var_os("VXMESH_SIM_SEED").is_some() {
            println!("{change:?}");
        }
        services::apply(world, &change);
    }
    world.check_vips();
}

fn end(world: &mut World) {
    quiet(world);
    check_equal(world);
    services::check_equal(world);
    check_reach(world);
    services::check_served(world);
    services::check_moves(world);
    check_counts(world);
}

fn choose(world: &mut World) -> Transition {
    let alive = world.alive();
    let on = *world.rng.pick(&alive).expect("somebody lives");
    let endpoints: Vec<EndpointId> = world.endpoints.keys().copied().collect();
    let from = world.rng.pick(&endpoints).copied();
    let to = world.rng.pick(&endpoints).copied();
    let life = world.nodes[on].life.as_ref().unwrap();
    let networks: Vec<NetworkId> = life.set.active_networks().into_iter().collect();
    let network = world.rng.pick(&networks).copied();
    let other = world.rng.below(world.nodes.len());
    let dice = world.rng.below(100);
    match (dice, network, from, to) {
        (0..5, ..) => Transition::CreateNetwork { on, name: world.rng.below(4) },
        (5..7, Some(network), ..) => Transition::RemoveNetwork { on, network },
        (7..9, Some(network), ..) => Transition::ExtendNetwork { on, network },
        (9..30, Some(network), ..) => {
            let wanted = world.rng.chance(300).then(|| world.rng.next().to_le_bytes()[0] % 30);
            Transition::Attach { on, network, wanted }
        }
        (30..36, _, Some(endpoint), _) => Transition::Detach { endpoint },
        (36..60, _, Some(from), Some(to)) => Transition::Send { from, to },
        (60..64, _, Some(from), _) => Transition::Broadcast { from },
        (64..67, _, Some(as_of), _) => Transition::Forge { by: on, as_of },
        (67..69, ..) => Transition::Noise { from: other, to: on },
        (69..73, ..) => Transition::Cut,
        (73..78, ..) => Transition::Heal,
        (78..82, ..) => Transition::Weather,
        (82..86, ..) if alive.len() > 2 => Transition::Kill(on),
        (86..92, ..) => Transition::Restart(other),
        (92, ..) if alive.len() > 3 && on != 0 => Transition::Leave(on),
        (93, ..) if world.nodes.len() < 30 && world.nodes[0].life.is_some() => Transition::Join,
        (94, ..) if removable(world, other) => Transition::Remove(other),
        _ => Transition::Wait(u64::try_from(world.rng.below(8)).unwrap()),
    }
}

/// Whether the issuer lives, and enough members are left without this one.
fn removable(world: &World, n: usize) -> bool {
    let node = &world.nodes[n];
    let open = world.nodes.iter().filter(|node| !node.left && !node.removed).count();
    n != 0 && open > 3 && !node.left && !node.removed && world.nodes[0].life.is_some()
}

fn apply(world: &mut World, transition: &Transition) {
    match *transition {
        Transition::CreateNetwork { on, name } => create_network(world, on, name),
        Transition::ExtendNetwork { on, network } => extend_network(world, on, network),
        Transition::RemoveNetwork { on, network } => {
            let time = world.time(on);
            let used = |(_, claim): &(usize, EndpointClaim)| claim.network == network;
            // The agent refuses this where it knows of endpoints; those that it does not know of
            // are cut off.
            if !world.endpoints.values().any(used) {
                world.with(on, |life| {
                    let has_services = !life.set.services(network).is_empty();
                    (!has_services).then(|| life.remove_network(time, network))
                });
            }
        }
        Transition::Attach { on, network, wanted } => {
            let time = world.time(on);
            world.with(on, |life| {
                let wanted = wanted.and_then(|host| {
                    let subnet = *life.addresses.subnets(network).first()?;
                    let IpAddr::V4(first) = subnet.network() else { return None };
                    Some(IpAddr::V4((u32::from(first) + u32::from(host)).into()))
                });
                life.attach(time, network, wanted.into_iter().collect())
            });
        }
        Transition::Detach { endpoint } => {
            let (node, _) = world.endpoints[&endpoint];
            let time = world.time(node);
            if world.with(node, |life| life.detach(time, endpoint)).is_some() {
                world.endpoints.remove(&endpoint);
            }
        }
        Transition::Send { from, to } => send(world, from, to),
        Transition::Broadcast { from } => {
            let (_, claim) = world.endpoints[&from].clone();
            let id = world.next_id();
            let everybody = vxmesh_proto::addr::MacAddr([0xff; 6]);
            let frame = world::udp(claim.mac, everybody, claim.ips[0], claim.ips[0], id);
            world.send(from, None, frame, id);
        }
        Transition::Forge { by, as_of } => {
            let (node, claim) = world.endpoints[&as_of].clone();
            let target =
                world.endpoints.values().find(|(n, c)| *n != by && c.network == claim.network);
            if let (Some((_, to)), true) = (target.cloned(), node != by) {
                let id = world.next_id();
                let frame = world::udp(claim.mac, to.mac, claim.ips[0], to.ips[0], id);
                world.forge(by, claim.network, &frame, id);
            }
        }
        Transition::Noise { from, to } => {
            let mut bytes = world.rng.bytes::<200>().to_vec();
            bytes[0] = 1 + world.rng.next().to_le_bytes()[0] % 4;
            bytes[1] = 1;
            world.noise(from, to, bytes);
        }
        Transition::Cut => {
            for n in 0..world.groups.len() {
                world.groups[n] = world.rng.next().to_le_bytes()[0] & 1;
            }
        }
        Transition::Heal => world.groups.fill(0),
        Transition::Weather => {
            world.link = Link {
                loss: world.rng.below(200),
                doubling: world.rng.below(200),
                jitter_ms: 1 + world.rng.below(80),
            };
        }
        Transition::Kill(n) => world.kill(n),
        Transition::Restart(n) => {
            if !world.nodes[n].left && world.nodes[n].life.is_none() {
                world.boot(n);
            }
        }
        Transition::Leave(n) => world.leave(n),
        Transition::Remove(n) => world.remove(n),
        Transition::Join => world.join(),
        Transition::Wait(seconds) => world.run(Duration::from_secs(seconds)),
    }
}

/// Each node has its own subnets to add: what overlaps is put aside, and its addresses with it.
fn extend_network(world: &mut World, on: usize, network: NetworkId) {
    let time = world.time(on);
    let third = world.rng.below(200);
    let cidr: IpNet = format!("10.{}.{third}.0/28", 100 + on).parse().unwrap();
    world.with(on, |life| {
        if !life.addresses.subnets(network).contains(&cidr) {
            life.extend_network(time, network, &Subnet::new(cidr, None, []).unwrap());
        }
    });
}

/// Small subnets and few names and numbers, so that blocks run out and networks collide.
fn create_network(world: &mut World, on: usize, name: usize) {
    let time = world.time(on);
    let third = world.rng.below(200);
    let vni = Vni::new(u32::try_from(1 + world.rng.below(6)).unwrap()).unwrap();
    world.with(on, |life| {
        let name = format!("net{name}");
        let taken = life.set.networks().iter().any(|(_, object, _)| {
            matches!(object.content(), Content::Network(n) if n.name.as_str() == name || n.vni == vni)
        });
        if taken {
            return;
        }
        let cidrs = [format!("10.64.{third}.0/27"), format!("fd00:{third:x}::/122")];
        let subnets: Vec<Subnet> =
            cidrs.iter().map(|cidr| Subnet::new(cidr.parse().unwrap(), None, []).unwrap()).collect();
        let up: Vec<_> = life.directory.up().collect();
        let blocks = subnets.iter().flat_map(|subnet| first_split(subnet, life.me, up.iter().copied()));
        let network = object::Network {
            name: name.parse().unwrap(),
            creator: life.me,
            driver: "overlay".parse().unwrap(),
            vni,
            encrypted: true,
            vteps: Vec::new(),
            mtu: 1390,
            subnets: subnets
                .iter()
                .map(|s| object::Subnet::whole(s.cidr(), s.gateway()))
                .collect(),
            internal: false,
            isolated: false,
            limits: Default::default(),
            dns: Vec::new(),
            labels: BTreeMap::new(),
            blocks: blocks.map(|(cidr, owner): (IpNet, _)| object::Block { cidr, owner }).collect(),
        };
        life.create_network(time, network);
    });
}

/// Asks for the other's MAC as an endpoint does, then sends; a node that knows better than the
/// reference is wrong.
fn send(world: &mut World, from: EndpointId, to: EndpointId) {
    let ((node, source), (place, target)) =
        (world.endpoints[&from].clone(), world.endpoints[&to].clone());
    if source.network != target.network || node == place {
        return;
    }
    let id = world.next_id();
    if let Some(question) = world::arp(source.mac, source.ips[0], target.ips[0])
        && let Some(answer) = world.send(from, Some(to), question, id)
    {
        let mac = Ethernet::parse(&answer).unwrap().source;
        // The addresses of a removed node are given anew once all members have heard of it.
        let is_given = world.is_admitted(node) && world.is_admitted(place);
        assert!(
            mac == target.mac || !is_given,
            "the table gives another MAC: {mac} for {target:?}"
        );
    }
    let version = world.rng.below(source.ips.len().min(target.ips.len()));
    let id = world.next_id();
    let frame = world::udp(source.mac, target.mac, source.ips[version], target.ips[version], id);
    world.send(from, Some(to), frame, id);
}

/// Heals everything, starts most of what was killed, and lets the mesh come to rest.
fn quiet(world: &mut World) {
    world.groups.fill(0);
    world.link = Link { loss: 0, doubling: 0, jitter_ms: 5 };
    let removed: Vec<bool> = world.nodes.iter().map(|node| node.removed).collect();
    world.endpoints.retain(|_, (node, _)| !removed[*node]);
    for n in 0..world.nodes.len() {
        if world.nodes[n].life.is_none() && !world.nodes[n].left && world.rng.chance(800) {
            world.boot(n);
        }
    }
    for _ in 0..60 {
        world.run(Duration::from_secs(1));
        let alive = world.members();
        let busy = alive.iter().any(|n| world.nodes[*n].life.as_ref().unwrap().is_busy());
        let hashes: BTreeSet<String> = alive.iter().map(|n| hash(world, *n)).collect();
        if hashes.len() == 1 && !busy {
            break;
        }
    }
    // Longer than it takes to find out who is dead.
    world.run(Duration::from_secs(15));
}

fn hash(world: &World, n: usize) -> String {
    world.nodes[n].life.as_ref().unwrap().set.content_hash()
}

/// I11: all live nodes know the same.
fn check_equal(world: &World) {
    let alive = world.members();
    let mut tables: BTreeMap<NetworkId, (usize, Vec<String>)> = BTreeMap::new();
    let mut first: Option<(usize, String, Vec<String>, Vec<_>)> = None;
    for n in alive {
        let life = world.nodes[n].life.as_ref().unwrap();
        let records = life.directory.records().map(|entry| &entry.record);
        let claims: Vec<String> = records
            .filter(|record| !matches!(record.claim(), Claim::Gone))
            .map(|record| record.text().to_string())
            .collect();
        let up: Vec<_> = life.directory.up().collect();
        match &first {
            None => first = Some((n, hash(world, n), claims, up)),
            Some((other, objects, records, nodes)) => {
                assert_eq!(*objects, hash(world, n), "I11: objects of nodes {other} and {n}");
                assert_eq!(*records, claims, "I11: records of nodes {other} and {n}");
                assert_eq!(*nodes, up, "I11: who is up, as nodes {other} and {n} see it");
            }
        }
        for (id, local) in &life.locals {
            let rows = local.table.rows();
            let mut rows: Vec<String> =
                rows.map(|r| format!("{:?} {} {:?} {}", r.key, r.mac, r.ips, r.rank)).collect();
            rows.sort();
            let (other, held) = tables.entry(*id).or_insert_with(|| (n, rows.clone()));
            assert_eq!(*held, rows, "I11: tables of {id} on nodes {other} and {n}");
        }
    }
}

/// Who shares a network reaches each other: each frame is delivered, to the right endpoint.
fn check_reach(world: &mut World) {
    let Some(n) = world.members().first().copied() else { return };
    let active = world.nodes[n].life.as_ref().unwrap().set.active_networks();
    let mut open: Vec<(EndpointId, EndpointId)> = Vec::new();
    for (a, (from, one)) in &world.endpoints {
        for (b, (to, other)) in &world.endpoints {
            let alive = world.nodes[*from].life.is_some() && world.nodes[*to].life.is_some();
            if alive && from != to && one.network == other.network && active.contains(&one.network)
            {
                open.push((*a, *b));
            }
        }
    }
    // A node that found another unreachable for long tries again after five minutes.
    for _ in 0..40 {
        let round = world.next_id();
        for (from, to) in &open {
            send(world, *from, *to);
        }
        world.run(Duration::from_secs(10));
        let arrived: BTreeSet<(usize, EndpointId)> = world
            .sent
            .range(round..)
            .filter(|(_, sent)| !sent.delivered.is_empty())
            .filter_map(|(_, sent)| Some((sent.from, sent.to?)))
            .collect();
        let endpoints = &world.endpoints;
        open.retain(|(from, to)| !arrived.contains(&(endpoints[from].0, *to)));
        if open.is_empty() {
            return;
        }
    }
    panic!("these do not reach each other: {open:?}");
}

/// I4: nothing is lost without a count.
fn check_counts(world: &mut World) {
    let waits = |world: &World| {
        let lives = world.nodes.iter().filter_map(|node| node.life.as_ref());
        lives.map(|life| life.waiting_frames).sum::<i64>()
    };
    if waits(world) > 0 {
        // Frames for a node that died wait until the handshake is given up, which is counted.
        world.run(Duration::from_secs(120));
    }
    let counts = world.counts;
    println!("{} nodes, {} endpoints: {counts:?}", world.nodes.len(), world.endpoints.len());
    println!("services: {}", world.clients.counts());
    assert_eq!(counts.frames, counts.verdicts, "I4: {counts:?}");
    let ends = counts.lost + counts.delivered + counts.refused + world.in_flight();
    assert_eq!(counts.sealed + counts.doubled, ends, "I4: {counts:?}");
    assert_eq!(waits(world), 0, "frames wait for ever");
}
