//! What an agent has in memory while it remembers this many flows.

use std::path::Path;

use anyhow::{Context, Result};
use vxmesh_proto::limits::SERVICE_FLOWS;

use crate::{eprint_step, lab::Lab, load, subject::Subject, table::short};

/// Clients: of one, the table takes a quarter of its flows.
const CLIENTS: [&str; 4] = ["c1", "c2", "c3", "c4"];
/// Flows in all, one step after the other; the last fills the table.
const STEPS: [u64; 3] = [0, 100_000, SERVICE_FLOWS as u64];

/// Flows and memory as a table.
pub(super) fn measure(vxmesh: &Path) -> Result<String> {
    let lab = Lab::up(vxmesh, 2)?;
    let subject = Subject::tunnel(&lab, "tunnel")?;
    let service = Subject::service(&lab, "held", "h2")?;
    for client in CLIENTS {
        lab.attach_as("h1", ("bench", client), client)?;
    }
    let mut text =
        "\n| flows of services | agent of the clients: resident, MB |\n|---|---|\n".to_owned();
    // The service was tried out.
    let others = flows(&lab)?;
    for all in STEPS {
        let each = u16::try_from(all.saturating_sub(others) / CLIENTS.len() as u64)?;
        eprint_step(&format!("{each} flows of {} clients", CLIENTS.len()));
        for client in CLIENTS.iter().filter(|_| each > 0) {
            service.open(client, each)?;
        }
        let agent = *lab.agents()?.first().context("no agent")?;
        let megabytes = load::resident_kilobytes(agent)? / 1e3;
        text.push_str(&format!("| {} | {} |\n", flows(&lab)?, short(megabytes)));
    }
    drop(subject);
    Ok(text)
}

fn flows(lab: &Lab) -> Result<u64> {
    let said = lab.cli("h1", &["flows", "--limit", "1"])?;
    said["total"].as_u64().context("no number of flows")
}
