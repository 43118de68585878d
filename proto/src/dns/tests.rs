//! Questions as bytes, replies as bytes.

mod services;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{
        DNSClass, Name as DomainName, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use proptest::prelude::*;

use super::*;
use crate::{
    addr::{EndpointId, MacAddr, Name, NetworkId, NodeId},
    limits::{DNS_TTL, DNS_UDP_LEN},
    record::EndpointClaim,
    tables::RowKey,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn claim(id: u8, own: &str, aliases: &[&str], ips: &[&str]) -> (RowKey, EndpointClaim) {
    let endpoint = EndpointId::from_random([id; 16]);
    let claim = EndpointClaim {
        id: endpoint,
        network: NetworkId::from_random([9; 16]),
        name: name(own),
        aliases: aliases.iter().map(|alias| alias.parse().unwrap()).collect(),
        mac: MacAddr([2, 0, 0, 0, 0, id]),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        incarnation: u64::from(id),
        labels: BTreeMap::new(),
        router: false,
        health: BTreeMap::new(),
    };
    (RowKey { node: NodeId::of_public_key(&[id]), endpoint }, claim)
}

fn table(
    id: u8,
    domain: &str,
    subnets: &[&str],
    claims: Vec<(RowKey, EndpointClaim)>,
) -> Arc<NamesTable> {
    let claims: BTreeMap<_, _> = claims.into_iter().collect();
    let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
    Arc::new(NamesTable::new(NetworkId::from_random([id; 16]), name(domain), subnets, &claims))
}

/// A sandbox in `blue` and `green`; the mesh has `red`, too.
fn view() -> View {
    let blue = vec![
        claim(1, "web-1", &["web"], &["10.1.0.1", "fd01::1"]),
        claim(2, "web-2", &["web"], &["10.1.0.2", "fd01::2"]),
        claim(3, "v4only", &["web"], &["10.1.0.3"]),
    ];
    let green = vec![
        claim(4, "db", &["web", "Web.Local", "web-1.blue", "localhost"], &["10.2.0.4"]),
        claim(5, "blue", &[], &["10.2.0.5"]),
    ];
    View {
        networks: vec![
            table(1, "blue", &["10.1.0.0/16", "fd01::/64"], blue),
            table(2, "green", &["10.2.0.0/16"], green),
        ],
        domains: Arc::new(["blue", "green", "red"].map(name).into()),
        forwards: true,
        settled: true,
    }
}

fn domain_name(text: &str) -> DomainName {
    let mut name =
        DomainName::from_labels(text.split('.').filter(|l| !l.is_empty()).map(str::as_bytes))
            .unwrap();
    name.set_fqdn(true);
    name
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(domain_name(text), kind));
    message
}

fn asked(view: &View, message: &Message, transport: Transport) -> (Message, Vec<u8>) {
    match step(view, &message.to_vec().unwrap(), transport, |_| 1) {
        Step::Reply(bytes) => (Message::from_vec(&bytes).unwrap(), bytes),
        other => panic!("{other:?}"),
    }
}

/// Code and sorted records, each as text.
fn ask(view: &View, text: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let (reply, _) = asked(view, &question(text, kind), Transport::Udp);
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (7, MessageType::Response));
    assert!(reply.answers.iter().all(|record| record.ttl == DNS_TTL));
    assert!(reply.authorities.is_empty(), "nothing by which a refusal could be kept");
    let mut records: Vec<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
    records.sort();
    (reply.metadata.response_code, records)
}

fn forwards(view: &View, text: &str, kind: RecordType) -> bool {
    let bytes = question(text, kind).to_vec().unwrap();
    matches!(step(view, &bytes, Transport::Udp, |_| 1), Step::Forward(_))
}

