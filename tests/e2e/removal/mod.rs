//! `node rm`: whoever is removed is nobody from then on, wherever it was, and its addresses come
//! back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use vxmesh_tests::lab::Allowed;

use crate::churn::world::{Lab, ip, tell, wait_until};

/// What comes from a node that is nobody any more, or goes to one.
const CAUSED: Allowed<'_> = Allowed {
    drops: &["unknown_index", "unknown_peer", "source_unknown", "not_a_member", "neighbor_unknown"],
    warnings: &["this node was removed from the mesh"],
};

pub(crate) const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

pub(crate) fn refused(lab: &Lab, host: &str, args: &[&str], says: &[&str]) -> Result<()> {
    let output = lab.try_vx(host, args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(4), "{args:?}: {output:?}");
    for words in says {
        ensure!(said.contains(words), "{args:?} does not say {words:?}: {said}");
    }
    Ok(())
}

fn network(lab: &Lab, subnet: &str) -> Result<()> {
    lab.vx("h1", &["network", "create", "blue", "--subnet", subnet])?;
    for host in HOSTS {
        wait_until("it is known", || {
            Ok(lab.find(host, &["network", "ls"], "name", "blue")?.is_some())
        })?;
    }
    Ok(())
}

pub(crate) fn id(lab: &Lab, host: &str) -> Result<Value> {
    Ok(lab.json(host, &["status"])?["node_id"].clone())
}

pub(crate) fn state(lab: &Lab, host: &str, node: &Value) -> Result<Value> {
    let node = node.as_str().context("no id")?;
    Ok(lab.find(host, &["node", "ls"], "id", node)?.context("not listed")?["state"].clone())
}

fn is_peer(lab: &Lab, host: &str, node: &Value) -> Result<bool> {
    let peers = lab.json(host, &["peer", "ls"])?;
    Ok(peers.as_array().context("no rows")?.iter().any(|peer| peer["node_id"] == *node))
}

/// What a node holds of the network's addresses, as a host sees it.
fn held(lab: &Lab, host: &str, node: &Value) -> Result<Value> {
    let pools = lab.json(host, &["ipam", "ls"])?;
    let owners = pools[0]["owners"].as_array().cloned().unwrap_or_default();
    Ok(owners.into_iter().find(|row| row["node"] == *node).unwrap_or_default())
}

