//! What is refused, and what fails on the way, changes nothing.

use anyhow::{Result, ensure};
use vxmesh::api::Endpoint;
use vxmesh_tests::{
    lab::{Allowed, Lab, UNDERWAY, wait_until},
    machine::Machine,
    program::printed,
};

use super::{inside, inspect, ip, run};
use crate::egress::state;

/// Waits until something is as it was; says which lines differ.
fn settles(what: &str, before: &str, look: impl Fn() -> Result<String>) -> Result<()> {
    let mut after = String::new();
    let settled = wait_until(what, || {
        after = look()?;
        Ok(after == before)
    });
    let only = |one: &str, other: &str| {
        let lines = one.lines().filter(|line| !other.lines().any(|it| it == *line));
        lines.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    settled.map_err(|error| {
        let (new, gone) = (only(&after, before), only(before, &after));
        error.context(format!("new: {new:#?}, gone: {gone:#?}"))
    })
}

#[test]
fn what_is_refused_changes_nothing() -> Result<()> {
    let lab = Lab::up(2)?;
    for network in ["blue", "red"] {
        lab.network("h1", network)?;
    }
    let a = run(&lab, "h1", "a", &["--network", "blue", "--publish", "8080:80"])?;
    let taken = lab.sandbox("h2", "red", "holder")?;
    let twin = run(&lab, "h2", "twin", &["--network", "blue"])?;
    let other = run(&lab, "h1", "twin", &["--network", "red"])?;
    lab.all_know(&[&a.endpoint, &taken.endpoint, &twin.endpoint, &other.endpoint])?;
    let host = lab.host("h1")?;
    let whole = || -> Result<String> {
        let ends: Vec<Endpoint> = lab.get("h2", "/v1/endpoints")?;
        let etc = a.sandbox.etc.clone().unwrap_or_default();
        let files = lab.sh("h1", &format!("cat {etc}/hosts {etc}/resolv.conf"))?;
        Ok(format!(
            "{}\n{:?}\n{ends:?}\n{files}\n{}",
            inside(&a.netns)?,
            inspect(&lab, &a)?,
            state(&host)?
        ))
    };
    let before = whole()?;
    let address = ip(&taken.endpoint, true)?.to_string();
    for (words, status, says) in [
        (["connect", "blue", "a"].as_slice(), 4, "sandbox `a` is in network `blue` already"),
        (&["connect", "blue", "a", "--gw-priority", "3"], 4, "already"),
        (&["connect", "nowhere", "a"], 3, "no network has the id or name `nowhere`"),
        (&["connect", "red", "nobody"], 3, "no sandbox has the id or name `nobody`"),
        (&["disconnect", "red", "a"], 3, "sandbox `a` is not in network `red`"),
        (&["disconnect", "nowhere", "a"], 3, "no network has"),
        (&["disconnect", "red", "nobody"], 3, "no sandbox has"),
        (&["connect", "red", "a", "--ip", &address], 4, "in use"),
        (&["connect", "red", "a", "--ip", "192.0.2.1"], 2, "in no subnet"),
        (&["connect", "red", "a", "--ip", "10.0"], 2, "10.0"),
        (&["connect", "red", "a", "--mac", "01:00:00:00:00:01"], 2, "cannot be the MAC"),
        (&["connect", "red", "a", "--ifname", "eth0"], 4, "already an interface eth0"),
        (&["connect", "red", "a", "--ifname", "a/b"], 2, "not a name for an interface"),
        (&["connect", "red", "a", "--gw-priority", "high"], 2, "high"),
        // Its name there is another's on another host.
        (&["connect", "blue", "twin"], 4, "the network has an endpoint `twin` already"),
    ] {
        let output = lab.try_vxmesh("h1", &[&["network"], words].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(status) && said.contains(says),
            "{words:?}: {output:?}"
        );
        ensure!(said.contains("hint:") || status == 2, "{words:?}: {said}");
    }
    for (flags, status, says) in [
        (["--network", "blue,blue"].as_slice(), 125, "named twice"),
        (&["--network", "blue", "--network", "name=blue,alias=x"], 125, "named twice"),
        (
            &["--network", "name=blue,ifname=x", "--network", "name=red,ifname=x"],
            125,
            "interface x",
        ),
        (&["--network", "name=blue,ip=10.1.0.2", "--ip", "10.1.0.3"], 2, "--ip is given"),
        (&["--network", "blue,ip=10.1.0.2"], 2, "`blue` is no KEY=VALUE"),
        (&["--network", "name=blue,colour=red"], 2, "`colour` is no key"),
        // The first network is undone when the second one is refused.
        (
            &["--network", "blue", "--network", "name=red,mac=01:00:00:00:00:01"],
            125,
            "cannot be the MAC",
        ),
    ] {
        let words = [&["run", "--name", "b"], flags, &["--", "true"]].concat();
        let output = lab.try_vxmesh("h1", &words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(status) && said.contains(says),
            "{flags:?}: {output:?}"
        );
    }
    let detach = ["endpoint", "detach", &a.endpoint.id.to_string()];
    let output = lab.try_vxmesh("h1", &detach)?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    settles("all is as before", &before, whole)?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

/// The last step fails: whatever was done before it is undone.
#[test]
fn what_fails_half_way_is_undone() -> Result<()> {
    let lab = Lab::up(1)?;
    for network in ["blue", "red"] {
        lab.network("h1", network)?;
    }
    let a = lab.sandbox("h1", "blue", "a")?;
    let seen = || -> Result<String> {
        let ends: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
        let sandbox = inspect(&lab, &a)?;
        Ok(format!("{}\n{:?}\n{:?}\n{ends:?}", inside(&a.netns)?, sandbox.networks, sandbox.state))
    };
    let etc = a.sandbox.etc.clone().unwrap_or_default();
    // A file that cannot be written, for root neither.
    let break_it = format!("mv {etc}/hosts {etc}/kept; mkdir {etc}/hosts");
    let mend_it = format!("rmdir {etc}/hosts; mv {etc}/kept {etc}/hosts");
    for word in ["connect", "disconnect"] {
        let before = seen()?;
        lab.sh("h1", &break_it)?;
        let output = lab.try_vxmesh("h1", &["network", word, "red", "a"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains("names"), "{word}: {output:?}");
        lab.sh("h1", &mend_it)?;
        settles("it is as before", &before, seen)?;
        lab.vxmesh("h1", &["network", word, "red", "a"])?;
        ensure!(seen()? != before, "{word} did nothing");
    }
    let warnings = &["is not wholly undone"];
    lab.finish(Allowed { warnings, drops: UNDERWAY })
}

/// Where nothing else happens, all that a machine has is compared.
#[test]
fn nothing_is_left_of_a_connection() -> Result<()> {
    let machine = Machine::start()?;
    let vx = |args: &[&str]| {
        printed(
            &args.join(" "),
            machine.vxmesh(&[&["lab", "exec", "h1", "--", "vxmesh"], args].concat()).output()?,
        )
    };
    let up = machine.vxmesh(&["lab", "up", "--hosts", "1"]).output()?;
    printed("lab up", up)?;
    for network in ["blue", "red"] {
        vx(&["network", "create", network])?;
    }
    vx(&[
        "run",
        "-d",
        "--name",
        "a",
        "--network",
        "blue",
        "--publish",
        "8080:80",
        "--",
        "sleep",
        "1000",
    ])?;
    // What an agent writes into its log and its state is not left behind; nor is what the kernel
    // counts.
    let look = || -> Result<String> {
        let host = "ip -o link; ip -o addr; ip route; ip -6 route; nft list ruleset; find /run /etc -xdev | sort; \
                    cut -d' ' -f 4- /proc/self/mountinfo; ls /run/vxmesh/netns /run/vxmesh/sandbox /run/vxmesh/etc/a; cat /run/vxmesh/etc/a/*";
        let host = machine.vxmesh(&["lab", "exec", "h1", "--", "sh", "-c", host]).output()?;
        // Whether a bridge counts as up is decided a moment after its port is.
        let machine = machine.snapshot()?.replace(" state UNKNOWN ", " state UP ");
        let machine = machine
            .lines()
            .filter(|line| !line.contains("state.redb") && !line.contains("agent.log"));
        Ok(format!("{}\n{}", printed("look", host)?, machine.collect::<Vec<_>>().join("\n")))
    };
    let before = look()?;
    for flags in [["--gw-priority", "7"].as_slice(), &["--ifname", "red0", "--alias", "x"]] {
        vx(&[&["network", "connect", "red", "a"], flags].concat())?;
        ensure!(look()? != before, "a connection does not show");
        vx(&["network", "disconnect", "red", "a"])?;
        settles("nothing is left", &before, look)?;
    }
    Ok(())
}
