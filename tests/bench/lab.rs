//! The hosts that everything is measured on: a lab of the binary under test, gone when this is
//! dropped or the program is told to end.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::Underlay;

/// The labs that stand, for the thread that waits for signals: program, name, directory.
static STANDING: Mutex<Vec<(PathBuf, String, PathBuf)>> = Mutex::new(Vec::new());

/// How long a network may take to reach a host by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Hosts `h1` to `hN` with one running agent each, on an IPv4 underlay.
#[derive(Debug)]
pub(crate) struct Lab {
    vxmesh: PathBuf,
    name: String,
    hosts: u8,
    dir: TempDir,
}

impl Lab {
    pub(crate) fn up(vxmesh: &Path, hosts: u8) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let vxmesh = vxmesh.canonicalize().with_context(|| {
            format!("{} is missing: cargo build --release -p vxmesh", vxmesh.display())
        })?;
        let name = format!("b{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // The kernel's tunnel runs over IPv4, so ours must, too.
        let plan = tempfile::NamedTempFile::new()?;
        fs::write(plan.path(), format!("hosts = {hosts}\nunderlay = \"v4\"\n"))?;

        let dir = tempfile::Builder::new().prefix("vxmesh-bench-").tempdir()?;
        standing(|labs| labs.push((vxmesh.clone(), name.clone(), dir.path().to_owned())));
        let lab = Self { vxmesh, name, hosts, dir };
        lab.lab(&["up".as_ref(), plan.path().as_os_str()])?;
        Ok(lab)
    }

    pub(crate) fn vxmesh(&self) -> &Path {
        &self.vxmesh
    }

    pub(crate) const fn hosts(&self) -> u8 {
        self.hosts
    }

