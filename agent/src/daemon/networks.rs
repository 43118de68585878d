//! Networks as the user makes, sees and removes them.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;
use rand::RngExt;
use vxmesh_proto::{
    addr::{Name, NetworkId, Vni},
    ipam::{Subnet, first_split},
    limits::{
        DEFAULT_MTU, DEFAULT_PLAIN_MTU, MAX_MTU, MIN_MTU, NETWORK_DNS, NETWORK_SUBNETS_ALL,
        NETWORK_VTEPS,
    },
    object::{self, Content, Draft, NetworkState, Object, Refused},
};

use super::{
    conflicts::check_network_name,
    limits::{limits_by, options},
    local::{check_mesh_name, check_options},
    mesh::{Mesh, conflict, failed},
    subnets::{self, Wanted, free_subnets},
};
use crate::{
    admin::resolve,
    api::{self, ApiError, Driver, ErrorCode, ExtendSpec, Mode, NetworkSpec},
    netlink::hosts,
    objects::PublishError,
    reconcile::admit::{claims_to, foreign_address},
};

/// Attempts to find a free number at random before they are searched in order.
const RANDOM_TRIES: usize = 64;

/// What users of a plain network must know.
const READABLE: &str = "the frames of this network cross the underlay readable and unsigned: whoever is there can read and forge them";

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        let (code, hint) = match &error {
            PublishError::Overtaken => (ErrorCode::Conflict, "nothing was changed"),
            PublishError::Refused(Refused::Full | Refused::Quota(_)) => {
                (ErrorCode::Conflict, "nothing was changed; `vxmesh network ls` shows the networks")
            }
            PublishError::Refused(_) | PublishError::Store(_) => {
                (ErrorCode::Failed, "nothing was changed")
            }
        };
        Self::new(code, error.to_string(), hint)
    }
}

/// An endpoint that keeps a network from being removed.
struct Tenant {
    name: Name,
    node: String,
    up: bool,
}

impl std::fmt::Display for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dead = if self.up { "" } else { ", which is dead" };
        write!(f, "{} (on {}{dead})", self.name, self.node)
    }
}

pub(super) fn usage(message: impl std::fmt::Display, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Usage, message.to_string(), hint)
}

impl Mesh {
    /// All networks that were not removed, oldest first.
    pub(crate) fn network_list(&self) -> Vec<api::Network> {
        let mut rows: Vec<api::Network> = self.member.objects.read(|set| {
            let networks = set.networks().into_iter();
            networks.filter_map(|(id, _, state)| Some(row(id, &set.extended(id)?, state))).collect()
        });
        rows.extend(self.local_networks.list());
        rows
    }

    /// The network that a reference means.
    pub(crate) fn find_network(&self, reference: &str) -> Result<api::Network, ApiError> {
        resolve::one(&self.network_list(), reference).cloned()
    }

