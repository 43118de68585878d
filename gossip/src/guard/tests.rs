use proptest::prelude::*;

use super::*;
use crate::{
    envelope::Mutation,
    limits::{EXPANDED_LEN, MESSAGE_LEN},
};

fn mesh() -> NodeId {
    NodeId::of_public_key(b"mesh")
}

fn node(seed: u8) -> NodeId {
    NodeId::of_public_key(&[seed])
}

fn life(seed: u8, generation: u64) -> Life {
    Life { node: node(seed), generation }
}

/// Node 0 in generation 5, among the members 0 to 3.
fn guard() -> Guard {
    let guard = Guard::new(life(0, 5), mesh());
    guard.set_own_version(10);
    guard.set_own_heartbeat(100);
    guard
}

fn is_member(id: NodeId) -> bool {
    (0..4).any(|seed| node(seed) == id)
}

fn entry(life: Life) -> DigestEntry {
    DigestEntry { life, heartbeat: 7, last_gc: 0, max_version: 3 }
}

fn mutation(key: &str, value: &str, version: u64) -> Mutation {
    Mutation { key: key.to_owned(), value: value.to_owned(), version, status: 0 }
}

fn delta(life: Life, mutations: Vec<Mutation>) -> NodeDelta {
    NodeDelta { life, last_gc: 0, from_version: 0, mutations, max_version: None }
}

fn syn(digest: Vec<DigestEntry>) -> Message {
    Message::Syn { digest, cluster: mesh().to_string() }
}

fn ack(node: NodeDelta) -> Message {
    Message::Ack { delta: vec![node] }
}

fn admitted(message: &Message) -> (Message, usize, bool) {
    let bytes = message.encode().unwrap();
    let guard = guard();
    let admitted = guard.check(node(1), &bytes, &is_member).unwrap();
    (Message::decode(&admitted.bytes).unwrap(), admitted.cut, admitted.poisoned)
}

fn refusal(from: u8, bytes: &[u8]) -> Refusal {
    guard().check(node(from), bytes, &is_member).unwrap_err()
}

#[test]
fn honest_messages_pass_as_they_came() {
    let digest = vec![entry(life(0, 5)), entry(life(1, 9)), entry(life(2, 1))];
    let news = delta(life(2, 1), vec![mutation("node", "x", 1), mutation("ep/1", "", 3)]);
    let empty = NodeDelta { max_version: Some(4), ..delta(life(3, 1), Vec::new()) };
    for message in [
        syn(digest.clone()),
        Message::SynAck { digest, delta: vec![news.clone(), empty] },
        ack(news),
        // An older life of ours, which others remember.
        ack(delta(life(0, 4), vec![mutation("node", "x", 1)])),
    ] {
        let bytes = message.encode().unwrap();
        let guard = guard();
        let admitted = guard.check(node(1), &bytes, &is_member).unwrap();
        assert!(matches!(admitted.bytes, Cow::Borrowed(_)));
        assert_eq!((admitted.cut, admitted.poisoned), (0, false));
    }
}

#[test]
fn nodes_that_are_not_what_they_say_are_cut_out() {
    let good = delta(life(2, 1), vec![mutation("node", "x", 1)]);
    let long_value = "x".repeat(VALUE_LEN + 1);
    for bad in [
        // Our own state, this life and a later one.
        delta(life(0, 5), vec![mutation("k", "EVIL", 1)]),
        delta(life(0, 6), vec![mutation("k", "EVIL", 1)]),
        // Not a member.
        delta(life(9, 1), vec![mutation("node", "x", 1)]),
        // Keys that no agent writes. One that began with a letter of several bytes ended chitchat's
        // task.
        delta(life(3, 1), vec![mutation("xé", "x", 1)]),
        delta(life(3, 1), vec![mutation("a b", "x", 1)]),
        delta(life(3, 1), vec![mutation("", "x", 1)]),
        delta(life(3, 1), vec![mutation(&"k".repeat(KEY_LEN + 1), "x", 1)]),
        // A value longer than a record, and one that is not printable. One that fitted into no
        // message stopped all later keys of its node.
        delta(life(3, 1), vec![mutation("node", &long_value, 1)]),
        delta(life(3, 1), vec![mutation("node", "a\nb", 1)]),
        // Versions beyond the bounds. Chitchat adds to a version unchecked, so that behind the
        // largest nothing could be set.
        NodeDelta {
            from_version: VERSION,
            ..delta(life(3, 1), vec![mutation("node", "x", VERSION + 1)])
        },
        delta(life(3, 1), vec![mutation("node", "x", VERSION_JUMP + 1)]),
        NodeDelta { last_gc: VERSION + 1, ..delta(life(3, 1), Vec::new()) },
        NodeDelta { from_version: VERSION + 1, ..delta(life(3, 1), Vec::new()) },
        NodeDelta { max_version: Some(VERSION_JUMP + 1), ..delta(life(3, 1), Vec::new()) },
    ] {
        let message = Message::Ack { delta: vec![bad, good.clone()] };
        assert_eq!(admitted(&message), (ack(good.clone()), 1, false), "{message:?}");
    }
    let later = syn_ack_later();
    let guard = guard();
    assert_eq!(guard.check(node(1), &later, &is_member).unwrap().later, [("k".into(), "v".into())]);
    let digest = vec![entry(life(1, 1)), entry(life(9, 1)), entry(life(0, 6)), entry(life(0, 4))];
    let kept = vec![entry(life(1, 1)), entry(life(0, 4))];
    assert_eq!(admitted(&syn(digest)), (syn(kept), 2, false));
}

