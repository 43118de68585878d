//! Networks of this host alone: rows of its store, which no other node hears of.
//!
//! What is common with the mesh's networks is the same code: a row has the form of a mesh object,
//! its pools belong to this node whole, and its claims are made out of the store where those of the
//! mesh come by gossip.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use vxmesh_proto::{
    addr::{Name, NetworkId, Vni},
    dns::NamesTable,
    object::{self, ObjectSet},
    tables::RowKey,
};

use super::{
    macvlan::Macvlan,
    mesh::{Mesh, failed, store_failed},
    networks::{check_dns, name_of, usage},
    subnets::{Wanted, free_subnets},
};
use crate::{
    api::{self, ApiError, Driver, ErrorCode, NetworkSpec},
    lock::lock,
    netlink::hosts,
    reconcile::admit::Claims,
    store::Table,
};

/// The smallest MTU: IPv6 asks for it (RFC 8200 section 5).
const MIN_MTU: u16 = 1280;
/// That of Ethernet.
const DEFAULT_MTU: u16 = 1500;

/// A network of this host as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LocalNetwork {
    pub(super) driver: Driver,
    pub(super) network: object::Network,
    #[serde(default)]
    pub(super) macvlan: Option<Macvlan>,
}

impl LocalNetwork {
    pub(super) fn row(&self, id: NetworkId) -> api::Network {
        api::Network {
            driver: self.driver.to_string(),
            scope: self.driver.scope().to_owned(),
            vni: None,
            encrypted: false,
            options: self.macvlan.as_ref().map(Macvlan::options).unwrap_or_default(),
            ..super::networks::row(id, &self.network, object::NetworkState::Active)
        }
    }
}

/// The networks of this host.
#[derive(Debug, Default)]
pub(super) struct LocalNetworks {
    rows: Mutex<BTreeMap<NetworkId, LocalNetwork>>,
    /// The claims that the tables of names were made of.
    named: Mutex<BTreeMap<NetworkId, Claims>>,
}

impl LocalNetworks {
    pub(super) fn get(&self, id: NetworkId) -> Option<LocalNetwork> {
        lock(&self.rows).get(&id).cloned()
    }

    pub(super) fn contains(&self, id: NetworkId) -> bool {
        lock(&self.rows).contains_key(&id)
    }

    pub(super) fn ids(&self) -> Vec<NetworkId> {
        lock(&self.rows).keys().copied().collect()
    }

    pub(super) fn macvlans(&self) -> Vec<(LocalNetwork, Macvlan)> {
        let rows = lock(&self.rows);
        rows.values().filter_map(|row| Some((row.clone(), row.macvlan.clone()?))).collect()
    }

    pub(super) fn list(&self) -> Vec<api::Network> {
        lock(&self.rows).iter().map(|(id, row)| row.row(*id)).collect()
    }

    pub(super) fn names(&self) -> Vec<(NetworkId, Name)> {
        lock(&self.rows).iter().map(|(id, row)| (*id, row.network.name.clone())).collect()
    }

    /// Refuses a name that one of them has.
    pub(super) fn check_name(&self, name: &Name) -> Result<(), ApiError> {
        let rows = lock(&self.rows);
        let Some((id, row)) = rows.iter().find(|(_, row)| row.network.name == *name) else {
            return Ok(());
        };
        Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "there is a network `{name}` of this host already ({}, driver {})",
                id.short(),
                row.driver
            ),
            "choose another name, or remove that one first",
        ))
    }
}

