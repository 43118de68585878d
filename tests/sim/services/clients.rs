//! Connections to services, as their clients and servers see them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    lb::{BackendPort, Protocol, ejection::Subject, service_mac, service_source_mac},
    reason::DropReason,
    tables::RowKey,
};

use super::{
    Vip,
    datagrams::Senders,
    known::{Known, Standing, known},
    segment::{self, Flag, Segment, unreachable},
};
use crate::{
    life::{BACKEND_PORT, VIP_PORT},
    world::{Fate, World},
};

/// When a SYN or FIN is sent again, after the one before it (Linux).
const AGAIN: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// The first port of clients in the network, and of those outside.
const PORTS: [u64; 2] = [10_000, 30_000];

/// Who calls a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The endpoint that sends it: the client, or the router by which one from outside comes in.
    pub(crate) client: EndpointId,
    pub(crate) own: SocketAddr,
    pub(super) vip: IpAddr,
    pub(super) protocol: u8,
}

/// A connection, as its client sees it.
#[derive(Clone, Debug)]
struct Connection {
    call: Call,
    /// Where its last SYN went.
    tried: Option<EndpointId>,
    tries: usize,
    /// When its SYN or FIN is sent again.
    again: Instant,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asks,
    Open,
    /// The client has nothing more to say.
    Closes,
}

/// What became of connections.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    begun: u64,
    established: u64,
    refused: u64,
    retried: u64,
    said: u64,
    held: u64,
    ended: u64,
    /// Those whose both ends said so.
    finished: u64,
    /// On a port that had one before.
    again: u64,
    /// From outside, and of these to ports that are not published.
    outside: u64,
    shut: u64,
    pub(super) made: u64,
    pub(super) closed: u64,
    pub(super) passed_over: u64,
    /// New ones while a backend drained that could have had them.
    drained: u64,
    /// New ones while a backend did not pass its check.
    failing: u64,
    pub(super) datagrams: u64,
    pub(super) moved: u64,
}

/// All clients and servers.
#[derive(Default)]
pub(crate) struct Clients {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// The ports of connections that ended.
    finished: Vec<Call>,
    /// What servers know: a backend, a client as it sees it, and whether there is nothing more to
    /// say to that.
    served: BTreeMap<(EndpointId, SocketAddr), bool>,
    pub(super) senders: Senders,
    pub(super) vips: BTreeMap<(NetworkId, IpAddr), Vip>,
    pub(super) counts: Counts,
}

impl Clients {
    pub(crate) fn counts(&self) -> String {
        format!("{:?}", self.counts)
    }

    pub(super) fn connections(&self) -> Vec<u64> {
        self.connections.keys().copied().collect()
    }

    /// The clients outside that have a connection.
    pub(super) fn outside_of(&self, is_ipv4: bool) -> Vec<SocketAddr> {
        let all = self.connections.values().map(|it| it.call.own);
        all.filter(|own| is_outside(own.ip()) && own.is_ipv4() == is_ipv4).collect()
    }

    /// Whether it is established; nothing if there is none.
    pub(super) fn is_open(&self, id: u64) -> Option<bool> {
        self.connections.get(&id).map(|it| it.stage != Stage::Asks)
    }
}

pub(super) fn is_outside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 203,
        IpAddr::V6(ip) => ip.segments()[0] == 0x2001,
    }
}

impl Call {
    pub(super) fn is_from_outside(&self) -> bool {
        is_outside(self.own.ip())
    }

    /// Whether its node knew that the port is not for it.
    pub(super) fn is_shut_out(&self, known: &Known) -> bool {
        self.is_from_outside() && !known.publishes(self.protocol)
    }

    fn port_of(&self, key: RowKey) -> BackendPort {
        let protocol = Protocol::of_number(self.protocol).unwrap();
        BackendPort { key, protocol, port: BACKEND_PORT }
    }
}

impl World {
    // ---- clients

