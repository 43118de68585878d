//! What many networks and published ports on one host cost while nothing happens.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vxmesh::datapath::steering::Queues;
use vxmesh_tests::lab::{Allowed, Lab, is_full, limit, tell, wait_until};

/// How long an idle agent is looked at.
const WINDOW: Duration = Duration::from_secs(3);
/// The aim for a hundred networks: in the time of a core, more than what one network costs.
const MORE: Duration = Duration::from_millis(10);
/// Descriptors of a network with an endpoint, beside the queues of its TAP.
const DESCRIPTORS: usize = 7;
/// The aim for their start.
const START: Duration = Duration::from_secs(1);

/// Ticks of a hundredth of a second that the agent used so far.
fn used(pid: i32) -> Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_name, rest) = stat.rsplit_once(')').context("no name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next().context("too short")?.parse::<u32>().context("no number");
    Ok(next()? + next()?)
}

/// The share of a core that an agent takes once all is done.
fn idle(lab: &Lab) -> Result<f64> {
    let pid = lab.agent("h1")?;
    let mut least = f64::MAX;
    // Others are at work beside this test, and what was begun goes on for a while.
    for _ in 0..3 {
        let (begun, before) = (Instant::now(), used(pid)?);
        wait_until("the window is over", || Ok(begun.elapsed() >= WINDOW))?;
        let ticks = f64::from(used(pid)? - before);
        least = least.min(ticks / 100.0 / begun.elapsed().as_secs_f64());
    }
    Ok(least)
}

#[test]
fn many_networks_cost_an_idle_host_hardly_more_than_one() -> Result<()> {
    let many = if is_full() { 100 } else { 8 };
    let lab = Lab::up(1)?;
    let add = |from: u32, to: u32| {
        let script = format!(
            "for n in $(seq {from} {to}); do ip netns add b$n && vxmesh network create n$n && \
             vxmesh endpoint attach n$n --netns b$n --name e || exit 1; done"
        );
        lab.sh("h1", &script)
    };
    add(1, 1)?;
    let open = || anyhow::Ok(fs::read_dir(format!("/proc/{}/fd", lab.agent("h1")?))?.count());
    let (one, open_by_one) = (idle(&lab)?, open()?);
    add(2, many)?;
    let (all, descriptors) = (idle(&lab)?, open()?);
    let each = (descriptors - open_by_one) / (usize::try_from(many)? - 1);
    // As many threads carry frames.
    let cpus = thread::available_parallelism()?.get().min(8);
    let most = DESCRIPTORS + Queues::read_by(cpus).count();
    ensure!(each <= most, "{each} descriptors for each network, and not {most}");
    lab.lab(&["kill", "h1"])?;
    let begun = Instant::now();
    lab.lab(&["start", "h1"])?;
    wait_until("all are back", || {
        let rows: Vec<Value> = lab.get("h1", "/v1/endpoints")?;
        Ok(rows.len() == usize::try_from(many)?)
    })?;
    let start = begun.elapsed();
    tell(&format!(
        "{many} networks: {:.2} % of a core idle (one: {:.2} %), {descriptors} descriptors, start {start:?}",
        all * 100.0,
        one * 100.0
    ));
    // What it costs is no time that others' work draws out: of a hundred it is the aim itself.
    let most = if is_full() { MORE } else { limit(MORE) };
    ensure!(all - one < most.as_secs_f64(), "{all} of a core, one network {one}");
    ensure!(start < limit(START), "{start:?}");
    lab.finish(Allowed::default())
}

#[test]
fn published_ports_cost_an_idle_host_nothing() -> Result<()> {
    let sandboxes = if is_full() { 8 } else { 1 };
    let lab = Lab::up(1)?;
    let script = format!(
        "vxmesh network create n && for n in $(seq {sandboxes}); do vxmesh run -d --network n \
         --publish $((20000 + n * 256))-$((20255 + n * 256)) -- sleep 3600 || exit 1; done"
    );
    lab.sh("h1", &script)?;
    let share = idle(&lab)?;
    tell(&format!("{} published ports: {:.2} % of a core idle", sandboxes * 256, share * 100.0));
    ensure!(share < limit(MORE).as_secs_f64(), "{share} of a core");
    lab.finish(Allowed::default())
}
