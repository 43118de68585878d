//! This node's part in the gossip: it runs chitchat, publishes what this node claims, and keeps the
//! directory of what all nodes claim.
//!
//! Chitchat is supervised by the `keeper`: if its task ends, or if a peer shows that our state was
//! forged, it starts again under a higher generation, and the directory stays as it is in between.
//!
//! A peer is down when chitchat's failure detector says so *and* nothing was heard from it directly
//! *and* the data path heard nothing ([`World::heard_recently`]). A node that was starved itself
//! judges nobody until it has had time to hear from the others again.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use chitchat::ChitchatHandle;
use ring::signature::{Ed25519KeyPair, KeyPair};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use vxmesh_proto::{
    addr::NodeId,
    object::KeyRing,
    record::{Claim, Key, Record, RecordError, SignedRecord},
};

use crate::{
    address,
    directory::{Accepted, Directory, MeshEvent, Source},
    envelope::Life,
    guard::Guard,
    keeper::Keeper,
    limits::{PUSH, RENEWAL_EVERY},
    publisher::{OBJECTS_KEY, Publisher},
    transport::{Loopback, Pipe},
};

/// What gossip must know of the rest of the agent. Called often: answers come from memory.
pub trait World: KeyRing + Send + Sync + 'static {
    /// The members of the mesh that have not left; this node may be among them.
    fn members(&self) -> Vec<NodeId>;

    /// Whether the data path had an authenticated packet from the node in the last seconds.
    fn heard_recently(&self, node: NodeId) -> bool;
}

/// How to start.
pub struct Config {
    /// The mesh.
    pub mesh: NodeId,
    /// This node's identity.
    pub pair: Arc<Ed25519KeyPair>,
    /// This life of the agent: persisted max(last + 1, unix ms).
    pub incarnation: u64,
    /// Time between rounds of gossip; 500 ms suits.
    pub interval: Duration,
    /// Peers to call first, as they were known when the agent stopped.
    pub seeds: Vec<NodeId>,
    /// What this node claims from the start. Complete: what it claimed in an earlier life and does
    /// not claim now is withdrawn when it comes back from a peer.
    pub claims: Vec<Claim>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("mesh", &self.mesh)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

/// Why gossip did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// One of the first claims cannot be signed.
    #[error("a claim of this node cannot be published: {0}")]
    Claim(#[from] RecordError),
    /// `Claim::Gone` among the first claims.
    #[error("the first claims of a node cannot be `gone`")]
    Gone,
    /// Chitchat did not start.
    #[error(
        "gossip cannot start: {0}; are there file descriptors left, and is the loopback interface up?"
    )]
    Chitchat(String),
}

/// Counters of what was kept out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages refused whole.
    pub refused: u64,
    /// Nodes cut out of messages.
    pub cut: u64,
    /// Messages lost on the way to chitchat.
    pub lost: u64,
    /// Records that their owner did not sign.
    pub forged: u64,
    /// Pairs of records that an owner signed with one stamp.
    pub equivocations: u64,
    /// How often chitchat ended and was started again.
    pub restarts: u64,
    /// How often it was started again because this node's state had been forged, or that of a later
    /// life was met.
    pub renewals: u64,
    /// Records that this node's key signed in a later life than this one.
    pub later_lives: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) refused: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) forged: AtomicU64,
    pub(crate) equivocations: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) renewals: AtomicU64,
    pub(crate) later_lives: AtomicU64,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// New records.
    pub accepted: usize,
    /// Records that were known.
    pub stale: usize,
    /// Records that wait for their owner to become a member.
    pub parked: usize,
    /// Records that were not signed by their owner, or found no room.
    pub refused: usize,
}

/// One run of chitchat.
pub(crate) struct Run {
    pub(crate) life: Life,
    pub(crate) handle: ChitchatHandle,
    pub(crate) loopback: Arc<Loopback>,
    pub(crate) guard: Guard,
}

