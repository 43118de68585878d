//! The table against a naive one, its limits, and many threads at once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64},
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::{
    addr::{EndpointId, MacAddr, NetworkId},
    tables::tests::now,
    wire::UDP,
};

type Table = FlowTable<Vec<AtomicU64>>;

/// Does as a thread that has taken the entry of a flow and does not go on.
pub(in crate::lb) fn hold<M: Memory>(table: &FlowTable<M>, found: &Found) {
    let at = table.shape.life(found.number);
    table.memory.store(at, table.life(found.number).taken().0, Ordering::Relaxed);
}

/// Words of which another thread changes so many before they are exchanged.
#[derive(Debug)]
struct Contended {
    words: Vec<AtomicU64>,
    lost: AtomicU64,
}

impl Memory for Contended {
    fn words(&self) -> usize {
        self.words.words()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        Memory::load(&self.words, at, order)
    }

    fn store(&self, at: usize, word: u64, order: Ordering) {
        Memory::store(&self.words, at, word, order);
    }

    fn exchange(&self, at: usize, old: u64, new: u64) -> Result<(), u64> {
        let is_lost = |lost: u64| lost.checked_sub(1);
        match self.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_lost) {
            Ok(_) => Err(!old),
            Err(_) => self.words.exchange(at, old, new),
        }
    }

    fn add(&self, at: usize, number: u64) -> u64 {
        self.words.add(at, number)
    }
}

/// A time that is the same in each test.
pub(super) fn start() -> Instant {
    thread_local! {
        static START: Instant = now();
    }
    START.with(|start| *start)
}

fn after(seconds: u64) -> Instant {
    start() + Duration::from_secs(seconds)
}

fn table(flows: u32) -> Table {
    let shape = Shape { flows, sources: 256 };
    let memory = std::iter::repeat_with(AtomicU64::default).take(shape.words()).collect();
    FlowTable::new(memory, shape, 7, start()).unwrap()
}

/// A flow of a client to 10.9.9.9:80, to a backend at 10.0.1.1.
pub(super) fn flow(client: u8, backend: u16) -> Flow {
    Flow {
        network: NetworkId::from_random([1; 16]),
        protocol: TCP,
        client: SocketAddr::from(([10, 0, 0, client], 4000)),
        client_mac: MacAddr([2, 0, 0, 0, 0, client]),
        vip: SocketAddr::from(([10, 9, 9, 9], 80)),
        backend: SocketAddr::from(([10, 0, 1, 1], backend)),
        endpoint: EndpointId::from_random([9; 16]),
        seen_port: 4000,
        sees_vip: false,
        is_relayed: false,
    }
}

/// The flow of the client's port number `n`.
fn numbered(client: u8, n: u32) -> Flow {
    let [_, vip, high, low] = n.to_be_bytes();
    let port = u16::from_be_bytes([high, low]);
    let mut flow = flow(client, 8080);
    flow.client.set_port(port);
    flow.vip.set_ip([10, 9, 9, vip].into());
    flow.backend.set_ip([10, 0, 1, vip].into());
    flow.seen_port = port;
    flow
}

fn establish(table: &Table, flow: &Flow, now: Instant) -> Found {
    let found = table.insert(flow, 0, now).unwrap();
    let answer = Found { sender: Sender::Backend, ..found };
    assert_eq!(table.note(&answer, Sign::SynAck, now), Some(State::Answered));
    assert_eq!(table.note(&found, Sign::Segment, now), Some(State::Established));
    found
}

fn count(open: u64, half_open: u64, closed: u64) -> Count {
    Count { open, half_open, closed }
}

/// While others begin flows as fast as they can, each thread looks for those that may go.
#[test]
fn who_loses_the_room_that_it_found_looks_for_more() {
    let shape = Shape { flows: 64, sources: 256 };
    let words = std::iter::repeat_with(AtomicU64::default).take(shape.words()).collect();
    let memory = Contended { words, lost: AtomicU64::new(0) };
    let table = FlowTable::new(memory, shape, 7, start()).unwrap();
    for client in 0..16 {
        table.insert(&flow(client, 8080), 0, start()).unwrap();
    }
    for (lost, client) in [(1, 20), (3, 21)] {
        table.memory.lost.store(lost, Ordering::Relaxed);
        assert!(table.insert(&flow(client, 8080), 0, start()).is_ok(), "{lost} lost");
    }
    assert_eq!(table.count(), count(16, 16, 0));
}

