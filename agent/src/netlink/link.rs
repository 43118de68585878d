//! The interfaces of one network namespace: [`Links`].
//!
//! Requests are idempotent where the kernel allows it: what is there already is brought to the
//! wanted state.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, TryStream, TryStreamExt};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressHeaderFlags,
        link::{
            InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, LinkAttribute,
            LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
        },
        neighbour::{NeighbourFlags, NeighbourState},
        route::RouteScope,
        tc::{TcAttribute, TcHandle, TcMessage},
    },
};
use thiserror::Error;
use vxmesh_proto::addr::MacAddr;

use super::{look::Look, netns::Netns};

/// How often a dump is asked for while another one of the same socket goes on, and how long one
/// takes.
const DUMPS: usize = 200;
const DUMP_TAKES: Duration = Duration::from_millis(2);
/// A bit for each of the groups 01:80:c2:00:00:00 to 0f, but for the one that pauses senders: the
/// kernel drops what is for that.
const RESERVED_GROUPS: u16 = !0b10;

/// What the kernel refused, and about which interface.
#[derive(Debug, Error)]
#[error("cannot {what} {name}: {source}")]
pub struct LinkError {
    what: &'static str,
    name: String,
    source: io::Error,
}

impl LinkError {
    pub(super) fn new(what: &'static str, name: &str, source: io::Error) -> Self {
        Self { what, name: name.into(), source }
    }

    /// Whether there is already something of that name.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.is(Errno::EEXIST)
    }

    pub(super) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether it shares another link, as a MAC-VLAN.
    pub is_macvlan: bool,
    /// The other end of a cable, or the link that it is upon, by its number in the namespace where
    /// that is.
    pub peer: Option<u32>,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Free text; the outer end of a veth carries its endpoint's id here.
    pub alias: Option<String>,
    /// Of a bridge's port, whether it learns addresses, and whether it takes unicast frames for
    /// unknown ones.
    pub port: Option<(bool, bool)>,
    /// Of a bridge's port, which of the groups that bridges keep to themselves it treats as others.
    pub groups: Option<u16>,
    /// Frames that it did not take in, and that it did not give away, as far as the kernel counts
    /// them.
    pub dropped: (u64, u64),
}

/// The interfaces of one network namespace.
#[derive(Clone, Debug)]
pub struct Links {
    pub(super) handle: Handle,
    /// What was there, while that is sure to be so.
    pub(super) look: Arc<Mutex<Option<Look>>>,
}

