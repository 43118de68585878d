//! What must hold of services once a mesh has come to rest.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    lb::{Choice, ServiceSpec, flows::Tuple},
    tables::RowKey,
    wire::{TCP, UDP},
};

use super::{outside, vips};
use crate::{life::VIP_PORT, world::World};

/// Tuples for which all nodes must choose alike.
const SAMPLES: u16 = 200;
/// How long a client that never pauses may hear nothing.
const MOVES: Duration = Duration::from_secs(1);

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

/// Whoever shares a network with a service is served, and so is a client outside by each router, or
/// refused where nobody answers.
pub(crate) fn check_served(world: &mut World) {
    let endpoints = world.endpoints.clone();
    for endpoint in endpoints.keys() {
        world.deafen(*endpoint, false);
        world.sicken(*endpoint, false);
    }
    // Also those that are out longest are tried again by then.
    world.run(Duration::from_secs(31));
    let mut begun = Vec::new();
    for (endpoint, (n, claim)) in &endpoints {
        let Some(life) = world.nodes[*n].life.as_ref() else { continue };
        for vip in vips(life, claim.network) {
            let inside = world.new_call(*endpoint, vip, TCP);
            let own = outside(vip.is_ipv4(), 9);
            let by = claim.router.then(|| world.new_call_from(*endpoint, own, vip, TCP));
            let calls = inside.into_iter().chain(by);
            begun.extend(calls.filter_map(|call| Some((world.connect(call)?, call))));
        }
    }
    world.run(Duration::from_secs(10));
    let is_waiting = |(id, call): &&(u64, super::Call)| {
        let known = world.known_of(call).filter(|known| !call.is_shut_out(known));
        let may_be = known.is_some_and(|known| !known.healthy().is_empty());
        may_be && world.clients.is_open(*id) == Some(false)
    };
    let waiting: Vec<_> = begun.iter().filter(is_waiting).collect();
    assert!(waiting.is_empty(), "not served: {waiting:?}");
}

/// How a backend falls silent.
#[derive(Clone, Copy, Debug)]
enum Silence {
    /// Nobody listens at its port.
    Deaf,
    /// Its node is cut off.
    Cut,
}

/// Who sends datagrams to a backend that falls silent hears another one soon.
pub(crate) fn check_moves(world: &mut World) {
    for silence in [Silence::Deaf, Silence::Cut] {
        let mut clients: Vec<EndpointId> = world.endpoints.keys().rev().copied().collect();
        let mut moved = None;
        while let (None, Some(client)) = (moved, clients.pop()) {
            moved = moves(world, client, silence);
        }
        println!("{silence:?}: heard another backend after {moved:?}");
    }
}

/// How long a client hears nothing when the backend that answers it falls silent; nothing if it has
/// no service with others, at least half of them elsewhere.
fn moves(world: &mut World, client: EndpointId, silence: Silence) -> Option<Duration> {
    let (n, claim) = world.endpoints[&client].clone();
    if world.nodes[n].removed {
        return None;
    }
    for vip in vips(world.nodes[n].life.as_ref()?, claim.network) {
        let Some(call) = world.new_call(client, vip, UDP) else { continue };
        let keys: Vec<RowKey> =
            world.known_of(&call)?.backends.values().map(|(key, _)| *key).collect();
        let healthy = world.known_of(&call)?.healthy();
        if healthy.len() < 2 || healthy.len() < keys.len() {
            continue;
        }
        let sender = world.send_on(call);
        world.run(MOVES);
        let (mac, _) = world.clients.heard(sender).expect("a sender is not answered");
        let heard = world.endpoints.iter().find(|(_, (_, it))| it.mac == mac).unwrap();
        let (backend, node) = (*heard.0, heard.1.0);
        let falls = keys.iter().filter(|key| key.node == world.nodes[node].id).count();
        let is_fit = match silence {
            Silence::Deaf => true,
            Silence::Cut => node != n && falls * 2 <= keys.len(),
        };
        if !is_fit {
            world.pause(sender);
            continue;
        }
        let fell = world.now;
        match silence {
            Silence::Deaf => world.deafen(backend, true),
            Silence::Cut => world.groups[node] = 1,
        }
        let is_other = |world: &World| {
            let heard = world.clients.heard(sender);
            heard.filter(|(by, at)| *by != mac && *at > fell).map(|(_, at)| at - fell)
        };
        while is_other(world).is_none() && world.now < fell + MOVES {
            world.run(Duration::from_millis(10));
        }
        let took = is_other(world);
        assert!(took.is_some(), "{silence:?}: {call:?} hears nobody but {mac}, of {keys:?}");
        world.deafen(backend, false);
        world.groups.fill(0);
        world.pause(sender);
        world.run(MOVES);
        return took;
    }
    None
}
