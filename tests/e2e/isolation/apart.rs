//! `network create --isolated`: endpoints reach the gateway, the hosts, names and the outside, and
//! not each other.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::{
    capture::Capture,
    lab::{Allowed, Lab, Plugged, wait_until},
    outside::{self, Outside, call_tcp, sh},
    traffic::{ping, send_frames},
};

use super::{
    caught,
    forgeries::{self, Party, gateway},
    nothing_arrived,
};
use crate::egress::{PORT, host_ip, ip_of};

fn silent(from: &Plugged, to: IpAddr) -> Result<()> {
    let answered = sh(&from.netns, &format!("ping -n -c 1 -W 1 {to}"));
    ensure!(answered.is_err(), "{to} answers {}: {answered:?}", from.endpoint.name);
    Ok(())
}

#[test]
fn isolated_endpoints_reach_everything_but_each_other() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    lab.vxmesh("h1", &["network", "create", "blue", "--isolated"])?;
    let (a, b) = (lab.sandbox("h1", "blue", "a")?, lab.sandbox("h1", "blue", "b")?);
    let c = lab.sandbox("h2", "blue", "c")?;
    lab.all_know(&[&a.endpoint, &b.endpoint, &c.endpoint])?;
    for host in lab.hosts() {
        let listed: Vec<Network> = lab.json(host, &["network", "ls"])?;
        ensure!(listed.iter().all(|network| network.isolated), "{listed:?}");
    }
    let shown: Network = lab.json("h1", &["network", "inspect", "blue"])?;
    ensure!(shown.isolated, "{shown:?}");

    for ipv4 in [true, false] {
        let outer = if ipv4 { outside::IPV4 } else { outside::IPV6 };
        for host in ["h1", "h2"] {
            let netns = lab.host(host)?;
            for sandbox in [&a, &b, &c] {
                ping(&netns, ip_of(sandbox, ipv4)?, 2)
                    .with_context(|| format!("{host} to {}", sandbox.endpoint.name))?;
            }
        }
        for (sandbox, number) in [(&a, 1), (&c, 2)] {
            for subnet in shown.subnets.iter().filter(|it| it.gateway.is_ipv4() == ipv4) {
                ping(&sandbox.netns, subnet.gateway, 2)?;
            }
            let seen =
                call_tcp(&sandbox.netns, SocketAddr::new(outer, PORT), &outside.netns, PORT)?;
            ensure!(seen == host_ip(number, ipv4)?, "{seen}");
        }
        for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a)] {
            silent(from, ip_of(to, ipv4)?)?;
        }
    }
    let named = lab.vxmesh("h1", &["exec", "a", "--", "getent", "ahostsv4", "c"])?;
    ensure!(named.contains(&ip_of(&c, true)?.to_string()), "names are answered: {named}");
    around(&lab, &shown, (&a, &b, &c))?;
    lab.finish(Allowed { drops: &["isolated", "neighbor_unknown"], ..Allowed::default() })
}

/// By way of the gateway, and of another host's own address, to who must not be reached.
fn around(lab: &Lab, network: &Network, (a, b, c): (&Plugged, &Plugged, &Plugged)) -> Result<()> {
    let gateway = gateway(network)?;
    let parties = [a, b, c].map(|plugged| Party::of(&plugged.endpoint));
    let [me, near, far] = parties;
    let (me, near, far) = (me?, near?, far?);
    let nodes = |host: &str| -> Result<Vec<[u8; 6]>> {
        let rows = lab.json::<Vec<vxmesh::api::MapRow>>(host, &["map", "ls"])?;
        let own: Vec<_> = [a, b, c].iter().map(|plugged| plugged.endpoint.mac).collect();
        Ok(rows
            .into_iter()
            .map(|row| row.mac)
            .filter(|mac| !own.contains(mac))
            .map(|m| m.0)
            .collect())
    };
    let nodes = nodes("h1")?;
    ensure!(nodes.len() == 2, "two hosts have an address of their own: {nodes:?}");
    let captures = [Capture::start(&b.netns, "eth0")?, Capture::start(&c.netns, "eth0")?];
    for by in nodes.iter().chain([&gateway.mac, &near.mac, &far.mac]) {
        for to in [near, far] {
            let before = caught(lab, "h1", "isolated", network)?;
            let frame = forgeries::udp4(me.mac, me.v4, *by, to.v4)?;
            send_frames(&a.netns, "eth0", &[frame])?;
            wait_until(&format!("{by:x?} does not lead to {:?}", to.v4), || {
                Ok(caught(lab, "h1", "isolated", network)? > before)
            })
            .context("around")?;
        }
    }
    captures.into_iter().try_for_each(nothing_arrived)
}
