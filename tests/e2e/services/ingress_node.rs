//! Published ports of services on a host that has no endpoint in the network.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::listen,
};

use super::{
    backends_on_two_hosts,
    ingress::{PATIENCE, WHILE_STARTING, asked, beats, is, is_refused, publish, sandbox_netns},
};
use crate::egress::host_ip;

/// Where the network is on h4.
fn inside(lab: &Lab, network: &Network) -> Result<NetNs> {
    lab.inner("h4", &format!("/run/vxmesh/netns/{}", network.id.short()))
}

/// Clients come in by h4 as by all others: TCP, UDP, both IP versions, and h4 itself.
fn is_an_ingress_node(lab: &Lab, outside: &Outside, backend: &NetNs) -> Result<()> {
    for (ipv4, theirs) in [(true, outside::IPV4), (false, outside::IPV6)] {
        let host = host_ip(4, ipv4)?;
        wait_until("the first answer comes", || {
            Ok(!asked(&outside.netns, host, 8080, 1)?.contains_key("lost"))
        })?;
        let got = asked(&outside.netns, host, 8080, 20)?;
        let expected = [format!("web2 {theirs}"), format!("web3 {theirs}")];
        ensure!(got.keys().eq(&expected), "{got:?}");
        let seen = [
            call_tcp(&outside.netns, (host, 9000).into(), backend, 9000)?,
            call_udp(&outside.netns, (host, 5300).into(), backend, 5353)?,
        ];
        ensure!(seen == [theirs; 2], "{seen:?}");
        let own = asked(&lab.host("h4")?, host, 8080, 4)?;
        ensure!(own.keys().all(|answer| answer.starts_with("web")), "{own:?}");
    }
    let loopback = asked(&lab.host("h4")?, "127.0.0.1".parse()?, 8080, 4)?;
    ensure!(loopback.keys().all(|answer| answer.starts_with("web")), "{loopback:?}");
    Ok(())
}

/// What came out of the tunnel on a host.
fn received(lab: &Lab, host: &str, network: &Network) -> Result<u64> {
    let path = format!("/run/vxmesh/netns/{}", network.id.short());
    let inner = lab.inner(host, &path)?;
    Ok(sh(&inner, "grep tap0: /proc/net/dev | tr -s ' ' | cut -d' ' -f 4")?.trim().parse()?)
}

/// It has no address, and nothing that is for everybody comes to it.
fn takes_nothing(lab: &Lab, network: &Network) -> Result<()> {
    let here: Network = lab.json("h4", &["network", "inspect", "blue"])?;
    let way = here.way.context("no way")?;
    ensure!(way.node_ips.is_empty() && way.fault.is_none(), "{way:?}");
    let routes = sh(&lab.host("h4")?, "ip route; ip -6 route")?;
    ensure!(!routes.contains("10.71.") && !routes.contains("fd71:"), "{routes}");
    // h1 may hear later that h4 has no address any more, and h4 gets the rest of what was before.
    wait_until("what is for all comes to h2 and not to h4", || {
        let before = [received(lab, "h2", network)?, received(lab, "h4", network)?];
        lab.vxmesh("h1", &["exec", "c", "--", "ping", "-c", "5", "-i", "0.2", "ff02::1%eth0"])?;
        wait_until("h2 hears it", || Ok(received(lab, "h2", network)? >= before[0] + 5))?;
        Ok(received(lab, "h4", network)? == before[1])
    })
}

/// The ways to the VIPs, which somebody takes away.
fn ways_come_back(lab: &Lab, network: &Network) -> Result<()> {
    let vip = "ip route show dev node0; ip -6 route show dev node0 | grep fd71; \
               ip neigh show dev node0 nud permanent; ip -6 neigh show dev node0 nud permanent";
    let inside = inside(lab, network)?;
    let before = sh(&inside, vip)?;
    for flush in ["route flush", "-6 route flush", "neigh flush nud all", "-6 neigh flush nud all"]
    {
        let left = sh(&inside, &format!("ip {flush} dev node0; {vip}; true"))?;
        ensure!(left != before, "{flush} takes nothing away");
        wait_until("they are back", || Ok(sh(&inside, &format!("{vip}; true"))? == before))?;
    }
    Ok(())
}