/// Refuses options that the driver does not have.
pub(super) fn check_options(
    driver: Driver,
    options: &BTreeMap<String, String>,
) -> Result<(), ApiError> {
    let known = driver.options();
    let Some(unknown) = options.keys().find(|key| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let hint = if known.is_empty() {
        "it has none: leave -o out".to_owned()
    } else {
        format!("it has {}", known.join(", "))
    };
    Err(usage(format!("driver {driver} has no option `{unknown}`"), &hint))
}

impl Mesh {
    /// Takes over the networks of this host that the store has.
    pub(super) fn load_local_networks(&self) -> Result<(), ApiError> {
        for (key, row) in self.store.list::<LocalNetwork>(Table::Networks).map_err(store_failed)? {
            let id = key.parse().map_err(|error| failed(error, "see the agent's log"))?;
            self.member.addresses.host(id, &row.network.subnets);
            lock(&self.local_networks.rows).insert(id, row);
        }
        Ok(())
    }

    /// Whether a network is of this host alone.
    pub(super) fn is_local(&self, id: NetworkId) -> bool {
        self.local_networks.contains(id)
    }

    /// Makes a network of this host.
    pub(super) fn create_local(
        self: &Arc<Self>,
        spec: &NetworkSpec,
    ) -> Result<api::Network, ApiError> {
        // Held against `leave`. This is no thread of the runtime.
        let _host = self.hosted.blocking_lock();
        if self.is_stopping() {
            return Err(failed("the agent stops", "see `vxmesh status`"));
        }
        if spec.vni.is_some() {
            return Err(usage(
                format!("driver {} puts no number on the wire", spec.driver),
                "leave --vni out",
            ));
        }
        if !spec.encrypted || !spec.vteps.is_empty() {
            return Err(usage(
                format!("frames of driver {} do not leave this host sealed or plain", spec.driver),
                "leave --encrypted and --vtep out",
            ));
        }
        let macvlan = Macvlan::of(spec)?;
        if macvlan.is_some() && spec.isolated {
            return Err(usage(
                "driver macvlan has no --isolated: its frames pass no bridge of ours".to_owned(),
                "give -o macvlan_mode=private",
            ));
        }
        let runtime = Handle::current();
        let mtu = match &macvlan {
            Some(macvlan) => runtime.block_on(macvlan.mtu(spec.mtu))?,
            None => spec.mtu.unwrap_or(DEFAULT_MTU),
        };
        for (other, theirs) in self.local_networks.macvlans() {
            if let Some(macvlan) = &macvlan {
                macvlan.check_beside(other.network.name.as_str(), &theirs)?;
            }
        }
        if mtu < MIN_MTU {
            return Err(usage(format!("an MTU of {mtu} does not do"), "choose 1280 or more"));
        }
        check_dns(spec)?;
        let id = NetworkId::from_random(rand::random());
        let made = LocalNetwork {
            macvlan,
            driver: spec.driver,
            network: object::Network {
                name: spec.name.clone(),
                creator: self.member.me,
                driver: spec
                    .driver
                    .as_str()
                    .parse()
                    .map_err(|error| failed(error, "this is a defect"))?,
                vni: Vni::MAX,
                encrypted: false,
                mtu,
                subnets: self.local_subnets(spec)?,
                dns: spec.dns.clone(),
                vteps: Vec::new(),
                internal: spec.internal,
                isolated: spec.isolated,
                limits: Default::default(),
                labels: spec.labels.clone(),
                blocks: Vec::new(),
            },
        };
        // Nobody can make one of the same name in between: both look at both, in this order of
        // locks.
        self.member.objects.read(|set| {
            check_mesh_name(set, &spec.name)?;
            self.local_networks.check_name(&spec.name)?;
            self.store.put(Table::Networks, &id.to_string(), &made).map_err(store_failed)?;
            lock(&self.local_networks.rows).insert(id, made.clone());
            Ok::<(), ApiError>(())
        })?;
        if let Some(macvlan) = &made.macvlan
            && let Err(error) = runtime.block_on(macvlan.parent.ensure())
        {
            self.forget_local(id)?;
            return Err(error.into());
        }
        self.member.addresses.host(id, &made.network.subnets);
        self.member.keeper.kick();
        Ok(self.with_warnings(made.row(id)))
    }

    fn local_subnets(&self, spec: &NetworkSpec) -> Result<Vec<object::Subnet>, ApiError> {
        let mut wanted = Wanted {
            subnets: spec.subnets.clone(),
            gateways: spec.gateways.clone(),
            ip_ranges: spec.ip_ranges.clone(),
            aux: spec.aux_addresses.clone(),
        };
        let missing = wanted.missing(spec.ipv4, spec.ipv6)?;
        if !missing.is_empty() {
            let networks = self.network_list().into_iter();
            let taken: Vec<_> = networks.flat_map(|row| row.subnets).map(|s| s.cidr).collect();
            let (pools, routes) = (&self.config.default_pools, hosts::routes());
            wanted.subnets.extend(free_subnets(pools, &taken, &routes, &missing)?);
        }
        Ok(wanted.subnets()?.into_iter().map(|(subnet, _usable)| subnet).collect())
    }

    /// Removes a network of this host that has no endpoints. Whoever calls holds the host.
    pub(super) fn remove_local(&self, network: api::Network) -> Result<api::Network, ApiError> {
        let endpoints = self.stored_endpoints()?;
        let holders = endpoints.iter().filter(|endpoint| endpoint.network == network.id);
        let holders: Vec<String> =
            holders.map(|endpoint| format!("{} ({})", endpoint.name, endpoint.place())).collect();
        if !holders.is_empty() {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("network `{}` has endpoints: {}", network.name, holders.join(", ")),
                "detach them first; see `vxmesh endpoint ls`",
            ));
        }
        // The row goes last: while there is one, it can be tried again.
        if let Some(Macvlan { parent, .. }) = self.macvlan_of(network.id) {
            let macvlans = self.local_networks.macvlans();
            if macvlans.iter().filter(|(_, other)| other.parent == parent).count() <= 1 {
                Handle::current().block_on(parent.release())?;
            }
        }
        self.forget_local(network.id)?;
        self.member.keeper.kick();
        Ok(network)
    }

    fn forget_local(&self, id: NetworkId) -> Result<(), ApiError> {
        self.store.delete(Table::Networks, &id.to_string()).map_err(store_failed)?;
        lock(&self.local_networks.rows).remove(&id);
        self.member.addresses.unhost(id);
        Ok(())
    }

    /// What this node's endpoints claim in a network of this host.
    pub(super) fn local_claims(&self, id: NetworkId) -> Claims {
        let endpoints = self.stored_endpoints().unwrap_or_default();
        let own = endpoints.iter().filter(|endpoint| endpoint.network == id);
        own.map(|it| (RowKey { node: self.member.me, endpoint: it.id }, self.local_claim(it)))
            .collect()
    }

    /// The tables of names of the networks of this host that have endpoints.
    pub(super) fn local_names(&self) -> Vec<(NetworkId, Arc<NamesTable>)> {
        let mut tables = Vec::new();
        for id in self.local_networks.ids() {
            let (claims, row) = (self.local_claims(id), self.local_networks.get(id));
            let mut named = lock(&self.local_networks.named);
            let Some(row) = row.filter(|_| !claims.is_empty()) else {
                named.remove(&id);
                continue;
            };
            let unchanged = named.get(&id) == Some(&claims);
            let subnets: Vec<_> = row.network.subnets.iter().map(|subnet| subnet.cidr).collect();
            let domain = &row.network.name;
            let table =
                self.host.name_servers.table((id, domain), &subnets, &[], &claims, unchanged);
            tables.push((id, table));
            named.insert(id, claims);
        }
        tables
    }
}

/// Refuses a name that a network of the mesh has.
pub(super) fn check_mesh_name(set: &ObjectSet, name: &Name) -> Result<(), ApiError> {
    let networks = set.networks();
    let Some((id, ..)) = networks.iter().find(|(_, object, _)| name_of(object) == Some(name))
    else {
        return Ok(());
    };
    Err(ApiError::new(
        ErrorCode::Conflict,
        format!("there is a network `{name}` already ({})", id.short()),
        "choose another name, or remove that one first",
    ))
}
