//! What is asked of services: all that answer, their ports, one in turn.

use crate::{
    addr::ServiceId,
    object::ServicePort,
    wire::{TCP, UDP},
};

use super::*;

/// A claim's key and addresses as a backend.
fn backend(claim: &(RowKey, EndpointClaim), weight: u8, takes_new: bool) -> NamedBackend {
    NamedBackend { key: claim.0, ips: claim.1.ips.clone(), weight, takes_new }
}

fn port(named: Option<&str>, protocol: u8, port: u16, backend_port: u16) -> ServicePort {
    ServicePort { protocol, port, backend_port, name: named.map(name) }
}

fn service(own: &str, vips: &[&str], backends: Vec<NamedBackend>) -> NamedService {
    NamedService {
        id: ServiceId::from_random([0xa0 + u8::try_from(own.len()).unwrap(); 16]),
        name: name(own),
        vips: vips.iter().map(|ip| ip.parse().unwrap()).collect(),
        created: 100,
        ports: vec![
            port(Some("http"), TCP, 80, 8080),
            port(None, TCP, 443, 8443),
            port(Some("dns"), UDP, 53, 5353),
            port(Some("80"), TCP, 81, 8081),
        ],
        backends,
    }
}

/// Four endpoints of `blue`; the third is not well, the fourth has weight 0. The second is called
/// as an alias of the fourth is.
fn claims() -> Vec<(RowKey, EndpointClaim)> {
    vec![
        claim(1, "web-1", &["x"], &["10.1.0.1", "fd01::1"]),
        claim(2, "web-2", &["tasks.web", "all.web"], &["10.1.0.2", "fd01::2"]),
        claim(3, "web-3", &["_http._tcp.web", "_tcp.web"], &["10.1.0.3"]),
        claim(4, "web-4", &["x", "web-2"], &["10.1.0.4"]),
    ]
}

fn backends() -> Vec<NamedBackend> {
    let claims = claims();
    let with = [(1, true), (3, true), (1, false), (0, true)];
    let each = claims.iter().zip(with);
    let mut all: Vec<_> =
        each.map(|(claim, (weight, well))| backend(claim, weight, well)).collect();
    all.sort_unstable_by_key(|backend| backend.key);
    all
}

/// A sandbox in `web`, which has an endpoint `tasks`, and in `blue`, which has the service `web`.
fn view_of(services: &[NamedService]) -> View {
    let blue = table(1, "blue", &["10.1.0.0/16"], claims());
    let rivals = vec![
        claim(5, "tasks", &["_http._tcp", "all"], &["10.2.0.5"]),
        claim(6, "other", &["tasks.web"], &["10.2.0.6"]),
    ];
    View {
        networks: vec![
            table(2, "web", &["10.2.0.0/16"], rivals),
            Arc::new(NamesTable::clone(&blue).with_services(services)),
        ],
        domains: Arc::new(["blue", "web", "red"].map(name).into()),
        ..view()
    }
}

