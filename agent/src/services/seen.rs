//! What this node sees of services, for the user: what it counted, which flows it remembers, and
//! why it sends a backend nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::task::block_in_place;
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId},
    lb::{
        self, Backend, BackendPort, Protocol, Totals, drain::BackendState, ejection::Subject,
        flows::Found,
    },
    object,
    wire::UDP,
};

use super::{FLOWS, ServiceError, Services, lock};
use crate::{
    admin::resolve,
    api::{self, FLOWS_SHOWN, Flow, FlowQuery, Flows, MOST_FLOWS_SHOWN, ServiceCounters},
    daemon::Mesh,
};

impl Services {
    /// A service with what this node counted of it.
    pub(crate) fn inspect(
        &self,
        mesh: &Mesh,
        reference: &str,
    ) -> Result<api::Service, ServiceError> {
        let mut row = self.find(mesh, reference)?;
        let tables = mesh.tables_with_services();
        let table = tables.iter().find(|table| table.spec().id == row.network);
        let Some(services) = table.and_then(|table| table.services()) else { return Ok(row) };
        let Some(service) = services.iter().find(|service| service.spec().id == row.id) else {
            return Ok(row);
        };
        let open = block_in_place(|| services.open(row.network, row.id));
        let out = &service.spec().out;
        for backend in &mut row.backends {
            let Some(endpoint) = backend.endpoint else { continue };
            let is_out = out.iter().any(|out| out.key.endpoint == endpoint);
            if let Some(why) = backend.why.as_mut().filter(|_| backend.state == "silent" && !is_out)
            {
                why.push_str("; it gets connections all the same, as half of the others are out");
            }
            let open = open.get(&endpoint).copied().unwrap_or_default();
            backend.counters = service.totals(endpoint).map(|totals| counters(&totals, open));
        }
        row.counters = Some(counters(&service.total(), open.values().sum()));
        let refused = service.refused().map(|(reason, count)| (reason.as_str().to_owned(), count));
        row.refused = refused.collect();
        Ok(row)
    }

    /// The flows to services that this node remembers.
    pub(crate) fn flow_rows(&self, mesh: &Mesh, query: &FlowQuery) -> Result<Flows, ServiceError> {
        let limit = query.limit.unwrap_or(FLOWS_SHOWN);
        if !(1..=MOST_FLOWS_SHOWN).contains(&limit) {
            return Err(ServiceError::Limit(limit));
        }
        let network = match &query.network {
            Some(reference) => Some(resolve::one(&mesh.network_list(), reference)?.id),
            None => None,
        };
        let service = query.service.as_ref().map(|reference| self.find(mesh, reference));
        let service = service.transpose()?;
        let is_asked_for = |found: &Found| {
            let flow = &found.flow;
            network.is_none_or(|id| flow.network == id)
                && service.as_ref().is_none_or(|it| {
                    it.network == flow.network
                        && it.vips.contains(&flow.vip.ip())
                        && !flow.is_direct()
                })
        };
        let Some(flows) = lock(&FLOWS).clone() else {
            return Ok(Flows { flows: Vec::new(), total: 0 });
        };
        let now = Instant::now();
        let (last, total) = block_in_place(|| last_used(&flows, now, limit, is_asked_for));
        let names = Names::of(self, mesh, &last);
        let flows = last.iter().map(|(found, idle)| names.row(found, *idle)).collect();
        Ok(Flows { flows, total })
    }

    /// Why this node sends a backend no new connections although all others may; nothing if it
    /// does.
    pub(super) fn silence(&self, service: &object::Service, backend: &Backend) -> Option<String> {
        let ejections = lock(&self.ejections);
        let now = Instant::now();
        let time = |since: Instant| {
            let seconds = now.saturating_duration_since(since).as_secs();
            humantime::format_duration(Duration::from_secs(seconds)).to_string()
        };
        if let Some(since) = ejections.out_since(Subject::Node(backend.key.node)) {
            return Some(format!("its node has answered nothing for {}", time(since)));
        }
        service.ports.iter().find_map(|port| {
            let protocol = Protocol::of_number(port.protocol)?;
            let of = BackendPort { key: backend.key, protocol, port: port.backend_port };
            let since = ejections.out_since(Subject::Port(service.network, of))?;
            let protocol = protocol_name(port.protocol);
            let port = port.backend_port;
            Some(format!(
                "port {port}/{protocol} has accepted nothing for {}, not even from its own node",
                time(since)
            ))
        })
    }
}

