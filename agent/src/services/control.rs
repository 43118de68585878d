//! Services as the user makes, sees, changes and removes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::task::block_in_place;
use tracing::warn;
use vxmesh_proto::{
    addr::{Alias, Name, NetworkId, NodeId, ServiceId},
    dns::{self, NamedBackend, NamedService},
    lb::{self, Choice, Protocol, drain::BackendState},
    limits::{SERVICES_OF_NETWORK, STICKY_SECONDS},
    object::{
        self, Content, DRAIN_MS, Draft, Hlc, ObjectId, ObjectSet, PublishedPort, ServiceOf,
        ServiceState, holder,
    },
    record::EndpointClaim,
    tables::RowKey,
    wire::{TCP, UDP},
};

use super::{
    ServiceError, Services, answers,
    backends::{Drains, Viewpoint, backends, choice, standing},
    health,
    place::places,
    published,
    seen::why,
};
use crate::{
    admin::resolve,
    api::{
        self, Balancing, HealthWord, Preference, ServiceBackend, ServiceCheck, ServiceMode,
        ServicePort, ServiceSpec, ServiceUpdate,
    },
    daemon::Mesh,
    firewall::clients::Clients,
    objects::unix_ms,
    reconcile::admit::Claims,
};

/// The services of a network that have their name, of those that this node has.
pub(crate) fn named(
    set: &ObjectSet,
    network: NetworkId,
    specs: &[lb::ServiceSpec],
    (claims, away): (&Claims, &Claims),
) -> Vec<NamedService> {
    let ips = |key: &RowKey| claims.get(key).or_else(|| away.get(key)).map(|it| it.ips.clone());
    let backend = |&lb::Backend { key, weight, takes_new, .. }: &lb::Backend| {
        let ips = ips(&key).unwrap_or_default();
        NamedBackend { key, ips, weight, takes_new }
    };
    // Both are in one order.
    let mut specs = specs.iter().peekable();
    let services = set.services(network).into_iter();
    let named = services.filter_map(|ServiceOf { id, created, service, state }| {
        let spec = specs.next_if(|spec| spec.id == id)?;
        let mut backends: Vec<_> = spec.backends.iter().map(backend).collect();
        backends.sort_unstable_by_key(|backend| backend.key);
        (state == ServiceState::Active).then(|| NamedService {
            id,
            name: service.name.clone(),
            vips: spec.vips.clone(),
            created: created.unix_ms(),
            ports: service.ports.clone(),
            backends,
        })
    });
    named.collect()
}

/// Refuses names of an endpoint that a service of the network has.
pub(crate) fn check_names(
    set: &ObjectSet,
    network: NetworkId,
    name: Option<&Name>,
    aliases: &[Alias],
) -> Result<(), ServiceError> {
    let mut names = name.map(Name::as_str).into_iter().chain(aliases.iter().map(Alias::as_str));
    names.try_for_each(|name| check_no_service(set, network, name))
}

fn check_no_service(set: &ObjectSet, network: NetworkId, name: &str) -> Result<(), ServiceError> {
    let mut services = set.services(network).into_iter().map(|of| &of.service.name);
    match services.find(|other| other.as_str() == name) {
        Some(name) => Err(ServiceError::NameTaken { name: name.clone(), what: "a service" }),
        None => Ok(()),
    }
}

impl Services {
    /// All services, by network.
    pub(crate) fn list(&self, mesh: &Mesh) -> Vec<api::Service> {
        let networks = mesh.member.objects.read(ObjectSet::active_networks);
        networks.into_iter().flat_map(|network| self.list_of(mesh, network)).collect()
    }

    fn list_of(&self, mesh: &Mesh, network: NetworkId) -> Vec<api::Service> {
        // The set is not held while claims are read.
        let services: Vec<_> = mesh.member.objects.read(|set| {
            let services = set.services(network).into_iter();
            services.map(|of| (of.id, of.service.clone(), of.created, of.state)).collect()
        });
        if services.is_empty() {
            return Vec::new();
        }
        let claims = mesh.member.claims_of(network);
        let row = |(id, service, created, state): &(_, object::Service, Hlc, _)| {
            let given = named_so(&claims, &service.name).map(|(claim, _)| claim.incarnation);
            let has_name =
                *state == ServiceState::Active && dns::has_name(created.unix_ms(), given);
            row(mesh, *id, service, has_name, &claims)
        };
        services.iter().map(row).collect()
    }