impl Links {
    /// Those of a namespace. Needs a tokio runtime; the socket closes with the last clone.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        Ok(Self::open_and(netns, || ())?.0)
    }

    /// The same, and does something else there.
    pub(super) fn open_and<T: Send>(
        netns: &Netns,
        work: impl FnOnce() -> T + Send,
    ) -> io::Result<(Self, T)> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _context = runtime.enter();
            Ok((Self::here()?, work()))
        })
    }

    /// Those of this process's own namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub fn here() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, look: Arc::default() })
    }

    /// Every interface.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn list(&self) -> Result<Vec<Link>, LinkError> {
        let messages = listed("the interfaces", || self.handle.link().get().execute()).await?;
        Ok(messages.iter().map(parse).collect())
    }

    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<Link>, LinkError> {
        if let Some(link) = self.seen(|look| look.link(name).cloned()) {
            return Ok(Some(link));
        }
        // What it counted is longer than all the rest.
        let shorter = vec![LinkExtentMask::SkipStats];
        let request = self.handle.link().get().match_name(name);
        let request = request.set_filter_mask(AddressFamily::Unspec, shorter);
        let mut answers = pin!(request.execute());
        match answers.try_next().await.map_err(system) {
            Ok(message) => Ok(message.as_ref().map(parse)),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(LinkError::new("look for", name, error)),
        }
    }

    pub(super) async fn index(&self, what: &'static str, name: &str) -> Result<u32, LinkError> {
        let missing =
            || LinkError::new(what, name, io::Error::from_raw_os_error(Errno::ENODEV as i32));
        self.get(name).await?.map(|link| link.index).ok_or_else(missing)
    }

    /// A bridge with this MAC that neither snoops multicast nor runs a spanning tree.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub async fn create_bridge(&self, name: &str, mac: MacAddr, mtu: u16) -> Result<(), LinkError> {
        let is_so = |link: &Link| link.mac == Some(mac) && link.mtu == u32::from(mtu) && link.up;
        if self.sees(|look| look.is(name, is_so)) {
            return Ok(());
        }
        if self.get(name).await?.is_none() {
            let bridge =
                LinkBridge::new(name).mcast_snooping(false).address(mac.0.to_vec()).build();
            self.done("make", name, self.handle.link().add(bridge).execute().await)?;
        }
        self.change(name, |link| link.address(mac.0.to_vec()).mtu(mtu.into()).up()).await
    }

    /// A cable: `name` here, `peer` with this MAC in another namespace.
    ///
    /// # Errors
    /// A name is taken ([`LinkError::exists`]), or the kernel refuses it.
    pub async fn create_veth(
        &self,
        name: &str,
        (peer, peer_mac): (&str, MacAddr),
        peer_netns: &Netns,
        mtu: u16,
    ) -> Result<(), LinkError> {
        let inner = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .address(peer_mac.0.to_vec())
            .mtu(mtu.into())
            .setns_by_fd(peer_netns.as_fd().as_raw_fd())
            .build();
        let veth = LinkVeth::new(name, "")
            .mtu(mtu.into())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inner)))
            .build();
        self.done("make the cable", name, self.handle.link().add(veth).execute().await)
    }

    /// Makes an interface a port that neither learns nor takes unicast frames for unknown
    /// addresses; `flood` lets those in.
    ///
    /// # Errors
    /// One of the two is not there.
    pub async fn set_port(&self, name: &str, bridge: &str, flood: bool) -> Result<(), LinkError> {
        let is_so = |link: &Link| link.port == Some((false, flood));
        if self.sees(|look| look.is_port_of(name, bridge) && look.is(name, is_so)) {
            return Ok(());
        }
        let bridge = self.index("use the bridge", bridge).await?;
        self.change(name, |link| link.controller(bridge)).await?;
        let index = self.index("set up the port", name).await?;
        let port = LinkBridgePort::new(index).learning(false).flood(flood).build();
        self.done("set up the port", name, self.handle.link().set_port(port).execute().await)
    }

    /// Has a port treat frames for the groups that bridges keep to themselves (IEEE 802.1Q-2022
    /// table 8-1) as all others. The kernel would take them in as if they came to the port itself,
    /// past all rules for bridges.
    ///
    /// # Errors
    /// It is no port.
    pub async fn show_groups(&self, name: &str) -> Result<(), LinkError> {
        if self.sees(|look| look.is(name, |link| link.groups == Some(RESERVED_GROUPS))) {
            return Ok(());
        }
        let index = self.index("set up the port", name).await?;
        let port = LinkBridgePort::new(index).group_fwd_mask(RESERVED_GROUPS).build();
        self.done("set up the port", name, self.handle.link().set_port(port).execute().await)
    }

    /// Brings an interface up with this MTU.
    ///
    /// # Errors
    /// It is not there.
    pub async fn set_up(&self, name: &str, mtu: u16) -> Result<(), LinkError> {
        if self.sees(|look| look.is(name, |link| link.up && link.mtu == u32::from(mtu))) {
            return Ok(());
        }
        self.change(name, |link| link.mtu(mtu.into()).up()).await
    }

    /// Gives an interface this MTU; one that has another is down then. The kernel takes IPv6 off an
    /// interface of less than 1280 bytes, with all its settings, which come back with the MTU.
    ///
    /// # Errors
    /// It is not there.
    pub async fn set_mtu(&self, name: &str, mtu: u16) -> Result<(), LinkError> {
        if self.get(name).await?.is_some_and(|link| link.mtu == u32::from(mtu)) {
            return Ok(());
        }
        self.take_down(name).await?;
        self.change(name, |link| link.mtu(mtu.into())).await
    }

    /// Has what an interface sends reach its driver at once. To be done before it comes up, for
    /// then the kernel makes queues.
    ///
    /// # Errors
    /// It is not there, or the kernel cannot do without queues.
    pub async fn set_no_queue(&self, name: &str) -> Result<(), LinkError> {
        let mut message = TcMessage::default();
        message.header.index = self.index("change", name).await?.try_into().unwrap_or_default();
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("noqueue".to_owned()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut handle = self.handle.clone();
        let fail = |error| LinkError::new("change the queue of", name, system(error));
        let mut answers = handle.request(request).map_err(fail)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(fail(rtnetlink::Error::NetlinkError(error)));
            }
        }
        Ok(())
    }

    /// Brings an interface up as it is.
    ///
    /// # Errors
    /// It is not there.
    pub async fn bring_up(&self, name: &str) -> Result<(), LinkError> {
        if self.sees(|look| look.is(name, |link| link.up)) {
            return Ok(());
        }
        self.change(name, LinkMessageBuilder::up).await
    }

    /// Takes an interface down; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn take_down(&self, name: &str) -> Result<(), LinkError> {
        let Some(link) = self.get(name).await? else { return Ok(()) };
        let message = LinkUnspec::new_with_index(link.index).down().build();
        match self.done("take down", name, self.handle.link().set(message).execute().await) {
            // A cable goes with its other end, at any time.
            Err(error) if error.is(Errno::ENODEV) => Ok(()),
            done => done,
        }
    }

    /// Writes free text onto an interface.
    ///
    /// # Errors
    /// It is not there.
    pub async fn set_alias(&self, name: &str, alias: &str) -> Result<(), LinkError> {
        if self.sees(|look| look.is(name, |link| link.alias.as_deref() == Some(alias))) {
            return Ok(());
        }
        self.change(name, |link| link.append_extra_attribute(LinkAttribute::IfAlias(alias.into())))
            .await
    }

    async fn change(
        &self,
        name: &str,
        edit: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), LinkError> {
        let message = edit(LinkMessageBuilder::<LinkUnspec>::new().name(name)).build();
        self.done("change", name, self.handle.link().set(message).execute().await)
    }

    /// Removes an interface; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn delete(&self, name: &str) -> Result<(), LinkError> {
        let Some(link) = self.get(name).await? else { return Ok(()) };
        match self.done("remove", name, self.handle.link().del(link.index).execute().await) {
            // A cable goes with its other end, at any time.
            Err(error) if error.is(Errno::ENODEV) => Ok(()),
            done => done,
        }
    }

    /// Gives an interface an address, at once and without asking the link whether somebody has it
    /// (RFC 4862 section 5.4): the mesh knows.
    ///
    /// # Errors
    /// The interface is not there.
    pub async fn add_address(&self, name: &str, address: IpNet) -> Result<(), LinkError> {
        if self.sees(|look| look.has_address(name, &address)) {
            return Ok(());
        }
        let index = self.index("give an address to", name).await?;
        let mut request =
            self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        self.done("give an address to", name, request.execute().await)
    }

    /// Adds a default route unless there is one of this IP version, of whatever metric; says
    /// whether it did.
    ///
    /// # Errors
    /// The gateway cannot be reached from here.
    pub async fn add_default_route(&self, gateway: IpAddr) -> Result<bool, LinkError> {
        let ipv4 = gateway.is_ipv4();
        if self.sees(|look| look.leads_on(ipv4)) || !self.default_routes(ipv4).await?.is_empty() {
            return Ok(false);
        }
        let route = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build(),
        };
        let added = self.done(
            "add a default route via",
            &gateway.to_string(),
            self.handle.route().add(route).execute().await,
        );
        match added {
            Err(error) if error.exists() => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        }
    }

    /// Leads to a subnet directly by an interface; a route to it that is there stays.
    ///
    /// # Errors
    /// The interface is not there, or the kernel refuses it.
    pub async fn add_link_route(&self, name: &str, to: IpNet) -> Result<(), LinkError> {
        if self.sees(|look| look.leads_to(to)) {
            return Ok(());
        }
        let index = self.index("add a route by", name).await?;
        let route = match to {
            IpNet::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .scope(RouteScope::Link)
                .output_interface(index)
                .build(),
            IpNet::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .output_interface(index)
                .build(),
        };
        match self.done("add a route by", name, self.handle.route().add(route).execute().await) {
            Err(error) if !error.exists() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Says that a MAC is behind a port of a bridge.
    ///
    /// # Errors
    /// The port is not there.
    pub async fn set_fdb(&self, port: &str, mac: MacAddr) -> Result<(), LinkError> {
        if self.sees(|look| look.has_entry(port, mac, NeighbourState::Noarp)) {
            return Ok(());
        }
        let index = self.index("enter a MAC for", port).await?;
        let neighbours = self.handle.neighbours();
        let request = neighbours
            .add_bridge(index, &mac.0)
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller)
            .replace();
        self.done("enter a MAC for", port, request.execute().await)
    }

    /// Says that a MAC is a bridge's own: the kernel enters it with the MAC, and whoever empties
    /// the table takes it away.
    ///
    /// # Errors
    /// The bridge is not there.
    pub async fn set_own_fdb(&self, bridge: &str, mac: MacAddr) -> Result<(), LinkError> {
        if self.sees(|look| look.has_entry(bridge, mac, NeighbourState::Permanent)) {
            return Ok(());
        }
        let index = self.index("enter the MAC of", bridge).await?;
        let neighbours = self.handle.neighbours();
        let request = neighbours
            .add_bridge(index, &mac.0)
            .state(NeighbourState::Permanent)
            .flags(NeighbourFlags::Own)
            .replace();
        self.done("enter the MAC of", bridge, request.execute().await)
    }

    pub(super) fn done(
        &self,
        what: &'static str,
        name: &str,
        result: Result<(), rtnetlink::Error>,
    ) -> Result<(), LinkError> {
        // An interface that came since changes nothing of what was seen of the others.
        if self.sees(|look| look.link(name).is_some()) {
            self.look_away();
        }
        result.map_err(|error| LinkError::new(what, name, system(error)))
    }
}

