//! The names of one network: an immutable snapshot that is made anew when a claim changes (I2).
//!
//! Several endpoints may have one name: aliases are shared on purpose, and two sides of a partition may have named
//! endpoints alike. An id never hides a name.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    addr::{Alias, Name, NetworkId},
    record::EndpointClaim,
    tables::RowKey,
};

/// An endpoint as its names lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// Who hosts it, and its id.
    pub key: RowKey,
    /// Its own name, which is what its addresses lead back to.
    pub name: Name,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    incarnation: u64,
}

/// The names of one network.
#[derive(Clone, Debug)]
pub struct NamesTable {
    network: NetworkId,
    domain: Name,
    subnets: Vec<IpNet>,
    endpoints: Vec<NamedEndpoint>,
    names: BTreeMap<Box<str>, Vec<usize>>,
    addresses: BTreeMap<IpAddr, usize>,
}

impl NamesTable {
    /// The names that these claims make.
    pub fn new<'a>(
        network: NetworkId,
        domain: Name,
        subnets: Vec<IpNet>,
        claims: impl IntoIterator<Item = (&'a RowKey, &'a EndpointClaim)>,
    ) -> Self {
        let mut table = Self {
            network,
            domain,
            subnets,
            endpoints: Vec::new(),
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
        };
        // A node's own endpoint has a name for its rows in lists; users call it by address.
        for (key, claim) in claims.into_iter().filter(|(_key, claim)| !claim.router) {
            table.add(*key, claim);
        }
        for (at, endpoint) in table.endpoints.iter().enumerate() {
            let short = endpoint.key.endpoint.short().into_boxed_str();
            table.names.entry(short).or_insert_with(|| vec![at]);
        }
        table
    }

    fn add(&mut self, key: RowKey, claim: &EndpointClaim) {
        let at = self.endpoints.len();
        let aliases = claim.aliases.iter().map(Alias::as_str);
        for name in [claim.name.as_str()].into_iter().chain(aliases) {
            let holders = self.names.entry(name.into()).or_default();
            // Its name may stand among its aliases, too.
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
    }

    /// The network.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// The network's name, under which its endpoints' names are found from everywhere.
    #[must_use]
    pub const fn domain(&self) -> &Name {
        &self.domain
    }

    /// The network's subnets.
    #[must_use]
    pub fn subnets(&self) -> &[IpNet] {
        &self.subnets
    }

    /// The endpoints that have this name, in lower case and without the network's.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Vec<&NamedEndpoint>> {
        let holders = self.names.get(name)?;
        Some(holders.iter().filter_map(|at| self.endpoints.get(*at)).collect())
    }

    /// The endpoint that has this address.
    #[must_use]
    pub fn at(&self, ip: IpAddr) -> Option<&NamedEndpoint> {
        self.endpoints.get(*self.addresses.get(&ip)?)
    }

    /// Whether these addresses belong to the network, in use or not.
    #[must_use]
    pub fn contains(&self, prefix: &IpNet) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(prefix))
    }

    /// How many endpoints have names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether nobody has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }
}
