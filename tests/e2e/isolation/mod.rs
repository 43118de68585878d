//! A sandbox that pretends to be another is stopped at its port, whether its victim is on the same
//! host or on another; and where a network keeps endpoints from each other, nothing gets around it.

mod apart;
pub(crate) mod forgeries;
mod mtu;

use std::{net::SocketAddr, process::Stdio};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{DropRow, Network, NetworkPools, Status};
use vxmesh_tests::{
    capture::{Capture, containing},
    lab::{Allowed, DATA_PORT, Lab, Plugged, wait_until},
    netns::NetNs,
    outside::sh,
    traffic::{Echo, ask_tcp, ask_udp, send_datagrams, send_frames},
};

use self::forgeries::{FORGED, Forgery, Party, gateway};

/// What the attempts make hosts count.
const CAUGHT: &[&str] = &[
    "source_unknown",
    "ip_spoofed",
    "arp_spoofed",
    "nd_spoofed",
    "malformed_arp",
    "malformed_nd",
    "malformed_ip",
    "vlan_unsupported",
    "llc_unsupported",
    "reserved_group",
    "dhcp_server",
    "router_advertisement",
    "redirect",
];

/// How often a host has dropped for this reason what came from its own sandboxes in a network.
fn caught(lab: &Lab, host: &str, reason: &str, network: &Network) -> Result<u64> {
    let local = |row: &DropRow| {
        row.reason == reason && row.network == Some(network.id) && row.peer.is_none()
    };
    Ok(lab.drops(host)?.iter().filter(|row| local(row)).map(|row| row.count).sum())
}

/// How often for this reason what came from this sandbox, by its own name.
fn blamed(lab: &Lab, from: &Plugged, reason: &str) -> Result<u64> {
    let rows = lab.drops(&from.host)?;
    let own = |row: &&DropRow| row.reason == reason && row.endpoint == Some(from.endpoint.id);
    Ok(rows.iter().filter(own).map(|row| row.count).sum())
}

/// Sends one frame from a sandbox, which this counter of its host must catch, and name the sandbox.
/// Others may be caught beside it: the bridge itself speaks with the gateway's MAC now and then.
pub(crate) fn attempt(
    lab: &Lab,
    from: &Plugged,
    network: &Network,
    forgery: &Forgery,
) -> Result<()> {
    let Forgery { what, reason, frame } = forgery;
    let before = (caught(lab, &from.host, reason, network)?, blamed(lab, from, reason)?);
    send_frames(&from.netns, "eth0", std::slice::from_ref(frame))?;
    wait_until(&format!("{what} is counted as {reason}"), || {
        Ok(caught(lab, &from.host, reason, network)? > before.0
            && blamed(lab, from, reason)? > before.1)
    })
}

pub(crate) fn nothing_arrived(inside: Capture) -> Result<()> {
    let arrived = containing(&inside.stop()?, FORGED);
    ensure!(arrived == 0, "{arrived} forged frames arrived");
    Ok(())
}

/// What honest sandboxes say to each other arrives.
fn honest(from: &Plugged, to: &Plugged) -> Result<()> {
    for ip in to.endpoint.ips.iter().map(ipnet::IpNet::addr) {
        ask_udp(&from.netns, ip)?;
        ask_tcp(&from.netns, ip)?;
    }
    Ok(())
}

/// The namespace of a network on a host.
fn inside(lab: &Lab, host: &str, network: &Network) -> Result<NetNs> {
    lab.inner(host, &format!("/run/vxmesh/netns/{}", network.id.short()))
}

#[test]
fn a_forged_frame_is_stopped_at_its_port() -> Result<()> {
    let lab = Lab::up(2)?;
    let network = lab.network("h1", "blue")?;
    let attacker = lab.sandbox("h1", "blue", "a")?;
    let (near, far) = (lab.sandbox("h1", "blue", "b")?, lab.sandbox("h2", "blue", "c")?);
    lab.all_know(&[&attacker.endpoint, &near.endpoint, &far.endpoint])?;
    let _servers = [Echo::start(&near.netns)?, Echo::start(&far.netns)?];
    let parties = [&near, &far].map(|plugged| Party::of(&plugged.endpoint));
    let [near_party, far_party] = parties;
    let (near_party, far_party) = (near_party?, far_party?);
    let captures = [Capture::start(&near.netns, "eth0")?, Capture::start(&far.netns, "eth0")?];
    let me = Party::of(&attacker.endpoint)?;
    for (victim, to, other) in [(&near, near_party, far_party), (&far, far_party, near_party)] {
        honest(&attacker, victim)?;
        for forgery in forgeries::all(me, to, other, gateway(&network)?)? {
            attempt(&lab, &attacker, &network, &forgery)
                .with_context(|| format!("to {}", victim.endpoint.name))?;
        }
        honest(&attacker, victim)?;
    }
    captures.into_iter().try_for_each(nothing_arrived)?;
    lab.finish(Allowed { drops: CAUGHT, ..Allowed::default() })
}

