//! Names follow a sandbox's networks: what it finds, and how others find it.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use vxmesh::api::Endpoint;
use vxmesh_tests::{
    lab::{Allowed, DEADLINE, Lab, Plugged, UNDERWAY, tell, wait_until},
    netns::NetNs,
    program::printed,
    traffic::listen,
};

use super::{connect, disconnect, ip, run};

/// A name is gone everywhere this soon after its endpoint; ten times as much fails.
const GONE: Duration = Duration::from_secs(1);

/// How long a slow server thinks.
const THOUGHT: Duration = Duration::from_millis(2500);

/// What a program in a sandbox prints.
fn inside(lab: &Lab, at: &Plugged, script: &str) -> Result<String> {
    let words = ["exec", at.sandbox.name.as_str(), "--", "sh", "-c", script];
    printed(script, lab.try_vxmesh(&at.host, &words)?)
}

/// The addresses of one IP version that libc finds.
fn found(lab: &Lab, at: &Plugged, name: &str) -> Result<String> {
    inside(lab, at, &format!("getent ahostsv4 {name} | grep STREAM | cut -d' ' -f1 | sort | xargs"))
}

#[test]
fn a_sandbox_finds_the_names_of_its_networks_and_is_found_in_them() -> Result<()> {
    let lab = Lab::up(3)?;
    for network in ["blue", "red"] {
        lab.network("h1", network)?;
    }
    let a = run(&lab, "h1", "a", &["--network", "name=blue,alias=in-blue", "--alias", "all"])?;
    let (in_blue, in_red) = (lab.sandbox("h2", "blue", "web")?, lab.sandbox("h3", "red", "web")?);
    let (blue_web, red_web) = (ip(&in_blue.endpoint, true)?, ip(&in_red.endpoint, true)?);
    wait_until("blue", || Ok(found(&lab, &a, "web")? == blue_web.to_string()))?;
    ensure!(found(&lab, &a, "web.red")?.is_empty(), "a name of another network");

    let end = connect(&lab, &a, "red", &["--alias", "in-red,in.red", "--gw-priority", "-1"])?;
    let (a_blue, a_red) = (ip(&a.endpoint, true)?, ip(&end, true)?);
    // A name that is in both is the first network's; each says its own by its network.
    for (name, address) in [("web", blue_web), ("web.blue", blue_web), ("web.red", red_web)] {
        ensure!(found(&lab, &a, name)? == address.to_string(), "{name}");
    }
    let resolv = inside(&lab, &a, "cat /etc/resolv.conf")?;
    ensure!(resolv.lines().any(|line| line.starts_with("search blue red")), "{resolv}");
    let hosts = inside(&lab, &a, "cat /etc/hosts")?;
    for line in [format!("{a_blue} a a.blue"), format!("{a_red} a a.red")] {
        ensure!(hosts.lines().any(|it| it == line), "{hosts}");
    }
    // Each network has its own aliases.
    for (at, name, address) in [
        (&in_blue, "in-blue", a_blue),
        (&in_blue, "all", a_blue),
        (&in_red, "in-red", a_red),
        (&in_red, "in.red", a_red),
        (&in_red, "a", a_red),
    ] {
        ensure!(found(&lab, at, name)? == address.to_string(), "{name}");
    }
    ensure!(found(&lab, &in_blue, "in-red")?.is_empty() && found(&lab, &in_red, "all")?.is_empty());
    for (at, address, name) in [
        (&a, blue_web, "web.blue."),
        (&a, red_web, "web.red."),
        (&in_red, a_red, "a.red."),
        (&in_blue, a_blue, "a.blue."),
    ] {
        let back = inside(&lab, at, &format!("dig +short -x {address}"))?;
        ensure!(back == name, "{address}: {back}");
    }

    // The other way round with a priority, and the order stays over a restart.
    disconnect(&lab, &a, "red")?;
    connect(&lab, &a, "red", &["--gw-priority", "1"])?;
    ensure!(found(&lab, &a, "web")? == red_web.to_string(), "red is the first now");
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("names are back", || Ok(found(&lab, &a, "web")? == red_web.to_string()))?;
    let resolv = inside(&lab, &a, "cat /etc/resolv.conf")?;
    ensure!(resolv.lines().any(|line| line.starts_with("search red blue")), "{resolv}");

    disconnect(&lab, &a, "red")?;
    // What blue's other host has may be heard again later than what red's has.
    wait_until("blue alone", || Ok(found(&lab, &a, "web")? == blue_web.to_string()))?;
    ensure!(found(&lab, &a, "web.red")?.is_empty(), "a name of a network that it left");
    let files = inside(&lab, &a, "cat /etc/resolv.conf /etc/hosts")?;
    ensure!(files.contains("search blue") && !files.contains("red"), "{files}");
    ensure!(inside(&lab, &a, &format!("dig +short -x {red_web}"))? != "web.red.");
    wait_until("its name is gone", || Ok(found(&lab, &in_red, "a")?.is_empty()))?;
    let drops =
        &["dns_upstream_failed", "unknown_index", "source_unknown", "fdb_unknown", "not_local"];
    lab.finish(Allowed { warnings: &["h1"], drops })
}

