//! What the last life of the agent left on this host, taken over at the start.
//!
//! ```text
//! "attaching" : undone
//! "attached"  : adopted, or plugged in again, or gone with its sandbox; what cannot be looked at now is tried again
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{sync::Semaphore, task::JoinSet};
use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    object,
};

use super::{
    endpoints::quarantine_ms,
    hosting::Hosted,
    mesh::{Mesh, store_failed},
};
use crate::{
    api::ApiError,
    host::endpoints::Stored,
    lock::lock,
    netlink::{
        link::Links,
        overlay::{Overlay, OverlayError},
    },
    objects::unix_ms,
    store::Table,
};

/// Networks that are taken over at a time: each waits for the kernel again and again.
const AT_ONCE: usize = 8;

/// Why an endpoint of the last life is not adopted.
#[derive(Debug, Error)]
pub(super) enum NotAdopted {
    /// It is known that the sandbox, the network or the endpoint is not there any more: the only
    /// reason to remove it.
    #[error("{0}")]
    Gone(&'static str),
    /// Whatever else went wrong, such as too many open files. The endpoint stays and is tried
    /// again.
    #[error("{0}")]
    Later(ApiError),
}

impl From<ApiError> for NotAdopted {
    fn from(error: ApiError) -> Self {
        Self::Later(error)
    }
}

impl From<OverlayError> for NotAdopted {
    fn from(error: OverlayError) -> Self {
        if error.is_absence() {
            Self::Gone("its sandbox is gone")
        } else {
            Self::Later(error.into())
        }
    }
}

impl Mesh {
    /// Takes over the addresses of the last life of the agent: before anybody can ask for one of
    /// them.
    pub(super) fn adopt_addresses(&self) -> Result<(), ApiError> {
        for endpoint in self.stored_endpoints()? {
            endpoint.ips.iter().for_each(|ip| self.member.addresses.adopt(endpoint.network, *ip));
        }
        for node in self.stored_nodes()?.iter() {
            node.ips.iter().for_each(|ip| self.member.addresses.adopt(node.network, *ip));
        }
        for lease in self.leases()? {
            self.member.addresses.adopt(lease.network, lease.ip);
        }
        let (now, wall) = (Instant::now(), unix_ms());
        for (key, until) in self.store.list::<u64>(Table::Resting).map_err(store_failed)? {
            let address = key.split_once('/');
            let address =
                address.and_then(|(network, ip)| Some((network.parse().ok()?, ip.parse().ok()?)));
            // A clock that was set back makes nothing rest longer.
            let left = until.saturating_sub(wall).min(quarantine_ms());
            if let Some((network, ip)) = address.filter(|_| left > 0) {
                self.member.addresses.rest(network, ip, now + Duration::from_millis(left));
            }
        }
        Ok(())
    }

    /// Takes over what the last life of the agent left.
    pub(super) async fn adopt(self: &Arc<Self>) -> Result<(), ApiError> {
        let mut hosted = self.hosted.lock().await;
        hosted.ways.adopting = true;
        self.adopt_host_ports(&mut hosted)?;
        let endpoints = self.stored_endpoints()?;
        let mut adopted = self.adopt_networks(&mut hosted, &endpoints).await;
        for endpoint in endpoints {
            let adopted = adopted.remove(&endpoint.id);
            self.adopt_or_undo(&mut hosted, &endpoint, adopted).await;
        }
        self.sweep(&hosted).await?;
        self.remove_leftovers(&hosted).await?;
        self.adopt_ways(&mut hosted).await?;
        self.adopt_routes().await
    }

