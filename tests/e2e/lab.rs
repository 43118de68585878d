//! `vxmesh lab`: hosts that are apart where they must be and joined where they must be, and that
//! leave nothing behind.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use vxmesh::{api::ErrorCode, lab::capture};
use vxmesh_tests::program::{command, vxmesh};

const DEADLINE: Duration = Duration::from_secs(30);
/// How long a lab of nine hosts may take to go, which takes a tenth of a second: two seconds a
/// host, one after the other, are more.
const DOWN: Duration = Duration::from_secs(5);

/// A lab that goes with the test, however that ends.
struct Lab {
    name: String,
}

impl Lab {
    /// A name that no other test, here or in another run at the same time, has.
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self { name: format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)) }
    }

    fn up(hosts: u8) -> Result<Self> {
        let lab = Self::new();
        lab.ok(&["up", "--no-agents", "--hosts", &hosts.to_string()])?;
        Ok(lab)
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = command(vxmesh()?);
        command.args(["lab", "--name", &self.name]).args(args).stdin(Stdio::null());
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Result<(i32, Output)> {
        let output = self.command(args)?.output()?;
        let status = output.status.code().with_context(|| format!("{args:?} died: {output:?}"))?;
        Ok((status, output))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let (status, output) = self.run(args)?;
        ensure!(status == 0, "{args:?}: {status} {output:?}");
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Fails with this exit status and says this.
    fn fails(&self, args: &[&str], expected: i32, says: &str) -> Result<()> {
        let (status, output) = self.run(args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(status == expected && said.contains(says), "{args:?}: {status} {output:?}");
        Ok(())
    }

    fn exec(&self, host: &str, args: &[&str]) -> Result<(i32, Output)> {
        self.run(&[&["exec", host, "--"], args].concat())
    }

    fn sh(&self, host: &str, script: &str) -> Result<String> {
        self.ok(&["exec", host, "--", "sh", "-c", script])
    }

    fn pings(&self, from: &str, to: &str) -> Result<bool> {
        Ok(self.exec(from, &["ping", "-n", "-c", "1", "-W", "2", to])?.0 == 0)
    }

    /// The wires are virtual: what has not arrived soon does not arrive.
    fn is_apart(&self, from: &str, to: &str) -> Result<bool> {
        Ok(self.exec(from, &["ping", "-n", "-c", "1", "-W", "0.3", to])?.0 == 1)
    }

    fn dir(&self) -> PathBuf {
        Path::new("/run/vxmesh-lab").join(&self.name)
    }

    fn netns(&self) -> Result<BTreeSet<PathBuf>> {
        let prefix = format!("{}-", self.name);
        let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(BTreeSet::new()) };
        let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        let mine = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        };
        Ok(paths.into_iter().filter(mine).collect())
    }

    /// Processes in the lab's network namespaces.
    fn processes(&self) -> Result<BTreeSet<i32>> {
        let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        let namespaces: BTreeSet<_> =
            self.netns()?.iter().filter_map(|path| identity(path)).collect();
        let pids = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let inside = |pid: &i32| {
            identity(Path::new(&format!("/proc/{pid}/ns/net")))
                .is_some_and(|id| namespaces.contains(&id))
        };
        Ok(pids.filter(inside).collect())
    }

    fn holder(&self, host: &str) -> Result<i32> {
        let record: Value =
            serde_json::from_slice(&fs::read(self.dir().join(host).join("holder.json"))?)?;
        Ok(i32::try_from(record["pid"].as_i64().context("no pid")?)?)
    }

    /// Nothing on the machine bears the lab's name and none of its processes runs.
    fn assert_gone(&self, processes: &BTreeSet<i32>) -> Result<()> {
        ensure!(self.netns()?.is_empty(), "namespaces: {:?}", self.netns()?);
        ensure!(!self.dir().exists(), "{} is left", self.dir().display());
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.name), "mounts: {mounts}");
        for pid in processes {
            ensure!(!runs(*pid), "process {pid} runs");
        }
        for pid in fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            ensure!(!line.contains(&self.name), "process {pid}: {line:?}");
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let removed = self.ok(&["down"]);
        // A second panic would hide the first.
        assert!(
            std::thread::panicking() || removed.is_ok(),
            "lab {} is left: {removed:?}",
            self.name
        );
    }
}

