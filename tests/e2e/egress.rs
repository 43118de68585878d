//! The way out of a network: sandboxes reach the outside, the host reaches sandboxes, and nothing
//! of it stays.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{getsockopt, sockopt};
use vxmesh::api::Network;
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, UNDERWAY, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::{bind_udp, listen, ping},
};

/// A port that nobody uses.
pub(crate) const PORT: u16 = 4711;

pub(crate) fn ip_of(sandbox: &Plugged, ipv4: bool) -> Result<IpAddr> {
    let mut ips = sandbox.endpoint.ips.iter().map(ipnet::IpNet::addr);
    ips.find(|ip| ip.is_ipv4() == ipv4).context("no such address")
}

/// A host's address on the wire.
pub(crate) fn host_ip(number: u8, ipv4: bool) -> Result<IpAddr> {
    let text = if ipv4 { format!("10.213.0.{number}") } else { format!("fd13::{number}") };
    Ok(text.parse()?)
}

/// Rules of others: chains that let nothing through that they do not know, and that drop what
/// nobody asked for.
pub(crate) const STRICT: &str = "nft -f - <<'EOF'
table ip filter {
    chain FORWARD {
        type filter hook forward priority 0; policy drop;
        counter comment \"mine\"
    }
}
table ip6 filter {
    chain FORWARD {
        type filter hook forward priority 0; policy drop;
    }
}
table inet theirs {
    chain late {
        type filter hook forward priority 10;
        ct state invalid drop
    }
    chain early {
        type filter hook prerouting priority -150;
        ct state invalid drop
    }
}
EOF";

/// All that a host has of what this program might change.
pub(crate) fn state(host: &NetNs) -> Result<String> {
    sh(
        host,
        "nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
         ip -o link show | sed 's/state [A-Z]*//'; sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4|ipv6|bridge)\\.' | sort",
    )
}

/// Waits until a host is as it was.
pub(crate) fn settles(host: &NetNs, before: &str, after: &str) -> Result<()> {
    if wait_until(after, || Ok(state(host)? == before)).is_err() {
        let now = state(host)?;
        let differences: Vec<&str> = now
            .lines()
            .filter(|line| !before.lines().any(|other| other == *line))
            .chain(before.lines().filter(|line| !now.lines().any(|other| other == *line)))
            .collect();
        ensure!(now == before, "{after}: {differences:#?}");
    }
    Ok(())
}

#[test]
fn sandboxes_reach_the_outside_with_their_hosts_address() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let (a, b) = (lab.sandbox("h1", "blue", "a")?, lab.sandbox("h2", "blue", "b")?);
    for (sandbox, number) in [(&a, 1), (&b, 2)] {
        for (to, ipv4) in [(outside::IPV4, true), (outside::IPV6, false)] {
            ping(&sandbox.netns, to, 3)?;
            let to = SocketAddr::new(to, PORT);
            let seen = [
                call_tcp(&sandbox.netns, to, &outside.netns, PORT)?,
                call_udp(&sandbox.netns, to, &outside.netns, PORT)?,
            ];
            ensure!(seen == [host_ip(number, ipv4)?; 2], "the outside saw {seen:?}");
        }
    }
    // Without an invitation nothing comes in, not even when somebody knows the way.
    for (ipv4, via) in [(true, "10.213.0.1"), (false, "fd13::1")] {
        let to = ip_of(&a, ipv4)?;
        sh(&outside.netns, &format!("ip route add {to} via {via}"))?;
        let answered = sh(&outside.netns, &format!("ping -n -c 1 -W 1 {to}"));
        ensure!(answered.is_err(), "{answered:?}");
    }
    lab.finish(Allowed::default())
}

