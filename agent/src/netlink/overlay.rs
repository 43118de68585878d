//! This host's side of one network: a network namespace with a bridge and a TAP, and the cables of
//! its endpoints.
//!
//! ```text
//! <run dir>/netns/<network id, 12 digits>      br0   gateway MAC and addresses, no learning on its ports
//!                                              tap0  the agent; takes frames for addresses unknown here
//!                                              v...  one per endpoint; the other end is in the sandbox
//!                                              node0 this node as an endpoint; its other end, nodep, is on br0
//!                                              uplink0  the way to the host (`crate::gateway::uplink`)
//! ```
//!
//! Every step finds what is there and brings it to the wanted state, so a restarted agent adopts
//! what the last one left (I9), and a failed attachment is undone (I8). The host's own rules and
//! routes do not reach into the namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use thiserror::Error;
use tracing::debug;
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId},
    lb::service_mac,
};

use super::{
    announce::announce,
    link::{Link, LinkError, Links},
    look::Look,
    netns::{Netns, NetnsError},
    settings::Settings,
};
use crate::{
    datapath::{backend::Backend, device::Device, steering::Queues},
    gateway::uplink::INSIDE,
};

/// The bridge.
pub(super) const BRIDGE: &str = "br0";
/// The loopback interface.
pub(super) const LOOPBACK: &str = "lo";
/// The TAP.
pub const TAP: &str = "tap0";
/// This node's own interface in the network, from which the host's and routed packets come.
pub const NODE: &str = "node0";
/// Its other end, a port of the bridge.
pub(super) const NODE_PORT: &str = "nodep";
/// MTU of ports that lead to sandboxes. It is larger than the network's: what a sandbox sends
/// though it is too large for the network comes in, and is answered by the gateway or by the agent.
/// The kernel would drop it without a word. It is the largest with which a sandbox can attach a
/// native XDP program to its interface (`veth_xdp_set`): a page of 4096 bytes less 256 of headroom,
/// 320 for the kernel's notes, an Ethernet header, and 2 where headers are aligned.
const PORT_MTU: u16 = 4096 - 256 - 320 - 14 - 2;
/// That of the ports of a network whose own is larger, the largest of a veth.
const LARGE_PORT_MTU: u16 = u16::MAX;
/// The largest of a TAP: with the Ethernet header it is 65535.
pub(super) const TAP_MTU: u16 = u16::MAX - 14;
/// The bridge's name for firewalls.
pub const GATEWAY: &str = BRIDGE;
/// `IFNAMSIZ` of linux/if.h, without the zero at the end.
const IFNAME_LEN: usize = 15;
/// Gateway and node are two interfaces of one host on one link: each answers ARP for its own
/// addresses only and asks with one of its own, a packet may come in by one and be answered by the
/// other, and nobody is sent elsewhere. What is for a group on the link is for no single address
/// (RFC 1122 section 3.3.6).
pub(super) const IPV4_SETTINGS: [(&str, &str); 5] = [
    ("arp_ignore", "1"),
    ("arp_announce", "2"),
    ("rp_filter", "0"),
    ("send_redirects", "0"),
    ("drop_unicast_in_l2_multicast", "1"),
];
/// The bridge speaks IPv6 by the gateway's addresses alone, and at once.
pub(super) const BRIDGE_SETTINGS: [(&str, &str); 3] = [
    ("ipv6/conf/br0/addr_gen_mode", "1"),
    ("ipv6/conf/br0/accept_dad", "0"),
    ("ipv6/conf/br0/disable_ipv6", "0"),
];
/// Frames that are switched are no business of the rules for packets here. Not every kernel has
/// these, and a module that is loaded brings them later, set for every namespace.
pub(super) const SWITCHED_SETTINGS: [(&str, &str); 3] = [
    ("bridge/bridge-nf-call-arptables", "0"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
];
/// Settings of an interface about IPv6 that are set before it comes up, in this order.
const IPV6_SETTINGS: [&str; 4] = ["addr_gen_mode", "accept_dad", "accept_ra", "disable_ipv6"];
/// Interfaces that are tried when none is named: `eth0` to `eth63`.
pub(super) const IFNAMES: u32 = 64;

/// Why the host's side of a network is not as it should be.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// An interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A setting, or the TAP.
    #[error("cannot set up the network's namespace: {0}")]
    Io(#[from] io::Error),
    /// The TAP cannot be made.
    #[error(
        "cannot make the network's TAP: {0}; is /dev/net/tun there, and does no other agent hold the network?"
    )]
    Tap(#[source] io::Error),
    /// Someone wants the network's own namespace, or the host's, as a sandbox.
    #[error(
        "{0} is not a sandbox: an endpoint cannot be plugged into the host's or the network's own namespace"
    )]
    NotASandbox(PathBuf),
    /// No interface can have this name.
    #[error(
        "`{0}` is not a name for an interface: use 1 to {IFNAME_LEN} characters without space, / and :, and not `all` or `default`"
    )]
    Ifname(String),
    /// The interface name is in use.
    #[error("there is already an interface {0} in the sandbox: choose another with --ifname")]
    Taken(String),
    /// All default names are in use.
    #[error("eth0 to eth63 are in use in the sandbox: choose a name with --ifname")]
    NoName,
}

