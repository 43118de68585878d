//! Owns a look at packets as they pass: an AF_PACKET socket (packet(7)) in one network namespace,
//! on all of its interfaces.
//!
//! Counts each packet where it arrives, not again where it leaves, and looks for a text in it. It
//! keeps one packet to show: the first that has the text, else the biggest. Refuses nothing: what
//! it sees is what the kernel carries.

use std::{
    fmt::Write as _,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt,
            socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// A packet that leaves: `PACKET_OUTGOING` of linux/if_packet.h.
const OUTGOING: u8 = 4;
/// A super-frame with its header.
const ROOM: usize = 1 << 17;
/// What the kernel keeps while this process does not run: some thousand packets.
const KERNEL_BUFFER: usize = 32 << 20;
/// How soon the capture notices that it shall end.
const PATIENCE_MS: i64 = 50;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// All packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The packets in which the text stands.
    pub with_text: u64,
    /// One of them, or else the biggest packet.
    pub sample: Vec<u8>,
}

impl Seen {
    fn note(&mut self, packet: &[u8], text: &[u8]) {
        self.packets += 1;
        self.bytes += u64::try_from(packet.len()).unwrap_or(u64::MAX);
        if packet.windows(text.len()).any(|window| window == text) {
            if self.with_text == 0 {
                self.sample = packet.to_vec();
            }
            self.with_text += 1;
        } else if self.with_text == 0 && packet.len() > self.sample.len() {
            self.sample = packet.to_vec();
        }
    }
}

/// Opens the socket, in the network namespace of the calling thread.
pub(super) fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    setsockopt(&fd, sockopt::RcvBufForce, &KERNEL_BUFFER)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(PATIENCE_MS))?;
    Ok(fd)
}

/// A capture that runs until it is asked for what it saw.
#[derive(Debug)]
pub(super) struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Seen>>,
}

impl Capture {
    /// Begins, and looks for this text.
    pub(super) fn start(fd: OwnedFd, text: &'static [u8]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let wanted = Arc::clone(&stop);
        Self { stop, thread: thread::spawn(move || run(&fd, text, &wanted)) }
    }

    /// Ends, after what has arrived already.
    pub(super) fn finish(self) -> io::Result<Seen> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn run(fd: &OwnedFd, text: &[u8], stop: &AtomicBool) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let mut buffer = vec![0; ROOM];
    loop {
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
            Ok((len, from)) => {
                if from.is_none_or(|from| from.pkttype() != OUTGOING) {
                    seen.note(buffer.get(..len).unwrap_or(&buffer), text);
                }
            }
            Err(Errno::EAGAIN) if stop.load(Ordering::Acquire) => return Ok(seen),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Some lines of a packet from this byte on, as `hexdump -C` shows them.
pub(super) fn hexdump(packet: &[u8], from: usize, lines: usize) -> Vec<String> {
    let rows = packet.get(from..).unwrap_or_default().chunks(16).take(lines).enumerate();
    rows.map(|(row, bytes)| {
        let mut line = format!("{:04x} ", from + row * 16);
        for (column, byte) in bytes.iter().enumerate() {
            let gap = if column == 8 { "  " } else { " " };
            // Writing to a string does not fail.
            let _written = write!(line, "{gap}{byte:02x}");
        }
        let text: String = bytes.iter().map(|byte| printable(*byte)).collect();
        format!("{line:<54}  |{text}|")
    })
    .collect()
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '.' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_found_wherever_it_stands() {
        let mut seen = Seen::default();
        for packet in ["", "abc", "xabc", "abcx", "ab", "ac bc", "a much longer packet"] {
            seen.note(packet.as_bytes(), b"abc");
        }
        assert_eq!((seen.packets, seen.with_text, seen.bytes), (7, 3, 38));
        assert_eq!(seen.sample, b"abc");
        let mut seen = Seen::default();
        seen.note(b"x", b"abc");
        seen.note(b"xyz", b"abc");
        assert_eq!((seen.with_text, seen.sample), (0, b"xyz".to_vec()));
    }

    #[test]
    fn lines_of_a_dump() {
        let packet: Vec<u8> = (0x30..0x52).chain([0xff]).collect();
        assert_eq!(
            hexdump(&packet, 0, 2),
            [
                "0000  30 31 32 33 34 35 36 37  38 39 3a 3b 3c 3d 3e 3f  |0123456789:;<=>?|",
                "0010  40 41 42 43 44 45 46 47  48 49 4a 4b 4c 4d 4e 4f  |@ABCDEFGHIJKLMNO|",
            ]
        );
        assert_eq!(
            hexdump(&packet, 32, 9),
            ["0020  50 51 ff                                          |PQ.|"]
        );
        assert!(hexdump(&packet, 35, 1).is_empty() && hexdump(&packet, 99, 1).is_empty());
    }
}
