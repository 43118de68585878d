//! What this node knows, as rows of the admin API.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use vxmesh_gossip::directory::{Directory, Entry};
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId, NodeId},
    control::{Request, Response},
    object::{Content, ObjectSet},
    record::{Claim, EndpointClaim, Key},
};

use super::{
    conflicts,
    mesh::{Mesh, failed},
};
use crate::{
    admin::resolve,
    api::{self, Address, ApiError, DropRow, ErrorCode, Location, MapDiffRow, MapRow, Node},
    control::Control,
    identity::unix_now,
    member::departed::Departed,
};

impl Mesh {
    /// A node's name, or its id while nobody told it.
    pub(crate) fn node_name(&self, node: NodeId) -> String {
        let rows = self.node_list();
        rows.iter()
            .find(|row| row.id == node)
            .map_or_else(|| node.short(), |row| row.name.to_string())
    }

    /// All members, those that left among them.
    pub(crate) fn node_list(&self) -> Vec<Node> {
        let removed: BTreeMap<NodeId, Name> = self.member.objects.read(|set| {
            set.removals().map(|(removal, _)| (removal.node, removal.name.clone())).collect()
        });
        let members: Vec<(NodeId, bool, Option<Name>)> = self.member.objects.read(|set| {
            let members = set.objects().filter_map(|object| match object.content() {
                Content::Member(member) => {
                    Some((object.author(), object.closed(), member.name.clone()))
                }
                _ => None,
            });
            members.collect()
        });
        let issuing = self.member.issuing.others.load();
        let Some(gossip) = self.member.gossip.get() else { return Vec::new() };
        let row = |directory: &Directory, (id, left, member): (NodeId, bool, Option<Name>)| {
            let claim = directory.get(id, Key::Node).and_then(|entry| match entry.record.claim() {
                Claim::Node(claim) => Some(claim.clone()),
                Claim::Endpoint(_) | Claim::Gone => None,
            });
            let state = match (left, directory.is_up(id)) {
                _ if removed.contains_key(&id) => "removed",
                (true, _) => "left",
                (false, true) => "alive",
                (false, false) => "dead",
            };
            // A node of which no name is known is shown by its id, which is a name, too.
            let told = claim.as_ref().map(|claim| claim.name.clone()).or(member);
            let name = removed.get(&id).cloned().or(told);
            let name = name.or_else(|| id.as_str().parse().ok())?;
            let (drained, zone) =
                claim.as_ref().map_or((false, None), |it| (it.drained.is_some(), it.zone.clone()));
            let vtep = claim.and_then(|claim| {
                crate::member::peers::reachable(&claim.vteps, &self.member.location.own())
            });
            let is_self = id == self.member.me;
            let issuer = match is_self {
                true => self.credentials.is_issuer(),
                false => issuing.contains(&id),
            };
            let state = state.to_owned();
            Some(Node { id, name, vtep, state, is_self, issuer, drained, zone })
        };
        gossip.with_directory(|directory| {
            members.into_iter().filter_map(|member| row(directory, member)).collect()
        })
    }

    /// The believed claims of all networks with what the directory knows of them.
    fn known(&self) -> BTreeMap<(NetworkId, EndpointId), (NodeId, EndpointClaim, Entry)> {
        let Some(gossip) = self.member.gossip.get() else { return BTreeMap::new() };
        let networks: Vec<NetworkId> = self
            .member
            .objects
            .read(ObjectSet::networks)
            .into_iter()
            .map(|(network, ..)| network)
            .collect();
        let mut known = BTreeMap::new();
        for network in networks {
            for (key, claim) in self.member.believed(gossip, network) {
                let entry = gossip
                    .with_directory(|d| d.get(key.node, Key::Endpoint(key.endpoint)).cloned());
                if let Some(entry) = entry {
                    known.insert((network, key.endpoint), (key.node, claim, entry));
                }
            }
        }
        known
    }