/// In the order in which they come.
fn told(view: &View, text: &str, kind: RecordType) -> Vec<String> {
    let (reply, _) = asked(view, &question(text, kind), Transport::Tcp);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{text}");
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

fn addresses(backends: &[NamedBackend], chosen: impl Fn(&NamedBackend) -> bool) -> Vec<String> {
    let ips = backends.iter().filter(|it| chosen(it)).flat_map(|it| &it.ips);
    ips.filter(|ip| ip.is_ipv4()).map(IpAddr::to_string).collect()
}

#[test]
fn tasks_are_the_healthy_backends_and_all_are_all() {
    let view = view_of(&[service("web", &["10.1.0.200"], backends())]);
    let healthy = addresses(&backends(), |it| it.takes_new);
    assert_eq!(healthy.len(), 3);
    // Neither the network `web`, nor its endpoint `tasks`, nor aliases of that spelling hide them.
    for text in ["tasks.web", "TASKS.web.blue", "tasks.web.blue."] {
        assert_eq!(told(&view, text, RecordType::A), healthy, "{text}");
    }
    for text in ["all.web", "all.web.blue"] {
        assert_eq!(told(&view, text, RecordType::A), addresses(&backends(), |_| true), "{text}");
    }
    assert_eq!(told(&view, "tasks.web", RecordType::AAAA).len(), 2);
    assert_eq!(told(&view, "tasks.web", RecordType::TXT), [""; 0]);
    assert_eq!(told(&view, "web.blue", RecordType::A), ["10.1.0.200"]);
    // The service's short id is a name of it, too.
    assert_eq!(told(&view, "tasks.a3a3a3a3a3a3", RecordType::A), healthy);
    // Where there is no such service, a name is what it was.
    let without = view_of(&[]);
    assert_eq!(told(&without, "tasks.web", RecordType::A), ["10.2.0.5"]);
    assert_eq!(told(&without, "tasks.web.blue", RecordType::A), ["10.1.0.2"]);
    // All that have an alias are asked for alike, if no name outside can be meant.
    let mut shared = told(&without, "tasks.x", RecordType::A);
    shared.sort();
    assert_eq!(shared, ["10.1.0.1", "10.1.0.4"]);
    assert!(forwards(&without, "tasks.example", RecordType::A));
    assert!(forwards(&super::view(), "tasks.web.local", RecordType::A));
}

#[test]
fn srv_records_say_where_a_port_is() {
    let view = view_of(&[service("web", &["10.1.0.200"], backends())]);
    let wanted = |port: u16| {
        // The name of the second is an alias of the fourth, so its id leads to it. Nobody new goes
        // to weight 0.
        let name = |key: RowKey| match key == claims()[0].0 {
            true => "256 @ web-1.blue.".to_owned(),
            false => "768 @ 020202020202.blue.".to_owned(),
        };
        let chosen = backends().into_iter().filter(|it| it.takes_new && it.weight > 0);
        let line = |it: NamedBackend| format!("0 {}", name(it.key).replace('@', &port.to_string()));
        chosen.map(line).collect::<Vec<_>>()
    };
    for (text, port) in [
        ("_http._tcp.web", 8080),
        ("_HTTP._tcp.web.blue", 8080),
        ("_443._tcp.web", 8443),
        ("_dns._udp.web", 5353),
        ("_53._udp.web.blue", 5353),
        // A name before a number.
        ("_80._tcp.web", 8081),
        ("_81._tcp.web", 8081),
        ("_http._tcp.a3a3a3a3a3a3.blue", 8080),
    ] {
        assert_eq!(told(&view, text, RecordType::SRV), wanted(port), "{text}");
        assert_eq!(told(&view, text, RecordType::ANY), wanted(port), "{text}");
        assert_eq!(told(&view, text, RecordType::A), [""; 0], "{text}");
    }
    for text in ["_http._udp.web", "_ftp._tcp.web", "_0443._tcp.web.blue", "_x._sctp.web.blue"] {
        let (code, records) = ask(&view, text, RecordType::SRV);
        assert_eq!((code, records.len()), (ResponseCode::NXDomain, 0), "{text}");
    }
    // What has names below it is there.
    assert_eq!(told(&view, "_tcp.web", RecordType::SRV), [""; 0]);
    assert_eq!(told(&view, "_udp.web.blue", RecordType::A), [""; 0]);
    // Each target comes with its addresses, and leads to them.
    let (reply, _) = asked(&view, &question("_http._tcp.web", RecordType::SRV), Transport::Udp);
    let mut additionals: Vec<_> = reply
        .additionals
        .iter()
        .map(|record| (record.name.to_string(), record.data.to_string()))
        .collect();
    additionals.sort();
    let wanted = [
        ("020202020202.blue.", "10.1.0.2"),
        ("020202020202.blue.", "fd01::2"),
        ("web-1.blue.", "10.1.0.1"),
        ("web-1.blue.", "fd01::1"),
    ];
    assert_eq!(additionals, wanted.map(|(name, ip)| (name.to_owned(), ip.to_owned())));
    assert_eq!(told(&view, "020202020202.blue.", RecordType::A), ["10.1.0.2"]);
}

#[test]
fn backends_of_weight_0_are_named_where_there_are_no_others() {
    let idle = backends().into_iter().map(|it| NamedBackend { weight: 0, ..it });
    let view = view_of(&[service("web", &["10.1.0.200"], idle.collect())]);
    let records = |view: &View| told(view, "_http._tcp.web", RecordType::SRV);
    let told = records(&view);
    assert!(told.len() == 3 && told.iter().all(|line| line.starts_with("0 0 8080 ")), "{told:?}");
    let heavy = backends().into_iter().map(|it| NamedBackend { weight: u8::MAX, ..it });
    let view = view_of(&[service("web", &["10.1.0.200"], heavy.collect())]);
    let told = records(&view);
    assert!(told.iter().all(|line| line.starts_with("0 65280 ")), "{told:?}");
}

/// No refusal: whoever keeps it would not see the first backend come.
#[test]
fn a_service_without_backends_has_no_data() {
    let ill = backends().into_iter().map(|it| NamedBackend { takes_new: false, ..it }).collect();
    for backends in [Vec::new(), ill] {
        let services =
            [service("web", &["10.1.0.200"], backends.clone()), service("rr", &[], backends)];
        let view = view_of(&services);
        for (text, kind) in [
            ("tasks.web", RecordType::A),
            ("tasks.rr.blue", RecordType::A),
            ("_http._tcp.web", RecordType::SRV),
            ("rr", RecordType::A),
            ("rr.blue", RecordType::AAAA),
        ] {
            assert_eq!(told(&view, text, kind), [""; 0], "{text}");
            // Until all nodes were heard, there may be some.
            let early = View { settled: false, ..view.clone() };
            let bytes = question(text, kind).to_vec().unwrap();
            let step = step(&early, &bytes, Transport::Udp, |_| 1);
            assert!(matches!(step, Step::Wait(_)), "{text}: {step:?}");
        }
        assert_eq!(told(&view, "web.blue", RecordType::A), ["10.1.0.200"]);
    }
}

#[test]
fn a_service_without_an_address_is_its_healthy_backends_in_turn() {
    let view = view_of(&[service("rr", &[], backends())]);
    let mut seen = Vec::new();
    for turn in 0..4 {
        let bytes = question("rr", RecordType::A).to_vec().unwrap();
        let Step::Reply(reply) = step(&view, &bytes, Transport::Udp, |_| turn) else { panic!() };
        let answers = Message::from_vec(&reply).unwrap().answers;
        assert_eq!(answers.len(), 1);
        seen.push(answers[0].data.to_string());
    }
    let wanted = addresses(&backends(), |it| it.takes_new && it.weight > 0);
    assert_eq!((seen[..2].to_vec(), seen[2..].to_vec()), (wanted.clone(), wanted));
}

/// 200 backends: over UDP some of the records, always the same, and a mark; addresses only where
/// all records fit, and those of a target together.
#[test]
fn long_lists_are_cut_in_order() {
    let claims: Vec<_> = (1..=200)
        .map(|n| {
            claim(n, &format!("n{n}"), &[], &[&format!("10.1.0.{n}"), &format!("fd01::{n:x}")])
        })
        .collect();
    let with = |count: usize| {
        let backends = claims.iter().take(count).map(|claim| backend(claim, 1, true)).collect();
        let table = table(1, "blue", &[], claims.clone());
        let services = [service("web", &["10.1.0.200"], backends)];
        let table = Arc::new(NamesTable::clone(&table).with_services(&services));
        View { networks: vec![table], ..view() }
    };
    let mut query = question("_http._tcp.web.blue", RecordType::SRV);
    query.set_edns(Edns::new().set_max_payload(4096).clone());
    for (count, some_addresses) in [(200, false), (20, true), (3, true)] {
        let view = with(count);
        let (whole, _) = asked(&view, &query, Transport::Tcp);
        let (reply, bytes) = asked(&view, &query, Transport::Udp);
        assert_eq!((whole.answers.len(), whole.additionals.len()), (count, 2 * count));
        assert!(bytes.len() <= usize::from(DNS_UDP_LEN));
        assert_eq!(reply.metadata.truncation, count == 200);
        assert!(
            whole.answers.starts_with(&reply.answers) && reply.answers.len() > 10.min(count - 1)
        );
        assert_eq!(!reply.additionals.is_empty(), some_addresses);
        assert!(
            reply.additionals.len() % 2 == 0 && whole.additionals.starts_with(&reply.additionals)
        );
        assert_eq!(reply.additionals.len() == 2 * count, count == 3, "{}", reply.additionals.len());
    }
}

/// A backend that fails and recovers changes what is told, and not the names of the network.
#[test]
fn names_stay_while_backends_change() {
    let before = NamesTable::clone(&table(1, "blue", &[], claims()));
    let web = service("web", &["10.1.0.200"], backends());
    let before = before.with_services(std::slice::from_ref(&web));
    let fewer = NamedService { backends: backends().split_off(2), ..web.clone() };
    let after = before.following(std::slice::from_ref(&fewer)).unwrap();
    assert!(Arc::ptr_eq(&before.index, &after.index));
    assert_eq!(after.services(), [fewer]);
    let moved = NamedService { vips: Vec::new(), ..web.clone() };
    let renamed = NamedService { name: name("api"), ..web };
    for services in [&[][..], &[moved], &[renamed]] {
        assert!(before.following(services).is_none(), "{services:?}");
    }
}

/// Who was given the name of a service at the same time, by its name or as an alias: one has it.
#[test]
fn of_a_service_and_endpoints_of_one_name_the_older_has_it() {
    for (incarnation, has) in [(99, false), (100, false), (101, true)] {
        let mut claims =
            vec![claim(1, "web", &[], &["10.1.0.1"]), claim(2, "b", &["web"], &["10.1.0.2"])];
        claims.iter_mut().for_each(|(_, claim)| claim.incarnation = incarnation);
        let keys: Vec<RowKey> = claims.iter().map(|(key, _)| *key).collect();
        let web = service("web", &["10.1.0.200"], Vec::new());
        let own = crate::object::holder(web.id);
        let names = NamesTable::clone(&table(1, "blue", &[], claims)).with_services(&[web]);
        let rivals: Vec<_> =
            names.rivals().iter().map(|it| (it.key.node == own, it.key, it.holder)).collect();
        let mut found: Vec<RowKey> = names.lookup("web").unwrap().iter().map(|it| it.key).collect();
        found.sort_unstable();
        assert!(names.rivals().iter().all(|it| it.with_service && it.name.as_str() == "web"));
        if has {
            let holder = found[0];
            assert_eq!((holder.node, found.len()), (own, 1));
            let mut wanted: Vec<_> = keys.iter().map(|key| (false, *key, holder)).collect();
            wanted.sort_unstable();
            let mut rivals = rivals;
            rivals.sort_unstable();
            assert_eq!(rivals, wanted);
            assert_eq!(names.called(keys[0].endpoint).unwrap().as_str(), "010101010101");
            assert_eq!(names.called(keys[1].endpoint).unwrap().as_str(), "b");
        } else {
            let mut keys = keys;
            keys.sort_unstable();
            assert_eq!(found, keys);
            // Of two of one age the one with the smaller key counts as the older.
            assert_eq!((rivals.len(), rivals[0].0, rivals[0].2), (1, true, keys[0]));
        }
    }
}
