//! Published ports of services on a host that lacks something: it says so, and nothing is given up
//! by halves.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Diagnosis, Health, Network, Service};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, UNDERWAY, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::{listen, payload, udp_to},
};

use super::{
    ingress::{PATIENCE, WHILE_STARTING, beats, is, standing},
    settled,
};
use crate::egress::host_ip;

/// Where the backend listens, and every host for it.
const PORT: u16 = 9000;
/// Networks that were made to fill a disk.
static MADE: AtomicUsize = AtomicUsize::new(0);
/// All that uplinks choose their addresses from.
const POOLS: [&str; 3] = ["169.254.0.0/16", "198.18.0.0/15", "240.0.0.0/4"];

/// Network blue, with a backend on h2; h3 has no endpoint in it.
struct World {
    lab: Lab,
    outside: Outside,
    backend: Plugged,
}

impl World {
    fn up() -> Result<Self> {
        let lab = Lab::up(3)?;
        let create = ["network", "create", "blue"];
        let subnets = ["--subnet", "10.74.0.0/24", "--subnet", "fd74::/64"];
        let _blue: Network = lab.json("h1", &[&create[..], &subnets].concat())?;
        for host in ["h2", "h3"] {
            wait_until("the network is there", || {
                Ok(lab.try_vxmesh(host, &["network", "inspect", "blue"])?.status.success())
            })?;
        }
        let backend = lab.sandbox("h2", "blue", "b")?;
        lab.all_know(&[&backend.endpoint])?;
        let outside = Outside::join(&lab)?;
        Ok(Self { lab, outside, backend })
    }

    fn publish(&self) -> Result<()> {
        let create = ["service", "create", "data", "--network", "blue", "--backend", "b"];
        let ports = ["--port", "9000", "--publish", "9000", "--port", "53:9000/udp"];
        let udp = ["--publish", "5300:53/udp"];
        self.lab.vxmesh("h1", &[&create[..], &ports, &udp].concat())?;
        settled(&self.lab, "data", 1)
    }

    /// A connection from outside to the backend by h3.
    fn connect(&self, listener: &TcpListener, ipv4: bool) -> Result<[TcpStream; 2]> {
        let to = SocketAddr::new(host_ip(3, ipv4)?, PORT);
        let client = self.outside.netns.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
        let server = listener.accept()?.0;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        Ok([client, server])
    }

    fn listen(&self) -> Result<TcpListener> {
        self.backend.netns.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, PORT))?))
    }

    /// Where the network is on h3.
    fn inside(&self) -> Result<NetNs> {
        let network: Network = self.lab.json("h3", &["network", "inspect", "blue"])?;
        self.lab.inner("h3", &format!("/run/vxmesh/netns/{}", network.id.short()))
    }
}

#[test]
fn a_port_that_leads_nowhere_is_not_called_open() -> Result<()> {
    let world = World::up()?;
    let (lab, outside) = (&world.lab, &world.outside);
    for pool in POOLS {
        lab.sh("h3", &format!("ip route add {pool} dev eth0"))?;
    }
    world.publish()?;
    is(lab, "h1", "data", "9000", "open")?;
    is(lab, "h3", "data", "9000", "faulty")?;
    let says = standing(lab, "h3", "data", "9000")?;
    ensure!(says.contains("no pair of addresses"), "{says}");
    let doctor = lab.try_vxmesh("h3", &["doctor"])?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    let named = said.lines().any(|line| line.contains("service `data` is not published"));
    ensure!(doctor.status.code() == Some(1) && named, "{said}");
    for pool in POOLS {
        lab.sh("h3", &format!("ip route del {pool} dev eth0"))?;
    }
    is(lab, "h3", "data", "9000", "open")?;
    for ipv4 in [true, false] {
        let theirs = if ipv4 { outside::IPV4 } else { outside::IPV6 };
        let by = host_ip(3, ipv4)?;
        let seen = [
            call_tcp(&outside.netns, (by, PORT).into(), &world.backend.netns, PORT)?,
            call_udp(&outside.netns, (by, 5300).into(), &world.backend.netns, PORT)?,
        ];
        ensure!(seen == [theirs; 2], "{seen:?}");
    }
    let doctor = lab.try_vxmesh("h3", &["doctor"])?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    ensure!(!said.contains("service `data`"), "{said}");
    world.lab.finish(Allowed { warnings: &["no full way out"], ..Allowed::default() })
}