#[test]
fn both_directions_find_a_flow_and_nothing_else_does() {
    let table = table(64);
    let mut v6 = flow(2, 9);
    v6.protocol = UDP;
    v6.client = "[fd00::2]:4000".parse().unwrap();
    v6.vip = "[fd00::99]:80".parse().unwrap();
    v6.backend = "[fd00::3]:8080".parse().unwrap();
    v6.seen_port = 4001;
    let mut own = flow(3, 8080);
    (own.backend, own.sees_vip) = (SocketAddr::new(own.client.ip(), 8080), true);
    for flow in [flow(1, 8080), v6, own] {
        let inserted = table.insert(&flow, 5, start()).unwrap();
        assert_eq!((inserted.flow, inserted.state), (flow, State::HalfOpen));
        for (tuple, sender) in [(flow.forward(), Sender::Client), (flow.reverse(), Sender::Backend)]
        {
            let found = table.find(&tuple).unwrap();
            assert_eq!((found.flow, found.sender, found.services), (flow, sender, 5));
            let mut other = tuple;
            other.source.set_port(tuple.source.port() + 1);
            assert!(table.find(&other).is_none());
            let other = Tuple { network: NetworkId::from_random([2; 16]), ..tuple };
            assert!(table.find(&other).is_none());
            let other = Tuple { protocol: 132, ..tuple };
            assert!(table.find(&other).is_none());
            let other = Tuple { source: tuple.destination, destination: tuple.source, ..tuple };
            assert!(table.find(&other).is_none());
        }
        table.compared(&inserted, 6);
        assert_eq!(table.find(&flow.forward()).unwrap().services, 6);
    }
    assert_eq!(own.reverse().destination, SocketAddr::new(own.vip.ip(), 4000));
    assert_eq!(table.count(), count(3, 3, 0));
}

/// Who compared a flow says so late: the entry is another flow's by then.
#[test]
fn what_one_flow_was_compared_with_is_not_said_of_the_next() {
    let table = table(64);
    let gone = table.insert(&flow(1, 8080), 5, start()).unwrap();
    assert!(gone.was_compared_with(5) && !gone.was_compared_with(6));
    table.remove(&gone);
    let next = table.insert(&flow(2, 8080), 5, start()).unwrap();
    assert_eq!(next.number, gone.number);
    table.compared(&gone, 6);
    assert!(!table.find(&next.flow.forward()).unwrap().was_compared_with(6));
    table.compared(&next, 6);
    assert!(table.find(&next.flow.forward()).unwrap().was_compared_with(6));
}

#[test]
fn a_flow_that_is_there_or_looks_like_another_is_refused() {
    let table = table(64);
    let first = table.insert(&flow(1, 8080), 0, start()).unwrap();
    assert_eq!(table.insert(&flow(1, 8081), 0, start()).unwrap_err(), Refused::Exists);
    let mut same = flow(1, 8080);
    same.vip.set_port(81);
    assert_eq!(table.insert(&same, 0, start()).unwrap_err(), Refused::Clash);
    same.seen_port += 1;
    table.insert(&same, 0, start()).unwrap();
    let mut echo = flow(2, 80);
    (echo.backend, echo.sees_vip) = (echo.client, true);
    (echo.vip, echo.seen_port) = (SocketAddr::new(echo.vip.ip(), 4000), 4000);
    assert_eq!(table.insert(&echo, 0, start()).unwrap_err(), Refused::Clash, "of its own");
    assert!(table.remove(&first));
    assert!(!table.remove(&first), "it is gone");
    assert_eq!(table.note(&first, Sign::Segment, start()), None);
    table.insert(&flow(1, 8081), 0, start()).unwrap();
    assert_eq!(table.count(), count(2, 2, 0));
}

#[test]
fn ended_flows_make_room_and_established_ones_do_not() {
    let table = table(64);
    let flows: Vec<_> =
        (0..64u8).map(|n| establish(&table, &numbered(n / 16, n.into()), start())).collect();
    assert_eq!(table.count(), count(64, 0, 0));
    let late = numbered(200, 1000);
    assert_eq!(table.insert(&late, 0, start()).unwrap_err(), Refused::Full);
    assert_eq!(table.insert(&late, 0, after(8000)).unwrap_err(), Refused::Full);
    table.note(&flows[7], Sign::Rst, start()).unwrap();
    assert_eq!(table.count(), count(63, 0, 1));
    assert!(table.find(&flows[7].flow.forward()).is_some(), "until somebody needs its room");
    table.insert(&late, 0, start()).unwrap();
    assert!(table.find(&flows[7].flow.forward()).is_none());
    assert_eq!(table.count(), count(64, 1, 0));
    table.insert(&numbered(201, 1000), 0, start()).unwrap();
    assert!(table.find(&late.forward()).is_none(), "nobody has answered it");
    assert_eq!(table.count(), count(64, 1, 0));
    let others = flows.iter().filter(|it| table.find(&it.flow.reverse()).is_some());
    assert_eq!(others.count(), 63);
}

