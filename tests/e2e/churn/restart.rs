//! An agent that dies takes nothing with it (I9), and `lab down` takes everything.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use vxmesh_tests::lab::{Allowed, UNDERWAY};

use super::world::{DEADLINE, Lab, inside, ip, tell, wait_until};

/// One round trip is expected well within it.
const PATIENCE: Duration = Duration::from_millis(50);
/// Ten times the aim.
const TOO_LONG: Duration = Duration::from_secs(20);

/// Two sockets that send to each other until both have heard the other.
fn both_ways(one: &UdpSocket, two: &UdpSocket) -> Result<()> {
    let (to_two, to_one) = (two.local_addr()?, one.local_addr()?);
    let end = Instant::now() + DEADLINE;
    let mut mark = [0; 8];
    let stamp = std::process::id().to_be_bytes();
    let (mut heard_one, mut heard_two) = (false, false);
    while !(heard_one && heard_two) {
        ensure!(Instant::now() < end, "one hears: {heard_one}, two hears: {heard_two}");
        one.send_to(&stamp, to_two)?;
        two.send_to(&stamp, to_one)?;
        heard_two |= two.recv(&mut mark).is_ok();
        heard_one |= one.recv(&mut mark).is_ok();
    }
    Ok(())
}

fn drain(socket: &UdpSocket) {
    while socket.recv(&mut [0; 8]).is_ok() {}
}

fn echo(stream: &mut TcpStream, peer: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 4];
    stream.write_all(b"ping")?;
    peer.read_exact(&mut buffer)?;
    peer.write_all(&buffer)?;
    stream.read_exact(&mut buffer)?;
    ensure!(&buffer == b"ping", "{buffer:?}");
    Ok(())
}

fn stop_agent(lab: &Lab, host: &str, signal: Signal) -> Result<()> {
    if signal == Signal::SIGKILL {
        lab.lab(&["kill", host])?;
        return Ok(());
    }
    let pid = lab.pid(host, "agent")?;
    kill(Pid::from_raw(pid), signal)?;
    wait_until("the agent ends", || Ok(!runs(pid)))?;
    Ok(())
}

fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn i9_an_agent_that_ends_and_starts_interrupts_nothing() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let web = lab.run_sandbox("h1", "blue", "web")?;
    let plain = lab.attach("h1", "blue", "plain")?;
    let far = lab.run_sandbox("h2", "blue", "far")?;
    let web_netns = lab.netns("h1", "/run/vxmesh/sandbox/web")?;
    let plain_netns = lab.netns("h1", "/run/netns/plain")?;
    let far_netns = lab.netns("h2", "/run/vxmesh/sandbox/far")?;
    wait_until("h2 knows both", || {
        Ok(lab.json("h2", &["endpoint", "ls"])?.as_array().map(Vec::len) == Some(3))
    })?;

    let bind = |address: std::net::IpAddr| {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let (web_ip, plain_ip, far_ip) = (ip(&web)?, ip(&plain)?, ip(&far)?);
    let web_udp = inside(&web_netns, || bind(web_ip))?;
    let plain_udp = inside(&plain_netns, || bind(plain_ip))?;
    let far_udp = inside(&far_netns, || bind(far_ip))?;
    both_ways(&web_udp, &far_udp)?;
    both_ways(&plain_udp, &far_udp)?;
    let listener = inside(&web_netns, || Ok(TcpListener::bind((web_ip, 0))?))?;
    let to: SocketAddr = listener.local_addr()?;
    let mut client = inside(&far_netns, || Ok(TcpStream::connect_timeout(&to, DEADLINE)?))?;
    let (mut server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(DEADLINE))?;
    }
    echo(&mut client, &mut server)?;

    let interfaces = || {
        let script = "for run in 'ip netns exec plain' 'vxmesh exec web --'; do $run ip -o addr show scope global; $run ip -o link; done";
        lab.sh("h1", script)
    };
    let before = (interfaces()?, lab.json("h1", &["endpoint", "ls"])?, lab.pins("h1")?);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        stop_agent(&lab, "h1", signal)?;
        // Sent while nobody carries it: TCP has to bring it later.
        client.write_all(b"late")?;
        [&web_udp, &plain_udp, &far_udp].into_iter().for_each(drain);
        let start = Instant::now();
        lab.lab(&["start", "h1"])?;
        let ready = start.elapsed();
        both_ways(&web_udp, &far_udp)?;
        both_ways(&plain_udp, &far_udp)?;
        let talks = start.elapsed();
        tell(&format!("{signal}: ready after {ready:?}, talks after {talks:?} (aim 2 s)"));
        ensure!(talks < TOO_LONG, "{talks:?}");
        let mut late = [0; 4];
        server.read_exact(&mut late)?;
        ensure!(&late == b"late", "{late:?}");
        echo(&mut client, &mut server)?;
        let after = (interfaces()?, lab.json("h1", &["endpoint", "ls"])?, lab.pins("h1")?);
        assert_eq!(before, after, "{signal}");
        wait_until("the hosts agree", || lab.agree(&["h1", "h2"]))?;
    }
    // What the other sealed with the keys of the last life, and what was sent before it was heard.
    lab.finish(Allowed { drops: &["unknown_index", "fdb_unknown"], ..Allowed::default() })
}

