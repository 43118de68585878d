//! The simulated world: nodes, the network between them, virtual time, and what must hold at every
//! step.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId},
    frame::Frame,
    object::ObjectId,
    path::{InboundVerdict, OutboundVerdict, Scratch, answer, inbound_vxlan, outbound},
    reason::DropReason,
    record::EndpointClaim,
    session::{
        Peer, Probe, SessionEvent,
        wire::{DataHeader, FLAG_CONTROL, HEADER_LEN, Kind, TAG_LEN, asks_for_echo},
    },
    wire::{Ethernet, vxlan},
};

use crate::{
    life::{Life, Time},
    parts::{Disk, Keys, Message, SimCa},
    rng::Rng,
    services::Clients,
};

/// Stands in every frame and must stand in no transmitted byte.
pub(crate) const MARKER: &[u8] = b"PLAINTEXT-THAT-NOBODY-SEES";
const TICK: Duration = Duration::from_millis(500);

/// A node, alive or not.
pub(crate) struct Node {
    keys: Keys,
    pub(crate) id: NodeId,
    addr: SocketAddr,
    /// How wrong its clock is.
    skew_ms: i64,
    pub(crate) life: Option<Life>,
    disk: Option<Disk>,
    pub(crate) left: bool,
    pub(crate) removed: bool,
    next_tick: Instant,
}

/// What the network does.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) loss: usize,
    pub(crate) doubling: usize,
    pub(crate) jitter_ms: usize,
}

/// A frame that was sent.
pub(crate) struct Sent {
    pub(crate) from: usize,
    pub(crate) network: NetworkId,
    pub(crate) source: MacAddr,
    /// Who should get it; everybody else in the network if nobody is named.
    pub(crate) to: Option<EndpointId>,
    pub(crate) delivered: BTreeMap<usize, usize>,
    /// Made by a member that lies about the source.
    pub(crate) forged: bool,
}

/// Where frames went: each is counted once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) frames: u64,
    pub(crate) verdicts: u64,
    pub(crate) sealed: u64,
    pub(crate) doubled: u64,
    pub(crate) lost: u64,
    pub(crate) delivered: u64,
    pub(crate) refused: u64,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) rng: Rng,
    ca: Arc<SimCa>,
    pub(crate) nodes: Vec<Node>,
    index: BTreeMap<NodeId, usize>,
    flying: BTreeMap<(Instant, u64), (usize, usize, Message)>,
    sequence: u64,
    pub(crate) link: Link,
    pub(crate) groups: Vec<u8>,
    /// The reference: which endpoints there are, and on which node.
    pub(crate) endpoints: BTreeMap<EndpointId, (usize, EndpointClaim)>,
    pub(crate) sent: BTreeMap<u64, Sent>,
    pub(crate) counts: Counts,
    pub(crate) clients: Clients,
}

