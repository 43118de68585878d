//! Datagrams that the kernel lost because the thread that receives did not take them in time
//! ([`Overruns`]).

use std::{
    io, mem,
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

/// What one socket had lost when it was asked last.
#[derive(Debug, Default)]
pub(super) struct Overruns(Mutex<u32>);

impl Overruns {
    /// Counts what its socket lost since.
    pub(super) fn count(&self, socket: BorrowedFd<'_>, drops: &Drops) {
        match self.next(socket) {
            Ok(0) => {}
            Ok(lost) => drops.add(DropKey::of(DropReason::UnderlayOverrun), lost.into()),
            Err(error) => debug!(%error, "a socket does not say what it lost"),
        }
    }

    /// How many datagrams its socket lost since. A train that the kernel had glued together counts
    /// as one.
    fn next(&self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        // Who asks at the same time waits: the kernel's count only grows.
        let mut before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        Ok(lost.wrapping_sub(mem::replace(&mut *before, lost)))
    }
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