/// What is written is never half there, so that no program's question goes elsewhere.
#[test]
fn files_are_whole_at_every_moment() -> Result<()> {
    let lab = Lab::up(1)?;
    for network in ["blue", "a-network-with-a-long-name"] {
        lab.network("h1", network)?;
    }
    let a = lab.sandbox("h1", "blue", "a")?;
    let file = a.sandbox.etc.clone().map(|etc| lab.path("h1", &format!("{etc}/resolv.conf")));
    let file = file.ok_or_else(|| anyhow::anyhow!("no files"))??;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !over.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&file)?;
                let whole =
                    text.contains("nameserver 127.0.0.11\n") && text.contains("options ndots:");
                ensure!(whole && text.contains("search ") && text.contains("blue"), "{text:?}");
                reads += 1;
            }
            Ok(reads)
        });
        let changed = (0..5).try_for_each(|_| {
            connect(&lab, &a, "a-network-with-a-long-name", &[])?;
            disconnect(&lab, &a, "a-network-with-a-long-name").map(drop)
        });
        over.store(true, Ordering::Relaxed);
        let reads = reader.join().map_err(|_panic| anyhow::anyhow!("the reader panicked"))??;
        ensure!(reads > 100, "read {reads} times only");
        changed
    })?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

/// A web server that has one answer.
struct Web {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Web {
    fn start(netns: &NetNs) -> Result<Self> {
        let listener = netns.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, 80))?))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _from)) => {
                        stream.set_nonblocking(false)?;
                        stream.set_read_timeout(Some(GONE))?;
                        // One whose address goes meanwhile says no more, and that is not ours to
                        // judge.
                        drop(stream.read(&mut [0; 1024]));
                        drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nok\n"));
                    }
                    Err(_nobody) => thread::sleep(Duration::from_millis(1)),
                }
            }
            Ok(())
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// One alias on two endpoints: while one of them leaves, whoever asks by name gets an answer each
/// time.
#[test]
fn an_alias_is_handed_over_without_a_failed_request() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.network("h1", "blue")?;
    let client = lab.sandbox("h1", "blue", "client")?;
    let workers = [("h2", "one"), ("h3", "two")];
    let flags = ["--network", "name=blue,alias=svc"];
    let [one, two] = workers.map(|(host, name)| run(&lab, host, name, &flags));
    let (one, two) = (one?, two?);
    let webs = [Web::start(&one.netns)?, Web::start(&two.netns)?];
    let all = [&client, &one, &two];
    let count =
        |at: &Plugged| Ok::<_, anyhow::Error>(found(&lab, at, "tasks.svc")?.split(' ').count());
    wait_until("both have it", || Ok(count(&client)? == 2))?;
    // Each time curl gets the address of one of them.
    let script = "until [ -e /run/over ]; do curl -sf -m 9 http://svc/ || echo failed $?; done";
    let said = tempfile::NamedTempFile::new()?;
    let mut requests = lab
        .command(&["exec", "h1", "--", "vxmesh", "exec", "client", "--", "sh", "-c", script])?
        .stdout(said.reopen()?)
        .spawn()?;
    let handed = || {
        for turn in 0..3 {
            let leaves = if turn % 2 == 0 { &one } else { &two };
            disconnect(&lab, leaves, "blue")?;
            let begun = Instant::now();
            for at in all.into_iter().filter(|at| at.host != leaves.host) {
                wait_until("one has it", || Ok(count(at)? == 1))?;
            }
            let took = begun.elapsed();
            tell(&format!("an alias was gone everywhere {took:?} after its endpoint"));
            ensure!(took < GONE * 10, "{took:?}");
            let before = fs::read_to_string(said.path())?.len();
            wait_until("the other one answers", || {
                Ok(fs::read_to_string(said.path())?.len() > before + 30)
            })?;
            connect(&lab, leaves, "blue", &["--alias", "svc"])?;
            for at in all {
                wait_until("both have it again", || Ok(count(at)? == 2))?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let handed = handed();
    inside(&lab, &client, "touch /run/over")?;
    requests.wait()?;
    handed?;
    let said = fs::read_to_string(said.path())?;
    let (asked, failed) = (said.lines().count(), said.lines().filter(|line| *line != "ok"));
    let failed: Vec<&str> = failed.collect();
    ensure!(failed.is_empty() && asked > 30, "of {asked} requests failed {failed:?}");
    tell(&format!("{asked} requests while an alias was handed over, none failed"));
    drop(webs);
    // Who still asks for an address that went, and connections of a server's last address that go
    // on by its next interface.
    let drops = [UNDERWAY, &["neighbor_unknown", "ip_spoofed"]].concat();
    lab.finish(Allowed { drops: &drops, ..Allowed::default() })
}

/// Whoever connects just after a sandbox has lost its name is answered, though that takes longer
/// than anybody is on the way to it.
fn the_last_caller_is_answered(lab: &Lab, client: &Plugged) -> Result<()> {
    let late = lab.sandbox("h2", "blue", "late")?;
    let listener = late.netns.run(|| Ok(listen((Ipv4Addr::UNSPECIFIED, 80))?))?;
    let to = SocketAddr::new(ip(&late.endpoint, true)?, 80);
    wait_until("it is known", || Ok(!found(lab, client, "late")?.is_empty()))?;
    thread::scope(|scope| {
        let serving = scope.spawn(move || -> Result<()> {
            let (mut caller, _from) = listener.accept()?;
            let begun = Instant::now();
            wait_until("it has thought", || Ok(begun.elapsed() >= THOUGHT))?;
            Ok(caller.write_all(b"done")?)
        });
        let going = scope.spawn(|| lab.vxmesh("h2", &["sandbox", "rm", "late"]));
        wait_until("its name is gone", || Ok(found(lab, client, "late")?.is_empty()))?;
        let mut stream = client.netns.run(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)?))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer == "done", "the last caller heard {answer:?}");
        for part in [going.join().map(|gone| gone.map(drop)), serving.join()] {
            part.map_err(|_panic| anyhow::anyhow!("it panicked"))??;
        }
        Ok(())
    })?;
    Ok(())
}