#[test]
fn the_host_reaches_endpoints_near_and_far() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.network("h1", "blue")?;
    let (a, b) = (lab.sandbox("h1", "blue", "a")?, lab.sandbox("h2", "blue", "b")?);
    let host = lab.host("h1")?;
    let shown: Network = lab.json("h1", &["network", "inspect", "blue"])?;
    let way = shown.way.context("no way out")?;
    ensure!(way.fault.is_none() && way.unreached.is_empty(), "{way:?}");
    for sandbox in [&a, &b] {
        for ipv4 in [true, false] {
            let to = ip_of(sandbox, ipv4)?;
            ping(&host, to, 3)?;
            let to = SocketAddr::new(to, PORT);
            let node = way.node_ips.iter().map(ipnet::IpNet::addr).find(|ip| ip.is_ipv4() == ipv4);
            let seen = [
                call_tcp(&host, to, &sandbox.netns, PORT)?,
                call_udp(&host, to, &sandbox.netns, PORT)?,
            ];
            ensure!(seen == [node.context("no node address")?; 2], "{to} saw {seen:?}");
        }
    }
    for subnet in &shown.subnets {
        ping(&host, subnet.gateway, 3)?;
        ping(&a.netns, subnet.gateway, 3)?;
        ping(&b.netns, subnet.gateway, 3)?;
    }
    lab.finish(Allowed::default())
}

#[test]
fn an_internal_network_has_no_way_out() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    let host = lab.host("h1")?;
    let before = state(&host)?;
    lab.vxmesh("h1", &["network", "create", "dark", "--internal"])?;
    let shown: Network = lab.json("h1", &["network", "inspect", "dark"])?;
    ensure!(shown.internal, "{shown:?}");
    let a = lab.sandbox("h1", "dark", "a")?;
    let b = lab.sandbox("h2", "dark", "b")?;
    settles(&host, &before, "the host knows nothing of it")?;
    let netns = lab.inner("h1", &format!("/run/vxmesh/netns/{}", shown.id.short()))?;
    let links = sh(&netns, "ip -o link | cut -d: -f2 | cut -d@ -f1 | xargs")?;
    ensure!(!links.contains("uplink0") && !links.contains("node0"), "{links}");
    ensure!(sh(&netns, "sysctl -n net.ipv4.ip_forward")? == "0", "it forwards");
    ensure!(
        sh(&a.netns, "ip route show default; ip -6 route show default")?.is_empty(),
        "a default route"
    );
    // Also a sandbox that makes itself one, and whose packets are counted where they would come
    // out.
    let counted = "nft -f - <<'EOF'
table inet count {
    chain in {
        type filter hook prerouting priority -400
        icmp type echo-request counter
        icmpv6 type echo-request counter
        udp dport 4711 counter
    }
}
EOF";
    sh(&outside.netns, counted)?;
    for (subnet, to) in shown.subnets.iter().zip([outside::IPV4, outside::IPV6]) {
        let to = if subnet.gateway.is_ipv4() == to.is_ipv4() { to } else { outside::IPV4 };
        sh(&a.netns, &format!("ip route add {to} via {}", subnet.gateway))?;
        let script = format!("ping -n -c 2 -i 0.2 -W 1 {to}");
        ensure!(sh(&a.netns, &script).is_err(), "{to} answers");
        let socket = a.netns.run(|| vxmesh_tests::traffic::udp_to(to, PORT))?;
        socket.send(b"out")?;
    }
    let counters = sh(&outside.netns, "nft list table inet count")?;
    ensure!(counters.matches("counter packets 0 ").count() == 3, "{counters}");
    // Inside all is as ever.
    for ipv4 in [true, false] {
        ping(&a.netns, ip_of(&b, ipv4)?, 3)?;
    }
    lab.finish(Allowed { drops: &["local_destination"], warnings: &[] })
}

