//! What agents cost that have nothing to do, and how long they take to be there.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{lab::Lab, load, table::short};

/// How long the agents are watched doing nothing.
const WATCHED: Duration = Duration::from_secs(10);

/// What an agent costs that has nothing to do: the mean of all.
struct Idle {
    megabytes: f64,
    /// Of one CPU.
    per_cent: f64,
    /// How often one of its threads began to wait, and so was woken, in a second.
    wake_ups: f64,
}

/// Memory, idle load and start times as a table.
pub(crate) fn measure(vxmesh: &Path) -> Result<String> {
    let mut text = "| hosts | `lab up`, s | idle agent: resident, MB | % of a CPU | wake-ups a second | killed, s | \
                    process start to ready, s |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for hosts in [2, 5, 10] {
        let begin = Instant::now();
        let lab = Lab::up(vxmesh, hosts)?;
        let up = begin.elapsed().as_secs_f64();
        let idle = idle(&lab)?;
        let (killed, started) = restart(&lab)?;
        text.push_str(&row(hosts, up, &idle, killed, started));
    }
    Ok(text)
}

fn row(hosts: u8, up: f64, idle: &Idle, killed: f64, started: f64) -> String {
    let values = [up, idle.megabytes, idle.per_cent, idle.wake_ups, killed, started].map(short);
    format!("| {hosts} | {} |\n", values.join(" | "))
}

fn idle(lab: &Lab) -> Result<Idle> {
    let agents = lab.agents()?;
    let threads = agents.iter().map(|pid| load::waits(*pid)).collect::<Result<Vec<_>>>()?;
    let before = load::processes_seconds(&agents)?;
    sleep(WATCHED);
    let spent = load::processes_seconds(&agents)? - before;
    let (mut wake_ups, mut kilobytes) = (0.0, 0.0);
    for (pid, before) in agents.iter().zip(&threads) {
        // A thread that is new has waited only since.
        for (thread, waits) in load::waits(*pid)? {
            wake_ups += waits - before.get(&thread).copied().unwrap_or_default();
        }
        kilobytes += load::resident_kilobytes(*pid)?;
    }
    let (count, seconds) = (f64::from(lab.hosts()), WATCHED.as_secs_f64());
    Ok(Idle {
        megabytes: kilobytes / count / 1e3,
        per_cent: spent / count / seconds * 100.0,
        wake_ups: wake_ups / count / seconds,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let idle = Idle { megabytes: 20.04, per_cent: 0.351, wake_ups: 123.4 };
        assert_eq!(row(2, 0.5, &idle, 0.0, 0.04), "| 2 | 0.50 | 20.0 | 0.35 | 123 | 0 | 0.04 |\n");
    }
}
