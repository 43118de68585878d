//! From the underlay into a plain network of this host. Nothing here was authenticated: an outer
//! address is believed as far as the underlay keeps others from using it.
//!
//! 1. VTEP: a member of the network by its own word, or a static one.
//! 2. Ethernet, source, MTU, destination of a member's frame: as if it were sealed
//!    ([`super::super::inbound()`]). The member whose address it came from owns the source.
//! 3. Of a static VTEP's frame: Ethernet; a source that no endpoint has, and what the frame says
//!    about it ([`claims`]); it is learned; MTU; a local destination.
//!
//! A static VTEP stays one, whoever claims its address: a member that did could silence it. What
//! the member's endpoints send from there is still theirs.

use std::{net::IpAddr, time::Instant};

use super::PlainTable;
use crate::{
    addr::{MacAddr, NodeId},
    frame::{Frame, View},
    path::{
        InboundVerdict, Scratch, Step, Watch, claims,
        inbound::{destination, judged},
        too_big,
    },
    reason::DropReason,
    tables::Place,
    wire::ethernet,
};

/// Decides on a frame of the table's network that came from the outer address `from`. A super-frame
/// is judged whole.
///
/// It came in clear: [`super::undone()`] says what has to be done to it before it is delivered.
pub fn plain_inbound(
    plain: &PlainTable,
    from: IpAddr,
    frame: &Frame<'_>,
    now: Instant,
    watch: &mut impl Watch,
) -> InboundVerdict {
    let (bytes, headers) = (frame.bytes(), frame.headers());
    if !plain.knows(from) {
        watch.step(Step::Peer, bytes); // 1
        return InboundVerdict::of(Err(DropReason::UnknownVtep), bytes, watch);
    }
    if let Some(node) = headers.and_then(|headers| owner_at(plain, from, headers.source)) {
        return judged(plain.table(), &node, bytes, headers, watch); // 2
    }
    let fate = station(plain, from, frame, now, watch); // 3
    InboundVerdict::of(fate, bytes, watch)
}

/// Leaves in the scratch what the sender of a frame is told that was too large, if it is behind a
/// static VTEP and may be told. A member looks itself. The answer comes from the MAC that the frame
/// was for: the gateway's never leaves a host.
pub fn tell_station(
    plain: &PlainTable,
    from: IpAddr,
    frame: &Frame<'_>,
    scratch: &mut Scratch,
    now: Instant,
) {
    scratch.clear();
    let table = plain.table();
    let Some(eth) = frame.headers() else { return };
    let view = View { bytes: frame.bytes(), headers: eth };
    let to = table.fdb(eth.destination).filter(|row| matches!(row.place, Place::Local));
    let is_station = plain.statics().contains(&from) && table.fdb(eth.source).is_none();
    if let Some(to) = to
        && is_station
        && table.admit_error(to, now)
    {
        too_big::answer_from(table.spec(), eth.destination, &view, scratch);
    }
}

/// The member that owns the frame's source, if the frame came from one of its addresses.
fn owner_at(plain: &PlainTable, from: IpAddr, source: MacAddr) -> Option<NodeId> {
    let row = plain.table().fdb(source)?;
    match &row.place {
        Place::Remote(vtep) if vtep.has(from) => Some(row.key.node),
        Place::Remote(_) | Place::Local => None,
    }
}

/// Step 3, and the end of a member's frame whose source is not its own.
fn station(
    plain: &PlainTable,
    from: IpAddr,
    frame: &Frame<'_>,
    now: Instant,
    watch: &mut impl Watch,
) -> Result<(), DropReason> {
    let table = plain.table();
    watch.step(Step::Peer, frame.bytes());
    watch.step(Step::Ethernet, frame.bytes());
    let view = claims::ethernet(frame.bytes(), frame.headers())?;
    watch.step(Step::Source, frame.bytes());
    if plain.is_member(from) && !plain.statics().contains(&from) {
        return Err(DropReason::SourceNotOwned);
    }
    claims::check_station(table, &view)?;
    let eth = view.headers;
    // A full table says so by its own counter: the frame itself is good.
    let most = table.spec().limits.stations();
    let _room = plain.learned().learn(eth.source, from, most, now);
    watch.step(Step::Mtu, frame.bytes());
    if frame.largest_frame()? > usize::from(table.spec().mtu) + ethernet::HEADER_LEN {
        return Err(DropReason::TooBig);
    }
    watch.step(Step::Destination, frame.bytes());
    destination(table, eth.destination)
}
