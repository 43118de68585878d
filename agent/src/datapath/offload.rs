//! The offload backend: a TAP that hands over and takes super-frames of up to 64 KB
//! (`IFF_VNET_HDR`).
//!
//! Of what the kernel offers everything is asked for that it grants: checksums left open, TCP and,
//! since Linux 6.2, UDP segmentation. In front of each frame stands a `virtio_net_hdr` of 10 bytes.
//! Like every TAP it lives in the network namespace in which it was opened and ends with its
//! descriptors, one for each queue ([`super::steering`]).

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    libc,
    sys::uio::{readv, writev},
};
use tracing::debug;
use vxmesh_proto::frame::{
    coalesce::{Accepts, PARTS},
    vnet,
};

use super::{
    backend::{Backend, Grants},
    device::{Device, Received},
    steering::{self, Queues},
    tap::Stop,
};

/// Parts of one frame: headers and payloads; the virtio header goes before them.
const MAX_PARTS: usize = PARTS + 1;
/// The whole TUN driver is there or not: /dev/net/tun.
const CONTROL: &str = "/dev/net/tun";
/// Checksums and TCP segmentation, which every kernel of the last ten years grants.
const TCP: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP segmentation, since Linux 6.2.
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A TAP, frames without a header of the TUN driver's own but with that of virtio.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A TAP with a virtio header.
#[derive(Debug)]
pub struct OffloadTap {
    /// One for each queue.
    files: Vec<File>,
    stop: Stop,
    udp: bool,
}

impl OffloadTap {
    /// Makes the interface in the calling thread's network namespace, with up to so many queues.
    ///
    /// # Errors
    /// The kernel grants no offloads, there is no /dev/net/tun, the name is taken, or the rights
    /// are missing.
    pub fn open(name: &str, queues: Queues) -> io::Result<Self> {
        if queues.count() > 1
            && let Some(program) = steering::program(queues)
        {
            match Self::with_queues(name, queues.count(), program.as_fd()) {
                Ok(tap) => return Ok(tap),
                Err(error) => debug!(%error, "no TAP with several queues"),
            }
        }
        Self::with(vec![attach(name, FLAGS | libc::IFF_TUN_EXCL)?])
    }

    /// With as many queues as can be had.
    fn with_queues(name: &str, queues: usize, program: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = FLAGS | libc::IFF_MULTI_QUEUE;
        let first = attach(name, flags | libc::IFF_TUN_EXCL)?;
        ioctl::set_steering(&first, program)?;
        let others = (1..queues).map_while(|_| attach(name, flags).ok());
        Self::with([first].into_iter().chain(others).collect())
    }

    fn with(files: Vec<File>) -> io::Result<Self> {
        let first = files.first().ok_or(io::ErrorKind::NotFound)?;
        let udp = ioctl::set_offload(first, TCP | UDP).is_ok();
        if !udp {
            ioctl::set_offload(first, TCP)?;
        }
        Ok(Self { files, stop: Stop::default(), udp })
    }

    /// All queues take what is written; there is one at least.
    fn first(&self) -> io::Result<&File> {
        self.files.first().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// One queue of the interface.
fn attach(name: &str, flags: libc::c_int) -> io::Result<File> {
    let file =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CONTROL)?;
    ioctl::set_iff(&file, name, flags)?;
    ioctl::set_vnet_header(&file, vnet::LEN)?;
    Ok(file)
}

impl Device for OffloadTap {
    fn queues(&self) -> usize {
        self.files.len()
    }

    fn queue(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        self.files.get(queue).map(File::as_fd)
    }

    fn wait(&self) -> io::Result<bool> {
        self.stop.wait(self.first()?.as_fd())
    }

    fn recv(&self, queue: usize, buffer: &mut [u8]) -> io::Result<Received> {
        let mut vnet = vnet::PLAIN;
        let file = self.files.get(queue).ok_or(io::ErrorKind::NotFound)?;
        let read = readv(file, &mut [IoSliceMut::new(&mut vnet), IoSliceMut::new(buffer)])?;
        let len = read.checked_sub(vnet::LEN).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Received { vnet, len })
    }

    fn send(&self, vnet: &[u8; vnet::LEN], parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut all = [IoSlice::new(&[]); MAX_PARTS + 1];
        let all = all.get_mut(..=parts.len()).ok_or(io::ErrorKind::InvalidInput)?;
        for (to, from) in all.iter_mut().zip([IoSlice::new(vnet)].iter().chain(parts)) {
            *to = *from;
        }
        writev(self.first()?, all)?;
        Ok(())
    }

    fn accepts(&self) -> Accepts {
        Accepts { tcp4: true, tcp6: true, udp: self.udp }
    }

    fn grants(&self) -> Grants {
        let udp: &[&str] = if self.udp { &["uso4", "uso6"] } else { &[] };
        let queues: &[&str] = if self.files.len() > 1 { &["multi_queue"] } else { &[] };
        let tcp = ["csum", "tso4", "tso6", "tso_ecn"].iter();
        let offloads = tcp.chain(udp).chain(queues).copied().collect();
        Grants { backend: Backend::Offload, offloads }
    }

    fn stop(&self) {
        self.stop.stop();
    }
}

/// The calls of linux/if_tun.h.
mod ioctl {
    use super::{AsRawFd, BorrowedFd, File, io, libc};

    /// Makes the interface.
    #[expect(unsafe_code, reason = "ioctl(2) takes a pointer")]
    pub(super) fn set_iff(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: libc::c_short::from_ne_bytes(low_half(flags)),
            },
        };
        // The zero at the end stays.
        let room = request.ifr_name.split_last_mut().map(|(_zero, room)| room).unwrap_or_default();
        if name.len() > room.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in room.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, to which the pointer is.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        check(done)
    }

    /// Sets the length of the virtio header.
    #[expect(unsafe_code, reason = "ioctl(2) takes a pointer")]
    pub(super) fn set_vnet_header(file: &File, len: usize) -> io::Result<()> {
        let len = libc::c_int::try_from(len).map_err(io::Error::other)?;
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, to which the pointer is.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
        check(done)
    }

    /// Says what the reader of the TAP can do.
    #[expect(unsafe_code, reason = "ioctl(2) takes a number that nix's macro has no type for")]
    pub(super) fn set_offload(file: &File, offloads: libc::c_uint) -> io::Result<()> {
        let offloads = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) };
        check(done)
    }

    /// Has a program choose the queue of each frame.
    #[expect(unsafe_code, reason = "ioctl(2) takes a pointer")]
    pub(super) fn set_steering(file: &File, program: BorrowedFd<'_>) -> io::Result<()> {
        let program = program.as_raw_fd();
        let code = libc::_IOR::<libc::c_int>(u32::from(b'T'), 224);
        // SAFETY: TUNSETSTEERINGEBPF reads one `int`, to which the pointer is.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), code, &raw const program) };
        check(done)
    }

    fn check(done: libc::c_int) -> io::Result<()> {
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The flags are 16 bits in `ifreq`; `IFF_TUN_EXCL` is the highest.
    const fn low_half(flags: libc::c_int) -> [u8; 2] {
        let [.., a, b] = flags.to_be_bytes();
        if cfg!(target_endian = "big") { [a, b] } else { [b, a] }
    }
}