#[test]
fn names_aliases_ids_and_networks() {
    let view = view();
    // The second of three, in the order of their keys.
    let web = ["10.1.0.3"].as_slice();
    for (text, records) in [
        ("web-1", ["10.1.0.1"].as_slice()),
        ("WEB-1.Blue.", &["10.1.0.1"]),
        // The first network that has the name answers.
        ("web", web),
        ("web.blue", web),
        ("web.green", &["10.2.0.4"]),
        ("db", &["10.2.0.4"]),
        ("WEB.local", &["10.2.0.4"]),
        ("web.local.green", &["10.2.0.4"]),
        // No alias hides a name of another network.
        ("web-1.blue", &["10.1.0.1"]),
        ("web-1.blue.green", &["10.2.0.4"]),
        ("020202020202", &["10.1.0.2"]),
        ("020202020202.blue", &["10.1.0.2"]),
        // An endpoint may be called as a network is.
        ("blue", &["10.2.0.5"]),
        ("localhost", &["127.0.0.1"]),
        ("x.localhost", &["127.0.0.1"]),
    ] {
        let (code, found) = ask(&view, text, RecordType::A);
        assert_eq!(
            (code, found.as_slice()),
            (ResponseCode::NoError, &*records.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>()),
            "{text}"
        );
    }
    assert_eq!(ask(&view, "web", RecordType::AAAA).1, ["fd01::1"]);
    assert_eq!(ask(&view, "web-1", RecordType::ANY).1, ["10.1.0.1", "fd01::1"]);
}

#[test]
fn no_data_is_not_no_name() {
    let view = view();
    for (text, kind) in [
        ("v4only", RecordType::AAAA),
        ("v4only", RecordType::TXT),
        ("web", RecordType::HTTPS),
        ("green", RecordType::A),
        ("4.0.2.10.in-addr.arpa", RecordType::A),
        ("2.10.in-addr.arpa", RecordType::SOA),
    ] {
        assert_eq!(ask(&view, text, kind), (ResponseCode::NoError, vec![]), "{text} {kind}");
    }
    for text in
        ["nobody", "nobody.blue", "web.red", "red", "web-1.blue.blue", "9.0.2.10.in-addr.arpa"]
    {
        let kind = if text.ends_with("arpa") { RecordType::PTR } else { RecordType::A };
        assert_eq!(ask(&view, text, kind), (ResponseCode::NXDomain, vec![]), "{text}");
    }
}

#[test]
fn addresses_lead_back_to_names() {
    let view = view();
    let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa";
    assert_eq!(v6.len(), 72);
    assert_eq!(ask(&view, "2.0.1.10.IN-ADDR.arpa", RecordType::PTR).1, ["web-2.blue."]);
    assert_eq!(ask(&view, "4.0.2.10.in-addr.arpa", RecordType::PTR).1, ["db.green."]);
    assert_eq!(ask(&view, v6, RecordType::PTR).1, ["web-1.blue."]);
    assert_eq!(ask(&view, "1.0.0.127.in-addr.arpa", RecordType::PTR).1, ["localhost."]);
    // Of two claims to one address the data path takes the older; so do names.
    let twice = vec![claim(2, "late", &[], &["10.1.0.1"]), claim(1, "early", &[], &["10.1.0.1"])];
    let view = View { networks: vec![table(1, "blue", &[], twice)], ..view };
    assert_eq!(ask(&view, "1.0.1.10.in-addr.arpa", RecordType::PTR).1, ["early.blue."]);
}

#[test]
fn only_names_of_others_go_to_the_upstreams() {
    let view = view();
    for text in
        ["example.com", "web.example.com", "8.8.8.8.in-addr.arpa", "_x._tcp.example.com", ""]
    {
        assert!(forwards(&view, text, RecordType::A), "{text}");
    }
    for text in ["nobody", "nobody.red", "x.y.red", "a b.blue", "*.blue", "1.0.1.10.in-addr.arpa"] {
        assert!(!forwards(&view, text, RecordType::PTR), "{text}");
    }
    // What a validator asks about top-level domains; not about our networks.
    for kind in [RecordType::DS, RecordType::DNSKEY, RecordType::NS, RecordType::SOA] {
        assert!(forwards(&view, "com", kind), "{kind}");
        assert!(!forwards(&view, "blue", kind) && !forwards(&view, "red", kind), "{kind}");
        assert!(!forwards(&view, "web-1", kind) && !forwards(&view, "x.red", kind), "{kind}");
    }
    assert!(!forwards(&view, "com", RecordType::AAAA) && !forwards(&view, "com", RecordType::MX));
    // Who wants nobody to be asked is not told that there is nothing.
    let mut local = question("example.com", RecordType::A);
    local.metadata.recursion_desired = false;
    let Step::Refuse(fault) = step(&view, &local.to_vec().unwrap(), Transport::Udp, |_| 1) else {
        panic!()
    };
    let told = Message::from_vec(&fault.reply.unwrap()).unwrap();
    assert_eq!(told.metadata.response_code, ResponseCode::Refused);
    let closed = View { forwards: false, ..view };
    assert_eq!(ask(&closed, "example.com", RecordType::A).0, ResponseCode::NXDomain);
}

