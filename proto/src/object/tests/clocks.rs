//! Stamps of nodes whose clock shows another time.

use super::*;

const HOUR: u64 = 3_600_000;

#[test]
fn a_stamp_from_another_time_is_admitted_and_moves_no_clock() {
    let mut set = set();
    let object = new(
        &mut set,
        &sign(1, &Draft::new(Hlc::at(NOW + 2 * HOUR), Content::Network(network(1, "blue", 7)))),
    );
    assert!(set.stamp(NOW) < Hlc::at(NOW + 1_000), "the clock followed it");
    // What is edited next is later all the same, whoever does it.
    let stamp = set.stamp(NOW);
    let edited = sign(2, &object.edit(stamp));
    assert!(matches!(merge(&mut set, &edited), Merge::Updated { .. }));
    let stamp = set.stamp(NOW);
    let deleted = Draft { closed: true, ..object.edit(stamp) };
    assert!(matches!(merge(&mut set, &sign(1, &deleted)), Merge::Updated { .. }));
    assert_eq!(set.networks(), []);
    // The same after a restart.
    let mut stored = ObjectSet::new(mesh());
    for object in set.objects() {
        assert!(matches!(stored.restore(object.text(), &TestCa, NOW), Merge::New(_)));
    }
    assert_eq!(stored.content_hash(), set.content_hash());
    assert!(stored.stamp(NOW) < Hlc::at(NOW + 1_000));
}

#[test]
fn a_member_whose_clock_was_ahead_renews_leaves_and_gives_once_it_is_right() {
    let (mut own, mut other) = (ObjectSet::new(mesh()), set());
    let joined = sign(7, &Draft::new(Hlc::at(NOW + 2 * HOUR), member(7).content));
    let given = Draft::new(Hlc::at(NOW + 2 * HOUR), transfer(7, 2, 1).content);
    merge(&mut own, &sign(2, &member(2)));
    for text in [joined, sign(7, &given)] {
        let both = [&mut own, &mut other].map(|set| merge(set, &text));
        assert!(both.iter().all(|merge| matches!(merge, Merge::New(_))), "{both:?}");
    }
    // The clock is set right.
    let stamp = own.stamp(NOW);
    let held = own.get(&ObjectId::Member(node(7))).map(Arc::clone).unwrap();
    let left = sign(7, &Draft { closed: true, ..held.edit(stamp) });
    assert_eq!(own.check(&left, &TestCa, NOW), Ok(true));
    for set in [&mut own, &mut other] {
        assert!(matches!(merge(set, &left), Merge::Updated { .. }));
    }
    assert!(other.members().all(|member| member != node(7)));
    assert_eq!(own.all_transfers().count() + other.all_transfers().count(), 2);
}
