//! Services on this node: what the mesh's objects say of them becomes what the data path does.
//!
//! [`Services`] is asked in each reconciliation for the services of a network that is here
//! ([`Services::follow`]); [`backends`] says who answers for each; [`control`] makes, changes and
//! removes them for the user. [`health`] checks the backends of this node, [`ejection`] finds out
//! which ones answer nobody, and [`place`] says of nodes what services go by. [`published`] has the
//! host's ports that lead to services. What of all that a user is shown beside the services
//! themselves is [`seen`]'s. How a connection is spread and remembered is `vxmesh_proto::lb`'s.

pub(crate) mod answers;
mod backends;
mod control;
mod ejection;
mod error;
mod flows;
mod health;
mod place;
mod published;
mod reach;
mod seen;
mod snapshot;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore},
    task::block_in_place,
};
use tracing::{error, warn};
use vxmesh_proto::{
    addr::NetworkId,
    lb::{Flows, ServiceSpec, drain::DrainClock, ejection::Ejections, health::Checks, recount},
    tables::{NetworkTable, TableUpdate},
};

pub use self::{
    backends::{Drains, Viewpoint, selecting, specs},
    place::{NodePlace, Places},
    snapshot::updated,
};
pub(crate) use self::{
    control::{check_names, named, service_name},
    ejection::watch,
    error::ServiceError,
    health::check,
    place::places,
    published::{HostPort, HostPorts, Lead, Led, Missing, publish},
};

use crate::{
    daemon::Mesh,
    store::{Store, StoreError},
};

/// How long after a node is heard its endpoints may become known one after the other.
const ARRIVES: Duration = Duration::from_secs(1);
/// How long after the start connections wait for backends of nodes that were not heard yet.
const UNHEARD: Duration = Duration::from_secs(60);

/// Questions of other nodes about backends that are answered at once.
const ANSWERS: usize = 64;

/// The flows of this process: one table, made with the first service and never unmapped.
static FLOWS: Mutex<Option<Arc<Flows>>> = Mutex::new(None);

/// Says that services or their backends are others, or may be, to each who follows them.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    for_ports: Notify,
    for_checks: Notify,
    /// The hash of the objects that services followed from last.
    objects: Mutex<String>,
}

impl Changed {
    /// Also where only something else changed: ports of this host depend on more.
    pub(crate) fn notify_ports(&self) {
        self.for_ports.notify_one();
    }

    pub(crate) fn notify_checks(&self) {
        self.for_checks.notify_one();
    }

    /// Whether the objects, and so perhaps the checks of services, are others than the last time.
    pub(crate) fn note_objects(&self, hash: &str) -> bool {
        let mut known = lock(&self.objects);
        let is_new = *known != hash;
        if is_new {
            hash.clone_into(&mut known);
        }
        is_new
    }

    async fn for_ports(&self) {
        self.for_ports.notified().await;
    }

    async fn for_checks(&self) {
        self.for_checks.notified().await;
    }
}

/// The services of this node.
#[derive(Debug)]
pub(crate) struct Services {
    /// The number of the last snapshot. Flows of an earlier life know numbers of that life, so it
    /// does not begin at the same.
    versions: AtomicU64,
    /// Where the flows are.
    file: PathBuf,
    /// The services of each network here, also those without an address.
    known: Mutex<BTreeMap<NetworkId, Arc<[ServiceSpec]>>>,
    /// Which backends get no new flows by what was seen of them.
    ejections: Mutex<Ejections>,
    /// How many questions of other nodes are answered at once.
    answers: Semaphore,
    /// Which backends on this node pass the checks of their services.
    checks: Mutex<Checks>,
    /// What this node says of itself to services.
    place: Mutex<NodePlace>,
    /// Ports of this host that lead to services.
    pub(crate) host_ports: Mutex<HostPorts>,
    /// Since when all members are heard.
    heard: Mutex<Option<Instant>>,
    /// Whether a backend that is unknown is not there.
    settled: AtomicBool,
    /// Rung when services or their backends may be others.
    pub(crate) changed: Changed,
    /// When the time of a drained backend is over next, in Unix milliseconds.
    deadline: AtomicU64,
    /// When drains began.
    drains: Mutex<DrainClock>,
}

