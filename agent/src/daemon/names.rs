//! Names as the mesh's keeper tends them: tables from believed claims, a server and files for each
//! sandbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tracing::{info, warn};
use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::{
    addr::{Name, NetworkId},
    dns::{NamedService, NamesTable, ResolvConf},
    object::{Content, Network, NetworkLimits, ObjectSet},
};

use super::{
    endpoints::Stored as StoredEndpoint,
    mesh::{Mesh, failed, lock},
    sandboxes::Stored as StoredSandbox,
};
use crate::{
    api::ApiError,
    dns::{
        Clients, Desk, Etc, EtcFiles, IN_SANDBOX, Names, Rates, SERVERS, Scope, Server, Snapshot,
        Sockets, Upstreams,
    },
    netlink::{netns::Netns, overlay::OverlayError},
    reconcile::admit::Claims,
};

/// The servers of this host.
#[derive(Debug)]
pub(super) struct NameServers {
    pub(super) names: Arc<Names>,
    started: Instant,
    sandboxes: Mutex<BTreeMap<Name, Server>>,
    /// On the gateways of the networks that are here.
    gateways: Mutex<BTreeMap<NetworkId, Gateways>>,
    /// What the host's resolv.conf said when the sandboxes' files were written.
    resolver: Mutex<Option<Arc<ResolvConf>>>,
    /// Sandboxes that could not be served, so that each is reported once.
    unserved: Mutex<BTreeSet<Name>>,
    /// Whether there may be a sandbox that is to be served and is not.
    owed: AtomicBool,
}

/// The servers on a network's gateway addresses.
#[derive(Debug)]
struct Gateways {
    netns: PathBuf,
    servers: BTreeMap<IpAddr, Server>,
    /// Addresses that could not be served, and why.
    faults: BTreeMap<IpAddr, String>,
    /// Those of which the log tells.
    told: BTreeSet<IpAddr>,
}

impl Default for NameServers {
    fn default() -> Self {
        Self {
            names: Arc::default(),
            started: Instant::now(),
            sandboxes: Mutex::default(),
            gateways: Mutex::default(),
            resolver: Mutex::default(),
            unserved: Mutex::default(),
            owed: AtomicBool::new(true),
        }
    }
}

impl NameServers {
    /// The table of a network: the one that is there, or a new one if its claims, its name or its
    /// subnets changed.
    pub(super) fn table(
        &self,
        (id, domain): (NetworkId, &Name),
        subnets: &[IpNet],
        services: &[NamedService],
        claims: &Claims,
        unchanged: bool,
    ) -> Arc<NamesTable> {
        let there = self.names.snapshot().tables.get(&id).cloned();
        let same = |table: &Arc<NamesTable>| {
            unchanged && table.domain() == domain && table.subnets() == subnets
        };
        let same = there.filter(same).and_then(|table| {
            if table.services() == services {
                return Some(table);
            }
            table.following(services).map(Arc::new)
        });
        same.unwrap_or_else(|| {
            let names = NamesTable::new(id, domain.clone(), subnets.to_vec(), claims);
            Arc::new(names.with_services(services))
        })
    }

    /// Gateway addresses on which names are not served: the network, its namespace, and why.
    pub(super) fn faults(&self) -> Vec<(NetworkId, PathBuf, IpAddr, String)> {
        let gateways = lock(&self.gateways);
        let of = |(id, one): (&NetworkId, &Gateways)| {
            let (id, netns) = (*id, one.netns.clone());
            let faults = one.faults.clone().into_iter();
            faults.map(move |(ip, fault)| (id, netns.clone(), ip, fault)).collect::<Vec<_>>()
        };
        gateways.iter().flat_map(of).collect()
    }

    /// Since the start.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Has it tried again to serve every sandbox.
    pub(super) fn owe(&self) {
        self.owed.store(true, Ordering::Relaxed);
    }

