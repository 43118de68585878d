//! What the engine was told, as the store keeps it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::{EndpointId, MacAddr, NetworkId};

/// An address pool, by its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PoolRow {
    pub(super) subnet: IpNet,
    /// From which part of it addresses are chosen.
    pub(super) range: Option<IpNet>,
    /// What the user said with `--ipam-opt`.
    pub(super) options: BTreeMap<String, String>,
    /// What the gateway is, once the engine has asked.
    pub(super) gateway: Option<IpAddr>,
    /// Addresses that no container gets.
    pub(super) aux: BTreeSet<IpAddr>,
    /// The network of the mesh that it is of, once the engine has made its own.
    pub(super) network: Option<NetworkId>,
    /// When it was asked for, in milliseconds of Unix time.
    pub(super) asked_ms: u64,
}

/// A network of the engine, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkRow {
    /// The one of the mesh.
    pub(super) id: NetworkId,
    /// Whether that was made for this one alone: it goes with it.
    pub(super) made: bool,
}

/// An endpoint of the engine, by its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EndpointRow {
    /// The engine's network.
    pub(super) network: String,
    pub(super) mac: MacAddr,
    pub(super) ips: Vec<IpNet>,
    /// The endpoint of the mesh, while the container runs.
    pub(super) joined: Option<EndpointId>,
}
