//! The other end for a frame of a service's flow: [`Balancer::take`] on the way out,
//! [`Balancer::answer`] on the way in, both at the client's node.
//!
//! ```text
//! client:p -> VIP:80       becomes  client:q -> backend:8080      q is p unless the backend would
//! backend:8080 -> client:q becomes  VIP:80 -> client:p            take it for another flow
//! ```
//!
//! A flow keeps its backend while that is one of the service's. A connection cannot move: it ends
//! when its backend is none any more, and waits while nobody knows where it is. Datagrams go to
//! another backend then, and leave one that is about to go. So does a SYN that nobody has answered;
//! it also begins a new flow where its own has ended, or is about to.
//!
//! ICMP errors about packets of a flow go the same ways, and what they quote is what their receiver
//! sent. Later fragments go where the first one went; one that overtakes it is lost.
//!
//! A backend on this node, where the rules of the bridge bring its answers here
//! ([`Services::steers_local`]): what it gets goes back to the bridge, from a MAC by which these
//! rules know the flow. One that asks itself sees the VIP as the client: a host takes no packet
//! from its own address. The rules bring more than answers, such as all errors and fragments of the
//! backend: what is of no flow goes on as if it had not come here.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{
    affinity::{Affinity, beginning},
    flows::{Flow, Found, Fragmented, Refused, Sender, Sign, State, Tuple},
    ingress::is_outside,
    observed::BackendPort,
    service::{Backend, Port, Protocol, PublishMode, Service, Services, other_port},
    service_mac, service_source_mac,
};
use crate::{
    addr::{EndpointId, MacAddr, NetworkId},
    frame::{Frame, Ip, Quoted, Rewrite},
    reason::DropReason,
    tables::{NetworkTable, Place, Row},
    wire::{Fragment, TCP, UDP, ipv6::is_link_local},
};

/// How often a flow is looked for while other threads begin and end it. Without them three times
/// are enough: one that ended, none, the new one.
pub(super) const ATTEMPTS: usize = 6;
/// Ports that a flow tries to have at its backend.
const PORTS: u64 = 16;

/// The services of a network, by one snapshot at one time.
pub(crate) struct Balancer<'t, P> {
    pub(super) table: &'t NetworkTable<P>,
    pub(super) services: &'t Services,
    pub(super) now: Instant,
}

/// Where a frame goes that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Behind a peer.
    Mesh,
    /// Back to the local network.
    Local,
}

/// A packet of a flow.
pub(super) struct Packet {
    pub(super) tuple: Tuple,
    pub(super) sign: Sign,
    pub(super) mac: MacAddr,
    /// If others of the same packet follow.
    pub(super) fragments: Option<Fragmented>,
}

impl Packet {
    /// Nothing if it is neither TCP nor UDP, or has no ports.
    pub(super) fn of(network: NetworkId, frame: &Frame<'_>) -> Option<Self> {
        let headers = frame.headers()?;
        let ip = headers.ip.as_ref()?;
        let sign = Sign::of(ip, frame.bytes())?;
        let (source, destination) = ip.ports.filter(|_| ip.fragment != Fragment::Later)?;
        let tuple = Tuple {
            network,
            protocol: ip.protocol,
            source: SocketAddr::new(ip.source, source),
            destination: SocketAddr::new(ip.destination, destination),
            via: None,
        };
        Some(Self { tuple, sign, mac: headers.source, fragments: fragmented(network, frame) })
    }
}

/// The packet of which the frame is a fragment.
pub(super) fn fragmented(network: NetworkId, frame: &Frame<'_>) -> Option<Fragmented> {
    let ip = frame.headers()?.ip.as_ref()?;
    let id = ip.fragment_id(frame.bytes())?;
    let Ip { source, destination, protocol, .. } = *ip;
    Some(Fragmented { network, protocol, source, destination, id })
}

/// The port of a flow's backend.
fn backend_port(flow: &Flow) -> Option<(Protocol, u16)> {
    Some((Protocol::of_number(flow.protocol)?, flow.backend.port()))
}

/// The packets that answer the one which an error quotes: they go the way of the error.
pub(super) const fn answered(network: NetworkId, quoted: &Quoted) -> Tuple {
    let Quoted { protocol, source, destination, .. } = *quoted;
    Tuple { network, protocol, source: destination, destination: source, via: None }
}

impl<'t, P> Balancer<'t, P> {
    /// Nothing if the network has no services.
    pub(crate) fn of(table: &'t NetworkTable<P>, now: Instant) -> Option<Self> {
        table.services().map(|services| Self { table, services, now })
    }