    /// Ends the servers of a network.
    pub(super) fn close_network(&self, network: NetworkId) {
        lock(&self.gateways).remove(&network);
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
        self.report_conflicts(&tables);
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
        let cannot = |error| failed(format!("names cannot be served: {error}"), "try again");
        let networks: Vec<NetworkId> = own.iter().map(|endpoint| endpoint.network).collect();
        let objects = networks.iter().filter_map(|id| self.network_object(*id));
        let objects: Vec<Network> = objects.map(|(network, _state)| network).collect();
        let upstreams = upstreams(&objects, sandbox.dns());
        let asks_host = upstreams == Upstreams::Host;
        let files = EtcFiles::of(&self.run_dir(), sandbox.name());
        let written = files.write(&self.etc(sandbox, &own, asks_host)).map_err(cannot);
        let mut servers = lock(&self.name_servers.sandboxes);
        // What they say now: whoever follows a change takes the lock, too.
        let objects: Vec<Network> = networks.iter().filter_map(|id| self.network_of(*id)).collect();
        let scope = Scope { networks, upstreams, rates: rates(&objects) };
        if let Some(server) = servers.get(sandbox.name()) {
            server.desk().set_scope(scope);
            return written;
        }
        written?;
        let netns = Netns::open(sandbox.netns()).map_err(OverlayError::from)?;
        let sockets = Sockets::open_in_sandbox(&netns).map_err(cannot)?;
        let desk =
            Desk::new(Arc::clone(&self.name_servers.names), scope, Some(netns), Clients::one());
        let server = Server::start(sockets, desk).map_err(cannot)?;
        servers.insert(sandbox.name().clone(), server);
        Ok(())
    }

    /// Serves a network's endpoints that are here on its gateway's addresses, for sandboxes that
    /// somebody else made.
    pub(super) fn name_network(&self, id: NetworkId, network: &Network, netns: &Path) {
        let (servers, faults) = (BTreeMap::new(), BTreeMap::new());
        let told = BTreeSet::new();
        let mut gateways = Gateways { netns: netns.to_owned(), servers, faults, told };
        self.name_gateways_of(id, network, &mut gateways);
        lock(&self.name_servers.gateways).insert(id, gateways);
    }

    /// Tries once more to serve the gateway addresses that are not served, and, where objects
    /// changed, has those that are follow their networks.
    pub(super) fn name_gateways(&self, changed: bool) {
        // With the lock held all the time, so that no network comes back that is just closed.
        for (id, gateways) in &mut *lock(&self.name_servers.gateways) {
            if !changed && gateways.faults.is_empty() {
                continue;
            }
            if let Some(network) = self.network_of(*id) {
                self.name_gateways_of(*id, &network, gateways);
            }
        }
    }

    /// Has the servers of sandboxes allow as much as their networks say now.
    pub(super) fn rate_sandboxes(&self) {
        for server in lock(&self.name_servers.sandboxes).values() {
            let scope = server.desk().scope();
            let networks: Vec<Network> =
                scope.networks.iter().filter_map(|id| self.network_of(*id)).collect();
            let rates = rates(&networks);
            if scope.rates != rates {
                server.desk().set_scope(Scope { rates, ..(*scope).clone() });
            }
        }
    }

    fn name_gateways_of(&self, id: NetworkId, network: &Network, gateways: &mut Gateways) {
        for gateway in network.subnets.iter().map(|subnet| subnet.gateway) {
            if let Some(server) = gateways.servers.get(&gateway) {
                server.desk().set_scope(gateway_scope(id, network));
                server.desk().set_subnets(cidrs(network));
                continue;
            }
            match self.serve_gateway(id, network, &gateways.netns, gateway) {
                Ok(server) => {
                    gateways.servers.insert(gateway, server);
                    gateways.faults.remove(&gateway);
                    if gateways.told.remove(&gateway) {
                        info!(network = %network.name, %gateway, "names are served on the gateway");
                    }
                }
                Err(error) => {
                    // The bridge may get its address at this moment, when the node gets one itself.
                    let again = gateways.faults.insert(gateway, error.message.clone()).is_some();
                    if again && gateways.told.insert(gateway) {
                        warn!(network = %network.name, %gateway, %error, "names are not served on the gateway; trying again");
                    }
                }
            }
        }
    }

