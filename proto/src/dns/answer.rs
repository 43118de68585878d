//! Whose name it is: the rules, in the order in which they are tried.
//!
//! A name is looked for without its last label in the network of that name, so that no alias
//! elsewhere can hide it, and then as it is in the sandbox's networks, in their order. The first
//! network that has it answers, also when it has no record of the wanted type.
//!
//! What is asked of a service (`tasks.S`, `all.S`, `_PORT._tcp.S`) is looked for first, in the same
//! order of networks: no alias of that spelling hides it, and no network that is called as the
//! service is. `tasks` and `all` of other names lead to all that have the name; they come last.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use super::{
    Lead, NamedEndpoint, NamedService, NamesTable, Query, RecordKind, Target, services::Wanted,
};
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
    /// One of these, in turn.
    OneOf(&'v NamesTable, Vec<Lead<'v>>),
    /// Each of these, in this order.
    Each(&'v NamesTable, Vec<Lead<'v>>),
    /// A port of a service at each of its backends, in this order.
    Targets(&'v NamesTable, Vec<Target<'v>>),
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

    fn in_networks<'v>(&'v self, name: &str) -> Option<Found<'v>> {
        let find = |how: fn(&Self, &'v NamesTable, &str) -> Option<Found<'v>>| {
            self.places(name).find_map(|(table, name)| how(self, table, name))
        };
        find(Self::of_service).or_else(|| find(Self::named)).or_else(|| find(Self::all_behind))
    }

    /// Where a name is looked for, and as what, in order.
    fn places<'v, 'n>(&'v self, name: &'n str) -> impl Iterator<Item = (&'v NamesTable, &'n str)> {
        let qualified = name.rsplit_once('.').and_then(|(rest, domain)| {
            let is_its = |table: &&Arc<NamesTable>| table.domain().as_str() == domain;
            Some((&**self.networks.iter().find(is_its)?, rest))
        });
        qualified.into_iter().chain(self.networks.iter().map(move |table| (&**table, name)))
    }

    /// What this asks of a service of the network.
    fn of_service<'v>(&self, table: &'v NamesTable, name: &str) -> Option<Found<'v>> {
        let (wanted, service) = Wanted::of(name)?;
        let service = table.service(service)?;
        // Whoever is told of some only would leave the others.
        if !self.settled {
            return Some(Found::Unsettled);
        }
        Some(match wanted {
            Wanted::Healthy => Found::Each(table, service.healthy().map(|it| it.lead()).collect()),
            Wanted::All => {
                Found::Each(table, service.backends.iter().map(|it| it.lead()).collect())
            }
            Wanted::Protocol(protocol) if service.has(protocol) => Found::Empty,
            Wanted::Protocol(_) => Found::Nothing,
            Wanted::Port { protocol, port } => match service.port(protocol, port) {
                Some(port) => Found::Targets(table, service.targets(table, port).collect()),
                None => Found::Nothing,
            },
        })
    }

    /// Who has this name in the network.
    fn named<'v>(&self, table: &'v NamesTable, name: &str) -> Option<Found<'v>> {
        let without_vip = |service: &&NamedService| service.vips.is_empty();
        let Some(service) = table.service(name).filter(without_vip) else {
            let leads = table.lookup(name)?.into_iter().map(Lead::from);
            return Some(Found::OneOf(table, leads.collect()));
        };
        let leads: Vec<_> = service.wanted().map(|it| it.lead()).collect();
        let is_late = leads.is_empty() && !self.settled;
        Some(if is_late { Found::Unsettled } else { Found::OneOf(table, leads) })
    }

    /// All that share a name of the network.
    fn all_behind<'v>(&self, table: &'v NamesTable, name: &str) -> Option<Found<'v>> {
        let (Wanted::Healthy | Wanted::All, name) = Wanted::of(name)? else { return None };
        // A dot in it makes it a name that others may have elsewhere.
        let holders = table.lookup(name).filter(|_| !name.contains('.'))?;
        if !self.settled {
            return Some(Found::Unsettled);
        }
        let mut leads: Vec<_> = holders.into_iter().map(Lead::from).collect();
        leads.sort_unstable_by_key(|lead| lead.key);
        Some(Found::Each(table, leads))
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
