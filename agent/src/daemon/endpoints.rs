//! Endpoints of this node: plugged in, kept over restarts, unplugged.
//!
//! ```text
//! attach : addresses -> store "attaching" -> publish -> all tables -> host -> store "attached"   see `attach`
//! detach : names withdrawn -> a second -> silence -> withdraw -> host -> store -> addresses rest, also over a restart
//! start  : see `adopt`
//! ```

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Instant};

use ipnet::IpNet;
use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, Name, NetworkId},
    lb::is_service_mac,
    limits::ADDRESS_QUARANTINE,
    record::{Claim, EndpointClaim, Key},
};

use super::{
    conflicts::check_name,
    hosting::Hosted,
    mesh::{Mesh, conflict, failed, store_failed},
};
use crate::{
    admin::resolve,
    api::{self, ApiError, AttachSpec, EndpointSpec, ErrorCode},
    host::{
        endpoints::{Engine, Stored},
        rules::forget_addresses,
    },
    lock::lock,
    netlink::overlay::Overlay,
    objects::unix_ms,
    reconcile::tables::gateway_mac,
    services,
    store::{StoreError, Table, Txn},
};

pub(super) fn quarantine_ms() -> u64 {
    u64::try_from(ADDRESS_QUARANTINE.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn gone(why: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, why, "attach it again")
}

impl Mesh {
    /// Endpoints of this node as the store has them.
    pub(super) fn stored_endpoints(&self) -> Result<Vec<Stored>, ApiError> {
        Ok(self.endpoint_rows()?.to_vec())
    }

    /// The same for who only reads them.
    pub(crate) fn endpoint_rows(&self) -> Result<Arc<Vec<Stored>>, ApiError> {
        self.rows.endpoints.rows(&self.store).map_err(store_failed)
    }

    /// Everything but the addresses.
    pub(super) fn draft(&self, network: NetworkId, spec: AttachSpec) -> Result<Stored, ApiError> {
        check_name(spec.name.as_ref(), &spec.aliases)?;
        let id = EndpointId::from_random(rand::random());
        let default_name = || format!("ep-{}", id.short()).parse();
        let name = spec
            .name
            .map_or_else(default_name, Ok)
            .map_err(|error| failed(error, "give a name with --name"))?;
        let mac = match spec.mac {
            Some(mac) => mac,
            None => self.free_mac(network, rand::random(), &[])?,
        };
        let is_shared = mac == gateway_mac(network) || is_service_mac(network, mac);
        if !mac.is_unicast() || is_shared || !mac.may_be_of(self.member.me) {
            let message = format!("{mac} cannot be the MAC of an endpoint of this node");
            return Err(ApiError::new(
                ErrorCode::Usage,
                message,
                "choose a unicast address such as 02:00:00:00:00:01",
            ));
        }
        self.check_unique(network, Some(&name), Some(mac))?;
        self.member
            .objects
            .read(|set| services::check_names(set, network, Some(&name), &spec.aliases))?;
        Ok(Stored {
            id,
            network,
            name,
            aliases: spec.aliases,
            labels: spec.labels,
            mac,
            ips: Vec::new(),
            netns: PathBuf::from(spec.netns),
            ifname: spec.ifname,
            sandbox: spec.sandbox,
            engine: None,
            published: Vec::new(),
            attachment: None,
            gw_priority: 0,
            incarnation: self.store.next_incarnation(unix_ms()).map_err(store_failed)?,
            attached: false,
        })
    }

    /// Refuses a name or a MAC that an endpoint of the network has, or one that is being attached
    /// here.
    pub(super) fn check_unique(
        &self,
        network: NetworkId,
        name: Option<&Name>,
        mac: Option<MacAddr>,
    ) -> Result<(), ApiError> {
        let claims = self.member.gossip.get().map(|gossip| self.member.believed(gossip, network));
        let claims = claims.unwrap_or_default().into_values().filter(|claim| !claim.router);
        let stored = self.stored_endpoints()?.into_iter().filter(|own| own.network == network);
        let others = claims.map(|claim| (claim.name, claim.mac));
        for (other, its_mac) in others.chain(stored.map(|own| (own.name, own.mac))) {
            // Aliases may be shared: that is how one name leads to several.
            if name == Some(&other) {
                return Err(conflict(
                    format!("the network has an endpoint `{other}` already"),
                    "choose another name; several endpoints can have one --alias",
                ));
            }
            if mac == Some(its_mac) {
                return Err(conflict(
                    format!("endpoint `{other}` has the MAC {its_mac}"),
                    "choose another, or leave --mac out",
                ));
            }
        }
        Ok(())
    }

    /// A MAC that only this node may claim and that none of its endpoints has, nor one of these:
    /// the first that is free from this number on.
    pub(super) fn free_mac(
        &self,
        network: NetworkId,
        begin: u16,
        others: &[MacAddr],
    ) -> Result<MacAddr, ApiError> {
        let (stored, nodes) = (self.stored_endpoints()?, self.stored_nodes()?);
        let endpoints = stored.iter().map(|other| (other.network, other.mac));
        let taken: BTreeSet<MacAddr> = endpoints
            .chain(nodes.iter().map(|node| (node.network, node.mac)))
            .filter(|(other, _mac)| *other == network)
            .map(|(_network, mac)| mac)
            .collect();
        let mut macs =
            (0..=u16::MAX).map(|n| MacAddr::of_node(self.member.me, begin.wrapping_add(n)));
        macs.find(|mac| !taken.contains(mac) && !others.contains(mac))
            .ok_or_else(|| failed("this node has no MAC left in the network", "detach endpoints"))
    }

    /// Lays the cable of an endpoint that all tables know.
    pub(super) async fn plug_in(
        self: &Arc<Self>,
        hosted: &Hosted,
        endpoint: &mut Stored,
    ) -> Result<(), ApiError> {
        let overlay = hosted.overlays.get(&endpoint.network);
        let overlay =
            overlay.ok_or_else(|| failed("the network's namespace is gone", "try again"))?;
        self.guard_port(endpoint)?;
        endpoint.ifname = Some(overlay.attach(&endpoint.plug()).await?);
        self.set_attached(endpoint, true)?;
        self.register_new(Some(overlay), endpoint).await;
        self.tell_endpoint(endpoint, "endpoint plugged in");
        Ok(())
    }

    /// Writes down whether an endpoint is wholly there: the next start undoes one that is not.
    pub(super) fn set_attached(
        &self,
        endpoint: &mut Stored,
        attached: bool,
    ) -> Result<(), ApiError> {
        endpoint.attached = attached;
        self.save(endpoint)?;
        self.host.watching.place(&endpoint.name, &endpoint.plug(), endpoint.is_attached());
        Ok(())
    }

    pub(super) fn save(&self, endpoint: &Stored) -> Result<(), ApiError> {
        self.store.put(Table::Endpoints, &endpoint.id.to_string(), endpoint).map_err(store_failed)
    }

    /// Tells the mesh; of a network of this host nobody is told.
    pub(super) async fn announce(self: &Arc<Self>, claim: &Claim) -> Result<(), ApiError> {
        if matches!(claim, Claim::Endpoint(claim) if self.is_local(claim.network)) {
            self.reconcile().await;
            return Ok(());
        }
        let Some(gossip) = self.member.gossip.get() else {
            return Err(failed("the agent is starting", "try again"));
        };
        // An endpoint whose record is full is there all the same.
        let fits = self.with_health(claim).into_iter().find_map(|it| gossip.publish(&it).ok());
        let record = fits.map_or_else(|| gossip.publish(claim), Ok).map_err(|error| {
            ApiError::new(ErrorCode::Usage, error.to_string(), "nothing was changed")
        })?;
        self.reconcile().await;
        self.member.spread_and_wait(&record).await;
        Ok(())
    }

    /// Whether this node says just that already, as at its start of what its last life had. What is
    /// said of networks of this host alone follows from the store.
    pub(super) fn is_said(&self, claim: &Claim) -> bool {
        let (Some(gossip), Claim::Endpoint(endpoint)) = (self.member.gossip.get(), claim) else {
            return false;
        };
        let claims = self.with_health(claim);
        gossip.with_directory(|directory| {
            let said = directory.get(self.member.me, Key::Endpoint(endpoint.id));
            said.is_some_and(|said| claims.contains(said.record.claim()))
        })
    }

    /// The claim with what is known of the endpoint's health, which is in no store: in the ways in
    /// which it is said, the longest first.
    pub(super) fn with_health(&self, claim: &Claim) -> Vec<Claim> {
        let Claim::Endpoint(endpoint) = claim else { return vec![claim.clone()] };
        let told = self.health_told(endpoint).into_iter();
        told.map(|health| Claim::Endpoint(EndpointClaim { health, ..endpoint.clone() })).collect()
    }

    /// Takes back a half-made endpoint; the error that caused it is told, others are logged.
    pub(super) async fn undo(self: &Arc<Self>, hosted: &mut Hosted, endpoint: &Stored) {
        if let Err(error) = self.unplug(hosted, endpoint).await {
            warn!(endpoint = %endpoint.id, %error, "a half-made endpoint is not wholly undone");
        }
    }

    /// Removes a row from the store and writes down that its addresses rest, which a restart must
    /// not forget.
    pub(super) fn forget(
        &self,
        (table, key): (Table, &str),
        network: NetworkId,
        ips: &[IpNet],
    ) -> Result<(), StoreError> {
        self.rest(network, ips, |txn| txn.delete(table, key).map(|_was| ()))
    }

    /// Writes down that addresses rest, and with that what else `change` says.
    pub(super) fn rest(
        &self,
        network: NetworkId,
        ips: &[IpNet],
        change: impl FnOnce(&mut Txn<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let now = unix_ms();
        let until = now.saturating_add(quarantine_ms());
        self.store.write(|txn| {
            for (key, rests_until) in txn.list::<u64>(Table::Resting)? {
                if rests_until <= now {
                    txn.delete(Table::Resting, &key)?;
                }
            }
            for ip in ips {
                txn.put(Table::Resting, &format!("{network}/{}", ip.addr()), &until)?;
            }
            change(txn)
        })
    }

    /// Removes an endpoint from host, store and pools, and the network's namespace after the last
    /// one.
    pub(super) async fn unplug(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        endpoint: &Stored,
    ) -> Result<(), ApiError> {
        let others = self.stored_endpoints()?;
        let last = !others
            .iter()
            .any(|other| other.network == endpoint.network && other.id != endpoint.id);
        let stays = last && self.leads_clients(endpoint.network);
        if last && !stays {
            // Before anything is taken away here, so that nobody sends what cannot be delivered any
            // more.
            self.forget_node(hosted, endpoint.network).await?;
        }
        if let Some(overlay) = hosted.overlays.get(&endpoint.network) {
            overlay.detach(endpoint.id).await?;
            self.host.guards.forget(endpoint.network, endpoint.id);
            forget_addresses(overlay, &endpoint.ips);
        } else if let Some(macvlan) = self.macvlan_of(endpoint.network) {
            macvlan.parent.detach(&endpoint.plug()).await?;
        } else {
            // Its network was not adopted. An address must not be given to another while a cable
            // has it.
            Overlay::detach_left(&self.run_dir(), endpoint.network, endpoint.id).await?;
        }
        let row = (Table::Endpoints, endpoint.id.to_string());
        let ips = self.unleased(endpoint.network, &endpoint.ips)?;
        self.forget((row.0, &row.1), endpoint.network, &ips).map_err(store_failed)?;
        lock(&self.host.pending.given_back).note(endpoint, Instant::now());
        ips.iter()
            .for_each(|ip| self.member.addresses.release(endpoint.network, *ip, Instant::now()));
        self.tell_endpoint(endpoint, "endpoint unplugged");
        let settled = if stays {
            self.follow_vips(hosted, endpoint.network).await
        } else if last {
            self.unhost(hosted, endpoint.network).await
        } else {
            Ok(())
        };
        self.give_up_endpoint_ports(hosted, endpoint);
        settled
    }

    fn tell_endpoint(&self, endpoint: &Stored, what: &str) {
        let network = self.network_object(endpoint.network);
        let network = network.map_or_else(|| endpoint.network.short(), |it| it.0.name.to_string());
        info!(endpoint = %endpoint.name, id = %endpoint.id.short(), %network, "{what}");
    }

    /// The endpoint of this node that a reference means.
    fn own_endpoint(&self, reference: &str, hint: &str) -> Result<api::Endpoint, ApiError> {
        let row = resolve::one(&self.endpoint_list(), reference).cloned()?;
        if row.node != self.member.me {
            let message =
                format!("endpoint `{}` is on node {}", row.name, self.node_name(row.node));
            return Err(conflict(message, hint));
        }
        Ok(row)
    }

    /// Changes the labels of an endpoint, and tells the mesh.
    pub(super) async fn update_endpoint(
        self: &Arc<Self>,
        reference: &str,
        spec: EndpointSpec,
    ) -> Result<api::Endpoint, ApiError> {
        let _hosted = self.lock_host().await?;
        let row = self.own_endpoint(reference, "change it there")?;
        let mut stored = self.stored_endpoints()?;
        stored.retain(|stored| stored.id == row.id);
        let Some(mut endpoint) = stored.pop() else {
            return Err(conflict(
                format!("endpoint `{}` is this node itself", row.name),
                "choose another one of `vxmesh endpoint ls`",
            ));
        };
        if endpoint.engine == Some(Engine::Docker) {
            return Err(conflict(
                format!("the labels of endpoint `{}` are those of its container", row.name),
                "give them with `docker run --label`",
            ));
        }
        let absent = spec.remove_labels.iter().find(|key| !endpoint.labels.contains_key(*key));
        if let Some(key) = absent {
            return Err(ApiError::new(
                ErrorCode::NotFound,
                format!("endpoint `{}` has no label `{key}`", row.name),
                "see `vxmesh endpoint inspect`; nothing was changed",
            ));
        }
        endpoint.labels.retain(|key, _value| !spec.remove_labels.contains(key));
        endpoint.labels.extend(spec.labels);
        // What does not fit into a record is refused by this, before it is written down.
        self.announce(&Claim::Endpoint(endpoint.claim())).await?;
        self.save(&endpoint)?;
        Ok(api::Endpoint { labels: endpoint.labels, ..row })
    }

    /// Unplugs the endpoint that a reference means, and tells the mesh.
    pub(super) async fn detach(
        self: &Arc<Self>,
        reference: &str,
    ) -> Result<api::Endpoint, ApiError> {
        let (row, endpoint) = {
            let _host = self.lock_host().await?;
            self.find_detachable(reference)?
        };
        self.take_names_if_possible(&endpoint).await;
        let detached = match self.lock_host().await {
            Ok(mut hosted) => self.detach_stored(&mut hosted, row.id).await,
            Err(error) => Err(error),
        };
        let settled = self.settle_names(&endpoint).await;
        self.reconcile().await;
        detached.and(settled)?;
        Ok(row)
    }

    /// An endpoint that is in no sandbox of ours, and its row in the store if it has one.
    fn find_detachable(&self, reference: &str) -> Result<(api::Endpoint, Vec<Stored>), ApiError> {
        let row = self.own_endpoint(reference, "detach it there")?;
        // The row shows a namespace's path where there is no sandbox of ours.
        let mut stored = self.stored_endpoints()?;
        stored.retain(|stored| stored.id == row.id);
        if let Some(sandbox) = stored.iter().find_map(|stored| stored.sandbox.as_ref()) {
            return Err(conflict(
                format!("endpoint `{}` belongs to sandbox `{sandbox}`", row.name),
                "use `vxmesh network disconnect`, or remove the sandbox with `vxmesh sandbox rm`",
            ));
        }
        if let Some(engine) = stored.iter().find_map(|stored| stored.engine) {
            return Err(conflict(
                format!("endpoint `{}` belongs to a container of {engine}", row.name),
                "disconnect the container from the network there",
            ));
        }
        Ok((row, stored))
    }

    pub(super) async fn detach_stored(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        id: EndpointId,
    ) -> Result<(), ApiError> {
        let stored: Option<Stored> =
            self.store.get(Table::Endpoints, &id.to_string()).map_err(store_failed)?;
        let Some(endpoint) = stored else { return Ok(()) };
        self.store.check_writable().map_err(store_failed)?;
        self.silence(hosted, &endpoint).await;
        self.withdraw(endpoint.network, id);
        self.unplug(hosted, &endpoint).await
    }

    /// Takes nothing more from an endpoint that goes: what it sends once no table has it would be
    /// counted as a forgery.
    pub(super) async fn silence(&self, hosted: &Hosted, endpoint: &Stored) {
        let Some(overlay) = hosted.overlays.get(&endpoint.network) else { return };
        self.host.losses.count(self.host.plane.drops(), Some(endpoint.network)).await;
        if let Err(error) = overlay.silence(endpoint.id).await {
            debug!(endpoint = %endpoint.name, %error, "its cable is not silenced");
        }
    }

    /// Withdraws an endpoint and waits as long as for a new one until nobody is led to it any more.
    pub(super) async fn withdraw_everywhere(self: &Arc<Self>, network: NetworkId, id: EndpointId) {
        let Some(gossip) = self.member.gossip.get() else { return };
        if self.is_local(network) {
            return self.reconcile().await;
        }
        match gossip.withdraw(Key::Endpoint(id)) {
            Ok(record) => {
                self.reconcile().await;
                self.member.spread_and_wait(&record).await;
            }
            Err(error) => warn!(endpoint = %id, %error, "the endpoint's end is not told"),
        }
    }

    pub(super) fn withdraw(&self, network: NetworkId, id: EndpointId) {
        if self.is_local(network) {
            return;
        }
        let Some(gossip) = self.member.gossip.get() else { return };
        match gossip.withdraw(Key::Endpoint(id)) {
            Ok(record) => self.member.spread(&record),
            Err(error) => warn!(endpoint = %id, %error, "the endpoint's end is not told"),
        }
    }

    /// Removes every endpoint from this host, for `leave`, and each namespace into which no
    /// published port of a service leads.
    pub(super) async fn detach_all(self: &Arc<Self>, hosted: &mut Hosted) -> Result<(), ApiError> {
        for endpoint in self.stored_endpoints()? {
            self.detach_stored(hosted, endpoint.id).await?;
        }
        // Nothing of this node is plugged into a network that could not be taken over.
        for node in self.stored_nodes()?.iter() {
            if !hosted.overlays.contains_key(&node.network) {
                self.forget_node(hosted, node.network).await?;
            }
        }
        // An address that is used is handed to nobody.
        match self.stored_nodes()?.iter().find(|node| !node.ips.is_empty()) {
            Some(node) => {
                let fault = hosted.ways.fault_of(node.network).unwrap_or("it has an address there");
                let network = self.network_name(node.network);
                let message = format!("this node is still in network `{network}`: {fault}");
                Err(failed(message, "see `vxmesh doctor`, and try again"))
            }
            None => Ok(()),
        }
    }
}