    fn serve_gateway(
        &self,
        id: NetworkId,
        network: &Network,
        netns: &Path,
        gateway: IpAddr,
    ) -> Result<Server, ApiError> {
        let netns = Netns::open(netns).map_err(OverlayError::from)?;
        let cannot = |error| failed(error, "see `vxmesh doctor`");
        let sockets = Sockets::open(&netns, (gateway, IN_SANDBOX.port()).into()).map_err(cannot)?;
        let names = Arc::clone(&self.name_servers.names);
        let clients = Clients::of(cidrs(network));
        let desk = Desk::new(names, gateway_scope(id, network), Some(netns), clients);
        Server::start(sockets, desk).map_err(cannot)
    }

    fn etc(&self, sandbox: &StoredSandbox, endpoints: &[&StoredEndpoint], asks_host: bool) -> Etc {
        let names = self.network_names();
        let search = endpoints.iter().filter_map(|endpoint| names.get(&endpoint.network)).cloned();
        let tables = &self.name_servers.names.snapshot().tables;
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
        let resolver = asks_host.then(|| self.name_servers.names.host_conf().as_ref().clone());
        let (search, added) = (search.collect(), sandbox.hosts().to_vec());
        Etc { search, own: own.collect(), added, resolver, host }
    }

    /// Whether the host's resolv.conf has changed since this was asked last.
    fn is_resolver_new(&self) -> bool {
        let conf = self.name_servers.names.host_conf();
        let before = lock(&self.name_servers.resolver).replace(Arc::clone(&conf));
        before.is_some_and(|before| before != conf)
    }

    /// Serves every sandbox that is here and has no server: after a start, or where it could not be
    /// had. Writes the files of all anew if the host's changed.
    pub(super) fn name_sandboxes(&self) {
        // One that is just being removed has a row and no namespace; there is a next time.
        let Ok(_host) = self.host.try_lock() else { return };
        let anew = self.is_resolver_new() | self.were_renamed();
        if !anew && !self.name_servers.owed.load(Ordering::Relaxed) {
            return;
        }
        self.name_servers.owe();
        let sandboxes = match self.sandbox_rows() {
            Ok(sandboxes) => sandboxes,
            Err(error) => return warn!(%error, "names are not served"),
        };
        let mut owed = false;
        for sandbox in sandboxes.iter() {
            let served = lock(&self.name_servers.sandboxes).contains_key(sandbox.name());
            // One that is being made is served by whoever makes it.
            if !sandbox.has_process() || !sandbox.names_itself() || (served && !anew) {
                continue;
            }
            let served = self.name_sandbox(sandbox);
            owed |= served.is_err();
            let mut unserved = lock(&self.name_servers.unserved);
            match served {
                Ok(()) if unserved.remove(sandbox.name()) => {
                    info!(sandbox = %sandbox.name(), "names are served again");
                }
                Ok(()) => {}
                // It is being removed, or the host was started anew.
                Err(_gone) if Netns::open(sandbox.netns()).is_err() => {}
                Err(error) if unserved.insert(sandbox.name().clone()) => {
                    warn!(sandbox = %sandbox.name(), %error, "names are not served; trying again");
                }
                Err(_told) => {}
            }
        }
        self.name_servers.owed.store(owed, Ordering::Relaxed);
    }
}

fn cidrs(network: &Network) -> Vec<IpNet> {
    network.subnets.iter().map(|subnet| subnet.cidr).collect()
}

