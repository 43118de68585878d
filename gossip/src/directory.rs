//! The merged view: of each owner and key the newest record that the owner signed, from push and
//! from gossip alike.
//!
//! A row is replaced by its owner's newer record and by nothing else. It leaves when its owner's
//! `gone` record has been kept for [`GONE_KEPT`]; while its owner is down it stays, and the
//! reader hides it. Which records changed is remembered as a set of places, not as a queue: an
//! overload merges changes instead of losing them, and the set cannot outgrow the directory (I5).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use vxmesh_proto::{
    addr::{NetworkId, NodeId},
    limits::{ADDRESS_QUARANTINE, GONE_KEPT},
    record::{Claim, Key, Precedence, Record, SignedRecord},
};

use crate::limits::{KEYS, PARKED, RECORDS_PER_OWNER};

/// How a record was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This node signed it.
    Local,
    /// Its owner, or a node that had it from there, sent it at once.
    Push,
    /// Anti-entropy brought it.
    Gossip,
}

impl Source {
    /// As `locate` shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Push => "push",
            Self::Gossip => "gossip",
        }
    }
}

/// One record of the directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record.
    pub record: Arc<Record>,
    /// How it was learned.
    pub source: Source,
    /// When it was learned.
    pub learned: Instant,
}

/// What the reader of the directory is told. The directory itself is the state; an event says where
/// to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshEvent {
    /// A node is up: its records count.
    NodeUp(NodeId),
    /// A node is down: its records are hidden and stay in the directory.
    NodeDown(NodeId),
    /// A record is new or newer, whether its owner is up or not.
    RecordUp(Arc<Record>),
    /// The owner said that there is nothing more under this key.
    RecordGone {
        /// The owner.
        owner: NodeId,
        /// The key.
        key: Key,
    },
    /// A node's set of mesh objects has this hash now.
    Objects {
        /// The node.
        node: NodeId,
        /// The hash.
        hash: Arc<str>,
    },
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is the newest.
    New,
    /// The same or a newer one is known.
    Stale,
    /// The owner signed two records with one stamp; whether this one stays.
    Equivocation {
        /// It has the smaller text.
        kept: bool,
    },
    /// The owner has as many records as it may.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Liveness(NodeId),
    Record(NodeId, Key),
    Objects(NodeId),
}

/// The directory of one node.
#[derive(Debug, Default)]
pub struct Directory {
    records: BTreeMap<NodeId, BTreeMap<Key, Entry>>,
    /// Where the endpoints of each network stand: a reader of one network does not walk all of
    /// them.
    networks: BTreeMap<NetworkId, BTreeSet<(NodeId, Key)>>,
    count: usize,
    up: BTreeSet<NodeId>,
    objects: BTreeMap<NodeId, Arc<str>>,
    /// Addresses that endpoints no longer have, and since when.
    released: BTreeMap<(NetworkId, IpAddr), Instant>,
    parked: VecDeque<(SignedRecord, Source)>,
    changed: BTreeSet<Place>,
}

impl Directory {
    /// Whether this very text is held: then its signature need not be checked again.
    #[must_use]
    pub fn holds(&self, record: &SignedRecord) -> bool {
        self.get(record.owner, record.key).is_some_and(|entry| entry.record.text() == &record.text)
    }

