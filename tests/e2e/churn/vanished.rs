//! Endpoints that are ended by what happens to their sandboxes, and not by a word to the agent.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vxmesh::api::Endpoint;
use vxmesh_tests::lab::{Allowed, UNDERWAY};

use super::world::{Lab, tell, wait_until};

/// Ten times the aim.
const LIMIT: Duration = Duration::from_secs(10);

fn names(lab: &Lab, host: &str) -> Result<Vec<String>> {
    let rows: Vec<Endpoint> = lab.get(host, "/v1/endpoints")?;
    Ok(rows.iter().map(|row| row.name.to_string()).collect())
}

/// Does something that ends endpoint `e`, and waits until every host knows.
fn ends(lab: &Lab, what: &str, why: &str) -> Result<()> {
    ensure!(names(lab, "h1")? == ["e"], "{:?}", names(lab, "h1")?);
    lab.sh("h1", what)?;
    let begun = Instant::now();
    for host in ["h1", "h2"] {
        wait_until(what, || Ok(names(lab, host)?.is_empty()))?;
    }
    let took = begun.elapsed();
    tell(&format!("ended {took:?} after `{what}`"));
    ensure!(took < LIMIT, "{what}: {took:?}");
    let log = lab.log("h1")?;
    let said = log.lines().rev().find(|line| line.contains("endpoint ended"));
    ensure!(said.is_some_and(|line| line.contains(why) && line.contains("blue")), "{said:?}");
    wait_until("nothing is left", || Ok(lab.pins("h1")?.is_empty())).map(drop)
}

#[test]
fn an_endpoint_ends_with_its_sandbox() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.network("h1", "blue")?;
    let attach = ["endpoint", "attach", "blue", "--name", "e", "--netns", "box"];
    lab.sh("h1", "ip netns add box; ip netns add other")?;

    lab.vx("h1", &attach)?;
    let log = lab.log("h1")?;
    let said = log.lines().find(|line| line.contains("endpoint plugged in"));
    ensure!(said.is_some_and(|line| line.contains("blue") && line.contains("=e ")), "{log}");
    ends(&lab, "ip netns del box", "namespace")?;

    // Whoever makes it anew at once has the name at once.
    lab.sh("h1", "ip netns add box")?;
    lab.vx("h1", &attach)?;
    for _ in 0..4 {
        // With its last endpoint the network's namespace goes, too, and is made anew at once: what
        // happens in that one is heard as well.
        let old: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
        lab.sh("h1", "ip netns del box; ip netns add box")?;
        lab.vx("h1", &attach)?;
        let new: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
        ensure!(new.len() == 1 && new[0].id != old[0].id, "{old:?} {new:?}");
        ensure!(lab.sh("h1", "ip -n box -o link show eth0")?.contains("eth0"));

        ends(&lab, "ip -n box link del eth0", "deleted or moved")?;
        lab.vx("h1", &attach)?;
    }
    ends(&lab, "ip -n box link set eth0 netns other", "moved away")?;

    let process = "unshare -n sleep 3600 >/dev/null 2>&1 & echo $!";
    let pid = lab.sh("h1", process)?.trim().to_owned();
    wait_until("it has a namespace of its own", || {
        Ok(lab.sh("h1", &format!("test $(readlink /proc/{pid}/ns/net) != $(readlink /proc/self/ns/net) && echo so || true"))?.contains("so"))
    })?;
    lab.vx("h1", &["endpoint", "attach", "blue", "--name", "e", "--pid", &pid])?;
    ends(&lab, &format!("kill -9 {pid}"), "its process ended")?;

    // A restart keeps what lives (I9), and watches it.
    lab.vx("h1", &attach)?;
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("it lives", || Ok(names(&lab, "h2")? == ["e"]))?;
    ends(&lab, "ip netns del box", "namespace")?;
    // What was in a TAP when its endpoint went may be judged after it, as what others sealed with
    // the keys of the last life.
    lab.finish(Allowed { drops: &[UNDERWAY, &["unknown_index"]].concat(), ..Allowed::default() })
}

/// An agent hears of what it takes over before it says that it is ready.
#[test]
fn an_interface_that_is_deleted_right_after_the_agents_start_ends_its_endpoint() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.network("h1", "blue")?;
    lab.sh("h1", "ip netns add box")?;
    let ready = || Ok::<_, anyhow::Error>(lab.log("h1")?.matches("mesh: ready").count());
    for _ in 0..4 {
        lab.vx("h1", &["endpoint", "attach", "blue", "--name", "e", "--netns", "box"])?;
        let before = ready()?;
        lab.lab(&["kill", "h1"])?;
        lab.lab(&["start", "h1"])?;
        wait_until("the agent is ready", || Ok(ready()? != before))?;
        ends(&lab, "ip -n box link del eth0", "deleted or moved")?;
    }
    lab.finish(Allowed { drops: &[UNDERWAY, &["unknown_index"]].concat(), ..Allowed::default() })
}

#[test]
fn an_endpoint_upon_a_parent_ends_with_its_interface_and_comes_back_with_its_parent() -> Result<()>
{
    let lab = Lab::up(1)?;
    let parent =
        "ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up";
    lab.sh("h1", &format!("ip netns add box; {parent}"))?;
    lab.vx(
        "h1",
        &[
            "network",
            "create",
            "lan",
            "--driver",
            "macvlan",
            "-o",
            "parent=lan0",
            "--subnet",
            "192.0.2.0/24",
        ],
    )?;
    let attach = ["endpoint", "attach", "lan", "--name", "e", "--netns", "box"];
    lab.vx("h1", &attach)?;
    lab.sh("h1", "ip -n box link del eth0")?;
    wait_until("it ended", || Ok(names(&lab, "h1")?.is_empty()))?;
    lab.vx("h1", &attach)?;
    lab.sh("h1", "ip link del lan0")?;
    wait_until("the interface is gone", || {
        Ok(!lab.sh("h1", "ip -n box -o link")?.contains("eth0"))
    })?;
    ensure!(names(&lab, "h1")? == ["e"]);
    lab.sh("h1", parent)?;
    wait_until("the interface is back", || {
        Ok(lab.sh("h1", "ip -n box -o link")?.contains("eth0"))
    })?;
    lab.sh("h1", "ip netns del box")?;
    wait_until("it ended", || Ok(names(&lab, "h1")?.is_empty()))?;
    lab.finish(Allowed::default())
}
