//! The workers that take datagrams in, each from its own socket: UDP -> open -> `inbound` ->
//! coalesce -> `answer` -> TAP.
//!
//! One call takes a batch of datagrams. Data messages are opened where they lie, and what the
//! packets of one flow are is put together and written with one call, from where it lies. Handshake
//! messages go to the session thread through a bounded queue, so that a flood of them costs the
//! data path one copy each at most.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::SocketAddr,
    ops::Range,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::Guard;
use nix::poll::{PollFd, PollFlags, poll};
use vxmesh_proto::{
    addr::{NodeId, Vni},
    frame::{
        Headers,
        coalesce::{Accepts, Coalescer, Merged, PARTS},
        ecn,
        ecn::Ecn,
    },
    path::{InboundVerdict, Judged, Step, Watch, answer},
    reason::DropReason,
    session::{
        Keypair, Peer, Probe,
        wire::{DataHeader, FLAG_AGGREGATE, FLAG_CONTROL, HEADER_LEN, Kind, asks_for_echo},
    },
    wire::{aggregate, aggregate::Overlong, vxlan},
};

use super::{
    Shared, deliver,
    drops::{DropKey, Drops},
    offloads::Offloads,
    port::{Port, Table},
    sessions::SessionInput,
    train::want,
    udp::{Arrival, Batch, UdpIo},
    waiter::Waiter,
};

/// Batches taken before the worker looks whether it should stop.
const BUDGET: usize = 16;
/// Between two words about keys that are gone.
const TELL_AGAIN: Duration = Duration::from_millis(50);

/// Runs until the data path stops.
pub(super) fn run(shared: &Shared, udp: &UdpIo) -> io::Result<()> {
    let mut batch = Batch::default();
    let mut coalescer = Coalescer::default();
    let mut told = None;
    let mut waiter = Waiter::new();
    // A few datagrams at a time are questions and answers, whose next are worth looking for.
    let mut eager = false;
    while wait(shared, udp, eager, &mut waiter)? {
        eager = true;
        for _ in 0..BUDGET {
            match udp.recv(&mut batch) {
                Ok(()) => {
                    eager &= !batch.is_bulk();
                    if !eager {
                        shared.bulk.note(Instant::now());
                    }
                    take_batch(shared, &mut batch, &mut coalescer, &mut told);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The kernel reports an ICMP error of an earlier datagram here; it says nothing
                // about this socket.
                Err(_icmp) => {}
            }
        }
    }
    Ok(())
}

/// Waits for datagrams; false when the data path stops.
fn wait(shared: &Shared, udp: &UdpIo, eager: bool, waiter: &mut Waiter) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(udp.as_fd(), PollFlags::POLLIN),
        PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
    ];
    waiter.wait(&shared.bulk, eager, |timeout| {
        let ready = poll(&mut fds, timeout)?;
        Ok(usize::try_from(ready).unwrap_or_default())
    })?;
    let [_udp, stop] = &fds;
    Ok(!stop.any().unwrap_or(false))
}

/// Who gets the frames of a number.
type Ports = HashMap<Vni, Arc<Port>>;

/// What one batch is taken with: snapshots, and the key and the way of the datagram before, which
/// are mostly those of the next.
struct Taker<'s> {
    shared: &'s Shared,
    ports: &'s Ports,
    now: Instant,
    keypair: Option<Arc<Keypair>>,
    way: Option<Way<'s>>,
    /// The mark of the datagram.
    ecn: Ecn,
    coalescer: &'s mut Coalescer<Vni>,
    /// When it was told last that somebody uses a key that is gone.
    told: &'s mut Option<Instant>,
}

/// From one node into one network.
struct Way<'s> {
    vni: Vni,
    from: NodeId,
    port: &'s Port,
    accepts: Accepts,
    table: Guard<Arc<Table>>,
    judged: Judged,
}

