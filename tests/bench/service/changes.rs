//! How long it takes from `service update` on one node until a client of another has the new
//! choice: on a quiet mesh, and beside many services whose backends change once a second.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};

use crate::{
    eprint_step,
    lab::{Lab, own_path},
    load::Metric,
    table::Table,
};

const NETWORK: &str = "changes";
const SERVICES: usize = 200;
const BACKENDS: usize = 20;
/// How often a backend of all of them comes or goes.
const BEAT: Duration = Duration::from_secs(1);
const PORT: &str = "7001";
/// From the command's start, and from its end.
const STARTED: Metric = Metric { name: "since the command began", unit: "ms" };
const SAID: Metric = Metric { name: "since it said that it is done", unit: "ms" };

/// Both as a table.
pub(super) fn measure(vxmesh: &Path, rounds: u32) -> Result<String> {
    let lab = Lab::up(vxmesh, 2)?;
    lab.cli("h1", &["network", "create", NETWORK, "--subnet", "10.99.0.0/16"])?;
    lab.attach_as("h1", (NETWORK, "client"), "client")?;
    lab.attach_as("h2", (NETWORK, "nobody"), "nobody")?;
    lab.attach_as("h2", (NETWORK, "server"), "server")?;
    let own = own_path()?;
    let mut pong = lab.spawn("h2", &["ip", "netns", "exec", "server", &own, "pong", PORT])?;
    let port = format!("{PORT}/udp");
    let words = ["service", "create", "one", "--network", NETWORK, "--port", &port];
    let made = lab.cli("h1", &[&words[..], &["--backend", "nobody"]].concat())?;
    let vip = made["vips"][0].as_str().context("no VIP")?.to_owned();

    let mut table = Table::new("quiet");
    let measured = change_often(&lab, &vip, ("quiet", rounds), &mut table)
        .and_then(|()| crowd(&lab))
        .and_then(|()| beside_changes(&lab, &vip, rounds, &mut table));
    pong.kill()?;
    pong.wait()?;
    measured?;
    Ok(format!("\nFrom `service update` to a client's next choice on another node:\n\n{table}"))
}

/// Many services with the same backends.
fn crowd(lab: &Lab) -> Result<()> {
    eprint_step(&format!("{SERVICES} services of {BACKENDS} backends"));
    for number in 0..BACKENDS {
        let name = format!("backend{number}");
        lab.attach_as("h2", (NETWORK, &name), &name)?;
        lab.cli("h2", &["endpoint", "update", &name, "--label", "app=crowd"])?;
    }
    for number in 0..SERVICES {
        let name = format!("service{number}");
        let words = ["service", "create", &name, "--network", NETWORK, "--port", "80"];
        lab.cli("h1", &[&words[..], &["--selector", "app=crowd"]].concat())?;
    }
    Ok(())
}

/// Measures while a backend of all the services comes or goes at each beat.
fn beside_changes(lab: &Lab, vip: &str, rounds: u32, table: &mut Table) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let labels = ["app=none", "app=crowd"];
            for label in labels.iter().cycle() {
                let begin = Instant::now();
                lab.cli("h2", &["endpoint", "update", "backend0", "--label", label])?;
                while begin.elapsed() < BEAT {
                    if over.load(Ordering::Relaxed) {
                        return anyhow::Ok(());
                    }
                    thread::sleep(BEAT / 20);
                }
            }
            Ok(())
        });
        let measured = change_often(lab, vip, ("beside changes", rounds), table);
        over.store(true, Ordering::Relaxed);
        churn.join().map_err(|_panic| anyhow::anyhow!("the thread of changes panicked"))??;
        measured
    })
}

/// Has the service lead to nobody, and then to somebody, and takes the time of the latter.
fn change_often(
    lab: &Lab,
    vip: &str,
    (label, rounds): (&str, u32),
    table: &mut Table,
) -> Result<()> {
    for round in 1..=rounds {
        eprint_step(&format!("service update, {label}, round {round}"));
        let (started, said) = change(lab, vip)?;
        table.add(label, STARTED, started * 1e3);
        table.add(label, SAID, said * 1e3);
        lead(lab, "nobody", "server")?;
    }
    Ok(())
}

/// Seconds from the start and from the end of the command to the first answer.
fn change(lab: &Lab, vip: &str) -> Result<(f64, f64)> {
    let (own, to) = (own_path()?, format!("{vip}:{PORT}"));
    lab.exec("h1", &["ip", "netns", "exec", "client", &own, "silent", &to])?;
    let mut asks = lab.start("h1", &["ip", "netns", "exec", "client", &own, "answered", &to])?;
    let mut said = BufReader::new(asks.stdout.take().context("no output")?).lines();
    ensure!(said.next().transpose()?.as_deref() == Some("asking"), "the client does not ask");
    let started = now()?;
    lead(lab, "server", "nobody")?;
    let done = now()?;
    let answered = said.next().transpose()?.context("nobody answered the client")?;
    let answered: f64 = answered.parse()?;
    ensure!(asks.wait()?.success(), "the client failed");
    ensure!(answered > started, "the client had an answer before the change");
    Ok((answered - started, answered - done))
}

fn lead(lab: &Lab, to: &str, from: &str) -> Result<()> {
    let words = ["service", "update", "one", "--add-backend", to, "--rm-backend", from];
    lab.cli("h2", &words).map(|_service| ())
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}
