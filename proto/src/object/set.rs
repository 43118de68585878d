//! The set of mesh objects that one node holds: merged in any order, equal on all nodes in the end.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use ring::digest;

use super::{
    Certifier, Clock, Content, Extension, Hlc, KeyRing, Network, Object, ObjectId, Refused,
    Service, Transfer, check_content, domain, parse,
};
use crate::{
    addr::{NetworkId, NodeId, ServiceId},
    limits::{
        DELETED_KEPT, OBJECTS, OBJECTS_LEN, OBJECTS_OF_MEMBERS, OBJECTS_OF_MEMBERS_LEN,
        OBJECTS_OF_RECLAIMS, OBJECTS_OF_RECLAIMS_LEN, OBJECTS_PER_AUTHOR, OBJECTS_PER_AUTHOR_LEN,
    },
    record::{self, RecordError},
};

/// What is left of the whole without the room of reclaims.
const REST: Share =
    Share { objects: OBJECTS - OBJECTS_OF_RECLAIMS, bytes: OBJECTS_LEN - OBJECTS_OF_RECLAIMS_LEN };
/// And without that of members.
const COMMON: Share = Share {
    objects: REST.objects - OBJECTS_OF_MEMBERS,
    bytes: REST.bytes - OBJECTS_OF_MEMBERS_LEN,
};
const RECLAIMS: Share = Share { objects: OBJECTS_OF_RECLAIMS, bytes: OBJECTS_OF_RECLAIMS_LEN };
const AUTHOR: Share = Share { objects: OBJECTS_PER_AUTHOR, bytes: OBJECTS_PER_AUTHOR_LEN };

/// What became of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The object was not known.
    New(Arc<Object>),
    /// It is a later version.
    Updated {
        /// What it replaced.
        old: Arc<Object>,
        /// What stands now.
        new: Arc<Object>,
    },
    /// This version or a later one is known.
    Stale,
    /// It is not admitted.
    Refused(Refused),
}

/// Whether a network that was not deleted may forward frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkState {
    /// It may.
    Active,
    /// An older network has its name or its VNI.
    Conflict {
        /// That network.
        with: NetworkId,
    },
}

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    objects: usize,
    bytes: usize,
}

impl Share {
    fn add(&mut self, object: &Object) {
        self.objects += 1;
        self.bytes += object.text.len();
    }

    fn remove(&mut self, object: &Object) {
        self.objects -= 1;
        self.bytes -= object.text.len();
    }

    /// Whether it holds the text in place of the one that is held.
    const fn fits(self, text: usize, held: Option<usize>, limit: Self) -> bool {
        match held {
            // What does not grow always fits: else nobody could delete.
            Some(held) => text <= held || self.bytes - held + text <= limit.bytes,
            None => self.objects < limit.objects && self.bytes + text <= limit.bytes,
        }
    }
}

/// All mesh objects known here.
#[derive(Debug)]
pub struct ObjectSet {
    mesh: NodeId,
    objects: BTreeMap<ObjectId, Arc<Object>>,
    keys: BTreeMap<NodeId, [u8; 32]>,
    clock: Clock,
    reclaims: Share,
    /// All but reclaims.
    rest: Share,
    /// Of each author, but what it said with the CA's key: others decide how much of that is
    /// needed.
    shares: BTreeMap<NodeId, Share>,
    /// The open services of which something was changed, as they are now.
    pub(super) merged: BTreeMap<ServiceId, Service>,
    /// What is of closed services and not held any more, until [`Self::collect`] tells.
    moot: Vec<ObjectId>,
    // Sum of the texts' hashes: takes a change in constant time and does not depend on order.
    sum: [u64; 4],
}

impl ObjectSet {
    /// An empty set.
    #[must_use]
    pub fn new(mesh: NodeId) -> Self {
        Self {
            mesh,
            objects: BTreeMap::new(),
            keys: BTreeMap::new(),
            clock: Clock::default(),
            reclaims: Share::default(),
            rest: Share::default(),
            shares: BTreeMap::new(),
            merged: BTreeMap::new(),
            moot: Vec::new(),
            sum: [0; 4],
        }
    }

