//! `network create --driver bridge`: all that an overlay network has, on one host, and nothing of
//! it elsewhere.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vxmesh::api::{AddressPool, Endpoint, MapRow, Network, Sandbox};
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    outside::{self, Outside, call_tcp, sh},
    traffic::ping,
};

use super::refused;
use crate::egress::{PORT, host_ip, ip_of, settles, state};

const CREATE: [&str; 4] = ["network", "create", "--driver", "bridge"];

fn create(lab: &Lab, host: &str, words: &[&str]) -> Result<Network> {
    lab.json(host, &[&CREATE, words].concat())
}

#[test]
fn it_has_all_that_a_network_has_and_other_hosts_hear_nothing_of_it() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    let host = lab.host("h1")?;
    let before = state(&host)?;
    let words = ["home", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.9", "--subnet"];
    let rest = ["fd77::/64", "--ip-range", "10.77.0.128/25", "--aux-address", "nas=10.77.0.200"];
    // The same subnets on two hosts have nothing to do with each other.
    let networks = [
        create(&lab, "h1", &[&words[..], &rest].concat())?,
        create(&lab, "h2", &[&words[..], &rest].concat())?,
    ];
    let network = &networks[0];
    ensure!(network.driver == "bridge" && network.scope == "local", "{network:?}");
    ensure!(network.vni.is_none() && !network.encrypted && network.mtu == 1500, "{network:?}");
    ensure!(networks[0].id != networks[1].id);
    let listed: Vec<Network> = lab.get("h2", "/v1/networks")?;
    ensure!(listed.len() == 1 && listed[0].id == networks[1].id, "{listed:?}");

    let (a, b) = (lab.sandbox("h1", "home", "a")?, lab.sandbox("h1", "home", "b")?);
    let far = lab.sandbox("h2", "home", "far")?;
    let range: ipnet::IpNet = "10.77.0.128/25".parse()?;
    for sandbox in [&a, &b, &far] {
        ensure!(range.contains(&ip_of(sandbox, true)?), "{:?}", sandbox.endpoint);
    }
    for ipv4 in [true, false] {
        ping(&a.netns, ip_of(&b, ipv4)?, 3)?;
        ping(&host, ip_of(&a, ipv4)?, 3)?;
    }
    let names = lab.vxmesh("h1", &["exec", "a", "--", "getent", "ahosts", "b"])?;
    ensure!(names.contains(&ip_of(&b, true)?.to_string()), "{names}");
    let foreign = lab.try_vxmesh("h1", &["exec", "a", "--", "getent", "hosts", "far"])?;
    ensure!(!foreign.status.success(), "{foreign:?}");
    lab.vxmesh("h1", &["dns", "query", "b.home"])?;
    lab.vxmesh("h1", &["locate", &ip_of(&b, true)?.to_string()])?;
    let pools: Vec<AddressPool> = lab.get("h1", "/v1/ipam")?;
    ensure!(pools.len() == 2 && pools.iter().all(|pool| pool.owners.len() == 1), "{pools:?}");

    for (to, ipv4) in [(outside::IPV4, true), (outside::IPV6, false)] {
        let seen = call_tcp(&a.netns, SocketAddr::new(to, PORT), &outside.netns, PORT)?;
        ensure!(seen == host_ip(1, ipv4)?, "the outside saw {seen}");
    }
    let run = ["run", "-d", "--name", "web", "--network", "home", "--publish", "8080:80", "--"];
    let web: Sandbox = lab.json("h1", &[&run[..], &["sleep", "3600"]].concat())?;
    let inside = lab.inner("h1", &web.netns)?;
    let to = SocketAddr::new(host_ip(1, true)?, 8080);
    ensure!(call_tcp(&outside.netns, to, &inside, 80)? == outside::IPV4);

    // Nothing that could carry it elsewhere, and nobody was told.
    let netns = lab.inner("h1", &format!("/run/vxmesh/netns/{}", network.id.short()))?;
    ensure!(!sh(&netns, "ip -o link")?.contains("tap0"), "a TAP");
    let endpoints: Vec<Endpoint> = lab.get("h2", "/v1/endpoints")?;
    ensure!(endpoints.len() == 1 && endpoints[0].id == far.endpoint.id, "{endpoints:?}");
    let map: Vec<MapRow> = lab.get("h2", "/v1/map")?;
    ensure!(map.is_empty(), "{map:?}");

    refused(&lab, &["network", "rm", "home"], 4, &["a (a)", "b (b)", "web (web)"])?;
    for (host, sandbox) in [("h1", "a"), ("h1", "b"), ("h1", "web"), ("h2", "far")] {
        lab.vxmesh(host, &["sandbox", "rm", sandbox])?;
    }
    lab.vxmesh("h1", &["network", "rm", "home"])?;
    settles(&host, &before, "the host is as before")?;
    let left: Vec<Network> = lab.get("h2", "/v1/networks")?;
    ensure!(left.len() == 1, "the other host's is another network");
    lab.finish(Allowed::default())
}