    /// An endpoint, at a port that it has not used.
    pub(super) fn new_call(
        &mut self,
        client: EndpointId,
        vip: IpAddr,
        protocol: u8,
    ) -> Option<Call> {
        let (_, claim) = self.endpoints.get(&client)?;
        let ip = *claim.ips.iter().find(|ip| ip.is_ipv4() == vip.is_ipv4())?;
        Some(self.new_call_from(client, ip, vip, protocol))
    }

    /// The same for who has this address.
    pub(super) fn new_call_from(
        &mut self,
        client: EndpointId,
        ip: IpAddr,
        vip: IpAddr,
        protocol: u8,
    ) -> Call {
        let id = self.clients.next;
        self.clients.next += 1;
        let port = PORTS[usize::from(is_outside(ip))] + id % 20_000;
        Call { client, own: SocketAddr::new(ip, u16::try_from(port).unwrap()), vip, protocol }
    }

    /// One that had a connection, with the same port.
    pub(super) fn call_again(&mut self) -> Option<Call> {
        let count = self.clients.finished.len();
        let at = (count > 0).then(|| self.rng.below(count))?;
        self.clients.counts.again += 1;
        Some(self.clients.finished.swap_remove(at))
    }

    /// A client begins a connection; nothing if its node does not live.
    pub(crate) fn connect(&mut self, call: Call) -> Option<u64> {
        let (n, _) = self.endpoints.get(&call.client)?;
        self.nodes[*n].life.as_ref()?;
        if self.clients.connections.values().any(|it| it.call == call) {
            return None;
        }
        let id = self.clients.next;
        self.clients.next += 1;
        let (again, stage) = (self.now + AGAIN[0], Stage::Asks);
        let connection = Connection { call, tried: None, tries: 0, again, stage };
        self.clients.connections.insert(id, connection);
        self.clients.counts.begun += 1;
        self.clients.counts.outside += u64::from(call.is_from_outside());
        self.begin(id);
        Some(id)
    }

    /// What a node knows of a client's service.
    pub(super) fn known_of(&self, call: &Call) -> Option<Known> {
        let (n, claim) = self.endpoints.get(&call.client)?;
        let life = self.nodes[*n].life.as_ref()?;
        Some(known(life, claim.network, call.vip))
    }

    /// What becomes of a frame of a client, and the endpoint that it goes to.
    pub(super) fn say(&mut self, call: &Call, flag: Flag) -> Option<(Fate, Option<EndpointId>)> {
        let (n, claim) = self.endpoints.get(&call.client).cloned()?;
        let id = self.next_id();
        let ends = (call.own, SocketAddr::new(call.vip, VIP_PORT));
        let frame = segment::build((claim.mac, service_mac(claim.network)), ends, flag, id);
        let now = self.now;
        if let Some(life) = self.nodes[n].life.as_mut() {
            life.serving.wake(now);
        }
        let fate = self.offer(call.client, None, frame, id)?;
        let to = match &fate {
            Fate::Sealed(frame) | Fate::Local(frame) => {
                let mac = segment::parse(frame).unwrap().destination;
                let table = &self.nodes[n].life.as_ref().unwrap().locals[&claim.network].table;
                let row = table.fdb(mac);
                assert!(row.is_some() || mac == table.spec().gateway.mac, "{call:?} to {mac}");
                row.map(|row| row.key.endpoint)
            }
            Fate::Answered(_) | Fate::Dropped(..) => None,
        };
        // What is for no service any more goes to the gateway, where nobody has the address.
        let fate = match fate {
            Fate::Local(_) if to.is_none() => Fate::Dropped(DropReason::ServicePort, Vec::new()),
            fate => fate,
        };
        if let Some(sent) = self.sent.get_mut(&id) {
            sent.to = to;
        }
        Some((fate, to))
    }

    /// What a node gave back to its bridge comes to the endpoint that it is for.
    pub(super) fn pass(&mut self, from: EndpointId, fate: Fate) {
        if let (Some((n, claim)), Fate::Local(frame)) = (self.endpoints.get(&from), fate) {
            let (n, network) = (*n, claim.network);
            self.reached(n, network, &frame);
        }
    }

