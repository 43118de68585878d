//! `dns query`: what a sandbox would be answered, and whose word it is.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use vxmesh_gossip::{directory::Directory, membership::Gossip};
use vxmesh_proto::{
    addr::{Alias, Name, NetworkId, NodeId, ServiceId},
    dns::{Found, NamedEndpoint, NamesTable, RecordKind, View},
    limits::DNS_TTL,
    object::{self, Object, ObjectId, ObjectSet},
    record::{Claim, Key},
};

use super::mesh::{Mesh, failed};
use crate::{
    api::{ApiError, DnsQuery, DnsRecord, DnsType, ErrorCode},
    objects::unix_ms,
    services,
};

impl Mesh {
    /// The records behind a name or an address, of every network that has it.
    pub(super) fn name_records(
        &self,
        name: &str,
        query: &DnsQuery,
    ) -> Result<Vec<DnsRecord>, ApiError> {
        let Some(gossip) = self.gossip.get() else {
            return Err(failed("the agent is starting", "try again"));
        };
        let only =
            query.network.as_deref().map(|network| self.find_network(network)).transpose()?;
        let active = self.objects.read(ObjectSet::active_networks);
        let names = self.network_names();
        let wanted = names.iter().filter(|(id, _)| {
            (active.contains(id) || self.is_local(**id))
                && only.as_ref().is_none_or(|it| it.id == **id)
        });
        let domains: Arc<BTreeSet<Name>> = Arc::new(names.values().cloned().collect());
        let asked = name.trim_end_matches('.').to_ascii_lowercase();
        let (mut records, mut without) = (Vec::new(), BTreeSet::new());
        for (id, domain) in wanted {
            let table = self.names_of(gossip, *id, domain);
            let view = View {
                networks: vec![Arc::new(table)],
                domains: Arc::clone(&domains),
                forwards: false,
                settled: true,
            };
            for (endpoint, kind, value, full) in answers(&view, &asked) {
                if query.kind.is_some_and(|wanted| wanted != kind) {
                    without.insert(kind);
                    continue;
                }
                let word = if self.is_local(*id) {
                    Some(self.local_word(endpoint))
                } else if let Some(service) = self.service_at(endpoint) {
                    Some(Word::of_object(&service))
                } else {
                    gossip.with_directory(|directory| Word::of_record(directory, endpoint))
                };
                let row = |word| record(endpoint, (full, kind, value), *id, word);
                records.extend(word.map(row));
            }
        }
        if records.is_empty() {
            return Err(self.no_record(gossip, &asked, query, &without));
        }
        records.sort_by(|a, b| (a.network, a.kind, &a.value).cmp(&(b.network, b.kind, &b.value)));
        Ok(records)
    }

    fn names_of(&self, gossip: &Gossip, id: NetworkId, domain: &Name) -> NamesTable {
        let claims =
            if self.is_local(id) { self.local_claims(id) } else { self.believed(gossip, id) };
        let holds = |node, ip| self.addresses.holds(id, node, ip);
        let services = self.objects.read(|set| services::named(set, id, holds));
        NamesTable::new(id, domain.clone(), Vec::new(), &claims).with_services(&services)
    }

    /// The object that has this name, if it is a service.
    fn service_at(&self, named: &NamedEndpoint) -> Option<Arc<Object>> {
        let id = ServiceId::from_random(*named.key.endpoint.bytes());
        let is_its = named.key.node == object::holder(id);
        let get = |set: &ObjectSet| set.get(&ObjectId::Service(id)).cloned();
        is_its.then(|| self.objects.read(get))?
    }

    /// Of a network of this host: nobody signs it.
    fn local_word(&self, endpoint: &NamedEndpoint) -> Word {
        let (node, stamp) = (endpoint.key.node, (self.incarnation, 0));
        Word { node, stamp, source: "local".to_owned(), age_ms: 0 }
    }

