//! What there is beside overlay networks: networks of one host, and the namespaces of others.

mod bridge;
mod container;
mod macvlan;
mod modes;

use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vxmesh_tests::lab::Lab;

/// `vxmesh ARGS`, which must fail with this status and these words.
fn refused(lab: &Lab, args: &[&str], status: i32, words: &[&str]) -> Result<()> {
    let Output { status: ended, stderr, .. } =
        lab.try_vxmesh("h1", &[&["--format", "json"], args].concat())?;
    let said: Value =
        serde_json::from_slice(&stderr).with_context(|| format!("{args:?}: {ended}"))?;
    ensure!(ended.code() == Some(status), "{args:?}: {ended}: {said}");
    let message = said["error"]["message"].as_str().unwrap_or_default();
    let hint = said["error"]["hint"].as_str().unwrap_or_default();
    for word in words {
        ensure!(message.contains(word) || hint.contains(word), "{args:?}: {said}");
    }
    Ok(())
}