    /// Sends the SYN of a connection.
    fn begin(&mut self, id: u64) {
        let connection = self.clients.connections[&id].clone();
        let call = connection.call;
        let Some(known) = self.known_of(&call) else { return };
        let Some((fate, to)) = self.say(&call, Flag::Syn) else { return };
        let is_again = connection.tries > 0;
        if let Some(to) = to {
            self.check_chosen(&call, (connection.tried, is_again), &known, to);
        }
        if let Fate::Dropped(reason, answer) = &fate {
            let healthy = known.healthy();
            // A backend that is not known yet may have answered the one before.
            let may_wait = is_again && !known.is_settled && answer.is_empty();
            assert!(
                healthy.is_empty() || may_wait || call.is_shut_out(&known),
                "refused ({reason:?}) while {healthy:?} were known: {connection:?}"
            );
            self.clients.counts.shut += u64::from(call.is_shut_out(&known));
            if answer.is_empty() {
                self.clients.counts.held += 1;
            } else {
                self.clients.counts.refused += 1;
                self.clients.connections.remove(&id);
                return;
            }
        }
        let now = self.now;
        if let Some(connection) = self.clients.connections.get_mut(&id) {
            connection.tried = to.or(connection.tried);
            let wait = AGAIN.get(connection.tries).copied();
            connection.again = now + wait.unwrap_or(Duration::from_secs(8));
            connection.tries += 1;
        }
        self.pass(call.client, fate);
    }

    /// What begins a flow goes to a backend that its node knew to be there, and to none that is out
    /// while enough others are not. `before` is the one that had its SYN.
    pub(super) fn check_chosen(
        &mut self,
        call: &Call,
        (before, is_again): (Option<EndpointId>, bool),
        known: &Known,
        to: EndpointId,
    ) {
        let standing = known.standing(to);
        let keeps = [Standing::Idle, Standing::Draining, Standing::Failing];
        let stays = before == Some(to) && standing.is_some_and(|it| keeps.contains(&it));
        assert!(
            standing == Some(Standing::Healthy) || stays,
            "a new flow to {to}, which is {standing:?}: {call:?}"
        );
        assert!(!call.is_shut_out(known), "from outside to what is not published: {call:?}");
        let is_out = |key: RowKey| self.is_out(call, key);
        let all = known.backends.values();
        let candidates: Vec<&(RowKey, Standing)> =
            all.filter(|it| matches!(it.1, Standing::Healthy | Standing::Hidden)).collect();
        let out = candidates.iter().filter(|it| is_out(it.0)).count();
        let mut others = candidates.iter().filter(|it| it.1 == Standing::Healthy);
        let is_well = others.any(|it| !is_out(it.0) && it.0.endpoint != to);
        if !is_again && is_well && is_out(known.backends[&to].0) {
            let most = candidates.len() / 2;
            assert!(out > most, "{to} is out, one of {out}, at most {most}: {call:?}");
        }
        self.clients.counts.passed_over += u64::from(out > 0);
        let mut all = known.backends.values();
        self.clients.counts.drained += u64::from(all.any(|it| it.1 == Standing::Draining));
        let mut all = known.backends.values();
        self.clients.counts.failing += u64::from(all.any(|it| it.1 == Standing::Failing));
    }

    /// Whether a backend is out for a call, as its node sees it.
    pub(super) fn is_out(&self, call: &Call, key: RowKey) -> bool {
        let (n, claim) = &self.endpoints[&call.client];
        let life = self.nodes[*n].life.as_ref().unwrap();
        let subjects = [Subject::Node(key.node), Subject::Port(claim.network, call.port_of(key))];
        subjects.into_iter().any(|subject| life.serving.ejections.is_out(subject))
    }

    /// Says something in an established connection.
    pub(crate) fn talk(&mut self, id: u64) {
        if self.clients.connections.get(&id).is_some_and(|it| it.stage == Stage::Open) {
            self.say_in(id, Flag::Ack);
        }
    }

