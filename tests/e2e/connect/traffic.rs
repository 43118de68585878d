//! Connected and disconnected while a connection in another network goes on, over the agent's end,
//! down to no network.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, UNDERWAY, tell, wait_until},
    outside::{self, Outside, call_tcp, sh},
    traffic::ping,
};

use super::{Talk, connect, disconnect, inside, inspect, ip, leads_by, routers};
use crate::egress::{PORT, settles, state};

#[test]
fn networks_come_and_go_under_a_connection_that_stays() -> Result<()> {
    let lab = Lab::up(3)?;
    let outside = Outside::join(&lab)?;
    let (blue, red) = (lab.network("h1", "blue")?, lab.network("h1", "red")?);
    let (a, b) = (lab.sandbox("h1", "blue", "a")?, lab.sandbox("h2", "blue", "b")?);
    let c = lab.sandbox("h3", "red", "c")?;
    let talks = [true, false].map(|ipv4| Talk::start(&a.netns, &b.netns, ip(&b.endpoint, ipv4)?));
    let talks = talks.into_iter().collect::<Result<Vec<_>>>()?;
    let gets_out = |what: &str| {
        for to in [outside::IPV4, outside::IPV6] {
            let to = SocketAddr::new(to, PORT);
            call_tcp(&a.netns, to, &outside.netns, PORT).context(what.to_owned())?;
        }
        Ok::<_, anyhow::Error>(())
    };
    leads_by(&a.netns, &blue)?;
    let alone = inside(&a.netns)?;

    // By name `blue` stays first; a priority changes that, and without it all is as before.
    connect(&lab, &a, "red", &[])?;
    leads_by(&a.netns, &blue)?;
    ping(&a.netns, ip(&c.endpoint, true)?, 1)?;
    disconnect(&lab, &a, "red")?;
    ensure!(inside(&a.netns)? == alone, "something is left");
    let in_red = connect(&lab, &a, "red", &["--gw-priority", "5", "--ifname", "red0"])?;
    leads_by(&a.netns, &red)?;
    gets_out("by red")?;
    ping(&a.netns, ip(&c.endpoint, false)?, 1)?;

    // The next agent takes it all over and changes nothing.
    let before = inspect(&lab, &a)?;
    let whole = inside(&a.netns)?;
    lab.lab(&["kill", "h1"])?;
    gets_out("without an agent").err();
    lab.lab(&["start", "h1"])?;
    ensure!(inspect(&lab, &a)? == before, "{before:?}");
    let now = inside(&a.netns)?;
    ensure!(now == whole, "{whole}\nbecame\n{now}");
    wait_until("c is reached again", || Ok(ping(&a.netns, ip(&c.endpoint, true)?, 1).is_ok()))?;
    gets_out("with the next agent")?;

    // A default route that is lost while no agent is there is put back.
    lab.lab(&["kill", "h1"])?;
    sh(&a.netns, "ip route del default; ip -6 route del default")?;
    lab.lab(&["start", "h1"])?;
    leads_by(&a.netns, &red)?;

    let gone = disconnect(&lab, &a, "red")?;
    ensure!(gone.id == in_red.id, "{gone:?}");
    leads_by(&a.netns, &blue)?;
    ensure!(inside(&a.netns)? == alone, "something is left");
    gets_out("by blue again")?;
    for talk in talks {
        let longest = talk.end().context("the connection in blue was interrupted")?;
        tell(&format!("networks came and went; the longest round trip beside took {longest:?}"));
    }
    // Sealed for the agent before.
    let drops = &[
        "unknown_index",
        "fdb_unknown",
        "not_local",
        "source_unknown",
        "fdb_unknown",
        "not_local",
    ];
    lab.finish(Allowed { warnings: &["h1"], drops })
}