impl World {
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        let start = Instant::now();
        let mut world = Self {
            now: start,
            start,
            rng: Rng(seed),
            ca: Arc::new(SimCa::new()),
            nodes: Vec::new(),
            index: BTreeMap::new(),
            flying: BTreeMap::new(),
            sequence: 0,
            link: Link { loss: 0, doubling: 0, jitter_ms: 3 },
            groups: Vec::new(),
            endpoints: BTreeMap::new(),
            sent: BTreeMap::new(),
            counts: Counts::default(),
            clients: Clients::default(),
        };
        for _ in 0..count {
            world.join();
        }
        world
    }

    /// A new node joins by way of a live one.
    pub(crate) fn join(&mut self) {
        let keys = Keys::new(&mut self.rng);
        let (id, n) = (keys.id(), self.nodes.len());
        // Certificates are the issuer's to give: it is there, and tells who was removed.
        let server = (!self.nodes.is_empty()).then_some(0);
        let mut contacts = BTreeSet::new();
        if let Some(server) = server.and_then(|server| self.nodes[server].life.as_mut()) {
            contacts = server.disk.contacts.clone();
            contacts.insert(server.me);
            server.disk.contacts.insert(id);
        }
        let life = server.and_then(|server| self.nodes[server].life.as_ref());
        let removals = life.into_iter().flat_map(|life| {
            life.set.removals().map(|(_, o)| (o.id().to_string(), Arc::clone(o.text())))
        });
        let objects = removals.collect();
        let (certificate, issuer) = (self.ca.issue(&keys), n == 0);
        let disk = Disk { certificate, contacts, objects, issuer, ..Disk::default() };
        let skew_ms = 0;
        let addr = SocketAddr::from(([10, 0, 0, u8::try_from(n + 1).unwrap()], 7761));
        self.index.insert(id, n);
        // A newcomer stands where its server stands.
        self.groups.push(server.map_or(0, |server| self.groups[server]));
        let next_tick = self.now;
        let (life, disk, left, removed) = (None, Some(disk), false, false);
        self.nodes.push(Node { keys, id, addr, skew_ms, life, disk, left, removed, next_tick });
        self.boot(n);
    }

    pub(crate) fn time(&self, n: usize) -> Time {
        let wall = 1_800_000_000_000 + i64::try_from((self.now - self.start).as_millis()).unwrap();
        let wall_ms = u64::try_from(wall + self.nodes[n].skew_ms).unwrap();
        Time { now: self.now, wall_ms }
    }

    /// By how much a clock is off: seconds mostly, hours on some hosts.
    fn skew(&mut self) -> i64 {
        let span = if self.rng.chance(250) { 6 * 3_600_000 } else { 50_000 };
        i64::try_from(self.rng.below(span)).unwrap() - i64::try_from(span / 2).unwrap()
    }

    /// Starts a node, with another clock than in its last life.
    pub(crate) fn boot(&mut self, n: usize) {
        self.nodes[n].skew_ms = self.skew();
        let (time, rng) = (self.time(n), Rng(self.rng.next()));
        let jitter = Duration::from_millis(u64::try_from(self.rng.below(500)).unwrap());
        let node = &mut self.nodes[n];
        let Some(disk) = node.disk.take() else { return };
        node.life = Some(Life::start(&node.keys, Arc::clone(&self.ca), node.addr, disk, time, rng));
        node.next_tick = self.now + jitter;
        self.collect(n);
    }

    /// Nothing is left but the disk.
    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(life) = self.nodes[n].life.take() {
            self.nodes[n].disk = Some(life.into_disk());
        }
    }

    /// Takes the outputs of a life that has ended for good.
    pub(crate) fn leave(&mut self, n: usize) {
        let time = self.time(n);
        self.with(n, |life| life.leave(time));
        self.kill(n);
        self.nodes[n].left = true;
        self.endpoints.retain(|_, (node, _)| *node != n);
    }

    /// The issuer removes a node, which goes on as it is until it hears of it.
    pub(crate) fn remove(&mut self, n: usize) {
        let (time, node) = (self.time(0), self.nodes[n].id);
        self.with(0, |life| life.remove_node(time, node));
        self.nodes[n].removed = true;
        self.forget_vips();
    }

    /// Changes a life and takes its outputs.
    pub(crate) fn with<R>(&mut self, n: usize, change: impl FnOnce(&mut Life) -> R) -> Option<R> {
        let result = change(self.nodes[n].life.as_mut()?);
        self.collect(n);
        Some(result)
    }

    pub(crate) fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].life.is_some()).collect()
    }

    /// Those that live and are members.
    pub(crate) fn members(&self) -> Vec<usize> {
        self.alive().into_iter().filter(|n| !self.nodes[*n].removed).collect()
    }

    /// Whether a node knows that another was removed, alive or not.
    fn knows_removed(&self, n: usize, node: NodeId) -> bool {
        let id = ObjectId::Removed(node);
        match (&self.nodes[n].life, &self.nodes[n].disk) {
            (Some(life), _) => life.set.is_removed(node),
            (None, Some(disk)) => disk.objects.contains_key(&id.to_string()),
            (None, None) => true,
        }
    }

    /// Whether a member, alive or not, may admit endpoints of a node.
    pub(crate) fn is_admitted(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let member = |k: &usize| *k != n && !self.nodes[*k].left && !self.nodes[*k].removed;
        let mut members = (0..self.nodes.len()).filter(member);
        !node.removed || members.any(|k| !self.knows_removed(k, node.id))
    }

    fn collect(&mut self, n: usize) {
        let Some(life) = self.nodes[n].life.as_mut() else { return };
        let mut out = std::mem::take(&mut life.out);
        let attached = std::mem::take(&mut life.attached);
        let made = std::mem::take(&mut life.serving.made);
        let mut flushed = 0;
        let mut datagrams = Vec::new();
        while let Some(transmit) = life.sessions.poll_transmit() {
            let header = DataHeader::parse(&transmit.bytes);
            flushed += u64::from(header.is_ok_and(|h| h.flags & FLAG_CONTROL == 0));
            datagrams.push((transmit.to, transmit.bytes));
        }
        while let Some(event) = life.sessions.poll_event() {
            if let SessionEvent::Dropped { count, .. } = event {
                life.waiting_frames -= i64::try_from(count).unwrap();
            }
        }
        life.waiting_frames -= i64::try_from(flushed).unwrap();
        assert!(life.waiting_frames >= 0, "more frames came out than waited");
        self.counts.sealed += flushed;
        for claim in attached {
            self.check_addresses(n, &claim);
            self.endpoints.insert(claim.id, (n, claim));
        }
        for made in made {
            self.made(n, &made);
        }
        for (to, bytes) in datagrams {
            self.fly_to(n, to, bytes);
        }
        for (to, message) in out.drain(..) {
            if let Some(to) = self.index.get(&to) {
                self.fly(n, *to, message);
            }
        }
    }

    /// I12: no address of a new endpoint is that of another one, wherever its node is and whether
    /// it is alive or not.
    fn check_addresses(&self, n: usize, new: &EndpointClaim) {
        for (other, claim) in self.endpoints.values() {
            let twice =
                claim.network == new.network && claim.ips.iter().any(|ip| new.ips.contains(ip));
            let twice = twice && self.is_admitted(n) && self.is_admitted(*other);
            assert!(!twice, "I12: nodes {n} and {other} gave one address: {new:?} {claim:?}");
        }
        if self.is_admitted(n) {
            let to = format!("an endpoint of node {n}");
            new.ips.iter().for_each(|ip| self.check_given(new.network, *ip, &to));
        }
    }

    fn fly_to(&mut self, from: usize, to: SocketAddr, bytes: Vec<u8>) {
        let to = self.nodes.iter().position(|node| node.addr == to).unwrap();
        self.fly(from, to, Message::Datagram(bytes));
    }

    /// Puts a message on the wire. What QUIC repeats is late where a datagram is lost.
    fn fly(&mut self, from: usize, to: usize, message: Message) {
        let seen = message.bytes();
        assert!(
            !seen.windows(MARKER.len()).any(|window| window == MARKER),
            "I10: plaintext on the wire from node {from} to {to}"
        );
        let data = is_data(&message);
        let lost = self.rng.chance(self.link.loss);
        let unreliable = matches!(message, Message::Datagram(_) | Message::Gossip(_));
        if self.groups[from] != self.groups[to] || (lost && unreliable) {
            self.counts.lost += u64::from(data);
            return;
        }
        let double = unreliable && self.rng.chance(self.link.doubling);
        self.counts.doubled += u64::from(double && data);
        for _ in 0..=usize::from(double) {
            let late = if lost { 300 } else { 0 };
            let delay = 1 + late + self.rng.below(self.link.jitter_ms);
            let due = self.now + Duration::from_millis(u64::try_from(delay).unwrap());
            self.sequence += 1;
            self.flying.insert((due, self.sequence), (from, to, message.clone()));
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let lives =
                self.nodes.iter().filter_map(|node| Some((node.life.as_ref()?, node.next_tick)));
            let timer = lives
                .flat_map(|(life, tick)| {
                    [Some(tick), life.sessions.poll_timeout(), life.serving.next_look]
                })
                .flatten()
                .min();
            let arrival = self.flying.first_key_value().map(|((due, _), _)| *due);
            let others = arrival.into_iter().chain(self.clients.next_beat());
            let Some(next) = timer.into_iter().chain(others).min().filter(|next| *next <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            if self.clients.next_beat().is_some_and(|due| due <= self.now) {
                self.beat();
            } else if arrival.is_some_and(|due| due <= self.now) {
                let (_, (from, to, message)) = self.flying.pop_first().unwrap();
                self.arrive(from, to, message);
            } else {
                self.timers();
            }
        }
        self.now = end;
    }

    fn timers(&mut self) {
        for n in self.alive() {
            let (now, time) = (self.now, self.time(n));
            let tick = self.nodes[n].next_tick <= now;
            if tick {
                self.nodes[n].next_tick = now + TICK;
            }
            self.with(n, |life| {
                if life.sessions.poll_timeout().is_some_and(|due| due <= now) {
                    life.sessions.handle_timeout(now);
                }
                if tick {
                    life.tick(time);
                }
                if life.serving.next_look.is_some_and(|due| due <= now) {
                    life.look(time);
                }
            });
            if tick {
                self.retry(n);
            }
        }
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message) {
        let (time, id, addr) = (self.time(to), self.nodes[from].id, self.nodes[from].addr);
        let data = is_data(&message);
        // The link may have been cut, or the node killed, while the message was on its way.
        if self.groups[from] != self.groups[to] || self.nodes[to].life.is_none() {
            self.counts.lost += u64::from(data);
            return;
        }
        let Message::Datagram(mut bytes) = message else {
            self.with(to, |life| life.handle(time, id, message));
            return;
        };
        let taken = self.with(to, |life| take(life, addr, &mut bytes, time.now)).unwrap();
        match taken {
            Ok(Some((sender, network, mut frame))) => {
                self.delivered(to, sender, network, &frame);
                let table = &self.nodes[to].life.as_ref().unwrap().locals[&network].table;
                let mut answered = Frame::plain(&mut frame);
                if answer(table, &mut answered, time.now, &mut ()) == InboundVerdict::Deliver {
                    self.reached(to, network, &frame);
                }
            }
            Ok(None) | Err(_) if data => self.counts.refused += 1,
            Ok(None) | Err(_) => {}
        }
    }

    /// I3: who sealed the frame owns its source; and it is the frame that was sent, once, to whom
    /// it was sent.
    fn delivered(&mut self, to: usize, sender: NodeId, network: NetworkId, frame: &[u8]) {
        self.counts.delivered += 1;
        let eth = Ethernet::parse(frame).unwrap();
        let at = frame.windows(MARKER.len()).position(|w| w == MARKER).unwrap() + MARKER.len();
        let id = u64::from_be_bytes(*frame[at..].first_chunk().unwrap());
        let receiver = self.nodes[to].life.as_ref().unwrap();
        assert!(!receiver.set.is_removed(sender), "a frame of a removed node was delivered");
        let sent = self.sent.get_mut(&id).unwrap();
        assert!(!sent.forged, "I3: a frame with a foreign source was delivered");
        assert_eq!(self.nodes[sent.from].id, sender, "I3: sealed by another node");
        assert_eq!((sent.network, sent.source), (network, eth.source), "of another network");
        let times = sent.delivered.entry(to).or_default();
        *times += 1;
        assert_eq!(*times, 1, "a frame was delivered twice");
        if let Some((node, claim)) = sent.to.and_then(|to| self.endpoints.get(&to)) {
            assert_eq!((*node, claim.mac), (to, eth.destination), "delivered to somebody else");
        }
    }

    /// What an endpoint sends; returns the answer that its own node gave.
    pub(crate) fn send(
        &mut self,
        from: EndpointId,
        to: Option<EndpointId>,
        frame: Vec<u8>,
        id: u64,
    ) -> Option<Vec<u8>> {
        match self.offer(from, to, frame, id)? {
            Fate::Answered(answer) => Some(answer),
            _ => None,
        }
    }

    /// What becomes of a frame of an endpoint; nothing if its node does not live.
    pub(crate) fn offer(
        &mut self,
        from: EndpointId,
        to: Option<EndpointId>,
        frame: Vec<u8>,
        id: u64,
    ) -> Option<Fate> {
        let (n, claim) = self.endpoints.get(&from).cloned()?;
        let now = self.now;
        self.nodes[n].life.as_ref()?;
        let (network, source) = (claim.network, claim.mac);
        self.sent.insert(
            id,
            Sent { from: n, network, source, to, delivered: BTreeMap::new(), forged: false },
        );
        self.counts.frames += 1;
        let (fate, sealed) = self.with(n, |life| send(life, network, frame, now))?;
        self.counts.verdicts += 1;
        for (to, bytes) in sealed {
            self.counts.sealed += 1;
            self.fly_to(n, to, bytes);
        }
        Some(fate)
    }

    /// A member that lies: it seals a frame of another's source.
    pub(crate) fn forge(&mut self, n: usize, network: NetworkId, frame: &[u8], id: u64) {
        let now = self.now;
        let source = Ethernet::parse(frame).unwrap().source;
        self.sent.insert(
            id,
            Sent { from: n, network, source, to: None, delivered: BTreeMap::new(), forged: true },
        );
        let sealed = self.with(n, |life| {
            let Some(local) = life.locals.get(&network) else { return Vec::new() };
            let header = vxlan::header(local.table.spec().vni);
            let payload = [header.as_slice(), frame].concat();
            let peers: Vec<_> = life.peers.values().map(|(_, peer)| Arc::clone(peer)).collect();
            peers.iter().filter_map(|peer| seal(peer, &payload, now).ok().flatten()).collect()
        });
        for (to, bytes) in sealed.unwrap_or_default() {
            self.counts.sealed += 1;
            self.fly_to(n, to, bytes);
        }
    }

    /// Bytes that nobody sealed come to a node's data port.
    pub(crate) fn noise(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let time = self.time(to);
        let addr = self.nodes[from].addr;
        let mut bytes = bytes;
        if let Some(taken) = self.with(to, |life| take(life, addr, &mut bytes, time.now)) {
            assert!(taken.is_err(), "a datagram that nobody sealed was taken");
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        u64::try_from(self.sent.len()).unwrap()
    }

    /// Messages on their way.
    pub(crate) fn in_flight(&self) -> u64 {
        let data = self.flying.values().filter(|(_, _, message)| is_data(message));
        u64::try_from(data.count()).unwrap()
    }
}

fn is_data(message: &Message) -> bool {
    let Message::Datagram(bytes) = message else { return false };
    DataHeader::parse(bytes).is_ok_and(|header| header.flags & FLAG_CONTROL == 0)
}

type Sealed = (SocketAddr, Vec<u8>);

/// What became of a frame of a local endpoint.
pub(crate) enum Fate {
    /// Its own node answered.
    Answered(Vec<u8>),
    /// It went into the mesh, as it was then.
    Sealed(Vec<u8>),
    /// It went back to the local network, as it was then.
    Local(Vec<u8>),
    /// It went nowhere; and what its sender was told, if anything.
    Dropped(DropReason, Vec<u8>),
}

/// What a worker does with a frame of a local endpoint.
fn send(
    life: &mut Life,
    network: NetworkId,
    mut frame: Vec<u8>,
    now: Instant,
) -> (Fate, Vec<Sealed>) {
    let Some(local) = life.locals.get(&network) else {
        return (Fate::Dropped(DropReason::VniUnknown, Vec::new()), Vec::new());
    };
    let mut scratch = Scratch::new();
    let verdict = outbound(&local.table, &mut Frame::plain(&mut frame), &mut scratch, now, &mut ());
    let peers: Vec<Arc<Peer>> = match verdict {
        OutboundVerdict::Forward(peer) => vec![Arc::clone(peer)],
        OutboundVerdict::Flood(members) => {
            members.iter().map(|(_, peer)| Arc::clone(peer)).collect()
        }
        OutboundVerdict::Hairpin => return (Fate::Answered(scratch.reply().to_vec()), Vec::new()),
        OutboundVerdict::Deliver => return (Fate::Local(frame), Vec::new()),
        OutboundVerdict::Drop(reason) => {
            return (Fate::Dropped(reason, scratch.reply().to_vec()), Vec::new());
        }
    };
    let payload = [vxlan::header(local.table.spec().vni).as_slice(), &frame].concat();
    let mut sealed = Vec::new();
    for peer in peers {
        match seal(&peer, &payload, now) {
            Ok(Some(datagram)) => {
                sealed.push(datagram);
                if peer.sender(now).is_none_or(|key| !key.wants_rekey(now)) {
                    continue;
                }
            }
            Ok(None) => life.waiting_frames += i64::from(peer.stage(payload.clone()).is_ok()),
            Err(_counted) => {}
        }
        if peer.want() {
            life.sessions.handle_wanted(now, peer.id());
        }
    }
    (Fate::Sealed(frame), sealed)
}

/// Seals a payload; nothing if there is no key.
fn seal(peer: &Peer, payload: &[u8], now: Instant) -> Result<Option<Sealed>, DropReason> {
    let (Some(key), Some(to)) = (peer.sender(now), peer.addr()) else { return Ok(None) };
    let mut datagram = [&[0; HEADER_LEN], payload, &[0; TAG_LEN]].concat();
    key.reserve(1)?.seal(0, &mut datagram)?;
    peer.note_sent(now, u64::try_from(datagram.len()).unwrap(), true);
    Ok(Some((to, datagram)))
}

type Delivered = (NodeId, NetworkId, Vec<u8>);

/// What a worker does with a datagram.
fn take(
    life: &mut Life,
    from: SocketAddr,
    bytes: &mut [u8],
    now: Instant,
) -> Result<Option<Delivered>, DropReason> {
    if Kind::of(bytes)? != Kind::Data {
        life.sessions.handle_datagram(now, from, bytes)?;
        return Ok(None);
    }
    let receiver = DataHeader::parse(bytes)?.receiver;
    let key = life.index.get(receiver).ok_or(DropReason::UnknownIndex)?;
    let len = u64::try_from(bytes.len()).unwrap();
    let opened = key.open(now, bytes)?;
    let data = opened.flags & FLAG_CONTROL == 0;
    let peer = key.peer();
    peer.note_received(now, len, data);
    if opened.newest {
        peer.roam(from);
    }
    let sender = peer.id();
    if opened.confirms {
        life.sessions.handle_confirmed(now, receiver);
    }
    if opened.refresh && peer.want() {
        life.sessions.handle_wanted(now, sender);
    }
    if !data {
        if asks_for_echo(opened.payload) {
            life.sessions.handle_probe(now, sender, Probe::Keepalive);
        }
        return Ok(None);
    }
    let locals = &life.locals;
    let active = || locals.values().filter(|local| local.is_active).map(|local| &local.table);
    let table_of = |vni| active().find(|table| table.spec().vni == vni);
    let result = inbound_vxlan(table_of, &sender, opened.payload, &mut ());
    let network = result.vni.and_then(table_of).map(|table| table.spec().id);
    match (result.verdict, network) {
        (InboundVerdict::Deliver, Some(network)) => {
            Ok(Some((sender, network, result.frame.to_vec())))
        }
        (InboundVerdict::Drop(_), _) => Ok(None),
        (verdict, _) => panic!("a frame from the mesh became {verdict:?}"),
    }
}

/// An IPv4 or IPv6 packet with the marker in a UDP datagram.
pub(crate) fn udp(
    source: MacAddr,
    to: MacAddr,
    from_ip: IpAddr,
    to_ip: IpAddr,
    id: u64,
) -> Vec<u8> {
    let payload = [MARKER, &id.to_be_bytes()].concat();
    let builder = etherparse::PacketBuilder::ethernet2(source.0, to.0);
    let mut frame = Vec::new();
    match (from_ip, to_ip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            builder.ipv4(from.octets(), to.octets(), 64).udp(9, 9).write(&mut frame, &payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            builder.ipv6(from.octets(), to.octets(), 64).udp(9, 9).write(&mut frame, &payload)
        }
        _ => panic!("two IP versions in one packet"),
    }
    .unwrap();
    frame
}

/// An ARP request.
pub(crate) fn arp(source: MacAddr, from_ip: IpAddr, to_ip: IpAddr) -> Option<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from_ip, to_ip) else { return None };
    let head = [&[0xff; 6], source.0.as_slice(), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    Some([&head, source.0.as_slice(), &from.octets(), &[0; 6], &to.octets()].concat())
}
