//! Networks of the mesh that every engine shall have (`vxmesh network create --docker`): this
//! host's engine is asked to make each, as a user would, and to remove it once the mesh has removed
//! it.
//!
//! The engine then calls this driver, so nothing is held meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{debug, info, warn};
use vxmesh_proto::addr::NetworkId;

use super::{
    Agent, Node,
    driver::store_failed,
    engine::{describe_networks, make_network, remove_network},
    rows::NetworkRow,
};
use crate::{
    api::{ApiError, Driver, Network},
    store::Table,
};

/// The label of such networks, in the mesh and in the engine.
pub(crate) const OFFERED: &str = "vxmesh.docker";
/// How often networks are looked at; what is looked at is in memory.
const LOOK: Duration = Duration::from_secs(1);
/// Until what the engine did not make is asked for again, at most: each time twice as long.
const LONGEST: Duration = Duration::from_secs(60);
/// Until networks with containers are tried to be removed again.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps the engine's networks in step with those that every engine shall have; it never ends.
pub(crate) async fn offer_networks(agent: &dyn Agent) {
    let mut offers = Offers::default();
    loop {
        sleep(LOOK).await;
        let Ok(node) = agent.node().await else {
            // It may be the member of another mesh next.
            offers = Offers::default();
            continue;
        };
        if let Err(error) = offers.look(&*node).await {
            debug!(%error, "networks of the mesh are not put into Docker");
        }
    }
}

/// What was tried before.
#[derive(Debug, Default)]
struct Offers {
    /// Networks that the engine did not make.
    failed: BTreeMap<NetworkId, FailedOffer>,
    /// When networks are removed again that are none any more.
    removes_at: Option<Instant>,
}

#[derive(Debug)]
struct FailedOffer {
    why: String,
    pause: Duration,
    at: Instant,
}

impl Offers {
    async fn look(&mut self, node: &dyn Node) -> Result<(), ApiError> {
        let rows: Vec<(String, NetworkRow)> =
            node.store().list(Table::DockerNetworks).map_err(store_failed)?;
        let all = node.networks(None).await;
        let is_known = |id: NetworkId| rows.iter().any(|(_, row)| row.id == id);
        let owed = |network: &&Network| is_offered(network) && !is_known(network.id);
        self.failed.retain(|id, _| all.iter().filter(owed).any(|network| network.id == *id));
        let gone = rows.iter().any(|(_, row)| all.iter().all(|network| network.id != row.id));
        // After a start, too: the engine may have networks of a mesh that this node has left.
        if self.removes_at.is_none_or(|at| gone && at <= Instant::now()) {
            self.removes_at = Some(Instant::now() + AGAIN);
            let stays = |id: &str| {
                let row = rows.iter().find(|(own, _)| own == id).map(|(_, row)| row.id);
                row.is_some_and(|id| all.iter().any(|network| network.id == id))
            };
            remove_gone(stays).await;
        }
        for network in all.iter().filter(owed) {
            self.make(network).await;
        }
        Ok(())
    }

    async fn make(&mut self, network: &Network) {
        let before = self.failed.get(&network.id);
        if before.is_some_and(|failed| failed.at + failed.pause > Instant::now()) {
            return;
        }
        let why = match make_network(&request(network)).await {
            Ok(()) => return drop(self.failed.remove(&network.id)),
            Err(error) => error.to_string(),
        };
        if before.is_none_or(|failed| failed.why != why) {
            warn!(network = %network.name, why, "Docker does not make the network");
        }
        let pause = before.map_or(LOOK, |failed| failed.pause) * 2;
        let failed = FailedOffer { why, pause: pause.min(LONGEST), at: Instant::now() };
        self.failed.insert(network.id, failed);
    }
}

/// Whether every engine shall have a network.
fn is_offered(network: &Network) -> bool {
    let is_shared = network.driver == Driver::Overlay.to_string();
    is_shared
        && network.state == "active"
        && network.labels.get(OFFERED).is_some_and(|value| value == "true")
}

/// What `docker network create` asks for.
fn request(network: &Network) -> Value {
    let name = network.name.as_str();
    let subnet = |ipv4: bool| {
        let subnet = network.subnets.iter().find(|it| it.cidr.addr().is_ipv4() == ipv4)?;
        Some(json!({ "Subnet": subnet.cidr, "Gateway": subnet.gateway }))
    };
    let (v4, v6) = (subnet(true), subnet(false));
    json!({
        "Name": name,
        "CheckDuplicate": true,
        "Driver": "vxmesh",
        "Internal": network.internal,
        "EnableIPv4": v4.is_some(),
        "EnableIPv6": v6.is_some(),
        "Options": { "network": name },
        "Labels": { OFFERED: "true" },
        "IPAM": {
            "Driver": "vxmesh",
            "Options": { "network": name },
            "Config": v4.into_iter().chain(v6).collect::<Vec<_>>(),
        },
    })
}

/// Removes networks from the engine that it has for a mesh that does not have them any more; one
/// with containers waits for them.
async fn remove_gone(stays: impl Fn(&str) -> bool) {
    let Ok(own) = describe_networks("label", OFFERED).await else { return };
    for (id, name) in own.iter().filter(|(id, _)| !stays(id)) {
        match remove_network(id).await {
            Ok(()) => info!(network = name, docker = %id, "Docker's network goes with the mesh's"),
            Err(error) => debug!(network = name, %error, "it stays for now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_asked_for_what_the_mesh_has() {
        let network: Network = serde_json::from_value(json!({
            "id": NetworkId::from_random([1; 16]), "name": "app", "driver": "overlay", "vni": 7,
            "encrypted": true, "mtu": 1390, "state": "active", "internal": true,
            "labels": { OFFERED: "true" },
            "subnets": [
                { "cidr": "fd01::/64", "gateway": "fd01::1", "aux_addresses": {} },
                { "cidr": "10.1.0.0/24", "gateway": "10.1.0.1", "aux_addresses": {} },
            ],
        }))
        .unwrap();
        assert!(is_offered(&network));
        let asked = request(&network);
        assert_eq!(asked["IPAM"]["Config"][0]["Subnet"], "10.1.0.0/24");
        assert_eq!(asked["IPAM"]["Config"][1]["Gateway"], "fd01::1");
        assert_eq!((&asked["Internal"], &asked["EnableIPv6"]), (&json!(true), &json!(true)));
        let other = Network { labels: BTreeMap::new(), ..network };
        assert!(!is_offered(&other));
    }
}
