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

use std::{
    hash::BuildHasher,
    time::{Duration, Instant},
};

use crate::{frame::FlowKey, tables::Seeded};

/// Flows that are told apart. Two that share a place are one for this purpose: an overtaking less,
/// never one too many.
const FLOWS: usize = 256;
/// Bytes that a flow may send at once and stay sparse: a few questions, or the first flight of a
/// connection (RFC 6928).
const BURST: u32 = 16 * 1024;
/// Bytes per microsecond, beyond which a flow is no longer sparse: 32 Mbit/s, more than any call or
/// terminal takes.
const RATE: u128 = 4;
/// A pause that is longer than frames of the bulk lane are on their way.
const PAUSE: Duration = Duration::from_millis(250);

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
    /// Empty until the first frame: many queues of many networks have none.
    flows: Vec<Flow>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// The last frame.
    last: Option<Instant>,
    /// Bytes beyond [`RATE`].
    level: u32,
    bulk: bool,
}

impl Lanes {
    /// No flows. The seed keeps others from choosing which flows share a place.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed: Seeded(seed), flows: Vec::new() }
    }

    /// The lane of a frame of this length that came now, and a number of its flow.
    pub fn of(&mut self, flow: Option<FlowKey>, len: usize, now: Instant) -> (Lane, u64) {
        if self.flows.is_empty() {
            self.flows.resize(FLOWS, Flow::default());
        }
        let flow = self.seed.hash_one(flow);
        let place = usize::try_from(flow % FLOWS as u64).unwrap_or_default();
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        (self.flows.get_mut(place).map_or(Lane::Bulk, |flow| flow.take(len, now)), flow)
    }
}

impl Flow {
    fn take(&mut self, len: u32, now: Instant) -> Lane {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        let micros = since.map_or(u128::MAX, |since| since.as_micros());
        if since.is_none_or(|since| since > PAUSE) {
            *self = Self::default();
        }
        let leaked = u32::try_from(micros.saturating_mul(RATE));
        self.level = self.level.saturating_sub(leaked.unwrap_or(u32::MAX)).saturating_add(len);
        self.last = Some(now);
        self.bulk |= self.level > BURST;
        if self.bulk { Lane::Bulk } else { Lane::Sparse }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        frame::Headers,
        wire::{UDP, ethernet},
    };

    /// A flow of UDP between two ports.
    fn flow(port: u16) -> FlowKey {
        let [source, destination] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        FlowKey::Ip { source, destination, protocol: UDP, ports: Some((port, 9)) }
    }

    #[test]
    fn questions_stay_sparse_beside_bulk() {
        let (mut lanes, begin) = (Lanes::new(7), Instant::now());
        for n in 0..10_000 {
            let now = begin + Duration::from_micros(100 * n);
            let bulk = lanes.of(Some(flow(1)), 60_000, now).0;
            assert_eq!(bulk, Lane::Bulk, "{n}");
            // 120 bytes each 100 us: 1.2 MB/s.
            assert_eq!(lanes.of(Some(flow(2)), 120, now).0, Lane::Sparse, "{n}");
        }
    }

    #[test]
    fn a_flow_that_sends_much_is_bulk_until_it_pauses() {
        let (mut lanes, mut now) = (Lanes::new(7), Instant::now());
        let first: Vec<Lane> = (0..20).map(|_| lanes.of(Some(flow(1)), 1400, now).0).collect();
        assert!(first.starts_with(&[Lane::Sparse; 11]) && first.ends_with(&[Lane::Bulk; 9]));
        // Little does not make it sparse again while it goes on: it would overtake its own.
        for _ in 0..100 {
            now += PAUSE;
            assert_eq!(lanes.of(Some(flow(1)), 100, now).0, Lane::Bulk);
        }
        now += PAUSE + Duration::from_millis(1);
        assert_eq!(lanes.of(Some(flow(1)), 100, now).0, Lane::Sparse);
    }

    #[test]
    fn whatever_comes_has_a_lane() {
        let mut lanes = Lanes::new(7);
        for len in 0..120 {
            for kind in [ethernet::IPV4, ethernet::IPV6, ethernet::ARP] {
                let mut frame = vec![0x45; len];
                if let Some(field) = frame.get_mut(12..14) {
                    field.copy_from_slice(&kind.to_be_bytes());
                }
                let flow = Headers::parse(&frame).map(|headers| headers.flow());
                let _lane = lanes.of(flow, len, Instant::now());
            }
        }
    }
}