#[test]
fn half_open_flows_have_a_quarter_and_the_older_ones_go() {
    let table = table(256);
    let answered = establish(&table, &numbered(1, 70_000), start());
    for n in 0..1000u32 {
        let source = u8::try_from(n % 100).unwrap() + 2;
        table.insert(&numbered(source, n), 0, after((n / 64).into())).unwrap();
        assert!(table.count().half_open <= 64, "{:?}", table.count());
    }
    assert_eq!(table.count(), count(65, 64, 0));
    let left = (0..1000u32).filter(|n| {
        let source = u8::try_from(n % 100).unwrap() + 2;
        table.find(&numbered(source, *n).forward()).is_some()
    });
    let oldest = left.min().unwrap();
    assert!(oldest > 700, "{oldest}");
    assert!(table.find(&answered.flow.forward()).is_some());
}

#[test]
fn a_flood_of_half_open_flows_displaces_no_others() {
    let table = table(1024);
    let mut floods = 0..;
    let mut flood = |source, second| {
        for _ in 0..2000 {
            let n = floods.next().unwrap();
            match table.insert(&numbered(source, n), 0, after(second)) {
                Ok(_) | Err(Refused::Full) => {}
                Err(refused) => panic!("{refused:?}"),
            }
        }
    };
    (1..=3).for_each(|source| flood(source, 0));
    // Somebody with many connections of its own is no flood.
    for n in 0..200 {
        establish(&table, &numbered(8, 70_000 + n), start());
    }
    assert!(table.count().half_open > 250, "{:?}", table.count());
    for second in 1..20 {
        let n = 60_000 + u32::try_from(second).unwrap();
        let waiting = [numbered(9, n), numbered(8, n)];
        for waits in &waiting {
            table.insert(waits, 0, after(second)).unwrap();
        }
        (1..=3).for_each(|source| flood(source, second));
        for waits in waiting {
            let found = table.find(&waits.reverse()).expect("it was displaced");
            table.note(&found, Sign::SynAck, after(second)).unwrap();
        }
    }
}

/// Most of the room was never used. All who come find a place, also when more come than are looked
/// at at once.
#[test]
fn half_open_flows_replace_each_other_in_an_empty_table() {
    let table = table(32_768);
    for n in 0..20_000u32 {
        let source = u8::try_from(n % 100).unwrap();
        let inserted = table.insert(&numbered(source, n), 0, after((n / 1000).into()));
        assert!(inserted.is_ok(), "{n}: {:?}", table.count());
    }
    assert_eq!(table.count(), count(8192, 8192, 0));
}

#[test]
fn a_source_has_a_quarter_and_others_go_on() {
    let table = table(256);
    let flows: Vec<_> = (0..64).map(|n| establish(&table, &numbered(1, n), start())).collect();
    assert_eq!(table.insert(&numbered(1, 64), 0, start()).unwrap_err(), Refused::Full);
    establish(&table, &numbered(2, 64), start());
    table.note(&flows[0], Sign::Rst, start()).unwrap();
    establish(&table, &numbered(1, 64), start());
    assert!(table.remove(&flows[1]));
    establish(&table, &numbered(1, 65), start());
    assert_eq!(table.insert(&numbered(1, 66), 0, start()).unwrap_err(), Refused::Full);
}

