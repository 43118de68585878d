//! Networks of the engine: each is one of the mesh, joined or made.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use serde_json::{Value, json};
use tracing::info;
use vxmesh_proto::addr::Name;

use super::{
    Node,
    driver::{Driver, conflict, store_failed, usage},
    ipam::{GLOBAL_SPACE, LOCAL_SPACE, has_subnet, pools},
    rows::{NetworkRow, PoolRow},
    wire::{CreateNetwork, GENERIC, INTERNAL, OfNetwork, PoolData},
    wish::{Wish, merged, texts},
};
use crate::{
    api::{ApiError, Driver as NetworkDriver, Network, NetworkSpec},
    store::Table,
};

impl Driver {
    pub(super) async fn create_network(
        &self,
        node: &dyn Node,
        asked: CreateNetwork,
    ) -> Result<Value, ApiError> {
        let _one_at_a_time = self.pools.lock().await;
        let known: Option<NetworkRow> =
            node.store().get(Table::DockerNetworks, &asked.network).map_err(store_failed)?;
        if known.is_some() {
            return Ok(json!({}));
        }
        let mut pools = pools_of(node, &asked)?;
        let generic = match asked.options.get(GENERIC) {
            Some(Value::Object(options)) => texts(&options.clone().into_iter().collect()),
            _ => BTreeMap::new(),
        };
        let said = [&generic].into_iter().chain(pools.iter().map(|(_, pool)| &pool.options));
        let wish = Wish::of(&merged(said)?)?;
        let is_internal = asked.options.get(INTERNAL).and_then(Value::as_bool).unwrap_or(false);
        let row = match self.joined(node, &wish).await {
            Some(network) => {
                check_joined(&network, &wish, &pools, is_internal)?;
                NetworkRow { id: network.id, made: false }
            }
            None => make(node, &asked.network, &wish, &pools, is_internal).await?,
        };
        for (_, pool) in &mut pools {
            pool.network = Some(row.id);
        }
        let written = node.store().write(|txn| {
            for (id, pool) in &pools {
                txn.put(Table::DockerPools, id, pool)?;
            }
            txn.put(Table::DockerNetworks, &asked.network, &row)
        });
        if let Err(error) = written {
            remove_made(node, &row).await;
            return Err(store_failed(error));
        }
        info!(network = %row.id.short(), docker = %short(&asked.network), "Docker has the network");
        Ok(json!({}))
    }
}

/// The pools that a network of the engine is made of: each was asked for just before, and belongs
/// to no network yet.
fn pools_of(node: &dyn Node, asked: &CreateNetwork) -> Result<Vec<(String, PoolRow)>, ApiError> {
    let mut free = pools(node)?;
    free.retain(|(_, pool)| pool.network.is_none());
    // One that was asked for long ago was left over when the engine or the agent ended.
    free.sort_by_key(|(_, pool)| Reverse(pool.asked_ms));
    let mut chosen = Vec::new();
    for PoolData { address_space, pool } in asked.ipv4.iter().chain(&asked.ipv6) {
        let is_ours = [LOCAL_SPACE, GLOBAL_SPACE].contains(&address_space.as_str());
        let at = free.iter().position(|(_, known)| is_ours && known.subnet == *pool);
        let Some(at) = at else {
            return Err(usage(
                "the network's addresses are not this driver's, so hosts would give the same ones",
                "create it with `-d vxmesh --ipam-driver vxmesh`",
            ));
        };
        chosen.push(free.remove(at));
    }
    if chosen.is_empty() {
        return Err(usage(
            "the network has no addresses",
            "create it with `-d vxmesh --ipam-driver vxmesh`",
        ));
    }
    Ok(chosen)
}