/// How many ICMP errors of a kind this host has got.
fn errors(netns: &NetNs, kind: &str) -> Result<u64> {
    let script = format!("nstat -asz {kind} | tail -n 1 | tr -s ' ' | cut -d' ' -f 2");
    Ok(sh(netns, &script)?.trim().parse()?)
}

/// What the kernel of the way in says of packets that it does not forward is believed at both ends.
#[test]
fn both_ends_hear_of_errors_on_the_way_in() -> Result<()> {
    let world = World::up()?;
    let (lab, outside) = (&world.lab, &world.outside);
    world.publish()?;
    is(lab, "h3", "data", "9000", "open")?;
    let (listener, inside) = (world.listen()?, world.inside()?);
    for (ipv4, theirs, ip) in [(true, outside::IPV4, "ip -4"), (false, outside::IPV6, "ip -6")] {
        let [mut client, mut server] = world.connect(&listener, ipv4)?;
        beats(&mut client, &mut server)?;
        // The path back gets narrow there, which only its kernel knows.
        sh(
            &inside,
            &format!(
                "{ip} route add {theirs} $({ip} route show default | cut -d' ' -f 2-5) mtu 1300"
            ),
        )?;
        let sent = payload(200_000);
        let mut got = vec![0; sent.len()];
        let writer = {
            let sent = sent.clone();
            thread::spawn(move || server.write_all(&sent).map(|()| server))
        };
        client.read_exact(&mut got).context("the backend does not hear of the path's MTU")?;
        ensure!(got == sent, "other bytes came");
        let _server = writer.join().ok().context("the writer failed")??;
        let route = sh(&world.backend.netns, &format!("{ip} route get {theirs}"))?;
        ensure!(route.contains("mtu 1300"), "{route}");
    }
    // A packet of the client that has no hop left for that kernel.
    let socket = outside.netns.run(|| udp_to(host_ip(3, true)?, 5300))?;
    socket.set_ttl(2)?;
    let before = errors(&outside.netns, "IcmpInTimeExcds")?;
    wait_until("the client hears of it", || {
        // An error of the one before may be told instead.
        let _sent = socket.send(b"far");
        Ok(errors(&outside.netns, "IcmpInTimeExcds")? > before)
    })?;
    world.lab.finish(Allowed::default())
}

/// Gives h3 a disk of its own, which a test can fill.
fn small_disk(lab: &Lab) -> Result<()> {
    lab.lab(&["kill", "h3"])?;
    lab.sh(
        "h3",
        "cp -a /var/lib/vxmesh /var/lib/saved; \
         mount -t tmpfs -o size=64m,mode=700 none /var/lib/vxmesh; \
         cp -a /var/lib/saved/. /var/lib/vxmesh",
    )?;
    lab.lab(&["start", "h3"])?;
    Ok(())
}

/// Fills it until the agent knows.
fn fill(lab: &Lab) -> Result<()> {
    lab.sh("h3", "dd if=/dev/zero of=/var/lib/vxmesh/fill bs=4k 2>/dev/null || true")?;
    wait_until("the disk takes nothing", || {
        let name = format!("n{}", MADE.fetch_add(1, Ordering::Relaxed));
        Ok(!lab.try_vxmesh("h3", &["network", "create", &name])?.status.success())
    })
}

