//! `network create --driver macvlan`: sandboxes in the network that an interface of the host is in.

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Diagnosis, Endpoint, Health, Network, Sandbox};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, wait_until},
    netns::NetNs,
    outside::sh,
    topology::Topology,
    traffic::ping,
};

use super::refused;
use crate::egress::{ip_of, settles, state};

/// A router at the other end of a cable that is `wan0` on h1.
struct Router {
    netns: NetNs,
    _topology: Topology,
}

impl Router {
    fn beside(lab: &Lab) -> Result<Self> {
        let topology = Topology::new()?;
        let path = topology.sandbox("router")?.path;
        let netns = NetNs::open(&path)?;
        let path = path.to_str().context("an odd path")?;
        let cable = format!(
            "ip link add wan0 type veth peer name lan0 netns {path} && ip link set wan0 addrgenmode none && ip link set wan0 up"
        );
        sh(&lab.host("h1")?, &cable)?;
        sh(
            &netns,
            "ip link set lo up; ip link set lan0 up; ip address add 10.88.0.1/24 dev lan0
             ip address add fd88::1/64 dev lan0 nodad; ip address add 192.0.2.88/32 dev lo",
        )?;
        Ok(Self { netns, _topology: topology })
    }
}

const CREATE: [&str; 4] = ["network", "create", "--driver", "macvlan"];
const SUBNETS: [&str; 4] = ["--subnet", "10.88.0.0/24", "--subnet", "fd88::/64"];
const GATEWAYS: [&str; 4] = ["--gateway", "10.88.0.1", "--gateway", "fd88::1"];

fn create(lab: &Lab, words: &[&str]) -> Result<Network> {
    lab.json("h1", &[&CREATE, words].concat())
}

fn answers(from: &NetNs, to: &Plugged) -> Result<bool> {
    Ok(sh(from, &format!("ping -n -c 1 -W 1 {}", ip_of(to, true)?)).is_ok())
}

#[test]
fn sandboxes_are_in_the_network_of_their_parent() -> Result<()> {
    let lab = Lab::up(1)?;
    let router = Router::beside(&lab)?;
    let host = lab.host("h1")?;
    let before = state(&host)?;
    let lan = create(
        &lab,
        &[&["lan", "-o", "parent=wan0", "--aux-address", "nas=10.88.0.2"], &SUBNETS[..], &GATEWAYS]
            .concat(),
    )?;
    ensure!(lan.driver == "macvlan" && lan.scope == "local" && lan.mtu == 1500, "{lan:?}");
    let options: Vec<(&str, &str)> =
        lan.options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    ensure!(options == [("macvlan_mode", "bridge"), ("parent", "wan0")], "{options:?}");
    let (a, b) = (lab.sandbox("h1", "lan", "a")?, lab.sandbox("h1", "lan", "b")?);
    ensure!(ip_of(&a, true)?.to_string() == "10.88.0.3", "{:?}", a.endpoint);
    for ipv4 in [true, false] {
        ping(&a.netns, ip_of(&b, ipv4)?, 2)?;
        ping(&router.netns, ip_of(&a, ipv4)?, 2)?;
    }
    // By the router, which is the only way.
    ping(&a.netns, "192.0.2.88".parse()?, 2)?;
    let shown = sh(&a.netns, "ip -d -o link show eth0; ip route show default")?;
    ensure!(shown.contains("macvlan mode bridge") && shown.contains("via 10.88.0.1"), "{shown}");
    ensure!(shown.contains(&a.endpoint.mac.to_string()), "{shown}");
    let names = lab.vxmesh("h1", &["exec", "a", "--", "getent", "ahosts", "b"])?;
    ensure!(names.contains(&ip_of(&b, true)?.to_string()), "{names}");

    // Another network with a higher priority has the default routes, before and after.
    lab.network("h1", "blue")?;
    let led = |via: &str| -> Result<()> {
        let routes = sh(&b.netns, "ip route show default; ip -6 route show default")?;
        ensure!(routes.lines().count() == 2, "one of each IP version: {routes}");
        ensure!(routes.lines().all(|route| route.contains(via)), "not by {via}: {routes}");
        Ok(())
    };
    led("dev eth0")?;
    lab.vxmesh("h1", &["network", "connect", "--gw-priority", "1", "blue", "b"])?;
    led("dev eth1")?;

    lab.lab(&["kill", "h1"])?;
    ping(&a.netns, ip_of(&b, true)?, 2)?;
    // What an agent that was killed left of a network; any kind of link does where the kernel has
    // no VLANs.
    sh(
        &host,
        "ip link add old0 type veth peer name old1 && ip link set old0 alias 'made by vxmesh'",
    )?;
    lab.lab(&["start", "h1"])?;
    ensure!(sh(&host, "ip link show old0").is_err(), "it is still there");
    wait_until("the endpoints are known", || {
        Ok(lab.get::<Vec<Endpoint>>("h1", "/v1/endpoints")?.len() == 3)
    })?;
    ping(&a.netns, ip_of(&b, true)?, 2)?;
    led("dev eth1")?;
    // Its interface is found though the sandbox changed its mark, which is put back, and another
    // has it.
    let id = sh(&b.netns, "ip -o link show eth0")?;
    ensure!(id.contains(&b.endpoint.id.to_string()), "{id}");
    sh(
        &b.netns,
        &format!(
            "ip link set eth0 alias mine; ip link add fake0 type veth peer name fake1 && ip link set fake0 alias {}",
            b.endpoint.id
        ),
    )?;
    lab.vxmesh("h1", &["network", "disconnect", "lan", "b"])?;
    let links = sh(&b.netns, "ip -o link show")?;
    ensure!(!links.contains(" eth0@") && links.contains("fake0"), "{links}");
    lab.vxmesh("h1", &["network", "connect", "lan", "b"])?;
    lab.vxmesh("h1", &["network", "disconnect", "blue", "b"])?;
    let run = ["run", "--network", "lan", "--publish", "80:80", "--", "true"];
    refused(&lab, &run, 125, &["macvlan"])?;
    refused(&lab, &["network", "rm", "lan"], 4, &["a (a)", "b (b)"])?;
    for sandbox in ["a", "b"] {
        lab.vxmesh("h1", &["sandbox", "rm", sandbox])?;
    }
    lab.vxmesh("h1", &["network", "rm", "lan"])?;
    settles(&host, &before, "the host is as before")?;
    lab.finish(Allowed::default())
}

