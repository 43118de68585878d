//! Endpoints whose namespace, process or interface is gone: they end, and their names can be had
//! again.
//!
//! An error while looking ends nothing: only what is seen to be gone is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    sync::Arc,
};

use tracing::{debug, info, warn};
use vxmesh_proto::addr::{EndpointId, NetworkId};

use super::{hosting::Hosted, mesh::Mesh};
use crate::{
    api::ApiError,
    gateway::uplink,
    host::{
        endpoints::Stored,
        watch::{Dirty, INTERFACE_AWAY, Place, is_gone},
    },
    lock::lock,
    netlink::{
        link::Links,
        netns::Netns,
        overlay::Overlay,
        watch::{Process, process_of},
    },
};

const PROCESS_ENDED: &str = "its process ended";

/// What is seen of where an endpoint is plugged in.
enum Seen {
    Here,
    /// And why.
    Gone(&'static str),
}

/// What became of endpoints that are gone.
#[derive(Debug, Default)]
pub(super) struct Vanished {
    /// Whether the host is different now.
    pub(super) acted: bool,
    /// Those whose end is still to be written down: nothing of them is put back meanwhile.
    pub(super) held: BTreeSet<EndpointId>,
}

/// Whether the namespace is the one that it was.
fn look_at(place: &Place) -> io::Result<Seen> {
    // The first thread of a process may end before the process: who waits for its end knows better.
    if place.process {
        return Ok(Seen::Here);
    }
    match fs::metadata(&place.netns) {
        Ok(now) if (now.dev(), now.ino()) == place.identity => Ok(Seen::Here),
        Ok(_) => Ok(Seen::Gone("its namespace was removed or replaced")),
        Err(error) if is_gone(&error) => Ok(Seen::Gone("its namespace is gone")),
        Err(error) => Err(error),
    }
}

/// What a user calls it: with its process a namespace and an interface go, too.
fn cause(endpoint: &Stored, why: &'static str) -> &'static str {
    let netns = endpoint.netns();
    let ended =
        process_of(netns).is_some() && fs::metadata(netns).is_err_and(|error| is_gone(&error));
    if ended { PROCESS_ENDED } else { why }
}

impl Mesh {
    /// Learns where to hear of what: of each network that is here, and of where its endpoints are
    /// plugged in.
    pub(super) async fn register(
        self: &Arc<Self>,
        hosted: &Hosted,
        host: &Links,
        endpoints: &[Stored],
    ) {
        let known: BTreeMap<_, _> = {
            let mut places = lock(&self.host.watching.places);
            places.networks.retain(|_, id| hosted.overlays.contains_key(id));
            places.uplinks = hosted.overlays.keys().map(|id| (uplink::ifname(*id), *id)).collect();
            places.endpoints.retain(|id, _| endpoints.iter().any(|endpoint| endpoint.id == *id));
            lock(&self.host.watching.processes).retain(|id, task| {
                let stays = places.endpoints.contains_key(id);
                if !stays {
                    task.abort();
                }
                stays
            });
            places.networks.iter().map(|(number, id)| (*id, *number)).collect()
        };
        for (id, overlay) in hosted.overlays.iter().filter(|(id, _)| !known.contains_key(id)) {
            self.register_network(host, *id, overlay).await;
        }
        for endpoint in endpoints.iter().filter(|endpoint| self.is_watchable(hosted, endpoint)) {
            let place = lock(&self.host.watching.places).endpoints.get(&endpoint.id).cloned();
            if place.is_none_or(|place| !place.heard) {
                self.register_endpoint(host, endpoint).await;
            }
        }
    }

    /// Learns where to hear of an endpoint that was just plugged in: whoever takes its interface
    /// away from now on is heard.
    pub(super) async fn register_new(
        self: &Arc<Self>,
        overlay: Option<&Overlay>,
        endpoint: &Stored,
    ) {
        let host = Netns::current().map_err(io::Error::other).and_then(|here| Links::open(&here));
        let host = match host {
            Ok(host) => host,
            // The next look tries again.
            Err(error) => return debug!(%error, "this host cannot be looked at"),
        };
        if let Some(overlay) = overlay {
            let id = endpoint.network;
            let is_known =
                lock(&self.host.watching.places).networks.values().any(|known| *known == id);
            if !is_known {
                self.register_network(&host, id, overlay).await;
            }
        }
        self.register_endpoint(&host, endpoint).await;
    }

    pub(super) async fn register_network(&self, host: &Links, id: NetworkId, overlay: &Overlay) {
        match host.number(overlay.netns()).await {
            Ok(number) => {
                lock(&self.host.watching.places).networks.insert(number, id);
                // What happened until now was not heard.
                self.host.watching.mark(|dirty| {
                    dirty.networks.insert(id);
                    dirty.rules.insert(id);
                });
            }
            Err(error) => {
                debug!(network = %id, %error, "changes in the network's namespace are not heard of");
            }
        }
    }

    /// Whether it is plugged in, as far as the agent knows.
    fn is_watchable(&self, hosted: &Hosted, endpoint: &Stored) -> bool {
        endpoint.is_attached()
            && !lock(&self.host.pending.unadopted).contains(&endpoint.id)
            && (hosted.overlays.contains_key(&endpoint.network)
                || self.macvlan_of(endpoint.network).is_some())
    }

    pub(super) async fn register_endpoint(self: &Arc<Self>, host: &Links, endpoint: &Stored) {
        self.host.watching.place(&endpoint.name, &endpoint.plug(), endpoint.is_attached());
        let place = lock(&self.host.watching.places).endpoints.get(&endpoint.id).cloned();
        let Some(Place { netns, .. }) = place else { return };
        // What fails now, for want of descriptors perhaps, is tried again with the next look.
        let (mut number, mut heard, mut waits) = (None, true, false);
        if let Ok(netns) = Netns::open(&netns) {
            match host.number(&netns).await {
                Ok(given) => number = Some(given),
                Err(error) => {
                    debug!(endpoint = %endpoint.name, %error, "changes in its namespace are not heard of");
                    heard = false;
                }
            }
        }
        match process_of(&netns).map(Process::open) {
            Some(Ok(process)) => {
                self.await_end(endpoint.id, process);
                waits = true;
            }
            Some(Err(error)) => {
                debug!(endpoint = %endpoint.name, %error, "the end of its process is not heard of");
                heard = false;
            }
            None => {}
        }
        if let Some(place) = lock(&self.host.watching.places).endpoints.get_mut(&endpoint.id) {
            (place.number, place.process, place.heard) = (number, waits, heard);
        }
    }

    /// Hears of an endpoint no more, which is not this life's yet.
    pub(super) fn unregister(&self, id: EndpointId) {
        lock(&self.host.watching.places).endpoints.remove(&id);
        if let Some(task) = lock(&self.host.watching.processes).remove(&id) {
            task.abort();
        }
    }

    fn await_end(self: &Arc<Self>, id: EndpointId, process: Process) {
        let mesh = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            let ended = process.ended().await;
            if let (Ok(()), Some(mesh)) = (ended, mesh.upgrade()) {
                mesh.host.watching.mark(|dirty| {
                    dirty.gone.insert(id, PROCESS_ENDED);
                });
            }
        });
        if let Some(before) = lock(&self.host.watching.processes).insert(id, task.abort_handle()) {
            before.abort();
        }
    }

