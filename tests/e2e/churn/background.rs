//! Commands in the background: what `run -d` said is so, what ended is known, and what shall go on
//! does.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vxmesh_tests::lab::{Allowed, UNDERWAY};

use super::world::{Lab, ip, tell, wait_until};

/// Ten times the aim of a second.
const TOO_LONG: u128 = 10_000;

/// The live sandboxes of a host, by name.
fn sandbox(lab: &Lab, host: &str, name: &str, list: &[&str]) -> Result<Option<Value>> {
    lab.find(host, list, "name", name)
}

const LIVE: &[&str] = &["sandbox", "ls"];
const ALL: &[&str] = &["sandbox", "ls", "--all"];

/// How many commands `sleep N` run on a host.
fn sleeping(lab: &Lab, host: &str, seconds: &str) -> Result<usize> {
    let script = format!("pgrep -fxc 'sleep {seconds}' || true");
    Ok(lab.sh(host, &script)?.trim().parse()?)
}

#[test]
fn what_run_said_is_so_though_the_agent_was_killed() -> Result<()> {
    let rounds = if std::env::var_os("VXMESH_FULL").is_some() { 50 } else { 6 };
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let began = Instant::now();
    lab.vx("h1", &["run", "-d", "--name", "calm", "--network", "blue", "sleep", "9999"])?;
    let undisturbed = began.elapsed();
    let mut said = 0;
    for round in 0..rounds {
        let (name, seconds) = (format!("r{round}"), format!("{}", 10_000 + round));
        let words = ["run", "-d", "--name", &name, "--network", "blue", "sleep", &seconds];
        let done = std::thread::scope(|scope| -> Result<_> {
            let run = scope.spawn(|| lab.try_vx("h1", &words));
            // Another moment each time; the last one is after its end.
            std::thread::sleep(undisturbed * round / (rounds - 1));
            lab.lab(&["kill", "h1"])?;
            lab.lab(&["start", "h1"])?;
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let there = sandbox(&lab, "h1", &name, LIVE)?;
        if done.status.success() {
            said += 1;
            ensure!(there.is_some_and(|it| it["state"] == "running"), "{name} is not there");
            let shown = lab.vx("h1", &["exec", &name, "ip", "-o", "address", "show", "eth0"])?;
            ensure!(shown.contains("inet "), "{name} has no address: {shown}");
            ensure!(sleeping(&lab, "h1", &seconds)? == 1, "{name} does not run");
            lab.vx("h1", &["sandbox", "rm", &name])?;
        }
        wait_until("nothing is left", || Ok(sleeping(&lab, "h1", &seconds)? == 0))?;
        wait_until("no row is left", || Ok(sandbox(&lab, "h1", &name, LIVE)?.is_none()))?;
    }
    tell(&format!("{said} of {rounds} said 0; {undisturbed:?} undisturbed"));
    ensure!(said > 0, "the agent was always killed too early");
    lab.finish(Allowed {
        warnings: &["never wholly attached", "its sandbox is gone"],
        drops: UNDERWAY,
    })
}

#[test]
fn a_sandbox_that_is_removed_while_it_starts_leaves_no_command() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    for round in 0..6 {
        let script = "vxmesh run -d --name x --network blue sleep 20000 >/dev/null 2>&1 & \
                      until vxmesh sandbox rm x >/dev/null 2>&1; do :; done; wait $!; echo $?";
        let status = lab.sh("h1", script)?;
        ensure!(["0", "125"].contains(&status.trim()), "round {round}: {status}");
        assert_eq!(sleeping(&lab, "h1", "20000")?, 0, "round {round}: it said {status}");
        assert_eq!(lab.json("h1", ALL)?, serde_json::json!([]), "round {round}");
    }
    wait_until("no supervisor is left", || {
        Ok(lab.sh("h1", "pgrep -fc 'vxmesh[ ]supervise' || true")?.trim() == "0")
    })?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

#[test]
fn what_ended_is_known_and_what_shall_go_on_does_after_the_host_was_started_anew() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let run = |name: &str, flags: &[&str], command: &[&str]| {
        let words = [&["run", "-d", "--name", name, "--network", "blue"], flags, command].concat();
        lab.vx("h1", &words)
    };
    // One that dies is known by its status and its last words, also in the log, until it is
    // removed.
    run("bad", &[], &["sh", "-c", "echo no database; exit 3"])?;
    wait_until("its end", || {
        Ok(sandbox(&lab, "h1", "bad", ALL)?.is_some_and(|it| it["exit_status"] == 3))
    })?;
    ensure!(sandbox(&lab, "h1", "bad", LIVE)?.is_none());
    assert_eq!(lab.vx("h1", &["sandbox", "logs", "bad"])?.trim(), "no database");
    let log = lab.log("h1")?;
    ensure!(log.lines().any(|line| line.contains("ended") && line.contains("bad")), "{log}");
    ensure!(lab.json("h1", &["endpoint", "ls"])? == serde_json::json!([]), "it has endpoints");
    lab.vx("h1", &["sandbox", "rm", "bad"])?;
    ensure!(sandbox(&lab, "h1", "bad", ALL)?.is_none());
    run("brief", &["--rm"], &["true"])?;
    wait_until("nothing of it", || Ok(sandbox(&lab, "h1", "brief", ALL)?.is_none()))?;

    // It goes with its command or is started again, not both.
    let both = ["run", "-d", "--rm", "--restart", "always", "--network", "blue", "true"];
    let output = lab.try_vx("h1", &both)?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("--rm or --restart"), "{output:?}");

    // Two that go on.
    let again = ["--restart", "always", "-e", "WORD=hello", "--publish", "8080:80"];
    run("on", &again, &["sh", "-c", "echo $WORD; exec sleep 30001"])?;
    run("once", &[], &["sleep", "30002"])?;
    let endpoint = || lab.find("h1", &["endpoint", "ls"], "name", "on");
    let before = endpoint()?.context("no endpoint")?;
    // It says its word before it sleeps.
    let sleeps =
        |number: usize| wait_until("it sleeps", || Ok(sleeping(&lab, "h1", "3000[12]")? == number));
    sleeps(2)?;
    // A command that is killed is started again by its supervisor.
    let began = Instant::now();
    lab.sh("h1", "pkill -9 -fx 'sleep 30001'")?;
    wait_until("it is started again", || {
        Ok(lab.vx("h1", &["sandbox", "logs", "on"])?.lines().count() == 2)
    })?;
    let took = began.elapsed().as_millis();
    tell(&format!("started again after {took} ms (aim: 100 ms)"));
    ensure!(took < TOO_LONG, "{took} ms");

    sleeps(2)?;
    lab.lab(&["kill", "h1"])?;
    // What a host loses that is started anew: its processes, and what is below /run.
    lab.sh(
        "h1",
        "pkill -9 -f 'vxmesh[ ]supervise' || true; pkill -9 -fx 'sleep 3000[12]' || true; \
         cd /run/vxmesh && for pin in netns/* sandbox/*; do umount -l $pin; done; rm -r netns sandbox etc",
    )?;
    sleeps(0)?;
    lab.lab(&["start", "h1"])?;
    wait_until("it runs again", || {
        Ok(sandbox(&lab, "h1", "on", LIVE)?.is_some_and(|it| it["state"] == "running"))
    })?;
    let after = endpoint()?.context("its endpoint is gone")?;
    for same in ["id", "mac", "ips", "name", "ifname"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    wait_until("it sleeps again", || Ok(sleeping(&lab, "h1", "30001")? == 1))?;
    assert_eq!(lab.vx("h1", &["sandbox", "logs", "-n", "1", "on"])?.trim(), "hello");
    let on = ip(&after)?.to_string();
    // The other host reaches it as before.
    let ping = ["run", "--network", "blue", "ping", "-c1", "-W5", &on];
    wait_until("the other host reaches it", || Ok(lab.try_vx("h2", &ping)?.status.success()))?;
    let once = sandbox(&lab, "h1", "once", ALL)?.context("it is not known")?;
    ensure!(once["state"] == "exited" && once["exit_status"].is_null(), "{once}");
    lab.vx("h1", &["sandbox", "rm", "on"])?;
    assert_eq!(sleeping(&lab, "h1", "30001")?, 0);
    lab.finish(Allowed {
        warnings: &["its sandbox is gone"],
        // An agent that has just started has not heard yet who is in the network.
        drops: &[UNDERWAY, &["unknown_index", "not_a_member"]].concat(),
    })
}

#[test]
fn an_end_while_the_agent_is_away_is_heard_of_later() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let script = "while [ ! -e /run/end ]; do sleep 0.05; done; echo done; exit 7";
    lab.vx("h1", &["run", "-d", "--name", "one", "--network", "blue", "sh", "-c", script])?;
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "touch /run/end; while [ ! -e /var/lib/vxmesh/sandboxes/one-*/exit.json ]; do sleep 0.05; done; \
                  pkill -9 -f 'vxmesh[ ]supervise'")?;
    lab.lab(&["start", "h1"])?;
    let one = sandbox(&lab, "h1", "one", ALL)?.context("it is not known")?;
    assert_eq!((&one["state"], &one["exit_status"]), (&"exited".into(), &7.into()));
    assert_eq!(lab.vx("h1", &["sandbox", "logs", "one"])?.trim(), "done");
    ensure!(lab.pins("h1")?.is_empty(), "{:?}", lab.pins("h1")?);
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

