//! Keys between two nodes: Noise handshakes, key slots, timers, replay windows. Pure: time,
//! randomness and datagrams come in as arguments.
//!
//! Two halves. [`Sessions`] is the slow path with one owner: it takes handshake messages, wishes
//! and timeouts, and gives handshake messages, keepalives and events. [`IndexTable`], [`Keypair`]
//! and [`Peer`] are the fast path: the workers share them without a lock. A frame meets them in
//! this order:
//!
//! ```text
//! out: Peer::sender -> Keypair::reserve -> Batch::seal -> Peer::note_sent      (no sender: Peer::stage, Peer::want)
//! in : wire::Kind::of -> DataHeader::parse -> IndexTable::get -> Keypair::open -> Peer::note_received, Peer::roam
//! ```
//!
//! The timers are WireGuard's (<https://www.wireguard.com/papers/wireguard.pdf> section 6); the
//! bytes are in `docs/protocol.md`. Nothing here sends a payload in clear: there is no function
//! that could.

mod entry;
mod handshake;
mod keypair;
pub mod noise;
mod peer;
mod replay;
mod sessions;
mod stamp;
mod table;
#[cfg(test)]
mod tests;
mod timers;
pub mod wire;

use std::time::Duration;

pub use self::{
    keypair::{Batch, KeyLimits, Keypair, Opened},
    noise::{Entropy, NoEntropy, Psk, Suite},
    peer::{Peer, PeerState},
    replay::{COUNTERS, ReplayWindow, Replayed, WINDOW},
    sessions::{Config, PeerConfig, SessionEvent, Sessions, SetPeerError, Transmit},
    table::IndexTable,
    timers::Probe,
};

/// The initiator of a key asks for the next one when it sends after this time.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// A key neither seals nor opens after this time.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// An unanswered initiation is sent anew after this time and up to [`REKEY_JITTER`] more.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// An initiation that is unanswered for this time, longer than most round trips, is sent anew for
/// who looks whether packets pass.
pub const PROBE_AGAIN: Duration = Duration::from_millis(700);
/// Spreads initiations of two nodes that began at once.
pub const REKEY_JITTER: Duration = Duration::from_millis(333);
/// Initiations until a peer counts as unreachable.
pub const MAX_TRIES: u32 = 18;
/// After these, the pause before one more try; it doubles up to [`BACKOFF_MAX`].
pub const BACKOFF_MIN: Duration = Duration::from_secs(30);
/// The longest pause between tries.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Who received data and has nothing to send answers with a keepalive after this time.
pub const KEEPALIVE: Duration = Duration::from_secs(10);
/// Keys are erased after this time even when nothing takes their place.
pub const ERASE_AFTER: Duration = Duration::from_secs(540);
/// A peer's initiations come no closer together than this.
pub const INIT_INTERVAL: Duration = Duration::from_millis(20);
