//! Endpoints of the engine: one for each container in a network, as long as it runs.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, info};
use vxmesh_proto::addr::{EndpointId, MacAddr};

use super::{
    Node,
    driver::{answer, not_found, store_failed},
    engine::describe_network,
    ipam::network_row,
    names::{alias_of, container_of, name_of, name_on},
    ports,
    rows::{EndpointRow, NetworkRow},
    wire::{InterfaceName, Joined, OfEndpoint, StaticRoute},
};
use crate::{
    api::{ApiError, AttachSpec, Endpoint, ErrorCode, Network},
    store::Table,
};

/// How long the engine may take to say how a container is called. It answers within milliseconds,
/// and not at all while it starts.
const PATIENCE: Duration = Duration::from_secs(1);
/// What interfaces in containers are called, with a number behind.
const PREFIX: &str = "eth";

pub(super) fn create_endpoint(node: &dyn Node, asked: &OfEndpoint) -> Result<Value, ApiError> {
    let network = network_row(node, &asked.network)?;
    let said = asked.interface.mac_address;
    let known: Option<EndpointRow> =
        node.store().get(Table::DockerEndpoints, &asked.endpoint).map_err(store_failed)?;
    let ips = asked.interface.ips();
    let (mac, joined) = match (known, said) {
        (Some(known), _) => (known.mac, known.joined),
        (None, Some(mac)) => (mac, None),
        (None, None) => (free_mac(node, &network, &ips)?, None),
    };
    let leases = node.leases()?;
    if let Some(ip) = ips.iter().find(|ip| !leases.contains(&(network.id, **ip))) {
        return Err(not_found(&format!("{ip} is not held for the engine"), "start it again"));
    }
    let row = EndpointRow { network: asked.network.clone(), mac, ips, joined };
    node.store().put(Table::DockerEndpoints, &asked.endpoint, &row).map_err(store_failed)?;
    // The engine takes an answer for an error that says what it said itself.
    let interface = said.map_or_else(|| json!({ "MacAddress": mac.to_string() }), |_| json!({}));
    Ok(json!({ "Interface": interface }))
}

/// A MAC that no endpoint has, nor one that has not joined yet: the same each time for an address,
/// if it is free, since neighbours remember both.
fn free_mac(node: &dyn Node, network: &NetworkRow, ips: &[IpNet]) -> Result<MacAddr, ApiError> {
    let rows: Vec<(String, EndpointRow)> =
        node.store().list(Table::DockerEndpoints).map_err(store_failed)?;
    let taken: Vec<MacAddr> = rows.into_iter().map(|(_, row)| row.mac).collect();
    let begin = ips.first().map(|ip| match ip.addr() {
        IpAddr::V4(ip) => ip.octets().last_chunk::<2>().map(|low| u16::from_be_bytes(*low)),
        IpAddr::V6(ip) => ip.segments().last().copied(),
    });
    node.free_mac(network.id, begin.flatten().unwrap_or_else(rand::random), &taken)
}

fn endpoint_row(node: &dyn Node, asked: &OfEndpoint) -> Result<EndpointRow, ApiError> {
    let row = node.store().get(Table::DockerEndpoints, &asked.endpoint).map_err(store_failed)?;
    row.ok_or_else(|| {
        not_found("this node does not know the endpoint", "start the container again")
    })
}

pub(super) async fn join(node: &dyn Node, asked: &OfEndpoint) -> Result<Value, ApiError> {
    let mut row = endpoint_row(node, asked)?;
    let id = network_row(node, &asked.network)?.id;
    let networks = node.networks(None).await;
    let network = networks.into_iter().find(|network| network.id == id).ok_or_else(|| {
        not_found(
            "the network was removed from the mesh",
            "remove it with `docker network rm`, too, and create it again",
        )
    })?;
    if let Some(endpoint) = row.joined.and_then(|id| node.endpoint(id)) {
        return answer(&joined(&network, &endpoint));
    }
    // One that was lost half made.
    unplug(node, &asked.endpoint).await?;
    // Written down first: whatever happens in between, it is known whose the endpoint is.
    let id = EndpointId::from_random(rand::random());
    row.joined = Some(id);
    node.store().put(Table::DockerEndpoints, &asked.endpoint, &row).map_err(store_failed)?;
    match plug_in(node, (id, asked), &network, &row).await {
        Ok(endpoint) => answer(&joined(&network, &endpoint)),
        Err(error) => {
            if let Err(error) = unplug(node, &asked.endpoint).await {
                debug!(%error, "an endpoint that was not made is still written down");
            }
            Err(error)
        }
    }
}

