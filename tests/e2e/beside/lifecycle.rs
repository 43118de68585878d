//! A node's whole life on a machine of its own, which is afterwards as it was.

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{lab::wait_until, machine::Machine, program::printed};

use crate::egress::STRICT;

/// A host that routes already and has rules of its own; nothing of that is the agent's to put back.
const HOST: &str = "ip link set lo up; ip link add wire0 type bridge
ip link set wire0 addrgenmode none; ip link set wire0 up
ip address add 10.77.0.1/24 dev wire0; sysctl -qw net.ipv4.ip_forward=1";

fn vx(machine: &Machine, args: &[&str]) -> Result<String> {
    printed(&args.join(" "), machine.vxmesh(args).output()?)
}

/// Starts the agent and waits until it answers; its process.
fn start(machine: &Machine) -> Result<String> {
    let pid = machine.sh(
        "setsid /mnt/vxmesh agent --advertise 10.77.0.1 >>/tmp/agent.log 2>&1 </dev/null & echo $!",
    )?;
    wait_until("the agent answers", || Ok(vx(machine, &["status"]).is_ok()))
        .with_context(|| machine.sh("cat /tmp/agent.log").unwrap_or_default())?;
    Ok(pid)
}

/// Ends the agent, and waits until nobody answers in its place.
fn end(machine: &Machine, signal: &str, agent: &str) -> Result<()> {
    machine.sh(&format!("kill -{signal} {agent}"))?;
    wait_until("the agent ends", || Ok(machine.sh(&format!("kill -0 {agent}")).is_err()))
}

#[test]
fn a_whole_life_leaves_the_machine_as_it_was() -> Result<()> {
    let machine = Machine::start()?;
    machine.sh(&format!("{HOST}\n{STRICT}"))?;
    let before = machine.snapshot()?;
    for part in ["ip_forward = 1", "chain FORWARD", "local 127.0.0.1 dev lo table local"] {
        ensure!(before.contains(part), "the snapshot does not tell of {part}:\n{before}");
    }
    start(&machine)?;
    vx(&machine, &["init"])?;
    vx(&machine, &["network", "create", "blue"])?;
    let run = |name: &str, port: &str| {
        let run = ["run", "-d", "--name", name, "--network", "blue", "--publish", port];
        vx(&machine, &[&run[..], &["--", "sleep", "1000"]].concat())
    };
    run("a", "8080:80")?;
    let during = machine.sh("nft list ruleset")?;
    ensure!(
        during.contains("table inet vxmesh") && during.matches("vxmesh:").count() == 4,
        "{during}"
    );
    // Killed with its last sandbox, it takes away at its next start what that needed.
    machine.kill_all()?;
    let agent = start(&machine)?;
    let rules = || machine.sh("nft list ruleset; ip -o link; ip route show table all");
    wait_until("nothing is left of the sandbox", || {
        let rules = rules()?;
        Ok(!rules.contains("vxm"))
    })?;
    run("b", "8080:80/udp")?;
    end(&machine, "KILL", &agent)?;
    let agent = start(&machine)?;
    vx(&machine, &["leave", "--force"])?;
    ensure!(machine.sh("ls -A /run/vxmesh/netns /run/vxmesh/sandbox /run/vxmesh/etc 2>/dev/null | grep -v : || true")?.is_empty());
    end(&machine, "TERM", &agent)?;
    machine.sh("rm -r /var/lib/vxmesh /run/vxmesh /tmp/agent.log")?;
    machine.is_as_before(&before)
}
