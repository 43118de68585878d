//! Who may ask a server, and how much: no client takes the others' share.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::Semaphore;
use vxmesh_proto::tables::TokenBucket;

/// Questions of one client that are answered in a second: a tenth of what one core can.
pub(crate) const PER_SECOND: u32 = 10_000;
/// How many may come at once: every process of a busy sandbox starts at the same time.
pub(super) const BURST: u32 = 2_000;
/// Questions of one client that the upstreams are asked in a second; the host's name server is not
/// a sandbox's to flood.
pub(crate) const FORWARDS_PER_SECOND: u32 = 500;
/// How many may come at once.
const FORWARDS_BURST: u32 = 500;
/// Questions of one client for which there is always room, whatever others ask.
const FORWARDS_OWN: usize = 4;
/// Questions over the rate that are refused in a second; the rest is not answered at all.
const REFUSALS_PER_SECOND: u32 = 200;
/// Questions of one client that are under way: a quarter of all, so that no sandbox takes them from
/// the others.
pub(crate) const FORWARDS_UNDER_WAY: usize = 64;
/// Clients that one server keeps apart: as many endpoints as a bridge has ports, with two addresses
/// each.
const CLIENTS: usize = 2048;

/// The clients of one server.
#[derive(Debug)]
pub enum Clients {
    /// Whoever comes is one client: the programs of a sandbox, which has many addresses of its own.
    One(Arc<Limits>),
    /// Each address of these subnets is one. Nobody else is answered, lest answers be sent to where
    /// somebody else wants them.
    Of(ArcSwap<Vec<IpNet>>, Mutex<BTreeMap<IpAddr, Arc<Limits>>>),
}

/// What limits one client.
#[derive(Debug)]
pub struct Limits {
    pub(super) questions: TokenBucket,
    pub(super) forwards: TokenBucket,
    pub(super) refusals: TokenBucket,
    pub(super) under_way: Semaphore,
    pub(super) own: Semaphore,
}

impl Limits {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            questions: TokenBucket::new(PER_SECOND, BURST, now),
            forwards: TokenBucket::new(FORWARDS_PER_SECOND, FORWARDS_BURST, now),
            refusals: TokenBucket::new(REFUSALS_PER_SECOND, REFUSALS_PER_SECOND, now),
            under_way: Semaphore::new(FORWARDS_UNDER_WAY),
            own: Semaphore::new(FORWARDS_OWN),
        }
    }
}

impl Clients {
    /// One client, whatever its address.
    #[must_use]
    pub fn one() -> Self {
        Self::One(Arc::new(Limits::new(Instant::now())))
    }

    /// The addresses of these subnets, each for itself.
    #[must_use]
    pub fn of(subnets: Vec<IpNet>) -> Self {
        Self::Of(ArcSwap::from_pointee(subnets), Mutex::default())
    }

    /// The same clients, and those of subnets that were added.
    pub(super) fn follow(&self, subnets: Vec<IpNet>) {
        if let Self::Of(known, _) = self {
            known.store(Arc::new(subnets));
        }
    }

    /// What limits the client with this address, if it may ask.
    pub(super) fn limits(&self, client: IpAddr, now: Instant) -> Option<Arc<Limits>> {
        let (subnets, known) = match self {
            Self::One(limits) => return Some(Arc::clone(limits)),
            Self::Of(subnets, known) => (subnets, known),
        };
        if !subnets.load().iter().any(|subnet| subnet.contains(&client)) {
            return None;
        }
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CLIENTS && !known.contains_key(&client) {
            // Somebody makes addresses up; the honest get full buckets again.
            known.clear();
        }
        Some(Arc::clone(known.entry(client).or_insert_with(|| Arc::new(Limits::new(now)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_a_network_do_not_share_and_strangers_have_nothing() {
        let now = Instant::now();
        let clients = Clients::of(vec!["10.1.0.0/16".parse().unwrap()]);
        let limits = |text: &str| clients.limits(text.parse().unwrap(), now);
        assert!(limits("192.0.2.1").is_none());
        let (one, other) = (limits("10.1.0.2").unwrap(), limits("10.1.0.3").unwrap());
        while one.questions.take(now) {}
        assert!(!limits("10.1.0.2").unwrap().questions.take(now), "the same one again");
        assert!(other.questions.take(now));
        for number in 0..=u16::MAX {
            let [a, b] = number.to_be_bytes();
            assert!(limits(&format!("10.1.{a}.{b}")).is_some());
        }
        let Clients::Of(_, known) = &clients else { panic!() };
        assert!(known.lock().unwrap().len() <= CLIENTS);
        clients.follow(vec!["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()]);
        assert!(limits("10.2.0.2").is_some() && limits("10.3.0.2").is_none());
    }
}
