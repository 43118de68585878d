//! Names: what programs in sandboxes get from 127.0.0.11, asked with `dig` and `getent` as people
//! do.

mod at_once;
mod limits;
mod own_server;
mod services;
mod upstreams;

use std::{
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{ApiError, DnsRecord, ErrorBody};
use vxmesh_tests::{
    lab::{Allowed, Lab, Options, Plugged, UNDERWAY, tell, wait_until},
    program::printed,
};

/// A name is gone everywhere this soon after its endpoint; ten times as much fails.
const GONE: Duration = Duration::from_secs(1);

/// A program in a sandbox, however it ends.
fn inside(lab: &Lab, at: &Plugged, words: &[&str]) -> Result<Output> {
    let exec = ["exec", at.sandbox.name.as_str(), "--"];
    lab.try_vxmesh(&at.host, &[&exec, words].concat())
}

/// The lines of `dig +short`, in order.
fn dig(lab: &Lab, at: &Plugged, words: &[&str]) -> Result<Vec<String>> {
    let words = [&["dig", "+short", "+tries=1", "+time=5"], words].concat();
    let text = printed(&words.join(" "), inside(lab, at, &words)?)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// The status of a whole `dig`, such as `NXDOMAIN`, and its text.
fn dig_status(lab: &Lab, at: &Plugged, words: &[&str]) -> Result<(String, String)> {
    let words = [&["dig", "+tries=1", "+time=5"], words].concat();
    let text = printed(&words.join(" "), inside(lab, at, &words)?)?;
    let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    Ok((status.with_context(|| text.clone())?.to_owned(), text))
}

fn v4(of: &Plugged) -> String {
    address(of, true)
}

fn v6(of: &Plugged) -> String {
    address(of, false)
}

fn address(of: &Plugged, v4: bool) -> String {
    let ip = of.endpoint.ips.iter().map(ipnet::IpNet::addr).find(|ip| ip.is_ipv4() == v4);
    ip.map(|ip| ip.to_string()).unwrap_or_default()
}

fn sorted<const N: usize>(texts: [String; N]) -> Vec<String> {
    let mut texts = Vec::from(texts);
    texts.sort();
    texts
}

#[test]
fn names_lead_to_endpoints_and_back_on_every_host() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    lab.network("h1", "blue")?;
    let all = ["h1", "h2", "h3"].map(|host| lab.sandbox(host, "blue", &format!("on-{host}")));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    lab.all_know(&all.iter().map(|one| &one.endpoint).collect::<Vec<_>>())?;
    for asker in &all {
        for other in &all {
            let name = other.endpoint.name.as_str();
            let long = format!("{name}.blue");
            let id = other.endpoint.id.short();
            for name in [name, &long, &long.to_uppercase(), &id] {
                ensure!(dig(&lab, asker, &[name, "A"])? == [v4(other)], "{name}");
                ensure!(dig(&lab, asker, &[name, "AAAA", "+tcp"])? == [v6(other)], "{name}");
            }
            ensure!(dig(&lab, asker, &["-x", &v4(other)])? == [format!("{long}.")]);
            ensure!(dig(&lab, asker, &["-x", &v6(other)])? == [format!("{long}.")]);
            for words in [["getent", "ahostsv4", name], ["getent", "ahostsv6", &long]] {
                let text = printed(&words.join(" "), inside(&lab, asker, &words)?)?;
                let wanted = if words[1] == "ahostsv4" { v4(other) } else { v6(other) };
                ensure!(text.starts_with(&wanted), "{words:?}: {text}");
            }
            let back = inside(&lab, asker, &["getent", "hosts", &v4(other)])?;
            ensure!(printed("getent hosts", back)?.contains(name));
            let ping = inside(&lab, asker, &["ping", "-n", "-c", "1", "-w", "5", name])?;
            printed("ping", ping)?;
        }
        for (name, kind, status) in [
            ("nobody", "A", "NXDOMAIN"),
            ("nobody.blue", "AAAA", "NXDOMAIN"),
            ("on-h1", "TXT", "NOERROR"),
            ("blue", "A", "NOERROR"),
        ] {
            let (told, text) = dig_status(&lab, asker, &[name, kind])?;
            ensure!(told == status && text.contains("ANSWER: 0"), "{name} {kind}: {text}");
        }
    }
    lab.finish(Allowed::default())
}

#[test]
fn a_name_leaves_with_its_endpoint_and_its_host() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    lab.network("h2", "blue")?;
    let asker = lab.sandbox("h1", "blue", "asker")?;
    let leaving = lab.sandbox("h2", "blue", "leaving")?;
    let dying = lab.sandbox("h3", "blue", "dying")?;
    for other in [&leaving, &dying] {
        let name = other.endpoint.name.as_str();
        wait_until("the name", || Ok(dig(&lab, &asker, &[name])? == [v4(other)]))?;
    }

    lab.vxmesh("h2", &["sandbox", "rm", "leaving"])?;
    let begun = Instant::now();
    let reverse = v4(&leaving);
    wait_until("the name is gone", || Ok(dig(&lab, &asker, &["leaving"])?.is_empty()))?;
    ensure!(dig(&lab, &asker, &["-x", &reverse])?.is_empty());
    let took = begun.elapsed();
    tell(&format!("a name was gone {took:?} after its endpoint"));
    ensure!(took < GONE * 10, "{took:?}");

    lab.lab(&["kill", "h3"])?;
    wait_until("the dead host's name is gone", || Ok(dig(&lab, &asker, &["dying"])?.is_empty()))?;
    lab.lab(&["start", "h3"])?;
    wait_until("its name is back", || Ok(dig(&lab, &asker, &["dying"])? == [v4(&dying)]))?;
    // Its own sandbox is served again, too.
    wait_until("its sandbox asks", || {
        let asked = dig(&lab, &dying, &["asker"]);
        Ok(asked.is_ok_and(|lines| lines == [v4(&asker)]))
    })?;
    lab.finish(Allowed { warnings: &["h3"], ..Allowed::default() })
}

