//! Changes of services: [`Update`], an object of its author beside the service, and what a service
//! is after all of them.
//!
//! A service is a set of parts, each with a key: a port, a backend, a weight, how a backend is
//! chosen. A change gives one part a new value, or takes it away, at a stamp of its own. Each
//! member has one update of a service, with all that it changed in it, so nobody's signed word
//! replaces that of another. The rule, a function of the set of objects alone: of all changes of a
//! part, and the service object itself, the one with the greatest (stamp, author) counts.
//!
//! What counts is put together in the order of stamps. What a service cannot have beside what it
//! has is left out: more than its limits, a published port that excludes an older one, or that
//! leads to none of its ports.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Content, Draft, HealthCheck, Hlc, Object, ObjectId, ObjectSet, PublishedPort, Refused, Service,
    ServicePort,
};
use crate::{
    addr::{Name, NodeId, ServiceId},
    limits::{
        CLIENT_PREFIXES, DELETED_KEPT, SERVICE_BACKENDS, SERVICE_PORTS, SERVICE_WEIGHT,
        STICKY_SECONDS,
    },
};

/// Parts that an author took away and remembers, in case that somebody else has them yet.
const GONE_PARTS: usize = 512;

/// One part of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// A port, by its protocol and its number at the VIP.
    #[serde(rename = "p")]
    Port(ServicePort),
    /// An endpoint that answers for it.
    #[serde(rename = "e")]
    Backend(Name),
    /// The weight of one.
    #[serde(rename = "g")]
    Weight(Name, u8),
    /// One that gets no new flows, and since when.
    #[serde(rename = "x")]
    Draining(Name, u64),
    /// A port of the hosts, by its protocol, its number there and its address.
    #[serde(rename = "u")]
    Published(PublishedPort),
    /// How a backend is chosen.
    #[serde(rename = "k")]
    Choice(Name),
    /// How backends are checked.
    #[serde(rename = "h")]
    Check(HealthCheck),
    /// How long drains may take.
    #[serde(rename = "d")]
    DrainMs(u64),
    /// Which backends are preferred.
    #[serde(rename = "r")]
    Prefer(Name),
    /// For which clients its published ports are.
    #[serde(rename = "a")]
    Allow(Vec<IpNet>),
    /// For which they are not.
    #[serde(rename = "o")]
    Deny(Vec<IpNet>),
    /// How long clients keep their backends.
    #[serde(rename = "s")]
    Sticky(u32),
    /// None of this key any more.
    #[serde(rename = "-")]
    Gone(String),
    /// What a later version knows.
    #[serde(untagged)]
    Unknown(Value),
}

/// When a part became what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change(pub Hlc, pub Part);

/// What one member changed of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The service.
    #[serde(rename = "s")]
    pub service: ServiceId,
    /// Who changed it, and signs.
    #[serde(rename = "f")]
    pub from: NodeId,
    /// The last change of each part.
    #[serde(rename = "c")]
    pub changes: Vec<Change>,
}

impl Part {
    /// Of two with one key a service has one only.
    fn key(&self) -> String {
        match self {
            Self::Port(it) => format!("p{}/{}", it.protocol, it.port),
            Self::Backend(name) => format!("e{name}"),
            Self::Weight(name, _) => format!("g{name}"),
            Self::Draining(name, _) => format!("x{name}"),
            Self::Published(it) => {
                let ip = it.ip.map(|ip| ip.to_string()).unwrap_or_default();
                format!("u{}/{}/{ip}", it.protocol, it.host_port)
            }
            Self::Choice(_) => "k".to_owned(),
            Self::Check(_) => "h".to_owned(),
            Self::DrainMs(_) => "d".to_owned(),
            Self::Prefer(_) => "r".to_owned(),
            Self::Allow(_) => "a".to_owned(),
            Self::Deny(_) => "o".to_owned(),
            Self::Sticky(_) => "s".to_owned(),
            Self::Gone(key) => key.clone(),
            Self::Unknown(value) => value.to_string(),
        }
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::Port(it) => it.port > 0 && it.backend_port > 0,
            Self::Weight(_, weight) => *weight <= SERVICE_WEIGHT,
            Self::Published(it) => it.host_port > 0 && it.port > 0,
            Self::Check(check) => check.is_sound(),
            Self::Allow(prefixes) | Self::Deny(prefixes) => prefixes.len() <= CLIENT_PREFIXES,
            Self::Sticky(seconds) => (1..=STICKY_SECONDS).contains(seconds),
            _ => true,
        }
    }

    /// Makes a service have it, if there is room.
    fn put_into(&self, service: &mut Service) {
        let ports = |held: usize| held < SERVICE_PORTS;
        let backends = |held: usize| held < SERVICE_BACKENDS;
        match self.clone() {
            Self::Port(port) if ports(service.ports.len()) => service.ports.push(port),
            Self::Backend(name) if backends(service.backends.len()) => {
                service.backends.insert(name);
            }
            Self::Weight(name, weight) if backends(service.weights.len()) => {
                service.weights.insert(name, weight);
            }
            Self::Draining(name, since) if backends(service.draining.len()) => {
                service.draining.insert(name, since);
            }
            Self::Published(port) if ports(service.published.len()) => service.published.push(port),
            Self::Choice(word) => service.choice = Some(word),
            Self::Check(check) => service.check = Some(check),
            Self::DrainMs(time) => service.drain_ms = Some(time),
            Self::Prefer(word) => service.prefer = Some(word),
            Self::Allow(prefixes) => service.allow = prefixes,
            Self::Deny(prefixes) => service.deny = prefixes,
            Self::Sticky(seconds) => service.sticky = Some(seconds),
            _ => {}
        }
    }
}

