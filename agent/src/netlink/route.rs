//! Addresses, routes and neighbours of one network namespace: the rest of [`Links`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
            RouteType,
        },
    },
};

use vxmesh_proto::addr::MacAddr;

use super::link::{LinkError, Links, listed};

/// Who made a route (`rtm_protocol`): a number of our own, so that ours are told from others.
const OURS: RouteProtocol = RouteProtocol::Other(118);

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads to.
    pub destination: IpNet,
    /// The interface, by its number.
    pub interface: Option<u32>,
    /// The router; none on the link itself.
    pub router: Option<IpAddr>,
    /// The address that the kernel has towards there, if the route says it.
    pub source: Option<IpAddr>,
    /// Whether this program made it.
    pub ours: bool,
    /// Which of several to here is taken: the one with the least.
    pub metric: u32,
}

impl Route {
    /// Whether it is the one that a request without a metric makes or replaces: 0 of IPv4, 1024 of
    /// IPv6 (`IP6_RT_PRIO_USER` of linux/ipv6_route.h).
    pub(super) const fn has_usual_metric(&self) -> bool {
        self.metric == if matches!(self.destination, IpNet::V4(_)) { 0 } else { 1024 }
    }
}

impl Links {
    /// The addresses of an interface.
    ///
    /// # Errors
    /// It is not there.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpNet>, LinkError> {
        if let Some(addresses) = self.seen(|look| look.addresses(name)) {
            return Ok(addresses);
        }
        let messages = self.address_messages(name).await?;
        Ok(messages.iter().filter_map(address_of).collect())
    }

    async fn address_messages(&self, name: &str) -> Result<Vec<AddressMessage>, LinkError> {
        let index = self.index("list the addresses of", name).await?;
        let dump = || self.handle.address().get().set_link_index_filter(index).execute();
        listed("the addresses", dump).await
    }

    /// Gives an interface these addresses and no others but link-local ones that the kernel chose.
    ///
    /// # Errors
    /// The interface is not there, or the kernel refuses a step.
    pub async fn set_addresses(&self, name: &str, wanted: &[IpNet]) -> Result<(), LinkError> {
        if self.sees(|look| look.has_just(name, wanted)) {
            return Ok(());
        }
        for message in self.address_messages(name).await? {
            let Some(address) = address_of(&message) else { continue };
            let kernels = matches!(address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
            if !kernels && !wanted.contains(&address) {
                let removed = self.handle.address().del(message).execute().await;
                self.done("take an address from", name, removed)?;
            }
        }
        for address in wanted {
            self.add_address(name, *address).await?;
        }
        Ok(())
    }

    /// As [`Links::add_address`], but the host does not use the address towards anybody farther
    /// than the link.
    ///
    /// # Errors
    /// The interface is not there.
    pub async fn add_link_address(&self, name: &str, address: IpNet) -> Result<(), LinkError> {
        if self.sees(|look| look.has_address(name, &address)) {
            return Ok(());
        }
        let index = self.index("give an address to", name).await?;
        let mut request =
            self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        let header = &mut request.message_mut().header;
        header.scope = AddressScope::Link;
        if address.addr().is_ipv6() {
            header.flags |= AddressHeaderFlags::Nodad;
        }
        self.done("give an address to", name, request.execute().await)
    }

    /// The unicast routes of the main table, both IP versions.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn routes(&self) -> Result<Vec<Route>, LinkError> {
        let mut routes = Vec::new();
        for ipv4 in [true, false] {
            let found = self.every_route(ipv4).await?;
            routes.extend(found.iter().filter(|route| is_main(route)).filter_map(route_of));
        }
        Ok(routes)
    }

    /// The routes of all tables.
    pub(super) async fn every_route(&self, ipv4: bool) -> Result<Vec<RouteMessage>, LinkError> {
        let mut every = RouteMessage::default();
        every.header.address_family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        listed("the routes", || self.handle.route().get(every.clone()).execute()).await
    }

    /// Adds a route of ours, or changes the one that is there: by a router on the interface, or to
    /// the link itself.
    ///
    /// # Errors
    /// The interface is not there or the router cannot be reached by it.
    pub async fn set_route(
        &self,
        to: IpNet,
        via: Option<IpAddr>,
        name: &str,
    ) -> Result<(), LinkError> {
        if self.sees(|look| look.has_route(to, (via, None), name)) {
            return Ok(());
        }
        let index = self.index("add a route by", name).await?;
        let request = self.handle.route().add(route_message(to, via, index)).replace();
        self.done("add a route by", name, request.execute().await)
    }

    /// Adds a route of ours to an address on the link, or changes the one that is there. What the
    /// kernel itself sends there has this source, if it has that address.
    ///
    /// # Errors
    /// The interface is not there.
    pub async fn set_route_from(
        &self,
        source: Option<IpAddr>,
        to: IpAddr,
        name: &str,
    ) -> Result<(), LinkError> {
        let Some(source) = source else { return self.set_route(to.into(), None, name).await };
        if self.sees(|look| look.has_route(to.into(), (None, Some(source)), name)) {
            return Ok(());
        }
        let index = self.index("add a route by", name).await?;
        let mut message = route_message(to.into(), None, index);
        let address = match source {
            IpAddr::V4(v4) => RouteAddress::Inet(v4),
            IpAddr::V6(v6) => RouteAddress::Inet6(v6),
        };
        message.attributes.push(RouteAttribute::PrefSource(address));
        let added = self.handle.route().add(message).replace().execute().await;
        match self.done("add a route by", name, added) {
            Err(error) if error.is(Errno::EINVAL) => self.set_route(to.into(), None, name).await,
            done => done,
        }
    }

    /// Leads by this router on this interface whatever no other route leads, and by no other router
    /// that we chose before; a default route that somebody else made stays instead.
    ///
    /// # Errors
    /// The interface is not there, or the kernel refuses a step.
    pub async fn set_default_route(
        &self,
        ipv4: bool,
        by: Option<(IpAddr, &str)>,
    ) -> Result<(), LinkError> {
        let (ours, others): (Vec<_>, Vec<_>) = self
            .default_routes(ipv4)
            .await?
            .into_iter()
            .partition(|route| route.header.protocol == OURS);
        if let Some((gateway, name)) = by
            && others.is_empty()
        {
            let index = self.index("add a default route by", name).await?;
            let wanted = (Some(gateway), Some(index));
            if ours.len() == 1 && ours.iter().all(|route| router_of(route) == wanted) {
                return Ok(());
            }
            let any: IpAddr = match gateway {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            // In one step: no packet finds no route.
            return self.set_route(IpNet::new_assert(any, 0), Some(gateway), name).await;
        }
        for route in ours {
            let removed = self.handle.route().del(route).execute().await;
            match self.done("remove", "the default route", removed) {
                Err(error) if !error.is(Errno::ESRCH) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// The default routes of the main table, of whatever metric.
    pub(super) async fn default_routes(&self, ipv4: bool) -> Result<Vec<RouteMessage>, LinkError> {
        let mut routes = self.every_route(ipv4).await?;
        routes.retain(is_default);
        Ok(routes)
    }

    /// Removes a route of ours; none there is fine.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn remove_route(&self, to: IpNet, name: &str) -> Result<(), LinkError> {
        let index = self.index("remove a route by", name).await?;
        let mut message = route_message(to, None, index);
        // Of whatever scope: one by a router has another than one to the link.
        message.header.scope = RouteScope::NoWhere;
        let request = self.handle.route().del(message).execute().await;
        match self.done("remove a route by", name, request) {
            Err(error) if error.is(Errno::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// The neighbours of an interface that somebody set for good.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(super) async fn permanent_neighbors(
        &self,
        name: &str,
    ) -> Result<BTreeMap<IpAddr, MacAddr>, LinkError> {
        let index = self.index("list the neighbours of", name).await?;
        let dump = || self.handle.neighbours().get().execute();
        let found: Vec<NeighbourMessage> = listed("the neighbours", dump).await?;
        let of = |it: &&NeighbourMessage| {
            it.header.ifindex == index && it.header.state == NeighbourState::Permanent
        };
        Ok(found.iter().filter(of).filter_map(neighbor_of).collect())
    }

    /// Says who has an address on an interface, so that nobody is asked.
    ///
    /// # Errors
    /// The interface is not there.
    pub(super) async fn set_neighbor(
        &self,
        name: &str,
        ip: IpAddr,
        mac: MacAddr,
    ) -> Result<(), LinkError> {
        let index = self.index("set a neighbour of", name).await?;
        let request = self.handle.neighbours().add(index, ip).link_layer_address(&mac.0).replace();
        self.done("set a neighbour of", name, request.execute().await)
    }

    /// Forgets who has an address on an interface; nothing known is fine.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub(super) async fn remove_neighbor(&self, name: &str, ip: IpAddr) -> Result<(), LinkError> {
        let index = self.index("forget a neighbour of", name).await?;
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        let (family, address) = match ip {
            IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
        };
        message.header.family = family;
        message.attributes.push(NeighbourAttribute::Destination(address));
        let removed = self.handle.neighbours().del(message).execute().await;
        match self.done("forget a neighbour of", name, removed) {
            Err(error) if error.is(Errno::ENOENT) => Ok(()),
            done => done,
        }
    }
}

fn neighbor_of(message: &NeighbourMessage) -> Option<(IpAddr, MacAddr)> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some((*v4).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some((*v6).into()),
            NeighbourAttribute::LinkLayerAddress(address) => {
                mac = address.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    Some((ip?, MacAddr(mac?)))
}

fn route_message(to: IpNet, via: Option<IpAddr>, index: u32) -> RouteMessage {
    let scope = if via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    match to {
        IpNet::V4(to) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .output_interface(index)
                .protocol(OURS)
                .scope(scope);
            match via {
                Some(IpAddr::V4(via)) => route.gateway(via).build(),
                Some(IpAddr::V6(via)) => route.via(via).build(),
                None => route.build(),
            }
        }
        IpNet::V6(to) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .output_interface(index)
                .protocol(OURS);
            match via {
                Some(IpAddr::V6(via)) => route.gateway(via).build(),
                // An IPv6 destination has no IPv4 router.
                Some(IpAddr::V4(_)) | None => route.build(),
            }
        }
    }
}

pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let of = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    // Of IPv4 the local address is the interface's own, the other one may be its peer's.
    let ip = of(true).or_else(|| of(false))?;
    IpNet::new(ip, message.header.prefix_len).ok()
}

/// Whether it is a unicast route of the main table.
pub(super) fn is_main(route: &RouteMessage) -> bool {
    route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast
}

/// Whether it is a default route of the main table. IPv6 has unreachable routes of this length.
pub(super) fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && is_main(route)
}

/// The address that the kernel takes for its own by this route.
pub(super) fn local_address(route: &RouteMessage) -> Option<IpAddr> {
    let to = route_of(route).filter(|_| route.header.kind == RouteType::Local)?;
    Some(to.destination.addr())
}

/// The router of a route and its interface.
pub(super) fn router_of(message: &RouteMessage) -> (Option<IpAddr>, Option<u32>) {
    let router = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
        _ => None,
    });
    let interface = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    (router, interface)
}

pub(super) fn route_of(message: &RouteMessage) -> Option<Route> {
    let ip_of = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let (mut destination, mut source, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    let (router, interface) = router_of(message);
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let destination = destination.unwrap_or(any);
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    let ours = message.header.protocol == OURS;
    Some(Route { destination, interface, router, source, ours, metric })
}
