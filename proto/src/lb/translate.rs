//! The other end for a frame of a service's flow: [`to_backend`] on the way out, [`from_backend`]
//! on the way in, both at the client's node.
//!
//! ```text
//! client:p -> VIP:80       becomes  client:q -> backend:8080      q is p unless the backend would
//! backend:8080 -> client:q becomes  VIP:80 -> client:p            take it for another flow
//! ```
//!
//! A flow keeps its backend while that is one of the service's and can be reached. Without it, the
//! next datagram begins a new flow, and so does a SYN; a connection cannot move. A SYN also begins
//! a new one where its flow has ended, or is about to.
//!
//! ICMP errors about packets of a flow go the same ways, and what they quote is what their receiver
//! sent.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{
    flows::{Flow, Found, Refused, Sender, Sign, State, Tuple},
    service::{Backend, Protocol, Services, other_port},
    service_mac,
};
use crate::{
    addr::{MacAddr, NetworkId},
    frame::{Frame, Ip, Quoted, Rewrite},
    reason::DropReason,
    tables::{NetworkTable, Place, Row},
    wire::{Fragment, TCP, ipv6::is_link_local},
};

/// How often a flow is looked for while other threads begin and end it. Without them three times
/// are enough: one that ended, none, the new one.
const ATTEMPTS: usize = 6;
/// Ports that a flow tries to have at its backend.
const PORTS: u64 = 16;

/// A packet of a flow.
struct Packet {
    tuple: Tuple,
    sign: Sign,
    mac: MacAddr,
}

impl Packet {
    /// Nothing if it is neither TCP nor UDP, or has no ports.
    fn of(network: NetworkId, frame: &Frame<'_>) -> Option<Self> {
        let headers = frame.headers()?;
        let ip = headers.ip.as_ref()?;
        let sign = Sign::of(ip, frame.bytes())?;
        Some(Self { tuple: tuple_of(network, ip)?, sign, mac: headers.source })
    }
}

fn tuple_of(network: NetworkId, ip: &Ip) -> Option<Tuple> {
    let (source, destination) = ip.ports.filter(|_| ip.fragment != Fragment::Later)?;
    Some(Tuple {
        network,
        protocol: ip.protocol,
        source: SocketAddr::new(ip.source, source),
        destination: SocketAddr::new(ip.destination, destination),
    })
}

/// Gives a frame that a local client sent to a service the backend of its flow as its destination.
///
/// # Errors
/// It goes nowhere.
pub(crate) fn to_backend<P>(
    table: &NetworkTable<P>,
    services: &Services,
    frame: &mut Frame<'_>,
    now: Instant,
) -> Result<(), DropReason> {
    let ip = frame.headers().and_then(|headers| headers.ip).ok_or(DropReason::MalformedIp)?;
    if services.at(ip.destination).is_none() {
        return Err(DropReason::ServicePort);
    }
    if let Some(quoted) = Quoted::of(frame) {
        return error_to_backend(table, services, &quoted, frame);
    }
    let Some(packet) = Packet::of(table.spec().id, frame) else { return Err(refusal(&ip)) };
    let flows = services.flows();
    for _ in 0..ATTEMPTS {
        let Some(found) = flows.find(&packet.tuple).filter(|it| it.sender == Sender::Client) else {
            begin(table, services, &packet, now)?;
            continue;
        };
        let row = row_of(table, services, &found);
        let begins_anew = match packet.sign {
            Sign::Syn => found.state >= State::Closing || row.is_none(),
            Sign::Datagram => row.is_none(),
            Sign::SynAck | Sign::Fin | Sign::Rst | Sign::Segment => false,
        };
        if begins_anew {
            flows.remove(&found);
            continue;
        }
        let row = row.ok_or(DropReason::NoBackend)?;
        if flows.note(&found, packet.sign, now).is_none() {
            continue;
        }
        let flow = &found.flow;
        return frame.rewrite(&Rewrite {
            source: (flow.seen() != flow.client).then(|| flow.seen()),
            destination: Some(flow.backend),
            source_mac: None,
            destination_mac: Some(row.mac),
        });
    }
    Err(DropReason::FlowUnknown)
}

/// The same for an ICMP error of a client: about an answer, which had the VIP as its source.
fn error_to_backend<P>(
    table: &NetworkTable<P>,
    services: &Services,
    quoted: &Quoted,
    frame: &mut Frame<'_>,
) -> Result<(), DropReason> {
    let found = services.flows().find(&answered(table.spec().id, quoted));
    let found = found.filter(|found| found.sender == Sender::Client);
    let found = found.ok_or(DropReason::FlowUnknown)?;
    let row = row_of(table, services, &found).ok_or(DropReason::NoBackend)?;
    let flow = &found.flow;
    let (destination, destination_mac) = (Some(flow.backend), Some(row.mac));
    let outer = Rewrite { destination, destination_mac, ..Rewrite::default() };
    let inner = Rewrite {
        source: Some(flow.backend),
        destination: Some(flow.seen()),
        ..Rewrite::default()
    };
    frame.rewrite_error(quoted, &outer, &inner)
}

/// The packets that answer the one which an error quotes: they go the way of the error.
const fn answered(network: NetworkId, quoted: &Quoted) -> Tuple {
    let Quoted { protocol, source, destination, .. } = *quoted;
    Tuple { network, protocol, source: destination, destination: source }
}

