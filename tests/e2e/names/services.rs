//! What is asked of services by their names: all backends, their ports, one backend in turn.

use std::{thread, time::Instant};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{DnsType, Endpoint, Service, ServiceMode};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, tell, wait_until},
    program::printed,
};

use super::{GONE, dig, dig_status, inside, query};
use crate::services::{settled, who};

/// The address of one IP version.
fn ip(of: &Endpoint, v4: bool) -> String {
    let ip = of.ips.iter().map(ipnet::IpNet::addr).find(|ip| ip.is_ipv4() == v4);
    ip.map(|ip| ip.to_string()).unwrap_or_default()
}

fn sorted<'e>(of: impl IntoIterator<Item = &'e Endpoint>, v4: bool) -> Vec<String> {
    let mut ips: Vec<String> = of.into_iter().map(|one| ip(one, v4)).collect();
    ips.sort();
    ips
}

/// What a command prints, line by line and in its order.
fn lines(lab: &Lab, at: &Plugged, script: &str) -> Result<Vec<String>> {
    let text = printed(script, inside(lab, at, &["sh", "-c", script])?)?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn refused(lab: &Lab, words: &[&str], says: &str) -> Result<()> {
    let output = lab.try_vxmesh("h1", &[&["service"], words].concat())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains(says), "{words:?}: {output:?}");
    Ok(())
}

#[test]
fn a_service_names_its_backends_and_their_ports() -> Result<()> {
    let (lab, dir) = (Lab::up(3)?, tempfile::tempdir()?);
    for network in ["blue", "web"] {
        lab.network("h1", network)?;
    }
    let all = ["h1", "h2", "h3"].map(|host| who(&lab, dir.path(), host, &format!("on-{host}")));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    lab.sandbox("h2", "web", "tasks")?;
    let asker = lab.sandbox("h1", "web", "asker")?;
    lab.vxmesh("h1", &["network", "connect", "blue", "asker", "--alias", "tasks.web"])?;
    let selector = ["--network", "blue", "--selector", "app=web"];
    let ports = ["--port", "http=80:8080", "--port", "53:5353/udp"];
    let weights = ["--weight", "on-h1=3", "--weight", "on-h3=0"];
    let create = ["service", "create", "web"];
    lab.vxmesh("h2", &[&create[..], &selector, &ports, &weights].concat())?;
    settled(&lab, "web", 3)?;
    // The names follow what the API shows.
    wait_until("h1 names the backends", || {
        Ok(dig(&lab, &asker, &["tasks.web"]).is_ok_and(|found| found == sorted(&all, true)))
    })?;

    lists(&lab, &asker, &all)?;
    ports_of(&lab, &asker, &all)?;
    in_turn(&lab, &asker, &all)?;
    nobody(&lab, &asker)?;

    // The backend of a host that is down is none of the healthy ones, and all others stay.
    lab.lab(&["kill", "h3"])?;
    let begun = Instant::now();
    wait_until("the dead host's backend is out", || {
        Ok(dig(&lab, &asker, &["tasks.web"])? == sorted(&all[..2], true))
    })?;
    tell(&format!("a backend was out {:?} after its host", begun.elapsed()));
    ensure!(dig(&lab, &asker, &["all.web"])? == sorted(&all, true), "it is a backend all the same");
    // One that is made the label's is in.
    let begun = Instant::now();
    let new = who(&lab, dir.path(), "h2", "new")?;
    wait_until("the new backend is in", || {
        let now = sorted(all[..2].iter().chain([&new]), true);
        Ok(dig(&lab, &asker, &["tasks.web"])? == now)
    })?;
    tell(&format!("a backend was in {:?} after its creation", begun.elapsed()));
    ensure!(begun.elapsed() < GONE * 10);
    lab.finish(Allowed { warnings: &["h3"], ..Allowed::default() })
}

