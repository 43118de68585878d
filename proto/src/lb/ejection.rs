//! Which backends get no new flows although nobody has said that they are gone: [`Ejections`]
//! (passive ejection). Pure: it is told what was seen, and says whom to ask.
//!
//! ```text
//! a SYN without an answer for 300 ms, a reset, an ICMP error -> ask the backend's node: can you connect?
//! data to a node without an answer for 150 ms, or the above  -> ask the node for a sealed packet
//!
//! well -suspicion-> asked -fails-> out -1 s, 2 s, .. 30 s-> tried -fails-> out
//!   ^-------------- answers ------------------------------------|
//! ```
//!
//! What one client sees ejects nobody: an endpoint could send SYNs that it has a backend leave
//! unanswered. A port is out when its own node cannot connect to it either, and a node when it
//! leaves a question unanswered that every agent answers at once. Half of a service's backends are
//! out at most. Connections that there are go on.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    Services,
    observed::BackendPort,
    service::{Backend, Service, ServiceSpec},
};
use crate::addr::{NetworkId, NodeId};

/// How long a SYN may stay unanswered: a third of the time after which Linux sends it again.
pub const SYN_UNANSWERED: Duration = Duration::from_millis(300);
/// How long data to a node may stay unanswered before it is asked: three quarters of the time that
/// Linux takes at least to send again, so that an idle backend is not what is seen.
pub const DATA_UNANSWERED: Duration = Duration::from_millis(150);
/// How long a question may take, where the way there and back is short.
pub const ANSWER: Duration = Duration::from_millis(150);
/// How long the way to a node and back is taken to be while nobody has measured it: as long as the
/// longest ways on Earth that are not by satellite.
const UNMEASURED: Duration = Duration::from_millis(300);
/// Who answered is not asked again within this time.
const QUIET: Duration = Duration::from_millis(300);
/// An agent that was not looked after for this long does not know who was silent.
const PAUSED: Duration = Duration::from_millis(100);
/// When one that is out is tried again, first and at the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Questions under way.
const ASKED_AT_ONCE: usize = 64;

/// Who is asked, or judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A node: whether it answers at all.
    Node(NodeId),
    /// A port of a backend: whether its node can connect to it.
    Port(NetworkId, BackendPort),
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answers.
    Well,
    /// It does not.
    Fails,
    /// Nobody said.
    Unknown,
}

/// What is known of the way to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSight {
    /// Since when data was sent without anything coming back.
    pub unanswered: Option<Instant>,
    /// When something authentic last came.
    pub heard: Option<Instant>,
    /// How long the way there and back takes, as far as that was measured.
    pub round_trip: Option<Duration>,
}

impl PeerSight {
    /// That of a node to which the way takes no time: of this one.
    pub const HERE: Self = Self { unanswered: None, heard: None, round_trip: Some(Duration::ZERO) };

    /// How long the node may take for what others do in `time`.
    #[must_use]
    pub fn patience(&self, time: Duration) -> Duration {
        time.max(self.way().saturating_mul(3))
    }

    /// How long a question to it may take.
    #[must_use]
    pub fn answers_within(&self) -> Duration {
        ANSWER + self.way()
    }

    fn way(&self) -> Duration {
        self.round_trip.unwrap_or(UNMEASURED)
    }
}

/// A change that concerns new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// It gets none from now on.
    Out(Subject),
    /// It gets some again.
    Back(Subject),
}

/// How it stands with one that was asked about.
#[derive(Clone, Copy, Debug)]
enum Judgement {
    /// It answered; it is not asked again before this time.
    Well { until: Instant },
    /// It is asked.
    Asked { at: Instant },
    /// It is out.
    Out { since: Instant, tries: u32, at: Instant, is_asked: bool },
}

impl Judgement {
    const fn out(self) -> Option<Instant> {
        match self {
            Self::Out { since, .. } => Some(since),
            Self::Well { .. } | Self::Asked { .. } => None,
        }
    }

    const fn asked(self) -> Option<Instant> {
        match self {
            Self::Asked { at } | Self::Out { at, is_asked: true, .. } => Some(at),
            Self::Well { .. } | Self::Out { .. } => None,
        }
    }
}

/// All that were asked about.
#[derive(Debug, Default)]
pub struct Ejections {
    standings: BTreeMap<Subject, Judgement>,
    looked: Option<Instant>,
    /// Since when it is known who was silent.
    awake: Option<Instant>,
    /// Who is asked first, if not all can be.
    next: Option<Subject>,
    events: VecDeque<Ejection>,
}

