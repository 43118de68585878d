//! Whose name it is: the rules, in the order in which they are tried.
//!
//! A name is looked for without its last label in the network of that name, so that no alias
//! elsewhere can hide it, and then as it is in the sandbox's networks, in their order. The first
//! network that has it answers, also when it has no record of the wanted type.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use super::{NamedEndpoint, NamesTable, Query, RecordKind};
use crate::addr::Name;

/// What a sandbox can see of the names.
#[derive(Clone, Debug)]
pub struct View {
    /// Its networks, the first one first.
    pub networks: Vec<Arc<NamesTable>>,
    /// The names of all networks of the mesh: none of them is anybody else's to answer for.
    pub domains: Arc<BTreeSet<Name>>,
    /// Whether other names may go to the upstreams.
    pub forwards: bool,
    /// Whether the tables are as complete as they get. Until then a name that is missing may only
    /// be late.
    pub settled: bool,
}

/// What a question is about.
#[derive(Clone, Debug)]
pub enum Found<'v> {
    /// Endpoints of a network.
    Endpoints(&'v NamesTable, Vec<&'v NamedEndpoint>),
    /// The endpoint that has the address.
    Pointer(&'v NamesTable, &'v NamedEndpoint),
    /// This host itself.
    Loopback,
    /// A name without any record.
    Empty,
    /// No name.
    Nothing,
    /// Perhaps a name; it is too early to say.
    Unsettled,
    /// Not ours to say.
    Elsewhere,
}

impl View {
    /// What this question is about.
    #[must_use]
    pub fn find(&self, query: &Query) -> Found<'_> {
        if let Some(prefix) = query.reverse() {
            return self.find_reverse(prefix, query.kind());
        }
        let Some(name) = query.host_name() else { return Found::Elsewhere };
        self.find_name(&name, query.kind())
    }

    /// What has this name: lower case, no dot at its end.
    #[must_use]
    pub fn find_name(&self, name: &str, kind: RecordKind) -> Found<'_> {
        let last = name.rsplit('.').next().unwrap_or(name);
        if last == "localhost" {
            return Found::Loopback;
        }
        if let Some(found) = self.in_networks(name) {
            return found;
        }
        let single = !name.contains('.');
        if single && self.networks.iter().any(|table| table.domain().as_str() == name) {
            return Found::Empty;
        }
        let hidden = self.domains.iter().any(|domain| domain.as_str() == last);
        // A top-level domain's own records are what a validator asks for on its way to any name.
        if single && !hidden && kind == RecordKind::Zone {
            return Found::Elsewhere;
        }
        if single || hidden {
            return if self.settled { Found::Nothing } else { Found::Unsettled };
        }
        Found::Elsewhere
    }

    fn in_networks(&self, name: &str) -> Option<Found<'_>> {
        let qualified = name.rsplit_once('.').and_then(|(rest, domain)| {
            let table = self.networks.iter().find(|table| table.domain().as_str() == domain)?;
            Some(Found::Endpoints(table, table.lookup(rest)?))
        });
        qualified.or_else(|| {
            self.networks.iter().find_map(|table| {
                table.lookup(name).map(|endpoints| Found::Endpoints(table, endpoints))
            })
        })
    }

    fn find_reverse(&self, prefix: IpNet, kind: RecordKind) -> Found<'_> {
        let ip = prefix.addr();
        let whole = prefix.prefix_len() == prefix.max_prefix_len();
        let holder = self.networks.iter().find_map(|table| Some((table, table.at(ip)?)));
        if let Some((table, endpoint)) = holder.filter(|_| whole) {
            return if kind.is_pointer() { Found::Pointer(table, endpoint) } else { Found::Empty };
        }
        if whole && ip.is_loopback() {
            return if kind.is_pointer() { Found::Loopback } else { Found::Empty };
        }
        match self.networks.iter().any(|table| table.contains(&prefix)) {
            true if !whole => Found::Empty,
            true if self.settled => Found::Nothing,
            true => Found::Unsettled,
            false => Found::Elsewhere,
        }
    }
}
