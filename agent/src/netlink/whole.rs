//! What of a network's side of this host is not as it should be, and how it is put back: somebody
//! took a link down, deleted it, pulled it out of the bridge, flushed the bridge's table, changed a
//! setting.
//!
//! Looking changes nothing, so that what the kernel says of a change (`super::watch`) is not
//! answered with another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressHeaderFlags, AddressMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteMessage,
};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr},
    lb::service_mac,
};

use super::{
    link::{Link, LinkError, Links, listed},
    netns::Netns,
    overlay::{
        BRIDGE, BRIDGE_SETTINGS, IPV4_SETTINGS, LOOPBACK, NODE, NODE_PORT, NodePlug, Overlay,
        OverlayError, Plug, SWITCHED_SETTINGS, TAP, TAP_MTU, forwards, port_name,
    },
    policy::PolicyRule,
    route::{Route, address_of, is_default, is_main, local_address, route_of, router_of},
    settings::Settings,
};
use crate::gateway::uplink::INSIDE;

/// Interfaces by which a network's namespace forwards, where they are.
const ROUTERS: [&str; 3] = [BRIDGE, NODE, INSIDE];

/// The links, addresses and routes of a namespace at one moment.
#[derive(Clone, Debug)]
pub struct State {
    links: Vec<Link>,
    /// And whether they are there for good.
    addresses: Vec<(u32, IpNet, bool)>,
    /// The unicast routes of the main table.
    pub routes: Vec<Route>,
    defaults: Vec<(bool, Option<IpAddr>, Option<u32>)>,
    /// What the kernel takes for addresses of its own.
    local: BTreeSet<IpAddr>,
}

impl State {
    /// That of now.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn of(links: &Links) -> Result<Self, LinkError> {
        let dump = || links.handle.address().get().execute();
        let addresses = listed("the addresses", dump).await?;
        let address = |message: &AddressMessage| {
            Some((message.header.index, address_of(message)?, lasts(message.header.flags)))
        };
        let (mut routes, mut defaults, mut local) = (Vec::new(), Vec::new(), BTreeSet::new());
        for ipv4 in [true, false] {
            let found = links.every_route(ipv4).await?;
            let default = |route: &RouteMessage| {
                let (router, interface) = router_of(route);
                (ipv4, router, interface)
            };
            defaults.extend(found.iter().filter(|route| is_default(route)).map(default));
            routes.extend(found.iter().filter(|route| is_main(route)).filter_map(route_of));
            local.extend(found.iter().filter_map(local_address));
        }
        Ok(Self {
            links: links.list().await?,
            addresses: addresses.iter().filter_map(address).collect(),
            routes,
            defaults,
            local,
        })
    }

    /// Every interface.
    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    /// Knows nothing of an interface any more.
    pub(super) fn overlook(&mut self, name: &str) {
        self.links.retain(|link| link.name != name);
    }

    /// An interface.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Whether an interface has an address, and the kernel takes what is for it. To its addresses
    /// of IPv6 the kernel makes such routes a moment later, so they are not asked for.
    #[must_use]
    pub fn has_address(&self, link: &Link, address: &IpNet) -> bool {
        let taken = address.addr().is_ipv6() || self.local.contains(&address.addr());
        taken && self.addresses_of(link).any(|it| it == *address)
    }

    /// The same, and it stays.
    pub(super) fn has_lasting_address(&self, link: &Link, address: &IpNet) -> bool {
        self.has_address(link, address) && self.addresses.contains(&(link.index, *address, true))
    }

    /// The addresses of an interface.
    pub(super) fn addresses_of(&self, link: &Link) -> impl Iterator<Item = IpNet> {
        let of =
            |(index, address, _): &(u32, IpNet, bool)| (*index == link.index).then_some(*address);
        self.addresses.iter().filter_map(of)
    }

    /// Whether there is a route to here by an interface.
    #[must_use]
    pub fn has_route(&self, link: &Link, to: IpNet) -> bool {
        self.routes.iter().any(|it| it.interface == Some(link.index) && it.destination == to)
    }

    /// Whether one by an interface to an address leads there with this source, where that is an
    /// address of the namespace.
    fn has_route_from(&self, link: &Link, source: Option<IpAddr>, to: IpAddr) -> bool {
        let source = source.filter(|ip| self.local.contains(ip));
        let mut there = self.routes.iter().filter(|it| it.destination == IpNet::from(to));
        there
            .any(|it| it.interface == Some(link.index) && (source.is_none() || it.source == source))
    }

    /// Whether the route is missing that the kernel makes with an address.
    fn lacks_route(&self, link: &Link, address: &IpNet) -> bool {
        address.prefix_len() < address.max_prefix_len() && !self.has_route(link, address.trunc())
    }

    /// Whether there is a default route by this router on an interface.
    #[must_use]
    pub fn leads(&self, link: &Link, router: IpAddr) -> bool {
        self.defaults.contains(&(router.is_ipv4(), Some(router), Some(link.index)))
    }

    /// Whether there is a default route of an IP version.
    pub(super) fn leads_on(&self, ipv4: bool) -> bool {
        self.defaults.iter().any(|(is_ipv4, ..)| *is_ipv4 == ipv4)
    }
}

