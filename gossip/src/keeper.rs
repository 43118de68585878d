//! The task that looks after chitchat: starts it, starts it again when it ends, and looks at it on
//! every tick.
//!
//! Order of a tick: our own keys go in; what changed comes out and through the signature checks
//! into the directory; who is up; who is to be called; what has expired.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat,
};
use tokio::{sync::watch, time::MissedTickBehavior};
use vxmesh_proto::{addr::NodeId, record::SignedRecord};

use crate::{
    address,
    diff::{Change, Seen, life_of},
    directory::Source,
    envelope::Life,
    guard::Guard,
    limits::{
        CALLS_PER_TICK, DEAD_GRACE, FREEZE_INTERVALS, HEARD_INTERVALS, KEYS, KEYS_PER_LIFE,
        RENEWAL_EVERY, STARVED, TOMBSTONES_KEPT,
    },
    membership::{Run, Shared, StartError, lock},
    publisher::OBJECTS_KEY,
    transport::{Loopback, LoopbackTransport},
};

/// What one look at chitchat shows.
#[derive(Default)]
struct Sight {
    changes: Vec<Change>,
    live: BTreeSet<NodeId>,
    held: BTreeSet<Life>,
    full: BTreeSet<Life>,
    heartbeat: u64,
}

type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The task that looks after chitchat.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    ended: Ended,
    seen: Seen,
    runs: u64,
    last_renewal: Option<Instant>,
    last_tick: Instant,
    frozen_until: Option<Instant>,
    next_call: usize,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Self {
            shared,
            ended: Box::pin(std::future::pending()),
            seen: Seen::default(),
            runs: 0,
            last_renewal: None,
            last_tick: now,
            frozen_until: None,
            next_call: 0,
        }
    }

    pub(crate) async fn keep(mut self, mut stopped: watch::Receiver<()>) {
        let shared = Arc::clone(&self.shared);
        let mut ticks = tokio::time::interval(shared.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ended = stopped.changed() => break,
                _at = ticks.tick() => self.tick().await,
                () = shared.unflushed.notified() => shared.flush().await,
                () = &mut self.ended => {
                    if !matches!(stopped.has_changed(), Ok(false)) {
                        break;
                    }
                    tracing::warn!("gossip ended and is started again");
                    shared.counts.restarts.fetch_add(1, Ordering::Relaxed);
                    self.restart().await;
                }
                () = shared.poisoned.notified() => self.renew().await,
            }
        }
        shared.run.store(None);
    }

    /// Peers hold more of this life than this node, or a state of a later life; they cannot hold
    /// one of the next life yet.
    async fn renew(&mut self) {
        if self.last_renewal.is_none_or(|at| at.elapsed() >= RENEWAL_EVERY) {
            self.last_renewal = Some(Instant::now());
            self.shared.counts.renewals.fetch_add(1, Ordering::Relaxed);
            self.restart().await;
        }
    }

    async fn restart(&mut self) {
        self.freeze(Instant::now());
        if let Err(fault) = self.start_run().await {
            tracing::error!(%fault, "gossip did not start; it is tried again");
            let pause = self.shared.config.interval;
            self.ended = Box::pin(tokio::time::sleep(pause));
        }
    }

    pub(crate) async fn start_run(&mut self) -> Result<(), StartError> {
        let shared = &self.shared;
        // 4096 runs fit between one incarnation and the next.
        let incarnation = shared.incarnation.load(Ordering::Relaxed);
        let generation = (incarnation << 12).saturating_add(self.runs);
        self.runs += 1;
        let life = Life { node: shared.me, generation };
        let loopback = Loopback::new(shared.me, Arc::clone(&shared.pipe));
        let transport = LoopbackTransport(Arc::clone(&loopback));
        let handle = spawn_chitchat(chitchat_config(shared, generation), Vec::new(), &transport)
            .await
            .map_err(|fault| StartError::Chitchat(fault.to_string()))?;
        let ended = handle.termination_watcher();
        self.ended = Box::pin(async move {
            let end = ended.await;
            tracing::debug!(?end, "chitchat ended");
        });
        let guard = Guard::new(life, shared.config.mesh);
        shared.run.store(Some(Arc::new(Run { life, handle, loopback, guard })));
        self.seen = Seen::default();
        lock(&shared.publisher).start_over();
        shared.flush().await;
        Ok(())
    }

    async fn tick(&mut self) {
        let Some(run) = self.shared.run.load_full() else { return };
        let now = Instant::now();
        let late = now.duration_since(self.last_tick).saturating_sub(self.shared.config.interval);
        if late > STARVED {
            let millis = late.as_millis();
            tracing::warn!(
                "this node was starved or stopped for {millis} ms and judges no other for a while"
            );
            self.freeze(now);
        }
        self.last_tick = now;
        lock(&self.shared.publisher).expire(now);
        let (shared, seen) = (Arc::clone(&self.shared), &mut self.seen);
        let sight = run
            .handle
            .with_chitchat(|chitchat| {
                flush(&shared, &run, chitchat);
                look(seen, chitchat)
            })
            .await;
        run.guard.set_own_heartbeat(sight.heartbeat);
        self.shared.apply(&sight).await;
        let members: BTreeSet<NodeId> = self.shared.world.members().into_iter().collect();
        if self.shared.incarnation.load(Ordering::Relaxed) > run.life.generation >> 12 {
            return self.renew().await;
        }
        self.judge(&sight.live, &members, now);
        self.call(&run, &sight.live, &members);
        lock(&self.shared.directory).expire(now, &|node| self.shared.is_member(node));
        run.loopback.retain(&members);
        run.guard.set_lives(&sight.held, sight.full);
        self.shared.notify();
    }

    fn freeze(&mut self, now: Instant) {
        self.frozen_until = Some(now + self.shared.config.interval * FREEZE_INTERVALS);
    }

    fn judge(&mut self, live: &BTreeSet<NodeId>, members: &BTreeSet<NodeId>, now: Instant) {
        if self.frozen_until.is_some_and(|until| now >= until) {
            self.frozen_until = None;
        }
        let recent = self.shared.config.interval * HEARD_INTERVALS;
        let mut heard = lock(&self.shared.heard);
        heard.retain(|_node, at| now.saturating_duration_since(*at) < recent);
        let mut directory = lock(&self.shared.directory);
        for node in members.iter().copied().filter(|node| *node != self.shared.me) {
            let up = live.contains(&node)
                || heard.contains_key(&node)
                || self.shared.world.heard_recently(node);
            if up || self.frozen_until.is_none() {
                directory.set_up(node, up);
            }
        }
    }

    /// Calls some of the members that chitchat does not hear of: its own list of seeds is fixed at
    /// start.
    fn call(&mut self, run: &Run, live: &BTreeSet<NodeId>, members: &BTreeSet<NodeId>) {
        let silent: Vec<NodeId> =
            members.difference(live).copied().filter(|node| *node != run.life.node).collect();
        for node in
            silent.iter().cycle().skip(self.next_call).take(CALLS_PER_TICK.min(silent.len()))
        {
            run.call(*node);
        }
        self.next_call = self.next_call.wrapping_add(CALLS_PER_TICK) % silent.len().max(1);
    }
}