impl OverlayError {
    /// Whether the sandbox is known to be gone; any other error says nothing about it.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Netns(error) if error.is_absence())
    }
}

/// What the host's side of a network looks like.
#[derive(Clone, Debug)]
pub struct OverlaySpec {
    /// The network.
    pub id: NetworkId,
    /// MAC of the anycast gateway.
    pub gateway_mac: MacAddr,
    /// Its addresses with the length of the subnet's prefix.
    pub gateways: Vec<IpNet>,
    /// MTU inside.
    pub mtu: u16,
    /// Whether the gateway leads anywhere.
    pub routed: bool,
}

/// What an endpoint looks like.
#[derive(Clone, Debug)]
pub struct Plug {
    /// The endpoint.
    pub id: EndpointId,
    /// The sandbox's namespace. Without one the inner end of the cable stays on the host until
    /// somebody moves it, who gives it its addresses and routes, too.
    pub netns: Option<PathBuf>,
    /// The interface in the sandbox; the first free `ethN` without.
    pub ifname: Option<String>,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses with the length of the subnet's prefix.
    pub ips: Vec<IpNet>,
    /// Whether it brings a default route to a sandbox that has none.
    pub default_route: bool,
}

impl Plug {
    /// The namespace that it is plugged into.
    ///
    /// # Errors
    /// It has none, or it is not there any more.
    pub(super) fn open(&self) -> Result<(Netns, PathBuf), OverlayError> {
        let path = self.netns.clone().unwrap_or_default();
        Ok((Netns::open(&path)?, path))
    }
}

/// What this node looks like as an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlug {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses with the length of the subnet's prefix; where it has one, it routes by it.
    pub ips: Vec<IpNet>,
    /// Addresses of services in subnets in which it has none: nobody could be asked who has them.
    pub vips: BTreeSet<IpAddr>,
    /// Addresses of the namespace's way to the host. As one of these its kernel sends ICMP errors
    /// to services: it would take the gateway's, as which nobody may speak.
    pub error_sources: Vec<IpAddr>,
}

impl NodePlug {
    /// Whether it has nothing to do in the network.
    #[must_use]
    pub fn leads_nowhere(&self) -> bool {
        self.ips.is_empty() && self.vips.is_empty()
    }

    /// The source of ICMP errors to a service.
    pub(super) fn error_source(&self, vip: IpAddr) -> Option<IpAddr> {
        self.error_sources.iter().copied().find(|ip| ip.is_ipv4() == vip.is_ipv4())
    }
}

/// This host's side of one network.
#[derive(Debug)]
pub struct Overlay {
    pub(super) spec: OverlaySpec,
    pub(super) path: PathBuf,
    pub(super) netns: Netns,
    pub(super) links: Links,
}

impl Overlay {
    /// Makes the namespace and the bridge, or adopts and mends what is there.
    ///
    /// # Errors
    /// The rights are missing or the kernel refuses a step; a namespace that was made for it is
    /// gone again.
    pub async fn ensure(run_dir: &Path, spec: OverlaySpec) -> Result<Self, OverlayError> {
        let path = path_of(run_dir, spec.id);
        let fresh = Netns::open(&path).is_err();
        let netns = Netns::create(&path)?;
        let built = Self::build(spec, path.clone(), (netns, fresh)).await;
        if built.is_err() && fresh {
            Netns::remove(&path)?;
        }
        built
    }

