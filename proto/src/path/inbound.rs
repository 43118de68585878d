//! From the mesh into a local network. The numbers are those of [`Step::IN`]; what comes before and
//! behind is the shell's.
//!
//! 2. VXLAN (RFC 7348): a network that this host has.
//! 3. Peer: the node that sealed the frame has a part in the network.
//! 4. Ethernet: whole, untagged, to no reserved group.
//! 5. Source: the peer owns the source MAC; what the frame says about its source is true
//!    ([`super::claims`]).
//! 6. MTU: it fits the network.
//! 7. Destination: a local endpoint, or a group. A frame from the mesh never goes back into it
//!    (split horizon). Where the network keeps endpoints from each other, only from or to a node
//!    itself ([`super::isolation`]).
//! 8. Services: the answer of a backend gets the VIP as its source, and what a client from outside
//!    sends by another node goes to its backend here ([`answer`]). After packets were put together,
//!    so that each super-frame is rewritten once.

use std::time::Instant;

use super::{Step, Watch, claims, isolation};
use crate::{
    addr::{MacAddr, NodeId, Vni},
    frame::{Frame, Headers},
    lb::Balancer,
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
    watch: &mut impl Watch,
) -> Inbound<'f> {
    watch.step(Step::Vxlan, packet); // 2
    let Ok((vni, frame)) = vxlan::decap(packet) else {
        watch.drop(DropReason::MalformedVxlan, &[]);
        let verdict = InboundVerdict::Drop(DropReason::MalformedVxlan);
        return Inbound { vni: None, frame: &mut [], verdict };
    };
    let verdict = if let Some(table) = table_of(vni) {
        inbound(table, from, frame, watch)
    } else {
        watch.drop(DropReason::VniUnknown, frame);
        InboundVerdict::Drop(DropReason::VniUnknown)
    };
    Inbound { vni: Some(vni), frame, verdict }
}

/// Decides on a frame of the table's network that the node `from` sealed.
pub fn inbound<P>(
    table: &NetworkTable<P>,
    from: &NodeId,
    frame: &[u8],
    watch: &mut impl Watch,
) -> InboundVerdict {
    judged(table, from, frame, Headers::parse(frame).as_ref(), watch)
}

/// Step 8, for a frame that is to be delivered.
pub fn answer<P>(
    table: &NetworkTable<P>,
    frame: &mut Frame<'_>,
    now: Instant,
    watch: &mut impl Watch,
) -> InboundVerdict {
    watch.step(Step::Services, frame.bytes());
    let Some(balancer) = Balancer::of(table, now) else { return InboundVerdict::Deliver };
    InboundVerdict::of(balancer.answer(frame), frame.bytes(), watch)
}

/// The same of a frame whose headers were read.
pub(super) fn judged<P>(
    table: &NetworkTable<P>,
    from: &NodeId,
    frame: &[u8],
    headers: Option<&Headers>,
    watch: &mut impl Watch,
) -> InboundVerdict {
    let fate = judge(table, from, frame, headers, watch);
    InboundVerdict::of(fate, frame, watch)
}

impl InboundVerdict {
    /// The end of the steps.
    pub(super) fn of(fate: Result<(), DropReason>, frame: &[u8], watch: &mut impl Watch) -> Self {
        let Err(reason) = fate else { return Self::Deliver };
        watch.drop(reason, frame);
        Self::Drop(reason)
    }
}

fn judge<P>(
    table: &NetworkTable<P>,
    from: &NodeId,
    frame: &[u8],
    headers: Option<&Headers>,
    watch: &mut impl Watch,
) -> Result<(), DropReason> {
    watch.step(Step::Peer, frame); // 3
    if !table.is_member(from) {
        return Err(DropReason::NotAMember);
    }
    watch.step(Step::Ethernet, frame); // 4
    let view = claims::ethernet(frame, headers)?;
    watch.step(Step::Source, frame); // 5
    let row = table
        .fdb(view.headers.source)
        .filter(|row| row.key.node == *from && matches!(row.place, Place::Remote(_)));
    let row = row.ok_or(DropReason::SourceNotOwned)?;
    claims::check(table, row, &view)?;
    watch.step(Step::Mtu, frame); // 6
    if frame.len() > usize::from(table.spec().mtu) + ethernet::HEADER_LEN {
        return Err(DropReason::TooBig);
    }
    watch.step(Step::Destination, frame); // 7
    destination(table, view.headers.destination)?;
    isolation::check(table, row, view.headers)
}

pub(super) fn destination<P>(table: &NetworkTable<P>, mac: MacAddr) -> Result<(), DropReason> {
    let local = table.fdb(mac).is_some_and(|row| matches!(row.place, Place::Local));
    if mac.is_group() || local { Ok(()) } else { Err(DropReason::NotLocal) }
}