/// What whoever asks a network's gateway may see.
fn gateway_scope(id: NetworkId, network: &Network) -> Scope {
    let only = std::slice::from_ref(network);
    Scope { networks: vec![id], upstreams: upstreams(only, &[]), rates: rates(only) }
}

/// How much a client in all these networks may ask: as much as in one of them.
fn rates(networks: &[Network]) -> Rates {
    let most = |of: fn(NetworkLimits) -> u32| networks.iter().map(|it| of(it.limits)).max();
    let default = Rates::default();
    Rates {
        questions: most(NetworkLimits::dns).unwrap_or(default.questions),
        forwards: most(NetworkLimits::dns_forward).unwrap_or(default.forwards),
    }
}

/// Who answers a sandbox of these networks: those that the user gave it, else those of the
/// networks, else the host's. A server that is itself in one of the networks is asked there; from
/// internal networks no other one is.
fn upstreams(networks: &[Network], given: &[IpAddr]) -> Upstreams {
    let servers: Vec<IpAddr> = match given {
        [] => networks.iter().flat_map(|network| network.dns.iter().copied()).collect(),
        given => given.to_vec(),
    };
    let internal = networks.iter().all(|network| network.internal);
    if servers.is_empty() {
        return if internal { Upstreams::None } else { Upstreams::Host };
    }
    let is_inside = |ip: &IpAddr| {
        networks.iter().flat_map(|network| &network.subnets).any(|subnet| subnet.cidr.contains(ip))
    };
    let servers = servers.into_iter().map(|ip| (ip, is_inside(&ip)));
    let mut servers: Vec<_> = servers.filter(|(_, inside)| *inside || !internal).collect();
    servers.truncate(SERVERS);
    if servers.is_empty() { Upstreams::None } else { Upstreams::Given(servers) }
}

#[cfg(test)]
mod tests {
    use vxmesh_proto::{
        addr::{NodeId, Vni},
        object::Subnet,
    };

    use super::*;

    fn network(cidr: &str, internal: bool, dns: &[&str]) -> Network {
        let cidr: IpNet = cidr.parse().unwrap();
        Network {
            name: "n".parse().unwrap(),
            creator: NodeId::of_public_key(b"me"),
            driver: "overlay".parse().unwrap(),
            vni: Vni::MAX,
            encrypted: true,
            vteps: Vec::new(),
            mtu: 1390,
            subnets: vec![Subnet::whole(cidr, cidr.addr())],
            internal,
            isolated: false,
            limits: Default::default(),
            dns: dns.iter().map(|ip| ip.parse().unwrap()).collect(),
            labels: BTreeMap::new(),
            blocks: Vec::new(),
        }
    }

    #[test]
    fn what_internal_networks_ask_stays_inside() {
        let open = network("10.1.0.0/16", false, &[]);
        let closed = network("10.2.0.0/16", true, &["10.2.0.53", "192.0.2.1"]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let given = |servers: &[(&str, bool)]| {
            Upstreams::Given(servers.iter().map(|(text, inside)| (ip(text), *inside)).collect())
        };
        for (networks, asked, wanted) in [
            ([&open].as_slice(), [].as_slice(), Upstreams::Host),
            (&[&network("10.3.0.0/16", true, &[])], &[], Upstreams::None),
            (&[&closed], &[], given(&[("10.2.0.53", true)])),
            (&[&closed], &[ip("192.0.2.9")], Upstreams::None),
            // Whoever is in an open network, too, has a way out.
            (&[&closed, &open], &[], given(&[("10.2.0.53", true), ("192.0.2.1", false)])),
            (
                &[&open],
                &[ip("192.0.2.9"), ip("10.1.0.9")],
                given(&[("192.0.2.9", false), ("10.1.0.9", true)]),
            ),
        ] {
            let networks: Vec<Network> =
                networks.iter().map(|network| (*network).clone()).collect();
            assert_eq!(upstreams(&networks, asked), wanted, "{networks:?} {asked:?}");
        }
    }
}