/// A zombie does not run; whoever started it has not looked yet.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !condition()? {
        ensure!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn hosts_reach_one_another_over_both_versions() -> Result<()> {
    let lab = Lab::up(3)?;
    for from in ["h1", "h2", "h3"] {
        for to in 1..=3 {
            for address in [format!("10.213.0.{to}"), format!("fd13::{to}")] {
                assert!(lab.pings(from, &address)?, "{from} to {address}");
            }
        }
    }
    assert_eq!(lab.sh("h2", "cat /sys/class/net/eth0/mtu")?, "1500");
    for name in ["wire", "cut1", "h1", "h2", "h3"] {
        assert!(!Path::new("/sys/class/net").join(name).exists(), "{name} is on the machine");
    }
    Ok(())
}

#[test]
fn the_file_decides_addresses_and_mtu() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("lab.toml");
    let path = file.to_str().context("odd path")?;
    for (underlay, v4) in [("v4", true), ("v6", false)] {
        let lab = Lab::new();
        fs::write(&file, format!("hosts = 2\nunderlay = \"{underlay}\"\nmtu = 1400\n"))?;
        lab.ok(&["up", "--no-agents", path])?;
        let (other, missing) =
            if v4 { ("10.213.0.2", "fd13::2") } else { ("fd13::2", "10.213.0.2") };
        assert!(lab.pings("h1", other)?, "{underlay}");
        assert_ne!(lab.exec("h1", &["ping", "-c", "1", "-W", "0.3", missing])?.0, 0, "{underlay}");
        assert_eq!(lab.sh("h1", "cat /sys/class/net/eth0/mtu")?, "1400");
        let rows: Value = serde_json::from_str(&lab.ok(&["status", "--format", "json"])?)?;
        assert_eq!(rows[1]["addrs"], serde_json::json!([other]));
    }
    let lab = Lab::new();
    fs::write(&file, "hosts = 2\nspeed = 9\n")?;
    lab.fails(&["up", path], 2, "speed")?;
    lab.assert_gone(&BTreeSet::new())
}

#[test]
fn a_host_has_its_own_names_files_and_processes() -> Result<()> {
    let machine = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let lab = Lab::up(2)?;
    assert_eq!(lab.sh("h1", "cat /proc/sys/kernel/hostname")?, "h1");
    assert_eq!(lab.sh("h2", "cat /proc/sys/kernel/hostname")?, "h2");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname")?, machine);
    for place in ["/run", "/var/lib", "/etc/vxmesh"] {
        assert_eq!(lab.sh("h1", &format!("ls -A {place}"))?, "", "{place} is empty");
        lab.sh("h1", &format!("echo one > {place}/{}", lab.name))?;
        assert_eq!(lab.sh("h1", &format!("cat {place}/{}", lab.name))?, "one");
        assert_eq!(lab.sh("h2", &format!("ls -A {place}"))?, "", "{place} is private");
        assert!(!Path::new(place).join(&lab.name).exists(), "{place} is not the machine's");
    }
    // A pin that a host makes is its own too.
    lab.sh("h1", &format!("ip netns add x{}", lab.name))?;
    assert!(!Path::new("/run/netns").join(format!("x{}", lab.name)).exists());
    assert_eq!(lab.sh("h2", "ip netns list")?, "");
    assert_eq!(lab.sh("h1", "ls /sys/class/net | sort | xargs")?, "eth0 lo");
    let processes = lab.sh("h1", "ls -d /proc/[0-9]* | wc -l")?;
    assert!(processes.parse::<u32>()? < 8, "the machine's processes are out of sight: {processes}");
    assert!(lab.sh("h1", "tr '\\0' ' ' < /proc/1/cmdline")?.contains("holder h1"));
    assert_eq!(lab.sh("h1", "echo $VXMESH_SOCKET")?, "/run/vxmesh/api.sock");
    assert_eq!(lab.sh("h1", "command -v vxmesh")?, vxmesh()?.to_string_lossy());
    Ok(())
}

