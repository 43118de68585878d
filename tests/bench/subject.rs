//! What is measured: two places on two hosts and what lies between them.

use std::{
    net::Ipv4Addr,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    dial::Dialed,
    flood::Flooded,
    lab::{Lab, own_path},
    load::{self, FloodRun, Tcp, TcpRun},
    peer::Peer,
    pingpong::Trips,
};

/// MTU inside all tunnels: the default of a network.
pub(crate) const MTU: u16 = vxmesh_proto::limits::DEFAULT_MTU;
/// Seconds that iperf3 may take beside those that it sends. It waits for ever where a tunnel has
/// died.
const SLACK: u32 = 20;
/// Ports of the servers in the second place.
const IPERF3_PORT: u16 = 5201;
const PONG_PORT: u16 = 7001;
const SOURCE_PORT: u16 = 7002;
const DRAIN_PORT: u16 = 7003;
const GREET_PORT: u16 = 7004;
/// Where the connections of a service come to. To the port of direct ones a client's next one would
/// be an old one again: a server remembers ports for a minute (TIME-WAIT, RFC 9293 section 3.6.1).
const SERVICE_GREET_PORT: u16 = 7005;
/// How long a server may take to listen, and a network to connect two hosts.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two places: the one on `h1` is the client.
#[derive(Debug)]
pub(crate) struct Subject<'l> {
    label: String,
    lab: &'l Lab,
    /// The network namespace on both hosts; the host's own without.
    netns: Option<&'static str>,
    server: Ipv4Addr,
    /// The host of the servers, and their network namespace where it has another name.
    host: &'static str,
    beside: Option<&'static str>,
    programs: Programs,
    servers: Vec<Child>,
}

/// The programs that carry a subject's packets, whose CPU time and memory count.
#[derive(Debug)]
enum Programs {
    /// The kernel does.
    None,
    /// The lab's agents.
    Agents,
    /// These processes.
    Peer(Vec<u64>),
}

impl<'l> Subject<'l> {
    /// The hosts themselves, as the upper bound.
    pub(crate) fn bare(lab: &'l Lab, server: Ipv4Addr) -> Result<Self> {
        Self::start(lab, "bare", None, server, Programs::None)
    }

    /// The kernel's own VXLAN device on the host, plugged into a bridge like a TAP of ours. What is
    /// bridged does not pass the host's firewall, as it does where br_netfilter is at work: rules
    /// are not what is compared.
    pub(crate) fn kernel(lab: &'l Lab) -> Result<Self> {
        for (me, other) in [(1, 2), (2, 1)] {
            let script = format!(
                "for call in iptables ip6tables; do
                     nf=/proc/sys/net/bridge/bridge-nf-call-$call
                     test ! -e $nf || echo 0 > $nf
                 done
                 ip link add kbr type bridge
                 ip link set kbr mtu {MTU} up
                 ip link add kvx type vxlan id 77 dstport 4789 local 10.213.0.{me} dev eth0
                 bridge fdb append 00:00:00:00:00:00 dev kvx dst 10.213.0.{other}
                 ip link set kvx mtu {MTU} master kbr up
                 ip netns add kernel
                 ip link add kv0 mtu {MTU} type veth peer name eth0 netns kernel
                 ip link set kv0 master kbr up
                 ip -n kernel link set eth0 mtu {MTU} up
                 ip -n kernel addr add 10.97.0.{me}/24 dev eth0"
            );
            lab.sh(&format!("h{me}"), &script)?;
        }
        Self::start(lab, "kernel", Some("kernel"), Ipv4Addr::new(10, 97, 0, 2), Programs::None)
    }

    /// A network of the lab's mesh.
    pub(crate) fn tunnel(lab: &'l Lab, label: &str) -> Result<Self> {
        lab.cli(
            "h1",
            &["network", "create", "bench", "--subnet", "10.98.0.0/24", "--mtu", &MTU.to_string()],
        )?;
        lab.attach("h1", "bench", "tunnel")?;
        let server = lab.attach("h2", "bench", "tunnel")?;
        Self::start(lab, label, Some("tunnel"), server, Programs::Agents)
    }

