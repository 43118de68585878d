//! Datagrams that the kernel lost because the thread that receives did not take them in time
//! ([`Overruns`]).
//!
//! What a socket lost contains datagrams with a bad checksum, too. How many of all sockets of the
//! namespace were lost for want of room is a count of its own (RFC 4113 has it as an error), and a
//! socket lost no more than that. Where another socket loses some meanwhile, those with a bad
//! checksum may count after all.

use std::{
    fs, io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Mutex, PoisonError},
};

use nix::{errno::Errno, libc};
use tracing::debug;
use vxmesh_proto::reason::DropReason;

use super::drops::{DropKey, Drops};

/// asm-generic/socket.h: what a socket uses of memory, and as the last number what it lost.
const SO_MEMINFO: libc::c_int = 55;
const MEMINFO_LEN: usize = 9;

/// The counts of the calling thread's namespace, of IPv4 and of IPv6.
const COUNTS: [&str; 2] = ["/proc/thread-self/net/snmp", "/proc/thread-self/net/snmp6"];
/// Those of datagrams that found no room: in the socket's buffer, and in all of UDP's.
const NO_ROOM: [&str; 2] = ["RcvbufErrors", "MemErrors"];

/// What one socket had lost when it was asked last.
#[derive(Debug)]
pub(super) struct Overruns(Mutex<Lost>);

#[derive(Debug, Default)]
struct Lost {
    /// Of the socket.
    socket: u32,
    /// For want of room, of all sockets: read before that, so that it contains no less. Unknown
    /// where the kernel does not say.
    no_room: Option<u64>,
}

impl Overruns {
    /// Of a socket that was just made.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Lost { socket: 0, no_room: no_room() }))
    }

    /// Counts what its socket lost since.
    pub(super) fn count(&self, socket: BorrowedFd<'_>, drops: &Drops) {
        match self.next(socket) {
            Ok(0) => {}
            Ok(lost) => drops.add(DropKey::of(DropReason::UnderlayOverrun), lost.into()),
            Err(error) => debug!(%error, "a socket does not say what it lost"),
        }
    }

    /// How many datagrams its socket lost for want of room since. A train that the kernel had glued
    /// together counts as one.
    fn next(&self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        // Who asks at the same time waits: the kernel's counts only grow.
        let mut before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = no_room();
        let lost = lost(socket)?;
        let since = lost.wrapping_sub(mem::replace(&mut before.socket, lost));
        let room = mem::replace(&mut before.no_room, begun);
        let most = no_room().zip(room).map(|(now, then)| now.saturating_sub(then));
        Ok(most.map_or(since, |most| since.min(u32::try_from(most).unwrap_or(u32::MAX))))
    }
}

/// What a socket lost, for whatever reason.
fn lost(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0u32; MEMINFO_LEN];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or_default();
    #[expect(unsafe_code, reason = "neither nix nor socket2 has the option")]
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes to `info`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    Errno::result(done)?;
    let [.., lost] = info;
    Ok(lost)
}

/// How many datagrams found no room in this namespace.
fn no_room() -> Option<u64> {
    let [v4, v6] = COUNTS.map(fs::read_to_string);
    // A host without IPv6 has no such counts.
    Some(of_v4(&v4.ok()?)? + of_v6(&v6.unwrap_or_default()))
}

/// Two lines begin with the protocol: the names, and the numbers.
fn of_v4(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, counts) = (lines.next()?.split(' '), lines.next()?.split(' '));
    let counted = names.zip(counts).filter(|(name, _)| NO_ROOM.contains(name));
    Some(counted.filter_map(|(_, count)| count.parse::<u64>().ok()).sum())
}

/// Each line is a name and a number.
fn of_v6(text: &str) -> u64 {
    let lines = text.lines().filter_map(|line| line.strip_prefix("Udp6"));
    let counts = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|name| NO_ROOM.contains(name))?;
        words.next()?.parse::<u64>().ok()
    });
    counts.sum()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, SocketAddr},
        time::{Duration, Instant},
    };

    use vxmesh_proto::frame::ecn::Ecn;

    use super::*;
    use crate::datapath::udp::UdpIo;

    const V4: &str = "Tcp: A B\nTcp: 1 2\nUdp: InDatagrams RcvbufErrors InCsumErrors MemErrors\nUdp: 9 40 7 2\nUdpLite: RcvbufErrors\nUdpLite: 1000\n";
    const V6: &str =
        "Udp6RcvbufErrors \t500\nUdp6InCsumErrors 7\nUdp6MemErrors 3\nUdpLite6RcvbufErrors 9\n";

    #[test]
    fn of_the_counts_those_of_want_of_room_are_taken() {
        assert_eq!(of_v4(V4), Some(42));
        assert_eq!(of_v6(V6), 503);
        assert_eq!((of_v4("Tcp: A\nTcp: 1\n"), of_v6("")), (None, 0));
        // A kernel without the second one.
        assert_eq!(of_v4("Udp: RcvbufErrors\nUdp: 5\n"), Some(5));
        assert!(no_room().is_some(), "this kernel says it");
    }

    #[test]
    fn what_nobody_takes_is_counted_once() {
        // It keeps next to nothing of what comes.
        let (full, sender) = (UdpIo::bind_sender(0).unwrap(), UdpIo::bind(0).unwrap());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, full.local_addr().unwrap().port()));
        let drops = Drops::default();
        let count = || [&full, &sender].map(|socket| socket.count_overruns(&drops));
        count();
        assert_eq!(drops.rows(), []);
        for _ in 0..100 {
            sender.send(to, &[0; 1000], None, Ecn::NotEct).unwrap();
        }
        // A busy machine delivers them a moment later.
        let end = Instant::now() + Duration::from_secs(10);
        let lost = || drops.rows().iter().map(|(_, lost)| *lost).sum::<u64>();
        while lost() < 80 && Instant::now() < end {
            count();
        }
        assert!((80..=100).contains(&lost()), "{:?}", drops.rows());
        let [(key, _)] = drops.rows()[..] else { panic!("{:?}", drops.rows()) };
        assert_eq!(key, DropKey::of(DropReason::UnderlayOverrun));
        for _again in 0..10 {
            count();
        }
        assert!(lost() <= 100, "{:?}", drops.rows());
    }
}
