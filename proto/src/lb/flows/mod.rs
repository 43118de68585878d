//! The flows to services, one table for all threads of the agent: [`FlowTable`].
//!
//! Both directions of a flow meet it on different threads, so each flow is found by two keys, the
//! client's packets and the backend's. Nobody waits and nothing is allocated:
//!
//! - An entry is written by whoever took it: its word ([`life`]) says so and has another generation
//!   then. A reader copies the entry and looks whether the word is still of the same generation.
//! - What an entry says of its flow does not change until the flow is gone. How far the flow has
//!   come is in the word, which changes by compare-and-exchange.
//! - Two threads that begin one flow at the same time: each puts its entry into the index while
//!   nobody can read it yet, and looks then whether there is another of the same key. At least one
//!   of the two sees the other, and gives up ([`Refused::Busy`] if both do).
//!
//! Limits: half-open flows have a quarter of the room. When more come, one of a few goes: the
//! oldest of the source that has most of these, so that a flood displaces its own. All flows of one
//! source have a quarter, too, and it gets no more. Ended flows count towards no limit, and whoever
//! needs an entry takes theirs. No flow of which both ends speak is displaced.

mod entry;
mod fragments;
mod index;
mod life;
mod memory;
mod restore;

use std::{
    cmp::Reverse,
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use entry::{BACKEND_AT, EPOCH, FIXED, Key, NEXT};
pub use entry::{Flow, Tuple};
pub use fragments::Fragmented;
use index::Slots;
use life::Life;
pub use life::{Sender, Sign, State};
use memory::{CLOSED, FREE, FRESH, HALF_OPEN, HAND, HELD};
pub use memory::{Memory, Shape};

use crate::{tables::Seeded, wire::TCP};

/// What half-open flows may have of all, and each source: one part of so many.
const PART: u64 = 4;
/// Entries that one search for room looks at.
const LOOKED_AT: u32 = 4096;
/// Searches for room: what one has found, another thread may take.
const SEARCHES: u32 = 4;
/// Half-open flows among which one is displaced: the oldest of the source that has most of them.
const COMPARED: usize = 8;
/// The part of the number of a snapshot that an entry has, in front of which it has its generation.
const SNAPSHOT: u64 = (1 << 40) - 1;

/// All flows.
#[derive(Debug)]
pub struct FlowTable<M> {
    memory: M,
    shape: Shape,
    seed: Seeded,
    epoch: Instant,
}

/// A flow that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// What it is.
    pub flow: Flow,
    /// Who sent the packet that it was found by.
    pub sender: Sender,
    /// How far it had come.
    pub state: State,
    /// The snapshot of services with which it was last compared, as far as that is known.
    pub services: u64,
    /// When its last packet was noted, on the table's clock.
    pub(super) second: u32,
    number: u32,
    generation: u64,
    backend_at: u64,
}

/// A half-open flow that may be displaced.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    number: u32,
    life: Life,
    /// The counters of its source.
    source: [usize; 2],
}

/// Some half-open flows that stand next to each other.
#[derive(Debug, Default)]
struct Compared {
    flows: [Option<Waiting>; COMPARED],
    count: usize,
}

impl Compared {
    fn add(&mut self, waiting: Waiting) {
        if let Some(place) = self.flows.get_mut(self.count) {
            *place = Some(waiting);
            self.count += 1;
        }
    }

    /// The one that was not used for longest, of those whose source has most of these: so a flood
    /// takes the places of its own.
    fn victim(&self) -> Option<Waiting> {
        let all = || self.flows.iter().flatten();
        let of = |source| all().filter(|other| other.source == source).count();
        all().max_by_key(|it| (of(it.source), Reverse(it.life.second()))).copied()
    }
}

/// Where a flow's backend is in a snapshot of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lb) struct BackendAt {
    /// The number of its service.
    pub(in crate::lb) service: u8,
    /// Its number in that.
    pub(in crate::lb) backend: u16,
}

