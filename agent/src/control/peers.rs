//! All peers: which are wanted, how each is connected, and which of two connections counts.
//!
//! Both nodes may dial at once. The connection that the node with the smaller id dialed is the
//! favoured one:
//!
//! ```text
//! the larger node  : holds a favoured one -> closes its own after DRAIN
//! the smaller node : holds both for CONVERGE -> the older one is a leftover of the peer's earlier life, closes it
//! ```
//!
//! Both serve requests on either meanwhile, so nothing is lost while they agree.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, VarInt};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use vxmesh_proto::{
    addr::NodeId,
    control::{GOSSIP_LEN, PUSH_LEN, Push, REQUEST_LEN, Request, Response, encode},
};

use super::{
    ControlError,
    endpoint::{Inner, canonical},
    limits::{CONVERGE, DRAIN, REDIAL, REDIAL_MAX},
    link,
    outbox::{Message, Outbox},
    probe,
};
use crate::identity::Member;

/// How it stands with one peer.
#[derive(Clone, Debug)]
pub struct PeerState {
    /// Who.
    pub node: NodeId,
    /// Where: as seen on the connection, else as told by [`super::Control::set_peers`].
    pub addr: Option<SocketAddr>,
    /// Whether a connection is to be kept.
    pub wanted: bool,
    /// Whether there is one.
    pub connected: bool,
    /// Since when the newest one is there: a node that was started anew has a new one.
    pub since: Option<Instant>,
    /// Its round trip time.
    pub rtt: Option<Duration>,
    /// One-way messages that were lost on this side.
    pub dropped: u64,
    /// Why the last attempt to connect failed.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug)]
struct Link {
    connection: Connection,
    /// By this node.
    dialed: bool,
    since: Instant,
    member: Arc<Member>,
}

impl Link {
    fn alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<SocketAddr>,
    links: Vec<Link>,
    last_error: Option<String>,
    /// Nobody wants it and nothing connects it: its tasks end.
    gone: bool,
}

#[derive(Debug)]
struct Peer {
    node: NodeId,
    outbox: Outbox,
    state: Mutex<State>,
    /// Counts changes of `state`.
    changed: watch::Sender<u64>,
}

impl Peer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps why an attempt to connect failed, and tells of it once.
    fn failed(&self, (name, addr): (&str, SocketAddr), reason: String) {
        let mut state = self.state();
        if state.last_error.as_ref() != Some(&reason) {
            tracing::info!(node = name, id = %self.node.short(), %addr, reason, "cannot connect; trying again");
        }
        state.last_error = Some(reason);
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits until `look` finds something; nothing once the peer is gone.
    async fn wait<R>(&self, mut look: impl FnMut(&State) -> Option<R>) -> Option<R> {
        let mut changes = self.changed.subscribe();
        loop {
            {
                let state = self.state();
                if state.gone {
                    return None;
                }
                if let Some(found) = look(&state) {
                    return Some(found);
                }
            }
            changes.changed().await.ok()?;
        }
    }
}

/// The peers of this node.
#[derive(Debug)]
pub(super) struct Peers {
    me: NodeId,
    entries: Mutex<HashMap<NodeId, Arc<Peer>>>,
    inner: OnceLock<Weak<Inner>>,
}

impl Peers {
    pub(super) fn new(me: NodeId) -> Self {
        Self { me, entries: Mutex::new(HashMap::new()), inner: OnceLock::new() }
    }

    /// Tells it what it belongs to, once that exists.
    pub(super) fn attach(&self, inner: &Arc<Inner>) {
        self.inner.get_or_init(|| Arc::downgrade(inner));
    }

    /// The peers to stay connected with.
    pub(super) fn set_wanted(&self, wanted: HashMap<NodeId, SocketAddr>) {
        for (node, addr) in wanted.iter().filter(|(node, _)| **node != self.me) {
            if let Some(peer) = self.entry(*node) {
                peer.state().wanted = Some(*addr);
                peer.touch();
            }
        }
        for peer in self.all() {
            if !wanted.contains_key(&peer.node) {
                peer.state().wanted = None;
                peer.touch();
                self.forget_if_idle(&peer);
            }
        }
    }

