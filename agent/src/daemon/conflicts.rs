//! Names that were given twice at the same time: whose they are, and that somebody is told.
//!
//! A name that is known is refused ([`check_name`] and those who make endpoints and networks).
//! Where two nodes gave one before they heard of each other, the older has it on all nodes:
//! `vxmesh_proto::object` decides about networks, `vxmesh_proto::dns` about endpoints
//! (`crate::member::conflicts` tells of them).

use std::collections::BTreeMap;

use vxmesh_proto::{
    addr::{Alias, EndpointId, Name, NetworkId, NodeId, ServiceId},
    dns::has_name,
    object::{ObjectSet, ServiceOf, ServiceState},
    special_names,
};

use super::{mesh::Mesh, networks::usage};
use crate::api::{self, ApiError, HostEntry};

/// Refuses a name or an alias that programs would take for something else.
pub(super) fn check_name(name: Option<&Name>, aliases: &[Alias]) -> Result<(), ApiError> {
    let names = name.map(Name::as_str).into_iter().chain(aliases.iter().map(Alias::as_str));
    refuse(names, special_names::taken_for)
}

/// The same of a network's name.
pub(super) fn check_network_name(name: &Name) -> Result<(), ApiError> {
    refuse([name.as_str()], special_names::network_taken_for)
}

/// The same of names of a sandbox's own file of hosts.
pub(super) fn check_hosts(hosts: &[HostEntry]) -> Result<(), ApiError> {
    refuse(hosts.iter().map(|entry| entry.name.as_str()), special_names::taken_for)
}

fn refuse<'a>(
    names: impl IntoIterator<Item = &'a str>,
    taken_for: fn(&str) -> Option<&'static str>,
) -> Result<(), ApiError> {
    let bad = names.into_iter().find_map(|name| Some((name, taken_for(name)?)));
    bad.map_or(Ok(()), |(name, what)| {
        let message = format!("`{name}` cannot be a name: programs take it for {what}");
        Err(usage(message, "choose one whose last part has a letter and no meaning of its own"))
    })
}

/// Marks those rows whose name an older one of the same network has, or whose name or alias a
/// service has.
pub(super) fn mark(rows: &mut [api::Endpoint], services: &[ServiceName]) {
    let mut oldest: BTreeMap<(NetworkId, Name), (u64, NodeId, EndpointId)> = BTreeMap::new();
    for row in &*rows {
        let rank = (row.incarnation, row.node, row.id);
        let holder = oldest.entry((row.network, row.name.clone())).or_insert(rank);
        *holder = rank.min(*holder);
    }
    for row in &mut *rows {
        let holder = oldest.get(&(row.network, row.name.clone())).map(|(_, _, id)| *id);
        row.conflict = holder.filter(|id| *id != row.id);
    }
    for service in services {
        let mut given: Vec<_> = rows.iter_mut().filter(|row| service.is_name_of(row)).collect();
        if has_name(service.created, given.iter().map(|row| row.incarnation)) {
            let holder = EndpointId::from_random(*service.id.bytes());
            given.iter_mut().for_each(|row| row.conflict = row.conflict.or(Some(holder)));
        }
    }
}

/// The name of a service that is the oldest of its network with it.
pub(super) struct ServiceName {
    pub(super) network: NetworkId,
    pub(super) name: Name,
    pub(super) created: u64,
    pub(super) id: ServiceId,
}

impl ServiceName {
    /// Of all services.
    pub(super) fn all(set: &ObjectSet) -> Vec<Self> {
        let services = set.with_services().into_iter().flat_map(|network| set.services(network));
        let active = services.filter(|of| of.state == ServiceState::Active);
        let name = |ServiceOf { id, created, service, .. }: ServiceOf<'_>| {
            let (network, name) = (service.network, service.name.clone());
            Self { network, name, created: created.unix_ms(), id }
        };
        active.map(name).collect()
    }

    fn is_name_of(&self, row: &api::Endpoint) -> bool {
        let is_its = |alias: &Alias| alias.as_str() == self.name.as_str();
        row.network == self.network && (row.name == self.name || row.aliases.iter().any(is_its))
    }
}

impl Mesh {
    /// Refuses a service's name that programs would take for something else.
    pub(crate) fn check_name(&self, name: &Name) -> Result<(), ApiError> {
        check_name(Some(name), &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ErrorCode;

    fn row(id: u8, network: u8, name: &str, incarnation: u64) -> api::Endpoint {
        api::Endpoint {
            id: EndpointId::from_random([id; 16]),
            name: name.parse().unwrap(),
            network: NetworkId::from_random([network; 16]),
            node: NodeId::of_public_key(&[id]),
            sandbox: None,
            ifname: None,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            ips: Vec::new(),
            aliases: Vec::new(),
            incarnation,
            labels: BTreeMap::new(),
            conflict: None,
            published: Vec::new(),
        }
    }

    #[test]
    fn the_younger_of_one_network_and_name_are_marked() {
        let mut rows = [
            row(1, 1, "a", 5),
            row(2, 1, "a", 3),
            row(3, 1, "b", 1),
            row(4, 2, "a", 1),
            row(5, 1, "a", 9),
        ];
        mark(&mut rows, &[]);
        let holder = Some(rows[1].id);
        let marks: Vec<_> = rows.iter().map(|row| row.conflict).collect();
        assert_eq!(marks, [holder, None, None, None, holder]);
    }

    #[test]
    fn a_service_has_the_name_of_younger_endpoints_and_aliases() {
        let alias = |row| api::Endpoint { aliases: vec!["web".parse().unwrap()], ..row };
        let rows =
            [row(1, 1, "web", 5), alias(row(2, 1, "a", 6)), row(3, 1, "b", 9), row(4, 2, "web", 9)];
        let id = ServiceId::from_random([9; 16]);
        let network = NetworkId::from_random([1; 16]);
        let web = |created| ServiceName { network, name: "web".parse().unwrap(), created, id };
        let holder = Some(EndpointId::from_random([9; 16]));
        for (created, wanted) in [(4, [holder, holder, None, None]), (5, [None; 4])] {
            let mut rows = rows.clone();
            mark(&mut rows, &[web(created)]);
            assert_eq!(rows.map(|row| row.conflict), wanted, "{created}");
        }
    }

    #[test]
    fn what_programs_take_for_something_else_is_refused() {
        let alias = |text: &str| vec![text.parse::<Alias>().unwrap()];
        let name = |text: &str| text.parse::<Name>().unwrap();
        for refused in [
            check_name(Some(&name("10")), &[]),
            check_name(Some(&name("localhost")), &[]),
            check_name(None, &alias("1.2")),
            check_network_name(&name("0x10")),
            check_network_name(&name("local")),
            check_hosts(&["10:1.2.3.4".parse().unwrap()]),
            check_hosts(&["db:1.2.3.4".parse().unwrap(), "a.localhost:::1".parse().unwrap()]),
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::Usage);
        }
        assert!(check_name(Some(&name("web-1")), &alias("web.local")).is_ok());
    }
}
