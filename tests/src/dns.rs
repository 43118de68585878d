//! Fuzz targets for names: bytes from a sandbox, and bytes from whoever answers for an upstream.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, ServiceId},
    dns::{
        Heard, NamedBackend, NamedEndpoint, NamedService, NamesTable, Query, RecordKind, Step,
        Transport, View, step,
    },
    limits::DNS_UDP_LEN,
    object::ServicePort,
    record::EndpointClaim,
    tables::RowKey,
};

/// The id of the question whose answer `dns_answer` judges.
const ID: u16 = 0x1234;

/// `www.example.com` of type A, as an asker sends it.
const QUESTION: &[u8] = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01";

/// A table of this many endpoints `n0`, `n1`, ... of network `blue`, each also called `all`.
#[must_use]
pub fn names(count: u16) -> NamesTable {
    let claim = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let mut id = [7; 16];
        id[..2].copy_from_slice(&[high, low]);
        let endpoint = EndpointId::from_random(id);
        let v6 = [0xfd71, 0, 0, 0, 0, 0, 1, number];
        let claim = EndpointClaim {
            id: endpoint,
            network: NetworkId::from_random([1; 16]),
            name: format!("n{number}").parse().ok()?,
            aliases: vec!["all".parse().ok()?],
            mac: MacAddr([2, 0, 0, 0, high, low]),
            ips: vec![[10, 71, high, low].into(), v6.into()],
            incarnation: 1,
            labels: BTreeMap::new(),
            router: false,
            health: BTreeMap::new(),
        };
        Some((RowKey { node: NodeId::of_public_key(&[high]), endpoint }, claim))
    };
    let claims: BTreeMap<_, _> = (0..count).filter_map(claim).collect();
    let subnets = ["10.71.0.0/16", "fd71::/64"].iter().filter_map(|text| text.parse().ok());
    #[expect(clippy::unwrap_used, reason = "the word is a name")]
    let blue = "blue".parse().unwrap();
    NamesTable::new(NetworkId::from_random([1; 16]), blue, subnets.collect(), &claims)
}

/// The same with a service `web` that all endpoints answer for.
fn with_service(count: u16) -> NamesTable {
    let table = names(count);
    let ips = (0..count).map(|number| IpAddr::V6([0xfd71, 0, 0, 0, 0, 0, 1, number].into()));
    let backend = |ip| {
        let NamedEndpoint { key, ips, .. } = table.at(ip)?.clone();
        Some(NamedBackend { key, ips, weight: 1, takes_new: true })
    };
    let backends = ips.filter_map(backend).collect();
    let http = ServicePort { protocol: 6, port: 80, backend_port: 8080, name: "http".parse().ok() };
    let service = |name| NamedService {
        id: ServiceId::from_random([8; 16]),
        name,
        vips: Vec::new(),
        created: 1,
        ports: vec![http],
        backends,
    };
    let services = "web".parse().ok().map(service);
    table.with_services(services.as_slice())
}

/// What a sandbox in a network of that table sees.
#[must_use]
pub fn view(count: u16) -> View {
    let domains = ["blue", "green"].iter().filter_map(|name| name.parse().ok());
    View {
        networks: vec![Arc::new(with_service(count))],
        domains: Arc::new(domains.collect()),
        forwards: true,
        settled: true,
    }
}

static VIEW: LazyLock<View> = LazyLock::new(|| view(60));

/// Whatever a sandbox sends: one step, no answer to an answer, nothing of ours to an upstream, no
/// larger than it may be.
pub fn dns_query(data: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        match step(&VIEW, data, transport, |_query| 1) {
            Step::Reply(reply) => {
                assert_eq!(reply.get(..2), data.get(..2), "the asker's id");
                let room = usize::from(DNS_UDP_LEN);
                assert!(transport == Transport::Tcp || reply.len() <= room, "{}", reply.len());
                let silent = Query::parse(&reply, transport).err().map(|fault| fault.reply);
                assert_eq!(silent, Some(None), "two servers never talk to each other");
            }
            Step::Forward(query) => {
                let name = query.host_name().unwrap_or_default();
                let last = name.rsplit('.').next().unwrap_or_default();
                let single = !name.is_empty() && !name.contains('.');
                assert!(!["blue", "green", "localhost"].contains(&last), "{name}");
                assert!(!single || query.kind() == RecordKind::Zone, "{name}");
                let question = query.to_upstream(ID, true).unwrap_or_default();
                assert!((17..=300).contains(&question.len()), "{}", question.len());
                assert!(matches!(query.hear(ID, &question), Heard::Foreign), "an echo");
            }
            Step::Wait(query) => assert!(!VIEW.settled, "all is known: {query:?}"),
            Step::Refuse(fault) => {
                let reply = fault.reply.unwrap_or_default();
                assert!(reply.len() <= data.len(), "never larger than its cause");
            }
        }
    }
}

/// Whatever comes from an upstream's address: only what has id and question is an answer, and then
/// the asker can have it.
pub fn dns_answer(data: &[u8]) {
    let Ok(query) = Query::parse(QUESTION, Transport::Udp) else { return };
    match query.hear(ID, data) {
        Heard::Answer(answer) | Heard::Cut(answer) => {
            assert_eq!(data.get(..2), Some(ID.to_be_bytes().as_slice()), "the id that was sent");
            for age in [0, 59, u64::MAX] {
                let reply = answer.reply(&query, Duration::from_secs(age));
                assert_eq!(reply.get(..2), QUESTION.get(..2), "the asker's id");
                assert!(reply.len() <= 512, "{}", reply.len());
            }
        }
        Heard::Plain | Heard::Failed | Heard::Foreign => {}
    }
}
