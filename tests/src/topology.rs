//! Owns what tests do with real network namespaces: make them under a directory that goes with the
//! test, run programs inside, capture frames, join two TAPs by a wire.
//!
//! Everything is pinned below a temporary directory, so tests run side by side and a panic leaves
//! nothing. No frame touches the machine's own namespace. Refuses to run without root: a test that
//! is skipped proves nothing.

use std::{
    fmt, fs,
    io::{BufRead, BufReader, ErrorKind, IoSlice, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use tempfile::TempDir;
use vxmesh::{datapath::device::Device, netlink::netns::Netns};
use vxmesh_proto::frame::vnet;

/// More than a loaded machine needs for anything that tests wait for.
const DEADLINE: Duration = Duration::from_secs(30);
/// The file header of a capture (draft-ietf-opsawg-pcap section 4).
const PCAP_HEADER: usize = 24;
/// The header of one packet in it (section 5).
const PCAP_RECORD: usize = 16;

/// Waits for a condition, or fails and says which.
///
/// # Errors
/// The condition fails, or does not hold in 30 s.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !condition()? {
        ensure!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The namespaces of one test.
#[derive(Debug)]
pub struct Topology {
    directory: TempDir,
}

impl Topology {
    /// An empty one.
    ///
    /// # Errors
    /// The tests do not run as root.
    pub fn new() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "these tests make network namespaces and need root: \
             sudo -E env \"PATH=$PATH\" cargo test -p vxmesh-tests --test e2e"
        );
        Ok(Self { directory: tempfile::Builder::new().prefix("vxmesh-test-").tempdir()? })
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A run directory for the agent on a host of this name.
    #[must_use]
    pub fn run_dir(&self, host: &str) -> PathBuf {
        self.path().join(host)
    }

    /// Makes a network namespace of this name.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn sandbox(&self, name: &str) -> Result<Sandbox> {
        let path = self.path().join("sandbox").join(name);
        let netns = Netns::create(&path)?;
        Ok(Sandbox { path, netns })
    }

    /// Pins of this test that are left, as the kernel sees them.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        let own = self.path().to_str().context("an odd path")?;
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        // The fifth field is the mount point (proc_pid_mountinfo(5)).
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(points.filter(|point| point.starts_with(own)).map(PathBuf::from).collect())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        let removed: Result<()> = self
            .mounts()
            .and_then(|mounts| mounts.iter().try_for_each(|path| Ok(Netns::remove(path)?)));
        // A second panic would hide the first.
        assert!(thread::panicking() || removed.is_ok(), "namespaces are left: {removed:?}");
    }
}

/// A network namespace that something is plugged into.
#[derive(Debug)]
pub struct Sandbox {
    /// Its file.
    pub path: PathBuf,
    /// The namespace.
    pub netns: Netns,
}

impl Sandbox {
    /// Whether a host answers one ping.
    ///
    /// # Errors
    /// There is no ping.
    pub fn pings(&self, to: &str) -> Result<bool> {
        let ping = ["ping", "-n", "-c", "1", "-W", "2", to];
        Ok(run(&self.netns, &ping)?.status.success())
    }

    /// The names of its interfaces.
    ///
    /// # Errors
    /// There is no `ip`.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        interfaces(&self.netns)
    }
}

/// Runs a program in a namespace.
///
/// # Errors
/// It is not installed.
pub fn run(netns: &Netns, words: &[&str]) -> Result<Output> {
    let (program, args) = words.split_first().context("no program")?;
    netns
        .run(|| command(program).args(args).stdin(Stdio::null()).output())
        .with_context(|| format!("{program} is needed: see tests/install-tools.sh"))
}

