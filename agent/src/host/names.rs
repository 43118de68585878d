//! Who answers questions about names on this host: a server for each sandbox, and one on each
//! gateway address of the networks that are here ([`NameServers`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use thiserror::Error;
use tracing::{info, warn};
use vxmesh_proto::{
    addr::{Name, NetworkId},
    dns::{NamedService, NamesTable, ResolvConf},
    object::{Network, NetworkLimits},
};

use crate::{
    dns::{Clients, Desk, IN_SANDBOX, Names, Rates, SERVERS, Scope, Server, Sockets, Upstreams},
    lock::lock,
    netlink::{
        netns::{Netns, NetnsError},
        overlay::Overlay,
    },
    reconcile::admit::Claims,
};

/// What systemd-resolved asks, and Docker where resolv.conf names that alone.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Why names are not served.
#[derive(Debug, Error)]
pub(crate) enum NamesError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A file cannot be written, or a socket cannot be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The servers of this host.
#[derive(Debug)]
pub(crate) struct NameServers {
    pub(crate) names: Arc<Names>,
    started: Instant,
    sandboxes: Mutex<BTreeMap<Name, Server>>,
    /// On the gateways of the networks that are here.
    gateways: Mutex<BTreeMap<NetworkId, Gateways>>,
    /// What the host's resolv.conf said when the sandboxes' files were written.
    resolver: Mutex<Option<Arc<ResolvConf>>>,
    /// Name servers that engines have asked since the agent's start.
    asked: Mutex<BTreeSet<IpAddr>>,
    /// Sandboxes that were being made when it changed: theirs may say something older.
    stale: Mutex<BTreeSet<Name>>,
    /// Sandboxes that could not be served, so that each is reported once.
    unserved: Mutex<BTreeSet<Name>>,
    /// Whether there may be a sandbox that is to be served and is not.
    owed: AtomicBool,
}

/// The servers on a network's gateway addresses.
#[derive(Debug)]
struct Gateways {
    netns: Netns,
    /// Where that is.
    path: PathBuf,
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
            asked: Mutex::default(),
            stale: Mutex::default(),
            unserved: Mutex::default(),
            owed: AtomicBool::new(true),
        }
    }
}

