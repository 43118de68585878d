//! Published ports lead to a sandbox by the network that has its default route, and follow it.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Published, Sandbox};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, UNDERWAY, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::{Echo, udp_to},
};

use super::{connect, disconnect, inspect, run};
use crate::egress::{host_ip, settles, state};

/// A UDP client that keeps its port, and who answers it.
struct Steady {
    client: UdpSocket,
    _server: Echo,
}

impl Steady {
    fn start(outside: &Outside, server: &NetNs, ipv4: bool) -> Result<Self> {
        // Each has a port of the sandbox to itself.
        let (sandbox_port, port) = if ipv4 { (7004, 8004) } else { (7006, 8006) };
        let server = Echo::start_on(server, sandbox_port)?;
        let client = outside.netns.run(|| udp_to(host_ip(1, ipv4)?, port))?;
        client.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { client, _server: server })
    }

    fn answered(&self, what: &str) -> Result<()> {
        let mut answer = [0; 8];
        while self.client.recv(&mut answer).is_ok() {}
        wait_until(&format!("{what}: a client that stays is answered"), || {
            // What came while nobody was there to answer is refused.
            Ok(self.client.send(b"steady").is_ok() && self.client.recv(&mut answer).is_ok())
        })
    }
}

/// In an internal network alone it cannot be reached: refused at once, held, and told.
fn leads_nowhere(lab: &Lab, outside: &Outside, a: &Plugged) -> Result<()> {
    for ipv4 in [true, false] {
        let to = SocketAddr::new(host_ip(1, ipv4)?, 8080);
        let begun = Instant::now();
        let answered = call_tcp(&outside.netns, to, &a.netns, 80);
        ensure!(answered.is_err() && begun.elapsed().as_secs() < 4, "{answered:?}");
    }
    let listed = lab.vxmesh("h1", &["sandbox", "ls"])?;
    ensure!(listed.contains("*:8080->80/tcp (leads nowhere)"), "{listed}");
    let taken =
        lab.try_vxmesh("h1", &["run", "--network", "red", "--publish", "8080", "--", "true"])?;
    ensure!(taken.status.code() == Some(125), "{taken:?}");
    Ok(())
}

#[test]
fn ports_follow_the_default_route() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    let host = lab.host("h1")?;
    for network in ["blue", "red"] {
        lab.network("h1", network)?;
    }
    lab.vxmesh("h1", &["network", "create", "dark", "--internal"])?;
    lab.vxmesh("h1", &["network", "create", "four", "--subnet", "10.44.0.0/16"])?;
    let before = state(&host)?;
    let mut flags = vec!["--network", "blue,dark"];
    for port in ["8080:80", "8080:80/udp", "8004:7004/udp", "8006:7006/udp"] {
        flags.extend(["--publish", port]);
    }
    let a = run(&lab, "h1", "a", &flags)?;
    let ends = |shown: &Sandbox| -> Vec<(Option<IpAddr>, Option<String>)> {
        let network = |published: &Published| {
            let networks = shown.networks.iter();
            networks
                .clone()
                .find(|it| Some(it.endpoint) == published.endpoint)
                .map(|it| it.network.to_string())
        };
        let tcp =
            shown.published.iter().filter(|it| it.port == 8080 && it.protocol.as_str() == "tcp");
        tcp.map(|published| (published.ip, network(published))).collect()
    };
    let reached = |what: &str| {
        for (ipv4, theirs) in [(true, outside::IPV4), (false, outside::IPV6)] {
            let to = SocketAddr::new(host_ip(1, ipv4)?, 8080);
            let tcp = call_tcp(&outside.netns, to, &a.netns, 80).context(what.to_owned())?;
            let udp = call_udp(&outside.netns, to, &a.netns, 80).context(what.to_owned())?;
            ensure!([tcp, udp] == [theirs; 2], "{what}: it sees {tcp} and {udp}");
        }
        Ok::<_, anyhow::Error>(())
    };
    let id = |name: &str| -> Result<String> {
        Ok(lab.json::<vxmesh::api::Network>("h1", &["network", "inspect", name])?.id.to_string())
    };
    reached("by blue")?;
    // Who goes on sending from one port is led on, too: its flow is known to the kernel.
    let steady = [true, false].map(|ipv4| Steady::start(&outside, &a.netns, ipv4));
    let steady = steady.into_iter().collect::<Result<Vec<_>>>()?;
    let reached = |what: &str| {
        steady.iter().try_for_each(|client| client.answered(what))?;
        reached(what)
    };
    reached("by blue, with a client that stays")?;
    ensure!(ends(&inspect(&lab, &a)?) == [(None, Some(id("blue")?))]);
    connect(&lab, &a, "red", &[])?;
    reached("still by blue")?;
    disconnect(&lab, &a, "blue")?;
    reached("by red")?;
    ensure!(ends(&inspect(&lab, &a)?) == [(None, Some(id("red")?))]);
    connect(&lab, &a, "blue", &["--gw-priority", "1"])?;
    reached("by blue again")?;
    lab.lab(&["kill", "h1"])?;
    reached("without an agent")?;
    lab.lab(&["start", "h1"])?;
    reached("with the next agent")?;
    sh(&host, "nft flush ruleset")?;
    wait_until("after a flush", || Ok(reached("after a flush").is_ok()))?;

    // Each IP version by its own default route.
    connect(&lab, &a, "four", &["--gw-priority", "2"])?;
    reached("by two networks")?;
    let shown = ends(&inspect(&lab, &a)?);
    let wanted =
        [(Some("0.0.0.0".parse()?), Some(id("four")?)), (Some("::".parse()?), Some(id("blue")?))];
    ensure!(shown == wanted, "{shown:?}");
    for network in ["four", "red", "blue"] {
        disconnect(&lab, &a, network)?;
    }
    leads_nowhere(&lab, &outside, &a)?;
    for client in &steady {
        client.client.send(b"nobody")?;
    }
    connect(&lab, &a, "red", &[])?;
    reached("by red after all")?;
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    settles(&host, &before, "after the sandbox")?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
