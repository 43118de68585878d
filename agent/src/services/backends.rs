//! Who answers for a service: endpoints by name and by label, out of the believed claims. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use vxmesh_proto::{
    addr::{Name, NetworkId, NodeId},
    lb::{Backend, Choice, Port, Protocol, ServiceSpec},
    limits::SERVICES_OF_NETWORK,
    object::{ObjectSet, Service, ServiceOf, holder},
    record::EndpointClaim,
    tables::RowKey,
};

use crate::reconcile::admit::Claims;

/// The services of a network that this node has, oldest first: those that have at least one of
/// their addresses, or are to have none. Whether they have their name, too, is nothing to who uses
/// the address. `away` are endpoints of nodes that are not up; they get nothing new, and keep what
/// they have, as their nodes may be back. `holds` says whether an address is this node's to give.
pub(crate) fn specs(
    set: &ObjectSet,
    network: NetworkId,
    (claims, away): (&Claims, &Claims),
    holds: impl Fn(NodeId, IpAddr) -> bool,
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
            backends: all_backends(service, claims, away),
            choice: choice(service),
            out: Vec::new(),
        })
    });
    specs.collect()
}

fn all_backends(service: &Service, claims: &Claims, away: &Claims) -> Vec<Backend> {
    let there = backends(service, claims).into_iter().map(|(backend, _)| backend);
    let away = backends(service, away).into_iter();
    let away = away.map(|(backend, _)| Backend { takes_new: false, ..backend });
    there.chain(away).collect()
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
        (Backend { key: *key, weight, takes_new: true }, claim)
    };
    claims.iter().filter(answers).map(backend).collect()
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
        Some(Port { protocol, port: port.port, backend_port: port.backend_port })
    };
    service.ports.iter().filter_map(port).collect()
}

pub(super) fn choice(service: &Service) -> Choice {
    match service.choice.as_ref().map(Name::as_str) {
        Some("rr") => Choice::RoundRobin,
        _ => Choice::Maglev,
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};
    use vxmesh_proto::{
        addr::{EndpointId, MacAddr},
        object::{Certifier, Content, Draft, Hlc, Member, Merge},
    };

    use super::*;

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
        let others = |_, _| false;
        assert!(specs(&set, network, (&claims, &away), others).is_empty());
        let given = |node, ip| node == holder(id) && ip == vip;
        let has = specs(&set, network, (&claims, &away), given);
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
}
