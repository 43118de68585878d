//! A published port answers where it was promised, and whoever calls it elsewhere is refused at
//! once.

use std::{
    io::ErrorKind,
    net::{
        IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::listen,
};

use crate::{
    egress::host_ip,
    publish::{at, publish},
};

/// As long as nobody answers, nobody waits.
const KNOCK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(5);

/// What a neighbour does who takes the host for its own loopback.
const ROUTED: &str = "ip address del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via 10.213.0.1
sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.eth0.route_localnet=1";

/// Calls a port over TCP and UDP without waiting for an answer.
fn knock(client: &NetNs, to: SocketAddr) -> Result<()> {
    client.run(|| {
        drop(TcpStream::connect_timeout(&to, KNOCK));
        UdpSocket::bind(("0.0.0.0", 0))?.send_to(b"knock", to)?;
        Ok(())
    })
}

/// Servers of a sandbox whom nobody may reach.
struct Shut(TcpListener, UdpSocket);

impl Shut {
    fn start(sandbox: &NetNs, port: u16) -> Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let (tcp, udp) = sandbox.run(|| Ok((listen(any)?, UdpSocket::bind(any)?)))?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok(Self(tcp, udp))
    }

    fn heard_nobody(&self) -> Result<()> {
        let accepted = self.0.accept();
        ensure!(accepted.is_err(), "TCP came through: {accepted:?}");
        let got = self.1.recv_from(&mut [0; 16]);
        ensure!(got.is_err(), "UDP came through: {got:?}");
        Ok(())
    }
}

/// A host's link-local address as others on the link call it.
fn link_local(host: &NetNs, from: &NetNs, port: u16) -> Result<SocketAddr> {
    let shown = sh(host, "ip -6 -o address show dev eth0 scope link | awk '{print $4}'")?;
    let (ip, _prefix) = shown.split_once('/').context("no link-local address")?;
    let scope = from.run(|| Ok(if_nametoindex("eth0")?))?;
    Ok(SocketAddrV6::new(ip.parse()?, port, 0, scope).into())
}

/// Over TCP and UDP the client is told at once that nobody is there.
fn refuses(client: &NetNs, bind: SocketAddr, to: SocketAddr) -> Result<()> {
    wait_until("the client's address can be used", || {
        Ok(client.run(|| Ok(UdpSocket::bind(bind)?)).is_ok())
    })?;
    let tcp = client.run(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.bind(&bind.into())?;
        Ok(socket.connect_timeout(&to.into(), PATIENCE))
    })?;
    let refused = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    ensure!(tcp.as_ref().is_err_and(refused), "TCP to {to}: {tcp:?}");
    let udp = client.run(|| {
        let socket = UdpSocket::bind(bind)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"knock")?;
        Ok(socket.recv(&mut [0; 16]))
    })?;
    ensure!(udp.as_ref().is_err_and(refused), "UDP to {to}: {udp:?}");
    Ok(())
}

fn unspecified(to: SocketAddr) -> SocketAddr {
    let ip: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    at(ip, 0)
}

/// As [`call_udp`], with a server of this one address: from any it would answer with its first.
fn call_udp_at(client: &NetNs, to: SocketAddr, server: &NetNs) -> Result<()> {
    let theirs = server.run(|| Ok(UdpSocket::bind(to)?))?;
    let ours = client.run(|| Ok(UdpSocket::bind(unspecified(to))?))?;
    for socket in [&theirs, &ours] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    ours.send_to(b"whose", to)?;
    let (_len, from) = theirs.recv_from(&mut [0; 16])?;
    theirs.send_to(b"mine", from)?;
    ensure!(ours.recv_from(&mut [0; 16])?.1 == to, "another one answers");
    Ok(())
}

