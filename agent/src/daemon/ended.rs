//! Sandboxes that have ended: what is known of them afterwards, until somebody removes them or
//! there are too many.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use tracing::{info, warn};
use vxmesh_proto::addr::Name;

use super::{
    hosting::Hosted,
    mesh::{Mesh, failed, store_failed},
    sandboxes::{Stored, sandbox_gone},
};
use crate::{
    api::{self, ApiError, SandboxEnded},
    identity::unix_now,
    records::{self, End, Records},
    store::Table,
};

/// How many are kept with their output, which takes 2 MiB of each at most; the oldest go first.
const KEPT: usize = 100;

impl Mesh {
    /// The sandboxes of this node that have ended, the last one last.
    pub(super) fn ended_list(&self) -> Result<Vec<api::Sandbox>, ApiError> {
        let rows = self.store.list::<api::Sandbox>(Table::Ended).map_err(store_failed)?;
        let mut ended: Vec<_> = rows.into_iter().map(|(_name, ended)| ended).collect();
        ended.sort_by_key(|ended| (ended.ended_at, ended.incarnation));
        Ok(ended)
    }

    /// A sandbox's supervisor says that the command has ended for good.
    pub(super) async fn end_sandbox(
        self: &Arc<Self>,
        reference: &str,
        ended: &SandboxEnded,
    ) -> Result<api::Sandbox, ApiError> {
        let name: Name = reference.parse().map_err(|error| failed(error, "see `sandbox ls`"))?;
        let find = || {
            let there: Option<Stored> =
                self.store.get(Table::Sandboxes, name.as_str()).map_err(store_failed)?;
            // One that is being removed is left to who removes it.
            let there = there.filter(|it| it.incarnation() == ended.incarnation && !it.removing);
            there.ok_or_else(|| sandbox_gone(&name))
        };
        // Whoever removes it may hold the host while he waits for the supervisor, which waits for
        // this.
        find()?;
        let mut hosted = self.lock_host().await?;
        let sandbox = find()?;
        let end = End { exit_status: ended.exit_status, ended_at: ended.ended_at };
        let row = self.finish(&mut hosted, &sandbox, end).await;
        drop(hosted);
        self.reconcile().await;
        row
    }

    /// Takes an ended sandbox from its networks and keeps what is known of it.
    async fn finish(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
        end: End,
    ) -> Result<api::Sandbox, ApiError> {
        let row = api::Sandbox {
            pid: None,
            state: "exited".to_owned(),
            exit_status: end.exit_status,
            ended_at: Some(end.ended_at),
            etc: None,
            published: Vec::new(),
            ..sandbox.row(&self.config, &[])
        };
        let kept = sandbox.detached.as_ref().is_some_and(|detached| !detached.remove);
        self.clear(hosted, sandbox, Some(&row).filter(|_| kept)).await?;
        match end.exit_status {
            Some(status) => info!(sandbox = %sandbox.name, status, "sandbox ended"),
            None => info!(sandbox = %sandbox.name, "sandbox ended; nobody saw its exit status"),
        }
        self.prune_ended();
        Ok(row)
    }

    /// Removes the oldest ones above the limit.
    fn prune_ended(&self) {
        let ended = self.ended_list().unwrap_or_default();
        for old in ended.iter().take(ended.len().saturating_sub(KEPT)) {
            if let Err(error) = self.forget_ended(&old.name) {
                warn!(sandbox = %old.name, %error, "an old ended sandbox is not forgotten; it is tried again");
            }
        }
    }

    /// Removes what is known of an ended sandbox; none of that name is fine.
    pub(super) fn forget_ended(&self, name: &Name) -> Result<(), ApiError> {
        let ended: Option<api::Sandbox> =
            self.store.get(Table::Ended, name.as_str()).map_err(store_failed)?;
        let Some(ended) = ended else { return Ok(()) };
        let records = Records::of(&self.config.data_dir, name, ended.incarnation);
        records
            .remove()
            .map_err(|error| failed(error, "see that the data directory can be written"))?;
        self.store.delete(Table::Ended, name.as_str()).map(drop).map_err(store_failed)
    }

