//! Frames that came from a TAP and go back to it, for endpoints of this host: [`Deliveries`].
//!
//! What the packets of one flow are is put together and written with one call, as on the way in:
//! the kernel takes as long for a super-frame as for a packet.

use std::{io::IoSlice, sync::Arc};

use vxmesh_proto::{
    addr::Vni,
    frame::{Frame, coalesce::Coalescer, vnet},
    path::Watch,
};

use super::{Shared, cut, inbound::write, port::Port};

/// Bytes of frames that are put together before they are written.
const ROOM: usize = 64 * 1024;
/// Longer frames are written at once: what they cost is their bytes.
const SMALL: usize = 2048;

/// Frames that are about to be written to one network's TAP.
#[derive(Default)]
pub(super) struct Deliveries {
    port: Option<Arc<Port>>,
    arena: Vec<u8>,
    coalescer: Coalescer<Vni>,
}

impl Deliveries {
    /// Takes a frame that has other ends now. What the device does not take whole, it gets in
    /// packets.
    pub(super) fn push(
        &mut self,
        shared: &Shared,
        port: &Arc<Port>,
        (frame, vnet): (&Frame<'_>, &[u8; vnet::LEN]),
        watch: &mut impl Watch,
    ) {
        let bytes = frame.bytes();
        let is_other = self.port.as_ref().is_some_and(|other| !Arc::ptr_eq(other, port));
        let is_large = frame.gso().is_some() || bytes.len() > SMALL;
        if is_other || is_large || self.arena.len() + bytes.len() > ROOM {
            self.flush(shared);
        }
        if frame.gso().is_some() {
            if port.device().send(vnet, &[IoSlice::new(bytes)]).is_err() {
                cut(&shared.drops, port, frame, watch);
            }
        } else if is_large {
            // What is not taken is counted.
            let _taken = shared.deliver(port, bytes);
        } else {
            let at = self.arena.len();
            self.arena.extend_from_slice(bytes);
            let at = at..self.arena.len();
            let accepts = shared.offloads.allow(port.device().accepts());
            self.coalescer.push(port.vni(), accepts, &self.arena, at, frame.headers());
            self.port.get_or_insert_with(|| Arc::clone(port));
        }
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self, shared: &Shared) {
        let Some(port) = self.port.take() else { return };
        for number in 0.. {
            let Some(frame) = self.coalescer.frame_at(number, &self.arena) else { break };
            write((&shared.drops, &shared.offloads), &port, &frame, &mut self.arena);
        }
        self.coalescer.clear();
        self.arena.clear();
    }
}
