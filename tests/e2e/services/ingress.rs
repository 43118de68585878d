//! Published ports of services: clients outside of the network come in by any node, and the
//! backends see them.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vxmesh::api::{Diagnosis, Network, Service};
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, call_udp, sh},
    traffic::{Echo, udp_to},
};

use super::{backends_on_two_hosts, settled};
use crate::egress::host_ip;

/// What is lost while agents that were killed start, and of connections that ended.
pub(super) const WHILE_STARTING: &[&str] = &[
    "no_backend",
    "neighbor_unknown",
    "backend_unknown",
    "flow_unknown",
    "fdb_unknown",
    "vni_unknown",
    "unknown_index",
    "unknown_peer",
];
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The network on three hosts, with web2 and web3 on the two others and a client on the first.
fn lab() -> Result<(Lab, tempfile::TempDir)> {
    // Not captured: what is between the outside and a host is in clear.
    let lab = Lab::up(3)?;
    let dir = tempfile::tempdir()?;
    backends_on_two_hosts(&lab, dir.path())?;
    Ok((lab, dir))
}

/// Publishes a service of both web servers, made on this host, and one of web2 by TCP and UDP.
pub(super) fn publish(lab: &Lab, host: &str) -> Result<()> {
    let create = ["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    let publish = ["--publish", "8080:80", "--selector", "app=web"];
    let web: Service = lab.json(host, &[&create[..], &publish].concat())?;
    ensure!(web.published.len() == 1, "{web:?}");
    settled(lab, "web", 2)?;
    let data = ["service", "create", "data", "--network", "blue", "--backend", "web2"];
    let ports = ["--port", "9000", "--port", "53:5353/udp"];
    let publish = ["--publish", "9000", "--publish", "5300:53/udp"];
    lab.vxmesh("h3", &[&data[..], &ports, &publish].concat())?;
    settled(lab, "data", 1)
}

/// How one of a service's published ports stands on a host.
pub(super) fn standing(lab: &Lab, host: &str, service: &str, port: &str) -> Result<String> {
    let service: Service = lab.json(host, &["service", "inspect", service])?;
    let row = service.published.iter().find(|row| row.port.host() == port);
    let row = row.with_context(|| format!("no {port} in {:?}", service.published))?;
    Ok(format!("{} {}", row.state, row.why.clone().unwrap_or_default()))
}

pub(super) fn is(lab: &Lab, host: &str, service: &str, port: &str, state: &str) -> Result<()> {
    wait_until(&format!("{port} is {state} on {host}"), || {
        Ok(standing(lab, host, service, port)?.starts_with(state))
    })
}

/// Who answers so many requests, and whom they see.
pub(super) fn asked(
    client: &NetNs,
    host: IpAddr,
    port: u16,
    times: usize,
) -> Result<BTreeMap<String, usize>> {
    let url = match host {
        IpAddr::V4(ip) => format!("http://{ip}:{port}/cgi-bin/who"),
        IpAddr::V6(ip) => format!("http://[{ip}]:{port}/cgi-bin/who"),
    };
    let script = format!("for i in $(seq {times}); do curl -g -sS -m 5 '{url}' || echo lost; done");
    let mut answers = BTreeMap::new();
    for line in sh(client, &script)?.lines() {
        let line = line.replace("[::ffff:", "").replace(['[', ']'], "");
        *answers.entry(line).or_insert(0) += 1;
    }
    Ok(answers)
}

/// Connections to published ports of the tests that the kernel of a host has in mind and leads on:
/// who answers is not who was asked. Those of its own clients to other hosts are not.
fn led(host: &NetNs) -> Result<Vec<String>> {
    let all = sh(host, "conntrack -L -f ipv4 2>/dev/null && conntrack -L -f ipv6 2>/dev/null")?;
    let word = |line: &str, key: &str, nth: usize| {
        line.split_whitespace().filter_map(|it| it.strip_prefix(key)).nth(nth).map(str::to_owned)
    };
    let is_led = |line: &&str| {
        let port = word(line, "dport=", 0);
        let is_published = port.is_some_and(|it| ["8080", "9000", "5300"].contains(&it.as_str()));
        is_published && word(line, "dst=", 0) != word(line, "src=", 1)
    };
    Ok(all.lines().filter(is_led).map(str::to_owned).collect())
}

/// Whether a connection to this port is refused at once.
pub(super) fn is_refused(client: &NetNs, to: SocketAddr) -> Result<bool> {
    let refused = client.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)))?;
    Ok(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}