pub(crate) struct Shared {
    pub(crate) me: NodeId,
    pub(crate) config: Config,
    pub(crate) pipe: Arc<dyn Pipe>,
    pub(crate) world: Arc<dyn World>,
    pub(crate) directory: Mutex<Directory>,
    pub(crate) publisher: Mutex<Publisher>,
    pub(crate) run: ArcSwapOption<Run>,
    pub(crate) heard: Mutex<BTreeMap<NodeId, Instant>>,
    pub(crate) counts: Counts,
    /// The incarnation of this life; it grows when a later one is met.
    pub(crate) incarnation: AtomicU64,
    /// When a record of a later life than this one was met last.
    pub(crate) later_life: Mutex<Option<Instant>>,
    pub(crate) unflushed: Notify,
    pub(crate) poisoned: Notify,
    pub(crate) changed: Notify,
}

/// This node's gossip. It ends when this is dropped.
pub struct Gossip {
    shared: Arc<Shared>,
    stop: watch::Sender<()>,
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip").field("me", &self.shared.me).finish_non_exhaustive()
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        // First, so that the keeper does not take the end of chitchat for a failure.
        self.stop.send_replace(());
        self.shared.run.store(None);
    }
}

impl Gossip {
    /// Starts gossiping.
    ///
    /// # Errors
    /// A claim cannot be signed, or there are no sockets.
    pub async fn start(
        config: Config,
        pipe: Arc<dyn Pipe>,
        world: Arc<dyn World>,
    ) -> Result<Self, StartError> {
        let me = NodeId::of_public_key(config.pair.public_key().as_ref());
        let incarnation = config.incarnation;
        let publisher = Publisher::new(Arc::clone(&config.pair), config.mesh, incarnation);
        let shared = Arc::new(Shared {
            me,
            config,
            pipe,
            world,
            directory: Mutex::default(),
            publisher: Mutex::new(publisher),
            run: ArcSwapOption::empty(),
            heard: Mutex::default(),
            counts: Counts::default(),
            incarnation: AtomicU64::new(incarnation),
            later_life: Mutex::default(),
            unflushed: Notify::new(),
            poisoned: Notify::new(),
            changed: Notify::new(),
        });
        lock(&shared.directory).set_up(me, true);
        for claim in &shared.config.claims {
            shared.say(claim.key().ok_or(StartError::Gone)?, claim)?;
        }
        let mut keeper = Keeper::new(Arc::clone(&shared));
        keeper.start_run().await?;
        let (stop, stopped) = watch::channel(());
        tokio::spawn(keeper.keep(stopped));
        Ok(Self { shared, stop })
    }

    /// Takes a message that an authenticated peer sent through its [`Pipe`]. Never waits.
    pub fn handle_bytes(&self, from: NodeId, bytes: &[u8]) {
        self.shared.handle_bytes(from, bytes);
    }

    /// Takes records that an authenticated peer pushed, as (owner, key, text). The owner need not
    /// be the peer.
    pub fn handle_push(&self, from: NodeId, records: &[(NodeId, String, String)]) -> Pushed {
        let mut pushed = Pushed::default();
        if !self.shared.is_member(from) {
            pushed.refused = records.len();
            return pushed;
        }
        self.shared.hear(from);
        lock(&self.shared.directory).set_up(from, true);
        pushed.refused = records.len().saturating_sub(PUSH);
        for (owner, key, text) in records.iter().take(PUSH) {
            let taken = SignedRecord::parse(*owner, key, text)
                .map_or(Taken::Refused, |record| self.shared.take(record, Source::Push));
            match taken {
                Taken::New => pushed.accepted += 1,
                Taken::Stale => pushed.stale += 1,
                Taken::Parked => pushed.parked += 1,
                Taken::Refused => pushed.refused += 1,
            }
        }
        self.shared.notify();
        pushed
    }

    /// Publishes a claim of this node. The caller pushes the record to all peers that are up.
    ///
    /// # Errors
    /// The claim is too large, or is [`Claim::Gone`], which [`Self::withdraw`] is for.
    pub fn publish(&self, claim: &Claim) -> Result<SignedRecord, RecordError> {
        let record = self.shared.say(claim.key().ok_or(RecordError::Misplaced)?, claim)?;
        self.shared.notify();
        Ok(record)
    }

