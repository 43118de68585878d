//! Published ports of this node's sandboxes, of endpoints of engines, and of services. Each of a
//! sandbox leads to the sandbox by the network that has its default route of that IP version,
//! because that is the way by which answers to clients elsewhere leave. Without such a network it
//! leads nowhere.
//!
//! ```text
//! publish : ports held -> sandbox and endpoints -> store -> rules inside -> the host's rules      undone backwards
//! start   : rules come from the store; ports are held again
//! ```
//!
//! Rules hold while the agent is away. A port that another program took meanwhile leads to the
//! sandbox all the same, and is told.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::task::block_in_place;
use tracing::{debug, warn};
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId, ServiceId},
    object,
    sandbox::{Connected, default_routes},
};

use super::{
    doctor::check,
    hosting::Hosted,
    mesh::{Mesh, failed, store_failed},
    sandboxes::Stored,
};
use crate::{
    api::{self, ApiError, Connection, Diagnosis, ErrorCode, Health, ServicePublish},
    firewall::{clients::Clients, host::Port, network::Entrance, rule::Protocol},
    gateway::{
        publish::{self, Held, HoldError, PORTS, Publish, check_address},
        uplink::Uplink,
    },
    host::{endpoints::Stored as StoredEndpoint, published::Published},
    lock::lock,
    services::{self, HostPort, Lead, Led, Missing},
    store::Table,
};

/// Where it is noted which ports lead to services.
const HOST_PORTS: &str = "host_ports";

/// Whose a port of the host is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Publisher {
    Sandbox(Name),
    /// An endpoint of a container engine.
    Endpoint(EndpointId),
}

/// Ports of the host that are held.
pub(super) type HeldPorts = BTreeMap<Publisher, Vec<Held>>;

impl From<HoldError> for ApiError {
    fn from(error: HoldError) -> Self {
        let (code, hint) = match &error {
            HoldError::Taken { .. } => {
                (ErrorCode::Conflict, "choose another port, or leave it out: `--publish :PORT`")
            }
            HoldError::NotHere(_) => (ErrorCode::Usage, "see `ip address`"),
            HoldError::NoneFree => (ErrorCode::Conflict, "name a port"),
            HoldError::Io(_) => (ErrorCode::Failed, "the agent needs root; nothing was changed"),
        };
        Self::new(code, error.to_string(), hint)
    }
}

/// Checks the ports as such.
fn no_port_twice(wanted: &[Publish]) -> Result<(), ApiError> {
    let usage = |message: String, hint: &str| Err(ApiError::new(ErrorCode::Usage, message, hint));
    for (at, publish) in wanted.iter().enumerate() {
        if let Some(ip) = publish.ip
            && let Err(error) = check_address(ip)
        {
            return usage(error.to_string(), "see `vxmesh run --help`");
        }
        if publish.port == Some(0) || publish.sandbox_port == 0 {
            return usage("0 is no port".to_owned(), "leave the host's port out for a free one");
        }
        if let Some(port) = publish.port
            && wanted.iter().take(at).any(|other| other.meets(publish))
        {
            let protocol = publish.protocol.as_str();
            let message = format!("port {port}/{protocol} is published twice");
            return usage(message, "each port of the host leads to one place");
        }
    }
    Ok(())
}

/// Holds the ports that lead to somebody since the agent's last life.
fn held_again(name: &Name, published: &[Published]) -> Vec<Held> {
    let mut held = Vec::new();
    for Published { protocol, ip, port, .. } in published {
        match publish::hold(*protocol, *ip, Some(*port)) {
            Ok(port) => held.push(port),
            Err(error) => {
                warn!(%name, %error, "the published port leads on, but another program has it, too");
            }
        }
    }
    held
}

