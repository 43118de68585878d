//! Services on this node: what the mesh's objects say of them becomes what the data path does.
//!
//! [`Services`] is asked in each reconciliation for the services of a network that is here
//! ([`Services::follow`]); [`backends`] says who answers for each; [`control`] makes, changes and
//! removes them for the user. How a connection is spread and remembered is `vxmesh_proto::lb`'s.

mod backends;
mod control;
mod ejection;
mod error;
mod flows;
mod reach;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Semaphore;
use tracing::{error, warn};
use vxmesh_proto::{
    lb::{self, Flows, ServiceSpec, ejection::Ejections},
    tables::{NetworkTable, TableUpdate},
};

pub(crate) use self::{
    backends::specs,
    control::{check_names, named},
    ejection::watch,
    error::ServiceError,
};

/// Questions of other nodes about backends that are answered at once.
const ANSWERS: usize = 64;

/// The flows of this process: one table, made with the first service and never unmapped.
static FLOWS: Mutex<Option<Arc<Flows>>> = Mutex::new(None);

/// The services of this node.
#[derive(Debug)]
pub(crate) struct Services {
    /// The number of the last snapshot. Flows of an earlier life know numbers of that life, so it
    /// does not begin at the same.
    versions: AtomicU64,
    /// Where the flows are.
    file: PathBuf,
    /// Which backends get no new flows by what was seen of them.
    ejections: Mutex<Ejections>,
    /// How many questions of other nodes are answered at once.
    answers: Semaphore,
}

impl Services {
    /// None yet. What connections they have outlives the agent in this directory.
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self {
            versions: AtomicU64::new(rand::random()),
            file: flows::path(run_dir),
            ejections: Mutex::default(),
            answers: Semaphore::new(ANSWERS),
        }
    }

    /// What brings the services of a network's snapshot in step with these, if anything. They are
    /// settled once all members were heard after the start; backends on this host get something
    /// where their answers are steered here.
    pub(crate) fn follow<P>(
        &self,
        table: &NetworkTable<P>,
        specs: Vec<ServiceSpec>,
        (is_settled, steers): (bool, bool),
    ) -> Option<TableUpdate<P>> {
        let before = table.services();
        // After the last service its clients are told that it is gone, so the snapshot stays.
        if specs.is_empty() && before.is_none() {
            return None;
        }
        let old = |spec: &ServiceSpec| before?.iter().find(|old| old.spec().id == spec.id);
        let service = |spec: ServiceSpec| match old(&spec) {
            Some(old) => {
                let new = lb::Service::new(spec, Some(old));
                if new.spec() == old.spec() { Arc::clone(old) } else { Arc::new(new) }
            }
            None => Arc::new(lb::Service::new(spec, None)),
        };
        let network = table.spec().id;
        let services: Vec<_> = {
            let ejections = lock(&self.ejections);
            let with_out = |spec: ServiceSpec| {
                let out = ejections.out(network, &spec);
                ServiceSpec { out, ..spec }
            };
            specs.into_iter().map(with_out).map(service).collect()
        };
        let is_same = |before: &lb::Services| {
            let same = |(old, new): (&Arc<lb::Service>, &Arc<lb::Service>)| Arc::ptr_eq(old, new);
            (before.is_settled(), before.steers_local()) == (is_settled, steers)
                && before.iter().count() == services.len()
                && before.iter().zip(&services).all(same)
        };
        if before.is_some_and(is_same) {
            return None;
        }
        let version = (self.versions.fetch_add(1, Ordering::Relaxed), is_settled);
        let flows = self.flows()?;
        let services = lb::Services::new(flows, version, services).steering_local(steers);
        Some(TableUpdate::Services(Some(Arc::new(services))))
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

    /// Forgets flows that were not used for long. Called once a second.
    pub(crate) fn sweep() {
        let flows = lock(&FLOWS).clone();
        if let Some(flows) = flows {
            flows.sweep(Instant::now());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
