//! Downloads by a service go on while the agent of the client, or of the backend, is killed and
//! started, and while it is replaced by another build.

use std::{
    env, fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Network, Service};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, tell, wait_until},
    program::{command, printed, vxmesh},
    stream::Stream,
    traffic::listen,
};

use super::{
    clients::{Client, connect, echo, say_back},
    settled,
};

/// How long an agent is away.
const AWAY: Duration = Duration::from_secs(1);
/// How often a direct connection says and hears something meanwhile, at least.
const TURNS: u64 = 100;

fn len() -> usize {
    if env::var_os("VXMESH_FULL").is_some() { 2_000_000_000 } else { 200_000_000 }
}

/// A backend with a service of its own, and where it listens.
struct Backend {
    plugged: Plugged,
    listener: TcpListener,
    vips: Vec<IpAddr>,
}

impl Backend {
    fn serve(lab: &Lab, host: &str, name: &str) -> Result<Self> {
        let plugged = lab.sandbox(host, "blue", name)?;
        let listener = plugged.netns.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, 8080))?))?;
        let service = format!("to-{name}");
        let make = ["service", "create", &service, "--network", "blue", "--backend", name];
        let made: Service = lab.json("h1", &[&make[..], &["--port", "80:8080"]].concat())?;
        settled(lab, &service, 1)?;
        Ok(Self { plugged, listener, vips: made.vips })
    }

    fn vip(&self, is_ipv4: bool) -> Result<SocketAddr> {
        let vip = self.vips.iter().find(|vip| vip.is_ipv4() == is_ipv4).context("no VIP")?;
        Ok(SocketAddr::new(*vip, 80))
    }

    /// What a client has of it by the service, so far up to the first of its parts.
    fn download(&self, client: &Plugged, is_ipv4: bool, first: usize) -> Result<Stream> {
        let (vip, mut connected) = (self.vip(is_ipv4)?, None);
        wait_until("the service answers", || {
            connected = client.netns.run(|| connect(vip)).ok();
            Ok(connected.is_some())
        })?;
        let (served, _client) = self.listener.accept()?;
        Stream::start(served, connected.context("no connection")?, (len(), first))
    }
}

/// Starts an agent by another file than the one that it had.
fn start_by(lab: &Lab, host: &str, program: &Path) -> Result<()> {
    let started = command(program).args(["lab", "--name", lab.name(), "start", host]).output()?;
    printed(&format!("lab start {host} by {}", program.display()), started)?;
    let runs = fs::read_link(format!("/proc/{}/exe", lab.agent(host)?))?;
    ensure!(runs == program, "the agent of {host} is {}", runs.display());
    Ok(())
}

#[test]
fn downloads_go_on_while_agents_are_killed_and_replaced() -> Result<()> {
    let lab = Lab::up(2)?;
    let subnets = ["--subnet", "10.73.0.0/24", "--subnet", "fd73::/64"];
    let _blue: Network =
        lab.json("h1", &[&["network", "create", "blue"], &subnets[..]].concat())?;
    wait_until("h2 knows the network", || {
        Ok(!lab.get::<Vec<Network>>("h2", "/v1/networks")?.is_empty())
    })?;
    let client = lab.sandbox("h1", "blue", "c")?;
    let (near, far) = (Backend::serve(&lab, "h1", "b1")?, Backend::serve(&lab, "h2", "b2")?);
    lab.all_know(&[&client.endpoint, &near.plugged.endpoint, &far.plugged.endpoint])?;

    // The agent of the client, which is that of the near backend, too, and that of the far one.
    let dir = tempfile::tempdir()?;
    let other: PathBuf = dir.path().join("vxmesh");
    fs::copy(vxmesh()?, &other)?;
    let own = vxmesh()?;
    let steps = [("h1", &own), ("h2", &own), ("h1", &other), ("h2", &other)];
    let part = len() / (steps.len() + 1);
    let ways = [(&near, true), (&far, true), (&near, false), (&far, false)];
    let downloads: Vec<Stream> = ways
        .iter()
        .map(|(backend, is_ipv4)| backend.download(&client, *is_ipv4, 1))
        .collect::<Result<_>>()?;
    // To the same port, past the service.
    let direct = SocketAddr::new(near.plugged.endpoint.ips[0].addr(), 8080);
    let mut direct = client.netns.run(|| connect(direct))?;
    let (served, _client) = near.listener.accept()?;
    thread::spawn(move || say_back(served));
    let direct = Client::start(&client.netns, move || echo(&mut direct, b"directly"))?;

    let begun = Instant::now();
    for ((host, program), to) in steps.into_iter().zip((part..).step_by(part)) {
        let came: Vec<usize> = downloads.iter().map(Stream::came).collect();
        downloads.iter().for_each(|download| download.go_on(to));
        wait_until("all downloads go on", || {
            let mut each = downloads.iter().zip(&came);
            Ok(each.all(|(download, came)| download.came() > came + part / 8))
        })?;
        lab.lab(&["kill", host])?;
        let (killed, turns) = (Instant::now(), direct.done()?);
        wait_until("the direct connection goes on without an agent", || {
            Ok(direct.done()? > turns + TURNS && killed.elapsed() >= AWAY)
        })?;
        start_by(&lab, host, program)?;
        tell(&format!("{host} was back after {:.1?}", killed.elapsed()));
    }
    let names = ["the near backend", "the far one", "the near one by IPv6", "the far one by IPv6"];
    for (download, from) in downloads.into_iter().zip(names) {
        download.end().with_context(|| format!("from {from}"))?;
        tell(&format!("{} bytes came from {from} within {:.1?}", len(), begun.elapsed()));
    }
    let longest = direct.end()?;
    tell(&format!("a turn of the direct connection took {longest:.1?} at most"));
    ensure!(longest < AWAY, "the direct connection paused for {longest:?}");
    // And new ones, with all that the agents know by themselves.
    for (backend, is_ipv4) in ways {
        let vip = backend.vip(is_ipv4)?;
        client.netns.run(|| connect(vip))?;
    }
    let early = ["fdb_unknown", "vni_unknown", "unknown_index", "unknown_peer"];
    let allowed = [&["backend_unknown", "flow_unknown"], &early[..]].concat();
    lab.finish(Allowed { drops: &allowed, ..Allowed::default() })
}
