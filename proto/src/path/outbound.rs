//! From a local network into the mesh. The numbers are those of [`Step::OUT`]; what comes before
//! and behind is the shell's.
//!
//! 3. Ethernet: whole, untagged, to no reserved group.
//! 4. Source: the MAC of a local endpoint; what the frame says about its source is true
//!    ([`super::claims`]).
//! 5. Neighbours: ARP (RFC 826) and neighbour solicitations (RFC 4861) for remote endpoints are
//!    answered from the table; none crosses the mesh.
//! 6. MTU: each packet fits the network; else its sender is told ([`super::too_big`]).
//! 7. Services: what is for a VIP gets the backend of its flow as its destination ([`crate::lb`]);
//!    what leads nowhere is refused ([`super::service`]). What is for a local backend, and what one
//!    answers a local client, goes back to the local network.
//! 8. Destination: one peer by the Fdb, or every member for groups, as many packets as the limits
//!    allow. Where the network keeps endpoints from each other, only a node itself
//!    ([`super::isolation`]).
//! 9. Checksum: what leaves is complete, and still true about its source.
//!
//! Unknown unicast is never flooded: the table knows every endpoint.

use std::{net::IpAddr, time::Instant};

use super::{
    Step, Watch,
    claims::{self, Content},
    isolation, service, too_big,
};
use crate::{
    addr::{MacAddr, NodeId},
    frame::{Frame, Headers, View},
    lb::{self, Balancer, Way},
    limits::MAX_FRAME,
    reason::DropReason,
    tables::{NetworkTable, Place, Row},
    wire::{
        Arp,
        arp::Operation,
        ethernet,
        nd::{Advertisement, Message},
    },
};

/// The fate of a frame that the local network sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundVerdict<'t, P> {
    /// Seal it for this peer.
    Forward(&'t P),
    /// Seal one copy for each of these members.
    Flood(&'t [(NodeId, P)]),
    /// Write the answer in the [`Scratch`] back to where the frame came from.
    Hairpin,
    /// Write the frame itself, which is another now, back to where it came from: it is for a local
    /// endpoint.
    Deliver,
    /// Count it and forget it. What is left in the [`Scratch`], if anything, tells the sender:
    /// write it back.
    Drop(DropReason),
}

/// Where the answer of an [`OutboundVerdict::Hairpin`] is left, and what the sender of a frame that
/// was dropped is told. One per worker, used again for each frame.
#[derive(Debug)]
pub struct Scratch {
    bytes: [u8; MAX_FRAME],
    len: usize,
}

impl Scratch {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; MAX_FRAME], len: 0 }
    }

    /// The frame to write back; empty if there is none.
    #[must_use]
    pub fn reply(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Holds nothing.
    pub(super) const fn clear(&mut self) {
        self.len = 0;
    }

    /// Has `build` write a frame, which says how long it is; none where it cannot.
    pub(super) fn write(
        &mut self,
        build: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<usize> {
        let written = build(&mut self.bytes);
        self.len = written.unwrap_or_default();
        written
    }

    fn set(&mut self, frame: &[u8]) {
        self.len = frame.len().min(self.bytes.len());
        for (to, from) in self.bytes.iter_mut().zip(frame) {
            *to = *from;
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Decides on a frame that the local network sent into the mesh. If it goes on, its checksum is
/// complete (that of a super-frame stays partial until it is cut).
pub fn outbound<'t, P>(
    table: &'t NetworkTable<P>,
    frame: &mut Frame<'_>,
    scratch: &mut Scratch,
    now: Instant,
    watch: &mut impl Watch,
) -> OutboundVerdict<'t, P> {
    judged(table, frame, scratch, now, watch).unwrap_or_else(|reason| {
        watch.drop(reason, frame.bytes());
        OutboundVerdict::Drop(reason)
    })
}

/// The same where a frame that is dropped here may still have another destination.
pub(super) fn judged<'t, P>(
    table: &'t NetworkTable<P>,
    frame: &mut Frame<'_>,
    scratch: &mut Scratch,
    now: Instant,
    watch: &mut impl Watch,
) -> Result<OutboundVerdict<'t, P>, DropReason> {
    scratch.clear();
    let verdict = judge(table, frame, scratch, now, watch)?;
    if !matches!(verdict, OutboundVerdict::Hairpin | OutboundVerdict::Drop(_)) {
        finish(table, frame, watch)?;
    }
    Ok(verdict)
}