/// What shall be in a network's namespace beside the bridge.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// This node as an endpoint.
    pub node: Option<NodePlug>,
    /// The endpoints that are plugged in, and their MACs.
    pub ports: Vec<(EndpointId, MacAddr)>,
    /// Those of them whose cables nobody here can lay again: they end with their ports.
    pub lent: BTreeSet<EndpointId>,
    /// Whether there is a TAP.
    pub tap: bool,
}

/// What is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// In words.
    pub said: Vec<String>,
    /// There is no TAP: only who carries the frames can open one.
    pub tap_gone: bool,
    /// Endpoints without a port: their cables are gone.
    pub unplugged: BTreeSet<EndpointId>,
    policy: Vec<PolicyRule>,
    settings: bool,
    bridge: bool,
    tap: bool,
    node: bool,
    ports: BTreeMap<EndpointId, MacAddr>,
}

impl Faults {
    /// Whether all is as it should be.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.said.is_empty()
    }

    fn say(&mut self, what: impl Into<String>) -> bool {
        self.said.push(what.into());
        true
    }
}

/// A port of the bridge as it shall be.
struct Port<'a> {
    name: &'a str,
    mtu: u16,
    flood: bool,
    mac: Option<MacAddr>,
}

impl Overlay {
    /// Looks for what is not as it should be.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn faults(&self, state: &State, wanted: &Wanted) -> Result<Faults, OverlayError> {
        let fdb = fdb(&self.links).await?;
        let fdb: BTreeSet<_> = fdb.into_iter().map(|(port, mac, _state)| (port, mac)).collect();
        let policy = self.links.missing_policy_rules().await?;
        let mut faults = Faults { policy, ..Faults::default() };
        for rule in faults.policy.clone() {
            faults.say(format!("{rule} is gone"));
        }
        for what in self.setting_faults()? {
            faults.settings = faults.say(what);
        }
        for what in self.bridge_faults(state, wanted) {
            faults.bridge = faults.say(what);
        }
        let bridge = state.link(BRIDGE).map(|link| link.index);
        if bridge.is_some_and(|index| !fdb.contains(&(index, self.spec.gateway_mac))) {
            faults.bridge = faults.say(format!("{BRIDGE} does not know its own MAC address"));
        }
        let port_fault = |port: &Port<'_>| port_fault(state, bridge, &fdb, port);
        if wanted.tap {
            let tap = Port { name: TAP, mtu: TAP_MTU, flood: true, mac: None };
            if let Some(what) = port_fault(&tap) {
                faults.tap = faults.say(what);
                faults.tap_gone = state.link(TAP).is_none();
            }
        }
        if let Some(node) = &wanted.node {
            let mac = Some(node.mac);
            let port = Port { name: NODE_PORT, mtu: self.spec.mtu, flood: false, mac };
            let fault = match port_fault(&port).or_else(|| node_fault(state, (node, self.spec.mtu)))
            {
                None => self.vip_fault(node).await?,
                some => some,
            };
            if let Some(what) = fault {
                faults.node = faults.say(what);
            }
        }
        for (id, mac) in &wanted.ports {
            let name = port_name(*id);
            let port = Port { name: &name, mtu: self.port_mtu(), flood: false, mac: Some(*mac) };
            let is_there = state.link(&name).is_some();
            if !is_there && wanted.lent.contains(id) {
                continue;
            }
            let Some(what) = port_fault(&port) else { continue };
            faults.say(what);
            if is_there {
                faults.ports.insert(*id, *mac);
            } else {
                faults.unplugged.insert(*id);
            }
        }
        Ok(faults)
    }

    /// Puts back what is not as it should be, but for what only others can: see [`Faults`]. What
    /// fails keeps nothing else away.
    ///
    /// # Errors
    /// The kernel refuses a step; this is the first.
    pub async fn mend(&self, faults: &Faults, wanted: &Wanted) -> Result<(), OverlayError> {
        self.links.look_away();
        let mut done = Ok(());
        for rule in &faults.policy {
            let added = self.links.add_policy_rule(*rule).await.map_err(OverlayError::from);
            done = done.and(added);
        }
        if faults.bridge || faults.settings {
            done = done.and(self.furnish().await);
        }
        if faults.bridge {
            done = done.and(self.address_bridge(wanted).await);
        }
        if faults.tap && !faults.tap_gone {
            done = done.and(self.set_tap().await);
        }
        if let Some(node) = wanted.node.as_ref().filter(|_| faults.node) {
            done = done.and(self.mend_node(node).await);
        }
        for (id, mac) in &faults.ports {
            done = done.and(self.set_endpoint_port(&port_name(*id), *mac).await);
        }
        if faults.settings {
            // Once all interfaces are there.
            let set = self.set_interfaces();
            done = done.and(set);
        }
        done
    }

    /// Routes that the kernel made with an address come back with it.
    async fn address_bridge(&self, wanted: &Wanted) -> Result<(), OverlayError> {
        self.links.set_addresses(BRIDGE, &[]).await?;
        let own = wanted.node.as_ref().map(|node| node.ips.as_slice());
        self.route_by_bridge(own.unwrap_or_default()).await
    }

    /// The same.
    async fn mend_node(&self, node: &NodePlug) -> Result<(), OverlayError> {
        if self.links.get(NODE).await?.is_some() {
            self.links.set_addresses(NODE, &[]).await?;
        }
        self.set_node(node).await
    }

    /// What the namespace has.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn state(&self) -> Result<State, OverlayError> {
        Ok(State::of(&self.links).await?)
    }

    /// Whether an endpoint's cable leads into its sandbox, or nothing if it has none.
    ///
    /// # Errors
    /// The sandbox cannot be entered, or the kernel does not answer.
    pub async fn is_plugged(&self, plug: &Plug) -> Result<Option<bool>, OverlayError> {
        let Some(port) = self.links.get(&port_name(plug.id)).await? else { return Ok(None) };
        // Where its end is now only its mover knows.
        let Some(netns) = &plug.netns else { return Ok(Some(true)) };
        let inside = Links::open(&Netns::open(netns)?)?.list().await?;
        let inner = |link: &Link| port.peer == Some(link.index) && link.peer == Some(port.index);
        Ok(Some(inside.iter().any(inner)))
    }

    /// Whether the namespace has its pin.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.netns.is_at(&self.path)
    }

    /// The namespace's interfaces.
    #[must_use]
    pub const fn links(&self) -> &Links {
        &self.links
    }

    /// Makes the pin anew that somebody took away: without it nothing would keep the namespace when
    /// the agent ends. Whether it was missing.
    ///
    /// # Errors
    /// The rights are missing.
    pub fn pin_again(&self) -> Result<bool, OverlayError> {
        if self.is_pinned() {
            return Ok(false);
        }
        self.netns.pin(&self.path)?;
        Ok(true)
    }

    /// An address of a service that the node does not know the MAC of.
    async fn vip_fault(&self, node: &NodePlug) -> Result<Option<String>, OverlayError> {
        if node.vips.is_empty() {
            return Ok(None);
        }
        let known = self.links.permanent_neighbors(NODE).await?;
        let lost = |vip: &&IpAddr| known.get(vip) != Some(&service_mac(self.spec.id));
        let lost = node.vips.iter().find(lost);
        Ok(lost.map(|vip| format!("{NODE} does not know who has {vip}")))
    }

    fn bridge_faults(&self, state: &State, wanted: &Wanted) -> Vec<String> {
        let Some(bridge) = state.link(BRIDGE) else {
            return vec![format!("{BRIDGE} is gone")];
        };
        let mut said = Vec::new();
        for link in state.links.iter().filter(|it| [BRIDGE, LOOPBACK].contains(&it.name.as_str())) {
            if !link.up {
                said.push(format!("{} is down", link.name));
            }
        }
        if bridge.mac != Some(self.spec.gateway_mac) || bridge.mtu != u32::from(self.spec.mtu) {
            said.push(format!("{BRIDGE} has another MAC address or MTU"));
        }
        let own = wanted.node.as_ref().map(|node| node.ips.as_slice());
        for address in self.bridge_addresses(own.unwrap_or_default()) {
            if !state.has_address(bridge, &address) {
                said.push(format!("{BRIDGE} has lost {address}"));
            } else if state.lacks_route(bridge, &address) {
                said.push(format!("{BRIDGE} has lost its route to {}", address.trunc()));
            }
        }
        said
    }

    /// Settings of the namespace that are not as they should be. Of most of them the kernel tells
    /// nobody.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn setting_faults(&self) -> io::Result<Vec<String>> {
        let mut settings = self.settings();
        let fixed = BRIDGE_SETTINGS.into_iter().chain(SWITCHED_SETTINGS);
        settings.extend(fixed.map(|(path, value)| (path.to_owned(), value)));
        settings.extend(self.interface_settings());
        // Not every kernel has all of them.
        let changed = self.netns.run(|| {
            let mut kernel = Settings::default();
            settings.retain(|(path, value)| kernel.is(path, value) == Some(false));
            Ok(settings)
        })?;
        Ok(changed.iter().map(|(path, _)| format!("the setting net/{path} was changed")).collect())
    }

    /// What the settings of single interfaces shall be: those of the namespace, which they took
    /// when they were made.
    pub(super) fn interface_settings(&self) -> Vec<(String, &'static str)> {
        let forwards = forwards(&self.spec);
        let of = |name: &str| {
            let mut settings = vec![
                (format!("ipv4/conf/{name}/forwarding"), forwards),
                (format!("ipv6/conf/{name}/forwarding"), forwards),
            ];
            let fixed = IPV4_SETTINGS.into_iter();
            settings.extend(fixed.map(|(it, value)| (format!("ipv4/conf/{name}/{it}"), value)));
            settings
        };
        ROUTERS.into_iter().flat_map(of).collect()
    }

    /// Writes them where somebody changed them.
    pub(super) fn set_interfaces(&self) -> Result<(), OverlayError> {
        Ok(self.netns.run(|| {
            let mut kernel = Settings::default();
            let settings = self.interface_settings();
            settings.iter().try_for_each(|(path, value)| kernel.set_if_there(path, value))
        })?)
    }
}