    pub(super) fn network(&self) -> NetworkId {
        self.table.spec().id
    }

    /// Gives a frame that a local endpoint sent to the services' MAC its other end: one to a VIP
    /// the backend of its flow, the answer of a local backend its client.
    ///
    /// # Errors
    /// It goes nowhere.
    pub(crate) fn take(&self, frame: &mut Frame<'_>) -> Result<Way, DropReason> {
        let ip = frame.headers().and_then(|headers| headers.ip).ok_or(DropReason::MalformedIp)?;
        if let Some(quoted) = Quoted::of(frame) {
            return self.take_error(&quoted, frame);
        }
        if let Some(packet) = Packet::of(self.network(), frame) {
            return self.take_packet(&packet, frame);
        }
        let flows = self.services.flows();
        let of = fragmented(self.network(), frame);
        match of.and_then(|of| flows.find_fragmented(&of, self.now)) {
            Some(found) if found.sender == Sender::Client => {
                self.to_backend(&found, self.row_of(&found)?, frame)
            }
            Some(found) => self.to_client(&found, frame),
            None => self.take_other(&ip, frame),
        }
    }

    /// Whether the sender of a frame to this address may be told that it went nowhere.
    pub(crate) fn tells(&self, reason: DropReason, destination: IpAddr) -> bool {
        let is_known = reason == DropReason::NoBackend
            || self.table.service_at(destination).is_some()
            || self.table.is_gone_vip(destination);
        is_known && self.services.is_sure_of(reason)
    }

    fn take_packet(&self, packet: &Packet, frame: &mut Frame<'_>) -> Result<Way, DropReason> {
        let (flows, destination) = (self.services.flows(), packet.tuple.destination.ip());
        let (mut silent, mut is_new) = (None, false);
        for _ in 0..ATTEMPTS {
            let Some(found) = flows.find(&packet.tuple) else {
                if let Some(service) = self.table.service_at(destination) {
                    let begun = self.begin(service, packet, silent);
                    begun.inspect_err(|reason| service.counters().refused(*reason))?;
                    is_new = true;
                } else if !self.begin_direct(packet)? {
                    return self.take_unknown(destination, frame);
                }
                continue;
            };
            if found.sender == Sender::Backend {
                self.observe(&found, packet.sign);
                if self.is_of_another(&found, packet, frame)? {
                    return self.pass_on(destination, frame);
                }
                let _state = self.note(&found, packet.sign);
                self.remember(packet, &found);
                return self.to_client(&found, frame);
            }
            let row = self.row_of(&found);
            let begins_anew = match packet.sign {
                Sign::Syn if found.state >= State::Closing => true,
                // The client asks again, as nobody has answered: somebody else may.
                Sign::Syn if found.state == State::HalfOpen && !is_new => {
                    silent = Some(found.flow.endpoint);
                    self.has_other(&found.flow)
                }
                // An unknown backend is not one that is gone; and without the service nobody else
                // would answer.
                Sign::Syn | Sign::Datagram if self.services.is_settled() => {
                    row.is_err() && self.table.service_at(destination).is_some()
                }
                Sign::Syn | Sign::Datagram => false,
                Sign::SynAck | Sign::Fin | Sign::Rst | Sign::Segment => false,
            };
            if begins_anew {
                // Another thread may see its answer at this moment: then it stays.
                if flows.remove_unchanged(&found) {
                    self.count_removed(&found);
                }
                continue;
            }
            let row = row.inspect_err(|reason| self.end_told(&found, *reason))?;
            if self.note(&found, packet.sign).is_none() {
                continue;
            }
            self.stay(&found);
            self.remember(packet, &found);
            return self.to_backend(&found, row, frame);
        }
        Err(DropReason::FlowBusy)
    }

    /// Forgets a connection whose backend is none any more, as its client is told that it ended.
    /// While its service is there: what is left of it is refused, too.
    fn end_told(&self, found: &Found, reason: DropReason) {
        if reason == DropReason::NoBackend
            && self.services.is_settled()
            && self.table.service_at(found.flow.vip.ip()).is_some()
            && self.services.flows().remove_unchanged(found)
        {
            self.count_removed(found);
        }
    }

    /// Remembers where fragments that follow the packet go.
    pub(super) fn remember(&self, packet: &Packet, found: &Found) {
        if let Some(of) = &packet.fragments {
            self.services.flows().remember_fragmented(of, found, self.now);
        }
    }

