//! The worker that carries frames of one network out: TAP -> `outbound` -> cut, seal -> UDP.
//!
//! One OS thread per TAP queue. It reads until the TAP is empty, sends what that gave, and waits.

use std::{io, sync::Arc, time::Instant};

use vxmesh_proto::datapath::{Scratch, SuperFrame, Verdict, outbound, vnet::Offload};

use super::{
    Shared,
    device::{MAX_SUPER_FRAME, Received},
    port::Port,
    train::Train,
};

/// Frames taken from the TAP before the worker looks whether it should stop.
const BUDGET: usize = 64;

/// The state of one worker.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    port: Arc<Port>,
    buffer: Vec<u8>,
    scratch: Scratch,
    train: Train,
    /// The last wake-up brought one frame: what comes next is probably alone, too, and leaves before another is looked for.
    lonely: bool,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, port: Arc<Port>) -> Self {
        let buffer = vec![0; MAX_SUPER_FRAME];
        let (scratch, train) = (Scratch::new(), Train::new());
        Self { shared, port, buffer, scratch, train, lonely: true }
    }

    /// Runs until the device is stopped or fails for good.
    pub(super) fn run(mut self) -> io::Result<()> {
        while self.port.device().wait()? {
            let drained = self.drain();
            self.train.flush(&self.shared);
            drained?;
        }
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut frames = 0;
        for _ in 0..BUDGET {
            match self.port.device().recv(&mut self.buffer) {
                Ok(received) => {
                    frames += 1;
                    self.frame(received);
                    if self.lonely && frames == 1 {
                        self.train.flush(&self.shared);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.lonely = frames <= 1;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.lonely = false;
        Ok(())
    }

    fn frame(&mut self, Received { vnet, len }: Received) {
        let now = Instant::now();
        let table = self.port.table();
        let bytes = self.buffer.get_mut(..len).unwrap_or_default();
        let offload = match Offload::parse(&vnet, bytes) {
            Ok(offload) => offload,
            Err(reason) => return self.port.dropped(&self.shared.drops, reason, None),
        };
        let mut frame = SuperFrame { bytes, gso: offload.gso, checksum: offload.checksum };
        match outbound(&table, &mut frame, &mut self.scratch, now) {
            Verdict::Forward(peer) => {
                self.train.carry(&self.shared, &self.port, [peer], &frame, now);
            }
            Verdict::Flood(members) => {
                let peers = members.iter().map(|(_node, peer)| peer);
                self.train.carry(&self.shared, &self.port, peers, &frame, now);
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
