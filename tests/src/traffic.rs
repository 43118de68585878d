//! Traffic between sandboxes that shows what arrived: echo servers and those who ask them, ping,
//! and raw frames.
//!
//! Every payload carries [`MARKER`], so that a capture of the underlay could tell it.

use std::{
    io::{self, Read, Write},
    net::{
        IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
    },
    os::fd::AsRawFd,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use data_encoding::HEXLOWER;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket},
};

use crate::{
    lab::{DEADLINE, MARKER},
    netns::NetNs,
    program::{command, printed},
};

/// The port of echo servers.
pub const ECHO: u16 = 7;
/// How long an answer may take; nothing is sent twice in this time.
const PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(20);

/// A server for TCP and UDP over both IP versions that sends back what it gets.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Echo {
    /// Serves in a namespace until dropped.
    ///
    /// # Errors
    ///
    /// The port is taken.
    pub fn start(netns: &NetNs) -> Result<Self> {
        Self::start_on(netns, ECHO)
    }

    /// As [`Echo::start`], on another port.
    ///
    /// # Errors
    ///
    /// The port is taken.
    pub fn start_on(netns: &NetNs, port: u16) -> Result<Self> {
        let (tcp, udp) = netns.run(|| {
            let any = (Ipv6Addr::UNSPECIFIED, port);
            Ok((listen(any)?, UdpSocket::bind(any)?))
        })?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (for_tcp, for_udp) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads = vec![
            thread::spawn(move || serve_tcp(&tcp, &for_tcp)),
            thread::spawn(move || serve_udp(&udp, &for_udp)),
        ];
        Ok(Self { stop, threads })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that broke off is noticed by those whom it did not answer.
            drop(thread.join());
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _from)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut all = Vec::new();
                stream.read_to_end(&mut all)?;
                stream.write_all(&all)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                socket.send_to(buffer.get(..len).unwrap_or_default(), from)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends a payload of several segments to an echo server over TCP and compares the answer.
///
/// # Errors
///
/// No connection, or another answer.
pub fn ask_tcp(from: &NetNs, to: IpAddr) -> Result<()> {
    let sent = payload(10_000);
    let got = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, ECHO), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&sent)?;
        stream.shutdown(Shutdown::Write)?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        Ok(got)
    });
    ensure!(got.with_context(|| format!("TCP to {to}"))? == sent, "TCP to {to}: another answer");
    Ok(())
}

/// Sends one datagram to an echo server and compares the answer.
///
/// # Errors
///
/// No answer, or another one.
pub fn ask_udp(from: &NetNs, to: IpAddr) -> Result<()> {
    let sent = payload(1200);
    let got = from.run(|| {
        let socket = udp_to(to, ECHO)?;
        socket.send(&sent)?;
        let mut got = vec![0; 2000];
        let len = socket.recv(&mut got)?;
        got.truncate(len);
        Ok(got)
    });
    ensure!(got.with_context(|| format!("UDP to {to}"))? == sent, "UDP to {to}: another answer");
    Ok(())
}

/// A socket of the calling thread's namespace that talks to one address.
///
/// # Errors
///
/// There is no way there.
pub fn udp_to(to: IpAddr, port: u16) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((to, port))?;
    Ok(socket)
}

/// Listens at an address.
///
/// # Errors
/// It is taken, or not this host's.
pub fn listen(at: impl ToSocketAddrs + Copy) -> io::Result<TcpListener> {
    once_free(|| TcpListener::bind(at))
}

/// The same for datagrams.
///
/// # Errors
/// It is taken, or not this host's.
pub fn bind_udp(at: impl ToSocketAddrs + Copy) -> io::Result<UdpSocket> {
    once_free(|| UdpSocket::bind(at))
}

/// A process that another test starts has a copy of a socket that was closed here until it executes
/// its program, so a port may be taken for a moment yet.
fn once_free<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(Duration::from_millis(5));
            }
            bound => return bound,
        }
    }
}

/// So many pings of 56 bytes each, every one of them answered.
///
/// # Errors
///
/// One was not.
pub fn ping(from: &NetNs, to: IpAddr, count: u32) -> Result<()> {
    let (count, pattern) = (count.to_string(), HEXLOWER.encode(MARKER));
    let output = from.run(|| {
        let mut ping = command("ping");
        ping.args(["-n", "-q", "-i", "0.01", "-W", "5", "-c", &count, "-p", &pattern]);
        Ok(ping.arg(to.to_string()).stdin(Stdio::null()).output()?)
    })?;
    let said = printed(&format!("ping {to}"), output)?;
    ensure!(said.contains(" 0% packet loss"), "ping {to}: {said}");
    Ok(())
}

/// Puts a frame on an interface as it is.
///
/// # Errors
///
/// There is no such interface, or it is down.
pub fn send_frames(netns: &NetNs, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
    netns.run(|| {
        let link = getifaddrs()?
            .filter(|entry| entry.interface_name == interface)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .with_context(|| format!("no interface {interface}"))?;
        let raw = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        for frame in frames {
            sendto(raw.as_raw_fd(), frame, &link, MsgFlags::empty())?;
        }
        Ok(())
    })
}

/// Sends datagrams from a namespace to a port, each as it is.
///
/// # Errors
///
/// There is no way there.
pub fn send_datagrams(netns: &NetNs, to: SocketAddr, datagrams: &[Vec<u8>]) -> Result<()> {
    netns.run(|| {
        let socket = udp_to(to.ip(), to.port())?;
        for datagram in datagrams {
            socket.send(datagram)?;
        }
        Ok(())
    })
}

/// Bytes with the marker all over.
#[must_use]
pub fn payload(len: usize) -> Vec<u8> {
    MARKER.iter().copied().cycle().take(len).collect()
}
