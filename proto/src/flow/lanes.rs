//! Which frames may overtake others: those of flows that send little ([`Lanes`]).
//!
//! A bulk transfer fills whatever queue stands before the slowest part of its way. A question and
//! its answer that wait behind it take as long as the queue, though they would not delay it
//! noticeably. So frames travel in two lanes, and a flow is in one of them at a time:
//!
//! ```text
//! sparse -> bulk  : it sent more than BURST beyond RATE; what follows is behind what went before, in order
//! bulk -> sparse  : nothing came of it for PAUSE; by then what went before has arrived
//! ```
//!
//! Who begins flow after flow (a flood of SYNs, a scan) sends little in each and much in all. So a
//! flow that begins is sparse only while those between its two addresses, and those of its sender,
//! begin at a moderate rate. The others are a flood: they travel in the bulk lane, as if they were
//! one flow, so that they take the share of one; until it is PAUSE ago that too many began.

use std::{
    hash::BuildHasher,
    time::{Duration, Instant},
};

use crate::{frame::Headers, tables::Seeded};

/// Flows that are told apart. Two that share a place are one for this purpose: an overtaking less,
/// never one too many.
const FLOWS: usize = 256;
/// Flows that are known not to begin. One whose place another takes begins again: of a sender with
/// a thousand of them in one queue every fifth frame does.
const KNOWN: usize = 2048;
/// Pairs of addresses, and senders, that are told apart.
const METERS: usize = 64;
/// A pause that is longer than frames of the bulk lane are on their way.
const PAUSE: Duration = Duration::from_millis(250);

/// Bytes that a flow may send at once and stay sparse: a few questions, or the first flight of a
/// connection (RFC 6928). Per microsecond it may send 32 Mbit/s, more than any call or terminal
/// takes.
const FLOW: Limit = Limit { rate: 4, burst: 16 * 1024 };
/// Flows that may begin at once between two addresses, and 20,000 a second; times [`BEGINNING`].
const PAIR: Limit = Limit { rate: 20, burst: 1024 * BEGINNING };
/// The same of all flows of a sender. It is more, so that answers to some floods do not count
/// against those to others until their pairs have exceeded their own.
const SENDER: Limit = Limit { rate: 40, burst: 4096 * BEGINNING };
/// What a flow that begins counts, so that the rate is one for each millisecond.
const BEGINNING: u32 = 1000;

/// How a frame travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Ahead of bulk.
    Sparse,
    /// In its turn.
    Bulk,
}

/// What is said of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// How it travels, as long as nothing of its flow waits.
    pub lane: Lane,
    /// A number of its flow.
    pub flow: u64,
    /// A number of its sender.
    pub sender: u64,
    /// Whether it is of one flow with all others of the flood of its sender.
    pub is_flood: bool,
}

/// What the flows of one network sent of late. One worker's own.
#[derive(Debug)]
pub struct Lanes {
    seed: Seeded,
    /// What a flow that begins counts here, where only some of a sender's are seen.
    beginning: u32,
    /// Empty until the first frame, as all of these: many queues of many networks have none.
    flows: Vec<Flow>,
    /// A part of the hash of the flow that came last, at its place.
    known: Vec<u16>,
    pairs: Vec<NewFlows>,
    senders: Vec<NewFlows>,
}

/// What a flow sent of late.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    level: Level,
    bulk: bool,
}

/// The flows that begin between two addresses, or of a sender.
#[derive(Clone, Copy, Debug, Default)]
struct NewFlows {
    level: Level,
    /// When too many had begun.
    exceeded: Option<Instant>,
}

/// How much came beyond a rate.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    /// When something came.
    last: Option<Instant>,
    beyond: u32,
}

/// What may come.
struct Limit {
    /// For each microsecond.
    rate: u128,
    /// At once.
    burst: u32,
}