    /// The endpoints of all nodes that are up, and all of this one.
    pub(super) fn endpoint_list(&self) -> Vec<api::Endpoint> {
        let local: BTreeMap<EndpointId, _> = self
            .stored_endpoints()
            .unwrap_or_default()
            .into_iter()
            .map(|endpoint| (endpoint.id, endpoint))
            .collect();
        let row = |((network, id), (node, claim, _)): (
            (NetworkId, EndpointId),
            (NodeId, EndpointClaim, Entry),
        )| {
            let subnets = self.member.addresses.subnets(network);
            let here = local.get(&id);
            api::Endpoint {
                id,
                name: claim.name,
                network,
                node,
                sandbox: here.map(crate::host::endpoints::Stored::place),
                ifname: here.and_then(|endpoint| endpoint.ifname().map(ToOwned::to_owned)),
                mac: claim.mac,
                ips: claim.ips.into_iter().map(|ip| with_prefix(ip, &subnets)).collect(),
                aliases: claim.aliases,
                incarnation: claim.incarnation,
                labels: claim.labels,
                conflict: None,
                published: Vec::new(),
            }
        };
        let endpoints = self.known().into_iter().filter(|(_, (_, claim, _))| !claim.router);
        let mut rows: Vec<api::Endpoint> = endpoints.map(row).collect();
        let services = self.member.objects.read(conflicts::ServiceName::all);
        conflicts::mark(&mut rows, &services);
        // What is on this host can be detached, also if the mesh does not show it: its network was
        // removed, or another's claim stands against it.
        let shown: BTreeSet<EndpointId> = rows.iter().map(|row| row.id).collect();
        let hidden = local.values().filter(|endpoint| !shown.contains(&endpoint.id));
        rows.extend(hidden.filter_map(|endpoint| endpoint.row(self.member.me)));
        for published in self.published_rows() {
            if let Some(row) = rows.iter_mut().find(|row| Some(row.id) == published.endpoint) {
                row.published.push(published);
            }
        }
        rows.sort_by_key(|row| (row.network, row.id));
        rows
    }

    /// `map ls`: one row per endpoint, in the order of ids.
    pub(super) fn map_rows(&self) -> Vec<MapRow> {
        let row = |((network, endpoint), (node, claim, _)): (
            (NetworkId, EndpointId),
            (NodeId, EndpointClaim, Entry),
        )| {
            let EndpointClaim { mac, ips, incarnation, .. } = claim;
            MapRow { network, endpoint, node, mac, ips, incarnation }
        };
        self.known().into_iter().map(row).collect()
    }

