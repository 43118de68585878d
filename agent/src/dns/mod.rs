//! Names for sandboxes: sockets, upstreams, files. What a name means is decided in `vxmesh_proto::dns`.
//!
//! ```text
//! reconcile ─> snapshot: one table of names per hosted network ─┐
//! sandbox   ─> scope: which networks, which upstreams ──────────┴─> view ─> server: reply, or forward
//! ```
//!
//! A [`Server`] answers on any pair of sockets and does not know where they are: at 127.0.0.11:53 inside a sandbox, or on a
//! network's gateway address.

mod clients;
mod etc;
mod forward;
mod resolvers;
mod server;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use vxmesh_proto::{
    addr::{Name, NetworkId},
    dns::{NamesTable, Query, View},
};

pub use self::{
    clients::Clients,
    etc::{Etc, EtcFiles},
    resolvers::SERVERS,
    server::Server,
    socket::{IN_SANDBOX, Sockets},
};
use self::{
    clients::Limits,
    forward::{Forwarder, Unanswered, Upstream},
};
use crate::{
    datapath::drops::{DropKey, Drops},
    netlink::netns::Netns,
};

/// All names that this host answers for, from one writer (I2).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The networks that are here.
    pub tables: BTreeMap<NetworkId, Arc<NamesTable>>,
    /// The names of all networks of the mesh.
    pub domains: Arc<BTreeSet<Name>>,
    /// Whether the tables are as complete as they get.
    pub settled: bool,
}

/// What all servers of an agent share.
#[derive(Debug, Default)]
pub struct Names {
    snapshot: ArcSwap<Snapshot>,
    forwarder: Forwarder,
    drops: Drops,
}

/// What the clients of one server may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Their networks, the first one first.
    pub networks: Vec<NetworkId>,
    /// Who answers for all other names.
    pub upstreams: Upstreams,
}

/// Who answers for names that are not ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Upstreams {
    /// Nobody.
    #[default]
    None,
    /// The host's name servers, as they change.
    Host,
    /// These, each with whether it is asked from inside the clients' namespace.
    Given(Vec<(IpAddr, bool)>),
}

/// Where the clients of one server ask.
#[derive(Debug)]
pub struct Desk {
    names: Arc<Names>,
    scope: ArcSwap<Scope>,
    /// The clients' namespace.
    inside: Option<Arc<Netns>>,
    clients: Clients,
}

impl Names {
    /// The newest tables.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Replaces the tables.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// Questions that were not answered, and why.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.drops
    }
}

impl Desk {
    /// A desk for clients that may see this.
    #[must_use]
    pub fn new(names: Arc<Names>, scope: Scope, inside: Option<Netns>, clients: Clients) -> Self {
        Self { names, scope: ArcSwap::from_pointee(scope), inside: inside.map(Arc::new), clients }
    }

    /// Changes what the clients may see.
    pub fn set_scope(&self, scope: Scope) {
        self.scope.store(Arc::new(scope));
    }

    /// Answers the clients of these subnets, too, if it tells clients apart.
    pub fn set_subnets(&self, subnets: Vec<IpNet>) {
        self.clients.follow(subnets);
    }

    /// What the clients see now.
    #[must_use]
    pub fn view(&self) -> View {
        let (snapshot, scope) = (self.names.snapshot.load(), self.scope.load());
        let tables = scope.networks.iter().filter_map(|id| snapshot.tables.get(id));
        View {
            networks: tables.cloned().collect(),
            domains: Arc::clone(&snapshot.domains),
            forwards: scope.upstreams != Upstreams::None,
            settled: snapshot.settled,
        }
    }

    /// What limits a client that may ask one more question; counted if it may not.
    fn admit(&self, client: IpAddr) -> Option<Arc<Limits>> {
        let now = Instant::now();
        let Some(limits) = self.clients.limits(client, now) else {
            self.count("dns_stranger");
            return None;
        };
        if limits.questions.take(now) {
            return Some(limits);
        }
        self.count("dns_rate");
        None
    }

    /// The reply to a question that is not ours to answer. It takes as long as the upstreams do.
    async fn forward(&self, query: Query, limits: &Limits) -> Vec<u8> {
        let failure = query.failure();
        if !limits.forwards.take(Instant::now()) {
            self.count("dns_forward_rate");
            return failure;
        }
        let Ok(_permit) = limits.under_way.try_acquire() else {
            self.count("dns_forwards_full");
            return failure;
        };
        let upstreams = self.upstreams();
        let foreign = |count| self.count_some("dns_foreign_answer", count);
        match self.names.forwarder.ask(query, &upstreams, foreign).await {
            Ok(reply) => reply,
            Err(Unanswered::Busy) => {
                self.count("dns_forwards_full");
                failure
            }
            Err(Unanswered::Failed) => {
                self.count("dns_upstream_failed");
                failure
            }
        }
    }

    fn upstreams(&self) -> Vec<Upstream> {
        match &self.scope.load().upstreams {
            Upstreams::None => Vec::new(),
            Upstreams::Host => self.names.forwarder.host(),
            Upstreams::Given(servers) => {
                let upstream = |(ip, inside): &(IpAddr, bool)| Upstream {
                    addr: resolvers::server_at(*ip),
                    inside: self.inside.clone().filter(|_| *inside),
                };
                servers.iter().map(upstream).collect()
            }
        }
    }

    fn count(&self, reason: &'static str) {
        self.count_some(reason, 1);
    }

    fn count_some(&self, reason: &'static str, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if count > 0 {
            let network = self.scope.load().networks.first().copied();
            self.names.drops.add(DropKey::of(reason).in_network(network), count);
        }
    }
}

#[cfg(test)]
mod tests;
