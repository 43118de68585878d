//! Nodes, a worker for each, and the link between them.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::super::{
    wire::{DataHeader, FLAG_CONTROL, HEADER_LEN, Kind, TAG_LEN},
    *,
};
use crate::{addr::NodeId, reason::DropReason};

/// splitmix64: good enough to vary tests, the same each time.
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl Entropy for Random {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        for byte in out {
            *byte = u8::try_from(self.next() & 0xff).unwrap();
        }
        Ok(())
    }
}

pub(super) fn id(n: usize) -> NodeId {
    NodeId::of_public_key(&[u8::try_from(n).unwrap()])
}

pub(super) fn addr(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(n).unwrap()], 7761))
}

pub(super) fn private(n: usize) -> [u8; 32] {
    [u8::try_from(n + 1).unwrap(); 32]
}

pub(super) struct Node {
    pub(super) sessions: Sessions,
    pub(super) table: Arc<IndexTable>,
    /// Payloads of data messages that were opened, with their sender.
    pub(super) inbox: Vec<(NodeId, Vec<u8>)>,
    pub(super) drops: BTreeMap<DropReason, usize>,
    pub(super) events: Vec<SessionEvent>,
    pub(super) inits_sent: usize,
}

/// What the link does to a datagram.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    /// Of a thousand.
    pub(super) loss: u64,
    /// Of a thousand.
    pub(super) doubling: u64,
}

impl Link {
    pub(super) const GOOD: Self =
        Self { delay: Duration::from_millis(1), jitter: Duration::ZERO, loss: 0, doubling: 0 };
    pub(super) const BAD: Self = Self {
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(40),
        loss: 100,
        doubling: 100,
    };
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) link: Link,
    pub(super) random: Random,
    /// (due, sequence) -> (from, to, bytes)
    pub(super) flying: BTreeMap<(Instant, u64), (usize, usize, Vec<u8>)>,
    sequence: u64,
    /// Everything that was ever sent.
    pub(super) wiretap: Vec<(usize, usize, Vec<u8>)>,
    pub(super) limits: Option<KeyLimits>,
    pub(super) aes: Vec<bool>,
    /// By how much each node's wall clock is behind when it starts.
    pub(super) behind: Vec<Duration>,
    boots: u64,
}

impl World {
    pub(super) fn new(count: usize, link: Link, seed: u64) -> Self {
        Self::with(count, link, seed, None)
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time begins at some instant")]
    pub(super) fn with(count: usize, link: Link, seed: u64, limits: Option<KeyLimits>) -> Self {
        let start = Instant::now();
        let mut world = Self {
            now: start,
            start,
            nodes: Vec::new(),
            link,
            random: Random(seed),
            flying: BTreeMap::new(),
            sequence: 0,
            wiretap: Vec::new(),
            limits,
            aes: vec![true; count],
            behind: vec![Duration::ZERO; count],
            boots: 0,
        };
        world.nodes = (0..count).map(|n| world.boot(n)).collect();
        for n in 0..count {
            world.introduce(n);
        }
        world
    }

    fn boot(&mut self, n: usize) -> Node {
        self.boots += 1;
        let config = Config {
            static_private: Zeroizing::new(private(n)),
            aes: self.aes[n],
            mesh: id(200),
            psk: Psk { epoch: 3, key: [9; 32] },
            previous_psk: None,
            boot_id: self.boots.to_le_bytes(),
            wall_at_start: Duration::from_secs(1_800_000_000) + (self.now - self.start)
                - self.behind[n],
            key_limits: self.limits,
        };
        let entropy = Random(self.random.next());
        let sessions = Sessions::new(config, Box::new(entropy), self.now);
        let table = sessions.index_table();
        Node {
            sessions,
            table,
            inbox: Vec::new(),
            drops: BTreeMap::new(),
            events: Vec::new(),
            inits_sent: 0,
        }
    }

    pub(super) fn peer_config(&self, n: usize) -> PeerConfig {
        PeerConfig {
            id: id(n),
            noise_public: noise::public_key(&private(n)),
            addr: Some(addr(n)),
            aes: self.aes[n],
        }
    }

    fn introduce(&mut self, n: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != n) {
            let config = self.peer_config(other);
            self.nodes[n].sessions.set_peer(self.now, config).unwrap();
        }
    }

    /// The node forgets everything but its key.
    pub(super) fn restart(&mut self, n: usize) {
        let mut fresh = self.boot(n);
        fresh.inbox = std::mem::take(&mut self.nodes[n].inbox);
        self.nodes[n] = fresh;
        self.introduce(n);
    }

    pub(super) fn peer(&self, at: usize, of: usize) -> Arc<Peer> {
        self.nodes[at].sessions.peer(id(of)).unwrap()
    }

