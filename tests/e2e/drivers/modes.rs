//! `run --network none|host|sandbox:NAME`: whose namespace a command gets, and what becomes of it.

use std::fs;

use anyhow::{Result, ensure};
use vxmesh::api::{Network, Sandbox};
use vxmesh_tests::lab::{Allowed, Lab, wait_until};

use super::refused;

/// `run -d --network MODE` of a command that does nothing for an hour.
fn detach(lab: &Lab, name: &str, mode: &str) -> Result<Sandbox> {
    lab.json("h1", &["run", "-d", "--name", name, "--network", mode, "--", "sleep", "3600"])
}

fn is_gone(lab: &Lab, sandbox: &Sandbox) -> Result<bool> {
    let listed: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    let pin = lab.path("h1", &sandbox.netns)?;
    Ok(!listed.iter().any(|row| row.name == sandbox.name) && !pin.exists())
}

#[test]
fn none_has_a_loopback_interface_and_nothing_else() -> Result<()> {
    let lab = Lab::up(1)?;
    let run = |command: &[&str]| {
        lab.vxmesh("h1", &[&["run", "--network", "none", "--"], command].concat())
    };
    let links = run(&["ip", "-o", "link"])?;
    ensure!(links.lines().count() == 1 && links.contains(" lo:"), "{links}");
    run(&["ping", "-n", "-c", "1", "-W", "1", "127.0.0.1"])?;
    let host = fs::read_link("/proc/self/ns/net")?;
    ensure!(run(&["readlink", "/proc/self/ns/net"])?.trim() != host.to_string_lossy());
    ensure!(run(&["cat", "/etc/hosts"])?.contains("127.0.0.1 localhost"));
    let listed: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    ensure!(listed.is_empty(), "{listed:?}");
    lab.finish(Allowed::default())
}

#[test]
fn host_is_the_hosts_own_namespace() -> Result<()> {
    let lab = Lab::up(1)?;
    let script = "readlink /proc/self/ns/net; ip -o link";
    let before = lab.sh("h1", script)?;
    let inside = ["run", "--network", "host", "--", "sh", "-c", script];
    ensure!(lab.vxmesh("h1", &inside)?.trim() == before.trim());
    ensure!(
        lab.sh("h1", "cat /etc/hosts")? == {
            lab.vxmesh("h1", &["run", "--network", "host", "--", "cat", "/etc/hosts"])?
        }
    );
    let long = detach(&lab, "long", "host")?;
    ensure!(long.endpoints.is_empty() && long.etc.is_none(), "{long:?}");
    let listed = lab.vxmesh("h1", &["sandbox", "ls"])?;
    ensure!(listed.lines().any(|row| row.starts_with("long") && row.contains("host")), "{listed}");
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("the agent knows it", || {
        let listed: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
        Ok(listed.iter().any(|row| row.name == long.name && row.state == "running"))
    })?;
    lab.vxmesh("h1", &["sandbox", "rm", "long"])?;
    ensure!(is_gone(&lab, &long)?);
    let after = lab.sh("h1", script)?;
    ensure!(before == after, "{before}\n{after}");
    lab.finish(Allowed::default())
}

#[test]
fn a_sandbox_shares_anothers_namespace_also_after_that_ones_end() -> Result<()> {
    let lab = Lab::up(1)?;
    let network: Network = lab.network("h1", "blue")?;
    let web = lab.sandbox("h1", "blue", "web")?;
    let peer = lab.sandbox("h1", "blue", "peer")?;
    let run = |command: &[&str]| {
        lab.vxmesh("h1", &[&["run", "--network", "sandbox:web", "--"], command].concat())
    };
    let links = run(&["ip", "-j", "link", "show", "eth0"])?;
    ensure!(links.contains(&web.endpoint.mac.to_string()), "{links}");
    // Its names are the owner's.
    ensure!(run(&["cat", "/etc/resolv.conf"])?.contains("search blue"));
    ensure!(
        run(&["getent", "hosts", "peer"])?.contains(" peer") || {
            run(&["getent", "ahosts", "peer"])?.contains(&peer.endpoint.ips[0].addr().to_string())
        }
    );
    // What troubleshooting is about: it sees the owner's packets.
    let script = "tcpdump -n -c 1 -i eth0 icmp or icmp6 2>/dev/null & sleep 0; \
                  while kill -0 $! 2>/dev/null; do ping -n -c 1 -W 1 peer >/dev/null; done; wait";
    let seen = run(&["sh", "-c", script])?;
    ensure!(seen.contains("ICMP"), "{seen}");
    let beside = detach(&lab, "beside", "sandbox:web")?;
    let chained = detach(&lab, "chained", "sandbox:beside")?;
    ensure!(beside.endpoints.is_empty() && beside.etc == web.sandbox.etc, "{beside:?}");
    ensure!(chained.etc == web.sandbox.etc, "{chained:?}");
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("the agent knows all", || {
        let listed: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
        Ok(listed.iter().filter(|row| row.state == "running").count() == 4)
    })?;
    // The owner goes with its endpoint; who shares the namespace keeps that.
    lab.vxmesh("h1", &["sandbox", "rm", "web"])?;
    let links = lab.vxmesh("h1", &["exec", "beside", "--", "ip", "-o", "link"])?;
    ensure!(links.lines().count() == 1 && links.contains(" lo:"), "{links}");
    for sandbox in [&beside, &chained] {
        lab.vxmesh("h1", &["sandbox", "rm", sandbox.name.as_str()])?;
        ensure!(is_gone(&lab, sandbox)?, "{sandbox:?}");
    }
    lab.vxmesh("h1", &["sandbox", "rm", "peer"])?;
    lab.vxmesh("h1", &["network", "rm", &network.id.to_string()])?;
    lab.finish(Allowed::default())
}

#[test]
fn what_a_mode_cannot_have_is_refused_and_leaves_nothing() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.network("h1", "blue")?;
    let with = |words: &[&'static str]| [&["run"], words, &["--", "true"]].concat();
    for words in [
        ["--network", "host,blue"].as_slice(),
        &["--network", "blue", "--network", "none"],
        &["--network", "service:web"],
        &["--network", "sandbox:"],
    ] {
        refused(&lab, &with(words), 2, &["network"])?;
    }
    for (option, value, status) in [
        ("--ip", "10.0.0.5", 2),
        ("--mac", "02:00:00:00:00:01", 2),
        ("--alias", "x", 2),
        ("--publish", "8080:80", 125),
        ("--dns", "192.0.2.1", 125),
        ("--add-host", "x:192.0.2.1", 125),
    ] {
        refused(&lab, &with(&["--network", "host", option, value]), status, &[option, "host"])?;
    }
    let long: Sandbox = detach(&lab, "long", "host")?;
    refused(&lab, &["network", "connect", "blue", "long"], 4, &["host"])?;
    lab.vxmesh("h1", &["sandbox", "rm", long.name.as_str()])?;
    refused(&lab, &with(&["--network", "sandbox:nobody"]), 125, &["nobody", "sandbox ls"])?;
    for name in ["none", "host"] {
        refused(&lab, &["network", "create", name], 2, &[name])?;
    }
    let listed: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    ensure!(listed.is_empty(), "{listed:?}");
    let pins = lab.sh("h1", "ls -A /run/vxmesh/sandbox 2>/dev/null | wc -l")?;
    ensure!(pins.trim() == "0", "{pins}");
    lab.finish(Allowed::default())
}