    /// Where an address is.
    pub(super) fn locations(&self, address: &Address) -> Vec<Location> {
        let matches = |claim: &EndpointClaim| match address {
            Address::Mac(mac) => claim.mac == *mac,
            Address::Ip(ip) => claim.ips.contains(ip),
        };
        let known = self.known().into_iter().filter(|(_, (_, claim, _))| matches(claim));
        let local = self.local_networks.ids().into_iter().flat_map(|id| self.local_claims(id));
        let local = local.filter(|(_, claim)| matches(claim)).map(|(key, claim)| Location {
            network: claim.network,
            endpoint: key.endpoint,
            name: claim.name,
            node: key.node,
            vtep: None,
            mac: claim.mac,
            ips: claim.ips,
            source: "local".to_owned(),
            age_ms: 0,
        });
        known
            .map(|((network, endpoint), (node, claim, entry))| Location {
                network,
                endpoint,
                name: claim.name,
                node,
                vtep: self.member.peers.get(node).and_then(|peer| peer.addr()),
                mac: claim.mac,
                ips: claim.ips,
                source: entry.source.as_str().to_owned(),
                age_ms: u64::try_from(entry.learned.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
            .chain(local)
            .collect()
    }

    /// What this node and another see differently.
    pub(super) async fn map_difference(
        self: &Arc<Self>,
        reference: &str,
    ) -> Result<Vec<MapDiffRow>, ApiError> {
        let node = resolve::one(&self.node_list(), reference)?.id;
        if node == self.member.me {
            return Ok(Vec::new());
        }
        let Some(control) = self.member.control.get() else {
            return Err(failed("the agent is starting", "try again"));
        };
        let answer = control.request(node, &Request::Map, super::sync::ANSWER).await;
        let unreachable =
            |error| ApiError::new(ErrorCode::Failed, format!("{error}"), "see `vxmesh node ls`");
        let Response::Map { rows } = answer.map_err(unreachable)? else {
            return Err(failed(
                "the node answers something else than its map",
                "upgrade the older agent",
            ));
        };
        let there =
            rows.into_iter().map(serde_json::from_value::<MapRow>).collect::<Result<Vec<_>, _>>();
        let there = there.map_err(|error| failed(error, "upgrade the older agent"))?;
        Ok(differences(self.map_rows(), there))
    }

    /// Seconds until this node's certificate ends.
    pub(super) fn certificate_left(&self) -> Option<u64> {
        let end = self.member.control.get()?.certificate_end();
        Some(end.saturating_sub(unix_now()))
    }

    /// `peer ls`
    pub(super) fn peer_rows(&self) -> Vec<api::Peer> {
        let connected =
            self.member.control.get().map(Control::peers).unwrap_or_default().into_iter();
        let rtts = connected.filter_map(|peer| Some((peer.node, peer.rtt?))).collect();
        self.member.peers.rows(&rtts)
    }

    /// `drops`: all that this host lost, the agent's share and the kernel's.
    pub(super) async fn drop_rows(&self) -> Vec<DropRow> {
        self.count_drops().await;
        let questions = self.host.name_servers.names.drops().rows();
        let rows = self.host.plane.drops().rows().into_iter().chain(questions);
        rows.map(|(key, count)| DropRow {
            reason: key.reason.as_str().to_owned(),
            network: key.network,
            peer: key.peer,
            endpoint: key.endpoint,
            count,
            normal: key.reason.is_benign(),
        })
        .collect()
    }

    /// Brings the counters up to date: with what the kernel counts, and without networks and
    /// endpoints that are gone.
    pub(super) async fn count_drops(&self) {
        self.count_on_host();
        self.count_refused(|_place, _id| true);
        self.host.plane.count_overruns();
        self.host.losses.count(self.host.plane.drops(), None).await;
        let networks: BTreeSet<NetworkId> =
            self.network_list().iter().map(|network| network.id).collect();
        let Ok(endpoints) = self.stored_endpoints() else { return };
        let endpoints: BTreeSet<EndpointId> =
            endpoints.iter().map(|endpoint| endpoint.id).collect();
        for drops in [self.host.plane.drops(), self.host.name_servers.names.drops()] {
            drops.forget_gone(|id| networks.contains(&id), |id| endpoints.contains(&id));
        }
    }

    /// `status`, as far as the mesh knows it.
    pub(super) fn fill_status(&self, status: &mut api::Status) {
        let nodes = self.node_list();
        let present = nodes.iter().filter(|node| !node.is_gone());
        let at = |port: u16| {
            self.member.location.own().first().map(|ip| std::net::SocketAddr::new(*ip, port))
        };
        status.state = self.member.departed().map_or("ready", Departed::as_str).to_owned();
        status.mesh_id = Some(self.credentials.membership.mesh_id);
        status.node_id = Some(self.member.me);
        status.control_addr = at(self.config.control_port);
        status.vtep = at(self.config.data_port);
        status.nodes = present.clone().count();
        status.nodes_alive = present.filter(|node| node.state == "alive").count();
        let networks = self.network_list();
        status.networks = networks.len();
        let endpoints = self.endpoint_list();
        status.conflicts = networks.iter().filter(|network| network.state == "conflict").count()
            + endpoints.iter().filter(|endpoint| endpoint.conflict.is_some()).count();
        status.certificate_left_s = self.certificate_left();
        status.endpoints = self.stored_endpoints().map_or(0, |endpoints| endpoints.len());
        status.issuer = self.credentials.is_issuer();
        status.issuers = self.issuer_rows(&nodes);
        status.datapath = self.host.grants.as_ref().map(|grants| api::Datapath {
            backend: grants.backend.as_str().to_owned(),
            offloads: grants.offloads.iter().map(|&offload| offload.to_owned()).collect(),
            refused: self.host.plane.refused_offloads(),
        });
    }
}

fn with_prefix(ip: IpAddr, subnets: &[IpNet]) -> IpNet {
    let subnet = subnets.iter().find(|subnet| subnet.contains(&ip));
    subnet.map_or_else(|| IpNet::from(ip), |subnet| IpNet::new_assert(ip, subnet.prefix_len()))
}

fn differences(here: Vec<MapRow>, there: Vec<MapRow>) -> Vec<MapDiffRow> {
    let key = |row: &MapRow| (row.network, row.endpoint);
    let here: BTreeMap<_, _> = here.into_iter().map(|row| (key(&row), row)).collect();
    let mut there: BTreeMap<_, _> = there.into_iter().map(|row| (key(&row), row)).collect();
    let mut rows = Vec::new();
    for (key, here) in here {
        let there = there.remove(&key);
        let kind = match &there {
            None => "only_here",
            Some(there) if *there == here => continue,
            Some(_) => "differs",
        };
        rows.push(MapDiffRow { kind: kind.to_owned(), here: Some(here), there });
    }
    let rest = there.into_values();
    rows.extend(rest.map(|there| MapDiffRow {
        kind: "only_there".to_owned(),
        here: None,
        there: Some(there),
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u8, incarnation: u64) -> MapRow {
        MapRow {
            network: NetworkId::from_random([1; 16]),
            endpoint: EndpointId::from_random([id; 16]),
            node: NodeId::of_public_key(&[id]),
            mac: Default::default(),
            ips: Vec::new(),
            incarnation,
        }
    }

    #[test]
    fn differences_are_told_by_kind() {
        let rows = differences(
            vec![row(1, 1), row(2, 1), row(3, 1)],
            vec![row(2, 2), row(3, 1), row(4, 1)],
        );
        let kinds: Vec<&str> = rows.iter().map(|row| row.kind.as_str()).collect();
        assert_eq!(kinds, ["only_here", "differs", "only_there"]);
        assert!(differences(vec![row(1, 1)], vec![row(1, 1)]).is_empty());
    }
}