fn take_batch(
    shared: &Shared,
    batch: &mut Batch,
    coalescer: &mut Coalescer<Vni>,
    told: &mut Option<Instant>,
) {
    let ports = shared.ports.load();
    let now = Instant::now();
    let (keypair, way, ecn) = (None, None, Ecn::NotEct);
    let mut taker = Taker { shared, ports: &ports, now, keypair, way, ecn, coalescer, told };
    for arrival in batch.arrivals() {
        taker.train(arrival, batch.arena());
    }
    let arena = batch.arena();
    for number in 0.. {
        let Some(mut frame) = taker.coalescer.frame_at(number, arena) else { break };
        let Some(port) = ports.get(&frame.to) else { continue };
        let table = port.table();
        if table.services().is_some() {
            let mut watch = port.watch_delivery(&shared.drops);
            let answered = frame.rewrite(arena, |frame| answer(&table, frame, now, &mut watch));
            if answered != InboundVerdict::Deliver {
                continue;
            }
        }
        // 9
        write((&shared.drops, &shared.offloads), port, &frame, arena);
    }
    taker.coalescer.clear();
}

impl<'s> Way<'s> {
    fn new(shared: &Shared, from: NodeId, port: &'s Port) -> Self {
        let accepts = shared.offloads.allow(port.device().accepts());
        let (table, judged) = (port.table(), Judged::default());
        Self { vni: port.vni(), from, port, accepts, table, judged }
    }
}

impl Taker<'_> {
    /// Takes datagrams that the kernel glued together.
    fn train(&mut self, arrival: Arrival, arena: &mut [u8]) {
        let Arrival { from, at: train, stride, ecn } = arrival;
        self.ecn = ecn;
        // An empty datagram has no part, and yet it came.
        let mut begin = train.start;
        loop {
            let end = (begin + stride).min(train.end);
            if let Err(reason) = self.datagram(from, arena, begin..end) {
                self.shared.drops.unknown(reason);
            }
            begin = end;
            if begin >= train.end {
                return;
            }
        }
    }

    fn datagram(
        &mut self,
        from: SocketAddr,
        arena: &mut [u8],
        at: Range<usize>,
    ) -> Result<(), DropReason> {
        let datagram = arena.get_mut(at.clone()).unwrap_or_default();
        match Kind::of(datagram)? {
            Kind::Data => {
                let keypair = self.keypair(DataHeader::parse(datagram)?.receiver);
                let keypair = keypair.inspect_err(|_unknown| self.tell_unknown(from))?;
                if let Err(reason) = self.open(&keypair, from, arena, at) {
                    let key = DropKey::of(reason).with_peer(keypair.peer().id());
                    self.shared.drops.add(key, 1);
                }
            }
            Kind::Init | Kind::Response | Kind::Cookie => {
                let bytes = datagram.to_vec();
                self.shared.to_sessions(SessionInput::Datagram { from, bytes });
            }
        }
        Ok(())
    }

    /// Now and then: anybody can send such, and handshakes must not wait for them.
    fn tell_unknown(&mut self, from: SocketAddr) {
        let is_soon = |at: Instant| self.now.saturating_duration_since(at) < TELL_AGAIN;
        if !self.told.is_some_and(is_soon) {
            *self.told = Some(self.now);
            self.shared.to_sessions(SessionInput::UnknownIndex(from));
        }
    }

    fn keypair(&mut self, index: u32) -> Result<Arc<Keypair>, DropReason> {
        if let Some(keypair) = self.keypair.as_ref().filter(|key| key.local_index() == index) {
            return Ok(Arc::clone(keypair));
        }
        let keypair = self.shared.index.get(index).ok_or(DropReason::UnknownIndex)?;
        self.keypair = Some(Arc::clone(&keypair));
        Ok(keypair)
    }

    fn open(
        &mut self,
        keypair: &Keypair,
        from: SocketAddr,
        arena: &mut [u8],
        at: Range<usize>,
    ) -> Result<(), DropReason> {
        let begin = at.start + HEADER_LEN;
        let datagram = arena.get_mut(at).unwrap_or_default();
        let len = u64::try_from(datagram.len()).unwrap_or(u64::MAX);
        let peer = keypair.peer();
        let opened = keypair.open(self.now, datagram)?;
        let is_data = opened.flags & FLAG_CONTROL == 0;
        let payload = begin..begin + opened.payload.len();
        peer.note_received(self.now, len, is_data);
        if opened.newest {
            peer.roam(from);
        }
        if opened.confirms {
            self.shared.to_sessions(SessionInput::Confirmed(keypair.local_index()));
        }
        if opened.refresh {
            want(self.shared, peer);
        }
        match opened.flags {
            _ if !is_data => {
                if asks_for_echo(opened.payload) {
                    let answer = SessionInput::Probe(peer.id(), Probe::Keepalive);
                    self.shared.to_sessions(answer);
                }
            }
            flags if flags & FLAG_AGGREGATE != 0 => self.packets(peer, arena, payload),
            _ => self.packet(peer, arena, payload),
        }
        Ok(())
    }

    /// Takes several packets that were sealed as one.
    fn packets(&mut self, peer: &Peer, arena: &mut [u8], list: Range<usize>) {
        let mut at = list.start;
        loop {
            match aggregate::packet(arena.get(..list.end).unwrap_or_default(), at) {
                Ok(Some(packet)) => {
                    at = packet.end;
                    self.packet(peer, arena, packet);
                }
                Ok(None) => return,
                Err(Overlong) => return self.lost(peer.id(), DropReason::MalformedAggregate),
            }
        }
    }

    /// Takes an opened VXLAN packet.
    fn packet(&mut self, peer: &Peer, arena: &mut [u8], at: Range<usize>) {
        let (shared, from) = (self.shared, peer.id());
        let packet = arena.get_mut(at.clone()).unwrap_or_default();
        let mut watch = shared.drops.watch(|reason, _| DropKey::of(reason).with_peer(from));
        watch.step(Step::Open, packet); // 1
        watch.step(Step::Vxlan, packet); // 2
        let Ok((vni, frame)) = vxlan::decap(packet) else {
            return watch.drop(DropReason::MalformedVxlan, &[]);
        };
        let way = match &mut self.way {
            Some(way) if (way.vni, way.from) == (vni, from) => way,
            way => match self.ports.get(&vni) {
                Some(port) => way.insert(Way::new(shared, from, port)),
                None => return watch.drop(DropReason::VniUnknown, frame),
            },
        };
        let mut watch = way.port.watch_in(&shared.drops, from);
        let headers = Headers::parse(frame);
        match way.judged.inbound(&way.table, &from, frame, headers.as_ref(), &mut watch) {
            InboundVerdict::Deliver => match ecn::arrive(frame, self.ecn) {
                Ok(()) => {
                    let frame = at.start + vxlan::HEADER_LEN..at.end;
                    self.coalescer.push(vni, way.accepts, arena, frame, headers.as_ref());
                }
                Err(reason) => watch.drop(reason, frame),
            },
            // It was counted.
            InboundVerdict::Drop(_) => {}
        }
    }

    fn lost(&self, from: NodeId, reason: DropReason) {
        let key = DropKey::of(reason).with_peer(from);
        self.shared.drops.add(key, 1);
    }
}

