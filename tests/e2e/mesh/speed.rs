//! How long others wait for what one host did. The aims are DESIGN's; a machine under load gets ten
//! times as long.

use std::{
    io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Endpoint, Network};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, percentiles, tell, wait_until},
    traffic::udp_to,
};

const ROUNDS: usize = 24;
const NETWORK_AIM: Duration = Duration::from_secs(1);
const ANSWER_AIM: Duration = Duration::from_millis(200);
/// The discard port: nobody listens, and the sandbox's own kernel says so.
const NOBODY: u16 = 9;

#[test]
fn a_network_is_on_all_hosts_at_once() -> Result<()> {
    let lab = Lab::up(3)?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let creator = lab.hosts().get(round % lab.hosts().len()).context("no host")?;
        let network: Network = lab.json(creator, &["network", "create", &format!("n{round}")])?;
        let created = Instant::now();
        let listed = |host: &str| -> Result<bool> {
            let networks: Vec<Network> = lab.get(host, "/v1/networks")?;
            Ok(networks.iter().any(|listed| listed.id == network.id))
        };
        for host in lab.hosts() {
            wait_until("the network is listed", || listed(host))?;
        }
        times.push(created.elapsed());
        lab.vxmesh(creator, &["network", "rm", network.name.as_str()])?;
        for host in lab.hosts() {
            wait_until("the network is gone", || Ok(!listed(host)?))?;
        }
    }
    judge("network create -> listed on all hosts", &times, NETWORK_AIM)?;
    lab.finish(Allowed::default())
}

#[test]
fn a_new_endpoint_answers_other_hosts_at_once() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.network("h1", "blue")?;
    let asker = lab.sandbox("h2", "blue", "asker")?;
    let (mut run, mut attach) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let host = if round % 2 == 0 { "h1" } else { "h3" };
        let name = format!("r{round}");
        let (plugged, done) = (lab.sandbox(host, "blue", &name)?, Instant::now());
        run.push(first_answers(&asker, &plugged.endpoint, done)?);
        lab.vxmesh(host, &["sandbox", "rm", &name])?;
        drop(plugged);

        lab.sh(host, &format!("ip netns add {name}"))?;
        let args = ["endpoint", "attach", "blue", "--netns", &name, "--name", &name];
        let (endpoint, done): (Endpoint, _) = (lab.json(host, &args)?, Instant::now());
        attach.push(first_answers(&asker, &endpoint, done)?);
        lab.vxmesh(host, &["endpoint", "detach", &name])?;
        lab.sh(host, &format!("ip netns del {name}"))?;
    }
    judge("run -d -> first answers, v4 and v6", &run, ANSWER_AIM)?;
    judge("endpoint attach -> first answers, v4 and v6", &attach, ANSWER_AIM)?;
    lab.finish(Allowed {
        drops: &["neighbor_unknown", "source_unknown", "source_not_owned", "not_a_member"],
        ..Allowed::default()
    })
}

/// How long after `done` both addresses have answered a sandbox on another host.
fn first_answers(asker: &Plugged, endpoint: &Endpoint, done: Instant) -> Result<Duration> {
    thread::scope(|scope| {
        let asking: Vec<_> = endpoint
            .ips
            .iter()
            .map(|ip| scope.spawn(move || first_answer(asker, ip.addr(), done)))
            .collect();
        let mut longest = Duration::ZERO;
        for asked in asking {
            let time = match asked.join() {
                Ok(time) => time?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            longest = longest.max(time);
        }
        Ok(longest)
    })
}

fn first_answer(asker: &Plugged, to: IpAddr, done: Instant) -> Result<Duration> {
    asker.netns.run(|| {
        let socket = udp_to(to, NOBODY)?;
        socket.set_read_timeout(Some(Duration::from_millis(2)))?;
        let mut answered = false;
        wait_until(&format!("{to} answers"), || {
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            let asked = socket.send(b"?").map(drop);
            let heard = asked.and_then(|()| socket.recv(&mut [0; 1]).map(drop));
            answered |= heard.is_err_and(|error| refused(&error));
            Ok(answered)
        })?;
        Ok(done.elapsed())
    })
}

fn judge(what: &str, times: &[Duration], aim: Duration) -> Result<()> {
    let (p50, p99) = percentiles(times);
    tell(&format!("{what}: p50 {p50:.1?}, p99 {p99:.1?} of {} (aim {aim:?})", times.len()));
    ensure!(p99 < aim * 10, "{what}: p99 {p99:?} is more than ten times the aim of {aim:?}");
    Ok(())
}
