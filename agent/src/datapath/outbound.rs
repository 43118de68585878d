//! A worker that carries frames out: TAPs -> `outbound` -> cut, seal -> UDP.
//!
//! It takes what its queues of the TAPs have; frames of sparse flows leave at once, those of bulk
//! flows in turn, one network after the other and in each one flow after the other, and between two
//! turns it looks for new ones. When nothing is left it waits.

use std::{
    collections::VecDeque,
    io, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    poll::PollTimeout,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
};
use tracing::{error, info};
use vxmesh_proto::{
    flow::{
        Chosen, Lane, Lanes,
        fair::{Fair, cost},
    },
    frame::{Frame, Headers, vnet},
    path::{OutboundVerdict, Scratch, Step, Watch, outbound},
    reason::DropReason,
};

use super::{
    Shared,
    deliveries::Deliveries,
    device::{MAX_SUPER_FRAME, Received},
    port::Port,
    train::Train,
    waiter::{Waiter, checked},
    workers::{Inbox, Order},
};

/// TAPs with frames that are told at once; others are in turn the next time.
const READY: usize = 64;
/// The same while frames wait to leave: so that the kernel goes through all TAPs in turn, and
/// reading does not displace sealing.
const READY_BUSY: usize = 8;
/// Frames taken from one TAP before the others have their turn.
const BUDGET: usize = 64;
/// Frames lost to others of their network, after which the rest is left to the TAP: what the kernel
/// drops costs nothing here.
const SHED: usize = 8;
/// Large frames of bulk flows of one network that wait here, up to half a megabyte. More stay in
/// the TAP's queue, and all others behind them.
const LARGE: usize = 8;
/// Frames of any length that wait here, as many as in the TAP's queue. When more come, those of the
/// flow that has most are lost.
const HELD: usize = 1024;
/// Frames that are kept in so many bytes.
const SMALL: usize = 2048;
/// What one network's frames may [`cost`] in one turn.
const TURN: usize = 64 * 1024;
/// How long sealed datagrams may wait for more while other networks have their turn.
const LATE: Duration = Duration::from_millis(1);
/// Buffers of large and of small frames of all networks together. When all are taken, a network has
/// one of its own, and sheds.
const PLACES: (usize, usize) = (128, 16 * 1024);
/// Buffers of large and of small frames that are kept though nothing is in them.
const SPARE: (usize, usize) = (32, 256);
/// What the bell is called among the seats.
const BELL: u64 = u64::MAX;

/// The state of one worker.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    inbox: Inbox,
    poll: Epoll,
    /// The networks at their numbers. A place that was given up is taken again.
    seats: Vec<Option<Seat>>,
    /// Those with frames that wait, in the order in which they are served.
    turns: VecDeque<usize>,
    spare: Spare,
    way: Way,
    waiter: Waiter,
    /// The last frame came alone and was sparse: the next is probably alone, too, and leaves before
    /// another is looked for.
    lonely: bool,
}

/// Room for one frame, [`SMALL`] or [`MAX_SUPER_FRAME`].
type Place = Box<[u8]>;

/// Rooms without a frame. The last one used is taken first, so that memory is not touched without
/// need.
#[derive(Default)]
struct Spare {
    large: Vec<Place>,
    small: Vec<Place>,
    /// How many large and small ones are in use.
    lent: (usize, usize),
}

/// A frame that waits: where it is, what the device says of it, and its headers.
type Held = (Place, Received, Option<Headers>);

/// A queue of a network's TAP.
struct Seat {
    port: Arc<Port>,
    queue: usize,
    lanes: Lanes,
    held: Fair<Held>,
    /// How many of them are large.
    large: usize,
}

