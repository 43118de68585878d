//! The ways of networks out of this host and in: opened with a network's first endpoint here,
//! closed after its last.
//!
//! ```text
//! open  : node's addresses -> store -> uplink, routes -> publish -> node0 -> rules inside -> the host's rules
//! keep  : what somebody took away is put back, what the host's routes allow is followed (`watch`)
//! close : store, addresses rest -> withdraw; the cable goes with the namespace -> the host's rules, its settings
//! ```
//!
//! A network works without its way out: what fails is told once, shown by `network inspect`, and
//! tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId},
    limits::CLAIM_ADDRESSES,
    object,
    record::{Claim, EndpointClaim},
};

use super::{
    hosting::Hosted,
    mend::View,
    mesh::{Mesh, failed, store_failed},
    publish::HeldPorts,
};
use crate::{
    api::{self, ApiError, Connection},
    firewall::{FirewallError, foreign, host, table::Table as Rules},
    gateway::{
        sysctl,
        uplink::{self, Uplink},
    },
    host::rules::{HostRules, Kept, MadeOf, OnHost, away, closed, forget_on_host},
    lock::lock,
    netlink::{link::Links, overlay::Overlay},
    objects::unix_ms,
    store::Table,
};

/// Between two tries of what failed.
const RETRY: Duration = Duration::from_secs(10);
/// Where the settings of the host's kernel are noted as they were.
const SETTINGS: &str = "sysctl";

/// This node as an endpoint of a network, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) id: EndpointId,
    pub(super) network: NetworkId,
    pub(super) mac: MacAddr,
    pub(super) ips: Vec<IpNet>,
    pub(super) incarnation: u64,
}

impl Node {
    /// What this node says of it to the others.
    pub(super) fn claim(&self) -> Result<EndpointClaim, ApiError> {
        Ok(EndpointClaim {
            id: self.id,
            network: self.network,
            name: format!("node-{}", self.id.short())
                .parse()
                .map_err(|error| failed(error, "this is a defect"))?,
            aliases: Vec::new(),
            mac: self.mac,
            ips: self.ips.iter().map(IpNet::addr).collect(),
            incarnation: self.incarnation,
            labels: BTreeMap::new(),
            router: true,
            health: BTreeMap::new(),
        })
    }
}

/// A network's way out.
#[derive(Debug, Default)]
pub(super) struct Way {
    uplink: Option<Uplink>,
    /// Subnets that the host does not reach, and the routes of it that are in the way.
    overlaps: Vec<(IpNet, IpNet)>,
    fault: Option<String>,
    /// Why clients of published ports do not come in by it. It may have other faults.
    shut: Option<String>,
    tried: Option<Instant>,
    /// No endpoint is in the network here: the host does not reach those elsewhere.
    for_clients: bool,
    /// Addresses of the node that rest already, while the others could not be told yet.
    given_up: BTreeSet<IpNet>,
    /// The table inside.
    pub(super) rules: Kept,
}

/// All ways of this host.
#[derive(Debug, Default)]
pub(super) struct Ways {
    open: BTreeMap<NetworkId, Way>,
    /// Published ports.
    pub(super) held: HeldPorts,
    /// Whether nothing is left of the host's table.
    cleared: bool,
    /// Whether there are networks of the agent's last life whose ways are not known yet. Rules and
    /// flows of the host that are theirs must stay meanwhile.
    pub(super) adopting: bool,
    fault: Option<String>,
    /// Addresses on which something is published and that the host does not have.
    pub(super) away: BTreeSet<IpAddr>,
}

impl Ways {
    /// Takes on a way that was adopted.
    pub(super) fn add(&mut self, network: NetworkId, way: Way) {
        self.open.insert(network, way);
    }

    /// Each network's way.
    pub(super) fn ways(&self) -> impl Iterator<Item = (&NetworkId, &Way)> {
        self.open.iter()
    }

    /// Whether nothing of this host is changed.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// What is wrong with the host's rules.
    pub(super) fn host_fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// A network's uplink.
    pub(super) fn uplink_of(&self, network: NetworkId) -> Option<&Uplink> {
        self.open.get(&network)?.uplink.as_ref()
    }

