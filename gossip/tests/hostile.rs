//! What a hostile member can do to a real chitchat behind the guard: nothing that ends it, and
//! nothing that hides what others said.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config as TestConfig, TestRunner},
};
use ring::signature::{Ed25519KeyPair, KeyPair};
use tokio::{sync::mpsc, time::timeout};
use vxmesh_gossip::{
    envelope::{DigestEntry, Life, Message, Mutation, NodeDelta},
    limits::{VERSION, VERSION_JUMP},
    membership::{Config, Gossip, World},
    transport::Pipe,
};
use vxmesh_proto::{
    addr::{EndpointId, NodeId},
    object::KeyRing,
    record::{Claim, Key, NodeClaim, SignedRecord, Stamp},
};

const INCARNATION: u64 = 3;
const GENERATION: u64 = INCARNATION << 12;

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn node(seed: u8) -> NodeId {
    NodeId::of_public_key(pair(seed).public_key().as_ref())
}

fn mesh() -> NodeId {
    NodeId::of_public_key(b"mesh")
}

/// The members 0 to 3.
struct Members;

impl KeyRing for Members {
    fn public_key(&self, id: NodeId) -> Option<[u8; 32]> {
        (0..4)
            .find(|seed| node(*seed) == id)
            .map(|seed| pair(seed).public_key().as_ref().try_into().unwrap())
    }
}

impl World for Members {
    fn members(&self) -> Vec<NodeId> {
        (0..4).map(node).collect()
    }

    fn heard_recently(&self, _node: NodeId) -> bool {
        false
    }
}

/// Everything that node 0 sends.
struct Tap(mpsc::UnboundedSender<(NodeId, Bytes)>);

impl Pipe for Tap {
    fn send(&self, to: NodeId, bytes: Bytes) {
        // The test may be over.
        drop(self.0.send((to, bytes)));
    }
}

async fn victim(claims: Vec<Claim>) -> (Gossip, mpsc::UnboundedReceiver<(NodeId, Bytes)>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let config = Config {
        mesh: mesh(),
        pair: Arc::new(pair(0)),
        incarnation: INCARNATION,
        interval: Duration::from_millis(50),
        seeds: Vec::new(),
        claims,
    };
    (Gossip::start(config, Arc::new(Tap(tx)), Arc::new(Members)).await.unwrap(), rx)
}

/// An honest question of node 1, and the answer to it.
async fn ask(
    gossip: &Gossip,
    sent: &mut mpsc::UnboundedReceiver<(NodeId, Bytes)>,
    heartbeat: u64,
) -> Vec<DigestEntry> {
    let life = Life { node: node(1), generation: 1 };
    let digest = vec![DigestEntry { life, heartbeat, last_gc: 0, max_version: 0 }];
    let syn = Message::Syn { digest, cluster: mesh().to_string() }.encode().unwrap();
    while sent.try_recv().is_ok() {}
    for _attempt in 0..20 {
        gossip.handle_bytes(node(1), &syn);
        let answered = timeout(Duration::from_secs(1), async {
            while let Some((to, bytes)) = sent.recv().await {
                if let (true, Ok(Message::SynAck { digest, .. })) =
                    (to == node(1), Message::decode(&bytes))
                {
                    return digest;
                }
            }
            panic!("the pipe is closed");
        });
        if let Ok(digest) = answered.await {
            return digest;
        }
    }
    panic!("chitchat answers no more: {:?}", gossip.counters());
}

/// Numbers on both sides of the guard's bounds, and none that would harm a chitchat without a
/// guard.
fn number() -> impl Strategy<Value = u64> {
    let bounds = [VERSION_JUMP, VERSION].map(|bound| bound - 1..bound + 3);
    let [jump, version] = bounds;
    prop_oneof![3 => 0u64..8, 1 => jump, 1 => version]
}

