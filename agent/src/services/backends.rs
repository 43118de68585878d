//! Who answers for a service: endpoints by name and by label, out of the believed claims. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use vxmesh_proto::{
    addr::{Name, NetworkId, NodeId, ServiceId},
    lb::{
        Backend, Choice, Port, Protocol, PublishMode, ServiceSpec,
        drain::{self, BackendState},
    },
    limits::SERVICES_OF_NETWORK,
    object::{DRAIN_MS, ObjectSet, PublishedPort, Service, ServiceOf, holder},
    record::EndpointClaim,
    tables::RowKey,
    wire::ipv6::is_link_local,
};

use super::place::Places;
use crate::reconcile::admit::Claims;

/// The services of a network that this node has, oldest first: those that have at least one of
/// their addresses, or are to have none. Whether they have their name, too, is nothing to who uses
/// the address. `away` are endpoints of nodes that are not up; they get nothing new, and keep what
/// they have, as their nodes may be back. `holds` says whether an address is this node's to give.
#[must_use]
pub fn specs(
    set: &ObjectSet,
    network: NetworkId,
    (claims, away): (&Claims, &Claims),
    holds: impl Fn(NodeId, IpAddr) -> bool,
    seen: &Viewpoint<'_>,
) -> Vec<ServiceSpec> {
    let open = set.services(network).into_iter().take(SERVICES_OF_NETWORK);
    let specs = open.filter_map(|ServiceOf { id, service, .. }| {
        let holder = holder(id);
        let vips = service.vips.iter().copied().filter(|ip| holds(holder, *ip));
        let vips: Vec<IpAddr> = vips.collect();
        (service.vips.is_empty() || !vips.is_empty()).then(|| ServiceSpec {
            id,
            vips,
            ports: ports(service),
            backends: all_backends((id, service), (claims, away), seen),
            choice: choice(service),
            sticky: service.sticky,
            out: Vec::new(),
        })
    });
    specs.collect()
}

/// By whom and when services are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Viewpoint<'a> {
    /// The node that looks.
    pub by: NodeId,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// What the nodes say of themselves.
    pub places: &'a Places,
    /// When drains began, by this node's clock.
    pub drains: Drains<'a>,
}

/// Says when a drain began by this node's clock, as somebody else's says when it did.
#[derive(Clone, Copy)]
pub struct Drains<'a> {
    /// From that clock to this one, in Unix milliseconds.
    pub since: &'a dyn Fn(u64) -> u64,
}

impl std::fmt::Debug for Drains<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drains").finish_non_exhaustive()
    }
}

impl Viewpoint<'_> {
    fn zone(&self, node: NodeId) -> Option<&Name> {
        self.places.get(&node)?.zone.as_ref()
    }

    pub(super) fn is_near(&self, node: NodeId, service: &Service) -> bool {
        match service.prefer.as_ref().map(Name::as_str) {
            Some("node") => node == self.by,
            Some("zone") => self.zone(node).is_some() && self.zone(node) == self.zone(self.by),
            _ => true,
        }
    }

    /// Until when the flows of a backend may go on, if it gets no new ones.
    pub(super) fn deadline(&self, service: &Service, node: NodeId, name: &Name) -> Option<u64> {
        let drained = self.places.get(&node).and_then(|place| place.drained);
        let said = drained.into_iter().chain(service.draining.get(name).copied());
        let begun = said.map(|since| (self.drains.since)(since));
        drain::deadline(begun, service.drain_ms.unwrap_or(DRAIN_MS))
    }

    /// When the next of these deadlines is, after this moment.
    pub(crate) fn next_deadline(
        &self,
        set: &ObjectSet,
        network: NetworkId,
        claims: &Claims,
    ) -> Option<u64> {
        let services = set.services(network).into_iter().map(|of| of.service);
        let of = |service: &Service| {
            let backends = backends(service, claims).into_iter();
            let deadline = |(backend, claim): (Backend, &EndpointClaim)| {
                self.deadline(service, backend.key.node, &claim.name)
            };
            backends.filter_map(deadline).filter(|at| *at > self.at_ms).min()
        };
        services.filter_map(of).min()
    }
}

pub(super) fn standing(
    (id, service): (ServiceId, &Service),
    (backend, claim): (&Backend, &EndpointClaim),
    seen: &Viewpoint<'_>,
) -> BackendState {
    let deadline = seen.deadline(service, backend.key.node, &claim.name);
    let health = claim.health_for(id);
    BackendState::of(service.check.is_some(), health, (deadline, seen.at_ms))
}

