//! The one who brings everything in step, as others wake and end it ([`Keeper`]).

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tracing::warn;

use crate::lock::lock;

/// What wakes and ends the keeper's loop.
#[derive(Debug)]
pub(crate) struct Keeper {
    kick: Notify,
    /// How often a reconciliation was asked for.
    requested: AtomicU64,
    /// Serialises reconciliation; how many of these are done.
    done: tokio::sync::Mutex<u64>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self {
            kick: Notify::new(),
            requested: AtomicU64::new(0),
            done: tokio::sync::Mutex::default(),
            stop: watch::Sender::new(false),
            task: Mutex::default(),
        }
    }
}

impl Keeper {
    /// Has it look at everything soon.
    pub(crate) fn kick(&self) {
        self.kick.notify_one();
    }

    /// Waits until it is to look at everything.
    pub(crate) async fn kicked(&self) {
        self.kick.notified().await;
    }

    /// Does `reconcile`, or waits for one that began after this was called. Of many who ask
    /// meanwhile, one does it for all.
    pub(crate) async fn reconcile_once(&self, reconcile: impl Future<Output = ()>) {
        let own = self.requested.fetch_add(1, Ordering::AcqRel) + 1;
        let mut done = self.done.lock().await;
        // Else a round that began after this call was for it, too.
        if *done < own {
            let asked = self.requested.load(Ordering::Acquire);
            reconcile.await;
            // Not before the end: who is cut short did nothing for anybody.
            *done = asked;
        }
    }

    /// Notes the task of the loop.
    pub(crate) fn started(&self, task: JoinHandle<()>) {
        *lock(&self.task) = Some(task);
    }

    /// Changes when it is to stop.
    pub(crate) fn stops(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Whether it is to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Ends the loop, and waits for its end.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        let task = lock(&self.task).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            warn!(%error, "the reconcile task failed");
        }
    }
}