#[test]
fn a_sweep_forgets_what_was_not_used() {
    let table = table(64);
    let used = establish(&table, &numbered(1, 1), start());
    let ended = establish(&table, &numbered(1, 2), start());
    table.note(&ended, Sign::Rst, start()).unwrap();
    let mut datagrams = numbered(1, 3);
    datagrams.protocol = UDP;
    table.insert(&datagrams, 0, start()).unwrap();
    let asked = numbered(1, 4);
    table.insert(&asked, 0, start()).unwrap();
    let there = |flow: &Flow| table.find(&flow.reverse()).is_some();
    for (seconds, left) in [(14, 4), (15, 3), (74, 3), (75, 2), (179, 2), (180, 1)] {
        table.sweep(after(seconds));
        assert_eq!(table.iter().count(), left, "after {seconds} s");
    }
    assert!(there(&used.flow) && !there(&ended.flow) && !there(&datagrams) && !there(&asked));
    table.note(&used, Sign::Segment, after(5000)).unwrap();
    table.sweep(after(13_099));
    assert!(there(&used.flow));
    table.sweep(after(13_100));
    assert_eq!((table.iter().count(), table.count()), (0, count(0, 0, 0)));
    for n in 0..16 {
        table.insert(&numbered(3, n), 0, after(13_100)).unwrap();
    }
}

/// All the room is used before anybody is refused.
#[test]
fn no_bucket_is_full_before_the_table_is() {
    let table = table(8192);
    for n in 0..8192u32 {
        establish(&table, &numbered(u8::try_from(n / 1024).unwrap(), n), start());
    }
    let all = (0..8192u32).filter(|n| {
        let flow = numbered(u8::try_from(n / 1024).unwrap(), *n);
        table.find(&flow.forward()).is_some_and(|found| found.flow == flow)
    });
    assert_eq!(all.count(), 8192);
}

#[test]
fn a_flow_has_at_most_160_bytes() {
    let bytes = Shape::FULL.words() * 8;
    assert!(bytes <= 160 * 131_072, "{}", bytes / 131_072);
    assert_eq!(bytes / 131_072, 152);
}

