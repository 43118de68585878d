//! Round trips: 64 bytes over UDP to and fro, one at a time, as fast as they return.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

const LEN: usize = 64;
/// Round trips that only warm caches and sessions up; fewer where there are few.
const WARM_UP: usize = 200;
/// After this an answer is lost.
const LOST: Duration = Duration::from_millis(200);

/// What a run of round trips took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Trips {
    pub(crate) count: usize,
    pub(crate) lost: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Answers each datagram with itself, for ever.
pub(crate) fn pong(port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(buffer.get(..len).unwrap_or_default(), from)?;
    }
}

/// Measures round trips for this long.
pub(crate) fn ping(to: SocketAddrV4, time: Duration) -> Result<Trips> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut took = Vec::new();
    let mut lost = 0;
    let begin = Instant::now();
    for number in 0_u64.. {
        let sent = Instant::now();
        if sent.duration_since(begin) > time {
            break;
        }
        match trip(&socket, number)? {
            true => took.push(sent.elapsed()),
            false => lost += 1,
        }
    }
    ensure!(!took.is_empty(), "{to} does not answer");
    took.drain(..WARM_UP.min(took.len() / 10));
    took.sort_unstable();
    let at = |per_cent: usize| {
        let took = took.get((took.len() - 1) * per_cent / 100).copied().unwrap_or_default();
        took.as_secs_f64() * 1e6
    };
    Ok(Trips { count: took.len(), lost, p50_us: at(50), p99_us: at(99) })
}

/// Whether the answer to this number came; late answers to others do not count.
fn trip(socket: &UdpSocket, number: u64) -> Result<bool> {
    let mut packet = [0; LEN];
    let (head, _) = packet.split_at_mut(8);
    head.copy_from_slice(&number.to_be_bytes());
    if socket.send(&packet).is_err() {
        return Ok(false); // An ICMP error of the last one.
    }
    let mut answer = [0; LEN];
    loop {
        match socket.recv(&mut answer) {
            Ok(_) if answer == packet => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_counted_and_ordered() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; LEN];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], from).unwrap();
            }
        });
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let trips = ping(to, Duration::from_millis(300)).unwrap();
        assert!(trips.count > 0 && 0.0 < trips.p50_us && trips.p50_us <= trips.p99_us, "{trips:?}");
    }

    #[test]
    fn one_round_trip_is_enough() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; LEN];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..len], from).unwrap();
            // The others get no answer, and no error either, while this lives.
            std::thread::park();
        });
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let trips = ping(to, Duration::from_millis(300)).unwrap();
        assert!(trips.count == 1 && trips.lost > 0, "{trips:?}");
    }

    #[test]
    fn silence_is_an_error() {
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, silent.local_addr().unwrap().port());
        assert!(ping(to, Duration::from_millis(1)).is_err());
    }
}