/// `tasks` and `all`, whatever else is called so: the network `web`, an endpoint `tasks` in it, and
/// an alias.
fn lists(lab: &Lab, asker: &Plugged, all: &[Endpoint]) -> Result<()> {
    for name in ["tasks.web", "Tasks.Web.Blue.", "all.web", "all.web.blue"] {
        ensure!(dig(lab, asker, &[name])? == sorted(all, true), "{name}");
        ensure!(dig(lab, asker, &[name, "AAAA", "+tcp"])? == sorted(all, false), "{name}");
    }
    let asked = "for n in 1 2 3; do dig +short tasks.web | xargs; done";
    let mut orders = lines(lab, asker, asked)?;
    orders.dedup();
    ensure!(orders.len() == 1, "the order stays: {orders:?}");
    let libc = lines(lab, asker, "getent ahostsv4 tasks.web | grep -c STREAM")?;
    ensure!(libc == ["3"], "{libc:?}");
    // Without the service the name would be that endpoint's.
    ensure!(
        dig(lab, asker, &["tasks.web.web"])?.is_empty() && dig(lab, asker, &["tasks"])?.len() == 1
    );
    Ok(())
}

/// SRV records with the addresses of their targets; to weight 0 goes nobody new.
fn ports_of(lab: &Lab, asker: &Plugged, all: &[Endpoint]) -> Result<()> {
    let both =
        |port: u16| [format!("0 256 {port} on-h2.blue."), format!("0 768 {port} on-h1.blue.")];
    for (name, port) in
        [("_http._tcp.web", 8080), ("_80._tcp.web.blue", 8080), ("_53._udp.web", 5353)]
    {
        ensure!(dig(lab, asker, &[name, "SRV"])? == both(port), "{name}");
    }
    let (_, text) = dig_status(lab, asker, &["_http._tcp.web", "SRV"])?;
    ensure!(text.contains("ANSWER: 2") && text.contains("ADDITIONAL: 5"), "{text}");
    for endpoint in &all[..2] {
        ensure!(
            text.contains(&ip(endpoint, true)) && text.contains(&ip(endpoint, false)),
            "{text}"
        );
    }
    for (name, status) in [
        ("_ftp._tcp.web", "NXDOMAIN"),
        ("_http._udp.web.blue", "NXDOMAIN"),
        ("_tcp.web", "NOERROR"),
        ("web.blue", "NOERROR"),
    ] {
        let (told, text) = dig_status(lab, asker, &[name, "SRV"])?;
        ensure!(told == status && text.contains("ANSWER: 0"), "{name}: {text}");
    }
    // A host without an endpoint in the network says the same.
    let records = query(lab, "h3", &["_http._tcp.web.blue", "--type", "srv"])?;
    let records = records.map_err(|told| anyhow::anyhow!("{told:?}"))?;
    let values: Vec<&str> = records.iter().map(|record| record.value.as_str()).collect();
    ensure!(values == ["0 256 8080 on-h2.blue", "0 768 8080 on-h1.blue"], "{values:?}");
    ensure!(records.iter().all(|record| record.kind == DnsType::Srv), "{records:?}");
    Ok(())
}