impl Lanes {
    /// No flows. The seed keeps others from choosing which flows share a place. The flows of a
    /// sender are spread over so many of these.
    #[must_use]
    pub fn new(seed: u64, spread: usize) -> Self {
        let spread = u32::try_from(spread).unwrap_or(u32::MAX);
        let beginning = BEGINNING.saturating_mul(spread);
        let (flows, known) = (Vec::new(), Vec::new());
        let (pairs, senders) = (Vec::new(), Vec::new());
        Self { seed: Seeded(seed), beginning, flows, known, pairs, senders }
    }

    /// The lane of a frame of this length that came now, and whose it is.
    pub fn of(&mut self, headers: Option<&Headers>, len: usize, now: Instant) -> Chosen {
        if self.flows.is_empty() {
            self.flows.resize(FLOWS, Flow::default());
            self.known.resize(KNOWN, 0);
        }
        let flow = self.seed.hash_one(headers.map(Headers::flow));
        let sender = self.seed.hash_one(headers.map(|headers| headers.source));
        let is_flood = headers.is_some_and(|headers| self.is_flood(headers, (flow, sender), now));
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let lane = match self.flows.get_mut(place(flow, FLOWS)) {
            Some(flow) if !is_flood => flow.take(len, now),
            _ => Lane::Bulk,
        };
        Chosen { lane, flow, sender, is_flood }
    }

    /// Whether a flow begins where too many do, between these two addresses or of this sender. A
    /// flow of a flood is not known: what follows of it is of the flood, too.
    fn is_flood(&mut self, headers: &Headers, (flow, sender): (u64, u64), now: Instant) -> bool {
        let tag = u16::try_from(flow >> 48).unwrap_or_default();
        let known = place(flow, KNOWN);
        if self.known.get(known).is_some_and(|known| *known == tag) {
            return false;
        }
        if self.senders.is_empty() {
            self.pairs.resize(METERS, NewFlows::default());
            self.senders.resize(METERS, NewFlows::default());
        }
        let ends = headers.ip.map(|ip| (ip.source, ip.destination));
        let pair = self.seed.hash_one((headers.source, headers.destination, ends));
        let begins = |new: Option<&mut NewFlows>, limit| {
            new.is_some_and(|new| new.begins(limit, self.beginning, now))
        };
        let is_flood = begins(self.pairs.get_mut(place(pair, METERS)), &PAIR)
            || begins(self.senders.get_mut(place(sender, METERS)), &SENDER);
        if !is_flood && let Some(known) = self.known.get_mut(known) {
            *known = tag;
        }
        is_flood
    }
}

fn place(number: u64, of: usize) -> usize {
    usize::try_from(number).unwrap_or_default() % of
}

impl Flow {
    fn take(&mut self, len: u32, now: Instant) -> Lane {
        if self.level.is_fresh(now) {
            *self = Self::default();
        }
        self.bulk |= self.level.add(&FLOW, len, now);
        if self.bulk { Lane::Bulk } else { Lane::Sparse }
    }
}

impl NewFlows {
    /// Notes that a flow begins. Whether too many did within PAUSE.
    fn begins(&mut self, limit: &Limit, amount: u32, now: Instant) -> bool {
        if self.level.add(limit, amount, now) {
            self.exceeded = Some(now);
            // So that it is over as soon as fewer come.
            self.level.beyond = limit.burst;
        }
        self.exceeded.is_some_and(|then| now.saturating_duration_since(then) <= PAUSE)
    }
}