#[test]
fn modes_say_who_reaches_whom() -> Result<()> {
    let lab = Lab::up(1)?;
    let router = Router::beside(&lab)?;
    let words = ["quiet", "-o", "parent=wan0", "-o", "macvlan_mode=private"];
    create(&lab, &[&words[..], &SUBNETS].concat())?;
    let (a, b) = (lab.sandbox("h1", "quiet", "a")?, lab.sandbox("h1", "quiet", "b")?);
    for sandbox in [&a, &b] {
        ensure!(answers(&router.netns, sandbox)?, "the outside is reached");
    }
    ensure!(!answers(&a.netns, &b)? && !answers(&b.netns, &a)?, "private ones reach each other");
    let routes = sh(&a.netns, "ip route show default; ip -6 route show default")?;
    ensure!(routes.is_empty(), "nobody named a router: {routes}");
    // A parent that is used cannot be had alone, and the other way round.
    let alone = ["alone", "-o", "parent=wan0", "-o", "macvlan_mode=passthru"];
    refused(&lab, &[&CREATE[..], &alone].concat(), 4, &["quiet", "wan0"])?;
    for sandbox in ["a", "b"] {
        lab.vxmesh("h1", &["sandbox", "rm", sandbox])?;
    }
    lab.vxmesh("h1", &["network", "rm", "quiet"])?;
    create(&lab, &[&alone[..], &SUBNETS].concat())?;
    refused(&lab, &[&CREATE[..], &["late", "-o", "parent=wan0"]].concat(), 4, &["alone", "wan0"])?;
    let one = lab.sandbox("h1", "alone", "one")?;
    ensure!(answers(&router.netns, &one)?, "the outside is reached");
    let mac = sh(
        &lab.host("h1")?,
        "cat /sys/class/net/wan0/address 2>/dev/null || ip -o link show wan0",
    )?;
    ensure!(mac.contains(&one.endpoint.mac.to_string()), "{mac} {:?}", one.endpoint);
    refused(&lab, &["run", "--network", "alone", "--", "true"], 125, &["one", "wan0"])?;
    let endpoints: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
    ensure!(endpoints.len() == 1, "{endpoints:?}");
    lab.finish(Allowed::default())
}