    /// Begins the flow of a packet to a service; not with the backend that is `silent`.
    fn begin(
        &self,
        service: &Service,
        packet: &Packet,
        silent: Option<EndpointId>,
    ) -> Result<(), DropReason> {
        let tuple = &packet.tuple;
        let protocol = Protocol::of_number(tuple.protocol);
        let port = protocol.and_then(|it| service.port(it, tuple.destination.port()));
        let port = port.ok_or(DropReason::ServicePort)?;
        let at = (port.protocol, port.backend_port);
        if tuple.protocol == TCP && packet.sign != Sign::Syn {
            return Err(DropReason::FlowUnknown);
        }
        let chosen = self.choose(service, tuple, port, silent);
        let (backend, ip) = chosen.ok_or_else(|| self.why_nobody(service))?;
        let asks_itself = self.table.row(&backend.key);
        let (protocol, port) = at;
        if protocol == Protocol::Tcp {
            let to = BackendPort { key: backend.key, protocol, port };
            service.observed().sent(&to, self.services.flows().millis(self.now));
        }
        let is_begun = self.insert(Flow {
            network: tuple.network,
            protocol: tuple.protocol,
            client: tuple.source,
            client_mac: packet.mac,
            vip: tuple.destination,
            backend: SocketAddr::new(ip, port),
            endpoint: backend.key.endpoint,
            seen_port: tuple.source.port(),
            sees_vip: asks_itself.is_some_and(|row| self.table.owns(row, tuple.source.ip())),
            is_relayed: false,
        })?;
        if is_begun && let Some(counts) = service.counts_of(backend.key.endpoint) {
            counts.begun();
        }
        Ok(())
    }

