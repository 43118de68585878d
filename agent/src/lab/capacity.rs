//! Owns one question: whether the machine's memory holds a lab. Asked before anything of it is
//! made.

use super::plan::Plan;
use crate::api::{ApiError, ErrorCode};

/// What a host with an agent takes in a mesh of its own, in KiB.
const HOST_KIB: u64 = 40_000;
/// What it takes more for each other node: a connection, a session, records.
const PEER_KIB: u64 = 500;

/// Memory that a lab takes, in KiB, as it was measured with up to 40 hosts.
const fn needed(hosts: u8) -> u64 {
    let hosts = hosts as u64;
    hosts * (HOST_KIB + PEER_KIB * hosts)
}

/// Refuses a lab for which there is no memory.
pub(super) fn check(plan: &Plan) -> Result<(), ApiError> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available(&meminfo) {
        Some(available) if needed(plan.hosts) > available => Err(too_large(plan.hosts, available)),
        // Where the kernel does not tell, it is tried.
        _ => Ok(()),
    }
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
        format!("this machine holds {fits} hosts now; --no-agents makes hosts without agents"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
