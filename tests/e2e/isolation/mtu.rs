//! What is too large for a network is answered: by the gateway where it is routed, and by the agent
//! where it would cross the mesh. A network that is too large for the underlay is told by the
//! doctor.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use vxmesh::api::{Diagnosis, Health, Network, Peer};
use vxmesh_tests::{
    lab::{Allowed, Lab, Options, Plugged, wait_until},
    netns::NetNs,
    outside::{self, Outside, sh},
    stream,
    traffic::{Echo, ask_tcp, ping},
};

use crate::egress::ip_of;

/// What the tunnel adds to an inner packet.
const OVERHEADS: [(&str, u16); 2] = [("v4", 82), ("v6", 102)];
/// Bytes of a stream.
const LEN: usize = 4 << 20;

/// A ping of one packet with this many bytes of data, which nobody may cut; what was said.
fn whole(from: &NetNs, to: IpAddr, len: u16) -> Result<String> {
    sh(from, &format!("ping -n -c 1 -W 5 -M do -s {len} {to} 2>&1; true"))
}

/// The route to an address has this MTU.
fn knows(from: &Plugged, to: IpAddr, mtu: u16) -> Result<()> {
    let route = sh(&from.netns, &format!("ip route get {to}"))?;
    ensure!(route.contains(&format!("mtu {mtu}")), "{route}");
    Ok(())
}

/// One that raised its MTU is told what fits; what it saw.
fn is_told(from: &Plugged, to: IpAddr, network: &Network) -> Result<String> {
    let said = whole(&from.netns, to, 3000)?;
    let [v4, v6] = ["mtu = ", "mtu="].map(|words| format!("{words}{}", network.mtu));
    ensure!(said.contains("From ") && (said.contains(&v4) || said.contains(&v6)), "{to}: {said}");
    // The kernel knows now, and cuts what it may. An answer may be too large in turn until its
    // sender is told.
    knows(from, to, network.mtu)?;
    sh(&from.netns, &format!("ping -n -c 3 -i 0.2 -W 5 -M want -s 3000 {to}"))?;
    Ok(said)
}

#[test]
fn the_sender_of_what_is_too_large_is_told() -> Result<()> {
    senders_are_told("true")
}

#[test]
fn the_sender_of_what_is_too_large_for_a_plain_network_is_told() -> Result<()> {
    senders_are_told("false")
}

fn senders_are_told(encrypted: &str) -> Result<()> {
    let lab = Lab::up(2)?;
    let outside = Outside::join(&lab)?;
    let _server = Echo::start(&outside.netns)?;
    let encrypted = format!("--encrypted={encrypted}");
    let network: Network = lab.json("h1", &["network", "create", "blue", &encrypted])?;
    is_listed(&lab, &network)?;
    let (a, far) = (lab.sandbox("h1", "blue", "a")?, lab.sandbox("h2", "blue", "b")?);
    lab.all_know(&[&a.endpoint, &far.endpoint])?;
    for raised in [&a, &far] {
        let shown = sh(&raised.netns, "ip -o link show eth0")?;
        ensure!(shown.contains(&format!("mtu {} ", network.mtu)), "{shown}");
        sh(&raised.netns, "ip link set eth0 mtu 9000")?;
    }
    for ipv4 in [true, false] {
        let (near, to) = (ip_of(&a, ipv4)?, ip_of(&far, ipv4)?);
        let elsewhere = if ipv4 { outside::IPV4 } else { outside::IPV6 };
        // Both agreed on segments for an MTU of 9000.
        stream::tcp(&far.netns, &a.netns, near, LEN)?;
        knows(&far, near, network.mtu)?;
        ping(&a.netns, to, 2)?;
        let said = is_told(&a, to, &network)?;
        let mut by = network.subnets.iter().map(|subnet| subnet.gateway);
        ensure!(by.any(|ip| said.contains(&format!("From {ip} "))), "{said}");
        is_told(&a, elsewhere, &network)?;
        stream::tcp(&a.netns, &far.netns, to, LEN)?;
        ask_tcp(&a.netns, elsewhere)?;
    }
    for host in ["h1", "h2"] {
        wait_until("it is counted", || Ok(lab.dropped(host, "too_big")? >= 2))?;
    }
    lab.finish(Allowed { drops: &["too_big"], ..Allowed::default() })
}

fn is_listed(lab: &Lab, network: &Network) -> Result<()> {
    wait_until("h2 lists the network", || {
        let networks: Vec<Network> = lab.get("h2", "/v1/networks")?;
        Ok(networks.iter().any(|listed| listed.id == network.id))
    })
}

/// What the doctor of a host says of MTUs: that a path to this one carries so much.
fn warned(lab: &Lab, host: &str, peer: &str, fits: u16) -> Result<bool> {
    let said: Vec<Diagnosis> = lab.json(host, &["doctor"])?;
    Ok(said.iter().any(|row| {
        row.check == "mtu"
            && row.health == Health::Warn
            && row.found.contains(&format!("the path to {peer} carries {fits},"))
            && row.hint.contains(&format!("--mtu {fits} "))
    }))
}

#[test]
fn a_network_that_is_too_large_for_the_underlay_is_told() -> Result<()> {
    for (underlay, overhead) in OVERHEADS {
        let lab = Lab::with(Options { hosts: 2, underlay, mtu: 1400, ..Options::default() })?;
        let fits = 1400 - overhead;
        wait_until("h1 knows where h2 is", || {
            let peers: Vec<Peer> = lab.json("h1", &["peer", "ls"])?;
            Ok(peers.iter().any(|peer| peer.addr.is_some()))
        })?;
        let wide = lab.network("h1", "wide")?;
        let wanted = format!("does not reach h2: make it with --mtu {fits},");
        ensure!(wide.warnings.iter().any(|warning| warning.contains(&wanted)), "{wide:?}");
        for (host, peer) in [("h1", "h2"), ("h2", "h1")] {
            wait_until("the doctor names the peer", || warned(&lab, host, peer, fits))?;
        }
        lab.vxmesh("h1", &["network", "rm", "wide"])?;

        let mtu = fits.to_string();
        let narrow: Network = lab.json("h1", &["network", "create", "narrow", "--mtu", &mtu])?;
        ensure!(narrow.warnings.is_empty(), "{narrow:?}");
        for (host, peer) in [("h1", "h2"), ("h2", "h1")] {
            wait_until("the doctor is content", || Ok(!warned(&lab, host, peer, fits)?))?;
        }
        is_listed(&lab, &narrow)?;
        let (a, far) = (lab.sandbox("h1", "narrow", "a")?, lab.sandbox("h2", "narrow", "b")?);
        lab.all_know(&[&a.endpoint, &far.endpoint])?;
        for (ipv4, headers) in [(true, 28), (false, 48)] {
            let to = ip_of(&far, ipv4)?;
            let said = whole(&a.netns, to, fits - headers)?;
            ensure!(said.contains("1 received"), "{said}");
            stream::tcp(&a.netns, &far.netns, to, LEN)?;
        }
        lab.finish(Allowed::default())?;
    }
    Ok(())
}
