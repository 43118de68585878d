//! An address that has another MAC than before is reached at once, by whoever spoke with the old
//! one: sandboxes and hosts on either side, and what is behind a VTEP that learns.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Network, Sandbox};
use vxmesh_tests::{
    lab::{Allowed, DEADLINE, Lab, Options, UNDERWAY, tell, wait_until},
    netns::NetNs,
    outside::{Outside, sh},
    traffic::{ECHO, Echo, udp_to},
};

const NEW: [&str; 2] = ["10.77.0.50", "fd77::50"];
/// The one that has them no more.
const OLD: &str = "02:00:00:00:00:99";
/// How long it may take; a test fails only at ten times that.
const AIM: Duration = Duration::from_secs(1);

/// Leaves the neighbour cache of a namespace as it is when the address was spoken with a moment
/// ago. It does not doubt what it has.
fn remember(netns: &NetNs, interface: &str) -> Result<()> {
    for version in ["ipv4", "ipv6"] {
        let setting = format!("/proc/sys/net/{version}/neigh/{interface}");
        sh(
            netns,
            &format!(
                "echo 3600000 > {setting}/base_reachable_time_ms; echo 3600 > {setting}/delay_first_probe_time"
            ),
        )?;
    }
    for ip in NEW {
        sh(netns, &format!("ip neigh replace {ip} lladdr {OLD} dev {interface} nud reachable"))?;
    }
    Ok(())
}

/// How long after `begin` an address answers, asked every few milliseconds.
fn answers(from: &NetNs, ip: IpAddr, begin: Instant) -> Result<Duration> {
    let socket = from.run(|| udp_to(ip, ECHO))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    while begin.elapsed() < DEADLINE {
        socket.send(b"?")?;
        if socket.recv(&mut [0; 8]).is_ok() {
            return Ok(begin.elapsed());
        }
    }
    anyhow::bail!("{ip} does not answer within {DEADLINE:?}")
}

/// Two hosts with a sandbox each, and a third sandbox that gets the addresses on the second host.
fn moves(plain: bool) -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    let outside = Outside::join(&lab)?;
    let mut create = vec!["network", "create", "blue", "--vni", "100"];
    create.extend(["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"]);
    create.extend(["--aux-address", "k4=10.77.0.200", "--aux-address", "k6=fd77::200"]);
    if plain {
        create.extend(["--encrypted=false", "--vtep", "10.213.0.200"]);
    }
    let network: Network = lab.json("h1", &create)?;
    wait_until("h2 lists the network", || {
        let networks: Vec<Network> = lab.get("h2", "/v1/networks")?;
        Ok(networks.iter().any(|listed| listed.id == network.id))
    })?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let b = lab.sandbox("h2", "blue", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    let id = network.id.to_string();
    let inside = |host: &str| lab.inner(host, &format!("/run/vxmesh/netns/{}", &id[..12]));
    let mut askers = vec![("a sandbox", &a.netns), ("a sandbox of its host", &b.netns)];
    let hosts = [inside("h1")?, inside("h2")?];
    for asker in [&a.netns, &b.netns] {
        remember(asker, "eth0")?;
    }
    for host in &hosts {
        remember(host, "node0")?;
    }
    askers.extend([("a host", &hosts[0]), ("its host", &hosts[1])]);
    if plain {
        sh(
            &outside.netns,
            &format!(
                "ip link add vx0 type vxlan id 100 dstport 4789 local 10.213.0.200
                ip link set vx0 mtu 1430 up; ip address add 10.77.0.200/24 dev vx0
                ip address add fd77::200/64 dev vx0 nodad
                bridge fdb replace {OLD} dev vx0 dst 10.213.0.1 dynamic"
            ),
        )?;
        remember(&outside.netns, "vx0")?;
        askers.push(("a machine behind a VTEP", &outside.netns));
    }
    let mut run = vec!["run", "-d", "--name", "c", "--network", "blue"];
    let ips = NEW.join(",");
    run.extend(["--ip", &ips, "--", "sleep", "3600"]);
    let sandbox: Sandbox = lab.json("h2", &run)?;
    let begin = Instant::now();
    let server = Echo::start(&lab.inner("h2", &sandbox.netns)?)?;
    for (who, asker) in askers {
        for ip in NEW {
            let took = answers(asker, ip.parse()?, begin).with_context(|| who.to_owned())?;
            tell(&format!("{ip} answers {who} after {took:.1?}"));
            ensure!(took < 10 * AIM, "{ip} answers {who} only after {took:?}");
        }
    }
    drop((server, a, b));
    let drops = [UNDERWAY, &["neighbor_unknown"][..]].concat();
    lab.finish(Allowed { drops: &drops, warnings: &[] })
}

#[test]
fn an_address_with_another_mac_is_reached_at_once() -> Result<()> {
    moves(false)
}

#[test]
fn an_address_with_another_mac_is_reached_at_once_from_behind_a_vtep() -> Result<()> {
    moves(true)
}
