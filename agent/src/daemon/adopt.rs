//! What the last life of the agent left on this host, taken over at the start.
//!
//! ```text
//! "attaching" : undone
//! "attached"  : adopted, or plugged in again, or gone with its sandbox; what cannot be looked at now is tried again
//! ```

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use vxmesh_proto::{addr::NetworkId, object};

use super::{
    endpoints::{Stored, gone, quarantine_ms},
    hosting::Hosted,
    mesh::{Mesh, lock, store_failed},
};
use crate::{
    api::{ApiError, ErrorCode},
    netlink::{
        netns::Netns,
        overlay::{Overlay, OverlayError},
    },
    objects::unix_ms,
    store::Table,
};

impl Mesh {
    /// Takes over the addresses of the last life of the agent: before anybody can ask for one of them.
    pub(super) fn adopt_addresses(&self) -> Result<(), ApiError> {
        for endpoint in self.stored_endpoints()? {
            endpoint.ips.iter().for_each(|ip| self.addresses.adopt(endpoint.network, *ip));
        }
        for node in self.stored_nodes()? {
            node.ips.iter().for_each(|ip| self.addresses.adopt(node.network, *ip));
        }
        let (now, wall) = (Instant::now(), unix_ms());
        for (key, until) in self.store.list::<u64>(Table::Resting).map_err(store_failed)? {
            let address = key.split_once('/');
            let address =
                address.and_then(|(network, ip)| Some((network.parse().ok()?, ip.parse().ok()?)));
            // A clock that was set back makes nothing rest longer.
            let left = until.saturating_sub(wall).min(quarantine_ms());
            if let Some((network, ip)) = address.filter(|_| left > 0) {
                self.addresses.rest(network, ip, now + Duration::from_millis(left));
            }
        }
        Ok(())
    }

    /// Takes over what the last life of the agent left.
    pub(super) async fn adopt(self: &Arc<Self>) -> Result<(), ApiError> {
        let mut hosted = self.host.lock().await;
        hosted.ways.adopting = true;
        for endpoint in self.stored_endpoints()? {
            self.adopt_or_undo(&mut hosted, &endpoint).await;
        }
        self.sweep(&hosted).await?;
        self.remove_leftovers(&hosted).await?;
        self.adopt_ways(&mut hosted)?;
        self.adopt_routes().await
    }

    /// Unplugs the endpoints of networks that were deleted elsewhere while this node was away: nothing carries their frames any
    /// more but the bridge between two of them. Tries once more to adopt what could not be adopted.
    pub(super) async fn mend(self: &Arc<Self>) {
        let is_deleted = |network| {
            let id = object::ObjectId::Network(network);
            self.objects.read(|set| set.get(&id).is_some_and(|object| object.closed()))
        };
        let stored = match self.stored_endpoints() {
            Ok(stored) => stored,
            Err(error) => return warn!(%error, "endpoints cannot be looked at"),
        };
        let unadopted = lock(&self.unadopted).clone();
        let (orphans, rest): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|endpoint| is_deleted(endpoint.network));
        let late: Vec<_> = rest.into_iter().filter(|e| unadopted.contains(&e.id)).collect();
        if orphans.is_empty() && late.is_empty() {
            return;
        }
        // Whoever changes the host now may change just this; there is a next time.
        let Ok(mut hosted) = self.host.try_lock() else { return };
        if *self.stop.borrow() {
            return;
        }
        let changed = orphans.iter().chain(&late);
        let sandboxes = changed.filter_map(|endpoint| endpoint.sandbox.clone()).collect();
        for endpoint in orphans {
            match self.detach_stored(&mut hosted, endpoint.id).await {
                Ok(()) => {
                    warn!(endpoint = %endpoint.name, network = %endpoint.network, "endpoint unplugged: its network was deleted");
                }
                Err(error) => {
                    warn!(endpoint = %endpoint.name, %error, "endpoint of a deleted network not unplugged; it is tried again");
                }
            }
        }
        for endpoint in late {
            self.adopt_or_undo(&mut hosted, &endpoint).await;
        }
        self.settle_all(&mut hosted, &sandboxes).await;
        drop(hosted);
        self.kick();
    }

    /// A network's last endpoint, or the network, may have gone just before the last life of the agent ended.
    async fn sweep(&self, hosted: &Hosted) -> Result<(), ApiError> {
        // A network that could not be adopted keeps its namespace: the cables in it are those of live sandboxes (I9).
        let kept: BTreeSet<NetworkId> =
            self.stored_endpoints()?.iter().map(|endpoint| endpoint.network).collect();
        let networks: Vec<NetworkId> = self.objects.read(|set| {
            let ids = set.objects().filter_map(|object| match object.id() {
                object::ObjectId::Network(id) => Some(*id),
                _ => None,
            });
            let ids = ids.chain(self.local_networks.ids());
            ids.filter(|id| !hosted.overlays.contains_key(id) && !kept.contains(id)).collect()
        });
        for network in networks {
            Overlay::sweep(&self.run_dir(), network).await?;
        }
        Ok(())
    }

    async fn adopt_or_undo(self: &Arc<Self>, hosted: &mut Hosted, endpoint: &Stored) {
        let error = match self.adopt_one(hosted, endpoint).await {
            Ok(()) => {
                if lock(&self.unadopted).remove(&endpoint.id) {
                    info!(endpoint = %endpoint.name, "endpoint adopted after all");
                }
                return;
            }
            Err(error) => error,
        };
        // The sandbox may still have interface and address (I9).
        if error.code == ErrorCode::Failed {
            if lock(&self.unadopted).insert(endpoint.id) {
                warn!(endpoint = %endpoint.name, %error, "endpoint not adopted; it is tried again");
            }
            return;
        }
        warn!(endpoint = %endpoint.name, %error, "endpoint not adopted; it is removed");
        lock(&self.unadopted).remove(&endpoint.id);
        self.silence(hosted, endpoint).await;
        self.withdraw(endpoint.network, endpoint.id);
        self.undo(hosted, endpoint).await;
    }

    /// [`ErrorCode::Failed`] means that the endpoint may still be there; any other error, that it cannot be.
    async fn adopt_one(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        endpoint: &Stored,
    ) -> Result<(), ApiError> {
        let Some((network, _state)) = self.network_object(endpoint.network) else {
            return Err(gone("its network is gone"));
        };
        if let Some(macvlan) = self.macvlan_of(endpoint.network).filter(|_| endpoint.is_attached())
        {
            return self.adopt_macvlan(&macvlan, &network, endpoint).await;
        }
        if !endpoint.is_attached() && self.macvlan_of(endpoint.network).is_some() {
            return Err(gone("it was never wholly attached"));
        }
        if !endpoint.is_attached() {
            // The namespace may have been made for it.
            self.host_network(hosted, endpoint.network, &network).await?;
            return Err(gone("it was never wholly attached"));
        }
        // Whatever follows, undoing it takes the namespace away after the last endpoint.
        let overlay = self.host_network(hosted, endpoint.network, &network).await?;
        // The number of a process may be another's by now, and its namespace outlive it: then the cable tells.
        if endpoint.netns().starts_with("/proc") {
            let plugged = overlay.plugged().await?.contains(&endpoint.id);
            return if plugged { Ok(()) } else { Err(gone("its sandbox is gone")) };
        }
        Netns::open(endpoint.netns()).map_err(OverlayError::from)?;
        self.guard_port(endpoint)?;
        // Mends what is plugged in, and plugs in what is not.
        overlay.attach(&endpoint.plug()).await?;
        Ok(())
    }
}
