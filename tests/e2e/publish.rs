//! Published ports: reached from everywhere with the client's own address, held, kept over the
//! agent's end, and gone.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vxmesh::api::{Endpoint, Published, Sandbox};
use vxmesh_tests::{
    lab::{Allowed, DEADLINE, Lab, Plugged, UNDERWAY, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::listen,
};

use crate::egress::{STRICT, host_ip, ip_of, settles, state};

/// `run -d` with these ports published.
pub(crate) fn publish(
    lab: &Lab,
    host: &str,
    network: &str,
    name: &str,
    ports: &[&str],
) -> Result<Plugged> {
    let mut run = vec!["run", "-d", "--name", name, "--network", network];
    for port in ports {
        run.extend(["--publish", port]);
    }
    run.extend(["--", "sleep", "3600"]);
    let sandbox: Sandbox = lab.json(host, &run)?;
    let id = sandbox.endpoints.first().context("a sandbox without endpoints")?;
    let endpoint: Endpoint = lab.get(host, &format!("/v1/endpoints/{id}"))?;
    ensure!(endpoint.published == sandbox.published, "{endpoint:?}, {sandbox:?}");
    let netns = lab.inner(host, &sandbox.netns)?;
    Ok(Plugged { host: host.to_owned(), sandbox, endpoint, netns })
}

pub(crate) fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn local() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

/// Calls a published port over TCP, also where nothing listens yet or no more.
fn refused(client: &NetNs, to: SocketAddr, sandbox: &NetNs, port: u16) -> Result<()> {
    let answered = call_tcp(client, to, sandbox, port);
    ensure!(answered.is_err(), "{to} led to {answered:?}");
    Ok(())
}

#[test]
fn a_published_port_is_reached_from_everywhere_with_the_clients_address() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    for network in ["blue", "red"] {
        lab.network("h1", network)?;
    }
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    sh(&h1, STRICT)?;
    let web = publish(&lab, "h1", "blue", "web", &["8080:80", "8080:80/udp"])?;
    for (ipv4, theirs) in [(true, outside::IPV4), (false, outside::IPV6)] {
        let to = at(host_ip(1, ipv4)?, 8080);
        for (client, expected) in
            [(&outside.netns, theirs), (&h2, host_ip(2, ipv4)?), (&h1, host_ip(1, ipv4)?)]
        {
            let seen =
                [call_tcp(client, to, &web.netns, 80)?, call_udp(client, to, &web.netns, 80)?];
            ensure!(seen == [expected; 2], "{expected} calls {to}, which sees {seen:?}");
        }
    }
    // The host's loopback has no address that could be answered.
    for call in [call_tcp, call_udp] {
        ensure!(call(&h1, at(local(), 8080), &web.netns, 80)? == host_ip(1, true)?);
    }
    // Sandboxes of the same network, of another one, of another host, and the sandbox itself.
    let near = lab.sandbox("h1", "blue", "near")?;
    let other = lab.sandbox("h1", "red", "other")?;
    let far = lab.sandbox("h2", "blue", "far")?;
    for ipv4 in [true, false] {
        let to = at(host_ip(1, ipv4)?, 8080);
        for client in [&near, &other, &far, &web] {
            call_tcp(&client.netns, to, &web.netns, 80)
                .with_context(|| client.sandbox.name.to_string())?;
            call_udp(&client.netns, to, &web.netns, 80)?;
        }
    }
    // Only that port is open.
    refused(&outside.netns, at(host_ip(1, true)?, 8081), &web.netns, 8081)?;
    lab.finish(Allowed::default())
}