#[test]
fn exec_gives_the_exit_status_of_the_command() -> Result<()> {
    let lab = Lab::up(1)?;
    for (script, status) in
        [("exit 0", 0), ("exit 1", 1), ("exit 125", 125), ("kill -9 $$", 137), ("kill $$", 143)]
    {
        assert_eq!(lab.exec("h1", &["sh", "-c", script])?.0, status, "{script}");
    }
    lab.fails(&["exec", "h1", "--", "/nowhere/to/be/found"], 127, "/nowhere/to/be/found")?;
    lab.fails(&["exec", "h1", "--", "no-such-command"], 127, "no-such-command")?;
    lab.fails(&["exec", "h1", "--", "/etc/passwd"], 126, "/etc/passwd")?;
    lab.fails(&["exec", "h2", "--", "true"], 125, "no host h2")?;
    Lab::new().fails(&["exec", "h1", "--", "true"], 125, "no lab")?;
    lab.fails(&["exec", "x", "--", "true"], 2, "h1 to h250")?;
    lab.fails(&["exec", "h1"], 2, "required arguments")
}

#[tokio::test]
async fn other_code_may_ask_a_host() -> Result<()> {
    let lab = Lab::up(2)?;
    let name = lab.name.parse()?;
    for host in ["h1", "h2"] {
        let said =
            capture(&name, host.parse()?, &["sh", "-c", "hostname; echo bad >&2; exit 3"]).await?;
        assert_eq!(
            (said.status, said.stdout, said.stderr),
            (3, format!("{host}\n").into(), b"bad\n".into())
        );
    }
    assert!(capture(&name, "h1".parse()?, &["no-such-command"]).await.is_err());
    assert_eq!(
        capture(&name, "h3".parse()?, &["true"]).await.map_err(|error| error.code).err(),
        Some(ErrorCode::NotFound)
    );
    Ok(())
}

#[test]
fn exec_passes_input_output_and_termination_through() -> Result<()> {
    let lab = Lab::up(1)?;
    let script = "trap 'echo stopped; exit 7' TERM; echo ready; read line; echo got $line; while :; do sleep 0.05; done";
    let mut child = lab
        .command(&["exec", "h1", "--", "sh", "-c", script])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("no output")?;
    std::io::Write::write_all(&mut child.stdin.take().context("no input")?, b"words\n")?;
    let mut said = String::new();
    while !said.contains("got words") {
        let mut byte = [0];
        output.read_exact(&mut byte)?;
        said.push(char::from(byte[0]));
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    output.read_to_string(&mut said)?;
    assert!(said.contains("stopped"), "{said}");
    assert_eq!(child.wait()?.code(), Some(7));
    Ok(())
}

#[test]
fn cuts_make_islands_and_heal_joins_them() -> Result<()> {
    let lab = Lab::up(5)?;
    let groups = |groups: &[&[u8]]| -> Result<()> {
        for from in 1..=5_u8 {
            for to in 1..=5_u8 {
                let together =
                    groups.iter().any(|group| group.contains(&from) && group.contains(&to));
                let (host, address) = (format!("h{from}"), format!("10.213.0.{to}"));
                if together {
                    // A neighbour that was asked for in vain may first have to be given up.
                    wait_until(&format!("{from} reaches {to} in {groups:?}"), || {
                        lab.pings(&host, &address)
                    })?;
                } else {
                    assert!(lab.is_apart(&host, &address)?, "{from} reaches {to} in {groups:?}");
                }
            }
        }
        Ok(())
    };
    groups(&[&[1, 2, 3, 4, 5]])?;
    lab.ok(&["cut", "h3,h4"])?;
    groups(&[&[1, 2, 5], &[3, 4]])?;
    lab.ok(&["cut", "h5"])?;
    groups(&[&[1, 2], &[3, 4], &[5]])?;
    lab.ok(&["cut", "h4,h5"])?;
    groups(&[&[1, 2], &[3], &[4, 5]])?;
    lab.fails(&["cut", "h2,h6"], 3, "no host h6")?;
    groups(&[&[1, 2], &[3], &[4, 5]])?;
    for _ in 0..2 {
        lab.ok(&["heal"])?;
        groups(&[&[1, 2, 3, 4, 5]])?;
    }
    Ok(())
}

#[test]
fn a_host_dies_with_its_holder() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.sh("h1", "(setsid sleep 1000 >/dev/null 2>&1 &) ; true")?;
    lab.sh("h2", "(setsid sleep 1000 >/dev/null 2>&1 &) ; true")?;
    let holders = [lab.holder("h1")?, lab.holder("h2")?];
    let sleepers: Vec<i32> =
        lab.processes()?.into_iter().filter(|pid| !holders.contains(pid)).collect();
    assert_eq!(sleepers.len(), 2, "{sleepers:?}");
    // Its children are gone before it is (pid_namespaces(7)).
    kill(Pid::from_raw(holders[0]), Signal::SIGKILL)?;
    wait_until("one sleeper is left", || {
        Ok(sleepers.iter().filter(|pid| runs(**pid)).count() == 1)
    })?;
    assert!(runs(holders[1]));
    lab.fails(&["exec", "h1", "--", "true"], 125, "dead")?;
    lab.sh("h2", "true")?;
    lab.fails(&["start", "h1"], 1, "dead")
}

