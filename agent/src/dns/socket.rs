//! The sockets of a server, opened inside the namespace that they serve and belonging to it for
//! good.
//!
//! In a sandbox they are at ports that the kernel chose, so that port 53 is free for a name server
//! of the sandbox's own; a [`Detour`] leads to them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{firewall::detour::Detour, netlink::netns::Netns};

/// Where the programs of a sandbox ask: Docker's address, which images and habits know.
pub const IN_SANDBOX: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// Connections that wait to be accepted; more than a sandbox's processes open at once by accident.
const BACKLOG: i32 = 64;

/// One address over both transports.
#[derive(Debug)]
pub struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
    /// What leads to them.
    pub(super) detour: Option<Detour>,
}

impl Sockets {
    /// Opens both in a namespace.
    ///
    /// # Errors
    /// The address is not there or in use, or the namespace cannot be entered.
    pub fn open(netns: &Netns, addr: SocketAddr) -> io::Result<Self> {
        netns.run(|| Self::bind(addr))
    }

    /// Opens those of a sandbox: who asks at [`IN_SANDBOX`] finds them.
    ///
    /// # Errors
    /// The kernel refuses the way to them, or the namespace cannot be entered.
    pub fn open_in_sandbox(netns: &Netns) -> io::Result<Self> {
        netns.run(|| {
            let at = SocketAddr::from((*IN_SANDBOX.ip(), 0));
            let mut sockets = Self { udp: udp(at)?.into(), tcp: tcp(at)?.into(), detour: None };
            let ports = (sockets.udp.local_addr()?.port(), sockets.tcp.local_addr()?.port());
            let detour = Detour::open(IN_SANDBOX, ports.0, ports.1);
            sockets.detour = Some(detour.map_err(io::Error::other)?);
            Ok(sockets)
        })
    }

    /// Opens both in the calling thread's namespace.
    ///
    /// # Errors
    /// The address is not there or in use.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let udp = udp(addr)?;
        let tcp = tcp(udp.local_addr()?.as_socket().unwrap_or(addr))?;
        Ok(Self { udp: udp.into(), tcp: tcp.into(), detour: None })
    }

    /// The address.
    ///
    /// # Errors
    /// The sockets are broken.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

fn udp(addr: SocketAddr) -> io::Result<Socket> {
    bound(addr, Type::DGRAM, Protocol::UDP)
}

fn tcp(addr: SocketAddr) -> io::Result<Socket> {
    let socket = bound(addr, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bound(addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    // Closed connections do not keep a restart waiting.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}