    /// A stamp for a new object, or for [`Object::edit`].
    pub fn stamp(&mut self, wall_ms: u64) -> Hlc {
        self.clock.tick(wall_ms)
    }

    /// Takes a text that this node or another signed.
    pub fn merge(&mut self, text: &str, ca: &dyn Certifier, wall_ms: u64) -> Merge {
        self.merge_unless_over(text, ca, wall_ms, |set, object| set.is_over(object, wall_ms))
    }

    /// Takes a text that another node sent: nothing from one that was removed, and from one that
    /// left only its own words.
    pub fn merge_from(
        &mut self,
        from: NodeId,
        text: &str,
        ca: &dyn Certifier,
        wall_ms: u64,
    ) -> Merge {
        let removed = self.is_removed(from);
        let left = self.get(&ObjectId::Member(from)).is_some_and(|member| member.closed());
        // The word of a removal is the CA's, whoever brings it: this is how one removed node hears
        // of it from another.
        let heard = |object: Object| {
            matches!(object.id, ObjectId::Removed(_)) || (!removed && object.author == from)
        };
        if (removed || left) && !parse(text).is_ok_and(heard) {
            return Merge::Refused(Refused::Departed(from));
        }
        self.merge(text, ca, wall_ms)
    }

    /// Takes a text that this node stored when it had admitted it: it goes when [`Self::collect`]
    /// says so.
    pub fn restore(&mut self, text: &str, ca: &dyn Certifier, wall_ms: u64) -> Merge {
        let merge = self.merge_unless_over(text, ca, wall_ms, |_set, _object| false);
        if merge == Merge::Stale
            && let Ok(object) = parse(text)
            && self.is_moot(&object)
        {
            self.moot.push(object.id);
        }
        merge
    }

    /// What [`Self::merge`] would refuse, or `false` if it would change nothing. A stamp and a key
    /// in it are learned.
    ///
    /// # Errors
    /// It is not admitted.
    pub fn check(&mut self, text: &str, ca: &dyn Certifier, wall_ms: u64) -> Result<bool, Refused> {
        self.admit(text, ca, wall_ms, |set, object| set.is_over(object, wall_ms))
            .map(|object| object.is_some())
    }

    fn merge_unless_over(
        &mut self,
        text: &str,
        ca: &dyn Certifier,
        wall_ms: u64,
        is_over: impl Fn(&Self, &Object) -> bool,
    ) -> Merge {
        match self.admit(text, ca, wall_ms, is_over) {
            Ok(Some(object)) => self.insert(object),
            Ok(None) => Merge::Stale,
            Err(refused) => Merge::Refused(refused),
        }
    }

    /// Checks everything, the signature last because it costs most.
    fn admit(
        &mut self,
        text: &str,
        ca: &dyn Certifier,
        wall_ms: u64,
        is_over: impl Fn(&Self, &Object) -> bool,
    ) -> Result<Option<Object>, Refused> {
        let object = parse(text)?;
        let held = self.objects.get(&object.id);
        check_content(&object.id, object.author, &object.draft)
            .map_err(|refused| name_field(refused, held.map(Arc::as_ref), &object))?;
        if held.is_some_and(|held| object.precedence(held) != Ordering::Greater) {
            return Ok(None);
        }
        if is_over(self, &object) || self.is_moot(&object) {
            return Ok(None);
        }
        self.check_room(&object, held.map(Arc::as_ref))?;
        let key = self.author_key(&object, ca)?;
        record::verify_text(&key, &domain(self.mesh, object.author), text).map_err(|fault| {
            match fault {
                RecordError::Signature => Refused::Signature,
                _ => Refused::Form,
            }
        })?;
        self.clock.observe(object.draft.hlc, wall_ms);
        if matches!(object.id, ObjectId::Member(_)) {
            self.keys.insert(object.author, key);
        }
        Ok(Some(object))
    }

