//! A mesh in one process: real memberships, real chitchat, and pipes that can be cut or lose
//! messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use ring::signature::{Ed25519KeyPair, KeyPair};
use vxmesh_proto::{
    addr::NodeId,
    object::KeyRing,
    record::{Claim, Key, SignedRecord},
};

use crate::{
    directory::Entry,
    membership::{Config, Gossip, StartError, World},
    transport::Pipe,
};

/// What all nodes share: who is a member, who reaches whom.
#[derive(Default)]
pub struct Network {
    keys: Mutex<BTreeMap<NodeId, [u8; 32]>>,
    nodes: Mutex<BTreeMap<NodeId, Weak<Gossip>>>,
    cut: Mutex<BTreeSet<(NodeId, NodeId)>>,
    loss_percent: AtomicU32,
    sent: AtomicU64,
    bytes: AtomicU64,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("members", &lock(&self.keys).len()).finish_non_exhaustive()
    }
}

impl Network {
    /// Makes a node a member for all.
    pub fn admit(&self, pair: &Ed25519KeyPair) -> NodeId {
        let key = pair.public_key().as_ref();
        let node = NodeId::of_public_key(key);
        if let Ok(key) = key.try_into() {
            lock(&self.keys).insert(node, key);
        }
        node
    }

    /// Cuts every link between the two sides.
    pub fn cut(&self, left: &[NodeId], right: &[NodeId]) {
        let mut cut = lock(&self.cut);
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            cut.insert((a, b));
            cut.insert((b, a));
        }
    }

    /// Heals all links.
    pub fn heal(&self) {
        lock(&self.cut).clear();
    }

    /// Loses this share of all messages.
    pub fn set_loss_percent(&self, percent: u32) {
        self.loss_percent.store(percent, Ordering::Relaxed);
    }

    /// Messages and bytes sent so far.
    pub fn sent(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// The node, if it runs and `from` reaches it.
    fn reach(&self, from: NodeId, to: NodeId) -> Option<Arc<Gossip>> {
        if lock(&self.cut).contains(&(from, to)) {
            return None;
        }
        lock(&self.nodes).get(&to)?.upgrade()
    }

    fn loses(&self) -> bool {
        let at = self.sent.fetch_add(1, Ordering::Relaxed);
        // Knuth's multiplicative hash: spreads the losses without a source of randomness.
        let draw = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        draw % 100 < u64::from(self.loss_percent.load(Ordering::Relaxed))
    }
}

struct NodePipe {
    network: Arc<Network>,
    me: NodeId,
}

impl Pipe for NodePipe {
    fn send(&self, to: NodeId, bytes: Bytes) {
        self.network
            .bytes
            .fetch_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.network.loses() {
            return;
        }
        if let Some(node) = self.network.reach(self.me, to) {
            node.handle_bytes(self.me, &bytes);
        }
    }
}

struct NodeWorld(Arc<Network>);

impl KeyRing for NodeWorld {
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]> {
        lock(&self.0.keys).get(&node).copied()
    }
}

impl World for NodeWorld {
    fn members(&self) -> Vec<NodeId> {
        lock(&self.0.keys).keys().copied().collect()
    }

    fn heard_recently(&self, _node: NodeId) -> bool {
        false
    }
}

/// One node of the mesh.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its identity.
    pub pair: Arc<Ed25519KeyPair>,
    /// Its gossip, while it runs.
    pub gossip: Option<Arc<Gossip>>,
    incarnation: u64,
}

/// A mesh of nodes that all know the first three as seeds.
#[derive(Debug)]
pub struct Cluster {
    /// The links.
    pub network: Arc<Network>,
    /// The nodes.
    pub nodes: Vec<Node>,
    interval: Duration,
}

impl Cluster {
    /// The mesh that all clusters are.
    #[must_use]
    pub fn mesh() -> NodeId {
        NodeId::of_public_key(b"the mesh of tests")
    }

