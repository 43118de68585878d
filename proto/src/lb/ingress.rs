//! Clients outside of a network: who may bring their packets in ([`is_admitted`]), and how they
//! find a backend on another node than the one they come in by.
//!
//! ```text
//! client -> host A: A's kernel -> A's router -> VIP:80     A's agent chooses, as for its endpoints
//! client:p -> backend:8080, from A's router, by the mesh   B's agent remembers whose router it was
//! backend:8080 -> client:p, to the gateway                 B's bridge brings it to the agent,
//!                                                          which sends it to A's router
//! ```
//!
//! So a backend sees the client itself, and its answers leave by the node that the client knows.
//! Two nodes may bring one address and port to one backend; the second of them has another port
//! there.

use std::net::{IpAddr, SocketAddr};

use super::{
    flows::{Flow, Sign, State, Tuple},
    service::{Port, Protocol, PublishMode, Service, Services},
    service_source_mac,
    translate::{ATTEMPTS, Balancer, Packet, answered, fragmented},
};
use crate::{
    addr::MacAddr,
    frame::{Frame, Ip, Quoted, Rewrite, View},
    reason::DropReason,
    tables::{NetworkTable, Place, Row},
    wire::{Fragment, ipv6::is_link_local},
};

/// Whether the row's router may carry a packet whose source is no address of the network: from
/// outside, to a port of a service that is published, or an ICMP error about an answer of one.
pub(crate) fn is_admitted<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    ip: &Ip,
    frame: &View<'_>,
) -> bool {
    let Some(services) = table.services().filter(|services| !services.published().is_empty())
    else {
        return false;
    };
    if !row.router || !is_foreign(table, ip.source) {
        return false;
    }
    let asked = Asked { table, services, row };
    if let Some(quoted) = Quoted::within(frame.bytes, frame.headers) {
        // Also from the host of the router itself, whose uplink has a link-local address.
        return quoted.source.ip() == ip.destination
            && is_outside(table, quoted.destination.ip())
            && asked.meets(&answered(table.spec().id, &quoted));
    }
    if !is_outside(table, ip.source) {
        return false;
    }
    match ip.ports.filter(|_| ip.fragment != Fragment::Later) {
        Some((source, destination)) => asked.meets(&Tuple {
            network: table.spec().id,
            protocol: ip.protocol,
            source: SocketAddr::new(ip.source, source),
            destination: SocketAddr::new(ip.destination, destination),
            via: None,
        }),
        None => ip.fragment == Fragment::Later && asked.leads(ip.destination, |_| true),
    }
}

/// Whether an address may be a host's outside of the network.
pub(super) fn is_outside<P>(table: &NetworkTable<P>, ip: IpAddr) -> bool {
    let is_near = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => is_link_local(v6),
    };
    !is_near && is_foreign(table, ip)
}

/// The same of one that may also be a link's own.
fn is_foreign<P>(table: &NetworkTable<P>, ip: IpAddr) -> bool {
    let spec = table.spec();
    let is_all = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !is_all
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !ip.is_loopback()
        && !spec.is_gateway(ip)
        && !spec.subnets.iter().any(|subnet| subnet.contains(&ip))
}

/// What a router brings to a network with published services.
struct Asked<'t, P> {
    table: &'t NetworkTable<P>,
    services: &'t Services,
    row: &'t Row<P>,
}

impl<P> Asked<'_, P> {
    /// Whether packets like this may come in: to a port that is published, or in a flow that began
    /// when it was.
    fn meets(&self, packet: &Tuple) -> bool {
        let to = packet.destination;
        let is_port = |(protocol, port): (Protocol, u16)| {
            Protocol::of_number(packet.protocol) == Some(protocol) && port == to.port()
        };
        if self.leads(to.ip(), is_port) {
            return true;
        }
        let with = Tuple { via: Some(self.row.mac), ..*packet };
        !self.is_here() && self.services.flows().find(&with).is_some()
    }

    /// Whether an address is the VIP or a backend of a service that has such a port of it
    /// published. One of mode [`PublishMode::Host`] is so on its own node, as the VIP is.
    fn leads(&self, at: IpAddr, is_port: impl Fn((Protocol, u16)) -> bool) -> bool {
        let is_here = self.is_here();
        let has = |service: &Service, of: fn(&Port) -> u16| {
            service.published().any(|(port, mode)| {
                (is_here || mode == PublishMode::Ingress) && is_port((port.protocol, of(port)))
            })
        };
        let Some(row) = self.table.neighbor(at) else {
            let service = self.services.at(at).filter(|_| is_here);
            return service.is_some_and(|service| has(service, |port| port.port));
        };
        self.services.published().iter().any(|service| {
            let backend = service.backend(row.key.endpoint);
            backend.is_some_and(|backend| backend.key == row.key)
                && has(service, |port| port.backend_port)
        })
    }

    const fn is_here(&self) -> bool {
        matches!(self.row.place, Place::Local)
    }
}