    /// Takes a connection whose certificate was checked, and serves it until it ends.
    pub(super) async fn adopt(
        &self,
        connection: Connection,
        dialed: bool,
        member: Member,
        certificate: &[u8],
    ) {
        let Some(inner) = self.inner.get().and_then(Weak::upgrade) else { return };
        if let Some(word) = inner.service().removal(member.node_id) {
            connection.close(link::CLOSE_REMOVED, word.as_bytes());
            return;
        }
        let Some(peer) = self.entry(member.node_id) else {
            connection.close(link::CLOSE_STOPPED, b"stopped");
            return;
        };
        link::widen(&connection);
        let addr = canonical(connection.remote_address());
        inner.service().handle_connected(&member, certificate, addr);
        self.add(&peer, connection.clone(), dialed, Arc::new(member));
        tokio::select! {
            () = link::serve(&inner, peer.node, &connection) => {}
            () = probe::until_unanswered(peer.node, &connection) => {
                connection.close(link::CLOSE_UNANSWERED, b"no answer");
            }
        }
        let last = {
            let mut state = peer.state();
            state.links.retain(|link| link.connection.stable_id() != connection.stable_id());
            if let Some(reason) = connection.close_reason() {
                state.last_error = Some(reason.to_string());
            }
            state.links.is_empty()
        };
        if let Some(ConnectionError::ApplicationClosed(close)) = connection.close_reason()
            && close.error_code == link::CLOSE_REMOVED
        {
            let word = String::from_utf8_lossy(&close.reason).into_owned();
            inner.service().handle_removal(peer.node, word);
        }
        peer.touch();
        if last {
            inner.service().handle_disconnected(peer.node);
            self.forget_if_idle(&peer);
        }
    }

    pub(super) async fn request(
        &self,
        node: NodeId,
        request: &Request,
        patience: Duration,
    ) -> Result<Response, ControlError> {
        let bytes = encode(request, REQUEST_LEN)?;
        let peer = self.get(node).ok_or(ControlError::NotConnected(node))?;
        let mut connected = false;
        let asked = timeout(patience, async {
            let me = self.me;
            let connection = peer.wait(|state| current(me, node, &state.links)).await;
            let connection = connection.ok_or(ControlError::NotConnected(node))?;
            connected = true;
            link::ask(&connection, node, &bytes).await
        });
        match asked.await {
            Ok(result) => result,
            Err(_) if connected => Err(ControlError::Timeout(node, patience)),
            Err(_) => Err(ControlError::NotConnected(node)),
        }
    }

    pub(super) fn send_gossip(&self, node: NodeId, bytes: Bytes) -> bool {
        let Some(peer) = self.get(node) else { return false };
        let fits = bytes.len() <= GOSSIP_LEN;
        if !fits || current(self.me, node, &peer.state().links).is_none() {
            peer.outbox.count_drop();
            return false;
        }
        peer.outbox.put(Message::Gossip(bytes));
        true
    }

    pub(super) fn push(&self, node: NodeId, push: &Push) -> Result<bool, ControlError> {
        let bytes = encode(push, PUSH_LEN)?;
        let Some(peer) = self.get(node) else { return Ok(false) };
        peer.outbox.put(Message::Push(bytes.into()));
        Ok(true)
    }

