//! What several members change of one service, each for itself.

use super::{
    services::{draft, id_of, service},
    *,
};
use crate::addr::ServiceId;

fn made(sets: &mut [ObjectSet]) -> ServiceId {
    let text = sign(1, &draft(1, service(1, "web", "10.1.0.9")));
    sets.iter_mut().map(|set| id_of(&new(set, &text))).last().unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// What this member changes, by what it knows.
fn edit(
    set: &mut ObjectSet,
    (seed, at): (u8, u64),
    id: ServiceId,
    change: impl FnOnce(&mut Service),
) -> Arc<str> {
    let mut service = set.service(id).unwrap().clone();
    change(&mut service);
    let text = sign(seed, &set.update(id, node(seed), &service, hlc(at)).unwrap());
    assert!(matches!(merge(set, &text), Merge::New(_) | Merge::Updated { .. }));
    text
}

fn port(port: u16) -> ServicePort {
    ServicePort { protocol: 6, port, backend_port: 8080, name: None }
}

fn published(host_port: u16, is_local: bool) -> PublishedPort {
    PublishedPort { protocol: 6, host_port, port: 80, ip: None, is_local }
}

#[test]
fn two_that_change_a_service_at_once_both_change_it() {
    let mut sets = [set(), set()];
    let id = made(&mut sets);
    let [here, there] = &mut sets;
    let drained = edit(here, (1, 5), id, |service| {
        service.draining.insert(name("a"), 5);
        service.ports.push(port(90));
    });
    let weighed = edit(there, (2, 6), id, |service| {
        service.weights.insert(name("a"), 4);
        service.ports.push(port(91));
        service.sticky = Some(60);
    });
    assert!(matches!(merge(here, &weighed), Merge::New(_)));
    assert!(matches!(merge(there, &drained), Merge::New(_)));
    let (here, there) = (here.service(id).unwrap(), there.service(id).unwrap());
    assert_eq!(here, there);
    assert_eq!(here.draining, [(name("a"), 5)].into());
    assert_eq!(here.weights, [(name("a"), 4)].into());
    let ports: Vec<u16> = here.ports.iter().map(|port| port.port).collect();
    assert_eq!((ports, here.sticky), (vec![80, 90, 91], Some(60)));
}

#[test]
fn the_later_change_of_one_part_counts() {
    let mut sets = [set(), set()];
    let id = made(&mut sets);
    let [here, there] = &mut sets;
    let early = edit(here, (1, 5), id, |service| service.sticky = Some(5));
    let late = edit(there, (2, 6), id, |service| service.sticky = Some(6));
    merge(here, &late);
    merge(there, &early);
    assert!([&here, &there].iter().all(|set| set.service(id).unwrap().sticky == Some(6)));
    // Whoever knows the other's word changes it later, whatever the clock says; also for nothing.
    let last = edit(here, (1, 2), id, |service| service.sticky = None);
    merge(there, &last);
    assert!([here, there].iter().all(|set| set.service(id).unwrap().sticky.is_none()));
}

#[test]
fn a_whole_later_version_is_a_change_of_all() {
    let mut set = set();
    let id = made(std::slice::from_mut(&mut set));
    edit(&mut set, (2, 5), id, |service| service.sticky = Some(5));
    let held = Arc::clone(set.get(&ObjectId::Service(id)).unwrap());
    // As an agent signs it that knows no updates.
    assert!(matches!(merge(&mut set, &sign(3, &held.edit(hlc(9)))), Merge::Updated { .. }));
    assert_eq!(set.service(id).unwrap().sticky, None);
    edit(&mut set, (2, 7), id, |service| service.sticky = Some(7));
    assert_eq!(set.service(id).unwrap().sticky, Some(7));
}

#[test]
fn what_was_changed_of_a_closed_service_goes_with_it() {
    let mut sets = [set(), set()];
    let id = made(&mut sets);
    let [here, there] = &mut sets;
    let changed = edit(here, (2, 5), id, |service| service.sticky = Some(5));
    let held = Arc::clone(here.get(&ObjectId::Service(id)).unwrap());
    let Content::Service(service) = held.content() else { panic!() };
    let content = Content::Service(service.ended());
    let closed = sign(3, &Draft { closed: true, content, ..held.edit(hlc(9)) });
    assert!(matches!(merge(there, &closed), Merge::Updated { .. }));
    assert_eq!(merge(there, &changed), Merge::Stale);
    assert!(matches!(merge(here, &closed), Merge::Updated { .. }));
    assert_eq!(here.content_hash(), there.content_hash());
    assert_eq!(here.service(id), None);
    let update = ObjectId::Update { service: id, from: node(2) };
    assert_eq!(here.collect(NOW), [update], "its text is to go from the disk");
    // Also what was left there by a crash.
    assert_eq!(there.restore(&changed, &TestCa, NOW), Merge::Stale);
    assert_eq!(there.collect(NOW).len(), 1);
}

#[test]
fn nobody_speaks_for_another_and_nobody_says_what_cannot_be() {
    let mut set = set();
    let id = made(std::slice::from_mut(&mut set));
    let text = edit(&mut set, (2, 5), id, |service| service.sticky = Some(5));
    let own = ObjectId::Update { service: id, from: node(2) };
    assert_eq!(own.to_string().parse::<ObjectId>(), Ok(own));
    let body = body_of(&text).to_owned();
    let stolen = body.replace(&format!(r#""a":"{}""#, node(2)), &format!(r#""a":"{}""#, node(3)));
    let refused = merge(&mut set, &forge(3, &stolen));
    assert_eq!(refused, Merge::Refused(Refused::NotTheirs(node(3))));
    for (from, to) in [(r#"{"s":5}"#, r#"{"s":0}"#), (r#"{"s":5}"#, r#"{"g":["a",101]}"#)] {
        let wrong = body.replace(from, to);
        assert_ne!(wrong, body);
        let refused = merge(&mut set, &forge(2, &wrong));
        assert!(matches!(refused, Merge::Refused(Refused::Content(_))), "{to}: {refused:?}");
    }
}

#[test]
fn a_part_of_a_later_version_is_kept_and_changes_nothing_here() {
    let mut sets = [set(), set()];
    let id = made(&mut sets);
    let [mut set, mut other] = sets;
    let before = set.service(id).unwrap().clone();
    let text = edit(&mut other, (2, 5), id, |service| service.sticky = Some(5));
    let later = body_of(&text).replace(r#"{"s":5}"#, r#"{"later":[1,2]}"#);
    assert!(matches!(merge(&mut set, &forge(2, &later)), Merge::New(_)));
    assert_eq!(set.service(id), Some(&before));
    let next = edit(&mut set, (2, 8), id, |service| service.sticky = Some(8));
    assert!(next.contains(r#"{"later":[1,2]}"#) && next.contains(r#"{"s":8}"#), "{next}");
}

#[test]
fn a_published_port_gives_way_to_an_older_one_that_excludes_it() {
    let mut sets = [set(), set()];
    let id = made(&mut sets);
    let [here, there] = &mut sets;
    let older = edit(here, (1, 5), id, |service| service.published.push(published(8080, false)));
    let younger = edit(there, (2, 6), id, |service| service.published.push(published(8081, true)));
    merge(here, &younger);
    merge(there, &older);
    for set in [&here, &there] {
        assert_eq!(set.service(id).unwrap().published, [published(8080, false)]);
    }
    // One that leads to no port leads nowhere.
    edit(here, (1, 9), id, |service| service.ports = vec![port(90)]);
    assert!(here.service(id).unwrap().published.is_empty());
}

#[test]
fn what_was_taken_away_long_ago_is_not_remembered() {
    let mut set = set();
    let id = made(std::slice::from_mut(&mut set));
    for n in 0..600 {
        let backend = name(&format!("b{n}"));
        edit(&mut set, (2, 10 * n + 5), id, |service| {
            service.backends.insert(backend.clone());
        });
        edit(&mut set, (2, 10 * n + 9), id, |service| {
            service.backends.remove(&backend);
        });
    }
    let held = set.get(&ObjectId::Update { service: id, from: node(2) }).unwrap();
    assert!(held.text().len() < 20 * 1024, "{}", held.text().len());
    edit(&mut set, (2, 32 * 24 * 3_600_000), id, |service| service.sticky = Some(5));
    let held = set.get(&ObjectId::Update { service: id, from: node(2) }).unwrap();
    assert!(held.text().len() < 512, "{}", held.text());
}

/// One change of a member: of parts that are its own, so that none of them may be lost.
fn apply(service: &mut Service, seed: u8, (what, which): (u8, u8)) {
    let own = name(&format!("m{seed}b{}", which % 3));
    let number = 1000 * u16::from(seed) + u16::from(which % 3);
    match what % 7 {
        0 => drop(service.backends.insert(own)),
        1 => drop(service.backends.remove(&own)),
        2 => drop(service.weights.insert(own, which % 100)),
        3 => drop(service.draining.insert(own, u64::from(which))),
        4 => drop(service.draining.remove(&own)),
        5 if !service.ports.contains(&port(number)) => service.ports.push(port(number)),
        _ => service.ports.retain(|port| port.port != number),
    }
}

/// Backends, weights, drains and ports.
type Own = (Vec<Name>, Vec<(Name, u8)>, Vec<(Name, u64)>, Vec<u16>);

/// What of a service is this member's.
fn own(service: &Service, seed: u8) -> Own {
    let is_own = |name: &&Name| name.as_str().starts_with(&format!("m{seed}"));
    let numbers = service.ports.iter().map(|port| port.port);
    let mut numbers: Vec<u16> = numbers.filter(|port| port / 1000 == u16::from(seed)).collect();
    numbers.sort_unstable();
    (
        service.backends.iter().filter(is_own).cloned().collect(),
        service.weights.iter().filter(|it| is_own(&it.0)).map(|(it, n)| (it.clone(), *n)).collect(),
        service
            .draining
            .iter()
            .filter(|it| is_own(&it.0))
            .map(|(it, n)| (it.clone(), *n))
            .collect(),
        numbers,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_change_is_lost_and_all_orders_end_alike(
        steps in proptest::collection::vec((1u8..=3, any::<u8>(), any::<u8>(), any::<bool>()), 1..24),
        seed in any::<u64>(),
    ) {
        let mut sets = [set(), set(), set()];
        let id = made(&mut sets);
        let mut texts: Vec<Arc<str>> = Vec::new();
        for (at, (seed, what, which, hears)) in steps.iter().enumerate() {
            let set = &mut sets[usize::from(*seed) - 1];
            if *hears && let Some(text) = texts.get(usize::from(*which) % texts.len().max(1)) {
                merge(set, text);
            }
            let at = 5 + u64::try_from(at).unwrap();
            texts.push(edit(set, (*seed, at), id, |it| apply(it, *seed, (*what, *which))));
        }
        let wanted: Vec<_> =
            (1..=3).map(|seed| own(sets[usize::from(seed) - 1].service(id).unwrap(), seed)).collect();
        let mut rng = seed;
        for set in &mut sets {
            for at in (1..texts.len()).rev() {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                texts.swap(at, usize::try_from(rng >> 33).unwrap() % (at + 1));
            }
            texts.iter().for_each(|text| drop(merge(set, text)));
            // Once more: nothing is new.
            prop_assert!(texts.iter().all(|text| merge(set, text) == Merge::Stale));
        }
        for set in &sets {
            prop_assert_eq!(set.content_hash(), sets[0].content_hash());
            prop_assert_eq!(set.service(id), sets[0].service(id));
            prop_assert!(set.service(id).unwrap().check().is_ok());
            for (seed, wanted) in (1..=3).zip(&wanted) {
                prop_assert_eq!(&own(set.service(id).unwrap(), seed), wanted);
            }
        }
    }
}
