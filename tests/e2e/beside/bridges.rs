//! Bridges of others on a host that becomes a router for its networks: with `br_netfilter` the
//! frames that they switch pass the host's rules, too.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, tell, wait_until},
    netns::NetNs,
    outside::sh,
    traffic::ping,
};

/// A bridge with two guests, as of virtual machines; one has a neighbour's address behind the host,
/// too.
const BRIDGE: &str = "set -e
for f in iptables ip6tables; do p=/proc/sys/net/bridge/bridge-nf-call-$f; if [ -e $p ]; then echo 1 > $p; fi; done
ip link add vmbr type bridge; ip link set vmbr up
ip address add 10.88.0.1/24 dev vmbr; ip address add fd88::1/64 dev vmbr nodad
for n in 2 3; do
    ip netns add vm$n; ip link add vm$n type veth peer name eth0 netns vm$n; ip link set vm$n master vmbr up
    ip -n vm$n link set eth0 up
    ip -n vm$n address add 10.88.0.$n/24 dev eth0; ip -n vm$n address add fd88::$n/64 dev eth0 nodad
    # By way of the host.
    ip -n vm$n address add 10.89.0.$n/32 dev eth0; ip route add 10.89.0.$n via 10.88.0.$n
    ip -n vm$n route add 10.89.0.0/24 via 10.88.0.1
done
ip netns exec vm2 sysctl -qw net.ipv4.conf.eth0.accept_redirects=0 net.ipv4.conf.all.accept_redirects=0
";

/// Packets that a chain of the host sees of those that the bridge switches.
const COUNT: &str = "nft -f - <<'EOF'
table inet count {
    chain forward {
        type filter hook forward priority -10
        iifname vmbr oifname vmbr counter
    }
}
EOF";

fn reach(vm: &NetNs) -> Result<()> {
    for to in ["10.88.0.3", "fd88::3"] {
        ping(vm, to.parse()?, 3)?;
    }
    Ok(())
}

#[test]
fn frames_that_a_bridge_of_others_switches_pass() -> Result<()> {
    if !Path::new("/proc/sys/net/bridge").exists() {
        tell("br_netfilter is not loaded: bridged frames do not come to rules on this machine");
        return Ok(());
    }
    let lab = Lab::up(1)?;
    let h1 = lab.host("h1")?;
    lab.sh("h1", BRIDGE)?;
    let vm = lab.inner("h1", "/run/netns/vm2")?;
    sh(&h1, COUNT)?;
    wait_until("the test itself", || Ok(reach(&vm).is_ok()))?;
    let seen = sh(&h1, "nft list table inet count")?;
    ensure!(!seen.contains("counter packets 0 "), "bridged frames do not come to rules: {seen}");
    let routed = || sh(&vm, "ping -n -c 1 -W 1 -I 10.89.0.2 10.89.0.3").is_ok();
    ensure!(!routed(), "the host is a router already");
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    for to in ["10.88.0.3", "fd88::3"] {
        ping(&a.netns, to.parse()?, 3)?;
    }
    reach(&vm).context("the bridge's guests do not reach each other any more")?;
    ensure!(!routed(), "the host became a router of the bridge's guests");
    // One that comes when the rules are there already.
    let names = [("vmbr", "late"), ("vm2", "vl2"), ("vm$n", "vl$n")];
    let later = names.iter().fold(BRIDGE.to_owned(), |all, (of, to)| all.replace(of, to));
    let nets = [("10.88", "10.90"), ("10.89", "10.91"), ("fd88", "fd90")];
    lab.sh("h1", &nets.iter().fold(later, |all, (of, to)| all.replace(of, to)))?;
    let late = lab.inner("h1", "/run/netns/vl2")?;
    for to in ["10.90.0.3", "fd90::3"] {
        wait_until(
            "a bridge that came later switches",
            || Ok(ping(&late, to.parse()?, 1).is_ok()),
        )?;
    }
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    reach(&vm)?;
    sh(&h1, "sysctl -qw net.ipv4.ip_forward=1")?;
    ensure!(routed(), "the test itself");
    lab.finish(Allowed::default())
}
