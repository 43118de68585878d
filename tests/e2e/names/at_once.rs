//! A name that is given on several hosts at the same time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use vxmesh::api::{Endpoint, Network};
use vxmesh_tests::lab::{Allowed, Lab, UNDERWAY, tell, wait_until};

/// Ten times the aim.
const TOO_LONG: Duration = Duration::from_secs(10);
/// Each has another moment, and one is enough.
const ROUNDS: usize = 6;

/// How many of three hosts could give the name, by this command.
fn give(lab: &Lab, words: &[&str]) -> Result<usize> {
    thread::scope(|scope| {
        let runs: Vec<_> = lab
            .hosts()
            .iter()
            .map(|host| scope.spawn(move || lab.try_vxmesh(host, words)))
            .collect();
        let mut given = 0;
        for run in runs {
            let output = run.join().map_err(|_panic| anyhow!("it panicked"))??;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success() || said.contains("already"), "{said}");
            given += usize::from(output.status.success());
        }
        Ok(given)
    })
}

#[test]
fn a_name_that_was_given_twice_is_told_within_a_second() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.network("h1", "blue")?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("dup{round}");
        let run = ["run", "-d", "--name", &name, "--network", "blue", "sleep", "1000"];
        let given = give(&lab, &run)?;
        if given < 2 {
            continue;
        }
        let start = Instant::now();
        for host in lab.hosts() {
            wait_until(&format!("{host} shows it and says so"), || {
                let rows: Vec<Endpoint> = lab.get(host, "/v1/endpoints")?;
                let marked =
                    rows.iter().filter(|row| row.name.as_str() == name && row.conflict.is_some());
                let said = |line: &str| {
                    line.contains("two endpoints were given one name") && line.contains(&name)
                };
                let log = lab.log(host)?;
                Ok(marked.count() == given - 1
                    && log.lines().filter(|line| said(line)).count() == given - 1)
            })?;
        }
        times.push(start.elapsed());
        if times.len() == 2 {
            break;
        }
    }
    ensure!(!times.is_empty(), "no name was given twice in {ROUNDS} rounds");
    tell(&format!("a name that was given twice is shown and told after {times:?} (aim: 1 s)"));
    ensure!(times.iter().all(|took| *took < TOO_LONG), "{times:?}");
    lab.finish(Allowed { warnings: &["two endpoints were given one name"], drops: UNDERWAY })
}

#[test]
fn a_network_that_was_made_twice_is_told_within_a_second() -> Result<()> {
    let lab = Lab::up(3)?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("dup{round}");
        let made = give(&lab, &["network", "create", &name])?;
        if made < 2 {
            continue;
        }
        let start = Instant::now();
        for host in lab.hosts() {
            wait_until(&format!("{host} shows it and says so"), || {
                let listed = lab.vxmesh(host, &["network", "ls"])?;
                let marked = |line: &&str| line.contains(&name) && line.contains("conflict");
                let said = |line: &&str| {
                    line.contains("the network is in conflict") && line.contains(&name)
                };
                Ok(listed.lines().filter(marked).count() == made - 1
                    && lab.log(host)?.lines().filter(said).count() == made - 1)
            })?;
            // The name means the one that carries frames.
            let active: Network = lab.json(host, &["network", "inspect", &name])?;
            ensure!(active.state == "active", "{active:?}");
        }
        times.push(start.elapsed());
        break;
    }
    ensure!(!times.is_empty(), "no name was given twice in {ROUNDS} rounds");
    tell(&format!("a network that was made twice is shown and told after {times:?} (aim: 1 s)"));
    ensure!(times.iter().all(|took| *took < TOO_LONG), "{times:?}");
    lab.finish(Allowed::default())
}
