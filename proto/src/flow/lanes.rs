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
//! flow that begins is sparse only while those of its two addresses, and those of its sender,
//! begin at a moderate rate. The others travel in the bulk lane, as if they were one flow, so that
//! they take the share of one; and so does what follows of them, until none has begun for PAUSE.

use std::{
    hash::BuildHasher,
    time::{Duration, Instant},
};

use crate::{frame::Headers, tables::Seeded};

/// Flows that are told apart. Two that share a place are one for this purpose: an overtaking less,
/// never one too many.
const FLOWS: usize = 256;
/// Senders that are told apart, alone and with whom they send to.
const SENDERS: usize = 256;
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

/// What the flows of one network sent of late. One worker's own.
#[derive(Debug)]
pub struct Lanes {
    seed: Seeded,
    /// What a flow that begins counts here, where only some of a sender's are seen.
    beginning: u32,
    /// Empty until the first frame: many queues of many networks have none.
    flows: Vec<Flow>,
    senders: Vec<Meter>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    sent: Meter,
    /// A part of the hash of the flow that sent last.
    tag: u16,
}

/// How much came beyond a rate, and whether it was too much since the last pause.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    /// When something came.
    last: Option<Instant>,
    level: u32,
    exceeded: bool,
}

/// What a [`Meter`] lets pass.
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
        Self { seed: Seeded(seed), beginning, flows: Vec::new(), senders: Vec::new() }
    }

    /// The lane of a frame of this length that came now, and a number of its flow.
    pub fn of(&mut self, headers: Option<&Headers>, len: usize, now: Instant) -> (Lane, u64) {
        if self.flows.is_empty() {
            self.flows.resize(FLOWS, Flow::default());
        }
        let number = self.seed.hash_one(headers.map(Headers::flow));
        let at = place(number, FLOWS);
        let tag = u16::try_from(number >> 48).unwrap_or_default();
        if self.flows.get(at).is_none_or(|flow| flow.tag != tag)
            && let Some(sender) = headers.and_then(|headers| self.crowd(headers, now))
        {
            return (Lane::Bulk, sender);
        }
        let Some(flow) = self.flows.get_mut(at) else { return (Lane::Bulk, number) };
        flow.tag = tag;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let lane = if flow.sent.exceeds(&FLOW, len, now) { Lane::Bulk } else { Lane::Sparse };
        (lane, number)
    }

    /// Notes that a flow begins. If too many do between these two addresses, or else of this
    /// sender, a number of the sender.
    fn crowd(&mut self, headers: &Headers, now: Instant) -> Option<u64> {
        if self.senders.is_empty() {
            self.senders.resize(SENDERS, Meter::default());
        }
        let ends = headers.ip.map(|ip| (ip.source, ip.destination));
        let pair = self.seed.hash_one((headers.source, headers.destination, ends));
        let sender = self.seed.hash_one(headers.source);
        let crowded = [(pair, PAIR), (sender, SENDER)].into_iter().any(|(number, limit)| {
            let begun = self.senders.get_mut(place(number, SENDERS));
            begun.is_some_and(|begun| begun.exceeds(&limit, self.beginning, now))
        });
        crowded.then_some(sender)
    }
}

fn place(number: u64, of: usize) -> usize {
    usize::try_from(number).unwrap_or_default() % of
}

