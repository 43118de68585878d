//! What is measured: two places on two hosts and what lies between them.

use std::{
    env,
    net::Ipv4Addr,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    lab::Lab,
    load::{self, Tcp, TcpRun},
    pingpong::Trips,
};

/// MTU inside both tunnels: the default of a network.
const MTU: u16 = vxmesh_proto::limits::DEFAULT_MTU;
/// Ports of the servers in the second place.
const PONG_PORT: u16 = 7001;
const SOURCE_PORT: u16 = 7002;
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
    has_agents: bool,
    servers: Vec<Child>,
}

impl<'l> Subject<'l> {
    /// The hosts themselves, as the upper bound.
    pub(crate) fn bare(lab: &'l Lab, server: Ipv4Addr) -> Result<Self> {
        Self::start(lab, "bare", None, server, false)
    }

    /// The kernel's own VXLAN device on the host, plugged into a bridge like a TAP of ours.
    pub(crate) fn kernel(lab: &'l Lab) -> Result<Self> {
        for (me, other) in [(1, 2), (2, 1)] {
            let script = format!(
                "ip link add kbr type bridge
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
        Self::start(lab, "kernel", Some("kernel"), Ipv4Addr::new(10, 97, 0, 2), false)
    }

    /// A network of the lab's mesh.
    pub(crate) fn tunnel(lab: &'l Lab, label: &str) -> Result<Self> {
        lab.cli(
            "h1",
            &["network", "create", "bench", "--subnet", "10.98.0.0/24", "--mtu", &MTU.to_string()],
        )?;
        let mut server = None;
        for host in ["h1", "h2"] {
            lab.sh(host, "ip netns add tunnel")?;
            let deadline = Instant::now() + PATIENCE;
            let attach = ["endpoint", "attach", "bench", "--netns", "tunnel", "--name", host];
            // The network reaches the second host by itself.
            let endpoint = loop {
                match lab.cli(host, &attach) {
                    Ok(endpoint) => break endpoint,
                    Err(error) if Instant::now() > deadline => return Err(error),
                    Err(_) => std::thread::yield_now(),
                }
            };
            let ip = endpoint["ips"][0].as_str().context("no address")?.split('/').next();
            server = Some(ip.context("no address")?.parse()?);
        }
        Self::start(lab, label, Some("tunnel"), server.context("no address")?, true)
    }

    fn start(
        lab: &'l Lab,
        label: &str,
        netns: Option<&'static str>,
        server: Ipv4Addr,
        has_agents: bool,
    ) -> Result<Self> {
        let label = label.to_owned();
        let mut subject = Self { label, lab, netns, server, has_agents, servers: Vec::new() };
        let own = own_path()?;
        let (pong, source) = (PONG_PORT.to_string(), SOURCE_PORT.to_string());
        for words in [
            vec!["iperf3", "--server"],
            vec![&own, "pong", &pong],
            vec![&own, "source", &source, "64"],
        ] {
            let words = subject.within(&words);
            let child = lab.spawn("h2", &words)?;
            subject.servers.push(child);
        }
        subject.wait()?;
        Ok(subject)
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Sends TCP for some seconds.
    pub(crate) fn tcp(&self, tcp: Tcp, seconds: u32) -> Result<TcpRun> {
        let agents = if self.has_agents { self.lab.agents()? } else { Vec::new() };
        let (address, seconds) = (self.server.to_string(), seconds.to_string());
        let streams = tcp.streams.to_string();
        let mut words =
            vec!["iperf3", "--json", "-c", &address, "--time", &seconds, "--parallel", &streams];
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
        self.lab.exec("h1", &self.within(words))
    }

    fn within<'w>(&self, words: &[&'w str]) -> Vec<&'w str> {
        match self.netns {
            Some(netns) => [&["ip", "netns", "exec", netns], words].concat(),
            None => words.to_vec(),
        }
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

fn own_path() -> Result<String> {
    let path = env::current_exe()?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("odd path {path:?}"))
}
