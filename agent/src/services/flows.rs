//! The table of flows, in a file of the run directory that outlives the agent: connections go on
//! after it was killed or replaced. The directory is empty after the host's start, and flows of
//! another boot are not looked at.
//!
//! ```text
//! word 0   layout of the file ([`LAYOUTS`]); written last
//! word 1   words of the table: another version may have another shape
//! word 2   seed
//! word 3   epoch, in nanoseconds of the monotonic clock
//! word 4-5 boot id
//! word 8-  the table
//! ```

use std::{
    fs::{File, OpenOptions},
    io,
    num::NonZeroUsize,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    libc,
    sys::mman::{MapFlags, ProtFlags, mmap},
    time::{ClockId, clock_gettime},
};
use tracing::{info, warn};
use vxmesh_proto::lb::{Flows, flows::Shape};

/// The layouts that this program can read, of which it writes the last one. Whatever gives words of
/// the table another meaning gets a name of its own, so that a program which does not know it,
/// older or newer, begins with an empty table. In the first one no flow came in by another node
/// (`is_relayed`); else it is the same, and an upgrade goes on with its flows.
const LAYOUTS: [u64; 2] = [u64::from_be_bytes(*b"vxmflow1"), LAYOUT];
const LAYOUT: u64 = u64::from_be_bytes(*b"vxmflow2");
const HEADER: usize = 8;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where the file is.
pub(super) fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("flows")
}

/// The table of a file, or one that ends with the agent where the file cannot be used.
pub(super) fn open(path: &Path) -> Option<Flows> {
    match map(path) {
        Ok(words) => of_words(words),
        Err(error) => {
            warn!(
                %error, path = %path.display(),
                "connections to services will not outlive this agent; free some space and restart it"
            );
            let words: Box<[AtomicU64]> =
                (0..HEADER + Shape::FULL.words()).map(|_| AtomicU64::new(0)).collect();
            of_words(Box::leak(words))
        }
    }
}

/// The words of a file, which are zero if it is new or has another length.
fn map(path: &Path) -> io::Result<&'static [AtomicU64]> {
    let words = HEADER + Shape::FULL.words();
    let len = words * size_of::<AtomicU64>();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
    let wanted = u64::try_from(len).unwrap_or(u64::MAX);
    if file.metadata()?.len() != wanted {
        file.set_len(0)?;
        file.set_len(wanted)?;
    }
    // What is missing when it is written to would end the agent by SIGBUS.
    fallocate(&file, FallocateFlags::empty(), 0, i64::try_from(len).unwrap_or(i64::MAX))?;
    map_words(&file, words)
}

#[expect(unsafe_code, reason = "mmap(2), which has no safe form: the file could shrink")]
fn map_words(file: &File, words: usize) -> io::Result<&'static [AtomicU64]> {
    let len =
        NonZeroUsize::new(words * size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping aliases no memory of this process.
    let begin = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, file, 0)? };
    let begin = begin.cast::<AtomicU64>().as_ptr();
    // SAFETY: it is as long, never unmapped, and all of the file was allocated, which only root may
    // change. Other processes that have it write words as this one does. A page is aligned for any
    // word.
    Ok(unsafe { std::slice::from_raw_parts(begin, words) })
}

/// The table behind a header that fits, or a new one.
fn of_words(words: &'static [AtomicU64]) -> Option<Flows> {
    let (header, table) = words.split_at_checked(HEADER)?;
    let size = u64::try_from(Shape::FULL.words()).unwrap_or(u64::MAX);
    let boot = boot_id();
    let [boot_high, boot_low] = boot.as_slice() else { return None };
    let [layout, size_word, seed, epoch, high, low, ..] = header else { return None };
    let load = |word: &AtomicU64| word.load(Ordering::Acquire);
    let (clock, now) = (monotonic(), Instant::now());
    let age = clock.checked_sub(Duration::from_nanos(load(epoch)));
    let begun = age.and_then(|age| now.checked_sub(age));
    let fits = LAYOUTS.contains(&load(layout))
        && (*boot_high, *boot_low) != (0, 0)
        && load(size_word) == size
        && [load(high), load(low)] == [*boot_high, *boot_low];
    if let Some(begun) = begun.filter(|_| fits) {
        let flows = Flows::new(table, Shape::FULL, load(seed), begun)?;
        flows.restore(now);
        layout.store(LAYOUT, Ordering::Release);
        info!(flows = flows.count().open, "connections to services go on");
        return Some(flows);
    }
    layout.store(0, Ordering::Release);
    table.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    let nanos = u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX);
    let written = [size, rand::random(), nanos, *boot_high, *boot_low];
    for (word, value) in [size_word, seed, epoch, high, low].into_iter().zip(written) {
        word.store(value, Ordering::Relaxed);
    }
    layout.store(LAYOUT, Ordering::Release);
    Flows::new(table, Shape::FULL, load(seed), now)
}

/// The clock of [`Instant`].
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Which start of the host this is.
fn boot_id() -> Vec<u64> {
    let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default().replace('-', "");
    let number = u128::from_str_radix(text.trim(), 16).unwrap_or_default().to_be_bytes();
    number.as_chunks::<8>().0.iter().map(|half| u64::from_be_bytes(*half)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use vxmesh_proto::{
        addr::{EndpointId, NetworkId},
        lb::flows::Flow,
        wire::TCP,
    };

    use super::*;

    fn flow(port: u16) -> Flow {
        let at = |last, port| SocketAddr::from(([10, 0, 0, last], port));
        Flow {
            network: NetworkId::from_random([1; 16]),
            protocol: TCP,
            client: at(2, port),
            client_mac: "02:00:00:00:00:02".parse().unwrap(),
            vip: at(200, 80),
            backend: at(3, 8080),
            endpoint: EndpointId::from_random([3; 16]),
            seen_port: port,
            sees_vip: false,
            is_relayed: false,
        }
    }

    #[test]
    fn flows_outlive_the_agent_and_not_another_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let begin = |port| {
            let flows = open(&path).unwrap();
            flows.insert(&flow(port), 1, Instant::now()).map(drop).unwrap();
            flows.count().open
        };
        assert_eq!(begin(1000), 1);
        // Each opens the file as another process would.
        assert_eq!(begin(1001), 2);
        let header = map(&path).unwrap();
        header[4].store(0, Ordering::Relaxed);
        assert_eq!(begin(1002), 1, "of another boot");
        header[0].store(u64::from_be_bytes(*b"vxmflow3"), Ordering::Relaxed);
        assert_eq!(begin(1003), 1, "of a layout that is not known");
        header[0].store(LAYOUTS[0], Ordering::Relaxed);
        assert_eq!(begin(1004), 2, "of a layout before");
        assert_eq!(header[0].load(Ordering::Relaxed), LAYOUT, "who knows only that begins anew");
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(begin(1005), 1, "no table");
        let nowhere = dir.path().join("none/flows");
        assert!(open(&nowhere).is_some(), "without a file it works, too");
    }
}
