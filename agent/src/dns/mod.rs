//! Names for sandboxes: sockets, upstreams, files. What a name means is decided in
//! `vxmesh_proto::dns`.
//!
//! ```text
//! reconcile ─> snapshot: one table of names per hosted network ─┐
//! sandbox   ─> scope: which networks, which upstreams ──────────┴─> view ─> server: reply, or forward
//! ```
//!
//! A [`Server`] answers on any pair of sockets and does not know where they are: inside a sandbox,
//! where whoever asks 127.0.0.11:53 comes to them, or on a network's gateway address.

pub(crate) mod clients;
mod edns;
mod etc;
mod forward;
mod resolvers;
mod server;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::{sync::watch, time::timeout};
use vxmesh_proto::{
    addr::{Name, NetworkId},
    dns::{HostOptions, NamesTable, Query, ResolvConf, Step, Turns, View, decide},
    reason::DropReason,
};

use self::{
    clients::Limits,
    forward::{Forwarder, Panel, Unanswered, Upstream},
};
pub use self::{
    clients::{Clients, Rates},
    etc::{ETC_FILES, Etc, EtcFiles},
    resolvers::SERVERS,
    server::Server,
    socket::{IN_SANDBOX, Sockets},
};
use crate::{
    datapath::drops::{DropKey, Drops},
    netlink::netns::Netns,
};

/// How long a question waits until it is known whether there is such a name. musl asks again after
/// 2.5 seconds, and takes five over a SERVFAIL.
const WAIT: Duration = Duration::from_secs(2);

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
    /// Told of each new snapshot.
    published: watch::Sender<()>,
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
    /// How much each client may ask.
    pub rates: Rates,
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

/// Whether a question is heard.
enum Admission {
    /// Within these limits.
    Granted(Arc<Limits>),
    /// No: the client asks too much, and is told.
    Refused,
    /// No, and nobody is told.
    Ignored,
}

/// Where the clients of one server ask.
#[derive(Debug)]
pub struct Desk {
    names: Arc<Names>,
    scope: ArcSwap<Scope>,
    /// The clients' namespace.
    inside: Option<Netns>,
    clients: Clients,
    turns: Mutex<Turns>,
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
        self.published.send_replace(());
    }

    /// What the host's resolv.conf says.
    #[must_use]
    pub fn host_conf(&self) -> Arc<ResolvConf> {
        self.forwarder.host_conf()
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
        let scope = ArcSwap::from_pointee(scope);
        Self { names, scope, inside, clients, turns: Mutex::default() }
    }

    /// What the clients may see.
    #[must_use]
    pub fn scope(&self) -> Arc<Scope> {
        self.scope.load_full()
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

    /// Whose turn it is where several have the name that is asked for.
    fn turn(&self, query: &Query) -> u64 {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.take(query.host_name().unwrap_or_default(), query.kind(), rand::random())
    }

    /// Whether a client may ask one more question; counted if it may not. Only who asks too much is
    /// told so, or not answered.
    fn admit(&self, client: IpAddr) -> Admission {
        let now = Instant::now();
        let Some(limits) = self.clients.limits(client, self.scope.load().rates, now) else {
            self.count(DropReason::DnsStranger);
            return Admission::Ignored;
        };
        if limits.questions.take(now) {
            return Admission::Granted(limits);
        }
        self.count(DropReason::DnsRate);
        if limits.refusals.take(now) { Admission::Refused } else { Admission::Ignored }
    }

    /// The reply to a question that cannot be answered at once. A client has so many of them under
    /// way, whatever they wait for.
    async fn reply_later(&self, query: Query, limits: &Limits) -> Vec<u8> {
        let failure = query.failure();
        let Ok(_permit) = limits.under_way.try_acquire() else {
            self.count(DropReason::DnsForwardsFull);
            return failure;
        };
        match timeout(WAIT, self.known(query)).await {
            Ok(Step::Reply(reply)) => reply,
            Ok(Step::Forward(query)) => self.forward(*query, limits).await,
            Ok(Step::Refuse(fault)) => {
                self.count(fault.reason);
                fault.reply.unwrap_or_default()
            }
            Ok(Step::Wait(_)) | Err(_) => failure,
        }
    }

    /// What is to be done with a question, once that can be said.
    async fn known(&self, mut query: Query) -> Step {
        let mut published = self.names.published.subscribe();
        loop {
            match decide(&self.view(), query, |query| self.turn(query)) {
                Step::Wait(early) => query = *early,
                step => return step,
            }
            // The sender lives as long as the names.
            let _told = published.changed().await;
        }
    }

    /// The reply to a question that is not ours to answer. It takes as long as the upstreams do.
    async fn forward(&self, query: Query, limits: &Limits) -> Vec<u8> {
        let failure = query.failure();
        let panel = self.panel();
        if let Some(reply) = self.names.forwarder.recall(&query, &panel) {
            return reply;
        }
        if !limits.forwards.take(Instant::now()) {
            self.count(DropReason::DnsForwardRate);
            return failure;
        }
        let foreign = |count| self.count_some(DropReason::DnsForeignAnswer, count);
        match self.names.forwarder.ask(query, &panel, limits, foreign).await {
            Ok(reply) => reply,
            Err(Unanswered::Busy) => {
                self.count(DropReason::DnsForwardsFull);
                failure
            }
            Err(Unanswered::Failed) => {
                self.count(DropReason::DnsUpstreamFailed);
                failure
            }
        }
    }

    fn panel(&self) -> Panel {
        match &self.scope.load().upstreams {
            Upstreams::None => Panel::default(),
            Upstreams::Host => self.names.forwarder.host(),
            Upstreams::Given(servers) => {
                let upstream = |(ip, inside): &(IpAddr, bool)| Upstream {
                    addr: resolvers::server_at(*ip),
                    inside: self.inside.clone().filter(|_| *inside),
                };
                let upstreams = servers.iter().map(upstream).collect();
                Panel { upstreams, options: HostOptions::default() }
            }
        }
    }

    fn count(&self, reason: DropReason) {
        self.count_some(reason, 1);
    }

    fn count_some(&self, reason: DropReason, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if count > 0 {
            let network = self.scope.load().networks.first().copied();
            self.names.drops.add(DropKey::of(reason).in_network(network), count);
        }
    }
}

#[cfg(test)]
mod tests;
