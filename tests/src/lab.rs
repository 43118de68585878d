//! A lab with agents for one test, made and removed by the real binary.
//!
//! [`Lab::finish`] checks what must hold after every test; a lab that is dropped without it belongs
//! to a test that failed, so it shows what its agents said. Either way it is removed.

use std::{
    env, fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use vxmesh::api::{DropRow, Endpoint, Network, Sandbox};

use crate::{
    capture::{Capture, containing, to_port},
    netns::NetNs,
    program::{command, printed, vxmesh},
};

/// How long a test waits for what must happen; a machine under load is slow.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Whether tests run at the size of a real mesh (`make full`).
#[must_use]
pub fn is_full() -> bool {
    env::var_os("VXMESH_FULL").is_some()
}

/// What a test takes for too long where the aim is this. Other work of the machine and of tests
/// beside this one must not fail it: ten times the aim, and three times where the aims are what is
/// tested, at the size of a real mesh.
#[must_use]
pub fn limit(aim: Duration) -> Duration {
    aim * if is_full() { 3 } else { 10 }
}

/// What tests send through a network and nobody may see outside of it. `ping -p` takes 16 bytes.
pub const MARKER: &[u8; 16] = b"VXMESH-PLAINTEXT";

/// Where agents receive sealed frames.
pub const DATA_PORT: u16 = 7761;

/// Drop reasons of what is on its way from and to endpoints that are unplugged just then.
pub const UNDERWAY: &[&str] = &["source_unknown", "fdb_unknown", "not_local"];

/// What the kernel loses where queues are full, as on any busy link: it says more of the machine
/// than of the test.
const BUSY: &[&str] = &[
    "tap_full",
    "port_overrun",
    "sandbox_overrun",
    "node_overrun",
    "uplink_overrun",
    "underlay_overrun",
];

/// What an agent says that did not get its turn: it says more of the machine than of the test.
const STARVED: &str = "this node was starved";

/// How much of an agent's log a failed test shows.
const LOG_LINES: usize = 60;

/// What a lab shall be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Hosts h1 to hN.
    pub hosts: u8,
    /// `v4`, `v6` or `dual`.
    pub underlay: &'static str,
    /// MTU of the underlay.
    pub mtu: u16,
    /// Whether agents run and form a mesh.
    pub agents: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { hosts: 3, underlay: "dual", mtu: 1500, agents: true }
    }
}

/// What a test caused on purpose, beyond what a healthy mesh shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    /// Drop reasons, as counters show them.
    pub drops: &'a [&'a str],
    /// Parts of warnings in agents' logs.
    pub warnings: &'a [&'a str],
}

/// A lab that goes with the test, however that ends.
#[derive(Debug)]
pub struct Lab {
    name: String,
    hosts: Vec<String>,
    capture: Option<Capture>,
    finished: bool,
}

impl Lab {
    /// A lab of this many hosts in one mesh.
    ///
    /// # Errors
    ///
    /// `lab up` failed.
    pub fn up(hosts: u8) -> Result<Self> {
        Self::with(Options { hosts, ..Options::default() })
    }