#[test]
fn until_all_are_heard_a_missing_name_is_only_late() {
    let early = View { settled: false, ..view() };
    let pending = |text: &str| {
        let bytes = question(text, RecordType::A).to_vec().unwrap();
        match step(&early, &bytes, Transport::Udp, |_| 1) {
            Step::Wait(query) => *query,
            other => panic!("{text}: {other:?}"),
        }
    };
    assert_eq!(ask(&early, "web-1", RecordType::A).0, ResponseCode::NoError, "it is known");
    assert!(forwards(&early, "example.com", RecordType::A), "others know");
    let told = |query: Query| match decide(&view(), query, |_| 1) {
        Step::Reply(reply) => Message::from_vec(&reply).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(pending("nobody")), ResponseCode::NXDomain);
    assert_eq!(told(pending("nobody.blue")), ResponseCode::NXDomain);
    let late = Message::from_vec(&pending("nobody").failure()).unwrap();
    assert_eq!((late.metadata.id, late.metadata.response_code), (7, ResponseCode::ServFail));
}

#[test]
fn a_name_is_found_before_an_id() {
    let claims =
        vec![claim(1, "web", &[], &["10.1.0.1"]), claim(2, "010101010101", &[], &["10.1.0.2"])];
    let table = table(1, "blue", &[], claims);
    let found = table.lookup("010101010101").unwrap();
    assert_eq!(found.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["010101010101"]);
}

/// Made on three hosts before they heard of each other: all of them decide alike, whatever came
/// first.
#[test]
fn of_endpoints_of_one_name_the_oldest_has_it() {
    let mut claims = vec![
        claim(3, "same", &["all"], &["10.1.0.3"]),
        claim(1, "same", &["all"], &["10.1.0.1"]),
        claim(2, "same", &["all", "same"], &["10.1.0.2"]),
        claim(4, "other", &["all"], &["10.1.0.4"]),
    ];
    // Two of one incarnation are told apart by their keys.
    claims[0].1.incarnation = 2;
    for _order in 0..claims.len() {
        claims.rotate_left(1);
        let view = View { networks: vec![table(1, "blue", &[], claims.clone())], ..view() };
        let table = &view.networks[0];
        // Who is also called so by an alias shares the name, as all aliases are shared.
        assert_eq!(ask(&view, "tasks.same", RecordType::A).1, ["10.1.0.1", "10.1.0.2"]);
        assert_eq!(ask(&view, "030303030303.blue", RecordType::A).1, ["10.1.0.3"]);
        assert_eq!(ask(&view, "3.0.1.10.in-addr.arpa", RecordType::PTR).1, ["030303030303.blue."]);
        assert_eq!(ask(&view, "1.0.1.10.in-addr.arpa", RecordType::PTR).1, ["same.blue."]);
        assert_eq!(ask(&view, "all.all", RecordType::A).1.len(), 4);
        let mut rivals: Vec<_> = table.rivals().iter().map(|r| (r.key, r.holder)).collect();
        rivals.sort_unstable();
        let key = |id: u8| claim(id, "x", &[], &[]).0;
        let mut wanted = [(key(2), key(1)), (key(3), key(1))];
        wanted.sort_unstable();
        assert_eq!(rivals, wanted);
    }
}

