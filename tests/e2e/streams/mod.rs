//! Correct at speed: long streams over underlays of all kinds, and what happens when the kernel
//! takes an offload back.
//!
//! The interfaces of the sandboxes believe no checksum that they did not compute, so that a wrong
//! one is counted.

mod marks;
mod refused;
mod small;
mod underlays;
mod xdp;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::lab::{Lab, Options, Plugged, wait_until};

/// Two hosts with one sandbox each, which believe no checksum.
fn pair(lab: &Lab, mtu: u16) -> Result<(Plugged, Plugged)> {
    let create = ["network", "create", "blue", "--mtu", &mtu.to_string()];
    let _made: Network = lab.json("h1", &create)?;
    let a = lab.sandbox("h1", "blue", "a")?;
    wait_until("h2 lists the network", || {
        let networks: Vec<Network> = lab.get("h2", "/v1/networks")?;
        Ok(!networks.is_empty())
    })?;
    let b = lab.sandbox("h2", "blue", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    for plugged in [&a, &b] {
        let off = format!("nsenter --net={} ethtool -K eth0 rx off", plugged.sandbox.netns);
        lab.sh(&plugged.host, &off)?;
    }
    Ok((a, b))
}

/// A lab of two hosts on an underlay of this MTU.
fn lab(mtu: u16, underlay: &'static str) -> Result<Lab> {
    Lab::with(Options { hosts: 2, mtu, underlay, ..Options::default() })
}

/// No sandbox has got a packet with a wrong checksum, of any protocol.
fn no_checksum_errors(lab: &Lab, of: &Plugged) -> Result<()> {
    for (name, count) in checksum_counters(lab, of)? {
        ensure!(count == 0, "{}: {name} is {count}", of.host);
    }
    Ok(())
}

/// What the kernel counts in a sandbox, by protocol.
fn checksum_counters(lab: &Lab, of: &Plugged) -> Result<BTreeMap<String, u64>> {
    let netns = &of.sandbox.netns;
    let tables =
        format!("nsenter --net={netns} cat /proc/net/snmp /proc/net/netstat /proc/net/snmp6");
    let said = lab.sh(&of.host, &tables)?;
    let mut counters = BTreeMap::new();
    let mut lines = said.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.split_whitespace();
        let first = words.next().context("an empty line")?;
        let values = lines.next_if(|next| first.ends_with(':') && next.starts_with(first));
        match values {
            // Names, then values.
            Some(values) => {
                let cells = words.zip(values.split_whitespace().skip(1));
                for (name, value) in cells.filter(|(name, _)| name.contains("Csum")) {
                    counters.insert(format!("{first}{name}"), value.parse()?);
                }
            }
            None if first.contains("Csum") => {
                counters.insert(first.to_owned(), words.next().context("no value")?.parse()?);
            }
            None => {}
        }
    }
    ensure!(counters.len() >= 5, "too few counters in {said}");
    Ok(counters)
}
