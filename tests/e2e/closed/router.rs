//! A host that forwards for its networks only, whatever interfaces come and whatever they are
//! called.

use anyhow::{Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    outside::{self, Outside, sh},
    traffic::ping,
};

/// An interface of the host as a VPN makes it, with somebody behind.
const LATER: &str = "set -e
ip netns add back; ip link add eth1 type veth peer name eth0 netns back; ip link set eth1 up
ip address add 10.88.0.1/24 dev eth1; ip address add fd88::1/64 dev eth1 nodad
ip -n back link set eth0 up; ip -n back address add 10.88.0.2/24 dev eth0; ip -n back address add fd88::2/64 dev eth0 nodad
ip -n back route add default via 10.88.0.1; ip -n back route add default via fd88::1";

/// Counts what comes to the host to be passed on.
const COUNT: &str = "nft -f - <<'EOF'
table inet count {
    chain forward {
        type filter hook forward priority -10
        ip daddr 10.88.0.2 counter
        ip6 daddr fd88::2 counter
    }
}
EOF";

/// What has come so far, by IP version.
const CAME: &str = "nft list table inet count | grep -o 'packets [0-9]*' | cut -d ' ' -f 2";

/// Two guests of one bridge in different subnets, whom the host does not bring together: rules for
/// what a bridge switches must not hold for what is routed.
const BRIDGED: &str = "set -e
for family in iptables ip6tables; do
    asked=/proc/sys/net/bridge/bridge-nf-call-$family; ! [ -e $asked ] || echo 0 >$asked
done
ip link add br9 type bridge; ip link set br9 up
for n in 1 2; do
    ip netns add guest$n; ip link add port$n type veth peer name eth0 netns guest$n
    ip link set port$n master br9 up; ip -n guest$n link set eth0 up
    ip address add 10.9.$n.1/24 dev br9; ip address add fd09:$n::1/64 dev br9 nodad
    ip -n guest$n address add 10.9.$n.2/24 dev eth0; ip -n guest$n address add fd09:$n::2/64 dev eth0 nodad
    ip -n guest$n route add default via 10.9.$n.1; ip -n guest$n route add default via fd09:$n::1
done";

fn nobody_routes_between_guests_of_a_bridge(lab: &Lab) -> Result<()> {
    lab.sh("h1", BRIDGED)?;
    for (router, other) in [("10.9.1.1", "10.9.2.2"), ("fd09:1::1", "fd09:2::2")] {
        lab.sh("h1", &format!("ip netns exec guest1 ping -n -c 1 -W 3 {router}"))?;
        let ping = format!("ip netns exec guest1 ping -n -c 1 -W 1 {other}");
        // Where the switch was on before, the rules follow it after a moment.
        wait_until("nothing is routed within a bridge", || Ok(lab.sh("h1", &ping).is_err()))?;
    }
    Ok(())
}

#[test]
fn what_comes_later_is_not_routed() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let h1 = lab.host("h1")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    // In the host's own /run.
    lab.sh("h1", LATER)?;
    sh(
        &outside.netns,
        "ip route add 10.88.0.0/24 via 10.213.0.1; ip route add fd88::/64 via fd13::1",
    )?;
    sh(&h1, COUNT)?;
    let back = ["10.88.0.2", "fd88::2"];
    let mut before = vec![0, 0];
    let mut stays_closed = |what: &str| {
        for to in back {
            let answered = sh(&outside.netns, &format!("ping -n -c 1 -W 1 {to}"));
            ensure!(answered.is_err(), "{what}: the host became a router: {to}");
        }
        // They came, and went no farther.
        let came: Vec<u64> = sh(&h1, CAME)?.lines().map(str::parse).collect::<Result<_, _>>()?;
        let more = came.iter().zip(&before).all(|(now, before)| now > before);
        ensure!(came.len() == 2 && more, "{what}: {before:?}, then {came:?}");
        before = came;
        Ok(())
    };
    stays_closed("a new interface")?;
    nobody_routes_between_guests_of_a_bridge(&lab)?;
    sh(&h1, "ip link set eth1 down; ip link set eth1 name tun7; ip link set tun7 up")?;
    sh(&h1, "ip address add fd88::1/64 dev tun7 nodad")?;
    stays_closed("a renamed interface")?;
    lab.lab(&["kill", "h1"])?;
    sh(&h1, "ip link set tun7 down; ip link set tun7 name tun8; ip link set tun8 up")?;
    sh(&h1, "ip address add fd88::1/64 dev tun8 nodad")?;
    stays_closed("without an agent")?;
    lab.lab(&["start", "h1"])?;
    // The network goes by the new interface as by all others.
    for to in back {
        ping(&a.netns, to.parse()?, 3)?;
    }
    ping(&a.netns, outside::IPV4, 3)?;
    // Whoever says that the host is a router is believed.
    sh(&h1, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    for to in back {
        wait_until("the host is a router", || {
            Ok(sh(&outside.netns, &format!("ping -n -c 1 -W 1 {to}")).is_ok())
        })?;
    }
    lab.finish(Allowed::default())
}

#[test]
fn a_host_forwards_nothing_while_its_rules_cannot_be_written() -> Result<()> {
    let lab = Lab::up(1)?;
    let _outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    // A table of our name that belongs to another process, which nobody else can change.
    let hold = "mkfifo /run/held && { nft -i </run/held >/dev/null 2>&1 & exec 3>/run/held; \
                echo 'add table inet vxmesh { flags owner; }' >&3; setsid sleep 600 >&3 & }";
    let switches = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
    lab.sh("h1", &format!("{hold} >/dev/null 2>&1"))?;
    wait_until("the table is held", || Ok(lab.sh("h1", "nft list tables")?.contains("vxmesh")))?;
    let a = lab.sandbox("h1", "blue", "a")?;
    ensure!(lab.sh("h1", switches)?.trim() == "0\n0", "it forwards without rules");
    let doctor = lab.try_vxmesh("h1", &["doctor"])?;
    ensure!(!doctor.status.success(), "doctor: {}", String::from_utf8_lossy(&doctor.stdout));
    lab.sh("h1", "pkill -x nft")?;
    wait_until("the way out is open", || Ok(ping(&a.netns, outside::IPV4, 1).is_ok()))?;
    ensure!(lab.sh("h1", switches)?.trim() == "2\n2");
    lab.finish(Allowed {
        warnings: &["the host's rules are not as they should be"],
        ..Allowed::default()
    })
}