#[test]
fn without_any_network_a_sandbox_waits_for_one_and_can_be_removed() -> Result<()> {
    let lab = Lab::up(1)?;
    let (blue, _red) = (lab.network("h1", "blue")?, lab.network("h1", "red")?);
    let host = lab.host("h1")?;
    let before = state(&host)?;
    let a = lab.sandbox("h1", "blue", "a")?;
    disconnect(&lab, &a, "blue")?;
    let alone = || {
        let links = sh(&a.netns, "ip -o link | cut -d: -f2 | xargs")?;
        ensure!(links == "lo", "{links}");
        ensure!(routers(&a.netns)?.is_empty());
        let shown = inspect(&lab, &a)?;
        ensure!(shown.state == "running" && shown.networks.is_empty(), "{shown:?}");
        Ok(())
    };
    alone()?;
    settles(&host, &before, "without a network here")?;
    // Still one without, and still served: names are none, and that is said at once.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    alone()?;
    let script = "cat /etc/resolv.conf; getent hosts a.blue; echo $?";
    let said = lab.vxmesh("h1", &["exec", "a", "--", "sh", "-c", script])?;
    ensure!(!said.contains("search") && said.ends_with('2'), "{said}");
    let back = connect(&lab, &a, "blue", &[])?;
    ensure!(back.ifname.as_deref() == Some("eth0"), "{back:?}");
    leads_by(&a.netns, &blue)?;
    let said = lab.vxmesh("h1", &["exec", "a", "--", "sh", "-c", script])?;
    ensure!(said.contains("search blue") && said.ends_with('0'), "{said}");
    // Its end removes it, though it has none of the endpoints that it was made with.
    let pid = inspect(&lab, &a)?.pid.context("no process")?;
    lab.sh("h1", &format!("kill {pid}"))?;
    wait_until("it is gone", || {
        Ok(lab.get::<Vec<serde_json::Value>>("h1", "/v1/sandboxes")?.is_empty())
    })?;
    settles(&host, &before, "after the sandbox")?;
    // And one without a network is removed, too.
    let b = lab.sandbox("h1", "blue", "b")?;
    disconnect(&lab, &b, "blue")?;
    lab.vxmesh("h1", &["sandbox", "rm", "b"])?;
    settles(&host, &before, "after the other sandbox")?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

/// As `kill -9` hits it, at any step.
#[test]
fn an_agent_that_dies_on_the_way_leaves_a_sandbox_in_the_network_or_out_of_it() -> Result<()> {
    let lab = Lab::up(1)?;
    let (blue, red) = (lab.network("h1", "blue")?, lab.network("h1", "red")?);
    let a = lab.sandbox("h1", "blue", "a")?;
    for (round, word) in ["connect", "disconnect"].repeat(4).into_iter().enumerate() {
        let flags: &[&str] = if word == "connect" { &["--gw-priority", "1"] } else { &[] };
        let words = [&["exec", "h1", "--", "vxmesh", "network", word, "red", "a"], flags].concat();
        let mut child = lab.command(&words)?.stderr(std::process::Stdio::null()).spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(7 * u64::try_from(round)?));
        lab.lab(&["kill", "h1"])?;
        child.wait()?;
        lab.lab(&["start", "h1"])?;
        let shown = inspect(&lab, &a)?;
        let links = sh(&a.netns, "ip -o link | wc -l")?;
        let is_in = shown.networks.iter().any(|it| it.network == red.id);
        ensure!(links == if is_in { "3" } else { "2" }, "round {round}: {links}, {shown:?}");
        leads_by(&a.netns, if is_in { &red } else { &blue })?;
        // As the user would: it is done, or done again.
        let output = lab.try_vxmesh("h1", &[&["network", word, "red", "a"], flags].concat())?;
        let status = output.status.code();
        let done = is_in == (word == "connect");
        let expected = if !done {
            0
        } else if word == "connect" {
            4
        } else {
            3
        };
        ensure!(status == Some(expected), "round {round}: {output:?}");
    }
    leads_by(&a.netns, &blue)?;
    lab.finish(Allowed { warnings: &["never wholly attached"], drops: UNDERWAY })
}