/// Nothing is left of published ports when their services are gone.
fn leaves_nothing(lab: &Lab, outside: &Outside) -> Result<()> {
    for number in 1..=3 {
        let led = led(&lab.host(&format!("h{number}"))?)?;
        ensure!(!led.is_empty(), "h{number} knows no connection that could be left");
    }
    for service in ["web", "data"] {
        lab.vxmesh("h2", &["service", "rm", service])?;
    }
    for number in 1..=3 {
        let host = lab.host(&format!("h{number}"))?;
        wait_until("nothing is left on the host", || {
            let left = sh(
                &host,
                "nft list ruleset | grep -cE '8080|9000|5300'; ss -ltun | grep -cE ':(8080|9000|5300) '; true",
            )?;
            Ok(left.split_whitespace().all(|count| count == "0") && led(&host)?.is_empty())
        })?;
        let at = SocketAddr::new(host_ip(number, true)?, 8080);
        ensure!(is_refused(&outside.netns, at)?, "{at} is open");
    }
    Ok(())
}

#[test]
fn clients_from_outside_come_in_by_any_node_and_are_seen_by_the_backends() -> Result<()> {
    let (lab, _dir) = lab()?;
    let outside = Outside::join(&lab)?;
    publish(&lab, "h1")?;
    for host in lab.hosts() {
        is(&lab, host, "web", "8080", "open")?;
        is(&lab, host, "data", "5300", "open")?;
    }
    let backend = lab.inner("h2", &sandbox_netns(&lab, "h2", "web2")?)?;
    for number in 1..=3 {
        for (ipv4, theirs) in [(true, outside::IPV4), (false, outside::IPV6)] {
            let host = host_ip(number, ipv4)?;
            wait_until("the first answer comes", || {
                Ok(!asked(&outside.netns, host, 8080, 1)?.contains_key("lost"))
            })?;
            let got = asked(&outside.netns, host, 8080, 20)?;
            let expected = [format!("web2 {theirs}"), format!("web3 {theirs}")];
            ensure!(got.keys().eq(&expected), "by h{number}: {got:?}");
            let seen = [
                call_tcp(&outside.netns, (host, 9000).into(), &backend, 9000)?,
                call_udp(&outside.netns, (host, 5300).into(), &backend, 5353)?,
            ];
            ensure!(seen == [theirs; 2], "by h{number}: {seen:?}");
            // The host itself, and sandboxes by the host.
            let own = asked(&lab.host(&format!("h{number}"))?, host, 8080, 4)?;
            ensure!(own.keys().all(|answer| answer.starts_with("web")), "{own:?}");
        }
    }
    let loopback = asked(&lab.host("h1")?, "127.0.0.1".parse()?, 8080, 4)?;
    ensure!(loopback.keys().all(|answer| answer.starts_with("web")), "{loopback:?}");
    let large = sh(
        &outside.netns,
        &format!("ping -c 1 -W 5 {} > /dev/null && echo up", host_ip(1, true)?),
    )?;
    ensure!(large.trim() == "up", "{large}");

    // Sandboxes of this network and of another one, by a port of their own host and of others.
    lab.vxmesh("h1", &["network", "create", "red"])?;
    lab.sandbox("h1", "red", "other")?;
    for client in ["c", "other"] {
        for number in [1, 2] {
            for ipv4 in [true, false] {
                let url =
                    format!("http://{}/cgi-bin/who", SocketAddr::new(host_ip(number, ipv4)?, 8080));
                let curl = ["exec", client, "--", "curl", "-g", "-sS", "-m", "5", &url];
                let said = lab.vxmesh("h1", &curl).with_context(|| format!("{client}, {url}"))?;
                ensure!(said.starts_with("web"), "{client}, {url}: {said}");
            }
        }
    }

    // Nobody answers: refused at once, as is all that is gone.
    let at = SocketAddr::new(host_ip(1, true)?, 8080);
    for (host, name) in [("h2", "web2"), ("h3", "web3")] {
        lab.vxmesh(host, &["sandbox", "rm", name])?;
    }
    settled(&lab, "web", 0)?;
    wait_until("without a backend it refuses", || is_refused(&outside.netns, at))?;
    leaves_nothing(&lab, &outside)?;
    lab.finish(Allowed {
        drops: &["service_port", "no_backend", "neighbor_unknown", "backend_unknown"],
        ..Allowed::default()
    })
}

