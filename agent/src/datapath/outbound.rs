//! The worker that carries frames of one network out: TAP -> `outbound` -> seal -> UDP.
//!
//! One OS thread per TAP queue. The buffer of a frame has room in front for the data header and the VXLAN header and room
//! behind for the tag, so that a unicast frame is sealed where the TAP left it.

use std::{io, sync::Arc, time::Instant};

use vxmesh_proto::{
    addr::NodeId,
    datapath::{Scratch, SuperFrame, Verdict, outbound},
    limits::MAX_FRAME,
    session::{
        Peer,
        wire::{HEADER_LEN, TAG_LEN},
    },
    wire::vxlan,
};

use super::{Shared, port::Port, seal::seal_and_send};

/// Where the frame begins: data header, VXLAN header.
const FRAME_AT: usize = HEADER_LEN + vxlan::HEADER_LEN;
/// Frames taken from the TAP before the worker looks whether it should stop.
const BUDGET: usize = 64;

/// The state of one worker.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    port: Arc<Port>,
    buffer: Vec<u8>,
    copy: Vec<u8>,
    scratch: Scratch,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, port: Arc<Port>) -> Self {
        let room = FRAME_AT + MAX_FRAME + TAG_LEN;
        Self { shared, port, buffer: vec![0; room], copy: vec![0; room], scratch: Scratch::new() }
    }

    /// Runs until the device is stopped or fails for good.
    pub(super) fn run(mut self) -> io::Result<()> {
        while self.port.device().wait()? {
            for _ in 0..BUDGET {
                let room = self.buffer.len() - TAG_LEN;
                let free = self.buffer.get_mut(FRAME_AT..room).unwrap_or_default();
                match self.port.device().recv(free) {
                    Ok(len) => self.frame(len),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, len: usize) {
        let now = Instant::now();
        let port = Arc::clone(&self.port);
        let table = port.table();
        let bytes = self.buffer.get_mut(FRAME_AT..FRAME_AT + len).unwrap_or_default();
        match outbound(&table, &mut SuperFrame::plain(bytes), &mut self.scratch, now) {
            Verdict::Forward(peer) => self.forward(peer, len, now),
            Verdict::Flood(members) => self.flood(members, len, now),
            Verdict::Hairpin => self.shared.deliver(&port, self.scratch.reply()),
            // `outbound` delivers nothing: what is local stays on the bridge.
            Verdict::Deliver => {}
            Verdict::Drop(reason) => port.dropped(&self.shared.drops, reason, None),
        }
    }

    fn forward(&mut self, peer: &Arc<Peer>, len: usize, now: Instant) {
        write_vxlan(&mut self.buffer, &self.port);
        seal_and_send(&self.shared, peer, &mut self.buffer, vxlan::HEADER_LEN + len, now);
    }

    fn flood(&mut self, members: &[(NodeId, Arc<Peer>)], len: usize, now: Instant) {
        write_vxlan(&mut self.buffer, &self.port);
        let end = FRAME_AT + len;
        for (_node, peer) in members {
            // Sealing is in place, so each member gets a copy.
            let original = self.buffer.get(HEADER_LEN..end);
            let (Some(original), Some(copy)) = (original, self.copy.get_mut(HEADER_LEN..end))
            else {
                return;
            };
            copy.copy_from_slice(original);
            seal_and_send(&self.shared, peer, &mut self.copy, vxlan::HEADER_LEN + len, now);
        }
    }
}

fn write_vxlan(buffer: &mut [u8], port: &Port) {
    if let Some(header) = buffer.get_mut(HEADER_LEN..FRAME_AT) {
        header.copy_from_slice(&vxlan::header(port.vni()));
    }
}
