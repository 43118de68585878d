//! One life of a simulated node: the real pure parts, put together as the agent puts them together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use ring::signature::{Ed25519KeyPair, KeyPair};
use vxmesh::{
    reconcile::{
        addresses::Addresses,
        admit::{Claims, away, believed, claimed_elsewhere},
        tables::{respecified, spec_of, updates},
    },
    services::{Drains, Places, Viewpoint, specs, updated},
};
use vxmesh_gossip::{
    directory::{Accepted, Directory, Source},
    publisher::Publisher,
};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, ServiceId},
    control::{self, Push, RefusalCode, Request, Response},
    ipam::{Need, Subnet, Transfer, first_split},
    lb::{BackendPort, Protocol, ejection::Subject},
    object::{
        self, Comparison, Content, Draft, Hlc, KeyRing, Merge, ObjectId, ObjectSet, RollCall,
    },
    record::{Claim, EndpointClaim, Key, NodeClaim, SignedRecord, Stamp},
    session::{Config, IndexTable, Peer, PeerConfig, Psk, Sessions, noise},
    tables::{NetworkTable, RowKey},
};
use zeroize::Zeroizing;

use crate::{
    parts::{Disk, Gossip, Keys, Message, SimCa},
    rng::Rng,
};

mod addresses;
mod services;

use services::Serving;
pub(crate) use services::{BACKEND_PORT, Made, VIP_PORT};

/// How long a request waits for its answer.
const ANSWER: Duration = Duration::from_secs(5);
/// A pair of nodes compares its objects no more often than this.
const SYNC_EVERY: Duration = Duration::from_millis(500);
/// A node whose heartbeat stands still for this long is down.
const SILENT: Duration = Duration::from_secs(6);

enum Waiting {
    Sync,
    Compare(Comparison),
    Addresses { request: Box<Request>, rest: Vec<NodeId>, for_attach: bool },
    Backend(Subject),
}

/// An endpoint that is being attached, or a service that is being made.
struct Attach {
    network: NetworkId,
    id: EndpointId,
    mac: MacAddr,
    wanted: Vec<IpAddr>,
    /// One of each IP version.
    subnets: Vec<IpNet>,
    ips: Vec<IpNet>,
    asked: bool,
    /// Whether clients from outside come in by it.
    router: bool,
    service: Option<object::Service>,
}

/// A hosted network.
pub(crate) struct Local {
    pub(crate) table: NetworkTable<Arc<Peer>>,
    pub(crate) claims: Claims,
    /// Whether frames with its number are for it: two networks may claim one.
    pub(crate) is_active: bool,
}

/// The time as the node sees it.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    pub(crate) now: Instant,
    pub(crate) wall_ms: u64,
}

/// One life of a node.
pub(crate) struct Life {
    pub(crate) me: NodeId,
    addr: SocketAddr,
    pair: Arc<Ed25519KeyPair>,
    ca: Arc<SimCa>,
    /// Whether it removes nodes.
    pub(crate) issuer: bool,
    pub(crate) disk: Disk,
    pub(crate) set: ObjectSet,
    pub(crate) directory: Directory,
    publisher: Publisher,
    pub(crate) addresses: Addresses,
    pub(crate) sessions: Sessions,
    pub(crate) index: Arc<IndexTable>,
    pub(crate) peers: BTreeMap<NodeId, (PeerConfig, Arc<Peer>)>,
    pub(crate) locals: BTreeMap<NetworkId, Local>,
    beat: u64,
    beats: BTreeMap<NodeId, (u64, Instant)>,
    syncing: BTreeMap<NodeId, Instant>,
    roll: RollCall,
    waiting: BTreeMap<u64, (NodeId, Instant, Waiting)>,
    attach: Option<Attach>,
    requests: u64,
    dirty: bool,
    pub(crate) serving: Serving,
    /// What is to be sent.
    pub(crate) out: Vec<(NodeId, Message)>,
    /// Endpoints that were attached since the last look.
    pub(crate) attached: Vec<EndpointClaim>,
    /// Frames that wait for a key, counted by what was put in and what came out.
    pub(crate) waiting_frames: i64,
    rng: Rng,
}

