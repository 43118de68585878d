//! Links, addresses, routes and settings that a user takes away.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use vxmesh_tests::{
    lab::{Allowed, DEADLINE, Lab, tell, wait_until},
    netns::NetNs,
    outside::sh,
    uevent,
};

use super::Site;

/// Ten times the aim.
const LIMIT: Duration = Duration::from_secs(10);
/// The aim where the kernel tells nobody of the change is five seconds.
const UNTOLD: Duration = Duration::from_secs(30);

/// All that is configured, without the numbers and MACs that a new cable has.
const STATE: &str = "ip -o link | sed -E 's/^[0-9]+: //; s/@[^:]*//; s/link\\/.*//; s/group.*//' | sort; \
    ip -o address | awk '{print $2, $3, $4}' | sort; ip route | sort; ip -6 route | sed 's/ pref .*//' | sort; \
    ip rule; ip -6 rule; ip route show table local | sort; \
    bridge fdb show | grep -E 'static|dev br0 master br0' | cut -d' ' -f1-3 | sort; \
    sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.all.arp_ignore; \
    cd /proc/sys/net; grep -s . ipv[46]/conf/br0/forwarding ipv[46]/conf/node0/forwarding \
    ipv[46]/conf/uplink0/forwarding ipv[46]/conf/vxm*/forwarding ipv4/conf/br0/rp_filter | tr 2 1; \
    cat /proc/sys/net/bridge/bridge-nf-call-* 2>/dev/null || true";

fn state(places: &[&NetNs]) -> Result<String> {
    let states: Result<Vec<String>> = places.iter().map(|netns| sh(netns, STATE)).collect();
    Ok(states?.join("\n"))
}

/// The module sets it in every namespace as it is loaded, and the kernel tells of the module.
fn frames_are_kept_from_rules(
    host: &NetNs,
    inside: &NetNs,
    is_whole: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let set = "for it in /proc/sys/net/bridge/bridge-nf-call-*; do echo 1 >$it; done";
    if sh(inside, set).is_err() {
        tell("this kernel has no br_netfilter");
        return Ok(());
    }
    let started = Instant::now();
    uevent::say(host, &["add@/module/br_netfilter", "ACTION=add"])?;
    wait_until("bridges show no frame to rules", is_whole)?;
    let took = started.elapsed();
    tell(&format!("whole again {took:?} after br_netfilter was loaded"));
    ensure!(took < LIMIT, "{took:?}");
    Ok(())
}

/// What somebody may do to the interfaces of a network, where, and within which time it is undone.
fn damages<'n>(
    (host, inside): (&'n NetNs, &'n NetNs),
    (port, uplink): (&str, &str),
) -> Vec<(&'n NetNs, String, Duration)> {
    vec![
        (inside, "ip link set br0 down; ip address flush dev br0".to_owned(), LIMIT),
        (inside, "sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0".into(), LIMIT),
        (inside, "ip link set nodep down; ip link set nodep nomaster".into(), LIMIT),
        (inside, "ip link del node0".into(), LIMIT),
        (inside, format!("ip link set {port} down"), LIMIT),
        (inside, format!("ip link set {port} nomaster"), LIMIT),
        (inside, format!("ip link del {port}"), LIMIT),
        (
            inside,
            "for d in $(bridge fdb show | awk '/static/ {print $1\"/\"$3}'); do \
            bridge fdb del ${d%/*} dev ${d#*/} master; done"
                .into(),
            LIMIT,
        ),
        (inside, "bridge fdb flush dev br0".into(), LIMIT),
        (inside, "ip link set tap0 down; ip link set tap0 nomaster".into(), LIMIT),
        (inside, "ip link del tap0".into(), LIMIT),
        (inside, "ip link set uplink0 down; ip -6 route flush default".into(), LIMIT),
        (inside, "ip rule del pref 32766; ip -6 rule del pref 32766".into(), LIMIT),
        (inside, "ip rule del pref 0; ip -6 rule del pref 0; ip rule del pref 32767".into(), LIMIT),
        (inside, "ip route flush table local; ip link set lo down".into(), LIMIT),
        (host, format!("ip link set {uplink} down"), LIMIT),
        (host, format!("ip address flush dev {uplink}"), LIMIT),
        (host, format!("ip route flush dev {uplink}; ip -6 route flush dev {uplink}"), LIMIT),
        (host, format!("ip link del {uplink}"), LIMIT),
        (host, "sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0".into(), LIMIT),
        (host, "sysctl -w net.ipv4.conf.all.forwarding=0".into(), LIMIT),
        (host, format!("sysctl -w net.ipv4.conf.{uplink}.forwarding=0"), LIMIT),
        (host, format!("sysctl -w net.ipv6.conf.{uplink}.forwarding=0"), LIMIT),
        (inside, "sysctl -w net.ipv4.conf.br0.forwarding=0".into(), LIMIT),
        (inside, "sysctl -w net.ipv6.conf.br0.forwarding=0".into(), LIMIT),
        (inside, "sysctl -w net.ipv4.conf.uplink0.forwarding=0".into(), LIMIT),
        (inside, "sysctl -w net.ipv6.conf.uplink0.forwarding=0".into(), LIMIT),
        (
            inside,
            "sysctl -w net.ipv4.conf.node0.forwarding=0 net.ipv4.conf.br0.rp_filter=1".into(),
            LIMIT,
        ),
        (host, format!("ip link set {uplink} mtu 1200"), LIMIT),
        (inside, "ip link set uplink0 mtu 1200".into(), LIMIT),
        (inside, "ip link set node0 mtu 1200".into(), LIMIT),
        (inside, "ip link set br0 mtu 1200".into(), LIMIT),
        (host, format!("sysctl -w net.ipv4.conf.{uplink}.route_localnet=0"), UNTOLD),
    ]
}