#[test]
fn a_nodes_own_endpoint_has_no_name() {
    let (key, mut node0) = claim(1, "node0", &[], &["10.0.0.5"]);
    node0.router = true;
    let table = table(9, "blue", &["10.0.0.0/24"], vec![(key, node0)]);
    assert!(table.lookup("node0").is_none() && table.at([10, 0, 0, 5].into()).is_none());
}

fn many(count: u8) -> View {
    let claims =
        (1..=count).map(|n| claim(n, &format!("n{n}"), &["many"], &[&format!("10.1.0.{n}")]));
    View { networks: vec![table(1, "blue", &[], claims.collect())], ..view() }
}

#[test]
fn what_does_not_fit_is_left_out_and_marked() {
    let view = many(200);
    let plain = question("tasks.many", RecordType::A);
    let mut edns = plain.clone();
    edns.set_edns(Edns::new().set_max_payload(4096).clone());
    for (message, transport, room, cut) in [
        (&plain, Transport::Udp, 512, true),
        (&edns, Transport::Udp, usize::from(DNS_UDP_LEN), true),
        (&plain, Transport::Tcp, 65_535, false),
    ] {
        let (reply, bytes) = asked(&view, message, transport);
        assert_eq!(reply.metadata.truncation, cut);
        assert!(bytes.len() <= room && (!cut || bytes.len() + 16 > room), "{}", bytes.len());
        assert_eq!(reply.edns.is_some(), message.edns.is_some(), "as it was asked");
        assert!(cut || reply.answers.len() == 200);
    }
}

/// Most programs sort what they get, so a name of several is answered with one of them.
#[test]
fn of_several_that_have_a_name_each_has_its_turn() {
    let view = view();
    let mut turns = Turns::default();
    let mut next = |text: &str, kind| {
        let bytes = question(text, kind).to_vec().unwrap();
        let turn = |query: &Query| turns.take(query.host_name().unwrap(), query.kind(), 7);
        let Step::Reply(reply) = step(&view, &bytes, Transport::Udp, turn) else { panic!() };
        let answers = Message::from_vec(&reply).unwrap().answers;
        assert_eq!(answers.len(), 1, "{text}");
        answers[0].data.to_string()
    };
    let first: Vec<String> = (0..6).map(|_| next("web", RecordType::A)).collect();
    assert_eq!(first[..3], first[3..]);
    assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    // Who asks for both types each time gets all addresses of both, whichever it takes.
    let both: Vec<_> = (0..6)
        .map(|_| (next("web.blue", RecordType::A), next("web.blue", RecordType::AAAA)))
        .collect();
    let (v4, v6): (std::collections::BTreeSet<_>, std::collections::BTreeSet<_>) =
        both.into_iter().unzip();
    assert_eq!((v4.len(), v6.len()), (3, 2));
    // The name of one is nobody's turn.
    assert_eq!(next("web-1", RecordType::A), next("web-1", RecordType::A));
}

#[test]
fn turns_are_kept_for_so_many_names() {
    let mut turns = Turns::default();
    for number in 0..5000 {
        assert_eq!(turns.take(format!("n{number}"), RecordKind::A, 3), 3);
        assert_eq!(turns.take(format!("n{number}"), RecordKind::A, 9), 4);
        assert_eq!(turns.take(format!("n{number}"), RecordKind::Aaaa, 9), 3);
    }
    assert!(turns.len() < 2000);
}