impl Ejections {
    /// Looks at what was seen, and says whom to ask; [`handle_answer`](Self::handle_answer) is then
    /// due within [`ANSWER`]. To be called every few dozen milliseconds while there are flows.
    pub fn look(
        &mut self,
        now: Instant,
        services: &[(NetworkId, &Services)],
        peer: impl Fn(NodeId) -> PeerSight,
    ) -> Vec<Subject> {
        let paused = self.looked.is_none_or(|at| now.saturating_duration_since(at) > PAUSED);
        self.looked = Some(now);
        let awake = match self.awake {
            Some(awake) if !paused => awake,
            _ => *self.awake.insert(now),
        };
        self.forget(services);
        let since = |at: Instant| now.saturating_duration_since(at.max(awake));
        // Each with the services that saw a sign of it.
        let mut asked: BTreeMap<Subject, Vec<&Service>> = BTreeMap::new();
        for (network, of) in services {
            for service in of.iter() {
                for sight in service.observed().sights() {
                    let [unanswered, answered] =
                        [sight.unanswered, sight.answered].map(|ms| of.flows().instant(ms));
                    let patience = peer(sight.of.key.node).patience(SYN_UNANSWERED);
                    let is_suspect =
                        sight.refused || unanswered.is_some_and(|at| since(at) >= patience);
                    let subject = Subject::Port(*network, sight.of);
                    if self.is_to_be_asked(subject, now, is_suspect, answered) {
                        asked.entry(subject).or_default().push(service);
                        asked.entry(Subject::Node(sight.of.key.node)).or_default();
                    }
                }
            }
            for node in of.nodes() {
                let sight = peer(*node);
                let patience = sight.patience(DATA_UNANSWERED);
                let is_suspect = sight.unanswered.is_some_and(|at| since(at) >= patience);
                let subject = Subject::Node(*node);
                if self.is_to_be_asked(subject, now, is_suspect, sight.heard) {
                    asked.entry(subject).or_default();
                }
            }
        }
        // Of one that never answered anybody nothing is seen once it gets nothing.
        for subject in self.due(now) {
            if let Subject::Port(_, of) = subject {
                asked.entry(Subject::Node(of.key.node)).or_default();
            }
            asked.entry(subject).or_default();
        }
        self.ask_in_turn(asked, now)
    }

    /// Those who are out and are to be tried again.
    fn due(&self, now: Instant) -> impl Iterator<Item = Subject> {
        let due = move |(subject, standing): (&Subject, &Judgement)| match standing {
            Judgement::Out { at, is_asked: false, .. } if *at <= now => Some(*subject),
            _ => None,
        };
        self.standings.iter().filter_map(due)
    }

    /// Asks as many as there is room for. Those that come first in the order must not keep the
    /// others waiting.
    fn ask_in_turn(
        &mut self,
        mut asked: BTreeMap<Subject, Vec<&Service>>,
        now: Instant,
    ) -> Vec<Subject> {
        let after = self.next.map(|next| asked.split_off(&next)).unwrap_or_default();
        let mut questions = Vec::new();
        for (subject, saw) in after.into_iter().chain(asked) {
            if !self.has_room() {
                self.next = Some(subject);
                break;
            }
            if self.ask(subject, now) {
                questions.push(subject);
                if let Subject::Port(_, of) = subject {
                    // Only what nobody answers from now on is another sign.
                    saw.iter().for_each(|service| service.observed().forget(&of));
                }
            }
        }
        questions
    }

    /// What came of a question.
    pub fn handle_answer(&mut self, now: Instant, subject: Subject, answer: Answer) {
        let Some(standing) = self.standings.get_mut(&subject) else { return };
        let Some(asked) = standing.asked() else { return };
        // Whoever did not run did not hear either.
        let is_deaf = self.awake.is_none_or(|awake| awake > asked);
        let answer = if is_deaf && answer == Answer::Fails { Answer::Unknown } else { answer };
        let before = *standing;
        *standing = match (answer, before) {
            (Answer::Well, _)
            | (Answer::Unknown, Judgement::Well { .. } | Judgement::Asked { .. }) => {
                Judgement::Well { until: now + QUIET }
            }
            (Answer::Fails | Answer::Unknown, Judgement::Out { since, tries, .. }) => {
                let tries = tries.saturating_add(1);
                Judgement::Out { since, tries, at: now + retry(tries), is_asked: false }
            }
            (Answer::Fails, Judgement::Well { .. } | Judgement::Asked { .. }) => {
                Judgement::Out { since: now, tries: 0, at: now + retry(0), is_asked: false }
            }
        };
        match (before.out(), standing.out()) {
            (None, Some(_)) => self.events.push_back(Ejection::Out(subject)),
            (Some(_), None) => self.events.push_back(Ejection::Back(subject)),
            _ => {}
        }
    }