impl Shared {
    async fn flush(&self) {
        let Some(run) = self.run.load_full() else { return };
        run.handle.with_chitchat(|chitchat| flush(self, &run, chitchat)).await;
    }

    async fn apply(&self, sight: &Sight) {
        let parked = lock(&self.directory).unpark(&|node| self.is_member(node));
        for (record, source) in parked {
            self.take(record, source);
        }
        for (at, change) in sight.changes.iter().enumerate() {
            // A cold start checks thousands of signatures; others want the thread too.
            if at % 64 == 63 {
                tokio::task::yield_now().await;
            }
            self.apply_one(change, &sight.held);
        }
    }

    fn apply_one(&self, change: &Change, held: &BTreeSet<Life>) {
        let life = change.life;
        if change.key == OBJECTS_KEY {
            let later = Life { generation: u64::MAX, ..life };
            let newest = held.range(life..=later).next_back() == Some(&life);
            if newest && life.node != self.me && self.is_member(life.node) {
                lock(&self.directory).set_objects(life.node, &change.value);
            }
        } else if let Ok(record) = SignedRecord::parse(life.node, &change.key, &change.value) {
            self.take(record, Source::Gossip);
        } else {
            // A key of a later version of vxmesh: passed on by chitchat, and nothing to us.
            tracing::trace!(owner = %life.node, key = change.key, "unknown key");
        }
    }
}

fn flush(shared: &Shared, run: &Run, chitchat: &mut Chitchat) {
    let state = chitchat.self_node_state();
    lock(&shared.publisher).flush(state);
    run.guard.set_own_version(state.max_version());
}

fn look(seen: &mut Seen, chitchat: &mut Chitchat) -> Sight {
    let mut sight = Sight {
        live: chitchat.live_nodes().filter_map(life_of).map(|life| life.node).collect(),
        heartbeat: chitchat.self_node_state().heartbeat().into(),
        changes: seen.changes(chitchat.node_states().iter()),
        ..Sight::default()
    };
    let mut total = 0;
    for (id, state) in chitchat.node_states() {
        let Some(life) = life_of(id) else { continue };
        let keys = state.key_values_including_deleted().count();
        total += keys;
        sight.held.insert(life);
        if keys >= KEYS_PER_LIFE {
            sight.full.insert(life);
        }
    }
    if total >= KEYS {
        sight.full = sight.held.clone();
    }
    sight
}

fn chitchat_config(shared: &Shared, generation: u64) -> ChitchatConfig {
    let interval = shared.config.interval;
    let addr = address::of_node(shared.me);
    ChitchatConfig {
        chitchat_id: ChitchatId::new(shared.me.as_str(), generation, addr),
        cluster_id: shared.config.mesh.to_string(),
        gossip_interval: interval,
        listen_addr: addr,
        seed_nodes: shared
            .config
            .seeds
            .iter()
            .map(|node| address::of_node(*node).to_string())
            .collect(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: 8.0,
            sampling_window_size: 200,
            max_interval: interval * 10,
            initial_interval: interval,
            dead_node_grace_period: DEAD_GRACE,
        },
        marked_for_deletion_grace_period: TOMBSTONES_KEPT,
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V1,
    }
}