    /// What a worker does with a payload.
    pub(super) fn send(&mut self, from: usize, to: usize, payload: &[u8]) {
        let peer = self.peer(from, to);
        let sent = peer.sender(self.now).is_some_and(|key| {
            let Ok(mut batch) = key.reserve(1) else { return false };
            let mut datagram = vec![0; HEADER_LEN];
            datagram.extend(payload);
            datagram.extend([0; TAG_LEN]);
            batch.seal(0, &mut datagram).unwrap();
            peer.note_sent(self.now, datagram.len() as u64, true);
            self.fly(from, to, datagram);
            !key.wants_rekey(self.now)
        });
        if peer.sender(self.now).is_none() {
            if let Err(reason) = peer.stage(payload.to_vec()) {
                *self.nodes[from].drops.entry(reason).or_default() += 1;
            }
        } else if sent {
            return;
        }
        if peer.want() {
            self.nodes[from].sessions.handle_wanted(self.now, id(to));
        }
        self.collect(from);
    }

    /// Puts a datagram on the link.
    pub(super) fn fly(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.wiretap.push((from, to, bytes.clone()));
        if self.random.below(1000) < self.link.loss {
            return;
        }
        let copies = if self.random.below(1000) < self.link.doubling { 2 } else { 1 };
        for _ in 0..copies {
            let span = u64::try_from(self.link.jitter.as_micros()).unwrap() + 1;
            let due = self.now + self.link.delay + Duration::from_micros(self.random.below(span));
            self.sequence += 1;
            self.flying.insert((due, self.sequence), (from, to, bytes.clone()));
        }
    }

    /// Hands a datagram to a node as its workers would.
    pub(super) fn deliver(
        &mut self,
        from: SocketAddr,
        to: usize,
        mut bytes: Vec<u8>,
    ) -> Result<(), DropReason> {
        let result = self.try_deliver(from, to, &mut bytes);
        if let Err(reason) = result {
            *self.nodes[to].drops.entry(reason).or_default() += 1;
        }
        self.collect(to);
        result
    }

    fn try_deliver(
        &mut self,
        from: SocketAddr,
        to: usize,
        bytes: &mut [u8],
    ) -> Result<(), DropReason> {
        let now = self.now;
        let node = &mut self.nodes[to];
        if Kind::of(bytes)? != Kind::Data {
            return node.sessions.handle_datagram(now, from, bytes);
        }
        let header = DataHeader::parse(bytes)?;
        let Some(key) = node.table.get(header.receiver) else {
            node.sessions.handle_unknown_index(now, from);
            return Err(DropReason::UnknownIndex);
        };
        let length = bytes.len() as u64;
        let opened = key.open(now, bytes)?;
        let data = opened.flags & FLAG_CONTROL == 0;
        key.peer().note_received(now, length, data);
        if opened.newest {
            key.peer().roam(from);
        }
        if data {
            node.inbox.push((key.peer().id(), opened.payload.to_vec()));
        }
        let (confirms, refresh) = (opened.confirms, opened.refresh);
        if confirms {
            node.sessions.handle_confirmed(now, header.receiver);
        }
        if refresh && key.peer().want() {
            node.sessions.handle_wanted(now, key.peer().id());
        }
        Ok(())
    }

    /// Polls a node's outputs.
    pub(super) fn collect(&mut self, n: usize) {
        let mut out = VecDeque::new();
        while let Some(transmit) = self.nodes[n].sessions.poll_transmit() {
            out.push_back(transmit);
        }
        while let Some(event) = self.nodes[n].sessions.poll_event() {
            self.nodes[n].events.push(event);
        }
        for transmit in out {
            if Kind::of(&transmit.bytes) == Ok(Kind::Init) {
                self.nodes[n].inits_sent += 1;
            }
            let to = (0..self.nodes.len()).find(|other| addr(*other) == transmit.to);
            if let Some(to) = to {
                self.fly(n, to, transmit.bytes);
            }
        }
    }

    /// Lets `span` pass.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let timer = self.nodes.iter().filter_map(|node| node.sessions.poll_timeout()).min();
            let arrival = self.flying.first_key_value().map(|((due, _), _)| *due);
            let Some(next) = timer.into_iter().chain(arrival).min().filter(|next| *next <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            if arrival.is_some_and(|due| due <= self.now) {
                let (_, (from, to, bytes)) = self.flying.pop_first().unwrap();
                // Why it was refused stands in the node's drops.
                let _counted = self.deliver(addr(from), to, bytes);
            } else {
                for n in 0..self.nodes.len() {
                    self.nodes[n].sessions.handle_timeout(self.now);
                    self.collect(n);
                }
            }
        }
        self.now = end;
    }

    pub(super) fn received(&self, at: usize) -> Vec<&[u8]> {
        self.nodes[at].inbox.iter().map(|(_, payload)| payload.as_slice()).collect()
    }

    pub(super) fn establish(&mut self, a: usize, b: usize) {
        self.send(a, b, b"hello");
        self.run(Duration::from_millis(500));
        for (at, of) in [(a, b), (b, a)] {
            assert_eq!(self.peer(at, of).state(self.now), PeerState::Established);
        }
    }

    pub(super) fn dropped(&self, at: usize, reason: DropReason) -> usize {
        self.nodes[at].drops.get(&reason).copied().unwrap_or(0)
    }
}