impl Life {
    /// Starts from what is on disk.
    pub(crate) fn start(
        keys: &Keys,
        ca: Arc<SimCa>,
        addr: SocketAddr,
        mut disk: Disk,
        time: Time,
        mut rng: Rng,
    ) -> Self {
        let (me, mesh) = (keys.id(), ca.mesh());
        disk.incarnation = time.wall_ms.max(disk.incarnation + 1);
        let config = Config {
            static_private: Zeroizing::new(keys.noise),
            aes: rng.chance(500),
            mesh,
            psk: Psk { epoch: 1, key: [5; 32] },
            previous_psk: None,
            boot_id: rng.bytes(),
            wall_at_start: Duration::from_millis(time.wall_ms),
            key_limits: None,
        };
        // What is certified of it is the same on every node: the last bit of the Noise key stands
        // for the processor.
        let aes = noise::public_key(&keys.noise)[0] & 1 == 0;
        let config = Config { aes, ..config };
        let sessions = Sessions::new(config, Box::new(Rng(rng.next())), time.now);
        let mut set = ObjectSet::new(mesh);
        let stored: Vec<_> = disk.objects.values().cloned().collect();
        for member in [true, false] {
            for text in stored.iter().filter(|text| text.contains("\"member/") == member) {
                let merged = set.restore(text, ca.as_ref(), time.wall_ms);
                assert!(!matches!(merged, Merge::Refused(_)), "own disk refused: {merged:?}");
            }
        }
        let serving = Serving::start(&mut disk, time, &mut rng);
        let mut life = Self {
            me,
            addr,
            pair: Arc::clone(&keys.pair),
            publisher: Publisher::new(Arc::clone(&keys.pair), mesh, disk.incarnation),
            addresses: Addresses::new(me),
            index: sessions.index_table(),
            ca,
            issuer: disk.issuer,
            disk,
            set,
            directory: Directory::default(),
            sessions,
            peers: BTreeMap::new(),
            locals: BTreeMap::new(),
            beat: 0,
            beats: BTreeMap::new(),
            syncing: BTreeMap::new(),
            roll: RollCall::default(),
            waiting: BTreeMap::new(),
            attach: None,
            requests: 0,
            dirty: true,
            serving,
            out: Vec::new(),
            attached: Vec::new(),
            waiting_frames: 0,
            rng,
        };
        life.begin(time);
        life
    }

    fn begin(&mut self, time: Time) {
        self.beat = self.disk.incarnation << 20;
        self.directory.set_up(self.me, true);
        if self.set.get(&ObjectId::Member(self.me)).is_none() {
            let certificate = self.disk.certificate.clone();
            self.publish(time, |_| Content::Member(object::Member { certificate, name: None }));
        }
        self.addresses.follow(&self.set, time.now);
        let claims: Vec<EndpointClaim> = self.disk.endpoints.values().cloned().collect();
        for claim in &claims {
            for ip in self.with_prefix(claim) {
                self.addresses.adopt(claim.network, ip);
            }
        }
        self.say_node(time);
        for claim in claims {
            self.host(time, claim.network);
            self.say(time, Key::Endpoint(claim.id), &Claim::Endpoint(claim));
        }
        self.reconcile(time);
    }

    // ---- objects and records

    fn say_node(&mut self, time: Time) {
        let node = NodeClaim {
            name: "n".parse().unwrap(),
            control: vec![self.addr],
            vteps: vec![self.addr],
            aes: false,
            drained: self.disk.drained,
            zone: None,
            unpublished: Default::default(),
        };
        self.say(time, Key::Node, &Claim::Node(node));
    }

    fn publish(&mut self, time: Time, content: impl FnOnce(Hlc) -> Content) -> String {
        let stamp = self.set.stamp(time.wall_ms);
        self.publish_draft(time, Draft::new(stamp, content(stamp)))
    }

    fn publish_draft(&mut self, time: Time, draft: Draft) -> String {
        let text = draft.sign(&self.pair, self.ca.mesh()).unwrap();
        self.keep_own(time, text)
    }

    fn keep_own(&mut self, time: Time, text: Arc<str>) -> String {
        let merged = self.set.merge(&text, self.ca.as_ref(), time.wall_ms);
        let (Merge::New(object) | Merge::Updated { new: object, .. }) = merged else {
            panic!("own object not merged: {merged:?}")
        };
        self.disk.objects.insert(object.id().to_string(), Arc::clone(object.text()));
        self.dirty = true;
        self.push(&Push { records: Vec::new(), objects: vec![text.to_string()] });
        text.to_string()
    }