/// An address leads to the sandbox while the host has it, and to whoever has it otherwise.
fn leads_to_who_has_it(
    lab: &Lab,
    outside: &Outside,
    sandbox: &NetNs,
    (ip, prefix, client): (&str, u8, IpAddr),
) -> Result<()> {
    let h1 = lab.host("h1")?;
    let moved = at(ip.parse()?, 8083);
    for call in [call_tcp, call_udp] {
        ensure!(call(&outside.netns, moved, sandbox, 83)? == client, "another client");
    }
    let give = |from: &NetNs, to: &NetNs| {
        sh(from, &format!("ip address del {ip}/{prefix} dev eth0"))?;
        sh(to, &format!("ip address add {ip}/{prefix} dev eth0 nodad; ip neigh flush all"))
    };
    give(&h1, &outside.netns)?;
    call_tcp(&h1, moved, &outside.netns, 8083).context("another host's address leads here")?;
    call_udp_at(&h1, moved, &outside.netns).context("another host's address leads here")?;
    wait_until("doctor says that it is away", || {
        let said = lab.try_vxmesh("h1", &["doctor"])?.stdout;
        let away = format!("{ip}, which is no address of this host");
        Ok(String::from_utf8_lossy(&said).contains(&away))
    })?;
    give(&outside.netns, &h1)?;
    sh(&outside.netns, "ip neigh flush all")?;
    for call in [call_tcp, call_udp] {
        wait_until("its own address", || Ok(call(&outside.netns, moved, sandbox, 83).is_ok()))?;
    }
    Ok(())
}

#[test]
fn a_published_port_answers_only_where_it_was_promised() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let h1 = lab.host("h1")?;
    sh(&h1, "ip address add 10.213.0.50/24 dev eth0; ip address add fd13::50/64 dev eth0 nodad")?;
    let ports = [
        "127.0.0.1:8080:80",
        "127.0.0.1:8080:80/udp",
        "127.0.0.2:8081:80",
        "8082:82",
        "8082:82/udp",
        "10.213.0.50:8083:83",
        "[fd13::50]:8083:83",
        "10.213.0.50:8083:83/udp",
        "[fd13::50]:8083:83/udp",
        "8084:84",
    ];
    let a = publish(&lab, "h1", "blue", "a", &ports)?;
    let local = |last: u8| IpAddr::from([127, 0, 0, last]);
    for call in [call_tcp, call_udp] {
        call(&h1, at(local(1), 8080), &a.netns, 80)?;
        call(&h1, at(local(1), 8082), &a.netns, 82)?;
    }
    call_tcp(&h1, at(local(2), 8081), &a.netns, 80)?;

    // A neighbour for whom 127.0.0.1 is the host.
    sh(&outside.netns, ROUTED)?;
    let shut = [80, 82].map(|port| Shut::start(&a.netns, port));
    for to in [at(local(1), 8080), at(local(2), 8081), at(local(1), 8082)] {
        knock(&outside.netns, to)?;
    }
    // This one came later, and arrives.
    call_tcp(&outside.netns, at(host_ip(1, true)?, 8084), &a.netns, 84)?;
    shut.into_iter().try_for_each(|shut| shut?.heard_nobody())?;

    for moves in [("10.213.0.50", 24, outside::IPV4), ("fd13::50", 64, outside::IPV6)] {
        leads_to_who_has_it(&lab, &outside, &a.netns, moves)?;
    }

    // What IPv6 does not route is refused at once, by the host and by its neighbours.
    let any: SocketAddr = "[::]:0".parse()?;
    for client in [&h1, &outside.netns] {
        refuses(client, any, link_local(&h1, client, 8082)?)?;
    }
    refuses(&h1, any, at(Ipv6Addr::LOCALHOST.into(), 8082))?;
    let from = link_local(&outside.netns, &outside.netns, 0)?;
    refuses(&outside.netns, from, at(host_ip(1, false)?, 8082))?;
    call_tcp(&outside.netns, at(host_ip(1, false)?, 8082), &a.netns, 82)?;
    lab.finish(Allowed::default())
}