#[test]
fn what_is_taken_away_comes_back() -> Result<()> {
    let site = Site::on(Lab::up(2)?)?;
    let lab = &site.lab;
    let pin = format!("/run/vxmesh/netns/{}", site.a.endpoint.network.short());
    let (host, inside) = (lab.host("h1")?, lab.inner("h1", &pin)?);
    let uplink = format!("vxm{}", site.a.endpoint.network.short());
    let ports = sh(&inside, "ip -o link show type veth | grep -o 'v[0-9a-f]*@' | tr -d @")?;
    let port = ports.lines().find(|name| name.starts_with('v')).unwrap_or_default().to_owned();
    let places = [&host, &inside, &site.a.netns];
    let before = state(&places)?;
    for (netns, damage, limit) in damages((&host, &inside), (&port, &uplink)) {
        sh(netns, &damage)?;
        let localnet = || sh(&host, &format!("sysctl -n net.ipv4.conf.{uplink}.route_localnet"));
        let started = Instant::now();
        // Commands in between may find no such interface.
        let is_whole = || {
            Ok(state(&places).is_ok_and(|now| now == before)
                && (limit == LIMIT || localnet()?.trim() == "1"))
        };
        if let Err(error) = wait_until(&damage, is_whole) {
            ensure!(state(&places)? == before, "{damage}: {}\nwas\n{before}", state(&places)?);
            return Err(error);
        }
        let took = started.elapsed();
        tell(&format!("whole again {took:?} after `{damage}`"));
        ensure!(took < limit.min(DEADLINE), "{damage}: {took:?}");
    }
    frames_are_kept_from_rules(&host, &inside, || Ok(state(&places)? == before))?;
    lab.sh("h1", &format!("umount -l {pin}"))?;
    wait_until("the namespace has its pin again", || {
        Ok(lab.sh("h1", &format!("stat -f -c %T {pin}"))?.trim() == "nsfs")
    })?;
    site.works("in the end")?;
    let diagnoses: Vec<Value> = site.lab.json("h1", &["doctor"])?;
    let said = diagnoses
        .iter()
        .any(|row| row.to_string().contains("its links on this host were put back; repairs"));
    ensure!(said, "{diagnoses:?}");
    // What is sent while links are away is lost, and what was in a TAP that went is judged after
    // it.
    site.lab.finish(Allowed {
        drops: &["source_unknown", "fdb_unknown", "not_local", "tap_refused"],
        ..Allowed::default()
    })
}