fn all_backends(
    of: (ServiceId, &Service),
    (claims, away): (&Claims, &Claims),
    seen: &Viewpoint<'_>,
) -> Vec<Backend> {
    let (_, service) = of;
    let there = backends(service, claims).into_iter();
    let there = there.map(|(backend, claim)| (standing(of, (&backend, claim), seen), backend));
    let there = drain::serving(there).into_iter();
    let away = backends(service, away).into_iter();
    let away = away.map(|(backend, _)| Backend { takes_new: false, ..backend });
    let near =
        |backend: Backend| Backend { is_near: seen.is_near(backend.key.node, service), ..backend };
    there.chain(away).map(near).collect()
}

/// The addresses of an endpoint at which it is reached from anywhere in the network.
pub(super) fn global_ips(ips: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    ips.iter().copied().filter(|ip| !matches!(ip, IpAddr::V6(v6) if is_link_local(*v6)))
}

/// The endpoints that answer for a service, in order.
pub(super) fn backends<'c>(
    service: &Service,
    claims: &'c Claims,
) -> Vec<(Backend, &'c EndpointClaim)> {
    let holders = holders(&service.backends, claims);
    let answers = |(key, claim): &(&RowKey, &EndpointClaim)| {
        !claim.router
            && (holders.get(&claim.name) == Some(key) || is_selected(&service.selector, claim))
    };
    let backend = |(key, claim): (&RowKey, &'c EndpointClaim)| {
        let weight = service.weights.get(&claim.name).copied().unwrap_or(1);
        (Backend { key: *key, weight, takes_new: true, is_near: true }, claim)
    };
    claims.iter().filter(answers).map(backend).collect()
}

/// The services that have an endpoint by its labels.
#[must_use]
pub fn selecting(set: &ObjectSet, endpoint: &EndpointClaim) -> Vec<ServiceId> {
    let services = set.services(endpoint.network).into_iter();
    let of = services.filter(|of| is_selected(&of.service.selector, endpoint));
    of.map(|of| of.id).collect()
}

/// The endpoint that has each of these names: the oldest, as for name servers.
fn holders<'c>(names: &BTreeSet<Name>, claims: &'c Claims) -> BTreeMap<&'c Name, &'c RowKey> {
    let mut holders: BTreeMap<&Name, (u64, &RowKey)> = BTreeMap::new();
    for (key, claim) in claims.iter().filter(|(_, claim)| names.contains(&claim.name)) {
        let rank = (claim.incarnation, key);
        match holders.entry(&claim.name) {
            Entry::Vacant(entry) => drop(entry.insert(rank)),
            Entry::Occupied(mut entry) if *entry.get() > rank => drop(entry.insert(rank)),
            Entry::Occupied(_) => {}
        }
    }
    holders.into_iter().map(|(name, (_, key))| (name, key)).collect()
}

fn is_selected(selector: &BTreeMap<String, String>, claim: &EndpointClaim) -> bool {
    let has = |(key, value): (&String, &String)| claim.labels.get(key) == Some(value);
    !selector.is_empty() && selector.iter().all(has)
}

/// A port of a protocol that this version does not know is left out.
fn ports(service: &Service) -> Vec<Port> {
    let port = |port: &vxmesh_proto::object::ServicePort| {
        let protocol = Protocol::of_number(port.protocol)?;
        let at = |it: &&PublishedPort| (it.protocol, it.port) == (port.protocol, port.port);
        let published = service.published.iter().find(at).map(|it| match it.is_local {
            true => PublishMode::Host,
            false => PublishMode::Ingress,
        });
        Some(Port { protocol, port: port.port, backend_port: port.backend_port, published })
    };
    service.ports.iter().filter_map(port).collect()
}