impl Level {
    /// Whether nothing came for PAUSE.
    fn is_fresh(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) > PAUSE)
    }

    /// Adds what came. Whether that is more than may come.
    fn add(&mut self, limit: &Limit, amount: u32, now: Instant) -> bool {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        let micros = since.map_or(u128::MAX, |since| since.as_micros());
        let leaked = u32::try_from(micros.saturating_mul(limit.rate)).unwrap_or(u32::MAX);
        self.beyond = self.beyond.saturating_sub(leaked).saturating_add(amount);
        self.last = Some(now);
        self.beyond > limit.burst
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
mod tests {
    use std::{
        collections::{BTreeSet, HashMap},
        net::IpAddr,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        addr::MacAddr,
        frame::Ip,
        wire::{Fragment, UDP, ethernet},
    };

    /// A datagram of one host to another, with ports of these.
    fn datagram(from: u8, to: u8, ports: (u16, u16)) -> Headers {
        let [source, destination] = [from, to].map(|n| IpAddr::from([10, 0, 0, n]));
        Headers {
            destination: MacAddr([2, 0, 0, 0, 0, to]),
            source: MacAddr([2, 0, 0, 0, 0, from]),
            ethertype: ethernet::IPV4,
            ip: Some(Ip {
                source,
                destination,
                hop_limit: 64,
                protocol: UDP,
                fragment: Fragment::Whole,
                ports: Some(ports),
                upper: 34,
                end: 60,
            }),
        }
    }

    fn lane(lanes: &mut Lanes, of: &Headers, len: usize, now: Instant) -> Lane {
        lanes.of(Some(of), len, now).lane
    }

    fn lanes() -> Lanes {
        Lanes::new(7, 1)
    }

    #[test]
    fn questions_stay_sparse_beside_bulk() {
        let (mut lanes, begin) = (lanes(), Instant::now());
        let [bulk, questions] = [1, 2].map(|port| datagram(1, 2, (port, 9)));
        for n in 0..10_000 {
            let now = begin + Duration::from_micros(100 * n);
            assert_eq!(lane(&mut lanes, &bulk, 60_000, now), Lane::Bulk, "{n}");
            // 120 bytes each 100 us: 1.2 MB/s.
            assert_eq!(lane(&mut lanes, &questions, 120, now), Lane::Sparse, "{n}");
        }
    }

    #[test]
    fn a_flow_that_sends_much_is_bulk_until_it_pauses() {
        let (mut lanes, mut now) = (lanes(), Instant::now());
        let flow = datagram(1, 2, (1, 9));
        let first: Vec<Lane> = (0..20).map(|_| lane(&mut lanes, &flow, 1400, now)).collect();
        assert!(first.starts_with(&[Lane::Sparse; 11]) && first.ends_with(&[Lane::Bulk; 9]));
        // Little does not make it sparse again while it goes on: it would overtake its own.
        for _ in 0..100 {
            now += PAUSE;
            assert_eq!(lane(&mut lanes, &flow, 100, now), Lane::Bulk);
        }
        now += PAUSE + Duration::from_millis(1);
        assert_eq!(lane(&mut lanes, &flow, 100, now), Lane::Sparse);
    }

    /// The ports of a flood, each in turn.
    fn ports(n: u64) -> (u16, u16) {
        (u16::try_from(n % 60_000).unwrap() + 1024, 80)
    }

    #[test]
    fn a_flood_of_flows_takes_the_share_of_one() {
        let (mut lanes, begin) = (lanes(), Instant::now());
        let (mut numbers, mut ahead) = (BTreeSet::new(), 0);
        for n in 0..200_000 {
            let now = begin + Duration::from_micros(10 * n);
            let [there, back] = [datagram(1, 9, ports(n)), datagram(9, 1, ports(n))];
            for flood in [there, back] {
                let chosen = lanes.of(Some(&flood), 60, now);
                assert_eq!(chosen.is_flood, chosen.lane == Lane::Bulk);
                match chosen.lane {
                    Lane::Sparse => ahead += 1,
                    Lane::Bulk => drop(numbers.insert(chosen.sender)),
                }
            }
            if n % 100 == 0 {
                // Each millisecond another client begins a flow with the same server.
                for other in [datagram(2, 9, ports(n)), datagram(9, 2, ports(n))] {
                    assert_eq!(lane(&mut lanes, &other, 60, now), Lane::Sparse, "{n}");
                }
            }
        }
        assert_eq!(numbers.len(), 2, "one for each sender");
        // Its first flows, and those of them that it sends more of: some percent of all.
        assert!(ahead < 20_000, "{ahead}");
        // A moderate number is sparse again, though there is no pause.
        for n in 0..100 {
            let later = begin + Duration::from_secs(2) + Duration::from_millis(10 * n);
            let chosen = lanes.of(Some(&datagram(1, 9, ports(50_000 + n))), 60, later);
            assert!(n < 30 || chosen.lane == Lane::Sparse, "{n}");
        }
    }

    #[test]
    fn who_begins_flows_with_everybody_is_one_sender() {
        let (mut lanes, begin, mut ahead) = (lanes(), Instant::now(), 0);
        for n in 0..100_000 {
            let now = begin + Duration::from_micros(10 * n);
            let to = u8::try_from(n % 100).unwrap() + 100;
            let chosen = lanes.of(Some(&datagram(1, to, ports(n))), 60, now);
            ahead += usize::from(chosen.lane == Lane::Sparse);
            if n % 100 == 0 {
                let other = datagram(2, to, ports(n));
                assert_eq!(lane(&mut lanes, &other, 60, now), Lane::Sparse, "{n}");
            }
        }
        assert!(ahead < 12_000, "{ahead}");
    }

    #[test]
    fn who_begins_a_moderate_number_of_flows_stays_sparse() {
        // Of the 19,000 a second every second one comes here.
        let (mut lanes, begin) = (Lanes::new(7, 2), Instant::now());
        for n in 0..100_000 {
            let now = begin + Duration::from_micros(n * 2 * 1000 / 19);
            // A connection of a few frames.
            for _ in 0..4 {
                let lane = lane(&mut lanes, &datagram(1, 9, ports(n)), 60, now);
                assert_eq!(lane, Lane::Sparse, "{n}");
            }
        }
    }

    #[test]
    fn small_questions_over_many_connections_are_no_flood() {
        // 500 of them, of which a half is here: 100,000 frames a second.
        let (mut lanes, begin, mut floods) = (Lanes::new(7, 2), Instant::now(), 0);
        for n in 0..200_000 {
            let now = begin + Duration::from_micros(20 * n);
            let chosen = lanes.of(Some(&datagram(1, 9, ports(n * 7 % 250))), 60, now);
            floods += usize::from(chosen.is_flood);
        }
        assert_eq!(floods, 0);
    }

    proptest! {
        /// But for a flood, whose flows have no order among the lanes for as long as frames of it
        /// wait: see the agent's `Seat`.
        #[test]
        fn a_flow_becomes_sparse_only_after_a_pause(
            frames in prop::collection::vec((1..4u8, 0..3000u64, 0..20_000u64), 1..3000),
        ) {
            let (mut lanes, mut now) = (lanes(), Instant::now());
            let mut last = HashMap::new();
            for (from, port, micros) in frames {
                now += Duration::from_micros(micros.saturating_sub(19_000));
                let chosen = lanes.of(Some(&datagram(from, 9, ports(port))), 1400, now);
                let before = last.insert((from, port), (chosen, now));
                if let (Lane::Sparse, Some((Chosen { lane: Lane::Bulk, is_flood: false, .. }, before))) =
                    (chosen.lane, before)
                {
                    prop_assert!(now - before > PAUSE);
                }
            }
        }
    }

    #[test]
    fn whatever_comes_has_a_lane() {
        let mut lanes = lanes();
        for len in 0..120 {
            for kind in [ethernet::IPV4, ethernet::IPV6, ethernet::ARP] {
                let mut frame = vec![0x45; len];
                if let Some(field) = frame.get_mut(12..14) {
                    field.copy_from_slice(&kind.to_be_bytes());
                }
                let headers = Headers::parse(&frame);
                let _chosen = lanes.of(headers.as_ref(), len, Instant::now());
            }
        }
    }
}
