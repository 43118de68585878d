//! A node whose data was set back gives out no address that may be another's (I12).

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use vxmesh_tests::lab::{Allowed, UNDERWAY};

use super::doctor;
use crate::churn::world::{Lab, ip, wait_until};

const DATA: &str = "/var/lib/vxmesh";

/// An address in the middle of a block that a node holds.
fn address_of(lab: &Lab, host: &str) -> Result<String> {
    let own = lab.json(host, &["status"])?["node_id"].clone();
    let pools = lab.json(host, &["ipam", "inspect", "blue"])?;
    let pools = pools["pools"].as_array().into_iter().flatten();
    let blocks = pools.flat_map(|pool| pool["blocks"].as_array().into_iter().flatten());
    let mut nets = blocks.filter(|block| block["owner"] == own).filter_map(|block| {
        block["cidr"].as_str()?.parse::<Ipv4Net>().ok().filter(|net| net.prefix_len() < 29)
    });
    let net = nets.next().context("it has no block")?;
    Ok(net.hosts().nth(5).context("a small block")?.to_string())
}

fn run(lab: &Lab, host: &str, flags: &[&str]) -> Result<(bool, String)> {
    let words = [&["run", "-d", "--network", "blue"], flags, &["sleep", "1000"]].concat();
    let output = lab.try_vx(host, &words)?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn a_node_that_was_set_back_gives_out_no_address_before_it_met_another() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue", "--subnet", "10.88.0.0/24"])?;
    wait_until("h2 knows it", || {
        Ok(lab.find("h2", &["network", "ls"], "name", "blue")?.is_some())
    })?;
    lab.run_sandbox("h1", "blue", "kept")?;
    let given = address_of(&lab, "h1")?;
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", &format!("cp -a {DATA} /var/lib/snapshot"))?;
    lab.lab(&["start", "h1"])?;
    // In the life that is lost, h1 gives an address of its own away.
    wait_until("h2 has the address", || {
        Ok(run(&lab, "h2", &["--name", "theirs", "--ip", &given])?.0)
    })?;
    let set_back = || {
        lab.lab(&["kill", "h1"])?;
        lab.sh("h1", &format!("rm -r {DATA} && cp -a /var/lib/snapshot {DATA}"))?;
        lab.lab(&["start", "h1"])
    };
    lab.lab(&["kill", "h2"])?;
    set_back()?;
    let (done, said) = run(&lab, "h1", &["--ip", &given])?;
    ensure!(!done, "{given} is given out twice");
    ensure!(said.contains("may be an older copy") && said.contains("ipam trust"), "{said}");
    let (rows, _status) = doctor(&lab, "h1", "addresses to give")?;
    ensure!(rows.iter().any(|row| row["health"] == "warn"), "doctor does not know");

    // Whoever comes says what went.
    lab.lab(&["start", "h2"])?;
    wait_until("h1 gives out addresses", || Ok(run(&lab, "h1", &["--name", "next"])?.0))?;
    let (done, said) = run(&lab, "h1", &["--ip", &given])?;
    ensure!(!done && said.contains("in use by endpoint `theirs`"), "{said}");
    let next = lab.find("h1", &["endpoint", "ls"], "name", "next")?.context("no endpoint")?;
    ensure!(ip(&next)?.to_string() != given, "{next}");

    // An agent that was only started again knows all that it did, and needs nobody.
    for host in ["h2", "h1"] {
        lab.lab(&["kill", host])?;
    }
    lab.lab(&["start", "h1"])?;
    let (done, said) = run(&lab, "h1", &["--name", "again"])?;
    ensure!(done, "{said}");
    // After a boot the user may say that nothing was set back.
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "rm /run/vxmesh/given")?;
    lab.lab(&["start", "h1"])?;
    let (done, said) = run(&lab, "h1", &[])?;
    ensure!(!done && said.contains("ipam trust"), "{said}");
    let pools: Value = lab.json("h1", &["ipam", "trust"])?;
    ensure!(pools != json!([]), "no pools");
    let (done, said) = run(&lab, "h1", &["--name", "trusted"])?;
    ensure!(done, "{said}");
    lab.finish(Allowed {
        warnings: &["older than the node"],
        drops: &[UNDERWAY, &["unknown_index", "not_a_member", "no_session"]].concat(),
    })
}
