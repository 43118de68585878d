//! Ports of this host that lead to services: [`HostPorts`].
//!
//! ```text
//! client -> host:8080 -> the network's uplink:inner -> VIP:80      the last step is the data path's
//! ```
//!
//! Each is held by a socket, as those of sandboxes are. One that somebody else has is tried again,
//! and the others lead on meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{sync::watch::Receiver, time::sleep};

use vxmesh_gossip::directory::Directory;
use vxmesh_proto::{
    addr::{Name, NetworkId, NodeId, ServiceId},
    lb::PublishMode,
    limits::CLAIM_CHECKS,
    object::{self, ObjectSet, PublishedPort, Service, ServiceOf, ServiceState},
    record::{Claim, Key, NodeClaim},
    wire::{TCP, UDP},
};

use super::{ServiceError, Services, lock};
use crate::{
    api::{ServicePublish, ServicePublished, ServiceUpdate},
    daemon::Mesh,
    firewall::{clients::Clients, host, network::Entrance, rule::Protocol},
    gateway::{
        publish::{self, Held, HoldError, Publish},
        uplink::Uplink,
    },
};

/// How often a free port is looked for that no service has.
const CHOICES: usize = 64;
/// Between two tries of a port that somebody else has.
const RETRY: Duration = Duration::from_secs(2);

/// A port that leads to a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub(crate) network: NetworkId,
    pub(crate) service: ServiceId,
    pub(crate) published: PublishedPort,
}

impl HostPort {
    pub(crate) const fn protocol(&self) -> Protocol {
        protocol_of(&self.published)
    }
}

/// Where one leads, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lead {
    vips: Vec<IpAddr>,
    clients: Clients,
    /// The older service that has the port, on all hosts.
    older: Option<Name>,
}

/// Why this host does not have one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Missing {
    /// It is at an address of another host.
    #[error("its address is another host's")]
    Elsewhere,
    /// Something else has it.
    #[error("{0}")]
    Taken(String),
    /// The network cannot be made on this host.
    #[error("its network cannot be made here: {0}")]
    NoWay(String),
    /// The network is here, and what leads into it is not as it should be.
    #[error("its port does not lead into its network: {0}")]
    Shut(String),
}

/// What this host remembers of a port that leads on, so that its connections outlive the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Led {
    port: HostPort,
    inner: u16,
}

/// What this host does with one.
#[derive(Debug)]
struct Place {
    lead: Lead,
    /// The port of the uplink that leads on.
    inner: u16,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Of the agent's last life: the rules lead on, and nobody holds it yet.
    Adopted,
    Open {
        _held: Held,
    },
    Missing {
        why: Missing,
        tried: Instant,
    },
}

impl Place {
    const fn leads(&self) -> bool {
        matches!(self.state, State::Adopted | State::Open { .. })
    }
}

/// Ports of this host that lead to services.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    ports: BTreeMap<HostPort, Place>,
    changes: u64,
    /// The networks into which they lead in vain, and why.
    shut: BTreeMap<NetworkId, String>,
}

impl HostPorts {
    /// How often they changed.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Notes into which networks they lead in vain, and why.
    pub(crate) fn note_shut(&mut self, shut: BTreeMap<NetworkId, String>) {
        self.shut = shut;
    }

    /// Why one that leads on does it in vain, if so.
    fn shut(&self, port: &HostPort) -> Option<Missing> {
        self.shut.get(&port.network).cloned().map(Missing::Shut)
    }

    /// Takes over those of these that led on when the agent's last life ended.
    pub(crate) fn adopt(&mut self, mut wanted: BTreeMap<HostPort, Lead>, led: Vec<Led>) {
        for Led { port, inner } in led {
            if let Some(lead) = wanted.remove(&port).filter(|lead| lead.older.is_none()) {
                self.ports.insert(port, Place { lead, inner, state: State::Adopted });
            }
        }
        self.changes += 1;
    }

    /// Those that lead on.
    pub(crate) fn led(&self) -> Vec<Led> {
        let led = self.ports.iter().filter(|(_, place)| place.leads());
        led.map(|(port, place)| Led { port: port.clone(), inner: place.inner }).collect()
    }