    async fn build(
        spec: OverlaySpec,
        path: PathBuf,
        (netns, fresh): (Netns, bool),
    ) -> Result<Self, OverlayError> {
        let overlay = if fresh {
            let links = Links::open(&netns)?;
            Self { spec, path, netns, links }
        } else {
            Self::found(spec, path, netns).await?
        };
        overlay.furnish().await?;
        if overlay.links.get(NODE).await?.is_none() {
            overlay.route_by_bridge(&[]).await?;
        }
        Ok(overlay)
    }

    /// One of the agent's last life: what of it is as it shall be is not written again, until
    /// [`trust_no_more`](Self::trust_no_more).
    async fn found(spec: OverlaySpec, path: PathBuf, netns: Netns) -> Result<Self, OverlayError> {
        let wanted = wanted_settings(&spec).into_iter().map(|(path, _)| path);
        let ends = [NODE, INSIDE].into_iter();
        let of_ends = ends.flat_map(|end| IPV6_SETTINGS.map(|it| format!("ipv6/conf/{end}/{it}")));
        let paths = wanted.chain(of_ends);
        let (links, settings) = Links::open_and(&netns, || Settings::of(paths))?;
        links.look_at_bridge(settings).await?;
        Ok(Self { spec, path, netns, links })
    }

    /// Ends the take-over of what the agent's last life left: from now on every step asks the
    /// kernel how it is.
    pub fn trust_no_more(&self) {
        self.links.look_away();
    }

    /// Settings and bridge.
    pub(super) async fn furnish(&self) -> Result<(), OverlayError> {
        let Self { spec, links, .. } = self;
        let settings = self.settings();
        let is_set = links.sees_settings(&settings) && links.sees(Look::shows_packets_no_frames);
        if !is_set {
            links.look_away();
            self.netns.run(|| {
                let mut kernel = Settings::default();
                settings.iter().try_for_each(|(path, value)| kernel.set(path, value))?;
                let mut switched = SWITCHED_SETTINGS.into_iter();
                switched.try_for_each(|(path, value)| kernel.set_if_there(path, value))
            })?;
        }
        links.bring_up(LOOPBACK).await?;
        links.create_bridge(BRIDGE, spec.gateway_mac, spec.mtu).await?;
        links.set_own_fdb(BRIDGE, spec.gateway_mac).await?;
        self.set_all(&BRIDGE_SETTINGS.map(|(path, value)| (path.to_owned(), value)))
    }