    /// The service that a reference means.
    pub(crate) fn find(&self, mesh: &Mesh, reference: &str) -> Result<api::Service, ServiceError> {
        Ok(resolve::one(&self.list(mesh), reference).cloned()?)
    }

    /// Makes a service, on this node and so on all.
    pub(crate) async fn create(
        &self,
        mesh: &Arc<Mesh>,
        spec: ServiceSpec,
    ) -> Result<api::Service, ServiceError> {
        mesh.check_member()?;
        check_network(&mesh.find_network(&spec.network)?)?;
        let network = mesh.find_changeable(&spec.network)?;
        check_spec(&spec)?;
        if network.internal && !spec.published.is_empty() {
            return Err(ServiceError::Internal(network.name));
        }
        let published = published::chosen(mesh, None, &spec.published)?;
        check_free(mesh, network.id, &spec.name)?;
        let subnets: Vec<IpNet> = network.subnets.iter().map(|subnet| subnet.cidr).collect();
        let is_inside = |ip: &IpAddr| subnets.iter().any(|subnet| subnet.contains(ip));
        if let Some(ip) = spec.vips.iter().find(|ip| !is_inside(ip)) {
            return Err(ServiceError::Outside(*ip));
        }
        let object = mesh.network_of(network.id).ok_or(ServiceError::Gone)?;
        let vips = match spec.mode {
            ServiceMode::Vip => mesh.allocate(&object, network.id, &spec.vips).await?,
            ServiceMode::Dnsrr => Vec::new(),
        };
        let content = content_of(mesh.member.me, network.id, &spec, &vips, published);
        let (made, texts) = block_in_place(|| publish(mesh, content, &vips));
        // What was signed is told also where the rest failed.
        self.tell(mesh, texts).await;
        self.find(mesh, &made?.to_string())
    }

    /// Changes a service, on this node and so on all.
    pub(crate) async fn update(
        &self,
        mesh: &Arc<Mesh>,
        reference: &str,
        update: &ServiceUpdate,
    ) -> Result<api::Service, ServiceError> {
        mesh.check_member()?;
        let row = self.find(mesh, reference)?;
        let (up, away) = (mesh.member.claims_of(row.network), mesh.member.away(row.network));
        let text = block_in_place(|| {
            let add = published::chosen(mesh, Some(row.id), &update.add_published)?;
            if !add.is_empty() && mesh.network_of(row.network).is_some_and(|it| it.internal) {
                return Err(ServiceError::Internal(row.name.clone()));
            }
            edit(mesh, row.id, |set, service| {
                check_drains(service, update, [&up, &away])?;
                published::check_free(set, Some(row.id), &add)?;
                changed(service, update)?;
                published::change(service, add, update)
            })
        })?;
        self.tell(mesh, vec![text]).await;
        self.find(mesh, &row.id.to_string())
    }

    /// Removes a service, on this node and so on all. Its addresses go back to who gave them.
    pub(crate) async fn remove(
        &self,
        mesh: &Arc<Mesh>,
        reference: &str,
    ) -> Result<api::Service, ServiceError> {
        mesh.check_member()?;
        let row = self.find(mesh, reference)?;
        let text = block_in_place(|| close(mesh, row.id))?;
        self.tell(mesh, vec![text]).await;
        Ok(row)
    }

