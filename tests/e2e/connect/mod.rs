//! Sandboxes in several networks: connected and disconnected while they work, with one default
//! route, and nothing left.

mod labels;
mod names;
mod ports;
mod refused;
mod segments;
mod traffic;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use vxmesh::api::{Endpoint, Network, Sandbox};
use vxmesh_tests::{lab::Lab, lab::Plugged, netns::NetNs, outside::sh};

/// Between two round trips of a conversation.
const PAUSE: Duration = Duration::from_millis(5);
/// A conversation that waits longer was interrupted. A retransmission under load takes part of a
/// second.
const PATIENCE: Duration = Duration::from_secs(5);

/// `network connect` with further flags.
fn connect(lab: &Lab, at: &Plugged, network: &str, flags: &[&str]) -> Result<Endpoint> {
    let words = ["network", "connect", network, at.sandbox.name.as_str()];
    lab.json(&at.host, &[&words, flags].concat())
}

fn disconnect(lab: &Lab, at: &Plugged, network: &str) -> Result<Endpoint> {
    lab.json(&at.host, &["network", "disconnect", network, at.sandbox.name.as_str()])
}

/// `run -d` with these flags, networks among them.
fn run(lab: &Lab, host: &str, name: &str, flags: &[&str]) -> Result<Plugged> {
    let words = [&["run", "-d", "--name", name], flags, &["--", "sleep", "3600"]].concat();
    let sandbox: Sandbox = lab.json(host, &words)?;
    let id = sandbox.endpoints.first().context("a sandbox without endpoints")?;
    let endpoint = lab.get(host, &format!("/v1/endpoints/{id}"))?;
    let netns = lab.inner(host, &sandbox.netns)?;
    Ok(Plugged { host: host.to_owned(), sandbox, endpoint, netns })
}

fn inspect(lab: &Lab, at: &Plugged) -> Result<Sandbox> {
    lab.json(&at.host, &["sandbox", "inspect", at.sandbox.name.as_str()])
}

fn ip(endpoint: &Endpoint, ipv4: bool) -> Result<IpAddr> {
    let mut ips = endpoint.ips.iter().map(ipnet::IpNet::addr);
    ips.find(|ip| ip.is_ipv4() == ipv4).context("no such address")
}

fn gateway(network: &Network, ipv4: bool) -> Result<String> {
    let gateways = network.subnets.iter().map(|subnet| subnet.gateway);
    let gateway = gateways.into_iter().find(|gateway| gateway.is_ipv4() == ipv4);
    Ok(gateway.context("no such gateway")?.to_string())
}

/// All that a sandbox has of its networks, but for link-local addresses, which the kernel takes its
/// time to check.
fn inside(netns: &NetNs) -> Result<String> {
    let all = "ip -o link | sed 's/state.*//'; ip -o addr; ip rule; \
               ip route show table all; ip -6 route show table all";
    let text = sh(netns, all)?;
    let lasting = text.lines().filter(|line| !line.contains("fe80::"));
    Ok(lasting.collect::<Vec<_>>().join("\n"))
}

/// The routers of the default routes, IPv4 first.
fn routers(netns: &NetNs) -> Result<Vec<String>> {
    let text = sh(netns, "ip -4 route show default; ip -6 route show default")?;
    let router = |line: &str| line.split(" via ").nth(1)?.split(' ').next().map(str::to_owned);
    Ok(text.lines().filter_map(router).collect())
}

/// The default routes lead through this network alone.
fn leads_by(netns: &NetNs, network: &Network) -> Result<()> {
    let wanted = [gateway(network, true)?, gateway(network, false)?];
    let found = routers(netns)?;
    ensure!(found == wanted, "{}: {found:?} instead of {wanted:?}", network.name);
    Ok(())
}

/// A TCP connection that carries a byte to and fro all the time.
#[derive(Debug)]
struct Talk {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Duration>>>,
}

impl Talk {
    fn start(client: &NetNs, server: &NetNs, to: IpAddr) -> Result<Self> {
        let listener = server.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?))?;
        let to = SocketAddr::new(to, listener.local_addr()?.port());
        let mut ours = client.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
        let (mut theirs, _from) = listener.accept()?;
        for stream in [&ours, &theirs] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let (begun, mut byte) = (Instant::now(), [7]);
                ours.write_all(&byte)?;
                theirs.read_exact(&mut byte).context("the way there")?;
                theirs.write_all(&byte)?;
                ours.read_exact(&mut byte).context("the way back")?;
                longest = longest.max(begun.elapsed());
                thread::sleep(PAUSE);
            }
            Ok(longest)
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; the longest that a round trip took, if none failed.
    fn end(mut self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was ended")?;
        thread.join().map_err(|_panic| anyhow!("the conversation panicked"))?
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The test fails for another reason.
            drop(thread.join());
        }
    }
}
