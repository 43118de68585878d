//! Addresses that somebody holds for an endpoint that is not there yet, or not any more: container
//! engines ask for an address first, and give it back last.
//!
//! ```text
//! lease   : address of this node -> row, from then on also over a restart
//! release : row goes, the address rests, in one transaction; an endpoint that has it keeps it
//! ```

use std::{net::IpAddr, time::Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vxmesh_proto::{addr::NetworkId, object};

use super::mesh::{Mesh, failed, store_failed};
use crate::{
    api::ApiError,
    host::endpoints::Engine,
    store::{StoreError, Table, Txn},
};

/// An address that is held, as the store keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) network: NetworkId,
    /// With the length of the subnet's prefix.
    pub(super) ip: IpNet,
    /// By whom.
    pub(super) holder: Engine,
}

impl Lease {
    fn key(&self) -> String {
        key(self.network, self.ip.addr())
    }
}

fn key(network: NetworkId, ip: IpAddr) -> String {
    format!("{network}/{ip}")
}

impl Mesh {
    /// All that are held on this node.
    pub(super) fn leases(&self) -> Result<Vec<Lease>, ApiError> {
        let rows = self.store.list::<Lease>(Table::Leases).map_err(store_failed)?;
        Ok(rows.into_iter().map(|(_key, lease)| lease).collect())
    }

    /// Holds any free address of a subnet, or this one: also while it rests, if the holder had it
    /// last.
    pub(super) async fn lease(
        &self,
        id: NetworkId,
        (subnet, wanted): (IpNet, Option<(IpAddr, bool)>),
        holder: Engine,
    ) -> Result<IpNet, ApiError> {
        let network = self.leasing(id)?;
        let ip = match wanted {
            Some((ip, true)) => self.lease_again(&network, id, (subnet, ip)).await?,
            Some((ip, false)) => self.allocate_static(&network, id, ip).await?,
            None => self.allocate_any(&network, id, &[subnet]).await?,
        };
        let lease = Lease { network: id, ip, holder };
        if let Err(error) = self.store.put(Table::Leases, &lease.key(), &lease) {
            // It may have rested.
            self.member.addresses.release(id, ip, Instant::now());
            return Err(store_failed(error));
        }
        Ok(ip)
    }

    /// Exactly this address, also while it rests.
    pub(super) async fn lease_again(
        &self,
        network: &object::Network,
        id: NetworkId,
        (subnet, ip): (IpNet, IpAddr),
    ) -> Result<IpNet, ApiError> {
        let (addresses, elsewhere) = (&self.member.addresses, self.member.elsewhere(id));
        match addresses.allocate_again(id, subnet, ip, &elsewhere, Instant::now()) {
            Some(Ok(ip)) => Ok(IpNet::new_assert(ip, subnet.prefix_len())),
            // Who has it is said, or its owner asked.
            Some(Err(_)) | None => self.allocate_static(network, id, ip).await,
        }
    }

    fn leasing(&self, id: NetworkId) -> Result<object::Network, ApiError> {
        let network = self.network_object(id).map(|(network, _state)| network);
        network.ok_or_else(|| {
            failed("the network was removed from the mesh", "remove it from the engine, too")
        })
    }

    /// Gives a held address back. One that is not held is fine.
    pub(super) fn release(&self, network: NetworkId, ip: IpAddr) -> Result<(), ApiError> {
        let key = key(network, ip);
        let Some(lease) = self.store.get::<Lease>(Table::Leases, &key).map_err(store_failed)?
        else {
            return Ok(());
        };
        let endpoints = self.endpoint_rows()?;
        let has_it = endpoints.iter().any(|it| it.network == network && it.ips.contains(&lease.ip));
        if has_it {
            return self.store.delete(Table::Leases, &key).map(drop).map_err(store_failed);
        }
        let delete = |txn: &mut Txn<'_>| -> Result<(), StoreError> {
            txn.delete(Table::Leases, &key).map(|_was| ())
        };
        self.rest(network, &[lease.ip], delete).map_err(store_failed)?;
        self.member.addresses.release(network, lease.ip, Instant::now());
        Ok(())
    }

    /// Those of these addresses that nobody holds beside the endpoint that has them.
    pub(super) fn unleased(
        &self,
        network: NetworkId,
        ips: &[IpNet],
    ) -> Result<Vec<IpNet>, ApiError> {
        let leases = self.leases()?;
        let is_held =
            |ip: &IpNet| leases.iter().any(|lease| lease.network == network && lease.ip == *ip);
        Ok(ips.iter().copied().filter(|ip| !is_held(ip)).collect())
    }
}