    /// Makes a network, on this node and so on all.
    pub(super) fn create_network(
        self: &Arc<Self>,
        spec: &NetworkSpec,
    ) -> Result<api::Network, ApiError> {
        self.check_member()?;
        if Mode::is_mode(spec.name.as_str()) {
            return Err(usage(
                format!("no network can have the name `{}`", spec.name),
                "it means something else to `vxmesh run --network`: choose another",
            ));
        }
        check_network_name(&spec.name)?;
        check_options(spec.driver, &spec.options)?;
        let vteps = check_vteps(spec)?;
        if spec.driver != Driver::Overlay {
            return self.create_local(spec);
        }
        let default_mtu = if spec.encrypted { DEFAULT_MTU } else { DEFAULT_PLAIN_MTU };
        let mtu = spec.mtu.unwrap_or(default_mtu);
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(usage(format!("an MTU of {mtu} does not do"), "choose 1280 to 8894"));
        }
        check_dns(spec)?;
        let limits = limits_by(object::NetworkLimits::default(), &spec.options, spec.encrypted)?;
        let live = self.member.live_nodes();
        let object = self.member.objects.publish::<ApiError>(|set, hlc| {
            let networks = set.networks();
            check_mesh_name(set, &spec.name)?;
            self.local_networks.check_name(&spec.name)?;
            let taken = || {
                let extended = networks.iter().filter_map(|(id, ..)| set.extended(*id));
                extended.flat_map(|network| network.subnets).map(|subnet| subnet.cidr).collect()
            };
            let subnets = self.choose_subnets(spec, taken)?;
            let blocks = subnets
                .iter()
                .flat_map(|(_, usable)| first_split(usable, self.member.me, live.iter().copied()));
            let blocks = blocks.map(|(cidr, owner)| object::Block { cidr, owner }).collect();
            let network = object::Network {
                name: spec.name.clone(),
                creator: self.member.me,
                driver: overlay_driver()?,
                vni: choose_vni(spec.vni, &networks)?,
                encrypted: spec.encrypted,
                vteps: vteps.clone(),
                mtu,
                subnets: subnets.into_iter().map(|(subnet, _)| subnet).collect(),
                dns: spec.dns.clone(),
                internal: spec.internal,
                isolated: spec.isolated,
                limits,
                labels: spec.labels.clone(),
                blocks,
            };
            Ok(Draft::new(hlc, Content::Network(network)))
        })?;
        self.member.push_objects([object.text().to_string()]);
        self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
        self.member.keeper.kick();
        let created = self
            .network_list()
            .into_iter()
            .find(|row| object.id() == &object::ObjectId::Network(row.id));
        created
            .map(|row| self.with_warnings(row))
            .ok_or_else(|| failed("the network was removed while it was made", "create it again"))
    }

    /// The subnets that were asked for, or a free one of each IP version.
    fn choose_subnets(
        &self,
        spec: &NetworkSpec,
        taken: impl FnOnce() -> Vec<IpNet>,
    ) -> Result<Vec<(object::Subnet, Subnet)>, ApiError> {
        let mut wanted = Wanted {
            subnets: spec.subnets.clone(),
            gateways: spec.gateways.clone(),
            ip_ranges: spec.ip_ranges.clone(),
            aux: spec.aux_addresses.clone(),
        };
        let missing = wanted.missing(spec.ipv4, spec.ipv6)?;
        if !missing.is_empty() {
            let (pools, routes) = (&self.config.default_pools, hosts::routes());
            wanted.subnets.extend(free_subnets(pools, &taken(), &routes, &missing)?);
        }
        wanted.subnets()
    }

    /// A network that can be changed while endpoints are in it: one of the mesh that is in no
    /// conflict.
    pub(crate) fn find_changeable(&self, reference: &str) -> Result<api::Network, ApiError> {
        self.check_member()?;
        let network = self.find_network(reference)?;
        if self.is_local(network.id) {
            return Err(usage(
                format!("network `{}` is of this host alone and cannot be changed", network.name),
                "make another as you need it",
            ));
        }
        if network.state == "conflict" {
            return Err(conflict(
                format!("network `{}` is in conflict with an older one", network.name),
                "remove one of the two",
            ));
        }
        Ok(network)
    }

    /// Adds subnets to a network, on this node and so on all.
    pub(super) fn extend_network(
        self: &Arc<Self>,
        reference: &str,
        spec: &ExtendSpec,
    ) -> Result<api::Network, ApiError> {
        let network = self.find_changeable(reference)?;
        let wanted = Wanted {
            subnets: spec.subnets.clone(),
            gateways: spec.gateways.clone(),
            ip_ranges: spec.ip_ranges.clone(),
            aux: spec.aux_addresses.clone(),
        };
        if wanted.subnets.is_empty() {
            return Err(usage("no subnet was given", "give one with --subnet"));
        }
        let live = self.member.live_nodes();
        for (subnet, usable) in wanted.subnets()? {
            let split = first_split(&usable, self.member.me, live.iter().copied());
            let object = self.member.objects.publish::<ApiError>(|set, hlc| {
                let extended = set.extended(network.id).ok_or_else(is_gone)?;
                check_addition(&extended, subnet.cidr)?;
                let blocks =
                    split.iter().map(|(cidr, owner)| object::Block { cidr: *cidr, owner: *owner });
                let content = object::Extension {
                    network: network.id,
                    from: self.member.me,
                    subnet: subnet.clone(),
                    blocks: blocks.collect(),
                };
                Ok(Draft::new(hlc, Content::Extension(content)))
            })?;
            self.member.push_objects([object.text().to_string()]);
        }
        self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
        self.member.keeper.kick();
        self.inspect_network(network.id.to_string().as_str())
    }

    /// What users of a network should know: who reads it, what its subnets overlap, where it is too
    /// large for the underlay.
    pub(super) fn with_warnings(&self, network: api::Network) -> api::Network {
        let cidrs: Vec<IpNet> = network.subnets.iter().map(|subnet| subnet.cidr).collect();
        let list = self.network_list();
        let others = list.iter().filter(|other| other.id != network.id).flat_map(|other| {
            other.subnets.iter().map(|subnet| (other.name.as_str(), subnet.cidr))
        });
        let mut warnings = subnets::warnings(&cidrs, others, &hosts::routes());
        if !network.encrypted && !self.is_local(network.id) {
            warnings.insert(0, READABLE.to_owned());
        }
        if let Some(needed) = self.sealed_mtu(&network)
            && let Some((node, mtu)) = self.narrow_paths(needed).min_by_key(|(_node, mtu)| *mtu)
        {
            let fits = mtu + (network.mtu - needed);
            warnings.push(format!(
                "what is larger than {fits} does not reach {node}: make it with --mtu {fits}, or raise that of the underlay"
            ));
        }
        api::Network { warnings, ..network }
    }

    /// One network with what users of it should know.
    pub(super) fn inspect_network(&self, reference: &str) -> Result<api::Network, ApiError> {
        Ok(self.with_warnings(self.find_network(reference)?))
    }

    /// Removes a network that has no endpoints, on this node and so on all. `force` leaves those of
    /// dead nodes out of account: they are unplugged when their node is back.
    pub(super) fn remove_network(
        self: &Arc<Self>,
        reference: &str,
        force: bool,
    ) -> Result<api::Network, ApiError> {
        self.check_member()?;
        // An endpoint that is being attached is seen, or finds no network: never neither. This is
        // no thread of the runtime.
        let _host = self.hosted.blocking_lock();
        let network = self.find_network(reference)?;
        if self.is_local(network.id) {
            return self.remove_local(network);
        }
        let (up, down): (Vec<_>, Vec<_>) =
            self.tenants(network.id).into_iter().partition(|tenant| tenant.up);
        let in_the_way = if up.is_empty() && !force { &down } else { &up };
        if !in_the_way.is_empty() {
            let names: Vec<String> = in_the_way.iter().take(5).map(Tenant::to_string).collect();
            let more = in_the_way.len().saturating_sub(names.len());
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let message =
                format!("network `{}` has endpoints: {}{more}", network.name, names.join(", "));
            let services = self.member.objects.read(|set| service_names(set, network.id));
            let (services, with) = if services.is_empty() {
                (String::new(), "")
            } else {
                let hint = ", and remove its services, with `vxmesh service rm`";
                (format!("; and services: {}", services.join(", ")), hint)
            };
            let hint = if up.is_empty() {
                "their nodes are not reachable: bring them back and detach these, or use --force, and they are unplugged when their nodes are back"
            } else {
                "detach them first; see `vxmesh endpoint ls`"
            };
            return Err(conflict(message + &services, format!("{hint}{with}")));
        }
        let id = object::ObjectId::Network(network.id);
        let object = self.member.objects.publish::<ApiError>(|set, hlc| {
            check_services(set, &network)?;
            Ok(Draft { closed: true, ..set.get(&id).ok_or_else(is_gone)?.edit(hlc) })
        })?;
        self.member.push_objects([object.text().to_string()]);
        self.member.keeper.kick();
        Ok(network)
    }

    /// Whose endpoints are in a network: of all nodes, dead ones too, as far as their claims are
    /// true, and all of this one.
    fn tenants(&self, network: NetworkId) -> Vec<Tenant> {
        let Some(gossip) = self.member.gossip.get() else { return Vec::new() };
        let holds = |node, ip| self.member.addresses.holds(network, node, ip);
        let claims = gossip.with_directory(|directory| {
            claims_to(directory, network)
                .filter(|(owner, claim)| {
                    // A node is in a network only because of its endpoints.
                    !claim.router
                        && (*owner == self.member.me
                            || foreign_address(*owner, claim, holds).is_none())
                })
                .map(|(owner, claim)| (claim.name.clone(), owner, directory.is_up(owner)))
                .collect::<Vec<_>>()
        });
        let tenant = |(name, node, up)| Tenant { name, node: self.node_name(node), up };
        claims.into_iter().map(tenant).collect()
    }
}