    /// Gives up those that are none of these or an older service's, and has the others lead where
    /// they shall. Returns the networks in which something changed.
    pub(crate) fn release(&mut self, wanted: &BTreeMap<HostPort, Lead>) -> BTreeSet<NetworkId> {
        let mut changed = BTreeSet::new();
        self.ports.retain(|port, place| {
            let lead = wanted.get(port).filter(|lead| lead.older.is_none() || !place.leads());
            if lead != Some(&place.lead) {
                changed.insert(port.network);
            }
            if let Some(lead) = lead {
                place.lead.clone_from(lead);
            }
            lead.is_some()
        });
        self.changes += u64::from(!changed.is_empty());
        changed
    }

    /// Those of these that nobody holds yet, or that could not be had when they were tried last.
    pub(crate) fn due(&self, wanted: &BTreeMap<HostPort, Lead>) -> Vec<HostPort> {
        let is_due = |port: &&HostPort| match self.ports.get(port).map(|place| &place.state) {
            None | Some(State::Adopted) => true,
            Some(State::Open { .. }) => false,
            Some(State::Missing { tried, .. }) => tried.elapsed() >= RETRY,
        };
        wanted.keys().filter(is_due).cloned().collect()
    }

    /// Takes one that was tried. Whether it leads somewhere by now, or does no more. `taken` are
    /// ports of uplinks that lead elsewhere.
    pub(crate) fn put(
        &mut self,
        port: HostPort,
        lead: Lead,
        held: Result<Held, Missing>,
        taken: &mut BTreeSet<(Protocol, u16)>,
    ) -> bool {
        taken.extend(self.inner());
        let before = self.ports.get(&port);
        let led = before.is_some_and(Place::leads);
        let inner = before.map(|place| place.inner).or_else(|| inner_port(&port, taken));
        let Some(inner) = inner else { return false };
        let state = match held {
            Ok(held) => State::Open { _held: held },
            Err(why) => State::Missing { why, tried: Instant::now() },
        };
        let place = Place { lead, inner, state };
        let changed = place.leads() != led;
        self.ports.insert(port, place);
        self.changes += u64::from(changed);
        changed
    }

    /// Ports of uplinks that lead to services.
    pub(crate) fn inner(&self) -> impl Iterator<Item = (Protocol, u16)> {
        self.ports.iter().map(|(port, place)| (port.protocol(), place.inner))
    }

    /// What leads from a network's uplink to its services.
    pub(crate) fn entrances(&self, network: NetworkId, uplink: &Uplink) -> Vec<Entrance> {
        let ports =
            self.ports.iter().filter(|(port, place)| port.network == network && place.leads());
        ports.flat_map(|(port, place)| place.entrances(port, uplink)).collect()
    }

    /// What leads from the host's ports to uplinks.
    pub(crate) fn host_ports(
        &self,
        uplink: impl Fn(NetworkId) -> Option<Uplink>,
    ) -> Vec<host::Port> {
        let port = |(port, place): (&HostPort, &Place)| {
            let uplink = uplink(port.network)?;
            let to: Vec<SocketAddr> =
                place.entrances(port, &uplink).map(|entrance| entrance.at).collect();
            let PublishedPort { ip, host_port, .. } = port.published;
            let clients = place.lead.clients.clone();
            Some(host::Port { protocol: port.protocol(), ip, port: host_port, to, clients })
        };
        self.ports.iter().filter(|(_, place)| place.leads()).filter_map(port).collect()
    }

    /// Whether one leads into a network wherever the backends are.
    pub(crate) fn leads_into(&self, network: NetworkId) -> bool {
        self.ports.iter().any(|(port, place)| {
            port.network == network && !port.published.is_local && place.leads()
        })
    }

    /// Whether there is one of a network, wherever it leads.
    pub(crate) fn knows(&self, network: NetworkId) -> bool {
        self.ports.keys().any(|port| port.network == network)
    }

    /// The addresses in a network to which they lead.
    pub(crate) fn vips(&self, network: NetworkId) -> BTreeSet<IpAddr> {
        let into = self.ports.iter().filter(|(port, it)| port.network == network && it.leads());
        into.flat_map(|(_port, place)| place.lead.vips.iter().copied()).collect()
    }

    /// The service that has a port of this host.
    pub(crate) fn holder_of(&self, meets: impl Fn(&HostPort) -> bool) -> Option<&HostPort> {
        self.ports.iter().find(|(port, place)| place.leads() && meets(port)).map(|(port, _)| port)
    }

