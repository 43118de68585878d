//! Names as the mesh's keeper tends them: tables from believed claims, and what a sandbox's server
//! and files say (`crate::host::names`).

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use tracing::warn;
use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::{
    addr::{Name, NetworkId},
    dns::NamesTable,
    object::{Content, Network, ObjectSet},
};

use super::{mesh::Mesh, sandboxes::Stored as StoredSandbox};
use crate::{
    api::ApiError,
    dns::{Etc, EtcFiles, Scope, Snapshot, Upstreams},
    host::{
        endpoints::Stored as StoredEndpoint,
        names::{NamesError, rates, upstreams},
    },
    netlink::netns::Netns,
};

impl Mesh {
    /// Publishes the tables of names that belong to these tables of networks.
    pub(super) fn publish_names(
        &self,
        gossip: &Gossip,
        tables: BTreeMap<NetworkId, Arc<NamesTable>>,
    ) {
        self.member.logged.conflicts.report(&tables);
        let domains = self.network_names().into_values().collect();
        let snapshot =
            Snapshot { tables, domains: Arc::new(domains), settled: self.is_settled(gossip) };
        self.host.name_servers.names.publish(snapshot);
    }

    /// The names of all networks.
    pub(super) fn network_names(&self) -> BTreeMap<NetworkId, Name> {
        let networks = self.member.objects.read(ObjectSet::networks);
        let name = |object: &vxmesh_proto::object::Object| match object.content() {
            Content::Network(network) => Some(network.name.clone()),
            _ => None,
        };
        let mesh = networks.iter().filter_map(|(id, object, _)| Some((*id, name(object)?)));
        mesh.chain(self.local_networks.names()).collect()
    }

    /// Makes a sandbox's files, and its server unless it has one.
    pub(super) fn name_sandbox(&self, sandbox: &StoredSandbox) -> Result<(), ApiError> {
        if !sandbox.names_itself() {
            return Ok(());
        }
        let endpoints = self.endpoints_of(sandbox.name())?;
        let connected = self.connected(sandbox.name())?;
        let own: Vec<&StoredEndpoint> = connected
            .iter()
            .filter_map(|it| endpoints.iter().find(|endpoint| endpoint.id == it.endpoint))
            .collect();
        let networks: Vec<NetworkId> = own.iter().map(|endpoint| endpoint.network).collect();
        let objects = networks.iter().filter_map(|id| self.network_object(*id));
        let objects: Vec<Network> = objects.map(|(network, _state)| network).collect();
        let upstreams = upstreams(&objects, sandbox.dns());
        let asks_host = upstreams == Upstreams::Host;
        let files = EtcFiles::of(&self.run_dir(), sandbox.name());
        let written = files.write(&self.etc(sandbox, &own, asks_host)).map_err(NamesError::from);
        let scope = || {
            let objects: Vec<Network> =
                networks.iter().filter_map(|id| self.network_of(*id)).collect();
            let rates = rates(&objects);
            Scope { networks, upstreams, rates }
        };
        let place = (sandbox.name(), sandbox.netns());
        Ok(self.host.name_servers.serve_sandbox(place, scope, written)?)
    }

    fn etc(&self, sandbox: &StoredSandbox, endpoints: &[&StoredEndpoint], asks_host: bool) -> Etc {
        let names = self.network_names();
        let search = endpoints.iter().filter_map(|endpoint| names.get(&endpoint.network)).cloned();
        let tables = &self.host.name_servers.names.snapshot().tables;
        let own = endpoints.iter().flat_map(|endpoint| {
            let network = names.get(&endpoint.network);
            let table = tables.get(&endpoint.network);
            let name = table.and_then(|table| table.called(endpoint.id)).unwrap_or(&endpoint.name);
            let ips = endpoint.ips.iter().map(IpNet::addr);
            ips.filter_map(move |ip| Some((ip, name.clone(), network?.clone())))
        });
        // Sandboxes of older agents have the host's.
        let here = || nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let host = sandbox.hostname().map_or_else(here, ToOwned::to_owned);
        let resolver = asks_host.then(|| self.host.name_servers.names.host_conf().as_ref().clone());
        let (search, added) = (search.collect(), sandbox.hosts().to_vec());
        Etc { search, own: own.collect(), added, resolver, host }
    }

    /// Serves every sandbox that is here and has no server: after a start, or where it could not be
    /// had. Writes the files of all anew if the host's changed.
    pub(super) fn name_sandboxes(&self) {
        // One that is just being removed has a row and no namespace; there is a next time.
        let Ok(_host) = self.hosted.try_lock() else { return };
        let anew =
            self.host.name_servers.is_resolver_new() | self.member.logged.conflicts.take_renamed();
        let names = &self.host.name_servers;
        if !anew && !names.is_owed() && !names.has_stale() {
            return;
        }
        self.host.name_servers.owe();
        let sandboxes = match self.sandbox_rows() {
            Ok(sandboxes) => sandboxes,
            Err(error) => return warn!(%error, "names are not served"),
        };
        let mut owed = false;
        for sandbox in sandboxes.iter() {
            let name = sandbox.name();
            // One that is being made is served by whoever makes it, by what was known then.
            if anew && sandbox.is_being_made() && sandbox.names_itself() {
                names.note_stale(name);
            }
            if !sandbox.has_process() || !sandbox.names_itself() {
                continue;
            }
            if names.serves(name) && !anew && !names.take_stale(name) {
                continue;
            }
            let served = self.name_sandbox(sandbox);
            owed |= served.is_err();
            match served {
                Ok(()) => self.host.name_servers.note_served(name),
                // It is being removed, or the host was started anew.
                Err(_gone) if Netns::open(sandbox.netns()).is_err() => {}
                Err(error) => self.host.name_servers.note_unserved(name, &error),
            }
        }
        names.keep_stale(|name| {
            sandboxes.iter().any(|sandbox| sandbox.name() == name && sandbox.is_being_made())
        });
        if !owed {
            self.host.name_servers.settle();
        }
    }
}
