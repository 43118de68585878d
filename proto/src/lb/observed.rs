//! What the flows of this node saw of backends: [`Observed`], which workers write and
//! [`super::ejection`] reads.
//!
//! Atomics only: a frame waits for nobody. Two threads may each overwrite what the other saw a
//! moment ago; the next packet says it again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::service::{Port, Protocol, ServiceSpec};
use crate::tables::RowKey;

/// A port of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendPort {
    /// The key of its row.
    pub key: RowKey,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its number at the backend.
    pub port: u16,
}

/// What was seen of one. Times are milliseconds of the flows' clock; 0 is never.
#[derive(Debug, Default)]
struct Seen {
    /// When the first SYN was sent that nobody has answered.
    unanswered: AtomicU64,
    /// Whether something was refused since it was asked: by a reset in answer to a SYN, or by an
    /// ICMP error.
    refused: AtomicBool,
    /// When it last answered who had not heard of it.
    answered: AtomicU64,
}

/// What was seen of all ports of a service's backends.
#[derive(Debug)]
pub(super) struct Observed {
    seen: Box<[(BackendPort, Seen)]>,
}

/// What was seen of a port, at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) of: BackendPort,
    pub(super) unanswered: u64,
    pub(super) refused: bool,
    pub(super) answered: u64,
}

impl Observed {
    /// That of a service, with what was seen before.
    pub(super) fn of(spec: &ServiceSpec, before: Option<&Arc<Self>>) -> Arc<Self> {
        let port = |key, port: &Port| BackendPort {
            key,
            protocol: port.protocol,
            port: port.backend_port,
        };
        let mut ports: Vec<BackendPort> = spec
            .backends
            .iter()
            .flat_map(|backend| spec.ports.iter().map(|it| port(backend.key, it)))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        let same = before.filter(|before| before.seen.iter().map(|(of, _)| of).eq(&ports));
        if let Some(before) = same {
            return Arc::clone(before);
        }
        let seen = |of: BackendPort| {
            let new = Seen::default();
            if let Some(old) = before.and_then(|before| before.get(&of)) {
                let copy = |to: &AtomicU64, from: &AtomicU64| {
                    to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                };
                copy(&new.unanswered, &old.unanswered);
                copy(&new.answered, &old.answered);
                new.refused.store(old.refused.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            (of, new)
        };
        Arc::new(Self { seen: ports.into_iter().map(seen).collect() })
    }

    /// A SYN is on its way.
    pub(super) fn sent(&self, to: &BackendPort, now: u64) {
        if let Some(seen) = self.get(to)
            && seen.unanswered.load(Ordering::Relaxed) == 0
        {
            seen.unanswered.store(now, Ordering::Relaxed);
        }
    }

    /// It answered somebody who had not heard of it.
    pub(super) fn answered(&self, by: &BackendPort, now: u64) {
        if let Some(seen) = self.get(by) {
            seen.answered.store(now, Ordering::Relaxed);
            if seen.unanswered.load(Ordering::Relaxed) != 0 {
                seen.unanswered.store(0, Ordering::Relaxed);
            }
        }
    }

    /// It, or a router on the way, refused what was sent.
    pub(super) fn refused(&self, by: &BackendPort) {
        if let Some(seen) = self.get(by) {
            seen.refused.store(true, Ordering::Relaxed);
        }
    }

    /// It is asked: what is sent, or refused, from now on counts.
    pub(super) fn forget(&self, of: &BackendPort) {
        if let Some(seen) = self.get(of) {
            seen.unanswered.store(0, Ordering::Relaxed);
            seen.refused.store(false, Ordering::Relaxed);
        }
    }

    /// All that is not as it is with a backend that was never asked.
    pub(super) fn sights(&self) -> impl Iterator<Item = Sight> {
        let sight = |(of, seen): &(BackendPort, Seen)| Sight {
            of: *of,
            unanswered: seen.unanswered.load(Ordering::Relaxed),
            refused: seen.refused.load(Ordering::Relaxed),
            answered: seen.answered.load(Ordering::Relaxed),
        };
        let all = self.seen.iter().map(sight);
        all.filter(|sight| sight.refused || sight.unanswered | sight.answered != 0)
    }

    fn get(&self, of: &BackendPort) -> Option<&Seen> {
        let at = self.seen.binary_search_by(|(other, _)| other.cmp(of)).ok()?;
        self.seen.get(at).map(|(_, seen)| seen)
    }
}
