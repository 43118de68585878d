//! `dns query`: what a sandbox would be answered, and whose word it is.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use vxmesh_gossip::{directory::Directory, membership::Gossip};
use vxmesh_proto::{
    addr::{Alias, EndpointId, Name, NetworkId, NodeId, ServiceId},
    dns::{Found, NamesTable, RecordKind, Target, View},
    limits::DNS_TTL,
    object::{self, Object, ObjectId, ObjectSet},
    record::{Claim, Key},
    tables::RowKey,
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
        let Some(gossip) = self.member.gossip.get() else {
            return Err(failed("the agent is starting", "try again"));
        };
        let only =
            query.network.as_deref().map(|network| self.find_network(network)).transpose()?;
        let active = self.member.objects.read(ObjectSet::active_networks);
        let names = self.network_names();
        let wanted = names.iter().filter(|(id, _)| {
            (active.contains(id) || self.is_local(**id))
                && only.as_ref().is_none_or(|it| it.id == **id)
        });
        let domains: Arc<BTreeSet<Name>> = Arc::new(names.values().cloned().collect());
        let asked = name.trim_end_matches('.').to_ascii_lowercase();
        let (mut records, mut without, mut is_name) = (Vec::new(), BTreeSet::new(), false);
        for (id, domain) in wanted {
            let table = self.names_of(gossip, *id, domain);
            let view = View {
                networks: vec![Arc::new(table)],
                domains: Arc::clone(&domains),
                forwards: false,
                settled: true,
            };
            let Some(answers) = answers(&view, &asked) else { continue };
            is_name = true;
            for (endpoint, kind, value, full) in answers {
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
                let row = |word| record(endpoint.endpoint, (full, kind, value), *id, word);
                records.extend(word.map(row));
            }
        }
        if records.is_empty() && without.is_empty() && is_name {
            return Err(nothing_behind(&asked));
        }
        if records.is_empty() {
            return Err(self.no_record(gossip, &asked, query, &without));
        }
        records.sort_by(|a, b| (a.network, a.kind, &a.value).cmp(&(b.network, b.kind, &b.value)));
        Ok(records)
    }

    fn names_of(&self, gossip: &Gossip, id: NetworkId, domain: &Name) -> NamesTable {
        let claims = if self.is_local(id) {
            self.local_claims(id)
        } else {
            self.member.believed(gossip, id)
        };
        let away = self.member.away(id);
        let specs = self.services_of(id, (&claims, &away));
        let services =
            self.member.objects.read(|set| services::named(set, id, &specs, (&claims, &away)));
        NamesTable::new(id, domain.clone(), Vec::new(), &claims).with_services(&services)
    }

    /// The object that has this name, if it is a service.
    fn service_at(&self, key: RowKey) -> Option<Arc<Object>> {
        let id = ServiceId::from_random(*key.endpoint.bytes());
        let is_its = key.node == object::holder(id);
        let get = |set: &ObjectSet| set.get(&ObjectId::Service(id)).cloned();
        is_its.then(|| self.member.objects.read(get))?
    }

    /// Of a network of this host: nobody signs it.
    fn local_word(&self, key: RowKey) -> Word {
        let (node, stamp) = (key.node, (self.incarnation, 0));
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

/// Of a name that there is, and that nobody answers for.
fn nothing_behind(asked: &str) -> ApiError {
    let message = format!("`{asked}` leads nowhere: no backend of its service is there and well");
    ApiError::new(ErrorCode::NotFound, message, "see `vxmesh service inspect`")
}

/// Whose a record is, its type and value, and the name in full.
type Answered = (RowKey, DnsType, String, String);

/// The records of one network, if it has the name.
fn answers(view: &View, asked: &str) -> Option<Vec<Answered>> {
    let table = view.networks.first()?;
    if let Ok(ip) = asked.parse::<IpAddr>() {
        let endpoint = table.at(ip)?;
        let value = format!("{}.{}", endpoint.name, table.domain());
        return Some(vec![(endpoint.key, DnsType::Ptr, value, asked.to_owned())]);
    }
    let domain = format!(".{}", table.domain());
    let full = format!("{}{domain}", asked.strip_suffix(&domain).unwrap_or(asked));
    let of_ip = |key, ip: &IpAddr| {
        let kind = if ip.is_ipv4() { DnsType::A } else { DnsType::Aaaa };
        (key, kind, ip.to_string(), full.clone())
    };
    let of_target = |target: Target<'_>| {
        let Target { lead, name, port, weight } = target;
        (lead.key, DnsType::Srv, format!("0 {weight} {port} {name}{domain}"), full.clone())
    };
    match view.find_name(asked, RecordKind::Any) {
        Found::OneOf(_, leads) | Found::Each(_, leads) => {
            let each = leads.into_iter();
            Some(
                each.flat_map(|it| it.ips.iter().map(move |ip| (it.key, ip)))
                    .map(|(key, ip)| of_ip(key, ip))
                    .collect(),
            )
        }
        Found::Targets(_, targets) => Some(targets.into_iter().map(of_target).collect()),
        _ => None,
    }
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

    fn of_record(directory: &Directory, key: RowKey) -> Option<Self> {
        let entry = directory.get(key.node, Key::Endpoint(key.endpoint))?;
        Some(Self {
            node: key.node,
            stamp: entry.record.stamp().into(),
            source: entry.source.as_str().to_owned(),
            age_ms: u64::try_from(entry.learned.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

fn record(
    endpoint: EndpointId,
    (name, kind, value): (String, DnsType, String),
    network: NetworkId,
    Word { node, stamp, source, age_ms }: Word,
) -> DnsRecord {
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