#[test]
fn a_tagged_parent_is_made_and_goes_with_its_last_network() -> Result<()> {
    let lab = Lab::up(1)?;
    let router = Router::beside(&lab)?;
    let host = lab.host("h1")?;
    let links = || sh(&host, "ip -o link show | sed 's/state [A-Z]*//'");
    let before = links()?;
    let words = ["tagged", "-o", "parent=wan0.9", "--subnet", "10.89.0.0/24"];
    let tag = "ip link add link lan0 name lan0.9 type vlan id 9 && ip link set lan0.9 up && \
               ip address add 10.89.0.1/24 dev lan0.9";
    if sh(&router.netns, tag).is_err() {
        // This kernel has no 802.1Q, which is told; nothing of the network stays.
        refused(&lab, &[&CREATE[..], &words].concat(), 1, &["wan0.9", "8021q"])?;
        ensure!(lab.get::<Vec<Network>>("h1", "/v1/networks")?.is_empty());
        ensure!(links()? == before);
        return lab.finish(Allowed::default());
    }
    create(&lab, &words)?;
    create(&lab, &["second", "-o", "parent=wan0.9", "--subnet", "10.90.0.0/24"])?;
    let a = lab.sandbox("h1", "tagged", "a")?;
    ping(&a.netns, "10.89.0.1".parse()?, 2)?;
    ensure!(answers(&router.netns, &a)?, "the outside reaches it");
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    lab.vxmesh("h1", &["network", "rm", "tagged"])?;
    ensure!(links()?.contains("wan0.9"), "another network is upon it");
    lab.vxmesh("h1", &["network", "rm", "second"])?;
    ensure!(links()? == before, "the link stays");
    // One that somebody else made is theirs.
    sh(&host, "ip link add link wan0 name wan0.10 type vlan id 10")?;
    create(&lab, &["theirs", "-o", "parent=wan0.10"])?;
    lab.vxmesh("h1", &["network", "rm", "theirs"])?;
    ensure!(links()?.contains("wan0.10"), "somebody else's link is gone");
    // The next agent keeps what a network is upon, whoever made it.
    create(&lab, &["kept", "-o", "parent=wan0.11"])?;
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    ensure!(links()?.contains("wan0.10") && links()?.contains("wan0.11"), "{}", links()?);
    lab.finish(Allowed::default())
}

#[test]
fn what_it_cannot_have_is_refused_and_leaves_nothing() -> Result<()> {
    let lab = Lab::up(1)?;
    let _router = Router::beside(&lab)?;
    for (words, status, said) in [
        ([].as_slice(), 2, "parent"),
        (&["-o", "parent=nothing0"], 3, "nothing0"),
        (&["-o", "parent=nothing0.5"], 3, "nothing0"),
        (&["-o", "parent=wan0.0"], 2, "4094"),
        (&["-o", "parent=wan0.4095"], 2, "4094"),
        (&["-o", "parent=a/b"], 2, "a/b"),
        (&["-o", "parent=wan0", "-o", "macvlan_mode=open"], 2, "passthru"),
        (&["-o", "parent=wan0", "-o", "mode=bridge"], 2, "macvlan_mode"),
        (&["-o", "parent=wan0", "--mtu", "9000"], 2, "1500"),
        (&["-o", "parent=wan0", "--vni", "7"], 2, "--vni"),
    ] {
        refused(&lab, &[&CREATE[..], &["x"], words].concat(), status, &[said])?;
    }
    ensure!(lab.get::<Vec<Network>>("h1", "/v1/networks")?.is_empty());

    // A parent that goes takes the interfaces along; that is told, and everything can be removed.
    create(&lab, &["lan", "-o", "parent=wan0"])?;
    let a = lab.sandbox("h1", "lan", "a")?;
    sh(&lab.host("h1")?, "ip link del wan0")?;
    wait_until("the interface is gone", || Ok(sh(&a.netns, "ip link show eth0").is_err()))?;
    let doctor = lab.try_vxmesh("h1", &["--format", "json", "doctor"])?;
    let found: Vec<Diagnosis> = serde_json::from_slice(&doctor.stdout)?;
    let told = |row: &Diagnosis| row.health == Health::Fail && row.found.contains("wan0");
    ensure!(found.iter().any(told) && doctor.status.code() == Some(1), "{found:?}");
    refused(&lab, &["run", "--network", "lan", "--", "true"], 125, &["wan0"])?;
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    lab.vxmesh("h1", &["network", "rm", "lan"])?;
    let left: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    ensure!(left.is_empty(), "{left:?}");
    lab.finish(Allowed::default())
}