#[test]
fn it_works_beside_other_firewalls_and_is_put_back() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let host = lab.host("h1")?;
    sh(&host, STRICT)?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let works = |what: &str| {
        for to in [outside::IPV4, outside::IPV6] {
            wait_until(what, || Ok(sh(&a.netns, &format!("ping -n -c 1 -W 1 {to}")).is_ok()))?;
            call_tcp(&a.netns, SocketAddr::new(to, PORT), &outside.netns, PORT)
                .context(what.to_owned())?;
        }
        Ok::<_, anyhow::Error>(())
    };
    works("beside chains that drop")?;
    let rules = sh(&host, "nft list table ip filter")?;
    ensure!(rules.matches("vxmesh:").count() == 2 && rules.contains("mine"), "{rules}");
    // Somebody takes everything away, then somebody else comes back.
    sh(&host, "nft flush ruleset")?;
    works("after a flush")?;
    sh(&host, STRICT)?;
    works("after the others came back")?;
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    let rules = sh(&host, "nft list ruleset")?;
    ensure!(!rules.contains("vxm") && rules.contains("mine"), "{rules}");
    lab.finish(Allowed::default())
}

#[test]
fn the_host_is_afterwards_as_it_was() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    let host = lab.host("h2")?;
    // As hosts are found: IPv6 routers are learned, one interface forwards, redirects are refused.
    sh(
        &host,
        "sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv4.conf.lo.forwarding=1 net.ipv4.conf.all.accept_redirects=0",
    )?;
    let before = state(&host)?;
    for name in ["blue", "red"] {
        lab.network("h1", name)?;
    }
    let reach = |sandbox: &Plugged| {
        for to in [outside::IPV4, outside::IPV6] {
            call_tcp(&sandbox.netns, SocketAddr::new(to, PORT), &outside.netns, PORT)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (a, b) = (lab.sandbox("h2", "blue", "a")?, lab.sandbox("h2", "red", "b")?);
    ensure!(sh(&host, "sysctl -n net.ipv6.conf.eth0.accept_ra")? == "2", "routers are forgotten");
    reach(&a)?;
    lab.lab(&["kill", "h2"])?;
    reach(&a).context("without an agent")?;
    lab.lab(&["start", "h2"])?;
    reach(&b).context("with the next agent")?;
    lab.vxmesh("h2", &["sandbox", "rm", "a"])?;
    reach(&b).context("the other network")?;
    lab.vxmesh("h2", &["sandbox", "rm", "b"])?;
    settles(&host, &before, "after the last sandbox")?;

    lab.sandbox("h2", "blue", "a")?;
    lab.vxmesh("h2", &["leave", "--yes"])?;
    settles(&host, &before, "after leaving")?;
    lab.finish(Allowed { drops: &[], warnings: &["gossip ended"] })
}

#[test]
fn a_route_of_the_host_wins_and_is_named() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    let host = lab.host("h1")?;
    sh(&host, "ip route add 10.99.4.0/24 via 10.213.0.200")?;
    lab.vxmesh("h1", &["network", "create", "blue", "--subnet", "10.99.0.0/16"])?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let unreached = || {
        let shown: Network = lab.json("h1", &["network", "inspect", "blue"])?;
        Ok::<_, anyhow::Error>(shown.way.context("no way out")?.unreached)
    };
    let overlaps = unreached()?;
    let [overlap] = overlaps.as_slice() else { anyhow::bail!("{overlaps:?}") };
    ensure!(overlap.route.to_string() == "10.99.4.0/24", "{overlap:?}");
    ensure!(
        sh(&host, "ip route show 10.99.0.0/16")?.is_empty(),
        "a route in the way of the host's own"
    );
    // The sandbox goes out all the same, and the host reaches it when its route has gone.
    call_tcp(&a.netns, SocketAddr::new(outside::IPV4, PORT), &outside.netns, PORT)?;
    sh(&host, "ip route del 10.99.4.0/24")?;
    wait_until("the overlap is over", || Ok(unreached()?.is_empty()))?;
    ping(&host, ip_of(&a, true)?, 3)?;
    lab.finish(Allowed::default())
}

/// A link of link-local addresses, and a VPN for everything, as they lay their routes.
const CROWDED: &str = "set -e; ip route add 169.254.0.0/16 dev eth0
for net in 0.0.0.0/1 128.0.0.0/1; do ip route add $net via 10.213.0.200; done
for net in ::/1 8000::/1; do ip route add $net via fd13::200; done";