#[test]
fn what_is_no_question_is_refused_or_left_alone() {
    let view = view();
    let good = question("web", RecordType::A);
    let mut response = good.clone();
    response.metadata.message_type = MessageType::Response;
    let mut two = good.clone();
    two.add_query(good.queries[0].clone());
    let mut update = good.clone();
    update.metadata.op_code = OpCode::Update;
    let mut chaos = good.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut later = good.clone();
    later.set_edns(Edns::new().set_version(1).clone());
    let transfer = question("blue", RecordType::AXFR);
    for (message, code) in [
        (&response, None),
        (&two, Some(ResponseCode::FormErr)),
        (&update, Some(ResponseCode::NotImp)),
        (&chaos, Some(ResponseCode::Refused)),
        (&transfer, Some(ResponseCode::Refused)),
        (&later, Some(ResponseCode::BADVERS)),
    ] {
        let bytes = message.to_vec().unwrap();
        let Step::Refuse(fault) = step(&view, &bytes, Transport::Udp, |_| 1) else {
            panic!("{message:?}")
        };
        let told = fault.reply.map(|reply| {
            assert!(reply.len() <= bytes.len(), "never larger than its cause");
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!(reply.metadata.id, 7);
            u16::from(reply.metadata.response_code)
        });
        // BADVERS and BADSIG share a number.
        assert_eq!(told, code.map(u16::from), "{message:?}");
    }
    let bytes = good.to_vec().unwrap();
    for len in 0..bytes.len() {
        let Step::Refuse(fault) = step(&view, &bytes[..len], Transport::Udp, |_| 1) else {
            panic!("{len}")
        };
        assert_eq!(fault.reply.is_some(), len >= 12, "{len}");
    }
}

fn upstream_query(text: &str) -> Query {
    let bytes = question(text, RecordType::A).to_vec().unwrap();
    Query::parse(&bytes, Transport::Udp).unwrap()
}

fn upstream_answer(query: &Query, id: u16) -> Message {
    let mut answer = Message::from_vec(&query.to_upstream(id, true).unwrap()).unwrap();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    answer
}

fn record(text: &str, ttl: u32) -> Record {
    Record::from_rdata(domain_name(text), ttl, RData::A(A("192.0.2.1".parse().unwrap())))
}

#[test]
fn an_upstreams_answer_has_the_id_and_the_question() {
    let query = upstream_query("www.example.com");
    let sent = Message::from_vec(&query.to_upstream(99, true).unwrap()).unwrap();
    assert_eq!((sent.metadata.id, sent.metadata.recursion_desired), (99, true));
    let mut answer = upstream_answer(&query, 99);
    answer.add_answer(record("www.example.com", 300));
    let hear = |message: &Message| query.hear(99, &message.to_vec().unwrap());
    let Heard::Answer(heard) = hear(&answer) else { panic!() };
    assert!(heard.is_positive());
    assert_eq!(heard.ttl, Duration::from_secs(300));
    let reply = Message::from_vec(&heard.reply(&query, Duration::from_secs(100))).unwrap();
    assert_eq!((reply.metadata.id, reply.answers[0].ttl), (7, 200));

    let foreign: [fn(&mut Message); 3] = [
        |message| message.metadata.id = 98,
        |message| message.metadata.message_type = MessageType::Query,
        |message| {
            message.queries = vec![Question::query(domain_name("evil.example"), RecordType::A)];
        },
    ];
    for change in foreign {
        let mut forged = answer.clone();
        change(&mut forged);
        assert!(matches!(hear(&forged), Heard::Foreign));
    }
    assert!(matches!(query.hear(99, &[0; 5]), Heard::Foreign));
    let mut cut = answer.clone();
    cut.metadata.truncation = true;
    assert!(matches!(hear(&cut), Heard::Cut(_)));
    let mut failed = answer.clone();
    failed.metadata.response_code = ResponseCode::ServFail;
    assert!(matches!(hear(&failed), Heard::Failed));
    let mut lame = answer;
    lame.answers.clear();
    lame.metadata.recursion_available = false;
    assert!(matches!(hear(&lame), Heard::Failed), "it only says that others know");
    lame.metadata.authoritative = true;
    assert!(matches!(hear(&lame), Heard::Answer(_)));
}

