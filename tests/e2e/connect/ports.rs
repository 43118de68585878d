//! Published ports lead to a sandbox by the network that has its default route, and follow it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Published, Sandbox};
use vxmesh_tests::{
    lab::{Allowed, Lab},
    outside::{self, Outside, call_tcp, call_udp, sh},
};

use super::{connect, disconnect, inspect, run};
use crate::egress::{host_ip, settles, state};

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
    let flags = ["--network", "blue,dark", "--publish", "8080:80", "--publish", "8080:80/udp"];
    let a = run(&lab, "h1", "a", &flags)?;
    let ends = |shown: &Sandbox| -> Vec<(Option<IpAddr>, Option<String>)> {
        let network = |published: &Published| {
            let networks = shown.networks.iter();
            networks
                .clone()
                .find(|it| Some(it.endpoint) == published.endpoint)
                .map(|it| it.network.to_string())
        };
        let tcp = shown.published.iter().filter(|it| it.protocol.as_str() == "tcp");
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
    vxmesh_tests::lab::wait_until("after a flush", || Ok(reached("after a flush").is_ok()))?;

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
    // In an internal network alone it cannot be reached: refused at once, held, and back with the next network.
    for ipv4 in [true, false] {
        let to = SocketAddr::new(host_ip(1, ipv4)?, 8080);
        let begun = std::time::Instant::now();
        let answered = call_tcp(&outside.netns, to, &a.netns, 80);
        ensure!(answered.is_err() && begun.elapsed().as_secs() < 4, "{answered:?}");
    }
    let listed = lab.vxmesh("h1", &["sandbox", "ls"])?;
    ensure!(listed.contains("*:8080->80/tcp (leads nowhere)"), "{listed}");
    let taken =
        lab.try_vxmesh("h1", &["run", "--network", "red", "--publish", "8080", "--", "true"])?;
    ensure!(taken.status.code() == Some(125), "{taken:?}");
    connect(&lab, &a, "red", &[])?;
    reached("by red after all")?;
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    settles(&host, &before, "after the sandbox")?;
    lab.finish(Allowed { drops: &["source_unknown"], ..Allowed::default() })
}