/// What a frame meets on its way out.
struct Way {
    scratch: Scratch,
    sparse: Train,
    bulk: Train,
    /// For endpoints of this host.
    here: Deliveries,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, number: usize, inbox: Inbox) -> io::Result<Self> {
        let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        poll.add(&inbox.bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        Ok(Self {
            shared,
            inbox,
            poll,
            seats: Vec::new(),
            turns: VecDeque::new(),
            spare: Spare::default(),
            way: Way {
                scratch: Scratch::new(),
                sparse: Train::new(Lane::Sparse, number),
                bulk: Train::new(Lane::Bulk, number),
                here: Deliveries::default(),
            },
            waiter: Waiter::new(),
            lonely: true,
        })
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); READY];
        loop {
            let ready = self.wait(&mut events)?;
            let alone = self.lonely && ready == 1 && self.turns.is_empty();
            let (mut taken, mut rung) = (0, false);
            for event in events.iter().take(ready) {
                match usize::try_from(event.data()) {
                    Ok(seat) if event.data() != BELL => taken += self.take(seat, alone),
                    _ => rung = true,
                }
            }
            if taken > 0 {
                self.lonely = taken == 1 && self.spare.lent.0 == 0;
            }
            self.way.flush_first(&self.shared);
            match self.turns.pop_front() {
                Some(seat) => self.turn(seat),
                None => self.way.bulk.flush(&self.shared),
            }
            // Frames of others that are lost do not push it on.
            if Instant::now().checked_sub(LATE).is_some_and(|time| self.way.bulk.waits_since(time))
            {
                self.way.bulk.flush(&self.shared);
            }
            if rung && !self.obey()? {
                return Ok(());
            }
        }
    }

    /// Waits for frames; looks only whether there are some while others wait to leave.
    fn wait(&mut self, events: &mut [EpollEvent]) -> io::Result<usize> {
        let poll = &self.poll;
        if self.turns.is_empty() && self.way.bulk.is_empty() {
            self.waiter.wait(&self.shared.bulk, self.lonely, |timeout| poll.wait(events, timeout))
        } else {
            let some = events.get_mut(..READY_BUSY).unwrap_or_default();
            checked(poll.wait(some, PollTimeout::ZERO))
        }
    }

    /// Takes frames of one TAP while there are some and there is room, and gives how many there
    /// were.
    fn take(&mut self, number: usize, alone: bool) -> usize {
        let Some(Some(seat)) = self.seats.get_mut(number) else { return 0 };
        let waited = !seat.held.is_empty();
        let now = Instant::now();
        let (mut frames, mut sent, mut shed) = (0, 0, 0);
        while frames < BUDGET
            && sent < TURN
            && shed < SHED
            && seat.large < LARGE
            && let Some(mut place) = self.spare.large(seat.large == 0)
        {
            match seat.port.device().recv(seat.queue, &mut place) {
                Ok(received) => {
                    frames += 1;
                    let bytes = place.get(..received.len).unwrap_or_default();
                    seat.port.watch_out(&self.shared.drops).step(Step::Read, bytes); // 1
                    let headers = Headers::parse(bytes);
                    match seat.lane(headers.as_ref(), received.len, now) {
                        (Lane::Sparse, _) => {
                            sent += Seat::cost(received);
                            self.way.frame(
                                &self.shared,
                                &seat.port,
                                (&mut place, received, headers),
                                Lane::Sparse,
                                now,
                            );
                            self.spare.put(place);
                        }
                        (Lane::Bulk, flow) => {
                            let kept = (place, received, headers);
                            shed += seat.keep(&self.shared, &mut self.spare, flow, kept);
                        }
                    }
                    if alone && frames == 1 {
                        self.way.flush_first(&self.shared);
                    }
                }
                Err(error) => {
                    self.spare.put(place);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => break,
                        io::ErrorKind::Interrupted => {}
                        _ => {
                            tap_failed(seat.port.vni(), &error);
                            self.leave(number);
                            return frames;
                        }
                    }
                }
            }
        }
        if !waited && !seat.held.is_empty() {
            self.turns.push_back(number);
        }
        frames
    }

    /// Seals the next frames of a network's bulk flows.
    fn turn(&mut self, number: usize) {
        let Some(Some(seat)) = self.seats.get_mut(number) else { return };
        let now = Instant::now();
        // A single small frame is a question or an answer of a connection that once sent more.
        if seat.large > 0 || seat.held.count() > 1 {
            self.shared.bulk.note(now);
        }
        let mut spent = 0;
        while spent < TURN
            && let Some((mut place, received, headers)) = seat.held.pop()
        {
            spent += Seat::cost(received);
            let frame = (&mut *place, received, headers);
            self.way.frame(&self.shared, &seat.port, frame, Lane::Bulk, now);
            seat.free(&mut self.spare, place);
        }
        if !seat.held.is_empty() {
            self.turns.push_back(number);
        }
        self.way.here.flush(&self.shared);
    }

    /// Does as it is told; false if that is to end.
    fn obey(&mut self) -> io::Result<bool> {
        self.inbox.bell.read()?;
        while let Ok(order) = self.inbox.orders.try_recv() {
            match order {
                Order::Connect { port, queue, spread } => self.join(port, queue, spread),
                Order::Disconnect(network, _given_up) => {
                    for number in 0..self.seats.len() {
                        let seat = self.seats.get(number).and_then(Option::as_ref);
                        if seat.is_some_and(|seat| seat.port.id() == network) {
                            self.leave(number);
                        }
                    }
                }
                Order::Stop => return Ok(false),
            }
        }
        Ok(true)
    }

    fn join(&mut self, port: Arc<Port>, queue: usize, spread: usize) {
        let number = self.seats.iter().position(Option::is_none).unwrap_or(self.seats.len());
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number).unwrap_or(BELL));
        let joined = port.device().queue(queue).map(|queue| self.poll.add(queue, event));
        if let Some(Err(error)) = joined {
            let vni = port.vni();
            error!(%vni, %error, "the network's TAP cannot be watched; restart the agent");
        }
        let lanes = Lanes::new(rand::random(), spread);
        let seat = Some(Seat { port, queue, lanes, held: Fair::default(), large: 0 });
        match self.seats.get_mut(number) {
            Some(free) => *free = seat,
            None => self.seats.push(seat),
        }
    }

    fn leave(&mut self, number: usize) {
        let Some(Some(mut seat)) = self.seats.get_mut(number).map(mem::take) else { return };
        self.turns.retain(|other| *other != number);
        while let Some((place, Received { len, .. }, _)) = seat.held.pop() {
            let bytes = place.get(..len).unwrap_or_default();
            seat.port.watch_out(&self.shared.drops).drop(DropReason::TapError, bytes);
            seat.free(&mut self.spare, place);
        }
        if let Some(Err(error)) =
            seat.port.device().queue(seat.queue).map(|fd| self.poll.delete(fd))
        {
            error!(vni = %seat.port.vni(), %error, "a TAP is still watched");
        }
    }
}