#[test]
fn what_went_while_the_agent_was_away_is_tidied_up() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    lab.vx("h1", &["network", "create", "red"])?;
    lab.run_sandbox("h1", "blue", "web")?;
    lab.attach("h1", "red", "plain")?;
    assert_eq!(lab.pins("h1")?.len(), 3);
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "ip netns del plain; kill -9 $(pidof sleep)")?;
    lab.lab(&["start", "h1"])?;
    // The sandbox's supervisor may be at it, too.
    wait_until("nothing is left", || Ok(lab.pins("h1")?.is_empty()))?;
    assert_eq!(lab.json("h1", &["endpoint", "ls"])?, serde_json::json!([]));
    // The namespace that went is told of. What was in a TAP when its endpoint went may be judged
    // after it.
    lab.finish(Allowed { warnings: &["its sandbox is gone"], drops: UNDERWAY })
}

#[test]
fn an_agent_killed_amid_changes_leaves_no_half_endpoint() -> Result<()> {
    let rounds = if std::env::var_os("VXMESH_FULL").is_some() { 50 } else { 8 };
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    lab.sh("h1", "ip netns add plain")?;
    for round in 0..rounds {
        std::thread::scope(|scope| -> Result<()> {
            let changes = scope.spawn(|| {
                let script = "while vxmesh endpoint attach blue --netns plain --name e && vxmesh endpoint detach e; do :; done";
                lab.sh("h1", &format!("{{ {script}; }} >/dev/null 2>&1; true"))
            });
            // Another moment each time.
            std::thread::sleep(Duration::from_millis(30 + 7 * round));
            lab.lab(&["kill", "h1"])?;
            changes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(())
        })?;
        lab.lab(&["start", "h1"])?;
        let endpoints = lab.json("h1", &["endpoint", "ls"])?;
        let whole = endpoints.as_array().map_or(0, Vec::len);
        let cables = lab.sh("h1", "ip -n plain -o link | grep -vc ' lo:' || true")?;
        assert_eq!(cables, whole.to_string(), "round {round}: {endpoints}");
        assert_eq!(lab.pins("h1")?.len(), whole, "round {round}");
        if whole == 1 {
            lab.vx("h1", &["endpoint", "detach", "e"])?;
        }
        assert!(lab.pins("h1")?.is_empty(), "round {round}");
    }
    // A half endpoint is told of.
    lab.finish(Allowed { warnings: &["never wholly attached"], drops: UNDERWAY })
}

