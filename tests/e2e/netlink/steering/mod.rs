//! Answers of a service's backends on this host are led to the agent, and what was switched before
//! is switched as before. The agent is the test: a wire at the TAP. [`lifetimes`]: how long the
//! kernel knows a flow; [`rules`]: what the kernel has, and that it is kept.

mod lifetimes;
mod rules;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use vxmesh::{
    datapath::{backend::Backend, steering::Queues},
    firewall::{
        guard::{Port, Rules},
        guarded::GuardedPorts,
        services::Macs,
    },
    netlink::overlay::Overlay,
};
use vxmesh_proto::{
    addr::MacAddr,
    lb::{service_mac, service_source_mac},
};
use vxmesh_tests::{
    netns::NetNs,
    topology::{Capture, Sandbox, Topology, Wire, wait_until},
    traffic::{Echo, send_frames},
};

use super::{GATEWAY_MAC, host, mac, port, sandbox, spec};

const CLIENT: u8 = 11;
const BACKEND: u8 = 12;
const OTHER: u8 = 13;
/// What a backend serves.
const SERVED: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(30);

/// One host of the network with three sandboxes, and the agent's end of its TAP.
struct Site {
    guarded: GuardedPorts,
    wire: Wire,
    macs: Macs,
    client: Sandbox,
    backend: Sandbox,
    other: Sandbox,
    overlay: Overlay,
    topology: Topology,
}

impl Site {
    async fn open() -> Result<Self> {
        let topology = Topology::new()?;
        let overlay = host(&topology, "h1").await?;
        let ports = [CLIENT, BACKEND, OTHER].map(|number| (port(number), guarded_port(number)));
        let guarded = GuardedPorts::open(overlay.netns(), RULES, BTreeMap::from(ports))?;
        let id = spec(10)?.id;
        let macs = Macs { service: service_mac(id), source: service_source_mac(id) };
        Ok(Self {
            guarded,
            wire: Wire::open(overlay.open_tap(Backend::TunTap, Queues::ONE).await?),
            macs,
            client: sandbox(&topology, &overlay, CLIENT).await?,
            backend: sandbox(&topology, &overlay, BACKEND).await?,
            other: sandbox(&topology, &overlay, OTHER).await?,
            overlay,
            topology,
        })
    }

    /// The agent hands the backend a packet of a client that called a service.
    fn hand(&self, packet: &Packet) -> Result<()> {
        self.wire.inject(&packet.frame(self.macs.source, mac(BACKEND))?)
    }

    /// A sandbox puts a packet on its interface as it is.
    fn send(&self, from: &Sandbox, packet: &Packet, macs: (MacAddr, MacAddr)) -> Result<()> {
        send_frames(&NetNs::open(&from.path)?, "eth0", &[packet.frame(macs.0, macs.1)?])
    }

    /// Frames of this IP version that were led to the agent and contain these bytes.
    fn led(&self, ipv4: bool, bytes: &[u8]) -> Vec<Vec<u8>> {
        let ethertype = if ipv4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        let mut seen = self.seen(bytes);
        seen.retain(|frame| {
            frame.starts_with(&self.macs.service.0) && frame.get(12..14) == Some(&ethertype)
        });
        seen
    }

    /// Frames that the agent got and that contain these bytes.
    fn seen(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut seen = self.wire.seen(0);
        seen.retain(|frame| contains(frame, bytes));
        seen
    }
}

fn contains(frame: &[u8], bytes: &[u8]) -> bool {
    bytes.is_empty() || frame.windows(bytes.len()).any(|window| window == bytes)
}

const RULES: Rules = Rules { gateway: GATEWAY_MAC, isolated: false };

fn guarded_port(number: u8) -> Port {
    Port { mac: mac(number), ips: vec![ip(true, number), ip(false, number)] }
}

fn ip(ipv4: bool, number: u8) -> IpAddr {
    if ipv4 {
        [10, 10, 0, number].into()
    } else {
        // The number in decimal digits, as a plug has it.
        let digits = u16::from(number / 10) << 4 | u16::from(number % 10);
        [0xfd10, 0, 0, 0, 0, 0, 0, digits].into()
    }
}

/// A packet of a flow.
#[derive(Clone, Copy)]
struct Packet {
    ipv4: bool,
    from: (u8, u16),
    to: (u8, u16),
    /// Flags of TCP; else it is a datagram.
    tcp: Option<u8>,
    payload: &'static [u8],
}

impl Packet {
    /// A datagram from the client to the backend.
    fn datagram(ipv4: bool, port: u16, payload: &'static [u8]) -> Self {
        Self { ipv4, from: (CLIENT, port), to: (BACKEND, SERVED), tcp: None, payload }
    }

    fn to_port(self, port: u16) -> Self {
        Self { to: (self.to.0, port), ..self }
    }

    fn back(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }

