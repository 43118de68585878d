//! Ctrl-C on a foreground `run`: the sandbox goes with its command, on this host and from every
//! table.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use vxmesh::api::{Endpoint, Sandbox};
use vxmesh_tests::lab::{Allowed, Lab, wait_until};

#[test]
fn ctrl_c_takes_the_sandbox_away() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.network("h1", "blue")?;
    let links = lab.sh("h1", "ip -br link; ip netns")?;
    let script = "echo ready; while :; do sleep 0.05; done";
    // The terminal sends the signal to all of the foreground's process group.
    let mut run = lab
        .command(&["exec", "h1", "--", "vxmesh", "run", "--network", "blue", "--"])?
        .args(["sh", "-c", script])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(run.stdout.take().context("no output")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "{line}");
    let seen: Vec<Endpoint> = lab.get("h2", "/v1/endpoints")?;
    ensure!(seen.len() == 1, "{seen:?}");
    killpg(Pid::from_raw(i32::try_from(run.id())?), Signal::SIGINT)?;
    let status = run.wait()?;
    ensure!(status.code() == Some(128 + 2), "{status}");
    let sandboxes: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    ensure!(sandboxes.is_empty(), "{sandboxes:?}");
    wait_until("no host knows the endpoint", || {
        let seen: Vec<Endpoint> = lab.get("h2", "/v1/endpoints")?;
        Ok(seen.is_empty())
    })?;
    lab.vxmesh("h1", &["network", "rm", "blue"])?;
    wait_until("nothing is left", || Ok(lab.sh("h1", "ip -br link; ip netns")? == links))?;
    lab.finish(Allowed::default())
}