/// Refuses what a network that is there already does not have.
fn check_joined(
    network: &Network,
    wish: &Wish,
    pools: &[(String, PoolRow)],
    is_internal: bool,
) -> Result<(), ApiError> {
    for (_, pool) in pools {
        has_subnet(network, pool.subnet)?;
        let known = network.subnets.iter().find(|subnet| subnet.cidr == pool.subnet);
        let gateway = known.map(|subnet| subnet.gateway);
        differs(network, "gateway", pool.gateway, gateway)?;
        let range = known.and_then(|subnet| subnet.ip_range);
        differs(network, "range of addresses", pool.range, range)?;
        let taken =
            |ip: &IpAddr| known.is_some_and(|it| it.aux_addresses.values().any(|aux| aux == ip));
        if let Some(ip) = pool.aux.iter().find(|ip| !taken(ip)) {
            return Err(conflict(
                format!(
                    "network `{}` of the mesh does not keep {ip} from containers",
                    network.name
                ),
                "leave --aux-address out, or make the network with it",
            ));
        }
    }
    differs(network, "number", wish.vni, network.vni)?;
    differs(network, "MTU", wish.mtu, Some(network.mtu))?;
    differs(network, "`encrypted`", wish.encrypted, Some(network.encrypted))?;
    differs(network, "`isolated`", wish.isolated, Some(network.isolated))?;
    // Who does not say --internal has not said that it is not.
    differs(network, "`internal`", is_internal.then_some(true), Some(network.internal))?;
    if network.driver != NetworkDriver::Overlay.to_string() {
        return Err(conflict(
            format!("network `{}` is of driver {}", network.name, network.driver),
            "choose an overlay network",
        ));
    }
    Ok(())
}

fn differs<T: PartialEq + ToString>(
    network: &Network,
    what: &str,
    said: Option<T>,
    is: Option<T>,
) -> Result<(), ApiError> {
    match said {
        Some(said) if is.as_ref() != Some(&said) => {
            let is = is.map_or_else(|| "none".to_owned(), |is| is.to_string());
            let said = said.to_string();
            Err(conflict(
                format!("the {what} of network `{}` of the mesh is {is}, not {said}", network.name),
                "say the same, or nothing",
            ))
        }
        _ => Ok(()),
    }
}

/// Makes a network of the mesh. One that has no name of its own goes with the engine's.
async fn make(
    node: &dyn Node,
    id: &str,
    wish: &Wish,
    pools: &[(String, PoolRow)],
    is_internal: bool,
) -> Result<NetworkRow, ApiError> {
    let is_nameless = wish.network.is_none() && wish.vni.is_none();
    let own_name = || format!("docker-{}", short(id)).parse::<Name>();
    let name = wish.network.clone().map_or_else(own_name, Ok);
    let name = name.map_err(|error| usage(error.to_string(), "name it with -o network=NAME"))?;
    let subnets: Vec<_> = pools.iter().map(|(_, pool)| pool.subnet).collect();
    let aux = pools.iter().flat_map(|(_, pool)| &pool.aux);
    let network = node.create_network(NetworkSpec {
        name,
        driver: NetworkDriver::Overlay,
        options: BTreeMap::new(),
        ipv4: Some(subnets.iter().any(|subnet| subnet.addr().is_ipv4())),
        ipv6: Some(subnets.iter().any(|subnet| subnet.addr().is_ipv6())),
        subnets,
        gateways: pools.iter().filter_map(|(_, pool)| pool.gateway).collect(),
        ip_ranges: pools.iter().filter_map(|(_, pool)| pool.range).collect(),
        aux_addresses: aux.map(|ip| (format!("docker-{ip}"), *ip)).collect(),
        encrypted: wish.encrypted.unwrap_or(true),
        isolated: wish.isolated.unwrap_or(false),
        mtu: wish.mtu,
        vni: wish.vni,
        internal: is_internal,
        vteps: Vec::new(),
        dns: Vec::new(),
        labels: BTreeMap::new(),
    });
    Ok(NetworkRow { id: network.await?.id, made: is_nameless })
}

/// Removes a network of the mesh that was made for one of the engine, unless others use it.
async fn remove_made(node: &dyn Node, row: &NetworkRow) {
    if !row.made {
        return;
    }
    if let Err(error) = node.remove_network(row.id).await {
        info!(network = %row.id.short(), %error, "the network stays in the mesh");
    }
}

pub(super) async fn delete_network(node: &dyn Node, asked: &OfNetwork) -> Result<Value, ApiError> {
    remove_network(node, &asked.network).await?;
    Ok(json!({}))
}

/// Forgets a network of the engine; none is fine.
pub(super) async fn remove_network(node: &dyn Node, id: &str) -> Result<(), ApiError> {
    let row: Option<NetworkRow> =
        node.store().get(Table::DockerNetworks, id).map_err(store_failed)?;
    node.store().delete(Table::DockerNetworks, id).map_err(store_failed)?;
    if let Some(row) = row {
        remove_made(node, &row).await;
    }
    Ok(())
}

/// The beginning of an id, as the engine shows it.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}
