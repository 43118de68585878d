//! A disk that is full, and is not any more: told meanwhile, and no restart is needed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vxmesh::api::Endpoint;

use vxmesh_tests::lab::Allowed;

use super::doctor;
use crate::churn::world::{Lab, tell, wait_until};

/// Has the state of h1, whose agent does not run, on a small disk of its own.
fn small_disk(lab: &Lab) -> Result<()> {
    lab.sh(
        "h1",
        "cp -a /var/lib/vxmesh /var/lib/saved; mount -t tmpfs -o size=64m,mode=700 none /var/lib/vxmesh; \
         cp -a /var/lib/saved/. /var/lib/vxmesh",
    )
    .map(drop)
}

/// Fills it until the agent knows, and gives what was said then.
fn fill(lab: &Lab) -> Result<String> {
    lab.sh("h1", "dd if=/dev/zero of=/var/lib/vxmesh/fill bs=4k 2>/dev/null || true")?;
    let refused = (0..300).find_map(|n| {
        let output = lab.try_vx("h1", &["network", "create", &format!("n{n}")]).ok()?;
        (!output.status.success()).then_some(output)
    });
    let refused = refused.context("a full disk takes everything")?;
    Ok(String::from_utf8_lossy(&refused.stderr).trim().to_owned())
}

#[test]
fn a_disk_that_was_full_is_used_again() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.lab(&["kill", "h1"])?;
    small_disk(&lab)?;
    lab.lab(&["start", "h1"])?;
    tell(&format!("a full disk says: {}", fill(&lab)?));
    let (rows, status) = doctor(&lab, "h1", "disk")?;
    ensure!(rows[0]["health"] == json!("fail") && status == Some(1), "{rows:?}");
    ensure!(rows[0]["hint"].to_string().contains("needs no restart"), "{rows:?}");
    lab.sh("h1", "rm /var/lib/vxmesh/fill")?;
    let took = wait_until("it is used again", || {
        Ok(doctor(&lab, "h1", "disk")?.0[0]["health"] == json!("ok"))
    })?;
    tell(&format!("a disk that has room again was used after {took:?}"));
    lab.vx("h1", &["network", "create", "after"])?;
    let log = lab.log("h1")?;
    ensure!(log.contains("the disk takes what is to be kept again"), "{log}");
    // It is on disk: the next life knows it.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    ensure!(lab.find("h1", &["network", "ls"], "name", "after")?.is_some(), "it was not kept");
    lab.finish(Allowed { warnings: &["nothing is kept on disk", "not kept"], ..Allowed::default() })
}

/// What is only taken over needs no disk; what is gone is not put back because its end cannot be
/// written down.
#[test]
fn a_full_disk_keeps_nothing_out_and_brings_nothing_back() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.network("h1", "blue")?;
    for name in ["gone", "late"] {
        lab.attach("h1", "blue", name)?;
    }
    lab.lab(&["kill", "h1"])?;
    small_disk(&lab)?;
    // Somebody has its interface's name, so it is taken over later.
    let taken = "ip -n late link del eth0; ip -n late link add eth0 type veth peer name eth1";
    lab.sh("h1", taken)?;
    lab.lab(&["start", "h1"])?;
    wait_until("it is tried again", || Ok(lab.log("h1")?.contains("endpoint not adopted")))?;
    fill(&lab)?;
    // By then it also hears of what happens in the namespaces, which it does not from the start.
    let full = "nothing is kept on disk";
    wait_until("it knows that the disk is full", || Ok(lab.log("h1")?.contains(full)))?;

    lab.sh("h1", "ip -n gone link del eth0; ip -n late link del eth0")?;
    wait_until("it is taken over", || Ok(lab.log("h1")?.contains("endpoint adopted after all")))?;
    ensure!(lab.sh("h1", "ip -n late -o link")?.contains("eth0"));
    // Longer than from one look at everything to the next.
    let begun = Instant::now();
    wait_until("some looks go by", || {
        ensure!(!lab.sh("h1", "ip -n gone -o link")?.contains("eth0"), "it came back");
        Ok(begun.elapsed() > Duration::from_secs(8))
    })?;
    ensure!(doctor(&lab, "h1", "disk")?.0[0]["health"] == json!("fail"), "it was not full");

    lab.sh("h1", "rm /var/lib/vxmesh/fill")?;
    wait_until("what is gone ended", || {
        let rows: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
        Ok(rows.iter().map(|row| row.name.as_str()).eq(["late"]))
    })?;
    let warnings = &["nothing is kept on disk", "not kept", "endpoint not adopted"];
    lab.finish(Allowed { warnings, ..Allowed::default() })
}
