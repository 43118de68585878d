//! Names that were given twice at the same time: whose they are, and that somebody is told.
//!
//! A name that is known is refused ([`check_name`] and those who make endpoints and networks).
//! Where two nodes gave one before they heard of each other, the older has it on all nodes:
//! `vxmesh_proto::object` decides about networks, `vxmesh_proto::dns` about endpoints
//! (`crate::member::conflicts` tells of them).

use std::collections::BTreeMap;

use vxmesh_proto::{
    addr::{Alias, EndpointId, Name, NetworkId, NodeId},
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

/// Marks those rows whose name an older one of the same network has.
pub(super) fn mark(rows: &mut [api::Endpoint]) {
    let mut oldest: BTreeMap<(NetworkId, Name), (u64, NodeId, EndpointId)> = BTreeMap::new();
    for row in &*rows {
        let rank = (row.incarnation, row.node, row.id);
        let holder = oldest.entry((row.network, row.name.clone())).or_insert(rank);
        *holder = rank.min(*holder);
    }
    for row in rows {
        let holder = oldest.get(&(row.network, row.name.clone())).map(|(_, _, id)| *id);
        row.conflict = holder.filter(|id| *id != row.id);
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
        mark(&mut rows);
        let holder = Some(rows[1].id);
        let marks: Vec<_> = rows.iter().map(|row| row.conflict).collect();
        assert_eq!(marks, [holder, None, None, None, holder]);
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
