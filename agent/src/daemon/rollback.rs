//! Whether this node's state may be older than the node: a disk, or the whole machine, was set back
//! to an earlier day.
//!
//! What such a node gave away in the life that it lost is its own as far as it knows. So it gives
//! out no address until it has compared its objects with another node, which knows what went, or
//! until the user says that nothing was set back (I12).
//!
//! ```text
//! store "given"  : how many blocks this node gave away, written down before each
//! RUN_DIR/given  : the same, with the boot in which it was written
//! ```
//!
//! An agent that is started again within a boot, and finds there no more than in its store, knows
//! all that it did. After a boot of the machine nothing on it tells a state that was set back from
//! one that was not. A node that is alone in its mesh has given nothing away.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::{info, warn};
use vxmesh_proto::{
    addr::NodeId,
    control::{Refusal, RefusalCode},
};

use super::{
    doctor::check,
    mesh::{Mesh, conflict, store_failed},
    sync::refusal,
};
use crate::{
    api::{ApiError, Diagnosis, Health},
    sandbox::process::boot,
    store::{StoreError, Table},
};

/// How long whoever wants an address waits for a first meeting: it takes milliseconds, unless all
/// others are away.
const PATIENCE: Duration = Duration::from_secs(3);
const GIVEN: &str = "given";
const WHY: &str = "this node has met no other since it was started or restored, and its state may be an older copy that was put back: \
                   its addresses may have been given to others meanwhile";

/// What is known outside of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    boot: String,
    given: u64,
}

/// Whether a state in which so many blocks were given away is known to be the last one.
fn is_last(mark: Option<&Mark>, boot: Option<&str>, given: u64) -> bool {
    mark.is_some_and(|mark| boot == Some(mark.boot.as_str()) && mark.given <= given)
}

/// Takes away what a membership left outside of the store when it ended.
pub(super) fn forget(run_dir: &Path) {
    // Where it stays, the next start waits for another node at the most.
    drop(fs::remove_file(run_dir.join(GIVEN)));
}

impl Mesh {
    fn given(&self) -> Result<u64, StoreError> {
        Ok(self.store.get(Table::Meta, GIVEN)?.unwrap_or(0))
    }

    fn mark(&self, given: u64) -> io::Result<()> {
        let Some(boot) = boot().clone() else { return Ok(()) };
        let text = serde_json::to_vec(&Mark { boot, given })?;
        let (path, part) = (self.run_dir().join(GIVEN), self.run_dir().join("given.new"));
        fs::create_dir_all(self.run_dir())?;
        fs::write(&part, text)?;
        fs::rename(part, path)
    }

    /// Holds addresses back from now on if the state may be older than the node: for the start.
    pub(super) fn look_for_rollback(&self) -> Result<(), ApiError> {
        let given = self.given().map_err(store_failed)?;
        let mark = fs::read(self.run_dir().join(GIVEN)).ok();
        let mark: Option<Mark> = mark.and_then(|text| serde_json::from_slice(&text).ok());
        if is_last(mark.as_ref(), boot().as_deref(), given) {
            self.remember(given);
            return Ok(());
        }
        self.doubt();
        if !*self.member.allocation.unproven.borrow() {
            self.remember(given);
            return Ok(());
        }
        if mark.is_some_and(|mark| mark.given > given) {
            warn!(
                "this node's state is older than the node: no address is given out before another node is met"
            );
        }
        Ok(())
    }

    /// Holds addresses back until another node is met, if there is one that may have been given
    /// some.
    pub(super) fn doubt(&self) {
        if self.member.objects.read(|set| set.members().any(|node| node != self.member.me)) {
            self.member.allocation.unproven.send_replace(true);
        }
    }

    /// Notes that a block is about to be given away.
    pub(super) fn note_gift(&self) -> Result<(), StoreError> {
        let given = self.store.write(|txn| {
            let given = txn.get::<u64>(Table::Meta, GIVEN)?.unwrap_or(0).saturating_add(1);
            txn.put(Table::Meta, GIVEN, &given)?;
            Ok(given)
        })?;
        self.remember(given);
        Ok(())
    }

    fn remember(&self, given: u64) {
        if let Err(error) = self.mark(given) {
            warn!(%error, "the next start of the agent waits for another node before it gives out addresses");
        }
    }

    /// Objects were compared with a node: what this one gave away is known again.
    pub(super) fn met(&self, node: NodeId) {
        if node == self.member.me {
            return;
        }
        self.member.sync.met.send_replace(true);
        if *self.member.allocation.unproven.borrow() {
            self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
            self.trust();
        }
    }

    /// Gives out addresses from now on.
    pub(super) fn trust(&self) {
        if self.member.allocation.unproven.send_replace(false) {
            info!("this node's state is taken for the last one; addresses are given out");
            match self.given() {
                Ok(given) => self.remember(given),
                Err(error) => warn!(%error, "the next start of the agent waits for another node"),
            }
        }
    }

    /// Waits a while until addresses may be given out.
    pub(super) async fn await_proof(&self) -> Result<(), ApiError> {
        let mut unproven = self.member.allocation.unproven.subscribe();
        let proven = timeout(PATIENCE, unproven.wait_for(|unproven| !unproven)).await;
        if proven.is_err() {
            let hint = "see that another node is up and reached (`vxmesh node ls`); if this node's data was not set back, \
                        `vxmesh ipam trust` says so";
            return Err(conflict(WHY.to_owned(), hint));
        }
        Ok(())
    }

    /// Refuses to give others what may be theirs already.
    pub(super) fn check_proof(&self) -> Result<(), Refusal> {
        if *self.member.allocation.unproven.borrow() {
            return Err(refusal(RefusalCode::Conflict, WHY));
        }
        Ok(())
    }

    /// Whether addresses are held back.
    pub(super) fn proof_diagnosis(&self) -> Option<Diagnosis> {
        self.member.allocation.unproven.borrow().then(|| {
            let hint = "bring another node up; if this node's data was not set back, `vxmesh ipam trust` says so";
            check("addresses to give", Health::Warn, format!("none: {WHY}"), hint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_boot_knows_nothing_more_of_is_the_last_state() {
        let mark = |given| Mark { boot: "this".to_owned(), given };
        for (mark, boot, given, last) in [
            (Some(mark(3)), Some("this"), 3, true),
            // The agent ended before it wrote the mark.
            (Some(mark(3)), Some("this"), 4, true),
            (Some(mark(3)), Some("this"), 2, false),
            (Some(mark(3)), Some("next"), 3, false),
            (Some(mark(3)), None, 3, false),
            (None, Some("this"), 0, false),
        ] {
            assert_eq!(is_last(mark.as_ref(), boot, given), last, "{mark:?} {boot:?} {given}");
        }
    }
}
