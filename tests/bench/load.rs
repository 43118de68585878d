//! TCP by iperf3, and what the machine and the agents spent on it.

use std::{collections::BTreeMap, ffi::OsString, fs};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use crate::flood::Flooded;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp {
    pub(crate) streams: u8,
    /// The server sends.
    pub(crate) reverse: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpRun {
    pub(crate) gigabits: f64,
    pub(crate) machine_per_gigabyte: f64,
    pub(crate) agents_per_gigabyte: f64,
}

/// What came of datagrams without a pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloodRun {
    pub(crate) kilo_received: f64,
    pub(crate) agents_per_packet: f64,
}

impl FloodRun {
    pub(crate) fn new(flooded: Flooded, agents_seconds: f64) -> Self {
        let received = f64::from(flooded.received);
        Self {
            kilo_received: received / flooded.seconds / 1e3,
            agents_per_packet: agents_seconds / received * 1e6,
        }
    }
}

/// Runs iperf3 between two looks at the clocks of the CPUs.
pub(crate) fn measure(agents: &[u64], iperf3: impl FnOnce() -> Result<String>) -> Result<TcpRun> {
    let before = (machine_seconds()?, processes_seconds(agents)?);
    let said = iperf3()?;
    let after = (machine_seconds()?, processes_seconds(agents)?);

    let report: Value = serde_json::from_str(&said)?;
    let received = &report["end"]["sum_received"];
    let bits = received["bits_per_second"].as_f64().context("iperf3 received nothing")?;
    let gigabytes = received["bytes"].as_f64().context("iperf3 received nothing")? / 1e9;
    Ok(TcpRun {
        gigabits: bits / 1e9,
        machine_per_gigabyte: (after.0 - before.0) / gigabytes,
        agents_per_gigabyte: (after.1 - before.1) / gigabytes,
    })
}

/// Busy seconds of all CPUs; `nice` is left out, so that what runs niced beside the benchmark is,
/// too.
fn machine_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // proc_stat(5): user nice system idle iowait irq softirq steal guest guest_nice
    let ticks: Vec<u32> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    let busy = [0, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).map(|ticks| f64::from(*ticks));
    Ok(busy.sum::<f64>() / ticks_per_second()?)
}

/// Seconds that processes ran, user and system.
pub(crate) fn processes_seconds(pids: &[u64]) -> Result<f64> {
    let mut sum = 0.0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field may hold spaces: proc_pid_stat(5).
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        for at in [11, 12] {
            sum += fields.get(at).context("short stat")?.parse::<f64>()?;
        }
    }
    Ok(sum / ticks_per_second()?)
}

/// What a process has in memory.
pub(crate) fn resident_kilobytes(pid: u64) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(number.parse()?)
}

/// How often each thread of a process has waited for something so far.
pub(crate) fn waits(pid: u64) -> Result<BTreeMap<OsString, f64>> {
    let mut waits = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        // One that has ended meanwhile does not count.
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        waits.insert(thread.file_name(), voluntary(&status)?);
    }
    Ok(waits)
}

/// Of a thread's status: proc_pid_status(5).
fn voluntary(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.context("no voluntary_ctxt_switches")?.trim().parse()?)
}

fn ticks_per_second() -> Result<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(f64::from(u32::try_from(ticks)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_thread_waits_for_by_itself_counts() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(voluntary(status).unwrap(), 150.0);
        assert!(voluntary("Name:\tx\nnonvoluntary_ctxt_switches:\t545\n").is_err());
    }

    #[test]
    fn the_threads_of_a_process_are_found() {
        assert!(!waits(std::process::id().into()).unwrap().is_empty());
    }
}