#[test]
fn one_alias_leads_to_many_and_a_long_answer_comes_over_tcp() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    lab.network("h1", "blue")?;
    let run = |host: &str, name: &str, alias: &str| {
        let words = ["run", "-d", "--name", name, "--network", "blue", "--alias", alias];
        lab.vxmesh(host, &[&words[..], &["--", "sleep", "3600"]].concat())
    };
    run("h1", "web-1", "web,www,My_App.Local")?;
    run("h2", "web-2", "web")?;
    let asker = lab.sandbox("h1", "blue", "asker")?;
    let ips = |name: &str| -> Result<String> {
        let endpoint: vxmesh::api::Endpoint = lab.json("h1", &["endpoint", "inspect", name])?;
        Ok(endpoint.ips.first().map(|ip| ip.addr().to_string()).unwrap_or_default())
    };
    let both = sorted([ips("web-1")?, ips("web-2")?]);
    wait_until("both have the alias", || Ok(dig(&lab, &asker, &["tasks.web"])? == both))?;
    for alias in ["www", "www.blue", "my_app.local", "MY_APP.local.blue"] {
        ensure!(dig(&lab, &asker, &[alias])? == [ips("web-1")?], "{alias}");
    }
    ensure!(
        dig(&lab, &asker, &["-x", &ips("web-2")?])? == ["web-2.blue."],
        "the name, not the alias"
    );

    // Each is the answer in turn, as libc would sort two and take the same one each time.
    let mut turns = (0..4).map(|_| dig(&lab, &asker, &["web"])).collect::<Result<Vec<_>>>()?;
    ensure!(turns[..2] == turns[2..] && turns.iter().all(|found| found.len() == 1), "{turns:?}");
    turns.sort();
    turns.dedup();
    ensure!(turns.concat() == both, "{turns:?}");
    let libc = "for n in $(seq 40); do getent ahostsv4 web | head -n 1 | cut -d' ' -f1; done";
    let chosen = printed(libc, inside(&lab, &asker, &["sh", "-c", libc])?)?;
    let count = |ip: &str| chosen.lines().filter(|line| *line == ip).count();
    ensure!(both.iter().all(|ip| count(ip) == 20), "{chosen}");

    // One replaces the other, and at no time does the alias lead nowhere.
    let left = [ips("web-2")?];
    lab.vxmesh("h1", &["sandbox", "rm", "web-1"])?;
    wait_until("only the new one has it", || {
        ensure!(dig(&lab, &asker, &["web"])?.len() == 1, "the alias was gone");
        Ok(dig(&lab, &asker, &["tasks.web"])? == left)
    })?;

    // 40 addresses of 16 bytes do not fit into 512.
    for number in 0..40 {
        let name = format!("many-{number}");
        let netns = asker.sandbox.netns.as_str();
        lab.vxmesh(
            "h1",
            &["endpoint", "attach", "blue", "--netns", netns, "--name", &name, "--alias", "many"],
        )?;
    }
    wait_until("all 40", || Ok(dig(&lab, &asker, &["tasks.many", "+noedns"])?.len() == 40))?;
    let (_, cut) = dig_status(&lab, &asker, &["tasks.many", "+noedns", "+ignore"])?;
    ensure!(cut.contains(" tc ") && cut.contains("MSG SIZE  rcvd: 5"), "{cut}");
    let (_, whole) = dig_status(&lab, &asker, &["tasks.many", "+ignore"])?;
    ensure!(!whole.contains(" tc ") && whole.contains("ANSWER: 40"), "EDNS has the room: {whole}");
    lab.finish(Allowed::default())
}