    /// The services whose ports are not open here though they should be, and why.
    pub(crate) fn taken(&self) -> Vec<(ServiceId, Missing)> {
        let taken = self.ports.iter().filter_map(|(port, place)| {
            let why = match &place.state {
                State::Missing { why: Missing::Elsewhere, .. } => None,
                State::Adopted | State::Open { .. } => self.shut(port),
                State::Missing { why, .. } => Some(why.clone()),
            };
            Some((port.service, why?))
        });
        taken.collect()
    }

    /// How a service's port stands on this host, as a user sees it.
    pub(super) fn row(&self, port: &HostPort) -> ServicePublished {
        let state = self.ports.get(port).map(|place| &place.state);
        let (word, why) = match state {
            None => ("closed", None),
            Some(State::Adopted | State::Open { .. }) => match self.shut(port) {
                Some(why) => ("faulty", Some(why.to_string())),
                None => ("open", None),
            },
            Some(State::Missing { why: Missing::Elsewhere, .. }) => ("elsewhere", None),
            Some(State::Missing { why: Missing::Taken(why), .. }) => ("taken", Some(why.clone())),
            Some(State::Missing { why, .. }) => ("closed", Some(why.to_string())),
        };
        let port = ServicePublish::of(&port.published);
        ServicePublished { port, state: word.to_owned(), why }
    }
}

impl Place {
    fn entrances(&self, port: &HostPort, uplink: &Uplink) -> impl Iterator<Item = Entrance> {
        let protocol = port.protocol();
        let (inner, to_port, ip) = (self.inner, port.published.port, port.published.ip);
        let asked = move |vip: &&IpAddr| ip.is_none_or(|ip| ip.is_ipv4() == vip.is_ipv4());
        let ips = uplink.ips();
        self.lead.vips.iter().filter(asked).filter_map(move |vip| {
            let at = ips.iter().find(|ip| ip.is_ipv4() == vip.is_ipv4())?;
            Some(Entrance { protocol, at: (*at, inner).into(), to: (*vip, to_port).into() })
        })
    }
}

/// Mostly the host's own port; two of its addresses may have it for two services.
fn inner_port(port: &HostPort, taken: &mut BTreeSet<(Protocol, u16)>) -> Option<u16> {
    let protocol = port.protocol();
    let mut candidates = std::iter::once(port.published.host_port).chain(1..=u16::MAX);
    candidates.find(|inner| taken.insert((protocol, *inner)))
}

const fn protocol_of(published: &PublishedPort) -> Protocol {
    if published.protocol == UDP { Protocol::Udp } else { Protocol::Tcp }
}

impl Services {
    /// The published ports of services that have their name and their addresses, each with where it
    /// leads: of the networks that are `here`. Of one for hosts with backends only if there is one
    /// on this node, or if that is not known yet. Of two services that have one port, the older has
    /// it, whichever networks a host has.
    pub(crate) fn published(
        &self,
        set: &ObjectSet,
        here: impl Fn(NetworkId) -> bool,
        has: impl Fn(NetworkId, ServiceId, IpAddr) -> bool,
        (me, is_settled): (NodeId, bool),
    ) -> BTreeMap<HostPort, Lead> {
        // Whoever made the service: others' agents may ask for less than ours.
        let may_publish = |id: &NetworkId| {
            let network = set.extended(*id);
            network.is_some_and(|it| it.encrypted && !it.isolated && !it.internal)
        };
        let mut all: Vec<ServiceOf<'_>> = set
            .active_networks()
            .into_iter()
            .filter(may_publish)
            .flat_map(|network| set.services(network))
            .filter(|of| of.state == ServiceState::Active && !of.service.published.is_empty())
            .collect();
        all.sort_by_key(|of| (of.created, of.id));
        let known = lock(&self.known);
        let is_backend_here = |of: &ServiceOf<'_>| {
            let spec = known.get(&of.service.network)?.iter().find(|spec| spec.id == of.id)?;
            Some(spec.backends.iter().any(|backend| backend.key.node == me))
        };
        let mut ports = BTreeMap::new();
        for (at, of) in all.iter().enumerate() {
            let Service { network, vips, published, allow, deny, .. } = of.service;
            let has_all = !vips.is_empty() && vips.iter().all(|vip| has(*network, of.id, *vip));
            if !here(*network) || !has_all {
                continue;
            }
            for published in published {
                if published.is_local && !is_backend_here(of).unwrap_or(!is_settled) {
                    continue;
                }
                let has_it = |older: &&ServiceOf<'_>| {
                    older.service.published.iter().any(|it| it.meets(published))
                };
                let older = all.iter().take(at).find(has_it).map(|of| of.service.name.clone());
                let clients = Clients { allow: allow.clone(), deny: deny.clone() };
                let lead = Lead { vips: vips.clone(), clients, older };
                let (network, service) = (*network, of.id);
                ports.insert(HostPort { network, service, published: published.clone() }, lead);
            }
        }
        ports
    }
}

