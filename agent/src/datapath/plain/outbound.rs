//! The worker that carries frames of one plain network out: TAP -> `plain_outbound` -> cut -> UDP.
//!
//! ```text
//! | VXLAN 8 | frame | VXLAN 8 | frame | ...     UDP_SEGMENT = length of the first
//! ```
//!
//! A super-frame is cut once, whoever gets it, and leaves with one call for each destination.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use nix::errno::Errno;
use vxmesh_proto::{
    frame::{Frame, Headers, Segments, ecn::Ecn},
    limits::PLAIN_PORT,
    path::{
        Scratch, Step, Watch,
        plain::{PlainVerdict, flow_hash, plain_outbound},
    },
    reason::DropReason,
    wire::vxlan,
};

use super::{Shared, socket::Sockets};
use crate::datapath::{
    deliver,
    device::{MAX_SUPER_FRAME, Received},
    drops::DropKey,
    port::PlainPort,
    refused_because,
};

/// Frames taken from the TAP before the worker looks whether it should stop.
const BUDGET: usize = 64;
/// The longest payload of a UDP datagram over IPv4, which holds for a train as a whole.
const ROOM: usize = 65_507;
/// Datagrams that the kernel cuts from one (`UDP_MAX_SEGMENTS`; 128 in newer ones).
const MAX_DATAGRAMS: usize = 64;
/// Destinations that do without segmentation. One that comes when this is full tries again what did
/// not work.
const SINGLE_DESTINATIONS: usize = 1024;

/// The state of one worker.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    port: Arc<PlainPort>,
    buffer: Vec<u8>,
    scratch: Scratch,
    train: Train,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, port: Arc<PlainPort>) -> Self {
        let train = Train { buffer: vec![0; ROOM], single: Vec::new() };
        Self { shared, port, buffer: vec![0; MAX_SUPER_FRAME], scratch: Scratch::new(), train }
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
        let Self { shared, port, buffer, scratch, train } = self;
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
                train.carry(shared, port, &frame, [vtep].into_iter(), &mut watch);
            }
            PlainVerdict::Flood { members, statics } => {
                let members = members.iter().filter_map(|(_node, vtep)| vtep.to());
                let to = members.chain(statics.iter().copied());
                train.carry(shared, port, &frame, to, &mut watch);
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

/// Datagrams of one frame that are about to leave.
struct Train {
    buffer: Vec<u8>,
    /// Where the interface cannot cut datagrams.
    single: Vec<IpAddr>,
}

/// What a train leaves with.
struct Leaving<'a> {
    shared: &'a Shared,
    port: &'a PlainPort,
    sockets: &'a Sockets,
    flow: u64,
    ecn: Ecn,
    /// Length of the first datagram.
    stride: usize,
}

impl Train {
    /// Cuts a frame of a plain network and sends its packets to each of the VTEPs.
    fn carry(
        &mut self,
        shared: &Shared,
        port: &PlainPort,
        frame: &Frame<'_>,
        to: impl Iterator<Item = IpAddr> + Clone,
        watch: &mut impl Watch,
    ) {
        watch.step(Step::Cut, frame.bytes()); // 9
        let sockets = shared.sockets.load();
        let Some(sockets) = sockets.as_deref() else {
            return watch.drop(DropReason::PlainClosed, frame.bytes());
        };
        let segments = match Segments::of(frame) {
            Ok(segments) => segments,
            Err(reason) => return watch.drop(reason, frame.bytes()),
        };
        let flow = flow_hash(shared.seed, frame.headers());
        let stride = vxlan::HEADER_LEN + segments.frame_len(0);
        let leaving = Leaving { shared, port, sockets, flow, ecn: segments.ecn(), stride };
        let (mut used, mut count) = (0, 0);
        for index in 0..segments.count() {
            let len = vxlan::HEADER_LEN + segments.frame_len(index);
            if count == MAX_DATAGRAMS || used + len > ROOM {
                self.flush(&leaving, used, to.clone());
                (used, count) = (0, 0);
            }
            let Some((header, packet)) = self
                .buffer
                .get_mut(used..used + len)
                .and_then(|room| room.split_at_mut_checked(vxlan::HEADER_LEN))
            else {
                return watch.drop(DropReason::TooBig, frame.bytes());
            };
            header.copy_from_slice(&vxlan::header(port.vni()));
            segments.write(index, packet);
            used += len;
            count += 1;
        }
        self.flush(&leaving, used, to);
    }

    fn flush(&mut self, leaving: &Leaving<'_>, used: usize, to: impl Iterator<Item = IpAddr>) {
        let Self { buffer, single } = self;
        let datagrams = buffer.get(..used).unwrap_or_default();
        let segment = (used > leaving.stride).then_some(leaving.stride);
        for vtep in to {
            if segment.is_some() && single.contains(&vtep) {
                leaving.send_singly(vtep, datagrams);
                continue;
            }
            let Err(error) = leaving.send(vtep, datagrams, segment) else {
                continue;
            };
            let refused = error.raw_os_error().map(Errno::from_raw);
            if segment.is_none() || !matches!(refused, Some(Errno::EIO | Errno::EINVAL)) {
                leaving.lost(vtep, &error, datagrams.len().div_ceil(leaving.stride));
                continue;
            }
            // An interface without checksum offload refuses trains (EIO), others refuse this one
            // (EINVAL).
            if leaving.send_singly(vtep, datagrams) {
                let to = SocketAddr::new(vtep, PLAIN_PORT);
                leaving.shared.offloads.refuse_segments(to, &error);
                single.truncate(SINGLE_DESTINATIONS - 1);
                single.push(vtep);
            }
        }
    }
}

impl Leaving<'_> {
    fn send(&self, vtep: IpAddr, datagrams: &[u8], segment: Option<usize>) -> io::Result<()> {
        self.sockets.send(self.flow, vtep, datagrams, segment, self.ecn)
    }

    /// True if one of them went.
    fn send_singly(&self, vtep: IpAddr, datagrams: &[u8]) -> bool {
        let mut carried = false;
        for datagram in datagrams.chunks(self.stride) {
            match self.send(vtep, datagram, None) {
                Ok(()) => carried = true,
                Err(error) => self.lost(vtep, &error, 1),
            }
        }
        carried
    }

    fn lost(&self, vtep: IpAddr, error: &io::Error, count: usize) {
        tracing::debug!(%vtep, %error, "datagram not sent");
        let (reason, network) = (refused_because(error), Some(self.port.id()));
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.shared.drops.add(DropKey::of(reason).in_network(network), count);
    }
}