    /// A second place of a tunnel's network, on the client's own host.
    pub(crate) fn beside(lab: &'l Lab, label: &str) -> Result<Self> {
        let server = lab.attach_as("h1", ("bench", "beside"), "beside")?;
        let mut subject = Self::new(lab, label, Some("tunnel"), server, Programs::Agents);
        (subject.host, subject.beside) = ("h1", Some("beside"));
        subject.serve()
    }

    /// The servers of another subject, which are those of this endpoint, by the address of a
    /// service.
    pub(crate) fn service(lab: &'l Lab, label: &str, endpoint: &str) -> Result<Self> {
        let mut words = vec!["service", "create", label, "--network", "bench"];
        words.extend(["--backend", endpoint]);
        let tcp = [IPERF3_PORT, SOURCE_PORT, DRAIN_PORT].map(|port| port.to_string());
        let greet = format!("{GREET_PORT}:{SERVICE_GREET_PORT}");
        let udp = [PONG_PORT, DRAIN_PORT].map(|port| format!("{port}/udp"));
        words.extend(
            tcp.iter().chain(&udp).chain([&greet]).flat_map(|port| ["--port", port.as_str()]),
        );
        let made = lab.cli("h1", &words)?;
        let vip = made["vips"][0].as_str().context("no VIP")?.parse()?;
        let subject = Self::new(lab, label, Some("tunnel"), vip, Programs::Agents);
        subject.wait()?;
        Ok(subject)
    }

    /// Another tunnel between the same hosts.
    pub(crate) fn peer(lab: &'l Lab, peer: &Peer) -> Result<Self> {
        let up = peer.up(lab)?;
        Self::start(
            lab,
            peer.name(),
            Some(up.netns),
            up.server.into(),
            Programs::Peer(up.processes),
        )
    }

    fn start(
        lab: &'l Lab,
        label: &str,
        netns: Option<&'static str>,
        server: Ipv4Addr,
        programs: Programs,
    ) -> Result<Self> {
        Self::new(lab, label, netns, server, programs).serve()
    }

    fn new(
        lab: &'l Lab,
        label: &str,
        netns: Option<&'static str>,
        server: Ipv4Addr,
        programs: Programs,
    ) -> Self {
        let (label, servers) = (label.to_owned(), Vec::new());
        Self { label, lab, netns, server, host: "h2", beside: None, programs, servers }
    }

