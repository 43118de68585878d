//! Every endpoint reaches every other: ping, TCP and UDP, over IPv4 and IPv6.

use std::{env, fs, path::Path, thread};

use anyhow::{Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, Options, Plugged, tell, wait_until},
    traffic::{Echo, ask_tcp, ask_udp, ping},
};

/// Sources that ask at the same time.
const AT_ONCE: usize = 4;

/// Hosts and endpoints on each: small unless `VXMESH_FULL` is set.
fn size() -> (u8, usize) {
    if env::var_os("VXMESH_FULL").is_some() { (5, 10) } else { (3, 2) }
}

#[test]
fn every_endpoint_reaches_every_other() -> Result<()> {
    let (hosts, each) = size();
    let lab = Lab::captured(Options { hosts, ..Options::default() })?;
    all_pairs(&lab, each)?;
    lab.finish(Allowed::default())
}

#[test]
fn every_endpoint_reaches_every_other_over_an_ipv6_underlay() -> Result<()> {
    let lab = Lab::captured(Options { underlay: "v6", ..Options::default() })?;
    all_pairs(&lab, 2)?;
    lab.finish(Allowed::default())
}

/// Docker sets the policy of FORWARD to DROP, and its br_netfilter shows bridged frames to that
/// chain.
#[test]
fn a_host_as_docker_leaves_it_disturbs_nobody() -> Result<()> {
    let lab = Lab::captured(Options::default())?;
    for host in lab.hosts() {
        lab.sh(host, "iptables -w -P FORWARD DROP && ip6tables -w -P FORWARD DROP")?;
        // Without the module the file is missing, and bridged frames do not come to the chain.
        let bridged = "for f in iptables ip6tables arptables; do \
            p=/proc/sys/net/bridge/bridge-nf-call-$f; if [ -e $p ]; then echo 1 > $p; fi; done";
        lab.sh(host, bridged)?;
        let policy = lab.sh(host, "iptables -w -S FORWARD")?;
        ensure!(policy.contains("-P FORWARD DROP"), "{policy}");
        policy_takes_bridged_frames(&lab, host)?;
    }
    all_pairs(&lab, 2)?;
    lab.finish(Allowed::default())
}

/// The policy is in force: it takes what a bridge of the host forwards, or the variant would prove
/// nothing.
fn policy_takes_bridged_frames(lab: &Lab, host: &str) -> Result<()> {
    if !Path::new("/proc/sys/net/bridge").exists() {
        tell("br_netfilter is not loaded: bridged frames do not come to FORWARD on this machine");
        return Ok(());
    }
    // The bridge floods the ping to its other port, because nobody has the neighbour's MAC.
    let bridge = "ip link add ctl type bridge && ip link set ctl up && for n in 0 1; do \
        ip link add ctlp$n type veth peer name ctlq$n && ip link set ctlp$n master ctl && \
        ip link set ctlp$n up && ip link set ctlq$n up || exit 1; done; \
        ip addr add 192.0.2.1/24 dev ctlq0 && \
        ip neigh add 192.0.2.2 lladdr 02:00:00:00:99:02 dev ctlq0 nud permanent";
    lab.sh(host, bridge)?;
    wait_until("the policy of FORWARD drops a bridged frame", || {
        lab.sh(host, "! ping -n -c 1 -W 1 -I ctlq0 192.0.2.2")?;
        let chain = lab.sh(host, "iptables -w -nvxL FORWARD")?;
        Ok(!chain.contains("policy DROP 0 packets"))
    })?;
    lab.sh(host, "ip link del ctlp0 && ip link del ctlp1 && ip link del ctl")?;
    Ok(())
}

/// Room in the neighbour tables, which all namespaces of a kernel share (arp(7), gc_thresh3): 1024
/// entries by default, and a table that is full loses packets that no agent ever sees. Ends with
/// this.
struct NeighborRoom(Vec<(&'static str, String)>);

impl NeighborRoom {
    fn for_entries(entries: usize) -> Result<Self> {
        let mut before = Self(Vec::new());
        for path in [
            "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
            "/proc/sys/net/ipv6/neigh/default/gc_thresh3",
        ] {
            let now = fs::read_to_string(path)?;
            if now.trim().parse::<usize>()? < 2 * entries {
                fs::write(path, (2 * entries).to_string())?;
                before.0.push((path, now));
            }
        }
        Ok(before)
    }
}

impl Drop for NeighborRoom {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            if let Err(error) = fs::write(path, value) {
                tell(&format!("{path} is not set back to {value}: {error}"));
            }
        }
    }
}

fn all_pairs(lab: &Lab, each: usize) -> Result<()> {
    lab.network("h2", "blue")?;
    let mut all = Vec::new();
    let count = lab.hosts().len() * each;
    let _room = NeighborRoom::for_entries(count * count)?;
    for host in lab.hosts() {
        for number in 1..=each {
            all.push(lab.sandbox(host, "blue", &format!("{host}-{number}"))?);
        }
    }
    lab.all_know(&all.iter().map(|one| &one.endpoint).collect::<Vec<_>>())?;
    let servers: Vec<Echo> =
        all.iter().map(|one| Echo::start(&one.netns)).collect::<Result<_>>()?;
    for sources in all.chunks(AT_ONCE) {
        thread::scope(|scope| {
            #[expect(
                clippy::needless_collect,
                reason = "all ask at once before the first is waited for"
            )]
            let asking: Vec<_> =
                sources.iter().map(|from| scope.spawn(|| reach_all(from, &all))).collect();
            asking.into_iter().try_for_each(|asked| match asked.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
    }
    drop(servers);
    Ok(())
}

fn reach_all(from: &Plugged, all: &[Plugged]) -> Result<()> {
    for to in all.iter().filter(|to| to.endpoint.id != from.endpoint.id) {
        let both = to.endpoint.ips.iter().map(ipnet::IpNet::addr);
        ensure!(to.endpoint.ips.len() == 2, "{:?}", to.endpoint);
        for ip in both {
            let why = || format!("{} to {}", from.endpoint.name, to.endpoint.name);
            ping(&from.netns, ip, 1).map_err(|error| error.context(why()))?;
            ask_tcp(&from.netns, ip).map_err(|error| error.context(why()))?;
            ask_udp(&from.netns, ip).map_err(|error| error.context(why()))?;
        }
    }
    Ok(())
}
