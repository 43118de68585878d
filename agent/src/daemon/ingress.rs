//! Networks that are on this host for published ports of services alone: no endpoint of it is in
//! them. Clients come in here like anywhere else, and the node takes no address for it and gets
//! nothing that is for everybody in the network.
//!
//! ```text
//! a port leads here : namespace, uplink -> record without an address -> node0, ways to the VIPs -> rules
//! first endpoint    : node0 gets addresses; what leads to the VIPs stays
//! last endpoint     : store, they rest -> node0 loses them -> record; connections of clients go on
//! no port any more  : store -> withdraw -> all of it goes
//! ```
//!
//! What ends here is written down first, and waits while it cannot be: what the store has is put
//! back where it is missing ([`super::mend`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use ipnet::IpNet;
use tracing::{info, warn};
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId},
    object,
};

use super::{
    gateway::{Node, both},
    hosting::Hosted,
    mesh::{Mesh, failed, store_failed},
};
use crate::{
    api::ApiError,
    gateway::uplink::Uplink,
    lock::lock,
    netlink::overlay::NodePlug,
    objects::unix_ms,
    services::HostPort,
    store::{Table, Txn},
};

/// Networks that are made here in one round: whoever waits for the host has its turn between two.
const AT_ONCE: usize = 4;
/// Networks that are here for published ports alone: any member of the mesh can ask for one.
const MOST: usize = 256;

/// What is left to do of networks that are here for published ports.
#[derive(Debug, Default)]
pub(super) struct IngressState {
    /// Those that cannot be made, or ended, and why.
    pub(super) faults: BTreeMap<NetworkId, String>,
    /// Those into which other ports lead than the node and the rules know.
    pub(super) changed: BTreeSet<NetworkId>,
    /// How often ports had changed when it was last written down which lead on.
    pub(super) kept: u64,
    /// Why ports cannot be followed.
    pub(super) fault: Option<String>,
}

impl Mesh {
    /// Whether an endpoint of this node is in a network, or just comes in.
    pub(super) fn has_endpoints(&self, network: NetworkId) -> Result<bool, ApiError> {
        Ok(self.endpoint_rows()?.iter().any(|endpoint| endpoint.network == network))
    }

    /// Whether this node stays in a network without endpoints, for clients from outside.
    pub(super) fn leads_clients(&self, network: NetworkId) -> bool {
        lock(&self.services.host_ports).leads_into(network)
    }

    /// The node as it is plugged in. Where it has an address, it asks for those of services like
    /// for others.
    pub(super) fn node_plug(&self, node: &Node, uplink: Option<&Uplink>) -> NodePlug {
        let mut vips = lock(&self.services.host_ports).vips(node.network);
        vips.retain(|vip| !node.ips.iter().any(|ip| ip.contains(vip)));
        let error_sources = uplink.map(Uplink::ips).unwrap_or_default();
        NodePlug { mac: node.mac, ips: node.ips.clone(), vips, error_sources }
    }

    /// This node in a network without endpoints of it: it has no address. Beside it those that are
    /// to be given up.
    pub(super) fn node_for_clients(&self, id: NetworkId) -> Result<(Node, Vec<IpNet>), ApiError> {
        if let Some(mut node) = self.stored_node(id)? {
            let said = self.said_node(id).map(|said| said.ips).unwrap_or_default();
            let given_up = both(mem::take(&mut node.ips), said);
            return Ok((node, given_up));
        }
        let node = Node {
            id: EndpointId::from_random(rand::random()),
            network: id,
            mac: self.free_mac(id, rand::random(), &[])?,
            ips: Vec::new(),
            incarnation: self.store.next_incarnation(unix_ms()).map_err(store_failed)?,
        };
        self.store.put(Table::Gateways, &id.to_string(), &node).map_err(store_failed)?;
        Ok((node, Vec::new()))
    }

    /// Writes down that this node gives up addresses in a network in which it stays.
    pub(super) fn keep_given_up(&self, node: &Node, given_up: &[IpNet]) -> Result<(), ApiError> {
        let key = node.network.to_string();
        let put = |txn: &mut Txn<'_>| txn.put(Table::Gateways, &key, node);
        self.rest(node.network, given_up, put).map_err(store_failed)
    }

    /// Whether there is a network here without an endpoint.
    pub(super) fn has_networks_for_clients(&self) -> Result<bool, ApiError> {
        let (nodes, endpoints) = (self.stored_nodes()?, self.endpoint_rows()?);
        let is_alone = |node: &Node| endpoints.iter().all(|it| it.network != node.network);
        Ok(nodes.iter().any(is_alone))
    }

