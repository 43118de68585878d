//! Names as the mesh's keeper tends them: tables from believed claims, a server and files for each sandbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tracing::{info, warn};
use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::{
    addr::{Name, NetworkId},
    dns::NamesTable,
    object::{Content, ObjectId, ObjectSet},
};

use super::{
    endpoints::Stored as StoredEndpoint,
    mesh::{Mesh, failed, lock},
    sandboxes::Stored as StoredSandbox,
};
use crate::{
    api::ApiError,
    dns::{Desk, Etc, EtcFiles, IN_SANDBOX, Names, Scope, Server, Snapshot, Sockets},
    netlink::{netns::Netns, overlay::OverlayError},
    reconcile::admit::Claims,
};

/// Members that were not heard of this long after the start are not waited for: their names are missing for good reason.
const SETTLES: Duration = Duration::from_secs(5);

/// The servers of this host.
#[derive(Debug)]
pub(super) struct NameServers {
    pub(super) names: Arc<Names>,
    started: Instant,
    sandboxes: Mutex<BTreeMap<Name, Server>>,
    /// Sandboxes that could not be served, so that each is reported once.
    unserved: Mutex<BTreeSet<Name>>,
}

impl Default for NameServers {
    fn default() -> Self {
        Self {
            names: Arc::default(),
            started: Instant::now(),
            sandboxes: Mutex::default(),
            unserved: Mutex::default(),
        }
    }
}

impl NameServers {
    /// The table of a network: the one that is there, or a new one if its claims or its name changed.
    pub(super) fn table(
        &self,
        id: NetworkId,
        domain: &Name,
        subnets: &[ipnet::IpNet],
        claims: &Claims,
        unchanged: bool,
    ) -> Arc<NamesTable> {
        let there = self.names.snapshot().tables.get(&id).cloned();
        there.filter(|table| unchanged && table.domain() == domain).unwrap_or_else(|| {
            Arc::new(NamesTable::new(id, domain.clone(), subnets.to_vec(), claims))
        })
    }

    /// Ends the server of a sandbox.
    pub(super) fn close(&self, sandbox: &Name) {
        lock(&self.sandboxes).remove(sandbox);
        lock(&self.unserved).remove(sandbox);
    }
}

impl Mesh {
    /// Publishes the tables of names that belong to these tables of networks.
    pub(super) fn publish_names(
        &self,
        gossip: &Gossip,
        tables: BTreeMap<NetworkId, Arc<NamesTable>>,
    ) {
        let domains = self.network_names().into_values().collect();
        let snapshot =
            Snapshot { tables, domains: Arc::new(domains), settled: self.is_settled(gossip) };
        self.name_servers.names.publish(snapshot);
    }

    /// The names of all networks.
    pub(super) fn network_names(&self) -> BTreeMap<NetworkId, Name> {
        let networks = self.objects.read(ObjectSet::networks);
        let name = |object: &vxmesh_proto::object::Object| match object.content() {
            Content::Network(network) => Some(network.name.clone()),
            Content::Member(_) | Content::Transfer(_) | Content::Other => None,
        };
        networks.iter().filter_map(|(id, object, _)| Some((*id, name(object)?))).collect()
    }

    /// Whether every member was heard of, or was given the time to be.
    fn is_settled(&self, gossip: &Gossip) -> bool {
        if self.name_servers.started.elapsed() >= SETTLES {
            return true;
        }
        let members: Vec<_> = self.objects.read(|set| {
            let members = set.members();
            let stays =
                |node: &_| set.get(&ObjectId::Member(*node)).is_some_and(|member| !member.closed());
            members.filter(stays).collect()
        });
        gossip.with_directory(|directory| members.iter().all(|node| directory.is_up(*node)))
    }

    /// Makes a sandbox's files, and its server unless it has one.
    pub(super) fn name_sandbox(&self, sandbox: &StoredSandbox) -> Result<(), ApiError> {
        let endpoints = self.stored_endpoints()?;
        let own: Vec<&StoredEndpoint> = sandbox
            .endpoints()
            .iter()
            .filter_map(|id| endpoints.iter().find(|endpoint| endpoint.id == *id))
            .collect();
        let cannot = |error| failed(format!("names cannot be served: {error}"), "try again");
        EtcFiles::of(&self.run_dir(), sandbox.name()).write(&self.etc(&own)).map_err(cannot)?;
        let scope = Scope { networks: own.iter().map(|endpoint| endpoint.network).collect() };
        let mut servers = lock(&self.name_servers.sandboxes);
        if let Some(server) = servers.get(sandbox.name()) {
            server.desk().set_scope(scope);
            return Ok(());
        }
        let netns = Netns::open(sandbox.netns()).map_err(OverlayError::from)?;
        let sockets = Sockets::open(&netns, IN_SANDBOX).map_err(cannot)?;
        let desk = Desk::new(Arc::clone(&self.name_servers.names), scope);
        let server = Server::start(sockets, desk).map_err(cannot)?;
        servers.insert(sandbox.name().clone(), server);
        Ok(())
    }

    fn etc(&self, endpoints: &[&StoredEndpoint]) -> Etc {
        let names = self.network_names();
        let search = endpoints.iter().filter_map(|endpoint| names.get(&endpoint.network)).cloned();
        let own = endpoints.iter().flat_map(|endpoint| {
            let network = names.get(&endpoint.network);
            let claim = endpoint.claim();
            claim
                .ips
                .into_iter()
                .filter_map(move |ip| Some((ip, claim.name.clone(), network?.clone())))
        });
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        Etc { search: search.collect(), own: own.collect(), added: Vec::new(), host }
    }

    /// Serves every sandbox that is here and has no server: after a start, or where it could not be had.
    pub(super) fn name_sandboxes(&self) {
        let sandboxes = match self.stored_sandboxes() {
            Ok(sandboxes) => sandboxes,
            Err(error) => return warn!(%error, "names are not served"),
        };
        for sandbox in sandboxes {
            // One that is being made is served by whoever makes it.
            if !sandbox.has_process()
                || lock(&self.name_servers.sandboxes).contains_key(sandbox.name())
            {
                continue;
            }
            let served = self.name_sandbox(&sandbox);
            let mut unserved = lock(&self.name_servers.unserved);
            match served {
                Ok(()) if unserved.remove(sandbox.name()) => {
                    info!(sandbox = %sandbox.name(), "names are served again");
                }
                Ok(()) => {}
                Err(error) if unserved.insert(sandbox.name().clone()) => {
                    warn!(sandbox = %sandbox.name(), %error, "names are not served; trying again");
                }
                Err(_told) => {}
            }
        }
    }
}
