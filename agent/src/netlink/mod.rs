//! Network namespaces and interfaces over rtnetlink; no other program is started.
//!
//! [`netns`] owns namespaces, [`link`] the interfaces of one namespace, [`overlay`] this host's side of one network.

pub mod link;
pub mod netns;
pub mod overlay;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::{
    libc,
    sys::socket::{getsockopt, sockopt},
};

/// The MTU of the kernel's route to an address, without sending anything.
#[must_use]
pub fn route_mtu(to: SocketAddr) -> Option<u16> {
    // A mapped address serves IPv4 too, but then the kernel tells no IP_MTU.
    let from: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    let mtu = if to.is_ipv4() { getsockopt(&socket, sockopt::IpMtu).ok()? } else { ipv6_mtu(&socket)? };
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
