//! Whatever ends a lab or a sandbox, and whenever: the machine is exactly as it was before.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vxmesh_tests::{lab::wait_until, machine::Machine, program::printed};

/// `vxmesh ARGS` on the machine, which must succeed.
fn vx(machine: &Machine, args: &[&str]) -> Result<String> {
    printed(&args.join(" "), machine.vxmesh(args).output()?)
}

/// `vxmesh ARGS` on a host of the machine's lab, which must succeed.
fn on_host(machine: &Machine, host: &str, args: &[&str]) -> Result<String> {
    vx(machine, &[&["lab", "exec", host, "--", "vxmesh"], args].concat())
}

/// As Ctrl-C does it. `nsenter` passes the program its own place: its child is the program.
fn interrupt(child: &Child) -> Result<()> {
    let pid = child.id();
    let inner = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let inner = inner.split_whitespace().next().map_or(Ok(i32::try_from(pid)?), str::parse)?;
    Ok(kill(Pid::from_raw(inner), Signal::SIGINT)?)
}

#[test]
fn down_after_everything_was_killed_leaves_the_machine_as_it_was() -> Result<()> {
    let machine = Machine::start()?;
    let before = machine.snapshot()?;
    vx(&machine, &["lab", "up", "--hosts", "2"])?;
    on_host(&machine, "h1", &["network", "create", "blue"])?;
    for host in ["h1", "h2"] {
        let run = [
            "run",
            "-d",
            "--name",
            &format!("on-{host}"),
            "--network",
            "blue",
            "--",
            "sleep",
            "1000",
        ];
        on_host(&machine, host, &run)?;
    }
    vx(&machine, &["lab", "exec", "h2", "--", "ip", "netns", "add", "plain"])?;
    on_host(&machine, "h2", &["endpoint", "attach", "blue", "--netns", "plain"])?;
    // The snapshot tells of what a lab makes.
    let during = machine.snapshot()?;
    for part in ["vxlab-h1", "/run/vxmesh-lab/vxlab/lab.json", "vxmesh agent", "nsfs"] {
        ensure!(during.contains(part), "the snapshot does not tell of {part}:\n{during}");
    }
    machine.kill_all()?;
    ensure!(machine.is_as_before(&before).is_err(), "something must be left to remove");
    vx(&machine, &["lab", "down"])?;
    machine.is_as_before(&before)
}

#[test]
fn an_interrupted_up_or_demo_leaves_the_machine_as_it_was() -> Result<()> {
    let machine = Machine::start()?;
    let before = machine.snapshot()?;
    let up = ["lab", "up", "--hosts", "3"];
    let demo = ["lab", "demo"];
    for (args, says) in [
        (up.as_slice(), "hosts are up"),
        (up.as_slice(), "agent started"),
        (up.as_slice(), "joined"),
        (demo.as_slice(), "agent started"),
        (demo.as_slice(), "network create"),
        (demo.as_slice(), "3 packets transmitted"),
        (demo.as_slice(), "TCP over IPv4"),
        (demo.as_slice(), "h3 is dead"),
    ] {
        let said = machine.sh("mktemp")?;
        let script = format!("exec \"$0\" \"$@\" > {said} 2>&1");
        let mut child = machine.command("sh");
        child.args(["-c", &script]).arg("/mnt/vxmesh").args(args).stdout(Stdio::null());
        let mut child = child.spawn()?;
        wait_until(says, || {
            ensure!(
                child.try_wait()?.is_none(),
                "it ended before: {}",
                machine.sh(&format!("cat {said}"))?
            );
            machine
                .sh(&format!("grep -q '{says}' {said} && echo yes || true"))
                .map(|it| it == "yes")
        })?;
        interrupt(&child)?;
        let status = child.wait()?;
        let output = machine.sh(&format!("cat {said}; rm {said}"))?;
        ensure!(
            !status.success() && output.contains("interrupted"),
            "{args:?}, {says}: {status}\n{output}"
        );
        machine.is_as_before(&before).with_context(|| format!("{args:?}, {says}:\n{output}"))?;
    }
    Ok(())
}