#[test]
fn down_removes_everything_though_all_was_killed() -> Result<()> {
    let links = || -> Result<BTreeSet<_>> {
        fs::read_dir("/sys/class/net")?.map(|entry| Ok(entry?.file_name())).collect()
    };
    let before = links()?;
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    lab.run_sandbox("h1", "blue", "web")?;
    lab.attach("h2", "blue", "plain")?;
    let holders = [lab.pid("h1", "holder")?, lab.pid("h2", "holder")?];
    let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let spaces: Vec<_> = holders.iter().map(|pid| space(*pid)).collect();
    let mut processes = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        if spaces.contains(&space(pid)) && space(pid).is_some() {
            processes.insert(pid);
        }
    }
    // Holder and agent on each host, supervisor and command of the sandbox.
    assert!(processes.len() >= 6, "{processes:?}");
    for pid in processes.iter().rev() {
        // Those of a namespace go with its first process.
        let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    lab.lab(&["down"])?;
    for pid in &processes {
        assert!(!runs(*pid), "process {pid} runs");
    }
    assert!(!lab.dir("h1").exists(), "files are left");
    assert!(!fs::read_to_string("/proc/self/mountinfo")?.contains(lab.name()));
    for host in ["h1", "h2", "wire"] {
        assert!(!Path::new("/run/netns").join(format!("{}-{host}", lab.name())).exists());
    }
    assert_eq!(links()?, before);
    lab.finish(Allowed::default())
}

#[test]
fn an_endpoint_goes_with_its_cable_where_its_network_was_not_adopted() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    for name in ["one", "two"] {
        lab.attach("h1", "blue", name)?;
    }
    let pins = lab.pins("h1")?;
    ensure!(pins.len() == 1, "{pins:?}");
    lab.lab(&["kill", "h1"])?;
    for pin in &pins {
        lab.sh(
            "h1",
            &format!("nsenter --net=/run/vxmesh/netns/{pin} ip link add tap0 type bridge"),
        )?;
    }
    lab.lab(&["start", "h1"])?;
    wait_until("it is not adopted", || Ok(lab.log("h1")?.contains("endpoint not adopted")))?;
    let links = |name: &str| lab.sh("h1", &format!("ip -n {name} -o link"));
    for name in ["one", "two"] {
        ensure!(links(name)?.contains("eth0"), "a sandbox keeps its interface: {}", links(name)?);
    }
    for name in ["one", "two"] {
        lab.vx("h1", &["endpoint", "detach", name])?;
        ensure!(!links(name)?.contains("eth0"), "its address may be another's: {}", links(name)?);
    }
    ensure!(lab.pins("h1")?.is_empty(), "{:?}", lab.pins("h1")?);
    lab.finish(Allowed { warnings: &["endpoint not adopted"], ..Allowed::default() })
}

#[test]
fn what_stands_in_an_endpoints_way_does_not_end_it() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    lab.attach("h1", "blue", "plain")?;
    let before = lab.json("h1", &["endpoint", "ls"])?;
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "ip -n plain link del eth0 && ip -n plain link add eth0 type bridge")?;
    lab.lab(&["start", "h1"])?;
    wait_until("it is not adopted", || Ok(lab.log("h1")?.contains("endpoint not adopted")))?;
    assert_eq!(lab.json("h1", &["endpoint", "ls"])?, before);
    lab.sh("h1", "ip -n plain link del eth0")?;
    wait_until("it is adopted after all", || Ok(lab.log("h1")?.contains("adopted after all")))?;
    assert_eq!(lab.json("h1", &["endpoint", "ls"])?, before);
    let address = before[0]["ips"][0].as_str().unwrap_or_default().to_owned();
    let shown = lab.sh("h1", "ip -n plain -o address show eth0")?;
    ensure!(shown.contains(&address), "{shown}");
    lab.finish(Allowed { warnings: &["endpoint not adopted"], ..Allowed::default() })
}