    /// Takes over the networks of endpoints that were plugged in, several at a time, and these. Who
    /// is left out is adopted by itself, and so is a network that fails here: it is tried once
    /// more.
    async fn adopt_networks(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        endpoints: &[Stored],
    ) -> BTreeMap<EndpointId, Result<(), NotAdopted>> {
        let mut by_network: BTreeMap<NetworkId, Vec<Stored>> = BTreeMap::new();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_attached()) {
            by_network.entry(endpoint.network).or_default().push(endpoint.clone());
        }
        // Published ports lead into others.
        for node in self.stored_nodes().iter().flat_map(|nodes| nodes.iter()) {
            by_network.entry(node.network).or_default();
        }
        let host = match host_seen().await {
            Ok(host) => Arc::new(host),
            Err(error) => {
                info!(%error, "networks are not taken over together; each is tried by itself");
                return BTreeMap::new();
            }
        };
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for (id, endpoints) in by_network {
            let network = self.network_object(id).filter(|_| self.macvlan_of(id).is_none());
            let Some((network, _state)) = network else { continue };
            let (mesh, room, host) = (Arc::clone(self), Arc::clone(&room), Arc::clone(&host));
            tasks.spawn(async move {
                let _permit = room.acquire().await.ok()?;
                let made = mesh.make_overlay(id, &network).await;
                let overlay = made.inspect_err(|error| {
                    info!(network = %network.name, %error, "the network is not taken over at once; it is tried again");
                });
                let overlay = overlay.ok()?;
                mesh.host.name_servers.serve_network(id, &network, &overlay);
                let way = mesh.adopt_way((&host, &overlay), id, &network).await;
                // The cable's other end first: which end was cut first says who did it.
                mesh.register_network(&host, id, &overlay).await;
                let mut adopted = Vec::new();
                for endpoint in endpoints {
                    mesh.register_endpoint(&host, &endpoint).await;
                    let done = mesh.adopt_cable(&overlay, &endpoint).await;
                    if done.is_err() {
                        mesh.unregister(endpoint.id);
                    }
                    adopted.push((endpoint.id, done));
                }
                overlay.trust_no_more();
                Some((id, overlay, way, adopted))
            });
        }
        let mut all = BTreeMap::new();
        while let Some(done) = tasks.join_next().await {
            let (id, overlay, way, adopted) = match done {
                Ok(Some(done)) => done,
                Ok(None) => continue,
                Err(error) => {
                    warn!(%error, "a network was not taken over; it is tried once more");
                    continue;
                }
            };
            hosted.overlays.insert(id, overlay);
            if let Some(way) = way {
                hosted.ways.add(id, way);
            }
            all.extend(adopted);
        }
        all
    }

