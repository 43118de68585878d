//! Which flow later fragments are of. They have no ports, so the first one of a packet says it, by
//! what all of them have in common: [`Fragmented`].
//!
//! ```text
//! place : flow ^ key | flow        bucket : 4 places
//! flow  : second 21 | is the client's 1 | number 18 | generation 24
//! ```
//!
//! Who reads one word of before and one of after sees another key (Hyatt and Mann, "A lockless
//! transposition table", 2002). So nobody waits here either. A packet that is forgotten too early,
//! because many others came, is lost, as it is where one of its fragments is.

use std::{
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    sync::atomic::Ordering,
    time::Instant,
};

use super::{FlowTable, Found, Memory, Sender, entry};
use crate::addr::NetworkId;

/// Words of a place.
pub(super) const WORDS: usize = 2;
/// Places of a bucket: one cache line.
pub(super) const PLACES: usize = 4;
/// How long fragments may be apart: as long as Linux waits for them.
const KEPT: u64 = 30;
/// The seconds that a word has room for.
const SECOND: u64 = (1 << 21) - 1;
const SECOND_AT: u32 = 43;
const IS_CLIENTS: u64 = 1 << 42;
const NUMBER: u64 = (1 << 18) - 1;
const NUMBER_AT: u32 = 24;
const GENERATION: u64 = (1 << NUMBER_AT) - 1;

/// What the fragments of one packet have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmented {
    /// Where it is.
    pub network: NetworkId,
    /// What it carries.
    pub protocol: u8,
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Its number.
    pub id: u32,
}

impl<M: Memory> FlowTable<M> {
    /// Remembers that the fragments of a packet are of this flow.
    pub fn remember_fragmented(&self, of: &Fragmented, found: &Found, now: Instant) {
        let (key, bucket) = self.fragments_at(of);
        let second = u64::from(self.second(now)) & SECOND;
        let flow = second << SECOND_AT
            | if found.sender == Sender::Client { IS_CLIENTS } else { 0 }
            | u64::from(found.number) << NUMBER_AT
            | found.generation;
        let age = |place: usize| match self.fragments_in(place) {
            (other, _) if other == key => u64::MAX,
            (_, flow) => second.wrapping_sub(flow >> SECOND_AT) & SECOND,
        };
        let places = (bucket..bucket + PLACES * WORDS).step_by(WORDS);
        let Some(place) = places.max_by_key(|place| age(*place)) else { return };
        self.memory.store(place, flow ^ key, Ordering::Relaxed);
        self.memory.store(place + 1, flow, Ordering::Relaxed);
    }

    /// The flow of a fragment, if the first one of its packet was here not long ago.
    #[must_use]
    pub fn find_fragmented(&self, of: &Fragmented, now: Instant) -> Option<Found> {
        let (key, bucket) = self.fragments_at(of);
        let places = (bucket..bucket + PLACES * WORDS).step_by(WORDS);
        let (_, flow) = places.map(|place| self.fragments_in(place)).find(|it| it.0 == key)?;
        let age = u64::from(self.second(now)).wrapping_sub(flow >> SECOND_AT) & SECOND;
        let number = u32::try_from(flow >> NUMBER_AT & NUMBER).ok()?;
        if age > KEPT || number >= self.shape.flows {
            return None;
        }
        let (words, life) = self.copy(number)?;
        let sender = if flow & IS_CLIENTS == 0 { Sender::Backend } else { Sender::Client };
        let found = self.found(number, life, &words, sender)?;
        (found.generation == flow & GENERATION && of.is_of(&found)).then_some(found)
    }

    /// The key of a place, and the flow that it names.
    fn fragments_in(&self, place: usize) -> (u64, u64) {
        let [first, flow] = [place, place + 1].map(|at| self.memory.load(at, Ordering::Relaxed));
        (first ^ flow, flow)
    }

    /// The key, and where its bucket is.
    fn fragments_at(&self, of: &Fragmented) -> (u64, usize) {
        let mut hasher = self.seed.build_hasher();
        hasher.write(of.network.bytes());
        for ip in [of.source, of.destination] {
            entry::ip_words(ip).into_iter().for_each(|word| hasher.write_u64(word));
        }
        hasher.write_u64(u64::from(of.protocol) << 32 | u64::from(of.id));
        let key = hasher.finish();
        let bits = usize::try_from(key >> 32).unwrap_or_default();
        (key, self.shape.fragments(bits))
    }
}

impl Fragmented {
    /// Whether the flow has these ends; the key alone may be that of another packet.
    fn is_of(&self, found: &Found) -> bool {
        let tuple = match found.sender {
            Sender::Client => found.flow.forward(),
            Sender::Backend => found.flow.reverse(),
        };
        (self.network, self.protocol) == (tuple.network, tuple.protocol)
            && (self.source, self.destination) == (tuple.source.ip(), tuple.destination.ip())
    }
}
