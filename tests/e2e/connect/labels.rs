//! Labels go with an endpoint: to all nodes, into each of its sandbox's networks, over a restart.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use vxmesh::api::{Endpoint, Sandbox};
use vxmesh_tests::lab::{Allowed, Lab, Plugged, UNDERWAY, wait_until};

use super::{connect, inspect, run};

type Labels = BTreeMap<String, String>;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// What another node says of an endpoint's labels.
fn seen(lab: &Lab, host: &str, of: &Endpoint) -> Result<Labels> {
    let row: Endpoint = lab.json(host, &["endpoint", "inspect", &of.id.to_string()])?;
    Ok(row.labels)
}

fn update(lab: &Lab, at: &Plugged, flags: &[&str]) -> Result<Endpoint> {
    let id = at.endpoint.id.to_string();
    lab.json(&at.host, &[&["endpoint", "update", &id], flags].concat())
}

#[test]
fn labels_of_a_sandbox_are_those_of_its_endpoints_and_can_be_changed() -> Result<()> {
    let lab = Lab::up(2)?;
    for network in ["blue", "red"] {
        lab.network("h1", network)?;
    }
    let given = ["--network", "blue", "--label", "app=web", "--label", "tier=front"];
    let a = run(&lab, "h1", "a", &given)?;
    let at_first = labels(&[("app", "web"), ("tier", "front")]);
    let sandbox: Sandbox = inspect(&lab, &a)?;
    ensure!(sandbox.labels == at_first, "{:?}", sandbox.labels);
    let in_red = connect(&lab, &a, "red", &[])?;
    for endpoint in [&a.endpoint, &in_red] {
        wait_until("h2 knows them", || Ok(seen(&lab, "h2", endpoint)? == at_first))?;
    }

    let changed = labels(&[("app", "web"), ("zone", "z1")]);
    let row = update(&lab, &a, &["--label", "zone=z1", "--rm-label", "tier"])?;
    ensure!(row.labels == changed, "{:?}", row.labels);
    wait_until("h2 knows the change", || Ok(seen(&lab, "h2", &a.endpoint)? == changed))?;
    ensure!(seen(&lab, "h2", &in_red)? == at_first, "the other endpoint was changed");

    let id = a.endpoint.id.to_string();
    let long = format!("long={}", "x".repeat(2000));
    for (host, flags, status, says) in [
        ("h2", ["--label", "a=b"], 4, "change it there"),
        ("h1", ["--rm-label", "tier"], 3, "has no label `tier`"),
        ("h1", ["--label", long.as_str()], 2, "fewer or shorter labels"),
    ] {
        let words = [&["endpoint", "update", id.as_str()], flags.as_slice()].concat();
        let done = lab.try_vxmesh(host, &words)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.code() == Some(status) && said.contains(says), "{words:?}: {said}");
    }
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("h1 is back", || Ok(seen(&lab, "h1", &a.endpoint).is_ok_and(|it| it == changed)))?;
    wait_until("h2 sees the same", || Ok(seen(&lab, "h2", &a.endpoint)? == changed))?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