/// `vxmesh dns query`, however it ends: its records or its error.
fn query(lab: &Lab, host: &str, words: &[&str]) -> Result<Result<Vec<DnsRecord>, (i32, ApiError)>> {
    let words = [&["--format", "json", "dns", "query"], words].concat();
    let output = lab.try_vxmesh(host, &words)?;
    if output.status.success() {
        return Ok(Ok(serde_json::from_slice(&output.stdout)?));
    }
    let body: ErrorBody = serde_json::from_slice(&output.stderr)?;
    Ok(Err((output.status.code().unwrap_or(-1), body.error)))
}

#[test]
fn dns_query_shows_whose_word_a_name_is() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    for name in ["blue", "green"] {
        lab.network("h1", name)?;
    }
    let web = lab.sandbox("h2", "blue", "web")?;
    let twin = lab.sandbox("h3", "green", "web")?;
    // h1 has no part in either network and yet can say.
    wait_until("both are known", || {
        Ok(query(&lab, "h1", &["web"])?.is_ok_and(|records| records.len() == 4))
    })?;
    let records =
        query(&lab, "h1", &["WEB.blue.", "--type", "a"])?.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let [record] = records.as_slice() else { anyhow::bail!("{records:?}") };
    ensure!((record.name.as_str(), record.value.clone()) == ("web.blue", v4(&web)), "{record:?}");
    ensure!((record.endpoint, record.node) == (web.endpoint.id, web.endpoint.node), "{record:?}");
    ensure!(["push", "gossip"].contains(&record.source.as_str()) && record.ttl == 5, "{record:?}");
    let back = query(&lab, "h1", &[&v6(&twin)])?.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    ensure!(back.len() == 1 && back[0].value == "web.green", "{back:?}");
    let green = query(&lab, "h2", &["web", "--network", "green"])?;
    ensure!(green.is_ok_and(|records| records.iter().all(|r| r.node == twin.endpoint.node)));
    let text = lab.vxmesh("h1", &["dns", "query", "web.green"])?;
    ensure!(text.contains("h3") && text.contains("AAAA") && text.starts_with("NAME "), "{text}");

    for (words, status, part) in [
        (["nobody", "--type", "A"].as_slice(), 3, "no endpoint has"),
        (&["web", "--network", "red"], 3, "no network has"),
        (&["web", "--type", "ptr"], 3, "has no PTR record"),
        (&["www.example.com"], 3, "no endpoint has"),
    ] {
        let refused = query(&lab, "h1", words)?.err().context("it was answered")?;
        ensure!(refused.0 == status && refused.1.message.contains(part), "{refused:?}");
    }
    lab.lab(&["kill", "h3"])?;
    wait_until("the dead host's word is told apart", || {
        let refused = query(&lab, "h1", &["web.green"])?.err();
        Ok(refused.is_some_and(|(status, error)| status == 3 && error.hint.contains("h3")))
    })?;
    lab.finish(Allowed { warnings: &["h3"], ..Allowed::default() })
}