/// What the services of a network are called.
fn service_names(set: &object::ObjectSet, network: NetworkId) -> Vec<String> {
    set.services(network).into_iter().map(|of| of.service.name.to_string()).collect()
}

/// Refuses to remove a network that has services.
fn check_services(set: &object::ObjectSet, network: &api::Network) -> Result<(), ApiError> {
    let names = service_names(set, network.id);
    if names.is_empty() {
        return Ok(());
    }
    Err(conflict(
        format!("network `{}` has services: {}", network.name, names.join(", ")),
        "remove them first, with `vxmesh service rm`",
    ))
}

/// It was removed while something was done with it.
pub(super) fn is_gone() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "the network is gone", "see `vxmesh network ls`")
}

/// The static VTEPs of a network, each once.
fn check_vteps(spec: &NetworkSpec) -> Result<Vec<IpAddr>, ApiError> {
    if spec.encrypted && !spec.vteps.is_empty() {
        return Err(usage(
            "an encrypted network has no VTEPs without an agent: they have no keys",
            "give --vtep together with --encrypted=false, or leave it out",
        ));
    }
    if spec.isolated && !spec.vteps.is_empty() {
        return Err(usage(
            "an isolated network has no VTEPs without an agent: nobody there keeps endpoints apart",
            "leave --isolated or --vtep out",
        ));
    }
    let mut vteps: Vec<IpAddr> = spec.vteps.iter().map(IpAddr::to_canonical).collect();
    vteps.sort_unstable();
    vteps.dedup();
    if let Some(ip) = vteps.iter().find(|ip| !object::may_be_vtep(ip)) {
        return Err(usage(
            format!("{ip} cannot be the address of a VTEP"),
            "give the address that it has on the underlay, which is no group and no link-local one",
        ));
    }
    if vteps.len() > NETWORK_VTEPS {
        return Err(usage(
            format!("{} VTEPs are too many", vteps.len()),
            "a network has 64 at most, because each gets a copy of every broadcast",
        ));
    }
    Ok(vteps)
}