impl NameServers {
    /// The table of a network: the one that is there, or a new one if its claims, its name or its
    /// subnets changed.
    pub(crate) fn table(
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
    pub(crate) fn faults(&self) -> Vec<(NetworkId, PathBuf, IpAddr, String)> {
        let gateways = lock(&self.gateways);
        let of = |(id, one): (&NetworkId, &Gateways)| {
            let (id, path) = (*id, one.path.clone());
            let faults = one.faults.clone().into_iter();
            faults.map(move |(ip, fault)| (id, path.clone(), ip, fault)).collect::<Vec<_>>()
        };
        gateways.iter().flat_map(of).collect()
    }

    /// Makes a sandbox's server unless it has one; where it has, it follows `scope`. `files` says
    /// whether its files are written: there is no server without them.
    ///
    /// # Errors
    /// It has no files, or its namespace cannot be entered.
    pub(crate) fn serve_sandbox(
        &self,
        (sandbox, netns): (&Name, &Path),
        scope: impl FnOnce() -> Scope,
        files: Result<(), NamesError>,
    ) -> Result<(), NamesError> {
        let mut servers = lock(&self.sandboxes);
        // What they say now: whoever follows a change takes the lock, too.
        let scope = scope();
        if let Some(server) = servers.get(sandbox) {
            server.desk().set_scope(scope);
            return files;
        }
        files?;
        let netns = Netns::open(netns)?;
        let sockets = Sockets::open_in_sandbox(&netns)?;
        let desk = Desk::new(Arc::clone(&self.names), scope, Some(netns), Clients::one());
        servers.insert(sandbox.clone(), Server::start(sockets, desk)?);
        Ok(())
    }

    /// Serves a network's endpoints that are here on its gateway's addresses, for sandboxes that
    /// somebody else made.
    pub(crate) fn serve_network(&self, id: NetworkId, network: &Network, overlay: &Overlay) {
        let (netns, path) = (overlay.netns().clone(), overlay.path().to_owned());
        let (servers, faults) = (BTreeMap::new(), BTreeMap::new());
        let told = BTreeSet::new();
        let mut gateways = Gateways { netns, path, servers, faults, told };
        self.serve_gateways(id, network, &mut gateways);
        lock(&self.gateways).insert(id, gateways);
    }

    /// Has the servers on gateways and those of sandboxes follow their networks, which may have
    /// changed.
    pub(crate) fn follow_networks(&self, network_of: impl Fn(NetworkId) -> Option<Network>) {
        self.serve_networks(true, &network_of);
        for server in lock(&self.sandboxes).values() {
            let scope = server.desk().scope();
            let networks: Vec<Network> =
                scope.networks.iter().filter_map(|id| network_of(*id)).collect();
            let rates = rates(&networks);
            if scope.rates != rates {
                server.desk().set_scope(Scope { rates, ..(*scope).clone() });
            }
        }
    }

    /// Tries once more to serve the gateway addresses that are not served.
    pub(crate) fn retry_networks(&self, network_of: impl Fn(NetworkId) -> Option<Network>) {
        self.serve_networks(false, network_of);
    }

    fn serve_networks(&self, changed: bool, network_of: impl Fn(NetworkId) -> Option<Network>) {
        // With the lock held all the time, so that no network comes back that is just closed.
        for (id, gateways) in &mut *lock(&self.gateways) {
            if !changed && gateways.faults.is_empty() {
                continue;
            }
            if let Some(network) = network_of(*id) {
                self.serve_gateways(*id, &network, gateways);
            }
        }
    }

    fn serve_gateways(&self, id: NetworkId, network: &Network, gateways: &mut Gateways) {
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
                    let again = gateways.faults.insert(gateway, error.to_string()).is_some();
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
        netns: &Netns,
        gateway: IpAddr,
    ) -> io::Result<Server> {
        let sockets = Sockets::open(netns, (gateway, IN_SANDBOX.port()).into())?;
        let clients = Clients::of(cidrs(network));
        let scope = gateway_scope(id, network);
        let desk = Desk::new(Arc::clone(&self.names), scope, Some(netns.clone()), clients);
        Server::start(sockets, desk)
    }

    /// Whether the host's resolv.conf has changed since this was asked last.
    pub(crate) fn is_resolver_new(&self) -> bool {
        let conf = self.names.host_conf();
        let before = lock(&self.resolver).replace(Arc::clone(&conf));
        before.is_none_or(|before| before != conf)
    }

    /// Notes that the files of a sandbox that is being made may be older than what changed.
    pub(crate) fn note_stale(&self, sandbox: &Name) {
        lock(&self.stale).insert(sandbox.clone());
    }

    /// Whether there may be such a sandbox.
    pub(crate) fn has_stale(&self) -> bool {
        !lock(&self.stale).is_empty()
    }

    /// Whether this one was such, whose files are written now.
    pub(crate) fn take_stale(&self, sandbox: &Name) -> bool {
        lock(&self.stale).remove(sandbox)
    }

    /// Forgets all of them but those that are still being made.
    pub(crate) fn keep_stale(&self, is_being_made: impl Fn(&Name) -> bool) {
        lock(&self.stale).retain(is_being_made);
    }

    /// The name servers that engines of this host ask for their containers from within these: a
    /// container keeps those that the host had when it was started.
    pub(crate) fn of_engines(&self) -> Vec<IpAddr> {
        let mut asked = lock(&self.asked);
        asked.extend(self.of_engines_now());
        asked.iter().copied().collect()
    }

    fn of_engines_now(&self) -> Vec<IpAddr> {
        let of = |conf: &ResolvConf| -> Vec<IpAddr> {
            let ips = conf.servers.iter().map(SocketAddr::ip);
            ips.filter(|ip| !ip.is_loopback()).collect()
        };
        let servers = of(&self.names.host_conf());
        if !servers.is_empty() {
            return servers;
        }
        // Docker asks those of systemd-resolved directly, as containers do not reach it.
        let text = fs::read_to_string(RESOLVED).unwrap_or_default();
        of(&ResolvConf::parse(&text, "", |_zone| None))
    }

    /// Whether a sandbox has a server.
    pub(crate) fn serves(&self, sandbox: &Name) -> bool {
        lock(&self.sandboxes).contains_key(sandbox)
    }

    /// Whether there may be a sandbox that is to be served and is not.
    pub(crate) fn is_owed(&self) -> bool {
        self.owed.load(Ordering::Relaxed)
    }

    /// Notes that every sandbox is served that is to be.
    pub(crate) fn settle(&self) {
        self.owed.store(false, Ordering::Relaxed);
    }

    /// Says once that a sandbox that was not served is.
    pub(crate) fn note_served(&self, sandbox: &Name) {
        if lock(&self.unserved).remove(sandbox) {
            info!(%sandbox, "names are served again");
        }
    }

    /// Says once that a sandbox is not served.
    pub(crate) fn note_unserved(&self, sandbox: &Name, error: &impl Display) {
        if lock(&self.unserved).insert(sandbox.clone()) {
            warn!(%sandbox, %error, "names are not served; trying again");
        }
    }

    /// Since the start.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Has it tried again to serve every sandbox.
    pub(crate) fn owe(&self) {
        self.owed.store(true, Ordering::Relaxed);
    }

    /// Ends the servers of a network.
    pub(crate) fn close_network(&self, network: NetworkId) {
        lock(&self.gateways).remove(&network);
    }

    /// Ends the server of a sandbox.
    pub(crate) fn close(&self, sandbox: &Name) {
        lock(&self.sandboxes).remove(sandbox);
        lock(&self.unserved).remove(sandbox);
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
pub(crate) fn rates(networks: &[Network]) -> Rates {
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
pub(crate) fn upstreams(networks: &[Network], given: &[IpAddr]) -> Upstreams {
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