    pub(super) fn states(&self) -> Vec<PeerState> {
        let mut states: Vec<PeerState> = self
            .all()
            .iter()
            .map(|peer| {
                let state = peer.state();
                let connection = current(self.me, peer.node, &state.links);
                PeerState {
                    node: peer.node,
                    addr: connection
                        .as_ref()
                        .map(|connection| canonical(connection.remote_address()))
                        .or(state.wanted),
                    wanted: state.wanted.is_some(),
                    connected: connection.is_some(),
                    since: state.links.iter().filter(|it| it.alive()).map(|it| it.since).max(),
                    rtt: connection.map(|connection| connection.rtt()),
                    dropped: peer.outbox.dropped(),
                    last_error: state.last_error.clone(),
                }
            })
            .collect();
        states.sort_by_key(|state| state.node);
        states
    }

    /// The round trip time of the connection with a node, if there is one.
    pub(super) fn round_trip(&self, node: NodeId) -> Option<Duration> {
        let peer = self.get(node)?;
        let connection = current(self.me, node, &peer.state().links)?;
        Some(connection.rtt())
    }

    pub(super) fn member(&self, node: NodeId) -> Option<Member> {
        let peer = self.get(node)?;
        let state = peer.state();
        state.links.iter().rev().find(|link| link.alive()).map(|link| (*link.member).clone())
    }

    /// Connected members whose certificate lets them issue others.
    pub(super) fn issuers(&self) -> Vec<NodeId> {
        let is_issuer = |peer: &Arc<Peer>| {
            peer.state().links.iter().any(|link| link.alive() && link.member.issuer)
        };
        self.all().iter().filter(|peer| is_issuer(peer)).map(|peer| peer.node).collect()
    }

    pub(super) fn disconnect(&self, node: NodeId) {
        if let Some(peer) = self.get(node) {
            close(&peer.state().links, link::CLOSE_DISCONNECTED, b"disconnected");
        }
    }

    /// Ends all connections; those that are wanted are dialed at once.
    pub(super) fn redial(&self) {
        for peer in self.all() {
            close(&peer.state().links, link::CLOSE_DISCONNECTED, b"moved");
            peer.touch();
        }
    }

    /// Ends the connections with a node for good, with the reason.
    pub(super) fn expel(&self, node: NodeId, word: &str) {
        if let Some(peer) = self.get(node) {
            close(&peer.state().links, link::CLOSE_REMOVED, word.as_bytes());
        }
    }

    /// Ends the tasks of all peers.
    pub(super) fn stop(&self) {
        let peers: Vec<Arc<Peer>> = self.lock().drain().map(|(_, peer)| peer).collect();
        for peer in peers {
            {
                let mut state = peer.state();
                state.wanted = None;
                state.gone = true;
                close(&state.links, link::CLOSE_STOPPED, b"stopped");
            }
            peer.touch();
        }
    }

    fn add(&self, peer: &Arc<Peer>, connection: Connection, dialed: bool, member: Arc<Member>) {
        let me = self.me;
        let both = {
            let mut state = peer.state();
            let old: Vec<Link> = state.links.extract_if(.., |link| link.dialed == dialed).collect();
            close(&old, link::CLOSE_SUPERSEDED, b"superseded");
            state.links.push(Link { connection, dialed, since: Instant::now(), member });
            state.last_error = None;
            state.links.len() > 1
        };
        peer.touch();
        if both {
            let peer = Arc::clone(peer);
            tokio::spawn(async move {
                sleep(if me > peer.node { DRAIN } else { CONVERGE }).await;
                close(
                    &superfluous(me, peer.node, &peer.state().links),
                    link::CLOSE_SUPERSEDED,
                    b"superseded",
                );
            });
        }
    }