    /// Whether a network is here for clients from outside alone.
    pub(super) fn is_for_clients(&self, network: NetworkId) -> bool {
        self.open.get(&network).is_some_and(|way| way.for_clients)
    }

    /// Whether what failed of a network's way is to be tried again.
    pub(super) fn is_due(&self, network: NetworkId) -> bool {
        let is_due = |way: &Way| {
            way.fault.is_some() && way.tried.is_none_or(|tried| tried.elapsed() >= RETRY)
        };
        self.open.get(&network).is_some_and(is_due)
    }

    /// The networks into which clients of published ports do not come, as far as is known, and why.
    pub(super) fn shut(&self) -> BTreeMap<NetworkId, String> {
        let why = |way: &Way| way.shut.clone().or_else(|| self.fault.clone());
        self.open.iter().filter_map(|(id, way)| Some((*id, why(way)?))).collect()
    }

    /// Why a network's way out does not work.
    pub(super) fn fault_of(&self, network: NetworkId) -> Option<&str> {
        let way = self.open.get(&network)?;
        if way.uplink.is_some() { self.fault.as_deref() } else { way.fault.as_deref() }
    }
}

/// What the others were told of this node in a network.
pub(super) struct Said {
    id: EndpointId,
    pub(super) ips: Vec<IpNet>,
}

/// What is to end of this node in a network, by the store and by what was told.
fn to_forget(stored: Option<Node>, said: Option<Said>) -> Option<Said> {
    let Some(Node { id, ips, .. }) = stored else { return said };
    let more = said.map(|said| said.ips).unwrap_or_default();
    Some(Said { id, ips: both(ips, more) })
}

/// The addresses of both.
pub(super) fn both(mut some: Vec<IpNet>, more: Vec<IpNet>) -> Vec<IpNet> {
    for ip in more {
        if !some.contains(&ip) {
            some.push(ip);
        }
    }
    some
}

impl Mesh {
    /// This node as an endpoint of networks, as the store has it.
    pub(super) fn stored_nodes(&self) -> Result<Arc<Vec<Node>>, ApiError> {
        self.rows.nodes.rows(&self.store).map_err(store_failed)
    }

    /// This node as an endpoint of a network, as the store has it.
    pub(super) fn stored_node(&self, id: NetworkId) -> Result<Option<Node>, ApiError> {
        Ok(self.stored_nodes()?.iter().find(|node| node.network == id).cloned())
    }

    /// Opens the way of a network that is here, unless it is internal.
    pub(super) async fn open_way(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        id: NetworkId,
        network: &object::Network,
    ) {
        // Of one that is not, a way would lead nowhere, and published ports would be open by it.
        if network.internal || !hosted.overlays.contains_key(&id) {
            return;
        }
        hosted.ways.open.entry(id).or_default();
        self.mend_way(hosted, id, network).await;
        self.sync_host(hosted);
    }

    /// Closes the way of a network whose namespace goes.
    pub(super) fn close_way(&self, hosted: &mut Hosted, id: NetworkId) {
        hosted.ways.open.remove(&id);
        self.sync_host(hosted);
    }

    /// Takes this node out of a network, for its last endpoint here. It is as before where that
    /// cannot be written down: else it would be plugged in again.
    pub(super) async fn forget_node(&self, hosted: &Hosted, id: NetworkId) -> Result<(), ApiError> {
        let key = id.to_string();
        let stored = self.store.get::<Node>(Table::Gateways, &key).map_err(store_failed)?;
        let Some(node) = to_forget(stored, self.said_node(id)) else { return Ok(()) };
        let way = hosted.ways.open.get(&id);
        let ips = way.map_or_else(|| node.ips.clone(), |way| way.still_held(&node.ips));
        self.forget((Table::Gateways, &key), id, &ips).map_err(store_failed)?;
        // What it sends once no table has it would be counted as a forgery.
        // It keeps nobody from taking the namespace away.
        if let Some(overlay) = hosted.overlays.get(&id)
            && let Err(error) = overlay.silence_node().await
        {
            debug!(network = %id, %error, "the node's interface is not silenced");
        }
        self.withdraw(id, node.id);
        ips.iter().for_each(|ip| self.member.addresses.release(id, *ip, Instant::now()));
        Ok(())
    }