    /// Says that there is nothing more to say.
    pub(crate) fn close(&mut self, id: u64) {
        let again = self.now + AGAIN[0];
        let connection = self.clients.connections.get_mut(&id);
        let Some(connection) = connection.filter(|it| it.stage == Stage::Open) else { return };
        (connection.stage, connection.tries, connection.again) = (Stage::Closes, 1, again);
        self.say_in(id, Flag::Fin);
    }

    /// A segment of an established connection.
    fn say_in(&mut self, id: u64, flag: Flag) {
        let Some(connection) = self.clients.connections.get(&id).cloned() else { return };
        let call = connection.call;
        let Some(backend) = connection.tried else { return };
        let Some(known) = self.known_of(&call) else { return };
        let Some((fate, to)) = self.say(&call, flag) else { return };
        let has = known.has(backend) && !call.is_shut_out(&known);
        match &fate {
            Fate::Dropped(reason, answer) => {
                assert!(!has, "{backend} is there, but lost ({reason:?}): {connection:?}");
                self.clients.counts.held += 1;
                if !answer.is_empty() {
                    assert!(known.is_settled, "reset by who has not heard of all: {connection:?}");
                    self.clients.counts.ended += 1;
                    self.clients.connections.remove(&id);
                }
            }
            _ => {
                assert_eq!(to, Some(backend), "moved to another backend: {connection:?}");
                assert!(has, "{backend} is not there any more: {connection:?}");
                self.clients.counts.said += 1;
            }
        }
        self.pass(call.client, fate);
    }

    /// Ends a connection.
    pub(crate) fn hang_up(&mut self, id: u64) {
        let Some(connection) = self.clients.connections.remove(&id) else { return };
        let Some((fate, to)) = self.say(&connection.call, Flag::Rst) else { return };
        assert!(to.is_none() || to == connection.tried, "moved to another: {connection:?}");
        self.pass(connection.call.client, fate);
    }

    /// Sends again what nobody has answered, of the clients on a node.
    pub(crate) fn retry(&mut self, n: usize) {
        let endpoints = &self.endpoints;
        let is_there = |call: &Call| endpoints.contains_key(&call.client);
        self.clients.connections.retain(|_, it| is_there(&it.call));
        self.clients.finished.retain(is_there);
        self.clients.served.retain(|(server, _), _| endpoints.contains_key(server));
        let is_due = |it: &Connection| {
            let is_asking = it.stage != Stage::Open;
            is_asking && it.again <= self.now && endpoints[&it.call.client].0 == n
        };
        let all = self.clients.connections.iter();
        let due: Vec<u64> = all.filter(|(_, it)| is_due(it)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(connection) = self.clients.connections.get_mut(&id) else { continue };
            let (tries, stage) = (connection.tries, connection.stage);
            if tries > AGAIN.len() {
                self.clients.connections.remove(&id);
                continue;
            }
            self.clients.counts.retried += 1;
            if stage == Stage::Closes {
                connection.again = self.now + AGAIN[tries.min(AGAIN.len() - 1)];
                connection.tries += 1;
                self.say_in(id, Flag::Fin);
            } else {
                self.begin(id);
            }
        }
    }

    /// Whether a server accepts connections.
    pub(crate) fn deafen(&mut self, endpoint: EndpointId, is_deaf: bool) {
        let Some((n, _)) = self.endpoints.get(&endpoint) else { return };
        if let Some(life) = self.nodes[*n].life.as_mut() {
            if is_deaf {
                life.disk.deaf.insert(endpoint);
            } else {
                life.disk.deaf.remove(&endpoint);
            }
        }
    }

    /// Whether a server passes checks.
    pub(crate) fn sicken(&mut self, endpoint: EndpointId, is_unwell: bool) {
        let Some((n, _)) = self.endpoints.get(&endpoint) else { return };
        if let Some(life) = self.nodes[*n].life.as_mut() {
            if is_unwell {
                life.disk.unwell.insert(endpoint);
            } else {
                life.disk.unwell.remove(&endpoint);
            }
        }
    }