    fn frame(&self, source: MacAddr, destination: MacAddr) -> Result<Vec<u8>> {
        let Self { ipv4, from, to, tcp, payload } = *self;
        let builder = PacketBuilder::ethernet2(source.0, destination.0);
        let builder = match (ip(ipv4, from.0), ip(ipv4, to.0)) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
            _ => anyhow::bail!("two versions"),
        };
        let mut frame = Vec::new();
        let Some(flags) = tcp else {
            builder.udp(from.1, to.1).write(&mut frame, payload)?;
            return Ok(frame);
        };
        let mut builder = builder.tcp(from.1, to.1, 1, 64_000);
        for (flag, set) in [(FIN, 0), (SYN, 1), (RST, 2), (ACK, 3)] {
            if flags & flag != 0 {
                builder = match set {
                    0 => builder.fin(),
                    1 => builder.syn(),
                    2 => builder.rst(),
                    _ => builder.ack(1),
                };
            }
        }
        builder.write(&mut frame, payload)?;
        Ok(frame)
    }
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Asks the backend by itself, from a port of the client's; its answer, if there is to be one.
fn ask_directly(site: &Site, ipv4: bool, port: u16, payload: &[u8]) -> Result<UdpSocket> {
    site.client
        .netns
        .run(|| {
            let any: IpAddr = if ipv4 { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, port))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(payload, SocketAddr::new(ip(ipv4, BACKEND), SERVED))?;
            Ok(socket)
        })
        .context("ask directly")
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_backend_here_go_to_the_agent_and_nothing_else_does() -> Result<()> {
    let mut site = Site::open().await?;
    let _served = Echo::start_on(&NetNs::open(&site.backend.path)?, SERVED)?;
    site.guarded.steer(Some(site.macs))?;
    let at_client = Capture::start(&site.topology, &site.client.netns, "eth0", "")?;
    for ipv4 in [true, false] {
        // Nobody has called the service yet.
        let answer = ask_directly(&site, ipv4, 4001, b"BEFORE-ANY")?.recv(&mut [0; 100])?;
        assert_eq!(answer, 10);
        site.hand(&Packet::datagram(ipv4, 4000, b"BY-SERVICE"))?;
        wait_until("the answer goes to the agent", || {
            Ok(!site.led(ipv4, b"BY-SERVICE").is_empty())
        })?;
        for answer in site.led(ipv4, b"BY-SERVICE") {
            assert_eq!(answer.get(6..12), Some(&mac(BACKEND).0[..]), "it has another source");
        }
        let syn = Packet { tcp: Some(SYN), payload: b"", ..Packet::datagram(ipv4, 4000, b"") };
        let accepted = |frame: &Vec<u8>| {
            let ports = if ipv4 { 34 } else { 54 };
            frame.get(ports..ports + 4) == Some(&[0x1f, 0x90, 0x0f, 0xa0])
                && frame.get(ports + 13) == Some(&(SYN | ACK))
        };
        site.hand(&syn)?;
        wait_until("SYN, ACK goes to the agent", || Ok(site.led(ipv4, b"").iter().any(accepted)))?;

        // Another flow of the two never sees the agent; the same flow does, as the agent alone can
        // tell whose answer is whose.
        let answer = ask_directly(&site, ipv4, 4001, b"SWITCHED-ON")?.recv(&mut [0; 100])?;
        assert_eq!(answer, 11);
        let _same = ask_directly(&site, ipv4, 4000, b"SAME-PORT")?;
        wait_until("the agent gets it", || Ok(!site.led(ipv4, b"SAME-PORT").is_empty()))?;
        assert!(site.seen(b"SWITCHED-ON").is_empty() && site.seen(b"BEFORE-ANY").is_empty());
    }
    let at_client = at_client.stop()?;
    let past = at_client.iter().any(|frame| contains(frame, b"BY-SERVICE"));
    assert!(!past, "an answer went past the agent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_fragments_of_a_backend_go_to_the_agent() -> Result<()> {
    let mut site = Site::open().await?;
    site.guarded.steer(Some(site.macs))?;
    for ipv4 in [true, false] {
        let closed = Packet::datagram(ipv4, 4000, b"PORT-IS-CLOSED").to_port(9);
        site.hand(&closed)?;
        // It quotes what it is about.
        wait_until("port unreachable goes to the agent", || {
            Ok(!site.led(ipv4, b"PORT-IS-CLOSED").is_empty())
        })?;
        let serving = site.backend.netns.run(|| UdpSocket::bind((ip(ipv4, BACKEND), SERVED)))?;
        serving.set_read_timeout(Some(PATIENCE))?;
        site.hand(&Packet::datagram(ipv4, 4000, b"ASK-FOR-MUCH"))?;
        let (_, asker) = serving.recv_from(&mut [0; 100])?;
        let much: Vec<u8> = b"FRAGMENTED".iter().copied().cycle().take(4000).collect();
        serving.send_to(&much, asker)?;
        wait_until("all fragments go to the agent", || {
            let header = if ipv4 { 14 + 20 } else { 14 + 40 + 8 };
            let led = site.led(ipv4, b"FRAGMENTED");
            let len = led.iter().map(|frame| frame.len() - header).sum::<usize>();
            Ok(len >= 4000)
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_answer_is_stopped_at_its_port() -> Result<()> {
    let mut site = Site::open().await?;
    site.guarded.steer(Some(site.macs))?;
    let _served = Echo::start_on(&NetNs::open(&site.backend.path)?, SERVED)?;
    for ipv4 in [true, false] {
        site.hand(&Packet::datagram(ipv4, 4000, b"BY-SERVICE"))?;
        wait_until("the answer goes to the agent", || {
            Ok(!site.led(ipv4, b"BY-SERVICE").is_empty())
        })?;
        let forged = Packet::datagram(ipv4, 4000, b"FORGED-ANSWER").back();
        let to = mac(CLIENT);
        for (source, reason) in [
            (mac(BACKEND), "source_unknown"),
            (mac(OTHER), "ip_spoofed"),
            (site.macs.source, "source_unknown"),
            (site.macs.service, "source_unknown"),
        ] {
            site.guarded.dropped()?;
            site.send(&site.other, &forged, (source, to))?;
            let mut dropped = BTreeMap::new();
            wait_until(&format!("{source} is counted as {reason}"), || {
                dropped.extend(site.guarded.dropped()?);
                Ok(dropped.contains_key(&(reason.to_owned(), Some(port(OTHER)))))
            })?;
        }
    }
    assert!(site.seen(b"FORGED-ANSWER").is_empty(), "a forged answer reached the agent");
    Ok(())
}