/// The entries of bridges' tables that are of no VLAN: port, MAC, and of what kind.
pub(super) async fn fdb(links: &Links) -> Result<Vec<(u32, MacAddr, NeighbourState)>, LinkError> {
    let dump = || {
        let neighbours = links.handle.neighbours().get();
        neighbours.set_address_family(AddressFamily::Bridge).execute()
    };
    let found = listed("the bridge's table", dump).await?;
    Ok(found.iter().filter_map(entry_of).collect())
}

fn entry_of(message: &NeighbourMessage) -> Option<(u32, MacAddr, NeighbourState)> {
    let (mut mac, mut of_bridge) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(it) => mac = it.as_slice().try_into().ok(),
            NeighbourAttribute::Controller(_) => of_bridge = true,
            // Frames here have no tag: an entry of a VLAN leads none of them.
            NeighbourAttribute::Vlan(_) => return None,
            _ => {}
        }
    }
    // Those of the port itself are others.
    of_bridge |= message.header.flags.contains(NeighbourFlags::Controller);
    let entry = (message.header.ifindex, MacAddr(mac?), message.header.state);
    of_bridge.then_some(entry)
}

/// Whether an address stays, was not refused, and is one to begin connections from.
fn lasts(flags: AddressHeaderFlags) -> bool {
    let refused = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let unused = AddressHeaderFlags::Deprecated;
    flags.contains(AddressHeaderFlags::Permanent) && !flags.intersects(refused | unused)
}

