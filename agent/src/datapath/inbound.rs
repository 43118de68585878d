//! The worker that takes datagrams in: UDP -> open -> `inbound` -> TAP.
//!
//! Data messages are opened here; handshake messages go to the session thread through a bounded queue, so that a flood of
//! them costs the data path one copy each at most.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Instant};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use vxmesh_proto::{
    addr::NodeId,
    datapath::{DropReason, Verdict, inbound},
    session::{
        Keypair, SessionDrop,
        wire::{DataHeader, FLAG_CONTROL, Kind},
    },
    wire::vxlan,
};

use super::{Shared, drops::DropKey, seal::want, sessions::SessionInput, udp::Batch};

/// Batches taken before the worker looks whether it should stop.
const BUDGET: usize = 16;

/// Runs until the data path stops.
pub(super) fn run(shared: &Shared) -> io::Result<()> {
    let mut batch = Batch::default();
    while wait(shared)? {
        for _ in 0..BUDGET {
            match shared.udp.recv(&mut batch) {
                Ok(()) => {
                    let now = Instant::now();
                    for (from, datagram) in batch.datagrams() {
                        take(shared, from, datagram, now);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The kernel reports an ICMP error of an earlier datagram here; it says nothing about this socket.
                Err(_icmp) => {}
            }
        }
    }
    Ok(())
}

/// Waits for datagrams; false when the data path stops.
fn wait(shared: &Shared) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(shared.udp.as_fd(), PollFlags::POLLIN),
        PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let [_udp, stop] = &fds;
    Ok(!stop.any().unwrap_or(false))
}

fn take(shared: &Shared, from: SocketAddr, datagram: &mut [u8], now: Instant) {
    let taken = match Kind::of(datagram) {
        Ok(Kind::Data) => data(shared, from, datagram, now),
        Ok(Kind::Init | Kind::Response | Kind::Cookie) => {
            shared.to_sessions(SessionInput::Datagram { from, bytes: datagram.to_vec() });
            Ok(())
        }
        Err(reason) => Err(reason),
    };
    if let Err(reason) = taken {
        shared.drops.unknown(reason.as_str());
    }
}

fn data(
    shared: &Shared,
    from: SocketAddr,
    datagram: &mut [u8],
    now: Instant,
) -> Result<(), SessionDrop> {
    let index = DataHeader::parse(datagram)?.receiver;
    let keypair = shared.index.get(index).ok_or(SessionDrop::UnknownIndex)?;
    if let Err(reason) = open(shared, &keypair, from, datagram, now) {
        let peer = Some(keypair.peer().id());
        shared.drops.add(DropKey { reason: reason.as_str(), network: None, peer }, 1);
    }
    Ok(())
}

fn open(
    shared: &Shared,
    keypair: &Keypair,
    from: SocketAddr,
    datagram: &mut [u8],
    now: Instant,
) -> Result<(), SessionDrop> {
    let len = u64::try_from(datagram.len()).unwrap_or(u64::MAX);
    let peer = keypair.peer();
    let opened = keypair.open(now, datagram)?;
    let is_data = opened.flags & FLAG_CONTROL == 0;
    peer.note_received(now, len, is_data);
    if opened.newest {
        peer.roam(from);
    }
    if opened.confirms {
        shared.to_sessions(SessionInput::Confirmed(keypair.local_index()));
    }
    if opened.refresh {
        want(shared, peer);
    }
    if is_data {
        deliver(shared, peer.id(), opened.payload);
    }
    Ok(())
}

fn deliver(shared: &Shared, from: NodeId, packet: &mut [u8]) {
    let lost = |reason: DropReason| {
        shared.drops.add(DropKey { reason: reason.as_str(), network: None, peer: Some(from) }, 1);
    };
    let Ok((vni, frame)) = vxlan::decap(packet) else {
        return lost(DropReason::MalformedVxlan);
    };
    let ports = shared.ports.load();
    let Some(port) = ports.get(&vni) else {
        return lost(DropReason::VniUnknown);
    };
    match inbound(&port.table(), &from, frame) {
        Verdict::Deliver => shared.deliver(port, frame),
        Verdict::Drop(reason) => port.dropped(&shared.drops, reason, Some(from)),
        // `inbound` sends nothing back: nothing from the mesh returns into it.
        Verdict::Forward(_) | Verdict::Flood(_) | Verdict::Hairpin => {}
    }
}