/// Writes a frame to its TAP. A super-frame that the kernel does not take is written as what it was
/// made of.
pub(super) fn write<T>(
    (drops, offloads): (&Drops, &Offloads),
    port: &Port<T>,
    frame: &Merged<'_, Vni>,
    arena: &mut [u8],
) {
    let alone = |arena: &[u8], at| deliver(drops, port, arena.get(at).unwrap_or_default());
    let Some(gso) = frame.offload.gso else {
        // It is one frame, and what is lost was counted.
        let _taken = frame.frames().map(|at| alone(arena, at)).next();
        return;
    };
    let mut parts = [IoSlice::new(&[]); PARTS + 1];
    let payloads = frame.payloads().map(|at| arena.get(at).unwrap_or_default());
    let all = std::iter::once(frame.headers()).chain(payloads);
    for (part, bytes) in parts.iter_mut().zip(all) {
        *part = IoSlice::new(bytes);
    }
    let parts = parts.get(..=frame.count).unwrap_or_default();
    if let Err(error) = port.device().send(&frame.offload.to_bytes(), parts) {
        let refused = matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::EIO));
        frame.rewrite_parts(arena);
        let taken = frame.frames().map(|at| alone(arena, at)).filter(|taken| *taken).count();
        if refused && taken > 0 {
            offloads.refuse_super_frames(gso.kind, &error);
        }
    }
}
