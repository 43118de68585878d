//! What the agent made on this host, put back where somebody took it away (`watch` says where to
//! look).

use std::{collections::BTreeSet, pin::pin, sync::Arc};

use ipnet::IpNet;
use tokio::sync::MutexGuard;
use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId},
    object,
};

use super::{
    doctor::check,
    hosting::Hosted,
    mesh::{Mesh, failed},
};
use crate::{
    api::{ApiError, Diagnosis, Health},
    gateway::{uplink::Uplink, whole},
    host::{
        endpoints::Stored,
        table::LocalTable,
        watch::{Dirty, Mended, Turn},
    },
    lock::lock,
    netlink::{
        link::Links,
        netns::Netns,
        overlay::{Overlay, OverlayError},
        whole::{Faults, State, Wanted},
    },
};

/// What a look needs of the host and the store.
pub(super) struct View {
    pub(super) links: Links,
    pub(super) state: State,
    endpoints: Vec<Stored>,
}

impl View {
    /// What they have now.
    pub(super) async fn now(mesh: &Mesh) -> Result<Self, ApiError> {
        let netns = Netns::current().map_err(OverlayError::from)?;
        let links = Links::open(&netns).map_err(OverlayError::from)?;
        let state = State::of(&links).await.map_err(OverlayError::from)?;
        Ok(Self { links, state, endpoints: mesh.stored_endpoints()? })
    }
}

impl Mesh {
    /// Looks at what may be different, puts it back, and ends what is gone. Whether it changed
    /// something.
    pub(super) async fn look(self: &Arc<Self>, dirty: Dirty) -> bool {
        // Whoever changes the host may wait long, for addresses of other nodes; the host and ports
        // are guarded meanwhile.
        let mut changed = self.keep_guards(|id| dirty.all || dirty.rules.contains(id));
        self.mend_on_host();
        let mut hosted = self.host_in_turn(&mut changed).await;
        if self.is_stopping() {
            return false;
        }
        let is_due = |(place, id): &(usize, &NetworkId)| {
            changed.contains(*id) || self.is_due(&hosted, &dirty, (*place, **id))
        };
        let due = hosted.overlays.keys().enumerate().filter(is_due);
        let due: BTreeSet<NetworkId> = due.map(|(_place, id)| *id).collect();
        let acted = if due.is_empty() && !dirty.is_about_places() {
            false
        } else {
            let acted = self.look_closely(&mut hosted, &dirty, &due).await;
            if acted.is_none() {
                self.host.watching.mark(|again| *again = Dirty { all: true, ..dirty.clone() });
                return true;
            }
            acted.unwrap_or_default()
        };
        if dirty.all || dirty.host || acted {
            self.sync_host(&mut hosted);
        }
        drop(hosted);
        if let Some(turn) = dirty.turn {
            // Before somebody flushes the rules that counted.
            self.count_on_host();
            self.count_refused(|place, _id| turn.is_for_settings(place));
        }
        if acted {
            self.reconcile().await;
        }
        acted
    }

