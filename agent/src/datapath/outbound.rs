//! The worker that carries frames of one network out: TAP -> `outbound` -> cut, seal -> UDP.
//!
//! One OS thread per TAP queue. It takes what the TAP has; frames of sparse flows leave at once, those of bulk flows in turn,
//! and between two of them it looks for new ones. When nothing is left it waits.

use std::{collections::VecDeque, io, sync::Arc, time::Instant};

use vxmesh_proto::datapath::{Lane, Lanes, Scratch, SuperFrame, Verdict, outbound, vnet::Offload};

use super::{
    Shared,
    device::{MAX_SUPER_FRAME, Received},
    port::Port,
    train::Train,
};

/// Frames taken from the TAP before the worker looks whether it should stop.
const BUDGET: usize = 4096;
/// Frames of bulk flows that wait here, up to half a megabyte. More stay in the TAP's queue, and sparse ones behind them.
const HELD: usize = 8;
/// Bytes of bulk that are sealed before the TAP is looked at again.
const TURN: usize = 64 * 1024;

/// The state of one worker.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    port: Arc<Port>,
    lanes: Lanes,
    /// A place for each frame that waits, and one for that which comes.
    places: Vec<u8>,
    /// Those without a frame; the last one used is taken first, so that memory is not touched without need.
    free: Vec<usize>,
    held: VecDeque<(usize, Received)>,
    scratch: Scratch,
    sparse: Train,
    bulk: Train,
    /// The last wake-up brought one frame: what comes next is probably alone, too, and leaves before another is looked for.
    lonely: bool,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, port: Arc<Port>) -> Self {
        Self {
            shared,
            port,
            lanes: Lanes::new(rand::random()),
            places: vec![0; (HELD + 1) * MAX_SUPER_FRAME],
            free: (0..=HELD).rev().collect(),
            held: VecDeque::with_capacity(HELD),
            scratch: Scratch::new(),
            sparse: Train::new(Lane::Sparse),
            bulk: Train::new(Lane::Bulk),
            lonely: true,
        }
    }

    /// Runs until the device is stopped or fails for good.
    pub(super) fn run(mut self) -> io::Result<()> {
        while self.port.device().wait()? {
            let worked = self.work();
            self.bulk.flush(&self.shared);
            worked?;
        }
        Ok(())
    }

    /// Carries out what is there.
    fn work(&mut self) -> io::Result<()> {
        let mut budget = BUDGET;
        loop {
            let taken = self.take(&mut budget);
            self.sparse.flush(&self.shared);
            taken?;
            if self.held.is_empty() {
                return Ok(());
            }
            self.turn();
        }
    }

    /// Takes frames from the TAP while there are some and there is room.
    fn take(&mut self, budget: &mut usize) -> io::Result<()> {
        let mut frames = 0;
        while self.held.len() < HELD && *budget > 0 {
            let Some(place) = self.free.pop() else { return Ok(()) };
            match self.port.device().recv(place_of(&mut self.places, place)) {
                Ok(received) => {
                    frames += 1;
                    *budget -= 1;
                    self.sort(place, received, frames);
                }
                Err(error) => {
                    self.free.push(place);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => {
                            self.lonely = frames <= 1;
                            return Ok(());
                        }
                        io::ErrorKind::Interrupted => {}
                        _ => return Err(error),
                    }
                }
            }
        }
        self.lonely = false;
        Ok(())
    }

    /// Sends a frame of a sparse flow, and keeps one of a bulk flow for its turn.
    fn sort(&mut self, place: usize, received: Received, frames: usize) {
        let now = Instant::now();
        let bytes = place_of(&mut self.places, place).get(..received.len).unwrap_or_default();
        match self.lanes.of(bytes, now) {
            Lane::Bulk => self.held.push_back((place, received)),
            Lane::Sparse => {
                self.frame(place, received, Lane::Sparse, now);
                self.free.push(place);
                if self.lonely && frames == 1 {
                    self.sparse.flush(&self.shared);
                }
            }
        }
    }

    /// Seals the next frames of bulk flows.
    fn turn(&mut self) {
        let mut sealed = 0;
        while sealed < TURN
            && let Some((place, received)) = self.held.pop_front()
        {
            self.frame(place, received, Lane::Bulk, Instant::now());
            self.free.push(place);
            sealed += received.len;
        }
    }

    fn frame(&mut self, place: usize, Received { vnet, len }: Received, lane: Lane, now: Instant) {
        let table = self.port.table();
        let train = match lane {
            Lane::Sparse => &mut self.sparse,
            Lane::Bulk => &mut self.bulk,
        };
        let bytes = place_of(&mut self.places, place).get_mut(..len).unwrap_or_default();
        let offload = match Offload::parse(&vnet, bytes) {
            Ok(offload) => offload,
            Err(reason) => return self.port.dropped(&self.shared.drops, reason, None),
        };
        let mut frame = SuperFrame { bytes, gso: offload.gso, checksum: offload.checksum };
        match outbound(&table, &mut frame, &mut self.scratch, now) {
            Verdict::Forward(peer) => {
                train.carry(&self.shared, &self.port, [peer], &frame, now);
            }
            Verdict::Flood(members) => {
                let peers = members.iter().map(|(_node, peer)| peer);
                train.carry(&self.shared, &self.port, peers, &frame, now);
            }
            Verdict::Hairpin => {
                // What is not taken is counted.
                let _taken = self.shared.deliver(&self.port, self.scratch.reply());
            }
            // `outbound` delivers nothing: what is local stays on the bridge.
            Verdict::Deliver => {}
            Verdict::Drop(reason) => {
                self.port.dropped(&self.shared.drops, reason, None);
                if !self.scratch.reply().is_empty() {
                    let _taken = self.shared.deliver(&self.port, self.scratch.reply());
                }
            }
        }
    }
}

fn place_of(places: &mut [u8], place: usize) -> &mut [u8] {
    let begin = place * MAX_SUPER_FRAME;
    places.get_mut(begin..begin + MAX_SUPER_FRAME).unwrap_or_default()
}