/// Plugs the endpoint of a container in, under the container's name where nobody has that.
async fn plug_in(
    node: &dyn Node,
    (id, asked): (EndpointId, &OfEndpoint),
    network: &Network,
    row: &EndpointRow,
) -> Result<Endpoint, ApiError> {
    let container = container(asked).await;
    let name = container.as_deref().and_then(name_of);
    let aliases = match (&container, &name) {
        (Some(container), Some(name)) => alias_of(container, name).into_iter().collect(),
        _ => Vec::new(),
    };
    let spec = AttachSpec {
        network: network.id.to_string(),
        netns: String::new(),
        name: None,
        aliases,
        ips: Vec::new(),
        mac: Some(row.mac),
        ifname: None,
        labels: BTreeMap::new(),
        sandbox: None,
    };
    let other = name.as_ref().and_then(|name| name_on(name, &node.name()));
    for wanted in [&name, &other].into_iter().flatten() {
        let named = AttachSpec { name: Some(wanted.clone()), ..spec.clone() };
        match node.attach(id, named, row.ips.clone()).await {
            // Another endpoint of the network has the name: the container starts all the same.
            Err(error) if error.code == ErrorCode::Conflict => {
                info!(name = %wanted, network = %network.name, %error, "a container has another name in the mesh");
            }
            attached => return attached,
        }
    }
    node.attach(id, AttachSpec { aliases: Vec::new(), ..spec }, row.ips.clone()).await
}

/// The name of the container that joins. Without the engine's answer it has none.
async fn container(asked: &OfEndpoint) -> Option<String> {
    match timeout(PATIENCE, describe_network(&asked.network)).await {
        Ok(Ok(described)) => container_of(&described?, &asked.endpoint),
        Ok(Err(error)) => {
            debug!(%error, "the engine does not say how the container is called");
            None
        }
        Err(_elapsed) => None,
    }
}

/// How the container reaches what is behind its interface.
fn joined(network: &Network, endpoint: &Endpoint) -> Joined {
    let gateway = |is_ipv4: bool| {
        let own = endpoint.ips.iter().find(|ip| ip.addr().is_ipv4() == is_ipv4)?;
        let subnet = network.subnets.iter().find(|subnet| subnet.cidr.contains(&own.addr()))?;
        (!network.internal).then_some(subnet.gateway)
    };
    let beside = network.subnets.iter().map(|subnet| subnet.cidr).filter(|subnet| {
        let mut same = endpoint
            .ips
            .iter()
            .filter(|ip| ip.addr().is_ipv4() == subnet.addr().is_ipv4())
            .peekable();
        same.peek().is_some() && !same.any(|ip| subnet.contains(&ip.addr()))
    });
    let (gateway, gateway_ipv6) = (gateway(true), gateway(false));
    Joined {
        interface_name: InterfaceName {
            src_name: endpoint.ifname.clone().unwrap_or_default(),
            dst_prefix: PREFIX,
        },
        disable_gateway_service: gateway.is_none() && gateway_ipv6.is_none(),
        gateway,
        gateway_ipv6,
        static_routes: beside.map(StaticRoute::on_link).collect(),
    }
}

/// Leads the ports of the host to the container whose default route this endpoint has.
pub(super) async fn publish(node: &dyn Node, asked: &OfEndpoint) -> Result<Value, ApiError> {
    let wanted = ports::wanted(asked)?;
    match endpoint_row(node, asked)?.joined {
        Some(id) => node.publish(id, &wanted).await?,
        None if wanted.is_empty() => {}
        None => return Err(not_found("the endpoint has not joined", "start the container again")),
    }
    Ok(json!({}))
}

/// Another endpoint of the container has its default route now, or it ends.
pub(super) async fn unpublish(node: &dyn Node, asked: &OfEndpoint) -> Result<Value, ApiError> {
    let row: Option<EndpointRow> =
        node.store().get(Table::DockerEndpoints, &asked.endpoint).map_err(store_failed)?;
    if let Some(id) = row.and_then(|row| row.joined) {
        node.unpublish(id).await?;
    }
    Ok(json!({}))
}

pub(super) async fn leave(node: &dyn Node, asked: &OfEndpoint) -> Result<Value, ApiError> {
    unplug(node, &asked.endpoint).await?;
    Ok(json!({}))
}

/// Unplugs an endpoint of the engine; one that is not plugged in is fine.
async fn unplug(node: &dyn Node, endpoint: &str) -> Result<(), ApiError> {
    let row: Option<EndpointRow> =
        node.store().get(Table::DockerEndpoints, endpoint).map_err(store_failed)?;
    let Some(mut row) = row else { return Ok(()) };
    let Some(id) = row.joined.take() else { return Ok(()) };
    node.detach(id).await?;
    node.store().put(Table::DockerEndpoints, endpoint, &row).map_err(store_failed)
}

pub(super) async fn delete_endpoint(
    node: &dyn Node,
    asked: &OfEndpoint,
) -> Result<Value, ApiError> {
    remove_endpoint(node, &asked.endpoint).await?;
    Ok(json!({}))
}

/// Removes an endpoint of the engine; none is fine.
pub(super) async fn remove_endpoint(node: &dyn Node, endpoint: &str) -> Result<(), ApiError> {
    unplug(node, endpoint).await?;
    node.store().delete(Table::DockerEndpoints, endpoint).map(drop).map_err(store_failed)
}
