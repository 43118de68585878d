//! Owns the first process of a host: it keeps the host's namespaces alive, and the host ends with
//! it.
//!
//! As process 1 of its PID namespace it inherits every orphan of the host and takes its zombie
//! away; the kernel kills all others when it dies (pid_namespaces(7)), and lets nothing but SIGKILL
//! from outside reach it. It says `ready` on standard output, once, when `/proc` is the host's own.
//! Refuses to run as anything but process 1.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    process::Stdio,
};

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::{dup2_stdout, getpid, setsid},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    disk::HostDir,
    enter::{Program, spawn_first},
    error::OrFail,
    mounts,
    name::{HostName, LabName},
    process::Process,
};
use crate::api::{ApiError, ErrorCode};

const READY: &str = "ready";

/// Starts the first process of a host around its network namespace and writes down which it is.
pub(super) fn start(
    lab: &LabName,
    name: HostName,
    host: &HostDir,
    netns: &File,
) -> Result<Process, ApiError> {
    let what = || format!("cannot start host {name}");
    let log = File::create(host.holder_log()).or_fail(what)?;
    let args = [
        "lab".to_owned(),
        "--name".to_owned(),
        lab.to_string(),
        "holder".to_owned(),
        name.to_string(),
    ];
    let program =
        Program::own(args).or_fail(what)?.stdio(Stdio::null(), Stdio::piped(), log.into());
    let mut child = spawn_first(program, netns, name, host).or_fail(what)?;
    let holder =
        i32::try_from(child.id()).map_err(io::Error::other).and_then(Process::of).or_fail(what)?;
    host.set_holder(holder)?;
    let mut said = String::new();
    if let Some(output) = child.stdout.as_mut() {
        output.read_to_string(&mut said).or_fail(what)?;
    }
    if said.trim_end() == READY {
        return Ok(holder);
    }
    let log = fs::read_to_string(host.holder_log()).unwrap_or_default();
    Err(ApiError::new(
        ErrorCode::Failed,
        format!("{}: its first process ended: {}", what(), log.trim_end()),
        "a lab needs PID and mount namespaces: run it as root on the machine or in a privileged container",
    ))
}

/// Is the first process; returns only if it cannot be.
pub(super) async fn hold() -> Result<std::convert::Infallible, ApiError> {
    if getpid().as_raw() != 1 {
        return Err(ApiError::new(
            ErrorCode::Usage,
            "holder is the first process of a lab's host and cannot run elsewhere",
            "make a lab: vxmesh lab up",
        ));
    }
    let mut ended =
        signal(SignalKind::child()).or_fail(|| "cannot wait for children".to_owned())?;
    setsid().or_fail(|| "cannot leave the caller's session".to_owned())?;
    mounts::mount_proc().or_fail(|| "cannot show the host's processes".to_owned())?;
    announce().or_fail(|| "cannot say that the host is ready".to_owned())?;
    loop {
        reap().or_fail(|| "cannot take dead processes away".to_owned())?;
        ended.recv().await;
    }
}

/// The caller reads until the pipe closes, so that it must not stay open here.
fn announce() -> io::Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{READY}")?;
    output.flush()?;
    dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    Ok(())
}

fn reap() -> nix::Result<()> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}