#[test]
fn it_outlives_the_agent_and_goes_with_the_membership() -> Result<()> {
    let lab = Lab::up(1)?;
    let host = lab.host("h1")?;
    let before = state(&host)?;
    create(&lab, "h1", &["home"])?;
    let (a, b) = (lab.sandbox("h1", "home", "a")?, lab.sandbox("h1", "home", "b")?);
    lab.lab(&["kill", "h1"])?;
    ping(&a.netns, ip_of(&b, true)?, 3)?;
    lab.lab(&["start", "h1"])?;
    wait_until("the endpoints are known", || {
        let listed: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
        Ok(listed.len() == 2)
    })?;
    let after: Endpoint = lab.get("h1", &format!("/v1/endpoints/{}", a.endpoint.id))?;
    ensure!(after.ips == a.endpoint.ips && after.mac == a.endpoint.mac, "{after:?}");
    ping(&a.netns, ip_of(&b, false)?, 3)?;
    wait_until("names are served", || {
        let asked = lab.try_vxmesh("h1", &["exec", "a", "--", "getent", "ahosts", "b"])?;
        Ok(asked.status.success())
    })?;
    // An address that was in use before is not given again.
    let c = lab.sandbox("h1", "home", "c")?;
    for other in [&a, &b] {
        ensure!(c.endpoint.ips.iter().all(|ip| !other.endpoint.ips.contains(ip)));
    }
    ping(&c.netns, ip_of(&a, true)?, 3)?;
    lab.vxmesh("h1", &["leave", "--force"])?;
    settles(&host, &before, "the host is as before")?;
    let pins = lab.sh("h1", "ls -A /run/vxmesh/netns /run/vxmesh/sandbox")?;
    ensure!(!pins.lines().any(|line| !line.is_empty() && !line.ends_with(':')), "{pins}");
    lab.finish(Allowed::default())
}

#[test]
fn a_name_has_one_meaning_on_a_host() -> Result<()> {
    let lab = Lab::up(2)?;
    create(&lab, "h1", &["home"])?;
    lab.network("h1", "blue")?;
    refused(&lab, &["network", "create", "home"], 4, &["home", "this host"])?;
    refused(&lab, &[&CREATE[..], &["home"]].concat(), 4, &["home"])?;
    refused(&lab, &[&CREATE[..], &["blue"]].concat(), 4, &["blue"])?;
    // The other host knows nothing of the bridge.
    let theirs = lab.json::<Network>("h2", &["network", "create", "home"])?;
    wait_until("it arrives", || {
        let listed: Vec<Network> = lab.get("h1", "/v1/networks")?;
        Ok(listed.iter().any(|row| row.id == theirs.id))
    })?;
    refused(&lab, &["network", "inspect", "home"], 4, &["2 networks", &theirs.id.to_string()])?;
    refused(&lab, &["run", "--network", "home", "--", "true"], 125, &["2 networks"])?;
    lab.vxmesh("h1", &["network", "inspect", &theirs.id.to_string()])?;
    lab.finish(Allowed::default())
}

#[test]
fn what_it_cannot_have_is_refused_and_leaves_nothing() -> Result<()> {
    let lab = Lab::up(1)?;
    let before: Vec<Network> = lab.get("h1", "/v1/networks")?;
    for (words, status, said) in [
        (["--vni", "7"].as_slice(), 2, "--vni"),
        (&["-o", "color=red"], 2, "no option `color`"),
        (&["--mtu", "1279"], 2, "1280"),
        (&["--gateway", "10.9.0.1"], 2, "10.9.0.1"),
        (&["--subnet", "10.9.0.0/24", "--ip-range", "10.8.0.0/25"], 2, "10.8.0.0/25"),
    ] {
        refused(&lab, &[&CREATE[..], &["x"], words].concat(), status, &[said])?;
    }
    refused(&lab, &["network", "create", "x", "-d", "ipvlan"], 2, &["overlay", "bridge"])?;
    refused(&lab, &["network", "create", "x", "-o", "a=b"], 2, &["overlay", "no option `a`"])?;
    let after: Vec<Network> = lab.get("h1", "/v1/networks")?;
    ensure!(before == after, "{after:?}");
    create(&lab, "h1", &["x"])?;
    refused(&lab, &["network", "extend", "x", "--subnet", "10.9.0.0/24"], 2, &["this host"])?;
    let api = lab.api("h1");
    let unknown: Result<Value> =
        api.send("POST /v1/networks", &json!({ "name": "y", "driver": "ipvlan" }));
    let said = unknown.err().context("made")?.to_string();
    ensure!(said.contains("400") && said.contains("bridge"), "{said}");
    lab.finish(Allowed::default())
}