impl Services {
    /// None yet. What connections they have outlives the agent in this directory.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn new(run_dir: &Path, store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            versions: AtomicU64::new(rand::random()),
            file: flows::path(run_dir),
            known: Mutex::default(),
            ejections: Mutex::default(),
            answers: Semaphore::new(ANSWERS),
            checks: Mutex::new(Checks::after(Self::load_health(store)?)),
            place: Mutex::new(Self::load_place(store)?),
            host_ports: Mutex::default(),
            heard: Mutex::default(),
            settled: AtomicBool::new(false),
            changed: Changed::default(),
            deadline: AtomicU64::new(u64::MAX),
            drains: Mutex::default(),
        })
    }

    /// What brings the services of a network's snapshot in step with these, if anything
    /// ([`updated`]).
    pub(crate) fn follow<P>(
        &self,
        table: &NetworkTable<P>,
        specs: Vec<ServiceSpec>,
        state: (bool, bool),
    ) -> Option<TableUpdate<P>> {
        let next = || Some((self.versions.fetch_add(1, Ordering::Relaxed), self.flows()?));
        updated(table, specs, state, &lock(&self.ejections), next)
    }

    /// Notes the services of a network as they are now; whether they are others.
    pub(crate) fn note(&self, network: NetworkId, specs: &[ServiceSpec]) -> bool {
        let mut known = lock(&self.known);
        let is_new = known.get(&network).map_or(!specs.is_empty(), |known| **known != *specs);
        if is_new {
            known.insert(network, specs.into());
        }
        is_new
    }

    /// Forgets the services of networks that are not here any more; whether there were some.
    pub(crate) fn keep(&self, is_here: impl Fn(&NetworkId) -> bool) -> bool {
        let mut known = lock(&self.known);
        let before = known.len();
        known.retain(|network, _| is_here(network));
        known.len() < before
    }

    /// The services of all networks here.
    fn known(&self) -> Vec<(NetworkId, Arc<[ServiceSpec]>)> {
        lock(&self.known).iter().map(|(id, specs)| (*id, Arc::clone(specs))).collect()
    }

    /// Whether a backend that is unknown is not there, by what is heard so long after the start.
    pub(crate) fn settle(&self, hears_all: bool, age: Duration) -> bool {
        let mut heard = lock(&self.heard);
        let since =
            if hears_all { *heard.get_or_insert_with(Instant::now) } else { Instant::now() };
        let is_settled = self.is_settled() || since.elapsed() >= ARRIVES || age >= UNHEARD;
        self.settled.store(is_settled, Ordering::Relaxed);
        is_settled
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Whether there are services whose backends may be on nodes that were not heard yet.
    pub(crate) fn awaits_nodes(&self) -> bool {
        !self.is_settled() && !lock(&self.known).is_empty()
    }

    /// When a drain began, by this node's clock.
    pub(crate) fn drained_since(&self, since: u64, now_ms: u64, is_settled: bool) -> u64 {
        lock(&self.drains).begun(since, now_ms, is_settled)
    }

    /// Notes when a drained backend's time is over.
    pub(crate) fn await_deadline(&self, at_ms: u64) {
        self.deadline.fetch_min(at_ms, Ordering::Relaxed);
    }

    /// Whether the time of one is over since somebody asked. The tables do not follow that by
    /// themselves.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        let is_due = self.deadline.load(Ordering::Relaxed) <= now_ms;
        if is_due {
            self.deadline.store(u64::MAX, Ordering::Relaxed);
        }
        is_due
    }

    fn flows(&self) -> Option<Arc<Flows>> {
        let mut flows = lock(&FLOWS);
        if flows.is_none() {
            *flows = flows::open(&self.file).map(Arc::new);
        }
        if flows.is_none() {
            error!("the table of flows cannot be made: services do not work; please report it");
        }
        flows.clone()
    }

    /// Leaves nothing on the host.
    pub(crate) fn forget(&self) {
        // The next mesh has a file of its own.
        *lock(&FLOWS) = None;
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, file = %self.file.display(), "the file of flows stays; remove it");
            }
            _ => {}
        }
    }

    /// Forgets flows that were not used for long, and counts the others for services that go by
    /// that. Called once a second.
    pub(crate) fn sweep(mesh: &Mesh) {
        let Some(flows) = lock(&FLOWS).clone() else { return };
        flows.sweep(Instant::now());
        let tables = mesh.tables_with_services();
        let services = tables.iter().filter_map(|table| Some((table.spec().id, table.services()?)));
        let going: Vec<_> = services.filter(|(_, services)| services.goes_by_flows()).collect();
        if !going.is_empty() {
            block_in_place(|| recount(&going));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
