//! Networks on this host: the namespace, the TAP and its worker, from a network's first endpoint
//! here to its last, or as long as published ports lead into it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use ipnet::IpNet;
use tracing::{info, warn};
use vxmesh_proto::{addr::NetworkId, object};

use super::{
    gateway::Ways,
    ingress::IngressState,
    mesh::{Mesh, failed},
};
use crate::{
    api::ApiError,
    datapath::steering::Queues,
    host::{
        endpoints::Stored,
        table::{Local, LocalTable},
    },
    lock::lock,
    netlink::overlay::{Overlay, OverlaySpec, path_of},
    reconcile::{
        admit::Claims,
        tables::{gateway_mac, updates},
    },
};

/// What of the mesh is on this host: the namespaces of networks that have endpoints here, or
/// services with published ports.
#[derive(Debug, Default)]
pub(super) struct Hosted {
    pub(super) overlays: BTreeMap<NetworkId, Overlay>,
    pub(super) ways: Ways,
    pub(super) ingress: IngressState,
}

/// The gateway's addresses with the length of their subnets' prefixes.
fn gateways_of(network: &object::Network) -> Vec<IpNet> {
    let subnets = network.subnets.iter();
    subnets.map(|subnet| IpNet::new_assert(subnet.gateway, subnet.cidr.prefix_len())).collect()
}

impl Mesh {
    /// Makes what an endpoint needs of its network on this host.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        network: &object::Network,
        endpoint: &Stored,
    ) -> Result<(), ApiError> {
        let grown = self.follow_subnets(hosted, endpoint.network, network).await?;
        if grown || hosted.ways.is_for_clients(endpoint.network) {
            self.open_way(hosted, endpoint.network, network).await;
        }
        self.host_network(hosted, endpoint.network, network).await.map(drop)
    }

    /// The network's namespace with its TAP and worker, made if this is the first endpoint here.
    pub(super) async fn host_network<'h>(
        self: &Arc<Self>,
        hosted: &'h mut Hosted,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<&'h Overlay, ApiError> {
        let there = hosted.overlays.contains_key(&id);
        if !there {
            let overlay = self.make_overlay(id, network).await?;
            overlay.trust_no_more();
            self.host.name_servers.serve_network(id, network, &overlay);
            hosted.overlays.insert(id, overlay);
            self.open_way(hosted, id, network).await;
        }
        let gone = || failed("the network's namespace is gone", "try again");
        hosted.overlays.get(&id).ok_or_else(gone)
    }

    /// Where the namespace of a network is, if it is here.
    pub(crate) fn netns_of(&self, id: NetworkId) -> PathBuf {
        path_of(&self.run_dir(), id)
    }

    /// The same, held by nobody yet: the namespace with its TAP and worker.
    pub(super) async fn make_overlay(
        &self,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<Overlay, ApiError> {
        let spec = OverlaySpec {
            id,
            gateway_mac: gateway_mac(id),
            gateways: gateways_of(network),
            mtu: network.mtu,
            routed: !network.internal,
        };
        let overlay = Overlay::ensure(&self.run_dir(), spec).await?;
        let connected = match self.guard_network(&overlay, id, network) {
            Ok(()) if self.is_local(id) => Ok(()),
            Ok(()) => self.connect(&overlay, id, network).await,
            Err(error) => Err(error),
        };
        if let Err(error) = connected {
            self.unguard_network(id);
            // Without cables in it nobody would ever remove the namespace.
            if !self
                .stored_endpoints()?
                .iter()
                .any(|other| other.network == id && other.is_attached())
            {
                overlay.remove().await?;
            }
            return Err(error);
        }
        self.host.losses.watch(id, &overlay).await;
        info!(network = %network.name, "hosting the network");
        Ok(overlay)
    }

    /// Opens a network's TAP and starts its worker.
    pub(super) async fn connect(
        &self,
        overlay: &Overlay,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<(), ApiError> {
        let claims = self.member.own_claims(id);
        let table = match self.empty_plain_table(id, network) {
            Some(plain) => {
                let tap = overlay.open_tap(self.config.tap, Queues::ONE).await?;
                let own =
                    updates(plain.table(), &Claims::new(), &claims, self.member.me, |_node| None);
                let plain = Arc::new(plain.apply(own));
                let connected = self.host.plane.plain().connect(Arc::clone(&plain), tap);
                connected.map_err(|error| failed(error, "see the agent's log"))?;
                LocalTable::Plain(plain)
            }
            None => {
                let tap = overlay.open_tap(self.config.tap, self.host.plane.queues()).await?;
                let table = self.empty_table(id, network);
                let own = updates(&table, &Claims::new(), &claims, self.member.me, |_node| None);
                let table = Arc::new(table.apply(own));
                self.host.plane.connect(Arc::clone(&table), tap);
                LocalTable::Sealed(table)
            }
        };
        lock(&self.host.locals).insert(id, Local::new(table, claims));
        Ok(())
    }

    /// Brings a hosted network in step with the subnets that were added to it: the gateway gets its
    /// addresses there, and sandboxes routes. Whether there was one.
    pub(super) async fn follow_subnets(
        &self,
        hosted: &mut Hosted,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<bool, ApiError> {
        let Some(overlay) = hosted.overlays.get_mut(&id) else { return Ok(false) };
        if !overlay.add_gateways(gateways_of(network)).await? {
            return Ok(false);
        }
        let endpoints = self.stored_endpoints()?.into_iter();
        for endpoint in
            endpoints.filter(|endpoint| endpoint.network == id && endpoint.is_attached())
        {
            if let Err(error) = overlay.follow(&endpoint.plug()).await {
                warn!(endpoint = %endpoint.name, %error, "the sandbox has no route to the network's new subnets");
            }
        }
        Ok(true)
    }

    /// Ends what this host has of a network. What cannot be removed is tried again by the next
    /// start.
    pub(super) async fn unhost(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        network: NetworkId,
    ) -> Result<(), ApiError> {
        let Some(overlay) = hosted.overlays.remove(&network) else {
            return Ok(Overlay::sweep(&self.run_dir(), network).await?);
        };
        self.host.watching.forget(network);
        let local = lock(&self.host.locals).remove(&network);
        if let Some(local) = local {
            let mesh = Arc::clone(self);
            // Waits for the worker to end.
            let stop = move || match local.table {
                LocalTable::Sealed(table) => mesh.host.plane.disconnect(table.spec().id),
                LocalTable::Plain(plain) => mesh.host.plane.plain().disconnect(plain.spec().id),
            };
            let stopped = tokio::task::spawn_blocking(stop).await;
            stopped.map_err(|error| failed(error, "see the agent's log"))?;
        }
        // Their sockets would keep the namespace, unnamed.
        self.host.name_servers.close_network(network);
        self.unguard_network(network);
        self.host.losses.unwatch(network).await;
        let removed = overlay.remove().await;
        self.close_way(hosted, network);
        Ok(removed?)
    }
}