pub(super) fn parse(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        master: None,
        is_macvlan: false,
        peer: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        alias: None,
        port: None,
        groups: None,
        dropped: (0, 0),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(info) => {
                link.is_macvlan = info.contains(&LinkInfo::Kind(InfoKind::MacVlan));
                let port = info.iter().find_map(port_of);
                (link.port, link.groups) =
                    port.map_or((None, None), |(port, groups)| (Some(port), groups));
            }
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::Stats64(stats) => link.dropped = (stats.rx_dropped, stats.tx_dropped),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok().map(MacAddr),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            _ => {}
        }
    }
    link
}

fn port_of(info: &LinkInfo) -> Option<((bool, bool), Option<u16>)> {
    let LinkInfo::PortData(InfoPortData::BridgePort(settings)) = info else { return None };
    let has = |setting| settings.contains(&setting);
    let groups = settings.iter().find_map(|setting| match setting {
        InfoBridgePort::GroupFwdMask(groups) => Some(*groups),
        _ => None,
    });
    Some(((has(InfoBridgePort::Learning(true)), has(InfoBridgePort::UnicastFlood(true))), groups))
}

/// All that a dump tells. The kernel does one dump of a socket at a time, and several tasks may
/// share one: whoever finds it busy asks again.
pub(super) async fn listed<T, S>(what: &str, dump: impl Fn() -> S) -> Result<Vec<T>, LinkError>
where
    S: TryStream<Ok = T, Error = rtnetlink::Error>,
{
    let mut left = DUMPS;
    loop {
        left -= 1;
        match dump().try_collect().await.map_err(system) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && left > 0 => {
                tokio::time::sleep(DUMP_TAKES).await;
            }
            done => return done.map_err(|error| LinkError::new("list", what, error)),
        }
    }
}

/// The system's own error where there is one.
pub(super) fn system(error: rtnetlink::Error) -> io::Error {
    match &error {
        rtnetlink::Error::NetlinkError(message) => {
            io::Error::from_raw_os_error(message.raw_code().abs())
        }
        _ => io::Error::other(error),
    }
}