    /// The same for the user, who is shown it once more.
    pub(super) fn remove_ended(&self, reference: &str) -> Result<Option<api::Sandbox>, ApiError> {
        let ended = self.ended_list()?.into_iter().find(|ended| ended.name.as_str() == reference);
        if let Some(ended) = &ended {
            self.forget_ended(&ended.name)?;
        }
        Ok(ended)
    }

    /// For `leave`: nothing of them stays.
    pub(super) fn forget_all_ended(&self) -> Result<(), ApiError> {
        for ended in self.ended_list()? {
            self.forget_ended(&ended.name)?;
        }
        records::forget(&self.config.data_dir)
            .map_err(|error| failed(error, "see that the data directory can be written"))
    }

    /// Sees to the sandboxes of the agent's last life: those that nobody stays with are started
    /// again or have ended. What fails for one keeps no other from being seen to.
    pub(super) async fn collect_sandboxes(self: &Arc<Self>) -> Result<(), ApiError> {
        let mut hosted = self.hosted.lock().await;
        for sandbox in self.stored_sandboxes()? {
            if let Err(error) = self.collect(&mut hosted, &sandbox).await {
                warn!(sandbox = %sandbox.name, %error, "the sandbox of the last life stays as it is; the next start tries again");
            }
        }
        let live = self.stored_sandboxes()?;
        let live = live.iter().map(|sandbox| sandbox.records(&self.config.data_dir));
        let ended = self.ended_list()?;
        let ended = ended
            .iter()
            .map(|ended| Records::of(&self.config.data_dir, &ended.name, ended.incarnation));
        let kept: BTreeSet<PathBuf> =
            live.chain(ended).map(|records| records.directory().to_owned()).collect();
        if let Err(error) = records::sweep(&self.config.data_dir, &kept) {
            warn!(%error, "output of sandboxes that are gone is left");
        }
        Ok(())
    }

    /// Removes sandboxes whose `run` ended before anything was started in them: it was killed, or
    /// did not hear that they were made.
    pub(super) async fn collect_abandoned(self: &Arc<Self>) {
        let sandboxes = self.sandbox_rows().unwrap_or_default();
        let abandoned: Vec<Stored> =
            sandboxes.iter().filter(|sandbox| sandbox.is_abandoned()).cloned().collect();
        if abandoned.is_empty() {
            return;
        }
        // Whoever changes the host may be making just this one; there is a next time.
        let Ok(mut hosted) = self.hosted.try_lock() else { return };
        if self.is_stopping() {
            return;
        }
        for sandbox in abandoned {
            let cleared = match self.begin_removal(&sandbox) {
                Ok(Some(sandbox)) => match sandbox.end_processes().await {
                    Ok(()) => self.clear(&mut hosted, &sandbox, None).await,
                    Err(error) => Err(error.into()),
                },
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match cleared {
                Ok(()) => {
                    info!(sandbox = %sandbox.name, "nothing was started in it; the sandbox is removed");
                }
                Err(error) => {
                    warn!(sandbox = %sandbox.name, %error, "the sandbox is left over; remove it");
                }
            }
        }
        drop(hosted);
        self.member.keeper.kick();
    }

    pub(super) async fn collect(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
    ) -> Result<(), ApiError> {
        if sandbox.removing {
            sandbox.end_processes().await?;
            return self.clear(hosted, sandbox, None).await;
        }
        if sandbox.is_kept() {
            return Ok(());
        }
        let end = sandbox.records(&self.config.data_dir).end();
        match (&sandbox.detached, end) {
            // Nobody was told that it runs.
            (Some(_), _) if !sandbox.has_started() => self.clear(hosted, sandbox, None).await,
            (None, _) => {
                info!(sandbox = %sandbox.name, "its process is gone; the sandbox is removed");
                self.clear(hosted, sandbox, None).await
            }
            (Some(_), Some(end)) => self.finish(hosted, sandbox, end).await.map(drop),
            (Some(_), None) if sandbox.starts_again(&self.config.data_dir) => {
                self.settle(hosted, sandbox).await?;
                self.supervise(sandbox)
            }
            (Some(_), None) => {
                let end = End { exit_status: None, ended_at: unix_now() };
                self.finish(hosted, sandbox, end).await.map(drop)
            }
        }
    }
}
