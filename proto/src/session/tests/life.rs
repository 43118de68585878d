//! Sessions as they should go: they come, are renewed, survive loss and restarts, and go.

use std::time::Duration;

use super::{
    super::{wire::Kind, *},
    world::{Link, World, addr, id},
};
use crate::reason::DropReason;

const SECOND: Duration = Duration::from_secs(1);

fn number(n: u64) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

#[test]
fn staged_frames_arrive_in_order_after_one_round_trip() {
    let mut world = World::new(2, Link::GOOD, 1);
    for n in 0..5 {
        world.send(0, 1, &number(n));
    }
    assert_eq!(world.peer(0, 1).state(world.now), PeerState::Handshake);
    world.run(Duration::from_millis(3));
    let expected: Vec<_> = (0..5).map(number).collect();
    assert_eq!(world.received(1), expected);
    assert_eq!(world.peer(0, 1).state(world.now), PeerState::Established);
    assert_eq!(world.peer(1, 0).state(world.now), PeerState::Established);
    assert_eq!(world.peer(0, 1).rtt(), Some(Duration::from_millis(2)));
    assert_eq!(world.peer(1, 0).rtt(), Some(Duration::from_millis(2)));
    assert_eq!(world.peer(0, 1).cipher(world.now), Some(Suite::AesGcm));
    assert_eq!(world.peer(0, 1).tx_bytes(), world.peer(1, 0).rx_bytes());
    assert_eq!(world.nodes[0].inits_sent, 1);
}

#[test]
fn a_lost_packet_makes_no_way_longer() {
    let mut world = World::new(2, Link::GOOD, 1);
    let lose_first = |world: &mut World| {
        // The question and its answer; what follows at once is lost.
        world.run(Duration::from_millis(2));
        assert_eq!(world.flying.len(), 1);
        world.flying.clear();
        assert_eq!(world.peer(0, 1).rtt(), Some(Duration::from_millis(2)));
    };
    world.send(0, 1, b"first");
    lose_first(&mut world);
    world.run(4 * SECOND);
    world.send(0, 1, b"second");
    world.run(SECOND);
    assert_eq!(world.received(1), [b"second"]);
    assert_eq!(world.peer(1, 0).rtt(), None, "how long nothing was sent");
    // The next key's first packet is not lost.
    world.run(REKEY_AFTER);
    world.send(0, 1, b"third");
    world.run(SECOND);
    assert_eq!(world.peer(1, 0).rtt(), Some(Duration::from_millis(2)));
}

#[test]
fn the_suite_is_what_both_records_say() {
    for (aes, suite) in [
        ([true, true], Suite::AesGcm),
        ([true, false], Suite::ChaChaPoly),
        ([false, false], Suite::ChaChaPoly),
    ] {
        let mut world = World::new(2, Link::GOOD, 1);
        world.aes = aes.to_vec();
        world.restart(0);
        world.restart(1);
        let config = world.peer_config(1);
        let now = world.now;
        world.nodes[0].sessions.set_peer(now, config).unwrap();
        world.establish(0, 1);
        assert_eq!(world.peer(0, 1).cipher(world.now), Some(suite));
        assert_eq!(world.peer(1, 0).cipher(world.now), Some(suite));
    }
}

#[test]
fn the_oldest_staged_frames_go_first_and_are_counted() {
    let mut world = World::new(2, Link::GOOD, 1);
    let count = crate::limits::STAGED_FRAMES as u64;
    for n in 0..count + 7 {
        world.send(0, 1, &number(n));
    }
    world.run(SECOND);
    let expected: Vec<_> = (7..count + 7).map(number).collect();
    assert_eq!(world.received(1), expected);
    assert_eq!(world.dropped(0, DropReason::NoSession), 7);
}

#[test]
fn a_key_is_renewed_under_traffic_without_loss() {
    let mut world = World::new(2, Link::GOOD, 2);
    let mut sent = 0;
    for _ in 0..500 * 20 {
        world.send(0, 1, &number(sent));
        world.send(1, 0, &number(sent));
        sent += 1;
        world.run(SECOND / 20);
    }
    let expected: Vec<_> = (0..sent).map(number).collect();
    assert_eq!(world.received(0), expected);
    assert_eq!(world.received(1), expected);
    let inits = world.nodes[0].inits_sent + world.nodes[1].inits_sent;
    assert!((5..=6).contains(&inits), "{inits}");
    assert!(world.nodes.iter().all(|node| node.drops.is_empty()));
    // Slots and tables hold the keys in use and nothing more.
    assert!(
        world.nodes.iter().all(|node| node.table.len() <= 3 && node.sessions.pending.is_empty())
    );
}

