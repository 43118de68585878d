//! Network namespaces and interfaces over rtnetlink; no other program is started.
//!
//! [`netns`] owns namespaces, [`settings`] the kernel's settings of one, [`link`] its interfaces,
//! [`look`] what was there at the start, [`overlay`] this host's side of one network, [`macvlan`]
//! interfaces that share a link of the host, [`policy`] the rules that choose a routing table,
//! [`callers`] who is connected to servers, [`watch`] what the kernel tells of changes, [`whole`]
//! what of a network's side is not as it should be.

mod announce;
pub mod callers;
mod free_end;
pub mod hosts;
pub mod link;
mod look;
pub mod losses;
pub mod macvlan;
pub mod netns;
pub mod overlay;
pub mod policy;
pub mod route;
pub(crate) mod settings;
pub mod watch;
pub mod whole;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::{
    ifaddrs::getifaddrs,
    libc,
    net::if_::InterfaceFlags,
    sys::socket::{getsockopt, sockopt},
};

use crate::gateway::uplink::is_uplink;

/// The MTU of the kernel's route to an address, without sending anything.
#[must_use]
pub fn route_mtu(to: SocketAddr) -> Option<u16> {
    // A mapped address serves IPv4 too, but then the kernel tells no IP_MTU.
    let from: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    let mtu =
        if to.is_ipv4() { getsockopt(&socket, sockopt::IpMtu).ok()? } else { ipv6_mtu(&socket)? };
    u16::try_from(mtu).ok()
}

/// The option `IPV6_MTU` (ipv6(7)), which nix has no name for.
#[expect(unsafe_code, reason = "getsockopt(2) with an option that nix does not know")]
fn ipv6_mtu(socket: &UdpSocket) -> Option<libc::c_int> {
    let mut mtu: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    // SAFETY: the pointers are to live variables of the type and length that the option has.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU,
            (&raw mut mtu).cast(),
            &raw mut len,
        )
    };
    (status == 0).then_some(mtu)
}

/// The first address of each IP version on an interface of the calling thread's namespace that
/// others may reach: up, not a loopback, not link-local. IPv4 comes first.
#[must_use]
pub fn host_addresses() -> Vec<IpAddr> {
    let addrs = all_addresses();
    let v4 = addrs.iter().copied().find(IpAddr::is_ipv4);
    v4.into_iter().chain(addrs.iter().copied().find(IpAddr::is_ipv6)).collect()
}

/// All addresses of such interfaces.
#[must_use]
pub fn all_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let up = interfaces.filter(|interface| {
        !is_uplink(&interface.interface_name)
            && interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    up.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    })
    .filter(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
    })
    .collect()
}