/// Whoever was led to an endpoint before it loses its names still reaches it, whichever way it
/// goes.
#[test]
fn names_go_before_links() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.network("h1", "blue")?;
    let client = lab.sandbox("h1", "blue", "client")?;
    let server = lab.sandbox("h2", "blue", "server")?;
    lab.sh("h2", "ip netns add plain")?;
    let plain = ["endpoint", "attach", "blue", "--netns", "plain", "--name", "plain"];
    let plain: Endpoint = lab.json("h2", &plain)?;
    let left = lab.sandbox("h2", "blue", "left")?;
    the_last_caller_is_answered(&lab, &client)?;
    for (name, to, goes) in [
        ("server", ip(&server.endpoint, true)?, &["sandbox", "rm", "server"][..]),
        ("plain", ip(&plain, true)?, &["endpoint", "detach", "plain"]),
        ("left", ip(&left.endpoint, true)?, &["leave", "--yes"]),
    ] {
        wait_until("it is known", || Ok(!found(&lab, &client, name)?.is_empty()))?;
        // One program looks, so that a busy machine has nothing to start in the second that counts.
        let looks = format!(
            "touch /run/looks-{name}; while getent ahostsv4 {name} >/dev/null; do :; done; \
             while ping -n -c 1 -W 0.5 {to} >/dev/null; do echo reached; done"
        );
        let reached = thread::scope(|scope| -> Result<_> {
            let looking = scope.spawn(|| inside(&lab, &client, &looks));
            let looks_at = lab.path("h1", &format!("/run/looks-{name}"))?;
            wait_until("somebody looks", || Ok(looks_at.exists()))?;
            lab.vxmesh("h2", goes)?;
            let reached = looking.join().map_err(|_panic| anyhow::anyhow!("it panicked"))??;
            Ok(reached.lines().count())
        })?;
        tell(&format!("`{}`: reached {reached} times when the name was gone", goes.join(" ")));
        ensure!(reached > 0, "{name} could not be reached when its name was gone");
    }
    // Nobody is waited for where nobody could have asked.
    lab.vxmesh("h1", &["network", "create", "alone"])?;
    lab.sandbox("h1", "alone", "only")?;
    let begun = Instant::now();
    lab.vxmesh("h1", &["sandbox", "rm", "only"])?;
    tell(&format!("a sandbox alone in its network was removed in {:?}", begun.elapsed()));
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
