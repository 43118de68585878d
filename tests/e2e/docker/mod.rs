//! Real Docker engines on the hosts of a lab, with the agent as their driver `vxmesh`.

mod lifecycle;
mod networks;
mod ports;
mod words;

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{engine::Engine, lab::Lab};

/// Has the agent of a host be Docker's driver.
fn serve(lab: &Lab, host: &str) -> Result<()> {
    lab.sh(host, "echo 'docker = true' > /etc/vxmesh/agent.toml")?;
    lab.lab(&["kill", host])?;
    lab.lab(&["start", host])?;
    Ok(())
}

/// The engines of two hosts, whose agents serve them.
fn engines(lab: &Lab) -> Result<[Engine; 2]> {
    serve(lab, "h1")?;
    serve(lab, "h2")?;
    Ok([Engine::start(lab, "h1")?, Engine::start(lab, "h2")?])
}

/// Starts a container that does nothing, and says which address it has.
fn run(lab: &Lab, engine: &Engine, name: &str, flags: &str) -> Result<String> {
    engine.docker(lab, &format!("run -d --name {name} {flags} box:1 /bin/busybox sleep 3600"))?;
    address(lab, engine, name)
}

fn address(lab: &Lab, engine: &Engine, name: &str) -> Result<String> {
    let format = "'{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}'";
    let all = engine.docker(lab, &format!("inspect {name} -f {format}"))?;
    let first = all.split_whitespace().next().context("no address")?;
    Ok(first.to_owned())
}

/// Whether a container reaches an address or a name.
fn reaches(lab: &Lab, engine: &Engine, from: &str, to: &str) -> bool {
    engine.docker(lab, &format!("exec {from} /bin/busybox ping -c 1 -W 2 {to}")).is_ok()
}

/// What `docker` says when it fails, which names each of these.
fn refused(lab: &Lab, engine: &Engine, script: &str, expected: &[&str]) -> Result<()> {
    let output = engine.try_docker(lab, script)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{script} succeeded");
    for words in expected {
        ensure!(said.contains(words), "{script}: no `{words}` in {said}");
    }
    Ok(())
}

/// What `vxmesh doctor --docker` says on a host, and whether that is well.
fn doctor(lab: &Lab, host: &str) -> Result<(bool, String)> {
    let output = lab.try_vxmesh(host, &["doctor", "--docker"])?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}