impl Meter {
    /// Notes that so much came. Whether more came than the limit lets pass, now or before without a
    /// pause since.
    fn exceeds(&mut self, limit: &Limit, amount: u32, now: Instant) -> bool {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        let micros = since.map_or(u128::MAX, |since| since.as_micros());
        if since.is_none_or(|since| since > PAUSE) {
            *self = Self::default();
        }
        let leaked = u32::try_from(micros.saturating_mul(limit.rate)).unwrap_or(u32::MAX);
        self.level = self.level.saturating_sub(leaked).saturating_add(amount);
        self.last = Some(now);
        self.exceeded |= self.level > limit.burst;
        self.exceeded
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

    fn lanes() -> Lanes {
        Lanes::new(7, 1)
    }

    #[test]
    fn questions_stay_sparse_beside_bulk() {
        let (mut lanes, begin) = (lanes(), Instant::now());
        let [bulk, questions] = [1, 2].map(|port| datagram(1, 2, (port, 9)));
        for n in 0..10_000 {
            let now = begin + Duration::from_micros(100 * n);
            assert_eq!(lanes.of(Some(&bulk), 60_000, now).0, Lane::Bulk, "{n}");
            // 120 bytes each 100 us: 1.2 MB/s.
            assert_eq!(lanes.of(Some(&questions), 120, now).0, Lane::Sparse, "{n}");
        }
    }

    #[test]
    fn a_flow_that_sends_much_is_bulk_until_it_pauses() {
        let (mut lanes, mut now) = (lanes(), Instant::now());
        let flow = datagram(1, 2, (1, 9));
        let first: Vec<Lane> = (0..20).map(|_| lanes.of(Some(&flow), 1400, now).0).collect();
        assert!(first.starts_with(&[Lane::Sparse; 11]) && first.ends_with(&[Lane::Bulk; 9]));
        // Little does not make it sparse again while it goes on: it would overtake its own.
        for _ in 0..100 {
            now += PAUSE;
            assert_eq!(lanes.of(Some(&flow), 100, now).0, Lane::Bulk);
        }
        now += PAUSE + Duration::from_millis(1);
        assert_eq!(lanes.of(Some(&flow), 100, now).0, Lane::Sparse);
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
                match lanes.of(Some(&flood), 60, now) {
                    (Lane::Sparse, _) => ahead += 1,
                    (Lane::Bulk, number) => drop(numbers.insert(number)),
                }
            }
            if n % 100 == 0 {
                // Each millisecond another client begins a flow with the same server.
                for other in [datagram(2, 9, ports(n)), datagram(9, 2, ports(n))] {
                    assert_eq!(lanes.of(Some(&other), 60, now).0, Lane::Sparse, "{n}");
                }
            }
        }
        assert_eq!(numbers.len(), 2, "one for each sender");
        // Its first flows, and those of them that it sends more of: 1 % of all.
        assert!(ahead < 4_000, "{ahead}");
        let later = begin + Duration::from_secs(2) + PAUSE + Duration::from_millis(1);
        assert_eq!(lanes.of(Some(&datagram(1, 9, ports(0))), 60, later).0, Lane::Sparse);
    }

    #[test]
    fn who_begins_flows_with_everybody_is_one_sender() {
        let (mut lanes, begin, mut ahead) = (lanes(), Instant::now(), 0);
        for n in 0..100_000 {
            let now = begin + Duration::from_micros(10 * n);
            let to = u8::try_from(n % 100).unwrap() + 100;
            let lane = lanes.of(Some(&datagram(1, to, ports(n))), 60, now).0;
            ahead += usize::from(lane == Lane::Sparse);
            if n % 100 == 0 {
                let other = datagram(2, to, ports(n));
                assert_eq!(lanes.of(Some(&other), 60, now).0, Lane::Sparse, "{n}");
            }
        }
        assert!(ahead < 8_000, "{ahead}");
    }

    #[test]
    fn who_begins_a_moderate_number_of_flows_stays_sparse() {
        // Of the 19,000 a second every second one comes here.
        let (mut lanes, begin) = (Lanes::new(7, 2), Instant::now());
        for n in 0..100_000 {
            let now = begin + Duration::from_micros(n * 2 * 1000 / 19);
            // A connection of a few frames.
            for _ in 0..4 {
                let lane = lanes.of(Some(&datagram(1, 9, ports(n))), 60, now).0;
                assert_eq!(lane, Lane::Sparse, "{n}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_flow_becomes_sparse_only_after_a_pause(
            frames in prop::collection::vec((1..4u8, 0..3000u64, 0..20_000u64), 1..3000),
        ) {
            let (mut lanes, mut now) = (lanes(), Instant::now());
            let mut last = HashMap::new();
            for (from, port, micros) in frames {
                now += Duration::from_micros(micros.saturating_sub(19_000));
                let lane = lanes.of(Some(&datagram(from, 9, ports(port))), 1400, now).0;
                let before = last.insert((from, port), (lane, now));
                if let (Lane::Sparse, Some((Lane::Bulk, before))) = (lane, before) {
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
                let _lane = lanes.of(headers.as_ref(), len, Instant::now());
            }
        }
    }
}
