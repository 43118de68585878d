//! All ways to a service, once with the checksums that a host leaves to its card, and once with
//! complete ones: what is wrong in the second shows nowhere in the first, as nobody looks at it.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use vxmesh::api::{Network, Service};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, tell, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::{bind_udp, payload, udp_to},
};

use super::{ingress::is, settled};
use crate::egress::host_ip;

/// Where backends listen, by TCP and UDP, and where nobody does.
const OPEN: u16 = 8080;
const CLOSED: u16 = 8081;
/// Both at a VIP.
const VIP_PORTS: (u16, u16) = (80, 81);
/// More than a packet of the network has room for.
const LARGE: usize = 3000;
/// Before a datagram is sent again.
const TICK: Duration = Duration::from_millis(300);

/// A way from a client to a backend.
#[derive(Clone)]
struct Way<'a> {
    what: String,
    client: &'a NetNs,
    to: IpAddr,
    /// Those that lead to [`OPEN`] and [`CLOSED`].
    ports: (u16, u16),
    server: &'a NetNs,
    /// The client as the backend sees it, where that is one address.
    sees: Option<IpAddr>,
}

impl Way<'_> {
    /// Streams and datagrams of both ends, fragments, and the error about a port that is closed.
    fn check(&self) -> Result<()> {
        let [open, closed] =
            [self.ports.0, self.ports.1].map(|port| SocketAddr::new(self.to, port));
        let seen = [
            call_tcp(self.client, open, self.server, OPEN)?,
            call_udp(self.client, open, self.server, OPEN)?,
        ];
        ensure!(
            self.sees.is_none_or(|own| seen == [own; 2]),
            "seen as {seen:?}, not {:?}",
            self.sees
        );
        self.sends_large(open)?;
        let socket = self.client.run(|| udp_to(closed.ip(), closed.port()))?;
        socket.set_read_timeout(Some(TICK))?;
        wait_until("the client is told that nobody listens", || {
            let said = socket.send(&payload(100)).and_then(|_| socket.recv(&mut [0; 1]));
            Ok(said.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
        })
    }

    /// A datagram in fragments, both ways. It is lost where one of them overtakes the first.
    fn sends_large(&self, to: SocketAddr) -> Result<()> {
        let theirs = self.server.run(|| Ok(bind_udp((Ipv6Addr::UNSPECIFIED, OPEN))?))?;
        let ours = self.client.run(|| udp_to(to.ip(), to.port()))?;
        theirs.set_read_timeout(Some(TICK))?;
        ours.set_read_timeout(Some(TICK))?;
        let (sent, mut got) = (payload(LARGE), vec![0; 2 * LARGE]);
        wait_until("a datagram in fragments comes and goes", || {
            // The first one may be refused: then it has taught the kernel the MTU of the path.
            if ours.send(&sent).is_err() {
                return Ok(false);
            }
            let Ok((len, from)) = theirs.recv_from(&mut got) else { return Ok(false) };
            ensure!(got.get(..len) == Some(&sent), "another datagram came");
            theirs.send_to(&sent, from)?;
            let Ok(len) = ours.recv(&mut got) else { return Ok(false) };
            ensure!(got.get(..len) == Some(&sent), "another datagram came back");
            Ok(true)
        })
    }
}

fn of_version(ips: &[IpAddr], is_ipv4: bool) -> Result<IpAddr> {
    ips.iter().copied().find(|ip| ip.is_ipv4() == is_ipv4).context("no such address")
}

fn own(of: &Plugged, is_ipv4: bool) -> Result<IpAddr> {
    let ips: Vec<IpAddr> = of.endpoint.ips.iter().map(IpNet::addr).collect();
    of_version(&ips, is_ipv4)
}

/// Two hosts, each with a backend of a service of its own, and who calls them.
struct World {
    lab: Lab,
    outside: Outside,
    /// h1 with its addresses in the network, and its end of the cable to it.
    host: (NetNs, Vec<IpAddr>, String),
    client: Plugged,
    near: Backend,
    far: Backend,
}

/// The backend of a service, and how that is reached.
struct Backend {
    plugged: Plugged,
    vips: Vec<IpAddr>,
    /// What leads to [`VIP_PORTS`] at hosts.
    ports: (u16, u16),
}

