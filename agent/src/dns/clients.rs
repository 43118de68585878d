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
use vxmesh_proto::{
    limits::{DNS_FORWARDS_PER_SECOND, DNS_PER_SECOND},
    tables::TokenBucket,
};

/// How many questions may come at once, as a part of those of a second: every process of a busy
/// sandbox starts at the same time.
const BURST_PART: u32 = 5;
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
    One(ArcSwap<Limits>),
    /// Each address of these subnets is one. Nobody else is answered, lest answers be sent to where
    /// somebody else wants them.
    Of(ArcSwap<Vec<IpNet>>, Mutex<BTreeMap<IpAddr, Arc<Limits>>>),
}

/// How many questions of one client are answered in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// All.
    pub questions: u32,
    /// Those that the upstreams are asked.
    pub forwards: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self { questions: DNS_PER_SECOND, forwards: DNS_FORWARDS_PER_SECOND }
    }
}

/// What limits one client.
#[derive(Debug)]
pub struct Limits {
    rates: Rates,
    pub(super) questions: TokenBucket,
    pub(super) forwards: TokenBucket,
    pub(super) refusals: TokenBucket,
    pub(super) under_way: Semaphore,
    pub(super) own: Semaphore,
}

impl Limits {
    pub(super) fn new(rates: Rates, now: Instant) -> Self {
        Self {
            rates,
            questions: TokenBucket::new(rates.questions, rates.questions / BURST_PART, now),
            forwards: TokenBucket::new(rates.forwards, rates.forwards, now),
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
        Self::One(ArcSwap::from_pointee(Limits::new(Rates::default(), Instant::now())))
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

    /// What limits the client with this address, if it may ask. With other rates than before it
    /// begins anew.
    pub(super) fn limits(&self, client: IpAddr, rates: Rates, now: Instant) -> Option<Arc<Limits>> {
        let new = || Arc::new(Limits::new(rates, now));
        let (subnets, known) = match self {
            Self::One(limits) => {
                if limits.load().rates != rates {
                    limits.store(new());
                }
                return Some(limits.load_full());
            }
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
        let limits = known.entry(client).or_insert_with(new);
        if limits.rates != rates {
            *limits = new();
        }
        Some(Arc::clone(limits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_a_network_do_not_share_and_strangers_have_nothing() {
        let now = Instant::now();
        let clients = Clients::of(vec!["10.1.0.0/16".parse().unwrap()]);
        let rates = Rates::default();
        let limits = |text: &str| clients.limits(text.parse().unwrap(), rates, now);
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

    #[test]
    fn other_rates_hold_at_once() {
        let (now, client) = (Instant::now(), "10.1.0.2".parse().unwrap());
        let burst =
            |limits: Arc<Limits>| (0..10_000).filter(|_| limits.questions.take(now)).count();
        for clients in [Clients::one(), Clients::of(vec!["10.1.0.0/16".parse().unwrap()])] {
            let of = |rates| burst(clients.limits(client, rates, now).unwrap());
            assert_eq!((of(Rates::default()), of(Rates::default())), (2000, 0));
            let few = Rates { questions: 50, ..Rates::default() };
            assert_eq!((of(few), of(few)), (10, 0));
        }
    }
}