    /// Ends the endpoints that are gone.
    pub(super) async fn end_vanished(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        dirty: &Dirty,
        endpoints: &[Stored],
    ) -> Vanished {
        let mut gone = Vec::new();
        for endpoint in endpoints {
            match self.is_vanished(hosted, dirty, endpoint).await {
                Ok(Seen::Here) => {}
                Ok(Seen::Gone(why)) => gone.push((endpoint, cause(endpoint, why))),
                Err(error) => {
                    debug!(endpoint = %endpoint.name, %error, "it is not known whether it is there");
                }
            }
        }
        if !gone.is_empty() && self.store.is_stuck() {
            // Their end is written down: they are looked at again with the next round.
            let mut dirty = lock(&self.host.watching.dirty);
            dirty.gone.extend(gone.iter().map(|(endpoint, why)| (endpoint.id, *why)));
            let held = gone.iter().map(|(endpoint, _why)| endpoint.id).collect();
            return Vanished { acted: false, held };
        }
        let mut vanished = Vanished { acted: !gone.is_empty(), held: BTreeSet::new() };
        let sandboxes: BTreeSet<String> =
            gone.iter().filter_map(|(endpoint, _)| endpoint.sandbox.clone()).collect();
        for (endpoint, why) in &gone {
            let network = self.network_name(endpoint.network);
            info!(endpoint = %endpoint.name, %network, why, "endpoint ended");
            if let Err(error) = self.detach_stored(hosted, endpoint.id).await {
                warn!(endpoint = %endpoint.name, why, %error, "an endpoint that is gone is not removed; it is tried again");
                self.host.watching.mark(|dirty| {
                    dirty.gone.insert(endpoint.id, why);
                });
                vanished.held.insert(endpoint.id);
            }
        }
        self.settle_all(hosted, &sandboxes).await;
        vanished
    }