    /// Takes somebody's word about a backend on this node.
    pub(crate) fn word(
        &self,
        mesh: &Mesh,
        reference: &str,
        word: &HealthWord,
    ) -> Result<api::Service, ServiceError> {
        mesh.check_member()?;
        let row = self.find(mesh, reference)?;
        let claims = mesh.member.claims_of(row.network);
        let service = mesh.member.objects.read(|set| set.service(row.id).cloned());
        let service = service.ok_or(ServiceError::Gone)?;
        let all = backends(&service, &claims).into_iter();
        let its =
            all.filter(|(it, claim)| it.key.node == mesh.member.me && claim.name == word.backend);
        let Some((backend, _)) = its.max_by_key(|(_, claim)| claim.incarnation) else {
            return Err(ServiceError::NotHere { name: row.name, backend: word.backend.clone() });
        };
        let ttl = word.ttl_ms.map(Duration::from_millis);
        self.take_word((backend.key.endpoint, row.id), word.up, ttl);
        health::tell(mesh);
        self.find(mesh, &row.id.to_string())
    }

    /// Has all nodes follow these objects, and this one at once.
    async fn tell(&self, mesh: &Arc<Mesh>, texts: Vec<String>) {
        mesh.member.push_objects(texts);
        mesh.member.objects.read(|set| mesh.member.addresses.follow(set, Instant::now()));
        mesh.reconcile().await;
        mesh.keep_host_ports().await;
    }
}

/// What the open service with this id is called.
pub(crate) fn service_name(set: &ObjectSet, id: ServiceId) -> Option<Name> {
    set.service(id).map(|service| service.name.clone())
}

/// Signs a service, and its addresses over to it. If one cannot be given, the service is closed,
/// and what was signed comes back with that. The texts are to be told in any case.
fn publish(
    mesh: &Mesh,
    content: object::Service,
    vips: &[IpNet],
) -> (Result<ServiceId, ServiceError>, Vec<String>) {
    let network = content.network;
    let (id, made) = match sign(mesh, content) {
        Ok(signed) => signed,
        Err(error) => {
            vips.iter().for_each(|ip| mesh.member.addresses.put_back(network, *ip));
            return (Err(error), Vec::new());
        }
    };
    let mut texts = vec![made];
    for (at, vip) in vips.iter().enumerate() {
        match give(mesh, network, *vip, id) {
            Some(text) => texts.push(text),
            None => {
                let rest = vips.iter().skip(at + 1);
                rest.for_each(|ip| mesh.member.addresses.put_back(network, *ip));
                let closed = close(mesh, id);
                texts.extend(closed.as_ref().ok().cloned());
                let failed = closed.map(|_text| ServiceError::NotGiven(vip.addr()));
                return (Err(failed.unwrap_or_else(|error| error)), texts);
            }
        }
    }
    (Ok(id), texts)
}

/// A service as the mesh knows it.
fn content_of(
    creator: NodeId,
    network: NetworkId,
    spec: &ServiceSpec,
    vips: &[IpNet],
    published: Vec<PublishedPort>,
) -> object::Service {
    object::Service {
        name: spec.name.clone(),
        network,
        creator,
        vips: vips.iter().map(IpNet::addr).collect(),
        ports: spec.ports.iter().map(port_of).collect(),
        backends: spec.backends.clone(),
        selector: spec.selector.clone(),
        weights: spec.weights.clone(),
        choice: spec.lb.and_then(word_of),
        check: spec.check.as_ref().map(check_of),
        draining: BTreeMap::new(),
        drain_ms: spec.drain_ms,
        prefer: prefer_of(spec.prefer),
        published,
        allow: spec.clients.allow.clone(),
        deny: spec.clients.deny.clone(),
        sticky: spec.sticky_s,
    }
}

fn sign(mesh: &Mesh, content: object::Service) -> Result<(ServiceId, String), ServiceError> {
    published::check(&content)?;
    let network = content.network;
    let made = mesh.member.objects.publish::<ServiceError>(|set, hlc| {
        check_no_service(set, network, content.name.as_str())?;
        published::check_free(set, None, &content.published)?;
        if set.services(network).len() >= SERVICES_OF_NETWORK {
            return Err(ServiceError::TooMany);
        }
        Ok(Draft::new(hlc, Content::Service(content)))
    })?;
    let ObjectId::Service(id) = *made.id() else { return Err(ServiceError::Gone) };
    Ok((id, made.text().to_string()))
}

