//! Services: what is admitted, whose name and addresses they have.

use std::collections::BTreeMap;

use super::*;
use crate::addr::ServiceId;

pub(super) const BLUE: [u8; 16] = [1; 16];

pub(super) fn service(seed: u8, name: &str, vip: &str) -> Service {
    Service {
        name: name.parse().unwrap(),
        network: NetworkId::from_random(BLUE),
        creator: node(seed),
        vips: vec![vip.parse().unwrap()],
        ports: vec![ServicePort { protocol: 6, port: 80, backend_port: 8080, name: None }],
        backends: ["a".parse().unwrap()].into(),
        selector: BTreeMap::new(),
        weights: BTreeMap::new(),
        choice: None,
        check: None,
        draining: BTreeMap::new(),
        drain_ms: None,
        prefer: None,
        published: Vec::new(),
        allow: Vec::new(),
        deny: Vec::new(),
        sticky: None,
    }
}

pub(super) fn draft(at: u64, service: Service) -> Draft {
    Draft::new(hlc(at), Content::Service(service))
}

pub(super) fn id_of(object: &Object) -> ServiceId {
    match object.id() {
        ObjectId::Service(id) => *id,
        other => panic!("{other}"),
    }
}

#[test]
fn any_member_changes_a_service_but_not_what_its_id_commits_to() {
    let mut set = set();
    let made = new(&mut set, &sign(1, &draft(1, service(1, "web", "10.1.0.9"))));
    assert_eq!(made.id().to_string().parse::<ObjectId>().as_ref(), Ok(made.id()));
    let mut edit = made.edit(hlc(2));
    if let Content::Service(service) = &mut edit.content {
        service.backends.insert("b".parse().unwrap());
    }
    assert!(matches!(merge(&mut set, &sign(2, &edit)), Merge::Updated { .. }));
    // Another address is another service: it is no version of this one.
    let mut stolen = made.edit(hlc(3));
    if let Content::Service(service) = &mut stolen.content {
        service.vips = vec!["10.1.0.10".parse().unwrap()];
    }
    let other = new(&mut set, &sign(2, &stolen));
    assert_ne!(other.id(), made.id());
}

#[test]
fn of_two_services_with_one_name_the_older_has_it() {
    let mut set = set();
    let young = id_of(&new(&mut set, &sign(2, &draft(5, service(2, "web", "10.1.0.8")))));
    let old = id_of(&new(&mut set, &sign(1, &draft(4, service(1, "web", "10.1.0.9")))));
    let states: Vec<_> = set
        .services(NetworkId::from_random(BLUE))
        .into_iter()
        .map(|of| (of.id, of.state))
        .collect();
    let conflict = ServiceState::Conflict { with: old };
    assert_eq!(states, [(old, ServiceState::Active), (young, conflict)]);
    assert!(set.services(NetworkId::from_random([2; 16])).is_empty());
}

#[test]
fn a_closed_service_stays_closed() {
    let mut set = set();
    let made = new(&mut set, &sign(1, &draft(1, service(1, "web", "10.1.0.9"))));
    let closed = Draft { closed: true, ..made.edit(hlc(9)) };
    assert!(matches!(merge(&mut set, &sign(3, &closed)), Merge::Updated { .. }));
    // Its address may be somebody else's by now.
    let mut reopened = made.edit(hlc(20));
    reopened.closed = false;
    assert_eq!(merge(&mut set, &sign(1, &reopened)), Merge::Stale);
    let all: Vec<_> = set.all_services().map(|(id, object, _)| (id, object.closed())).collect();
    assert_eq!(all, [(id_of(&made), true)]);
}

#[test]
fn the_addresses_of_closed_services_are_known_for_a_while() {
    let (mut set, blue) = (set(), NetworkId::from_random(BLUE));
    let made = new(&mut set, &sign(1, &draft(1, service(1, "web", "10.1.0.9"))));
    assert!(set.gone_vips().is_empty());
    assert_eq!(set.with_services(), [blue].into());
    let closed = sign(3, &Draft { closed: true, ..made.edit(hlc(9)) });
    assert!(matches!(merge(&mut set, &closed), Merge::Updated { .. }));
    let gone = ["10.1.0.9".parse().unwrap()].into();
    assert_eq!(set.gone_vips(), [(blue, gone)].into(), "of this network alone");
    assert!(set.with_services().is_empty());
}

#[test]
fn what_a_service_cannot_be_is_refused() {
    let whole = service(1, "web", "10.1.0.9");
    let port = whole.ports[0].clone();
    for wrong in [
        Service { vips: vec![whole.vips[0], "10.1.0.10".parse().unwrap()], ..whole.clone() },
        Service { ports: vec![port.clone(), port.clone()], ..whole.clone() },
        Service { ports: vec![ServicePort { port: 0, ..port }], ..whole.clone() },
        Service { weights: [("a".parse().unwrap(), 101)].into(), ..whole.clone() },
        Service { sticky: Some(0), ..whole.clone() },
        Service { sticky: Some(86_401), ..whole.clone() },
    ] {
        let refused = draft(1, wrong.clone()).sign(&pair(1), mesh());
        assert!(matches!(refused, Err(Refused::Content(_))), "{wrong:?}: {refused:?}");
    }
    let without = Service { vips: Vec::new(), ..whole.clone() };
    assert!(draft(1, without).sign(&pair(1), mesh()).is_ok(), "its name leads to its backends");
    let sticky = Service { sticky: Some(86_400), ..whole.clone() };
    assert!(draft(1, sticky).sign(&pair(1), mesh()).is_ok());
    let unknown = Service { choice: Some("later".parse().unwrap()), ..whole };
    assert!(draft(1, unknown).sign(&pair(1), mesh()).is_ok(), "a later version may know it");
}
