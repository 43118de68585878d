//! Datagrams as fast as one sender makes them, and how many of them arrive.
//!
//! The receiver counts on a UDP port and tells the count over TCP on the port of the same number:
//! it begins anew with each connection and is asked by one byte.

use std::{
    io::{self, ErrorKind, IoSliceMut, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    errno::Errno,
    sys::{
        socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};
use serde::{Deserialize, Serialize};

/// Datagrams taken with one call.
const AT_ONCE: usize = 64;
const LONGEST: usize = 2048;
/// What the kernel keeps for the receiver while it is not running.
const RECEIVE_BUFFER: usize = 4 << 20;
/// A receiver that says nothing for this long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a flood.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Flooded {
    pub(crate) sent: u32,
    pub(crate) received: u32,
    pub(crate) seconds: f64,
}

/// Counts for ever.
pub(crate) fn drain(port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let count = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                // Whoever goes away early has said why.
                drop(
                    listener.accept().map_err(Into::into).and_then(|(peer, _)| tell(peer, &count)),
                );
            }
        });
        take(&socket, &count)
    })
}

fn tell(mut peer: TcpStream, count: &AtomicU64) -> Result<()> {
    count.store(0, Ordering::Relaxed);
    peer.write_all(&[0])?;
    peer.read_exact(&mut [0])?;
    peer.write_all(&count.load(Ordering::Relaxed).to_be_bytes())?;
    Ok(())
}

fn take(socket: &UdpSocket, count: &AtomicU64) -> Result<()> {
    let mut room = vec![0; AT_ONCE * LONGEST];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(AT_ONCE, None);
    loop {
        let mut slices: Vec<_> =
            room.chunks_mut(LONGEST).map(|slot| [IoSliceMut::new(slot)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, flags, None::<TimeSpec>) {
            Ok(came) => count.fetch_add(came.count().try_into()?, Ordering::Relaxed),
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
    }
}

/// What ends a flood before its time.
static TOLD: AtomicBool = AtomicBool::new(false);

/// The end of this program's input ends a flood.
pub(crate) fn listen() {
    thread::spawn(|| {
        // An error is an end, too.
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        TOLD.store(true, Ordering::Relaxed);
    });
}

/// Sends datagrams of `len` bytes for this long, or until it is told to end.
pub(crate) fn flood(to: SocketAddrV4, len: usize, time: Duration) -> Result<Flooded> {
    let mut receiver = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    receiver.read_exact(&mut [0])?;

    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let payload = vec![0x5a; len];
    let (mut sent, begin) = (0, Instant::now());
    while begin.elapsed() < time && !TOLD.load(Ordering::Relaxed) {
        for _ in 0..AT_ONCE {
            match socket.send(&payload) {
                Ok(_) => sent += 1,
                // The queue of the own interface is full, or an ICMP error of an earlier one.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    receiver.write_all(&[0])?;
    let mut count = [0; 8];
    receiver.read_exact(&mut count)?;
    let received = u32::try_from(u64::from_be_bytes(count))?;
    ensure!(received > 0, "nothing arrived at {to}");
    Ok(Flooded { sent, received, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_arrives() {
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        thread::spawn(move || drain(free).unwrap());
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free);
        let begin = Instant::now();
        let flooded = loop {
            match flood(to, 64, Duration::from_millis(100)) {
                Ok(flooded) => break flooded,
                Err(error) => assert!(begin.elapsed() < PATIENCE, "{error:#}"),
            }
        };
        assert!(flooded.received <= flooded.sent && flooded.seconds >= 0.1, "{flooded:?}");
    }
}