    /// Takes a record whose signature was checked.
    pub fn insert(&mut self, record: Record, source: Source, now: Instant) -> Accepted {
        let (owner, key) = (record.owner(), record.key());
        let own = self.records.get(&owner);
        let accepted = match own
            .and_then(|own| own.get(&key))
            .map(|held| record.precedence(&held.record))
        {
            Some(Precedence::Same | Precedence::Older) => Accepted::Stale,
            Some(Precedence::Equivocation { wins }) => Accepted::Equivocation { kept: wins },
            Some(Precedence::Newer) => Accepted::New,
            None if self.count >= KEYS || own.is_some_and(|own| own.len() >= RECORDS_PER_OWNER) => {
                Accepted::Full
            }
            None => {
                self.count += 1;
                Accepted::New
            }
        };
        if matches!(accepted, Accepted::New | Accepted::Equivocation { kept: true }) {
            let entry = Entry { record: Arc::new(record), source, learned: now };
            let network = network_of(&entry);
            let old = self.records.entry(owner).or_default().insert(key, entry);
            if let Some(old) = &old {
                let kept = own_addresses(self.get(owner, key)).to_vec();
                release(&mut self.released, old, &kept, now);
            }
            let before = old.as_ref().and_then(network_of);
            if before != network {
                before.inspect(|before| unlist(&mut self.networks, before, owner, key));
                if let Some(network) = network {
                    self.networks.entry(network).or_default().insert((owner, key));
                }
            }
            self.changed.insert(Place::Record(owner, key));
        }
        accepted
    }

    /// Keeps a record whose owner's key is not known yet. The oldest goes when there are too many.
    pub fn park(&mut self, record: SignedRecord, source: Source) {
        if self.parked.iter().any(|(parked, _source)| *parked == record) {
            return;
        }
        if self.parked.len() >= PARKED {
            self.parked.pop_front();
        }
        self.parked.push_back((record, source));
    }

    /// Gives back the parked records of owners whose keys are known by now.
    pub fn unpark(&mut self, is_known: &dyn Fn(NodeId) -> bool) -> Vec<(SignedRecord, Source)> {
        let (ready, parked): (Vec<_>, Vec<_>) =
            self.parked.drain(..).partition(|(record, _source)| is_known(record.owner));
        self.parked = parked.into();
        ready
    }

    /// Says whether a node is up.
    pub fn set_up(&mut self, node: NodeId, up: bool) {
        let changed = if up { self.up.insert(node) } else { self.up.remove(&node) };
        if changed {
            self.changed.insert(Place::Liveness(node));
        }
    }

    /// Says which hash a node's set of mesh objects has.
    pub fn set_objects(&mut self, node: NodeId, hash: &str) {
        if self.objects.get(&node).is_none_or(|held| &**held != hash) {
            self.objects.insert(node, hash.into());
            self.changed.insert(Place::Objects(node));
        }
    }

    /// Forgets what left: `gone` records past their time, and whatever nodes said that are no
    /// members.
    pub fn expire(&mut self, now: Instant, is_member: &dyn Fn(NodeId) -> bool) {
        self.objects.retain(|node, _hash| is_member(*node));
        self.released.retain(|_, since| now.saturating_duration_since(*since) < ADDRESS_QUARANTINE);
        for node in self.up.iter().copied().filter(|node| !is_member(*node)).collect::<Vec<_>>() {
            self.set_up(node, false);
        }
        for (owner, own) in &mut self.records {
            let member = is_member(*owner);
            own.retain(|key, entry| {
                let gone = matches!(entry.record.claim(), Claim::Gone);
                let expired = gone && now.saturating_duration_since(entry.learned) >= GONE_KEPT;
                if !member && !gone {
                    release(&mut self.released, entry, &[], now);
                    self.changed.insert(Place::Record(*owner, *key));
                    if let Some(network) = network_of(entry) {
                        unlist(&mut self.networks, &network, *owner, *key);
                    }
                }
                member && !expired
            });
        }
        self.records.retain(|_owner, own| !own.is_empty());
        self.count = self.records.values().map(BTreeMap::len).sum();
    }