impl Lead {
    /// Why the port is not for this service.
    pub(crate) fn missing(&self) -> Option<Missing> {
        let older = self.older.as_ref()?;
        Some(Missing::Taken(format!("service `{older}`, which is older, publishes it")))
    }
}

impl Services {
    /// The services that are not wholly published on this node, as it tells the others.
    pub(crate) fn unpublished(&self) -> BTreeSet<String> {
        let taken = lock(&self.host_ports).taken();
        let is_taken = |(_, why): &(ServiceId, Missing)| matches!(why, Missing::Taken(_));
        let taken = taken.into_iter().filter(is_taken);
        taken.map(|(service, _)| service.short()).take(CLAIM_CHECKS).collect()
    }

    /// Tells the others which they are, where it is not what they know.
    fn tell_unpublished(&self, mesh: &Mesh) {
        let unpublished = self.unpublished();
        mesh.member.republish(Key::Node, |claim| match claim {
            Claim::Node(claim) if claim.unpublished != unpublished => {
                Some(Claim::Node(NodeClaim { unpublished, ..claim.clone() }))
            }
            Claim::Node(_) | Claim::Endpoint(_) | Claim::Gone => None,
        });
    }
}

/// The nodes on which something else has a published port of a service.
pub(super) fn conflicts(mesh: &Mesh, service: ServiceId) -> Vec<NodeId> {
    let members: Vec<NodeId> = mesh.member.objects.read(|set| ObjectSet::members(set).collect());
    let short = service.short();
    let of = |directory: &Directory| {
        let is_one = |node: &NodeId| match directory.get(*node, Key::Node) {
            Some(entry) => match entry.record.claim() {
                Claim::Node(claim) => claim.unpublished.contains(&short),
                Claim::Endpoint(_) | Claim::Gone => false,
            },
            None => false,
        };
        members.into_iter().filter(is_one).collect()
    };
    mesh.member.gossip.get().map(|gossip| gossip.with_directory(of)).unwrap_or_default()
}

/// Has this host's ports follow what services publish.
pub(crate) async fn publish(mesh: Arc<Mesh>, mut stop: Receiver<bool>) {
    loop {
        mesh.keep_host_ports().await;
        mesh.services.tell_unpublished(&mesh);
        tokio::select! {
            () = mesh.services.changed.for_ports() => {}
            () = sleep(RETRY) => {}
            _ = stop.changed() => return,
        }
    }
}

/// What a service is to publish, each with a port that this host has free and no other service has.
pub(super) fn chosen(
    mesh: &Mesh,
    own: Option<ServiceId>,
    wanted: &[ServicePublish],
) -> Result<Vec<PublishedPort>, ServiceError> {
    let mut ports: Vec<PublishedPort> = Vec::new();
    for wanted in wanted {
        let port = choose(mesh, own, (wanted, &ports))?;
        ports.push(port);
    }
    Ok(ports)
}

fn choose(
    mesh: &Mesh,
    own: Option<ServiceId>,
    (wanted, before): (&ServicePublish, &[PublishedPort]),
) -> Result<PublishedPort, ServiceError> {
    let with = |host_port| published_port(wanted, host_port);
    let ip = wanted.port.ip;
    for _ in 0..CHOICES {
        // What the service has itself is given up in the same step, or refused as one given twice.
        let is_own = |port: &HostPort| {
            Some(port.service) == own
                && wanted.port.meets(&ServicePublish::of(&port.published).port)
        };
        let has_it = lock(&mesh.services.host_ports).holder_of(is_own).is_some();
        // One of another host, perhaps: that one says whether it is free.
        let is_here = !has_it && ip.is_none_or(publish::is_here);
        let held = is_here.then(|| mesh.hold_port(&wanted.port)).transpose()?;
        let number = held.map(|held| held.port).or(wanted.port.port);
        let port = with(number.unwrap_or_else(publish::any_free));
        let is_free =
            mesh.member.objects.read(|set| check_free(set, own, std::slice::from_ref(&port)));
        let is_other = before.iter().all(|other| !other.meets(&port));
        match is_free {
            Ok(()) if is_other || wanted.port.port.is_some() => return Ok(port),
            Err(taken) if wanted.port.port.is_some() => return Err(taken),
            Ok(()) | Err(_) => {}
        }
    }
    Err(ServiceError::Mesh(HoldError::NoneFree.into()))
}

