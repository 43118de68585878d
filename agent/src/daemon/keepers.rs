//! Who stays with a sandbox's command, watched while the agent runs (decision 24).
//!
//! ```text
//! keeper ends, the command lives : told; the command goes on, and is watched instead
//! both have ended                : a moment later, as at the start of an agent: ended, or started again (`ended`)
//! ```

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tracing::warn;
use vxmesh_proto::addr::Name;

use super::{
    doctor::check,
    mesh::{Mesh, store_failed},
    sandboxes::Stored,
};
use crate::{
    api::{ApiError, Diagnosis, Health},
    store::Table,
};

/// From the end of the last process to what follows from it. A host that goes down ends the agent
/// meanwhile, and a supervisor that is killed again and again is not started all the time.
const PAUSE: Duration = Duration::from_millis(500);

impl Mesh {
    /// Watches who stays with a sandbox's command, until the sandbox is gone.
    pub(super) fn watch_keeper(self: &Arc<Self>, sandbox: &Stored) {
        let (name, incarnation) = (sandbox.name().clone(), sandbox.incarnation());
        if !self.keepers.begin(incarnation) {
            return;
        }
        let mesh = Arc::downgrade(self);
        tokio::spawn(async move {
            follow(&mesh, &name, incarnation).await;
            if let Some(mesh) = mesh.upgrade() {
                mesh.keepers.end(incarnation);
            }
        });
    }

    /// The same for all sandboxes of the agent's last life.
    pub(super) fn watch_keepers(self: &Arc<Self>) -> Result<(), ApiError> {
        self.stored_sandboxes()?.iter().for_each(|sandbox| self.watch_keeper(sandbox));
        Ok(())
    }

    /// A sandbox in which a command was started and that nobody removes.
    fn started(&self, name: &Name, incarnation: u64) -> Option<Stored> {
        let stored = self.store.get::<Stored>(Table::Sandboxes, name.as_str());
        let stored = stored.map_err(store_failed).ok().flatten();
        stored.filter(|it| it.incarnation() == incarnation && it.has_started() && !it.removing)
    }

    async fn collect_left(self: &Arc<Self>, name: &Name, incarnation: u64) {
        let Ok(mut hosted) = self.lock_host().await else { return };
        let Some(sandbox) = self.started(name, incarnation).filter(|it| !it.is_kept()) else {
            return;
        };
        if let Err(error) = self.collect(&mut hosted, &sandbox).await {
            warn!(sandbox = %name, %error, "the sandbox whose command ended stays as it is; remove it");
        }
        drop(hosted);
        self.reconcile().await;
    }

    /// Sandboxes whose command goes on without who started it.
    pub(super) fn keeper_diagnoses(&self) -> Vec<Diagnosis> {
        let mut left = self.stored_sandboxes().unwrap_or_default();
        left.retain(Stored::is_unsupervised);
        let row = |sandbox: &Stored| {
            let found = format!(
                "{} was killed; the command goes on, but its output and its exit status are lost",
                sandbox.keeper_word()
            );
            let hint = "remove it with `vxmesh sandbox rm` and run it again";
            check(&format!("sandbox {}", sandbox.name()), Health::Warn, found, hint)
        };
        left.iter().map(row).collect()
    }
}

/// Waits for one end after the other.
async fn follow(mesh: &Weak<Mesh>, name: &Name, incarnation: u64) {
    let mut told = false;
    loop {
        let process = {
            let Some(mesh) = mesh.upgrade() else { return };
            let Some(sandbox) = mesh.started(name, incarnation) else { return };
            if sandbox.is_unsupervised() && !std::mem::replace(&mut told, true) {
                let who = sandbox.keeper_word();
                warn!(sandbox = %name, "{who} was killed; the command goes on, but its output and its exit status are lost");
            }
            sandbox.stays().cloned()
        };
        if let Some(process) = process {
            process.ended().await;
            continue;
        }
        tokio::time::sleep(PAUSE).await;
        let Some(mesh) = mesh.upgrade() else { return };
        mesh.collect_left(name, incarnation).await;
        if mesh.started(name, incarnation).is_none_or(|sandbox| !sandbox.is_kept()) {
            return;
        }
        told = false;
    }
}
