//! The names of one network: an immutable snapshot that is made anew when a claim changes (I2).
//!
//! Several endpoints may have one alias. A name is one endpoint's: where two were given it at the
//! same time, on both sides of a partition for instance, the older one has it, and the other is
//! found by its id. An id never hides a name. A service is found like an endpoint that has its
//! addresses, and shares its name with nobody, by an alias neither.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{NamedBackend, NamedService};
use crate::{
    addr::{Alias, EndpointId, Name, NetworkId},
    object::holder,
    record::EndpointClaim,
    tables::RowKey,
};

/// An endpoint as its names lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// Who hosts it, and its id.
    pub key: RowKey,
    /// Its own name, or its short id where an older endpoint has that; its addresses lead back to
    /// it.
    pub name: Name,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    incarnation: u64,
}

impl NamedEndpoint {
    fn name_by_id(&mut self) {
        // Hexadecimal digits are a name.
        if let Ok(short) = self.key.endpoint.short().parse() {
            self.name = short;
        }
    }
}

/// The names of one network.
#[derive(Clone, Debug)]
pub struct NamesTable {
    pub(super) index: Arc<Index>,
    /// In the order of their places in the index.
    services: Vec<NamedService>,
}

/// What the names lead to. It stays while backends of services come, fail and recover.
#[derive(Clone, Debug)]
pub(super) struct Index {
    network: NetworkId,
    domain: Name,
    subnets: Vec<IpNet>,
    /// All endpoints, and then all services.
    endpoints: Vec<NamedEndpoint>,
    names: BTreeMap<Box<str>, Vec<usize>>,
    addresses: BTreeMap<IpAddr, usize>,
    rivals: Vec<Rival>,
    first_service: usize,
}

/// An endpoint or a service whose name an older one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// The name.
    pub name: Name,
    /// The younger one, which is found by its id.
    pub key: RowKey,
    /// The one that has the name.
    pub holder: RowKey,
    /// Whether one of them is a service.
    pub with_service: bool,
}

/// Whether a service that was made then has its name, where endpoints were given it at these times
/// (their incarnations), as their names or as aliases. In Unix milliseconds.
#[must_use]
pub fn has_name(created: u64, given: impl IntoIterator<Item = u64>) -> bool {
    given.into_iter().all(|given| given > created)
}

impl NamesTable {
    /// The names that these claims make.
    pub fn new<'a>(
        network: NetworkId,
        domain: Name,
        subnets: Vec<IpNet>,
        claims: impl IntoIterator<Item = (&'a RowKey, &'a EndpointClaim)>,
    ) -> Self {
        let mut index = Index {
            network,
            domain,
            subnets,
            endpoints: Vec::new(),
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
            rivals: Vec::new(),
            first_service: 0,
        };
        index.add_all(claims);
        Self { index: Arc::new(index), services: Vec::new() }
    }

    /// The same with the services of the network. Where endpoints were given the name of one at the
    /// same time, the older has it, and the other is found by its id.
    #[must_use]
    pub fn with_services(mut self, services: &[NamedService]) -> Self {
        Arc::make_mut(&mut self.index).add_services(services);
        self.services = services.to_vec();
        self
    }

    /// The same names with what their services are by now; nothing if services came or went.
    #[must_use]
    pub fn following(&self, services: &[NamedService]) -> Option<Self> {
        let mut pairs = self.services.iter().zip(services);
        let same = self.services.len() == services.len()
            && pairs.all(|(before, now)| before.is_named_as(now));
        same.then(|| Self { index: Arc::clone(&self.index), services: services.to_vec() })
    }

    /// The services, as they were given.
    #[must_use]
    pub fn services(&self) -> &[NamedService] {
        &self.services
    }

    /// The service that has this name, or this short id.
    pub(super) fn service(&self, name: &str) -> Option<&NamedService> {
        let [at] = self.index.names.get(name)?.as_slice() else { return None };
        self.services.get(at.checked_sub(self.index.first_service)?)
    }

    /// What leads to a backend and to nobody else: its name, or its short id where others have the
    /// name as an alias, or where it would be read as more than a name.
    pub(super) fn unshared_name(&self, backend: &NamedBackend) -> String {
        let at = backend.ips.first().and_then(|ip| self.index.addresses.get(ip));
        let name = at.and_then(|at| self.index.own_name(*at, backend.key));
        let is_plain = |name: &&str| !["tasks", "all"].contains(name);
        name.filter(is_plain).map_or_else(|| backend.key.endpoint.short(), str::to_owned)
    }

    /// What an endpoint is called: its name, or its short id where an older one has that.
    #[must_use]
    pub fn called(&self, id: EndpointId) -> Option<&Name> {
        let endpoint = self.index.endpoints.iter().find(|endpoint| endpoint.key.endpoint == id);
        endpoint.map(|endpoint| &endpoint.name)
    }

    /// The endpoints and services whose names older ones have.
    #[must_use]
    pub fn rivals(&self) -> &[Rival] {
        &self.index.rivals
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.index.network
    }

    /// The network's name, under which its endpoints' names are found from everywhere.
    #[must_use]
    pub fn domain(&self) -> &Name {
        &self.index.domain
    }

    /// The network's subnets.
    #[must_use]
    pub fn subnets(&self) -> &[IpNet] {
        &self.index.subnets
    }

    /// The endpoints that have this name, in lower case and without the network's.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Vec<&NamedEndpoint>> {
        let holders = self.index.names.get(name)?;
        Some(holders.iter().filter_map(|at| self.index.endpoints.get(*at)).collect())
    }

    /// The endpoint that has this address.
    #[must_use]
    pub fn at(&self, ip: IpAddr) -> Option<&NamedEndpoint> {
        self.index.endpoints.get(*self.index.addresses.get(&ip)?)
    }

    /// Whether these addresses belong to the network, in use or not.
    #[must_use]
    pub fn contains(&self, prefix: &IpNet) -> bool {
        self.index.subnets.iter().any(|subnet| subnet.contains(prefix))
    }

    /// How many endpoints have names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.endpoints.len()
    }

    /// Whether nobody has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.endpoints.is_empty()
    }
}