    /// A directory that all hosts see and that goes with the lab.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a program in a host and gives what it prints.
    pub(crate) fn exec(&self, host: &str, words: &[&str]) -> Result<String> {
        let mut command = self.command(host, words);
        let output = command.output().with_context(|| format!("{words:?}"))?;
        // Of lines of sh none tells more than what they said.
        let words: Vec<_> = words.iter().filter(|word| !word.contains('\n')).copied().collect();
        ensure!(
            output.status.success(),
            "{} on {host}: {}\n{}{}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs lines of `sh` in a host.
    pub(crate) fn sh(&self, host: &str, script: &str) -> Result<()> {
        self.exec(host, &["sh", "-ec", script]).map(|_said| ())
    }

    /// The CLI of a host's agent.
    pub(crate) fn cli(&self, host: &str, words: &[&str]) -> Result<Value> {
        let program = self.vxmesh.to_str().context("odd path")?;
        let said = self.exec(host, &[&[program, "--format", "json"], words].concat())?;
        serde_json::from_str(&said).with_context(|| format!("{words:?} said {said}"))
    }

    /// Starts a program in a host that runs on until the lab goes.
    pub(crate) fn spawn(&self, host: &str, words: &[&str]) -> Result<Child> {
        Ok(self.command(host, words).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// Starts a program in a host that is spoken with.
    pub(crate) fn start(&self, host: &str, words: &[&str]) -> Result<Child> {
        let mut command = self.command(host, words);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().with_context(|| format!("{words:?}"))
    }

    /// Makes a place with an endpoint of the network on a host and gives its address.
    pub(crate) fn attach(&self, host: &str, network: &str, netns: &str) -> Result<Ipv4Addr> {
        self.attach_as(host, (network, host), netns)
    }

    /// The same for an endpoint of this name.
    pub(crate) fn attach_as(
        &self,
        host: &str,
        (network, name): (&str, &str),
        netns: &str,
    ) -> Result<Ipv4Addr> {
        self.sh(host, &format!("ip netns add {netns}"))?;
        let deadline = Instant::now() + PATIENCE;
        let attach = ["endpoint", "attach", network, "--netns", netns, "--name", name];
        let endpoint = loop {
            match self.cli(host, &attach) {
                Ok(endpoint) => break endpoint,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::yield_now(),
            }
        };
        let ip = endpoint["ips"][0].as_str().context("no address")?.split('/').next();
        Ok(ip.context("no address")?.parse()?)
    }

    /// Process ids of the agents.
    pub(crate) fn agents(&self) -> Result<Vec<u64>> {
        let said = self.lab(&["--format".as_ref(), "json".as_ref(), "status".as_ref()])?;
        let hosts: Vec<Value> = serde_json::from_str(&said)?;
        hosts.iter().map(|host| host["pid"].as_u64().context("an agent does not run")).collect()
    }

    /// `lab kill` or `lab start`.
    pub(crate) fn agent(&self, what: &str, host: &str) -> Result<()> {
        self.lab(&[what.as_ref(), host.as_ref()]).map(|_said| ())
    }

    /// Decides what crosses the cables. Segmentation is the sender's, gluing the receiver's.
    pub(crate) fn set_underlay(&self, underlay: Underlay) -> Result<()> {
        let (cut, glue) = match underlay {
            Underlay::Offload => ("on", "off"),
            Underlay::Wire => ("off", "on"),
        };
        for host in (1..=self.hosts).map(|number| format!("h{number}")) {
            let script = format!(
                "ethtool -K eth0 tso {cut} gso {cut} tx-udp-segmentation {cut} gro {glue} >/dev/null"
            );
            self.sh(&host, &script)?;
            // A veth glues only what its other end does not send in super-packets, and that is a
            // port of the lab's bridge.
            let wire = format!("{}-wire", self.name);
            let words = ["netns", "exec", &wire, "ethtool", "-K", &host, "tso", cut];
            let output = program(Path::new("ip")).args(words).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn command(&self, host: &str, words: &[&str]) -> Command {
        let mut command = program(&self.vxmesh);
        command.args(["lab", "--name", &self.name, "exec", host, "--"]).args(words);
        command
    }

    fn lab(&self, words: &[&OsStr]) -> Result<String> {
        let mut command = program(&self.vxmesh);
        let output = command.args(["lab", "--name", &self.name]).args(words).output()?;
        ensure!(
            output.status.success(),
            "lab {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        take_down(&self.vxmesh, &self.name);
        standing(|labs| labs.retain(|(_, name, _)| *name != self.name));
    }
}

/// What the labs are called in tables: the first is the tunnel, the others have as much of their
/// programs' paths as tells all apart.
pub(crate) fn labels(labs: &[Lab]) -> Vec<String> {
    let paths: Vec<&Path> = labs.iter().map(Lab::vxmesh).collect();
    let mut labels = distinct(&paths);
    if let Some(first) = labels.first_mut() {
        "tunnel".clone_into(first);
    }
    labels
}

fn distinct(paths: &[&Path]) -> Vec<String> {
    let parts: Vec<Vec<_>> = paths.iter().map(|path| path.iter().rev().collect()).collect();
    let at = |place: usize| parts.iter().map(move |parts| parts.get(place));
    let longest = parts.iter().map(Vec::len).max().unwrap_or_default();
    // Where builds stand in their trees says nothing if it is the same for all.
    let same = (0..longest).take_while(|place| at(*place).collect::<BTreeSet<_>>().len() == 1);
    let same = same.count();
    for end in same + 1..=longest {
        let names = parts.iter().map(|parts| {
            let name = parts.get(same..end.min(parts.len())).unwrap_or_default();
            name.iter().rev().collect::<PathBuf>().display().to_string()
        });
        let names: Vec<String> = names.collect();
        if names.iter().collect::<BTreeSet<_>>().len() == names.len() {
            return names;
        }
    }
    // One of them twice.
    (0..paths.len()).map(|at| format!("build {at}")).collect()
}

/// Ctrl-C and SIGTERM end the program after its labs. To be called before any other thread runs.
pub(crate) fn take_down_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn(move || {
        let _which = signals.wait();
        // Held on: the main thread must not raise another while this one ends the program.
        standing(|labs| {
            for (vxmesh, name, dir) in labs {
                take_down(vxmesh, name);
                // The lab's own value, which would remove it, is not dropped any more.
                drop(fs::remove_dir_all(dir));
            }
            end();
        });
    });
    Ok(())
}

#[expect(clippy::exit, reason = "a signal ends the program, with the shell's status for SIGINT")]
fn end() {
    std::process::exit(130);
}

fn standing<R>(edit: impl FnOnce(&mut Vec<(PathBuf, String, PathBuf)>) -> R) -> R {
    edit(&mut STANDING.lock().unwrap_or_else(PoisonError::into_inner))
}

#[expect(clippy::print_stderr, reason = "what is left behind must be said")]
fn take_down(vxmesh: &Path, name: &str) {
    let down = program(vxmesh).args(["lab", "--name", name, "down"]).stdout(Stdio::null()).status();
    if !down.is_ok_and(|status| status.success()) {
        eprintln!("{} lab --name {name} down failed; run it again", vxmesh.display());
    }
}

/// This program, which runs in hosts, too.
pub(crate) fn own_path() -> Result<String> {
    let path = env::current_exe()?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("odd path {path:?}"))
}

#[expect(clippy::disallowed_methods, reason = "the benchmark starts programs")]
pub(crate) fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paths: &[&str]) -> Vec<String> {
        distinct(&paths.iter().map(Path::new).collect::<Vec<_>>())
    }

    #[test]
    fn builds_are_called_by_what_differs() {
        assert_eq!(of(&[]), [""; 0]);
        assert_eq!(of(&["/a/now", "/a/before", "/a/between"]), ["now", "before", "between"]);
        assert_eq!(of(&["/now/release/vxmesh", "/old/release/vxmesh"]), ["now", "old"]);
        assert_eq!(of(&["/a/b/vxmesh", "/c/b/vxmesh", "/c/d/vxmesh"]), ["a/b", "c/b", "c/d"]);
        assert_eq!(of(&["/a/vxmesh", "/a/vxmesh"]), ["build 0", "build 1"]);
    }
}