/// Attaches until there is no address any more; what the refusal says.
fn exhaust(lab: &Lab, host: &str) -> Result<String> {
    for n in 0.. {
        let name = format!("e{n}");
        lab.sh(host, &format!("ip netns add {name}"))?;
        let full = format!("{name}-{host}");
        let attach = ["endpoint", "attach", "blue", "--netns", &name, "--name", &full];
        let output = lab.try_vx(host, &attach)?;
        if !output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    Ok(String::new())
}

fn pings(lab: &Lab, host: &str, sandbox: &str, to: &str) -> Result<bool> {
    let ping = ["exec", sandbox, "--", "ping", "-c1", "-W1", to];
    Ok(lab.try_vx(host, &ping)?.status.success())
}

/// A removed host says what it is, keeps what it has, does nothing new, and is clean after `leave`,
/// which needs nobody.
fn removed_and_leaves(lab: &Lab, host: &str, network: &str) -> Result<()> {
    wait_until("it knows that it was removed", || {
        Ok(lab.json(host, &["status"])?["state"] == "removed")
    })?;
    lab.sh(host, "ip netns add more")?;
    let attach = ["endpoint", "attach", network, "--netns", "more"];
    refused(lab, host, &attach, &["was removed from the mesh", "vxmesh leave"])?;
    refused(lab, host, &["network", "create", "other"], &["was removed from the mesh"])?;
    ensure!(lab.json(host, &["peer", "ls"])? == json!([]), "it has sessions");
    let log = lab.log(host)?;
    ensure!(log.contains("this node was removed from the mesh"), "{log}");
    lab.vx(host, &["leave", "--yes"])?;
    ensure!(lab.pins(host)?.is_empty(), "something is left");
    ensure!(lab.sh(host, "ls /var/lib/vxmesh")? == "state.redb", "no identity is left");
    Ok(())
}

#[test]
fn the_addresses_of_a_dead_node_come_back() -> Result<()> {
    let lab = Lab::up(3)?;
    network(&lab, "10.77.0.0/27")?;
    let third = id(&lab, "h3")?;
    let web = lab.run_sandbox("h3", "blue", "web")?;
    wait_until("all know it", || lab.agree(&HOSTS))?;
    lab.lab(&["kill", "h3"])?;
    for host in ["h1", "h2"] {
        wait_until("it is dead", || Ok(state(&lab, host, &third)? == "dead"))?;
    }
    for host in ["h2", "h1"] {
        let said = exhaust(&lab, host)?;
        for words in ["h3 (dead) holds", "bring h3 back", "vxmesh node rm h3"] {
            ensure!(said.contains(words), "{words}: {said}");
        }
    }
    ensure!(held(&lab, "h2", &third)?["free"].as_u64() > Some(0), "its addresses are its own");
    // h2 has no CA key and asks h1.
    let removed = lab.json("h2", &["node", "rm", "h3"])?;
    ensure!(removed["state"] == "removed" && removed["id"] == third, "{removed}");
    refused(&lab, "h1", &["node", "rm", third.as_str().context("no id")?], &["already"])?;
    for host in ["h1", "h2"] {
        ensure!(state(&lab, host, &third)? == "removed", "{host} has not heard of it");
        ensure!(!is_peer(&lab, host, &third)?, "{host} keeps its session");
        let took = wait_until("its addresses are the issuer's", || {
            Ok(held(&lab, host, &third)?.is_null())
        })?;
        tell(&format!("{host}: the addresses of a removed node came back after {took:?}"));
    }
    lab.attach("h2", "blue", "more")?;
    // What it had rests before it is anybody's.
    let freed = ip(&web)?.to_string();
    let run = ["run", "--network", "blue", "--ip", &freed, "--", "true"];
    wait_until("its address rests", || {
        let output = lab.try_vx("h1", &run)?;
        ensure!(output.status.code() == Some(125), "it is given at once: {output:?}");
        Ok(String::from_utf8_lossy(&output.stderr).contains("rests for"))
    })?;

    // It is back, with its identity, and meets nobody.
    lab.lab(&["start", "h3"])?;
    wait_until("it knows", || Ok(lab.json("h3", &["status"])?["state"] == "removed"))?;
    ensure!(lab.sh("h3", "vxmesh exec web -- ip -o addr show eth0")?.contains(&freed), "no eth0");
    for host in ["h1", "h2"] {
        ensure!(state(&lab, host, &third)? == "removed" && !is_peer(&lab, host, &third)?);
        ensure!(lab.find(host, &["endpoint", "ls"], "name", "web")?.is_none(), "it shows up");
    }
    removed_and_leaves(&lab, "h3", "blue")?;
    let token = lab.json("h1", &["token", "create", "--uses", "1"])?;
    let token = token["token"].as_str().context("no token")?;
    lab.vx("h3", &["join", "--token", token, "10.213.0.1"])?;
    ensure!(id(&lab, "h3")? != third, "it is another node");
    wait_until("the hosts agree", || lab.agree(&HOSTS))?;
    lab.finish(CAUSED)
}

#[test]
fn a_live_node_is_cut_off_at_once() -> Result<()> {
    let lab = Lab::up(3)?;
    network(&lab, "10.77.0.0/24")?;
    let third = id(&lab, "h3")?;
    let near = ip(&lab.run_sandbox("h1", "blue", "near")?)?.to_string();
    lab.run_sandbox("h3", "blue", "web")?;
    wait_until("they reach each other", || pings(&lab, "h3", "web", &near))?;
    refused(&lab, "h3", &["node", "rm", "h3", "--force"], &["is this node", "vxmesh leave"])?;
    for host in ["h1", "h2"] {
        refused(&lab, host, &["node", "rm", "h3"], &["is up, with endpoints web", "--force"])?;
    }
    refused(&lab, "h2", &["node", "rm", "h2"], &["is this node", "vxmesh leave"])?;
    // It does not hear of it: what it goes on sending is counted and goes nowhere.
    let deaf = "nft add table inet deaf; nft add chain inet deaf in '{ type filter hook input priority 0; }'; nft add rule inet deaf in udp sport 7760 drop; nft add rule inet deaf in udp dport 7760 drop";
    lab.sh("h3", deaf)?;
    let start = Instant::now();
    lab.vx("h1", &["node", "rm", "h3", "--force"])?;
    for host in ["h1", "h2"] {
        wait_until("nothing of it is left", || {
            let shown = lab.find(host, &["endpoint", "ls"], "name", "web")?;
            Ok(state(&lab, host, &third)? == "removed"
                && !is_peer(&lab, host, &third)?
                && shown.is_none())
        })?;
    }
    let took = start.elapsed();
    tell(&format!("a removed node was nobody after {took:?}"));
    // Two seconds are the promise.
    ensure!(took < Duration::from_secs(20), "{took:?}");
    ensure!(lab.json("h3", &["status"])?["state"] == "ready", "it heard of it");
    let dropped = || -> Result<u64> {
        let row = lab.find("h1", &["drops"], "reason", "unknown_index")?;
        Ok(row.and_then(|row| row["count"].as_u64()).unwrap_or_default())
    };
    let before = dropped()?;
    ensure!(!pings(&lab, "h3", "web", &near)?, "a frame was answered");
    ensure!(dropped()? > before, "its frames are counted");
    lab.sh("h3", "nft delete table inet deaf")?;
    removed_and_leaves(&lab, "h3", "blue")?;
    lab.finish(CAUSED)
}

#[test]
fn i12_what_a_removed_node_did_in_a_partition_is_forgotten() -> Result<()> {
    let lab = Lab::up(3)?;
    network(&lab, "10.77.0.0/24")?;
    let third = id(&lab, "h3")?;
    lab.lab(&["cut", "h2,h3"])?;
    wait_until("it is dead here", || Ok(state(&lab, "h1", &third)? == "dead"))?;
    lab.vx("h1", &["node", "rm", "h3"])?;
    // On the other side nobody has heard of it.
    let web = lab.run_sandbox("h3", "blue", "web")?;
    let far = ip(&lab.run_sandbox("h2", "blue", "far")?)?.to_string();
    let address = ip(&web)?.to_string();
    wait_until("they reach each other", || pings(&lab, "h3", "web", &far))?;
    // What h2 may believe is not given to others.
    ensure!(!held(&lab, "h1", &third)?.is_null(), "addresses that h2 admits were given away");
    let run = ["run", "--network", "blue", "--ip", &address, "--", "true"];
    refused_run(&lab, &run, "node h3, which is not reachable")?;
    lab.lab(&["heal"])?;
    for host in ["h1", "h2"] {
        let took = wait_until("it is nobody there", || {
            let shown = lab.find(host, &["endpoint", "ls"], "name", "web")?;
            let owns = !held(&lab, host, &third)?.is_null();
            Ok(state(&lab, host, &third)? == "removed" && shown.is_none() && !owns)
        })?;
        tell(&format!("healed: {host} forgot the removed node after {took:?}"));
    }
    ensure!(lab.json("h1", &["map", "ls"])? == lab.json("h2", &["map", "ls"])?);
    removed_and_leaves(&lab, "h3", "blue")?;
    lab.finish(CAUSED)
}

fn refused_run(lab: &Lab, run: &[&str], says: &str) -> Result<()> {
    let output = lab.try_vx("h1", run)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && said.contains(says), "{said}");
    Ok(())
}
