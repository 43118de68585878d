//! The worker that carries frames of one plain network out: TAP -> `plain_outbound` -> cut -> UDP.
//!
//! A super-frame is cut once, whoever gets it, and leaves with one call for each destination
//! ([`GsoBatch`]).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use vxmesh_proto::{
    frame::{Frame, Headers, Segments, ecn::Ecn},
    limits::PLAIN_PORT,
    path::{
        Scratch, Step, Watch,
        plain::{PlainVerdict, flow_hash, plain_outbound},
    },
    reason::DropReason,
};

use super::{Shared, socket::Sockets};
use crate::datapath::{
    deliver,
    device::{MAX_SUPER_FRAME, Received},
    drops::DropKey,
    gso::{Clear, GsoBatch, datagram_len},
    port::PlainPort,
    refused_because,
};

/// Frames taken from the TAP before the worker looks whether it should stop.
const BUDGET: usize = 64;

/// The state of one worker.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    port: Arc<PlainPort>,
    buffer: Vec<u8>,
    scratch: Scratch,
    batch: GsoBatch,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, port: Arc<PlainPort>) -> Self {
        let (buffer, scratch) = (vec![0; MAX_SUPER_FRAME], Scratch::new());
        Self { shared, port, buffer, scratch, batch: GsoBatch::new() }
    }

    /// Runs until the device is stopped or fails for good.
    pub(super) fn run(mut self) -> io::Result<()> {
        while self.port.device().wait()? {
            for _ in 0..BUDGET {
                match self.port.device().recv(0, &mut self.buffer) {
                    Ok(received) => self.frame(received),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, Received { vnet, len }: Received) {
        let Self { shared, port, buffer, scratch, batch } = self;
        let table = port.table();
        let mut watch = port.watch_out(&shared.drops);
        let bytes = buffer.get_mut(..len).unwrap_or_default();
        watch.step(Step::Read, bytes); // 1
        let headers = Headers::parse(bytes);
        let mut frame = match Frame::received(&mut *bytes, headers, &vnet) {
            Ok(frame) => frame,
            Err(reason) => return watch.drop(reason, bytes),
        };
        match plain_outbound(&table, &mut frame, scratch, Instant::now(), &mut watch) {
            PlainVerdict::Forward(vtep) => {
                carry(shared, (port, batch), &frame, [vtep].into_iter(), &mut watch);
            }
            PlainVerdict::Flood { members, statics } => {
                let members = members.iter().filter_map(|(_node, vtep)| vtep.to());
                let to = members.chain(statics.iter().copied());
                carry(shared, (port, batch), &frame, to, &mut watch);
            }
            // It was counted, and there is nothing to tell.
            PlainVerdict::Drop(_) if scratch.reply().is_empty() => {}
            PlainVerdict::Hairpin | PlainVerdict::Drop(_) => {
                // What is not taken is counted.
                let _taken = deliver(&shared.drops, port, scratch.reply());
            }
        }
    }
}

/// Step 9: cuts a frame of a plain network and sends its packets to each of the VTEPs.
fn carry(
    shared: &Shared,
    (port, batch): (&PlainPort, &mut GsoBatch),
    frame: &Frame<'_>,
    to: impl Iterator<Item = IpAddr> + Clone,
    watch: &mut impl Watch,
) {
    watch.step(Step::Cut, frame.bytes());
    let sockets = shared.sockets.load();
    let Some(sockets) = sockets.as_deref() else {
        return watch.drop(DropReason::PlainClosed, frame.bytes());
    };
    let segments = match Segments::of(frame) {
        Ok(segments) => segments,
        Err(reason) => return watch.drop(reason, frame.bytes()),
    };
    let flow = flow_hash(shared.seed, frame.headers());
    let leaving = Leaving { shared, port, sockets, flow, ecn: segments.ecn() };
    let mut sealer = Clear::of(&port.table());
    for index in 0..segments.count() {
        if !batch.fits(datagram_len::<Clear>(&segments, index), false) {
            leaving.send(batch, to.clone());
        }
        if let Err(reason) = batch.add(&mut sealer, port.vni(), &segments, index) {
            watch.drop(reason, frame.bytes());
            break;
        }
    }
    leaving.send(batch, to);
}

/// What the packets of a frame leave with.
struct Leaving<'a> {
    shared: &'a Shared,
    port: &'a PlainPort,
    sockets: &'a Sockets,
    flow: u64,
    ecn: Ecn,
}

impl Leaving<'_> {
    fn send(&self, batch: &mut GsoBatch, to: impl Iterator<Item = IpAddr>) {
        for vtep in to {
            batch.send(
                SocketAddr::new(vtep, PLAIN_PORT),
                &self.shared.offloads,
                |bytes, segment| self.sockets.send(self.flow, vtep, bytes, segment, self.ecn),
                |error, count| self.lost(vtep, error, count),
            );
        }
        batch.clear();
    }

    fn lost(&self, vtep: IpAddr, error: &io::Error, count: usize) {
        tracing::debug!(%vtep, %error, "datagram not sent");
        let (reason, network) = (refused_because(error), Some(self.port.id()));
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.shared.drops.add(DropKey::of(reason).in_network(network), count);
    }
}