#[test]
fn a_sandbox_cannot_speak_to_the_underlay_as_a_peer() -> Result<()> {
    let lab = Lab::up(2)?;
    let network = lab.network("h1", "blue")?;
    let (attacker, far) = (lab.sandbox("h1", "blue", "a")?, lab.sandbox("h2", "blue", "c")?);
    lab.all_know(&[&attacker.endpoint, &far.endpoint])?;
    let (me, to) = (Party::of(&attacker.endpoint)?, Party::of(&far.endpoint)?);
    let capture = Capture::start(&far.netns, "eth0")?;
    let frame = forgeries::udp4(me.mac, me.v4, to.mac, to.v4)?;
    let plain = [vxmesh_proto::wire::vxlan::header(network.vni.context("no VNI")?).to_vec(), frame]
        .concat();
    // To the host of the victim and to its own, sealed by nobody, and as the kernel's vxlan devices
    // do.
    for host in ["h1", "h2"] {
        let number = host.trim_start_matches('h');
        let before = lab.dropped(host, "bad_type")?;
        for (ip, port) in [("10.213.0.", DATA_PORT), ("10.213.0.", 4789), ("fd13::", DATA_PORT)] {
            let at = SocketAddr::new(format!("{ip}{number}").parse()?, port);
            send_datagrams(&attacker.netns, at, std::slice::from_ref(&plain))?;
        }
        wait_until("both are counted", || Ok(lab.dropped(host, "bad_type")? == before + 2))?;
    }
    nothing_arrived(capture)?;
    lab.finish(Allowed { drops: &["bad_type"], ..Allowed::default() })
}

#[test]
fn the_rules_outlive_the_agent_and_a_flush() -> Result<()> {
    let lab = Lab::up(1)?;
    let network = lab.network("h1", "blue")?;
    let attacker = lab.sandbox("h1", "blue", "a")?;
    let (near, third) = (lab.sandbox("h1", "blue", "b")?, lab.sandbox("h1", "blue", "c")?);
    let _server = Echo::start(&near.netns)?;
    let parties = [&attacker, &near, &third].map(|plugged| Party::of(&plugged.endpoint));
    let [me, to, other] = parties;
    let (me, to, other) = (me?, to?, other?);
    let forged = Forgery {
        what: "IPv4 source",
        reason: "ip_spoofed",
        frame: forgeries::udp4(me.mac, other.v4, to.mac, to.v4)?,
    };
    let rules = inside(&lab, "h1", &network)?;
    // Without what the rules themselves note.
    let shown = || {
        let list = "nft -s list table $family vxmesh 2>&1 | sed '/set blamed {/,/^\t}/d'";
        sh(&rules, &format!("for family in bridge inet; do {list}; done"))
    };
    let before = shown()?;
    ensure!(before.contains("table bridge vxmesh"), "{before}");
    for sabotage in [
        "nft flush ruleset",
        "nft delete table bridge vxmesh",
        "nft flush chain bridge vxmesh guard",
        "nft flush set bridge vxmesh macs",
    ] {
        sh(&rules, sabotage)?;
        wait_until(&format!("the rules are back after {sabotage}"), || Ok(shown()? == before))?;
        honest(&attacker, &near)?;
        attempt(&lab, &attacker, &network, &forged)?;
    }
    lab.lab(&["kill", "h1"])?;
    let capture = Capture::start(&near.netns, "eth0")?;
    honest(&attacker, &near)?;
    send_frames(&attacker.netns, "eth0", std::slice::from_ref(&forged.frame))?;
    lab.lab(&["start", "h1"])?;
    // What was refused in between is not forgotten.
    wait_until("it is counted", || Ok(caught(&lab, "h1", "ip_spoofed", &network)? > 0))?;
    ensure!(shown()? == before, "adopted rules are the same");
    nothing_arrived(capture)?;
    lab.vxmesh("h1", &["sandbox", "rm", "c"])?;
    let after = shown()?;
    ensure!(!after.contains(&third.endpoint.mac.to_string()), "the keys of its port stay: {after}");
    honest(&attacker, &near)?;
    // The last that a sandbox sends may come when no table has it any more.
    lab.finish(Allowed { drops: &["ip_spoofed", "source_unknown"], ..Allowed::default() })
}

#[test]
fn the_rules_come_back_while_another_host_is_asked_for_an_address() -> Result<()> {
    let lab = Lab::up(2)?;
    let network = lab.network("h1", "blue")?;
    let _here = lab.sandbox("h1", "blue", "a")?;
    let rules = inside(&lab, "h1", &network)?;
    let owner = lab.json::<Status>("h2", &["status"])?.node_id.context("no node")?;
    let mut theirs = None;
    wait_until("h2 has addresses", || {
        let pools: NetworkPools = lab.json("h1", &["ipam", "inspect", "blue"])?;
        let mut blocks = pools.pools.iter().flat_map(|pool| &pool.blocks);
        let block = blocks.find(|block| block.owner == owner && block.cidr.addr().is_ipv4());
        theirs = block.and_then(|block| block.cidr.hosts().nth(2));
        Ok(theirs.is_some())
    })?;
    let connection = format!("name=blue,ip={}", theirs.context("no address")?);
    let frozen = lab.freeze("h2")?;
    let run = ["exec", "h1", "--", "vxmesh", "run", "-d", "--network", &connection];
    let run = [&run[..], &["--", "sleep", "3600"]].concat();
    let mut asking = lab.command(&run)?.stdout(Stdio::null()).spawn()?;
    // Once may have been before it began to wait.
    for _ in 0..2 {
        sh(&rules, "nft flush ruleset")?;
        wait_until(
            "the rules are back",
            || Ok(sh(&rules, "nft list table bridge vxmesh").is_ok()),
        )?;
    }
    let still = asking.try_wait()?.is_none();
    drop(frozen);
    ensure!(asking.wait()?.success(), "it did not get the address");
    ensure!(still, "the rules came back only after the answer");
    lab.finish(Allowed { warnings: &["h2"], ..Allowed::default() })
}