/// A published port whose service has no address of the client's IP version: refused at once, and
/// not swallowed, by a host with an endpoint in the network and by one without.
#[test]
fn a_version_that_leads_nowhere_is_refused_at_once() -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    for (name, subnet, port) in [("four", "10.73.0.0/24", "8091"), ("six", "fd73::/64", "8092")] {
        let _network: Network = lab.json("h1", &["network", "create", name, "--subnet", subnet])?;
        let backend = lab.sandbox("h1", name, &format!("b{name}"))?;
        let _server = Echo::start_on(&backend.netns, 9000)?;
        let tcp = format!("{port}:80");
        let udp = format!("{port}:80/udp");
        let mut make = vec!["service", "create", name, "--network", name, "--backend"];
        let named = format!("b{name}");
        make.extend([named.as_str(), "--port", "80:9000", "--port", "80:9000/udp"]);
        make.extend(["--publish", &tcp, "--publish", &udp]);
        let service: Service = lab.json("h2", &make)?;
        ensure!(service.vips.len() == 1, "{service:?}");
        for (number, host) in [(1, "h1"), (2, "h2")] {
            is(&lab, host, name, port, "open")?;
            let port = port.parse()?;
            let leads = name == "four";
            let at = SocketAddr::new(host_ip(number, leads)?, port);
            wait_until("its own version leads to the backend", || {
                Ok(outside.netns.run(|| Ok(TcpStream::connect_timeout(&at, PATIENCE)))?.is_ok())
            })?;
            let at = SocketAddr::new(host_ip(number, !leads)?, port);
            let begun = Instant::now();
            ensure!(is_refused(&outside.netns, at)?, "TCP to {at} is not refused");
            let socket = outside.netns.run(|| udp_to(at.ip(), at.port()))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let said = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 1]));
            let is_told = said.as_ref().is_err_and(|it| it.kind() == ErrorKind::ConnectionRefused);
            ensure!(is_told, "UDP to {at}: {said:?}");
            ensure!(begun.elapsed() < PATIENCE, "{at} refuses after {:?}", begun.elapsed());
        }
    }
    lab.finish(Allowed::default())
}

pub(super) fn sandbox_netns(lab: &Lab, host: &str, name: &str) -> Result<String> {
    let sandboxes: Vec<vxmesh::api::Sandbox> = lab.get(host, "/v1/sandboxes")?;
    let sandbox = sandboxes.into_iter().find(|it| it.name.as_str() == name);
    Ok(sandbox.context("no such sandbox")?.netns)
}

/// A connection that says and hears one byte.
pub(super) fn beats(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    client.write_all(b"a")?;
    server.read_exact(&mut byte).context("the backend hears nothing")?;
    server.write_all(b"b")?;
    client.read_exact(&mut byte).context("the client hears nothing")
}

#[test]
fn connections_from_outside_go_on_while_agents_are_killed() -> Result<()> {
    let (lab, _dir) = lab()?;
    let outside = Outside::join(&lab)?;
    let create = ["service", "create", "data", "--network", "blue", "--backend", "web2"];
    let ports = ["--port", "9000", "--publish", "9000"];
    lab.vxmesh("h1", &[&create[..], &ports].concat())?;
    settled(&lab, "data", 1)?;
    let backend = lab.inner("h2", &sandbox_netns(&lab, "h2", "web2")?)?;
    let listener = backend.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 9000))?))?;
    let mut pairs = Vec::new();
    for (number, ipv4) in [(1, true), (1, false), (2, true), (3, false)] {
        is(&lab, &format!("h{number}"), "data", "9000", "open")?;
        let to = SocketAddr::new(host_ip(number, ipv4)?, 9000);
        let mut client = None;
        wait_until("it is open", || {
            let stream = outside.netns.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)))?;
            client = stream.ok();
            Ok(client.is_some())
        })?;
        let (mut client, mut server) = (client.context("no stream")?, listener.accept()?.0);
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        }
        beats(&mut client, &mut server)?;
        pairs.push((number, client, server));
    }
    // The one that they came in by, the backend's, and one that has both.
    for host in ["h1", "h2", "h3"] {
        lab.lab(&["kill", host])?;
        lab.lab(&["start", host])?;
        for (number, client, server) in &mut pairs {
            beats(client, server).with_context(|| format!("by h{number}, {host} anew"))?;
        }
        let to = SocketAddr::new(host_ip(1, true)?, 9000);
        wait_until("new ones come in, too", || {
            let new = outside.netns.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)))?;
            let Ok(mut new) = new else { return Ok(false) };
            new.set_read_timeout(Some(PATIENCE))?;
            beats(&mut new, &mut listener.accept()?.0)?;
            Ok(true)
        })?;
    }
    lab.finish(Allowed { drops: WHILE_STARTING, ..Allowed::default() })
}