/// Signs an address over to a service.
fn give(mesh: &Mesh, network: NetworkId, vip: IpNet, to: ServiceId) -> Option<String> {
    let given = mesh.member.addresses.give_to_service(network, vip, holder(to), Instant::now())?;
    let signed = mesh.sign_transfer(network, given);
    if let Err(error) = &signed {
        warn!(error = %error.message, address = %vip.addr(), "an address was not given to a service");
        mesh.member.addresses.take_back(&[(network, given)]);
    }
    signed.ok()
}

/// Signs what this node changes of a service.
fn edit(
    mesh: &Mesh,
    id: ServiceId,
    change: impl FnOnce(&ObjectSet, &mut object::Service) -> Result<(), ServiceError>,
) -> Result<String, ServiceError> {
    let object = mesh.member.objects.publish::<ServiceError>(|set, hlc| {
        let mut service = set.service(id).ok_or(ServiceError::Gone)?.clone();
        change(set, &mut service)?;
        set.update(id, mesh.member.me, &service, hlc).ok_or(ServiceError::Gone)
    })?;
    Ok(object.text().to_string())
}

/// Signs the end of a service.
fn close(mesh: &Mesh, id: ServiceId) -> Result<String, ServiceError> {
    let object = mesh.member.objects.publish::<ServiceError>(|set, hlc| {
        let held = set.get(&ObjectId::Service(id)).filter(|held| !held.closed());
        let draft = held.ok_or(ServiceError::Gone)?.edit(hlc);
        let Content::Service(service) = &draft.content else { return Err(ServiceError::Gone) };
        let content = Content::Service(service.ended());
        Ok(Draft { closed: true, content, ..draft })
    })?;
    Ok(object.text().to_string())
}

/// What a service is after a change.
fn changed(service: &mut object::Service, update: &ServiceUpdate) -> Result<(), ServiceError> {
    for port in update.remove_ports.iter().map(port_of) {
        let at = service.ports.iter().position(|it| is_same(it, &port));
        let missing =
            || ServiceError::PortMissing { name: service.name.clone(), port: shown(&port) };
        service.ports.remove(at.ok_or_else(missing)?);
    }
    for port in update.add_ports.iter().map(port_of) {
        service.ports.retain(|it| !is_same(it, &port));
        service.ports.push(port);
    }
    if service.ports.is_empty() {
        return Err(ServiceError::NoPort(service.name.clone()));
    }
    for backend in &update.remove_backends {
        if !service.backends.remove(backend) {
            let (name, backend) = (service.name.clone(), backend.clone());
            return Err(ServiceError::BackendMissing { name, backend });
        }
        service.draining.remove(backend);
    }
    for backend in &update.add_backends {
        if service.backends.insert(backend.clone()) {
            // A drain of its last life, by somebody who had not heard of its end, is over.
            service.draining.remove(backend);
        }
    }
    if service.backends.is_empty() && service.selector.is_empty() {
        return Err(ServiceError::NoBackend(service.name.clone()));
    }
    service.weights.extend(update.weights.clone());
    service.weights.retain(|_, weight| *weight != 1);
    check_port_names(&service.ports)?;
    if let Some(lb) = update.lb {
        if service.vips.is_empty() {
            let name = service.name.clone();
            return Err(ServiceError::NoAddress { name, option: "--lb" });
        }
        service.choice = word_of(lb);
    }
    if let Some(prefer) = update.prefer {
        if service.vips.is_empty() {
            let name = service.name.clone();
            return Err(ServiceError::NoAddress { name, option: "--prefer" });
        }
        service.prefer = prefer_of(prefer);
    }
    if update.no_sticky {
        service.sticky = None;
    }
    if let Some(seconds) = update.sticky_s {
        check_sticky(Some(seconds))?;
        if service.vips.is_empty() {
            let name = service.name.clone();
            return Err(ServiceError::NoAddress { name, option: "--sticky" });
        }
        service.sticky = Some(seconds);
    }
    service.drain_ms = update.drain_ms.or(service.drain_ms);
    if update.no_check {
        service.check = None;
    }
    if let Some(check) = &update.check {
        service.check = Some(check_of(check));
    }
    let is_tcp = |port: &object::ServicePort| port.protocol == TCP;
    check_check(&service.name, service.check.as_ref(), service.ports.iter().any(is_tcp))?;
    service.draining.retain(|name, _| !update.undrain.contains(name));
    let now = unix_ms();
    for name in &update.drain {
        service.draining.entry(name.clone()).or_insert(now);
    }
    Ok(())
}