fn life() -> impl Strategy<Value = Life> {
    let generation =
        prop_oneof![0u64..3, Just(GENERATION - 1), Just(GENERATION), Just(GENERATION + 1),];
    (0u8..6, generation).prop_map(|(seed, generation)| Life { node: node(seed), generation })
}

fn digest() -> impl Strategy<Value = Vec<DigestEntry>> {
    let entry = (life(), number(), number(), number()).prop_map(
        |(life, heartbeat, last_gc, max_version)| DigestEntry {
            life,
            heartbeat,
            last_gc,
            max_version,
        },
    );
    proptest::collection::vec(entry, 0..6).prop_map(|mut entries| {
        let own = Life { node: node(1), generation: 1 };
        entries.push(DigestEntry { life: own, heartbeat: 1, last_gc: 0, max_version: 0 });
        entries
    })
}

fn delta() -> impl Strategy<Value = Vec<NodeDelta>> {
    let key =
        prop_oneof!["[a-c]", Just("node".to_owned()), "[ -~]{0,3}", "[a-c]é", "[a-z]{120,140}"];
    let value = prop_oneof!["[ -~]{0,20}", "[a-z]{1020,1030}", any::<String>()];
    let mutation = (key, value, number(), 0u8..4)
        .prop_map(|(key, value, version, status)| Mutation { key, value, version, status });
    let mutations = (proptest::collection::vec(mutation, 0..5), any::<bool>()).prop_map(
        |(mut mutations, sorted)| {
            if sorted {
                mutations.sort_by_key(|mutation| mutation.version);
            }
            mutations
        },
    );
    let node = (life(), number(), number(), mutations, proptest::option::weighted(0.2, number()))
        .prop_map(|(life, last_gc, from_version, mutations, max_version)| {
            // Chitchat counts on a maximum that is none of smaller ones.
            let last = mutations.iter().map(|mutation| mutation.version).max().unwrap_or(0);
            let max_version = max_version.map(|max| max.max(last));
            NodeDelta { life, last_gc, from_version, mutations, max_version }
        });
    proptest::collection::vec(node, 0..4)
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let mesh = mesh().to_string();
    let message = prop_oneof![
        digest().prop_map(move |digest| Message::Syn { digest, cluster: mesh.clone() }),
        (digest(), delta()).prop_map(|(digest, delta)| Message::SynAck { digest, delta }),
        delta().prop_map(|delta| Message::Ack { delta }),
    ];
    let flip = proptest::option::weighted(0.2, (any::<prop::sample::Index>(), 1u8..));
    (message, flip).prop_map(|(message, flip)| {
        let mut bytes = message.encode().unwrap_or_default();
        if let (Some((at, flip)), false) = (flip, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        bytes
    })
}

/// Whatever the guard admits does not end chitchat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_the_guard_admits_ends_chitchat() {
    let (gossip, mut sent) = victim(Vec::new()).await;
    let mut runner = TestRunner::new(TestConfig::default());
    let strategy = message();
    for round in 1..=100u64 {
        for _message in 0..20 {
            let bytes = strategy.new_tree(&mut runner).unwrap().current();
            gossip.handle_bytes(node(1), &bytes);
        }
        let digest = ask(&gossip, &mut sent, round).await;
        // What is known of us is what we said.
        let own = digest
            .iter()
            .filter(|entry| entry.life.node == node(0))
            .max_by_key(|entry| entry.life.generation);
        assert_eq!(own.unwrap().max_version, 0);
        assert!(digest.iter().all(|entry| (0..4).any(|seed| node(seed) == entry.life.node)));
    }
    let counters = gossip.counters();
    assert_eq!(counters.restarts, 0, "{counters:?}");
    assert!(counters.cut > 100 && counters.refused > 100, "{counters:?}");
}

fn record(owner: u8, index: u8) -> (String, String) {
    let key = Key::Endpoint(EndpointId::from_random([index; 16]));
    let stamp = Stamp { incarnation: 1, seq: index.into() };
    let record = SignedRecord::sign(&pair(owner), mesh(), key, stamp, &Claim::Gone).unwrap();
    (key.to_string(), record.text.to_string())
}