/// The name of a service without an address leads to one backend after the other.
fn in_turn(lab: &Lab, asker: &Plugged, all: &[Endpoint]) -> Result<()> {
    let spec = ["rr", "--network", "blue", "--backend", "on-h1,on-h2", "--mode", "dnsrr"];
    let with = |words: &[&'static str]| [&["create"][..], &spec, words].concat();
    for (words, says) in [
        (with(&["--port", "80", "--vip", "10.71.0.9"]), "`--vip` says nothing"),
        (with(&["--port", "80", "--lb", "rr"]), "`--lb` says nothing"),
        (with(&["--port", "80", "--sticky", "1m"]), "`--sticky` says nothing"),
        (with(&["--port", "a=80", "--port", "a=81"]), "two ports are called `a`"),
    ] {
        refused(lab, &words, says)?;
    }
    let made: Service = lab.json("h1", &[&["service"], &with(&["--port", "8080"])[..]].concat())?;
    ensure!(made.mode == ServiceMode::Dnsrr && made.vips.is_empty(), "{made:?}");
    ensure!(made.state == "active" && made.lb.is_none() && made.warnings.is_empty(), "{made:?}");
    refused(lab, &["update", "rr", "--lb", "maglev"], "`--lb` says nothing")?;
    refused(lab, &["update", "rr", "--sticky", "1m"], "`--sticky` says nothing")?;

    wait_until("its name leads there", || Ok(!dig(lab, asker, &["rr"])?.is_empty()))?;
    let libc = "for n in $(seq 20); do getent ahostsv4 rr | head -n 1 | cut -d' ' -f1; done";
    let chosen = lines(lab, asker, libc)?;
    for backend in &all[..2] {
        let ip = ip(backend, true);
        ensure!(chosen.iter().filter(|line| **line == ip).count() == 10, "{ip}: {chosen:?}");
    }
    let curl =
        "for n in $(seq 10); do curl -sS -m 5 http://rr:8080/cgi-bin/who; done | cut -d' ' -f1";
    let served = lines(lab, asker, curl)?;
    for name in ["on-h1", "on-h2"] {
        ensure!(served.iter().filter(|line| *line == name).count() == 5, "{served:?}");
    }
    ensure!(dig(lab, asker, &["tasks.rr"])? == sorted(&all[..2], true));
    ensure!(dig(lab, asker, &["_8080._tcp.rr", "SRV"])?.len() == 2);
    Ok(())
}

/// Without a backend there is a name and no address: whoever keeps a refusal would miss the first
/// backend.
fn nobody(lab: &Lab, asker: &Plugged) -> Result<()> {
    for (name, mode) in [("empty", "vip"), ("empty-rr", "dnsrr")] {
        let words = ["--network", "blue", "--selector", "app=none", "--port", "80", "--mode", mode];
        lab.vxmesh("h2", &[&["service", "create", name][..], &words].concat())?;
        wait_until("it is known", || Ok(dig_status(lab, asker, &[name])?.0 == "NOERROR"))?;
        for (asked, kind) in [
            (format!("tasks.{name}"), "A"),
            (format!("all.{name}.blue"), "AAAA"),
            (format!("_80._tcp.{name}"), "SRV"),
        ] {
            let (status, text) = dig_status(lab, asker, &[&asked, kind])?;
            ensure!(status == "NOERROR" && text.contains("ANSWER: 0"), "{asked}: {text}");
        }
        let addresses = dig(lab, asker, &[name])?.len();
        ensure!(addresses == usize::from(mode == "vip"), "{name} has {addresses} addresses");
    }
    let told = query(lab, "h1", &["tasks.empty"])?.err();
    ensure!(
        told.is_some_and(|(status, told)| status == 3 && told.message.contains("leads nowhere"))
    );
    Ok(())
}

/// Nobody new is led to a backend while it is taken away, as its link would go next, and nobody
/// again to one that was drained.
#[test]
fn a_backend_that_is_taken_away_is_out_before_its_link() -> Result<()> {
    let (lab, dir) = (Lab::up(2)?, tempfile::tempdir()?);
    lab.network("h1", "blue")?;
    let all = [("h1", "kept"), ("h2", "drained"), ("h2", "removed")];
    let all = all.map(|(host, name)| who(&lab, dir.path(), host, name));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    let asker = lab.sandbox("h1", "blue", "asker")?;
    let create = ["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    lab.vxmesh("h1", &[&create[..], &["--selector", "app=web"]].concat())?;
    settled(&lab, "web", 3)?;
    lab.vxmesh("h1", &["service", "drain", "web", "drained"])?;
    wait_until("one is drained", || {
        Ok(dig(&lab, &asker, &["tasks.web"])? == sorted([&all[0], &all[2]], true))
    })?;

    let lists = while_it_goes(&lab, &asker, "drained")?;
    let drained = ip(&all[1], true);
    ensure!(lists.len() >= 3 && !lists.iter().any(|ips| ips.contains(&drained)), "{lists:?}");
    let lists = while_it_goes(&lab, &asker, "removed")?;
    let removed = ip(&all[2], true);
    let without = lists.iter().rev().take_while(|ips| !ips.contains(&removed)).count();
    ensure!(without >= 3, "it was listed to the end: {lists:?}");
    ensure!(dig(&lab, &asker, &["tasks.web"])? == [ip(&all[0], true)]);
    lab.finish(Allowed::default())
}

/// What `tasks.web` says time and again while a sandbox of h2 is removed.
fn while_it_goes(lab: &Lab, asker: &Plugged, name: &str) -> Result<Vec<Vec<String>>> {
    thread::scope(|threads| {
        let removal = threads.spawn(|| lab.vxmesh("h2", &["sandbox", "rm", name]));
        let mut lists = Vec::new();
        while !removal.is_finished() {
            lists.push(dig(lab, asker, &["tasks.web"])?);
        }
        removal.join().ok().context("the removal panicked")??;
        Ok(lists)
    })
}
