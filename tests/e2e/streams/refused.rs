//! An offload that the kernel granted and refuses at work: switched off, counted, and the traffic
//! goes on.
//!
//! A kernel that does so is not at hand (newer ones cut datagrams themselves where an interface
//! cannot), so strace(1) has single calls of some threads fail, which the agent cannot tell from a
//! refusal.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStderr, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use vxmesh::api::Status;
use vxmesh_proto::limits::DEFAULT_MTU;
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, wait_until},
    program::command,
    stream,
};

use super::{lab, no_checksum_errors, pair};

const LEN: usize = 8 << 20;

/// Calls of some threads, one of which in fifty fails; ends with the value.
struct Refusing {
    strace: Child,
    said: BufReader<ChildStderr>,
}

impl Refusing {
    /// From now on some of these calls of the agent's threads of this name fail.
    fn start(lab: &Lab, host: &str, thread: &str, call: &str, error: &str) -> Result<Self> {
        let threads = threads_of(lab, host, thread)?;
        // The first calls succeed, so that it is seen that the offload was in use.
        let inject = format!("inject={call}:error={error}:when=20+50");
        let trace = format!("trace={call}");
        let mut strace = command("strace");
        strace.args(["-e", &trace, "-e", &inject, "-e", "status=none"]);
        strace.args(threads.iter().flat_map(|thread| ["-p", thread]));
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut strace = strace.spawn().context("start strace")?;
        let said = BufReader::new(strace.stderr.take().context("no stderr")?);
        let mut refusing = Self { strace, said };
        for _ in &threads {
            let mut line = String::new();
            refusing.said.read_line(&mut line)?;
            ensure!(line.contains("attached"), "strace: {line}");
        }
        Ok(refusing)
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        // It lets the thread go when it is told to end, not when it is killed.
        let told =
            i32::try_from(self.strace.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGINT));
        if told.is_ok_and(|told| told.is_ok()) {
            drop(self.strace.wait());
        }
    }
}

/// The ids of threads of a host's agent whose names begin so.
fn threads_of(lab: &Lab, host: &str, name: &str) -> Result<Vec<String>> {
    let hosts: Vec<Value> = serde_json::from_str(&lab.lab(&["--format", "json", "status"])?)?;
    let row = hosts.iter().find(|row| row["host"] == host).context("no such host")?;
    let agent = row["pid"].as_u64().context("the agent does not run")?;
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{agent}/task"))? {
        let path = entry?.path();
        // One that just ended has none.
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if comm.trim_end().starts_with(name) {
            let id = path.file_name().and_then(|id| id.to_str()).context("odd path")?;
            threads.push(id.to_owned());
        }
    }
    ensure!(!threads.is_empty(), "{host}'s agent has no thread {name}");
    Ok(threads)
}

fn refusals(lab: &Lab, host: &str) -> Result<u64> {
    let status: Status = lab.get(host, "/v1/status")?;
    Ok(status.datapath.context("no data path")?.refused)
}

/// Streams arrive whole while the calls fail, until the agent has switched something off, and after
/// it.
fn survives(
    lab: &Lab,
    (a, b): (&Plugged, &Plugged),
    host: &str,
    (thread, call, error): (&str, &str, &str),
) -> Result<()> {
    let address = || b.endpoint.ips.iter().map(|ip| ip.addr());
    let refusing = Refusing::start(lab, host, thread, call, error)?;
    wait_until("an offload is switched off", || {
        for ip in address() {
            stream::tcp(&a.netns, &b.netns, ip, LEN)?;
        }
        Ok(refusals(lab, host)? > 0)
    })?;
    drop(refusing);
    let before = refusals(lab, host)?;
    for ip in address() {
        stream::tcp(&a.netns, &b.netns, ip, LEN)?;
    }
    let after = refusals(lab, host)?;
    ensure!(before == after, "{host}: {before} refusals, then {after}: it goes on trying");
    no_checksum_errors(lab, b)
}

#[test]
fn an_underlay_that_refuses_trains_gets_datagrams() -> Result<()> {
    for error in ["EIO", "EINVAL"] {
        let lab = lab(1500, "v4")?;
        let (a, b) = pair(&lab, DEFAULT_MTU)?;
        survives(&lab, (&a, &b), "h1", ("out-", "sendmsg", error)).context(error)?;
        ensure!(refusals(&lab, "h1")? == 1, "one destination, but {}", refusals(&lab, "h1")?);
        ensure!(lab.log("h1")?.contains("they are sent singly"), "the log says nothing");
        // A call that failed may have carried a single datagram, which is lost then.
        lab.finish(Allowed { drops: &["underlay_error"], ..Allowed::default() })?;
    }
    Ok(())
}

#[test]
fn a_tap_that_refuses_super_frames_gets_packets() -> Result<()> {
    for error in ["EIO", "EINVAL"] {
        let lab = lab(1500, "v4")?;
        let (a, b) = pair(&lab, DEFAULT_MTU)?;
        survives(&lab, (&a, &b), "h2", ("in-", "writev", error)).context(error)?;
        let refused = refusals(&lab, "h2")?;
        ensure!((1..=2).contains(&refused), "TCP over two IP versions, but {refused}");
        ensure!(lab.log("h2")?.contains("they are delivered singly"), "the log says nothing");
        lab.finish(Allowed { drops: &["tap_error"], ..Allowed::default() })?;
    }
    Ok(())
}
