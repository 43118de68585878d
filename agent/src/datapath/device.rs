//! What the workers need of a TAP, whatever backend drives it.

use std::{
    io::{self, IoSlice},
    os::fd::BorrowedFd,
};

use vxmesh_proto::frame::{coalesce::Accepts, vnet};

use super::backend::Grants;

/// The longest frame that a TAP gives: one maximal IP packet behind an Ethernet header, and room
/// for a tag.
pub const MAX_SUPER_FRAME: usize = 65_535 + 18;

/// A TAP of one network. Workers share it; no call needs a lock.
pub trait Device: Send + Sync + std::fmt::Debug {
    /// How many queues of frames it has. The frames of a flow are all in one; fragments of its
    /// packets may be in another.
    fn queues(&self) -> usize;

    /// What becomes readable when a queue has a frame.
    fn queue(&self, queue: usize) -> Option<BorrowedFd<'_>>;

    /// Waits for a frame in the first queue; false once [`stop`](Self::stop) was called.
    ///
    /// # Errors
    /// The device is gone.
    fn wait(&self) -> io::Result<bool>;

    /// Takes one frame of a queue into `buffer` without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn recv(&self, queue: usize, buffer: &mut [u8]) -> io::Result<Received>;

    /// Gives one frame, the parts one after another, to the kernel without waiting. `vnet` says how
    /// it is to be cut.
    ///
    /// # Errors
    /// The kernel does not take it.
    fn send(&self, vnet: &[u8; vnet::LEN], parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Which frames that stand for many packets the kernel takes here.
    fn accepts(&self) -> Accepts;

    /// What drives it, and what the kernel granted.
    fn grants(&self) -> Grants;

    /// Ends [`wait`](Self::wait), this one and all after it.
    fn stop(&self);
}

/// A frame that a device gave.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// What the kernel says of it.
    pub vnet: [u8; vnet::LEN],
    /// Its length.
    pub len: usize,
}