    /// Writes settings of the namespace, if it was not found to have these.
    fn set_all(&self, settings: &[(String, &'static str)]) -> Result<(), OverlayError> {
        if self.links.sees_settings(settings) {
            return Ok(());
        }
        self.links.look_away();
        Ok(self.netns.run(|| {
            let mut kernel = Settings::default();
            settings.iter().try_for_each(|(path, value)| kernel.set(path, value))
        })?)
    }

    /// What the namespace's settings shall be.
    pub(super) fn settings(&self) -> Vec<(String, &'static str)> {
        settings_of(&self.spec)
    }

    /// Gives the bridge the gateway's addresses; it leads to the subnets in which this node has no
    /// address of its own.
    pub(super) async fn route_by_bridge(&self, own: &[IpNet]) -> Result<(), OverlayError> {
        Ok(self.links.set_addresses(BRIDGE, &self.bridge_addresses(own)).await?)
    }

    pub(super) fn bridge_addresses(&self, own: &[IpNet]) -> Vec<IpNet> {
        let address = |gateway: &IpNet| {
            let elsewhere = own.iter().any(|ip| ip.contains(&gateway.addr()));
            if elsewhere { IpNet::from(gateway.addr()) } else { *gateway }
        };
        self.spec.gateways.iter().map(address).collect()
    }

    /// Plugs this node in as an endpoint; mends what is there.
    ///
    /// # Errors
    /// The kernel refuses a step.
    pub async fn set_node(&self, node: &NodePlug) -> Result<(), OverlayError> {
        let mac = node.mac;
        if self.links.get(NODE).await?.is_none_or(|node| node.mac != Some(mac)) {
            self.links.delete(NODE).await?;
            self.links.create_veth(NODE_PORT, (NODE, mac), &self.netns, self.spec.mtu).await?;
        }
        self.links.set_port(NODE_PORT, BRIDGE, false).await?;
        self.links.set_fdb(NODE_PORT, mac).await?;
        self.links.set_up(NODE_PORT, self.spec.mtu).await?;
        // Without its MTU it may have no settings of IPv6; before it is up it has not chosen an
        // address.
        self.links.set_mtu(NODE, self.spec.mtu).await?;
        let settings = IPV6_SETTINGS.map(|it| (format!("ipv6/conf/{NODE}/{it}"), "0"));
        self.set_all(&settings)?;
        self.links.set_up(NODE, self.spec.mtu).await?;
        self.links.set_addresses(NODE, &node.ips).await?;
        self.route_by_bridge(&node.ips).await?;
        self.lead_to_vips(node).await
    }

    /// Takes this node's interface away. Whether there was one.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn remove_node(&self) -> Result<bool, OverlayError> {
        let there = self.links.get(NODE).await?.is_some();
        if there {
            self.links.delete(NODE).await?;
            self.route_by_bridge(&[]).await?;
        }
        Ok(there)
    }

    /// Leads to these addresses of services by the node's interface, and to no others.
    async fn lead_to_vips(&self, node: &NodePlug) -> Result<(), OverlayError> {
        let (vips, mac) = (&node.vips, service_mac(self.spec.id));
        let known = self.links.permanent_neighbors(NODE).await?;
        for vip in known.keys().filter(|vip| !vips.contains(vip)) {
            self.links.remove_route((*vip).into(), NODE).await?;
            self.links.remove_neighbor(NODE, *vip).await?;
        }
        for vip in vips {
            if known.get(vip) != Some(&mac) {
                self.links.set_neighbor(NODE, *vip, mac).await?;
            }
            self.links.set_route_from(node.error_source(*vip), *vip, NODE).await?;
        }
        Ok(())
    }

    /// The namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where the namespace is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the gateway these addresses, too. Whether there was a new one among them.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub async fn add_gateways(&mut self, gateways: Vec<IpNet>) -> Result<bool, OverlayError> {
        let mut added = false;
        for gateway in gateways {
            if !self.spec.gateways.contains(&gateway) {
                self.links.add_address(BRIDGE, gateway).await?;
                self.spec.gateways.push(gateway);
                added = true;
            }
        }
        Ok(added)
    }

    /// Opens the TAP as a port of the bridge, with up to so many queues. It ends with its
    /// descriptors, so there is one at a time.
    ///
    /// # Errors
    /// There is one already, or the kernel refuses it.
    pub async fn open_tap(
        &self,
        backend: Backend,
        queues: Queues,
    ) -> Result<Box<dyn Device>, OverlayError> {
        // One that was seen is that of an agent that was just ending.
        self.links.overlook(TAP);
        let tap = self.netns.run(|| backend.open(TAP, queues)).map_err(OverlayError::Tap)?;
        // The TAP has a queue of its own. Of those in front of it the kernel would make one for
        // each of the 256 queues that it may have.
        if let Err(error) = self.links.set_no_queue(TAP).await {
            debug!(%error, "the TAP has queues in front of it");
        }
        self.set_tap().await?;
        Ok(tap)
    }

    pub(super) async fn set_tap(&self) -> Result<(), OverlayError> {
        self.links.set_port(TAP, BRIDGE, true).await?;
        Ok(self.links.set_up(TAP, TAP_MTU).await?)
    }