    /// What changed since the last call: liveness first, then records, then hashes, each in order
    /// of node and key.
    pub fn poll_events(&mut self) -> Vec<MeshEvent> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .filter_map(|place| match place {
                Place::Liveness(node) if self.is_up(node) => Some(MeshEvent::NodeUp(node)),
                Place::Liveness(node) => Some(MeshEvent::NodeDown(node)),
                Place::Record(owner, key) => Some(match self.get(owner, key) {
                    Some(entry) if !matches!(entry.record.claim(), Claim::Gone) => {
                        MeshEvent::RecordUp(Arc::clone(&entry.record))
                    }
                    _ => MeshEvent::RecordGone { owner, key },
                }),
                Place::Objects(node) => {
                    let hash = self.objects.get(&node)?;
                    Some(MeshEvent::Objects { node, hash: Arc::clone(hash) })
                }
            })
            .collect()
    }

    /// Whether there is something to poll.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.changed.is_empty()
    }

    /// One record.
    #[must_use]
    pub fn get(&self, owner: NodeId, key: Key) -> Option<&Entry> {
        self.records.get(&owner)?.get(&key)
    }

    /// The records of one owner, `gone` ones included, by key.
    pub fn records_of(&self, owner: NodeId) -> impl Iterator<Item = &Entry> {
        self.records.get(&owner).into_iter().flat_map(BTreeMap::values)
    }

    /// All records, `gone` ones and those of nodes that are down included, by owner and key.
    pub fn records(&self) -> impl Iterator<Item = &Entry> {
        self.records.values().flat_map(BTreeMap::values)
    }

    /// The endpoints that are claimed to be in a network, those of nodes that are down included, by
    /// owner and key.
    pub fn records_in(&self, network: NetworkId) -> impl Iterator<Item = &Entry> {
        let places = self.networks.get(&network).into_iter().flatten();
        places.filter_map(|(owner, key)| self.get(*owner, *key))
    }

    /// Addresses of a network that endpoints had until a moment ago: whoever holds them by now lets
    /// them rest.
    pub fn released(&self, network: NetworkId) -> impl Iterator<Item = (IpAddr, Instant)> {
        let all = self.released.iter().filter(move |((of, _ip), _since)| *of == network);
        all.map(|((_of, ip), since)| (*ip, *since))
    }

    /// Whether a node is up.
    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        self.up.contains(&node)
    }

    /// The nodes that are up, this one included.
    pub fn up(&self) -> impl Iterator<Item = NodeId> {
        self.up.iter().copied()
    }

    /// The hash that each node's set of mesh objects is said to have.
    pub fn objects(&self) -> impl Iterator<Item = (NodeId, &Arc<str>)> {
        self.objects.iter().map(|(node, hash)| (*node, hash))
    }
}

/// The addresses of an endpoint that is not gone.
fn own_addresses(entry: Option<&Entry>) -> &[IpAddr] {
    match entry.map(|entry| entry.record.claim()) {
        Some(Claim::Endpoint(claim)) => &claim.ips,
        Some(Claim::Node(_) | Claim::Gone) | None => &[],
    }
}

/// Notes the addresses that an endpoint no longer has; about as many as endpoints may be in all
/// (I5).
fn release(
    released: &mut BTreeMap<(NetworkId, IpAddr), Instant>,
    old: &Entry,
    kept: &[IpAddr],
    now: Instant,
) {
    if let Claim::Endpoint(claim) = old.record.claim()
        && released.len() < KEYS
    {
        let gone = claim.ips.iter().filter(|ip| !kept.contains(ip));
        released.extend(gone.map(|ip| ((claim.network, *ip), now)));
    }
}

/// The network of an endpoint that is not gone.
fn network_of(entry: &Entry) -> Option<NetworkId> {
    match entry.record.claim() {
        Claim::Endpoint(claim) => Some(claim.network),
        Claim::Node(_) | Claim::Gone => None,
    }
}

fn unlist(
    networks: &mut BTreeMap<NetworkId, BTreeSet<(NodeId, Key)>>,
    network: &NetworkId,
    owner: NodeId,
    key: Key,
) {
    if let Some(places) = networks.get_mut(network) {
        places.remove(&(owner, key));
        if places.is_empty() {
            networks.remove(network);
        }
    }
}

#[cfg(test)]
mod tests;