/// The state of a later life of ourselves, and of this one.
fn syn_ack_later() -> Vec<u8> {
    let delta = vec![
        delta(life(0, 6), vec![mutation("k", "v", 1)]),
        delta(life(0, 5), vec![mutation("l", "w", 1)]),
    ];
    Message::SynAck { digest: vec![entry(life(1, 1))], delta }.encode().unwrap()
}

#[test]
fn a_forged_state_of_ourselves_is_noticed() {
    for (heartbeat, max_version, poisoned) in [
        (7, 10, false),
        (7, 11, true),
        (101 + HEARTBEAT_SLACK, 1, true),
        (100 + HEARTBEAT_SLACK, 10, false),
    ] {
        let own = DigestEntry { life: life(0, 5), heartbeat, last_gc: 0, max_version };
        let message = syn(vec![entry(life(1, 1)), own]);
        assert_eq!(admitted(&message), (message.clone(), 0, poisoned));
    }
}

#[test]
fn messages_that_no_agent_sends_are_refused_whole() {
    let own = || vec![entry(life(1, 1))];
    let good = syn(own()).encode().unwrap();
    assert_eq!(refusal(9, &good), Refusal::Stranger);
    assert_eq!(refusal(0, &good), Refusal::Stranger);
    assert_eq!(refusal(2, &good), Refusal::NotTheirs);
    let other = Message::Syn { digest: own(), cluster: "other".to_owned() }.encode().unwrap();
    assert_eq!(refusal(1, &other), Refusal::OtherMesh);
    let malformed = |bytes: &[u8]| match refusal(1, bytes) {
        Refusal::Malformed(fault) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(malformed(&[]), Malformed::Length);
    assert_eq!(malformed(&good[..good.len() - 1]), Malformed::Length);
    assert_eq!(malformed(&[good.as_slice(), &[0]].concat()), Malformed::Length);
    assert_eq!(malformed(&vec![0; MESSAGE_LEN + 1]), Malformed::Length);
    let mut version_0 = good.clone();
    version_0[2] = 0;
    assert_eq!(malformed(&version_0), Malformed::Version);
    assert_eq!(malformed(&[&good[..3], &[3]].concat()), Malformed::BadCluster);
    assert_eq!(malformed(&[&good[..3], &[9]].concat()), Malformed::Tag);
    // A maximum beside keys, as no agent sends it: one below the keys ended chitchat's task.
    let mut both = delta(life(2, 1), vec![mutation("node", "x", 5)]);
    both.max_version = Some(5);
    assert_eq!(malformed(&ack(both).encode().unwrap()), Malformed::Delta);
    let equal = delta(life(2, 1), vec![mutation("a", "x", 5), mutation("b", "x", 5)]);
    assert_eq!(malformed(&ack(equal).encode().unwrap()), Malformed::Delta);
    let zero = delta(life(2, 1), vec![mutation("a", "x", 0)]);
    assert_eq!(malformed(&ack(zero).encode().unwrap()), Malformed::Delta);
    let status = Mutation { status: 3, ..mutation("a", "x", 1) };
    assert_eq!(malformed(&ack(delta(life(2, 1), vec![status])).encode().unwrap()), Malformed::Tag);
    let twice = Message::Ack { delta: vec![delta(life(2, 1), Vec::new()); 2] };
    assert_eq!(malformed(&twice.encode().unwrap()), Malformed::Delta);
}

/// As many blocks as fit into a message would expand to forty times as much.
#[test]
fn what_expands_to_too_much_is_refused() {
    let block = zstd::bulk::compress(&vec![0; 65_000], 0).unwrap();
    let mut bytes = ack(delta(life(2, 1), Vec::new())).encode().unwrap()[..4].to_vec();
    for _block in 0..=EXPANDED_LEN / 65_000 {
        bytes.push(1);
        bytes.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
        bytes.extend(&block);
    }
    bytes.push(0);
    assert_eq!(refusal(1, &bytes), Refusal::Malformed(Malformed::Compression));
}

#[test]
fn lives_are_bounded_per_node_and_in_all() {
    let guard = guard();
    let admit = |digest: Vec<DigestEntry>| {
        let bytes = syn(digest).encode().unwrap();
        guard.check(node(1), &bytes, &is_member).unwrap().cut
    };
    let lives =
        |from: u64, to: u64| (from..to).map(|generation| entry(life(1, generation))).collect();
    let per_node = u64::try_from(LIVES_PER_NODE).unwrap();
    assert_eq!(admit(lives(0, per_node + 3)), 3);
    // Those that chitchat dropped make room, once they were not held at two looks.
    guard.set_lives(&BTreeSet::new(), BTreeSet::new());
    assert_eq!(admit(lives(100, 101)), 1);
    guard.set_lives(&BTreeSet::from([life(1, 0)]), BTreeSet::new());
    assert_eq!(admit(lives(100, 100 + per_node)), 1);
}

#[test]
fn lives_in_all_never_outgrow_a_message() {
    let guard = Guard::new(life(0, 5), mesh());
    let everyone = |_node: NodeId| true;
    let mut cut = 0;
    // With the sender itself that is one too many.
    let lives: Vec<_> = (0..u32::try_from(LIVES).unwrap())
        .map(|i| entry(Life { node: NodeId::of_public_key(&i.to_be_bytes()), generation: 0 }))
        .collect();
    for chunk in lives.chunks(100) {
        let digest = chunk.iter().copied().chain([entry(life(1, 1))]).collect();
        let bytes = syn(digest).encode().unwrap();
        cut += guard.check(node(1), &bytes, &everyone).unwrap().cut;
    }
    assert_eq!(cut, 1);
    let all = guard.lives.lock().unwrap().held.keys().map(|life| entry(*life)).collect();
    // Chitchat's task ends when there are not a hundred bytes left beside the digest.
    assert!(syn(all).encode().unwrap().len() < MESSAGE_LEN - 200);
}

#[test]
fn a_full_node_takes_no_more_keys() {
    let guard = guard();
    guard.set_lives(&BTreeSet::from([life(2, 1)]), BTreeSet::from([life(2, 1)]));
    let bytes = ack(delta(life(2, 1), vec![mutation("node", "x", 1)])).encode().unwrap();
    assert_eq!(guard.check(node(1), &bytes, &is_member).unwrap().cut, 1);
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let framed = [&syn(Vec::new()).encode().unwrap()[..3], bytes.as_slice()].concat();
        for bytes in [bytes, framed] {
            drop(guard().check(node(1), &bytes, &is_member));
        }
    }

    #[test]
    fn what_is_written_is_read_again(
        entries in proptest::collection::vec((0u8..9, any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..300),
        keys in proptest::collection::vec(("[ -~]{0,20}", ".{0,200}", 0u8..3), 0..60),
    ) {
        let digest: Vec<_> = entries.into_iter().map(|(seed, generation, heartbeat, last_gc, max_version)| {
            DigestEntry { life: life(seed, generation), heartbeat, last_gc, max_version }
        }).collect();
        let mutations = (1..).zip(keys).map(|(version, (key, value, status))| Mutation { key, value, version, status });
        let delta = vec![delta(life(1, 1), mutations.collect()), NodeDelta { max_version: Some(3), ..delta(life(2, 1), Vec::new()) }];
        for message in [syn(digest.clone()), ack(delta[0].clone()), Message::SynAck { digest, delta }] {
            if let Some(bytes) = message.encode() {
                prop_assert_eq!(Message::decode(&bytes), Ok(message));
            }
        }
    }
}
