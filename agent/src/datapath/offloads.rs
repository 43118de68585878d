//! Which offloads were refused at work after the kernel had granted them: each is switched off
//! where it failed, counted, and the traffic goes on without.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tracing::info;
use vxmesh_proto::frame::{GsoKind, coalesce::Accepts};

/// Destinations that are remembered; who comes when there are more is told once more.
const DESTINATIONS: usize = 1024;

/// What happened to the offloads.
#[derive(Debug, Default)]
pub(super) struct Offloads {
    tcp4: AtomicBool,
    tcp6: AtomicBool,
    udp: AtomicBool,
    /// Where datagrams go that are not cut on the way.
    singly: Mutex<HashSet<SocketAddr>>,
    refused: AtomicU64,
}

impl Offloads {
    /// What is left of what a device takes.
    pub(super) fn allow(&self, accepts: Accepts) -> Accepts {
        Accepts {
            tcp4: accepts.tcp4 && !self.tcp4.load(Ordering::Relaxed),
            tcp6: accepts.tcp6 && !self.tcp6.load(Ordering::Relaxed),
            udp: accepts.udp && !self.udp.load(Ordering::Relaxed),
        }
    }

    /// A TAP refused a super-frame whose packets it took one by one.
    pub(super) fn refuse_super_frames(&self, kind: GsoKind, error: &io::Error) {
        let (off, name) = match kind {
            GsoKind::Tcp4 => (&self.tcp4, "TCP over IPv4"),
            GsoKind::Tcp6 => (&self.tcp6, "TCP over IPv6"),
            GsoKind::Udp => (&self.udp, "UDP"),
        };
        if !off.swap(true, Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            info!(%error, "the kernel does not take joined packets of {name}; they are delivered singly");
        }
    }

    /// The interface to a destination refused datagrams that it was to cut, and took them one by
    /// one. Each thread finds out by itself.
    pub(super) fn refuse_segments(&self, to: SocketAddr, error: &io::Error) {
        let mut singly = self.singly.lock().unwrap_or_else(PoisonError::into_inner);
        if singly.len() >= DESTINATIONS {
            singly.clear();
        }
        if !singly.insert(to) {
            return;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        info!(%to, %error, "the underlay's interface does not cut datagrams; they are sent singly");
    }

    /// How often an offload was switched off.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