/// Why what has no ports does not reach a service.
fn refusal(ip: &Ip) -> DropReason {
    match Protocol::of_number(ip.protocol) {
        Some(_) if ip.fragment == Fragment::Later => DropReason::FlowUnknown,
        Some(_) => DropReason::MalformedIp,
        None => DropReason::ServicePort,
    }
}

/// Begins the flow of a packet, if another thread does not.
fn begin<P>(
    table: &NetworkTable<P>,
    services: &Services,
    packet: &Packet,
    now: Instant,
) -> Result<(), DropReason> {
    let tuple = &packet.tuple;
    let listed = services.at(tuple.destination.ip()).and_then(|service| {
        let protocol = Protocol::of_number(tuple.protocol)?;
        Some((service, service.backend_port(protocol, tuple.destination.port())?))
    });
    let (service, port) = listed.ok_or(DropReason::ServicePort)?;
    if tuple.protocol == TCP && packet.sign != Sign::Syn {
        return Err(DropReason::FlowUnknown);
    }
    let address = |backend: &Backend| address_of(table, backend, tuple.source.is_ipv4());
    let backend = service.choose(tuple, |backend| address(backend).is_some());
    let backend = backend.ok_or(DropReason::NoBackend)?;
    let ip = address(backend).ok_or(DropReason::NoBackend)?;
    let mut flow = Flow {
        network: tuple.network,
        protocol: tuple.protocol,
        client: tuple.source,
        client_mac: packet.mac,
        vip: tuple.destination,
        backend: SocketAddr::new(ip, port),
        endpoint: backend.key.endpoint,
        seen_port: tuple.source.port(),
        sees_vip: false,
    };
    for attempt in 0..PORTS {
        match services.flows().insert(&flow, services.version(), now) {
            Ok(_) | Err(Refused::Exists | Refused::Busy) => return Ok(()),
            Err(Refused::Full) => return Err(DropReason::FlowTableFull),
            Err(Refused::Clash) => flow.seen_port = other_port(tuple, flow.backend, attempt),
        }
    }
    Err(DropReason::FlowTableFull)
}

/// The row of a flow's backend, while it is one of the service's and can be reached.
fn row_of<'t, P>(
    table: &'t NetworkTable<P>,
    services: &Services,
    found: &Found,
) -> Option<&'t Row<P>> {
    let flow = &found.flow;
    if found.services != services.version() {
        services.at(flow.vip.ip()).filter(|service| service.has(flow.endpoint))?;
        services.flows().compared(found, services.version());
    }
    let row = table.neighbor(flow.backend.ip())?;
    (row.key.endpoint == flow.endpoint && is_reachable(table, row)).then_some(row)
}

/// The address of this IP version at which a backend is reached.
fn address_of<P>(table: &NetworkTable<P>, backend: &Backend, is_ipv4: bool) -> Option<IpAddr> {
    let row = table.row(&backend.key).filter(|row| is_reachable(table, row))?;
    row.ips.iter().copied().find(|ip| {
        let is_local = matches!(ip, IpAddr::V6(v6) if is_link_local(*v6));
        ip.is_ipv4() == is_ipv4 && !is_local && table.owns(row, *ip)
    })
}

/// Whether frames to the row's MAC reach it, and its answers come by here. Those of an endpoint
/// behind the local bridge do not.
fn is_reachable<P>(table: &NetworkTable<P>, row: &Row<P>) -> bool {
    let has_mac = table.fdb(row.mac).is_some_and(|owner| owner.key == row.key);
    has_mac && matches!(row.place, Place::Remote(_))
}

/// Gives a frame that came out of the mesh, if it is the answer of a backend, its VIP as the
/// source. Whether it is one.
///
/// # Errors
/// It is one, and is malformed.
pub(crate) fn from_backend(
    network: NetworkId,
    services: &Services,
    frame: &mut Frame<'_>,
    now: Instant,
) -> Result<bool, DropReason> {
    let Some(packet) = Packet::of(network, frame) else {
        return error_from_backend(network, services, frame);
    };
    let found = services.flows().find(&packet.tuple);
    let Some(found) = found.filter(|found| found.sender == Sender::Backend) else {
        return Ok(false);
    };
    // One that was forgotten at this moment: its answer must not show the backend all the same.
    let _state = services.flows().note(&found, packet.sign, now);
    let flow = &found.flow;
    frame.rewrite(&Rewrite {
        source: Some(flow.vip),
        destination: (flow.seen() != flow.client).then_some(flow.client),
        source_mac: Some(service_mac(network)),
        destination_mac: None,
    })?;
    Ok(true)
}

/// The same for an ICMP error about a packet to a backend, as it was when it had been rewritten. It
/// is the backend's, or that of a router on the way, which keeps its address.
fn error_from_backend(
    network: NetworkId,
    services: &Services,
    frame: &mut Frame<'_>,
) -> Result<bool, DropReason> {
    let Some(quoted) = Quoted::of(frame) else { return Ok(false) };
    let found = services.flows().find(&answered(network, &quoted));
    let Some(found) = found.filter(|found| found.sender == Sender::Backend) else {
        return Ok(false);
    };
    let flow = &found.flow;
    let sender = frame.headers().and_then(|headers| headers.ip).map(|ip| ip.source);
    let is_backends = sender == Some(flow.backend.ip());
    let outer = Rewrite {
        source: is_backends.then_some(flow.vip),
        source_mac: is_backends.then(|| service_mac(network)),
        ..Rewrite::default()
    };
    let inner =
        Rewrite { source: Some(flow.client), destination: Some(flow.vip), ..Rewrite::default() };
    frame.rewrite_error(&quoted, &outer, &inner)?;
    Ok(true)
}
