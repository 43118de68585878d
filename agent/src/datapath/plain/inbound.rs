//! The worker that takes plain frames in: UDP -> `plain_inbound` -> coalesce -> TAP.
//!
//! One datagram is one VXLAN packet, whatever the kernel says of how it may be cut: see
//! [`super::socket`].

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    ops::Range,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};
use vxmesh_proto::{
    addr::Vni,
    frame::{Frame, Headers, coalesce::Coalescer, ecn::Ecn},
    path::{
        InboundVerdict, Scratch, Step, Watch,
        plain::{finish_received, plain_inbound, tell_station, undone},
    },
    reason::DropReason,
    wire::vxlan,
};

use super::{Shared, socket::Sockets};
use crate::datapath::{
    cut,
    drops::DropKey,
    inbound::write,
    port::PlainPort,
    refused_because,
    udp::{Arrival, Batch},
};

/// Batches taken before the worker looks whether it should stop.
const BUDGET: usize = 16;
/// Datagrams taken with one call, as many as `quinn_udp` takes: each comes alone.
pub(super) const SLOTS: usize = 32;
/// Room for what a sender is told, an ICMPv6 error of the largest length (RFC 4443 section 3.2),
/// behind a VXLAN header.
const MAX_REPLY: usize = vxlan::HEADER_LEN + 14 + 1280;
/// How often what was learned is looked through for what is too old.
const EXPIRE_EVERY: Duration = Duration::from_secs(10);
/// The same for the kernel, which counts in milliseconds.
const WAIT_MS: u16 = 10_000;

/// Runs until it is told to stop.
pub(super) fn run(shared: &Shared, sockets: &Sockets, stop: &EventFd) -> io::Result<()> {
    let mut batch = Batch::<SLOTS>::default();
    let (mut coalescer, mut scratch) = (Coalescer::default(), Scratch::new());
    let mut expired = Instant::now();
    while wait(sockets, stop)? {
        for _ in 0..BUDGET {
            match sockets.recv(&mut batch) {
                Ok(()) => take_batch((shared, sockets), &mut batch, &mut coalescer, &mut scratch),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The kernel reports an ICMP error of an earlier datagram here; it says nothing
                // about this socket.
                Err(_icmp) => {}
            }
        }
        if expired.elapsed() >= EXPIRE_EVERY {
            expired = Instant::now();
            let ports = shared.ports.load();
            ports.values().for_each(|port| port.table().learned().expire(expired));
        }
    }
    Ok(())
}

/// Waits for datagrams, or until something is too old; false when the worker is to stop.
fn wait(sockets: &Sockets, stop: &EventFd) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(sockets.as_fd(), PollFlags::POLLIN),
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::from(WAIT_MS)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let [_udp, stop] = &fds;
    Ok(!stop.any().unwrap_or(false))
}

/// What one batch is taken with.
struct Taker<'s> {
    shared: &'s Shared,
    ports: &'s HashMap<Vni, Arc<PlainPort>>,
    sockets: &'s Sockets,
    now: Instant,
    scratch: &'s mut Scratch,
    coalescer: &'s mut Coalescer<Vni>,
}

fn take_batch(
    (shared, sockets): (&Shared, &Sockets),
    batch: &mut Batch<SLOTS>,
    coalescer: &mut Coalescer<Vni>,
    scratch: &mut Scratch,
) {
    let ports = shared.ports.load();
    let mut taker =
        Taker { shared, ports: &ports, sockets, now: Instant::now(), scratch, coalescer };
    for Arrival { from, at, ecn, .. } in batch.arrivals() {
        taker.datagram(from.ip(), ecn, batch.arena(), at);
    }
    let arena = batch.arena();
    for number in 0.. {
        let Some(frame) = taker.coalescer.frame_at(number, arena) else { break };
        if let Some(port) = ports.get(&frame.to) {
            write((&shared.drops, &shared.offloads), port, &frame, arena);
        }
    }
    taker.coalescer.clear();
}

impl Taker<'_> {
    fn datagram(&mut self, from: IpAddr, outer: Ecn, arena: &mut [u8], at: Range<usize>) {
        let drops = &self.shared.drops;
        let packet = arena.get_mut(at.clone()).unwrap_or_default();
        let mut watch = drops.watch(|reason, _| DropKey::of(reason));
        watch.step(Step::Vxlan, packet); // 2
        let Ok((vni, frame)) = vxlan::decap(packet) else {
            return watch.drop(DropReason::MalformedVxlan, &[]);
        };
        let Some(port) = self.ports.get(&vni) else {
            return self.strange(vni);
        };
        let mut watch = port.watch_in(drops);
        let table = port.table();
        let headers = Headers::parse(frame);
        let offload = undone(frame, headers.as_ref(), table.spec().mtu);
        let mut frame = Frame::with_headers(frame, headers, offload);
        match plain_inbound(&table, from, &frame, self.now, &mut watch) {
            InboundVerdict::Deliver => {
                watch.step(Step::Deliver, frame.bytes()); // 8
                if let Err(reason) = frame.arrive(outer) {
                    return watch.drop(reason, frame.bytes());
                }
                if frame.gso().is_some() {
                    return cut(&self.shared.drops, port, &frame, &mut watch);
                }
                finish_received(&mut frame);
                let accepts = self.shared.offloads.allow(port.device().accepts());
                let at = at.start + vxlan::HEADER_LEN..at.end;
                self.coalescer.push(vni, accepts, arena, at, headers.as_ref());
            }
            InboundVerdict::Drop(DropReason::TooBig) => {
                tell_station(&table, from, &frame, self.scratch, self.now);
                self.tell(port, from);
            }
            // It was counted.
            InboundVerdict::Drop(_) => {}
        }
    }

    /// Sends a station what it is to be told.
    fn tell(&self, port: &PlainPort, vtep: IpAddr) {
        let reply = self.scratch.reply();
        let (mut datagram, len) = ([0; MAX_REPLY], vxlan::HEADER_LEN + reply.len());
        let Some((header, frame)) =
            datagram.get_mut(..len).and_then(|room| room.split_at_mut_checked(vxlan::HEADER_LEN))
        else {
            return;
        };
        if reply.is_empty() {
            return;
        }
        header.copy_from_slice(&vxlan::header(port.vni()));
        frame.copy_from_slice(reply);
        let told = datagram.get(..len).unwrap_or_default();
        if let Err(error) = self.sockets.send(0, vtep, told, None, Ecn::NotEct) {
            let key = DropKey::of(refused_because(&error)).in_network(port.id());
            self.shared.drops.add(key, 1);
        }
    }

    /// Counts a frame of no plain network of this host.
    fn strange(&self, vni: Vni) {
        let network = self.shared.sealed.load().get(&vni).copied();
        let reason = if network.is_some() { DropReason::SealedVni } else { DropReason::VniUnknown };
        self.shared.drops.add(DropKey::of(reason).in_network(network), 1);
    }
}
