//! Sessions under attack: replays, flipped bits, forged counters, points of low order, strangers.

use std::time::Duration;

use super::{
    super::{
        wire::{COOKIE_LEN, DataHeader, INIT_LEN, Kind, RESPONSE_LEN},
        *,
    },
    world::{Link, World, addr, id, private},
};
use crate::reason::DropReason;

const SECOND: Duration = Duration::from_secs(1);

/// The points whose order divides 8, and their non-canonical forms (RFC 7748 section 6.1 and its
/// errata's list).
fn low_order_points() -> Vec<[u8; 32]> {
    let hex = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    hex.iter()
        .map(|point| data_encoding::HEXLOWER.decode(point.as_bytes()).unwrap().try_into().unwrap())
        .collect()
}

fn captured(world: &World, kind: Kind) -> (usize, usize, Vec<u8>) {
    world.wiretap.iter().find(|(_, _, bytes)| Kind::of(bytes) == Ok(kind)).unwrap().clone()
}

/// Recomputes mac1, as anyone who knows the receiver's public key can.
fn with_mac1(mut bytes: Vec<u8>, receiver: usize) -> Vec<u8> {
    let public = noise::public_key(&private(receiver));
    wire::remac(&mut bytes, &public);
    bytes
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    for (kind, length) in [(Kind::Init, INIT_LEN), (Kind::Response, RESPONSE_LEN), (Kind::Data, 37)]
    {
        for at in 0..length {
            let mut world = World::new(2, Link::GOOD, 20);
            world.send(0, 1, b"hello");
            // Stop the clock as the message arrives.
            let (to, bytes) = loop {
                let ((due, _), (_, to, bytes)) = world.flying.pop_first().unwrap();
                world.now = due;
                if Kind::of(&bytes) == Ok(kind) {
                    break (to, bytes);
                }
                world.deliver(addr(1 - to), to, bytes).unwrap();
            };
            assert_eq!(bytes.len(), length);
            for bit in [0, 7] {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(world.deliver(addr(1 - to), to, bad.clone()).is_err(), "{kind:?} {at}");
                if kind != Kind::Data && at < length - 32 && Kind::of(&bad).is_ok() {
                    // mac1 can be made right by anyone; indices are then the sender's word, the
                    // rest is bound.
                    let index = if kind == Kind::Init { 5..9 } else { 2..6 };
                    let result = world.deliver(addr(1 - to), to, with_mac1(bad, to));
                    assert!(result.is_err() || index.contains(&at), "{kind:?} {at}");
                }
            }
            assert!(world.received(1).is_empty());
        }
    }
}

#[test]
fn a_forged_handshake_does_not_disturb_the_genuine_one() {
    let mut world = World::new(2, Link::GOOD, 21);
    world.send(0, 1, b"hello");
    world.run(Duration::from_millis(1));
    let ((_, _), (_, _, response)) = world.flying.pop_first().unwrap();
    for at in 10..RESPONSE_LEN - 32 {
        let mut bad = response.clone();
        bad[at] ^= 1;
        assert!(world.deliver(addr(1), 0, with_mac1(bad, 0)).is_err());
    }
    world.deliver(addr(1), 0, response).unwrap();
    world.run(SECOND);
    assert_eq!(world.received(1), [b"hello"]);
}

#[test]
fn replayed_handshakes_are_refused_now_and_later() {
    let mut world = World::new(2, Link::GOOD, 22);
    world.establish(0, 1);
    let (_, _, init) = captured(&world, Kind::Init);
    let (_, _, response) = captured(&world, Kind::Response);
    for pause in [0, 1, 60, 180] {
        world.run(SECOND * pause);
        let result = world.deliver(addr(0), 1, init.clone());
        assert_eq!(result, Err(DropReason::ReplayedHandshake));
        assert_eq!(world.deliver(addr(1), 0, response.clone()), Err(DropReason::UnknownIndex));
    }
    // Removing a peer and setting it again does not open the door.
    world.nodes[1].sessions.remove_peer(id(0));
    assert_eq!(world.deliver(addr(0), 1, init.clone()), Err(DropReason::UnknownPeer));
    let (now, config) = (world.now, world.peer_config(0));
    world.nodes[1].sessions.set_peer(now, config).unwrap();
    assert_eq!(world.deliver(addr(0), 1, init), Err(DropReason::ReplayedHandshake));
    assert_eq!(world.nodes[1].table.len(), 0);
}

