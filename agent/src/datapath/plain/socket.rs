//! The plain port, and the ports from which plain frames are sent.
//!
//! RFC 7348 section 5 asks for a source port out of 49152..=65535 that is a hash of the inner
//! packet, so that routers spread flows over paths. A socket has one port, so there are [`FLOWS`]
//! of them. Nothing is read there.
//!
//! The plain port is without UDP_GRO. A burst of a program behind a kernel's VTEP on the same
//! machine reaches it uncut, as one VXLAN packet with a super-frame inside, and there the kernel
//! reports the length of the *inner* datagrams. Cut by that, the payload would be read as VXLAN
//! packets: any program could put frames into any plain network. Without UDP_GRO the kernel cuts it
//! itself.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use rand::RngExt;
use vxmesh_proto::{frame::ecn::Ecn, limits::PLAIN_PORT};

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
        listener.receive_singly()?;
        let senders = (0..FLOWS).map(|_| free_port()).collect::<io::Result<_>>()?;
        Ok(Self { listener, senders })
    }

    /// The plain port's.
    pub(super) const fn listener(&self) -> &UdpIo {
        &self.listener
    }

    pub(super) fn recv<const N: usize>(&self, batch: &mut Batch<N>) -> io::Result<()> {
        self.listener.recv(batch)
    }

    /// Sends one datagram of a flow, or with `segment` a train of datagrams of that length (the
    /// last may be shorter), all with this mark.
    pub(super) fn send(
        &self,
        flow: u64,
        to: IpAddr,
        datagrams: &[u8],
        segment: Option<usize>,
        ecn: Ecn,
    ) -> io::Result<()> {
        let count = u64::try_from(self.senders.len()).unwrap_or(u64::MAX).max(1);
        let at = usize::try_from(flow % count).unwrap_or_default();
        let sender = self.senders.get(at).ok_or(io::ErrorKind::NotConnected)?;
        sender.send(SocketAddr::new(to, PLAIN_PORT), datagrams, segment, ecn)
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