/// Refuses ports that another service has published.
pub(super) fn check_free(
    set: &ObjectSet,
    own: Option<ServiceId>,
    ports: &[PublishedPort],
) -> Result<(), ServiceError> {
    let others = set.all_services().filter(|(id, object, _)| !object.closed() && Some(*id) != own);
    for (_, _, service) in others {
        let has = |port: &&PublishedPort| service.published.iter().any(|it| it.meets(port));
        if let Some(port) = ports.iter().find(has) {
            let port = ServicePublish::of(port);
            return Err(ServiceError::Published { port, by: service.name.clone() });
        }
    }
    Ok(())
}

/// Refuses what cannot be published of a service.
pub(super) fn check(service: &Service) -> Result<(), ServiceError> {
    for (at, published) in service.published.iter().enumerate() {
        let mut before = service.published.iter().take(at);
        if before.clone().any(|other| other.meets(published)) {
            return Err(ServiceError::PublishedTwice(ServicePublish::of(published)));
        }
        let is_same =
            |it: &PublishedPort| (it.protocol, it.port) == (published.protocol, published.port);
        if before.any(|other| is_same(other) && other.is_local != published.is_local) {
            return Err(ServiceError::BothModes(published.port));
        }
        let name = || service.name.clone();
        let port = || ServicePublish::of(published);
        if service.vips.is_empty() {
            return Err(ServiceError::NoAddress { name: name(), option: "--publish" });
        }
        let is_its = |it: &object::ServicePort| {
            (it.protocol, it.port) == (published.protocol, published.port)
        };
        if !service.ports.iter().any(is_its) {
            return Err(ServiceError::NoPortToPublish { name: name(), port: port() });
        }
        let has = |ip: IpAddr| service.vips.iter().any(|vip| vip.is_ipv4() == ip.is_ipv4());
        if let Some(ip) = published.ip.filter(|ip| !has(*ip)) {
            return Err(ServiceError::OtherVersion { name: name(), ip });
        }
    }
    Ok(())
}

/// What a service publishes after a change.
pub(super) fn change(
    service: &mut Service,
    add: Vec<PublishedPort>,
    update: &ServiceUpdate,
) -> Result<(), ServiceError> {
    for port in &update.remove_published {
        let at = service.published.iter().position(|it| meets(it, port));
        let missing =
            || ServiceError::NotPublished { name: service.name.clone(), port: port.clone() };
        service.published.remove(at.ok_or_else(missing)?);
    }
    // A port that was taken away takes along what led to it.
    let ports = service.ports.clone();
    service.published.retain(|published| {
        ports.iter().any(|it| (it.protocol, it.port) == (published.protocol, published.port))
    });
    service.published.extend(add);
    for (prefixes, changed) in
        [(&mut service.allow, &update.allow), (&mut service.deny, &update.deny)]
    {
        if let Some(changed) = changed {
            prefixes.clone_from(changed);
        }
    }
    check(service)
}

/// The rows of what a service publishes.
pub(super) fn rows(mesh: &Mesh, id: ServiceId, service: &Service) -> Vec<ServicePublished> {
    let host_ports = lock(&mesh.services.host_ports);
    let row = |published: &PublishedPort| {
        let (network, published) = (service.network, published.clone());
        host_ports.row(&HostPort { network, service: id, published })
    };
    service.published.iter().map(row).collect()
}

fn published_port(publish: &ServicePublish, host_port: u16) -> PublishedPort {
    let Publish { protocol, ip, sandbox_port, .. } = publish.port;
    let protocol = match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    let is_local = publish.mode == PublishMode::Host;
    PublishedPort { protocol, host_port, port: sandbox_port, ip, is_local }
}

fn meets(published: &PublishedPort, wanted: &ServicePublish) -> bool {
    let Publish { protocol, ip, port, .. } = wanted.port;
    (protocol_of(published), published.ip, Some(published.host_port)) == (protocol, ip, port)
}