#[test]
fn bound_random_and_ranges() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let h1 = lab.host("h1")?;
    let ports =
        ["127.0.0.1:8080:80", "10.213.0.1:8081:81", "[fd13::1]:8082:82", ":83", "9000-9002:84-86"];
    let a = publish(&lab, "h1", "blue", "a", &ports)?;
    ensure!(call_tcp(&h1, at(local(), 8080), &a.netns, 80)? == host_ip(1, true)?);
    refused(&outside.netns, at(host_ip(1, true)?, 8080), &a.netns, 80)?;
    ensure!(call_tcp(&outside.netns, at(host_ip(1, true)?, 8081), &a.netns, 81)? == outside::IPV4);
    refused(&h1, at(local(), 8081), &a.netns, 81)?;
    ensure!(call_tcp(&outside.netns, at(host_ip(1, false)?, 8082), &a.netns, 82)? == outside::IPV6);
    refused(&outside.netns, at(host_ip(1, true)?, 8082), &a.netns, 82)?;
    let random: Vec<&Published> =
        a.sandbox.published.iter().filter(|one| one.sandbox_port == 83).collect();
    let [random] = random.as_slice() else { anyhow::bail!("{:?}", a.sandbox.published) };
    ensure!((30_000..=32_767).contains(&random.port), "{random}");
    ensure!(
        call_tcp(&outside.netns, at(host_ip(1, false)?, random.port), &a.netns, 83)?
            == outside::IPV6
    );
    for n in 0..3 {
        call_tcp(&outside.netns, at(host_ip(1, true)?, 9000 + n), &a.netns, 84 + n)?;
    }
    // For some clients only.
    let some = ["run", "-d", "--name", "some", "--network", "blue", "--publish", "8090:90"];
    let deny = ["--deny", "10.213.0.200,fd00::/8", "sleep", "3600"];
    let some: Sandbox = lab.json("h1", &[&some[..], &deny].concat())?;
    ensure!(some.published.iter().all(|it| it.clients.deny.len() == 2), "{:?}", some.published);
    let inside = lab.inner("h1", &some.netns)?;
    call_tcp(&h1, at(host_ip(1, true)?, 8090), &inside, 90)?;
    for ipv4 in [true, false] {
        refused(&outside.netns, at(host_ip(1, ipv4)?, 8090), &inside, 90)?;
    }
    // One port of two addresses for two sandboxes of one network.
    let b = publish(&lab, "h1", "blue", "b", &["10.213.0.1:8080:80"])?;
    call_tcp(&outside.netns, at(host_ip(1, true)?, 8080), &b.netns, 80)?;
    call_tcp(&h1, at(local(), 8080), &a.netns, 80)?;
    let shown = lab.vxmesh("h1", &["sandbox", "ls"])?;
    for words in [
        "127.0.0.1:8080->80/tcp",
        "[fd13::1]:8082->82/tcp",
        "*:9002->86/tcp",
        "10.213.0.1:8080->80/tcp",
    ] {
        ensure!(shown.contains(words), "{shown}");
    }
    lab.finish(Allowed::default())
}

#[test]
fn what_cannot_be_published_changes_nothing() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.network("h1", "blue")?;
    lab.vxmesh("h1", &["network", "create", "dark", "--internal"])?;
    lab.vxmesh("h1", &["network", "create", "four", "--subnet", "10.44.0.0/16"])?;
    let h1 = lab.host("h1")?;
    let before = state(&h1)?;
    let taken = h1.run(|| Ok(TcpListener::bind("10.213.0.1:5000")?))?;
    for (network, port, status, says) in [
        ("blue", "5000:80", 125, "port 5000/tcp of all addresses is in use"),
        ("blue", "10.213.0.1:5000:80", 125, "port 5000/tcp of 10.213.0.1 is in use"),
        ("blue", "7760:80/udp", 125, "port 7760/udp"),
        ("blue", "4999-5001:80-82", 125, "port 5000/tcp"),
        ("blue", "6000:80,", 2, "is no port"),
        ("blue", "6000-6001:80", 2, "give both ranges one length"),
        ("blue", "70000", 2, "is no port"),
        ("blue", "[::1]:6000:80", 2, "::1 cannot be published"),
        ("blue", "80/sctp", 2, "neither tcp nor udp"),
        ("blue", "192.0.2.7:6000:80", 125, "192.0.2.7 is no address of this host"),
        ("blue", "0:80", 2, "is no port"),
        ("blue", "6000:0", 2, "is no port"),
        ("blue", "6000-6002:80-82", 125, "port 6001/tcp is published twice"),
        ("dark", "6000:80", 125, "internal"),
        ("four", "[fd13::1]:6000:80", 125, "no subnet of fd13::1's version"),
        ("nowhere", "6000:80", 125, "nowhere"),
    ] {
        let mut run = vec!["run", "-d", "--network", network, "--publish", port];
        if says.contains("twice") {
            run.extend(["--publish", "10.213.0.1:6001:90"]);
        }
        run.extend(["--", "sleep", "60"]);
        let output = lab.try_vxmesh("h1", &run)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(status) && said.contains(says), "{port}: {output:?}");
        ensure!(said.contains("hint:") || status == 2, "{port}: {said}");
    }
    let sandboxes: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    ensure!(sandboxes.is_empty(), "{sandboxes:?}");
    settles(&h1, &before, "what was refused")?;
    drop(taken);
    // Of two sandboxes the first has the port; what the second began is undone.
    let _a = publish(&lab, "h1", "blue", "a", &["5000:80"])?;
    let run =
        ["run", "-d", "--name", "b", "--network", "blue", "--publish", "5000:80", "--", "true"];
    let output = lab.try_vxmesh("h1", &run)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{output:?}");
    ensure!(said.contains("in use on this host: sandbox `a` publishes it"), "{said}");
    // Whoever asks the agent directly is told the same.
    let spec = json!({"protocol": "tcp", "port": 0, "sandbox_port": 80});
    let spec = json!({"name": "c", "networks": [{"network": "blue"}], "publish": [spec], "command": ["true"]});
    let refused = lab.api("h1").send::<Sandbox>("POST /v1/sandboxes", &spec).err();
    let refused = format!("{:#}", refused.context("port 0 was published")?);
    ensure!(refused.contains(" 400 ") && refused.contains("0 is no port"), "{refused}");
    let sandboxes: Vec<Sandbox> = lab.get("h1", "/v1/sandboxes")?;
    ensure!(sandboxes.len() == 1, "{sandboxes:?}");
    // Nobody else can take it.
    ensure!(h1.run(|| Ok(TcpListener::bind("10.213.0.1:5000")?)).is_err());
    lab.finish(Allowed::default())
}