#[test]
fn a_receiving_initiator_renews_the_key_too() {
    let mut world = World::new(2, Link::GOOD, 3);
    world.establish(0, 1);
    let mut sent = 0;
    for _ in 0..400 {
        world.send(1, 0, &number(sent));
        sent += 1;
        world.run(SECOND);
    }
    assert_eq!(world.received(0).len() as u64, sent);
    assert!(world.nodes[0].drops.is_empty() && world.nodes[1].drops.is_empty());
}

#[test]
fn a_bad_link_delays_but_does_not_break() {
    for seed in 0..20 {
        let mut world = World::new(2, Link::BAD, seed);
        let mut sent = 0;
        for _ in 0..3000 {
            world.send(0, 1, &number(sent));
            world.send(1, 0, &number(sent));
            sent += 1;
            world.run(SECOND / 5);
        }
        for at in [0, 1] {
            let mut got: Vec<_> = world.received(at);
            let count = got.len();
            got.sort_unstable();
            got.dedup();
            assert_eq!(got.len(), count, "seed {seed}: one was delivered twice");
            // Loss is 10 % and hits both ways alike; handshakes may cost a few seconds more.
            assert!(count as u64 > sent * 8 / 10, "seed {seed}: {count} of {sent}");
        }
        let known = [
            DropReason::Replay,
            DropReason::UnknownIndex,
            DropReason::ReplayedHandshake,
            DropReason::HandshakeFlood,
        ];
        for node in &world.nodes {
            assert!(node.drops.keys().all(|reason| known.contains(reason)), "{:?}", node.drops);
        }
    }
}

#[test]
fn both_sides_at_once_converge() {
    let mut most = 0;
    for seed in 0..1000 {
        let mut world = World::new(2, Link::GOOD, seed);
        world.link.jitter = Duration::from_millis(seed % 4);
        world.send(0, 1, b"from 0");
        if seed % 2 == 1 {
            world.run(Duration::from_micros(seed));
        }
        world.send(1, 0, b"from 1");
        world.run(SECOND);
        assert_eq!(world.received(0), [b"from 1"], "seed {seed}");
        assert_eq!(world.received(1), [b"from 0"], "seed {seed}");
        most = most.max(world.nodes[0].inits_sent + world.nodes[1].inits_sent);
        for node in &world.nodes {
            assert!(node.drops.is_empty(), "seed {seed}: {:?}", node.drops);
        }
        world.send(0, 1, b"again");
        world.send(1, 0, b"again");
        world.run(SECOND);
        assert_eq!((world.received(0).len(), world.received(1).len()), (2, 2), "seed {seed}");
        let a = world.peer(0, 1).sender(world.now).unwrap();
        let b = world.peer(1, 0).sender(world.now).unwrap();
        if seed % 4 == 0 {
            assert_eq!(
                (a.local_index(), a.remote_index()),
                (b.remote_index(), b.local_index()),
                "seed {seed}"
            );
        }
    }
    assert_eq!(most, 2);
}

#[test]
fn a_replayed_answer_is_counted_also_if_both_sides_began_at_once() {
    for seed in 0..300 {
        let mut world = World::new(2, Link::GOOD, seed);
        // What is sealed with the key of one handshake may come before the answer of the other.
        world.link.jitter = Duration::from_millis(4);
        world.send(0, 1, b"from 0");
        world.send(1, 0, b"from 1");
        world.run(SECOND);
        let sent = world.wiretap.clone();
        let answers = sent.into_iter().filter(|it| Kind::of(&it.2) == Ok(Kind::Response));
        for (from, to, bytes) in answers {
            let before = world.dropped(to, DropReason::UnknownIndex);
            world.fly(from, to, bytes);
            world.run(SECOND / 10);
            assert_eq!(world.dropped(to, DropReason::UnknownIndex), before + 1, "seed {seed}");
        }
    }
}

