//! What agents cost that have nothing to do, and how long they take to be there.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{lab::Lab, load};

/// How long the agents are watched doing nothing.
const WATCHED: Duration = Duration::from_secs(10);

/// Memory, idle load and start times, as lines of text.
pub(crate) fn measure(vxmesh: &Path) -> Result<String> {
    let mut text = String::new();
    for hosts in [2, 5, 10] {
        let begin = Instant::now();
        let lab = Lab::up(vxmesh, hosts)?;
        let up = begin.elapsed().as_secs_f64();
        let (memory, load) = idle(&lab)?;
        let (kill, start) = restart(&lab)?;
        text.push_str(&format!(
            "{} hosts: `lab up` {up:.2} s; per agent idle: {memory:.1} MB resident, {load:.2} % of a CPU; \
             killed in {kill:.2} s, from process start to ready {start:.2} s\n",
            lab.hosts()
        ));
    }
    Ok(text)
}

/// Megabytes and per cent of one CPU, the mean of all agents.
fn idle(lab: &Lab) -> Result<(f64, f64)> {
    let agents = lab.agents()?;
    let before = load::processes_seconds(&agents)?;
    sleep(WATCHED);
    let spent = load::processes_seconds(&agents)? - before;
    let mut kilobytes = 0.0;
    for pid in &agents {
        kilobytes += load::resident_kilobytes(*pid)?;
    }
    let count = f64::from(lab.hosts());
    Ok((kilobytes / count / 1e3, spent / count / WATCHED.as_secs_f64() * 100.0))
}

/// Seconds to kill an agent, and to start it until it serves again.
fn restart(lab: &Lab) -> Result<(f64, f64)> {
    let begin = Instant::now();
    lab.agent("kill", "h1")?;
    let killed = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    lab.agent("start", "h1")?;
    Ok((killed, begin.elapsed().as_secs_f64()))
}