/// Ports on hosts with backends only, and at an address of one host.
fn led_elsewhere(lab: &Lab, outside: &Outside, id: &str) -> Result<()> {
    let change = ["--rm-publish", "8080:80", "--add-publish", "8082:80,mode=host"];
    lab.vxmesh("h2", &[&["service", "update", id], &change[..]].concat())?;
    for (host, state) in [("h1", "closed"), ("h2", "open"), ("h3", "open")] {
        is(lab, host, "web", "8082", state)?;
    }
    for number in [2, 3] {
        let by = host_ip(number, true)?;
        wait_until("it answers", || Ok(!asked(&outside.netns, by, 8082, 1)?.contains_key("lost")))?;
        let got = asked(&outside.netns, by, 8082, 10)?;
        ensure!(
            got.len() == 1 && got.contains_key(&format!("web{number} {}", outside::IPV4)),
            "{got:?}"
        );
    }
    ensure!(is_refused(&outside.netns, (host_ip(1, true)?, 8082).into())?);
    let change = ["--rm-publish", "8082:80", "--add-publish", "10.213.0.1::80"];
    let web: Service = lab.json("h2", &[&["service", "update", id], &change[..]].concat())?;
    let port = &web.published.first().context("nothing published")?.port;
    ensure!(port.port.port.is_some_and(|port| (30_000..=32_767).contains(&port)), "{port}");
    is(lab, "h1", "web", &port.host(), "open")?;
    is(lab, "h2", "web", &port.host(), "elsewhere")?;
    let rows = lab.vxmesh("h3", &["service", "ls"])?;
    ensure!(rows.contains(&format!("{}->80/tcp", port.host())), "{rows}");
    Ok(())
}

/// Clients whose addresses are not meant are refused, also in a connection that there was before.
fn only_for_some(lab: &Lab, outside: &Outside, service: &str) -> Result<()> {
    let change =
        |change: &[&str]| lab.vxmesh("h2", &[&["service", "update", service], change].concat());
    change(&[
        "--add-publish",
        "8083:80",
        "--allow",
        "10.213.0.1,fd13::/64",
        "--deny",
        "fd13::200",
    ])?;
    let at = |ipv4| Ok::<SocketAddr, anyhow::Error>((host_ip(2, ipv4)?, 8083).into());
    let h1 = lab.host("h1")?;
    for ipv4 in [true, false] {
        wait_until("it is for h1", || {
            let got = asked(&h1, host_ip(2, ipv4)?, 8083, 1)?;
            Ok(!got.contains_key("lost"))
        })?;
        ensure!(is_refused(&outside.netns, at(ipv4)?)?, "IPv4 {ipv4}: it is for all");
    }
    change(&["--allow", "10.213.0.0/24", "--deny", "none"])?;
    let open = || outside.netns.run(|| Ok(TcpStream::connect(at(true)?)?));
    wait_until("it is for the outside", || Ok(open().is_ok()))?;
    ensure!(is_refused(&h1, at(false)?)?, "nobody is allowed by IPv6");
    let mut stream = open()?;
    change(&["--deny", "10.213.0.200"])?;
    wait_until("it is not for the outside", || is_refused(&outside.netns, at(true)?))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")?;
    ensure!(stream.read(&mut [0; 1]).is_err(), "its connection goes on");
    Ok(())
}