fn check_addition(network: &object::Network, cidr: IpNet) -> Result<(), ApiError> {
    let overlaps = |own: &&object::Subnet| own.cidr.contains(&cidr) || cidr.contains(&own.cidr);
    let (message, hint) = if let Some(own) = network.subnets.iter().find(overlaps) {
        let message = format!("{cidr} overlaps {} of network `{}`", own.cidr, network.name);
        (message, "the subnets of a network must not share addresses: choose another")
    } else if network.subnets.len() >= NETWORK_SUBNETS_ALL {
        let message = format!("network `{}` has {NETWORK_SUBNETS_ALL} subnets", network.name);
        (message, "a network cannot have more: make another network")
    } else {
        return Ok(());
    };
    Err(ApiError::new(ErrorCode::Conflict, message, hint))
}

pub(super) fn check_dns(spec: &NetworkSpec) -> Result<(), ApiError> {
    if spec.dns.len() <= NETWORK_DNS {
        return Ok(());
    }
    let message = format!("{} name servers are too many", spec.dns.len());
    Err(usage(message, "give three --dns at most"))
}

fn overlay_driver() -> Result<Name, ApiError> {
    "overlay".parse().map_err(|error| failed(error, "this is a defect"))
}

pub(super) fn name_of(object: &Object) -> Option<&Name> {
    match object.content() {
        Content::Network(network) => Some(&network.name),
        _ => None,
    }
}

pub(super) fn row(id: NetworkId, network: &object::Network, state: NetworkState) -> api::Network {
    let state = match state {
        NetworkState::Active => "active",
        NetworkState::Conflict { .. } => "conflict",
    };
    api::Network {
        id,
        name: network.name.clone(),
        driver: network.driver.to_string(),
        scope: Driver::Overlay.scope().to_owned(),
        vni: Some(network.vni),
        encrypted: network.encrypted,
        vteps: network.vteps.clone(),
        mtu: network.mtu,
        state: state.to_owned(),
        dns: network.dns.clone(),
        subnets: network
            .subnets
            .iter()
            .map(|s| api::Subnet {
                cidr: s.cidr,
                gateway: s.gateway,
                ip_range: s.range,
                aux_addresses: s.aux.clone(),
            })
            .collect(),
        internal: network.internal,
        options: options(network.limits),
        labels: network.labels.clone(),
        isolated: network.isolated,
        way: None,
        endpoints: Vec::new(),
        plain: None,
        warnings: Vec::new(),
    }
}

type Networks = [(NetworkId, Arc<Object>, NetworkState)];

fn networks_of(networks: &Networks) -> impl Iterator<Item = &object::Network> {
    networks.iter().filter_map(|(_, object, _)| match object.content() {
        Content::Network(network) => Some(network),
        _ => None,
    })
}

fn choose_vni(wanted: Option<Vni>, networks: &Networks) -> Result<Vni, ApiError> {
    let taken = |vni: Vni| networks_of(networks).any(|network| network.vni == vni);
    if let Some(vni) = wanted {
        return if taken(vni) {
            Err(ApiError::new(
                ErrorCode::Conflict,
                format!("VNI {vni} is in use"),
                "choose another, or leave --vni out",
            ))
        } else {
            Ok(vni)
        };
    }
    let mut rng = rand::rng();
    let free = std::iter::repeat_with(|| rng.random_range(1..=Vni::MAX.get()));
    let free = free
        .take(RANDOM_TRIES)
        .chain(1..=Vni::MAX.get())
        .filter_map(Vni::new)
        .find(|vni| !taken(*vni));
    free.ok_or_else(|| failed("every VNI is in use", "remove networks"))
}
