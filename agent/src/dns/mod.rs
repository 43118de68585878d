//! Names for sandboxes: sockets, upstreams, files. What a name means is decided in `vxmesh_proto::dns`.
//!
//! ```text
//! reconcile ─> snapshot: one table of names per hosted network ─┐
//! sandbox   ─> scope: which networks, which upstreams ──────────┴─> view ─> server: reply, or forward
//! ```
//!
//! A [`Server`] answers on any pair of sockets and does not know where they are: at 127.0.0.11:53 inside a sandbox, or on a
//! network's gateway address.

mod etc;
mod server;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use vxmesh_proto::{
    addr::{Name, NetworkId},
    dns::{NamesTable, View},
    tables::TokenBucket,
};

pub use self::{
    etc::{Etc, EtcFiles},
    server::Server,
    socket::{IN_SANDBOX, Sockets},
};
use crate::datapath::drops::{DropKey, Drops};

/// Questions that one server answers in a second: a tenth of what one core can.
const PER_SECOND: u32 = 10_000;
/// How many may come at once: every process of a busy sandbox starts at the same time.
const BURST: u32 = 2_000;

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
    drops: Drops,
}

/// What the clients of one server may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Their networks, the first one first.
    pub networks: Vec<NetworkId>,
}

/// Where the clients of one server ask.
#[derive(Debug)]
pub struct Desk {
    names: Arc<Names>,
    scope: ArcSwap<Scope>,
    bucket: TokenBucket,
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
    pub fn new(names: Arc<Names>, scope: Scope) -> Self {
        let bucket = TokenBucket::new(PER_SECOND, BURST, Instant::now());
        Self { names, scope: ArcSwap::from_pointee(scope), bucket }
    }

    /// Changes what the clients may see.
    pub fn set_scope(&self, scope: Scope) {
        self.scope.store(Arc::new(scope));
    }

    /// What the clients see now.
    #[must_use]
    pub fn view(&self) -> View {
        let (snapshot, scope) = (self.names.snapshot.load(), self.scope.load());
        let tables = scope.networks.iter().filter_map(|id| snapshot.tables.get(id));
        View {
            networks: tables.cloned().collect(),
            domains: Arc::clone(&snapshot.domains),
            forwards: false,
            settled: snapshot.settled,
        }
    }

    /// Whether one more question is answered; counted if not.
    fn admits(&self) -> bool {
        let admitted = self.bucket.take(Instant::now());
        if !admitted {
            self.count("dns_rate");
        }
        admitted
    }

    fn count(&self, reason: &'static str) {
        let network = self.scope.load().networks.first().copied();
        self.names.drops.add(DropKey { reason, network, peer: None }, 1);
    }
}