    fn push(&mut self, push: &Push) {
        let bytes = control::encode(push, control::PUSH_LEN).unwrap();
        for node in self.others() {
            self.out.push((node, Message::Push(bytes.clone())));
        }
    }

    fn others(&self) -> Vec<NodeId> {
        if self.set.is_removed(self.me) {
            return Vec::new();
        }
        let left = |node: &NodeId| {
            let closed = |member: &Arc<object::Object>| member.closed();
            self.set.is_removed(*node) || self.set.get(&ObjectId::Member(*node)).is_some_and(closed)
        };
        self.disk.contacts.iter().copied().filter(|n| *n != self.me && !left(n)).collect()
    }

    fn key_of(&self, node: NodeId) -> Option<[u8; 32]> {
        let open = self.set.get(&ObjectId::Member(node)).is_some_and(|member| !member.closed());
        let open = open && !self.set.is_removed(node);
        self.set.public_key(node).filter(|_key| open)
    }

    fn take_objects(&mut self, time: Time, from: NodeId, texts: &[String]) {
        for text in texts {
            match self.set.merge_from(from, text, self.ca.as_ref(), time.wall_ms) {
                Merge::New(object) | Merge::Updated { new: object, .. } => {
                    self.disk.objects.insert(object.id().to_string(), Arc::clone(object.text()));
                    self.dirty = true;
                }
                // Of an author whose certificate comes with the next round, or stale.
                Merge::Stale
                | Merge::Refused(
                    object::Refused::UnknownAuthor(_) | object::Refused::Departed(_),
                ) => {}
                Merge::Refused(why) => panic!("an honest node's object was refused: {why}"),
            }
        }
        self.addresses.follow(&self.set, time.now);
        let known: BTreeSet<NodeId> = self.set.members().collect();
        for (record, source) in self.directory.unpark(&|node| known.contains(&node)) {
            self.take_record(time, record, source);
        }
    }

    fn say(&mut self, time: Time, key: Key, claim: &Claim) {
        let record = self.publisher.sign(key, claim, time.now).unwrap();
        let public = self.pair.public_key().as_ref().try_into().unwrap();
        let checked = record.verify(self.ca.mesh(), &public).unwrap();
        self.directory.insert(checked, Source::Local, time.now);
        self.dirty = true;
        let row = (record.owner, record.key.to_string(), record.text.to_string());
        self.push(&Push { records: vec![row], objects: Vec::new() });
    }

    fn take_record(&mut self, time: Time, record: SignedRecord, source: Source) {
        if self.directory.holds(&record) {
            return;
        }
        let Some(key) = self.key_of(record.owner) else {
            return self.directory.park(record, source);
        };
        let record = record.verify(self.ca.mesh(), &key).expect("its owner signed it");
        if record.owner() == self.me {
            if let Some(answer) = self.publisher.answer_to(&record) {
                self.say(time, record.key(), &answer);
            }
            return;
        }
        let accepted = self.directory.insert(record, source, time.now);
        assert!(!matches!(accepted, Accepted::Equivocation { .. }), "no honest node equivocates");
        self.dirty = true;
    }

    // ---- messages

    pub(crate) fn handle(&mut self, time: Time, from: NodeId, message: Message) {
        // A connection with a removed node is ended, with the reason; one that left is gone.
        let removed = self.set.is_removed(from) || self.set.is_removed(self.me);
        let left = self.set.get(&ObjectId::Member(from)).is_some_and(|member| member.closed());
        let farewell = matches!(message, Message::Request(..));
        if removed || (left && !farewell) {
            let gone = if self.set.is_removed(from) { from } else { self.me };
            if let Some(word) = self.set.get(&ObjectId::Removed(gone)) {
                self.out.push((from, Message::Removed(word.text().to_string())));
            }
            if !matches!(message, Message::Removed(_)) {
                return;
            }
        }
        match message {
            Message::Removed(word) => self.take_objects(time, from, &[word]),
            Message::Datagram(_) => {}
            Message::Request(id, bytes) => {
                let request: Request = control::decode(&bytes, control::REQUEST_LEN).unwrap();
                let answer = self.answer(time, from, request);
                let bytes = control::encode(&answer, control::RESPONSE_LEN).unwrap();
                self.out.push((from, Message::Response(id, bytes)));
            }
            Message::Response(id, bytes) => {
                let response = control::decode(&bytes, control::RESPONSE_LEN).unwrap();
                self.answered(time, id, Some(response));
            }
            Message::Push(bytes) => {
                let push: Push = control::decode(&bytes, control::PUSH_LEN).unwrap();
                self.take_objects(time, from, &push.objects);
                for (owner, key, text) in push.records {
                    let record = SignedRecord::parse(owner, &key, &text).unwrap();
                    self.take_record(time, record, Source::Push);
                }
                if self.key_of(from).is_some() {
                    self.dirty |= !self.directory.is_up(from);
                    self.directory.set_up(from, true);
                    self.hear(from, time);
                }
            }
            Message::Gossip(gossip) => self.gossip(time, from, gossip),
        }
        if std::mem::take(&mut self.dirty) {
            self.reconcile(time);
        }
    }

