//! The plain port, and the ports from which plain frames are sent.
//!
//! RFC 7348 section 5 asks for a source port out of 49152..=65535 that is a hash of the inner packet, so that routers spread
//! flows over paths. A socket has one port, so there are [`FLOWS`] of them. Nothing is read there.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use rand::RngExt;
use vxmesh_proto::limits::PLAIN_PORT;

use crate::datapath::udp::{Batch, UdpIo};

/// Source ports: as many paths as a router with a full group of equal routes has on most devices.
const FLOWS: usize = 16;
/// The dynamic ports (RFC 6335 section 6).
const DYNAMIC: std::ops::RangeInclusive<u16> = 49152..=65535;
/// Attempts to find a free one of them.
const TRIES: usize = 64;

/// The sockets of plain networks.
pub(super) struct Sockets {
    listener: UdpIo,
    senders: Vec<UdpIo>,
}

impl Sockets {
    /// Opens them in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let listener = UdpIo::bind(PLAIN_PORT)?;
        listener.accept_no_checksum()?;
        let senders = (0..FLOWS).map(|_| free_port()).collect::<io::Result<_>>()?;
        Ok(Self { listener, senders })
    }

    pub(super) fn recv(&self, batch: &mut Batch) -> io::Result<()> {
        self.listener.recv(batch)
    }

    /// Sends one datagram of a flow, or with `segment` a train of datagrams of that length (the last may be shorter).
    pub(super) fn send(
        &self,
        flow: u64,
        to: IpAddr,
        datagrams: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let count = u64::try_from(self.senders.len()).unwrap_or(u64::MAX).max(1);
        let at = usize::try_from(flow % count).unwrap_or_default();
        let sender = self.senders.get(at).ok_or(io::ErrorKind::NotConnected)?;
        sender.send(SocketAddr::new(to, PLAIN_PORT), datagrams, segment)
    }
}

impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn free_port() -> io::Result<UdpIo> {
    let mut rng = rand::rng();
    let mut tried = UdpIo::bind_sender(rng.random_range(DYNAMIC));
    for _ in 0..TRIES {
        match tried {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tried = UdpIo::bind_sender(rng.random_range(DYNAMIC));
            }
            result => return result,
        }
    }
    tried
}
