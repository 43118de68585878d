//! What keeps a mesh together: who may admit nodes, what a backup brings back, what passes between
//! hosts, what the disk keeps.

mod backup;
mod disk;
mod issuers;
mod passage;
mod rollback;

use anyhow::Result;
use serde_json::Value;

use crate::churn::world::Lab;

/// The rows of `doctor` for one check, and its exit status.
fn doctor(lab: &Lab, host: &str, check: &str) -> Result<(Vec<Value>, Option<i32>)> {
    let output = lab.try_vx(host, &["--format", "json", "doctor"])?;
    let mut rows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    rows.retain(|row| row["check"] == check);
    Ok((rows, output.status.code()))
}