#[test]
fn a_server_without_edns_is_asked_without() {
    let query = upstream_query("www.example.com");
    let plain = Message::from_vec(&query.to_upstream(99, false).unwrap()).unwrap();
    assert!(plain.edns.is_none() && upstream_answer(&query, 99).edns.is_some());
    for code in [ResponseCode::FormErr, ResponseCode::NotImp, ResponseCode::BADVERS] {
        let mut refusal = upstream_answer(&query, 99);
        refusal.metadata.response_code = code;
        assert!(matches!(query.hear(99, &refusal.to_vec().unwrap()), Heard::Plain), "{code}");
        if code != ResponseCode::BADVERS {
            refusal.queries.clear();
            refusal.edns = None;
            let bare = refusal.to_vec().unwrap();
            assert_eq!(bare.len(), 12);
            assert!(matches!(query.hear(99, &bare), Heard::Plain), "only a header: {code}");
            assert!(matches!(query.hear(98, &bare), Heard::Foreign), "another id: {code}");
        }
    }
    let mut nothing = upstream_answer(&query, 99);
    nothing.queries.clear();
    assert!(matches!(query.hear(99, &nothing.to_vec().unwrap()), Heard::Foreign));
}

#[test]
fn what_came_of_a_cut_answer_can_be_given() {
    let query = upstream_query("www.example.com");
    let mut cut = upstream_answer(&query, 99);
    cut.metadata.truncation = true;
    cut.add_answer(record("www.example.com", 300));
    let bytes = cut.to_vec().unwrap();
    let Heard::Cut(heard) = query.hear(99, &bytes) else { panic!() };
    assert!(heard.is_positive() && heard.ttl == Duration::ZERO, "given and not kept");
    let reply = |query: &Query| Message::from_vec(&heard.reply(query, Duration::ZERO)).unwrap();
    assert!(reply(&query).metadata.truncation && reply(&query).answers.len() == 1);
    let over_tcp = question("www.example.com", RecordType::A).to_vec().unwrap();
    let over_tcp = Query::parse(&over_tcp, Transport::Tcp).unwrap();
    assert!(!reply(&over_tcp).metadata.truncation, "there is no more to be had");
    // Some servers cut in the middle of a record.
    let Heard::Cut(half) = query.hear(99, &bytes[..bytes.len() - 14]) else { panic!() };
    assert!(!half.is_positive());
}

#[test]
fn refusals_are_kept_as_long_as_their_zone_says() {
    let query = upstream_query("no.example.com");
    let mut answer = upstream_answer(&query, 1);
    answer.metadata.response_code = ResponseCode::NXDomain;
    let ttl = |message: &Message| match query.hear(1, &message.to_vec().unwrap()) {
        Heard::Answer(answer) => answer.ttl.as_secs(),
        other => panic!("{other:?}"),
    };
    assert_eq!(ttl(&answer), 0, "nobody said how long");
    let soa = SOA::new(domain_name("a"), domain_name("b"), 1, 2, 3, 4, 20);
    answer.add_authority(Record::from_rdata(domain_name("example.com"), 900, RData::SOA(soa)));
    assert_eq!(ttl(&answer), 20);
}

#[test]
fn alike_questions_share_an_answer() {
    let key = |text: &str| upstream_query(text).cache_key();
    assert_eq!(key("WWW.example.com"), key("www.example.com."));
    assert_ne!(key("www.example.com"), key("example.com"));
}

proptest! {
    /// I7: whatever the bytes, a reply is one that the asker can read and no longer than it has
    /// room for.
    #[test]
    fn any_bytes_end_in_one_step(bytes in prop::collection::vec(any::<u8>(), 0..200), seed: u64) {
        let view = view();
        match step(&view, &bytes, Transport::Udp, |_| seed) {
            Step::Reply(reply) => prop_assert!(Message::from_vec(&reply).is_ok()),
            Step::Forward(query) | Step::Wait(query) => prop_assert!(query.to_upstream(1, true).is_some()),
            Step::Refuse(fault) => prop_assert!(fault.reply.is_none_or(|reply| reply.len() <= bytes.len().max(12))),
        }
    }

    #[test]
    fn every_address_of_a_claim_leads_back(ip: IpAddr) {
        let (key, mut claim) = claim(1, "one", &[], &[]);
        claim.ips = vec![ip];
        let table = NamesTable::new(NetworkId::from_random([1; 16]), name("blue"), vec![], [(&key, &claim)]);
        prop_assert_eq!(table.at(ip).map(|endpoint| endpoint.key), Some(key));
    }
}