    // ---- what comes to an endpoint

    /// A frame comes to whichever endpoint of a node it is for.
    pub(crate) fn reached(&mut self, n: usize, network: NetworkId, frame: &[u8]) {
        let Some(segment) = segment::parse(frame) else { return };
        let mut here = self.endpoints.iter().filter(|(_, (node, it))| {
            *node == n && it.network == network && it.mac == segment.destination
        });
        let Some(endpoint) = here.next().map(|(endpoint, _)| *endpoint) else { return };
        if segment.to.port() == BACKEND_PORT {
            self.serve(endpoint, &segment, frame);
        } else if segment.flag == Flag::Datagram {
            self.hear_datagram(endpoint, &segment);
        } else {
            self.hear(endpoint, &segment);
        }
    }

    /// A server takes a segment or a datagram.
    fn serve(&mut self, endpoint: EndpointId, segment: &Segment, frame: &[u8]) {
        let (n, claim) = self.endpoints[&endpoint].clone();
        let key = (endpoint, segment.from);
        // What came from the services' own MAC, the bridge learned: its answers go to the agent.
        let is_local = segment.source == service_source_mac(claim.network);
        assert!(
            is_local || !is_outside(segment.from.ip()),
            "answers to {} would leave by node {n}",
            segment.from
        );
        let mac = if is_local { service_mac(claim.network) } else { segment.source };
        let is_deaf =
            self.nodes[n].life.as_ref().is_some_and(|it| it.disk.deaf.contains(&endpoint));
        let (macs, id) = ((claim.mac, mac), self.next_id());
        let served = self.clients.served.get(&key).copied();
        let flag = match (segment.flag, served) {
            (Flag::Syn, _) if is_deaf => return,
            (Flag::Datagram, _) if is_deaf => {
                let ends = (segment.to.ip(), segment.from.ip());
                return self.answer(endpoint, unreachable(macs, ends, frame, id), id);
            }
            (Flag::Datagram, _) => Flag::Datagram,
            (Flag::Syn, _) => {
                self.clients.served.insert(key, false);
                Flag::SynAck
            }
            (Flag::Rst, _) => {
                self.clients.served.remove(&key);
                return;
            }
            (Flag::Fin, Some(_)) => {
                self.clients.served.insert(key, true);
                Flag::Fin
            }
            // The last word.
            (_, Some(true)) => {
                self.clients.served.remove(&key);
                return;
            }
            (_, Some(false)) => Flag::Ack,
            (_, None) => Flag::Rst,
        };
        let frame = segment::build(macs, (segment.to, segment.from), flag, id);
        self.answer(endpoint, frame, id);
    }

    fn answer(&mut self, server: EndpointId, frame: Vec<u8>, id: u64) {
        if let Some(fate) = self.offer(server, None, frame, id) {
            self.pass(server, fate);
        }
    }

    /// A client takes a segment; what is of no connection of its own is nothing to it.
    fn hear(&mut self, client: EndpointId, segment: &Segment) {
        let mut own = self.clients.connections.iter_mut().filter(|(_, it)| {
            (it.call.client, it.call.vip, it.call.own) == (client, segment.from.ip(), segment.to)
        });
        let Some((id, connection)) = own.next() else { return };
        let (id, call) = (*id, connection.call);
        match (segment.flag, connection.stage) {
            (Flag::SynAck, Stage::Asks) => {
                connection.stage = Stage::Open;
                self.clients.counts.established += 1;
                self.talk(id);
            }
            (Flag::Fin, Stage::Closes) => {
                let is_over = connection.tries == 1;
                self.say_in(id, Flag::Ack);
                self.clients.connections.remove(&id);
                self.clients.counts.finished += 1;
                // Nothing of it is under way any more.
                if is_over {
                    self.clients.finished.push(call);
                }
            }
            (Flag::Rst, _) => {
                self.clients.counts.ended += 1;
                self.clients.connections.remove(&id);
            }
            _ => {}
        }
    }
}