impl Index {
    fn add_all<'a>(&mut self, claims: impl IntoIterator<Item = (&'a RowKey, &'a EndpointClaim)>) {
        let (mut holders, mut younger) = (BTreeMap::<&Name, usize>::new(), Vec::new());
        // A node's own endpoint has a name for its rows in lists; users call it by address.
        for (key, claim) in claims.into_iter().filter(|(_key, claim)| !claim.router) {
            let at = self.add(*key, claim);
            match holders.entry(&claim.name) {
                Entry::Vacant(entry) => {
                    entry.insert(at);
                }
                Entry::Occupied(mut entry) => {
                    let other = *entry.get();
                    let is_older = self.rank(at) < self.rank(other);
                    younger.push((&claim.name, if is_older { other } else { at }));
                    if is_older {
                        entry.insert(at);
                    }
                }
            }
        }
        for (name, at) in younger {
            self.rename(name, at, holders.get(name).copied());
        }
        for (name, at) in holders {
            let all = self.names.entry(name.as_str().into()).or_default();
            // Its name may stand among its aliases, too.
            if !all.contains(&at) {
                all.push(at);
            }
        }
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let short = endpoint.key.endpoint.short().into_boxed_str();
            self.names.entry(short).or_insert_with(|| vec![at]);
        }
        self.first_service = self.endpoints.len();
    }

    fn add_services(&mut self, services: &[NamedService]) {
        for NamedService { id, name, vips, created, .. } in services {
            let at = self.endpoints.len();
            let endpoint = EndpointId::from_random(*id.bytes());
            let key = RowKey { node: holder(*id), endpoint };
            let (own, ips) = (name.clone(), vips.clone());
            self.endpoints.push(NamedEndpoint { key, name: own, ips, incarnation: *created });
            self.settle_name(name, at, *created);
            self.names.entry(endpoint.short().into()).or_insert_with(|| vec![at]);
            for ip in vips {
                self.addresses.entry(*ip).or_insert(at);
            }
        }
    }

    /// Gives a service its name, unless endpoints had it before.
    fn settle_name(&mut self, name: &Name, service: usize, created: u64) {
        let holders = self.names.get(name.as_str()).cloned().unwrap_or_default();
        let given = holders.iter().filter_map(|at| self.rank(*at));
        if !has_name(created, given.clone().map(|(incarnation, _)| incarnation)) {
            let oldest = given.min().map(|(_, key)| key);
            let key = self.endpoints.get(service).map(|endpoint| endpoint.key);
            if let (Some(key), Some(holder)) = (key, oldest) {
                self.rivals.push(Rival { name: name.clone(), key, holder, with_service: true });
            }
            return;
        }
        self.names.insert(name.as_str().into(), vec![service]);
        let Some(holder) = self.endpoints.get(service).map(|service| service.key) else { return };
        for at in holders {
            let Some(endpoint) = self.endpoints.get_mut(at) else { continue };
            let key = endpoint.key;
            if endpoint.name == *name {
                endpoint.name_by_id();
            }
            self.rivals.push(Rival { name: name.clone(), key, holder, with_service: true });
        }
    }

    /// The name of this endpoint here, if nobody else has it.
    fn own_name(&self, at: usize, key: RowKey) -> Option<&str> {
        let endpoint = self.endpoints.get(at).filter(|endpoint| endpoint.key == key)?;
        let name = endpoint.name.as_str();
        (self.names.get(name)?.as_slice() == [at]).then_some(name)
    }

    /// As the data path decides about addresses: the smallest has it.
    fn rank(&self, at: usize) -> Option<(u64, RowKey)> {
        self.endpoints.get(at).map(|endpoint| (endpoint.incarnation, endpoint.key))
    }

    /// Calls the younger of two of one name by its id.
    fn rename(&mut self, name: &Name, at: usize, holder: Option<usize>) {
        let holder = holder.and_then(|at| self.endpoints.get(at)).map(|holder| holder.key);
        let (Some(endpoint), Some(holder)) = (self.endpoints.get_mut(at), holder) else { return };
        endpoint.name_by_id();
        let key = endpoint.key;
        self.rivals.push(Rival { name: name.clone(), key, holder, with_service: false });
    }

    fn add(&mut self, key: RowKey, claim: &EndpointClaim) -> usize {
        let at = self.endpoints.len();
        for name in claim.aliases.iter().map(Alias::as_str) {
            let holders = self.names.entry(name.into()).or_default();
            if holders.last() != Some(&at) {
                holders.push(at);
            }
        }
        let endpoint = NamedEndpoint {
            key,
            name: claim.name.clone(),
            ips: claim.ips.clone(),
            incarnation: claim.incarnation,
        };
        for ip in &claim.ips {
            match self.addresses.entry(*ip) {
                Entry::Vacant(entry) => {
                    entry.insert(at);
                }
                // As the data path decides: the smaller rank has it.
                Entry::Occupied(mut entry) => {
                    let holder = self.endpoints.get(*entry.get());
                    let rank = (claim.incarnation, key);
                    if holder.is_some_and(|holder| (holder.incarnation, holder.key) > rank) {
                        entry.insert(at);
                    }
                }
            }
        }
        self.endpoints.push(endpoint);
        at
    }
}