impl Mesh {
    /// Checks what shall be published for a sandbox in these networks and holds the ports. Nothing
    /// is changed yet.
    pub(super) fn hold_ports(
        &self,
        hosted: &Hosted,
        connections: &[Connection],
        wanted: &[Publish],
    ) -> Result<Vec<Held>, ApiError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.check_ports(hosted, connections, wanted)?;
        wanted.iter().map(|publish| self.hold_port(publish)).collect()
    }

    /// Whether this can be published for somebody in these networks, if the ports are free.
    pub(super) fn check_ports(
        &self,
        hosted: &Hosted,
        connections: &[Connection],
        wanted: &[Publish],
    ) -> Result<(), ApiError> {
        let usage = |message: String, hint: &str| ApiError::new(ErrorCode::Usage, message, hint);
        if wanted.len() > PORTS {
            return Err(usage(
                format!("{} ports are too many", wanted.len()),
                "publish 256 at most",
            ));
        }
        no_port_twice(wanted)?;
        let mut networks = Vec::new();
        for connection in connections {
            let network = self.find_network(&connection.network)?;
            networks.push((Reverse(connection.gw_priority), network.name.clone(), network));
        }
        networks.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let open: Vec<&api::Network> = networks
            .iter()
            .map(|(.., network)| network)
            .filter(|network| !network.internal && self.macvlan_of(network.id).is_none())
            .collect();
        let Some(first) = open.first() else {
            return Err(usage(
                "nothing can be published from networks of driver macvlan and internal ones alone"
                    .to_owned(),
                "add a network with a way out of this host",
            ));
        };
        for ip in wanted.iter().filter_map(|publish| publish.ip) {
            let has = |subnet: &api::Subnet| subnet.cidr.addr().is_ipv4() == ip.is_ipv4();
            if !open.iter().any(|network| network.subnets.iter().any(has)) {
                let message = format!("network `{}` has no subnet of {ip}'s version", first.name);
                return Err(usage(message, "publish on an address of the other IP version"));
            }
        }
        if let Some(fault) = hosted.ways.fault_of(first.id) {
            return Err(failed(
                format!("network `{}`: {fault}", first.name),
                "see `vxmesh doctor`",
            ));
        }
        Ok(())
    }

    /// Holds one port of the host. The error names who has published it.
    pub(crate) fn hold_port(&self, publish: &Publish) -> Result<Held, ApiError> {
        publish::hold(publish.protocol, publish.ip, publish.port).map_err(|error| {
            let is_taken = matches!(error, HoldError::Taken { .. });
            let mut error = ApiError::from(error);
            if let Some(owner) = is_taken.then(|| self.publisher_of(publish)).flatten() {
                error.message += &format!(": {owner} publishes it");
            }
            error
        })
    }

    /// Who has published a port of this host that meets this one.
    fn publisher_of(&self, publish: &Publish) -> Option<String> {
        let sandboxes = self.stored_sandboxes().unwrap_or_default();
        let sandbox = sandboxes
            .iter()
            .find(|sandbox| sandbox.published.iter().any(|other| publish.meets(&other.wanted())));
        let service = || {
            let meets = |port: &HostPort| publish.meets(&ServicePublish::of(&port.published).port);
            let id = lock(&self.services.host_ports).holder_of(meets)?.service;
            let name = self.member.objects.read(|set| services::service_name(set, id));
            name.map(|name| format!("service `{name}`"))
        };
        let endpoint = || {
            let endpoints = self.stored_endpoints().unwrap_or_default();
            let has = |it: &StoredEndpoint| {
                it.published.iter().any(|other| publish.meets(&other.wanted()))
            };
            let endpoint = endpoints.into_iter().find(has)?;
            Some(format!("endpoint `{}` of {}", endpoint.name, endpoint.place()))
        };
        let sandbox = sandbox.map(|sandbox| format!("sandbox `{}`", sandbox.name));
        sandbox.or_else(endpoint).or_else(service)
    }

    /// Notes held ports as a sandbox's; they lead to it once its networks are settled.
    pub(super) fn publish(
        &self,
        hosted: &mut Hosted,
        sandbox: &mut Stored,
        (wanted, clients): (&[Publish], &Clients),
        held: Vec<Held>,
    ) -> Result<(), ApiError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let asked = wanted.iter().copied().zip(&held);
        sandbox.published.extend(self.numbered(asked, clients)?);
        let publisher = Publisher::Sandbox(sandbox.name.clone());
        hosted.ways.held.insert(publisher, held);
        self.save_sandbox(sandbox)
    }

    /// Held ports as they are kept, each with a port of the uplinks that no other of this node has.
    pub(super) fn numbered<'h>(
        &self,
        asked: impl Iterator<Item = (Publish, &'h Held)>,
        clients: &Clients,
    ) -> Result<Vec<Published>, ApiError> {
        // Of the whole node, so that a port can lead by any network without being given another
        // number.
        let mut taken: BTreeSet<(Protocol, u16)> =
            self.published()?.iter().map(|(_, other)| (other.protocol, other.inner)).collect();
        taken.extend(lock(&self.services.host_ports).inner());
        let published = |(publish, held): (Publish, &Held)| {
            let protocol = publish.protocol;
            // Mostly the host's own port; two addresses of the host may have it for two sandboxes.
            let mut candidates = std::iter::once(held.port).chain(1..=u16::MAX);
            let inner = candidates.find(|inner| taken.insert((protocol, *inner)));
            Ok(Published {
                protocol,
                ip: publish.ip,
                port: held.port,
                sandbox_port: publish.sandbox_port,
                inner: inner.ok_or_else(|| failed("no port of uplinks is left", "publish less"))?,
                clients: clients.clone(),
            })
        };
        asked.map(published).collect()
    }

    /// Leads a sandbox's ports by the networks that have its default routes now, and by no others.
    pub(super) fn sync_published(
        &self,
        hosted: &mut Hosted,
        sandbox: &Stored,
        connected: &[Connected],
    ) -> Result<(), ApiError> {
        if sandbox.published.is_empty() {
            return Ok(());
        }
        let leads = |network| default_routes(connected).any(|route| route.network == network);
        let networks: BTreeSet<NetworkId> =
            self.endpoints_of(&sandbox.name)?.iter().map(|endpoint| endpoint.network).collect();
        for network in &networks {
            match self.sync_way(hosted, *network) {
                Err(error) if leads(*network) => return Err(error),
                Err(error) => debug!(%network, %error, "it has no way, and none is needed"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Takes the ports of a sandbox back that is no longer in the store; it was in these networks.
    pub(super) fn unpublish(
        &self,
        hosted: &mut Hosted,
        sandbox: &Stored,
        networks: &BTreeSet<NetworkId>,
    ) {
        hosted.ways.held.remove(&Publisher::Sandbox(sandbox.name.clone()));
        if sandbox.published.is_empty() {
            return;
        }
        for network in networks {
            if let Err(error) = self.sync_way(hosted, *network) {
                warn!(sandbox = %sandbox.name, %error, "its published ports are not wholly gone; it is tried again");
            }
        }
    }

    /// Holds the ports of sandboxes and endpoints of the agent's last life.
    pub(super) fn adopt_ports(&self, hosted: &mut Hosted) -> Result<(), ApiError> {
        for sandbox in self.stored_sandboxes()? {
            let held = held_again(&sandbox.name, &sandbox.published);
            hosted.ways.held.insert(Publisher::Sandbox(sandbox.name), held);
        }
        for endpoint in self.stored_endpoints()? {
            let held = held_again(&endpoint.name, &endpoint.published);
            hosted.ways.held.insert(Publisher::Endpoint(endpoint.id), held);
        }
        Ok(())
    }

    /// All published ports of this node but those of services, each with the networks of whom it
    /// leads to.
    fn published(&self) -> Result<Vec<(Vec<Connected>, Published)>, ApiError> {
        let mut all = Vec::new();
        for endpoint in self.endpoint_rows()?.iter().filter(|it| !it.published.is_empty()) {
            let network = self.network_of(endpoint.network);
            let connected = vec![self.connected_by(endpoint, network.as_ref())];
            let published = endpoint.published.iter().cloned();
            all.extend(published.map(|published| (connected.clone(), published)));
        }
        let sandboxes = self.sandbox_rows()?;
        if sandboxes.iter().all(|sandbox| sandbox.published.is_empty()) {
            return Ok(all);
        }
        let connected = self.all_connected()?;
        let of = |sandbox: &Stored| {
            let connected = connected.get(sandbox.name.as_str()).cloned().unwrap_or_default();
            let published = sandbox.published.clone().into_iter();
            published.map(move |published| (connected.clone(), published))
        };
        all.extend(sandboxes.iter().flat_map(of));
        Ok(all)
    }

    /// All published ports of this node.
    pub(super) fn published_rows(&self) -> Vec<api::Published> {
        let published = self.published().unwrap_or_default();
        published.iter().flat_map(|(connected, published)| published.rows(connected)).collect()
    }

    /// What leads from a network's uplink to its sandboxes and services.
    pub(super) fn entrances(
        &self,
        network: NetworkId,
        uplink: &Uplink,
    ) -> Result<Vec<Entrance>, ApiError> {
        let entrances = |(connected, published): &(Vec<Connected>, Published)| {
            let routes = published.routes(connected).into_iter();
            let here = routes.filter(|route| route.network == network);
            here.filter_map(|route| published.entrance(uplink, &route)).collect::<Vec<_>>()
        };
        let mut all: Vec<Entrance> = self.published()?.iter().flat_map(entrances).collect();
        all.extend(lock(&self.services.host_ports).entrances(network, uplink));
        Ok(all)
    }

    /// What leads from the host's ports to uplinks.
    pub(super) fn host_ports(
        &self,
        uplink: impl Fn(NetworkId) -> Option<Uplink>,
    ) -> Result<Vec<Port>, ApiError> {
        let to_services = lock(&self.services.host_ports).host_ports(&uplink);
        let port = |(connected, published): (Vec<Connected>, Published)| {
            let to = published
                .routes(&connected)
                .into_iter()
                .filter_map(|route| Some(published.entrance(&uplink(route.network)?, &route)?.at));
            let to = to.collect();
            let Published { protocol, ip, port, clients, .. } = published;
            Port { protocol, ip, port, to, clients }
        };
        Ok(self.published()?.into_iter().map(port).chain(to_services).collect())
    }

    /// Has the rules lead on to services as they did when the agent's last life ended.
    pub(super) fn adopt_host_ports(&self, hosted: &mut Hosted) -> Result<(), ApiError> {
        let nodes = self.stored_nodes()?;
        let wanted = self.wanted_host_ports(|network| nodes.iter().any(|it| it.network == network));
        let led = self.store.get::<Vec<Led>>(Table::Meta, HOST_PORTS).map_err(store_failed)?;
        let mut host_ports = lock(&self.services.host_ports);
        host_ports.adopt(wanted, led.unwrap_or_default());
        hosted.ingress.kept = host_ports.changes();
        Ok(())
    }

    /// Brings this host's ports that lead to services in step with what these publish.
    pub(crate) async fn keep_host_ports(self: &Arc<Self>) {
        let publishes = |service: &object::Service| !service.published.is_empty();
        let any = self.member.objects.read(|set| set.all_services().any(|(.., it)| publishes(it)));
        let is_idle = !any && lock(&self.services.host_ports).is_empty();
        if is_idle && !self.has_networks_for_clients().unwrap_or(true) {
            return;
        }
        let mut hosted = self.hosted.lock().await;
        if hosted.ways.adopting || self.is_stopping() {
            return;
        }
        let fault = self.follow_host_ports(&mut hosted).await.err().map(|error| error.message);
        if fault != hosted.ingress.fault
            && let Some(fault) = &fault
        {
            warn!(fault, "published ports of services are not followed; it is tried again");
        }
        hosted.ingress.fault = fault;
        block_in_place(|| self.keep_led(&mut hosted));
        self.note_shut(&hosted);
    }

    /// Writes down which ports lead on, for the agent's next life. Where the disk does not take it,
    /// that is said of the disk.
    fn keep_led(&self, hosted: &mut Hosted) {
        let (changes, led) = {
            let host_ports = lock(&self.services.host_ports);
            (host_ports.changes(), host_ports.led())
        };
        if changes == hosted.ingress.kept {
            return;
        }
        match self.store.put(Table::Meta, HOST_PORTS, &led) {
            Ok(()) => hosted.ingress.kept = changes,
            Err(error) => debug!(%error, "which ports lead to services is not written down yet"),
        }
    }

    async fn follow_host_ports(self: &Arc<Self>, hosted: &mut Hosted) -> Result<(), ApiError> {
        // Who was removed from the mesh leads nobody anywhere, nor who has left it and cleans up.
        let is_member = self.member.departed().is_none() && !self.member.allocation.is_leaving();
        let wanted = self.wanted_host_ports(|_network| is_member);
        let mut due = lock(&self.services.host_ports).due(&wanted);
        due.retain(|port| {
            !hosted.overlays.contains_key(&port.network)
                && !port.published.is_local
                && wanted.get(port).is_some_and(|lead| lead.missing().is_none())
                && self.hold_for_service(port).is_ok()
        });
        self.host_for_clients(hosted, &due).await;
        let changed = block_in_place(|| {
            let changed = self.hold_host_ports(hosted, wanted);
            // Before the rules follow, which may take long: the next life begins with this.
            self.keep_led(hosted);
            changed
        })?;
        hosted.ingress.changed.extend(changed);
        for network in hosted.ingress.changed.clone() {
            match self.follow_vips(hosted, network).await {
                Ok(()) => hosted.ingress.changed.remove(&network),
                Err(error) => {
                    debug!(%network, %error, "its node waits for another try");
                    continue;
                }
            };
            if let Err(error) = self.sync_way(hosted, network) {
                debug!(%network, %error, "published ports of its services wait for its way");
            }
        }
        self.unhost_for_clients(hosted).await;
        Ok(())
    }

    /// Gives up all that services publish, for a `leave` that is certain, and takes this node out
    /// of the networks into which it led.
    pub(super) async fn give_up_ports(
        self: &Arc<Self>,
        hosted: &mut Hosted,
    ) -> Result<(), ApiError> {
        lock(&self.services.host_ports).release(&BTreeMap::new());
        self.unhost_for_clients(hosted).await;
        let Some(id) = hosted.overlays.keys().next() else { return Ok(()) };
        let fault = hosted.ingress.faults.get(id).cloned();
        let fault = fault.unwrap_or_else(|| "it is tried again".to_owned());
        let message =
            format!("network `{}` is still on this host: {fault}", self.network_name(*id));
        Err(failed(message, "the node has left; run `vxmesh leave` again to clean this host"))
    }

    /// Holds and gives up ports; returns the networks whose rules are others by that.
    fn hold_host_ports(
        &self,
        hosted: &Hosted,
        wanted: BTreeMap<HostPort, Lead>,
    ) -> Result<BTreeSet<NetworkId>, ApiError> {
        let mut taken: BTreeSet<(Protocol, u16)> =
            self.published()?.iter().map(|(_, it)| (it.protocol, it.inner)).collect();
        let open: BTreeSet<NetworkId> = hosted.ways.ways().map(|(network, _)| *network).collect();
        let faults = &hosted.ingress.faults;
        let closed = |id: &NetworkId| faults.get(id).filter(|_| !open.contains(id)).cloned();
        let mut changed = lock(&self.services.host_ports).release(&wanted);
        let due = lock(&self.services.host_ports).due(&wanted);
        for port in due {
            let (network, Some(lead)) = (port.network, wanted.get(&port).cloned()) else {
                continue;
            };
            let missing = lead.missing().or_else(|| closed(&network).map(Missing::NoWay));
            let held = missing.map_or_else(|| self.hold_for_service(&port), Err);
            if held.is_ok() && !open.contains(&network) {
                // Its network is made in another round.
                continue;
            }
            let is_new = lock(&self.services.host_ports).put(port, lead, held, &mut taken);
            changed.extend(is_new.then_some(network));
        }
        Ok(changed)
    }

    fn hold_for_service(&self, port: &HostPort) -> Result<Held, Missing> {
        let publish = ServicePublish::of(&port.published).port;
        if publish.ip.is_some_and(|ip| !publish::is_here(ip)) {
            return Err(Missing::Elsewhere);
        }
        self.hold_port(&publish).map_err(|error| Missing::Taken(error.message))
    }

    fn wanted_host_ports(&self, here: impl Fn(NetworkId) -> bool) -> BTreeMap<HostPort, Lead> {
        let is_settled = self.host.name_servers.names.snapshot().settled;
        let has = |network, id, ip| self.member.addresses.holds(network, object::holder(id), ip);
        self.member
            .objects
            .read(|set| self.services.published(set, here, has, (self.member.me, is_settled)))
    }

    /// Ports of this host that services shall have, and others have.
    pub(super) fn host_port_diagnoses(&self) -> Vec<Diagnosis> {
        let taken = lock(&self.services.host_ports).taken();
        let diagnosis = |(service, why): (ServiceId, Missing)| {
            let name = self.member.objects.read(|set| services::service_name(set, service));
            let name = name.map_or_else(|| service.short(), |name| name.to_string());
            let hint = match why {
                Missing::NoWay(_) => "see the agent's log; it is tried again every two seconds",
                Missing::Shut(_) => "it is tried again every ten seconds; the agent's log has more",
                Missing::Taken(_) | Missing::Elsewhere => {
                    "give the port free, or publish another one"
                }
            };
            let found = format!("service `{name}` is not published on this host: {why}");
            check("services", Health::Warn, found, hint)
        };
        taken.into_iter().map(diagnosis).collect()
    }
}
