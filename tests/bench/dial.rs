//! Connections one after another: how many can be begun in a second.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// Connections that the kernel accepts before the server does.
const BACKLOG: i32 = 1024;
/// Connections that are begun at the same time.
const CLIENTS: usize = 16;
/// One that is not answered for this long is lost.
const LOST: Duration = Duration::from_secs(3);

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Dialed {
    pub(crate) begun: u32,
    pub(crate) lost: u32,
}

/// Accepts connections and ends them at once, for ever.
pub(crate) fn greet(port: u16) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    loop {
        // Who went away early got no less.
        drop(listener.accept());
    }
}

/// Begins connections and counts those that ended within this time; each waits for its end before
/// the next is begun. The server ends them first, so that the client's ports are free again.
pub(crate) fn dial(to: SocketAddrV4, time: Duration) -> Result<Dialed> {
    let begin = Instant::now();
    let (begun, lost) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|clients| {
        for _ in 0..CLIENTS {
            clients.spawn(|| {
                while begin.elapsed() < time {
                    match is_greeted(to) {
                        true if begin.elapsed() < time => begun.fetch_add(1, Ordering::Relaxed),
                        true => break,
                        false => lost.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
    });
    let (begun, lost) = (begun.into_inner(), lost.into_inner());
    ensure!(begun > 0, "{to} does not answer");
    Ok(Dialed { begun, lost })
}

fn is_greeted(to: SocketAddrV4) -> bool {
    TcpStream::connect_timeout(&to.into(), LOST).is_ok_and(|mut connection| {
        connection.set_read_timeout(Some(LOST)).is_ok()
            && connection.read(&mut [0]).is_ok_and(|len| len == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_and_who_refuses_is_told() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
        thread::spawn(move || {
            loop {
                drop(listener.accept());
            }
        });
        let dialed = dial(to, Duration::from_millis(200)).unwrap();
        assert!(dialed.begun > 0 && dialed.lost == 0, "{dialed:?}");
    }

    #[test]
    fn nobody_there_is_an_error() {
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let nobody = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        assert!(dial(nobody, Duration::from_millis(10)).is_err());
    }
}