fn port_fault(
    state: &State,
    bridge: Option<u32>,
    fdb: &BTreeSet<(u32, MacAddr)>,
    port: &Port<'_>,
) -> Option<String> {
    let name = port.name;
    let Some(link) = state.link(name) else { return Some(format!("{name} is gone")) };
    if !link.up {
        return Some(format!("{name} is down"));
    }
    if link.master.is_none() || link.master != bridge {
        return Some(format!("{name} is out of {BRIDGE}"));
    }
    if link.mtu != u32::from(port.mtu) || link.port.is_some_and(|is| is != (false, port.flood)) {
        return Some(format!("{name} has other settings"));
    }
    let known = port.mac.is_none_or(|mac| fdb.contains(&(link.index, mac)));
    (!known).then(|| format!("{BRIDGE} does not know who is behind {name}"))
}

fn node_fault(state: &State, (wanted, mtu): (&NodePlug, u16)) -> Option<String> {
    let Some(node) = state.link(NODE) else { return Some(format!("{NODE} is gone")) };
    if !node.up || node.mac != Some(wanted.mac) {
        return Some(format!("{NODE} is down or has another MAC address"));
    }
    if node.mtu != u32::from(mtu) {
        return Some(format!("{NODE} has another MTU"));
    }
    let lost = |ip: &&IpNet| !state.has_address(node, ip) || state.lacks_route(node, ip);
    if let Some(ip) = wanted.ips.iter().find(lost) {
        return Some(format!("{NODE} has lost {ip}, or its route"));
    }
    let lost = |vip: &&IpAddr| !state.has_route_from(node, wanted.error_source(**vip), **vip);
    Some(format!("{NODE} has lost its route to {}", wanted.vips.iter().find(lost)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_entry_without_a_vlan_leads_frames() {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        message.header.state = NeighbourState::Noarp;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
            NeighbourAttribute::Controller(1),
        ];
        let entry = (3, MacAddr([2, 0, 0, 0, 0, 1]), NeighbourState::Noarp);
        assert_eq!(entry_of(&message), Some(entry));
        message.attributes.push(NeighbourAttribute::Vlan(7));
        assert_eq!(entry_of(&message), None);
    }

    #[test]
    fn an_address_that_is_not_used_for_connections_is_written_again() {
        let kept = AddressHeaderFlags::Permanent;
        assert!(lasts(kept));
        for not in [AddressHeaderFlags::Deprecated, AddressHeaderFlags::Tentative] {
            assert!(!lasts(kept | not), "{not:?}");
        }
    }
}
