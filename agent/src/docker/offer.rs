//! Networks of the mesh that every engine shall have (`vxmesh network create --docker`): this host's
//! engine is asked to make each, as a user would, and to remove it once the mesh has removed it.
//!
//! The engine then calls this driver, so nothing is held meanwhile.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{debug, info, warn};
use vxmesh_proto::addr::NetworkId;

use super::{
    Agent, Node,
    driver::store_failed,
    engine::{DockerError, describe_networks, make_network, remove_network},
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

/// Keeps the engine's networks in step with those that every engine shall have; it never ends.
pub(crate) async fn offer_networks(agent: &dyn Agent) {
    let mut told = BTreeMap::new();
    loop {
        sleep(LOOK).await;
        let Ok(node) = agent.node().await else { continue };
        if let Err(error) = look(&*node, &mut told).await {
            debug!(%error, "networks of the mesh are not put into Docker");
        }
    }
}

/// `told`: why networks are not in the engine, so that each reason is said once.
async fn look(node: &dyn Node, told: &mut BTreeMap<NetworkId, String>) -> Result<(), ApiError> {
    let rows: Vec<(String, NetworkRow)> =
        node.store().list(Table::DockerNetworks).map_err(store_failed)?;
    let all = node.networks(None).await;
    for network in all.iter().filter(|network| is_offered(network)) {
        if rows.iter().any(|(_, row)| row.id == network.id) {
            told.remove(&network.id);
            continue;
        }
        match make_network(&request(network)).await {
            Ok(()) | Err(DockerError::Absent(_)) => {}
            Err(error) => {
                let error = error.to_string();
                if told.get(&network.id) != Some(&error) {
                    warn!(network = %network.name, error, "Docker does not make the network");
                    told.insert(network.id, error);
                }
            }
        }
    }
    let is_gone = |row: &NetworkRow| all.iter().all(|network| network.id != row.id);
    if rows.iter().any(|(_, row)| is_gone(row)) {
        remove_gone(&rows, is_gone).await;
    }
    Ok(())
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

/// Removes networks from the engine that it has for the mesh alone; one with containers waits for
/// them.
async fn remove_gone(rows: &[(String, NetworkRow)], is_gone: impl Fn(&NetworkRow) -> bool) {
    let Ok(own) = describe_networks("label", OFFERED).await else { return };
    for (id, _) in rows.iter().filter(|(id, row)| is_gone(row) && own.contains_key(id)) {
        match remove_network(id).await {
            Ok(()) => info!(docker = %id, "Docker's network goes with that of the mesh"),
            Err(error) => debug!(docker = %id, %error, "it stays for now"),
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