    /// Starts nodes with these claims each.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start(
        count: u8,
        interval: Duration,
        claims: impl Fn(u8) -> Vec<Claim>,
    ) -> Result<Self, StartError> {
        let network = Arc::new(Network::default());
        let mut nodes = Vec::new();
        for seed in 0..count {
            let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]);
            let pair = Arc::new(pair.map_err(|fault| StartError::Chitchat(fault.to_string()))?);
            nodes.push(Node { id: network.admit(&pair), pair, gossip: None, incarnation: 0 });
        }
        let mut cluster = Self { network, nodes, interval };
        for index in 0..count {
            cluster.start_node(index.into(), claims(index)).await?;
        }
        Ok(cluster)
    }

    /// Starts a node in a new life.
    ///
    /// # Errors
    /// There is no such node, or it does not start.
    pub async fn start_node(&mut self, index: usize, claims: Vec<Claim>) -> Result<(), StartError> {
        let seeds = self.nodes.iter().take(3).map(|node| node.id).collect();
        let missing = || StartError::Chitchat("no such node".to_owned());
        let node = self.nodes.get_mut(index).ok_or_else(missing)?;
        node.incarnation += 1;
        let config = Config {
            mesh: Self::mesh(),
            pair: Arc::clone(&node.pair),
            incarnation: node.incarnation,
            interval: self.interval,
            seeds,
            claims,
        };
        let pipe = Arc::new(NodePipe { network: Arc::clone(&self.network), me: node.id });
        let world = Arc::new(NodeWorld(Arc::clone(&self.network)));
        let gossip = Arc::new(Gossip::start(config, pipe, world).await?);
        lock(&self.network.nodes).insert(node.id, Arc::downgrade(&gossip));
        node.gossip = Some(gossip);
        Ok(())
    }

    /// Kills a node: it says nothing more.
    pub fn kill(&mut self, index: usize) {
        if let Some(node) = self.nodes.get_mut(index) {
            node.gossip = None;
        }
    }

    /// Has a node that was killed know nothing of its lives: its next one is the first again.
    pub fn set_back(&mut self, index: usize) {
        if let Some(node) = self.nodes.get_mut(index) {
            node.incarnation = 0;
        }
    }

    /// The nodes that run.
    pub fn running(&self) -> impl Iterator<Item = &Arc<Gossip>> {
        self.nodes.iter().filter_map(|node| node.gossip.as_ref())
    }

    /// Pushes a record of a node to all that it reaches, as the agent does after a change.
    pub fn push(&self, from: NodeId, record: &SignedRecord) {
        let message = [(record.owner, record.key.to_string(), record.text.to_string())];
        for to in self.nodes.iter().map(|node| node.id).filter(|to| *to != from) {
            if let Some(node) = self.network.reach(from, to) {
                node.handle_push(from, &message);
            }
        }
    }

    /// Waits until a condition holds; the time it took, or nothing if it did not within a minute.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            if condition(self) {
                return Some(start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Whether all running nodes see the same records stand, `records` in number (I11).
    #[must_use]
    pub fn agrees(&self, records: usize) -> bool {
        let mut views = self.running().map(|gossip| view(gossip));
        let first = views.next().unwrap_or_default();
        first.len() == records && views.all(|view| view == first)
    }

    /// Whether every running node sees exactly the running nodes up.
    #[must_use]
    pub fn sees_running_up(&self) -> bool {
        let running: BTreeSet<NodeId> = self.running().map(|gossip| gossip.me()).collect();
        self.running().all(|gossip| {
            gossip.with_directory(|directory| directory.up().collect::<BTreeSet<_>>()) == running
        })
    }
}

/// What stands in a node's directory, as text; what is gone does not stand.
#[must_use]
pub fn view(gossip: &Gossip) -> BTreeMap<(NodeId, Key), Arc<str>> {
    gossip.with_directory(|directory| {
        let row = |entry: &Entry| {
            ((entry.record.owner(), entry.record.key()), Arc::clone(entry.record.text()))
        };
        let stands = |entry: &&Entry| *entry.record.claim() != Claim::Gone;
        directory.records().filter(stands).map(row).collect()
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
