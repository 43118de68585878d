//! A name server of the sandbox's own beside ours: port 53 is free on all addresses, and 127.0.0.11
//! answers all the same.

use std::net::{TcpListener, UdpSocket};

use anyhow::{Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, Options, Plugged, wait_until},
    outside::sh,
    traffic::{bind_udp, listen},
};

use super::{dig, v4, v6};

/// The sockets of a name server on these addresses, which are there as long as the value is.
fn serve_on(at: &Plugged, on: &str) -> Result<(UdpSocket, TcpListener)> {
    at.netns.run(|| Ok((bind_udp(on)?, listen(on)?)))
}

fn answers(lab: &Lab, asker: &Plugged, web: &Plugged) -> bool {
    let a = dig(lab, asker, &["web", "A"]);
    let aaaa = dig(lab, asker, &["web", "AAAA", "+tcp"]);
    a.is_ok_and(|a| a == [v4(web)]) && aaaa.is_ok_and(|aaaa| aaaa == [v6(web)])
}

#[test]
fn a_sandbox_has_port_53_for_itself() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    lab.network("h1", "blue")?;
    let web = lab.sandbox("h2", "blue", "web")?;
    let asker = lab.sandbox("h1", "blue", "asker")?;
    wait_until("it is answered", || Ok(answers(&lab, &asker, &web)))?;
    drop(serve_on(&asker, "0.0.0.0:53")?);
    // Of both versions.
    let own = serve_on(&asker, "[::]:53")?;
    ensure!(answers(&lab, &asker, &web), "beside a server of its own");
    // Another sandbox's programs that share its namespace ask there, too.
    let shared =
        ["run", "--network", "sandbox:asker", "--", "dig", "+short", "+tries=1", "web", "A"];
    ensure!(lab.vxmesh("h1", &shared)?.trim() == v4(&web));
    // What a firewall in the sandbox does at its start.
    sh(&asker.netns, "nft flush ruleset")?;
    ensure!(answers(&lab, &asker, &web), "after its rules were flushed");
    // While the agent is away nobody answers; then it does, beside the server that is there.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("it is answered again", || Ok(answers(&lab, &asker, &web)))?;
    drop(own);
    drop(serve_on(&asker, "0.0.0.0:53")?);
    lab.finish(Allowed { warnings: &["h1"], drops: &["unknown_index"] })
}