/// How long a question waits for an agent that is starting.
const WAITS: Duration = Duration::from_secs(2);
/// All names are known again soon after all agents were away, and nobody is told meanwhile that one
/// does not exist.
const BACK: Duration = Duration::from_secs(5);

#[test]
fn after_all_agents_were_away_names_are_late_and_never_denied() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    lab.network("h1", "blue")?;
    let asker = lab.sandbox("h1", "blue", "asker")?;
    let web = lab.sandbox("h2", "blue", "web")?;
    wait_until("the name", || Ok(dig(&lab, &asker, &["web"])? == [v4(&web)]))?;
    for host in lab.hosts() {
        lab.lab(&["kill", host])?;
    }
    lab.lab(&["start", "h1"])?;
    // Alone, it cannot know what h2 has; it knows its own.
    wait_until("it serves", || {
        let own = dig(&lab, &asker, &["asker"]);
        Ok(own.is_ok_and(|found| found == [v4(&asker)]))
    })?;
    let begun = Instant::now();
    let (status, text) = dig_status(&lab, &asker, &["web"])?;
    // Where the machine is so slow that five seconds went by, it may be denied.
    ensure!(status == "SERVFAIL" || begun.elapsed() > BACK, "{text}");
    // It waited for the word: musl takes five seconds over a SERVFAIL.
    let took = begun.elapsed();
    tell(&format!("nobody told h1 about the name for {took:?}"));
    ensure!(took >= WAITS || status == "NXDOMAIN", "{took:?}: {text}");
    for host in ["h2", "h3"] {
        lab.lab(&["start", host])?;
    }
    let begun = Instant::now();
    wait_until("the name is back", || Ok(dig(&lab, &asker, &["web"])? == [v4(&web)]))?;
    let took = begun.elapsed();
    tell(&format!("the name was back {took:?} after its agent"));
    ensure!(took < BACK * 10, "{took:?}");
    // Who starts first sends to one that has not heard yet that it is in the network.
    lab.finish(Allowed { warnings: &["h1", "h2", "h3"], drops: &["not_a_member"] })
}

/// There libc may ask the daemon's socket before anything else, and /etc/resolv.conf is a link to a
/// file of the daemon's.
#[test]
fn a_host_with_systemd_resolved_keeps_its_names_to_itself() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    lab.network("h1", "blue")?;
    let stub = "/run/systemd/resolve/stub-resolv.conf";
    lab.sh(
        "h1",
        &format!(
            "cp -a /etc /run/etc && mount --bind /run/etc /etc && mkdir -p /run/systemd/resolve && \
         echo nameserver 127.0.0.53 > {stub} && touch /run/systemd/resolve/io.systemd.Resolve && \
         ln -sf ..{stub} /etc/resolv.conf"
        ),
    )?;
    let script = "cat /etc/resolv.conf; ls /run/systemd/resolve; getent hosts $(hostname)";
    let seen =
        lab.vxmesh("h1", &["run", "--name", "own", "--network", "blue", "sh", "-c", script])?;
    ensure!(seen.contains("nameserver 127.0.0.11") && seen.contains("own own.blue"), "{seen}");
    ensure!(!seen.contains("127.0.0.53") && !seen.contains("io.systemd.Resolve"), "{seen}");
    ensure!(lab.sh("h1", "cat /etc/resolv.conf")? == "nameserver 127.0.0.53", "the host's own");
    // The daemon is not there yet, and so the link leads nowhere.
    lab.sh("h1", "rm -r /run/systemd")?;
    let cat = ["run", "--network", "blue", "--", "cat", "/etc/resolv.conf"];
    ensure!(lab.vxmesh("h1", &cat)?.contains("nameserver 127.0.0.11"));
    // What was in a TAP when its sandbox went may be judged after it.
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