    /// What the others were told of this node in a network: its id there and its addresses. The
    /// store may know less, where a change failed that is there all the same.
    pub(super) fn said_node(&self, id: NetworkId) -> Option<Said> {
        let said = self.member.gossip.get()?.with_directory(|directory| {
            let own = directory.records_of(self.member.me).map(|entry| entry.record.claim());
            let mut nodes = own.filter_map(|claim| match claim {
                Claim::Endpoint(claim) if claim.router && claim.network == id => Some(claim),
                Claim::Endpoint(_) | Claim::Node(_) | Claim::Gone => None,
            });
            nodes.next().cloned()
        })?;
        let subnets = self.member.addresses.subnets(id);
        let net = |ip: &IpAddr| {
            let subnet = subnets.iter().find(|subnet| subnet.contains(ip))?;
            IpNet::new(*ip, subnet.prefix_len()).ok()
        };
        Some(Said { id: said.id, ips: said.ips.iter().filter_map(net).collect() })
    }

    /// Forgets the node's addresses in networks that are not here any more, and brings the host in
    /// step: for the start.
    pub(super) async fn adopt_ways(&self, hosted: &mut Hosted) -> Result<(), ApiError> {
        for node in self.stored_nodes()?.iter() {
            if !hosted.overlays.contains_key(&node.network)
                && !self.leads_clients(node.network)
                && !self.endpoint_rows()?.iter().any(|other| other.network == node.network)
            {
                self.forget_node(hosted, node.network).await?;
            }
        }
        self.adopt_ports(hosted)?;
        hosted.ways.adopting = false;
        self.sync_host(hosted);
        Ok(())
    }

    /// Brings the way of a network in step with the host's routes, its own subnets and what is
    /// published.
    pub(super) async fn keep_way(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        (id, network): (NetworkId, &object::Network),
        view: &View,
        grown: bool,
    ) {
        if grown || hosted.ways.is_due(id) {
            self.mend_way(hosted, id, network).await;
            // Ports of the host may have waited for it.
            return self.sync_host(hosted);
        }
        let Hosted { overlays, ways, .. } = hosted;
        let (Some(overlay), Some(way)) = (overlays.get(&id), ways.open.get_mut(&id)) else {
            return;
        };
        follow_routes(way, network, view).await;
        if let Err(error) = self.keep_inside(overlay, way, id, network)
            && way.fault.as_ref() != Some(&error.message)
        {
            warn!(network = %network.name, %error, "the network's rules are not as they should be");
            way.shut_by(&error);
        }
    }

    /// Brings the cable to the host and what leads over it to what it was.
    pub(super) async fn ensure_uplink(
        &self,
        (host, overlay): (&Links, &Overlay),
        id: NetworkId,
        network: &object::Network,
    ) -> Result<Uplink, ApiError> {
        let ends = (host, overlay.netns(), overlay.links());
        let raised = uplink::ensure(id, self.member.me, ends, network.mtu).await;
        raised.map_err(|error| failed(error, "see `vxmesh doctor`"))
    }

    /// Opens the way of a network of the agent's last life. The host's routes and rules are looked
    /// at once all ways are known.
    pub(super) async fn adopt_way(
        self: &Arc<Self>,
        (host, overlay): (&Links, &Overlay),
        id: NetworkId,
        network: &object::Network,
    ) -> Option<Way> {
        if network.internal {
            return None;
        }
        let mut way = Way { tried: Some(Instant::now()), ..Way::default() };
        if let Err(error) = self.raise((host, overlay), &mut way, id, network).await {
            warn!(network = %network.name, %error, "no full way out of the network");
            way.fault = Some(error.message);
        }
        Some(way)
    }

