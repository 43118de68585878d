//! Where the engine and this node differ in what there is ([`Drift`]): what one of them has and the
//! other does not know.
//!
//! A call that is under way differs for a moment, so only what two looks find is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use ipnet::IpNet;
use tokio::time::{sleep, timeout};
use vxmesh_proto::addr::{EndpointId, NetworkId};

use super::{
    Node,
    driver::store_failed,
    engine::{DockerError, describe_network, describe_networks},
    ipam::pools,
    names::members_of,
    rows::{EndpointRow, NetworkRow},
};
use crate::{
    api::{ApiError, Diagnosis, Health},
    store::Table,
};

/// Between two looks: a call takes less.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something that one of both has and the other does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Drift {
    /// The engine has a network that this node does not know.
    UnknownNetwork { name: String },
    /// This node has a network for the engine, which has removed it.
    ForgottenNetwork { id: String, name: String },
    /// The mesh has removed a network that the engine has.
    RemovedNetwork { name: String },
    /// The engine has a container in a network that has no endpoint there.
    NoEndpoint { container: String, network: String },
    /// This node has an endpoint for a container that the engine does not know.
    ForgottenEndpoint { id: String },
    /// An address is held for the engine, and no container has it.
    ForgottenAddress { ip: IpNet },
}

impl Drift {
    const fn hint(&self) -> &'static str {
        match self {
            Self::UnknownNetwork { .. } | Self::RemovedNetwork { .. } => {
                "remove it with `docker network rm`, and create it again"
            }
            Self::NoEndpoint { .. } => {
                "`docker restart` it, or disconnect it from the network and connect it again"
            }
            Self::ForgottenNetwork { .. }
            | Self::ForgottenEndpoint { .. }
            | Self::ForgottenAddress { .. } => {
                "start the agent again: what Docker does not know ends some ten seconds later"
            }
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNetwork { name } => {
                write!(f, "Docker has the network `{name}`, which this node does not know")
            }
            Self::ForgottenNetwork { id, name } => {
                let id = id.get(..12).unwrap_or(id);
                write!(f, "Docker does not know its network {id} any more (`{name}` of the mesh)")
            }
            Self::RemovedNetwork { name } => {
                write!(f, "the mesh has removed the network that Docker calls `{name}`")
            }
            Self::NoEndpoint { container, network } => {
                write!(f, "container `{container}` has no endpoint in network `{network}`")
            }
            Self::ForgottenEndpoint { id } => {
                let id = id.get(..12).unwrap_or(id);
                write!(f, "Docker does not know the container of its endpoint {id} any more")
            }
            Self::ForgottenAddress { ip } => {
                write!(f, "{ip} is held for Docker, and no container has it")
            }
        }
    }
}

/// What the engine says that it has.
#[derive(Debug, Default)]
struct InDocker {
    /// Names of networks of this driver, by id.
    networks: BTreeMap<String, String>,
    /// Names of containers, by endpoint, of each network.
    members: BTreeMap<String, BTreeMap<String, String>>,
}

/// What this node has for it.
#[derive(Debug, Default)]
struct InStore {
    networks: BTreeMap<String, NetworkRow>,
    endpoints: BTreeMap<String, EndpointRow>,
    /// Names of the networks that are in the mesh.
    in_mesh: BTreeMap<NetworkId, String>,
    plugged: BTreeSet<EndpointId>,
    /// Addresses of gateways, and such that no container gets.
    reserved: BTreeSet<(NetworkId, IpNet)>,
    leases: BTreeSet<(NetworkId, IpNet)>,
}

/// `doctor`: whether the engine, this node and the mesh have the same.
pub(crate) async fn diagnose(node: &dyn Node) -> Vec<Diagnosis> {
    let row = |health, found: String, hint: &str| Diagnosis {
        check: "docker".to_owned(),
        health,
        found,
        hint: hint.to_owned(),
    };
    let found = match timeout(2 * PATIENCE, twice(node)).await {
        Ok(Ok(found)) => found,
        Ok(Err(fault)) => {
            let hint = "is it running? what it has and this node has cannot be compared";
            return vec![row(Health::Warn, fault, hint)];
        }
        Err(_elapsed) => {
            let fault = "the Docker engine does not answer".to_owned();
            return vec![row(Health::Warn, fault, "see its log")];
        }
    };
    if found.is_empty() {
        let said = "the engine and this node have the same networks and containers".to_owned();
        return vec![row(Health::Ok, said, "")];
    }
    found.iter().map(|drift| row(Health::Fail, drift.to_string(), drift.hint())).collect()
}

async fn twice(node: &dyn Node) -> Result<BTreeSet<Drift>, String> {
    let first = look(node).await?;
    if first.is_empty() {
        return Ok(first);
    }
    sleep(PAUSE).await;
    Ok(&first & &look(node).await?)
}

async fn look(node: &dyn Node) -> Result<BTreeSet<Drift>, String> {
    let engine = InDocker::ask().await.map_err(|error| error.to_string())?;
    let own = InStore::of(node).await.map_err(|error| error.to_string())?;
    Ok(compare(&engine, &own))
}

impl InDocker {
    async fn ask() -> Result<Self, DockerError> {
        let networks = describe_networks("driver", "vxmesh").await?;
        let mut members = BTreeMap::new();
        for id in networks.keys() {
            if let Some(network) = describe_network(id).await? {
                members.insert(id.clone(), members_of(&network));
            }
        }
        Ok(Self { networks, members })
    }
}