    /// The endpoints whose cable is plugged in here.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn plugged(&self) -> Result<Vec<EndpointId>, OverlayError> {
        let links = self.links.known().await?;
        Ok(links.iter().filter_map(|link| link.alias.as_deref()?.parse().ok()).collect())
    }

    /// Plugs an endpoint into a sandbox and says under which name. A failure leaves nothing behind.
    /// An endpoint that is plugged in there already is mended and keeps its name; a cable of it
    /// that leads elsewhere is replaced.
    ///
    /// # Errors
    /// The sandbox is not one, the name is taken, or the kernel refuses a step.
    pub async fn attach(&self, plug: &Plug) -> Result<String, OverlayError> {
        if let Some(bad) = plug.ifname.as_ref().filter(|name| !is_ifname(name)) {
            return Err(OverlayError::Ifname(bad.clone()));
        }
        let Some(path) = &plug.netns else { return self.attach_free(plug).await };
        let sandbox = Netns::open(path)?;
        if sandbox.is(&self.netns) || sandbox.is(&Netns::current()?) {
            return Err(OverlayError::NotASandbox(path.clone()));
        }
        let (inside, settings) = Links::open_and(&sandbox, || {
            let settings = plug.ifname.iter().flat_map(|ifname| sandbox_settings(ifname));
            Settings::of(settings.map(|(path, _)| path))
        })?;
        let outer = port_name(plug.id);
        if let Some(ifname) = self.adopt(plug, &outer, (&inside, settings)).await? {
            self.configure(plug, &outer, &ifname, (&sandbox, &inside)).await?;
            return Ok(ifname);
        }
        let ifname = self.cable(plug, &outer, &sandbox, &inside).await?;
        match self.configure(plug, &outer, &ifname, (&sandbox, &inside)).await {
            Ok(()) => {
                announce(sandbox, &ifname, plug);
                Ok(ifname)
            }
            Err(error) => {
                // The first error is the one to tell; the cable is gone with either end.
                if let Err(undo) = self.links.delete(&outer).await {
                    debug!(%undo, "a half-made cable stays");
                }
                Err(error)
            }
        }
    }

    /// The endpoint's interface in the sandbox if its cable leads there; any other cable of it
    /// goes. What is as it shall be in the sandbox is not written again.
    async fn adopt(
        &self,
        plug: &Plug,
        outer: &str,
        (inside, settings): (&Links, BTreeMap<String, String>),
    ) -> Result<Option<String>, OverlayError> {
        let Some(port) = self.links.get(outer).await? else { return Ok(None) };
        inside.look(settings).await?;
        // Numbers are per namespace, so the MAC has the last word.
        let is_inner = |link: &Link| {
            port.peer == Some(link.index)
                && link.peer == Some(port.index)
                && link.mac == Some(plug.mac)
        };
        if let Some(inner) = inside.known().await?.into_iter().find(is_inner) {
            return Ok(Some(inner.name));
        }
        // With the cable goes what was seen of its end.
        inside.look_away();
        self.links.delete(outer).await?;
        Ok(None)
    }

    async fn cable(
        &self,
        plug: &Plug,
        outer: &str,
        sandbox: &Netns,
        inside: &Links,
    ) -> Result<String, OverlayError> {
        let tried = match &plug.ifname {
            Some(ifname) => vec![ifname.clone()],
            None => (0..IFNAMES).map(|n| format!("eth{n}")).collect(),
        };
        for ifname in tried {
            if inside.get(&ifname).await?.is_some() {
                continue;
            }
            match self.links.create_veth(outer, (&ifname, plug.mac), sandbox, self.spec.mtu).await {
                // Somebody took it in between.
                Err(error) if error.exists() => {}
                made => return Ok(made.map(|()| ifname)?),
            }
        }
        Err(plug.ifname.clone().map_or(OverlayError::NoName, OverlayError::Taken))
    }

    async fn configure(
        &self,
        plug: &Plug,
        outer: &str,
        ifname: &str,
        (sandbox, inside): (&Netns, &Links),
    ) -> Result<(), OverlayError> {
        self.links.set_alias(outer, &plug.id.to_string()).await?;
        self.set_endpoint_port(outer, plug.mac).await?;
        inside.bring_up(LOOPBACK).await?;
        // Nobody else has its addresses, the link-local one neither, so none waits until the link
        // was asked about it (RFC 4862 section 5.4): a program that starts now can bind to each.
        let [(accept_dad, no), (disable_ipv6, not)] = sandbox_settings(ifname);
        // Container engines switch IPv6 off where they give no address.
        let speaks_ipv6 = plug.ips.iter().any(|ip| ip.addr().is_ipv6());
        let mut settings = vec![(accept_dad.clone(), no)];
        settings.extend(speaks_ipv6.then(|| (disable_ipv6.clone(), not)));
        if !inside.sees_settings(&settings) {
            inside.look_away();
            sandbox.run(|| {
                let mut kernel = Settings::default();
                kernel.set_if_there(&accept_dad, no)?;
                if speaks_ipv6 { kernel.set(&disable_ipv6, not) } else { Ok(()) }
            })?;
        }
        inside.bring_up(ifname).await?;
        for ip in &plug.ips {
            inside.add_address(ifname, *ip).await?;
        }
        let leads = self.spec.routed && plug.default_route;
        for gateway in self.spec.gateways.iter().filter(|_| leads) {
            if self.reaches(plug, gateway.addr())
                && !inside.add_default_route(gateway.addr()).await?
            {
                debug!(endpoint = %plug.id, "the sandbox has a default route and keeps it");
            }
        }
        self.route_beside(plug, ifname, inside).await
    }

    /// MTU of ports that lead to sandboxes.
    pub(super) const fn port_mtu(&self) -> u16 {
        if self.spec.mtu <= PORT_MTU { PORT_MTU } else { LARGE_PORT_MTU }
    }

    pub(super) async fn set_endpoint_port(
        &self,
        port: &str,
        mac: MacAddr,
    ) -> Result<(), OverlayError> {
        self.links.set_port(port, BRIDGE, false).await?;
        self.links.show_groups(port).await?;
        self.links.set_fdb(port, mac).await?;
        Ok(self.links.set_up(port, self.port_mtu()).await?)
    }

    /// Leads a sandbox whose endpoint is plugged in to subnets that were added since.
    ///
    /// # Errors
    /// The sandbox is gone, or the kernel refuses a route.
    pub async fn follow(&self, plug: &Plug) -> Result<(), OverlayError> {
        let (Some(netns), Some(ifname)) = (&plug.netns, &plug.ifname) else { return Ok(()) };
        let inside = Links::open(&Netns::open(netns)?)?;
        // The number of a process may be another's by now.
        if inside.get(ifname).await?.is_some_and(|link| link.mac == Some(plug.mac)) {
            self.route_beside(plug, ifname, &inside).await?;
        }
        Ok(())
    }

    /// The network's other subnets are on the same link: no gateway is between.
    async fn route_beside(
        &self,
        plug: &Plug,
        ifname: &str,
        inside: &Links,
    ) -> Result<(), OverlayError> {
        for subnet in self.spec.gateways.iter().map(IpNet::trunc) {
            let same_version = |ip: &&IpNet| ip.addr().is_ipv4() == subnet.addr().is_ipv4();
            let mut own = plug.ips.iter().filter(same_version).peekable();
            if own.peek().is_some() && !own.any(|ip| subnet.contains(&ip.addr())) {
                inside.add_link_route(ifname, subnet).await?;
            }
        }
        Ok(())
    }

    fn reaches(&self, plug: &Plug, gateway: IpAddr) -> bool {
        plug.ips.iter().any(|ip| ip.contains(&gateway))
    }

    /// Takes nothing more from an endpoint; a cable that is not there is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn silence(&self, endpoint: EndpointId) -> Result<(), OverlayError> {
        Ok(self.links.take_down(&port_name(endpoint)).await?)
    }

    /// Takes nothing more from this node's own interface; none is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn silence_node(&self) -> Result<(), OverlayError> {
        Ok(self.links.take_down(NODE_PORT).await?)
    }

    /// Unplugs an endpoint; one that is not plugged in is fine.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn detach(&self, endpoint: EndpointId) -> Result<(), OverlayError> {
        Ok(self.links.delete(&port_name(endpoint)).await?)
    }

    /// Unplugs an endpoint of a network that a killed agent left and that could not be adopted;
    /// nothing there is fine.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn detach_left(
        run_dir: &Path,
        id: NetworkId,
        endpoint: EndpointId,
    ) -> Result<(), OverlayError> {
        match Netns::open(&path_of(run_dir, id)) {
            Ok(netns) => Ok(Links::open(&netns)?.delete(&port_name(endpoint)).await?),
            Err(error) if error.is_absence() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what a killed agent left of a network; nothing there is fine.
    ///
    /// # Errors
    /// The kernel keeps something.
    pub async fn sweep(run_dir: &Path, id: NetworkId) -> Result<(), OverlayError> {
        Self::sweep_path(&path_of(run_dir, id)).await
    }

    /// The same for a network of which only the pin of its namespace is known.
    ///
    /// # Errors
    /// As [`Self::sweep`].
    pub async fn sweep_path(path: &Path) -> Result<(), OverlayError> {
        match Netns::open(path) {
            Ok(netns) => clear(&Links::open(&netns)?).await?,
            // A pin without a namespace has no cables.
            Err(error) if error.is_absence() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Netns::remove(path)?)
    }

    /// Removes the namespace and everything in it. An open TAP would keep the namespace, unnamed,
    /// until it is closed.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn remove(self) -> Result<(), OverlayError> {
        clear(&self.links).await?;
        Ok(Netns::remove(&self.path)?)
    }
}