/// Refuses to drain who is no backend: it would be thought to be drained.
fn check_drains(
    service: &object::Service,
    update: &ServiceUpdate,
    claims: [&Claims; 2],
) -> Result<(), ServiceError> {
    let answers = |name: &Name, claims: &Claims| {
        backends(service, claims).iter().any(|(_, claim)| claim.name == *name)
    };
    let unknown = update.drain.iter().find(|name| {
        !service.backends.contains(*name) && !claims.iter().any(|claims| answers(name, claims))
    });
    match unknown {
        Some(backend) => {
            let (name, backend) = (service.name.clone(), backend.clone());
            Err(ServiceError::BackendMissing { name, backend })
        }
        None => Ok(()),
    }
}

/// Refuses a time that clients cannot keep their backends for.
fn check_sticky(seconds: Option<u32>) -> Result<(), ServiceError> {
    match seconds.filter(|seconds| !(1..=STICKY_SECONDS).contains(seconds)) {
        Some(_) => Err(ServiceError::Sticky),
        None => Ok(()),
    }
}

/// Refuses a check that says nothing.
fn check_check(
    name: &Name,
    check: Option<&object::HealthCheck>,
    has_tcp: bool,
) -> Result<(), ServiceError> {
    let Some(check) = check else { return Ok(()) };
    if !has_tcp {
        return Err(ServiceError::Uncheckable(name.clone()));
    }
    if let Some(path) = check.path.as_ref().filter(|_| !check.has_path()) {
        return Err(ServiceError::Path(path.clone()));
    }
    if check.is_sound() { Ok(()) } else { Err(ServiceError::Check) }
}

/// Services are for encrypted networks of the mesh whose endpoints may talk.
fn check_network(network: &api::Network) -> Result<(), ServiceError> {
    let why = if network.scope == "local" {
        "it is of this host alone, and its frames go past the agent"
    } else if !network.encrypted {
        "its frames are not sealed, so nobody can say whose an answer is"
    } else if network.isolated {
        "its endpoints are kept from each other"
    } else {
        return Ok(());
    };
    Err(ServiceError::Unfit { network: network.name.clone(), why })
}

fn check_spec(spec: &ServiceSpec) -> Result<(), ServiceError> {
    if spec.ports.is_empty() {
        return Err(ServiceError::NoPort(spec.name.clone()));
    }
    let mut seen = BTreeSet::new();
    if let Some(port) = spec.ports.iter().find(|port| !seen.insert((port.protocol, port.port))) {
        return Err(ServiceError::PortTwice(port.clone()));
    }
    check_port_names(&spec.ports.iter().map(port_of).collect::<Vec<_>>())?;
    if spec.backends.is_empty() && spec.selector.is_empty() {
        return Err(ServiceError::NoBackend(spec.name.clone()));
    }
    let options = [
        ("--vip", !spec.vips.is_empty()),
        ("--lb", spec.lb.is_some()),
        ("--prefer", spec.prefer != Preference::Any),
        ("--sticky", spec.sticky_s.is_some()),
    ];
    let given = options.into_iter().find(|(_, is_given)| *is_given);
    match given.filter(|_| spec.mode == ServiceMode::Dnsrr) {
        Some((option, _)) => Err(ServiceError::NoAddress { name: spec.name.clone(), option }),
        None => {
            check_sticky(spec.sticky_s)?;
            let has_tcp = spec.ports.iter().any(|port| port.protocol == Protocol::Tcp);
            check_check(&spec.name, spec.check.as_ref().map(check_of).as_ref(), has_tcp)
        }
    }
}

