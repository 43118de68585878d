//! `run --network container:NAME` beside a real Docker engine, which runs on a lab host of its own.

use std::{
    fs,
    process::{Child, Stdio},
};

use anyhow::{Result, ensure};
use vxmesh::api::Sandbox;
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    program::{command, printed},
};

use super::refused;

/// A program that does nothing: the whole image.
const PAUSE: &str = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";

/// The engine sees the host's files, and control groups of its own branch.
const ENGINE: &str = "mount --make-rprivate / && mkdir -p /run/docker && mount -t cgroup2 none /sys/fs/cgroup && \
    exec dockerd --bridge none --iptables=false --ip6tables=false --storage-driver vfs --pidfile /run/docker.pid \
    --exec-root /run/docker --cgroup-parent \"/$0\" >/run/dockerd.log 2>&1";

/// Removes the branch, which is empty once all containers are removed.
const PRUNE: &str = "mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup && rmdir \"/sys/fs/cgroup/$0\"";

/// A Docker engine on h1. It ends with the lab, which ends all processes of its hosts.
struct Engine<'l> {
    lab: &'l Lab,
    entered: Child,
}

impl<'l> Engine<'l> {
    fn start(lab: &'l Lab) -> Result<Self> {
        let mut engine = lab.command(&["exec", "h1", "--", "unshare", "-m", "sh", "-c", ENGINE])?;
        let entered = engine.arg(lab.name()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let engine = Self { lab, entered };
        wait_until("the engine answers", || {
            Ok(lab.exec("h1", &["docker", "version"])?.status.success())
        })?;
        Ok(engine)
    }

    fn docker(&self, script: &str) -> Result<String> {
        self.lab.sh("h1", &format!("docker {script}"))
    }

    /// Makes the image `pause`.
    fn import(&self) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (source, program) = (dir.path().join("pause.c"), dir.path().join("pause"));
        fs::write(&source, PAUSE)?;
        let compiled =
            command("cc").args(["-static", "-Os", "-o"]).arg(&program).arg(&source).output()?;
        printed("cc", compiled)?;
        let run = self.lab.path("h1", "/run/pause")?;
        fs::copy(&program, run)?;
        self.docker("version >/dev/null && tar -C /run -c pause | docker import - pause")?;
        Ok(())
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        drop(self.entered.kill());
        drop(self.entered.wait());
    }
}

#[test]
fn a_command_shares_the_namespace_of_a_container() -> Result<()> {
    let lab = Lab::up(1)?;
    let with = |name: &str| format!("container:{name}");
    refused(&lab, &["run", "--network", &with("web"), "--", "true"], 125, &["no Docker engine"])?;
    let engine = Engine::start(&lab)?;
    engine.import()?;
    refused(&lab, &["run", "--network", &with("web"), "--", "true"], 125, &["no container `web`"])?;
    engine.docker("run -d --network none --add-host x:192.0.2.7 --name web pause /pause")?;
    let pid = engine.docker("inspect web --format '{{.State.Pid}}'")?;
    let namespace = lab.sh("h1", &format!("readlink /proc/{}/ns/net", pid.trim()))?;
    let run = |command: &[&str]| {
        lab.vxmesh("h1", &[&["run", "--network", "container:web", "--"], command].concat())
    };
    ensure!(run(&["readlink", "/proc/self/ns/net"])? == namespace);
    ensure!(run(&["cat", "/etc/hosts"])?.contains("192.0.2.7"), "not the container's names");
    let id = engine.docker("inspect web --format '{{.Id}}'")?;
    let run_by_id = ["run", "--network", &with(&id[..12]), "--", "readlink", "/proc/self/ns/net"];
    ensure!(lab.vxmesh("h1", &run_by_id)? == namespace);

    let run = ["run", "-d", "--name", "debug", "--network", "container:web", "--", "sleep", "3600"];
    let debug: Sandbox = lab.json("h1", &run)?;
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("the agent knows it", || {
        let listed: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
        Ok(listed.iter().any(|row| row.name == debug.name && row.state == "running"))
    })?;
    engine.docker("stop -t 0 web")?;
    refused(&lab, &["run", "--network", "container:web", "--", "true"], 125, &["not running"])?;
    let links = lab.vxmesh("h1", &["exec", "debug", "--", "ip", "-o", "link"])?;
    ensure!(links.contains(" lo:"), "{links}");
    lab.vxmesh("h1", &["sandbox", "rm", "debug"])?;
    let listed: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    ensure!(listed.is_empty(), "{listed:?}");
    engine.docker("rm web")?;
    printed("prune", lab.exec("h1", &["unshare", "-m", "sh", "-c", PRUNE, lab.name()])?)?;
    drop(engine);
    lab.finish(Allowed::default())
}
