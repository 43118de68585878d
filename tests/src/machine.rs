//! A machine for one test: processes, network, mounts and the directories that programs write to,
//! all of its own.
//!
//! What a program leaves behind can be told exactly only where nothing else happens. The machine is
//! namespaces (namespaces(7)) with an empty `/run`, `/var/lib` and `/tmp`; it goes with the value,
//! and all its processes with it.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::program::{command, printed, vxmesh};

/// Where the program under test is on the machine.
const PROGRAM: &str = "/mnt/vxmesh";

/// The first process: it collects orphans, and ends with its standard input. The program's own
/// directory may be hidden, and mounts of other tests would go when those end. /etc is a copy: the
/// labs of other tests make and remove /etc/vxmesh.
const INIT: &str =
    "set -e; mount -t tmpfs none /mnt; touch /mnt/vxmesh; mount --bind \"$0\" /mnt/vxmesh
cut -d ' ' -f 5 /proc/self/mountinfo | grep -E '^/(run|var/lib|tmp)/' | sort -r | xargs -r umount -l
for dir in /run /var/lib /tmp; do mount -t tmpfs none $dir; done
mkdir /mnt/etc; cp -a /etc/. /mnt/etc 2>/dev/null || true; rm -rf /mnt/etc/vxmesh; mount --bind /mnt/etc /etc
echo ready; read end";

/// All that could be left: in every line of it something that a program can make.
const SNAPSHOT: &str = r#"
exec 2>&1
echo links; for netns in $(ls /run/netns 2>/dev/null); do echo $netns; ip -n $netns -o link; done; ip -o link; ip -o addr
echo namespaces; readlink /proc/[0-9]*/ns/* | sort -u
echo mounts; cat /proc/self/mountinfo
processes=$(ps -e -o args); echo processes; echo "$processes" | sort
echo nft; nft list ruleset; iptables-save | grep -v '^#'; ip6tables-save | grep -v '^#'
echo routes; for family in -4 -6; do ip $family rule; ip $family route show table all; done
echo settings; sysctl -a 2>/dev/null | grep ^net | grep -v nf_conntrack_count | sort
echo files; find /run /var/lib /etc /tmp -xdev -printf '%p %y %m %s %l\n' | sort
"#;

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    unshare: Child,
    /// Open as long as the machine runs.
    _end: ChildStdin,
    init: u32,
}

impl Machine {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// The kernel refuses it, or a program is missing.
    pub fn start() -> Result<Self> {
        let mut unshare = command("unshare");
        unshare.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]);
        unshare.args(["--mount-proc", "bash", "-c", INIT]).arg(vxmesh()?);
        let mut unshare = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let end = unshare.stdin.take().context("no input")?;
        let mut said = String::new();
        BufReader::new(unshare.stdout.take().context("no output")?).read_line(&mut said)?;
        ensure!(said == "ready\n", "the machine did not start: {said}");
        let pid = unshare.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let init = children.trim().parse().context("no first process")?;
        Ok(Self { unshare, _end: end, init })
    }

    /// A program on the machine, not yet started.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = command("nsenter");
        command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--target"]);
        command.arg(self.init.to_string()).arg(program).stdin(Stdio::null());
        command
    }

    /// `vxmesh ARGS` on the machine, not yet started.
    #[must_use]
    pub fn vxmesh(&self, args: &[&str]) -> Command {
        let mut command = self.command(PROGRAM);
        command.args(args);
        command
    }

    /// A shell script on the machine, which must succeed; what it printed.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn sh(&self, script: &str) -> Result<String> {
        printed(script, self.command("sh").args(["-c", script]).output()?)
    }

    /// Kills every process but the first, as `kill -9 -1` does, and waits until they are gone.
    ///
    /// # Errors
    ///
    /// There is no shell.
    pub fn kill_all(&self) -> Result<()> {
        self.command("bash").args(["-c", "kill -9 -1"]).status()?;
        // The shell itself lists them: any further process could be taken for one that is left.
        crate::lab::wait_until("all processes but the first are gone", || {
            Ok(self.sh("cd /proc; echo [0-9]*")?.split_whitespace().count() <= 2)
        })
    }

    /// Everything that there is on the machine: links, namespaces, mounts, processes, rules,
    /// routes, settings, files.
    ///
    /// # Errors
    ///
    /// There is no shell.
    pub fn snapshot(&self) -> Result<String> {
        self.sh(SNAPSHOT)
    }

    /// Nothing was left since the snapshot; else which lines are new and which are gone.
    ///
    /// # Errors
    ///
    /// Something was left or taken.
    pub fn is_as_before(&self, before: &str) -> Result<()> {
        let after = self.snapshot()?;
        let only = |one: &str, other: &str| {
            let lines = one.lines().filter(|line| !other.lines().any(|it| it == *line));
            lines.map(ToOwned::to_owned).collect::<Vec<_>>().join("\n")
        };
        let (new, gone) = (only(&after, before), only(before, &after));
        ensure!(after == before, "left behind:\n{new}\ngone:\n{gone}");
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process ends with it, and with that one all others.
        drop(self.unshare.kill());
        drop(self.unshare.wait());
    }
}
