//! The disk that keeps this node's state: told while it says no, and used again as soon as it takes
//! bytes.

use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use super::{doctor::check, mesh::Mesh};
use crate::api::{Diagnosis, Health};

/// With less room than this the next write may fail.
const ROOM: u64 = 16 << 20;

impl Mesh {
    /// Opens the state anew after the disk had an error, and writes down what was learned
    /// meanwhile.
    pub(super) fn mend_state(self: &Arc<Self>) {
        if !self.store.is_stuck() {
            return;
        }
        if self.member.logged.stuck.is_first() {
            warn!(
                "nothing is kept on disk: free some space, or see what the disk has; it is tried again every second"
            );
        }
        let mesh = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if mesh.store.mend().is_err() || mesh.store.is_stuck() {
                return;
            }
            match mesh.member.objects.save_all() {
                Ok(()) => {
                    mesh.member.logged.stuck.reset();
                    info!("the disk takes what is to be kept again");
                }
                Err(error) => warn!(%error, "objects are not kept on disk; it is tried again"),
            }
        });
    }

    /// `doctor`: whether what must be kept is kept.
    pub(super) fn disk_diagnosis(&self) -> Diagnosis {
        let dir = &self.config.data_dir;
        let row = |health, found: String, hint: &str| check("disk", health, found, hint);
        if self.store.is_stuck() {
            let found =
                format!("{} takes nothing: changes that need room are refused", dir.display());
            let hint = "free some space, or see what the disk has; it is tried again every second, and needs no restart";
            return row(Health::Fail, found, hint);
        }
        match statvfs(dir) {
            Ok(disk) => {
                let free = disk.blocks_available() * disk.fragment_size();
                let found = format!("{} has {} MiB free", dir.display(), free >> 20);
                let health = if free < ROOM { Health::Warn } else { Health::Ok };
                row(health, found, "free some space: without it changes that need room are refused")
            }
            Err(error) => {
                row(Health::Warn, format!("{}: {error}", dir.display()), "see what the disk has")
            }
        }
    }
}
