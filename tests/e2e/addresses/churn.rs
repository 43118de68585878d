//! Many endpoints that come and go on all hosts at once, and two sides that use all they have.

use std::{
    collections::BTreeSet,
    env, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vxmesh::api::{AddressPool, Endpoint, MapRow, Network};
use vxmesh_tests::lab::{Allowed, Api, Lab, percentiles, tell, wait_until};

const HOSTS: u8 = 4;
const ROUNDS: usize = 10;

/// Makes namespaces `e0` and so on in all hosts.
fn namespaces(lab: &Lab, count: usize) -> Result<()> {
    for host in lab.hosts() {
        lab.sh(host, &format!("for n in $(seq 0 {}); do ip netns add e$n; done", count - 1))?;
    }
    Ok(())
}

fn attach(api: &Api, host: &str, network: &str, n: usize) -> Result<Endpoint> {
    let (netns, name) = (format!("/run/netns/e{n}"), format!("e{n}-{host}"));
    let spec = json!({ "network": network, "netns": netns, "name": name });
    api.send("POST /v1/endpoints", &spec)
}

/// Does work on all hosts at once, so often on each.
fn everywhere<T: Send>(
    lab: &Lab,
    count: usize,
    work: impl Fn(&Api, &str, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let work = &work;
    let hosts: Vec<(String, Api)> =
        lab.hosts().iter().map(|host| (host.clone(), lab.api(host))).collect();
    thread::scope(|scope| {
        let mut jobs = Vec::new();
        for (host, api) in &hosts {
            jobs.extend((0..count).map(|n| scope.spawn(move || work(api, host, n))));
        }
        let done = jobs.into_iter().map(|job| match job.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.collect()
    })
}

fn no_address_twice<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> Result<usize> {
    let mut seen = BTreeSet::new();
    for endpoint in endpoints {
        for ip in &endpoint.ips {
            ensure!(seen.insert(ip.addr()), "{ip} twice, at last as {}", endpoint.name);
        }
    }
    Ok(seen.len())
}

/// Rows that a host sees and the first does not, or the other way round.
fn drift(lab: &Lab) -> Result<usize> {
    let rows = |host: &str| -> Result<BTreeSet<MapRow>> { lab.get(host, "/v1/map") };
    let first = rows(lab.hosts().first().context("no host")?)?;
    let mut differences = 0;
    for host in lab.hosts() {
        differences += rows(host)?.symmetric_difference(&first).count();
    }
    Ok(differences)
}

fn nothing_is_left(lab: &Lab, host: &str, network: &Network) -> Result<()> {
    let left =
        lab.sh(host, "ls /run/vxmesh/netns 2>/dev/null; ls /sys/class/net | sort | xargs")?;
    ensure!(left == "eth0 lo", "{host}: {left}");
    let links = lab.sh(
        host,
        "for n in /run/netns/e*; do ip -n ${n##*/} -o link; done | grep -vc ' lo: ' || true",
    )?;
    ensure!(links == "0", "{host}: {links} interfaces are left in sandboxes");
    let pools: Vec<AddressPool> = lab.get(host, "/v1/ipam")?;
    let own = pools.iter().filter(|pool| pool.network == network.id);
    for pool in own {
        ensure!(pool.used == 0, "{host}: addresses are left: {pool:?}");
    }
    Ok(())
}

#[test]
fn many_endpoints_come_and_go_on_all_hosts_at_once() -> Result<()> {
    let count = if env::var_os("VXMESH_FULL").is_some() { 50 } else { 5 };
    let lab = Lab::up(HOSTS)?;
    let network = lab.network("h1", "crowd")?;
    namespaces(&lab, count)?;
    let all = count * usize::from(HOSTS);
    let (mut attaches, mut detaches, mut drifted) = (Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        let made = everywhere(&lab, count, |api, host, n| {
            let start = Instant::now();
            let endpoint = attach(api, host, "crowd", n)?;
            Ok((host.to_owned(), endpoint, start.elapsed()))
        })?;
        no_address_twice(made.iter().map(|(_, endpoint, _)| endpoint))?;
        attaches.extend(made.iter().map(|(.., time)| *time));
        for host in lab.hosts() {
            wait_until("all endpoints are known", || {
                let known: Vec<Endpoint> = lab.get(host, "/v1/endpoints")?;
                no_address_twice(&known)?;
                Ok(known.len() == all)
            })?;
        }
        drifted += drift(&lab)?;
        let made = &made;
        let took = everywhere(&lab, count, |api, host, n| {
            let mut own = made.iter().filter(|(at, ..)| at == host);
            let (_, endpoint, _) = own.nth(n).context("fewer endpoints than were made")?;
            let start = Instant::now();
            let path = format!("DELETE /v1/endpoints/{}", endpoint.id);
            let _gone: Endpoint = api.send(&path, &Value::Null)?;
            Ok(start.elapsed())
        })?;
        detaches.extend(took);
        for host in lab.hosts() {
            wait_until("all endpoints are gone", || {
                Ok(lab.get::<Vec<Endpoint>>(host, "/v1/endpoints")?.is_empty())
            })?;
            nothing_is_left(&lab, host, &network).with_context(|| format!("round {round}"))?;
        }
        drifted += drift(&lab)?;
    }
    let (p50, p99) = percentiles(&attaches);
    tell(&format!(
        "{count} at once on each of {HOSTS} hosts, {ROUNDS} rounds: attach p50 {p50:.1?}, p99 {p99:.1?}"
    ));
    let (p50, p99) = percentiles(&detaches);
    tell(&format!("detach p50 {p50:.1?}, p99 {p99:.1?}; drift {drifted}"));
    ensure!(drifted == 0, "hosts differed in {drifted} rows when they were quiet");
    let drops = ["source_unknown", "source_not_owned", "not_a_member", "neighbor_unknown"];
    lab.finish(Allowed { drops: &drops, ..Allowed::default() })
}

#[test]
fn endpoints_attached_at_once_wait_together_for_a_node_that_hangs() -> Result<()> {
    /// How long each waits for the node's acknowledgement.
    const TOLD: Duration = Duration::from_millis(150);
    /// After this a connection on which nothing comes may have ended, and nobody waits for it.
    const GIVEN_UP: Duration = Duration::from_secs(2);
    const COUNT: u32 = 40;
    let lab = Lab::up(2)?;
    lab.network("h1", "crowd")?;
    let count = usize::try_from(COUNT)?;
    namespaces(&lab, count + 3)?;
    let api = &lab.api("h1");
    let mut all = vec![attach(api, "h1", "crowd", count)?];
    lab.lab(&["cut", "h2"])?;
    let cut = Instant::now();
    // Its connection counts until it was idle for long, so it is waited for: before and after what
    // is measured.
    let mut alone = TOLD;
    let mut waits = |n: usize| -> Result<Endpoint> {
        let (start, is_known) = (Instant::now(), cut.elapsed() < GIVEN_UP);
        let made = attach(api, "h1", "crowd", n)?;
        let took = start.elapsed();
        ensure!(took >= TOLD || !is_known, "nobody was waited for: {took:?}");
        alone = alone.max(took);
        Ok(made)
    };
    all.push(waits(count + 1)?);
    let start = Instant::now();
    let made = thread::scope(|scope| {
        let mut jobs = Vec::new();
        jobs.extend((0..count).map(|n| scope.spawn(move || attach(api, "h1", "crowd", n))));
        let done = jobs.into_iter().map(|job| match job.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.collect::<Result<Vec<_>>>()
    })?;
    let took = start.elapsed();
    all.push(waits(count + 2)?);
    all.extend(made);
    no_address_twice(&all)?;
    tell(&format!("{COUNT} at once beside a node that hangs: {took:.1?}"));
    // One after the other they could not be faster than that.
    ensure!(took < alone * COUNT, "{COUNT} endpoints took {took:?}, one alone {alone:?}");
    lab.lab(&["heal"])?;
    lab.all_know(&all.iter().collect::<Vec<_>>())
}

#[test]
fn endpoints_detached_while_they_are_attached_leave_nothing() -> Result<()> {
    const COUNT: usize = 8;
    let lab = Lab::up(2)?;
    let network = lab.network("h1", "crowd")?;
    namespaces(&lab, COUNT)?;
    let api = &lab.api("h1");
    // Each is shown while it waits for this node, and then plugged in, if it is still there.
    lab.lab(&["cut", "h2"])?;
    let refused = thread::scope(|scope| -> Result<usize> {
        let mut jobs = Vec::new();
        jobs.extend((0..COUNT).map(|n| scope.spawn(move || attach(api, "h1", "crowd", n))));
        let mut detached = BTreeSet::new();
        wait_until("all are detached", || {
            for endpoint in lab.get::<Vec<Endpoint>>("h1", "/v1/endpoints")? {
                let path = format!("DELETE /v1/endpoints/{}", endpoint.id);
                let _gone: Endpoint = api.send(&path, &Value::Null)?;
                detached.insert(endpoint.id);
            }
            Ok(detached.len() == COUNT)
        })?;
        let mut refused = 0;
        for job in jobs {
            match job.join() {
                Ok(Ok(endpoint)) => ensure!(detached.contains(&endpoint.id), "{endpoint:?}"),
                Ok(Err(error)) => {
                    let said = format!("{error:#}");
                    ensure!(said.contains("removed while"), "{said}");
                    refused += 1;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(refused)
    })?;
    tell(&format!("{refused} of {COUNT} were detached before they were plugged in"));
    let known: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
    ensure!(known.is_empty(), "{known:?}");
    nothing_is_left(&lab, "h1", &network)
}

/// Attaches on these hosts in turn until none gets an address any more.
fn exhaust(lab: &Lab, hosts: &[&str]) -> Result<Vec<Endpoint>> {
    let mut made = Vec::new();
    for host in hosts {
        for n in 0.. {
            lab.sh(host, &format!("ip netns add e{n}"))?;
            let (netns, name) = (format!("e{n}"), format!("e{n}-{host}"));
            let args = [
                "--format", "json", "endpoint", "attach", "tiny", "--netns", &netns, "--name",
                &name,
            ];
            let output = lab.try_vxmesh(host, &args)?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(output.status.code() == Some(4) && said.contains("(dead) holds"), "{said}");
                break;
            }
            made.push(serde_json::from_slice(&output.stdout)?);
        }
    }
    Ok(made)
}

#[test]
fn i12_both_sides_of_a_partition_use_all_they_have_and_agree_after_it() -> Result<()> {
    let lab = Lab::up(HOSTS)?;
    let created: Network =
        lab.json("h1", &["network", "create", "tiny", "--subnet", "10.77.0.0/27"])?;
    for host in lab.hosts() {
        wait_until("the network is known", || {
            let networks: Vec<Network> = lab.get(host, "/v1/networks")?;
            Ok(networks.iter().any(|network| network.id == created.id))
        })?;
    }
    lab.lab(&["cut", "h3,h4"])?;
    let dead = |host: &str| -> Result<usize> {
        let nodes: Value = lab.get(host, "/v1/nodes")?;
        let states = nodes.as_array().into_iter().flatten();
        Ok(states.filter(|node| node["state"] == "dead").count())
    };
    for host in lab.hosts() {
        wait_until("it sees the other side as dead", || Ok(dead(host)? == 2))?;
    }
    let one = exhaust(&lab, &["h1", "h2"])?;
    let other = exhaust(&lab, &["h4", "h3"])?;
    ensure!(one.len() > 2 && other.len() > 2, "{} and {}", one.len(), other.len());
    no_address_twice(one.iter().chain(&other))?;
    lab.lab(&["heal"])?;
    let wanted: BTreeSet<_> = one.iter().chain(&other).map(|e| (e.id, e.ips.clone())).collect();
    let start = Instant::now();
    for host in lab.hosts() {
        wait_until("all endpoints of both sides are known with their addresses", || {
            let known: Vec<Endpoint> = lab.get(host, "/v1/endpoints")?;
            no_address_twice(&known)?;
            Ok(known.into_iter().map(|e| (e.id, e.ips)).collect::<BTreeSet<_>>() == wanted)
        })?;
    }
    wait_until("the maps agree", || Ok(drift(&lab)? == 0))?;
    for host in lab.hosts() {
        let pools: Vec<AddressPool> = lab.get(host, "/v1/ipam")?;
        let pool = pools.first().context("no pool")?;
        // 32 without network, broadcast and gateway: endpoints have them, and the hosts themselves.
        ensure!(
            (pool.used, pool.free) == (29, 0),
            "all addresses are used, none is lost: {pool:?}"
        );
    }
    tell(&format!(
        "healed: {} and {} endpoints known everywhere after {:?}",
        one.len(),
        other.len(),
        start.elapsed()
    ));
    let far = other.first().and_then(|e| e.ips.first()).context("no address")?.addr().to_string();
    wait_until("the other side is reached", || {
        Ok(lab
            .exec("h1", &["ip", "netns", "exec", "e0", "ping", "-c1", "-W1", &far])?
            .status
            .success())
    })?;
    ensure!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
    Ok(())
}