/// Why a backend stands as it does, where that needs a word. `left_ms` is how long a drained one
/// still has, and `is_preferred` whether nearer ones are not.
pub(super) fn why(
    state: BackendState,
    backend: &Backend,
    service: &object::Service,
    (left_ms, is_near): (Option<u64>, bool),
) -> Option<String> {
    let why = match state {
        BackendState::Unchecked => "it has not passed its check yet".to_owned(),
        BackendState::Failing if service.check.is_some() => {
            "its check, or `vxmesh service health`, says that it does not work".to_owned()
        }
        BackendState::Failing => {
            "it is about to go, or `vxmesh service health` says that it does not work".to_owned()
        }
        BackendState::Draining => {
            let left = Duration::from_secs(left_ms.unwrap_or_default() / 1000);
            let left = humantime::format_duration(left);
            format!("it was drained; its connections may go on for {left}")
        }
        BackendState::Drained => "it was drained, and its time is over".to_owned(),
        BackendState::Ready if backend.weight == 0 => {
            "its weight is 0: it keeps its connections and gets no new ones".to_owned()
        }
        BackendState::Ready if !is_near => {
            "this node prefers nearer ones, as long as one of them works".to_owned()
        }
        BackendState::Ready => return None,
    };
    Some(why)
}

fn counters(totals: &Totals, open: u64) -> ServiceCounters {
    ServiceCounters {
        open,
        begun: totals.begun,
        tx_packets: totals.sent_packets,
        tx_bytes: totals.sent_bytes,
        rx_packets: totals.received_packets,
        rx_bytes: totals.received_bytes,
        ejections: totals.ejections,
    }
}

/// Those that were used last, and how many there are in all.
fn last_used(
    flows: &lb::Flows,
    now: Instant,
    limit: usize,
    is_asked_for: impl Fn(&Found) -> bool,
) -> (Vec<(Found, Duration)>, u64) {
    let mut last = BTreeMap::new();
    let mut total = 0;
    for found in flows.iter().filter(is_asked_for) {
        let (flow, idle) = (&found.flow, flows.idle(&found, now));
        let order = (idle, flow.network, flow.vip, flow.client, flow.protocol);
        total += 1;
        last.insert(order, found);
        if last.len() > limit {
            last.pop_last();
        }
    }
    (last.into_iter().map(|((idle, ..), found)| (found, idle)).collect(), total)
}

/// What services and endpoints are called.
struct Names {
    services: BTreeMap<(NetworkId, IpAddr), Name>,
    endpoints: BTreeMap<EndpointId, Name>,
}

impl Names {
    /// Those of these flows.
    fn of(services: &Services, mesh: &Mesh, flows: &[(Found, Duration)]) -> Self {
        let networks: BTreeSet<NetworkId> =
            flows.iter().map(|(found, _)| found.flow.network).collect();
        let claims = networks
            .iter()
            .flat_map(|id| [mesh.member.away(*id), mesh.member.claims_of(*id)])
            .flatten();
        let endpoints = claims.map(|(key, claim)| (key.endpoint, claim.name));
        let vips = services.list(mesh).into_iter().flat_map(|service| {
            let api::Service { network, name, vips, .. } = service;
            vips.into_iter().map(move |ip| ((network, ip), name.clone()))
        });
        Self { endpoints: endpoints.collect(), services: vips.collect() }
    }

    fn row(&self, found: &Found, idle: Duration) -> Flow {
        let flow = &found.flow;
        let service = self.services.get(&(flow.network, flow.vip.ip()));
        Flow {
            network: flow.network,
            service: service.filter(|_| !flow.is_direct()).cloned(),
            protocol: protocol_name(flow.protocol).to_owned(),
            client: flow.client,
            vip: flow.vip,
            endpoint: flow.endpoint,
            name: self.endpoints.get(&flow.endpoint).cloned(),
            backend: flow.backend,
            seen_port: (flow.seen_port != flow.client.port()).then_some(flow.seen_port),
            state: found.state.as_str().to_owned(),
            idle_s: idle.as_secs(),
        }
    }
}

const fn protocol_name(number: u8) -> &'static str {
    if number == UDP { "udp" } else { "tcp" }
}