/// Sandboxes that somebody else made ask the gateway.
#[test]
fn the_gateway_answers_its_own_network() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, ..Options::default() })?;
    let network = lab.network("h1", "blue")?;
    let web = lab.sandbox("h2", "blue", "web")?;
    lab.sh("h1", "ip netns add box && vxmesh endpoint attach blue --netns box --name boxed")?;
    let ask = |server: &str, words: &str| {
        lab.sh("h1", &format!("ip netns exec box dig +short +tries=3 +time=2 @{server} {words}"))
    };
    for server in network.subnets.iter().map(|subnet| subnet.gateway.to_string()) {
        for transport in ["+notcp", "+tcp"] {
            let words = format!("web A {transport}");
            wait_until("the gateway answers", || Ok(ask(&server, &words)? == v4(&web)))?;
            ensure!(ask(&server, &format!("web.blue AAAA {transport}"))? == v6(&web), "{server}");
        }
        ensure!(ask(&server, &format!("-x {}", v4(&web)))? == "web.blue.", "{server}");
    }
    // A restarted agent serves there again, and the last endpoint takes the sockets along.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    let gateway = network.subnets.first().context("no subnet")?.gateway.to_string();
    wait_until("the gateway answers again", || {
        Ok(ask(&gateway, "web A").is_ok_and(|found| found == v4(&web)))
    })?;
    lab.vxmesh("h1", &["endpoint", "detach", "boxed"])?;
    lab.sh("h1", "ip netns del box")?;
    // What h2 sealed for the agent before.
    lab.finish(Allowed { warnings: &["h1"], drops: &["unknown_index"] })
}

#[test]
fn a_gateway_that_could_not_serve_names_does_so_once_it_can() -> Result<()> {
    let lab = Lab::up(1)?;
    let network = lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let netns = lab.inner("h1", &format!("/run/vxmesh/netns/{}", network.id.short()))?;
    lab.lab(&["kill", "h1"])?;
    let taken = netns.run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:53")?))?;
    lab.lab(&["start", "h1"])?;
    let told = || Ok(lab.vxmesh("h1", &["doctor"])?.contains("names are not served on"));
    wait_until("doctor tells", told)?;
    drop(taken);
    wait_until("names are served", || Ok(!told()?))?;
    let server =
        network.subnets.iter().map(|subnet| subnet.gateway).find(std::net::IpAddr::is_ipv4);
    let dig = format!("dig +short +tries=1 +time=5 @{} a.blue", server.context("no gateway")?);
    let answer = vxmesh_tests::outside::sh(&a.netns, &dig)?;
    ensure!(answer.parse::<std::net::IpAddr>().is_ok(), "{answer}");
    lab.finish(Allowed { drops: &[], warnings: &["names are not served on the gateway"] })
}

/// Programs of a cluster ask for their own name and tell the others what it leads to.
#[test]
fn a_sandbox_has_a_hostname_that_leads_to_its_addresses() -> Result<()> {
    let lab = Lab::with(Options { hosts: 1, ..Options::default() })?;
    lab.network("h1", "blue")?;
    let web = lab.sandbox("h1", "blue", "web")?;
    let script = "hostname; cat /etc/hostname; hostname -i; getent ahosts $(hostname)";
    let asked = |run: &[&str]| lab.vxmesh("h1", &[run, &["sh", "-c", script]].concat());
    let seen = asked(&["exec", "web"])?;
    ensure!(seen.starts_with("web\nweb\n"), "{seen}");
    for own in [v4(&web), v6(&web)] {
        ensure!(seen.matches(&own).count() >= 2, "{own}: {seen}");
    }
    ensure!(!seen.contains("127.0."), "{seen}");
    let seen = asked(&["run", "--network", "sandbox:web"])?;
    ensure!(seen.starts_with("web\nweb\n") && seen.contains(&v4(&web)), "{seen}");
    let seen = asked(&["run", "--name", "two", "--hostname", "db.example", "--network", "blue"])?;
    ensure!(seen.starts_with("db.example\ndb.example\n"), "{seen}");
    ensure!(!seen.contains("127.0."), "{seen}");
    for bad in ["10", "localhost", "a\nb"] {
        let run = ["run", "--network", "blue", "--hostname", bad, "true"];
        let output = lab.try_vxmesh("h1", &run)?;
        ensure!(output.status.code() == Some(2), "{bad:?}: {output:?}");
    }
    let seen = lab.vxmesh("h1", &["run", "--name", "none", "--network", "none", "hostname"])?;
    assert_eq!(seen.trim(), "none");
    assert_eq!(lab.vxmesh("h1", &["run", "--network", "host", "hostname"])?.trim(), "h1");
    assert_eq!(lab.sh("h1", "hostname")?.trim(), "h1");
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