impl BackendAt {
    /// The word for it; never 0.
    fn to_word(self, services: u64) -> u64 {
        let backend = u64::from(self.backend) + 1;
        u64::from(self.service) << 56 | backend << 40 | services & SNAPSHOT
    }

    fn of_word(word: u64, services: u64) -> Option<Self> {
        let [service, high, low, ..] = word.to_be_bytes();
        let backend = u16::from_be_bytes([high, low]).checked_sub(1)?;
        (word & SNAPSHOT == services & SNAPSHOT).then_some(Self { service, backend })
    }
}

impl Found {
    /// Whether it was compared with this snapshot of services.
    #[must_use]
    pub const fn was_compared_with(&self, services: u64) -> bool {
        self.services == services & SNAPSHOT
    }

    /// Where its backend is in this snapshot of services, if that was noted.
    pub(super) fn backend_at(&self, services: u64) -> Option<BackendAt> {
        BackendAt::of_word(self.backend_at, services)
    }
}

/// Why there is no new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room, or the source has all that it may have.
    Full,
    /// There is one for the client's packets.
    Exists,
    /// Another flow looks the same to the backend: choose another port.
    Clash,
    /// Another thread begins or ends one of the same keys at this moment.
    Busy,
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Those that count: half-open and established.
    pub open: u64,
    /// Those of which only one end has spoken.
    pub half_open: u64,
    /// Those that ended and were not yet replaced.
    pub closed: u64,
}

/// An entry that is this thread's.
#[derive(Clone, Copy)]
struct Taken {
    number: u32,
    life: Life,
}

impl<M: Memory> FlowTable<M> {
    /// A table in memory that is zero, or that of a table of this shape and seed, which is then to
    /// be [restored](Self::restore); nothing if it has less than [`Shape::words`] words. No time is
    /// before `epoch`.
    #[must_use]
    pub fn new(memory: M, shape: Shape, seed: u64, epoch: Instant) -> Option<Self> {
        let enough = memory.words() >= shape.words() && shape.flows <= Shape::MOST;
        enough.then_some(Self { memory, shape, seed: Seeded(seed), epoch })
    }

    /// The flow of which this packet is.
    #[must_use]
    pub fn find(&self, tuple: &Tuple) -> Option<Found> {
        let key = Key::of(tuple);
        let slots = self.slots(&key);
        slots.find(&self.memory, Ordering::Acquire, |number| self.read(number, &key))
    }

    /// Notes a packet of a flow, and says how far the flow is then; nothing if it is gone.
    pub fn note(&self, found: &Found, sign: Sign, now: Instant) -> Option<State> {
        self.noted(found, sign, now).map(|(_before, state)| state)
    }

    /// The same, and how far the flow was before: of two threads one sees a change.
    pub(super) fn noted(&self, found: &Found, sign: Sign, now: Instant) -> Option<(State, State)> {
        let (at, second) = (self.shape.life(found.number), self.second(now));
        let mut word = self.memory.load(at, Ordering::Relaxed);
        loop {
            let life = Life(word);
            let state = life.state().filter(|_| life.generation() == found.generation)?;
            let next = life.after(found.sender, sign, second);
            if next == life {
                return Some((state, state));
            }
            match self.memory.exchange(at, word, next.0) {
                Ok(()) => {
                    if life.is_half_open() && !next.is_half_open() {
                        self.less(HALF_OPEN);
                    }
                    if life.is_open() && !next.is_open() {
                        self.memory.add(CLOSED, 1);
                        self.count_source(&found.flow, false);
                    }
                    return Some((state, next.state()?));
                }
                Err(other) => word = other,
            }
        }
    }

    /// Remembers where a flow's backend is in a snapshot of services, unless another thread does.
    pub(super) fn keep_backend_at(&self, found: &Found, at: BackendAt, services: u64) {
        // The entry may be another flow's by now: its word is not the one that was found.
        let word = self.shape.entry(found.number) + BACKEND_AT;
        let _other = self.memory.exchange(word, found.backend_at, at.to_word(services));
    }

