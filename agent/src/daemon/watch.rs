//! When what happened on this host is looked at (`crate::host::watch` says where).

use std::{mem, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::mesh::Mesh;
use crate::host::watch::SETTINGS;

/// Changes seldom come alone; what follows within this time is looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// After a look that put something back, the next one waits: another program may insist.
const PAUSE: Duration = Duration::from_millis(500);

impl Mesh {
    /// Hears of changes until the agent stops. What happens from here on is heard.
    pub(super) fn hear_on(self: &Arc<Self>) {
        let (mesh, ears) = (Arc::clone(self), self.host.watching.listen());
        let mut stop = self.member.keeper.stops();
        tokio::spawn(async move {
            tokio::select! {
                () = mesh.host.watching.hear(ears) => {}
                _ = stop.changed() => {}
            }
            mesh.host.watching.stop();
        });
    }

    /// Looks where something may be different, until the agent stops. What was begun is not cut
    /// short by that.
    pub(super) async fn look_on(self: Arc<Self>) {
        let mut stop = self.member.keeper.stops();
        let mut ticks = 0usize;
        let mut tick = tokio::time::interval_at(Instant::now() + SETTINGS, SETTINGS);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.host.watching.wake.notified() => tokio::time::sleep(SETTLE).await,
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.host.watching.tick(ticks);
                }
                _ = stop.changed() => return,
            }
            let mut dirty = self.host.watching.take();
            if mem::take(&mut dirty.restored) {
                self.outlive_image().await;
            }
            if dirty.is_empty() {
                continue;
            }
            if dirty.all || dirty.moved {
                self.host.watching.note_moved();
                self.member.keeper.kick();
            }
            let (all, begun) = (dirty.all, Instant::now());
            if self.look(dirty).await || all {
                // Where more happens than can be heard, looking at everything takes a tenth of the
                // time at most.
                let rest = if all { begun.elapsed() * 10 } else { Duration::ZERO };
                tokio::time::sleep(rest.clamp(PAUSE, 4 * PAUSE)).await;
            }
        }
    }
}
