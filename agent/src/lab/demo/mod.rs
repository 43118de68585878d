//! `vxmesh lab demo`: a play in seven parts that shows on a lab what the mesh does, and measures
//! it.
//!
//! What is shown is what any user can type; [`stage`] runs it. Only the TCP connections
//! ([`stream`]) and the look at the wire ([`capture`]) are made here, so that they need no other
//! program. Whatever happens, the lab goes at the end unless it shall stay.

mod capture;
mod stage;
mod stream;

use std::{
    env, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use self::{
    capture::{Capture, Seen, hexdump},
    stage::Stage,
    stream::{Arrived, Limit},
};
use super::{
    agents::Host,
    disk::{LabDir, NETNS_DIR},
    down,
    enter::{EnterError, in_machine_netns},
    error::OrFail,
    interrupt::Interrupt,
    name::{HostName, LabName},
    output::{Line, Output},
    plan::Plan,
    up,
};
use crate::api::{ApiError, Endpoint, ErrorCode, Network, Node, Sandbox};

/// The text that is sent through the mesh and looked for on the wire.
const MARKER: &[u8] = b"vxmesh demo: nobody on the wire may read this. ";
/// How much of it: enough for a thousand packets.
const MARKER_BYTES: u64 = 1 << 20;
/// How long each TCP connection sends.
const STREAM: Duration = Duration::from_millis(1500);
/// How long something may take that the mesh does by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// The lines of a hexdump.
const LINES: usize = 6;
const SANDBOXES: [&str; 3] = ["web", "app", "db"];

/// A sandbox of the play.
struct Actor {
    name: &'static str,
    host: HostName,
    v4: IpAddr,
    v6: IpAddr,
    netns: PathBuf,
}

/// Plays; gives the exit status 1 if something was not as it should.
pub(super) async fn demo(
    name: &LabName,
    keep: bool,
    interrupt: &Interrupt,
    out: &mut dyn Output,
) -> Result<u8, ApiError> {
    require_ping()?;
    let start = Instant::now();
    let hosts: Vec<HostName> = HostName::first(3).collect();
    out.line(Line::Title("1. Three hosts on this machine form a mesh"))?;
    out.line(Line::Command("", &format!("vxmesh lab --name {name} up --hosts 3")))?;
    up::up(name, &Plan { hosts: 3, ..Plan::default() }, true, interrupt, out).await?;
    let mut stage = Stage::new(name, interrupt, out, start.elapsed());
    let played = match <[HostName; 3]>::try_from(hosts) {
        Ok(hosts) => play(&mut stage, hosts).await,
        Err(_) => Ok(()),
    };
    let checks = stage.into_checks();
    if keep && played.is_ok() {
        out.line(Line::Title("The lab is yours"))?;
        for words in ["exec h1 -- vxmesh endpoint ls", "exec h2 -- vxmesh exec app -- sh", "down"] {
            out.line(Line::Command("", &format!("vxmesh lab --name {name} {words}")))?;
        }
    } else {
        // First of all: a closed terminal must not keep the lab alive.
        let removed = down::down(name).await;
        played?;
        removed?;
        out.line(Line::Command("", &format!("vxmesh lab --name {name} down")))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    out.line(Line::Title(&format!("What was measured, in {seconds:.1} s in all")))?;
    out.checks(&checks)?;
    Ok(u8::from(checks.iter().any(|check| !check.ok)))
}

fn require_ping() -> Result<(), ApiError> {
    if find_program("ping") {
        return Ok(());
    }
    let hint = "install it: apt-get install iputils-ping";
    Err(ApiError::new(ErrorCode::Failed, "the demo needs ping", hint))
}

fn find_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

async fn play(stage: &mut Stage<'_>, hosts: [HostName; 3]) -> Result<(), ApiError> {
    let [h1, h2, h3] = hosts;
    mesh(stage, hosts).await?;
    let actors = network(stage, hosts).await?;
    let [web, app, db] = &actors;
    stage.title("3. Every host knows where everything is")?;
    stage.show(h3, &["locate", &web.v4.to_string()]).await?;
    pings(stage, &actors).await?;
    streams(stage, &actors).await?;
    stage.show(h2, &["peer", "ls"]).await?;
    wire(stage, web, app).await?;
    death(stage, [h1, h2, h3], app, db).await
}

async fn mesh(stage: &mut Stage<'_>, hosts: [HostName; 3]) -> Result<(), ApiError> {
    stage.remark(&format!(
        "Each is a network namespace with an agent. h1$ stands for: vxmesh lab --name {} exec h1 --",
        stage.lab()
    ))?;
    for host in hosts {
        stage
            .until(
                host,
                &["node", "ls"],
                |nodes: &Vec<Node>| nodes.iter().filter(|node| node.state == "alive").count() == 3,
                PATIENCE,
            )
            .await?;
    }
    let up = stage.since_up();
    stage.check(
        "three hosts are a mesh",
        format!("{:.1} s from nothing", up.as_secs_f64()),
        true,
    )?;
    stage.show(hosts[0], &["node", "ls"]).await?;
    Ok(())
}

async fn network(stage: &mut Stage<'_>, hosts: [HostName; 3]) -> Result<[Actor; 3], ApiError> {
    let [h1, h2, h3] = hosts;
    stage.title("2. A network made on one host is there on all; each host gets a sandbox")?;
    let args = ["network", "create", "blue", "--subnet", "10.71.0.0/16", "--subnet", "fd71::/64"];
    stage.show(h2, &args).await?;
    let made = Instant::now();
    for host in [h1, h3] {
        let there = |networks: &Vec<Network>| !networks.is_empty();
        stage.until(host, &["network", "ls"], there, PATIENCE).await?;
    }
    stage.check(
        "the network is on all hosts",
        format!("{} ms later", made.elapsed().as_millis()),
        true,
    )?;
    stage.show(h3, &["network", "ls"]).await?;
    for (host, name) in hosts.into_iter().zip(SANDBOXES) {
        let command: &[&str] = if name == "web" && find_program("iperf3") {
            &["iperf3", "-s"]
        } else {
            &["sleep", "3600"]
        };
        let args = [&["run", "-d", "--name", name, "--network", "blue", "--"], command].concat();
        stage.show(host, &args).await?;
    }
    let all = |endpoints: &Vec<Endpoint>| endpoints.len() == 3;
    let mut endpoints = Vec::new();
    for host in hosts {
        endpoints = stage.until(host, &["endpoint", "ls"], all, PATIENCE).await?;
    }
    stage.show(h1, &["endpoint", "ls"]).await?;
    let [web, app, db] = SANDBOXES;
    Ok([
        actor(stage, &endpoints, h1, web).await?,
        actor(stage, &endpoints, h2, app).await?,
        actor(stage, &endpoints, h3, db).await?,
    ])
}

async fn actor(
    stage: &Stage<'_>,
    endpoints: &[Endpoint],
    host: HostName,
    name: &'static str,
) -> Result<Actor, ApiError> {
    let sandboxes: Vec<Sandbox> = stage.ask(host, &["sandbox", "ls"]).await?;
    let netns = sandboxes.iter().find(|sandbox| sandbox.name.as_str() == name);
    let endpoint = endpoints.iter().find(|endpoint| endpoint.name.as_str() == name);
    let ip = |v4: bool| endpoint?.ips.iter().map(ipnet::IpNet::addr).find(|ip| ip.is_ipv4() == v4);
    match (ip(true), ip(false), netns) {
        (Some(v4), Some(v6), Some(sandbox)) => {
            Ok(Actor { name, host, v4, v6, netns: PathBuf::from(&sandbox.netns) })
        }
        _ => Err(stage::failed(format!("sandbox {name} of {host} has no addresses"))),
    }
}

async fn pings(stage: &mut Stage<'_>, actors: &[Actor; 3]) -> Result<(), ApiError> {
    let [web, app, db] = actors;
    stage.title("4. Sandboxes on different hosts are on one Ethernet")?;
    for (from, to) in [(app, web.v4), (db, web.v6)] {
        let to = to.to_string();
        stage
            .show(from.host, &["exec", from.name, "--", "ping", "-n", "-c", "3", "-i", "0.2", &to])
            .await?;
    }
    let (mut asked, mut answered) = (0, 0);
    for from in actors {
        for to in actors.iter().filter(|to| to.name != from.name).flat_map(|to| [to.v4, to.v6]) {
            asked += 1;
            answered += u32::from(answers(stage, from, to, "5").await?);
        }
    }
    let measured = format!("{answered} of {asked} pairs, IPv4 and IPv6");
    stage.check("every sandbox reaches every other", measured, answered == asked)
}

async fn answers(
    stage: &Stage<'_>,
    from: &Actor,
    to: IpAddr,
    wait: &str,
) -> Result<bool, ApiError> {
    let to = to.to_string();
    let args = ["exec", from.name, "--", "ping", "-n", "-c", "1", "-W", wait, &to];
    Ok(stage.run(from.host, &args).await?.status == 0)
}

async fn streams(stage: &mut Stage<'_>, actors: &[Actor; 3]) -> Result<(), ApiError> {
    let [web, app, db] = actors;
    stage.title("5. TCP between hosts")?;
    if find_program("iperf3") {
        let to = web.v4.to_string();
        let args = ["exec", app.name, "--", "iperf3", "-f", "m", "-t", "2", "-c", &to];
        stage
            .show_lines(app.host, &args, |line| line.ends_with("Retr") || line.contains("receiver"))
            .await?;
    }
    for (version, to, ip) in [("IPv4", web, web.v4), ("IPv6", db, db.v6)] {
        stage
            .remark(&format!("a TCP connection from {} to {ip}, every byte compared", app.name))?;
        let limit = Limit { bytes: u64::MAX, time: STREAM };
        let arrived = transfer(stage, app, to, ip, limit).await?;
        let measured =
            format!("{} MB arrived whole, {} Mbit/s", arrived.bytes / 1_000_000, arrived.mbit());
        stage.check(&format!("TCP over {version} between hosts"), measured, arrived.bytes > 0)?;
    }
    Ok(())
}

/// Sends the marker from one sandbox to an address of another.
async fn transfer(
    stage: &Stage<'_>,
    from: &Actor,
    to: &Actor,
    ip: IpAddr,
    limit: Limit,
) -> Result<Arrived, ApiError> {
    let what = || format!("no TCP connection from {} to {}", from.name, to.name);
    let listener = inside(stage, to, || stream::listen(ip)).or_fail(what)?;
    let port = listener.local_addr().or_fail(what)?.port();
    let sender =
        inside(stage, from, || stream::connect(SocketAddr::new(ip, port))).or_fail(what)?;
    let work = move || stream::transfer(sender, &listener, MARKER, limit);
    let arrived = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
    stage.interrupt().check()?;
    arrived.or_fail(what)
}

/// Does something in the network namespace of a sandbox.
fn inside<T: Send>(
    stage: &Stage<'_>,
    actor: &Actor,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, EnterError> {
    let host = LabDir::open(stage.lab()).and_then(|lab| Host::open(&lab, actor.host));
    let host = host.map_err(|gone| EnterError::Enter(io::Error::other(gone.message)))?;
    host.inside().in_netns(&actor.netns, work)
}

async fn wire(stage: &mut Stage<'_>, web: &Actor, app: &Actor) -> Result<(), ApiError> {
    stage.title("6. The wire between the hosts shows nothing of it")?;
    let text = String::from_utf8_lossy(MARKER.trim_ascii());
    stage.remark(&format!("{} sends to {} over TCP, 1 MB of \"{text}\"", app.name, web.name))?;
    stage.remark(
        "all packets are captured twice: on web's eth0, and on the wire between the hosts",
    )?;
    let (clear, sealed) = capture_both(stage, web, app).await?;
    for (place, seen) in [("web's eth0", &clear), ("the wire", &sealed)] {
        stage.remark(&format!(
            "{place}: {} packets, {} with the text; how one begins:",
            seen.packets, seen.with_text
        ))?;
        for line in hexdump(&seen.sample, 0, LINES) {
            stage.printed(&line)?;
        }
    }
    let measured = format!("in {} of {} packets", clear.with_text, clear.packets);
    stage.check("the capture finds the text in a sandbox", measured, clear.with_text > 0)?;
    let measured =
        format!("in {} of {} packets, {} bytes", sealed.with_text, sealed.packets, sealed.bytes);
    let all = sealed.bytes > MARKER_BYTES;
    stage.check("the wire shows none of it", measured, sealed.with_text == 0 && all)
}

async fn capture_both(
    stage: &Stage<'_>,
    web: &Actor,
    app: &Actor,
) -> Result<(Seen, Seen), ApiError> {
    let what = || "cannot capture packets".to_owned();
    let wire = Path::new(NETNS_DIR).join(stage.lab().wire_netns());
    let clear = inside(stage, web, capture::open).or_fail(what)?;
    let sealed = in_machine_netns(&wire, capture::open).or_fail(what)?;
    let (clear, sealed) = (Capture::start(clear, MARKER), Capture::start(sealed, MARKER));
    let limit = Limit { bytes: MARKER_BYTES, time: PATIENCE };
    let arrived = transfer(stage, app, web, web.v4, limit).await;
    let (clear, sealed) = (clear.finish(), sealed.finish());
    arrived?;
    Ok((clear.or_fail(what)?, sealed.or_fail(what)?))
}

async fn death(
    stage: &mut Stage<'_>,
    hosts: [HostName; 3],
    app: &Actor,
    db: &Actor,
) -> Result<(), ApiError> {
    let [h1, h2, h3] = hosts;
    let is = |state: &'static str| {
        let name = h3.to_string();
        move |nodes: &Vec<Node>| {
            nodes.iter().any(|node| node.name.as_str() == name && node.state == state)
        }
    };
    stage.title("7. A host fails, the others notice, it comes back")?;
    stage.prompt(&format!("vxmesh lab --name {} kill {h3}", stage.lab()))?;
    super::kill(stage.lab(), h3).await?;
    let killed = Instant::now();
    for host in [h1, h2] {
        stage.until(host, &["node", "ls"], is("dead"), PATIENCE).await?;
    }
    let measured = format!("after {:.1} s", killed.elapsed().as_secs_f64());
    stage.check("the others see that h3 is dead", measured, true)?;
    stage.show(h1, &["node", "ls"]).await?;
    stage.prompt(&format!("vxmesh lab --name {} start {h3}", stage.lab()))?;
    let started = Instant::now();
    super::start(stage.lab(), h3).await?;
    let end = Instant::now() + PATIENCE;
    while !answers(stage, app, db.v4, "0.3").await? {
        if Instant::now() > end {
            return Err(stage::failed(format!("{} does not answer again", db.name)));
        }
    }
    let measured = format!("{:.1} s after the start of its agent", started.elapsed().as_secs_f64());
    stage.check("its sandbox answers again", measured, true)?;
    stage.until(h1, &["node", "ls"], is("alive"), PATIENCE).await?;
    stage.show(h1, &["node", "ls"]).await?;
    Ok(())
}