    /// The next change. After one, [`out`](Self::out) says something else than before.
    pub fn poll_event(&mut self) -> Option<Ejection> {
        self.events.pop_front()
    }

    /// Whether one is out.
    #[must_use]
    pub fn is_out(&self, subject: Subject) -> bool {
        self.out_since(subject).is_some()
    }

    /// Since when one is out, if it is.
    #[must_use]
    pub fn out_since(&self, subject: Subject) -> Option<Instant> {
        self.standings.get(&subject)?.out()
    }

    /// The ports that get no new flows of a service, in order.
    #[must_use]
    pub fn out(&self, network: NetworkId, spec: &ServiceSpec) -> Vec<BackendPort> {
        if self.standings.is_empty() {
            return Vec::new();
        }
        let candidates: Vec<&Backend> =
            spec.backends.iter().filter(|it| it.takes_new && it.weight > 0).collect();
        let since = |of: &BackendPort| {
            let subjects = [Subject::Node(of.key.node), Subject::Port(network, *of)];
            let standings = subjects.into_iter().filter_map(|it| self.standings.get(&it)?.out());
            standings.min()
        };
        let mut out = BTreeSet::new();
        for port in &spec.ports {
            let of = candidates.iter().map(|backend| BackendPort {
                key: backend.key,
                protocol: port.protocol,
                port: port.backend_port,
            });
            let mut failed: Vec<_> = of.filter_map(|of| Some((since(&of)?, of))).collect();
            failed.sort_unstable();
            failed.truncate(candidates.len() / 2);
            out.extend(failed.into_iter().map(|(_, of)| of));
        }
        out.into_iter().collect()
    }

    /// Forgets who is of no service any more.
    fn forget(&mut self, services: &[(NetworkId, &Services)]) {
        if self.standings.is_empty() {
            return;
        }
        let of = |network: &NetworkId| services.iter().find(|(other, _)| other == network);
        self.standings.retain(|subject, _| match subject {
            Subject::Node(node) => services.iter().any(|(_, of)| of.nodes().contains(node)),
            Subject::Port(network, port) => {
                of(network).is_some_and(|(_, of)| of.iter().any(|service| service.has(port)))
            }
        });
    }

    /// Whether it is time to ask about one; not if it was heard since it is out.
    fn is_to_be_asked(
        &mut self,
        subject: Subject,
        now: Instant,
        is_suspect: bool,
        heard: Option<Instant>,
    ) -> bool {
        match self.standings.get(&subject).copied() {
            None => is_suspect,
            Some(Judgement::Well { until }) => is_suspect && until <= now,
            Some(Judgement::Asked { .. } | Judgement::Out { is_asked: true, .. }) => false,
            Some(Judgement::Out { since, .. }) if heard.is_some_and(|at| at > since) => {
                self.standings.insert(subject, Judgement::Well { until: now + QUIET });
                self.events.push_back(Ejection::Back(subject));
                false
            }
            Some(Judgement::Out { at, .. }) => at <= now,
        }
    }

    /// Whether one more can be asked.
    fn has_room(&self) -> bool {
        self.standings.values().filter(|it| it.asked().is_some()).count() < ASKED_AT_ONCE
    }

    /// Notes that one is asked; false if it is already, or answered a moment ago.
    fn ask(&mut self, subject: Subject, now: Instant) -> bool {
        let asked = match self.standings.get(&subject).copied() {
            None => Judgement::Asked { at: now },
            Some(Judgement::Well { until }) if until <= now => Judgement::Asked { at: now },
            Some(Judgement::Out { since, tries, at, is_asked: false }) if at <= now => {
                Judgement::Out { since, tries, at: now, is_asked: true }
            }
            Some(_) => return false,
        };
        self.standings.insert(subject, asked);
        true
    }
}

fn retry(tries: u32) -> Duration {
    let (first, longest) = RETRY;
    first.saturating_mul(1u32.checked_shl(tries.min(8)).unwrap_or(u32::MAX)).min(longest)
}
