//! The IPAM driver: pools are subnets of networks of the mesh, addresses are held by the engine.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use ipnet::IpNet;
use serde_json::{Value, json};
use vxmesh_proto::limits::ADDRESS_QUARANTINE;

use super::{
    Node,
    driver::{Driver, answer, conflict, not_found, store_failed, usage},
    rows::{NetworkRow, PoolRow},
    wire::{
        ADDRESS_TYPE, Address, GATEWAY, Options, Pool, ReleaseAddress, ReleasePool, RequestAddress,
        RequestPool,
    },
    wish::{Wish, texts},
};
use crate::{
    api::{ApiError, Network},
    objects::unix_ms,
    store::Table,
};

/// What the engine calls the addresses of this driver.
pub(super) const LOCAL_SPACE: &str = "vxmesh";
pub(super) const GLOBAL_SPACE: &str = "vxmesh-global";

impl Driver {
    /// The subnet of a network that is there, the one that is asked for, or one that nothing uses.
    pub(super) async fn request_pool(
        &self,
        node: &dyn Node,
        asked: RequestPool,
    ) -> Result<Value, ApiError> {
        let _one_at_a_time = self.pools.lock().await;
        let options = texts(&asked.options);
        let joined = self.joined(node, &Wish::of(&options)?).await;
        let pool = asked.pool.map(|pool| pool.trunc());
        let subnet = match (pool, &joined) {
            (Some(pool), Some(network)) => has_subnet(network, pool)?,
            (None, Some(network)) => first_subnet(network, asked.is_ipv6)?,
            (Some(pool), None) => pool,
            (None, None) => {
                let pools = pools(node)?;
                let taken: Vec<IpNet> = pools.iter().map(|(_, pool)| pool.subnet).collect();
                node.free_subnet(asked.is_ipv6, &taken)?
            }
        };
        let gateway = joined.and_then(|network| gateway_of(&network, subnet));
        let row = PoolRow {
            subnet,
            range: asked.sub_pool.map(|range| range.trunc()),
            options,
            gateway,
            aux: BTreeSet::new(),
            network: None,
            asked_ms: unix_ms(),
        };
        let id = format!("vx-{:016x}", rand::random::<u64>());
        node.store().put(Table::DockerPools, &id, &row).map_err(store_failed)?;
        answer(&Pool { id, pool: subnet, data: Options::new() })
    }

    /// Before the network is made: its gateway, and what no container gets. Afterwards an address
    /// for a container.
    pub(super) async fn request_address(
        &self,
        node: &dyn Node,
        asked: RequestAddress,
    ) -> Result<Value, ApiError> {
        let is_gateway = asked.options.get(ADDRESS_TYPE).is_some_and(|kind| kind == GATEWAY);
        let ip = match pool(node, &asked.pool)? {
            PoolRow { network: Some(id), subnet, .. } if !is_gateway => {
                check_within(subnet, asked.address)?;
                let was_its_own = |ip| self.given_back().contains_key(&(id, ip));
                let wanted = asked.address.map(|ip| (ip, was_its_own(ip)));
                let ip = node.lease(id, subnet, wanted).await?;
                self.given_back().remove(&(id, ip.addr()));
                ip
            }
            _ => self.note_address(node, &asked, is_gateway).await?,
        };
        answer(&Address { address: ip, data: Options::new() })
    }

    /// Notes an address of a network that is about to be made: its gateway, or one that no
    /// container gets.
    async fn note_address(
        &self,
        node: &dyn Node,
        asked: &RequestAddress,
        is_gateway: bool,
    ) -> Result<IpNet, ApiError> {
        let _one_at_a_time = self.pools.lock().await;
        let mut pool = pool(node, &asked.pool)?;
        check_within(pool.subnet, asked.address)?;
        let ip = if is_gateway {
            let gateway = agreed(pool.gateway, asked.address)?;
            *pool.gateway.insert(gateway.unwrap_or_else(|| first(pool.subnet)))
        } else {
            let ip = asked.address.ok_or_else(|| {
                not_found("the pool belongs to no network yet", "make the network")
            })?;
            pool.aux.insert(ip);
            ip
        };
        node.store().put(Table::DockerPools, &asked.pool, &pool).map_err(store_failed)?;
        Ok(IpNet::new_assert(ip, pool.subnet.prefix_len()))
    }