    /// Unplugs the endpoints of networks that were deleted elsewhere while this node was away:
    /// nothing carries their frames any more but the bridge between two of them. Tries once more to
    /// adopt what could not be adopted.
    pub(super) async fn mend(self: &Arc<Self>) {
        let is_deleted = |network| {
            let id = object::ObjectId::Network(network);
            self.member.objects.read(|set| set.get(&id).is_some_and(|object| object.closed()))
        };
        // What ends is written down: it waits until the disk takes that. What is taken over is not.
        let stuck = self.store.is_stuck();
        let unadopted = lock(&self.host.pending.unadopted).clone();
        let now = (self.member.objects.read(object::ObjectSet::content_hash), self.store.writes());
        let is_tidy = || lock(&self.host.pending.tidy).as_ref() == Some(&now);
        if unadopted.is_empty() && (stuck || is_tidy()) {
            return;
        }
        let stored = match self.stored_endpoints() {
            Ok(stored) => stored,
            Err(error) => return warn!(%error, "endpoints cannot be looked at"),
        };
        let (mut orphans, rest): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|endpoint| is_deleted(endpoint.network));
        if stuck {
            orphans.clear();
        }
        let late: Vec<_> = rest.into_iter().filter(|e| unadopted.contains(&e.id)).collect();
        if orphans.is_empty() && late.is_empty() {
            if !stuck {
                *lock(&self.host.pending.tidy) = Some(now);
            }
            return;
        }
        // Whoever changes the host now may change just this; there is a next time.
        let Ok(mut hosted) = self.hosted.try_lock() else { return };
        if self.is_stopping() {
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
            self.adopt_or_undo(&mut hosted, &endpoint, None).await;
        }
        self.settle_all(&mut hosted, &sandboxes).await;
        drop(hosted);
        self.member.keeper.kick();
    }

    /// A network's last endpoint, or the network, may have gone just before the last life of the
    /// agent ended.
    async fn sweep(&self, hosted: &Hosted) -> Result<(), ApiError> {
        // A network that could not be adopted keeps its namespace: the cables in it are those of
        // live sandboxes (I9).
        // So does one into which published ports lead.
        let (endpoints, nodes) = (self.endpoint_rows()?, self.stored_nodes()?);
        let led = nodes.iter().map(|node| node.network).filter(|id| self.leads_clients(*id));
        let kept: BTreeSet<NetworkId> =
            endpoints.iter().map(|endpoint| endpoint.network).chain(led).collect();
        let networks: Vec<NetworkId> = self.member.objects.read(|set| {
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

    async fn adopt_or_undo(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        endpoint: &Stored,
        adopted: Option<Result<(), NotAdopted>>,
    ) {
        let adopted = match adopted {
            Some(adopted) => adopted,
            None => self.adopt_one(hosted, endpoint).await,
        };
        let why = match adopted {
            Ok(()) => {
                if lock(&self.host.pending.unadopted).remove(&endpoint.id) {
                    info!(endpoint = %endpoint.name, "endpoint adopted after all");
                }
                return;
            }
            // The sandbox may still have interface and address (I9).
            Err(NotAdopted::Later(error)) => {
                if lock(&self.host.pending.unadopted).insert(endpoint.id) {
                    warn!(endpoint = %endpoint.name, %error, "endpoint not adopted; it is tried again");
                }
                return;
            }
            Err(NotAdopted::Gone(why)) => why,
        };
        // Until its end is written down it is not this life's, either.
        let is_first = lock(&self.host.pending.unadopted).insert(endpoint.id);
        if self.store.is_stuck() {
            if is_first {
                warn!(endpoint = %endpoint.name, why, "endpoint not adopted; it is removed once the disk takes that");
            }
            return;
        }
        self.silence(hosted, endpoint).await;
        self.withdraw(endpoint.network, endpoint.id);
        match self.unplug(hosted, endpoint).await {
            Err(error) if self.is_stored(endpoint).unwrap_or(true) => {
                if is_first {
                    warn!(endpoint = %endpoint.name, why, %error, "endpoint neither adopted nor removed; it is tried again");
                }
                return;
            }
            Err(error) => {
                warn!(endpoint = %endpoint.name, %error, "not all of the endpoint is removed");
            }
            Ok(()) => {}
        }
        lock(&self.host.pending.unadopted).remove(&endpoint.id);
        warn!(endpoint = %endpoint.name, why, "endpoint not adopted; it is removed");
    }

    async fn adopt_one(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        endpoint: &Stored,
    ) -> Result<(), NotAdopted> {
        let Some((network, _state)) = self.network_object(endpoint.network) else {
            return Err(NotAdopted::Gone("its network is gone"));
        };
        let macvlan = self.macvlan_of(endpoint.network);
        if !endpoint.is_attached() {
            if macvlan.is_none() {
                // The namespace may have been made for it.
                self.host_network(hosted, endpoint.network, &network).await?;
            }
            return Err(NotAdopted::Gone("it was never wholly attached"));
        }
        if let Some(macvlan) = macvlan {
            return self.adopt_macvlan(&macvlan, &network, endpoint).await;
        }
        // Whatever follows, undoing it takes the namespace away after the last endpoint.
        let overlay = self.host_network(hosted, endpoint.network, &network).await?;
        self.adopt_cable(overlay, endpoint).await?;
        self.register_new(Some(overlay), endpoint).await;
        Ok(())
    }

    /// Takes over the cable of an endpoint that was plugged in.
    async fn adopt_cable(&self, overlay: &Overlay, endpoint: &Stored) -> Result<(), NotAdopted> {
        // The number of a process may be another's by now, and its namespace outlive it; and where
        // an engine moved the end of a cable only it knows: then the cable tells.
        if endpoint.netns().starts_with("/proc") || endpoint.engine.is_some() {
            let plugged = overlay.plugged().await?.contains(&endpoint.id);
            return if plugged { Ok(()) } else { Err(NotAdopted::Gone("its sandbox is gone")) };
        }
        self.guard_port(endpoint)?;
        // Mends what is plugged in, and plugs in what is not.
        overlay.attach(&endpoint.plug()).await?;
        Ok(())
    }
}

/// The host's links as they are now: what is so already of uplinks is not written again.
async fn host_seen() -> io::Result<Links> {
    let links = Links::here()?;
    if let Err(error) = links.look(BTreeMap::new()).await {
        debug!(%error, "all of uplinks is written anew");
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use nix::errno::Errno;

    use super::*;
    use crate::{api::ErrorCode, netlink::netns::NetnsError};

    fn open(errno: Errno) -> OverlayError {
        NetnsError::Open { path: PathBuf::from("/run/netns/x"), source: errno.into() }.into()
    }

    #[test]
    fn only_a_sandbox_that_is_known_to_be_gone_loses_its_endpoint() {
        let not_one = NetnsError::NotANamespace(PathBuf::from("/run/netns/x"));
        for gone in [open(Errno::ENOENT), open(Errno::ENOTDIR), not_one.into()] {
            let told = format!("{gone}");
            assert!(matches!(gone.into(), NotAdopted::Gone(_)), "{told}");
        }
        let busy = |errno: Errno| OverlayError::Io(io::Error::from(errno));
        let refused = ErrorCode::NotFound;
        let later: [NotAdopted; 9] = [
            open(Errno::EMFILE).into(),
            open(Errno::ENFILE).into(),
            open(Errno::ENOMEM).into(),
            open(Errno::EACCES).into(),
            busy(Errno::ENOBUFS).into(),
            OverlayError::Taken("eth0".into()).into(),
            OverlayError::NoName.into(),
            OverlayError::NotASandbox(PathBuf::from("/run/netns/x")).into(),
            // The kind of an API error is for people; it decides nothing here.
            ApiError::new(refused, "no", "").into(),
        ];
        for later in later {
            assert!(matches!(later, NotAdopted::Later(_)), "{later:?}");
        }
    }
}