    fn entry(&self, node: NodeId) -> Option<Arc<Peer>> {
        let inner = self.inner.get().and_then(Weak::upgrade)?;
        if inner.is_stopped() || node == self.me {
            return None;
        }
        let mut entries = self.lock();
        if let Some(peer) = entries.get(&node) {
            return Some(Arc::clone(peer));
        }
        let peer = Arc::new(Peer {
            node,
            outbox: Outbox::default(),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        entries.insert(node, Arc::clone(&peer));
        drop(entries);
        tokio::spawn(keep_connected(inner, Arc::clone(&peer)));
        tokio::spawn(drain(self.me, Arc::clone(&peer)));
        Some(peer)
    }

    fn forget_if_idle(&self, peer: &Arc<Peer>) {
        let mut entries = self.lock();
        let mut state = peer.state();
        if state.wanted.is_none() && state.links.is_empty() && !state.gone {
            state.gone = true;
            entries.remove(&peer.node);
            drop(state);
            drop(entries);
            peer.touch();
        }
    }

    fn get(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.lock().get(&node).cloned()
    }

    fn all(&self) -> Vec<Arc<Peer>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Peer>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dials while the peer is wanted and not connected, ever more slowly.
async fn keep_connected(inner: Arc<Inner>, peer: Arc<Peer>) {
    let mut pause = REDIAL;
    let unconnected = |state: &State| {
        state.wanted.filter(|_| current(inner.node_id(), peer.node, &state.links).is_none())
    };
    while let Some(addr) = peer.wait(unconnected).await {
        let began = Instant::now();
        // A peer that is elsewhere by now is not waited for where it was.
        let moved =
            || peer.wait(move |state| state.wanted.filter(|wanted| *wanted != addr).map(drop));
        let dialed = tokio::select! {
            dialed = inner.dial(peer.node, addr) => dialed,
            _ = moved() => continue,
        };
        match dialed {
            // Served in here until it ends.
            Ok((connection, member, der)) => {
                inner.peers().adopt(connection, true, member, &der).await;
            }
            Err(reason) => peer.failed((&inner.service().name_of(peer.node), addr), reason),
        }
        // Two nodes that start together do not stay in step, and a peer that hangs up at once is
        // not pestered.
        pause = if began.elapsed() > REDIAL_MAX { REDIAL } else { (pause * 2).min(REDIAL_MAX) };
        tokio::select! {
            () = sleep(rand::random_range(pause / 2..pause)) => {}
            _ = moved() => {}
        }
    }
}

/// Sends what is queued, one message after the other.
async fn drain(me: NodeId, peer: Arc<Peer>) {
    loop {
        let message = tokio::select! {
            message = peer.outbox.take() => message,
            _ = peer.wait(|_| None::<()>) => return,
        };
        let connection = match &message {
            Message::Gossip(_) => current(me, peer.node, &peer.state().links),
            Message::Push(_) => peer.wait(|state| current(me, peer.node, &state.links)).await,
        };
        let sent = match connection {
            Some(connection) => link::send(&connection, &message).await,
            None => false,
        };
        if !sent {
            peer.outbox.count_drop();
        }
    }
}

/// The connection to send on: the favoured one, unless a much newer one shows that it is a
/// leftover.
fn current(me: NodeId, node: NodeId, links: &[Link]) -> Option<Connection> {
    let newest = links.iter().filter(|link| link.alive()).max_by_key(|link| link.since)?;
    let favoured = links.iter().find(|link| link.alive() && link.dialed == (me < node));
    let chosen = favoured
        .filter(|link| newest.since.saturating_duration_since(link.since) < CONVERGE)
        .unwrap_or(newest);
    Some(chosen.connection.clone())
}

/// What to close of two connections that have lived side by side for long enough.
fn superfluous(me: NodeId, node: NodeId, links: &[Link]) -> Vec<Link> {
    let alive: Vec<&Link> = links.iter().filter(|link| link.alive()).collect();
    let Some(newest) = alive.iter().map(|link| link.since).max() else { return Vec::new() };
    if alive.len() < 2 {
        return Vec::new();
    }
    let is_superfluous = |link: &&&Link| if me > node { link.dialed } else { link.since < newest };
    alive.iter().filter(is_superfluous).map(|link| (*link).clone()).collect()
}

fn close(links: &[Link], code: VarInt, reason: &[u8]) {
    for link in links {
        link.connection.close(code, reason);
    }
}
