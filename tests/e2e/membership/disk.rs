//! A disk that is full, and is not any more: told meanwhile, and no restart is needed.

use anyhow::{Result, ensure};
use serde_json::json;

use vxmesh_tests::lab::Allowed;

use super::doctor;
use crate::churn::world::{Lab, tell, wait_until};

#[test]
fn a_disk_that_was_full_is_used_again() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.lab(&["kill", "h1"])?;
    lab.sh(
        "h1",
        "cp -a /var/lib/vxmesh /var/lib/saved; mount -t tmpfs -o size=64m,mode=700 none /var/lib/vxmesh; \
         cp -a /var/lib/saved/. /var/lib/vxmesh",
    )?;
    lab.lab(&["start", "h1"])?;
    lab.sh("h1", "dd if=/dev/zero of=/var/lib/vxmesh/fill bs=4k 2>/dev/null || true")?;
    let refused = (0..300).find_map(|n| {
        let output = lab.try_vx("h1", &["network", "create", &format!("n{n}")]).ok()?;
        (!output.status.success()).then_some(output)
    });
    let said = refused.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    ensure!(said.is_some(), "a full disk takes everything");
    tell(&format!("a full disk says: {}", said.unwrap_or_default().trim()));
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
