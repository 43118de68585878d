//! Owns one question: whether the machine's memory and processors carry a lab. Asked before
//! anything of it is made.

use std::thread;

use super::plan::Plan;
use crate::api::{ApiError, ErrorCode};

/// What a host with an agent takes in a mesh of its own, in KiB.
const HOST_KIB: u64 = 40_000;
/// What it takes more for each other node: a connection, a session, records.
const PEER_KIB: u64 = 500;
/// The square of the hosts with agents that one processor carries: each speaks with each. Two carry
/// thirty, as was measured: with more, agents do not get their turn, and take each other for dead.
const SQUARE: u64 = 450;

/// Memory that a lab takes, in KiB, as it was measured with up to 40 hosts.
const fn needed(hosts: u8) -> u64 {
    let hosts = hosts as u64;
    hosts * (HOST_KIB + PEER_KIB * hosts)
}

/// Refuses a lab for which there are not enough processors, or no memory.
pub(super) fn check(plan: &Plan) -> Result<(), ApiError> {
    // Where the system does not tell, it is tried.
    if let Ok(processors) = thread::available_parallelism() {
        let processors = u64::try_from(processors.get()).unwrap_or(u64::MAX);
        if !carry(processors, plan.hosts) {
            return Err(too_slow(plan.hosts, processors));
        }
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available(&meminfo) {
        Some(available) if needed(plan.hosts) > available => Err(too_large(plan.hosts, available)),
        // Where the kernel does not tell, it is tried.
        _ => Ok(()),
    }
}

fn carry(processors: u64, hosts: u8) -> bool {
    u64::from(hosts) * u64::from(hosts) <= processors.saturating_mul(SQUARE)
}

fn too_slow(hosts: u8, processors: u64) -> ApiError {
    let fits = (1..hosts).rev().find(|fewer| carry(processors, *fewer)).unwrap_or(0);
    let have =
        if processors == 1 { "1 processor".into() } else { format!("{processors} processors") };
    ApiError::new(
        ErrorCode::Failed,
        format!("{hosts} hosts with agents are too many for {have}: each of them speaks with each"),
        format!(
            "this machine carries {fits} hosts; --no-agents makes hosts without agents, --force tries it all the same"
        ),
    )
}

/// What programs can have without swapping (proc_meminfo(5)).
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn too_large(hosts: u8, available: u64) -> ApiError {
    let fits = (1..hosts).rev().find(|fewer| needed(*fewer) <= available).unwrap_or(0);
    let gib = |kib: u64| format!("{}.{} GiB", kib >> 20, ((kib & 0xf_ffff) * 10) >> 20);
    ApiError::new(
        ErrorCode::Failed,
        format!(
            "{hosts} hosts with agents take {} of memory, and {} are free",
            gib(needed(hosts)),
            gib(available)
        ),
        format!(
            "this machine holds {fits} hosts now; --no-agents makes hosts without agents, --force tries it all the same"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_carry_hosts_by_their_square() {
        for (processors, hosts) in [(1, 21), (2, 30), (8, 60), (139, 250)] {
            assert!(carry(processors, hosts), "{processors} {hosts}");
            assert!(hosts == 250 || !carry(processors, hosts + 1), "{processors} {hosts}");
        }
        let error = too_slow(40, 2);
        assert!(
            error.message.contains("2 processors") && error.hint.contains("30 hosts"),
            "{error}"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_does() {
        let meminfo = "MemTotal:       8000000 kB\nMemFree: 1 kB\nMemAvailable:    4000000 kB\n";
        assert_eq!(available(meminfo), Some(4_000_000));
        assert_eq!(available("MemFree: 1 kB"), None);
        assert!(needed(3) < 200_000 && needed(250) > needed(249));
        let error = too_large(250, 4_000_000);
        let fits: u8 = error.hint.split(' ').nth(3).unwrap().parse().unwrap();
        assert!(needed(fits) <= 4_000_000 && needed(fits + 1) > 4_000_000, "{error}");
        assert!(error.message.contains("3.8 GiB are free"), "{error}");
    }
}