#[test]
fn both_sides_at_once_over_a_bad_link_converge() {
    for seed in 0..200 {
        let mut world = World::new(2, Link::BAD, seed);
        world.send(0, 1, b"x");
        world.send(1, 0, b"x");
        world.run(SECOND * 40);
        world.link = Link::GOOD;
        world.nodes[0].inbox.clear();
        world.nodes[1].inbox.clear();
        world.send(0, 1, b"from 0");
        world.send(1, 0, b"from 1");
        world.run(SECOND * 6);
        assert_eq!(world.received(0), [b"from 1"], "seed {seed}");
        assert_eq!(world.received(1), [b"from 0"], "seed {seed}");
    }
}

#[test]
fn a_restarted_peer_gets_through_at_once() {
    let mut world = World::new(2, Link::GOOD, 4);
    world.establish(1, 0);
    world.nodes[0].inbox.clear();
    world.restart(1);
    world.run(SECOND);
    world.send(1, 0, b"I am back");
    world.run(Duration::from_millis(4));
    assert_eq!(world.received(0), [b"I am back"]);
    assert!(world.nodes[0].events.contains(&SessionEvent::Restarted { peer: id(1) }));
    world.send(0, 1, b"welcome");
    world.run(Duration::from_millis(2));
    assert_eq!(world.received(1).last(), Some(&&b"welcome"[..]));
}

#[test]
fn who_was_started_anew_and_has_nothing_to_send_is_reached_soon() {
    let mut world = World::new(2, Link::GOOD, 5);
    world.establish(0, 1);
    world.restart(1);
    world.run(SECOND);
    world.nodes[1].inbox.clear();
    let mut sent = 0;
    while world.received(1).is_empty() {
        world.send(0, 1, &number(sent));
        sent += 1;
        world.run(SECOND / 100);
        assert!(sent < 10, "it is not reached");
    }
    // What shows an unknown key to a node that has one costs nothing.
    let before = world.nodes[1].inits_sent;
    let mut forged = world.wiretap.iter().rev().find(|it| Kind::of(&it.2) == Ok(Kind::Data));
    let mut forged = forged.take().unwrap().2.clone();
    forged[4..8].copy_from_slice(&[0xff; 4]);
    for _ in 0..20 {
        assert_eq!(world.deliver(addr(0), 1, forged.clone()), Err(DropReason::UnknownIndex));
        world.run(SECOND / 10);
    }
    assert_eq!(world.nodes[1].inits_sent, before);
}

#[test]
fn a_peer_that_restarts_with_its_clock_set_back_gets_through_at_once() {
    let mut world = World::new(2, Link::GOOD, 7);
    world.establish(1, 0);
    world.nodes[0].inbox.clear();
    world.behind[1] = SECOND * 3600;
    world.restart(1);
    world.run(SECOND);
    world.send(1, 0, b"I am back");
    world.run(Duration::from_millis(8));
    assert_eq!(world.received(0), [b"I am back"]);
    world.send(0, 1, b"welcome");
    world.run(Duration::from_millis(2));
    assert_eq!(world.received(1).last(), Some(&&b"welcome"[..]));
    // And whenever it begins.
    world.run(SECOND * 600);
    world.send(1, 0, b"and again");
    world.run(Duration::from_millis(8));
    assert_eq!(world.received(0).last(), Some(&&b"and again"[..]));
}

#[test]
fn a_peer_that_lost_its_keys_in_silence_is_found_out() {
    let mut world = World::new(2, Link::GOOD, 5);
    world.establish(0, 1);
    world.restart(1);
    world.nodes[1].inbox.clear();
    for _ in 0..20 {
        world.send(0, 1, b"is anyone there");
        world.run(SECOND);
    }
    assert!(world.received(1).len() >= 4, "{}", world.received(1).len());
    assert!(world.dropped(1, DropReason::UnknownIndex) <= 16);
}

#[test]
fn data_one_way_is_answered_by_keepalives_and_silence_stays_silent() {
    let mut world = World::new(2, Link::GOOD, 6);
    world.establish(0, 1);
    for _ in 0..40 {
        world.send(0, 1, b"one way");
        world.run(SECOND);
    }
    assert_eq!(world.nodes[0].inits_sent, 1, "keepalives came back");
    assert!(world.peer(0, 1).last_received().is_some_and(|last| world.now - last <= SECOND * 11));
    world.run(SECOND * 30);
    let before = world.wiretap.len();
    world.run(SECOND * 400);
    assert_eq!(world.wiretap.len(), before);
}

