//! What container engines ask of this node.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use ipnet::IpNet;
use tracing::debug;
use vxmesh_proto::addr::{EndpointId, MacAddr, NetworkId};

use super::{
    backend::{Agent, blocking},
    endpoints::gone,
    mesh::{Mesh, failed},
    subnets::{Wanted, free_subnets},
};
use crate::{
    api::{self, ApiError, AttachSpec, NetworkSpec},
    docker::{self, Description, ServiceLabel},
    gateway::publish::Publish,
    host::endpoints::Engine,
    netlink::hosts,
    store::Store,
};

impl Mesh {
    /// The addresses of this host's endpoints in a network that an engine has.
    pub(super) fn engine_addresses(&self, network: NetworkId) -> Result<Vec<IpAddr>, ApiError> {
        let endpoints = self.endpoint_rows()?;
        let here = endpoints.iter().filter(|it| it.network == network && it.engine.is_some());
        let mut ips: Vec<IpAddr> = here.flat_map(|it| it.ips.iter().map(IpNet::addr)).collect();
        ips.sort_unstable();
        Ok(ips)
    }
}

/// A mesh that the driver uses for the length of a call.
struct InUse(Arc<Mesh>);

#[async_trait]
impl docker::Agent for Agent {
    async fn node(&self) -> Result<Arc<dyn docker::Node>, ApiError> {
        Ok(Arc::new(InUse(self.mesh().await?)))
    }
}

#[async_trait]
impl docker::Node for InUse {
    fn store(&self) -> &Store {
        &self.0.store
    }

    fn name(&self) -> String {
        self.0.node_name(self.0.member.me)
    }

    async fn networks(&self, wanted: Option<&str>) -> Vec<api::Network> {
        if let Some(wanted) = wanted {
            // If there is none, whoever needs it says so.
            drop(self.0.once_known(|| self.0.find_network(wanted)).await);
        }
        self.0.network_list()
    }

    async fn create_network(&self, spec: NetworkSpec) -> Result<api::Network, ApiError> {
        let mesh = Arc::clone(&self.0);
        mesh.once_met().await;
        blocking(move || mesh.create_network(&spec)).await
    }

    async fn remove_network(&self, id: NetworkId) -> Result<(), ApiError> {
        let mesh = &self.0;
        let remove = || {
            let mesh = Arc::clone(mesh);
            blocking(move || mesh.remove_network(&id.to_string(), false).map(drop))
        };
        match remove().await {
            // Services that containers have made do not keep it.
            Err(_) if mesh.endpoint_list().iter().all(|endpoint| endpoint.network != id) => {
                mesh.remove_offered(id).await;
                remove().await
            }
            removed => removed,
        }
    }

    fn free_subnet(&self, is_ipv6: bool, taken: &[IpNet]) -> Result<IpNet, ApiError> {
        let missing = Wanted::default().missing(Some(!is_ipv6), Some(is_ipv6))?;
        let networks = self.0.network_list();
        let used = networks.iter().flat_map(|network| &network.subnets).map(|subnet| subnet.cidr);
        let taken: Vec<IpNet> = used.chain(taken.iter().copied()).collect();
        let pools = &self.0.config.default_pools;
        let free = free_subnets(pools, &taken, &hosts::routes(), &missing)?;
        free.first().copied().ok_or_else(|| failed("no subnet is free", "say --subnet"))
    }

    async fn lease(
        &self,
        network: NetworkId,
        subnet: IpNet,
        wanted: Option<(IpAddr, bool)>,
    ) -> Result<IpNet, ApiError> {
        self.0.lease(network, (subnet, wanted), Engine::Docker).await
    }

    fn leases(&self) -> Result<Vec<(NetworkId, IpNet)>, ApiError> {
        let leases = self.0.leases()?.into_iter().filter(|lease| lease.holder == Engine::Docker);
        Ok(leases.map(|lease| (lease.network, lease.ip)).collect())
    }

    async fn release(&self, network: NetworkId, ip: IpAddr) -> Result<(), ApiError> {
        // Who attaches or detaches an endpoint looks who holds its addresses.
        let _host = self.0.lock_host().await?;
        self.0.release(network, ip)
    }

    fn free_mac(
        &self,
        network: NetworkId,
        number: u16,
        taken: &[MacAddr],
    ) -> Result<MacAddr, ApiError> {
        self.0.free_mac(network, number, taken)
    }

    async fn attach(
        &self,
        id: EndpointId,
        spec: AttachSpec,
        ips: Vec<IpNet>,
    ) -> Result<api::Endpoint, ApiError> {
        let endpoint = self.0.attach_for((Engine::Docker, id), spec, &ips).await?;
        if let Ok(mut hosted) = self.0.lock_host().await
            && let Err(error) = self.0.sync_way(&mut hosted, endpoint.network)
        {
            debug!(%error, "its questions about names wait for the network's rules");
        }
        endpoint.row(self.0.member.me).ok_or_else(|| gone("the endpoint is gone"))
    }

    fn endpoint(&self, id: EndpointId) -> Option<api::Endpoint> {
        let rows = self.0.endpoint_rows().ok()?;
        rows.iter().find(|row| row.id == id)?.row(self.0.member.me)
    }

    async fn publish(&self, id: EndpointId, wanted: &[Vec<Publish>]) -> Result<(), ApiError> {
        self.0.publish_endpoint(id, wanted).await
    }

    async fn unpublish(&self, id: EndpointId) -> Result<(), ApiError> {
        self.0.unpublish_endpoint(id).await
    }

    async fn describe(&self, id: EndpointId, description: Description) -> Result<(), ApiError> {
        self.0.describe_endpoint(id, description).await
    }

    async fn offer(&self, network: NetworkId, service: &ServiceLabel) -> Result<(), ApiError> {
        self.0.offer_service(network, service).await
    }

    fn tell_endpoint(&self, id: EndpointId, works: bool) {
        self.0.services.tell_endpoint(&self.0, id, works);
    }

    async fn detach(&self, id: EndpointId) -> Result<(), ApiError> {
        let mut hosted = self.0.lock_host().await?;
        self.0.detach_stored(&mut hosted, id).await?;
        // Not before: what ends must not be said to work.
        self.0.services.forget_endpoint(id);
        Ok(())
    }
}