    fn check_room(&self, object: &Object, held: Option<&Object>) -> Result<(), Refused> {
        let len = object.text.len();
        let held_len = held.map(|held| held.text.len());
        let (room, limit) = match object.id {
            ObjectId::Reclaim { .. } => (self.reclaims, RECLAIMS),
            ObjectId::Member(_) | ObjectId::Removed(_) => (self.rest, REST),
            _ => (self.rest, COMMON),
        };
        if !room.fits(len, held_len, limit) {
            return Err(Refused::Full);
        }
        if is_issued(&object.id) {
            return Ok(());
        }
        let share = self.share_of(object.author);
        let own = held.filter(|held| held.author == object.author);
        let fits = match (own, held_len) {
            // Another's object: its text counts here from now on.
            (None, Some(held_len)) if len > held_len => share.bytes + len <= AUTHOR.bytes,
            (None, Some(_shrinks)) => true,
            _ => share.fits(len, held_len, AUTHOR),
        };
        if fits { Ok(()) } else { Err(Refused::Quota(object.author)) }
    }

    fn share_of(&self, author: NodeId) -> Share {
        self.shares.get(&author).copied().unwrap_or_default()
    }

    /// Whether one more small object of this author would be admitted.
    #[must_use]
    pub fn has_room(&self, author: NodeId) -> bool {
        const SMALL: usize = 1024;
        self.rest.fits(SMALL, None, COMMON) && self.share_of(author).fits(SMALL, None, AUTHOR)
    }

    /// Whether it changes a service that was closed.
    fn is_moot(&self, object: &Object) -> bool {
        let Content::Update(update) = &object.draft.content else { return false };
        let service = self.objects.get(&ObjectId::Service(update.service));
        service.is_some_and(|service| service.closed())
    }

    /// Whether [`Self::collect`] would forget it.
    fn is_over(&self, object: &Object, wall_ms: u64) -> bool {
        let kept = u64::try_from(DELETED_KEPT.as_millis()).unwrap_or(u64::MAX);
        if object.draft.hlc.unix_ms().saturating_add(kept) > wall_ms {
            return false;
        }
        match &object.draft.content {
            Content::Network(_) => object.draft.closed,
            // Its addresses are back with who gave them for as long as it is known.
            Content::Service(service) => {
                !self.objects.contains_key(&ObjectId::Network(service.network))
            }
            Content::Update(update) => {
                !self.objects.contains_key(&ObjectId::Service(update.service))
            }
            // Of a network that is known to be deleted it goes with that one.
            Content::Extension(Extension { network, .. })
            | Content::Transfer(Transfer { network, .. })
            | Content::Reclaim(Transfer { network, .. }) => {
                !self.objects.contains_key(&ObjectId::Network(*network))
            }
            Content::Member(_) | Content::Removed(_) | Content::Other => false,
        }
    }

    /// Forgets networks that were deleted [`DELETED_KEPT`] ago, and transfers of that age whose
    /// network is not known. Says what was forgotten since the last time.
    pub fn collect(&mut self, wall_ms: u64) -> Vec<ObjectId> {
        let mut collected = std::mem::take(&mut self.moot);
        // Networks come before transfers, in the order of ids.
        let ids: Vec<ObjectId> = self.objects.keys().cloned().collect();
        for id in ids {
            let over = self.objects.get(&id).is_some_and(|object| self.is_over(object, wall_ms));
            if let Some(object) = over.then(|| self.objects.remove(&id)).flatten() {
                self.uncount(&object);
                if let ObjectId::Service(service) = id {
                    self.merged.remove(&service);
                }
                collected.push(id);
            }
        }
        collected
    }