#[test]
fn keys_die_of_age_and_are_erased() {
    let mut world = World::new(2, Link::GOOD, 7);
    world.establish(0, 1);
    world.run(SECOND * 178);
    assert_eq!(world.peer(0, 1).state(world.now), PeerState::Established);
    world.run(SECOND * 3);
    assert_eq!(world.peer(0, 1).state(world.now), PeerState::Idle);
    assert_eq!(world.nodes[0].table.len(), 1);
    world.run(ERASE_AFTER);
    assert_eq!((world.nodes[0].table.len(), world.nodes[1].table.len()), (0, 0));
    assert_eq!(world.nodes[0].sessions.poll_timeout(), None);
    world.send(1, 0, b"hello again");
    world.run(SECOND);
    assert_eq!(world.received(0), [b"hello again"]);
}

#[test]
fn an_old_key_is_refused_by_the_receiver() {
    let mut world = World::new(2, Link::GOOD, 8);
    world.establish(0, 1);
    world.send(0, 1, b"held back by the underlay");
    let (_, (_, _, bytes)) = world.flying.pop_last().unwrap();
    world.run(SECOND * 181);
    assert_eq!(world.deliver(addr(0), 1, bytes), Err(DropReason::KeyExpired));
}

#[test]
fn packet_limits_renew_the_key_and_nothing_passes_the_end() {
    let limits = KeyLimits { rekey_after: 100, reject_after: 200 };
    let mut world = World::with(2, Link::GOOD, 9, Some(limits));
    world.establish(0, 1);
    for n in 0..1000 {
        world.send(0, 1, &number(n));
        world.run(Duration::from_millis(25));
    }
    assert_eq!(world.received(1).len(), 1001);
    assert!((10..=12).contains(&world.nodes[0].inits_sent), "{}", world.nodes[0].inits_sent);
    // Nobody answers any more: the key ends at its limit and frames wait.
    world.link.loss = 1000;
    let key = world.peer(0, 1).sender(world.now).unwrap();
    for n in 0..400 {
        world.send(0, 1, &number(n));
    }
    assert_eq!(key.sent_packets(), limits.reject_after);
    assert!(world.peer(0, 1).sender(world.now).is_none());
    assert!(matches!(key.reserve(1), Err(DropReason::KeyExpired)));
}

#[test]
fn an_unreachable_peer_is_tried_18_times_and_then_seldom() {
    let mut world = World::new(2, Link::GOOD, 10);
    world.link.loss = 1000;
    world.send(0, 1, b"lost");
    world.run(SECOND * 100);
    assert_eq!(world.nodes[0].inits_sent, 18);
    assert!(world.nodes[0].events.contains(&SessionEvent::Unreachable { peer: id(1) }));
    let lost = SessionEvent::Dropped { peer: id(1), reason: DropReason::NoSession, count: 1 };
    assert!(world.nodes[0].events.contains(&lost));
    for _ in 0..1200 {
        world.send(0, 1, b"still wanted");
        world.run(SECOND);
    }
    assert!((20..26).contains(&world.nodes[0].inits_sent), "{}", world.nodes[0].inits_sent);
    // The peer comes back: its own initiation ends the pause.
    world.link.loss = 0;
    world.send(1, 0, b"back");
    world.run(SECOND);
    assert_eq!(world.received(0), [b"back"]);
    world.send(0, 1, b"at once");
    world.run(SECOND);
    assert_eq!(world.received(1).last(), Some(&&b"at once"[..]));
}

/// How many staged frames the first node gave up.
fn given_up(world: &World) -> usize {
    let lost = world.nodes[0].events.iter().filter_map(|event| match event {
        SessionEvent::Dropped { reason: DropReason::NoSession, count, .. } => Some(*count),
        _ => None,
    });
    lost.sum()
}