    /// A lab like this.
    ///
    /// # Errors
    ///
    /// `lab up` failed.
    pub fn with(options: Options) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            // No other test has it, here or in another run at the same time.
            name: format!("m{}-{number}", std::process::id()),
            hosts: (1..=options.hosts).map(|number| format!("h{number}")).collect(),
            capture: None,
            finished: false,
        };
        let mut file = tempfile::NamedTempFile::new()?;
        let Options { hosts, underlay, mtu, agents } = options;
        writeln!(file, "hosts = {hosts}\nunderlay = \"{underlay}\"\nmtu = {mtu}")?;
        let path = file.path().to_str().context("odd path")?;
        let flags: &[&str] = if agents { &["up", path] } else { &["up", path, "--no-agents"] };
        lab.lab(flags)?;
        Ok(lab)
    }

    /// A lab whose underlay is captured from before the first agent until [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// `lab up` failed, or there is no tcpdump.
    pub fn captured(options: Options) -> Result<Self> {
        let mut lab = Self::with(options)?;
        lab.capture = Some(Capture::start(&lab.wire()?, "wire")?);
        Ok(lab)
    }

    /// What has crossed the underlay so far, if it is captured.
    ///
    /// # Errors
    ///
    /// It is not captured.
    pub fn recorded(&self) -> Result<Vec<Vec<u8>>> {
        self.capture.as_ref().context("this lab is not captured")?.packets()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of its hosts.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// `vxmesh lab ARGS`, which must succeed; what it printed.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn lab(&self, args: &[&str]) -> Result<String> {
        printed(&format!("lab {}", args.join(" ")), self.command(args)?.output()?)
    }

    /// `vxmesh lab ARGS`, not yet started.
    ///
    /// # Errors
    ///
    /// The program under test is missing.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = command(vxmesh()?);
        command.args(["lab", "--name", &self.name]).args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Any program in a host.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn exec(&self, host: &str, args: &[&str]) -> Result<Output> {
        Ok(self.command(&["exec", host, "--"])?.args(args).output()?)
    }

    /// A shell script in a host, which must succeed; what it printed.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn sh(&self, host: &str, script: &str) -> Result<String> {
        printed(&format!("{host}: {script}"), self.exec(host, &["sh", "-c", script])?)
    }

    /// `vxmesh ARGS` in a host, which must succeed; what it printed.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn vxmesh(&self, host: &str, args: &[&str]) -> Result<String> {
        let output = self.try_vxmesh(host, args)?;
        printed(&format!("{host}: vxmesh {}", args.join(" ")), output)
    }

    /// `vxmesh ARGS` in a host, however it ends.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn try_vxmesh(&self, host: &str, args: &[&str]) -> Result<Output> {
        self.exec(host, &[&["vxmesh"], args].concat())
    }

    /// `vxmesh --format json ARGS` in a host.
    ///
    /// # Errors
    ///
    /// It failed, or its answer is none of that type.
    pub fn json<T: DeserializeOwned>(&self, host: &str, args: &[&str]) -> Result<T> {
        let text = self.vxmesh(host, &[&["--format", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} answered {text}"))
    }

    /// Asks the admin API of a host directly: for what is asked often or timed, because it starts
    /// no program.
    ///
    /// # Errors
    ///
    /// There is no agent, or it answered with an error.
    pub fn get<T: DeserializeOwned>(&self, host: &str, path: &str) -> Result<T> {
        self.api(host).send(&format!("GET {path}"), &Value::Null).context(host.to_owned())
    }

    /// The names of the endpoints that a host knows, in order.
    ///
    /// # Errors
    ///
    /// Its agent does not answer.
    pub fn endpoint_names(&self, host: &str) -> Result<Vec<String>> {
        let endpoints: Vec<Endpoint> = self.get(host, "/v1/endpoints")?;
        let mut names: Vec<String> = endpoints.iter().map(|it| it.name.to_string()).collect();
        names.sort();
        Ok(names)
    }

    /// Waits until a host knows endpoints of these names, in order, and no others.
    ///
    /// # Errors
    ///
    /// It does not come to know them.
    pub fn named(&self, host: &str, expected: &[&str]) -> Result<()> {
        let is_so = || Ok(self.endpoint_names(host)? == expected);
        wait_until(&format!("{host} knows {expected:?}"), is_so).map(drop)
    }

    /// The admin API of a host.
    #[must_use]
    pub fn api(&self, host: &str) -> Api {
        Api(self.dir(host).join("run/vxmesh/api.sock"))
    }

    /// The directory of a host on this machine.
    #[must_use]
    pub fn dir(&self, host: &str) -> PathBuf {
        PathBuf::from("/run/vxmesh-lab").join(&self.name).join(host)
    }

    /// What a host's agent has said so far, over all its starts.
    ///
    /// # Errors
    ///
    /// There is no log.
    pub fn log(&self, host: &str) -> Result<String> {
        Ok(fs::read_to_string(self.dir(host).join("agent.log"))?)
    }

    /// Stops the agent of a host until what this gives is dropped.
    ///
    /// # Errors
    ///
    /// There is no agent.
    pub fn freeze(&self, host: &str) -> Result<Frozen> {
        let pid = Pid::from_raw(self.agent(host)?);
        let frozen = Frozen(pid);
        kill(pid, Signal::SIGSTOP)?;
        // A thread that runs on another CPU goes on until it is told to stop.
        wait_until("the agent stands still", || all_stopped(pid))?;
        Ok(frozen)
    }

    /// The process of a host's agent.
    ///
    /// # Errors
    ///
    /// None was started.
    pub fn agent(&self, host: &str) -> Result<i32> {
        let record: Value = serde_json::from_slice(&fs::read(self.dir(host).join("agent.json"))?)?;
        let pid = record.get("pid").and_then(Value::as_i64).context("no pid")?;
        Ok(pid.try_into()?)
    }

    /// The network namespace of a host.
    ///
    /// # Errors
    ///
    /// There is no such host.
    pub fn host(&self, host: &str) -> Result<NetNs> {
        NetNs::open(format!("/run/netns/{}-{host}", self.name))
    }

    /// The network namespace in which the bridge `wire` joins the hosts.
    ///
    /// # Errors
    ///
    /// The lab is gone.
    pub fn wire(&self) -> Result<NetNs> {
        self.host("wire")
    }

    /// A network namespace by the path that it has inside a host.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn inner(&self, host: &str, path: &str) -> Result<NetNs> {
        NetNs::open(self.path(host, path)?)
    }

    /// Where a file of a host is on this machine.
    ///
    /// # Errors
    ///
    /// There is no such host.
    pub fn path(&self, host: &str, path: &str) -> Result<PathBuf> {
        let record = fs::read(self.dir(host).join("holder.json"))?;
        let record: Value = serde_json::from_slice(&record)?;
        let holder = record.get("pid").and_then(Value::as_i64).context("no pid")?;
        Ok(PathBuf::from(format!("/proc/{holder}/root{path}")))
    }

    /// Makes a network on a host and waits until all hosts list it.
    ///
    /// # Errors
    ///
    /// It was refused, or does not come to all hosts.
    pub fn network(&self, host: &str, name: &str) -> Result<Network> {
        let network: Network = self.json(host, &["network", "create", name])?;
        for host in &self.hosts {
            wait_until(&format!("{host} lists the network"), || {
                let networks: Vec<Network> = self.get(host, "/v1/networks")?;
                Ok(networks.iter().any(|listed| listed.id == network.id))
            })?;
        }
        Ok(network)
    }

    /// `run -d` of a command that does nothing for an hour, and what the agent says about it.
    ///
    /// # Errors
    ///
    /// It was refused.
    pub fn sandbox(&self, host: &str, network: &str, name: &str) -> Result<Plugged> {
        let run = ["run", "-d", "--name", name, "--network", network, "--", "sleep", "3600"];
        let sandbox: Sandbox = self.json(host, &run)?;
        let id = sandbox.endpoints.first().context("a sandbox without endpoints")?;
        let endpoint = self.get(host, &format!("/v1/endpoints/{id}"))?;
        let netns = self.inner(host, &sandbox.netns)?;
        Ok(Plugged { host: host.to_owned(), sandbox, endpoint, netns })
    }

    /// Waits until all hosts know exactly these endpoints.
    ///
    /// # Errors
    ///
    /// They do not in time.
    pub fn all_know(&self, endpoints: &[&Endpoint]) -> Result<()> {
        for host in &self.hosts {
            wait_until(&format!("{host} knows the endpoints"), || {
                let listed: Vec<Endpoint> = self.get(host, "/v1/endpoints")?;
                let known = |wanted: &&Endpoint| {
                    listed.iter().any(|row| row.id == wanted.id && row.mac == wanted.mac)
                };
                Ok(listed.len() == endpoints.len() && endpoints.iter().all(known))
            })?;
        }
        Ok(())
    }

    /// The drop counters of a host.
    ///
    /// # Errors
    ///
    /// Its agent does not answer.
    pub fn drops(&self, host: &str) -> Result<Vec<DropRow>> {
        self.get(host, "/v1/drops")
    }

    /// How often a host dropped for this reason.
    ///
    /// # Errors
    ///
    /// Its agent does not answer.
    pub fn dropped(&self, host: &str, reason: &str) -> Result<u64> {
        let rows = self.drops(host)?;
        Ok(rows.iter().filter(|row| row.reason == reason).map(|row| row.count).sum())
    }

    /// Ends the test: the underlay, where captured, showed no plaintext; no host dropped what it
    /// should not; no agent complained. Then removes the lab.
    ///
    /// # Errors
    ///
    /// What did not hold.
    pub fn finish(mut self, allowed: Allowed<'_>) -> Result<()> {
        if let Some(capture) = self.capture.take() {
            let packets = capture.stop()?;
            ensure!(to_port(&packets, DATA_PORT) > 0, "the capture has no sealed datagram");
            ensure!(containing(&packets, MARKER) == 0, "plaintext on the underlay");
        }
        for host in &self.hosts {
            self.check_drops(host, allowed)?;
            self.check_log(host, allowed)?;
        }
        self.finished = true;
        self.lab(&["down"])?;
        Ok(())
    }

    fn check_drops(&self, host: &str, allowed: Allowed<'_>) -> Result<()> {
        // A killed agent has no counters.
        let Ok(rows) = self.drops(host) else { return Ok(()) };
        for row in rows {
            let reason = row.reason.as_str();
            let expected = row.normal || BUSY.contains(&reason) || allowed.drops.contains(&reason);
            ensure!(expected, "{host} dropped {row:?}");
        }
        Ok(())
    }

    fn check_log(&self, host: &str, allowed: Allowed<'_>) -> Result<()> {
        // A host whose agent was never started has none.
        let log = self.log(host).unwrap_or_default();
        let panicked = log.lines().find(|line| line.contains("panicked at"));
        ensure!(panicked.is_none(), "{host}: {panicked:?}");
        for line in log.lines() {
            let level = line.split_whitespace().find(|word| matches!(*word, "WARN" | "ERROR"));
            let mut expected = allowed.warnings.iter().chain([&STARVED]);
            let expected = expected.any(|part| line.contains(part));
            match level {
                Some("ERROR") => bail!("{host}: {line}"),
                Some(_) => ensure!(expected, "{host}: {line}"),
                None => {}
            }
        }
        Ok(())
    }

    fn show(&self) {
        for host in &self.hosts {
            let log = self.log(host).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
            tell(&format!("--- {}: the end of {host}'s log\n{}", self.name, end.join("\n")));
            if let Ok(rows) = self.drops(host) {
                let counts = rows.iter().map(|row| format!("{} {}", row.reason, row.count));
                tell(&format!("--- drops: {}", counts.collect::<Vec<_>>().join(", ")));
            }
        }
    }
}

