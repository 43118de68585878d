//! Bad input of every kind: the exit status of its kind, a message that says what is wrong, and
//! nothing half done.

mod clocks;
mod foreign;
mod joining;

use std::process::Output;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use vxmesh::store::{Store, Table};

use vxmesh_tests::lab::Allowed;

use crate::churn::world::{Lab, ip};

/// Fails with this status and says this.
fn refused(lab: &Lab, host: &str, args: &[&str], status: i32, says: &[&str]) -> Result<()> {
    judge(args, &lab.try_vx(host, args)?, status, says)
}

fn judge(what: &[&str], output: &Output, status: i32, says: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(status), "{what:?}: {output:?}");
    for words in says {
        ensure!(said.contains(words), "{what:?} does not say {words:?}: {said}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_by_name() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let web = lab.run_sandbox("h1", "blue", "web")?;
    let before = (lab.json("h1", &["endpoint", "ls"])?, lab.pins("h1")?);
    let taken = ip(&web)?.to_string();
    for (args, status, says) in [
        (&["network", "create", "x", "--mtu", "1279"] as &[&str], 2, "1280 to 8894"),
        (&["network", "create", "x", "--mtu", "9001"], 2, "1280 to 8894"),
        (&["network", "create", "x", "--subnet", "10.0.0.0/33"], 2, "10.0.0.0/33"),
        (
            &["network", "create", "x", "--subnet", "10.1.0.0/16", "--gateway", "10.2.0.1"],
            2,
            "10.2.0.1",
        ),
        (&["network", "create", "X y"], 2, "X y"),
        (&["network", "create", "blue"], 4, "blue"),
        (&["network", "create", "x", "--colour", "red"], 2, "--colour"),
        (&["network", "rm", "blue"], 4, "web"),
        (&["network", "rm", "nowhere"], 3, "nowhere"),
        (&["network", "inspect", "nowhere"], 3, "nowhere"),
        (&["node", "inspect", "h9"], 3, "h9"),
        (&["map", "diff", "h9"], 3, "h9"),
        (&["endpoint", "inspect", "nobody"], 3, "nobody"),
        (&["endpoint", "detach", "nobody"], 3, "nobody"),
        (&["endpoint", "detach", "web"], 4, "sandbox rm"),
        (&["sandbox", "rm", "nobody"], 3, "nobody"),
        (&["locate", "10.255.255.1"], 3, "10.255.255.1"),
        (&["locate", "here"], 2, "here"),
        (&["endpoint", "attach", "blue", "--pid", "1"], 2, "not a sandbox"),
        (&["endpoint", "attach", "blue", "--netns", "nowhere"], 3, "nowhere"),
        (&["endpoint", "attach", "blue"], 2, "--netns"),
        (&["run", "--name", "web", "--network", "blue", "--", "true"], 125, "web"),
        (&["run", "--network", "blue", "--ip", &taken, "--", "true"], 125, "in use"),
        (&["run", "--network", "blue", "--ip", "192.0.2.1", "--", "true"], 125, "in no subnet"),
        (&["run", "--network", "nowhere", "--", "true"], 125, "nowhere"),
        (&["--socket", "/nowhere/x.sock", "status"], 5, "/nowhere/x.sock"),
        (&["agent"], 4, "answers"),
        (&["agent", "--socket", "/run/vxmesh/2.sock"], 1, "in use by another agent"),
    ] {
        refused(&lab, "h1", args, status, &[says, "hint:"]).or_else(|error| {
            // The parser of the words has its own form.
            refused(&lab, "h1", args, status, &[says]).map_err(|_other| error)
        })?;
    }
    let output = lab.try_vx("h1", &["--format", "json", "network", "rm", "nowhere"])?;
    let error: Value = serde_json::from_slice(&output.stderr)?;
    assert_eq!(error["error"]["code"], "not_found", "{error}");
    assert_eq!((lab.json("h1", &["endpoint", "ls"])?, lab.pins("h1")?), before);

    // The address of a node that is there comes from that node.
    let far = lab.run_sandbox("h2", "blue", "far")?;
    let std::net::IpAddr::V4(far) = ip(&far)? else { anyhow::bail!("the first is IPv4") };
    let wanted = std::net::Ipv4Addr::from_bits(far.to_bits() + 9).to_string();
    let run = ["run", "--network", "blue", "--ip", &wanted, "--", "ip", "-o", "addr"];
    assert!(lab.vx("h1", &run)?.contains(&wanted));
    lab.finish(Allowed::default())
}

#[test]
fn a_small_subnet_ends_with_a_word() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "tiny", "--subnet", "10.77.0.0/29"])?;
    lab.sh("h1", "ip netns add plain")?;
    let mut addresses = Vec::new();
    // Eight addresses without network, broadcast, gateway and this node.
    let refusal = loop {
        let output = lab.try_vx(
            "h1",
            &["--format", "json", "endpoint", "attach", "tiny", "--netns", "plain"],
        )?;
        if !output.status.success() {
            break output;
        }
        let made: Value = serde_json::from_slice(&output.stdout)?;
        addresses.push(ip(&made)?);
        ensure!(addresses.len() <= 4, "{addresses:?}");
    };
    let says = ["10.77.0.0/29", "h1 (alive) holds", "ipam inspect"];
    judge(&["attach"], &refusal, 4, &says)?;
    let pools = lab.json("h1", &["ipam", "inspect", "tiny"])?;
    let pool = &pools["pools"][0];
    // The node's own is one.
    assert_eq!((pool["used"].clone(), pool["free"].clone()), (json!(5), json!(0)), "{pools}");
    refused(&lab, "h1", &["ipam", "inspect", "nowhere"], 3, &["nowhere"])?;
    assert_eq!(addresses.len(), 4, "all of it was to be had: {addresses:?}");
    lab.finish(Allowed::default())
}