#[test]
fn orphans_leave_no_zombie() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.sh("h1", "for i in 1 2 3 4 5; do (setsid sleep 0.05 &) ; done")?;
    wait_until("only the holder is left", || Ok(lab.processes()?.len() == 1))
}

#[test]
fn down_leaves_nothing_and_may_be_repeated() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.sh("h1", "ip netns add inner; ip link add br0 type bridge; mount -t tmpfs none /run/netns; touch /run/x")?;
    lab.sh("h2", "(setsid sleep 1000 >/dev/null 2>&1 &) ; true")?;
    let processes = lab.processes()?;
    assert_eq!(processes.len(), 4);
    assert_eq!(lab.netns()?.len(), 4);
    lab.ok(&["down"])?;
    lab.assert_gone(&processes)?;
    let (status, output) = lab.run(&["down"])?;
    assert_eq!(status, 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no lab"), "{output:?}");
    lab.fails(&["status"], 3, "there is no lab")?;
    lab.fails(&["heal"], 3, "there is no lab")
}

#[test]
fn down_after_everything_was_killed() -> Result<()> {
    let lab = Lab::up(3)?;
    let processes = lab.processes()?;
    for pid in &processes {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
    }
    lab.ok(&["down"])?;
    lab.assert_gone(&processes)
}

#[test]
fn down_finds_what_no_record_tells() -> Result<()> {
    let lab = Lab::up(2)?;
    let processes = lab.processes()?;
    // A record of another process must not kill that one.
    let me = std::process::id();
    fs::write(lab.dir().join("h1/holder.json"), format!("{{\"pid\":{me},\"start\":1}}"))?;
    fs::write(lab.dir().join("h2/holder.json"), "")?;
    fs::remove_file(lab.dir().join("lab.json"))?;
    lab.fails(&["status"], 1, "half made")?;
    lab.ok(&["down"])?;
    lab.assert_gone(&processes)
}