    fn hear(&mut self, node: NodeId, time: Time) {
        self.beats.entry(node).or_insert((0, time.now)).1 = time.now;
    }

    fn answer(&mut self, time: Time, from: NodeId, request: Request) -> Response {
        let conflict = |why: String| Response::refuse(RefusalCode::Conflict, why);
        match request {
            Request::ObjectsDigest { digest } => {
                Response::ObjectsDifference { difference: self.set.difference(&digest) }
            }
            Request::ObjectsPush { objects } => {
                self.take_objects(time, from, &objects);
                Response::Done
            }
            Request::BlockRequest { network, subnet, want } => {
                let elsewhere = claimed_elsewhere(&self.directory, network, self.me);
                let need = Need::of_wanted(want);
                let given = self
                    .addresses
                    .with_pool(network, subnet, |pool| pool.give(from, need, &elsewhere, time.now));
                match given {
                    Some(Ok(gift)) => self.sign_transfers(time, network, gift),
                    Some(Err(why)) => conflict(why.to_string()),
                    None => conflict("no such subnet".into()),
                }
            }
            Request::AddressClaim { network, ip, .. } => {
                let elsewhere = claimed_elsewhere(&self.directory, network, self.me);
                let subnets = self.addresses.subnets(network);
                let subnet = subnets.into_iter().find(|subnet| subnet.contains(&ip));
                let given = subnet.and_then(|subnet| {
                    self.addresses.with_pool(network, subnet, |pool| {
                        pool.give_address(ip, from, &elsewhere, time.now)
                    })
                });
                match given {
                    Some(Ok(transfer)) => self.sign_transfers(time, network, vec![transfer]),
                    Some(Err(why)) => conflict(why.to_string()),
                    None => conflict("no such subnet".into()),
                }
            }
            Request::CheckBackend { network, endpoint, protocol, port } => {
                let protocol = Protocol::of_number(protocol).unwrap();
                let key = RowKey { node: self.me, endpoint };
                let of = BackendPort { key, protocol, port };
                Response::BackendChecked { accepts: self.accepts(network, &of) }
            }
            other => panic!("the simulation does not ask {other:?}"),
        }
    }

    fn sign_transfers(&mut self, time: Time, network: NetworkId, given: Vec<Transfer>) -> Response {
        let sign = |Transfer { block: cidr, from, to, epoch }| {
            let content = object::Transfer { network, cidr, from, to, epoch };
            self.publish(time, |_| Content::Transfer(content))
        };
        Response::Objects { objects: given.into_iter().map(sign).collect() }
    }

    fn ask(&mut self, time: Time, node: NodeId, request: &Request, waiting: Waiting) {
        self.requests += 1;
        let bytes = control::encode(request, control::REQUEST_LEN).unwrap();
        self.waiting.insert(self.requests, (node, time.now + ANSWER, waiting));
        self.out.push((node, Message::Request(self.requests, bytes)));
    }

    fn sync(&mut self, time: Time, node: NodeId, after: Option<ObjectId>) {
        let digest = self.set.digest(after);
        assert!(digest.until.is_none(), "a simulated mesh fits into one page");
        let comparison = Waiting::Compare(Comparison::begin(&self.set));
        self.ask(time, node, &Request::ObjectsDigest { digest }, comparison);
    }

    fn sync_soon(&mut self, time: Time, node: NodeId) {
        let recent = |last: &Instant| time.now.duration_since(*last) < SYNC_EVERY;
        if !self.syncing.get(&node).is_some_and(recent) {
            self.syncing.insert(node, time.now);
            self.sync(time, node, None);
        }
    }