impl Update {
    /// The id under which it belongs.
    #[must_use]
    pub const fn id(&self) -> ObjectId {
        ObjectId::Update { service: self.service, from: self.from }
    }

    pub(super) fn check(&self, signed: Hlc) -> Result<(), Refused> {
        let mut keys = BTreeSet::new();
        let fault = if self.changes.iter().any(|Change(at, _)| *at > signed) {
            "a change in it is later than itself"
        } else if !self.changes.iter().all(|Change(_, part)| part.is_sound()) {
            "a part of a service cannot be what it says"
        } else if !self.changes.iter().all(|Change(_, part)| keys.insert(part.key())) {
            "it changes one part twice"
        } else {
            return Ok(());
        };
        Err(Refused::Content(fault))
    }
}

impl Service {
    /// All that may be changed of it.
    fn parts(&self) -> Vec<Part> {
        let mut parts: Vec<Part> = self.ports.iter().cloned().map(Part::Port).collect();
        parts.extend(self.backends.iter().cloned().map(Part::Backend));
        parts.extend(self.weights.iter().map(|(name, it)| Part::Weight(name.clone(), *it)));
        parts.extend(self.draining.iter().map(|(name, it)| Part::Draining(name.clone(), *it)));
        parts.extend(self.published.iter().cloned().map(Part::Published));
        parts.extend(self.choice.clone().map(Part::Choice));
        parts.extend(self.check.clone().map(Part::Check));
        parts.extend(self.drain_ms.map(Part::DrainMs));
        parts.extend(self.prefer.clone().map(Part::Prefer));
        parts.extend((!self.allow.is_empty()).then(|| Part::Allow(self.allow.clone())));
        parts.extend((!self.deny.is_empty()).then(|| Part::Deny(self.deny.clone())));
        parts.extend(self.sticky.map(Part::Sticky));
        parts
    }

    /// What is left when all that may be changed is taken away, but for who is selected.
    fn without_parts(&self) -> Self {
        Self {
            ports: Vec::new(),
            backends: BTreeSet::new(),
            weights: BTreeMap::new(),
            draining: BTreeMap::new(),
            published: Vec::new(),
            choice: None,
            check: None,
            drain_ms: None,
            prefer: None,
            allow: Vec::new(),
            deny: Vec::new(),
            sticky: None,
            ..self.clone()
        }
    }

    /// The end of it: it says no more than it must, as it is kept for as long as its network.
    #[must_use]
    pub fn ended(&self) -> Self {
        Self { selector: BTreeMap::new(), ..self.without_parts() }
    }

    /// Leaves out published ports that exclude one before them, or lead to none of its ports.
    fn settle_published(&mut self) {
        let mut kept: Vec<PublishedPort> = Vec::new();
        for it in std::mem::take(&mut self.published) {
            let leads = |port: &ServicePort| (port.protocol, port.port) == (it.protocol, it.port);
            let is_excluded = kept.iter().any(|other| other.meets(&it) || other.differs(&it));
            if !is_excluded && self.ports.iter().any(leads) {
                kept.push(it);
            }
        }
        self.published = kept;
    }
}

/// The changes that count, by the keys of what they change.
type Won<'a> = BTreeMap<String, ((Hlc, NodeId), &'a Part)>;

