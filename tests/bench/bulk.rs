//! TCP to or from several peers at once: all streams run before the clock does, and until it has
//! stopped.
//!
//! Programs that are started beside each other, each with a clock of its own, begin and end at
//! different times on a busy machine, and what the first and the last get of it alone would count
//! for all.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Bytes of one call, as iperf3's.
const CHUNK: usize = 128 << 10;
/// In which windows grow before anything is counted.
const RAMP: Duration = Duration::from_millis(500);
/// A peer that is not there after this is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// To the one who connects.
    In,
    /// From the one who connects.
    Out,
}

/// What all streams moved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// While the clock ran.
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// From the first stream's begin to the last one's end.
    pub(crate) all: u64,
}

impl Way {
    /// What a stream begins with.
    const fn mark(self) -> u8 {
        match self {
            Self::In => b'<',
            Self::Out => b'>',
        }
    }
}

/// Sends to whoever wants it, and takes from the others, for ever.
pub(crate) fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    loop {
        let (mut peer, _) = listener.accept()?;
        // Whoever goes away has what it wanted.
        thread::spawn(move || drop(answer(&mut peer)));
    }
}

fn answer(peer: &mut TcpStream) -> Result<()> {
    let mut mark = [0];
    peer.read_exact(&mut mark)?;
    let way = if mark == [Way::In.mark()] { Way::Out } else { Way::In };
    transfer(peer, way, &AtomicU64::new(0))
}

/// Moves bytes until the other end is gone.
fn transfer(peer: &mut TcpStream, way: Way, count: &AtomicU64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let moved = match way {
            Way::In => peer.read(&mut chunk)?,
            Way::Out => peer.write(&chunk)?,
        };
        if moved == 0 {
            return Ok(());
        }
        count.fetch_add(moved.try_into()?, Ordering::Relaxed);
    }
}

/// Connects to all, waits until bytes of all move, and counts for this long. What is sent counts
/// when the socket takes it.
pub(crate) fn run(peers: &[SocketAddrV4], way: Way, time: Duration) -> Result<Moved> {
    let mut streams = Vec::new();
    for peer in peers {
        let mut stream = TcpStream::connect_timeout(&(*peer).into(), PATIENCE)?;
        stream.write_all(&[way.mark()])?;
        streams.push((stream, AtomicU64::new(0)));
    }
    thread::scope(|scope| {
        for (stream, count) in &streams {
            let mut stream = stream.try_clone()?;
            scope.spawn(move || transfer(&mut stream, way, count));
        }
        let counted = count(&streams, time);
        for (stream, _) in &streams {
            // One that is closed already is what this wants.
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
        counted
    })
}

fn count(streams: &[(TcpStream, AtomicU64)], time: Duration) -> Result<Moved> {
    let begin = Instant::now();
    while streams.iter().any(|(_, count)| count.load(Ordering::Relaxed) == 0) {
        ensure!(begin.elapsed() < PATIENCE, "a stream does not move");
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(RAMP);
    let sum = || streams.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum::<u64>();
    let (before, begin) = (sum(), Instant::now());
    thread::sleep(time);
    let (all, seconds) = (sum(), begin.elapsed().as_secs_f64());
    Ok(Moved { bytes: all - before, seconds, all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_move_bytes_of_all_streams() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free.local_addr().unwrap().port());
        drop(free);
        thread::spawn(move || serve(to.port()).unwrap());
        let begin = Instant::now();
        while TcpStream::connect(to).is_err() {
            assert!(begin.elapsed() < PATIENCE);
        }
        for way in [Way::In, Way::Out] {
            let moved = run(&[to, to], way, Duration::from_millis(50)).unwrap();
            assert!(0 < moved.bytes && moved.bytes <= moved.all, "{way:?}: {moved:?}");
            assert!(moved.seconds >= 0.05, "{way:?}: {moved:?}");
        }
    }

    #[test]
    fn nobody_there_is_an_error() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, taken.local_addr().unwrap().port());
        drop(taken);
        assert!(run(&[to], Way::In, Duration::from_millis(1)).is_err());
    }
}
