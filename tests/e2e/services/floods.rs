//! Sandboxes that begin flows to a service all the time, from all ports: an established connection
//! goes on, others still get new ones, and what is refused is counted.

use std::{
    fs,
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind,
        sendmmsg, socket,
    },
};
use vxmesh::api::{DropRow, Network, Service};
use vxmesh_proto::lb::service_mac;
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, tell, wait_until},
    netns::NetNs,
    outside::sh,
    traffic::payload,
};

use super::{
    clients::{Client, connect, echo, serve},
    settled,
};
use crate::isolation::forgeries::Party;

/// Frames of one call.
const BATCH: usize = 64;
/// From the source port on: the low half of a SYN's sequence number, and the first bytes of a
/// datagram.
const SEQUENCE_AT: usize = 6;
const DATA_AT: usize = 8;
/// What the agent may need more while it is flooded, in kB, beside the mapped table of flows.
const GROWTH: u64 = 64 << 10;

/// Frames that differ by their source ports.
struct Flood {
    ends: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    since: Instant,
    sender: JoinHandle<Result<()>>,
}

impl Flood {
    /// Sends a frame with every source port in turn, as fast as it can.
    fn start(from: &NetNs, frame: Frame) -> Result<Self> {
        let (ends, sent): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let (end, count) = (Arc::clone(&ends), Arc::clone(&sent));
        let netns = from.try_clone()?;
        let sender = thread::spawn(move || netns.run(|| flood(&frame, &end, &count)));
        Ok(Self { ends, sent, since: Instant::now(), sender })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it. How many frames it sent in a second.
    fn end(self) -> Result<u64> {
        self.ends.store(true, Ordering::Relaxed);
        let millis = u64::try_from(self.since.elapsed().as_millis())?.max(1);
        self.sender.join().ok().context("the sender panicked")??;
        Ok(self.sent.load(Ordering::Relaxed) * 1000 / millis)
    }
}

/// A frame from port 0. Its checksum is right with every other, too.
struct Frame {
    bytes: Vec<u8>,
    source_port_at: usize,
    /// What makes the checksum even.
    even_at: usize,
}

fn flood(frame: &Frame, ends: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let raw =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let link = getifaddrs()?
        .filter(|entry| entry.interface_name == "eth0")
        .find_map(|entry| entry.address?.as_link_addr().copied());
    bind(raw.as_raw_fd(), &link.context("no eth0")?)?;
    let mut frames = vec![frame.bytes.clone(); BATCH];
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
    let mut port: u16 = 0;
    while !ends.load(Ordering::Relaxed) {
        for bytes in &mut frames {
            // Below are those of servers, which the rules of the port know.
            port = port.wrapping_add(1).max(1024);
            for (at, word) in [(frame.source_port_at, port), (frame.even_at, !port)] {
                bytes.get_mut(at..at + 2).context("short")?.copy_from_slice(&word.to_be_bytes());
            }
        }
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|it| [IoSlice::new(it)]).collect();
        let to = [None; BATCH];
        match sendmmsg(raw.as_raw_fd(), &mut headers, &slices, to, [], MsgFlags::empty()) {
            Ok(all) => sent.fetch_add(u64::try_from(all.count())?, Ordering::Relaxed),
            Err(Errno::ENOBUFS | Errno::EAGAIN) => 0,
            Err(error) => bail!("{error}"),
        };
    }
    Ok(())
}

/// A packet to the VIP, and where what is in it begins.
fn begin(
    from: &Plugged,
    network: &Network,
    vip: IpAddr,
) -> Result<(PacketBuilderStep<IpHeaders>, usize)> {
    let me = Party::of(&from.endpoint)?;
    let builder = PacketBuilder::ethernet2(me.mac, service_mac(network.id).0);
    Ok(match vip {
        IpAddr::V4(vip) => (builder.ipv4(me.v4, vip.octets(), 64), 14 + 20),
        IpAddr::V6(vip) => (builder.ipv6(me.v6, vip.octets(), 64), 14 + 40),
    })
}

/// A SYN to a port of the VIP.
fn syn(from: &Plugged, network: &Network, vip: IpAddr, port: u16) -> Result<Frame> {
    let (builder, source_port_at) = begin(from, network, vip)?;
    let mut bytes = Vec::new();
    builder.tcp(0, port, 0xffff, 64_000).syn().write(&mut bytes, &[])?;
    Ok(Frame { bytes, source_port_at, even_at: source_port_at + SEQUENCE_AT })
}

/// The same for a datagram.
fn datagram(from: &Plugged, network: &Network, vip: IpAddr, port: u16) -> Result<Frame> {
    let (builder, source_port_at) = begin(from, network, vip)?;
    let mut bytes = Vec::new();
    builder.udp(0, port).write(&mut bytes, &[0xff; 16])?;
    Ok(Frame { bytes, source_port_at, even_at: source_port_at + DATA_AT })
}