/// A TAP that somebody deleted is opened anew by who watches the network's links.
pub(super) fn tap_failed(vni: vxmesh_proto::addr::Vni, error: &io::Error) {
    if error.raw_os_error() == Some(nix::libc::EBADFD) {
        info!(%vni, "the network's TAP is gone");
    } else {
        error!(%vni, %error, "the network's TAP failed; restart the agent");
    }
}

impl Seat {
    /// How a frame travels that came now, and a number of its flow. While others of its flow wait,
    /// it waits behind them, be it as what its flow is itself or as one of its sender's flood.
    fn lane(&mut self, headers: Option<&Headers>, len: usize, now: Instant) -> (Lane, u64) {
        let Chosen { lane, flow, sender, is_flood } = self.lanes.of(headers, len, now);
        if self.held.holds(flow) {
            (Lane::Bulk, flow)
        } else if is_flood || self.held.holds(sender) {
            (Lane::Bulk, sender)
        } else {
            (lane, flow)
        }
    }

    fn cost(Received { vnet, len }: Received) -> usize {
        cost(len, vnet::packets(&vnet, len))
    }

    /// Step 2: keeps a frame of a bulk flow; if these are too many, one of the flow that has most
    /// is lost. How many were lost.
    fn keep(
        &mut self,
        shared: &Shared,
        spare: &mut Spare,
        flow: u64,
        (place, received, headers): Held,
    ) -> usize {
        let bytes = place.get(..received.len).unwrap_or_default();
        self.port.watch_out(&shared.drops).step(Step::Wait, bytes);
        let kept = spare.fit(place, received.len);
        self.large += usize::from(kept.len() > SMALL);
        self.held.push(flow, Self::cost(received), (kept, received, headers));
        if (self.held.count() > HELD || spare.lent.1 > PLACES.1)
            && let Some((lost, Received { len, .. }, _)) = self.held.shed()
        {
            let bytes = lost.get(..len).unwrap_or_default();
            self.port.watch_out(&shared.drops).drop(DropReason::QueueFull, bytes);
            self.free(spare, lost);
            return 1;
        }
        0
    }