impl ServicePublish {
    /// As a user writes it.
    pub(crate) fn of(published: &PublishedPort) -> Self {
        let PublishedPort { host_port, port, ip, is_local, .. } = *published;
        let protocol = protocol_of(published);
        let mode = if is_local { PublishMode::Host } else { PublishMode::Ingress };
        Self { port: Publish { protocol, ip, port: Some(host_port), sandbox_port: port }, mode }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(service: u8, ip: Option<&str>) -> HostPort {
        let ip = ip.map(|ip| ip.parse().unwrap());
        HostPort {
            network: NetworkId::from_random([1; 16]),
            service: ServiceId::from_random([service; 16]),
            published: PublishedPort {
                protocol: TCP,
                host_port: 8080,
                port: 80,
                ip,
                is_local: false,
            },
        }
    }

    fn lead(older: Option<&str>) -> Lead {
        let older = older.map(|name| name.parse().unwrap());
        Lead { vips: vec![[10, 0, 0, 9].into()], clients: Clients::default(), older }
    }

    fn held() -> Held {
        publish::hold(Protocol::Tcp, Some([127, 0, 0, 1].into()), None).unwrap()
    }

    /// Its connections know the uplink's port, whatever became of the others meanwhile.
    #[test]
    fn a_port_leads_by_the_same_port_of_the_uplink_after_a_start() {
        let (one, two) = (port(2, Some("10.0.0.1")), port(1, Some("10.0.0.2")));
        let mut ports = HostPorts::default();
        let mut taken = BTreeSet::new();
        for it in [&one, &two] {
            assert!(ports.put(it.clone(), lead(None), Ok(held()), &mut taken));
        }
        let inner = |ports: &HostPorts| ports.led().iter().map(|it| it.inner).collect::<Vec<_>>();
        assert_eq!(inner(&ports), [1, 8080], "in the order of services; the first came later");
        let led = ports.led();
        let wanted = BTreeMap::from([(two.clone(), lead(None)), (port(3, None), lead(None))]);
        let mut next = HostPorts::default();
        next.adopt(wanted.clone(), led);
        assert_eq!(inner(&next), [1], "what did not lead before is still to be held");
        assert_eq!(next.due(&wanted), [two, port(3, None)]);
    }

    #[test]
    fn an_older_service_has_the_port_and_other_clients_do_not_give_it_up() {
        let one = port(1, None);
        let mut ports = HostPorts::default();
        ports.put(one.clone(), lead(None), Ok(held()), &mut BTreeSet::new());
        let deny = vec!["10.0.0.0/8".parse().unwrap()];
        let clients = Clients { allow: Vec::new(), deny };
        let narrow = BTreeMap::from([(one.clone(), Lead { clients, ..lead(None) })]);
        assert_eq!(ports.release(&narrow), [one.network].into());
        assert!(ports.due(&narrow).is_empty() && ports.led().len() == 1);
        assert!(ports.release(&narrow).is_empty());
        let younger = BTreeMap::from([(one.clone(), lead(Some("web")))]);
        assert_eq!(ports.release(&younger), [one.network].into());
        assert_eq!(ports.due(&younger), std::slice::from_ref(&one));
        let missing = lead(Some("web")).missing().unwrap();
        assert!(!ports.put(one, lead(Some("web")), Err(missing), &mut BTreeSet::new()));
        assert!(ports.led().is_empty() && ports.taken().len() == 1);
        // One of another host's address is nobody's fault.
        let two = port(2, Some("192.0.2.1"));
        ports.put(two, lead(None), Err(Missing::Elsewhere), &mut BTreeSet::new());
        assert_eq!(ports.taken().len(), 1);
    }

    #[test]
    fn one_that_leads_into_a_network_in_vain_is_not_open() {
        let one = port(1, None);
        let mut ports = HostPorts::default();
        ports.put(one.clone(), lead(None), Ok(held()), &mut BTreeSet::new());
        let row = |ports: &HostPorts| (ports.row(&one).state, ports.row(&one).why);
        assert_eq!(row(&ports), ("open".to_owned(), None));
        ports.note_shut([(NetworkId::from_random([2; 16]), "other".to_owned())].into());
        assert_eq!(row(&ports), ("open".to_owned(), None));
        ports.note_shut([(one.network, "no address".to_owned())].into());
        let why = "its port does not lead into its network: no address".to_owned();
        assert_eq!(row(&ports), ("faulty".to_owned(), Some(why)));
        assert_eq!(ports.taken(), [(one.service, Missing::Shut("no address".to_owned()))]);
        assert_eq!(ports.led().len(), 1, "it is held all the same");
    }
}