    /// Starts the servers.
    fn serve(mut self) -> Result<Self> {
        let own = own_path()?;
        let ports = [PONG_PORT, SOURCE_PORT, DRAIN_PORT, GREET_PORT, SERVICE_GREET_PORT];
        let [pong, source, drain, greet, service_greet] = ports.map(|port| port.to_string());
        for words in [
            vec!["iperf3", "--server"],
            vec![&own, "pong", &pong],
            vec![&own, "source", &source, "64"],
            vec![&own, "drain", &drain],
            vec![&own, "greet", &greet],
            vec![&own, "greet", &service_greet],
        ] {
            let words = within(self.beside.or(self.netns), &words);
            let child = self.lab.spawn(self.host, &words)?;
            self.servers.push(child);
        }
        self.wait()?;
        Ok(self)
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Whether it is another tunnel, without which a run goes on.
    pub(crate) const fn is_peer(&self) -> bool {
        matches!(self.programs, Programs::Peer(_))
    }

    /// Sends TCP for some seconds.
    pub(crate) fn tcp(&self, tcp: Tcp, seconds: u32) -> Result<TcpRun> {
        let agents = self.programs()?;
        let limit = seconds.saturating_add(SLACK).to_string();
        let (address, seconds) = (self.server.to_string(), seconds.to_string());
        let streams = tcp.streams.to_string();
        // Told to end in another way, it waits on for the other end.
        let mut words = vec!["timeout", "--signal", "KILL", &limit];
        words.extend(["iperf3", "--json", "-c", &address]);
        words.extend(["--time", &seconds, "--parallel", &streams]);
        if tcp.reverse {
            words.push("--reverse");
        }
        load::measure(&agents, || self.client(&words))
    }

    /// Round trips of 64 bytes over UDP.
    pub(crate) fn ping(&self, seconds: u32) -> Result<Trips> {
        let (to, seconds) = (format!("{}:{PONG_PORT}", self.server), seconds.to_string());
        Ok(serde_json::from_str(&self.client(&[&own_path()?, "ping", &to, &seconds])?)?)
    }

    /// Round trips while one TCP stream takes what it can.
    pub(crate) fn ping_beside_tcp(&self, seconds: u32) -> Result<Trips> {
        thread::scope(|scope| {
            // It begins earlier and ends later.
            let tcp = scope.spawn(|| self.tcp(Tcp { streams: 1, reverse: false }, seconds + 1));
            let trips = self.ping(seconds);
            let run = tcp.join().map_err(|_panic| anyhow::anyhow!("iperf3's thread panicked"))?;
            run.and(trips)
        })
    }

    /// Datagrams of `len` bytes without a pause.
    pub(crate) fn flood(&self, len: usize, seconds: u32) -> Result<FloodRun> {
        let agents = self.programs()?;
        let to = format!("{}:{DRAIN_PORT}", self.server);
        let (len, seconds) = (len.to_string(), seconds.to_string());
        let own = own_path()?;
        let before = load::processes_seconds(&agents)?;
        let said = self.client(&[&own, "flood", &to, &len, &seconds])?;
        let spent = load::processes_seconds(&agents)? - before;
        let flooded: Flooded = serde_json::from_str(&said)?;
        Ok(FloodRun::new(flooded, spent))
    }

    /// Connections one after another.
    pub(crate) fn dial(&self, seconds: u32) -> Result<Dialed> {
        let (to, seconds) = (format!("{}:{GREET_PORT}", self.server), seconds.to_string());
        Ok(serde_json::from_str(&self.client(&[&own_path()?, "dial", &to, &seconds])?)?)
    }

    /// Begins so many flows of datagrams from another place of the client's host.
    pub(crate) fn open(&self, netns: &str, count: u16) -> Result<()> {
        let (own, to) = (own_path()?, format!("{}:{PONG_PORT}", self.server));
        let words = [own.as_str(), "open", &to, &count.to_string()];
        self.lab.exec("h1", &within(Some(netns), &words)).map(|_said| ())
    }

    /// Megabytes that the programs of one host have in memory; none where the kernel does the work.
    pub(crate) fn resident(&self) -> Result<Option<f64>> {
        let programs = self.programs()?;
        if programs.is_empty() {
            return Ok(None);
        }
        let kilobytes =
            programs.iter().map(|pid| load::resident_kilobytes(*pid)).sum::<Result<f64>>()?;
        Ok(Some(kilobytes / 2e3))
    }

    fn programs(&self) -> Result<Vec<u64>> {
        match &self.programs {
            Programs::None => Ok(Vec::new()),
            Programs::Agents => self.lab.agents(),
            Programs::Peer(processes) => Ok(processes.clone()),
        }
    }

    /// Fails unless a random stream arrives as it was sent.
    pub(crate) fn check_stream(&self) -> Result<()> {
        let from = format!("{}:{SOURCE_PORT}", self.server);
        self.client(&[&own_path()?, "sink", &from]).map(|_said| ())
    }

    /// Waits until all servers answer.
    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tcp = Tcp { streams: 1, reverse: false };
            match self
                .ping(1)
                .and_then(|_trips| self.check_stream())
                .and_then(|()| self.tcp(tcp, 1))
            {
                Ok(_run) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!("{} does not carry traffic: {error:#}", self.label)
                }
                Err(_) => {}
            }
        }
    }

    fn client(&self, words: &[&str]) -> Result<String> {
        self.lab.exec("h1", &within(self.netns, words))
    }
}

fn within<'w>(netns: Option<&'w str>, words: &[&'w str]) -> Vec<&'w str> {
    match netns {
        Some(netns) => [&["ip", "netns", "exec", netns], words].concat(),
        None => words.to_vec(),
    }
}

impl Drop for Subject<'_> {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Whatever it leaves in the host goes with the lab.
            if server.kill().is_ok() {
                drop(server.wait());
            }
        }
    }
}