    /// Makes the networks of these ports, some of them at a time.
    pub(super) async fn host_for_clients(self: &Arc<Self>, hosted: &mut Hosted, due: &[HostPort]) {
        let mut networks: BTreeSet<NetworkId> = due.iter().map(|port| port.network).collect();
        if networks.len() > AT_ONCE {
            self.services.changed.notify_ports();
            networks = networks.into_iter().take(AT_ONCE).collect();
        }
        for id in networks {
            if self.is_stopping() {
                return;
            }
            let Some((network, _state)) = self.network_object(id) else { continue };
            let made = match self.check_room_for_clients(hosted) {
                Ok(()) => self.host_network(hosted, id, &network).await.map(drop),
                Err(error) => Err(error),
            };
            self.note_ingress(hosted, (id, &network.name), made);
        }
    }

    /// Refuses one more network without an endpoint where there are enough of them, or where it
    /// could not be written down.
    fn check_room_for_clients(&self, hosted: &Hosted) -> Result<(), ApiError> {
        self.store.check_writable().map_err(store_failed)?;
        let endpoints = self.endpoint_rows()?;
        let is_alone = |id: &&NetworkId| endpoints.iter().all(|it| it.network != **id);
        if hosted.overlays.keys().filter(is_alone).count() < MOST {
            return Ok(());
        }
        Err(failed(
            format!("{MOST} networks are here for published ports alone"),
            "publish services of fewer networks",
        ))
    }

    fn note_ingress(
        &self,
        hosted: &mut Hosted,
        (id, name): (NetworkId, &Name),
        done: Result<(), ApiError>,
    ) {
        let Err(error) = done else {
            hosted.ingress.faults.remove(&id);
            return;
        };
        let told = hosted.ingress.faults.insert(id, error.message.clone());
        if told.as_ref() != Some(&error.message) {
            warn!(network = %name, %error, "published ports of its services are not as they should be on this host; it is tried again");
        }
    }

    /// Ends networks in which no endpoint is and into which no port leads.
    pub(super) async fn unhost_for_clients(self: &Arc<Self>, hosted: &mut Hosted) {
        if self.store.is_stuck() {
            return;
        }
        let here: Vec<NetworkId> = hosted.overlays.keys().copied().collect();
        for id in here.into_iter().filter(|id| !self.leads_clients(*id)) {
            if self.has_endpoints(id).unwrap_or(true) {
                continue;
            }
            let name = self.network_object(id).map(|(network, _state)| network.name);
            let ended = self.unhost_node(hosted, id).await;
            match name {
                Some(name) => self.note_ingress(hosted, (id, &name), ended),
                None if ended.is_ok() => drop(hosted.ingress.faults.remove(&id)),
                None => {}
            }
        }
        let overlays = &hosted.overlays;
        hosted.ingress.faults.retain(|id, _| overlays.contains_key(id) || self.is_wanted(*id));
    }

    /// Whether ports are to lead into a network, whether they can or not.
    fn is_wanted(&self, network: NetworkId) -> bool {
        lock(&self.services.host_ports).knows(network)
    }

    /// Takes this node out of a network that has no other endpoint here.
    pub(super) async fn unhost_node(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        id: NetworkId,
    ) -> Result<(), ApiError> {
        self.forget_node(hosted, id).await?;
        self.unhost(hosted, id).await?;
        let network = self.network_object(id);
        let network = network.map_or_else(|| id.short(), |it| it.0.name.to_string());
        info!(%network, "nothing leads into the network on this host any more");
        Ok(())
    }

    /// Brings this node in step with what leads into a network in which it lacks an address, or
    /// shall have none any more.
    pub(super) async fn follow_vips(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        id: NetworkId,
    ) -> Result<(), ApiError> {
        let Some((network, _state)) = self.network_object(id) else { return Ok(()) };
        let node = self.stored_node(id)?;
        if node.is_some_and(|node| lacks_address(&node, &network)) || !self.has_endpoints(id)? {
            self.open_way(hosted, id, &network).await;
        }
        Ok(())
    }
}

/// Whether there is a subnet in which a node has no address.
fn lacks_address(node: &Node, network: &object::Network) -> bool {
    let has = |subnet: &object::Subnet| node.ips.iter().any(|ip| subnet.cidr.contains(&ip.addr()));
    !network.subnets.iter().all(has)
}