#[test]
fn a_port_has_one_holder_and_says_which_hosts_have_it() -> Result<()> {
    let (lab, _dir) = lab()?;
    let outside = Outside::join(&lab)?;
    let h3 = lab.host("h3")?;
    let taken = h3.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080))?))?;
    let create = ["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    let answers = ["--selector", "app=web"];
    let web: Service =
        lab.json("h1", &[&create[..], &answers, &["--publish", "8080:80"]].concat())?;
    settled(&lab, "web", 2)?;
    is(&lab, "h1", "web", "8080", "open")?;
    is(&lab, "h3", "web", "8080", "taken port 8080/tcp of all addresses is in use")?;
    wait_until("h1 knows it", || {
        let web: Service = lab.json("h1", &["service", "inspect", "web"])?;
        Ok(web.taken_on.len() == 1)
    })?;
    let found: Vec<Diagnosis> = {
        let output = lab.try_vxmesh("h3", &["--format", "json", "doctor"])?;
        serde_json::from_slice(&output.stdout)?
    };
    let is_told = |it: &Diagnosis| it.found.contains("service `web` is not published");
    ensure!(found.iter().any(is_told), "{found:?}");
    drop(taken);
    is(&lab, "h3", "web", "8080", "open")?;
    wait_until("h1 knows that, too", || {
        let web: Service = lab.json("h1", &["service", "inspect", "web"])?;
        Ok(web.taken_on.is_empty())
    })?;

    // Nobody else has it, whichever network and host.
    lab.vxmesh("h1", &["network", "create", "red", "--subnet", "10.72.0.0/24"])?;
    lab.vxmesh("h1", &["network", "create", "dark", "--internal"])?;
    let id = &web.id.to_string();
    let refused = |host: &str, args: &[&str], status, says: &str| -> Result<()> {
        let output = lab.try_vxmesh(host, args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(status), "{args:?}: {output:?}");
        ensure!(said.contains(says) && (status == 2 || said.contains("hint:")), "{args:?}: {said}");
        Ok(())
    };
    let other = |network, rest: &[&'static str]| {
        let create = ["service", "create", "other", "--network", network, "--backend", "x"];
        [&create[..], &["--port", "80"], rest].concat()
    };
    let run = ["run", "--rm", "--network", "blue", "--publish", "8080:80", "true"];
    refused("h2", &run, 125, "service `web` publishes it")?;
    let by_web = "port 10.213.0.9:8080 of the hosts is published by service `web`";
    refused("h1", &other("red", &["--publish", "8080:80"]), 4, "service `web`")?;
    refused("h1", &other("red", &["--publish", "10.213.0.9:8080:80"]), 4, by_web)?;
    refused("h1", &other("dark", &["--publish", "8081:80"]), 2, "is internal")?;
    refused("h1", &other("red", &["--publish", "8081:81"]), 2, "no port 81")?;
    refused("h1", &other("red", &["--publish", "[fd13::1]:8081:80"]), 2, "fd13::1's version")?;
    refused(
        "h1",
        &other("red", &["--publish", "8081:80,mode=any"]),
        2,
        "mode=ingress or mode=host",
    )?;
    let dnsrr = ["--mode", "dnsrr", "--publish", "8081:80"];
    refused("h1", &other("red", &dnsrr), 2, "`--publish` says nothing of it")?;
    refused("h1", &["service", "update", id, "--add-publish", "8081:99"], 2, "no port 99")?;
    refused("h1", &["service", "update", id, "--rm-publish", "99:80"], 3, "does not publish")?;
    let both = ["--publish", "8081:80", "--publish", "8082:80,mode=host"];
    refused("h1", &other("red", &both), 2, "in both modes")?;

    led_elsewhere(&lab, &outside, id)?;
    only_for_some(&lab, &outside, id)?;
    // Whoever asks the agent directly is told the same.
    let spec = json!({"name": "c", "network": "red", "ports": ["80"], "backends": ["x"], "published": ["0:80"]});
    let told = lab.api("h1").send::<Service>("POST /v1/services", &spec).err();
    ensure!(format!("{told:?}").contains("400"), "{told:?}");
    let drops = ["no_backend", "neighbor_unknown", "backend_unknown"];
    lab.finish(Allowed { drops: &drops, ..Allowed::default() })
}