/// Refuses a name that two ports of one protocol have, as ports are found by their names.
fn check_port_names(ports: &[object::ServicePort]) -> Result<(), ServiceError> {
    let mut seen = BTreeSet::new();
    let mut named = ports.iter().filter_map(|port| Some((port.protocol, port.name.as_ref()?)));
    match named.find(|port| !seen.insert(*port)) {
        Some((_, name)) => Err(ServiceError::PortNameTwice(name.clone())),
        None => Ok(()),
    }
}

/// The endpoints that have this name, as their own or as an alias, and which of the two.
fn named_so<'a>(
    claims: &'a Claims,
    name: &Name,
) -> impl Iterator<Item = (&'a EndpointClaim, &'static str)> {
    let claims = claims.values().filter(|claim| !claim.router);
    claims.filter_map(move |claim| {
        let is_alias = claim.aliases.iter().any(|alias| alias.as_str() == name.as_str());
        let alias = is_alias.then_some("endpoints with the alias");
        let what = if claim.name == *name { Some("an endpoint") } else { alias };
        what.map(|what| (claim, what))
    })
}

/// Refuses a name that an endpoint of the network has, as its name or as an alias.
fn check_free(mesh: &Mesh, network: NetworkId, name: &Name) -> Result<(), ServiceError> {
    mesh.check_name(name)?;
    // Also those of nodes that are away: they may be back.
    let (up, away) = (mesh.member.claims_of(network), mesh.member.away(network));
    let taken = named_so(&up, name).chain(named_so(&away, name)).next();
    match taken {
        Some((_, what)) => Err(ServiceError::NameTaken { name: name.clone(), what }),
        None => Ok(()),
    }
}

fn row(
    mesh: &Mesh,
    id: ServiceId,
    service: &object::Service,
    has_name: bool,
    claims: &Claims,
) -> api::Service {
    let is_given = |ip: &IpAddr| mesh.member.addresses.holds(service.network, holder(id), *ip);
    let state = match has_name {
        false => "conflict",
        true if service.vips.iter().all(is_given) => "active",
        true => "pending",
    };
    let there = backends(service, claims);
    let missing =
        service.backends.iter().filter(|name| !there.iter().any(|(_, claim)| claim.name == **name));
    let missing = missing.map(|name| ServiceBackend {
        name: name.clone(),
        state: "missing".to_owned(),
        why: Some("no endpoint of this name is up".to_owned()),
        endpoint: None,
        node: None,
        ips: Vec::new(),
        weight: service.weights.get(name).copied().unwrap_or(1),
        counters: None,
    });
    let places = places(mesh);
    let at_ms = unix_ms();
    let since = |since| mesh.services.drained_since(since, at_ms, true);
    let seen =
        Viewpoint { by: mesh.member.me, at_ms, places: &places, drains: Drains { since: &since } };
    let ready = there.iter().map(|(backend, claim)| {
        let (state, why) = stands(mesh, (id, service), (backend, claim), &seen);
        ServiceBackend {
            name: claim.name.clone(),
            state: state.to_owned(),
            why,
            endpoint: Some(backend.key.endpoint),
            node: Some(backend.key.node),
            ips: claim.ips.clone(),
            weight: backend.weight,
            counters: None,
        }
    });
    let mut backends: Vec<ServiceBackend> = ready.chain(missing).collect();
    backends.sort_by(|one, other| one.name.cmp(&other.name));
    let mode = match service.vips.is_empty() {
        true => ServiceMode::Dnsrr,
        false => ServiceMode::Vip,
    };
    let lb = match choice(service) {
        Choice::RoundRobin => Balancing::Rr,
        Choice::Maglev => Balancing::Maglev,
        Choice::LeastConn => Balancing::LeastConn,
    };
    let lb = (mode == ServiceMode::Vip).then(|| lb.as_str().to_owned());
    api::Service {
        id,
        name: service.name.clone(),
        network: service.network,
        mode,
        vips: service.vips.clone(),
        state: state.to_owned(),
        ports: service.ports.iter().map(shown).collect(),
        lb,
        prefer: service.prefer.as_ref().map_or("any", Name::as_str).to_owned(),
        check: service.check.as_ref().map(shown_check),
        sticky_s: service.sticky,
        drain_ms: service.drain_ms.unwrap_or(DRAIN_MS),
        selector: service.selector.clone(),
        backends,
        published: published::rows(mesh, id, service),
        taken_on: published::conflicts(mesh, id),
        clients: Clients { allow: service.allow.clone(), deny: service.deny.clone() },
        counters: None,
        refused: BTreeMap::new(),
        creator: service.creator,
        warnings: warnings(service, mode, there.is_empty(), answers::lost(mesh, service, &there)),
    }
}