    async fn mend_way(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        id: NetworkId,
        network: &object::Network,
    ) {
        let Some(overlay) = hosted.overlays.get(&id) else { return };
        let Some(way) = hosted.ways.open.get_mut(&id) else { return };
        way.tried = Some(Instant::now());
        let host = Links::here().map_err(|error| failed(error, "see the agent's log"));
        let mended = match &host {
            Ok(host) => self.raise((host, overlay), way, id, network).await,
            Err(error) => Err(error.clone()),
        };
        let mut fault = mended.err().map(|error| error.message);
        // At the start of an agent all ways are looked at together a moment later, and the host's
        // routes are there.
        if !hosted.ways.adopting {
            let Some(way) = hosted.ways.open.get_mut(&id) else { return };
            match View::now(self).await {
                Ok(view) => follow_routes(way, network, &view).await,
                Err(error) => fault = fault.or(Some(error.message)),
            }
        }
        let Some(way) = hosted.ways.open.get_mut(&id) else { return };
        if fault != way.fault {
            match &fault {
                Some(fault) => {
                    warn!(network = %network.name, fault, "no full way out of the network");
                }
                None => info!(network = %network.name, "the way out of the network is open"),
            }
        }
        way.fault = fault;
    }

    async fn raise(
        self: &Arc<Self>,
        (host, overlay): (&Links, &Overlay),
        way: &mut Way,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<(), ApiError> {
        let raised = self.raise_in((host, overlay), way, id, network).await;
        way.shut = raised.as_ref().err().map(|error| error.message.clone());
        raised?.map_or(Ok(()), Err)
    }

    /// The same; why this node lacks an address, if it does, is no fault for clients from outside.
    async fn raise_in(
        self: &Arc<Self>,
        (host, overlay): (&Links, &Overlay),
        way: &mut Way,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<Option<ApiError>, ApiError> {
        way.for_clients = !self.has_endpoints(id)?;
        let (node, given_up, missing) = if way.for_clients {
            let (node, given_up) = self.node_for_clients(id)?;
            (node, given_up, None)
        } else {
            let (node, missing) = self.node_of(id, network).await?;
            (node, Vec::new(), missing)
        };
        // Without it there still is a node.
        let uplink = self.ensure_uplink((host, overlay), id, network).await;
        if let Ok(uplink) = &uplink {
            way.uplink = Some(uplink.clone());
        }
        let plug = self.node_plug(&node, way.uplink.as_ref());
        if !given_up.is_empty() {
            let held = way.still_held(&given_up);
            // What is not written down is not begun: else the addresses would be put back here as
            // often as they are given up.
            self.keep_given_up(&node, &held)?;
            // Before others are told: nothing leaves from an address that they do not know.
            overlay.set_node(&plug).await?;
            // Not before the kernel has given them up. They rest from now on.
            let now = Instant::now();
            held.iter().for_each(|ip| self.member.addresses.release(id, *ip, now));
            way.given_up.extend(held);
        }
        if plug.leads_nowhere() && given_up.is_empty() {
            // Ports may have led on before.
            if overlay.remove_node().await? {
                self.withdraw(id, node.id);
            }
        } else {
            let claim = Claim::Endpoint(node.claim()?);
            if !self.is_said(&claim) {
                self.announce(&claim).await?;
            }
            way.given_up.clear();
            overlay.set_node(&plug).await?;
        }
        uplink?;
        self.keep_inside(overlay, way, id, network)?;
        Ok(missing)
    }

    /// What is wrong with the ways out of these networks, as a user is told.
    pub(super) fn closed_ways(&self, hosted: &Hosted, networks: &[Connection]) -> Vec<String> {
        let fault = |connection: &Connection| {
            let network = self.find_network(&connection.network).ok()?;
            let own = hosted.ways.open.get(&network.id)?.fault();
            let fault = own.or_else(|| hosted.ways.host_fault())?;
            Some(format!(
                "no full way out of network `{}` on this host: {fault}; see `vxmesh doctor`",
                network.name
            ))
        };
        networks.iter().filter_map(fault).collect()
    }

    /// Brings the rules inside a network in step.
    fn keep_inside(
        &self,
        overlay: &Overlay,
        way: &mut Way,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<(), ApiError> {
        let Some(uplink) = &way.uplink else { return Ok(()) };
        let entrances = self.entrances(id, uplink)?;
        let uplink = uplink.clone();
        let clients = self.engine_addresses(id)?;
        let servers =
            if clients.is_empty() { Vec::new() } else { self.host.name_servers.of_engines() };
        if way.keep_rules(overlay, network, &uplink, &entrances, (&clients, &servers))? {
            self.counters_replaced(id);
        }
        Ok(())
    }

    /// Brings the rules of a network and of the host in step with what is published.
    pub(super) fn sync_way(&self, hosted: &mut Hosted, id: NetworkId) -> Result<(), ApiError> {
        let (Some(overlay), Some(way)) = (hosted.overlays.get(&id), hosted.ways.open.get_mut(&id))
        else {
            self.sync_host(hosted);
            return Ok(());
        };
        if way.uplink.is_none() {
            let fault = way.fault.clone().unwrap_or_else(|| "it is not open yet".to_owned());
            let message = format!("the network has no way out: {fault}");
            return Err(failed(message, "see `vxmesh doctor`"));
        }
        let Some((network, _state)) = self.network_object(id) else { return Ok(()) };
        let written = self.keep_inside(overlay, way, id, &network);
        if let Err(error) = &written {
            // Tried again with the rest.
            way.shut_by(error);
        }
        written?;
        self.sync_host(hosted);
        hosted.ways.fault.clone().map_or(Ok(()), |fault| Err(failed(fault, "see `vxmesh doctor`")))
    }

    /// This node as an endpoint of a network, with one address of each subnet; and why one is
    /// missing, if so.
    async fn node_of(
        &self,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<(Node, Option<ApiError>), ApiError> {
        let key = id.to_string();
        let stored = self.stored_node(id)?;
        let is_stored = stored.is_some();
        let mut node = match stored {
            Some(node) => node,
            None => Node {
                id: EndpointId::from_random(rand::random()),
                network: id,
                mac: self.free_mac(id, rand::random(), &[])?,
                ips: Vec::new(),
                incarnation: self.store.next_incarnation(unix_ms()).map_err(store_failed)?,
            },
        };
        let (mut missing, known) = (None, node.ips.len());
        for subnet in network.subnets.iter().take(CLAIM_ADDRESSES) {
            if node.ips.iter().any(|ip| subnet.cidr.contains(&ip.addr())) {
                continue;
            }
            match self.allocate_any(network, id, &[subnet.cidr]).await {
                Ok(ip) => node.ips.push(ip),
                Err(error) => missing = Some(error),
            }
        }
        if is_stored && node.ips.len() == known {
            return Ok((node, missing));
        }
        if let Err(error) = self.store.put(Table::Gateways, &key, &node) {
            // Nobody uses them yet, and the next try takes others.
            node.ips.iter().skip(known).for_each(|ip| self.member.addresses.put_back(id, *ip));
            return Err(store_failed(error));
        }
        Ok((node, missing))
    }

    /// Brings the host's rules and settings in step with the ways that are open, once all of them
    /// are known.
    pub(super) fn sync_host(&self, hosted: &mut Hosted) {
        if hosted.ways.adopting {
            return;
        }
        let done = self.sync_host_or(&mut hosted.ways);
        let fault = done.err().map(|error| error.message);
        if fault != hosted.ways.fault
            && let Some(fault) = &fault
        {
            warn!(fault, "the host's rules are not as they should be");
        }
        hosted.ways.fault = fault;
        self.note_shut(hosted);
    }

    /// Notes into which networks published ports of services lead in vain.
    pub(super) fn note_shut(&self, hosted: &Hosted) {
        let mut shut = hosted.ways.shut();
        for (id, mended) in lock(&self.host.watching.mended).iter() {
            if mended.told
                && !mended.is_of_endpoint
                && let Some(fault) = &mended.fault
            {
                shut.entry(*id).or_insert_with(|| fault.clone());
            }
        }
        lock(&self.services.host_ports).note_shut(shut);
    }

    fn sync_host_or(&self, ways: &mut Ways) -> Result<(), ApiError> {
        let hint = "see `vxmesh doctor`";
        let refused = |error: FirewallError| failed(error, hint);
        let uplinks: Vec<host::Uplink> = ways.open.values().filter_map(Way::host_uplink).collect();
        if uplinks.is_empty() {
            // Also once after the start: the agent's last life may have left something.
            if !ways.cleared || !self.noted_settings()?.is_empty() {
                // While the host forwards its rules keep it closed.
                self.restore_settings()?;
                self.count_on_host();
                // From here on nobody puts it back, nor rules beside those of others.
                *lock(&self.host.on_host) = OnHost::default();
                foreign::withdraw().map_err(refused)?;
                if Rules::remove().map_err(refused)? {
                    forget_on_host(self.member.me, &[]).map_err(refused)?;
                }
                ways.cleared = true;
                ways.away.clear();
            }
            return Ok(());
        }
        ways.cleared = false;
        let noted = self.note_settings()?;
        let made_of = MadeOf {
            writes: self.store.writes(),
            objects: self.member.objects.read(object::ObjectSet::content_hash),
            host_ports: lock(&self.services.host_ports).changes(),
            uplinks,
            closed: closed(&noted),
        };
        let mut on_host = lock(&self.host.on_host);
        if on_host.rules.as_ref().is_none_or(|rules| rules.made_of != made_of) {
            let ports = self.host_ports(|id| ways.open.get(&id)?.uplink.clone())?;
            on_host.rules = Some(HostRules::of(made_of, ports));
        }
        let ports = on_host.rules.as_ref().map_or(&[][..], |rules| &rules.ports);
        let away = away(ports);
        let kept = on_host.keep(self.member.me);
        // Without the rules the host would be a router for everybody.
        if kept.is_ok() || Rules::has_rules().unwrap_or_default() {
            sysctl::forward().map_err(|error| failed(error, "switch forwarding on yourself"))?;
        } else {
            self.restore_settings()?;
        }
        kept.map_err(refused)?;
        if away != ways.away {
            let ports = on_host.rules.as_ref().map_or(&[][..], |rules| &rules.ports);
            forget_on_host(self.member.me, ports).map_err(refused)?;
            ways.away = away;
        }
        Ok(())
    }

    /// Puts the host's table back where somebody changed it, also while somebody else changes the
    /// host.
    pub(super) fn mend_on_host(&self) {
        let mut on_host = lock(&self.host.on_host);
        let fault = on_host.keep(self.member.me).err().map(|error| error.to_string());
        if fault != on_host.fault
            && let Some(fault) = &fault
        {
            warn!(fault, "the host's rules are not as they should be");
        }
        on_host.fault = fault;
    }

    fn noted_settings(&self) -> Result<sysctl::Found, ApiError> {
        let noted = self.store.get(Table::Meta, SETTINGS).map_err(store_failed)?;
        Ok(noted.unwrap_or_default())
    }

    /// Notes how the host is before it forwards.
    fn note_settings(&self) -> Result<sysctl::Found, ApiError> {
        let noted = self.noted_settings()?;
        let found = sysctl::look(&noted);
        if found != noted {
            self.store.put(Table::Meta, SETTINGS, &found).map_err(store_failed)?;
        }
        Ok(found)
    }

    fn restore_settings(&self) -> Result<(), ApiError> {
        let restored = self.noted_settings()?.restore();
        restored.map_err(|error| failed(error, "see `vxmesh doctor`"))?;
        self.store.delete(Table::Meta, SETTINGS).map_err(store_failed)?;
        Ok(())
    }

    /// The way of a network as the API shows it.
    pub(super) async fn way_row(&self, id: NetworkId) -> Option<api::Way> {
        let hosted = self.hosted.lock().await;
        let way = hosted.ways.open.get(&id)?;
        let node = self.store.get::<Node>(Table::Gateways, &id.to_string()).ok().flatten();
        let fault = way.fault.clone().or_else(|| hosted.ways.fault.clone());
        Some(api::Way {
            uplink: way.uplink.as_ref().map(|uplink| uplink.ifname.clone()),
            node_ips: node.map(|node| node.ips).unwrap_or_default(),
            unreached: way
                .overlaps
                .iter()
                .map(|(subnet, route)| api::Overlap { subnet: *subnet, route: *route })
                .collect(),
            fault,
        })
    }
}

impl Way {
    /// What is wrong with it.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Of addresses that the node gives up, those that do not rest yet. The others may be an
    /// endpoint's by now.
    fn still_held(&self, ips: &[IpNet]) -> Vec<IpNet> {
        ips.iter().filter(|ip| !self.given_up.contains(ip)).copied().collect()
    }

    fn shut_by(&mut self, error: &ApiError) {
        self.fault = Some(error.message.clone());
        self.shut.clone_from(&self.fault);
    }

    /// Subnets that the host does not reach, and its routes in the way.
    pub(super) fn overlaps(&self) -> &[(IpNet, IpNet)] {
        &self.overlaps
    }

    fn host_uplink(&self) -> Option<host::Uplink> {
        let uplink = self.uplink.as_ref()?;
        Some(host::Uplink { ifname: uplink.ifname.clone(), ips: uplink.ips() })
    }
}

async fn follow_routes(way: &mut Way, network: &object::Network, view: &View) {
    let Some(uplink) = &way.uplink else { return };
    let subnets: Vec<IpNet> = network.subnets.iter().map(|subnet| subnet.cidr).collect();
    let host = (&view.links, &view.state);
    let followed = if way.for_clients {
        uplink::remove_routes(uplink, &subnets, host).await.map(|()| Vec::new())
    } else {
        uplink::follow_routes(uplink, &subnets, host).await
    };
    match followed {
        Ok(overlaps) => {
            let known: BTreeSet<_> = way.overlaps.iter().copied().collect();
            for (subnet, route) in overlaps.iter().filter(|overlap| !known.contains(overlap)) {
                info!(network = %network.name, %subnet, %route, "the host does not reach the subnet: a route of its own overlaps it");
            }
            way.overlaps = overlaps;
        }
        Err(error) => way.fault = Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The others still hear of addresses of the node that rest, as they could not be told.
    #[test]
    fn an_address_that_rests_is_not_given_up_again() {
        let (all, first) = (ips(&["10.0.0.9/24", "fd00::9/64"]), ips(&["10.0.0.9/24"]));
        let mut way = Way::default();
        assert_eq!(way.still_held(&all), all);
        way.given_up.extend(first);
        assert_eq!(way.still_held(&all), ips(&["fd00::9/64"]));
    }

    /// A change of the store may be there although it failed: what ends here is found all the same.
    #[test]
    fn what_the_others_were_told_ends_also_where_the_store_has_no_more_of_it() {
        let id = EndpointId::from_random([1; 16]);
        let (v4, v6) = (ips(&["10.0.0.9/24"]), ips(&["fd00::9/64"]));
        let stored = |ips: &[IpNet]| Node {
            id,
            network: NetworkId::from_random([2; 16]),
            mac: MacAddr([2, 0, 0, 0, 0, 9]),
            ips: ips.to_vec(),
            incarnation: 1,
        };
        let said = |ips: &[IpNet]| Said { id, ips: ips.to_vec() };
        for (stored, said, ends) in [
            (None, None, None),
            (Some(stored(&v4)), None, Some(v4.clone())),
            (None, Some(said(&v4)), Some(v4.clone())),
            (Some(stored(&[])), Some(said(&v4)), Some(v4.clone())),
            (Some(stored(&v4)), Some(said(&v4)), Some(v4.clone())),
            (Some(stored(&v4)), Some(said(&v6)), Some([v4.clone(), v6].concat())),
        ] {
            assert_eq!(to_forget(stored, said).map(|it| it.ips), ends);
        }
    }
}