/// Step 9. A sandbox may say where its checksum is (packet(7), PACKET_VNET_HDR): not where it would
/// change what was judged. The frame is as it was if it does.
pub(super) fn finish<P>(
    table: &NetworkTable<P>,
    frame: &mut Frame<'_>,
    watch: &mut impl Watch,
) -> Result<(), DropReason> {
    watch.step(Step::Checksum, frame.bytes());
    let finished = frame.finish_checksum(|frame| {
        let judged = || {
            let frame = claims::ethernet(frame.bytes(), frame.headers())?;
            let row = source(table, frame.headers.source)?;
            claims::check(table, row, &frame)?;
            isolation::check(table, row, frame.headers)
        };
        judged().is_ok()
    });
    if finished { Ok(()) } else { Err(DropReason::BadOffload) }
}

fn judge<'t, P>(
    table: &'t NetworkTable<P>,
    frame: &mut Frame<'_>,
    scratch: &mut Scratch,
    now: Instant,
    watch: &mut impl Watch,
) -> Result<OutboundVerdict<'t, P>, DropReason> {
    watch.step(Step::Ethernet, frame.bytes()); // 3
    let view = claims::ethernet(frame.bytes(), frame.headers())?;
    watch.step(Step::Source, frame.bytes()); // 4
    let row = source(table, view.headers.source)?;
    let content = claims::check(table, row, &view)?;
    watch.step(Step::Neighbours, frame.bytes()); // 5
    if let Some(answer) = neighbor(table, row, view.headers, &content)? {
        answer.write(scratch);
        return Ok(OutboundVerdict::Hairpin);
    }
    watch.step(Step::Mtu, frame.bytes()); // 6
    let largest = frame.largest_frame()?;
    if largest > usize::from(table.spec().mtu) + ethernet::HEADER_LEN {
        if table.admit_error(row, now) {
            too_big::answer(table.spec(), &view, scratch);
        }
        return Err(DropReason::TooBig);
    }
    let destination = view.headers.destination;
    watch.step(Step::Services, frame.bytes()); // 7
    let is_asked = destination == lb::service_mac(table.spec().id);
    match Balancer::of(table, now) {
        Some(balancer) if is_asked => match serve((table, &balancer), row, frame, scratch, now)? {
            Served::Here => return Ok(OutboundVerdict::Hairpin),
            Served::There(Way::Local) => return Ok(OutboundVerdict::Deliver),
            Served::There(Way::Mesh) => {}
        },
        Some(balancer) => balancer.take_direct(frame)?,
        None if is_asked => refuse_gone(table, row, frame, scratch, now)?,
        None => {}
    }
    watch.step(Step::Destination, frame.bytes()); // 8
    let headers = frame.headers().ok_or(DropReason::Runt)?;
    if headers.destination.is_group() {
        flood(table, row, (headers, frame.packets()), now)
    } else {
        forward(table, row, headers)
    }
}

/// Who answers a frame to a service.
enum Served {
    /// The service itself.
    Here,
    /// Whoever is the frame's destination now.
    There(Way),
}

/// Step 7. What leads nowhere is refused in the name of the service, as a host without it would.
fn serve<P>(
    (table, balancer): (&NetworkTable<P>, &Balancer<'_, P>),
    row: &Row<P>,
    frame: &mut Frame<'_>,
    scratch: &mut Scratch,
    now: Instant,
) -> Result<Served, DropReason> {
    let ip = frame.headers().and_then(|headers| headers.ip).ok_or(DropReason::MalformedIp)?;
    if ip.ports.is_none()
        && table.service_at(ip.destination).is_some()
        && service::answer_echo(frame, scratch)
    {
        return Ok(Served::Here);
    }
    balancer.take(frame).map(Served::There).inspect_err(|reason| {
        if balancer.tells(*reason, ip.destination)
            && let Some(headers) = frame.headers()
        {
            let view = View { bytes: frame.bytes(), headers };
            service::refuse(table, row, &view, scratch, now);
        }
    })
}

/// The same where the network has had no services since the agent's start.
fn refuse_gone<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    frame: &Frame<'_>,
    scratch: &mut Scratch,
    now: Instant,
) -> Result<(), DropReason> {
    let headers = frame.headers().ok_or(DropReason::Runt)?;
    if !headers.ip.is_some_and(|ip| table.is_gone_vip(ip.destination)) {
        return Ok(());
    }
    let view = View { bytes: frame.bytes(), headers };
    service::refuse(table, row, &view, scratch, now);
    Err(DropReason::ServicePort)
}

/// Step 4: the local endpoint that has this MAC.
fn source<P>(table: &NetworkTable<P>, mac: MacAddr) -> Result<&Row<P>, DropReason> {
    if mac == table.spec().gateway.mac {
        return Err(DropReason::GatewaySource);
    }
    let local = table.fdb(mac).filter(|row| matches!(row.place, Place::Local));
    local.ok_or(DropReason::SourceUnknown)
}