#[test]
fn an_interrupted_or_killed_up_leaves_nothing() -> Result<()> {
    for (signal, needs_down) in
        [(Signal::SIGINT, false), (Signal::SIGTERM, false), (Signal::SIGKILL, true)]
    {
        let lab = Lab::new();
        let mut child =
            lab.command(&["up", "--no-agents", "--hosts", "250"])?.stderr(Stdio::null()).spawn()?;
        wait_until("the lab is half made", || Ok(lab.netns()?.len() > 3))?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        let status = child.wait()?;
        assert_eq!(status.code(), if needs_down { None } else { Some(1) }, "{signal}");
        if needs_down {
            let processes = lab.processes()?;
            lab.fails(&["up", "--no-agents"], 4, "there already")?;
            lab.ok(&["down"])?;
            lab.assert_gone(&processes)?;
        }
        lab.assert_gone(&BTreeSet::new())?;
    }
    Ok(())
}

#[test]
fn a_failing_up_leaves_nothing() -> Result<()> {
    let lab = Lab::new();
    // A user namespace of its own may be given fewer network namespaces than the lab needs.
    let script = "echo 5 > /proc/sys/user/max_net_namespaces && exec \"$0\" lab --name \"$1\" up --no-agents --hosts 9";
    let mut program = command("unshare");
    program.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--propagation",
        "unchanged",
        "sh",
        "-c",
        script,
    ]);
    let output = program.arg(vxmesh()?).arg(&lab.name).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot") && said.contains("removing what was made"), "{said}");
    lab.assert_gone(&BTreeSet::new())
}

/// All namespaces of the machine share one neighbour table, which hosts that learn of one another
/// would fill.
#[test]
fn a_large_lab_takes_nothing_of_the_neighbour_table_and_ends_at_once() -> Result<()> {
    let full = std::env::var_os("VXMESH_FULL").is_some();
    let (hosts, lab) = if full { (40, Lab::new()) } else { (9, Lab::up(9)?) };
    if full {
        lab.ok(&["up", "--force", "--hosts", "40"])?;
    }
    let last = format!("h{hosts}");
    for (version, address) in [("-4", "10.213.0.1"), ("-6", "fd13::1")] {
        assert!(lab.pings(&last, address)?, "{address}");
        let known = |kind: &str| {
            lab.sh(
                &last,
                &format!("ip {version} neigh show dev eth0 {kind} | grep -c lladdr || true"),
            )
        };
        assert_eq!(known("nud permanent")?, (hosts - 1).to_string());
        assert_eq!(known("")?, known("nud permanent")?, "others count");
    }
    let start = Instant::now();
    lab.ok(&["down"])?;
    let took = start.elapsed();
    println!("a lab of {hosts} hosts ends in {took:?}");
    ensure!(took < DOWN, "{took:?}");
    lab.assert_gone(&BTreeSet::new())
}

#[test]
fn two_labs_do_not_meet() -> Result<()> {
    let (one, two) = (Lab::up(2)?, Lab::up(3)?);
    assert!(one.pings("h1", "10.213.0.2")? && two.pings("h1", "10.213.0.3")?);
    assert!(one.is_apart("h1", "10.213.0.3")?, "h3 is in the other lab");
    one.fails(&["up", "--no-agents"], 4, "there already")?;
    one.ok(&["down"])?;
    one.assert_gone(&BTreeSet::new())?;
    assert!(two.pings("h2", "fd13::3")?);
    Ok(())
}

#[test]
fn refuses_what_it_cannot_do() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.fails(&["kill", "h1"], 4, "not running")?;
    lab.fails(&["kill", "h2"], 3, "no host h2")?;
    lab.fails(&["down", "--name", "../x"], 2, "a lab's name")?;
    lab.fails(&["up", "--hosts", "0"], 2, "1 to 250")?;
    lab.fails(&["holder", "h1"], 2, "cannot run elsewhere")?;
    let inside = vxmesh()?;
    let program = inside.to_str().context("odd path")?;
    lab.fails(&["exec", "h1", "--", program, "lab", "--name", &lab.name, "status"], 3, "no lab")?;
    let mut plain = lab.command(&["status"])?;
    let output = plain.uid(65534).gid(65534).current_dir("/").output()?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("sudo vxmesh lab"), "{output:?}");
    Ok(())
}
