//! `backup` and `restore`: a node whose disk was lost is the node that it was.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use vxmesh_tests::lab::Allowed;

use super::doctor;
use crate::{
    churn::world::{Lab, wait_until},
    removal::{refused, state},
};

const FILE: &str = "/var/lib/h1.backup";

#[test]
fn a_node_comes_back_from_its_backup_with_the_ca_key() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let before = lab.json("h1", &["status"])?;
    let made = lab.json("h1", &["backup", FILE])?;
    ensure!(made["node_id"] == before["node_id"] && made["issuer"] == json!(true), "{made}");
    ensure!(lab.sh("h1", &format!("stat -c %a {FILE}"))?.trim() == "600", "others can read it");
    // A second life beside the first is refused.
    refused(&lab, "h1", &["restore", FILE], &["an agent runs on this host", "stop it"])?;
    lab.lab(&["kill", "h1"])?;
    refused(&lab, "h1", &["restore", FILE], &["is a member of a mesh already", "vxmesh leave"])?;
    // Without an agent, too.
    lab.vx("h1", &["backup", "/var/lib/second.backup"])?;

    lab.sh("h1", "rm -rf /var/lib/vxmesh")?;
    lab.sh(
        "h1",
        "sed 's/node_id/node_ix/' /var/lib/h1.backup > /var/lib/bad; chmod 600 /var/lib/bad",
    )?;
    lab.sh("h1", "cp /var/lib/h1.backup /var/lib/open; chmod 644 /var/lib/open")?;
    for (file, says) in [
        ("/var/lib/bad", "is damaged"),
        ("/var/lib/open", "open to other users"),
        ("/var/lib/none", "no such file"),
    ] {
        let output = lab.try_vx("h1", &["restore", file])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains(says), "{file}: {said}");
        ensure!(
            lab.sh("h1", "ls -A /var/lib/vxmesh/identity 2>/dev/null || true")?.is_empty(),
            "{file}"
        );
    }
    lab.vx("h1", &["restore", FILE])?;
    lab.lab(&["start", "h1"])?;
    let after = lab.json("h1", &["status"])?;
    ensure!(after["node_id"] == before["node_id"] && after["issuer"] == json!(true), "{after}");
    ensure!(lab.find("h1", &["network", "ls"], "name", "blue")?.is_some(), "its state is lost");
    wait_until("the other host knows it again", || {
        Ok(state(&lab, "h2", &before["node_id"])? == "alive")
    })?;
    lab.vx("h1", &["token", "create"])?;
    lab.vx("h1", &["run", "--network", "blue", "--", "true"])?;
    lab.finish(Allowed::default())
}

#[test]
fn a_node_that_left_is_told_so_when_it_is_restored() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let second = lab.json("h2", &["status"])?["node_id"].clone();
    wait_until("h2 knows the network", || {
        Ok(lab.find("h2", &["network", "ls"], "name", "blue")?.is_some())
    })?;
    lab.vx("h2", &["backup", FILE])?;
    lab.vx("h2", &["leave"])?;
    lab.lab(&["kill", "h2"])?;
    let restored = lab.try_vx("h2", &["restore", FILE])?;
    let said = String::from_utf8_lossy(&restored.stderr).into_owned();
    ensure!(restored.status.success() && said.contains("left its mesh on 20"), "{said}");
    ensure!(said.contains("vxmesh leave") && said.contains("new token"), "{said}");
    lab.lab(&["start", "h2"])?;
    wait_until("it hears that it left", || {
        Ok(lab.json("h2", &["status"])?["state"] == json!("left"))
    })?;
    let run = lab.try_vx("h2", &["run", "--network", "blue", "--", "true"])?;
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    ensure!(!run.status.success() && said.contains("left the mesh on 20"), "{said}");
    ensure!(said.contains("join again with a new token"), "{said}");
    let (rows, status) = doctor(&lab, "h2", "membership")?;
    ensure!(status == Some(1) && rows.len() == 1, "{rows:?}");
    wait_until("the log says it", || Ok(lab.log("h2")?.contains("this node left the mesh on 20")))?;
    ensure!(state_of_gone(&lab, &second)? == json!("left"), "it is back");
    lab.vx("h2", &["leave"])?;
    let token = lab.json("h1", &["token", "create"])?;
    let token = token["token"].as_str().unwrap_or_default().to_owned();
    lab.vx("h2", &["join", "--token", &token, "10.213.0.1"])?;
    // The node waits for what it cannot know yet: the network, and who has addresses.
    lab.vx("h2", &["run", "--network", "blue", "--", "true"])?;
    lab.finish(Allowed {
        warnings: &["this node left the mesh"],
        drops: &["unknown_peer", "unknown_index", "no_session", "not_a_member"],
    })
}

fn state_of_gone(lab: &Lab, node: &Value) -> Result<Value> {
    let rows = lab.json("h1", &["node", "ls", "--all"])?;
    let mut rows = rows.as_array().into_iter().flatten();
    Ok(rows.find(|row| row["id"] == *node).map(|row| row["state"].clone()).unwrap_or_default())
}
