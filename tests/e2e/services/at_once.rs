//! One service that is changed on several hosts at the same time: no change is lost.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use vxmesh::api::{DnsRecord, Endpoint, Network, Service};
use vxmesh_tests::lab::{Allowed, Lab, tell, wait_until};

use super::settled;

/// Each has another moment.
const ROUNDS: u8 = 8;
/// Ten times the aim, for a machine that does other things, too.
const TOO_LONG: Duration = Duration::from_secs(10);

/// A node that was dead, and its new endpoints, speak before they are known.
const MENDED: &[&str] = &[
    "backend_unknown",
    "no_session",
    "unknown_index",
    "unknown_peer",
    "not_a_member",
    "source_unknown",
    "source_not_owned",
];

/// Network blue with two backends on h2, and service web.
fn up() -> Result<Lab> {
    let lab = Lab::up(3)?;
    let create = ["network", "create", "blue", "--subnet", "10.71.0.0/24"];
    let _blue: Network = lab.json("h1", &create)?;
    wait_until("the network is there", || {
        Ok(lab.try_vxmesh("h2", &["network", "inspect", "blue"])?.status.success())
    })?;
    let backends = ["a", "b"].map(|name| lab.sandbox("h2", "blue", name));
    let endpoints: Vec<Endpoint> =
        backends.into_iter().map(|it| Ok(it?.endpoint)).collect::<Result<_>>()?;
    lab.all_know(&endpoints.iter().collect::<Vec<_>>())?;
    let make = ["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    let backends = ["--backend", "a", "--backend", "b", "--drain", "1h"];
    lab.vxmesh("h1", &[&make[..], &backends].concat())?;
    settled(&lab, "web", 2)?;
    Ok(lab)
}

fn web(lab: &Lab, host: &str) -> Result<Service> {
    let services: Vec<Service> = lab.get(host, "/v1/services")?;
    services.into_iter().next().context("no service")
}

/// Changes the service on each of these hosts, in the same moment.
fn change(lab: &Lab, changes: &[(&str, Vec<String>)]) -> Result<()> {
    thread::scope(|scope| {
        let runs: Vec<_> = changes
            .iter()
            .map(|(host, words)| {
                scope.spawn(move || {
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    lab.vxmesh(host, &[&["service"][..], &words].concat())
                })
            })
            .collect();
        for run in runs {
            run.join().map_err(|_panic| anyhow!("it panicked"))??;
        }
        Ok(())
    })
}

/// Waits until all hosts show these ports, weights of a and b, and whether a drains.
fn all_show(lab: &Lab, ports: &[u16], weights: (u8, u8), drains: bool) -> Result<Duration> {
    let start = Instant::now();
    for host in lab.hosts() {
        wait_until(&format!("{host} shows {ports:?}, {weights:?}, {drains}"), || {
            let web = web(lab, host)?;
            let shown: Vec<u16> = web.ports.iter().map(|port| port.port).collect();
            let of = |name| web.backends.iter().find(|backend| backend.name.as_str() == name);
            let (Some(a), Some(b)) = (of("a"), of("b")) else { return Ok(false) };
            Ok(shown.len() == ports.len()
                && ports.iter().all(|port| shown.contains(port))
                && (a.weight, b.weight) == weights
                && (a.state == "draining") == drains)
        })?;
    }
    Ok(start.elapsed())
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(ToOwned::to_owned).collect()
}

#[test]
fn what_hosts_change_of_a_service_at_the_same_time_all_counts() -> Result<()> {
    let lab = up()?;
    let (mut ports, mut times) = (vec![80], Vec::new());
    for round in 1..=ROUNDS {
        let drains = round % 2 == 1;
        let drain = if drains { "drain web a" } else { "drain web a --undo" };
        change(
            &lab,
            &[
                ("h1", words(drain)),
                ("h2", words(&format!("update web --weight b={}", round + 1))),
                ("h3", words(&format!("update web --add-port {}", 90 + u16::from(round)))),
            ],
        )?;
        ports.push(90 + u16::from(round));
        times.push(all_show(&lab, &ports, (1, round + 1), drains)?);
    }
    // What is taken away on one host is so on all, whoever made it.
    change(
        &lab,
        &[("h1", words("update web --rm-port 91")), ("h2", words("update web --rm-port 92"))],
    )?;
    ports.retain(|port| ![91, 92].contains(port));
    times.push(all_show(&lab, &ports, (1, ROUNDS + 1), false)?);
    tell(&format!("what three hosts changed at once was on all after {times:?} (aim: 1 s)"));
    ensure!(times.iter().all(|took| *took < TOO_LONG), "{times:?}");
    lab.vxmesh("h3", &["service", "rm", "web"])?;
    wait_until("it is gone", || {
        let mut gone = true;
        for host in lab.hosts() {
            gone &= lab.get::<Vec<Service>>(host, "/v1/services")?.is_empty();
        }
        Ok(gone)
    })?;
    lab.finish(Allowed::default())
}

#[test]
fn what_both_sides_of_a_partition_change_of_a_service_counts_afterwards() -> Result<()> {
    let lab = up()?;
    lab.lab(&["cut", "h3"])?;
    lab.vxmesh("h3", &["service", "update", "web", "--add-port", "91", "--weight", "a=3"])?;
    lab.vxmesh("h1", &["service", "update", "web", "--add-port", "92", "--weight", "b=4"])?;
    lab.vxmesh("h2", &["service", "drain", "web", "a"])?;
    // Of one part the later word counts, on either side.
    lab.vxmesh("h1", &["service", "update", "web", "--sticky", "1m"])?;
    lab.vxmesh("h3", &["service", "update", "web", "--sticky", "2m"])?;
    lab.lab(&["heal"])?;
    let took = all_show(&lab, &[80, 91, 92], (3, 4), true)?;
    tell(&format!("both sides' changes were on all {took:?} after the partition's end"));
    for host in lab.hosts() {
        wait_until("the later time counts", || Ok(web(&lab, host)?.sticky_s == Some(120)))?;
    }
    lab.finish(Allowed { drops: MENDED, ..Allowed::default() })
}

/// Who has a name, by what this host shows: nobody before all is heard.
fn holder(lab: &Lab, host: &str, name: &str) -> Result<Option<&'static str>> {
    let services: Vec<Service> = lab.get(host, "/v1/services")?;
    let rows: Vec<Endpoint> = lab.get(host, "/v1/endpoints")?;
    let is_so = |row: &&Endpoint| {
        row.name.as_str() == name || row.aliases.iter().any(|alias| alias.as_str() == name)
    };
    let service = services.iter().find(|service| service.name.as_str() == name);
    let endpoint = rows.iter().find(is_so);
    let (Some(service), Some(endpoint)) = (service, endpoint) else { return Ok(None) };
    let marks = (service.state == "conflict", endpoint.conflict.is_some());
    let (has, id) = match marks {
        (true, false) => ("endpoint", endpoint.id.to_string()),
        (false, true) => ("service", service.id.to_string()),
        other => return Err(anyhow!("{host}: {name} is marked as {other:?}")),
    };
    // What a sandbox is told is the same.
    let told: Vec<DnsRecord> = lab.json(host, &["dns", "query", name, "--network", "blue"])?;
    let is_told = told.iter().all(|record| record.endpoint.to_string() == id);
    Ok((is_told && !told.is_empty()).then_some(has))
}

