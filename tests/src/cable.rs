//! A bad cable between two hosts of a lab: it loses, doubles and overtakes packets.
//!
//! It takes the place of the lab's bridge: two packet sockets (packet(7)) on the bridge's ports,
//! with the ports taken out of the bridge. Which packet meets which fate is drawn from a fixed
//! seed, so that a run can be repeated as far as the hosts send the same. (The kernel's own means,
//! netem, is missing from many kernels, and nftables can lose and double but not reorder.)

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::{
    lab::Lab,
    program::{command, printed},
};

/// Of a thousand packets.
const LOST: u64 = 10;
const DOUBLED: u64 = 10;
const OVERTAKEN: u64 = 20;
/// How many packets overtake one.
const OVERTAKERS: usize = 5;
/// A packet that nobody overtakes goes on after this long.
const PATIENCE_US: i64 = 2000;
/// What the kernel keeps for the cable: it must lose only what it decides to lose.
const BUFFER: usize = 32 << 20;
const LONGEST: usize = 1 << 16;

/// What became of the packets of both directions.
#[derive(Debug, Default)]
pub struct Fates {
    /// Packets that came to an end of the cable.
    pub seen: AtomicU64,
    /// Those that were lost.
    pub lost: AtomicU64,
    /// Those that arrived twice.
    pub doubled: AtomicU64,
    /// Those that others overtook.
    pub overtaken: AtomicU64,
}

/// The cable between h1 and h2; it is cut when this is dropped.
#[derive(Debug)]
pub struct BadCable {
    stop: Arc<AtomicBool>,
    fates: Arc<Fates>,
    threads: Vec<JoinHandle<()>>,
}

impl BadCable {
    /// Puts it between the two hosts of a lab, in place of the bridge. What crosses it are packets
    /// as a wire carries them: the hosts cut and sum them up before.
    ///
    /// # Errors
    ///
    /// The lab has other hosts, or the kernel refuses.
    pub fn between(lab: &Lab) -> Result<Self> {
        ensure!(lab.hosts() == ["h1", "h2"], "a cable has two ends");
        for host in lab.hosts() {
            let off = "ethtool -K eth0 tx off tso off gso off tx-udp-segmentation off";
            lab.sh(host, off)?;
        }
        let wire = lab.wire()?;
        let (one, other) = wire.run(|| {
            let ends = (end("h1")?, end("h2")?);
            for port in ["h1", "h2"] {
                let mut ip = command("ip");
                ip.args(["link", "set", port, "nomaster"]);
                printed("take the port out of the bridge", ip.output()?)?;
            }
            Ok(ends)
        })?;
        let (one, other) = (Arc::new(one), Arc::new(other));
        let (stop, fates) = (Arc::<AtomicBool>::default(), Arc::<Fates>::default());
        let directions = [(&one, &other, 1), (&other, &one, 2)];
        let threads = directions.map(|(from, to, seed)| {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let (stop, fates) = (Arc::clone(&stop), Arc::clone(&fates));
            let lot = Lot(seed);
            thread::spawn(move || carry(&from, &to, lot, &stop, &fates))
        });
        Ok(Self { stop, fates, threads: threads.into() })
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn fates(&self) -> &Fates {
        &self.fates
    }
}

impl Drop for BadCable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What went wrong on the way was seen by those who sent.
            drop(thread.join());
        }
    }
}

/// A socket for whatever comes to a port, of the calling thread's namespace.
fn end(port: &str) -> Result<OwnedFd> {
    let raw =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let link = getifaddrs()?
        .filter(|entry| entry.interface_name == port)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("no port {port}"))?;
    bind(raw.as_raw_fd(), &link)?;
    setsockopt(&raw, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(0, PATIENCE_US))?;
    Ok(raw)
}

fn carry(from: &OwnedFd, to: &OwnedFd, mut lot: Lot, stop: &AtomicBool, fates: &Fates) {
    let mut packet = vec![0; LONGEST];
    let mut held: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
    // A receiver whose queue is full loses packets, as on any cable.
    let pass = |packet: &[u8]| {
        let _sent = send(to.as_raw_fd(), packet, MsgFlags::empty());
    };
    let count = |counter: &AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    while !stop.load(Ordering::Relaxed) {
        let len = match recv(from.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => {
                held.drain(..).for_each(|(_, packet)| pass(&packet));
                continue;
            }
            Err(Errno::EINTR | Errno::ENETDOWN) => continue,
            Err(_gone) => return,
        };
        let packet = packet.get(..len).unwrap_or_default();
        count(&fates.seen);
        for (overtakers, _) in &mut held {
            *overtakers += 1;
        }
        match lot.draw() % 1000 {
            fate if fate < LOST => count(&fates.lost),
            fate if fate < LOST + DOUBLED => {
                count(&fates.doubled);
                pass(packet);
                pass(packet);
            }
            fate if fate < LOST + DOUBLED + OVERTAKEN => {
                count(&fates.overtaken);
                held.push_back((0, packet.to_vec()));
            }
            _ => pass(packet),
        }
        while held.front().is_some_and(|(overtakers, _)| *overtakers >= OVERTAKERS) {
            if let Some((_, packet)) = held.pop_front() {
                pass(&packet);
            }
        }
    }
}

/// Numbers that look random: xorshift64* (Vigna, "An experimental exploration of Marsaglia's
/// xorshift generators, scrambled").
struct Lot(u64);

impl Lot {
    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }
}