    /// Why there is none, as exactly as is known.
    fn no_record(
        &self,
        gossip: &Gossip,
        asked: &str,
        query: &DnsQuery,
        without: &BTreeSet<DnsType>,
    ) -> ApiError {
        let not_found =
            |message: String, hint: String| ApiError::new(ErrorCode::NotFound, message, hint);
        if let (Some(kind), false) = (query.kind, without.is_empty()) {
            let there: Vec<String> = without.iter().map(DnsType::to_string).collect();
            let message = format!("`{asked}` has no {kind} record");
            return not_found(message, format!("it has {}", there.join(" and ")));
        }
        let down = gossip.with_directory(|directory| {
            let hidden = directory.records().find(|entry| {
                !directory.is_up(entry.record.owner()) && is_of(entry.record.claim(), asked)
            });
            hidden.map(|entry| entry.record.owner())
        });
        let message = format!("no endpoint has the name or address `{asked}`");
        if let Some(node) = down {
            let node = self.node_name(node);
            return not_found(message, format!("one on node {node} had it, and that node is down"));
        }
        let network = asked.rsplit('.').next().unwrap_or(asked);
        let foreign = asked.contains('.')
            && asked.parse::<IpAddr>().is_err()
            && !self.network_names().values().any(|name| name.as_str() == network);
        let hint = if foreign {
            "for names outside the mesh sandboxes ask the host's name servers, or those of --dns"
        } else {
            "see `vxmesh endpoint ls`"
        };
        not_found(message, hint.to_owned())
    }
}

type Answered<'v> = (&'v NamedEndpoint, DnsType, String, String);

/// The records of one network: endpoint, type, value, and the name in full.
fn answers<'v>(view: &'v View, asked: &str) -> Vec<Answered<'v>> {
    let Some(table) = view.networks.first() else { return Vec::new() };
    if let Ok(ip) = asked.parse::<IpAddr>() {
        let pointer = |endpoint: &'v NamedEndpoint| {
            let value = format!("{}.{}", endpoint.name, table.domain());
            (endpoint, DnsType::Ptr, value, asked.to_owned())
        };
        return table.at(ip).map(pointer).into_iter().collect();
    }
    let Found::Endpoints(table, endpoints) = view.find_name(asked, RecordKind::Any) else {
        return Vec::new();
    };
    let domain = format!(".{}", table.domain());
    let own = asked.strip_suffix(&domain).unwrap_or(asked);
    let record = |endpoint: &'v NamedEndpoint, ip: &IpAddr| {
        let kind = if ip.is_ipv4() { DnsType::A } else { DnsType::Aaaa };
        (endpoint, kind, ip.to_string(), format!("{own}{domain}"))
    };
    let each = endpoints.into_iter();
    each.flat_map(|endpoint| endpoint.ips.iter().map(move |ip| record(endpoint, ip))).collect()
}

/// Whose word it is that a name leads somewhere.
struct Word {
    node: NodeId,
    stamp: (u64, u64),
    source: String,
    age_ms: u64,
}

impl Word {
    /// Of a service: whoever changed it last signed it.
    fn of_object(service: &Object) -> Self {
        let at = service.hlc().unix_ms();
        let (node, source) = (service.author(), "service".to_owned());
        Self { node, stamp: (at, 0), source, age_ms: unix_ms().saturating_sub(at) }
    }

    fn of_record(directory: &Directory, endpoint: &NamedEndpoint) -> Option<Self> {
        let entry = directory.get(endpoint.key.node, Key::Endpoint(endpoint.key.endpoint))?;
        Some(Self {
            node: endpoint.key.node,
            stamp: entry.record.stamp().into(),
            source: entry.source.as_str().to_owned(),
            age_ms: u64::try_from(entry.learned.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

fn record(
    endpoint: &NamedEndpoint,
    (name, kind, value): (String, DnsType, String),
    network: NetworkId,
    Word { node, stamp, source, age_ms }: Word,
) -> DnsRecord {
    let endpoint = endpoint.key.endpoint;
    DnsRecord { name, kind, value, ttl: DNS_TTL, network, endpoint, node, stamp, source, age_ms }
}

/// Whether a claim is about an endpoint of this name or address.
fn is_of(claim: &Claim, asked: &str) -> bool {
    let Claim::Endpoint(claim) = claim else { return false };
    let without_network = asked.rsplit_once('.').map_or(asked, |(name, _network)| name);
    let aliases = claim.aliases.iter().map(Alias::as_str);
    let mut names = [claim.name.as_str()].into_iter().chain(aliases);
    names.any(|name| name == asked || name == without_network)
        || asked.parse().is_ok_and(|ip| claim.ips.contains(&ip))
}
