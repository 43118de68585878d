//! A network that all hosts of a larger lab are in: `h1` in the middle, the others around it.

use std::{
    net::Ipv4Addr,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    bulk::{Moved, Way},
    flood::Flooded,
    lab::{Lab, own_path},
    load,
    subject::MTU,
};

/// Ports of the servers that take part in TCP and that count datagrams.
const BULK_PORT: u16 = 7004;
const DRAIN_PORT: u16 = 7003;
/// How long a network may take to connect all hosts.
const PATIENCE: Duration = Duration::from_secs(30);

/// What carries the packets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carrier {
    /// The kernel's VXLAN device.
    Kernel,
    /// The lab's agents.
    Agents,
}

/// What came of TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Total {
    pub(crate) gigabits: f64,
    pub(crate) agents_per_gigabyte: f64,
}

impl Total {
    fn new(moved: Moved, agents_seconds: f64) -> Self {
        Self {
            gigabits: gigabytes(moved.bytes) * 8.0 / moved.seconds,
            agents_per_gigabyte: agents_seconds / gigabytes(moved.all),
        }
    }
}

/// In kilobytes first, so that the number fits what a float counts exactly.
fn gigabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1000).unwrap_or(u32::MAX)) / 1e6
}

/// A place on each host, all in one network.
#[derive(Debug)]
pub(crate) struct Star<'l> {
    lab: &'l Lab,
    carrier: Carrier,
    netns: String,
    /// That of `h1` first.
    addresses: Vec<Ipv4Addr>,
    servers: Vec<Child>,
}

impl<'l> Star<'l> {
    /// Brings the network with this number up on all hosts.
    pub(crate) fn up(lab: &'l Lab, carrier: Carrier, number: u8) -> Result<Self> {
        let netns = format!("{carrier:?}{number}").to_lowercase();
        let addresses = match carrier {
            Carrier::Kernel => kernel(lab, &netns, number)?,
            Carrier::Agents => agents(lab, &netns, number)?,
        };
        let mut star = Self { lab, carrier, netns, addresses, servers: Vec::new() };
        let (own, bulk, drain) = (own_path()?, BULK_PORT.to_string(), DRAIN_PORT.to_string());
        for host in 1..=lab.hosts() {
            for words in [["bulk-server", &bulk], ["drain", &drain]] {
                let words = [&[&*own], &words[..]].concat();
                let child = lab.spawn(&name(host), &star.within(&words))?;
                star.servers.push(child);
            }
        }
        star.wait()?;
        Ok(star)
    }

    /// One TCP stream between `h1` and each of these, all at once, for some seconds.
    pub(crate) fn tcp(&self, others: &[u8], way: Way, seconds: u32) -> Result<Total> {
        let agents = match self.carrier {
            Carrier::Kernel => Vec::new(),
            Carrier::Agents => self.lab.agents()?,
        };
        let way = match way {
            Way::In => "in",
            Way::Out => "out",
        };
        let mut words = vec![own_path()?, "bulk".to_owned(), way.to_owned(), seconds.to_string()];
        for host in others {
            words.push(format!("{}:{BULK_PORT}", self.address(*host)?));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let before = load::processes_seconds(&agents)?;
        let said = self.lab.exec("h1", &self.within(&words))?;
        let spent = load::processes_seconds(&agents)? - before;
        Ok(Total::new(serde_json::from_str(&said)?, spent))
    }

    /// Starts datagrams of `len` bytes without a pause, until it is told to stop.
    pub(crate) fn flood(&self, from: u8, to: u8, len: usize) -> Result<Flood> {
        let (own, to, len) =
            (own_path()?, format!("{}:{DRAIN_PORT}", self.address(to)?), len.to_string());
        // Longer than anything beside it takes.
        let words = [&*own, "flood", &to, &len, "60", "--until-told"];
        self.lab.start(&name(from), &self.within(&words)).map(Flood)
    }

    /// Waits until every host takes TCP from the middle and gives it.
    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let others: Vec<u8> = (2..=self.lab.hosts()).collect();
        for way in [Way::In, Way::Out] {
            // Of no length: that bytes move is enough.
            while let Err(error) = self.tcp(&others, way, 0) {
                if Instant::now() > deadline {
                    bail!("{} does not reach all hosts: {error:#}", self.netns);
                }
            }
        }
        Ok(())
    }

    fn address(&self, host: u8) -> Result<Ipv4Addr> {
        let at = usize::from(host).checked_sub(1);
        at.and_then(|at| self.addresses.get(at)).copied().context("no such host")
    }

    fn within<'w>(&'w self, words: &[&'w str]) -> Vec<&'w str> {
        [&["ip", "netns", "exec", &*self.netns], words].concat()
    }
}

impl Drop for Star<'_> {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Whatever it leaves in the host goes with the lab.
            if server.kill().is_ok() {
                drop(server.wait());
            }
        }
    }
}

/// A flood that runs.
#[derive(Debug)]
pub(crate) struct Flood(Child);

impl Flood {
    /// Ends it; thousands of datagrams a second that arrived.
    pub(crate) fn stop(mut self) -> Result<f64> {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the flood: {}\n{error}", output.status);
        let flooded: Flooded = serde_json::from_slice(&output.stdout)?;
        Ok(f64::from(flooded.received) / flooded.seconds / 1e3)
    }
}

/// A VXLAN device on each host that knows all others, plugged into a bridge like a TAP of ours.
fn kernel(lab: &Lab, netns: &str, number: u8) -> Result<Vec<Ipv4Addr>> {
    let mut addresses = Vec::new();
    for me in 1..=lab.hosts() {
        let address = Ipv4Addr::new(10, 96, number, me);
        let others = (1..=lab.hosts()).filter(|other| *other != me);
        let others: Vec<String> = others.map(|other| format!("10.213.0.{other}")).collect();
        let script = format!(
            "for call in iptables ip6tables; do
                 nf=/proc/sys/net/bridge/bridge-nf-call-$call
                 test ! -e $nf || echo 0 > $nf
             done
             ip link add kbr{number} type bridge
             ip link set kbr{number} mtu {MTU} up
             ip link add kvx{number} type vxlan id 7{number} dstport 4789 local 10.213.0.{me} dev eth0
             for other in {}; do
                 bridge fdb append 00:00:00:00:00:00 dev kvx{number} dst $other
             done
             ip link set kvx{number} mtu {MTU} master kbr{number} up
             ip netns add {netns}
             ip link add kv{number} mtu {MTU} type veth peer name eth0 netns {netns}
             ip link set kv{number} master kbr{number} up
             ip -n {netns} link set eth0 mtu {MTU} up
             ip -n {netns} addr add {address}/24 dev eth0",
            others.join(" ")
        );
        lab.sh(&name(me), &script)?;
        addresses.push(address);
    }
    Ok(addresses)
}

/// A network of the lab's mesh with an endpoint on each host.
fn agents(lab: &Lab, netns: &str, number: u8) -> Result<Vec<Ipv4Addr>> {
    let subnet = format!("10.9{}.0.0/24", 8 + number);
    lab.cli("h1", &["network", "create", netns, "--subnet", &subnet, "--mtu", &MTU.to_string()])?;
    (1..=lab.hosts()).map(|host| lab.attach(&name(host), netns, netns)).collect()
}

fn name(host: u8) -> String {
    format!("h{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_clock_and_the_cost_that_of_all_bytes() {
        let moved = Moved { bytes: 1_000_000_000, seconds: 2.0, all: 4_000_000_000 };
        let total = Total::new(moved, 10.0);
        assert_eq!((total.gigabits, total.agents_per_gigabyte), (4.0, 2.5));
    }
}