    /// Gives back the room of a frame that was kept.
    fn free(&mut self, spare: &mut Spare, place: Place) {
        self.large -= usize::from(place.len() > SMALL);
        spare.put(place);
    }
}

impl Spare {
    /// Room for any frame; unless too much is in use, but then for who has none.
    fn large(&mut self, has_none: bool) -> Option<Place> {
        if self.lent.0 >= PLACES.0 && !has_none {
            return None;
        }
        self.lent.0 += 1;
        Some(self.large.pop().unwrap_or_else(|| vec![0; MAX_SUPER_FRAME].into()))
    }

    /// The frame in no more room than it needs.
    fn fit(&mut self, place: Place, len: usize) -> Place {
        let Some(frame) = place.get(..len).filter(|frame| frame.len() <= SMALL) else {
            return place;
        };
        self.lent.1 += 1;
        let mut small = self.small.pop().unwrap_or_else(|| vec![0; SMALL].into());
        if let Some(room) = small.get_mut(..len) {
            room.copy_from_slice(frame);
        }
        self.put(place);
        small
    }

    fn put(&mut self, place: Place) {
        let (to, most) = if place.len() > SMALL {
            self.lent.0 -= 1;
            (&mut self.large, SPARE.0)
        } else {
            self.lent.1 -= 1;
            (&mut self.small, SPARE.1)
        };
        if to.len() < most {
            to.push(place);
        }
    }
}

impl Way {
    /// Sends what waits for nothing but more of the same batch.
    fn flush_first(&mut self, shared: &Shared) {
        self.sparse.flush(shared);
        self.here.flush(shared);
    }

    fn frame(
        &mut self,
        shared: &Shared,
        port: &Arc<Port>,
        (place, Received { vnet, len }, headers): (&mut [u8], Received, Option<Headers>),
        lane: Lane,
        now: Instant,
    ) {
        let table = port.table();
        let train = match lane {
            Lane::Sparse => &mut self.sparse,
            Lane::Bulk => &mut self.bulk,
        };
        let mut watch = port.watch_out(&shared.drops);
        let bytes = place.get_mut(..len).unwrap_or_default();
        let mut frame = match Frame::received(&mut *bytes, headers, &vnet) {
            Ok(frame) => frame,
            Err(reason) => return watch.drop(reason, bytes),
        };
        match outbound(&table, &mut frame, &mut self.scratch, now, &mut watch) {
            OutboundVerdict::Forward(peer) => {
                train.carry(shared, (port.vni(), &mut watch), [peer], &frame, now);
            }
            OutboundVerdict::Flood(members) => {
                let peers = members.iter().map(|(_node, peer)| peer);
                train.carry(shared, (port.vni(), &mut watch), peers, &frame, now);
            }
            OutboundVerdict::Deliver => {
                self.here.push(shared, port, (&frame, &vnet), &mut watch);
            }
            // It was counted, and there is nothing to tell.
            OutboundVerdict::Drop(_) if self.scratch.reply().is_empty() => {}
            OutboundVerdict::Hairpin | OutboundVerdict::Drop(_) => {
                // What is not taken is counted.
                let _taken = shared.deliver(port, self.scratch.reply());
            }
        }
    }
}

#[cfg(test)]
mod tests;
