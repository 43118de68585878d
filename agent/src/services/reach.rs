//! Whether a port of a local endpoint accepts, asked from inside its network's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    task::spawn_blocking,
    time::timeout,
};
use vxmesh_proto::lb::Protocol;

use crate::netlink::netns::Netns;

/// How long the kernel and this process may take to make a socket, which is nobody's fault.
const MADE: Duration = Duration::from_millis(500);

/// Whether the port accepts within this time; nothing if that cannot be told. A datagram port is
/// sent an empty datagram, and accepts unless that is refused.
pub(super) async fn accepts(
    netns: &Path,
    (protocol, to): (Protocol, SocketAddr),
    patience: Duration,
) -> Option<bool> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = timeout(MADE, inside(netns, to, kind)).await.ok()?.ok()?;
    match protocol {
        Protocol::Tcp => {
            let socket = TcpSocket::from_std_stream(socket.into());
            timeout(patience, socket.connect(to)).await.map_or(Some(false), said)
        }
        Protocol::Udp => {
            let socket = UdpSocket::from_std(socket.into()).ok()?;
            timeout(patience, refusal(&socket, to)).await.map_or(Some(true), said)
        }
    }
}

/// A connection to the port.
pub(super) async fn connect(netns: &Path, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = inside(netns, to, Type::STREAM).await?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Waits for the refusal of an empty datagram.
async fn refusal(socket: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    socket.connect(to).await?;
    socket.send(&[]).await?;
    socket.recv(&mut [0; 1]).await.map(drop)
}

async fn inside(netns: &Path, to: SocketAddr, kind: Type) -> io::Result<Socket> {
    let netns = Netns::open(netns).map_err(io::Error::other)?;
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let make = move || {
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(any, 0).into())?;
        io::Result::Ok(socket)
    };
    // Entering a namespace takes a thread; the runtime's are not for waiting.
    spawn_blocking(move || netns.run(make)).await?
}

/// What an attempt says; nothing if it says nothing.
fn said<T>(result: io::Result<T>) -> Option<bool> {
    match result {
        Ok(_) => Some(true),
        // No answer to ARP or neighbour discovery is one of the last two.
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut => Some(false),
            _ => None,
        },
    }
}
