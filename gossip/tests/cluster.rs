//! Meshes of real memberships in one process, with the real chitchat over pipes that can be cut.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests"
)]

use std::time::Duration;

use vxmesh_gossip::{
    directory::{MeshEvent, Source},
    testing::{Cluster, view},
};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId},
    record::{Claim, EndpointClaim, Key, NodeClaim, SignedRecord, Stamp},
};

const INTERVAL: Duration = Duration::from_millis(100);
const NODES: u8 = 20;

fn endpoint_id(node: u8, index: u8) -> EndpointId {
    EndpointId::from_random([node, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

fn endpoint(node: u8, index: u8) -> Claim {
    Claim::Endpoint(EndpointClaim {
        id: endpoint_id(node, index),
        network: NetworkId::from_random([1; 16]),
        name: format!("e{node}-{index}").parse().unwrap(),
        aliases: Vec::new(),
        mac: MacAddr([2, 0, 0, 0, node, index]),
        ips: vec![[10, 0, node, index].into()],
        incarnation: 1,
        labels: Default::default(),
        router: false,
        health: std::collections::BTreeMap::new(),
    })
}

fn claims(node: u8) -> Vec<Claim> {
    let own = Claim::Node(NodeClaim {
        name: format!("h{node}").parse().unwrap(),
        control: vec![([192, 0, 2, node], 7760).into()],
        vteps: vec![([192, 0, 2, node], 7761).into()],
        aes: true,
        drained: None,
        zone: None,
        unpublished: Default::default(),
    });
    std::iter::once(own).chain((0..5).map(|index| endpoint(node, index))).collect()
}

const ROWS: usize = NODES as usize * 6;

/// One mesh at a time: twenty agents share this machine's cores as it is.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn converged() -> Cluster {
    let cluster = Cluster::start(NODES, INTERVAL, claims).await.unwrap();
    let up = cluster.until(Cluster::sees_running_up).await.expect("all are up");
    println!("cold start of {NODES} nodes, all up: {up:?}");
    let took = cluster.until(|cluster| cluster.agrees(ROWS)).await;
    println!("cold start of {NODES} nodes, {ROWS} records: {:?}", took.expect("all agree"));
    cluster
}

fn has(cluster: &Cluster, record: &SignedRecord) -> bool {
    cluster.running().all(|gossip| gossip.with_directory(|directory| directory.holds(record)))
}

fn quiet_counters(cluster: &Cluster) {
    for gossip in cluster.running() {
        let counters = gossip.counters();
        assert_eq!((counters.refused, counters.cut, counters.forged), (0, 0, 0), "{counters:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_converges_a_change_reaches_all_and_the_dead_are_noticed() {
    let _alone = ALONE.lock().await;
    let mut cluster = converged().await;
    let publisher = cluster.nodes[7].gossip.clone().unwrap();

    // Gossip alone.
    let record = publisher.publish(&endpoint(7, 100)).unwrap();
    let took = cluster.until(|cluster| has(cluster, &record)).await;
    println!("one change reaches all by gossip: {:?}", took.expect("the change reaches all"));
    assert_eq!(
        cluster.nodes[3]
            .gossip
            .as_ref()
            .unwrap()
            .with_directory(|d| d.get(record.owner, record.key).unwrap().source),
        Source::Gossip
    );

    // Push: there when the call returns.
    let record = publisher.publish(&endpoint(7, 101)).unwrap();
    cluster.push(publisher.me(), &record);
    assert!(has(&cluster, &record));
    let source = |c: &Cluster| {
        c.nodes[3]
            .gossip
            .as_ref()
            .unwrap()
            .with_directory(|d| d.get(record.owner, record.key).unwrap().source)
    };
    assert_eq!(source(&cluster), Source::Push);

    // Withdrawn: its row goes by the owner's word.
    let watcher = cluster.nodes[3].gossip.clone().unwrap();
    watcher.poll_events();
    let gone = publisher.withdraw(record.key).unwrap();
    let took = cluster.until(|cluster| has(cluster, &gone)).await;
    println!("a withdrawal reaches all by gossip: {:?}", took.expect("the withdrawal reaches all"));
    assert!(
        watcher.poll_events().contains(&MeshEvent::RecordGone { owner: gone.owner, key: gone.key })
    );

    // The hash of the mesh objects.
    publisher.set_objects_hash("abcd");
    let told = |cluster: &Cluster| {
        cluster.running().filter(|gossip| gossip.me() != publisher.me()).all(|gossip| {
            gossip.with_directory(|d| {
                d.objects().any(|(node, hash)| node == publisher.me() && &**hash == "abcd")
            })
        })
    };
    assert!(cluster.until(told).await.is_some());
    quiet_counters(&cluster);

    // Killed: down on all, and its records stay.
    drop(publisher);
    let dead = cluster.nodes[7].id;
    cluster.kill(7);
    watcher.poll_events();
    let took = cluster.until(Cluster::sees_running_up).await;
    println!("a killed node is down on all: {:?}", took.expect("all notice"));
    assert!(watcher.poll_events().contains(&MeshEvent::NodeDown(dead)));
    assert_eq!(watcher.with_directory(|d| d.records_of(dead).count()), 8);

    // Back in a new life without one of its endpoints: the old row is withdrawn, nothing else is.
    cluster.start_node(7, claims(7)).await.unwrap();
    let old = Key::Endpoint(endpoint_id(7, 100));
    let withdrawn = |cluster: &Cluster| {
        cluster.running().all(|gossip| {
            gossip.with_directory(|d| {
                d.get(dead, old).is_some_and(|entry| *entry.record.claim() == Claim::Gone)
            })
        })
    };
    let took = cluster
        .until(|cluster| cluster.sees_running_up() && cluster.agrees(ROWS) && withdrawn(cluster))
        .await;
    println!("it is back and agrees with all: {:?}", took.expect("it returns"));
    assert!(watcher.poll_events().contains(&MeshEvent::NodeUp(dead)));
    quiet_counters(&cluster);
}

/// Chitchat takes the earlier lives of a node for peers, also in that node itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_gossip_with_its_earlier_lives() {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start(3, INTERVAL, claims).await.unwrap();
    for _life in 0..3 {
        assert!(cluster.until(|cluster| cluster.agrees(18)).await.is_some());
        cluster.kill(0);
        cluster.start_node(0, claims(0)).await.unwrap();
    }
    // Each change takes a round or more, and each round chooses some of the dead.
    let publisher = cluster.nodes[0].gossip.clone().unwrap();
    for index in 100..110 {
        let record = publisher.publish(&endpoint(0, index)).unwrap();
        assert!(cluster.until(|cluster| has(cluster, &record)).await.is_some());
    }
    quiet_counters(&cluster);
}

/// As after a copy of its data directory ran elsewhere for a while, or a rollback together with a
/// clock that was set back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_wins_over_a_later_life_of_itself() {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start(3, INTERVAL, claims).await.unwrap();
    assert!(cluster.until(|cluster| cluster.agrees(18)).await.is_some());
    let twin = claims(0).into_iter().take(1).chain([endpoint(0, 77)]).collect();
    cluster.kill(0);
    cluster.start_node(0, twin).await.unwrap();
    assert!(cluster.until(|cluster| cluster.agrees(14)).await.is_some());
    assert!(cluster.running().all(|gossip| gossip.later_life().is_none()));
    cluster.kill(0);
    cluster.set_back(0);
    cluster.start_node(0, claims(0)).await.unwrap();
    let first = cluster.nodes[0].gossip.clone().unwrap();
    let took = cluster.until(|cluster| cluster.agrees(18) && cluster.sees_running_up()).await;
    println!("a node wins over a later life of itself: {:?}", took.expect("it wins"));
    assert!(first.later_life().is_some());
    let mut expected = claims(0);
    expected.sort_by_key(|claim| claim.key());
    let said: Vec<Claim> = cluster.nodes[1].gossip.as_ref().unwrap().with_directory(|directory| {
        let records = directory.records_of(first.me()).map(|entry| entry.record.claim().clone());
        records.filter(|claim| *claim != Claim::Gone).collect()
    });
    assert_eq!(said, expected);
    // What it says next is believed at once, also what has no signature of its own.
    first.set_objects_hash("abcd");
    let told = |cluster: &Cluster| {
        cluster.running().filter(|gossip| gossip.me() != first.me()).all(|gossip| {
            gossip.with_directory(|d| {
                d.objects().any(|(node, hash)| node == first.me() && &**hash == "abcd")
            })
        })
    };
    assert!(cluster.until(told).await.is_some());
}

/// As after a machine went on from an image of its memory: the same life, with older stamps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_wins_over_what_it_forgot_of_its_own_life() {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start(3, INTERVAL, claims).await.unwrap();
    assert!(cluster.until(|cluster| cluster.agrees(18)).await.is_some());
    let first = cluster.nodes[0].gossip.clone().unwrap();
    // After the image was made: much is said again, one thing is new, and one is taken back.
    for claim in claims(0).iter().cycle().take(30) {
        first.publish(claim).unwrap();
    }
    first.publish(&endpoint(0, 77)).unwrap();
    let last = first.withdraw(Key::Endpoint(endpoint_id(0, 0))).unwrap();
    // By gossip alone, so that chitchat has it, too.
    assert!(cluster.until(|it| has(it, &last) && it.agrees(18)).await.is_some());
    drop(first);
    cluster.kill(0);
    cluster.set_back(0);
    cluster.start_node(0, claims(0)).await.unwrap();
    let restored = cluster.nodes[0].gossip.clone().unwrap();
    let mut expected = claims(0);
    expected.sort_by_key(Claim::key);
    let is_said = |cluster: &Cluster| {
        cluster.running().all(|gossip| {
            gossip.with_directory(|directory| {
                let records = directory.records_of(restored.me());
                let said = records.map(|entry| entry.record.claim().clone());
                said.filter(|claim| *claim != Claim::Gone).eq(expected.iter().cloned())
            })
        })
    };
    let took = cluster.until(|it| it.agrees(18) && it.sees_running_up() && is_said(it)).await;
    println!("a node wins over what it forgot: {:?}", took.expect("it wins"));
    // What it says next is believed at once.
    let next = restored.publish(&endpoint(0, 78)).unwrap();
    assert!(cluster.until(|cluster| has(cluster, &next)).await.is_some());
}

/// I11: after a partition with changes on both sides all nodes hold equal tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_with_changes_on_both_sides_heals() {
    let _alone = ALONE.lock().await;
    let cluster = converged().await;
    let ids: Vec<NodeId> = cluster.nodes.iter().map(|node| node.id).collect();
    let (left, right) = ids.split_at(10);
    cluster.network.cut(left, right);
    let watcher = cluster.nodes[0].gossip.clone().unwrap();
    let split = |_: &Cluster| right.iter().all(|node| !watcher.with_directory(|d| d.is_up(*node)));
    let took = cluster.until(split).await;
    println!("the other half is down: {:?}", took.expect("the cut is noticed"));
    for node in [2, 5, 12, 19] {
        let gossip = cluster.nodes[node].gossip.as_ref().unwrap();
        let seed = u8::try_from(node).unwrap();
        let record = gossip.publish(&endpoint(seed, 50)).unwrap();
        cluster.push(gossip.me(), &record);
        let record = gossip.withdraw(Key::Endpoint(endpoint_id(seed, 0))).unwrap();
        cluster.push(gossip.me(), &record);
    }
    assert!(!cluster.agrees(ROWS));
    // What the other half said stays while it is away.
    assert_eq!(watcher.with_directory(|d| d.records_of(right[0]).count()), 6);
    cluster.network.heal();
    let took = cluster.until(|cluster| cluster.agrees(ROWS) && cluster.sees_running_up()).await;
    println!("healed, all agree: {:?}", took.expect("all agree again"));
    quiet_counters(&cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_converges_though_a_third_of_all_messages_is_lost() {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start(8, INTERVAL, claims).await.unwrap();
    cluster.network.set_loss_percent(33);
    let took = cluster.until(|cluster| cluster.agrees(8 * 6)).await;
    println!("8 nodes with a third of the messages lost: {:?}", took.expect("all agree"));
}

/// Issue item 6: a record signed by the wrong node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_signed_by_the_wrong_node_is_refused() {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start(4, INTERVAL, claims).await.unwrap();
    assert!(cluster.until(|cluster| cluster.agrees(24)).await.is_some());
    let victim = cluster.nodes[1].id;
    let key = Key::Endpoint(endpoint_id(1, 0));
    let before = view(cluster.nodes[2].gossip.as_ref().unwrap());

    // Node 0 signs with its own key what node 1 should say.
    let stamp = Stamp { incarnation: u64::MAX, seq: 1 };
    let forged =
        SignedRecord::sign(&cluster.nodes[0].pair, Cluster::mesh(), key, stamp, &endpoint(1, 0))
            .unwrap();
    let target = cluster.nodes[2].gossip.as_ref().unwrap();
    let pushed = target
        .handle_push(cluster.nodes[0].id, &[(victim, key.to_string(), forged.text.to_string())]);
    assert_eq!((pushed.accepted, pushed.refused), (0, 1));
    // A relay changes one byte of what node 1 did say.
    let said = before[&(victim, key)].replace("e1-0", "e1-9");
    let pushed = target.handle_push(cluster.nodes[0].id, &[(victim, key.to_string(), said)]);
    assert_eq!((pushed.accepted, pushed.refused), (0, 1));
    assert_eq!(target.counters().forged, 2);

    // Node 3 gossips under its own name a record that node 0 signed for itself.
    let stolen = &before[&(cluster.nodes[0].id, Key::Node)];
    let pushed = target.handle_push(
        cluster.nodes[3].id,
        &[(cluster.nodes[3].id, "node".to_owned(), stolen.to_string())],
    );
    assert_eq!((pushed.accepted, pushed.refused), (0, 1));
    assert_eq!(view(target), before);

    // Of a node that nobody knows: it waits, and is checked when the node becomes a member.
    let stranger = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[99; 32]).unwrap();
    let own = SignedRecord::sign(&stranger, Cluster::mesh(), key, stamp, &endpoint(1, 0)).unwrap();
    let pushed = target
        .handle_push(cluster.nodes[0].id, &[(own.owner, key.to_string(), own.text.to_string())]);
    assert_eq!((pushed.accepted, pushed.parked), (0, 1));
    assert_eq!(
        target
            .handle_push(own.owner, &[(own.owner, key.to_string(), own.text.to_string())])
            .refused,
        1
    );
    let id = cluster.network.admit(&stranger);
    let known = |_: &Cluster| view(target).contains_key(&(id, key));
    assert!(cluster.until(known).await.is_some());
}
