//! The scenarios of `examples/scenarios`, run as a user would: a lab of four hosts, then the
//! script.

use std::{env, path::Path};

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, UNDERWAY},
    program::{command, printed, vxmesh},
};

/// What is on its way from and to sandboxes while they are unplugged.
const ALLOWED: Allowed<'_> = Allowed { drops: UNDERWAY, warnings: &[] };

fn scenario(name: &str) -> Result<()> {
    scenario_with(name, 4, &[], ALLOWED)
}

/// The same in a lab of so many hosts, with these variables.
fn scenario_with(
    name: &str,
    hosts: u8,
    variables: &[(&str, &str)],
    allowed: Allowed<'_>,
) -> Result<()> {
    let lab = Lab::up(hosts)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/scenarios").join(name);
    let mut run = command(&script);
    run.env("VXMESH", vxmesh()?).env("LAB", lab.name()).envs(variables.iter().copied());
    let said = printed(name, run.output().with_context(|| script.display().to_string())?)?;
    ensure!(said.lines().filter(|line| line.starts_with("ok ")).count() >= 3, "{said}");
    lab.finish(allowed)
}

/// The server of the scenarios of services.
fn who() -> Result<String> {
    let who = vxmesh()?.with_file_name("examples").join("who");
    Ok(who.to_str().context("odd path")?.to_owned())
}

/// What the scenario makes alone with `VXMESH_FULL`, and less without.
fn sized<'a>(less: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    if env::var_os("VXMESH_FULL").is_some() { Vec::new() } else { less.to_vec() }
}

/// At a tenth, unless `VXMESH_FULL` is set.
#[test]
fn services() -> Result<()> {
    let drops = ["source_unknown", "fdb_unknown", "not_local", "no_backend", "flow_unknown"];
    let more = ["backend_unknown", "no_session", "unknown_index", "unknown_peer"];
    // A host that is cut off and comes back is heard on one of its two ports first. A server may
    // start after its first check.
    let warnings = ["but nothing on the data port", "the backend is not healthy"];
    let allowed = Allowed { drops: &[&drops[..], &more].concat(), warnings: &warnings };
    let who = who()?;
    let sizes = sized(&[("REQUESTS", "1000"), ("LOAD", "10")]);
    scenario_with("services.sh", 5, &[&sizes[..], &[("WHO", &who)]].concat(), allowed)
}

/// At a tenth, unless `VXMESH_FULL` is set.
#[test]
fn ingress() -> Result<()> {
    let who = who()?;
    let allowed = Allowed { drops: &["no_backend", "service_port"], ..Allowed::default() };
    let sizes = sized(&[("REQUESTS", "100"), ("CLIENTS", "100")]);
    scenario_with("ingress.sh", 5, &[&sizes[..], &[("WHO", &who)]].concat(), allowed)
}

#[test]
fn proxies() -> Result<()> {
    // A server may start after its first check.
    let allowed = Allowed { drops: UNDERWAY, warnings: &["the backend is not healthy"] };
    scenario_with("proxies.sh", 4, &[("WHO", &who()?)], allowed)
}

#[test]
fn segmentation() -> Result<()> {
    scenario("segmentation.sh")
}

#[test]
fn rolling_replacement() -> Result<()> {
    scenario("rolling.sh")
}

#[test]
fn fixed_addresses_and_names() -> Result<()> {
    scenario("addresses.sh")
}

#[test]
fn connect_and_disconnect() -> Result<()> {
    scenario("connect.sh")
}

#[test]
fn published_ports() -> Result<()> {
    scenario("publish.sh")
}

#[test]
fn macvlan_and_its_vlan() -> Result<()> {
    scenario("macvlan.sh")
}

#[test]
fn none_host_and_shared_namespaces() -> Result<()> {
    scenario("modes.sh")
}