fn ack(last_gc: u64, records: &[(u64, (String, String))]) -> Vec<u8> {
    let mutation = |(version, (key, value)): &(u64, (String, String))| Mutation {
        key: key.clone(),
        value: value.clone(),
        version: *version,
        status: 0,
    };
    let life = Life { node: node(2), generation: 1 };
    let mutations = records.iter().map(mutation).collect();
    let delta = NodeDelta { life, last_gc, from_version: 0, mutations, max_version: None };
    Message::Ack { delta: vec![delta] }.encode().unwrap()
}

async fn until_known(gossip: &Gossip, count: usize) {
    let known = async {
        while gossip.with_directory(|directory| directory.records_of(node(2)).count()) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), known).await.unwrap();
}

/// A reset wipes a node's state in chitchat and refills it bit by bit. The directory does not
/// blink.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_a_nodes_state_hides_no_row() {
    let (gossip, mut sent) = victim(Vec::new()).await;
    // Node 1 speaks of node 2, then passes on its state.
    let entry = |seed| DigestEntry {
        life: Life { node: node(seed), generation: 1 },
        heartbeat: 1,
        last_gc: 0,
        max_version: 0,
    };
    let syn = Message::Syn { digest: vec![entry(1), entry(2)], cluster: mesh().to_string() };
    gossip.handle_bytes(node(1), &syn.encode().unwrap());
    ask(&gossip, &mut sent, 2).await;
    let before: Vec<_> = (1..=3).map(|index| (u64::from(index), record(2, index))).collect();
    gossip.handle_bytes(node(1), &ack(0, &before));
    until_known(&gossip, 3).await;
    // Tombstones up to version 100 are forgotten: what we have is wiped, and one key comes back.
    gossip.handle_bytes(node(1), &ack(100, &[(101, record(2, 4))]));
    until_known(&gossip, 4).await;
    let digest = ask(&gossip, &mut sent, 3).await;
    let state = digest.iter().find(|entry| entry.life.node == node(2)).unwrap();
    assert_eq!((state.last_gc, state.max_version), (100, 101), "the reset took place");
    // A push that node 2 did not sign changes nothing either.
    let (key, text) = record(1, 4);
    assert_eq!(gossip.handle_push(node(1), &[(node(2), key, text)]).refused, 1);
    assert_eq!(gossip.with_directory(|directory| directory.records_of(node(2)).count()), 4);
}

/// A peer was told that we are further than we are: what we say would not be taken any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_state_was_forged_starts_a_new_life() {
    let claim = NodeClaim {
        name: "h0".parse().unwrap(),
        control: Vec::new(),
        vteps: Vec::new(),
        aes: false,
        drained: None,
        zone: None,
        unpublished: Default::default(),
    };
    let (gossip, mut sent) = victim(vec![Claim::Node(claim)]).await;
    let own = |generation, max_version| DigestEntry {
        life: Life { node: node(0), generation },
        heartbeat: 1,
        last_gc: 0,
        max_version,
    };
    let life = Life { node: node(1), generation: 1 };
    let peer = DigestEntry { life, heartbeat: 1, last_gc: 0, max_version: 0 };
    let syn =
        Message::Syn { digest: vec![peer, own(GENERATION, 1000)], cluster: mesh().to_string() };
    for _again in 0..3 {
        gossip.handle_bytes(node(1), &syn.encode().unwrap());
    }
    let renewed = async {
        loop {
            let digest = ask(&gossip, &mut sent, 2).await;
            if digest
                .iter()
                .any(|entry| entry.life == own(GENERATION + 1, 0).life && entry.max_version == 1)
            {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), renewed).await.unwrap();
    let counters = gossip.counters();
    assert_eq!((counters.renewals, counters.restarts), (1, 0));
}