#[test]
fn memory_of_any_content_harms_nobody() {
    let shape = Shape { flows: 64, sources: 16 };
    let of = |words: Vec<u64>| {
        let memory: Vec<_> = words.into_iter().map(AtomicU64::new).collect();
        FlowTable::new(memory, shape, 7, start())
    };
    assert!(of(vec![0; shape.words() - 1]).is_none());
    let counting = (0..shape.words() as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for words in [vec![u64::MAX; shape.words()], vec![2; shape.words()], counting.collect()] {
        let table = of(words).unwrap();
        assert!(table.find(&flow(1, 1).forward()).is_none());
        let _refused = table.insert(&flow(1, 1), 0, start());
        table.sweep(after(9999));
        let _any = table.iter().count();
    }
}

/// The agent was killed while threads wrote: what is not certain any more is anything.
#[test]
fn a_table_of_a_program_that_was_killed_is_whole_again() {
    let before = table(64);
    let flows: Vec<_> =
        (0..20u8).map(|n| establish(&before, &numbered(n, n.into()), start())).collect();
    before.note(&flows[3], Sign::Rst, start()).unwrap();
    before.note(&flows[4], Sign::Rst, after(9000)).unwrap();
    before.remove(&flows[5]);
    let waiting = before.insert(&numbered(30, 30), 0, after(9000)).unwrap();
    before.note(&flows[7], Sign::Segment, after(9000)).unwrap();
    hold(&before, &flows[6]);
    let shape = before.shape;
    let damaged = |at: usize| {
        let is_header = at < shape.life(0) && at != FRESH;
        is_header || (shape.bucket(0)..shape.entry(0)).contains(&at) || at >= shape.fragments(0)
    };
    let words = before.memory.iter().enumerate().map(|(at, word)| {
        let noise = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        AtomicU64::new(if damaged(at) { noise } else { word.load(Ordering::Relaxed) })
    });
    let again = FlowTable::new(words.collect::<Vec<_>>(), shape, 7, start()).unwrap();
    again.restore(after(9000));
    // All but these were not used for too long.
    assert_eq!(again.count(), count(2, 1, 1));
    for (flow, state) in
        [(&flows[4], State::Closed), (&flows[7], State::Established), (&waiting, State::HalfOpen)]
    {
        for tuple in [flow.flow.forward(), flow.flow.reverse()] {
            let found = again.find(&tuple).unwrap();
            assert_eq!((found.flow, found.state), (flow.flow, state));
        }
    }
    assert!(again.find(&flows[6].flow.forward()).is_none(), "it was being written");
    for n in 0..61 {
        establish(&again, &numbered(100 + n / 10, 100 + u32::from(n)), after(9000));
    }
    assert_eq!(again.count(), count(63, 1, 1));
    again.restore(after(9000));
    assert_eq!(again.count(), count(63, 1, 1));
}

proptest! {
    #[test]
    fn behaves_as_a_map(ops in prop::collection::vec((0u8..5, 0u32..40), 0..200)) {
        let table = table(64);
        let mut model: BTreeMap<u32, State> = BTreeMap::new();
        for (what, n) in ops {
            let flow = numbered(u8::try_from(n % 8).unwrap(), n);
            let found = table.find(&flow.forward());
            prop_assert_eq!(found.map(|it| it.state), model.get(&n).copied());
            let half_open = model.values().filter(|state| **state == State::HalfOpen).count();
            match (what, found) {
                (0, None) if half_open < 16 => {
                    table.insert(&flow, 0, start()).unwrap();
                    model.insert(n, State::HalfOpen);
                }
                (0, Some(_)) => {
                    prop_assert_eq!(table.insert(&flow, 0, start()).unwrap_err(), Refused::Exists);
                }
                (1, Some(found)) => {
                    table.note(&Found { sender: Sender::Backend, ..found }, Sign::SynAck, start());
                    let state = table.note(&found, Sign::Segment, start()).unwrap();
                    let closed = found.state == State::Closed;
                    prop_assert_eq!(state, if closed { State::Closed } else { State::Established });
                    model.insert(n, state);
                }
                (2, Some(found)) => {
                    table.note(&found, Sign::Rst, start());
                    model.insert(n, State::Closed);
                }
                (3, Some(found)) => {
                    prop_assert!(table.remove(&found));
                    model.remove(&n);
                }
                _ => {}
            }
            let of = |state| model.values().filter(|it| **it == state).count() as u64;
            let (half_open, closed) = (of(State::HalfOpen), of(State::Closed));
            let open = model.len() as u64 - closed;
            prop_assert_eq!(table.count(), Count { open, half_open, closed });
        }
    }
}

/// Threads that begin, find, note, end and displace the same few flows. What anybody finds is whole
/// and is what was looked for; afterwards all counters are right.
#[test]
fn many_threads_at_once() {
    let table = table(48);
    let over = AtomicBool::new(false);
    let counted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (table, over, counted) = (&table, &over, &counted);
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_u32.wrapping_mul(thread + 1);
                let (mut begun, mut found_any) = (0u64, 0u64);
                for round in 0..60_000u32 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let n = (random >> 16) % 64;
                    let flow = numbered(u8::try_from(n % 8).unwrap(), n);
                    let now = after(u64::from(round / 1000));
                    match (random >> 8) % 8 {
                        0..3 => begun += u64::from(table.insert(&flow, 0, now).is_ok()),
                        3 if thread == 0 && round % 64 == 0 => table.sweep(now),
                        what => {
                            let tuple = if what == 4 { flow.reverse() } else { flow.forward() };
                            let Some(found) = table.find(&tuple) else { continue };
                            assert_eq!(found.flow, flow);
                            found_any += 1;
                            let _gone = match what {
                                4 => table.note(&found, Sign::SynAck, now),
                                5 => table.note(&found, Sign::Segment, now),
                                6 => table.note(&found, Sign::Rst, now),
                                _ => {
                                    table.remove(&found);
                                    None
                                }
                            };
                        }
                    }
                }
                counted.fetch_add(begun.min(found_any), Ordering::Relaxed);
                over.store(true, Ordering::Relaxed);
            });
        }
    });
    assert!(counted.load(Ordering::Relaxed) > 1000 && over.load(Ordering::Relaxed));
    let flows: Vec<Found> = table.iter().collect();
    let closed = flows.iter().filter(|it| it.state == State::Closed).count() as u64;
    let half_open = flows.iter().filter(|it| it.state <= State::Answered).count() as u64;
    let open = flows.len() as u64 - closed;
    assert_eq!(table.count(), Count { open, half_open, closed });
    let mut keys: Vec<_> = flows.iter().map(|it| it.flow.client).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), flows.len(), "no flow is there twice");
    for found in flows {
        assert!(table.remove(&found));
    }
    assert_eq!(table.count(), Count { open: 0, half_open: 0, closed: 0 });
    let sources = (0..2).flat_map(|row| (0..256).map(move |at| (row, at)));
    let left = sources.map(|(row, at)| table.shape.source(row, at));
    assert!(left.map(|at| table.memory.load(at, Ordering::Relaxed)).all(|count| count == 0));
    for n in 0..48 {
        establish(&table, &numbered(u8::try_from(n / 12).unwrap(), 100 + n), start());
    }
}
