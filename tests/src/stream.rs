//! Streams between sandboxes that are long, and compared: TCP by its SHA-256, UDP datagram by
//! datagram.

use std::{
    env,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use ring::{
    digest::{self, SHA256},
    rand::{SecureRandom, SystemRandom},
};

use crate::netns::NetNs;

const CHUNK: usize = 1 << 20;
/// A stream that stands still this long is broken: lost packets may be sent again a few times, each
/// time after twice as long.
const STALLED: Duration = Duration::from_secs(30);
/// Datagrams on the way before the sender looks how many have come.
const WINDOW: usize = 64;
/// What the kernel keeps for the receiver of datagrams.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Sequence number and length.
const DATAGRAM_HEADER: usize = 8;

/// How many bytes a stream has in tests: four of them are 64 MiB, and `VXMESH_FULL` makes each a
/// gigabyte.
#[must_use]
pub fn long() -> usize {
    if env::var_os("VXMESH_FULL").is_some() { 1 << 30 } else { 16 << 20 }
}

/// Sends random bytes to an address of another sandbox over TCP and compares the digests of both
/// ends; how long it took.
///
/// # Errors
///
/// There is no way there, the stream stands still, or other bytes arrive.
pub fn tcp(from: &NetNs, to: &NetNs, ip: IpAddr, len: usize) -> Result<Duration> {
    let what = format!("TCP to {ip}");
    let listener = to.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?))?;
    let port = listener.local_addr()?.port();
    let begin = Instant::now();
    let stream = from.run(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(ip, port), STALLED)?));
    let stream = stream.with_context(|| what.clone())?;
    let (server, _from) = listener.accept()?;
    Stream::start(stream, server, (len, len))?.end().with_context(|| what)?;
    Ok(begin.elapsed())
}

/// Random bytes on their way from one end of a connection to the other.
#[derive(Debug)]
pub struct Stream {
    len: usize,
    may: Arc<AtomicUsize>,
    came: Arc<AtomicUsize>,
    sender: JoinHandle<Result<Vec<u8>>>,
    receiver: JoinHandle<Result<Vec<u8>>>,
}

impl Stream {
    /// Sends so many bytes, the first of them at once, and the others when they
    /// [may](Self::go_on) go.
    ///
    /// # Errors
    ///
    /// The sender has no connection any more.
    pub fn start(from: TcpStream, to: TcpStream, (len, first): (usize, usize)) -> Result<Self> {
        from.set_write_timeout(Some(STALLED))?;
        let (may, came): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        may.store(first, Ordering::Relaxed);
        let (until, count) = (Arc::clone(&may), Arc::clone(&came));
        let sender = thread::spawn(move || send(from, len, &until));
        let receiver = thread::spawn(move || receive(to, &count));
        Ok(Self { len, may, came, sender, receiver })
    }

    /// Has it go on, up to this byte.
    pub fn go_on(&self, to: usize) {
        self.may.store(to, Ordering::Relaxed);
    }

    /// How many bytes have come.
    #[must_use]
    pub fn came(&self) -> usize {
        self.came.load(Ordering::Relaxed)
    }

    /// Waits for all of it, and compares the digests of both ends.
    ///
    /// # Errors
    ///
    /// It broke off, or other bytes came.
    pub fn end(self) -> Result<()> {
        self.go_on(usize::MAX);
        let [sent, got] = [self.sender, self.receiver]
            .map(|end| end.join().map_err(|_panic| anyhow!("an end of the stream panicked"))?);
        let (sent, got) = (sent?, got?);
        let came = self.came.load(Ordering::Relaxed);
        ensure!(came == self.len, "{came} of {} bytes came", self.len);
        ensure!(sent == got, "other bytes came");
        Ok(())
    }
}

fn send(mut stream: TcpStream, len: usize, may: &AtomicUsize) -> Result<Vec<u8>> {
    let (random, mut digest) = (SystemRandom::new(), digest::Context::new(&SHA256));
    let (mut chunk, mut sent) = (vec![0; CHUNK], 0);
    while sent < len {
        let held = Instant::now();
        while sent >= may.load(Ordering::Relaxed) {
            ensure!(held.elapsed() < 4 * STALLED, "nobody lets it go on");
            thread::sleep(Duration::from_millis(1));
        }
        let part = chunk.get_mut(..CHUNK.min(len - sent)).unwrap_or_default();
        random.fill(part).ok().context("no random bytes")?;
        digest.update(part);
        stream.write_all(part)?;
        sent += part.len();
    }
    Ok(digest.finish().as_ref().to_vec())
}