pub(super) fn choice(service: &Service) -> Choice {
    match service.choice.as_ref().map(Name::as_str) {
        Some("rr") => Choice::RoundRobin,
        Some("least-conn") => Choice::LeastConn,
        _ => Choice::Maglev,
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};
    use vxmesh_proto::{
        addr::{EndpointId, MacAddr},
        object::{Certifier, Content, Draft, HealthCheck, Hlc, Member, Merge},
    };

    use super::{super::place::NodePlace, *};

    /// All clocks are the same.
    const EXACT: Drains<'_> = Drains { since: &|since| since };

    fn claim(
        id: u8,
        name: &str,
        incarnation: u64,
        labels: &[(&str, &str)],
    ) -> (RowKey, EndpointClaim) {
        let endpoint = EndpointId::from_random([id; 16]);
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let claim = EndpointClaim {
            id: endpoint,
            network: NetworkId::from_random([9; 16]),
            name: name.parse().unwrap(),
            aliases: Vec::new(),
            mac: MacAddr([2, 0, 0, 0, 0, id]),
            ips: vec![IpAddr::from([10, 0, 0, id])],
            incarnation,
            labels: labels.collect(),
            router: false,
            health: BTreeMap::new(),
        };
        (RowKey { node: NodeId::of_public_key(&[id]), endpoint }, claim)
    }

    fn service(backends: &[&str], selector: &[(&str, &str)]) -> Service {
        let selector = selector.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Service {
            name: "s".parse().unwrap(),
            network: NetworkId::from_random([9; 16]),
            creator: NodeId::of_public_key(&[1]),
            vips: vec!["10.0.0.200".parse().unwrap()],
            ports: Vec::new(),
            backends: backends.iter().map(|name| name.parse().unwrap()).collect(),
            selector: selector.collect(),
            weights: [("b".parse().unwrap(), 5)].into(),
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

    fn chosen(service: &Service, claims: &Claims) -> Vec<(u8, u8)> {
        let each = backends(service, claims).into_iter();
        each.map(|(backend, claim)| (claim.mac.0[5], backend.weight)).collect()
    }

    struct AnyCa;

    impl Certifier for AnyCa {
        fn certified_key(&self, certificate: &[u8]) -> Option<[u8; 32]> {
            certificate.try_into().ok()
        }

        fn ca_key(&self) -> Option<[u8; 32]> {
            None
        }
    }

    /// A member that makes a service with the address of somebody's database gets nothing of it.
    #[test]
    fn a_service_has_an_address_only_if_it_was_given_to_it() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let certificate = pair.public_key().as_ref().to_vec();
        let (me, mesh) = (NodeId::of_public_key(&certificate), NodeId::of_public_key(b"mesh"));
        let mut set = ObjectSet::new(mesh);
        let service = Service { creator: me, ..service(&["a"], &[]) };
        let (network, vip) = (service.network, service.vips[0]);
        let id = service.id(Hlc::at(1));
        let member = Content::Member(Member { certificate, name: None });
        for content in [member, Content::Service(service)] {
            let text = Draft::new(Hlc::at(1), content).sign(&pair, mesh).unwrap();
            assert!(matches!(set.merge(&text, &AnyCa, 1), Merge::New(_)));
        }
        let claims: Claims = [claim(1, "a", 1, &[])].into();
        let away: Claims = [claim(2, "a", 2, &[])].into();
        let places = Places::new();
        let seen = Viewpoint { by: me, at_ms: 0, places: &places, drains: EXACT };
        let others = |_, _| false;
        assert!(specs(&set, network, (&claims, &away), others, &seen).is_empty());
        let given = |node, ip| node == holder(id) && ip == vip;
        let has = specs(&set, network, (&claims, &away), given, &seen);
        assert_eq!(has.iter().map(|spec| spec.vips.clone()).collect::<Vec<_>>(), [[vip]]);
        let takes_new: Vec<bool> = has[0].backends.iter().map(|it| it.takes_new).collect();
        assert_eq!(takes_new.iter().filter(|takes| **takes).count(), 1, "{:?}", has[0]);
        assert_eq!(takes_new.len(), 2);
    }

    #[test]
    fn endpoints_answer_by_their_name_or_by_all_labels() {
        let app = ("app", "web");
        let mut claims: Claims = [
            claim(1, "a", 1, &[app]),
            claim(2, "b", 1, &[app, ("tier", "front")]),
            claim(3, "c", 1, &[("app", "db")]),
            // Given the name at the same time: the older has it.
            claim(4, "c", 2, &[]),
        ]
        .into();
        let (key, node) = claim(5, "node", 1, &[app]);
        claims.insert(key, EndpointClaim { router: true, ..node });
        let sorted = |backends: &[&str], selector: &[(&str, &str)]| {
            let mut chosen = chosen(&service(backends, selector), &claims);
            chosen.sort_unstable();
            chosen
        };
        assert_eq!(sorted(&[], &[app]), [(1, 1), (2, 5)]);
        assert_eq!(sorted(&[], &[app, ("tier", "front")]), [(2, 5)]);
        assert_eq!(sorted(&["c"], &[]), [(3, 1)]);
        assert_eq!(sorted(&["c", "nobody"], &[("tier", "front")]), [(2, 5), (3, 1)]);
        assert_eq!(sorted(&[], &[]), []);
    }

    fn stand(
        service: &Service,
        claim: &EndpointClaim,
        places: &Places,
        at_ms: u64,
    ) -> BackendState {
        let id = ServiceId::from_random([7; 16]);
        let key = RowKey { node: NodeId::of_public_key(&[1]), endpoint: claim.id };
        let backend = Backend { key, weight: 1, takes_new: true, is_near: true };
        let seen = Viewpoint { by: key.node, at_ms, places, drains: EXACT };
        standing((id, service), (&backend, claim), &seen)
    }

    #[test]
    fn a_backend_stands_as_its_check_and_its_drains_say() {
        let (_, mut claim) = claim(1, "a", 1, &[]);
        let mut service = service(&["a"], &[]);
        let mut places = Places::new();
        assert_eq!(stand(&service, &claim, &places, 0), BackendState::Ready);
        let check =
            HealthCheck { path: None, interval_ms: 1000, timeout_ms: 500, rise: 1, fall: 1 };
        service.check = Some(check);
        assert_eq!(stand(&service, &claim, &places, 0), BackendState::Unchecked);
        let short = ServiceId::from_random([7; 16]).short();
        for (word, expected) in [(true, BackendState::Ready), (false, BackendState::Failing)] {
            claim.health.insert(short.clone(), word);
            assert_eq!(stand(&service, &claim, &places, 0), expected);
        }
        // Somebody's word counts also without a check.
        service.check = None;
        assert_eq!(stand(&service, &claim, &places, 0), BackendState::Failing);
        claim.health.clear();
        service.draining = [("a".parse().unwrap(), 1000)].into();
        service.drain_ms = Some(500);
        assert_eq!(stand(&service, &claim, &places, 1499), BackendState::Draining);
        assert_eq!(stand(&service, &claim, &places, 1500), BackendState::Drained);
        // Of two drains the older counts.
        let drained = NodePlace { drained: Some(900), zone: None };
        places.insert(NodeId::of_public_key(&[1]), drained);
        assert_eq!(stand(&service, &claim, &places, 1399), BackendState::Draining);
        assert_eq!(stand(&service, &claim, &places, 1400), BackendState::Drained);
    }

    #[test]
    fn the_last_backend_serves_while_it_drains_and_near_ones_are_preferred() {
        let claims: Claims = [claim(1, "a", 1, &[]), claim(2, "b", 1, &[])].into();
        let nodes = [1, 2].map(|n| NodeId::of_public_key(&[n]));
        let mut service = service(&["a", "b"], &[]);
        let away = Claims::new();
        let id = ServiceId::from_random([7; 16]);
        let all = |service: &Service, places: &Places, at_ms| {
            let seen = Viewpoint { by: nodes[0], at_ms, places, drains: EXACT };
            let mut all = all_backends((id, service), (&claims, &away), &seen);
            all.sort_unstable_by_key(|backend| backend.key.endpoint);
            all.iter().map(|it| (it.takes_new, it.is_near)).collect::<Vec<_>>()
        };
        let mut places = Places::new();
        assert_eq!(all(&service, &places, 0), [(true, true), (true, true)]);
        service.prefer = Some("node".parse().unwrap());
        assert_eq!(all(&service, &places, 0), [(true, true), (true, false)]);
        service.prefer = Some("zone".parse().unwrap());
        assert_eq!(all(&service, &places, 0), [(true, false), (true, false)]);
        let west = |drained| NodePlace { drained, zone: Some("west".parse().unwrap()) };
        places.extend(nodes.map(|node| (node, west(None))));
        assert_eq!(all(&service, &places, 0), [(true, true), (true, true)]);
        service.draining = [("a".parse().unwrap(), 0)].into();
        assert_eq!(all(&service, &places, 0), [(false, true), (true, true)]);
        places.insert(nodes[1], west(Some(0)));
        assert_eq!(all(&service, &places, 0), [(true, true), (true, true)], "all drain");
        assert_eq!(all(&service, &places, 30_000), []);
    }
}