    /// How long a flow was not used.
    #[must_use]
    pub fn idle(&self, found: &Found, now: Instant) -> Duration {
        Duration::from_secs(self.second(now).saturating_sub(found.second).into())
    }

    /// Remembers that the flow was compared with this snapshot of services.
    pub fn compared(&self, found: &Found, services: u64) {
        // The entry may be another flow's by now, which was not compared: the generation tells.
        let at = self.shape.entry(found.number) + EPOCH;
        self.memory.store(at, mark(found.generation, services), Ordering::Relaxed);
    }

    /// Begins a flow.
    ///
    /// # Errors
    /// There is none then.
    pub fn insert(&self, flow: &Flow, services: u64, now: Instant) -> Result<Found, Refused> {
        let (forward, reverse) = (Key::of(&flow.forward()), Key::of(&flow.reverse()));
        if forward == reverse {
            return Err(Refused::Clash);
        }
        let (client, backend) = (self.slots(&forward), self.slots(&reverse));
        // Before anybody's place is taken for it.
        self.is_free(None, &client, &forward, Refused::Exists)?;
        self.is_free(None, &backend, &reverse, Refused::Clash)?;
        if self.source_count(flow) >= u64::from(self.shape.flows) / PART {
            return Err(Refused::Full);
        }
        let taken = self.acquire(now).ok_or(Refused::Full)?;
        self.write(taken, flow, services);
        let placed = self.place(taken, [(&client, &forward), (&backend, &reverse)]);
        if let Err(refused) = placed {
            self.release(taken);
            return Err(refused);
        }
        self.memory.add(HALF_OPEN, 1);
        self.memory.add(HELD, 1);
        self.count_source(flow, true);
        let life = taken.life.begin(flow.protocol == TCP, self.second(now));
        self.memory.store(self.shape.life(taken.number), life.0, Ordering::Release);
        Ok(Found {
            flow: *flow,
            sender: Sender::Client,
            state: State::HalfOpen,
            services: services & SNAPSHOT,
            second: life.second(),
            number: taken.number,
            generation: life.generation(),
            backend_at: 0,
        })
    }

    /// Forgets a flow. False if it was gone already.
    pub fn remove(&self, found: &Found) -> bool {
        self.remove_if(found, |_state| true)
    }

    /// The same, unless it has come further since it was found.
    pub(super) fn remove_unchanged(&self, found: &Found) -> bool {
        self.remove_if(found, |state| state == found.state)
    }

    fn remove_if(&self, found: &Found, is_wanted: impl Fn(State) -> bool) -> bool {
        loop {
            let life = self.life(found.number);
            if !life.state().is_some_and(&is_wanted) || life.generation() != found.generation {
                return false;
            }
            if let Some(taken) = self.take(found.number, life) {
                self.release(taken);
                return true;
            }
        }
    }

    /// Forgets the flows that nobody has used for as long as their state is kept. For a thread that
    /// carries no frames, every second or so.
    pub fn sweep(&self, now: Instant) {
        let second = self.second(now);
        for number in 0..self.fresh() {
            let life = self.life(number);
            if life.is_over(second)
                && let Some(taken) = self.take(number, life)
            {
                self.release(taken);
            }
        }
    }

    /// All flows that there are, in no order. Those that begin or end meanwhile may be missed.
    pub fn iter(&self) -> impl Iterator<Item = Found> {
        (0..self.fresh()).filter_map(|number| {
            let (words, life) = self.copy(number)?;
            self.found(number, life, &words, Sender::Client)
        })
    }

    /// How many flows there are.
    #[must_use]
    pub fn count(&self) -> Count {
        let [held, half_open, closed] =
            [HELD, HALF_OPEN, CLOSED].map(|at| self.memory.load(at, Ordering::Relaxed));
        Count { open: held.saturating_sub(closed), half_open, closed }
    }