#[test]
fn an_agent_that_cannot_trust_its_files_does_not_start() -> Result<()> {
    let lab = Lab::up(1)?;
    let state = "/var/lib/vxmesh/state.redb";
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "cp -a /var/lib/vxmesh /var/lib/saved")?;
    let newer = Store::open(&lab.path("h1", state)?)?;
    newer.put(Table::Meta, "schema", &2)?;
    drop(newer);
    lab.sh("h1", &format!("mv {state} /var/lib/newer; cp -a /var/lib/saved/state.redb {state}"))?;
    for (damage, says) in [
        (format!("cp -a /var/lib/newer {state}"), "has schema 2, this agent knows 1"),
        (format!("printf 'no database' > {state}"), "damaged"),
        (format!("truncate -s 5000 {state}"), "damaged"),
        ("chmod 755 /var/lib/vxmesh/identity".to_owned(), "identity"),
        ("chmod 644 /var/lib/vxmesh/identity/*".to_owned(), "identity"),
        ("echo 'colour = 1' > /etc/vxmesh/agent.toml".to_owned(), "colour"),
    ] {
        lab.sh("h1", &damage)?;
        let snapshot = "find /var/lib/vxmesh -type f -exec sha256sum {} + | sort; stat -c '%a %n' /var/lib/vxmesh/identity";
        let before = lab.sh("h1", snapshot)?;
        let output = lab.try_vx("h1", &["agent"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{damage}: {output:?}");
        assert!(said.contains(says) && said.contains("hint:"), "{damage}: {said}");
        assert_eq!(lab.sh("h1", snapshot)?, before, "{damage}: the files are as they were");
        // The agent that was killed left its mark of this boot.
        let left = lab.sh("h1", "ls /sys/class/net | sort | xargs; ls /run/vxmesh")?;
        assert_eq!(left, "eth0 lo\ngiven");
        lab.sh("h1", "rm -rf /var/lib/vxmesh /etc/vxmesh/*; cp -a /var/lib/saved /var/lib/vxmesh")?;
    }
    lab.lab(&["start", "h1"])?;
    assert_eq!(lab.json("h1", &["status"])?["state"], json!("ready"));
    lab.finish(Allowed::default())
}