    /// The host, once nobody else changes it; rules that somebody takes away meanwhile are put
    /// back, and their networks noted.
    async fn host_in_turn(&self, changed: &mut BTreeSet<NetworkId>) -> MutexGuard<'_, Hosted> {
        let mut turn = pin!(self.hosted.lock());
        let mut woken = false;
        let hosted = loop {
            tokio::select! {
                hosted = &mut turn => break hosted,
                () = self.host.watching.wake.notified() => {
                    woken = true;
                    let (all, rules) = self.host.watching.rules();
                    changed.extend(self.keep_guards(|id| all || rules.contains(id)));
                    self.mend_on_host();
                }
            }
        };
        if woken {
            // The rest of what happened is still to be looked at.
            self.host.watching.wake.notify_one();
        }
        hosted
    }

    /// Looks at these networks and at where endpoints are plugged in; nothing if the host cannot be
    /// looked at.
    async fn look_closely(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        dirty: &Dirty,
        due: &BTreeSet<NetworkId>,
    ) -> Option<bool> {
        let mut view = match View::now(self).await {
            Ok(view) => view,
            Err(error) => {
                warn!(%error, "this host cannot be looked at; it is tried again");
                return None;
            }
        };
        self.register(hosted, &view.links, &view.endpoints).await;
        self.number_uplinks(&view.state);
        let vanished = self.end_vanished(hosted, dirty, &view.endpoints).await;
        view.endpoints.retain(|endpoint| !vanished.held.contains(&endpoint.id));
        let mut acted = vanished.acted;
        if acted {
            let mut left = self.stored_endpoints().unwrap_or_default();
            left.retain(|endpoint| view.endpoints.iter().any(|it| it.id == endpoint.id));
            view.endpoints = left;
        }
        acted |= self.mend_macvlans(hosted, dirty, &view.endpoints).await;
        // Networks may have gone with their last endpoints.
        let ids: Vec<NetworkId> = hosted.overlays.keys().copied().collect();
        for id in ids {
            let is_due = due.contains(&id);
            let Some(network) = self.network_of(id).filter(|_| is_due || dirty.subnets) else {
                continue;
            };
            if is_due {
                acted |= self.look_at_network(hosted, (id, &network), (&view, dirty)).await;
            } else {
                self.follow_grown(hosted, id, &network).await;
            }
        }
        Some(acted)
    }

    /// Whether a network is to be looked at.
    fn is_due(&self, hosted: &Hosted, dirty: &Dirty, (place, id): (usize, NetworkId)) -> bool {
        let Some(overlay) = hosted.overlays.get(&id) else { return false };
        let uplink = hosted.ways.uplink_of(id);
        let is_set = || uplink.is_none_or(|it| whole::untold_faults(it).is_empty());
        let is_set_inside = || overlay.setting_faults().is_ok_and(|faults| faults.is_empty());
        let is_turn = |turn: Turn| {
            turn.is_for_all(place)
                || self.has_fault(hosted, id)
                || !is_set()
                || turn.is_for_settings(place) && !is_set_inside()
        };
        dirty.all
            || dirty.networks.contains(&id)
            || dirty.rules.contains(&id)
            || dirty.pins && !overlay.is_pinned()
            || dirty.turn.is_some_and(is_turn)
            || !dirty.routes.is_empty() && self.is_touched(uplink, dirty, id)
    }

    /// Whether a route of the host that changed has to do with a network.
    fn is_touched(&self, uplink: Option<&Uplink>, dirty: &Dirty, id: NetworkId) -> bool {
        let Some(network) = self.network_of(id) else { return false };
        let own = uplink.into_iter().flat_map(Uplink::ips).map(IpNet::from);
        let mut ours = network.subnets.iter().map(|subnet| subnet.cidr).chain(own);
        let meets = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
        ours.any(|ours| dirty.routes.iter().any(|to| to.prefix_len() > 0 && meets(&ours, to)))
    }

    /// Whether something of it failed and is tried again.
    fn has_fault(&self, hosted: &Hosted, id: NetworkId) -> bool {
        let mended = lock(&self.host.watching.mended);
        mended.get(&id).is_some_and(|it| it.fault.is_some()) || hosted.ways.is_due(id)
    }

    fn number_uplinks(&self, state: &State) {
        let mut places = lock(&self.host.watching.places);
        let numbers = places.uplinks.iter();
        let numbers = numbers.filter_map(|(name, id)| Some((state.link(name)?.index, *id)));
        places.uplink_numbers = numbers.collect();
    }

    async fn look_at_network(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        (id, network): (NetworkId, &object::Network),
        (view, dirty): (&View, &Dirty),
    ) -> bool {
        let mended = self.mend_network(hosted, (id, network), (view, dirty)).await;
        let grown = self.follow_grown(hosted, id, network).await;
        // The state of the host is not as it was if something was mended.
        let fresh = if mended.is_ok_and(|mended| !mended) && !grown {
            None
        } else {
            View::now(self).await.ok()
        };
        self.keep_way(hosted, (id, network), fresh.as_ref().unwrap_or(view), grown).await;
        fresh.is_some()
    }

    /// Has the network's side of this host follow its subnets. Whether there were new ones.
    async fn follow_grown(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        id: NetworkId,
        network: &object::Network,
    ) -> bool {
        match self.follow_subnets(hosted, id, network).await {
            Ok(grown) => {
                if grown {
                    self.host.watching.mark(|dirty| {
                        dirty.networks.insert(id);
                    });
                }
                grown
            }
            Err(error) => {
                warn!(network = %network.name, %error, "this host does not follow the network's new subnets");
                false
            }
        }
    }

    /// Puts back what is missing in a network's namespace and of its uplink. Whether something was.
    async fn mend_network(
        self: &Arc<Self>,
        hosted: &Hosted,
        (id, network): (NetworkId, &object::Network),
        (view, dirty): (&View, &Dirty),
    ) -> Result<bool, ApiError> {
        let done = self.mend_links(hosted, (id, network), (view, dirty)).await;
        let mut mended = lock(&self.host.watching.mended);
        let known = mended.entry(id).or_default();
        match &done {
            Ok(said) if said.is_empty() => (known.fault, known.told) = (None, false),
            Ok(said) => {
                (known.times, known.fault, known.told) = (known.times + 1, None, false);
                let what = said.join(", ");
                known.last.clone_from(&what);
                info!(network = %network.name, what, "somebody changed the network's links on this host; they are as before");
            }
            Err(error) => {
                // What is just being taken away fails once, and is no fault at the next look.
                if known.fault.as_ref() != Some(&error.message) {
                    known.told = false;
                } else if !known.told {
                    known.told = true;
                    warn!(network = %network.name, %error, "the network's links on this host are not as they should be; it is tried again");
                }
                known.fault = Some(error.message.clone());
            }
        }
        done.map(|said| !said.is_empty())
    }

    async fn mend_links(
        self: &Arc<Self>,
        hosted: &Hosted,
        (id, network): (NetworkId, &object::Network),
        (view, dirty): (&View, &Dirty),
    ) -> Result<Vec<String>, ApiError> {
        let Some(overlay) = hosted.overlays.get(&id) else { return Ok(Vec::new()) };
        let mut said = Vec::new();
        lock(&self.host.watching.mended).entry(id).or_default().is_of_endpoint = false;
        if overlay.pin_again()? {
            said.push("the namespace's pin was gone".to_owned());
        }
        let uplink = hosted.ways.uplink_of(id);
        let wanted = self.wanted((id, uplink), &view.endpoints)?;
        let state = overlay.state().await?;
        let faults = overlay.faults(&state, &wanted).await?;
        if self.awaits_word(id, &faults, dirty) {
            return Ok(said);
        }
        let mut done = Ok(());
        if !faults.is_none() {
            let ends = (&faults, &wanted);
            done = self.mend_inside(overlay, (id, network), ends, &view.endpoints).await;
            said.extend(faults.said);
        }
        if let Some(uplink) = uplink {
            let faults = whole::faults(uplink, network.mtu, &view.state, &state);
            if !faults.is_empty() {
                let ends = (&view.links, overlay);
                let mended = self.mend_uplink(uplink, ends, (id, network), &faults).await;
                done = done.and(mended);
                said.extend(faults);
            }
        }
        // Who reads why it could not be put back is told what was wrong.
        done.map_err(|error: ApiError| ApiError {
            message: format!("{}; found: {}", error.message, said.join(", ")),
            ..error
        })?;
        Ok(said)
    }

    async fn mend_uplink(
        self: &Arc<Self>,
        uplink: &Uplink,
        (host, overlay): (&Links, &Overlay),
        (id, network): (NetworkId, &object::Network),
        faults: &[String],
    ) -> Result<(), ApiError> {
        if faults != whole::setting_faults(uplink) {
            // Routes that the kernel made with an address come back with the link.
            let down = whole::take_down(uplink, host, overlay.links()).await;
            down.map_err(OverlayError::from)?;
        }
        self.ensure_uplink((host, overlay), id, network).await.map(drop)
    }

    /// Whether an endpoint's cable is away and the kernel is about to say at which end it was cut:
    /// in the sandbox it ends the endpoint, here it is plugged in again. The network is looked at
    /// once more then, also where everything is looked at: it may have been cut meanwhile.
    fn awaits_word(&self, id: NetworkId, faults: &Faults, dirty: &Dirty) -> bool {
        if self.host.watching.is_deaf() {
            return false;
        }
        let is_told = |it: &EndpointId| {
            dirty.gone.contains_key(it) || dirty.cut.contains(it) || dirty.awaited.contains(it)
        };
        let awaited: BTreeSet<EndpointId> =
            faults.unplugged.iter().filter(|it| !is_told(it)).copied().collect();
        if !awaited.is_empty() {
            self.host.watching.mark(|again| {
                again.awaited.extend(&awaited);
                again.networks.insert(id);
            });
        }
        !awaited.is_empty()
    }

    fn wanted(
        &self,
        (id, uplink): (NetworkId, Option<&Uplink>),
        endpoints: &[Stored],
    ) -> Result<Wanted, ApiError> {
        let node = self.stored_node(id)?.map(|node| self.node_plug(&node, uplink));
        // One that could not be adopted is another's work.
        let unadopted = lock(&self.host.pending.unadopted).clone();
        let own = endpoints
            .iter()
            .filter(|it| it.network == id && it.is_attached() && !unadopted.contains(&it.id));
        let lent = own.clone().filter(|it| it.engine.is_some()).map(|it| it.id).collect();
        let ports: Vec<(_, MacAddr)> = own.map(|it| (it.id, it.mac)).collect();
        Ok(Wanted {
            node: node.filter(|node| !node.leads_nowhere()),
            ports,
            lent,
            tap: lock(&self.host.locals).contains_key(&id),
        })
    }

    async fn mend_inside(
        self: &Arc<Self>,
        overlay: &Overlay,
        (id, network): (NetworkId, &object::Network),
        (faults, wanted): (&Faults, &Wanted),
        endpoints: &[Stored],
    ) -> Result<(), ApiError> {
        overlay.mend(faults, wanted).await?;
        if faults.tap_gone {
            self.reopen_tap(overlay, id, network).await?;
        }
        let mut failure = Ok(());
        for endpoint in endpoints.iter().filter(|it| faults.unplugged.contains(&it.id)) {
            // It may have gone since the view was taken.
            if !self.is_stored(endpoint)? {
                continue;
            }
            if let Err(error) = overlay.attach(&endpoint.plug()).await {
                failure = Err(error);
            }
        }
        let sandboxes: BTreeSet<String> = endpoints
            .iter()
            .filter(|it| faults.unplugged.contains(&it.id))
            .filter_map(|it| it.sandbox.clone())
            .collect();
        self.route_sandboxes(&sandboxes).await?;
        lock(&self.host.watching.mended).entry(id).or_default().is_of_endpoint = failure.is_err();
        Ok(failure?)
    }

    /// Opens the TAP anew that somebody deleted.
    async fn reopen_tap(
        self: &Arc<Self>,
        overlay: &Overlay,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<(), ApiError> {
        let is_plain = match lock(&self.host.locals).get(&id).map(|local| &local.table) {
            Some(LocalTable::Plain(_)) => true,
            Some(LocalTable::Sealed(_)) => false,
            None => return Ok(()),
        };
        let mesh = Arc::clone(self);
        // Waits for the worker to end.
        let stop = move || {
            if is_plain {
                mesh.host.plane.plain().disconnect(id);
            } else {
                mesh.host.plane.disconnect(id);
            }
        };
        let stopped = tokio::task::spawn_blocking(stop).await;
        stopped.map_err(|error| failed(error, "see the agent's log"))?;
        self.connect(overlay, id, network).await?;
        // What is known of the others is put in by the next reconciliation.
        self.member.keeper.kick();
        Ok(())
    }

    /// Plugs in anew what went with a parent that is back.
    async fn mend_macvlans(&self, hosted: &Hosted, dirty: &Dirty, endpoints: &[Stored]) -> bool {
        if !(dirty.all || dirty.parents) {
            return false;
        }
        let mut acted = false;
        for endpoint in endpoints.iter().filter(|it| it.is_attached()) {
            let Some(macvlan) = self.macvlan_of(endpoint.network) else { continue };
            let (Some(network), Ok(true)) =
                (self.network_of(endpoint.network), self.is_stored(endpoint))
            else {
                continue;
            };
            if hosted.overlays.contains_key(&endpoint.network)
                || !matches!(macvlan.parent.find(&endpoint.plug()).await, Ok(None))
            {
                continue;
            }
            match self.adopt_macvlan(&macvlan, &network, endpoint).await {
                Ok(()) => {
                    acted = true;
                    info!(endpoint = %endpoint.name, network = %network.name, "plugged in again: the parent is back");
                }
                Err(error) => debug!(endpoint = %endpoint.name, %error, "not plugged in again yet"),
            }
        }
        acted
    }

    /// What was put back of the links of networks, and what could not be.
    pub(super) fn mended(&self, name: impl Fn(NetworkId) -> String) -> Vec<Diagnosis> {
        let mended = lock(&self.host.watching.mended).clone();
        let row = |(id, it): (NetworkId, Mended)| {
            let name = format!("network {}", name(id));
            match it.fault {
                Some(fault) => {
                    let hint = "it is tried again every five seconds; the agent's log has more";
                    Some(check(&name, Health::Fail, fault, hint))
                }
                None if it.times > 0 => {
                    let found = format!(
                        "its links on this host were put back; repairs: {}; the last: {}",
                        it.times, it.last
                    );
                    Some(check(&name, Health::Ok, found, ""))
                }
                None => None,
            }
        };
        mended.into_iter().filter_map(row).collect()
    }
}
