//! What the workers need of a TAP, whatever backend drives it.

use std::io;

/// A TAP of one network. Workers share it; no call needs a lock.
pub trait Device: Send + Sync + std::fmt::Debug {
    /// Waits for a frame; false once [`stop`](Self::stop) was called.
    ///
    /// # Errors
    /// The device is gone.
    fn wait(&self) -> io::Result<bool>;

    /// Takes one frame into `buffer` without waiting and says how long it is.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Gives one frame to the kernel without waiting.
    ///
    /// # Errors
    /// The kernel does not take it.
    fn send(&self, frame: &[u8]) -> io::Result<()>;

    /// Ends [`wait`](Self::wait), this one and all after it.
    fn stop(&self);
}