impl InStore {
    async fn of(node: &dyn Node) -> Result<Self, ApiError> {
        let store = node.store();
        let networks: Vec<(String, NetworkRow)> =
            store.list(Table::DockerNetworks).map_err(store_failed)?;
        let endpoints: Vec<(String, EndpointRow)> =
            store.list(Table::DockerEndpoints).map_err(store_failed)?;
        let mut reserved = BTreeSet::new();
        for (_, pool) in pools(node)? {
            let Some(network) = pool.network else { continue };
            let len = pool.subnet.prefix_len();
            let ips = pool.gateway.iter().chain(&pool.aux);
            reserved.extend(ips.filter_map(|ip| Some((network, IpNet::new(*ip, len).ok()?))));
        }
        let joined = endpoints.iter().filter_map(|(_, row)| row.joined);
        Ok(Self {
            plugged: joined.filter(|id| node.endpoint(*id).is_some()).collect(),
            networks: networks.into_iter().collect(),
            endpoints: endpoints.into_iter().collect(),
            in_mesh: {
                let all = node.networks(None).await.into_iter();
                all.map(|network| (network.id, network.name.to_string())).collect()
            },
            reserved,
            leases: node.leases()?.into_iter().collect(),
        })
    }
}

fn compare(engine: &InDocker, own: &InStore) -> BTreeSet<Drift> {
    let mut found = BTreeSet::new();
    for (id, name) in &engine.networks {
        match own.networks.get(id) {
            None => drop(found.insert(Drift::UnknownNetwork { name: name.clone() })),
            Some(row) if !own.in_mesh.contains_key(&row.id) => {
                found.insert(Drift::RemovedNetwork { name: name.clone() });
            }
            Some(_) => {}
        }
        for (endpoint, container) in engine.members.get(id).into_iter().flatten() {
            let joined = own.endpoints.get(endpoint).and_then(|row| row.joined);
            if !joined.is_some_and(|id| own.plugged.contains(&id)) {
                let (container, network) = (container.clone(), name.clone());
                found.insert(Drift::NoEndpoint { container, network });
            }
        }
    }
    for (id, row) in own.networks.iter().filter(|(id, _)| !engine.networks.contains_key(*id)) {
        let name = own.in_mesh.get(&row.id).cloned().unwrap_or_else(|| row.id.short());
        found.insert(Drift::ForgottenNetwork { id: id.clone(), name });
    }
    let is_known = |network: &str, id: &str| {
        engine.members.get(network).is_some_and(|members| members.contains_key(id))
    };
    let mut used = own.reserved.clone();
    for (id, row) in &own.endpoints {
        if !is_known(&row.network, id) {
            found.insert(Drift::ForgottenEndpoint { id: id.clone() });
        }
        let network = own.networks.get(&row.network).map(|network| network.id);
        used.extend(network.iter().flat_map(|network| row.ips.iter().map(|ip| (*network, *ip))));
    }
    for (_, ip) in own.leases.iter().filter(|lease| !used.contains(lease)) {
        found.insert(Drift::ForgottenAddress { ip: *ip });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_of_both_has_is_named() {
        let network = NetworkId::from_random([1; 16]);
        let endpoint = EndpointId::from_random([2; 16]);
        let ip: IpNet = "10.77.0.5/24".parse().unwrap();
        let row = EndpointRow {
            network: "n".to_owned(),
            mac: vxmesh_proto::addr::MacAddr([2, 0, 0, 0, 0, 5]),
            ips: vec![ip],
            joined: Some(endpoint),
        };
        let text = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let engine = || InDocker {
            networks: text(&[("n", "app")]),
            members: BTreeMap::from([("n".to_owned(), text(&[("e", "web")]))]),
        };
        let own = || InStore {
            networks: BTreeMap::from([("n".to_owned(), NetworkRow { id: network, made: false })]),
            endpoints: BTreeMap::from([("e".to_owned(), row.clone())]),
            in_mesh: BTreeMap::from([(network, "app".to_owned())]),
            plugged: BTreeSet::from([endpoint]),
            reserved: BTreeSet::new(),
            leases: BTreeSet::from([(network, ip)]),
        };
        let said = |engine: &InDocker, own: &InStore| -> Vec<String> {
            compare(engine, own).iter().map(Drift::to_string).collect()
        };
        assert!(said(&engine(), &own()).is_empty());
        let unplugged = InStore { plugged: BTreeSet::new(), ..own() };
        assert!(said(&engine(), &unplugged)[0].contains("`web` has no endpoint in network `app`"));
        let removed = InStore { in_mesh: BTreeMap::new(), ..own() };
        assert!(
            said(&engine(), &removed)[0].contains("removed the network that Docker calls `app`")
        );
        let gone = InDocker::default();
        assert_eq!(said(&gone, &own()).len(), 2, "a network and an endpoint");
        let lost = InStore { endpoints: BTreeMap::new(), ..own() };
        let lost = said(&engine(), &lost);
        assert!(lost.len() == 2 && lost[1].contains("10.77.0.5/24 is held"), "{lost:?}");
        assert!(
            said(&engine(), &InStore::default())[0]
                .contains("`app`, which this node does not know")
        );
    }
}
