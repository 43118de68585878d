//! Agents that go on after they were not there: their host stood still, or goes on from an image.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{lab::Allowed, uevent};

use super::world::{Lab, ip, tell, wait_until};

/// Ten times the aim.
const LIMIT: Duration = Duration::from_secs(30);

fn is(lab: &Lab, host: &str, other: &str, state: &str) -> Result<bool> {
    let row = lab.find(host, &["node", "ls"], "name", other)?;
    Ok(row.is_some_and(|row| row["state"] == state))
}

#[test]
fn a_node_that_stood_still_is_a_member_again_by_itself() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.network("h1", "blue")?;
    let one = lab.run_sandbox("h1", "blue", "one")?;
    let two = lab.run_sandbox("h2", "blue", "two")?;
    let (one, two) = (ip(&one)?.to_string(), ip(&two)?.to_string());
    let pings = |host: &str, sandbox: &str, to: &str| {
        let ping = ["exec", sandbox, "--", "ping", "-c1", "-W1", to];
        Ok(lab.try_vx(host, &ping)?.status.success())
    };
    wait_until("they reach each other", || pings("h2", "two", &one))?;

    let frozen = lab.freeze("h1")?;
    for host in ["h2", "h3"] {
        wait_until("the others take it for dead", || is(&lab, host, "h1", "dead"))?;
    }
    drop(frozen);
    let reached = wait_until("it is reached", || pings("h2", "two", &one))?;
    let mut known = reached;
    for (host, other) in [("h2", "h1"), ("h3", "h1"), ("h1", "h2"), ("h1", "h3")] {
        known += wait_until("it is a member again", || is(&lab, host, other, "alive"))?;
    }
    tell(&format!("after a standstill it was reached in {reached:?}, alive to all in {known:?}"));
    ensure!(known < LIMIT, "{known:?}");
    ensure!(lab.log("h1")?.contains("starved or stopped for"), "the log does not say it");
    ensure!(pings("h1", "one", &two)?, "it does not reach others");

    // As a hypervisor says it. What the keys of the image protected is protected by others, and
    // addresses are given out once another node was met.
    let said = ["change@/devices/vmgenid", "ACTION=change", "NEW_VMGENID=1"];
    uevent::say(&lab.host("h1")?, &said)?;
    wait_until("the log says it", || Ok(lab.log("h1")?.contains("goes on from an image")))?;
    let reached = wait_until("it is reached again", || pings("h2", "two", &one))?;
    tell(&format!("after an image it was reached in {reached:?}"));
    wait_until("it has met another node", || {
        Ok(lab.log("h1")?.contains("addresses are given out"))
    })?;
    let three = lab.run_sandbox("h1", "blue", "three")?;
    let three = ip(&three)?.to_string();
    ensure!(three != one && three != two, "{three} was given before");
    wait_until("the new one is reached", || pings("h2", "two", &three))?;
    ensure!(lab.agree(&["h1", "h2", "h3"])?, "they do not agree");
    let row = lab.find("h1", &["node", "ls"], "name", "h1")?.context("no row")?;
    ensure!(row["state"] == "alive", "{row}");
    // Under keys that went, and from who was dead, whose endpoints are known after the node.
    let dead = ["not_a_member", "source_not_owned"];
    lab.finish(Allowed {
        drops: &[&["unknown_index", "no_session", "fdb_unknown", "source_unknown"], &dead[..]]
            .concat(),
        warnings: &["goes on from an image", "peer does not answer handshakes"],
    })
}
