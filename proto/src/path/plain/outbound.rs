//! From a plain network of this host to the underlay.
//!
//! The steps are those of [`super::super::outbound()`]. Where that knows no destination, the static
//! VTEPs are left:
//!
//! 1. A question for an address that no endpoint has (ARP, neighbour solicitation) and an
//!    announcement go to all of them.
//! 2. A frame to a MAC that no endpoint has goes to the one that it was learned from, else to all,
//!    as often as the limits allow.
//! 3. What goes to every member goes to them, too.
//!
//! Members get none of 1 and 2: every address behind them is known by a claim.

use std::{net::IpAddr, time::Instant};

use super::{PlainTable, Vtep};
use crate::{
    addr::NodeId,
    frame::Frame,
    lb::is_service_mac,
    path::{
        OutboundVerdict, Scratch, Step, Watch, claims,
        outbound::{finish, judged},
    },
    reason::DropReason,
    wire::ethernet,
};

/// The fate of a frame of a plain network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainVerdict<'t> {
    /// Send it to this VTEP.
    Forward(IpAddr),
    /// Send one copy to each of these.
    Flood {
        /// Members.
        members: &'t [(NodeId, Vtep)],
        /// Static VTEPs.
        statics: &'t [IpAddr],
    },
    /// Write the answer in the [`Scratch`] back to where the frame came from.
    Hairpin,
    /// Count it and forget it. What was left in the [`Scratch`], if anything, tells the sender:
    /// write it back.
    Drop(DropReason),
}

/// Decides on a frame that the local network sent. If it goes on, its checksum is complete (that of
/// a super-frame stays partial until it is cut).
pub fn plain_outbound<'t>(
    plain: &'t PlainTable,
    frame: &mut Frame<'_>,
    scratch: &mut Scratch,
    now: Instant,
    watch: &mut impl Watch,
) -> PlainVerdict<'t> {
    let verdict = match judged(plain.table(), frame, scratch, now, watch) {
        Ok(OutboundVerdict::Forward(vtep)) => {
            vtep.to().map(PlainVerdict::Forward).ok_or(DropReason::VtepUnreachable)
        }
        Ok(OutboundVerdict::Flood(members)) => {
            Ok(PlainVerdict::Flood { members, statics: plain.statics() })
        }
        Ok(OutboundVerdict::Hairpin) => Ok(PlainVerdict::Hairpin),
        // There are no services here.
        Ok(OutboundVerdict::Deliver) => Err(DropReason::LocalDestination),
        Ok(OutboundVerdict::Drop(reason)) => Err(reason),
        Err(reason) => {
            let verdict = beyond(plain, frame, reason, now, watch);
            verdict.and_then(|verdict| finish(plain.table(), frame, watch).map(|()| verdict))
        }
    };
    verdict.unwrap_or_else(|reason| {
        watch.drop(reason, frame.bytes());
        PlainVerdict::Drop(reason)
    })
}

/// What becomes of a frame that has no destination among members.
fn beyond<'t>(
    plain: &'t PlainTable,
    frame: &Frame<'_>,
    reason: DropReason,
    now: Instant,
    watch: &mut impl Watch,
) -> Result<PlainVerdict<'t>, DropReason> {
    use DropReason::{Announcement, FdbUnknown, NeighborUnknown, NoMembers};
    let table = plain.table();
    let lost = matches!(reason, Announcement | FdbUnknown | NeighborUnknown | NoMembers);
    if !lost || plain.statics().is_empty() {
        return Err(reason);
    }
    // These reasons are given only after the source was found to be true.
    let eth = claims::ethernet(frame.bytes(), frame.headers())?.headers;
    let row = table.fdb(eth.source).ok_or(DropReason::SourceUnknown)?;
    let (to, spec) = (eth.destination, table.spec());
    if table.fdb(to).is_some() || to == spec.gateway.mac || is_service_mac(spec.id, to) {
        return Err(reason);
    }
    if matches!(reason, Announcement | NeighborUnknown) {
        // It ended at its question, and has the next steps before it.
        watch.step(Step::Mtu, frame.bytes());
        if frame.largest_frame()? > usize::from(table.spec().mtu) + ethernet::HEADER_LEN {
            return Err(DropReason::TooBig);
        }
        // No service has a question or an announcement.
        watch.step(Step::Services, frame.bytes());
        watch.step(Step::Destination, frame.bytes());
    }
    if !eth.destination.is_group() {
        let vtep = plain.learned().vtep_of(eth.destination, now);
        if let Some(vtep) = vtep.filter(|vtep| plain.statics().contains(vtep)) {
            return Ok(PlainVerdict::Forward(vtep));
        }
    }
    if !table.admit_flood(row, frame.packets(), now) {
        return Err(DropReason::FloodLimited);
    }
    Ok(PlainVerdict::Flood { members: &[], statics: plain.statics() })
}