#[test]
fn a_way_is_found_beside_other_routes_or_its_lack_is_told() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    let host = lab.host("h1")?;
    sh(&host, CROWDED)?;
    lab.network("h1", "blue")?;
    let run = ["run", "-d", "--name", "a", "--network", "blue", "--", "sleep", "3600"];
    let output = lab.try_vxmesh("h1", &run)?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let netns = lab.inner("h1", "/run/vxmesh/sandbox/a")?;
    for to in [outside::IPV4, outside::IPV6] {
        call_tcp(&netns, SocketAddr::new(to, PORT), &outside.netns, PORT)?;
    }
    let shown: Network = lab.json("h1", &["network", "inspect", "blue"])?;
    let way = shown.way.context("no way out")?;
    ensure!(way.fault.is_none() && way.unreached.is_empty(), "{way:?}");
    ensure!(shown.warnings.is_empty(), "{:?}", shown.warnings);
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    // Now nothing is free.
    sh(&host, "for net in 198.18.0.0/15 240.0.0.0/4; do ip route add $net dev eth0; done")?;
    let output = lab.try_vxmesh("h1", &run)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{output:?}");
    ensure!(said.contains("warning: no full way out of network `blue`"), "{said}");
    let shown: Network = lab.json("h1", &["network", "inspect", "blue"])?;
    let fault = shown.way.and_then(|way| way.fault).unwrap_or_default();
    ensure!(fault.contains("198.19.96.0/19"), "{fault}");
    let doctor = lab.try_vxmesh("h1", &["doctor"])?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    ensure!(doctor.status.code() == Some(1) && said.contains("no pair of addresses"), "{said}");
    lab.finish(Allowed { drops: UNDERWAY, warnings: &["no full way out"] })
}

#[test]
fn subnets_of_one_network_reach_each_other_across_hosts() -> Result<()> {
    let lab = Lab::up(2)?;
    let create = [
        "network",
        "create",
        "wide",
        "--subnet",
        "10.61.0.0/24",
        "--subnet",
        "10.62.0.0/24",
        "--subnet",
        "fd61::/64",
        "--subnet",
        "fd62::/64",
    ];
    lab.vxmesh("h1", &create)?;
    wait_until("h2 lists it", || Ok(lab.vxmesh("h2", &["network", "inspect", "wide"]).is_ok()))?;
    let start = |host: &str, name: &str, ips: &str| {
        let run =
            ["run", "-d", "--name", name, "--network", "wide", "--ip", ips, "--", "sleep", "3600"];
        let sandbox: vxmesh::api::Sandbox = lab.json(host, &run)?;
        lab.inner(host, &sandbox.netns)
    };
    let a = start("h1", "a", "10.61.0.50,fd61::50")?;
    let b = start("h2", "b", "10.62.0.150,fd62::150")?;
    let c = start("h1", "c", "10.62.0.51,fd62::51")?;
    for (from, to) in [
        (&a, ["10.62.0.150", "fd62::150"]),
        (&b, ["10.61.0.50", "fd61::50"]),
        (&a, ["10.62.0.51", "fd62::51"]),
        (&c, ["10.61.0.50", "fd61::50"]),
    ] {
        for to in to {
            ping(from, to.parse()?, 3)?;
        }
    }
    // Nobody's address is rewritten on the way.
    ensure!(
        call_tcp(&a, "10.62.0.150:4711".parse()?, &b, PORT)? == "10.61.0.50".parse::<IpAddr>()?
    );
    lab.finish(Allowed::default())
}