/// Whether somebody else can have the port on h3.
fn is_free(lab: &Lab) -> Result<bool> {
    let bound = lab.host("h3")?.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))))?;
    match bound {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn a_disk_that_takes_nothing_ends_nothing_by_halves() -> Result<()> {
    let world = World::up()?;
    let lab = &world.lab;
    small_disk(lab)?;
    world.publish()?;
    is(lab, "h3", "data", "9000", "open")?;
    // What can end by itself while the disk is full.
    lab.sh("h3", "ip netns add box")?;
    lab.vxmesh("h3", &["endpoint", "attach", "blue", "--netns", "box", "--name", "e"])?;
    let listener = world.listen()?;
    let [mut client, mut server] = world.connect(&listener, true)?;
    beats(&mut client, &mut server)?;
    fill(lab)?;
    let log = |what: &str| Ok::<_, anyhow::Error>(lab.log("h3")?.matches(what).count());

    lab.sh("h3", "ip netns del box")?;
    let begun = Instant::now();
    wait_until("some rounds go by", || {
        beats(&mut client, &mut server)?;
        Ok(begun.elapsed() > Duration::from_secs(8))
    })?;
    for what in ["endpoint ended", "is not removed", "are as before"] {
        ensure!(log(what)? <= 1, "again and again: {what}");
    }

    // It stays a member, with all that it holds.
    let left = lab.try_vxmesh("h3", &["leave", "--yes"])?;
    ensure!(!is_free(lab)?, "the port was given free for a moment: {left:?}");
    ensure!(left.status.code() == Some(1), "it left: {left:?}");
    beats(&mut client, &mut server)?;
    is(lab, "h3", "data", "9000", "open")?;

    lab.sh("h3", "rm /var/lib/vxmesh/fill")?;
    wait_until("the endpoint is gone", || {
        let endpoints: Vec<vxmesh::api::Endpoint> = lab.get("h3", "/v1/endpoints")?;
        Ok(endpoints.iter().all(|it| it.name.as_str() != "e"))
    })?;
    beats(&mut client, &mut server)?;
    world.ends_calmly(&listener)?;
    // The cable of an endpoint that cannot be ended yet is still looked for.
    let told = ["nothing is kept on disk", "not kept", "links on this host are not as"];
    let drops = [WHILE_STARTING, &["source_unknown", "service_port"]].concat();
    world.lab.finish(Allowed { warnings: &told, drops: &drops })
}

impl World {
    /// A service ends and comes again while the disk takes nothing, and h3 is the same as before
    /// but for the port.
    fn ends_calmly(&self, listener: &TcpListener) -> Result<()> {
        let lab = &self.lab;
        wait_until("no endpoint is there", || {
            let way = lab.json::<Network>("h3", &["network", "inspect", "blue"])?.way;
            Ok(way.is_some_and(|way| way.node_ips.is_empty()))
        })?;
        fill(lab)?;
        let before = lab.log("h3")?.lines().count();
        lab.vxmesh("h1", &["service", "rm", "data"])?;
        wait_until("the port is free", || is_free(lab))?;
        let begun = Instant::now();
        wait_until("some rounds go by", || Ok(begun.elapsed() > Duration::from_secs(8)))?;
        let log = lab.log("h3")?;
        let said: Vec<&str> = log.lines().skip(before).collect();
        ensure!(said.len() <= 4, "it says again and again: {said:#?}");
        self.publish()?;
        is(lab, "h3", "data", "9000", "open")?;
        wait_until("it leads on", || {
            let pair = self.connect(listener, true);
            Ok(pair.is_ok_and(|[mut client, mut server]| beats(&mut client, &mut server).is_ok()))
        })?;
        lab.vxmesh("h1", &["service", "rm", "data"])?;
        lab.sh("h3", "rm /var/lib/vxmesh/fill")?;
        let h3 = lab.host("h3")?;
        wait_until("nothing is left on the host", || {
            let left = sh(&h3, "ls /run/vxmesh/netns; ip -o link | grep vxm; true")?;
            Ok(left.trim().is_empty())
        })
    }
}

/// A backend answers by the network that has its default route, whatever it was called by.
#[test]
fn a_backend_that_answers_by_another_network_is_named() -> Result<()> {
    let lab = Lab::up(1)?;
    for network in ["blue", "green"] {
        lab.vxmesh("h1", &["network", "create", network])?;
    }
    let run = ["run", "-d", "--name", "web", "--network", "name=blue"];
    let other = ["--network", "name=green,gw-priority=10", "sleep", "1000"];
    lab.vxmesh("h1", &[&run[..], &other].concat())?;
    let make = ["service", "create", "front", "--network", "blue", "--backend", "web"];
    lab.vxmesh("h1", &[&make[..], &["--port", "80", "--publish", "8080:80"]].concat())?;
    settled(&lab, "front", 1)?;
    let said = || -> Result<(String, bool)> {
        let front: Service = lab.json("h1", &["service", "inspect", "front"])?;
        let rows: Vec<Diagnosis> = lab.get("h1", "/v1/doctor")?;
        let is_its = |row: &Diagnosis| row.check == "service front" && row.health == Health::Warn;
        Ok((front.warnings.concat(), rows.iter().any(is_its)))
    };
    let (warnings, told) = said()?;
    let why = "backend `web` loses its answers to clients from outside";
    ensure!(told && warnings.contains(why) && warnings.contains("`green`"), "{warnings}");
    lab.vxmesh("h1", &["network", "disconnect", "green", "web"])?;
    wait_until("nothing is lost any more", || Ok(said()? == (String::new(), false)))?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