fn receive(mut stream: TcpStream, came: &AtomicUsize) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(4 * STALLED))?;
    let mut digest = digest::Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(digest.finish().as_ref().to_vec());
        }
        came.fetch_add(read, Ordering::Relaxed);
        digest.update(chunk.get(..read).unwrap_or_default());
    }
}

/// Sends `count` datagrams of all lengths up to `longest` to an address of another sandbox and
/// looks at each that comes: nine of ten must, none changed and none twice. How many came.
///
/// # Errors
///
/// There is no way there, too few came, or one came that was not sent so.
pub fn udp(from: &NetNs, to: &NetNs, ip: IpAddr, count: usize, longest: usize) -> Result<usize> {
    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let receiver = to.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    setsockopt(&receiver.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    let port = receiver.local_addr()?.port();
    let sender = from.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, port))?;
        Ok(socket)
    })?;
    let came = AtomicUsize::new(0);
    let enough = |sent: usize| sent - sent / 10;
    let seen = thread::scope(|scope| {
        let taking = scope.spawn(|| take(&receiver, count, longest, &came));
        let flooded = flood(&sender, count, longest, |sent| {
            came.load(Ordering::Relaxed) + WINDOW >= enough(sent) || taking.is_finished()
        });
        // It tells the receiver that this was all, also after a failure.
        let told = end(&sender, &taking);
        let seen = joined(taking);
        flooded.and(told).and(seen)
    });
    let seen = seen.with_context(|| format!("UDP to {ip}"))?;
    ensure!(seen >= enough(count), "UDP to {ip}: {seen} of {count} datagrams came");
    Ok(seen)
}

fn flood(
    socket: &UdpSocket,
    count: usize,
    longest: usize,
    mut may_go_on: impl FnMut(usize) -> bool,
) -> Result<()> {
    for number in 0..count {
        socket.send(&datagram(number, longest))?;
        let end = Instant::now() + STALLED;
        while !may_go_on(number) {
            ensure!(Instant::now() < end, "after {number} datagrams no more come");
            thread::yield_now();
        }
    }
    Ok(())
}

/// Sends empty datagrams until the receiver has ended: some may get lost.
fn end<T>(socket: &UdpSocket, receiver: &ScopedJoinHandle<'_, T>) -> Result<()> {
    let end = Instant::now() + STALLED;
    while !receiver.is_finished() {
        ensure!(Instant::now() < end, "the receiver does not end");
        // Once it has ended an ICMP error comes back.
        drop(socket.send(&[]));
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn take(socket: &UdpSocket, count: usize, longest: usize, came: &AtomicUsize) -> Result<usize> {
    socket.set_read_timeout(Some(STALLED))?;
    let mut seen = vec![false; count];
    let mut buffer = vec![0; 1 << 16];
    loop {
        let len = socket.recv(&mut buffer)?;
        let Some(bytes) = buffer.get(..len).filter(|bytes| !bytes.is_empty()) else {
            return Ok(seen.into_iter().filter(|seen| *seen).count());
        };
        let number = bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let number = usize::try_from(number.context("a short datagram came")?)?;
        ensure!(*bytes == datagram(number, longest), "datagram {number} came changed");
        let seen = seen.get_mut(number).context("a datagram came that was not sent")?;
        ensure!(!std::mem::replace(seen, true), "datagram {number} came twice");
        came.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the number of a datagram decides.
fn datagram(number: usize, longest: usize) -> Vec<u8> {
    // Steps of a prime go through all lengths.
    let len = DATAGRAM_HEADER + number * 7919 % (longest.saturating_sub(DATAGRAM_HEADER) + 1);
    let low = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    let header = [low(number), low(len)].concat();
    let filler = (0_u8..251).cycle().skip(number % 251);
    header.into_iter().chain(filler).take(len).collect()
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_panic| anyhow!("the receiver panicked"))?
}