#[test]
fn published_ports_outlive_the_agent_and_go_with_the_sandbox() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let h1 = lab.host("h1")?;
    let before = state(&h1)?;
    let a = publish(&lab, "h1", "blue", "a", &["8080:80"])?;
    let reach = |what: &str| {
        for ipv4 in [true, false] {
            let to = at(host_ip(1, ipv4)?, 8080);
            wait_until(what, || Ok(call_tcp(&outside.netns, to, &a.netns, 80).is_ok()))?;
        }
        Ok::<_, anyhow::Error>(())
    };
    reach("at first")?;
    lab.lab(&["kill", "h1"])?;
    reach("without an agent")?;
    lab.lab(&["start", "h1"])?;
    reach("with the next agent")?;
    ensure!(h1.run(|| Ok(TcpListener::bind("10.213.0.1:8080")?)).is_err(), "the port is not held");
    sh(&h1, "nft flush ruleset")?;
    reach("after a flush")?;
    let keeper = lab.sandbox("h1", "blue", "keeper")?;
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    let rules = sh(&h1, "nft list ruleset")?;
    ensure!(!rules.contains("8080"), "{rules}");
    h1.run(|| Ok(listen("10.213.0.1:8080")?)).context("the port is free")?;
    // The next one may have it, and is not taken for the last.
    let b = publish(&lab, "h1", "blue", "b", &["8080:80"])?;
    ensure!(ip_of(&b, true)? != ip_of(&keeper, true)?);
    call_udp(&outside.netns, at(ip_of(&b, true)?, 1), &b.netns, 80).err().context("a way in")?;
    call_tcp(&outside.netns, at(host_ip(1, true)?, 8080), &b.netns, 80)?;
    for name in ["b", "keeper"] {
        lab.vxmesh("h1", &["sandbox", "rm", name])?;
    }
    settles(&h1, &before, "after the last sandbox")?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

/// A connection to a published port, whose ends never pause.
struct Call {
    client: TcpStream,
    server: TcpStream,
    rounds: AtomicU32,
}

impl Call {
    fn open(client: &NetNs, to: SocketAddr, sandbox: &NetNs, port: u16) -> Result<Self> {
        let listener = sandbox.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, port))?))?;
        let client = client.run(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)?))?;
        let (server, _from) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(DEADLINE))?;
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server, rounds: AtomicU32::new(0) })
    }

    /// Sends a byte there and back until it is told to stop.
    fn talk(&self, stop: &AtomicBool) -> Result<()> {
        let mut byte = [0];
        while !stop.load(Ordering::Relaxed) {
            for (mut from, mut to) in [(&self.client, &self.server), (&self.server, &self.client)] {
                from.write_all(&byte)?;
                to.read_exact(&mut byte)?;
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until it has gone on for a while, unless it broke off.
    fn goes_on(&self, is_over: impl Fn() -> bool) -> Result<()> {
        let enough = self.rounds.load(Ordering::Relaxed) + 100;
        wait_until("the connection goes on", || {
            Ok(is_over() || self.rounds.load(Ordering::Relaxed) >= enough)
        })
    }
}

#[test]
fn connections_to_ports_of_several_networks_outlive_the_agent() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    let h1 = lab.host("h1")?;
    let mut calls = Vec::new();
    let mut sandboxes = Vec::new();
    for (network, port) in [("blue", 8080), ("red", 8081), ("green", 8082)] {
        lab.network("h1", network)?;
        let sandbox = publish(&lab, "h1", network, network, &[&format!("{port}:80")])?;
        for ipv4 in [true, false] {
            let to = at(host_ip(1, ipv4)?, port);
            calls.push(Call::open(&outside.netns, to, &sandbox.netns, 80)?);
        }
        sandboxes.push(sandbox);
    }
    // Their numbers tell whether they are the same still.
    let tables = || sh(&h1, "nft -a list tables");
    let before = tables()?;
    ensure!(before.contains("vxmesh"), "{before}");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let talks: Vec<_> = calls.iter().map(|call| scope.spawn(|| call.talk(&stop))).collect();
        let restarted = (|| {
            for call in &calls {
                call.goes_on(|| talks.iter().any(thread::ScopedJoinHandle::is_finished))?;
            }
            lab.lab(&["kill", "h1"])?;
            lab.lab(&["start", "h1"])?;
            for call in &calls {
                call.goes_on(|| talks.iter().any(thread::ScopedJoinHandle::is_finished))?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let talked = talks.into_iter().try_for_each(|talk| {
            talk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        talked.and(restarted)
    })?;
    ensure!(tables()? == before, "the host's rules were replaced");
    lab.finish(Allowed::default())
}