#[test]
fn no_packet_is_too_large_without_a_word() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    let network = lab.network("h1", "blue")?;
    let run = ["run", "-d", "--name", "a", "--network", "blue", "--publish", "4711:4711/udp"];
    let run = [&run[..], &["--", "sleep", "3600"]].concat();
    let sandbox: vxmesh::api::Sandbox = lab.json("h1", &run)?;
    let a = lab.inner("h1", &sandbox.netns)?;
    let host = lab.host("h1")?;
    let inside = lab.inner("h1", &format!("/run/vxmesh/netns/{}", network.id.short()))?;
    let uplink = format!("/sys/class/net/vxm{}/mtu", network.id.short());
    for (netns, path) in [
        (&a, "/sys/class/net/eth0/mtu"),
        (&inside, "/sys/class/net/br0/mtu"),
        (&inside, "/sys/class/net/node0/mtu"),
        (&inside, "/sys/class/net/uplink0/mtu"),
        (&host, uplink.as_str()),
    ] {
        // A mount of /sys shows the namespace in which it was made.
        let own = format!("unshare -m sh -c 'mount -t sysfs none /sys && cat {path}'");
        ensure!(sh(netns, &own)? == network.mtu.to_string(), "{path}");
    }
    // Farther on it gets narrower: the sandbox is told, and its TCP does not even try.
    sh(
        &host,
        "ip route add 10.213.0.200 dev eth0 mtu 1200; ip route add fd13::200 dev eth0 mtu 1300",
    )?;
    for (to, size, says) in [(outside::IPV4, 1300, "mtu = 1200"), (outside::IPV6, 1340, "mtu=1300")]
    {
        let said = sh(&a, &format!("ping -n -M do -c 2 -i 0.2 -W 1 -s {size} {to} 2>&1 || :"))?;
        ensure!(said.contains(says), "{said}");
    }
    for (to, most) in [(outside::IPV4, 1200 - 40), (outside::IPV6, 1300 - 60)] {
        let listener = outside.netns.run(|| Ok(listen((to, PORT))?))?;
        let _ours = a.run(|| Ok(TcpStream::connect((to, PORT))?))?;
        let (theirs, _from) = listener.accept()?;
        let mss = getsockopt(&theirs, sockopt::TcpMaxSeg)?;
        ensure!(mss <= most, "{to} may send segments of {mss} to a way of {most}");
    }
    // The way in is narrower than the outside's link.
    for ipv4 in [true, false] {
        let server = a.run(|| Ok(bind_udp((Ipv6Addr::UNSPECIFIED, PORT))?))?;
        server.set_nonblocking(true)?;
        let to = host_ip(1, ipv4)?;
        let client = outside.netns.run(|| vxmesh_tests::traffic::udp_to(to, PORT))?;
        let mut got = vec![0; 2000];
        wait_until("a datagram of 1440 bytes arrives in pieces", || {
            // The kernel says that it was too large before it cuts the next one.
            drop(client.send(&[7; 1440]));
            Ok(server.recv_from(&mut got).is_ok_and(|(len, _from)| len == 1440))
        })?;
    }
    lab.finish(Allowed::default())
}

#[test]
fn a_host_that_was_no_router_becomes_none() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let host = lab.host("h1")?;
    // In the host's own /run.
    lab.sh(
        "h1",
        "ip netns add back && ip link add eth1 type veth peer name eth0 netns back && ip link set eth1 up && \
         ip address add 10.88.0.1/24 dev eth1 && ip -n back link set eth0 up && \
         ip -n back address add 10.88.0.2/24 dev eth0 && ip -n back route add default via 10.88.0.1",
    )?;
    sh(&outside.netns, "ip route add 10.88.0.0/24 via 10.213.0.1")?;
    let passes = || sh(&outside.netns, "ping -n -c 1 -W 1 10.88.0.2").is_ok();
    let a = lab.sandbox("h1", "blue", "a")?;
    ping(&a.netns, "10.88.0.2".parse()?, 3)?;
    ping(&a.netns, outside::IPV4, 3)?;
    ensure!(!passes(), "the host became a router");
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    // One that is a router stays one.
    sh(&host, "sysctl -qw net.ipv4.ip_forward=1")?;
    wait_until("the test itself", || Ok(passes()))?;
    lab.sandbox("h1", "blue", "a")?;
    wait_until("the host is a router still", || Ok(passes()))?;
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    wait_until("the host is a router afterwards", || Ok(passes()))?;
    ensure!(sh(&host, "sysctl -n net.ipv4.ip_forward")? == "1", "its switch is another");
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
