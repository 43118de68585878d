//! What is behind the static VTEPs of one network: MAC addresses, learned from their frames (RFC
//! 7348 section 4.1).
//!
//! An address is where its last frame came from, and forgotten [`LEARNED_AGE`] after that. It moves
//! between static VTEPs only: who calls [`Learned::learn`] has seen that no endpoint has it, and
//! looks here only for what no endpoint has. As many are known as the network allows; what does not
//! fit is counted, and gets its frames by flooding.
//!
//! One thread learns and expires; any look up, without a lock.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    addr::MacAddr,
    limits::LEARNED_AGE,
    tables::{Seeded, Sharded},
};

/// A table that is full is looked through for old entries at most this often: each new address
/// would cost a whole round.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Where an address was last, and when in milliseconds of the table's time.
#[derive(Debug)]
struct Station {
    vtep: IpAddr,
    seen: AtomicU64,
}

/// The learned addresses of one network.
#[derive(Debug)]
pub struct Learned {
    stations: ArcSwap<Sharded<(MacAddr, Arc<Station>)>>,
    epoch: Instant,
    swept: AtomicU64,
    refused: AtomicU64,
}

impl Learned {
    /// Nothing is known.
    #[must_use]
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            stations: ArcSwap::from_pointee(Sharded::new(Seeded(seed))),
            epoch: now,
            swept: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// A frame from `mac` came from `vtep`. False if there was no room for it among `most`.
    pub fn learn(&self, mac: MacAddr, vtep: IpAddr, most: usize, now: Instant) -> bool {
        let at = self.millis(now);
        let stations = self.stations.load();
        let known = stations.get(&mac);
        if let Some(station) = known.filter(|station| station.vtep == vtep) {
            station.seen.store(at, Ordering::Relaxed);
            return true;
        }
        if known.is_none() && stations.len() >= most && !self.make_room(most, now) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let mut next = Sharded::clone(&self.stations.load());
        next.insert(mac, Arc::new(Station { vtep, seen: AtomicU64::new(at) }));
        self.stations.store(Arc::new(next));
        true
    }

    /// Where the last frame of `mac` came from, unless that was too long ago.
    #[must_use]
    pub fn vtep_of(&self, mac: MacAddr, now: Instant) -> Option<IpAddr> {
        let stations = self.stations.load();
        let station = stations.get(&mac)?;
        self.is_fresh(station, now).then_some(station.vtep)
    }

    /// Forgets what is too old.
    pub fn expire(&self, now: Instant) {
        self.swept.store(self.millis(now), Ordering::Relaxed);
        let stations = self.stations.load();
        if stations.iter().all(|(_, station)| self.is_fresh(station, now)) {
            return;
        }
        let mut next = Sharded::clone(&stations);
        next.retain(|(_, station)| self.is_fresh(station, now));
        self.stations.store(Arc::new(next));
    }

    /// How many addresses are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stations.load().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often an address was not learned because there was no room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn make_room(&self, most: usize, now: Instant) -> bool {
        let since = self.millis(now).saturating_sub(self.swept.load(Ordering::Relaxed));
        if u128::from(since) < SWEEP_EVERY.as_millis() {
            return false;
        }
        self.expire(now);
        self.len() < most
    }

    fn is_fresh(&self, station: &Station, now: Instant) -> bool {
        let age = self.millis(now).saturating_sub(station.seen.load(Ordering::Relaxed));
        u128::from(age) < LEARNED_AGE.as_millis()
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