impl ObjectSet {
    /// A service that was not removed, after all that was changed of it.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        let object = self.get(&ObjectId::Service(id)).filter(|object| !object.closed())?;
        match (self.merged.get(&id), object.content()) {
            (Some(merged), _) => Some(merged),
            (None, Content::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The next update of this author, which makes a service that was not removed what is wanted.
    #[must_use]
    pub fn update(
        &self,
        id: ServiceId,
        from: NodeId,
        wanted: &Service,
        stamp: Hlc,
    ) -> Option<Draft> {
        let held = self.service(id)?;
        let own = self.get(&ObjectId::Update { service: id, from });
        let versions = self.updates(id).map(|(object, _)| object.hlc());
        let versions = versions.chain([self.get(&ObjectId::Service(id))?.hlc()]);
        let mut at = versions.max().map_or(stamp, |last| stamp.max(last.next()));
        let made = at;
        let (held, wanted) = (held.parts(), wanted.parts());
        let keys: BTreeSet<String> = wanted.iter().map(Part::key).collect();
        let gone = held.iter().map(Part::key).filter(|key| !keys.contains(key)).map(Part::Gone);
        let changed: Vec<Part> =
            gone.chain(wanted.into_iter().filter(|part| !held.contains(part))).collect();
        let keys: BTreeSet<String> = changed.iter().map(Part::key).collect();
        let mut changes = self.remembered(id, from, stamp);
        changes.retain(|Change(_, part)| !keys.contains(&part.key()));
        // Each has a stamp of its own: what is added at once stays in the order in which it came.
        for part in changed {
            changes.push(Change(at, part));
            at = at.next();
        }
        let content = Content::Update(Update { service: id, from, changes });
        let created = own.map_or(made, |own| own.created());
        Some(Draft { created, hlc: at, closed: false, content })
    }

    /// What an author changed of a service and must go on saying.
    fn remembered(&self, id: ServiceId, from: NodeId, stamp: Hlc) -> Vec<Change> {
        let Some(object) = self.get(&ObjectId::Update { service: id, from }) else {
            return Vec::new();
        };
        let Content::Update(own) = object.content() else { return Vec::new() };
        let Some(service) = self.get(&ObjectId::Service(id)) else { return Vec::new() };
        let Content::Service(base) = service.content() else { return Vec::new() };
        let won = self.won(id, (service.hlc(), service.author()));
        let others = self.updates(id).filter(|(_, update)| update.from != from);
        let others = others.flat_map(|(_, update)| &update.changes);
        let others = others.filter(|Change(_, part)| !matches!(part, Part::Gone(_)));
        let there: BTreeSet<String> =
            base.parts().iter().chain(others.map(|Change(_, part)| part)).map(Part::key).collect();
        let kept = u64::try_from(DELETED_KEPT.as_millis()).unwrap_or(u64::MAX);
        let mut gone = 0;
        let mut newest: Vec<&Change> = own.changes.iter().collect();
        newest.sort_by_key(|Change(at, _)| std::cmp::Reverse(*at));
        newest.retain(|Change(at, part)| match part {
            Part::Unknown(_) => true,
            Part::Gone(key) if !there.contains(key) => {
                gone += 1;
                gone <= GONE_PARTS && at.unix_ms().saturating_add(kept) > stamp.unix_ms()
            }
            part => won.get(&part.key()).is_some_and(|(by, _)| *by == (*at, from)),
        });
        newest.into_iter().rev().cloned().collect()
    }

    /// What members changed of a service.
    fn updates(&self, id: ServiceId) -> impl Iterator<Item = (&Object, &Update)> {
        let own = self.update_ids(id);
        own.filter_map(|object| match object.content() {
            Content::Update(update) => Some((object.as_ref(), update)),
            _ => None,
        })
    }

    /// The changes that count beside a service object of this stamp.
    fn won(&self, id: ServiceId, base: (Hlc, NodeId)) -> Won<'_> {
        let mut won = Won::new();
        for (_, update) in self.updates(id) {
            for Change(at, part) in &update.changes {
                let stamp = (*at, update.from);
                if stamp <= base || matches!(part, Part::Unknown(_)) {
                    continue;
                }
                let before = won.entry(part.key()).or_insert((stamp, part));
                if stamp > before.0 {
                    *before = (stamp, part);
                }
            }
        }
        won
    }

    /// A service after all that was changed of it; none if nothing was.
    pub(super) fn merge_service(&self, id: ServiceId) -> Option<Service> {
        let object = self.get(&ObjectId::Service(id))?;
        let Content::Service(base) = object.content() else { return None };
        let stamp = (object.hlc(), object.author());
        let won = self.won(id, stamp);
        if won.is_empty() {
            return None;
        }
        let parts = base.parts();
        let left = parts.iter().filter(|part| !won.contains_key(&part.key()));
        let mut all: Vec<_> = left.map(|part| (stamp, part)).chain(won.values().copied()).collect();
        // Stable: those of the service object stay in its order.
        all.sort_by_key(|(stamp, _)| *stamp);
        let mut service = base.without_parts();
        all.into_iter().for_each(|(_, part)| part.put_into(&mut service));
        service.settle_published();
        Some(service)
    }
}
