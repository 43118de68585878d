//! Every order in which few threads can take their steps in a small table, as long as nobody is
//! interrupted more than a few times (Musuvathi and Qadeer, "Iterative Context Bounding", PLDI
//! 2007: two or three show nearly all that can go wrong).
//!
//! A thread is run up to its next step again and again: what its earlier steps gave is written
//! down, and at the step behind the next one it is stopped by unwinding. Two orders after which
//! memory and all that is written down are equal have the same future, so one of them is enough.
//! Steps are in one order for all threads here; that weaker orders are enough stands beside them.

use std::{
    cell::RefCell,
    collections::HashSet,
    hash::{BuildHasher, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::Ordering,
    time::Instant,
};

use super::{
    tests::{flow, start},
    *,
};

/// So few flows that no bucket has more than four keys, and so many that none displaces another.
const SHAPE: Shape = Shape { flows: 16, sources: 2 };

/// How often one thread may be interrupted by another.
const MOST: usize = 2;

/// What a step gave.
type Given = Result<u64, u64>;

/// Memory whose every use is a step, but for words that the flows of the model have in common.
#[derive(Clone, Copy, Debug)]
struct Steps;

#[derive(Default)]
struct World {
    memory: Vec<u64>,
    print: u64,
    given: Vec<Given>,
    at: usize,
    stepped: bool,
    is_alone: bool,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

/// Whether no order can be told by the word: counters of sources, slots and words that stay the
/// same in the model.
fn is_quiet(at: usize) -> bool {
    let sources = SHAPE.source(0, 0)..SHAPE.life(0);
    let in_bucket = at.checked_sub(SHAPE.bucket(0)).map(|at| at % memory::BUCKET);
    let in_entry = at.checked_sub(SHAPE.entry(0)).map(|at| at % entry::WORDS);
    // Client, backend and ports differ.
    let differs = [3, 7, 8, NEXT];
    sources.contains(&at)
        || match in_entry {
            Some(at) => !differs.contains(&at),
            None => in_bucket.is_some_and(|at| at >= 2),
        }
}

fn step(at: usize, act: impl FnOnce(&mut u64) -> Given) -> Given {
    let given = WORLD.with_borrow_mut(|world| {
        if world.is_alone {
            return Some(act(&mut world.memory[at]));
        }
        if let Some(given) = world.given.get(world.at) {
            world.at += 1;
            return Some(*given);
        }
        if !is_quiet(at) && std::mem::replace(&mut world.stepped, true) {
            return None;
        }
        let before = world.memory[at];
        let given = act(&mut world.memory[at]);
        let of = |word: u64| Seeded(word).hash_one(at);
        world.print ^= of(before) ^ of(world.memory[at]);
        world.given.push(given);
        world.at += 1;
        Some(given)
    });
    given.unwrap_or_else(|| resume_unwind(Box::new(())))
}

impl Memory for Steps {
    fn words(&self) -> usize {
        SHAPE.words()
    }

    fn load(&self, at: usize, _order: Ordering) -> u64 {
        step(at, |word| Ok(*word)).unwrap_or_default()
    }

    fn store(&self, at: usize, new: u64, _order: Ordering) {
        let _ok = step(at, |word| Ok(std::mem::replace(word, new)));
    }

    fn exchange(&self, at: usize, old: u64, new: u64) -> Result<(), u64> {
        step(at, |word| {
            if *word != old {
                return Err(*word);
            }
            *word = new;
            Ok(new)
        })
        .map(|_| ())
    }

    fn add(&self, at: usize, number: u64) -> u64 {
        let add = |word: &mut u64| Ok(std::mem::replace(word, word.wrapping_add(number)));
        step(at, add).unwrap_or_default()
    }
}

type Table = FlowTable<Steps>;
type Thread<R> = fn(&Table, Instant) -> R;

/// How far all threads are.
#[derive(Clone)]
struct Order<R> {
    memory: Vec<u64>,
    /// A hash of the memory.
    print: u64,
    given: Vec<Vec<Given>>,
    results: Vec<Option<R>>,
    /// Who took the last step, and how often one was interrupted.
    last: usize,
    interrupted: usize,
}

impl<R> Order<R> {
    /// What the future depends on.
    fn print(&self) -> u64 {
        let mut hasher = Seeded(self.print).build_hasher();
        for given in &self.given {
            hasher.write_usize(given.len());
            for step in given {
                let (Ok(word) | Err(word)) = step;
                hasher.write_u64(*word);
            }
        }
        hasher.write_usize(self.last << 8 | self.interrupted);
        hasher.finish()
    }
}

/// Runs the threads in every order from memory as `before` leaves it in which one is interrupted by
/// another `MOST` times at most, and shows `check` what each gave and the table afterwards.
fn in_every_order<R: Clone>(
    before: impl Fn(&Table, Instant),
    threads: &[Thread<R>],
    check: impl Fn(&[R], &Table),
) {
    let table = FlowTable::new(Steps, SHAPE, 7, start()).unwrap();
    let memory = alone(vec![0; SHAPE.words()], || before(&table, start())).1;
    let count = threads.len();
    let mut open = vec![Order {
        memory,
        print: 0,
        given: vec![Vec::new(); count],
        results: vec![None; count],
        last: 0,
        interrupted: 0,
    }];
    let mut seen = HashSet::new();
    let mut ends = 0;
    while let Some(order) = open.pop() {
        if order.results.iter().all(Option::is_some) {
            let results: Vec<R> = order.results.into_iter().flatten().collect();
            alone(order.memory, || check(&results, &table));
            ends += 1;
            continue;
        }
        for (number, thread) in threads.iter().enumerate() {
            let interrupts = number != order.last && order.results[order.last].is_none();
            let begins = order.given.iter().all(Vec::is_empty);
            let interrupted = order.interrupted + usize::from(interrupts && !begins);
            if order.results[number].is_some() || interrupted > MOST {
                continue;
            }
            let mut next = Order { last: number, interrupted, ..order.clone() };
            let given = std::mem::take(&mut next.given[number]);
            let (memory, print) = (std::mem::take(&mut next.memory), next.print);
            WORLD.set(World { memory, print, given, ..World::default() });
            let end = catch_unwind(AssertUnwindSafe(|| thread(&table, start())));
            let world = WORLD.take();
            (next.memory, next.print, next.given[number]) =
                (world.memory, world.print, world.given);
            match end {
                Ok(result) => next.results[number] = Some(result),
                Err(payload) if payload.is::<()>() => {}
                Err(payload) => resume_unwind(payload),
            }
            if seen.insert(next.print()) {
                open.push(next);
            }
        }
    }
    println!("{} states, {ends} ends", seen.len());
}

/// Runs something without anybody else.
fn alone<R>(memory: Vec<u64>, run: impl FnOnce() -> R) -> (R, Vec<u64>) {
    WORLD.set(World { memory, is_alone: true, ..World::default() });
    let result = run();
    (result, WORLD.take().memory)
}

/// Counters and index agree with what there is.
fn is_sound(table: &Table) {
    let flows: Vec<Found> = table.iter().collect();
    for found in &flows {
        for tuple in [found.flow.forward(), found.flow.reverse()] {
            assert_eq!(table.find(&tuple).map(|it| it.flow), Some(found.flow));
        }
    }
    let of = |is: fn(&State) -> bool| flows.iter().filter(|it| is(&it.state)).count() as u64;
    let closed = of(|state| *state == State::Closed);
    let half_open = of(|state| *state <= State::Answered);
    let open = flows.len() as u64 - closed;
    assert_eq!(table.count(), Count { open, half_open, closed });
    let sources: u64 =
        (0..2).map(|at| table.memory.load(SHAPE.source(0, at), Ordering::Relaxed)).sum();
    assert_eq!(sources, open);
    let slots =
        (SHAPE.bucket(0)..SHAPE.entry(0)).map(|at| table.memory.load(at, Ordering::Relaxed));
    let used: usize = slots
        .map(|word| [word >> 32, word & 0xffff_ffff].iter().filter(|it| **it != 0).count())
        .sum();
    assert_eq!(used, 2 * flows.len(), "a slot for each key, and no other");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Did {
    Inserted(Result<u16, Refused>),
    Saw([Option<u16>; 2]),
    Noted(Option<State>),
    Removed(bool),
}

fn insert(table: &Table, now: Instant, backend: u16) -> Did {
    Did::Inserted(table.insert(&flow(1, backend), 0, now).map(|found| found.flow.backend.port()))
}

fn look_twice(table: &Table, _now: Instant) -> Did {
    let look = || table.find(&flow(1, 1).forward()).map(|found| found.flow.backend.port());
    Did::Saw([look(), look()])
}

#[test]
fn of_two_who_begin_one_flow_one_at_most_does() {
    in_every_order(
        |_, _| {},
        &[|table, now| insert(table, now, 1), |table, now| insert(table, now, 2), look_twice],
        |did, table| {
            is_sound(table);
            let begun: Vec<u16> = did
                .iter()
                .filter_map(|did| match did {
                    Did::Inserted(result) => result.ok(),
                    _ => None,
                })
                .collect();
            assert!(begun.len() <= 1, "{did:?}");
            let there: Vec<u16> = table.iter().map(|found| found.flow.backend.port()).collect();
            assert_eq!(begun, there);
            if begun.is_empty() {
                let busy = Did::Inserted(Err(Refused::Busy));
                assert_eq!((did[0], did[1]), (busy, busy));
            }
            let Did::Saw(saw) = did[2] else { panic!() };
            assert!(saw.into_iter().flatten().all(|backend| begun == [backend]), "{did:?}");
            assert!(saw[0].is_none() || saw[1].is_some(), "seen once, seen again: {did:?}");
        },
    );
}

/// The entry of one flow becomes that of another while somebody looks for the first, and somebody
/// notes that it was closed.
#[test]
fn who_looks_for_a_flow_never_gets_another_ones_entry() {
    in_every_order(
        |table, now| {
            table.insert(&flow(1, 1), 0, now).unwrap();
        },
        &[
            |table, now| {
                let removed =
                    table.find(&flow(1, 1).forward()).is_some_and(|found| table.remove(&found));
                let other = table.insert(&flow(2, 2), 0, now);
                assert_eq!(other.map(|found| found.flow), Ok(flow(2, 2)));
                Did::Removed(removed)
            },
            |table, now| {
                let found = table.find(&flow(1, 1).reverse());
                Did::Noted(found.and_then(|found| table.note(&found, Sign::Rst, now)))
            },
            look_twice,
        ],
        |did, table| {
            is_sound(table);
            assert_eq!(did[0], Did::Removed(true));
            assert!(matches!(did[1], Did::Noted(None | Some(State::Closed))), "{did:?}");
            let Did::Saw(saw) = did[2] else { panic!() };
            assert!(saw.into_iter().flatten().all(|backend| backend == 1), "{did:?}");
            assert!(saw[0].is_some() || saw[1].is_none(), "gone once, gone for good: {did:?}");
            let there: Vec<_> = table.iter().map(|found| (found.flow, found.state)).collect();
            assert_eq!(there, [(flow(2, 2), State::HalfOpen)]);
        },
    );
}

/// Two clients whose packets would look the same to the backend.
#[test]
fn no_two_flows_are_one_to_a_backend() {
    fn of_another_vip() -> Flow {
        let mut flow = flow(1, 1);
        flow.client.set_port(77);
        flow
    }
    in_every_order(
        |_, _| {},
        &[
            |table, now| insert(table, now, 1),
            |table, now| {
                let inserted = table.insert(&of_another_vip(), 0, now);
                Did::Inserted(inserted.map(|found| found.flow.backend.port()))
            },
        ],
        |did, table| {
            is_sound(table);
            let begun = did.iter().filter(|did| matches!(did, Did::Inserted(Ok(_)))).count();
            assert!(begun <= 1 && table.iter().count() == begun, "{did:?}");
        },
    );
}