#[test]
fn an_initiation_replayed_after_our_restart_disturbs_nobody() {
    let mut world = World::new(2, Link::GOOD, 23);
    world.establish(0, 1);
    let (_, _, init) = captured(&world, Kind::Init);
    world.restart(1);
    world.run(SECOND);
    world.establish(1, 0);
    let before = world.peer(1, 0).sender(world.now).unwrap().local_index();
    // Node 1 cannot know that it is old; the attacker cannot use what it gets.
    world.deliver(addr(9), 1, init).unwrap();
    world.run(SECOND);
    assert_eq!(world.peer(1, 0).sender(world.now).unwrap().local_index(), before);
    assert_eq!(world.peer(1, 0).addr(), Some(addr(0)));
    world.nodes[0].inbox.clear();
    for _ in 0..300 {
        world.send(1, 0, b"goes on");
        world.run(SECOND);
    }
    assert_eq!(world.received(0).len(), 300);
}

#[test]
fn initiations_of_an_earlier_life_are_answered_by_few_of_ours() {
    let mut world = World::new(2, Link::GOOD, 24);
    world.establish(0, 1);
    let (_, _, init) = captured(&world, Kind::Init);
    world.restart(0);
    world.run(SECOND);
    world.establish(0, 1);
    let (sent, start) = (world.nodes[1].inits_sent, world.now);
    while world.now < start + SECOND * 20 {
        let result = world.deliver(addr(9), 1, init.clone());
        assert_eq!(result, Err(DropReason::ReplayedHandshake));
        world.run(SECOND / 10);
    }
    assert!(world.nodes[1].inits_sent - sent <= 4, "{}", world.nodes[1].inits_sent - sent);
    assert_eq!(world.peer(1, 0).addr(), Some(addr(0)));
    world.nodes[1].inbox.clear();
    world.send(0, 1, b"goes on");
    world.run(SECOND / 10);
    assert_eq!(world.received(1), [b"goes on"]);
}

#[test]
fn every_captured_data_message_is_accepted_once() {
    let mut world = World::new(2, Link::GOOD, 24);
    for n in 0u32..300 {
        world.send(0, 1, &n.to_le_bytes());
        world.run(Duration::from_millis(10));
    }
    world.run(SECOND);
    let mut tape: Vec<_> = world
        .wiretap
        .iter()
        .filter(|(from, _, _)| *from == 0)
        .map(|(_, _, bytes)| bytes.clone())
        .collect();
    let count = world.received(1).len();
    assert_eq!(count, 300);
    for _ in 0..10 {
        for at in (1..tape.len()).rev() {
            let other = usize::try_from(world.random.below(at as u64)).unwrap();
            tape.swap(at, other);
        }
        for bytes in tape.clone() {
            assert!(world.deliver(addr(0), 1, bytes).is_err());
        }
    }
    assert_eq!(world.received(1).len(), count);
}

#[test]
fn a_forged_counter_moves_no_window() {
    let mut world = World::new(2, Link::GOOD, 25);
    world.establish(0, 1);
    let receiver = world.peer(0, 1).sender(world.now).unwrap().remote_index();
    for counter in [1 << 27, (1 << 28) - 1, 1 << 28, 1 << 60, u64::MAX - 1, u64::MAX] {
        let mut forged = DataHeader { flags: 0, receiver, counter }.to_bytes().to_vec();
        forged.extend([0x5a; 64]);
        let expected =
            if counter < 1 << 28 { DropReason::AuthFailed } else { DropReason::KeyExpired };
        assert_eq!(world.deliver(addr(0), 1, forged), Err(expected));
    }
    world.nodes[1].inbox.clear();
    for n in 0u32..100 {
        world.send(0, 1, &n.to_le_bytes());
    }
    world.run(SECOND);
    assert_eq!(world.received(1).len(), 100);
}

#[test]
fn points_of_low_order_are_refused_everywhere() {
    for point in low_order_points() {
        let mut world = World::new(2, Link::GOOD, 26);
        let now = world.now;
        // As a static key: not even set.
        let weak = PeerConfig { id: id(7), noise_public: point, addr: Some(addr(7)), aes: true };
        let result = world.nodes[0].sessions.set_peer(now, weak);
        assert!(matches!(result, Err(SetPeerError::WeakKey)));
        // As the ephemeral key of an initiation.
        world.send(0, 1, b"hello");
        let ((_, _), (_, _, mut init)) = world.flying.pop_first().unwrap();
        init[9..41].copy_from_slice(&point);
        assert_eq!(world.deliver(addr(0), 1, with_mac1(init, 1)), Err(DropReason::ZeroDh));
        // As the ephemeral key of a response.
        world.run(SECOND * 6);
        let mut world = World::new(2, Link::GOOD, 27);
        world.send(0, 1, b"hello");
        world.run(Duration::from_millis(1));
        let ((_, _), (_, _, mut response)) = world.flying.pop_first().unwrap();
        response[10..42].copy_from_slice(&point);
        assert_eq!(world.deliver(addr(1), 0, with_mac1(response, 0)), Err(DropReason::ZeroDh));
        assert!(world.flying.is_empty());
    }
}