    fn answered(&mut self, time: Time, id: u64, response: Option<Response>) {
        let Some((node, _, waiting)) = self.waiting.remove(&id) else { return };
        match (waiting, response) {
            (
                Waiting::Compare(mut comparison),
                Some(Response::ObjectsDifference { difference }),
            ) => {
                comparison.page(&difference);
                self.roll.end(node, comparison);
                let texts: Vec<String> = difference.texts.iter().map(ToString::to_string).collect();
                self.take_objects(time, node, &texts);
                let wanted = self.set.texts(&difference.wanted);
                if !wanted.is_empty() {
                    let objects = wanted.iter().map(ToString::to_string).collect();
                    self.ask(time, node, &Request::ObjectsPush { objects }, Waiting::Sync);
                }
            }
            (Waiting::Sync | Waiting::Compare(_), _) => {}
            (Waiting::Backend(subject), response) => self.backend_answered(time, subject, response),
            (Waiting::Addresses { for_attach, .. }, Some(Response::Objects { objects })) => {
                self.take_objects(time, node, &objects);
                if for_attach {
                    self.continue_attach(time);
                }
            }
            (Waiting::Addresses { request, rest, for_attach }, _) => {
                self.ask_holders(time, *request, rest, for_attach);
            }
        }
    }

    // ---- gossip, as a model

    pub(crate) fn tick(&mut self, time: Time) {
        if self.set.is_removed(self.me) {
            // It has heard of it, and deals with nobody any more.
            self.give_up();
            return self.reconcile(time);
        }
        self.beat += 1;
        self.beats.insert(self.me, (self.beat, time.now));
        self.publisher.expire(time.now);
        let late: Vec<u64> =
            self.waiting.iter().filter(|(_, w)| w.1 <= time.now).map(|(id, _)| *id).collect();
        for id in late {
            self.answered(time, id, None);
        }
        self.judge(time);
        let open: BTreeSet<NodeId> = self.set.members().collect();
        self.directory.expire(time.now, &|node| open.contains(&node));
        let others = self.others();
        for _ in 0..3 {
            let Some(node) = self.rng.pick(&others).copied() else { break };
            if self.key_of(node).is_none() {
                self.sync_soon(time, node);
            }
            let syn = self.gossip_message(0, BTreeMap::new());
            self.out.push((node, Message::Gossip(syn)));
        }
        self.serving.flows.sweep(time.now);
        self.check_backends(time);
        self.prefetch(time);
        self.reclaim(time);
        self.reconcile(time);
    }

    fn judge(&mut self, time: Time) {
        let members: Vec<NodeId> = self.set.members().filter(|node| *node != self.me).collect();
        for node in members {
            let recent = |at: Instant| time.now.saturating_duration_since(at) < SILENT;
            let gossip = self.beats.get(&node).is_some_and(|(_, at)| recent(*at));
            let peer = self.peers.get(&node).and_then(|(_, peer)| peer.last_received());
            self.directory.set_up(node, gossip || peer.is_some_and(recent));
        }
    }

    fn gossip_message(&self, step: u8, theirs: BTreeMap<(NodeId, Key), Stamp>) -> Gossip {
        let rows = || self.directory.records().map(|entry| &entry.record);
        let digest = rows().map(|r| ((r.owner(), r.key()), r.stamp())).collect();
        let newer = |r: &&Arc<vxmesh_proto::record::Record>| {
            step > 0 && theirs.get(&(r.owner(), r.key())).is_none_or(|s| *s < r.stamp())
        };
        Gossip {
            step,
            beats: self.beats.iter().map(|(node, (beat, _))| (*node, *beat)).collect(),
            hash: self.set.content_hash(),
            digest,
            records: rows().filter(newer).map(|r| r.to_signed()).collect(),
        }
    }

    fn gossip(&mut self, time: Time, from: NodeId, gossip: Gossip) {
        self.disk.contacts.insert(from);
        if gossip.hash != self.set.content_hash() {
            self.sync_soon(time, from);
        }
        if self.key_of(from).is_none() {
            return;
        }
        for (node, beat) in gossip.beats {
            let known = self.beats.entry(node).or_insert((0, time.now));
            if beat > known.0 {
                *known = (beat, time.now);
            }
        }
        for record in gossip.records {
            self.take_record(time, record, Source::Gossip);
        }
        if gossip.step < 2 {
            let answer = self.gossip_message(gossip.step + 1, gossip.digest);
            self.out.push((from, Message::Gossip(answer)));
        }
    }

