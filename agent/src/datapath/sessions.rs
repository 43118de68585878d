//! The thread that owns the Noise sessions: handshakes, timers, and what the workers ask of it.
//!
//! It waits on one bounded queue until the next timer is due. Workers never wait for it: what the
//! queue does not take is counted and lost, and timers make up for it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::NodeId,
    session::{Peer, PeerConfig, Probe, SessionEvent, Sessions, SetPeerError},
};

use super::{Shared, drops::DropKey};
use crate::objects::unix_ms;

/// Inputs that wait for the thread: a fifth of a second of handshakes at their full rate, and 80
/// KiB.
pub(super) const QUEUE: usize = 512;
/// How long the thread waits when no timer is set.
const IDLE: Duration = Duration::from_secs(3600);

/// What the session thread is told.
pub(super) enum SessionInput {
    /// A handshake message.
    Datagram { from: SocketAddr, bytes: Vec<u8> },
    /// A worker has frames for this node and no key, or the key wants to be renewed.
    Wanted(NodeId),
    /// This is to be sent to this node.
    Probe(NodeId, Probe),
    /// A data message came from here under a key that there is not.
    UnknownIndex(SocketAddr),
    /// The first data message came under the key with this index.
    Confirmed(u32),
    /// This node is a peer, with these keys and addresses.
    SetPeer(PeerConfig, oneshot::Sender<Result<Arc<Peer>, SetPeerError>>),
    /// This node is elsewhere.
    Moved,
    /// This host stood still, or goes on from an image of its memory.
    Restored,
    /// This node is none any more.
    RemovePeer(NodeId),
    /// The data path stops.
    Stop,
}

/// Runs until it is told to stop.
pub(super) fn run(mut sessions: Sessions, inputs: &Receiver<SessionInput>, shared: &Shared) {
    loop {
        let due = sessions.poll_timeout();
        let wait = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
        match inputs.recv_timeout(wait) {
            Ok(SessionInput::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(input) => handle(&mut sessions, input, shared),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // After an input too: a flood of inputs must not hold up the timers.
        sessions.handle_timeout(Instant::now());
        while let Some(transmit) = sessions.poll_transmit() {
            // What does not go is counted.
            let _sent = shared.send(transmit.to, &transmit.bytes, None);
        }
        while let Some(event) = sessions.poll_event() {
            report(event, shared);
        }
    }
}

fn handle(sessions: &mut Sessions, input: SessionInput, shared: &Shared) {
    let now = Instant::now();
    match input {
        SessionInput::Datagram { from, bytes } => {
            if let Err(reason) = sessions.handle_datagram(now, from, &bytes) {
                shared.drops.unknown(reason);
            }
        }
        SessionInput::Wanted(node) => sessions.handle_wanted(now, node),
        SessionInput::Probe(node, probe) => sessions.handle_probe(now, node, probe),
        SessionInput::UnknownIndex(from) => sessions.handle_unknown_index(now, from),
        SessionInput::Confirmed(index) => sessions.handle_confirmed(now, index),
        // Who asked may have gone away, which changes nothing here.
        SessionInput::SetPeer(config, answer) => drop(answer.send(sessions.set_peer(now, config))),
        SessionInput::Moved => sessions.handle_moved(now),
        SessionInput::Restored => {
            sessions.handle_restored(now, Duration::from_millis(unix_ms()));
        }
        SessionInput::RemovePeer(node) => sessions.remove_peer(node),
        SessionInput::Stop => {}
    }
}

fn report(event: SessionEvent, shared: &Shared) {
    match event {
        SessionEvent::Established { peer } => debug!(%peer, "session established"),
        SessionEvent::Restarted { peer } => info!(peer = %peer.short(), "peer was started anew"),
        SessionEvent::Unreachable { peer } => {
            warn!(peer = %peer.short(), "peer does not answer handshakes");
        }
        SessionEvent::Failed { peer, reason } => {
            warn!(peer = %peer.short(), %reason, "handshake cannot begin");
        }
        SessionEvent::Dropped { peer, reason, count } => {
            let key = DropKey::of(reason).with_peer(peer);
            shared.drops.add(key, u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}