/// Memory of an agent that is no file's, in kB.
fn memory(lab: &Lab, host: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.agent(host)?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no line")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

#[test]
fn floods_hurt_nobody_else() -> Result<()> {
    let lab = Lab::up(2)?;
    let subnets = ["--subnet", "10.76.0.0/24", "--subnet", "fd76::/64"];
    let blue: Network = lab.json("h1", &[&["network", "create", "blue"], &subnets[..]].concat())?;
    wait_until("h2 knows the network", || {
        Ok(!lab.get::<Vec<Network>>("h2", "/v1/networks")?.is_empty())
    })?;
    let backend = lab.sandbox("h2", "blue", "b")?;
    let local = |name| lab.sandbox("h1", "blue", name);
    let (steady, third, sprays, floods) = (local("c")?, local("d")?, local("y")?, local("x")?);
    lab.all_know(&[&backend, &steady, &third, &sprays, &floods].map(|it| &it.endpoint))?;
    let mut make = vec!["service", "create", "web", "--network", "blue", "--backend", "b"];
    make.extend(["--port", "80:8080", "--port", "81:8081", "--port", "82:8082"]);
    make.extend(["--port", "83:8083/udp"]);
    let web: Service = lab.json("h1", &make)?;
    settled(&lab, "web", 1)?;
    let vip = |is_ipv4| web.vips.iter().copied().find(|ip| ip.is_ipv4() == is_ipv4);
    let vips = [vip(true).context("no VIP")?, vip(false).context("no IPv6 VIP")?];
    serve(&backend.netns, 8080)?;
    // One port answers nothing, and one refuses.
    sh(
        &backend.netns,
        "nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; \
         add rule inet t c tcp dport 8081 drop; add rule inet t c udp dport 8083 drop'",
    )?;

    let [to, to_v6] = vips.map(|vip| SocketAddr::new(vip, 80));
    let mut stream = steady.netns.run(|| connect(to_v6))?;
    let data = payload(8 << 10);
    let goes_on = Client::start(&steady.netns, move || echo(&mut stream, &data))?;
    let connects = Client::start(&third.netns, move || echo(&mut connect(to)?, b"hello"))?;
    wait_until("both clients are served", || Ok(goes_on.done()? > 20 && connects.done()? > 20))?;
    let before = memory(&lab, "h1")?;

    let [v4, v6] = vips;
    for (vip, what, port) in
        [(v4, "answers nothing", 81), (v4, "refuses", 82), (v6, "answers nothing", 81)]
    {
        let begins = syn(&floods, &blue, vip, port)?;
        let flood = Flood::start(&floods.netns, begins)?;
        if port == 81 && vip.is_ipv4() {
            // A source has its part, and no more.
            wait_until("what is refused is counted", || {
                ensure!(!flood.sender.is_finished(), "the flood has ended");
                Ok(lab.dropped("h1", "flow_table_full")? > 0)
            })?;
        }
        let spray = datagram(&sprays, &blue, vip, 83)?;
        let spray = Flood::start(&sprays.netns, spray)?;
        let (begun, had) = (Instant::now(), (goes_on.done()?, connects.done()?));
        let sent = (flood.sent(), spray.sent());
        wait_until(&format!("both go on while a port that {what} is flooded"), || {
            let (more, new) = (goes_on.done()? - had.0, connects.done()? - had.1);
            let floods = (flood.sent() - sent.0).min(spray.sent() - sent.1);
            Ok(more >= 20 && new >= 20 && floods >= 2_000)
        })?;
        let (more, new) = (goes_on.done()? - had.0, connects.done()? - had.1);
        tell(&format!(
            "a port of {vip} that {what}: {} SYN/s and {} datagrams/s; within {:.1?} {more} turns of the \
             connection and {new} new ones",
            flood.end()?,
            spray.end()?,
            begun.elapsed(),
        ));
    }
    let after = memory(&lab, "h1")?;
    tell(&format!(
        "turns took {:.0?} and {:.0?} at most; memory {before} kB before, {after} kB after; {} refused",
        goes_on.end()?,
        connects.end()?,
        lab.dropped("h1", "flow_table_full")?,
    ));
    ensure!(after < before + GROWTH, "{before} kB, then {after} kB");
    // A flood that is faster than the agents fills its own share.
    let rows: Vec<DropRow> = lab.get("h1", "/v1/drops")?;
    let others = [&steady, &third].map(|it| Some(it.endpoint.id));
    let hurt = rows.iter().find(|row| row.reason == "queue_full" && others.contains(&row.endpoint));
    ensure!(hurt.is_none(), "{hurt:?}");
    let drops = &["flow_table_full", "queue_full", "flow_busy"];
    lab.finish(Allowed { drops, ..Allowed::default() })
}
