//! The keeper of the mesh: the loop that brings peers and tables in step with what it is told, and
//! does what has its time.
//!
//! ```text
//! gossip, objects, attaching, changes of this host -> reconcile
//! once a second  : who falls silent, and what failed and is tried again
//! twice a minute : reconcile all the same; for who cannot be a peer now, and so that nothing that was missed stays missed
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;
use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::{clock::Pulse, object::ObjectSet};

use super::mesh::Mesh;
use crate::{objects::unix_ms, services::Services};

const TICK: Duration = Duration::from_secs(1);

/// Reconciliation runs at least this often.
const SWEEP: Duration = Duration::from_secs(30);

/// How often objects are looked through for what was deleted long ago. Nodes that collect far apart
/// in time offer each other what the other does not want any more.
const COLLECT_EVERY: Duration = Duration::from_secs(10);

/// How often endpoints are looked through for what another node's word or a failure at the start
/// left in disorder.
const MEND_EVERY: Duration = Duration::from_secs(2);

/// What the loop remembers from one round to the next.
struct Rounds {
    /// When a copy of this node was heard last that was overruled.
    overruled: Option<Instant>,
    /// The hash of objects of which nothing is to be fetched or taken back.
    settled: Option<String>,
    reconciled: Instant,
    pulse: Pulse,
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Mesh {
    /// Keeps tables in step until the agent stops.
    pub(super) async fn keep(self: Arc<Self>) {
        let Some(gossip) = self.member.gossip.get() else { return };
        let mut objects = self.member.objects.changes();
        let mut stop = self.member.keeper.stops();
        let (mut tick, mut collect, mut mend) =
            (every(TICK), every(COLLECT_EVERY), every(MEND_EVERY));
        let now = Instant::now();
        let pulse = Pulse::new(now, unix_ms());
        let mut rounds = Rounds { overruled: None, settled: None, reconciled: now, pulse };
        loop {
            tokio::select! {
                () = gossip.changed() => {}
                changed = objects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.host.watching.mark(|dirty| dirty.subnets = true);
                    self.host.name_servers.follow_networks(|id| self.network_of(id));
                }
                () = self.member.keeper.kicked() => {}
                _ = tick.tick() => {
                    self.tend(gossip, &mut rounds).await;
                    if !self.is_sweep_due(&rounds) {
                        continue;
                    }
                }
                _ = mend.tick() => {
                    // It may have to wait for the kernel; tables must not.
                    let mesh = Arc::clone(&self);
                    tokio::spawn(async move {
                        mesh.mend().await;
                        mesh.collect_abandoned().await;
                    });
                    continue;
                }
                _ = collect.tick() => {
                    if let Err(error) = tokio::task::block_in_place(|| self.member.objects.collect()) {
                        warn!(%error, "what was deleted long ago is still on disk; free some space");
                    }
                    continue;
                }
                _ = stop.changed() => return,
            }
            let moved = self.host.watching.take_moved() && self.follow_host(gossip);
            self.reconcile().await;
            rounds.reconciled = Instant::now();
            if moved {
                self.show_place().await;
            }
        }
    }

    /// Whether all is looked at although nobody said that something changed. Names settle with
    /// time, the plain port may be free again, and where the kernel tells nothing this host's
    /// addresses are looked at, too.
    fn is_sweep_due(&self, rounds: &Rounds) -> bool {
        rounds.reconciled.elapsed() >= SWEEP
            || self.host.watching.is_deaf()
            || !self.host.name_servers.names.snapshot().settled
            || self.services.awaits_nodes()
            || self.host.plane.plain().fault().is_some()
    }

    /// Does what has its time, and tries again what failed.
    async fn tend(self: &Arc<Self>, gossip: &Gossip, rounds: &mut Rounds) {
        if let Some(missed) = rounds.pulse.beat(Instant::now(), unix_ms()) {
            self.outlive_standstill(missed).await;
        }
        self.overrule(gossip, &mut rounds.overruled).await;
        self.member.enforce_removals();
        self.member.tell_departed();
        self.seek_soon();
        self.mend_state();
        self.keep_open();
        self.tell_silent();
        Services::sweep(self);
        if self.services.is_due(unix_ms()) {
            self.member.keeper.kick();
        }
        self.name_sandboxes();
        self.sync_again(gossip);
        self.host.name_servers.retry_networks(|id| self.network_of(id));
        // Pools that are not in step with the objects say nothing about these.
        let hash = self.member.objects.read(|set| {
            self.member.addresses.follow(set, Instant::now());
            ObjectSet::content_hash(set)
        });
        if rounds.settled.as_ref() != Some(&hash) {
            let (fetches, reclaims) = (self.prefetch(), self.reclaim_soon());
            rounds.settled = (!fetches && !reclaims).then_some(hash);
        }
    }
}
