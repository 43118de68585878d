//! A host on a lab's wire that belongs to no mesh: what sandboxes call the outside.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    lab::Lab,
    netns::NetNs,
    program::{command, printed},
    topology::Topology,
    traffic::{bind_udp, listen, payload, udp_to},
};

/// Its IPv4 address.
pub const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 213, 0, 200));
/// Its IPv6 address.
pub const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd13, 0, 0, 0, 0, 0, 0, 0x200));
/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The host; it goes with the test.
#[derive(Debug)]
pub struct Outside {
    /// Its network namespace.
    pub netns: NetNs,
    _topology: Topology,
}

impl Outside {
    /// Plugs it into the wire of a lab, with routes to nothing but the wire.
    ///
    /// # Errors
    ///
    /// There is no `ip`, or it refuses something.
    pub fn join(lab: &Lab) -> Result<Self> {
        let topology = Topology::new()?;
        let path = topology.sandbox("outside")?.path;
        let netns = NetNs::open(&path)?;
        let path = path.to_str().context("an odd path")?;
        sh(
            &lab.wire()?,
            &format!(
                "ip link add out0 type veth peer name eth0 netns {path} && ip link set out0 master wire up"
            ),
        )?;
        sh(
            &netns,
            &format!(
                "ip link set lo up && ip link set eth0 up && ip address add {IPV4}/24 dev eth0 && ip address add {IPV6}/64 dev eth0 nodad"
            ),
        )?;
        Ok(Self { netns, _topology: topology })
    }
}

/// A shell script in a network namespace, which must succeed; what it printed.
///
/// # Errors
///
/// It failed.
pub fn sh(netns: &NetNs, script: &str) -> Result<String> {
    let output = netns.run(|| Ok(command("sh").args(["-c", script]).output()?))?;
    printed(script, output)
}

/// Connects from one namespace to an address behind which a server in another one listens on
/// `port`, and carries data both ways. Says which address the server sees.
///
/// # Errors
///
/// There is no connection, or other data came.
pub fn call_tcp(client: &NetNs, to: SocketAddr, server: &NetNs, port: u16) -> Result<IpAddr> {
    let listener = server.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, port))?))?;
    let mut ours = client
        .run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))
        .with_context(|| format!("TCP to {to}"))?;
    let (mut theirs, from) = listener.accept()?;
    let sent = payload(10_000);
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let mut got = vec![0; sent.len()];
    ours.write_all(&sent)?;
    theirs.read_exact(&mut got)?;
    ensure!(got == sent, "TCP to {to}: other data");
    theirs.write_all(&sent)?;
    ours.read_exact(&mut got)?;
    ensure!(got == sent, "TCP to {to}: another answer");
    Ok(from.ip().to_canonical())
}

/// As [`call_tcp`], with one datagram each way.
///
/// # Errors
///
/// No datagram came, or another one.
pub fn call_udp(client: &NetNs, to: SocketAddr, server: &NetNs, port: u16) -> Result<IpAddr> {
    let theirs = server.run(|| Ok(bind_udp((Ipv6Addr::UNSPECIFIED, port))?))?;
    theirs.set_read_timeout(Some(PATIENCE))?;
    let ours = client.run(|| udp_to(to.ip(), to.port()))?;
    let (sent, mut got) = (payload(1000), vec![0; 2000]);
    ours.send(&sent)?;
    let (len, from) = theirs.recv_from(&mut got).with_context(|| format!("UDP to {to}"))?;
    ensure!(got.get(..len) == Some(&sent), "UDP to {to}: another datagram");
    theirs.send_to(&sent, from)?;
    let len = ours.recv(&mut got).with_context(|| format!("UDP from {to}"))?;
    ensure!(got.get(..len) == Some(&sent), "UDP from {to}: another datagram");
    Ok(from.ip().to_canonical())
}
