//! A name server that behaves as a test wants: for what an agent does with answers, none, late ones
//! and forged ones.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::{
    netns::NetNs,
    traffic::{bind_udp, listen},
};

const TICK: Duration = Duration::from_millis(20);
const HEADER: usize = 12;

/// What it does with a question.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Says that the name has this address, for a minute.
    Answer(Ipv4Addr),
    /// The same after a while.
    Late(Ipv4Addr, Duration),
    /// Says that there is no such name.
    Deny,
    /// Says that it cannot answer.
    Fail,
    /// Says nothing.
    Silent,
    /// Sends the address with another id and with another question first, then none.
    Forge(Ipv4Addr),
    /// Has the address only over TCP.
    Long(Ipv4Addr),
    /// Has more addresses than it says over UDP, and nothing answers over TCP.
    Cut(Ipv4Addr),
    /// Refuses questions with EDNS by this code, and answers others.
    Plain(u8, Ipv4Addr),
    /// Says nothing to questions with EDNS, and answers others.
    Deaf(Ipv4Addr),
    /// Answers over TCP only.
    Stream(Ipv4Addr),
}

/// A name server that runs until dropped.
#[derive(Debug)]
pub struct Upstream {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    /// Serves at this address in a namespace.
    ///
    /// # Errors
    ///
    /// The address is not there or in use.
    pub fn start(netns: &NetNs, ip: IpAddr, manner: Manner) -> Result<Self> {
        let at = SocketAddr::new(ip, 53);
        let (udp, tcp) = netns.run(|| Ok((bind_udp(at)?, listen(at)?)))?;
        udp.set_read_timeout(Some(TICK))?;
        tcp.set_nonblocking(true)?;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (for_udp, for_tcp) = (Arc::clone(&stop), Arc::clone(&stop));
        let noted = Arc::clone(&seen);
        let threads = vec![
            thread::spawn(move || serve_udp(&udp, manner, &for_udp, &noted)),
            thread::spawn(move || serve_tcp(&tcp, manner, &for_tcp)),
        ];
        Ok(Self { stop, seen, threads })
    }

    /// The names that it was asked for over UDP, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic would have failed the test already.
            drop(thread.join());
        }
    }
}

fn serve_udp(socket: &UdpSocket, manner: Manner, stop: &AtomicBool, seen: &Mutex<Vec<String>>) {
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(question) = question(buffer.get(..len).unwrap_or_default()) else { continue };
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(name_of(question));
        let manner = match manner {
            // EDNS is the only further record that a question has.
            Manner::Plain(_, ip) | Manner::Deaf(ip) if question.get(11) == Some(&0) => {
                Manner::Answer(ip)
            }
            manner => manner,
        };
        for reply in replies(question, manner) {
            drop(socket.send_to(&reply, from));
        }
    }
}

fn serve_tcp(listener: &TcpListener, manner: Manner, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _from)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        let answer = || -> Option<()> {
            stream.set_nonblocking(false).ok()?;
            let mut len = [0; 2];
            stream.read_exact(&mut len).ok()?;
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut bytes).ok()?;
            let question = question(&bytes)?;
            let (Manner::Long(ip) | Manner::Stream(ip)) = manner else { return None };
            let reply = reply(question, 0, Some(ip));
            stream.write_all(&u16::try_from(reply.len()).ok()?.to_be_bytes()).ok()?;
            stream.write_all(&reply).ok()
        };
        // Whoever asked badly gets nothing.
        let _told = { answer }();
    }
}

/// Header and question of a message, without what follows.
fn question(bytes: &[u8]) -> Option<&[u8]> {
    let name = bytes.get(HEADER..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    bytes.get(..HEADER + end + 5)
}

fn name_of(question: &[u8]) -> String {
    let mut labels = Vec::new();
    let mut rest = question.get(HEADER..).unwrap_or_default();
    while let Some((len, after)) = rest.split_first().filter(|(len, _)| **len > 0) {
        let (label, next) = after.split_at_checked(usize::from(*len)).unwrap_or_default();
        labels.push(String::from_utf8_lossy(label).into_owned());
        rest = next;
    }
    labels.join(".")
}

fn replies(question: &[u8], manner: Manner) -> Vec<Vec<u8>> {
    match manner {
        Manner::Answer(ip) => vec![reply(question, 0, Some(ip))],
        Manner::Late(ip, wait) => {
            thread::sleep(wait);
            vec![reply(question, 0, Some(ip))]
        }
        Manner::Deny => vec![reply(question, 3, None)],
        Manner::Fail => vec![reply(question, 2, None)],
        Manner::Silent | Manner::Deaf(_) | Manner::Stream(_) => Vec::new(),
        Manner::Plain(code, _) => vec![reply(question, code, None)],
        Manner::Forge(ip) => {
            let mut other_id = reply(question, 0, Some(ip));
            if let Some(byte) = other_id.first_mut() {
                *byte ^= 1;
            }
            let mut other_name = reply(question, 0, Some(ip));
            if let Some(byte) = other_name.get_mut(HEADER + 1) {
                *byte ^= 1;
            }
            vec![other_id, other_name]
        }
        Manner::Long(_) | Manner::Cut(_) => {
            let ip = if let Manner::Cut(ip) = manner { Some(ip) } else { None };
            let mut cut = reply(question, 0, ip);
            if let Some(flags) = cut.get_mut(2) {
                *flags |= 2;
            }
            vec![cut]
        }
    }
}

/// A reply with this code, and with an address if the question is for one.
fn reply(question: &[u8], code: u8, ip: Option<Ipv4Addr>) -> Vec<u8> {
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let ip = ip.filter(|_| is_a);
    let mut reply = question.to_vec();
    if let Some(rest) = reply.get_mut(2..HEADER) {
        rest.copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, u8::from(ip.is_some()), 0, 0, 0, 0]);
    }
    if let Some(ip) = ip {
        // The name is where the question has it; an address of the Internet; 60 seconds; 4 bytes.
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(ip.octets());
    }
    reply
}