#[test]
fn what_waits_for_a_silent_peer_is_soon_counted() {
    let mut world = World::new(2, Link::GOOD, 10);
    world.link.loss = 1000;
    for n in 0..12 {
        world.send(0, 1, &number(n));
        world.run(SECOND);
    }
    // Each waits for the answer to two handshakes, which are tried again after five seconds or a
    // little more.
    let dropped = given_up(&world);
    assert!((5..=6).contains(&dropped), "{dropped}");
    world.link.loss = 0;
    world.run(SECOND * 6);
    let sent: Vec<_> = (0..12).map(number).collect();
    let came: Vec<_> = world.received(1).into_iter().map(<[u8]>::to_vec).collect();
    assert!(sent.ends_with(&came), "{came:?}");
    let all = given_up(&world) + world.received(1).len();
    assert_eq!(all, 12, "each arrives or is counted");
}

#[test]
fn a_new_address_ends_the_pause() {
    let mut world = World::new(2, Link::GOOD, 11);
    let now = world.now;
    let config = world.peer_config(1);
    let nowhere = PeerConfig { addr: None, ..config };
    world.nodes[0].sessions.set_peer(now, nowhere).unwrap();
    world.send(0, 1, b"waits for an address");
    world.run(SECOND * 10);
    assert_eq!(world.nodes[0].inits_sent, 0);
    let now = world.now;
    world.nodes[0].sessions.set_peer(now, config).unwrap();
    world.collect(0);
    world.run(SECOND);
    assert_eq!(world.received(1), [b"waits for an address"]);
}

#[test]
fn a_node_that_moved_is_sent_to_at_its_new_place_though_nobody_sends() {
    let mut world = World::new(2, Link::GOOD, 8);
    world.establish(0, 1);
    world.run(SECOND);
    let now = world.now;
    world.nodes[0].sessions.handle_moved(now);
    let init = world.nodes[0].sessions.poll_transmit().unwrap();
    assert_eq!(init.to, addr(1));
    world.nodes[1].sessions.handle_datagram(now, addr(9), &init.bytes).unwrap();
    let response = world.nodes[1].sessions.poll_transmit().unwrap();
    assert_eq!(response.to, addr(9));
    world.nodes[0].sessions.handle_datagram(now, addr(1), &response.bytes).unwrap();
    let keepalive = world.nodes[0].sessions.poll_transmit().unwrap();
    world.deliver(addr(9), 1, keepalive.bytes).unwrap();
    assert_eq!(world.peer(1, 0).addr(), Some(addr(9)));
}

#[test]
fn a_node_that_goes_on_from_an_image_uses_no_key_of_it() {
    let mut world = World::new(2, Link::GOOD, 14);
    world.establish(0, 1);
    // Its clock shows an hour ago, in the same life, as far as the other can tell.
    world.behind[0] = SECOND * 3600;
    let now = world.now;
    let boot_id = world.nodes[0].sessions.config.boot_id;
    world.restart(0);
    world.nodes[0].sessions.config.boot_id = boot_id;
    world.send(0, 1, b"too old");
    world.run(SECOND * 20);
    assert!(world.dropped(1, DropReason::ReplayedHandshake) > 0);
    let is_in = |world: &World| world.received(1).contains(&&b"too old"[..]);
    assert!(!is_in(&world), "an old handshake of the same life was answered");
    // The clock need not be right for it.
    let wall = Duration::from_secs(1_800_000_000) + (now - world.start) - SECOND * 3600;
    let now = world.now;
    world.nodes[0].sessions.handle_restored(now, wall);
    world.collect(0);
    world.send(0, 1, b"here I am");
    world.run(SECOND * 6);
    assert_eq!(world.received(1).last(), Some(&&b"here I am"[..]));
    // Where it had a key, that one is gone at once and there is another without being asked.
    let before = world.peer(0, 1).key_age(world.now).unwrap();
    let now = world.now;
    world.nodes[0].sessions.handle_restored(now, wall);
    assert!(world.peer(0, 1).sender(now).is_none());
    world.collect(0);
    world.run(SECOND);
    let key = world.peer(0, 1).key_age(world.now).unwrap();
    assert!(key <= SECOND && key < before, "{key:?}");
}