pub(super) const fn forwards(spec: &OverlaySpec) -> &'static str {
    if spec.routed { "1" } else { "0" }
}

/// What the settings of a network's namespace shall be.
fn settings_of(spec: &OverlaySpec) -> Vec<(String, &'static str)> {
    // A new namespace takes after the host, which forwards where Docker runs
    // (devconf_inherit_init_net).
    let forwards = forwards(spec);
    let mut settings = vec![
        ("ipv4/ip_forward".to_owned(), forwards),
        ("ipv6/conf/all/forwarding".to_owned(), forwards),
    ];
    for conf in ["all", "default"] {
        for (setting, value) in IPV4_SETTINGS {
            settings.push((format!("ipv4/conf/{conf}/{setting}"), value));
        }
    }
    // Only the bridge speaks IPv6, and only from the gateway's address: ports and TAP would
    // announce themselves.
    settings.push(("ipv6/conf/default/disable_ipv6".to_owned(), "1"));
    settings.push(("ipv6/conf/default/accept_ra".to_owned(), "0"));
    settings
}

/// Those of an endpoint's interface in its sandbox about IPv6: whether addresses wait until the
/// link was asked about them, and whether there are any.
fn sandbox_settings(ifname: &str) -> [(String, &'static str); 2] {
    ["accept_dad", "disable_ipv6"].map(|it| (format!("ipv6/conf/{ifname}/{it}"), "0"))
}

/// All settings of a network's namespace but those of single interfaces that come and go.
fn wanted_settings(spec: &OverlaySpec) -> Vec<(String, &'static str)> {
    let fixed = BRIDGE_SETTINGS.into_iter().chain(SWITCHED_SETTINGS);
    let fixed = fixed.map(|(path, value)| (path.to_owned(), value));
    settings_of(spec).into_iter().chain(fixed).collect()
}

/// Where the namespace of a network is.
pub fn path_of(run_dir: &Path, id: NetworkId) -> PathBuf {
    run_dir.join("netns").join(id.short())
}

/// Whatever else keeps the namespace, no sandbox keeps an interface that leads nowhere; half-made
/// cables included.
async fn clear(links: &Links) -> Result<(), OverlayError> {
    for cable in links.list().await?.iter().filter(|link| link.peer.is_some()) {
        links.delete(&cable.name).await?;
    }
    Ok(links.delete(BRIDGE).await?)
}

/// The outer end of an endpoint's cable: 12 characters of the 15 that a name may have.
#[must_use]
pub fn port_name(endpoint: EndpointId) -> String {
    let short = endpoint.short();
    format!("v{}", short.get(..11).unwrap_or(&short))
}

/// What the kernel takes as a name (`dev_valid_name`) and /proc/sys does not take for something
/// else.
pub(super) fn is_ifname(name: &str) -> bool {
    (1..=IFNAME_LEN).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_graphic() && c != b'/' && c != b':')
        && ![".", "..", "all", "default"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_the_kernels() {
        for good in ["eth0", "a", "tap-1.2", "123456789012345"] {
            assert!(is_ifname(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "all",
            "default",
            "a/b",
            "a:b",
            "a b",
            "a\0",
            "\u{e4}",
            "1234567890123456",
        ] {
            assert!(!is_ifname(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_port_has_a_name_that_an_interface_can_have() {
        let name = port_name(EndpointId::from_random([0xab; 16]));
        assert_eq!(name, "vabababababa");
        assert!(is_ifname(&name));
    }
}