/// Nobody is led out by the router of another host.
fn is_no_way_out(lab: &Lab, network: &Network, by: &str) -> Result<()> {
    let path = format!("/run/vxmesh/netns/{}", network.id.short());
    let mac = sh(&lab.inner(by, &path)?, "ip -br link show node0 | tr -s ' ' | cut -d' ' -f 3")?;
    let script = format!(
        "ip route replace {to} via 10.71.0.250 dev eth0 onlink && \
         ip neigh replace 10.71.0.250 lladdr {} dev eth0 nud permanent && ping -c 3 -W 1 {to}",
        mac.trim(),
        to = outside::IPV4,
    );
    let before = lab.dropped(by, "not_a_router")?;
    let exec = ["exec", "c", "--", "sh", "-c", &script];
    ensure!(!lab.try_vxmesh("h1", &exec)?.status.success(), "{by} led c out");
    wait_until("it is counted", || Ok(lab.dropped(by, "not_a_router")? > before))?;
    lab.vxmesh("h1", &["exec", "c", "--", "ip", "route", "del", &outside::IPV4.to_string()])?;
    Ok(())
}

/// A connection from outside to the backend by h4.
fn connected(outside: &Outside, listener: &TcpListener, ipv4: bool) -> Result<[TcpStream; 2]> {
    let to = SocketAddr::new(host_ip(4, ipv4)?, 9000);
    let client = outside.netns.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
    let server = listener.accept()?.0;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    }
    Ok([client, server])
}

#[test]
fn a_host_without_endpoints_leads_clients_in_and_takes_nothing() -> Result<()> {
    let lab = Lab::up(4)?;
    let dir = tempfile::tempdir()?;
    backends_on_two_hosts(&lab, dir.path())?;
    let outside = Outside::join(&lab)?;
    publish(&lab, "h4")?;
    is(&lab, "h4", "web", "8080", "open")?;
    is(&lab, "h4", "data", "5300", "open")?;
    let network: Network = lab.json("h4", &["network", "inspect", "blue"])?;
    let backend = lab.inner("h2", &sandbox_netns(&lab, "h2", "web2")?)?;
    is_an_ingress_node(&lab, &outside, &backend)?;
    takes_nothing(&lab, &network)?;

    ways_come_back(&lab, &network)?;
    is_no_way_out(&lab, &network, "h4")?;
    is_no_way_out(&lab, &network, "h2")?;

    // Connections go on while an endpoint comes and goes, and while agents start anew.
    let listener = backend.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, 9000))?))?;
    let mut streams = Vec::new();
    for ipv4 in [true, false] {
        streams.push(connected(&outside, &listener, ipv4)?);
    }
    let mut go_on = |when: &str| {
        streams
            .iter_mut()
            .try_for_each(|[client, server]| beats(client, server).with_context(|| when.to_owned()))
    };
    go_on("before")?;
    lab.vxmesh("h4", &["run", "-d", "--name", "d", "--network", "blue", "sleep", "1000"])?;
    go_on("with an endpoint")?;
    let here: Network = lab.json("h4", &["network", "inspect", "blue"])?;
    let node_ips = here.way.context("no way")?.node_ips;
    ensure!(node_ips.len() == 2, "{node_ips:?}");
    lab.vxmesh("h4", &["exec", "d", "--", "ping", "-c", "1", "-W", "5", "c"])?;
    lab.vxmesh("h4", &["sandbox", "rm", "d"])?;
    go_on("after it")?;
    takes_nothing(&lab, &network)?;
    for host in ["h4", "h2"] {
        lab.lab(&["kill", host])?;
        lab.lab(&["start", host])?;
        go_on(&format!("{host} anew"))?;
    }
    let mut new = connected(&outside, &listener, true)?;
    let [client, server] = &mut new;
    beats(client, server)?;

    // With the last port all of it goes.
    for service in ["web", "data"] {
        lab.vxmesh("h1", &["service", "rm", service])?;
    }
    let h4 = lab.host("h4")?;
    wait_until("nothing is left on the host", || {
        let left = sh(&h4, "ls /run/vxmesh/netns; nft list ruleset; ip -o link | grep vxm; true")?;
        Ok(left.trim().is_empty())
    })?;
    for ipv4 in [true, false] {
        let at: (IpAddr, u16) = (host_ip(4, ipv4)?, 8080);
        ensure!(is_refused(&outside.netns, at.into())?, "{at:?} is open");
    }
    let drops = &[WHILE_STARTING, &["not_a_router"]].concat();
    lab.finish(Allowed { drops, ..Allowed::default() })
}
