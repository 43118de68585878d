//! How much room what an issuer says has.

use super::*;
use crate::limits::OBJECTS_OF_RECLAIMS;

/// A member cuts its addresses into as many blocks as it can before it is removed.
#[test]
fn what_a_removed_node_left_keeps_nobody_from_being_removed() {
    let mut set = set();
    for n in 1..u32::try_from(OBJECTS_PER_AUTHOR).unwrap() {
        new(&mut set, &sign(1, &small(1, n)));
    }
    assert!(!set.has_room(node(1)), "the issuer has no room of its own");
    new(&mut set, &issue(&removal(3, 5)));
    let reclaim = |epoch: usize| {
        let Content::Transfer(given) = transfer(3, 1, u64::try_from(epoch).unwrap()).content else {
            panic!("no transfer");
        };
        issue(&Draft::new(hlc(6), Content::Reclaim(given)))
    };
    for epoch in 1..=OBJECTS_OF_RECLAIMS {
        new(&mut set, &reclaim(epoch));
    }
    assert_eq!(merge(&mut set, &reclaim(OBJECTS_OF_RECLAIMS + 1)), Merge::Refused(Refused::Full));
    assert!(set.has_room(node(2)), "others have what they had");
    new(&mut set, &sign(2, &Draft::new(hlc(0), Content::Network(network(2, "blue", 7)))));
    new(&mut set, &issue(&removal(2, 7)));
}
