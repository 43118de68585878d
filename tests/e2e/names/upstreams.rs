//! Names that are not the mesh's: which name servers are asked, and what becomes of their answers.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, Options, Plugged, tell},
    upstream::{Manner, Upstream},
};

use super::{dig, dig_status};

const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// libc gives up after this; an upstream that fails must be told before.
const LIBC: Duration = Duration::from_secs(5);

/// The underlay address of a host.
fn underlay(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 213, 0, host).into()
}

/// Makes a host ask these name servers, as its administrator would.
fn resolve_by(lab: &Lab, host: &str, servers: &[IpAddr]) -> Result<()> {
    let lines: Vec<String> = servers.iter().map(|ip| format!("nameserver {ip}")).collect();
    let script = format!(
        "printf '%s\\n' '{}' > /run/resolv.conf; \
         grep -q ' /etc/resolv.conf ' /proc/self/mountinfo || mount --bind /run/resolv.conf /etc/resolv.conf",
        lines.join("' '")
    );
    lab.sh(host, &script).map(drop)
}

/// A sandbox with further flags.
fn sandbox(lab: &Lab, host: &str, name: &str, flags: &[&str]) -> Result<Plugged> {
    let words =
        [&["run", "-d", "--name", name, "--network", "blue"], flags, &["--", "sleep", "3600"]];
    let sandbox: vxmesh::api::Sandbox = lab.json(host, &words.concat())?;
    let id = sandbox.endpoints.first().context("no endpoint")?;
    let endpoint = lab.get(host, &format!("/v1/endpoints/{id}"))?;
    let netns = lab.inner(host, &sandbox.netns)?;
    Ok(Plugged { host: host.to_owned(), sandbox, endpoint, netns })
}

#[test]
fn other_names_come_from_the_hosts_name_servers() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    lab.network("h1", "blue")?;
    let asker = lab.sandbox("h1", "blue", "asker")?;
    let good = Upstream::start(&lab.host("h2")?, underlay(2), Manner::Answer(THERE))?;
    resolve_by(&lab, "h1", &[underlay(2)])?;
    let there = vec![THERE.to_string()];
    vxmesh_tests::lab::wait_until("the file is followed", || {
        Ok(dig(&lab, &asker, &["www.example.com"])? == there)
    })?;

    // Kept: asked again it is not, and its time runs down.
    let before = good.seen().len();
    let (_, text) = dig_status(&lab, &asker, &["WWW.example.com"])?;
    ensure!(text.contains("192.0.2.7") && good.seen().len() == before, "{text}");

    // What is ours, or would be, stays here.
    for name in ["nobody", "nobody.blue", "asker", "asker.blue"] {
        dig(&lab, &asker, &[name])?;
        dig(&lab, &asker, &[name, "MX"])?;
    }
    for ip in &asker.endpoint.ips {
        dig(&lab, &asker, &["-x", &ip.addr().to_string()])?;
        dig(&lab, &asker, &["-x", &ip.network().to_string()])?;
    }
    let strangers: Vec<String> =
        good.seen().into_iter().filter(|name| !name.ends_with("example.com")).collect();
    ensure!(strangers.is_empty(), "{strangers:?}");

    // What a validator asks about top-level domains is theirs to say.
    for kind in ["DS", "DNSKEY", "NS"] {
        ensure!(dig_status(&lab, &asker, &["com", kind])?.0 == "NOERROR", "{kind}");
    }
    ensure!(good.seen().iter().filter(|name| *name == "com").count() == 3, "{:?}", good.seen());
    drop(good);

    // Nobody there: said at once, not after libc's patience.
    let begun = Instant::now();
    let (status, _) = dig_status(&lab, &asker, &["nobody-there.example.com"])?;
    let took = begun.elapsed();
    tell(&format!("with no name server there, a failure was told after {took:?}"));
    ensure!(status == "SERVFAIL" && took < LIBC, "{status} {took:?}");
    lab.finish(Allowed { drops: &["dns_upstream_failed"], ..Allowed::default() })
}

#[test]
fn a_bad_name_server_delays_and_deceives_nobody() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    lab.network("h1", "blue")?;
    let good = Upstream::start(&lab.host("h3")?, underlay(3), Manner::Answer(THERE))?;
    let other = Ipv4Addr::new(203, 0, 113, 66);
    let (first, second) = (underlay(2).to_string(), underlay(3).to_string());
    let asker = sandbox(&lab, "h1", "asker", &["--dns", &first, "--dns", &second])?;
    for (number, manner) in [
        Manner::Silent,
        Manner::Late(other, Duration::from_secs(4)),
        Manner::Fail,
        Manner::Forge(other),
    ]
    .into_iter()
    .enumerate()
    {
        let bad = Upstream::start(&lab.host("h2")?, underlay(2), manner)?;
        let begun = Instant::now();
        let found = dig(&lab, &asker, &[&format!("n{number}.example.com")])?;
        let took = begun.elapsed();
        ensure!(found == [THERE.to_string()], "{manner:?}: {found:?}");
        // One after the other would take as long as the first one's silence.
        ensure!(took < Duration::from_millis(2500), "{manner:?}: {took:?}");
        ensure!(!bad.seen().is_empty(), "both are asked");
    }
    drop(good);

    // Alone, a forger is not believed either.
    let forger = Upstream::start(&lab.host("h2")?, underlay(2), Manner::Forge(other))?;
    let (status, text) = dig_status(&lab, &asker, &["forged.example.com"])?;
    ensure!(status == "SERVFAIL" && !text.contains("203.0.113"), "{text}");
    ensure!(lab.dropped("h1", "dns_foreign_answer")? > 0);
    drop(forger);

    let denier = Upstream::start(&lab.host("h2")?, underlay(2), Manner::Deny)?;
    ensure!(dig_status(&lab, &asker, &["denied.example.com"])?.0 == "NXDOMAIN");
    drop(denier);
    let long = Upstream::start(&lab.host("h2")?, underlay(2), Manner::Long(THERE))?;
    ensure!(dig(&lab, &asker, &["long.example.com"])? == [THERE.to_string()], "over TCP");
    drop(long);
    let drops = &["dns_upstream_failed", "dns_foreign_answer"];
    lab.finish(Allowed { drops, ..Allowed::default() })
}

