//! What leaves on purpose leaves nothing behind.

use anyhow::{Context, Result};
use serde_json::json;

use vxmesh_tests::lab::{Allowed, UNDERWAY};

use super::world::{Lab, ip, wait_until};

#[test]
fn the_last_endpoint_takes_the_networks_namespace_with_it() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    assert!(lab.pins("h1")?.is_empty(), "a network without endpoints needs nothing");
    lab.attach("h1", "blue", "plain")?;
    lab.run_sandbox("h1", "blue", "web")?;
    assert_eq!(lab.pins("h1")?.len(), 2);
    lab.vx("h1", &["endpoint", "detach", "plain"])?;
    assert_eq!(lab.pins("h1")?.len(), 2, "the sandbox is still in it");
    assert_eq!(lab.sh("h1", "ip -n plain -o link | wc -l")?, "1", "only lo is left");
    lab.vx("h1", &["sandbox", "rm", "web"])?;
    assert!(lab.pins("h1")?.is_empty());
    assert_eq!(lab.sh("h1", "ls /sys/class/net | sort | xargs")?, "eth0 lo");
    // In the foreground: Ctrl-C ends command and sandbox.
    let script = "vxmesh run --name fg --network blue -- sleep 1000 & until pidof sleep; do sleep 0.05; done; kill -TERM $!; wait $!; echo status $?";
    assert!(lab.sh("h1", script)?.ends_with("status 143"));
    assert!(lab.pins("h1")?.is_empty());
    lab.vx("h1", &["network", "rm", "blue"])?;
    assert_eq!(lab.json("h1", &["network", "ls"])?, json!([]));
    lab.finish(Allowed::default())
}

#[test]
fn a_node_that_leaves_is_gone_and_may_come_back_as_another() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    wait_until("h3 knows it", || {
        Ok(lab.find("h3", &["network", "ls"], "name", "blue")?.is_some())
    })?;
    lab.attach("h3", "blue", "plain")?;
    let web = lab.run_sandbox("h3", "blue", "web")?;
    let id = lab.json("h3", &["status"])?["node_id"].as_str().context("no id")?.to_owned();
    let refused = lab.try_vx("h3", &["leave"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    for words in ["this node has sandboxes web and endpoints plain", "--yes"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(lab.json("h3", &["sandbox", "ls"])?[0]["state"], "running", "it goes on");
    let left = lab.try_vx("h3", &["leave", "--yes"])?;
    let said = String::from_utf8_lossy(&left.stderr);
    assert!(left.status.success(), "{said}");
    assert!(said.contains("sandboxes web and endpoints plain of this node were ended"), "{said}");
    assert!(lab.pins("h3")?.is_empty());
    assert_eq!(lab.sh("h3", "ls /sys/class/net | sort | xargs; pidof sleep || true")?, "eth0 lo");
    assert_eq!(lab.sh("h3", "ls /var/lib/vxmesh")?, "state.redb", "no identity is left");
    assert_eq!(lab.sh("h3", "ip -n plain -o link | wc -l")?, "1");
    for host in ["h1", "h2"] {
        wait_until("the others show it as left", || {
            let row = lab.find(host, &["node", "ls", "--all"], "id", &id)?;
            Ok(row.is_some_and(|row| row["state"] == "left"))
        })?;
        assert_eq!(lab.json(host, &["endpoint", "ls"])?, json!([]));
    }
    // Somebody else has its addresses to give by now, after they have rested.
    let freed = ip(&web)?.to_string();
    let run = ["run", "--network", "blue", "--ip", &freed, "--", "true"];
    wait_until("its address rests", || {
        let output = lab.try_vx("h2", &run)?;
        anyhow::ensure!(!output.status.success(), "an address that was just in use is given again");
        Ok(String::from_utf8_lossy(&output.stderr).contains("was released a moment ago and rests"))
    })?;

    let token = lab.json("h1", &["token", "create", "--uses", "1"])?;
    let token = token["token"].as_str().context("no token")?;
    lab.vx("h3", &["join", "--token", token, "10.213.0.1"])?;
    let back = lab.json("h3", &["status"])?["node_id"].as_str().context("no id")?.to_owned();
    assert_ne!(back, id, "it is another node");
    wait_until("the hosts agree", || lab.agree(&["h1", "h2", "h3"]))?;
    let again = lab.run_sandbox("h3", "blue", "again")?;
    let address = ip(&again)?.to_string();
    wait_until("it is reached", || {
        let ping = ["run", "--network", "blue", "--", "ping", "-c1", "-W1", &address];
        Ok(lab.try_vx("h2", &ping)?.status.success())
    })?;
    // Those who left are shown to who asks.
    for (list, rows) in [(&["node", "ls"] as &[&str], 3), (&["node", "ls", "--all"], 4)] {
        let nodes = lab.json("h2", list)?;
        assert_eq!(nodes.as_array().map(Vec::len), Some(rows), "{nodes}");
    }
    // What sandboxes sent while they were unplugged.
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