    fn slots(&self, key: &Key) -> Slots {
        let mut hasher = self.seed.build_hasher();
        key.words().into_iter().for_each(|word| hasher.write_u64(word));
        Slots::of(self.shape, hasher.finish())
    }

    /// A time on the table's clock, in milliseconds; never 0.
    pub(super) fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The time that [`millis`](Self::millis) gave; nothing for 0.
    pub(super) fn instant(&self, millis: u64) -> Option<Instant> {
        self.epoch.checked_add(Duration::from_millis(millis.checked_sub(1)?))
    }

    /// A number for an address, which nobody outside can foresee.
    pub(super) fn hash_of(&self, ip: IpAddr) -> u64 {
        let mut hasher = self.seed.build_hasher();
        entry::ip_words(ip).into_iter().for_each(|word| hasher.write_u64(word));
        hasher.finish()
    }

    /// Seconds on the table's clock.
    pub(super) fn second(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.epoch);
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }

    fn life(&self, number: u32) -> Life {
        Life(self.memory.load(self.shape.life(number), Ordering::Acquire))
    }

    /// Entries that were ever used.
    fn fresh(&self) -> u32 {
        let fresh = self.memory.load(FRESH, Ordering::Relaxed);
        u32::try_from(fresh).unwrap_or(u32::MAX).min(self.shape.flows)
    }

    fn less(&self, at: usize) {
        self.memory.add(at, u64::MAX);
    }

    /// The entry, if it is that of the key.
    fn read(&self, number: u32, key: &Key) -> Option<Found> {
        let (words, life) = self.copy(number)?;
        let sender = key.sender_in(&words)?;
        self.found(number, life, &words, sender)
    }

    fn found(
        &self,
        number: u32,
        life: Life,
        words: &[u64; FIXED],
        sender: Sender,
    ) -> Option<Found> {
        let mark = self.memory.load(self.shape.entry(number) + EPOCH, Ordering::Relaxed);
        let is_its = mark & !SNAPSHOT == self::mark(life.generation(), 0);
        Some(Found {
            flow: Flow::of_words(words),
            sender,
            state: life.state()?,
            services: if is_its { mark & SNAPSHOT } else { u64::MAX },
            second: life.second(),
            number,
            generation: life.generation(),
            backend_at: self.memory.load(self.shape.entry(number) + BACKEND_AT, Ordering::Relaxed),
        })
    }

    /// What an entry says; nothing if there is no flow in it, or somebody wrote it meanwhile.
    fn copy(&self, number: u32) -> Option<([u64; FIXED], Life)> {
        let before = self.life(number);
        before.state()?;
        let words = self.words(number);
        fence(Ordering::Acquire);
        let after = Life(self.memory.load(self.shape.life(number), Ordering::Relaxed));
        let same = after.state().is_some() && after.generation() == before.generation();
        same.then_some((words, before))
    }

    fn words(&self, number: u32) -> [u64; FIXED] {
        let first = self.shape.entry(number);
        let mut words = [0; FIXED];
        for (word, at) in words.iter_mut().zip(first..) {
            *word = self.memory.load(at, Ordering::Relaxed);
        }
        words
    }

    fn write(&self, Taken { number, life }: Taken, flow: &Flow, services: u64) {
        // Who reads a word of these sees that the entry is taken.
        fence(Ordering::Release);
        let first = self.shape.entry(number);
        for (at, word) in (first..).zip(flow.to_words()) {
            self.memory.store(at, word, Ordering::Relaxed);
        }
        let mark = mark(life.generation(), services);
        self.memory.store(first + EPOCH, mark, Ordering::Relaxed);
        self.memory.store(first + BACKEND_AT, 0, Ordering::Relaxed);
    }

    /// Puts a taken entry into the index under its keys, unless another has one of them.
    fn place(&self, taken: Taken, keys: [(&Slots, &Key); 2]) -> Result<(), Refused> {
        let [(client, forward), (backend, reverse)] = keys;
        if !client.put(&self.memory, taken.number) {
            return Err(Refused::Full);
        }
        if !backend.put(&self.memory, taken.number) {
            client.take(&self.memory, taken.number);
            return Err(Refused::Full);
        }
        let alone = self
            .is_free(Some(taken.number), client, forward, Refused::Exists)
            .and_then(|()| self.is_free(Some(taken.number), backend, reverse, Refused::Clash));
        if alone.is_err() {
            client.take(&self.memory, taken.number);
            backend.take(&self.memory, taken.number);
        }
        alone
    }

    /// Whether no entry but one's own has this key.
    fn is_free(
        &self,
        own: Option<u32>,
        slots: &Slots,
        key: &Key,
        refused: Refused,
    ) -> Result<(), Refused> {
        let conflict = slots.find(&self.memory, Ordering::SeqCst, |number| {
            if Some(number) == own {
                return None;
            }
            // Also of an entry that is being written: its words were there before its slot.
            let life = self.life(number);
            let is_same = key.sender_in(&self.words(number)).is_some();
            match life.state() {
                Some(_) if is_same => Some(refused),
                None if is_same && life.is_taken() => Some(Refused::Busy),
                _ => None,
            }
        });
        conflict.map_or(Ok(()), Err)
    }

    /// An entry for a new flow.
    fn acquire(&self, now: Instant) -> Option<Taken> {
        let most = u64::from(self.shape.flows) / PART;
        let search = |half_open| (0..SEARCHES).find_map(|_| self.displace(now, half_open));
        if self.memory.load(HALF_OPEN, Ordering::Relaxed) >= most {
            return search(true);
        }
        self.pop().or_else(|| self.unused()).or_else(|| search(false))
    }

    /// The next entry that was never used.
    fn unused(&self) -> Option<Taken> {
        let mut fresh = self.memory.load(FRESH, Ordering::Relaxed);
        loop {
            let number = u32::try_from(fresh).ok().filter(|number| *number < self.shape.flows)?;
            match self.memory.exchange(FRESH, fresh, fresh + 1) {
                Ok(()) => return Some(self.own(number)),
                Err(other) => fresh = other,
            }
        }
    }

    /// The next of those that were given up.
    fn pop(&self) -> Option<Taken> {
        let mut head = self.memory.load(FREE, Ordering::Acquire);
        loop {
            let number = u32::try_from(head & u64::from(u32::MAX)).ok()?.checked_sub(1)?;
            // A damaged file must not lead outside.
            if number >= self.shape.flows {
                return None;
            }
            let next = self.memory.load(self.shape.entry(number) + NEXT, Ordering::Relaxed);
            match self.memory.exchange(FREE, head, versioned(head, next)) {
                Ok(()) => return Some(self.own(number)),
                Err(other) => head = other,
            }
        }
    }

    /// Marks an entry that nobody else has.
    fn own(&self, number: u32) -> Taken {
        let life = self.life(number).taken();
        self.memory.store(self.shape.life(number), life.0, Ordering::Relaxed);
        Taken { number, life }
    }

    /// Gives up an entry.
    fn release(&self, Taken { number, life }: Taken) {
        self.memory.store(self.shape.life(number), life.free().0, Ordering::Release);
        let mut head = self.memory.load(FREE, Ordering::Relaxed);
        loop {
            let next = head & u64::from(u32::MAX);
            self.memory.store(self.shape.entry(number) + NEXT, next, Ordering::Relaxed);
            match self.memory.exchange(FREE, head, versioned(head, u64::from(number) + 1)) {
                Ok(()) => return,
                Err(other) => head = other,
            }
        }
    }

    /// Takes the entry of a flow that ended or was not used for long; or else one of a few
    /// half-open ones ([`Compared`]). Of half-open ones only, where these are too many.
    fn displace(&self, now: Instant, half_open: bool) -> Option<Taken> {
        // Not over entries that were never used: nothing is to be found there.
        let (second, flows) = (self.second(now), self.fresh().max(1));
        let [closed, waiting] =
            [CLOSED, HALF_OPEN].map(|at| self.memory.load(at, Ordering::Relaxed));
        if closed == 0 && waiting == 0 {
            return None;
        }
        let hand = u32::try_from(self.memory.load(HAND, Ordering::Relaxed)).unwrap_or(0);
        let (mut compared, mut looked_at) = (Compared::default(), 0);
        for step in 0..LOOKED_AT.min(flows) {
            let number = (hand % flows + step) % flows;
            looked_at = step + 1;
            let life = self.life(number);
            let is_over = life.state() == Some(State::Closed) || life.is_over(second);
            let taken = (is_over && !half_open).then(|| self.take(number, life)).flatten();
            if taken.is_some() {
                self.memory.store(HAND, u64::from(number) + 1, Ordering::Relaxed);
                return taken;
            }
            if life.is_half_open() && compared.count < COMPARED {
                let source = self.sources(&Flow::of_words(&self.words(number)));
                compared.add(Waiting { number, life, source });
            }
            if compared.count == COMPARED && (half_open || closed == 0) {
                break;
            }
        }
        self.memory.store(HAND, u64::from(hand % flows + looked_at), Ordering::Relaxed);
        compared.victim().and_then(|waiting| self.take(waiting.number, waiting.life))
    }

    /// Takes the entry of a flow, which is forgotten. Nothing if it changed.
    fn take(&self, number: u32, life: Life) -> Option<Taken> {
        let taken = life.taken();
        self.memory.exchange(self.shape.life(number), life.0, taken.0).ok()?;
        let flow = Flow::of_words(&self.words(number));
        for tuple in [flow.forward(), flow.reverse()] {
            self.slots(&Key::of(&tuple)).take(&self.memory, number);
        }
        self.less(HELD);
        if life.is_half_open() {
            self.less(HALF_OPEN);
        }
        if life.is_open() {
            self.count_source(&flow, false);
        } else {
            self.less(CLOSED);
        }
        Some(Taken { number, life: taken })
    }

    /// The two counters of a source. One that has few flows shares both with one that has many once
    /// in a million times (Cormode and Muthukrishnan, "Count-min sketch", 2005).
    fn sources(&self, flow: &Flow) -> [usize; 2] {
        let mut hasher = self.seed.build_hasher();
        hasher.write(flow.network.bytes());
        flow.counted_for().into_iter().for_each(|word| hasher.write_u64(word));
        let hash = hasher.finish();
        let most = u64::from(self.shape.sources.max(1));
        let at = |bits: u64| usize::try_from(bits % most).unwrap_or_default();
        [self.shape.source(0, at(hash >> 32)), self.shape.source(1, at(hash & 0xffff_ffff))]
    }

    fn source_count(&self, flow: &Flow) -> u64 {
        let rows = self.sources(flow);
        rows.map(|at| self.memory.load(at, Ordering::Relaxed)).into_iter().min().unwrap_or_default()
    }

    fn count_source(&self, flow: &Flow, one_more: bool) {
        for at in self.sources(flow) {
            self.memory.add(at, if one_more { 1 } else { u64::MAX });
        }
    }
}

/// What says that the flow of this generation was compared with a snapshot.
const fn mark(generation: u64, services: u64) -> u64 {
    generation << SNAPSHOT.count_ones() | services & SNAPSHOT
}

/// A head that is not taken for an earlier one.
const fn versioned(head: u64, first: u64) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | (first & 0xffff_ffff)
}

#[cfg(test)]
mod model;
#[cfg(test)]
pub(super) mod tests;