    // ---- tables

    fn host(&mut self, time: Time, id: NetworkId) {
        let Some(network) = self.set.extended(id) else { return };
        self.locals.entry(id).or_insert_with(|| Local {
            table: NetworkTable::new(spec_of(id, &network), 7, time.now),
            claims: Claims::new(),
            is_active: true,
        });
    }

    pub(crate) fn reconcile(&mut self, time: Time) {
        self.dirty = false;
        self.addresses.follow(&self.set, time.now);
        self.directory.poll_events();
        self.follow_peers(time);
        let active = self.set.active_networks();
        let is_settled = self.is_settled(time);
        (self.serving.is_settled, self.serving.looked_ms) = (is_settled, time.wall_ms);
        let members: BTreeSet<NodeId> = self.set.members().collect();
        let places = self.places();
        let mut met = BTreeSet::new();
        for (id, local) in &mut self.locals {
            let peers = &self.peers;
            let is_peer = |node| node == self.me || peers.contains_key(&node);
            let holds = |node, ip| self.addresses.holds(*id, node, ip);
            local.is_active = active.contains(id);
            let claims = if local.is_active {
                believed(&self.directory, *id, is_peer, holds).0
            } else {
                Claims::new()
            };
            let peer = |node| peers.get(&node).map(|(_, peer)| Arc::clone(peer));
            let changes = updates(&local.table, &local.claims, &claims, self.me, peer);
            let before: BTreeSet<NodeId> = local.table.members().iter().map(|(n, _)| *n).collect();
            let network = self.set.extended(*id);
            let spec = respecified(&local.table, network.as_ref());
            let away =
                away(&self.directory, *id, &members, |node| self.directory.is_up(node), holds);
            let at_ms = time.wall_ms;
            let clock = &self.serving.drains;
            let since = |since| clock.borrow_mut().begun(since, at_ms, is_settled);
            let drains = Drains { since: &since };
            let seen = Viewpoint { by: self.me, at_ms, places: &places, drains };
            let specs = specs(&self.set, *id, (&claims, &away), holds, &seen);
            let steers = services::steers(&local.table, &specs, self.me);
            let Serving { flows, version, ejections, .. } = &mut self.serving;
            let next = || {
                *version += 1;
                Some((*version, Arc::clone(flows)))
            };
            let served = updated(&local.table, specs, (is_settled, steers), ejections, next);
            local.table = local.table.apply(spec.into_iter().chain(changes).chain(served));
            met.extend(
                local.table.members().iter().map(|(n, _)| *n).filter(|n| !before.contains(n)),
            );
            local.claims = claims;
        }
        for node in met {
            self.sessions.handle_wanted(time.now, node);
        }
    }

    fn follow_peers(&mut self, time: Time) {
        let removed = self.set.is_removed(self.me);
        let members = self.set.members().filter(|node| *node != self.me && !removed);
        let members: BTreeSet<NodeId> = members.collect();
        let gone: Vec<NodeId> =
            self.peers.keys().filter(|node| !members.contains(node)).copied().collect();
        for node in gone {
            self.sessions.remove_peer(node);
            self.peers.remove(&node);
        }
        for node in members {
            let claim = self.directory.get(node, Key::Node).map(|entry| entry.record.claim());
            let addr = match claim {
                Some(Claim::Node(claim)) => claim.vteps.first().copied(),
                _ => None,
            };
            let object = self.set.get(&ObjectId::Member(node)).unwrap();
            let Content::Member(member) = object.content() else { continue };
            let noise_public: [u8; 32] = member.certificate[32..64].try_into().unwrap();
            let aes = noise_public[0] & 1 == 0;
            let config = PeerConfig { id: node, noise_public, addr, aes };
            if self.peers.get(&node).is_none_or(|(known, _)| *known != config) {
                let peer = self.sessions.set_peer(time.now, config.clone()).unwrap();
                self.peers.insert(node, (config, peer));
            }
        }
    }

    /// What stands on disk, for the next life.
    pub(crate) fn into_disk(self) -> Disk {
        self.disk
    }

    /// Whether an endpoint is being attached.
    pub(crate) fn is_busy(&self) -> bool {
        self.attach.is_some()
    }
}