/// How a backend stands as this node sees it, and why.
fn stands(
    mesh: &Mesh,
    (id, service): (ServiceId, &object::Service),
    (backend, claim): (&lb::Backend, &EndpointClaim),
    seen: &Viewpoint<'_>,
) -> (&'static str, Option<String>) {
    let state = standing((id, service), (backend, claim), seen);
    if state == BackendState::Ready
        && let Some(why) = mesh.services.silence(service, backend)
    {
        return ("silent", Some(why));
    }
    let node = backend.key.node;
    let until = seen.deadline(service, node, &claim.name);
    let left_ms = until.map(|until| until.saturating_sub(seen.at_ms));
    let why = why(state, backend, service, (left_ms, seen.is_near(node, service)));
    (state.as_str(), why)
}

/// What works, but not as it may be thought.
fn warnings(
    service: &object::Service,
    mode: ServiceMode,
    is_empty: bool,
    lost: Vec<String>,
) -> Vec<String> {
    let lost = lost.into_iter().map(|why| format!("{why}: {}", answers::HINT));
    let mut warnings: Vec<String> = lost.collect();
    if is_empty {
        let until = match mode {
            ServiceMode::Vip => "connections to it are refused until one does",
            ServiceMode::Dnsrr => "its name leads nowhere until one does",
        };
        warnings.push(format!("no endpoint answers for it: {until}"));
    }
    let is_other = |port: &&object::ServicePort| port.port != port.backend_port;
    if let Some(port) = service.ports.iter().find(is_other).filter(|_| mode == ServiceMode::Dnsrr) {
        let (port, there) = (port.port, port.backend_port);
        let what = "it has no address where one port could lead to another: whoever looks up its \
                    name connects to a backend itself";
        warnings.push(format!("{what}, at port {there} and not {port}"));
    }
    warnings
}

fn port_of(port: &ServicePort) -> object::ServicePort {
    let protocol = match port.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    let ServicePort { name, port, backend_port, .. } = port.clone();
    object::ServicePort { protocol, port, backend_port, name }
}

fn shown(port: &object::ServicePort) -> ServicePort {
    let protocol = if port.protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
    let object::ServicePort { port, backend_port, name, .. } = port.clone();
    ServicePort { name, protocol, port, backend_port }
}

fn check_of(check: &ServiceCheck) -> object::HealthCheck {
    let ServiceCheck { path, interval_ms, timeout_ms, rise, fall } = check.clone();
    object::HealthCheck { path, interval_ms, timeout_ms, rise, fall }
}

fn shown_check(check: &object::HealthCheck) -> ServiceCheck {
    let object::HealthCheck { path, interval_ms, timeout_ms, rise, fall } = check.clone();
    ServiceCheck { path, interval_ms, timeout_ms, rise, fall }
}

fn prefer_of(prefer: Preference) -> Option<Name> {
    (prefer != Preference::default()).then(|| prefer.as_str().parse().ok())?
}

fn is_same(one: &object::ServicePort, other: &object::ServicePort) -> bool {
    (one.protocol, one.port) == (other.protocol, other.port)
}

/// The word that all versions know for it; none for the default.
fn word_of(lb: Balancing) -> Option<Name> {
    (lb != Balancing::default()).then(|| lb.as_str().parse().ok())?
}