#[test]
fn of_a_service_and_an_endpoint_of_one_name_the_older_has_it() -> Result<()> {
    let lab = up()?;
    lab.lab(&["cut", "h3"])?;
    let service = |name| {
        let make = ["service", "create", name, "--network", "blue", "--port", "80"];
        lab.vxmesh("h1", &[&make[..], &["--selector", "app=none"]].concat())
    };
    let sandbox = |words: &[&str]| {
        let run = ["run", "-d", "--network", "blue"];
        lab.vxmesh("h3", &[&run[..], words, &["sleep", "1000"]].concat())
    };
    service("early")?;
    sandbox(&["--name", "early"])?;
    sandbox(&["--name", "late"])?;
    service("late")?;
    service("called")?;
    sandbox(&["--name", "x", "--alias", "called"])?;
    sandbox(&["--name", "y", "--alias", "first"])?;
    service("first")?;
    lab.lab(&["heal"])?;
    let wanted =
        [("early", "service"), ("late", "endpoint"), ("called", "service"), ("first", "endpoint")];
    for host in lab.hosts() {
        for (name, has) in wanted {
            wait_until(&format!("{host} shows that the {has} has {name}"), || {
                Ok(holder(&lab, host, name).ok().flatten() == Some(has))
            })?;
        }
    }
    // Hosts with endpoints in the network say it.
    for host in ["h2", "h3"] {
        wait_until(&format!("{host} says so of each name"), || {
            let log = lab.log(host)?;
            let said = |name: &str| {
                let what = "an endpoint and a service were given one name";
                log.lines()
                    .any(|line| line.contains(what) && line.contains(&format!("name={name} ")))
            };
            Ok(wanted.iter().all(|(name, _)| said(name)))
        })?;
    }
    lab.finish(Allowed {
        warnings: &["an endpoint and a service were given one name"],
        drops: MENDED,
    })
}