#[test]
fn a_keeper_that_is_killed_is_missed_at_once() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    for (name, restart, seconds) in [("one", "no", "30011"), ("on", "always", "30012")] {
        let flags = ["run", "-d", "--name", name, "--restart", restart, "--network", "blue"];
        lab.vx("h1", &[&flags[..], &["sleep", seconds]].concat())?;
    }
    lab.sh(
        "h1",
        "setsid vxmesh run --name front --network blue sleep 30013 >/dev/null 2>&1 </dev/null &",
    )?;
    wait_until("it runs", || Ok(sleeping(&lab, "h1", "30013")? == 1))?;
    let state = |name: &str, wanted: &str| {
        wait_until(&format!("{name} is {wanted}"), || {
            Ok(sandbox(&lab, "h1", name, LIVE)?.is_some_and(|it| it["state"] == wanted))
        })
    };
    for name in ["one", "on", "front"] {
        state(name, "running")?;
    }

    // The command goes on, and everybody is told.
    for (name, keeper) in
        [("one", "vxmesh[ ]supervise .*--sandbox one "), ("front", "vxmesh[ ]run --name front")]
    {
        let began = Instant::now();
        lab.sh("h1", &format!("pkill -9 -f '{keeper}'"))?;
        state(name, "unsupervised")?;
        wait_until("the log says so", || {
            let log = lab.log("h1")?;
            Ok(log.lines().any(|line| line.contains("was killed; ") && line.contains(name)))
        })?;
        let took = began.elapsed().as_millis();
        tell(&format!("missed after {took} ms (aim: 1 s)"));
        ensure!(took < TOO_LONG, "{took} ms");
        let row = lab.find("h1", &["doctor"], "check", &format!("sandbox {name}"))?;
        ensure!(row.is_some_and(|row| row["health"] == "warn"), "doctor does not know of {name}");
    }
    ensure!(sleeping(&lab, "h1", "3001[13]")? == 2, "a command went with its keeper");

    // What follows from the end of the command follows without a restart of the agent.
    lab.sh("h1", "pkill -9 -fx 'sleep 3001[13]'")?;
    wait_until("the end is known", || {
        let one = sandbox(&lab, "h1", "one", ALL)?;
        Ok(one.is_some_and(|one| one["state"] == "exited" && one["exit_status"].is_null()))
    })?;
    wait_until("the other is gone", || Ok(sandbox(&lab, "h1", "front", ALL)?.is_none()))?;
    // What was killed may be listed for a moment yet.
    let which = || lab.sh("h1", "pgrep -fx 'sleep 30012' || true");
    let before = which()?;
    let began = Instant::now();
    lab.sh("h1", "pkill -9 -f 'vxmesh[ ]supervise .*--sandbox on ' && pkill -9 -fx 'sleep 30012'")?;
    wait_until("it is started again", || {
        let now = which()?;
        Ok(!now.is_empty() && now != before && now.lines().count() == 1)
    })?;
    let took = began.elapsed().as_millis();
    tell(&format!("started again after {took} ms (aim: 1 s)"));
    ensure!(took < TOO_LONG, "{took} ms");
    state("on", "running")?;
    lab.vx("h1", &["sandbox", "rm", "on"])?;
    lab.finish(Allowed { warnings: &["was killed; the command goes on"], drops: UNDERWAY })
}
