//! Names that were given twice at the same time: whose they are, and that somebody is told.
//!
//! A name that is known is refused ([`check_name`] and those who make endpoints and networks).
//! Where two nodes gave one before they heard of each other, the older has it on all nodes:
//! `vxmesh_proto::object` decides about networks (see [`super::told`]), `vxmesh_proto::dns` about
//! endpoints.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::{info, warn};
use vxmesh_proto::{
    addr::{Alias, EndpointId, Name, NetworkId, NodeId},
    dns::{NamesTable, Rival},
    special_names,
};

use super::{
    mesh::{Mesh, lock},
    networks::usage,
};
use crate::api::{self, ApiError};

/// What was told of conflicts.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    endpoints: Mutex<BTreeMap<EndpointId, Rival>>,
    /// Whether endpoints are called otherwise than when their sandboxes' files were written.
    renamed: AtomicBool,
}

/// Refuses a name or an alias that programs would take for something else.
pub(super) fn check_name(name: Option<&Name>, aliases: &[Alias]) -> Result<(), ApiError> {
    let names = name.map(Name::as_str).into_iter().chain(aliases.iter().map(Alias::as_str));
    refuse(names, special_names::taken_for)
}

/// The same of a network's name.
pub(super) fn check_network_name(name: &Name) -> Result<(), ApiError> {
    refuse([name.as_str()], special_names::network_taken_for)
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

    /// Whether endpoints are called otherwise since this was asked last.
    pub(super) fn were_renamed(&self) -> bool {
        self.conflicts.renamed.swap(false, Ordering::AcqRel)
    }

    /// Says once of each endpoint's name that it was given twice, and once that this is over.
    pub(super) fn report_conflicts(&self, tables: &BTreeMap<NetworkId, Arc<NamesTable>>) {
        let rivals = tables.values().flat_map(|table| {
            table.rivals().iter().map(|rival| (rival.key.endpoint, (rival.clone(), table.domain())))
        });
        let rivals: BTreeMap<EndpointId, (Rival, &Name)> = rivals.collect();
        let mut told = lock(&self.conflicts.endpoints);
        let before = told.clone();
        told.retain(|id, _| rivals.contains_key(id));
        for (id, rival) in before.iter().filter(|(id, _)| !rivals.contains_key(id)) {
            info!(name = %rival.name, endpoint = %id.short(), "the name is no longer given twice");
        }
        for (id, (rival, network)) in rivals {
            if told.insert(id, rival.clone()).is_none() {
                let (name, has) = (&rival.name, rival.holder.endpoint.short());
                warn!(
                    %name, %network, endpoint = %id.short(), %has,
                    "two endpoints were given one name at the same time: the older has it, the other is found by its id"
                );
            }
        }
        if *told != before {
            self.conflicts.renamed.store(true, Ordering::Release);
        }
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
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::Usage);
        }
        assert!(check_name(Some(&name("web-1")), &alias("web.local")).is_ok());
    }
}
