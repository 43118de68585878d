//! The table as the kernel has it: the same that nft(8) makes of its text, put back when somebody
//! changes it, and gone when it is not needed.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use vxmesh::{
    firewall::{guarded::GuardedPorts, services},
    netlink::netns::Netns,
};
use vxmesh_tests::topology::{Capture, ok, wait_until};

use super::{CLIENT, Packet, RULES, SYN, Site, contains, guarded_port, port};

/// The table in nft(8)'s language. `SERVICE` and `SOURCE` stand for the MACs.
const TEXT: &str = include_str!("steering.nft");

/// The table as nft(8) shows it, without what was learned, counted and said about rules.
fn listed(netns: &Netns) -> Result<String> {
    let said = ok(netns, "nft -s -t list table bridge vxmesh_services")?;
    let lines = said.lines().map(|line| line.split(" comment ").next().unwrap_or(line));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// The expressions of its rules, register by register.
fn expressions(netns: &Netns) -> Result<String> {
    let said = ok(netns, "nft -s -t --debug=netlink list table bridge vxmesh_services")?;
    let lines = said.lines().filter(|line| line.trim_start().starts_with('['));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_are_what_nft_makes_of_their_text() -> Result<()> {
    let mut site = Site::open().await?;
    site.guarded.steer(Some(site.macs))?;
    let theirs = site.topology.sandbox("nft")?;
    let text = TEXT.replace("SERVICE", &site.macs.service.to_string());
    let text = text.replace("SOURCE", &site.macs.source.to_string());
    let file = site.topology.path().join("steering.nft");
    fs::write(&file, text)?;
    ok(&theirs.netns, &format!("nft -f {}", file.display()))?;
    let (ours, theirs) = (site.overlay.netns(), &theirs.netns);
    assert_eq!(listed(ours)?, listed(theirs)?);
    let expressions = [expressions(ours)?, expressions(theirs)?];
    ensure!(expressions.iter().all(|it| it.contains("dynset delete")), "{expressions:?}");
    assert_eq!(expressions[0], expressions[1]);
    Ok(())
}

/// Answers are led once the agent has handed another packet over.
fn leads(site: &Site) -> Result<()> {
    let probe = Packet::datagram(true, 4000, b"BY-SERVICE").to_port(9);
    let before = site.led(true, b"BY-SERVICE").len();
    wait_until("the backend's error is led", || {
        site.hand(&probe)?;
        Ok(site.led(true, b"BY-SERVICE").len() > before)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_is_put_back_kept_and_removed() -> Result<()> {
    let mut site = Site::open().await?;
    let rules = site.overlay.netns();
    let tables = || ok(rules, "nft list tables");
    ensure!(!tables()?.contains("vxmesh_services"), "steered without a service");
    site.guarded.steer(Some(site.macs))?;
    let before = listed(rules)?;
    site.guarded.mend()?;
    leads(&site)?;
    ensure!(!site.guarded.is_stale()?, "what frames teach the kernel is no change of rules");
    let knows =
        || anyhow::Ok(ok(rules, "nft list set bridge vxmesh_services flows")?.contains("4000"));
    for (sabotage, forgets) in [
        ("nft flush ruleset", true),
        ("nft delete table bridge vxmesh_services", true),
        ("nft flush chain bridge vxmesh_services steer", false),
        ("nft add rule bridge vxmesh_services steer accept", false),
    ] {
        ok(rules, sabotage)?;
        ensure!(site.guarded.is_stale()? && site.guarded.mend()?, "{sabotage} is not seen");
        ensure!(!site.guarded.mend()?, "{sabotage} is not mended at once");
        assert_eq!(listed(rules)?, before, "{sabotage}");
        ensure!(knows()? != forgets, "{sabotage}: what was learned");
        leads(&site)?;
    }

    // The agent's next life: what was led is led on, whoever says first what is to be.
    let ports = BTreeMap::from([(port(CLIENT), guarded_port(CLIENT))]);
    let mut next = GuardedPorts::open(rules, RULES, ports.clone())?;
    next.steer(Some(site.macs))?;
    ensure!(knows()?, "the next life forgets flows");
    let mut next = GuardedPorts::open(rules, RULES, ports)?;
    ensure!(tables()?.contains("vxmesh_services"), "removed before it is known to be too much");
    next.steer(None)?;
    let left = tables()?;
    ensure!(!left.contains("vxmesh_services") && left.contains("bridge vxmesh"), "{left}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_finds_no_room_is_refused_and_counted() -> Result<()> {
    let mut site = Site::open().await?;
    let mut table = services::table(site.macs);
    for set in &mut table.sets {
        set.size = Some(2);
    }
    site.overlay.netns().run(|| Ok(table.replace()))??;
    let at_backend = Capture::start(&site.topology, &site.backend.netns, "eth0", "")?;
    let syn = |client| Packet { tcp: Some(SYN), ..Packet::datagram(true, client, b"NO-ROOM") };
    for client in 4000..4003 {
        site.hand(&syn(client))?;
    }
    // One that is known goes on.
    site.hand(&syn(4000))?;
    wait_until("three arrive", || {
        let frames = at_backend.frames()?;
        Ok(frames.iter().filter(|frame| contains(frame, b"NO-ROOM")).count() == 3)
    })?;
    let dropped = site.guarded.dropped()?;
    let full = dropped.get(&("flow_table_full".to_owned(), None)).context("not counted")?;
    assert_eq!(*full, 1);
    let mut arrived = at_backend.stop()?;
    arrived.retain(|frame| contains(frame, b"NO-ROOM"));
    let ports: Vec<_> = arrived.iter().filter_map(|frame| frame.get(34..36)).collect();
    assert_eq!(ports, [4000_u16, 4001, 4000].map(u16::to_be_bytes));
    Ok(())
}