#[test]
fn remove_peer_stops_delivery_at_once() {
    let mut world = World::new(3, Link::GOOD, 12);
    world.establish(0, 1);
    world.establish(2, 1);
    world.nodes[1].inbox.clear();
    let held = world.peer(1, 0).sender(world.now).unwrap();
    let peer = world.peer(1, 0);
    world.send(0, 1, b"under way");
    world.nodes[1].sessions.remove_peer(id(0));
    // A worker that still holds the key can neither seal nor open with it.
    assert!(matches!(held.reserve(1), Err(DropReason::PeerRemoved)));
    let (_, (_, _, mut bytes)) = world.flying.pop_first().unwrap();
    assert!(matches!(held.open(world.now, &mut bytes), Err(DropReason::PeerRemoved)));
    assert_eq!(peer.stage(vec![1]), Err(DropReason::PeerRemoved));
    for _ in 0..100 {
        world.send(0, 1, b"still trying");
        world.send(2, 1, b"fine");
        world.run(SECOND);
    }
    assert!(world.nodes[1].inbox.iter().all(|(from, _)| *from == id(2)));
    assert_eq!(world.nodes[1].inbox.len(), 100);
    assert!(world.dropped(1, DropReason::UnknownPeer) > 0);
    assert_eq!(world.nodes[1].sessions.peers().count(), 1);
}

#[test]
fn secrets_rotate_without_a_gap() {
    let mut world = World::new(2, Link::GOOD, 13);
    let old = Psk { epoch: 3, key: [9; 32] };
    let new = Psk { epoch: 4, key: [10; 32] };
    world.nodes[0].sessions.set_psk(new.clone(), Some(old));
    // Node 1 has not heard of epoch 4: the second try uses epoch 3.
    world.send(0, 1, b"rotating");
    world.run(SECOND * 6);
    assert_eq!(world.received(1), [b"rotating"]);
    assert_eq!(world.dropped(1, DropReason::UnknownEpoch), 1);
    // Epoch 3 is over.
    world.nodes[0].sessions.set_psk(new, None);
    world.run(SECOND * 600);
    world.send(1, 0, b"too late");
    world.run(SECOND * 30);
    assert!(world.received(0).is_empty());
    assert!(world.dropped(0, DropReason::UnknownEpoch) > 0);
}

#[test]
fn a_probe_is_heard_with_and_without_a_key_and_only_where_it_passes() {
    let mut world = World::new(2, Link::GOOD, 1);
    let probe = |world: &mut World, from: usize, to: usize| {
        let now = world.now;
        world.nodes[from].sessions.handle_probe(now, id(to), Probe::Keepalive);
        world.collect(from);
    };
    let heard = |world: &World, at: usize, from: usize, since| {
        world.peer(at, from).last_heard().is_some_and(|heard| heard >= since)
    };
    // Without a key: an initiation, which both hear of.
    let start = world.now;
    probe(&mut world, 0, 1);
    world.run(Duration::from_millis(5));
    assert!(heard(&world, 1, 0, start) && heard(&world, 0, 1, start));
    // With one: a keepalive, which needs no answer and brings nobody a frame.
    world.run(SECOND);
    let later = world.now;
    probe(&mut world, 1, 0);
    world.run(Duration::from_millis(5));
    assert!(heard(&world, 0, 1, later) && !heard(&world, 1, 0, later));
    assert!(world.received(0).is_empty() && world.received(1).is_empty());
    // A handshake, which is answered although there is a key.
    let later = world.now;
    let now = world.now;
    world.nodes[0].sessions.handle_probe(now, id(1), Probe::Handshake);
    world.collect(0);
    world.run(Duration::from_millis(5));
    assert!(heard(&world, 0, 1, later) && heard(&world, 1, 0, later));
    // Nothing passes: nobody hears.
    world.link.loss = 1000;
    world.run(SECOND);
    let blocked = world.now;
    probe(&mut world, 0, 1);
    world.run(SECOND);
    assert!(!heard(&world, 1, 0, blocked) && !heard(&world, 0, 1, blocked));
    // An initiation that was lost is not waited for.
    let mut world = World::new(2, Link::GOOD, 1);
    world.link.loss = 1000;
    probe(&mut world, 0, 1);
    world.run(SECOND);
    world.link.loss = 0;
    let open = world.now;
    probe(&mut world, 0, 1);
    world.run(Duration::from_millis(5));
    assert!(heard(&world, 1, 0, open) && heard(&world, 0, 1, open));
}