#[test]
fn name_servers_of_every_age_are_understood() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    lab.network("h1", "blue")?;
    let on_h2 = underlay(2).to_string();
    let asker = sandbox(&lab, "h1", "asker", &["--dns", &on_h2])?;
    let there = [THERE.to_string()];
    for (number, manner) in
        [Manner::Deaf(THERE), Manner::Cut(THERE), Manner::Plain(4, THERE), Manner::Plain(1, THERE)]
            .into_iter()
            .enumerate()
    {
        let _old = Upstream::start(&lab.host("h2")?, underlay(2), manner)?;
        let name = format!("old{number}.example.com");
        let begun = Instant::now();
        // What came of an answer that is cut is better than nothing.
        ensure!(dig(&lab, &asker, &["+ignore", &name])? == there, "{manner:?}");
        tell(&format!("{manner:?}: answered after {:?}", begun.elapsed()));
        ensure!(begun.elapsed() < LIBC, "{manner:?}");
    }
    lab.finish(Allowed::default())
}

/// What resolves on the host resolves in its sandboxes, also by the other lines of its resolv.conf.
#[test]
fn the_hosts_domains_and_options_are_the_sandboxes() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    lab.network("h1", "blue")?;
    let write = |lines: &str| {
        let script = format!(
            "printf '{lines}' > /run/resolv.conf; \
             grep -q ' /etc/resolv.conf ' /proc/self/mountinfo || mount --bind /run/resolv.conf /etc/resolv.conf"
        );
        lab.sh("h1", &script).map(drop)
    };
    let on_h2 = underlay(2);
    write(&format!("nameserver {on_h2}\\nsearch corp.example\\noptions timeout:4\\n"))?;
    let good = Upstream::start(&lab.host("h2")?, on_h2, Manner::Answer(THERE))?;
    let asker = sandbox(&lab, "h1", "asker", &[])?;
    let conf = || lab.vxmesh("h1", &["exec", "asker", "--", "cat", "/etc/resolv.conf"]);
    let follows = |lines: &str| {
        vxmesh_tests::lab::wait_until("the files follow", || Ok(conf()?.contains(lines)))
    };
    follows("search blue corp.example\noptions ndots:1 timeout:4")?;
    let found = lab.vxmesh("h1", &["exec", "asker", "--", "getent", "ahostsv4", "wiki"])?;
    ensure!(found.starts_with(&THERE.to_string()), "{found}");
    ensure!(good.seen().iter().any(|name| name == "wiki.corp.example"), "{:?}", good.seen());
    drop(good);
    // Changed while the sandbox runs: a name server that is asked over TCP only.
    let _tcp = Upstream::start(&lab.host("h2")?, on_h2, Manner::Stream(THERE))?;
    write(&format!("nameserver {on_h2}\\nsearch lan\\noptions use-vc\\n"))?;
    follows("search blue lan\noptions ndots:1")?;
    ensure!(dig(&lab, &asker, &["www.example.com"])? == [THERE.to_string()]);
    // A sandbox with name servers of its own has nothing of the host's.
    sandbox(&lab, "h1", "own", &["--dns", "192.0.2.1"])?;
    let own = lab.vxmesh("h1", &["exec", "own", "--", "cat", "/etc/resolv.conf"])?;
    ensure!(own.contains("search blue\noptions ndots:0"), "{own}");
    lab.finish(Allowed::default())
}

#[test]
fn networks_and_sandboxes_have_name_servers_of_their_own() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    let on_h2 = underlay(2).to_string();
    lab.vxmesh("h1", &["network", "create", "blue", "--dns", &on_h2])?;
    let of_network = Upstream::start(&lab.host("h2")?, underlay(2), Manner::Answer(THERE))?;
    let plain = sandbox(&lab, "h1", "plain", &[])?;
    ensure!(dig(&lab, &plain, &["a.example.com"])? == [THERE.to_string()]);
    ensure!(of_network.seen() == ["a.example.com"]);

    // A name server that is itself in the network is asked there.
    let inside = Ipv4Addr::new(198, 51, 100, 9);
    let server = sandbox(&lab, "h1", "server", &[])?;
    let ip = server.endpoint.ips.first().context("no address")?.addr();
    let of_sandbox = Upstream::start(&server.netns, ip, Manner::Answer(inside))?;
    let flags = ["--dns", &ip.to_string(), "--add-host", "db.example:192.0.2.99"];
    let own = sandbox(&lab, "h1", "own", &flags)?;
    ensure!(dig(&lab, &own, &["b.example.com"])? == [inside.to_string()]);
    ensure!(of_sandbox.seen() == ["b.example.com"] && of_network.seen().len() == 1);
    let hosts = super::inside(&lab, &own, &["getent", "hosts", "db.example"])?;
    ensure!(String::from_utf8_lossy(&hosts.stdout).starts_with("192.0.2.99 "), "{hosts:?}");

    // It is kept over a restart of the agent.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    vxmesh_tests::lab::wait_until("it is asked again", || {
        let asked = dig(&lab, &own, &["c.example.com"]);
        Ok(asked.is_ok_and(|found| found == [inside.to_string()]))
    })?;
    lab.finish(Allowed { warnings: &["h1"], ..Allowed::default() })
}
