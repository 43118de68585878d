//! Owns a TCP connection from one sandbox to another, made without any program inside them.
//!
//! A socket belongs to the network namespace in which it was opened (network_namespaces(7)), so
//! that a thread that visits a sandbox for a moment can use the kernel's TCP there. Every byte that
//! arrives is compared.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 * 1024;

/// How much is sent: until one of these is reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub bytes: u64,
    pub time: Duration,
}

/// What arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub bytes: u64,
    pub took: Duration,
}

impl Arrived {
    /// Megabits in a second.
    pub(super) fn mbit(self) -> u64 {
        let us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(8) / us
    }
}

/// Listens in the calling thread's network namespace.
pub(super) fn listen(ip: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind((ip, 0))
}

/// Connects from the calling thread's network namespace.
pub(super) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, PATIENCE)
}

/// Sends a text over and over, takes it at the other end, and fails unless what arrives is what was
/// sent.
pub(super) fn transfer(
    mut sender: TcpStream,
    listener: &TcpListener,
    text: &[u8],
    limit: Limit,
) -> io::Result<Arrived> {
    let (receiver, _from) = listener.accept()?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    sender.set_write_timeout(Some(PATIENCE))?;
    let chunk: Vec<u8> =
        text.iter().copied().cycle().take(CHUNK / text.len() * text.len()).collect();
    let start = Instant::now();
    let (sent, received) = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(receiver, &chunk));
        let sent = send(&mut sender, &chunk, limit, start);
        (sent, receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (sent, received) = (sent?, received?);
    if sent != received {
        return Err(io::Error::other(format!("{sent} bytes were sent, {received} arrived")));
    }
    Ok(Arrived { bytes: received, took: start.elapsed() })
}

fn send(to: &mut TcpStream, chunk: &[u8], limit: Limit, start: Instant) -> io::Result<u64> {
    let mut sent = 0;
    while sent < limit.bytes && start.elapsed() < limit.time {
        to.write_all(chunk)?;
        sent += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
    }
    to.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive(mut from: TcpStream, chunk: &[u8]) -> io::Result<u64> {
    let mut buffer = vec![0; chunk.len()];
    let (mut total, mut at) = (0, 0);
    loop {
        // Never across the end of a chunk, so that one comparison is enough.
        let room = buffer.get_mut(at..).unwrap_or_default();
        let len = match from.read(room) {
            Ok(0) => return Ok(total),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.get(at..at + len) != chunk.get(at..at + len) {
            return Err(io::Error::other("what arrived is not what was sent"));
        }
        total += u64::try_from(len).unwrap_or(u64::MAX);
        at = (at + len) % chunk.len();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn all_of_it_arrives() {
        let listener = listen(Ipv4Addr::LOCALHOST.into()).unwrap();
        let sender = connect(listener.local_addr().unwrap()).unwrap();
        let limit = Limit { bytes: 1_000_000, time: PATIENCE };
        let arrived = transfer(sender, &listener, b"seven b", limit).unwrap();
        assert!(arrived.bytes >= 1_000_000 && arrived.bytes < 1_000_000 + 65_536);
    }

    #[test]
    fn a_wrong_byte_is_noticed() {
        let listener = listen(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut sender = connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        sender.write_all(b"abcabcabX").unwrap();
        drop(sender);
        assert!(receive(receiver, b"abc").is_err());
    }

    #[test]
    fn megabits() {
        let arrived = Arrived { bytes: 1_250_000, took: Duration::from_millis(100) };
        assert_eq!(arrived.mbit(), 100);
        assert_eq!(Arrived { bytes: 1, took: Duration::ZERO }.mbit(), 8);
    }
}