impl<P> Balancer<'_, P> {
    /// Has a frame from another node's router, whose client is outside of the network, reach the
    /// backend here that it is for. False if it is none.
    ///
    /// # Errors
    /// It goes nowhere.
    pub(super) fn relay(&self, frame: &mut Frame<'_>) -> Result<bool, DropReason> {
        if self.services.published().is_empty() {
            return Ok(false);
        }
        let Some((via, ip)) = frame.headers().and_then(|it| Some((it.source, it.ip?))) else {
            return Ok(false);
        };
        let is_router = self.table.fdb(via).is_some_and(|row| row.router);
        if !is_router || !is_foreign(self.table, ip.source) {
            return Ok(false);
        }
        let quoted = Quoted::of(frame);
        if !is_outside(self.table, ip.source) {
            // A node also says things in its own name.
            let Some((quoted, flow)) =
                quoted.and_then(|it| Some((it, self.quoted_flow(via, &it)?)))
            else {
                return Ok(false);
            };
            self.relay_error(&quoted, &flow, frame)?;
            return Ok(true);
        }
        if !self.services.steers_local() {
            // Its answers would leave by this host, which the client has not asked.
            return Err(DropReason::BackendUnknown);
        }
        if let Some(quoted) = quoted {
            let flow = self.quoted_flow(via, &quoted).ok_or(DropReason::FlowUnknown)?;
            self.relay_error(&quoted, &flow, frame)?;
        } else if let Some(packet) = Packet::of(self.network(), frame) {
            let packet = Packet { tuple: Tuple { via: Some(via), ..packet.tuple }, ..packet };
            let flow = self.relayed(&packet, via)?;
            frame.rewrite(&self.relay_rewrite(&flow))?;
        } else {
            let of = fragmented(self.network(), frame).ok_or(DropReason::MalformedIp)?;
            let found = self.services.flows().find_fragmented(&of, self.now);
            let found = found.filter(|found| found.flow.is_relayed && found.flow.client_mac == via);
            let flow = found.ok_or(DropReason::FlowUnknown)?.flow;
            frame.rewrite(&self.relay_rewrite(&flow))?;
        }
        Ok(true)
    }

    /// The flow of a packet from outside. What is no beginning, and of no flow, gets none: the
    /// backend would answer it, and the answer go another way.
    fn relayed(&self, packet: &Packet, via: MacAddr) -> Result<Flow, DropReason> {
        let flows = self.services.flows();
        for _ in 0..ATTEMPTS {
            let Some(found) = flows.find(&packet.tuple) else {
                if !matches!(packet.sign, Sign::Syn | Sign::Datagram) {
                    return Err(DropReason::FlowUnknown);
                }
                self.begin_relayed(&packet.tuple, via)?;
                continue;
            };
            // The kernel would keep the flow for hours by it.
            let is_early = matches!(packet.sign, Sign::Segment | Sign::Fin);
            if is_early && found.state == State::HalfOpen {
                return Err(DropReason::FlowUnknown);
            }
            // One that ended may be another's at its own node by now, with other ports.
            if packet.sign == Sign::Syn && found.state >= State::Closing {
                flows.remove_unchanged(&found);
                continue;
            }
            if flows.note(&found, packet.sign, self.now).is_some() {
                self.remember(packet, &found);
                return Ok(found.flow);
            }
        }
        Err(DropReason::FlowBusy)
    }

    fn begin_relayed(&self, tuple: &Tuple, via: MacAddr) -> Result<(), DropReason> {
        let row = self.table.neighbor(tuple.destination.ip());
        let row = row.filter(|row| matches!(row.place, Place::Local));
        let row = row.ok_or(DropReason::NotLocal)?;
        self.insert(Flow {
            network: tuple.network,
            protocol: tuple.protocol,
            client: tuple.source,
            client_mac: via,
            vip: tuple.destination,
            backend: tuple.destination,
            endpoint: row.key.endpoint,
            seen_port: tuple.source.port(),
            sees_vip: false,
            is_relayed: true,
        })?;
        Ok(())
    }

    fn relay_rewrite(&self, flow: &Flow) -> Rewrite {
        Rewrite {
            source: (flow.seen() != flow.client).then(|| flow.seen()),
            source_mac: Some(service_source_mac(self.network())),
            ..Rewrite::default()
        }
    }

    /// The flow of what an error from outside quotes: an answer of a backend here.
    fn quoted_flow(&self, via: MacAddr, quoted: &Quoted) -> Option<Flow> {
        let tuple = Tuple { via: Some(via), ..answered(self.network(), quoted) };
        self.services.flows().find(&tuple).map(|found| found.flow)
    }

    fn relay_error(
        &self,
        quoted: &Quoted,
        flow: &Flow,
        frame: &mut Frame<'_>,
    ) -> Result<(), DropReason> {
        let outer =
            Rewrite { source_mac: Some(service_source_mac(self.network())), ..Rewrite::default() };
        let inner = Rewrite { destination: Some(flow.seen()), ..Rewrite::default() };
        frame.rewrite_error(quoted, &outer, &inner)
    }

    /// Where answers to the client of a flow from outside go: the router that brought it.
    pub(super) fn router_of(&self, flow: &Flow) -> Result<MacAddr, DropReason> {
        let row = self.table.fdb(flow.client_mac).filter(|row| row.router);
        match row.map(|row| &row.place) {
            Some(Place::Remote(_)) => Ok(flow.client_mac),
            _ => Err(DropReason::FdbUnknown),
        }
    }
}