/// What is written back to the local network.
enum Answer {
    Arp(Arp),
    Nd(Advertisement),
}

impl Answer {
    fn write(&self, scratch: &mut Scratch) {
        match self {
            Self::Arp(arp) => scratch.set(&arp.to_frame()),
            Self::Nd(advertisement) => scratch.set(&advertisement.to_frame()),
        }
    }
}

/// Step 5: the answer to a question about a remote endpoint. Other frames go on, if they are
/// needed.
fn neighbor<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    eth: &Headers,
    content: &Content,
) -> Result<Option<Answer>, DropReason> {
    match content {
        Content::Arp(arp) => answer_arp(table, row, eth, arp),
        Content::Nd(message) => answer_nd(table, row, eth, message),
        Content::Other => Ok(None),
    }
}

fn answer_arp<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    eth: &Headers,
    arp: &Arp,
) -> Result<Option<Answer>, DropReason> {
    if arp.is_announcement() {
        return Err(DropReason::Announcement);
    }
    match arp.operation {
        Operation::Request => {
            let mac = remote_neighbor(table, row, IpAddr::V4(arp.target_ip))?;
            Ok(Some(Answer::Arp(arp.reply_from(mac))))
        }
        Operation::Reply if eth.destination.is_group() => Err(DropReason::Announcement),
        Operation::Reply => Ok(None),
    }
}

fn answer_nd<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    eth: &Headers,
    message: &Message,
) -> Result<Option<Answer>, DropReason> {
    match message {
        Message::Solicitation { target, .. } => {
            let mac = remote_neighbor(table, row, IpAddr::V6(*target))?;
            // Whoever only wants to know whether the address is taken has none to be answered at.
            let asker = match eth.ip.map(|ip| ip.source) {
                Some(IpAddr::V6(asker)) if !asker.is_unspecified() => Some((asker, eth.source)),
                _ => None,
            };
            Ok(Some(Answer::Nd(Advertisement { target: *target, mac, asker })))
        }
        Message::Advertisement { solicited, .. } if !solicited || eth.destination.is_group() => {
            Err(DropReason::Announcement)
        }
        Message::Advertisement { .. }
        | Message::RouterSolicitation
        | Message::RouterAdvertisement
        | Message::Redirect => Ok(None),
    }
}

/// The MAC of the remote endpoint, or of the services, that has this address.
fn remote_neighbor<P>(
    table: &NetworkTable<P>,
    asker: &Row<P>,
    ip: IpAddr,
) -> Result<MacAddr, DropReason> {
    if table.spec().is_gateway(ip) {
        return Err(DropReason::AnsweredLocally);
    }
    let Some(row) = table.neighbor(ip) else {
        let service = table.service_at(ip).map(|_service| lb::service_mac(table.spec().id));
        return service.ok_or(DropReason::NeighborUnknown);
    };
    // A claim to the gateway's MAC, or to one that another has, must not be spread in an answer.
    if table.fdb(row.mac).is_none_or(|owner| owner.key != row.key) {
        return Err(DropReason::NeighborUnknown);
    }
    match row.place {
        Place::Local => Err(DropReason::AnsweredLocally),
        Place::Remote(_) if !isolation::may_meet(table, asker, row) => Err(DropReason::Isolated),
        Place::Remote(_) => Ok(row.mac),
    }
}

/// Step 8, a group: every other member.
fn flood<'t, P>(
    table: &'t NetworkTable<P>,
    row: &Row<P>,
    (eth, packets): (&Headers, usize),
    now: Instant,
) -> Result<OutboundVerdict<'t, P>, DropReason> {
    // First: what has no members may still have somebody to send it to.
    isolation::check(table, row, eth)?;
    if table.members().is_empty() {
        return Err(DropReason::NoMembers);
    }
    // Each is copied to every member.
    if !table.admit_flood(row, packets, now) {
        return Err(DropReason::FloodLimited);
    }
    Ok(OutboundVerdict::Flood(table.members()))
}

/// Step 8, one endpoint: its peer.
fn forward<'t, P>(
    table: &'t NetworkTable<P>,
    row: &Row<P>,
    eth: &Headers,
) -> Result<OutboundVerdict<'t, P>, DropReason> {
    let mac = eth.destination;
    if mac == table.spec().gateway.mac {
        return Err(DropReason::LocalDestination);
    }
    match &table.fdb(mac).ok_or(DropReason::FdbUnknown)?.place {
        Place::Local => Err(DropReason::LocalDestination),
        Place::Remote(peer) => {
            isolation::check(table, row, eth)?;
            Ok(OutboundVerdict::Forward(peer))
        }
    }
}