/// Runs a line of words in a namespace and gives its output.
///
/// # Errors
/// The program is not installed or fails.
pub fn ok(netns: &Netns, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = run(netns, &words)?;
    ensure!(output.status.success(), "{line}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The names of the interfaces in a namespace, sorted.
///
/// # Errors
/// There is no `ip`.
pub fn interfaces(netns: &Netns) -> Result<Vec<String>> {
    let links: serde_json::Value = serde_json::from_str(&ok(netns, "ip -j link")?)?;
    let links = links.as_array().context("not a list")?;
    let mut names: Vec<String> =
        links.iter().filter_map(|link| Some(link.get("ifname")?.as_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

#[expect(clippy::disallowed_methods, reason = "tests start programs")]
fn command(program: &str) -> Command {
    Command::new(program)
}

/// A running tcpdump on one interface.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
    // Its pipe must stay open: tcpdump says its count there.
    errors: BufReader<std::process::ChildStderr>,
}

impl Capture {
    /// Starts to capture and returns when no frame is missed.
    ///
    /// # Errors
    /// There is no tcpdump, or no such interface.
    pub fn start(topology: &Topology, netns: &Netns, ifname: &str, filter: &str) -> Result<Self> {
        let file =
            tempfile::Builder::new().tempfile_in(topology.path())?.into_temp_path().keep()?;
        let mut child = netns.run(|| {
            command("tcpdump")
                // 64 MiB hold what a loaded machine does not get around to.
                .args([
                    "-n",
                    "-U",
                    "--immediate-mode",
                    "-B",
                    "65536",
                    "-Z",
                    "root",
                    "-i",
                    ifname,
                    "-w",
                ])
                .arg(&file)
                .arg(filter)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        })?;
        let mut errors = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut said = String::new();
        while !said.contains("listening on") {
            ensure!(errors.read_line(&mut said)? > 0, "tcpdump on {ifname}: {said}");
        }
        Ok(Self { child, file, errors })
    }

    /// Frames so far, Ethernet header first.
    ///
    /// # Errors
    /// The file is not a capture.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let file = fs::read(&self.file)?;
        let mut rest = file.get(PCAP_HEADER..).unwrap_or_default();
        let mut frames = Vec::new();
        while let Some((header, body)) = rest.split_first_chunk::<PCAP_RECORD>() {
            let [.., a, b, c, d, _, _, _, _] = *header;
            let len = usize::try_from(u32::from_ne_bytes([a, b, c, d]))?;
            // The last one may still be on its way.
            let Some((frame, next)) = body.split_at_checked(len) else { break };
            frames.push(frame.to_vec());
            rest = next;
        }
        Ok(frames)
    }

    /// Ends the capture and gives its frames.
    ///
    /// # Errors
    /// tcpdump fails, or missed frames.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        ensure!(self.child.wait()?.success(), "tcpdump failed");
        let said = self.errors.by_ref().lines().collect::<Result<Vec<_>, _>>()?.join("\n");
        ensure!(said.contains("\n0 packets dropped by kernel"), "{said}");
        self.frames()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It has ended if it was stopped.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A cable between the TAPs of two hosts, or from one TAP to nowhere. It remembers each frame that
/// a TAP gave.
pub struct Wire {
    taps: Vec<Arc<dyn Device>>,
    seen: Vec<Arc<Mutex<Vec<Vec<u8>>>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("taps", &self.taps).finish_non_exhaustive()
    }
}

impl Wire {
    /// A wire whose other end is open.
    #[must_use]
    pub fn open(tap: Box<dyn Device>) -> Self {
        Self::between(vec![tap.into()])
    }

    /// A wire that carries every frame of each to the other.
    #[must_use]
    pub fn join(one: Box<dyn Device>, other: Box<dyn Device>) -> Self {
        Self::between(vec![one.into(), other.into()])
    }

    fn between(taps: Vec<Arc<dyn Device>>) -> Self {
        let seen: Vec<Arc<Mutex<Vec<Vec<u8>>>>> = taps.iter().map(|_| Arc::default()).collect();
        let start = |(at, tap): (usize, &Arc<dyn Device>)| {
            let others = taps.iter().enumerate().filter(|(other, _)| *other != at);
            let others: Vec<Arc<dyn Device>> = others.map(|(_, tap)| Arc::clone(tap)).collect();
            let (tap, seen) = (Arc::clone(tap), seen.get(at).cloned().unwrap_or_default());
            thread::spawn(move || carry(&*tap, &others, &seen))
        };
        let threads = taps.iter().enumerate().map(start).collect();
        Self { taps, seen, threads }
    }

    /// The frames that the `at`th TAP gave so far.
    #[must_use]
    pub fn seen(&self, at: usize) -> Vec<Vec<u8>> {
        let seen =
            self.seen.get(at).map(|seen| seen.lock().unwrap_or_else(PoisonError::into_inner));
        seen.map(|frames| frames.clone()).unwrap_or_default()
    }

    /// Gives a frame to the first host as if it came from afar.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn inject(&self, frame: &[u8]) -> Result<()> {
        Ok(self.taps.first().context("no TAP")?.send(&vnet::PLAIN, &[IoSlice::new(frame)])?)
    }

    /// Stops carrying and closes the TAPs.
    ///
    /// # Errors
    /// A TAP failed meanwhile.
    pub fn cut(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.taps.iter().for_each(|tap| tap.stop());
        let mut threads = self.threads.drain(..);
        threads.try_for_each(|thread| thread.join().map_err(|_panic| anyhow!("a wire panicked"))?)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let ended = self.end();
        assert!(thread::panicking() || ended.is_ok(), "{ended:?}");
    }
}

fn carry(tap: &dyn Device, others: &[Arc<dyn Device>], seen: &Mutex<Vec<Vec<u8>>>) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    while tap.wait()? {
        loop {
            let len = match tap.recv(0, &mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                received => received?.len,
            };
            let frame = buffer.get(..len).unwrap_or_default();
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(frame.to_vec());
            for other in others {
                other.send(&vnet::PLAIN, &[IoSlice::new(frame)])?;
            }
        }
    }
    Ok(())
}
