//! What the engine forgot without a word: it asks a driver that does not answer for some seconds,
//! and what it wanted removed is gone for it then.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use vxmesh_proto::addr::NetworkId;

use super::{
    Agent, Node,
    driver::store_failed,
    endpoint::remove_endpoint,
    engine::describe_network,
    names::endpoints_of,
    network::remove_network,
    rows::{EndpointRow, NetworkRow},
};
use crate::{api::ApiError, store::Table};

/// From one look to the next. What is missing in two of them is gone: an endpoint that is being
/// made is listed within milliseconds.
const PAUSE: Duration = Duration::from_secs(5);
/// The same once the engine did not answer for a minute.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// How long the engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What this node has and the engine does not know.
#[derive(Debug, Default)]
struct Forgotten {
    networks: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    addresses: BTreeSet<(NetworkId, IpNet)>,
}

/// Ends what the engine forgot while the agent was away, as soon as the engine says what it has.
pub(crate) async fn tidy(agent: &dyn Agent) {
    let (mut before, mut looks): (Option<Forgotten>, u32) = (None, 0);
    loop {
        sleep(if looks < 12 { PAUSE } else { LONG_PAUSE }).await;
        looks += 1;
        let Ok(node) = agent.node().await else { continue };
        match (look(&*node).await, before.take()) {
            (Ok(Some(found)), Some(before)) => return end(&*node, &before, &found).await,
            (Ok(found), _) => before = found,
            (Err(error), _) => return warn!(%error, "what Docker forgot is not looked for"),
        }
    }
}

/// What the engine does not know now; nothing if it does not answer.
async fn look(node: &dyn Node) -> Result<Option<Forgotten>, ApiError> {
    let networks: Vec<(String, NetworkRow)> =
        node.store().list(Table::DockerNetworks).map_err(store_failed)?;
    let endpoints: Vec<(String, EndpointRow)> =
        node.store().list(Table::DockerEndpoints).map_err(store_failed)?;
    let mut forgotten = Forgotten::default();
    let (mut known, mut held) = (BTreeSet::new(), BTreeSet::new());
    for (id, _) in &networks {
        match timeout(PATIENCE, describe_network(id)).await {
            Ok(Ok(Some(network))) => known.extend(endpoints_of(&network)),
            Ok(Ok(None)) => drop(forgotten.networks.insert(id.clone())),
            Ok(Err(_)) | Err(_) => return Ok(None),
        }
    }
    for (id, row) in endpoints {
        let network = networks.iter().find(|(network, _)| *network == row.network);
        if !known.contains(&id) {
            forgotten.endpoints.insert(id);
        } else if let Some((_, network)) = network {
            held.extend(row.ips.iter().map(|ip| (network.id, *ip)));
        }
    }
    let leases = node.leases()?.into_iter();
    forgotten.addresses = leases.filter(|lease| !held.contains(lease)).collect();
    Ok(Some(forgotten))
}

/// Ends what was missing in both looks.
async fn end(node: &dyn Node, before: &Forgotten, now: &Forgotten) {
    for id in before.endpoints.intersection(&now.endpoints) {
        match remove_endpoint(node, id).await {
            Ok(()) => info!(docker = %id, "Docker does not know the endpoint any more: it ended"),
            Err(error) => warn!(docker = %id, %error, "an endpoint that Docker forgot stays"),
        }
    }
    for (network, ip) in before.addresses.intersection(&now.addresses) {
        if let Err(error) = node.release(*network, ip.addr()).await {
            warn!(%ip, %error, "an address that Docker forgot stays held");
        }
    }
    for id in before.networks.intersection(&now.networks) {
        match remove_network(node, id).await {
            Ok(()) => info!(docker = %id, "Docker does not know the network any more"),
            Err(error) => warn!(docker = %id, %error, "a network that Docker forgot stays"),
        }
    }
}
