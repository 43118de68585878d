//! From the mesh into a local network.
//!
//! 1. VXLAN (RFC 7348): a network that this host has.
//! 2. Peer: the node that sealed the frame has a part in the network.
//! 3. Ethernet: whole, untagged, to no reserved group.
//! 4. Source: the peer owns the source MAC; what the frame says about its source is true
//!    ([`super::claims`]).
//! 5. MTU: it fits the network.
//! 6. Destination: a local endpoint, or a group. A frame from the mesh never goes back into it
//!    (split horizon). Where the network keeps endpoints from each other, only from or to a node
//!    itself ([`super::isolation`]).

use super::{claims, isolation};
use crate::{
    addr::{MacAddr, NodeId, Vni},
    frame::Headers,
    reason::DropReason,
    tables::{NetworkTable, Place},
    wire::{ethernet, vxlan},
};

/// The fate of a frame that came out of the mesh. Nothing goes back into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundVerdict {
    /// Write it to the local network.
    Deliver,
    /// Count it and forget it.
    Drop(DropReason),
}

/// The fate of a packet that was opened.
#[derive(Debug)]
pub struct Inbound<'f> {
    /// Its network, if it names one; that a frame was dropped is counted there.
    pub vni: Option<Vni>,
    /// Its frame; empty if there is none.
    pub frame: &'f mut [u8],
    /// What happens to the frame.
    pub verdict: InboundVerdict,
}

/// Decides on an opened packet, VXLAN header first, that the node `from` sealed. `table_of` finds
/// the network.
pub fn inbound_vxlan<'t, 'f, P: 't>(
    table_of: impl FnOnce(Vni) -> Option<&'t NetworkTable<P>>,
    from: &NodeId,
    packet: &'f mut [u8],
) -> Inbound<'f> {
    let Ok((vni, frame)) = vxlan::decap(packet) else {
        let verdict = InboundVerdict::Drop(DropReason::MalformedVxlan);
        return Inbound { vni: None, frame: &mut [], verdict };
    };
    let verdict = match table_of(vni) {
        Some(table) => inbound(table, from, frame),
        None => InboundVerdict::Drop(DropReason::VniUnknown),
    };
    Inbound { vni: Some(vni), frame, verdict }
}

/// Decides on a frame of the table's network that the node `from` sealed.
pub fn inbound<P>(table: &NetworkTable<P>, from: &NodeId, frame: &[u8]) -> InboundVerdict {
    judged(table, from, frame, Headers::parse(frame).as_ref())
}

/// The same of a frame whose headers were read.
pub(super) fn judged<P>(
    table: &NetworkTable<P>,
    from: &NodeId,
    frame: &[u8],
    headers: Option<&Headers>,
) -> InboundVerdict {
    match judge(table, from, frame, headers) {
        Ok(()) => InboundVerdict::Deliver,
        Err(reason) => InboundVerdict::Drop(reason),
    }
}

fn judge<P>(
    table: &NetworkTable<P>,
    from: &NodeId,
    frame: &[u8],
    headers: Option<&Headers>,
) -> Result<(), DropReason> {
    if !table.is_member(from) {
        return Err(DropReason::NotAMember); // 2
    }
    let view = claims::ethernet(frame, headers)?; // 3
    let row = table
        .fdb(view.headers.source)
        .filter(|row| row.key.node == *from && matches!(row.place, Place::Remote(_)));
    let row = row.ok_or(DropReason::SourceNotOwned)?; // 4
    claims::check(table, row, &view)?;
    if frame.len() > usize::from(table.spec().mtu) + ethernet::HEADER_LEN {
        return Err(DropReason::TooBig); // 5
    }
    destination(table, view.headers.destination)?; // 6
    isolation::check(table, row, view.headers)
}

pub(super) fn destination<P>(table: &NetworkTable<P>, mac: MacAddr) -> Result<(), DropReason> {
    let local = table.fdb(mac).is_some_and(|row| matches!(row.place, Place::Local));
    if mac.is_group() || local { Ok(()) } else { Err(DropReason::NotLocal) }
}