    async fn is_vanished(
        &self,
        hosted: &Hosted,
        dirty: &Dirty,
        endpoint: &Stored,
    ) -> Result<Seen, ApiError> {
        let place = lock(&self.host.watching.places).endpoints.get(&endpoint.id).cloned();
        let Some(place) = place else { return Ok(Seen::Here) };
        let said = dirty.gone.get(&endpoint.id).copied();
        if said == Some(PROCESS_ENDED) {
            return Ok(Seen::Gone(PROCESS_ENDED));
        }
        // Of one whose end somebody else has moved only its port tells.
        let has_place = endpoint.engine.is_none();
        if has_place && (dirty.all || dirty.endpoints || said.is_some()) {
            let seen = look_at(&place);
            if let Seen::Gone(why) = seen.map_err(|error| super::mesh::failed(error, ""))? {
                return Ok(Seen::Gone(if process_of(&place.netns).is_some() {
                    PROCESS_ENDED
                } else {
                    why
                }));
            }
        }
        if !dirty.all && said.is_none() && !dirty.ports.contains(&place.port) {
            return Ok(Seen::Here);
        }
        if let Some(macvlan) = self.macvlan_of(endpoint.network) {
            // It went with its parent, and comes back with it.
            let there = said.is_none()
                || dirty.lost.contains(&macvlan.parent.to_string())
                || !macvlan.parent.exists().await?
                || macvlan.parent.find(&endpoint.plug()).await?.is_some();
            return Ok(if there { Seen::Here } else { Seen::Gone(INTERFACE_AWAY) });
        }
        let Some(overlay) = hosted.overlays.get(&endpoint.network) else { return Ok(Seen::Here) };
        Ok(match overlay.is_plugged(&endpoint.plug()).await? {
            // One that is just being deleted looks like this, too.
            Some(false) => Seen::Gone(INTERFACE_AWAY),
            None if !has_place => Seen::Gone(said.unwrap_or(INTERFACE_AWAY)),
            // Cut here: it is plugged in again.
            None if said.is_none() => Seen::Here,
            None => Seen::Gone(said.unwrap_or_default()),
            Some(true) => Seen::Here,
        })
    }

    /// Ends an endpoint of this node that has this name in this network, if it is gone: who comes
    /// next may have the name.
    pub(super) async fn end_if_vanished(self: &Arc<Self>, is_it: impl Fn(&Stored) -> bool) {
        let is_there = self.stored_endpoints().is_ok_and(|all| all.iter().any(&is_it));
        if !is_there {
            return;
        }
        let Ok(mut hosted) = self.lock_host().await else { return };
        let Ok(mut endpoints) = self.stored_endpoints() else { return };
        endpoints.retain(is_it);
        let gone = endpoints.iter().map(|endpoint| (endpoint.id, "its interface is gone"));
        let dirty = Dirty { endpoints: true, gone: gone.collect(), ..Dirty::default() };
        let _held = self.end_vanished(&mut hosted, &dirty, &endpoints).await;
    }
}