    /// The backend for a new flow, and its address; not the one that is `silent`.
    fn choose<'s>(
        &self,
        service: &'s Service,
        tuple: &Tuple,
        port: &Port,
        silent: Option<EndpointId>,
    ) -> Option<(&'s Backend, IpAddr)> {
        let address = |backend: &Backend| self.address_of(backend, tuple.source.is_ipv4());
        let (at, stays_here) =
            ((port.protocol, port.backend_port), self.stays_here(port, tuple.source.ip()));
        let is_there = |backend: &Backend| {
            address(backend).is_some() && (!stays_here || self.is_here(backend))
        };
        let is_well = |backend: &Backend| {
            let is_silent = silent == Some(backend.key.endpoint);
            !is_silent && service.takes_new(backend, at) && is_there(backend)
        };
        // Ejection is nothing to go by where it leaves nobody.
        let spread = |kept: Option<&'s Backend>| {
            kept.filter(|backend| is_well(backend))
                .or_else(|| service.choose(tuple, |backend| backend.is_near && is_well(backend)))
                .or_else(|| service.choose(tuple, is_well))
                .or_else(|| kept.filter(|backend| is_there(backend)))
                .or_else(|| service.choose(tuple, is_there))
        };
        let backend = match service.affinity() {
            Some(affinity) => self.keep((service, affinity), tuple.source.ip(), spread)?,
            None => spread(None)?,
        };
        Some((backend, address(backend)?))
    }

    /// The backend that a client of a sticky service has, or gets now. `spread` says which, by the
    /// one that it had.
    fn keep<'s>(
        &self,
        (service, (affinity, ttl)): (&'s Service, (&Affinity, u32)),
        client: IpAddr,
        spread: impl Fn(Option<&'s Backend>) -> Option<&'s Backend>,
    ) -> Option<&'s Backend> {
        let flows = self.services.flows();
        let (hash, second) = (flows.hash_of(client), flows.second(self.now));
        let mut chosen = None;
        for _ in 0..ATTEMPTS {
            let place = affinity.place(hash, second);
            let had = place.backend(second, ttl).and_then(|begins| service.backend_with(begins));
            chosen = spread(had.filter(|backend| backend.takes_new && backend.weight > 0));
            // Another thread may choose for the same client at this moment.
            if affinity.claim(&place, chosen?.key.endpoint, second) {
                break;
            }
        }
        chosen
    }

    /// Notes that a client uses its backend, with the first packet of each second.
    fn stay(&self, found: &Found) {
        let (flow, flows) = (&found.flow, self.services.flows());
        let second = flows.second(self.now);
        if found.second == second || flow.is_direct() {
            return;
        }
        let service = self.services.at(flow.vip.ip());
        let Some((affinity, ttl)) = service.and_then(Service::affinity) else { return };
        let place = affinity.place(flows.hash_of(flow.client.ip()), second);
        // What is left of a flow to the backend before says nothing of the one that it has now.
        if place.backend(second, ttl).is_none_or(|begins| begins == beginning(flow.endpoint)) {
            affinity.claim(&place, flow.endpoint, second);
        }
    }

    /// Begins a flow, if another thread does not: false then. With another port, if it would look
    /// like another.
    pub(super) fn insert(&self, mut flow: Flow) -> Result<bool, DropReason> {
        let tuple = flow.forward();
        for attempt in 0..PORTS {
            match self.services.flows().insert(&flow, self.services.version(), self.now) {
                Ok(_) => return Ok(true),
                Err(Refused::Exists | Refused::Busy) => return Ok(false),
                Err(Refused::Full) => return Err(DropReason::FlowTableFull),
                Err(Refused::Clash) => flow.seen_port = other_port(&tuple, flow.backend, attempt),
            }
        }
        Err(DropReason::FlowTableFull)
    }

    /// Why a new flow gets no backend: one of which nothing is known may be back soon.
    fn why_nobody(&self, service: &Service) -> DropReason {
        let is_away = |backend: &Backend| self.table.row(&backend.key).is_none();
        if service.for_new_flows().any(is_away) {
            DropReason::BackendUnknown
        } else {
            DropReason::NoBackend
        }
    }

    /// The row of a flow's backend, while it is one of the service's and can be reached.
    pub(super) fn row_of(&self, found: &Found) -> Result<&'t Row<P>, DropReason> {
        let (flow, version) = (&found.flow, self.services.version());
        if !flow.is_direct() && !found.was_compared_with(version) {
            let service = self.services.at(flow.vip.ip());
            let backend = service.and_then(|service| service.backend(flow.endpoint));
            let backend = backend.ok_or(DropReason::NoBackend)?;
            // Datagrams leave who is about to go or silent as soon as somebody else is there.
            if flow.protocol != UDP || self.stays(flow, backend) {
                self.services.flows().compared(found, version);
            } else if self.services.is_settled() && self.has_other(flow) {
                return Err(DropReason::NoBackend);
            }
        }
        let row = self.table.neighbor(flow.backend.ip());
        let its = row.filter(|row| row.key.endpoint == flow.endpoint && self.is_reachable(row));
        its.ok_or(DropReason::BackendUnknown)
    }

    /// Whether the backend of a flow gets new ones, too.
    fn stays(&self, flow: &Flow, backend: &Backend) -> bool {
        let (service, at) = (self.services.at(flow.vip.ip()), backend_port(flow));
        service.zip(at).is_none_or(|(service, at)| service.takes_new(backend, at))
    }

    /// Whether another backend than the flow's gets new flows.
    fn has_other(&self, flow: &Flow) -> bool {
        let Some((service, at)) = self.services.at(flow.vip.ip()).zip(backend_port(flow)) else {
            return false;
        };
        let is_ipv4 = flow.client.is_ipv4();
        let port = service.port(at.0, flow.vip.port());
        let stays_here = port.is_some_and(|port| self.stays_here(port, flow.client.ip()));
        service.for_new_flows().any(|other| {
            other.key.endpoint != flow.endpoint
                && (!stays_here || self.is_here(other))
                && service.takes_new(other, at)
                && self.address_of(other, is_ipv4).is_some()
        })
    }

    /// Remembers what was seen of a backend of which nothing was heard in its flow before.
    pub(super) fn observe(&self, found: &Found, sign: Sign) {
        if found.state == State::HalfOpen
            && let Some((service, by)) = self.port_of(&found.flow)
        {
            match sign {
                Sign::Rst => service.observed().refused(&by),
                _ => service.observed().answered(&by, self.services.flows().millis(self.now)),
            }
        }
    }

    /// The same for an ICMP error about a packet to it. Datagrams are accepted by nobody, so each
    /// of them may be refused.
    pub(super) fn observe_error(&self, found: &Found, quoted: &Quoted) {
        let is_open = found.state == State::HalfOpen || found.flow.protocol == UDP;
        if quoted.is_unreachable
            && is_open
            && let Some((service, by)) = self.port_of(&found.flow)
        {
            service.observed().refused(&by);
        }
    }

    /// The service of a flow, and the port of its backend.
    fn port_of(&self, flow: &Flow) -> Option<(&Service, BackendPort)> {
        if flow.is_direct() {
            return None;
        }
        let service = self.services.at(flow.vip.ip())?;
        let (protocol, port) = backend_port(flow)?;
        let key = service.backend(flow.endpoint)?.key;
        Some((service, BackendPort { key, protocol, port }))
    }

    /// Whether a client has backends of this node only.
    fn stays_here(&self, port: &Port, client: IpAddr) -> bool {
        port.published == Some(PublishMode::Host) && is_outside(self.table, client)
    }

    fn is_here(&self, backend: &Backend) -> bool {
        let row = self.table.row(&backend.key);
        row.is_some_and(|row| matches!(row.place, Place::Local))
    }

    /// The address of this IP version at which a backend is reached.
    fn address_of(&self, backend: &Backend, is_ipv4: bool) -> Option<IpAddr> {
        let row = self.table.row(&backend.key).filter(|row| self.is_reachable(row))?;
        row.ips.iter().copied().find(|ip| {
            let is_local = matches!(ip, IpAddr::V6(v6) if is_link_local(*v6));
            ip.is_ipv4() == is_ipv4 && !is_local && self.table.owns(row, *ip)
        })
    }

    /// Whether frames to the row's MAC reach it, and its answers come by here. Those of a node
    /// itself do not pass the rules that bring the others.
    fn is_reachable(&self, row: &Row<P>) -> bool {
        let answers_here = match row.place {
            Place::Remote(_) => true,
            Place::Local => self.services.steers_local() && !row.router,
        };
        answers_here && self.has_mac(row)
    }

    fn has_mac(&self, row: &Row<P>) -> bool {
        self.table.fdb(row.mac).is_some_and(|owner| owner.key == row.key)
    }

    /// Makes the frame one to its flow's backend, which has this row.
    pub(super) fn to_backend(
        &self,
        found: &Found,
        row: &Row<P>,
        frame: &mut Frame<'_>,
    ) -> Result<Way, DropReason> {
        let flow = &found.flow;
        let (way, source_mac) = self.way_to(row);
        frame.rewrite(&Rewrite {
            source: (flow.seen() != flow.client).then(|| flow.seen()),
            destination: Some(flow.backend),
            source_mac,
            destination_mac: Some(row.mac),
        })?;
        self.count(found, frame);
        Ok(way)
    }

    /// The way to a backend, and from which MAC it gets its frames if not from the client's.
    pub(super) fn way_to(&self, row: &Row<P>) -> (Way, Option<MacAddr>) {
        match row.place {
            Place::Remote(_) => (Way::Mesh, None),
            Place::Local => (Way::Local, Some(service_source_mac(self.network()))),
        }
    }

    /// A packet of no flow, which is for no service.
    fn take_unknown(&self, destination: IpAddr, frame: &mut Frame<'_>) -> Result<Way, DropReason> {
        // Clients remember the MAC of a service for a while after its end.
        if self.table.is_gone_vip(destination) {
            return Err(DropReason::ServicePort);
        }
        if self.services.steers_local() && !self.services.is_settled() {
            // It may be the answer in a flow that is not known yet.
            return Err(DropReason::FlowUnknown);
        }
        self.pass_on(destination, frame)
    }

    /// A frame that has no ports, and is no error.
    fn take_other(&self, ip: &Ip, frame: &mut Frame<'_>) -> Result<Way, DropReason> {
        if self.table.service_at(ip.destination).is_none() {
            return self.pass_on(ip.destination, frame);
        }
        Err(match Protocol::of_number(ip.protocol) {
            Some(_) if ip.fragment == Fragment::Later => DropReason::FlowUnknown,
            Some(_) => DropReason::MalformedIp,
            None => DropReason::ServicePort,
        })
    }

    /// Sends a frame that is not for a service where it would have gone without the rules that
    /// brought it here.
    pub(super) fn pass_on(
        &self,
        destination: IpAddr,
        frame: &mut Frame<'_>,
    ) -> Result<Way, DropReason> {
        let is_hosts = !destination.is_multicast() && destination != IpAddr::from([255; 4]);
        if !self.services.steers_local() || !is_hosts {
            return Err(DropReason::ServicePort);
        }
        let owner = self.table.neighbor(destination).filter(|row| self.has_mac(row));
        let (way, mac) = match owner {
            Some(row) if matches!(row.place, Place::Remote(_)) => (Way::Mesh, row.mac),
            Some(row) => (Way::Local, row.mac),
            None => (Way::Local, self.table.spec().gateway.mac),
        };
        let from = (way == Way::Local).then(|| service_mac(self.network()));
        frame.rewrite_macs(from, mac)?;
        Ok(way)
    }
}