    /// Publishes another version of what stands under a key, if `change` makes one of it; nobody
    /// publishes anything in between. The caller pushes the record to all peers that are up.
    ///
    /// # Errors
    /// The claim is too large, or belongs under another key.
    pub fn edit(
        &self,
        key: Key,
        change: impl FnOnce(&Claim) -> Option<Claim>,
    ) -> Result<Option<SignedRecord>, RecordError> {
        let record = self.shared.edit(key, change)?;
        if record.is_some() {
            self.shared.notify();
        }
        Ok(record)
    }

    /// Withdraws what stands under a key. The caller pushes the record to all peers that are up.
    ///
    /// # Errors
    /// None in practice: the record is short.
    pub fn withdraw(&self, key: Key) -> Result<SignedRecord, RecordError> {
        let record = self.shared.say(key, &Claim::Gone)?;
        self.shared.notify();
        Ok(record)
    }

    /// Publishes the hash of this node's set of mesh objects.
    pub fn set_objects_hash(&self, hash: &str) {
        lock(&self.shared.publisher).set(OBJECTS_KEY.to_owned(), hash.into());
        self.shared.unflushed.notify_one();
    }

    /// Starts an exchange with a peer at once.
    pub fn call(&self, node: NodeId) {
        if let Some(run) = &*self.shared.run.load() {
            run.call(node);
        }
    }

    /// Waits until there are events to poll. For one reader.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// What changed since the last call, in a fixed order.
    pub fn poll_events(&self) -> Vec<MeshEvent> {
        lock(&self.shared.directory).poll_events()
    }

    /// Looks at the directory. Keep it short: pushes wait.
    pub fn with_directory<T>(&self, look: impl FnOnce(&Directory) -> T) -> T {
        look(&lock(&self.shared.directory))
    }

    /// When a record was met last that this node's key signed in a later life than this one:
    /// another agent has its key.
    #[must_use]
    pub fn later_life(&self) -> Option<Instant> {
        *lock(&self.shared.later_life)
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.shared.me
    }

    /// What was kept out so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let counts = &self.shared.counts;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            refused: get(&counts.refused),
            cut: get(&counts.cut),
            lost: get(&counts.lost),
            forged: get(&counts.forged),
            equivocations: get(&counts.equivocations),
            restarts: get(&counts.restarts),
            renewals: get(&counts.renewals),
            later_lives: get(&counts.later_lives),
        }
    }
}

pub(crate) enum Taken {
    New,
    Stale,
    Parked,
    Refused,
}

impl Shared {
    pub(crate) fn is_member(&self, node: NodeId) -> bool {
        self.world.public_key(node).is_some()
    }

    fn hear(&self, node: NodeId) {
        lock(&self.heard).insert(node, Instant::now());
    }

    pub(crate) fn notify(&self) {
        if lock(&self.directory).has_events() {
            self.changed.notify_one();
        }
    }

    fn say(&self, key: Key, claim: &Claim) -> Result<SignedRecord, RecordError> {
        let now = Instant::now();
        let record = lock(&self.publisher).sign(key, claim, now)?;
        self.keep(record, now)
    }

    fn edit(
        &self,
        key: Key,
        change: impl FnOnce(&Claim) -> Option<Claim>,
    ) -> Result<Option<SignedRecord>, RecordError> {
        let now = Instant::now();
        let record = {
            let mut publisher = lock(&self.publisher);
            let Some(claim) = publisher.said(key).and_then(change) else { return Ok(None) };
            publisher.sign(key, &claim, now)?
        };
        self.keep(record, now).map(Some)
    }

    fn keep(&self, record: SignedRecord, now: Instant) -> Result<SignedRecord, RecordError> {
        let own_key = self.config.pair.public_key().as_ref().try_into();
        let own_key: [u8; 32] = own_key.map_err(|_fault| RecordError::NotOwnersKey)?;
        let checked = record.verify(self.config.mesh, &own_key)?;
        lock(&self.directory).insert(checked, Source::Local, now);
        self.unflushed.notify_one();
        Ok(record)
    }