impl Backend {
    /// Has it answer for a service of its own, which all hosts publish.
    fn serve(lab: &Lab, plugged: Plugged, ports: (u16, u16)) -> Result<Self> {
        let backend = plugged.endpoint.name.as_str().to_owned();
        let name = format!("to-{backend}");
        let (open, closed) = ports;
        let publish = [format!("{open}:80"), format!("{open}:80/udp"), format!("{closed}:81/udp")];
        let mut make = vec!["service", "create", &name, "--network", "blue", "--backend", &backend];
        make.extend(["--port", "80:8080", "--port", "80:8080/udp", "--port", "81:8081/udp"]);
        make.extend(publish.iter().flat_map(|port| ["--publish", port]));
        let made: Service = lab.json("h1", &make)?;
        settled(lab, &name, 1)?;
        for host in lab.hosts() {
            for port in [open, closed] {
                is(lab, host, &name, &port.to_string(), "open")?;
            }
        }
        Ok(Self { plugged, vips: made.vips, ports })
    }
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::up(2)?;
        let outside = Outside::join(&lab)?;
        let create = ["network", "create", "blue"];
        let subnets = ["--subnet", "10.78.0.0/24", "--subnet", "fd78::/64"];
        let _blue: Network = lab.json("h1", &[&create[..], &subnets].concat())?;
        wait_until("h2 knows the network", || {
            Ok(!lab.get::<Vec<Network>>("h2", "/v1/networks")?.is_empty())
        })?;
        let (near, far) = (lab.sandbox("h1", "blue", "near")?, lab.sandbox("h2", "blue", "far")?);
        let client = lab.sandbox("h1", "blue", "c")?;
        lab.all_know(&[&near.endpoint, &far.endpoint, &client.endpoint])?;
        let near = Backend::serve(&lab, near, (8080, 8081))?;
        let far = Backend::serve(&lab, far, (9080, 9081))?;
        let blue: Network = lab.json("h1", &["network", "inspect", "blue"])?;
        let way = blue.way.context("no way to the network")?;
        let nodes = way.node_ips.iter().map(IpNet::addr).collect();
        let host = (lab.host("h1")?, nodes, way.uplink.context("no uplink")?);
        Ok(Self { lab, outside, host, client, near, far })
    }

    fn ways(&self, is_ipv4: bool) -> Result<Vec<Way<'_>>> {
        let (host, nodes, _) = &self.host;
        let (client, node) = (own(&self.client, is_ipv4)?, of_version(nodes, is_ipv4)?);
        let theirs = if is_ipv4 { outside::IPV4 } else { outside::IPV6 };
        let mut ways = Vec::new();
        for (name, backend) in [("near", &self.near), ("far", &self.far)] {
            let (vip, at) = (of_version(&backend.vips, is_ipv4)?, own(&backend.plugged, is_ipv4)?);
            let mut add = |from: &str, client, to, ports, sees| {
                let what = format!("{from} to {name}, {to}");
                ways.push(Way { what, client, to, ports, server: &backend.plugged.netns, sees });
            };
            add("a sandbox", &self.client.netns, vip, VIP_PORTS, Some(client));
            add("a host", host, vip, VIP_PORTS, Some(node));
            // A direct connection passes the same rules.
            add("a sandbox directly", &self.client.netns, at, (OPEN, CLOSED), Some(client));
            let itself = if name == "near" { vip } else { own(&self.near.plugged, is_ipv4)? };
            add("a backend", &self.near.plugged.netns, vip, VIP_PORTS, Some(itself));
            for number in [1, 2] {
                let by = host_ip(number, is_ipv4)?;
                add("the outside", &self.outside.netns, by, backend.ports, Some(theirs));
                add("a sandbox by a host", &self.client.netns, by, backend.ports, None);
                add("a host by a host", host, by, backend.ports, None);
            }
        }
        Ok(ways)
    }

    /// How many there were.
    fn check(&self) -> Result<usize> {
        let ways = [self.ways(true)?, self.ways(false)?].concat();
        for way in &ways {
            way.check().with_context(|| way.what.clone())?;
        }
        Ok(ways.len())
    }
}

#[test]
fn all_ways_lead_to_a_service_whoever_makes_the_checksums() -> Result<()> {
    let world = World::new()?;
    let begun = Instant::now();
    let count = world.check()?;
    let left_to_cards = begun.elapsed();
    let (host, _, uplink) = &world.host;
    let sandboxes =
        [&world.client, &world.near.plugged, &world.far.plugged].map(|it| (&it.netns, "eth0"));
    for (netns, link) in
        sandboxes.into_iter().chain([(&world.outside.netns, "eth0"), (host, uplink.as_str())])
    {
        // Without `rx` its kernel looks at what it gets.
        sh(netns, &format!("ethtool -K {link} tx off rx off"))?;
        // Segments are cut by the kernel then, too.
        let shown = sh(netns, &format!("ethtool -k {link}"))?;
        let is_off = |what: &str| shown.lines().any(|line| line.trim_start().starts_with(what));
        ensure!(is_off("tx-checksumming: off") && is_off("tx-tcp-segmentation: off"), "{shown}");
    }
    world.check().context("with complete checksums")?;
    tell(&format!(
        "{count} ways took {left_to_cards:.1?}, and {:.1?} with complete checksums",
        begun.elapsed() - left_to_cards
    ));
    let World { lab, .. } = world;
    lab.finish(Allowed {
        drops: &["neighbor_unknown", "flow_unknown"],
        warnings: &["accepts nothing"],
    })
}
