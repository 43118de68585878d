//! The baseline backend: the tun-tap crate, one frame per call, works on every kernel.
//!
//! The TAP has no virtio header and asks for no offload, so the kernel cuts super-frames into
//! packets and completes their checksums before they are read. It lives in the network namespace in
//! which it was opened and ends with its descriptor.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tun_tap::{Iface, Mode};
use vxmesh_proto::frame::{coalesce::Accepts, vnet};

use super::{
    backend::{Backend, Grants},
    device::{Device, Received},
};

/// A TAP driven by the tun-tap crate.
pub struct Tap {
    iface: Iface,
    stop: Stop,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("name", &self.iface.name()).finish_non_exhaustive()
    }
}

impl Tap {
    /// Makes the interface in the calling thread's network namespace.
    ///
    /// # Errors
    /// There is no /dev/net/tun, the name is taken, or the rights are missing.
    pub fn open(name: &str) -> io::Result<Self> {
        let iface = Iface::without_packet_info(name, Mode::Tap)?;
        iface.set_non_blocking()?;
        Ok(Self { iface, stop: Stop::default() })
    }

    #[expect(unsafe_code, reason = "tun-tap gives no safe borrow of its descriptor")]
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self.iface`, which the borrow keeps alive.
        unsafe { BorrowedFd::borrow_raw(self.iface.as_raw_fd()) }
    }
}

impl Device for Tap {
    fn queues(&self) -> usize {
        1
    }

    fn queue(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        (queue == 0).then(|| self.fd())
    }

    fn wait(&self) -> io::Result<bool> {
        self.stop.wait(self.fd())
    }

    fn recv(&self, _only: usize, buffer: &mut [u8]) -> io::Result<Received> {
        Ok(Received { vnet: vnet::PLAIN, len: self.iface.recv(buffer)? })
    }

    fn send(&self, vnet: &[u8; vnet::LEN], parts: &[IoSlice<'_>]) -> io::Result<()> {
        match parts {
            [frame] if *vnet == vnet::PLAIN => self.iface.send(frame).map(|_sent| ()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn accepts(&self) -> Accepts {
        Accepts::default()
    }

    fn grants(&self) -> Grants {
        Grants { backend: Backend::TunTap, offloads: Vec::new() }
    }

    fn stop(&self) {
        self.stop.stop();
    }
}

/// Ends the wait for frames of one TAP. Most TAPs are read by workers that wait for many at once,
/// so its descriptor is made for who waits here.
#[derive(Debug, Default)]
pub(super) struct Stop(OnceLock<EventFd>);

impl Stop {
    /// Waits for a frame; false once [`stop`](Self::stop) was called.
    pub(super) fn wait(&self, tap: BorrowedFd<'_>) -> io::Result<bool> {
        let stop = self.event()?;
        let mut fds =
            [PollFd::new(tap, PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [_tap, stop] = &fds;
        Ok(!stop.any().unwrap_or(false))
    }

    /// Ends this wait and all after it.
    pub(super) fn stop(&self) {
        if let Err(error) = self.event().and_then(|event| Ok(event.write(1)?)) {
            tracing::error!(%error, "the worker of a TAP cannot be told to stop");
        }
    }

    fn event(&self) -> io::Result<&EventFd> {
        if let Some(event) = self.0.get() {
            return Ok(event);
        }
        let made = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        // That of who was here first stands.
        Ok(self.0.get_or_init(|| made))
    }
}