    /// The objects of what was changed of a service, in the order of their authors.
    pub(super) fn update_ids(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Object>> {
        let first = ObjectId::Update { service, from: NodeId::FIRST };
        let rest = self.range_from(&first);
        rest.take_while(
            move |it| matches!(it.id, ObjectId::Update { service: of, .. } if of == service),
        )
    }

    /// Takes up what was changed of a service; of a closed one nothing is kept.
    fn follow_updates(&mut self, id: ServiceId) {
        let service = self.objects.get(&ObjectId::Service(id));
        if service.is_some_and(|service| service.closed()) {
            let moot: Vec<ObjectId> = self.update_ids(id).map(|it| it.id.clone()).collect();
            for id in moot {
                if let Some(object) = self.objects.remove(&id) {
                    self.uncount(&object);
                }
                self.moot.push(id);
            }
            self.merged.remove(&id);
        } else if let Some(merged) = self.merge_service(id) {
            self.merged.insert(id, merged);
        } else {
            self.merged.remove(&id);
        }
    }

    fn author_key(&self, object: &Object, ca: &dyn Certifier) -> Result<[u8; 32], Refused> {
        let key = match &object.draft.content {
            Content::Removed(_) | Content::Reclaim(_) => {
                return ca.ca_key().ok_or(Refused::Certificate);
            }
            Content::Member(member) => {
                ca.certified_key(&member.certificate).ok_or(Refused::Certificate)?
            }
            Content::Network(_)
            | Content::Extension(_)
            | Content::Transfer(_)
            | Content::Service(_)
            | Content::Update(_)
            | Content::Other => self
                .keys
                .get(&object.author)
                .copied()
                .ok_or(Refused::UnknownAuthor(object.author))?,
        };
        if NodeId::of_public_key(&key) == object.author {
            Ok(key)
        } else {
            Err(Refused::NotTheirs(object.author))
        }
    }

    fn insert(&mut self, object: Object) -> Merge {
        let new = Arc::new(object);
        self.sum_up(&new, u64::wrapping_add);
        self.room_of(&new.id).add(&new);
        if !is_issued(&new.id) {
            self.shares.entry(new.author).or_default().add(&new);
        }
        let merge = match self.objects.entry(new.id.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Arc::clone(&new));
                Merge::New(Arc::clone(&new))
            }
            Entry::Occupied(mut occupied) => {
                let old = occupied.insert(Arc::clone(&new));
                self.uncount(&old);
                Merge::Updated { old, new: Arc::clone(&new) }
            }
        };
        if let ObjectId::Service(service) | ObjectId::Update { service, .. } = new.id {
            self.follow_updates(service);
        }
        merge
    }

    fn uncount(&mut self, old: &Object) {
        self.sum_up(old, u64::wrapping_sub);
        self.room_of(&old.id).remove(old);
        if let Some(share) = self.shares.get_mut(&old.author).filter(|_| !is_issued(&old.id)) {
            share.remove(old);
            if *share == Share::default() {
                self.shares.remove(&old.author);
            }
        }
    }

    const fn room_of(&mut self, id: &ObjectId) -> &mut Share {
        match id {
            ObjectId::Reclaim { .. } => &mut self.reclaims,
            _ => &mut self.rest,
        }
    }

    fn sum_up(&mut self, object: &Object, with: fn(u64, u64) -> u64) {
        for (lane, part) in self.sum.iter_mut().zip(text_hash(&object.text)) {
            *lane = with(*lane, part);
        }
    }

    /// Equal for equal sets, however they came about: 64 hexadecimal digits.
    #[must_use]
    pub fn content_hash(&self) -> String {
        self.sum.iter().map(|lane| format!("{lane:016x}")).collect()
    }

    /// One object.
    #[must_use]
    pub fn get(&self, id: &ObjectId) -> Option<&Arc<Object>> {
        self.objects.get(id)
    }

    /// All objects, members first: the order in which another node can check them.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    pub(super) fn range_after<'a>(
        &'a self,
        after: Option<&ObjectId>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.objects
            .range((after.map_or(Unbounded, Excluded), Unbounded))
            .map(|(_id, object)| object)
    }

    pub(super) fn range_from<'a>(
        &'a self,
        first: &ObjectId,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        self.objects.range(first..).map(|(_id, object)| object)
    }

    /// Members that have not left and were not removed, in order.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        self.objects().filter(|object| !object.closed()).filter_map(|object| match object.id {
            ObjectId::Member(node) => Some(node).filter(|node| !self.is_removed(*node)),
            _ => None,
        })
    }

    /// Blocks of all networks that were given away, in the order of their ids.
    pub fn all_transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.objects().filter_map(|object| match object.content() {
            Content::Transfer(transfer) => Some(transfer),
            _ => None,
        })
    }

    /// Blocks of all networks that were taken back from removed nodes, in the order of their ids.
    pub fn all_reclaims(&self) -> impl Iterator<Item = &Transfer> {
        self.objects().filter_map(|object| match object.content() {
            Content::Reclaim(reclaim) => Some(reclaim),
            _ => None,
        })
    }

    /// Subnets that were added to a network, in the order of ids.
    pub(super) fn extensions(
        &self,
        network: NetworkId,
    ) -> impl Iterator<Item = (&Arc<Object>, &Extension)> {
        // They stand together in the order of ids, right after the networks, and there are few.
        let last = ObjectId::Network(NetworkId::from_random([0xff; 16]));
        let added = self.range_after(Some(&last)).map_while(|object| match object.content() {
            Content::Extension(extension) => Some((object, extension)),
            _ => None,
        });
        added.filter(move |(_, extension)| extension.network == network)
    }

    /// Networks that were not deleted, oldest first. Of two with one name or VNI the older is
    /// active.
    #[must_use]
    pub fn networks(&self) -> Vec<(NetworkId, Arc<Object>, NetworkState)> {
        let mut live: Vec<(Hlc, NetworkId, &Network, &Arc<Object>)> = self
            .objects()
            .filter(|object| !object.closed())
            .filter_map(|object| match (object.id(), object.content()) {
                (ObjectId::Network(id), Content::Network(network)) => {
                    Some((object.created(), *id, network, object))
                }
                _ => None,
            })
            .collect();
        live.sort_by_key(|(created, id, ..)| (*created, *id));
        let mut names = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        live.into_iter()
            .map(|(_created, id, network, object)| {
                let taken = names.get(&network.name).or_else(|| numbers.get(&network.vni)).copied();
                let state =
                    taken.map_or(NetworkState::Active, |with| NetworkState::Conflict { with });
                if taken.is_none() {
                    names.insert(&network.name, id);
                    numbers.insert(network.vni, id);
                }
                (id, Arc::clone(object), state)
            })
            .collect()
    }

    /// The ids of the networks that may forward frames.
    #[must_use]
    pub fn active_networks(&self) -> BTreeSet<NetworkId> {
        let active = |(id, _object, state): (NetworkId, Arc<Object>, NetworkState)| {
            (state == NetworkState::Active).then_some(id)
        };
        self.networks().into_iter().filter_map(active).collect()
    }
}

impl KeyRing for ObjectSet {
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]> {
        self.keys.get(&node).copied()
    }
}

/// Whether it is said with the CA's key.
const fn is_issued(id: &ObjectId) -> bool {
    matches!(id, ObjectId::Removed(_) | ObjectId::Reclaim { .. })
}

/// Says which field of a known network changed.
fn name_field(refused: Refused, held: Option<&Object>, new: &Object) -> Refused {
    match (&refused, held.map(Object::content), new.content()) {
        (Refused::Fixed { .. }, Some(Content::Network(held)), Content::Network(new)) => {
            Refused::Fixed { field: held.changed_field(new) }
        }
        _ => refused,
    }
}

/// SHA-256 of a text as four numbers.
pub(super) fn text_hash(text: &str) -> [u64; 4] {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let mut lanes = [0; 4];
    for (lane, part) in lanes.iter_mut().zip(hash.as_ref().as_chunks::<8>().0) {
        *lane = u64::from_be_bytes(*part);
    }
    lanes
}
