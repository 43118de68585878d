//! Flows of datagrams: many at once, and when the first is answered.

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail, ensure};

/// Source ports of many flows begin here, and end at the last port.
const FIRST_PORT: u16 = 8_000;
/// Flows that are begun before the first answer is waited for.
const AT_ONCE: usize = 64;
const LOST: Duration = Duration::from_millis(100);
const TRIES: usize = 20;
/// Questions whose answers are still listened for.
const HEARD: usize = 64;
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// Begins so many flows, each of its own port, and has an answer on all.
pub(crate) fn open(to: SocketAddrV4, count: u16) -> Result<()> {
    ensure!(count <= u16::MAX - FIRST_PORT, "there are no {count} ports");
    let ports: Vec<u16> = (FIRST_PORT..FIRST_PORT + count).collect();
    for ports in ports.chunks(AT_ONCE) {
        let sockets = ports.iter().map(|port| bound(*port, to)).collect::<io::Result<Vec<_>>>()?;
        let mut open: Vec<&UdpSocket> = sockets.iter().collect();
        for _ in 0..TRIES {
            for socket in &open {
                socket.send(b"flow")?;
            }
            open.retain(|socket| socket.recv(&mut [0; 64]).is_err());
            if open.is_empty() {
                break;
            }
        }
        ensure!(open.is_empty(), "{} flows of {} have no answer", open.len(), ports.len());
    }
    Ok(())
}

fn bound(port: u16, to: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LOST))?;
    Ok(socket)
}

/// Asks with one new flow after another until there is an answer, and says when that came, in
/// seconds since 1970. Says "asking" first.
#[expect(clippy::print_stdout, reason = "whoever started it waits for the word")]
pub(crate) fn answered(to: SocketAddrV4) -> Result<f64> {
    println!("asking");
    io::stdout().flush()?;
    let begin = Instant::now();
    let mut asked = VecDeque::new();
    while begin.elapsed() < PATIENCE {
        if ask(to, &mut asked)? {
            return Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
        }
    }
    bail!("{to} does not answer")
}

/// Asks until many questions in a row have had no answer.
pub(crate) fn silent(to: SocketAddrV4) -> Result<()> {
    let begin = Instant::now();
    let (mut asked, mut in_vain) = (VecDeque::new(), 0);
    while in_vain < 2 * HEARD {
        ensure!(begin.elapsed() < PATIENCE, "{to} goes on answering");
        in_vain = if ask(to, &mut asked)? { 0 } else { in_vain + 1 };
    }
    Ok(())
}

/// Asks once more; whether there is an answer to one of the last questions.
fn ask(to: SocketAddrV4, asked: &mut VecDeque<UdpSocket>) -> Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    socket.send(b"anybody")?;
    asked.push_back(socket);
    if asked.len() > HEARD {
        asked.pop_front();
    }
    thread::sleep(PAUSE);
    // An ICMP error is no answer.
    Ok(asked.iter().any(|socket| socket.recv(&mut [0; 64]).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pingpong;

    #[test]
    fn who_answers_later_is_heard() {
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free);
        thread::spawn(move || pingpong::pong(free));
        assert!(answered(to).unwrap() > 0.0);
    }
}