/// The admin API of one agent.
#[derive(Clone, Debug)]
pub struct Api(PathBuf);

impl Api {
    /// Has it do something: `POST /v1/endpoints` and a spec.
    ///
    /// # Errors
    ///
    /// There is no agent, or it answered with an error.
    pub fn send<T: DeserializeOwned>(&self, request: &str, spec: &Value) -> Result<T> {
        let mut socket = UnixStream::connect(&self.0)?;
        // An agent that does not answer fails one test, and not all by a run without end.
        socket.set_read_timeout(Some(4 * DEADLINE))?;
        let body = if spec.is_null() { String::new() } else { spec.to_string() };
        let head = format!(
            "{request} HTTP/1.1\r\nHost: vxmesh\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{request}: {answer}");
        serde_json::from_str(body).with_context(|| format!("{request} answered {body}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.show();
        // Whatever made the test fail is told; this must not hide it.
        if let Err(error) = self.lab(&["down"]) {
            tell(&format!("lab {} is left: {error:#}", self.name));
        }
    }
}

/// An agent that does nothing for a while.
#[derive(Debug)]
pub struct Frozen(Pid);

/// Whether all threads of a process are stopped: proc_pid_stat(5).
fn all_stopped(pid: Pid) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        // The second field may hold spaces.
        if !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that is gone needs it no more.
        let _gone = kill(self.0, Signal::SIGCONT);
    }
}

/// A sandbox that `run -d` made.
#[derive(Debug)]
pub struct Plugged {
    /// The host.
    pub host: String,
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its endpoint in the first network.
    pub endpoint: Endpoint,
    /// Its network namespace.
    pub netns: NetNs,
}

/// Waits for a condition that must come true.
///
/// # Errors
///
/// It did not within [`DEADLINE`], or cannot be asked.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !condition()? {
        ensure!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Says something to whoever runs the tests; `cargo test` hides what passing tests print otherwise.
pub fn tell(line: &str) {
    // There may be nobody to read it.
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// The 50th and the 99th percentile.
#[must_use]
pub fn percentiles(times: &[Duration]) -> (Duration, Duration) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    // The nearest rank: the smallest value that so many percent do not exceed.
    let at = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    };
    (at(50), at(99))
}
