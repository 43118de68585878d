use std::time::Duration;

use ring::signature::{Ed25519KeyPair, KeyPair};
use vxmesh_proto::{addr::EndpointId, record::Stamp};

use super::*;

fn mesh() -> NodeId {
    NodeId::of_public_key(b"mesh")
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn node(seed: u8) -> NodeId {
    NodeId::of_public_key(pair(seed).public_key().as_ref())
}

fn key(id: u8) -> Key {
    Key::Endpoint(EndpointId::from_random([id; 16]))
}

fn signed(seed: u8, id: u8, seq: u64, claim: &Claim) -> SignedRecord {
    let key = claim.key().unwrap_or_else(|| key(id));
    SignedRecord::sign(&pair(seed), mesh(), key, Stamp { incarnation: 1, seq }, claim).unwrap()
}

fn checked(signed: &SignedRecord, seed: u8) -> Record {
    signed.verify(mesh(), pair(seed).public_key().as_ref().try_into().unwrap()).unwrap()
}

fn endpoint(id: u8) -> Claim {
    endpoint_in(1, id)
}

fn endpoint_in(network: u8, id: u8) -> Claim {
    Claim::Endpoint(vxmesh_proto::record::EndpointClaim {
        id: EndpointId::from_random([id; 16]),
        network: NetworkId::from_random([network; 16]),
        name: "e".parse().unwrap(),
        aliases: Vec::new(),
        mac: vxmesh_proto::addr::MacAddr([2, 0, 0, 0, 0, id]),
        ips: Vec::new(),
        incarnation: 1,
        labels: BTreeMap::new(),
        router: false,
        health: BTreeMap::new(),
    })
}

fn up(directory: &mut Directory, seed: u8, id: u8, seq: u64, now: Instant) -> Accepted {
    directory.insert(checked(&signed(seed, id, seq, &endpoint(id)), seed), Source::Gossip, now)
}

fn gone(directory: &mut Directory, seed: u8, id: u8, seq: u64, now: Instant) -> Accepted {
    directory.insert(checked(&signed(seed, id, seq, &Claim::Gone), seed), Source::Gossip, now)
}

#[test]
fn the_newest_word_of_the_owner_stands() {
    let (mut directory, now) = (Directory::default(), Instant::now());
    assert_eq!(up(&mut directory, 1, 1, 2, now), Accepted::New);
    assert_eq!(up(&mut directory, 1, 1, 2, now), Accepted::Stale);
    assert_eq!(up(&mut directory, 1, 1, 1, now), Accepted::Stale);
    assert_eq!(gone(&mut directory, 1, 1, 3, now), Accepted::New);
    // What is late does not bring it back.
    assert_eq!(up(&mut directory, 1, 1, 2, now), Accepted::Stale);
    assert!(matches!(up(&mut directory, 1, 1, 3, now), Accepted::Equivocation { .. }));
    assert!(directory.holds(&directory.get(node(1), key(1)).unwrap().record.to_signed()));
}

#[test]
fn events_are_merged_and_come_in_a_fixed_order() {
    let (mut directory, now) = (Directory::default(), Instant::now());
    assert!(!directory.has_events());
    up(&mut directory, 2, 2, 1, now);
    up(&mut directory, 2, 1, 1, now);
    up(&mut directory, 2, 1, 2, now);
    gone(&mut directory, 2, 3, 3, now);
    directory.set_objects(node(2), "aa");
    directory.set_objects(node(2), "bb");
    directory.set_up(node(2), true);
    assert!(directory.has_events());
    let record = |id| Arc::clone(&directory.get(node(2), key(id)).unwrap().record);
    let expected = vec![
        MeshEvent::NodeUp(node(2)),
        MeshEvent::RecordUp(record(1)),
        MeshEvent::RecordUp(record(2)),
        MeshEvent::RecordGone { owner: node(2), key: key(3) },
        MeshEvent::Objects { node: node(2), hash: "bb".into() },
    ];
    assert_eq!(directory.poll_events(), expected);
    directory.set_up(node(2), true);
    directory.set_objects(node(2), "bb");
    assert!(directory.poll_events().is_empty());
}

#[test]
fn a_node_that_is_down_is_hidden_and_not_forgotten() {
    let (mut directory, now) = (Directory::default(), Instant::now());
    directory.set_up(node(1), true);
    up(&mut directory, 1, 1, 1, now);
    directory.poll_events();
    directory.set_up(node(1), false);
    directory.expire(now + GONE_KEPT * 100, &|_node| true);
    assert_eq!(directory.poll_events(), [MeshEvent::NodeDown(node(1))]);
    assert_eq!(directory.records_of(node(1)).count(), 1);
    assert_eq!(directory.up().count(), 0);
}

#[test]
fn a_gone_record_is_kept_ten_minutes_and_a_row_of_a_former_member_not_at_all() {
    let (mut directory, now) = (Directory::default(), Instant::now());
    gone(&mut directory, 1, 1, 1, now);
    up(&mut directory, 1, 2, 1, now);
    up(&mut directory, 3, 3, 1, now);
    directory.set_up(node(3), true);
    directory.set_objects(node(3), "aa");
    directory.poll_events();
    directory.expire(now + GONE_KEPT - Duration::from_millis(1), &|_node| true);
    assert_eq!(directory.records().count(), 3);
    directory.expire(now + GONE_KEPT, &|member| member == node(1));
    assert_eq!(
        directory.poll_events(),
        [MeshEvent::NodeDown(node(3)), MeshEvent::RecordGone { owner: node(3), key: key(3) }]
    );
    assert_eq!(directory.records().count(), 1);
    assert_eq!(directory.objects().count(), 0);
}

#[test]
fn an_owner_has_a_bounded_number_of_records() {
    let (mut directory, now) = (Directory::default(), Instant::now());
    for id in 0..=RECORDS_PER_OWNER {
        let key = Key::Endpoint(EndpointId::from_random(u128::try_from(id).unwrap().to_be_bytes()));
        let record =
            SignedRecord::sign(&pair(1), mesh(), key, Stamp::default(), &Claim::Gone).unwrap();
        let accepted = directory.insert(checked(&record, 1), Source::Push, now);
        let full = id == RECORDS_PER_OWNER;
        assert_eq!(accepted, if full { Accepted::Full } else { Accepted::New });
    }
    assert_eq!(up(&mut directory, 2, 1, 1, now), Accepted::New);
}

#[test]
fn parked_records_wait_in_bounds() {
    let mut directory = Directory::default();
    let oldest = signed(1, 1, 0, &Claim::Gone);
    directory.park(oldest.clone(), Source::Push);
    for seq in 1..=u64::try_from(PARKED).unwrap() {
        let record = signed(2, 1, 0, &Claim::Gone);
        directory.park(SignedRecord { text: format!("x.{seq}").into(), ..record }, Source::Push);
    }
    assert!(directory.unpark(&|owner| owner == node(1)).is_empty());
    directory.park(oldest.clone(), Source::Push);
    directory.park(oldest.clone(), Source::Gossip);
    assert_eq!(directory.unpark(&|owner| owner == node(1)), [(oldest, Source::Push)]);
    assert_eq!(directory.unpark(&|_owner| true).len(), PARKED - 1);
}

proptest::proptest! {
    /// The index of networks against a walk over everything.
    #[test]
    fn a_networks_records_are_those_that_name_it(
        steps in proptest::collection::vec((1u8..4, 0u8..4, 0u8..4, 0u64..900), 0..60),
    ) {
        let (mut directory, mut now) = (Directory::default(), Instant::now());
        for (seq, (seed, id, network, wait)) in (1..).zip(steps) {
            // Network 0 stands for gone, and now and then a member leaves.
            let claim = if network == 0 { Claim::Gone } else { endpoint_in(network, id) };
            let record = checked(&signed(seed, id, seq, &claim), seed);
            directory.insert(record, Source::Gossip, now);
            now += Duration::from_secs(wait);
            directory.expire(now, &|member| wait % 7 != 0 || member != node(2));
            for network in 1..4 {
                let network = NetworkId::from_random([network; 16]);
                let places = |entries: Vec<&Entry>| -> Vec<(NodeId, Key)> {
                    entries.iter().map(|entry| (entry.record.owner(), entry.record.key())).collect()
                };
                let all = directory.records().filter(|entry| network_of(entry) == Some(network));
                let found = places(directory.records_in(network).collect());
                proptest::prop_assert_eq!(found, places(all.collect()));
            }
            proptest::prop_assert!(directory.networks.values().all(|places| !places.is_empty()));
        }
    }
}
