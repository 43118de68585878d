//! The sockets of a server, opened inside the namespace that they serve and belonging to it for good.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::netlink::netns::Netns;

/// Where the programs of a sandbox ask: Docker's address, which images and habits know.
pub const IN_SANDBOX: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);

/// Connections that wait to be accepted; more than a sandbox's processes open at once by accident.
const BACKLOG: i32 = 64;

/// One address over both transports.
#[derive(Debug)]
pub struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Opens both in a namespace.
    ///
    /// # Errors
    /// The address is not there or in use, or the namespace cannot be entered.
    pub fn open(netns: &Netns, addr: SocketAddr) -> io::Result<Self> {
        netns.run(|| Self::bind(addr))
    }

    /// Opens both in the calling thread's namespace.
    ///
    /// # Errors
    /// The address is not there or in use.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let udp = bound(addr, Type::DGRAM, Protocol::UDP)?;
        let tcp =
            bound(udp.local_addr()?.as_socket().unwrap_or(addr), Type::STREAM, Protocol::TCP)?;
        tcp.listen(BACKLOG)?;
        Ok(Self { udp: udp.into(), tcp: tcp.into() })
    }

    /// The address.
    ///
    /// # Errors
    /// The sockets are broken.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

fn bound(addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    // A sandbox may run a name server of its own on all addresses, and closed connections do not keep a restart waiting.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}