    fn handle_bytes(&self, from: NodeId, bytes: &[u8]) {
        let Some(run) = self.run.load_full() else { return };
        let count = |count: &AtomicU64, by: usize| {
            count.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
        };
        let admitted = match run.guard.check(from, bytes, &|node| self.is_member(node)) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                tracing::debug!(%from, %refusal, "gossip refused");
                return count(&self.counts.refused, 1);
            }
        };
        self.hear(from);
        count(&self.counts.cut, admitted.cut);
        if admitted.poisoned {
            tracing::warn!(%from, "others hold more of this node's life than it knows: it goes on from an image, or its state was forged");
            self.poisoned.notify_one();
        }
        for (key, value) in &admitted.later {
            if let Ok(record) = SignedRecord::parse(self.me, key, value) {
                self.take(record, Source::Gossip);
            }
        }
        if !admitted.later.is_empty() {
            self.notify();
        }
        if run.loopback.deliver(from, &admitted.bytes).is_err() {
            count(&self.counts.lost, 1);
        }
    }

    /// Checks a record and puts it into the directory.
    pub(crate) fn take(&self, record: SignedRecord, source: Source) -> Taken {
        if lock(&self.directory).holds(&record) {
            return Taken::Stale;
        }
        let owner = record.owner;
        let Some(key) = self.world.public_key(owner) else {
            lock(&self.directory).park(record, source);
            return Taken::Parked;
        };
        match record.verify(self.config.mesh, &key) {
            Ok(record) if owner == self.me => {
                self.take_own(&record);
                Taken::Stale
            }
            Ok(record) => self.take_checked(record, source),
            Err(fault) => {
                tracing::warn!(%owner, key = %record.key, %fault, "record refused");
                self.counts.forged.fetch_add(1, Ordering::Relaxed);
                Taken::Refused
            }
        }
    }

    fn take_checked(&self, record: Record, source: Source) -> Taken {
        let (owner, key) = (record.owner(), record.key());
        let accepted = lock(&self.directory).insert(record, source, Instant::now());
        match accepted {
            Accepted::New => Taken::New,
            Accepted::Stale => Taken::Stale,
            Accepted::Full => {
                tracing::warn!(%owner, %key, "no room for the record");
                Taken::Refused
            }
            Accepted::Equivocation { kept } => {
                tracing::warn!(%owner, %key, "the owner signed two records with one stamp");
                self.counts.equivocations.fetch_add(1, Ordering::Relaxed);
                if kept { Taken::New } else { Taken::Stale }
            }
        }
    }

    /// A record of this node came back: it may be from a life that this one knows nothing of.
    fn take_own(&self, record: &Record) {
        let later = record.stamp().incarnation;
        if later > self.incarnation.load(Ordering::Relaxed) {
            self.meet_later_life(later);
        }
        let answer = lock(&self.publisher).answer_to(record);
        if let Some(claim) = answer {
            tracing::debug!(key = %record.key(), "a record of an earlier life of this node is answered");
            if let Err(fault) = self.say(record.key(), &claim) {
                tracing::warn!(key = %record.key(), %fault, "it cannot be answered");
            }
        }
    }
}

impl Shared {
    /// Others believe the later life more than this one, until this one is later still.
    fn meet_later_life(&self, later: u64) {
        self.counts.later_lives.fetch_add(1, Ordering::Relaxed);
        let before = lock(&self.later_life).replace(Instant::now());
        if before.is_none_or(|at| at.elapsed() >= RENEWAL_EVERY) {
            tracing::warn!(
                "another agent speaks as this node, later than this one: its data directory was copied and started; stop the copy"
            );
        }
        let incarnation = later.saturating_add(1);
        lock(&self.publisher).live_on_as(incarnation);
        self.incarnation.fetch_max(incarnation, Ordering::Relaxed);
        self.poisoned.notify_one();
    }
}

impl Run {
    pub(crate) fn call(&self, node: NodeId) {
        // An error means that this run has ended; the keeper sees that for itself.
        if self.handle.gossip(address::of_node(node)).is_err() {
            tracing::debug!(%node, "no gossip to call with");
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind, which is still better than none.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