    /// Takes an address back. Of a gateway, or of one that no container gets, nothing is held.
    pub(super) async fn release_address(
        &self,
        node: &dyn Node,
        asked: &ReleaseAddress,
    ) -> Result<Value, ApiError> {
        let pool: Option<PoolRow> =
            node.store().get(Table::DockerPools, &asked.pool).map_err(store_failed)?;
        if let Some(id) = pool.and_then(|pool| pool.network) {
            node.release(id, asked.address).await?;
            let (now, mut given_back) = (Instant::now(), self.given_back());
            given_back.retain(|_, then| now.saturating_duration_since(*then) < ADDRESS_QUARANTINE);
            // A container that starts anew asks for it again.
            given_back.insert((id, asked.address), now);
        }
        Ok(json!({}))
    }
}

fn check_within(subnet: IpNet, ip: Option<IpAddr>) -> Result<(), ApiError> {
    match ip.filter(|ip| !subnet.contains(ip)) {
        Some(ip) => Err(usage(format!("{ip} is not in {subnet}"), "choose another address")),
        None => Ok(()),
    }
}

pub(super) fn release_pool(node: &dyn Node, asked: &ReleasePool) -> Result<Value, ApiError> {
    node.store().delete(Table::DockerPools, &asked.id).map_err(store_failed)?;
    Ok(json!({}))
}

/// All pools.
pub(super) fn pools(node: &dyn Node) -> Result<Vec<(String, PoolRow)>, ApiError> {
    node.store().list(Table::DockerPools).map_err(store_failed)
}

/// A pool that the engine was given.
fn pool(node: &dyn Node, id: &str) -> Result<PoolRow, ApiError> {
    let pool = node.store().get(Table::DockerPools, id).map_err(store_failed)?;
    pool.ok_or_else(|| {
        not_found(
            "this node does not know the address pool",
            "remove the network with `docker network rm` and create it again",
        )
    })
}

/// A network of the engine that this node knows.
pub(super) fn network_row(node: &dyn Node, id: &str) -> Result<NetworkRow, ApiError> {
    let row = node.store().get(Table::DockerNetworks, id).map_err(store_failed)?;
    row.ok_or_else(|| {
        not_found(
            "this node does not know the network",
            "remove it with `docker network rm` and create it again",
        )
    })
}

/// The subnet of a network that somebody named.
pub(super) fn has_subnet(network: &Network, subnet: IpNet) -> Result<IpNet, ApiError> {
    if network.subnets.iter().any(|known| known.cidr == subnet) {
        return Ok(subnet);
    }
    let known: Vec<String> = network.subnets.iter().map(|known| known.cidr.to_string()).collect();
    Err(conflict(
        format!("network `{}` of the mesh has {}, not {subnet}", network.name, known.join(" and ")),
        format!(
            "say --subnet {}, or --ipam-opt network={}",
            known.join(" --subnet "),
            network.name
        ),
    ))
}

fn first_subnet(network: &Network, is_ipv6: bool) -> Result<IpNet, ApiError> {
    let mut subnets = network.subnets.iter().map(|subnet| subnet.cidr);
    subnets.find(|subnet| subnet.addr().is_ipv6() == is_ipv6).ok_or_else(|| {
        let version = if is_ipv6 { "IPv6" } else { "IPv4" };
        conflict(
            format!("network `{}` of the mesh has no {version} subnet", network.name),
            "add one with `vxmesh network extend`; without IPv4 it takes Docker 28 and --ipv4=false",
        )
    })
}

fn gateway_of(network: &Network, subnet: IpNet) -> Option<IpAddr> {
    network.subnets.iter().find(|known| known.cidr == subnet).map(|known| known.gateway)
}

/// One address that is known and said, or only the one or the other.
fn agreed(known: Option<IpAddr>, said: Option<IpAddr>) -> Result<Option<IpAddr>, ApiError> {
    match (known, said) {
        (Some(known), Some(said)) if known != said => Err(conflict(
            format!("the network has the gateway {known}, not {said}"),
            "leave --gateway out",
        )),
        (known, said) => Ok(said.or(known)),
    }
}

/// The first address behind the subnet's own.
fn first(subnet: IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip).saturating_add(1)).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip).saturating_add(1)).into()),
    }
}