#[test]
fn keys_of_others_are_not_set_twice() {
    let mut world = World::new(3, Link::GOOD, 28);
    let now = world.now;
    let copy = PeerConfig { id: id(9), ..world.peer_config(1) };
    let result = world.nodes[0].sessions.set_peer(now, copy);
    assert_eq!(result.unwrap_err(), SetPeerError::KeyTaken(id(1)));
    let own = PeerConfig { id: id(9), ..world.peer_config(0) };
    assert_eq!(world.nodes[0].sessions.set_peer(now, own).unwrap_err(), SetPeerError::OwnKey);
}

#[test]
fn a_new_static_key_ends_the_old_session() {
    let mut world = World::new(2, Link::GOOD, 29);
    world.establish(0, 1);
    let held = world.peer(1, 0).sender(world.now).unwrap();
    let (now, mut config) = (world.now, world.peer_config(0));
    config.noise_public = noise::public_key(&private(40));
    world.nodes[1].sessions.set_peer(now, config).unwrap();
    assert!(held.reserve(1).is_err());
    assert_eq!(world.nodes[1].table.len(), 0);
    world.nodes[1].inbox.clear();
    world.send(0, 1, b"with the old key");
    world.run(SECOND * 30);
    assert!(world.received(1).is_empty());
}

#[test]
fn strangers_leave_no_state() {
    let mut world = World::new(3, Link::GOOD, 30);
    world.nodes[1].sessions.remove_peer(id(2));
    world.send(2, 1, b"let me in");
    world.run(SECOND * 200);
    assert!(world.dropped(1, DropReason::UnknownPeer) >= 18);
    assert_eq!(world.nodes[1].table.len(), 0);
    assert!(world.wiretap.iter().all(|(from, to, _)| (*from, *to) != (1, 2)), "no answer");
}

#[test]
fn a_wrong_suite_or_secret_opens_nothing() {
    // Node 0 believes that node 1 has no AES; node 1's records say that both have.
    let mut world = World::new(2, Link::GOOD, 31);
    let (now, config) = (world.now, world.peer_config(1));
    world.nodes[0].sessions.set_peer(now, PeerConfig { aes: false, ..config }).unwrap();
    world.send(0, 1, b"weaker please");
    world.run(SECOND * 20);
    assert!(world.received(1).is_empty());
    assert!(world.dropped(1, DropReason::BadSuite) > 0);

    let mut world = World::new(2, Link::GOOD, 32);
    world.nodes[0].sessions.set_psk(Psk { epoch: 3, key: [8; 32] }, None);
    world.send(0, 1, b"guessed");
    world.run(SECOND * 20);
    assert!(world.received(1).is_empty());
    assert!(world.dropped(0, DropReason::AuthFailed) > 0);
}

#[test]
fn initiations_faster_than_every_20_ms_are_refused() {
    let mut world = World::new(2, Link::GOOD, 33);
    for _ in 0..2 {
        world.restart(0);
        world.send(0, 1, b"hello");
        let ((_, _), (_, _, init)) = world.flying.pop_first().unwrap();
        // Refused or not stands in the drops.
        let _counted = world.deliver(addr(0), 1, init);
        world.run(Duration::from_millis(5));
    }
    assert_eq!(world.dropped(1, DropReason::HandshakeFlood), 1);
}

#[test]
fn cookies_that_nobody_asked_for_are_refused() {
    let mut world = World::new(2, Link::GOOD, 34);
    let mut cookie = vec![0; COOKIE_LEN];
    cookie[..2].copy_from_slice(&[3, 1]);
    assert_eq!(world.deliver(addr(1), 0, cookie), Err(DropReason::UnsolicitedCookie));
}

#[test]
fn roaming_follows_only_authentic_new_packets() {
    let mut world = World::new(2, Link::GOOD, 35);
    world.establish(0, 1);
    world.send(0, 1, b"one");
    let (_, (_, _, one)) = world.flying.pop_first().unwrap();
    world.send(0, 1, b"two");
    let (_, (_, _, two)) = world.flying.pop_first().unwrap();
    world.deliver(addr(7), 1, two.clone()).unwrap();
    assert_eq!(world.peer(1, 0).addr(), Some(addr(7)));
    world.deliver(addr(8), 1, one).unwrap();
    assert!(world.deliver(addr(8), 1, two).is_err());
    assert_eq!(world.peer(1, 0).addr(), Some(addr(7)));
}
