//! What the engine forgot without a word: it asks a driver that does not answer for some seconds,
//! and what it wanted removed is gone for it then.
//!
//! Only what was there when the agent started can have been forgotten meanwhile, and only what the
//! engine does not know in two looks was.

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
    ipam::{pools, release_pool},
    names::endpoints_of,
    network::remove_network,
    rows::{EndpointRow, NetworkRow},
    wire::ReleasePool,
};
use crate::{api::ApiError, store::Table};

/// From one look to the next.
const PAUSE: Duration = Duration::from_secs(5);
/// The same once a minute has passed without an end.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// Looks with the shorter pause.
const SOON: u32 = 12;
/// How long the engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What this node has for the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    networks: BTreeSet<String>,
    pools: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    addresses: BTreeSet<(NetworkId, IpNet)>,
}

impl Kept {
    /// All of it. Of what cannot be read nothing is looked for.
    pub(crate) async fn now(agent: &dyn Agent) -> Self {
        let Ok(node) = agent.node().await else { return Self::default() };
        Self::of(&*node).unwrap_or_else(|error| {
            warn!(%error, "what Docker forgot is not looked for");
            Self::default()
        })
    }

    fn of(node: &dyn Node) -> Result<Self, ApiError> {
        let keys = |table| -> Result<BTreeSet<String>, ApiError> {
            let rows = node.store().list::<serde_json::Value>(table).map_err(store_failed)?;
            Ok(rows.into_iter().map(|(key, _)| key).collect())
        };
        Ok(Self {
            networks: keys(Table::DockerNetworks)?,
            pools: keys(Table::DockerPools)?,
            endpoints: keys(Table::DockerEndpoints)?,
            addresses: node.leases()?.into_iter().collect(),
        })
    }

    /// What is in both.
    fn and(&self, other: &Self) -> Self {
        Self {
            networks: &self.networks & &other.networks,
            pools: &self.pools & &other.pools,
            endpoints: &self.endpoints & &other.endpoints,
            addresses: &self.addresses & &other.addresses,
        }
    }
}

/// Ends what the engine forgot while the agent was away, as soon as the engine says what it has.
pub(crate) async fn reconcile(agent: &dyn Agent, at_start: Kept) {
    let (mut before, mut looks): (Option<Kept>, u32) = (None, 0);
    loop {
        sleep(if looks < SOON { PAUSE } else { LONG_PAUSE }).await;
        looks += 1;
        let Ok(node) = agent.node().await else { continue };
        let found = look(&*node, &at_start).await.unwrap_or_else(|error| {
            warn!(%error, "what Docker forgot is looked for later");
            None
        });
        let (Some(found), Some(missed)) = (&found, &before) else {
            before = found;
            continue;
        };
        let forgotten = found.and(missed);
        if forgotten == Kept::default() {
            return;
        }
        end(&*node, &forgotten).await;
        // What could not be ended is found again.
        before = None;
    }
}

/// What was there at the start, is still there, and is not known to the engine; nothing if that
/// does not say what it knows.
async fn look(node: &dyn Node, at_start: &Kept) -> Result<Option<Kept>, ApiError> {
    let mut kept = Kept::of(node)?.and(at_start);
    let networks: Vec<(String, NetworkRow)> =
        node.store().list(Table::DockerNetworks).map_err(store_failed)?;
    let mut known = BTreeSet::new();
    for (id, _) in &networks {
        match timeout(PATIENCE, describe_network(id)).await {
            Ok(Ok(Some(network))) => {
                let Some(endpoints) = endpoints_of(&network) else { return Ok(None) };
                known.extend(endpoints);
                kept.networks.remove(id);
            }
            Ok(Ok(None)) => {}
            Ok(Err(_)) | Err(_) => return Ok(None),
        }
    }
    kept.endpoints.retain(|id| !known.contains(id));
    // Read after the question, so that an address and its endpoint that came meanwhile are seen.
    let endpoints: Vec<(String, EndpointRow)> =
        node.store().list(Table::DockerEndpoints).map_err(store_failed)?;
    for (id, row) in &endpoints {
        let network = networks.iter().find(|(network, _)| *network == row.network);
        if let Some((_, network)) = network.filter(|_| !kept.endpoints.contains(id)) {
            for ip in &row.ips {
                kept.addresses.remove(&(network.id, *ip));
            }
        }
    }
    // A pool that belongs to no network was asked for by who is gone.
    let networks: BTreeSet<NetworkId> = networks
        .iter()
        .filter(|(id, _)| !kept.networks.contains(id))
        .map(|(_, row)| row.id)
        .collect();
    for (id, pool) in pools(node)? {
        if pool.network.is_some_and(|network| networks.contains(&network)) {
            kept.pools.remove(&id);
        }
    }
    Ok(Some(kept))
}

/// Ends all of this.
async fn end(node: &dyn Node, forgotten: &Kept) {
    for id in &forgotten.endpoints {
        match remove_endpoint(node, id).await {
            Ok(()) => info!(docker = %id, "Docker does not know the endpoint any more: it ended"),
            Err(error) => warn!(docker = %id, %error, "an endpoint that Docker forgot stays"),
        }
    }
    for (network, ip) in &forgotten.addresses {
        if let Err(error) = node.release(*network, ip.addr()).await {
            warn!(%ip, %error, "an address that Docker forgot stays held");
        }
    }
    for id in &forgotten.networks {
        match remove_network(node, id).await {
            Ok(()) => info!(docker = %id, "Docker does not know the network any more"),
            Err(error) => warn!(docker = %id, %error, "a network that Docker forgot stays"),
        }
    }
    for id in &forgotten.pools {
        if let Err(error) = release_pool(node, &ReleasePool { id: id.clone() }) {
            warn!(pool = %id, %error, "an address pool that Docker forgot stays");
        }
    }
}
