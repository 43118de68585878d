//! Hosts that get other addresses, paths that carry one way only, and copies of a node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Diagnosis, Endpoint, Health, Node, Sandbox};
use vxmesh_tests::{
    lab::{Allowed, Lab, UNDERWAY, limit, tell, wait_until},
    program::command,
};

/// How long a host is missed that has another address.
const AIM: Duration = Duration::from_secs(3);
/// Ten times what it takes (0.2 to 1.1 s), and less than the 15 s that it took once.
const FOUND: Duration = Duration::from_secs(12);
/// How long a cut in one direction goes unnoticed on either side.
const NOTICED: Duration = Duration::from_secs(10);

/// How long what is cut is looked at.
const LASTS: Duration = Duration::from_secs(6);

/// Drops of hosts whose agents have just started, and have not heard of keys and members yet.
const JUST_STARTED: &[&str] = &["unknown_index", "no_session", "not_a_member"];
/// What agents say when they are cut off or copied.
const QUARREL: &[&str] = &[
    "peer does not answer handshakes",
    "another agent speaks as this node",
    "endpoint not adopted",
];

/// Starts an agent that finds out its addresses, unlike those that the lab starts.
fn start_agent(lab: &Lab, host: &str) -> Result<()> {
    lab.sh(
        host,
        "setsid -f sh -c 'echo $$ >/run/agent.pid; exec vxmesh agent' >>/run/agent.log 2>&1 </dev/null",
    )?;
    wait_until("the agent answers", || Ok(lab.try_vxmesh(host, &["status"])?.status.success()))
}

fn stop_agent(lab: &Lab, host: &str) -> Result<()> {
    let stop = "pid=$(cat /run/agent.pid) && kill $pid && while kill -0 $pid 2>/dev/null; do sleep 0.1; done";
    lab.sh(host, stop)?;
    Ok(())
}

/// Gives a host other addresses of both IP versions.
fn move_host(lab: &Lab, host: &str, to: u8) -> Result<()> {
    lab.sh(
        host,
        &format!(
            "ip address flush dev eth0 scope global; \
             ip address add 10.213.0.{to}/24 dev eth0; ip address add fd13::{to}/64 dev eth0 nodad"
        ),
    )?;
    Ok(())
}

fn vtep_of(lab: &Lab, at: &str, of: &str) -> Result<String> {
    let nodes: Vec<Node> = lab.json(at, &["node", "ls"])?;
    // Who was never met in this life of the agent has no name yet.
    let Some(node) = nodes.iter().find(|node| node.name.as_str() == of) else {
        return Ok("unknown".to_owned());
    };
    let vtep = node.vtep.map(|vtep| vtep.ip().to_string()).unwrap_or_default();
    Ok(format!("{} {vtep}", node.state))
}

fn reaches(lab: &Lab, host: &str, sandbox: &str, to: &Endpoint) -> Result<bool> {
    let ip = to.ips.first().context("no address")?.addr().to_string();
    let ping = ["exec", sandbox, "--", "ping", "-c1", "-W1", &ip];
    Ok(lab.try_vxmesh(host, &ping)?.status.success())
}

fn run_sandbox(lab: &Lab, host: &str, name: &str) -> Result<Endpoint> {
    let run = ["run", "-d", "--name", name, "--network", "blue", "--", "sleep", "1000"];
    lab.vxmesh(host, &run)?;
    let all: Vec<Endpoint> = lab.json(host, &["endpoint", "ls"])?;
    all.into_iter().find(|it| it.sandbox.as_deref() == Some(name)).context("no endpoint")
}

/// A sandbox on each of the first two hosts, which reach each other; the endpoint of h2's.
fn two_that_reach_each_other(lab: &Lab) -> Result<Endpoint> {
    wait_until("h2 knows the network", || {
        Ok(lab.try_vxmesh("h2", &["network", "inspect", "blue"])?.status.success())
    })?;
    run_sandbox(lab, "h1", "one")?;
    let two = run_sandbox(lab, "h2", "two")?;
    wait_until("they reach each other", || reaches(lab, "h1", "one", &two))?;
    Ok(two)
}

#[test]
fn hosts_that_move_are_found_again() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vxmesh("h1", &["network", "create", "blue"])?;
    for host in ["h1", "h2"] {
        lab.lab(&["kill", host])?;
        start_agent(&lab, host)?;
    }
    wait_until("they are connected", || Ok(vtep_of(&lab, "h1", "h2")?.starts_with("alive")))?;
    let two = two_that_reach_each_other(&lab)?;

    // One host moves; then it loses its IPv4 address. Nobody sends meanwhile.
    for (script, vtep) in [
        ("move", "alive 10.213.0.202"),
        ("ip address del 10.213.0.202/24 dev eth0", "alive fd13::202"),
    ] {
        let start = Instant::now();
        match script {
            "move" => move_host(&lab, "h2", 202)?,
            script => drop(lab.sh("h2", script)?),
        }
        wait_until("h1 knows the new address", || Ok(vtep_of(&lab, "h1", "h2")? == vtep))?;
        let known = start.elapsed();
        wait_until("h1 reaches it", || reaches(&lab, "h1", "one", &two))?;
        let took = start.elapsed();
        tell(&format!("{vtep}: known after {known:?}, reached after {took:?} (aim {AIM:?})"));
        ensure!(took < limit(AIM).min(FOUND), "{took:?}");
    }

    // All move while the agents are away: nobody is where anybody was.
    for host in ["h1", "h2"] {
        stop_agent(&lab, host)?;
    }
    for (host, to) in [("h1", 101), ("h2", 102)] {
        move_host(&lab, host, to)?;
        start_agent(&lab, host)?;
    }
    ensure!(!vtep_of(&lab, "h1", "h2")?.starts_with("alive"), "they cannot know");
    lab.vxmesh("h1", &["join", "10.213.0.102"])?;
    wait_until("one command is enough", || Ok(vtep_of(&lab, "h2", "h1")?.starts_with("alive")))?;
    wait_until("they reach each other", || reaches(&lab, "h1", "one", &two))?;
    let nobody = lab.try_vxmesh("h1", &["join", "10.213.0.199"])?;
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    ensure!(nobody.status.code() == Some(1) && said.contains("10.213.0.199"), "{said}");

    // Once more, and one of them was told beforehand where to look.
    for host in ["h1", "h2"] {
        stop_agent(&lab, host)?;
    }
    lab.sh("h1", "echo 'peers = [\"10.213.0.112\"]' >/etc/vxmesh/agent.toml")?;
    for (host, to) in [("h1", 111), ("h2", 112)] {
        move_host(&lab, host, to)?;
        start_agent(&lab, host)?;
    }
    wait_until("it looks there", || Ok(vtep_of(&lab, "h2", "h1")?.starts_with("alive")))?;
    wait_until("they reach each other", || reaches(&lab, "h1", "one", &two))?;
    lab.finish(Allowed { drops: JUST_STARTED, warnings: QUARREL })
}

/// Nobody is where anybody was, and one is told where the others are: these find each other, too.
#[test]
fn three_hosts_that_moved_meet_by_one_command() -> Result<()> {
    let lab = Lab::up(3)?;
    let pairs =
        [("h1", "h2"), ("h1", "h3"), ("h2", "h1"), ("h2", "h3"), ("h3", "h1"), ("h3", "h2")];
    let all_meet = |lasts: u8| {
        for (at, of) in pairs {
            let number: u8 = of.trim_start_matches('h').parse()?;
            let there = format!("alive 10.213.0.{}", lasts + number);
            wait_until(&format!("{at} meets {of}"), || Ok(vtep_of(&lab, at, of)? == there))?;
        }
        anyhow::Ok(())
    };
    for host in lab.hosts() {
        lab.lab(&["kill", host])?;
        start_agent(&lab, host)?;
    }
    all_meet(0)?;
    for host in lab.hosts() {
        stop_agent(&lab, host)?;
    }
    for (host, to) in [("h1", 101), ("h2", 102), ("h3", 103)] {
        move_host(&lab, host, to)?;
        start_agent(&lab, host)?;
    }
    ensure!(!vtep_of(&lab, "h2", "h3")?.starts_with("alive"), "they cannot know");
    let said = lab.try_vxmesh("h1", &["doctor"])?.stdout;
    let said = String::from_utf8_lossy(&said);
    ensure!(said.contains("name each of them: `vxmesh join HOST...`"), "{said}");
    lab.vxmesh("h1", &["join", "10.213.0.102", "10.213.0.103"])?;
    all_meet(100)?;
    lab.finish(Allowed { drops: JUST_STARTED, warnings: QUARREL })
}

#[test]
fn a_cut_in_one_direction_is_noticed_by_both() -> Result<()> {
    let lab = Lab::up(2)?;
    let cut = "nft add table inet cut && nft 'add chain inet cut in { type filter hook input priority -500; }' && \
               nft add rule inet cut in iifname eth0 ip saddr 10.213.0.1 drop && \
               nft add rule inet cut in iifname eth0 ip6 saddr fd13::1 drop";
    lab.sh("h2", cut)?;
    let start = Instant::now();
    for (at, of) in [("h2", "h1"), ("h1", "h2")] {
        wait_until("it is dead", || Ok(vtep_of(&lab, at, of)?.starts_with("dead")))?;
        let took = start.elapsed();
        tell(&format!("{at} notices after {took:?} (aim {NOTICED:?})"));
        ensure!(took < limit(NOTICED), "{took:?}");
    }
    // What still comes through in the other direction brings nobody back.
    let revived = || {
        let count = |host| anyhow::Ok(lab.log(host)?.matches("the node is alive").count());
        anyhow::Ok([count("h1")?, count("h2")?])
    };
    let (before, begun) = (revived()?, Instant::now());
    wait_until("some rounds go by", || {
        for (at, of) in [("h2", "h1"), ("h1", "h2")] {
            ensure!(vtep_of(&lab, at, of)?.starts_with("dead"), "{of} is back at {at}");
        }
        Ok(begun.elapsed() > LASTS)
    })?;
    ensure!(revived()? == before, "it was back for a moment");
    lab.sh("h2", "nft delete table inet cut")?;
    for (at, of) in [("h2", "h1"), ("h1", "h2")] {
        wait_until("it is back", || Ok(vtep_of(&lab, at, of)?.starts_with("alive")))?;
    }
    lab.finish(Allowed { drops: JUST_STARTED, warnings: QUARREL })
}

#[test]
fn a_copy_of_a_node_does_not_stay_in_its_place() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.vxmesh("h1", &["network", "create", "blue"])?;
    let two = two_that_reach_each_other(&lab)?;
    for host in ["h2", "h3"] {
        lab.lab(&["kill", host])?;
    }
    let (from, to) = (lab.path("h2", "/var/lib/vxmesh")?, lab.path("h3", "/var/lib/vxmesh")?);
    let script = format!("rm -rf {1}/* && cp -a {0}/. {1}/", from.display(), to.display());
    ensure!(command("sh").args(["-c", &script]).status()?.success(), "{script}");
    lab.lab(&["start", "h2"])?;
    wait_until("h2 is back", || Ok(vtep_of(&lab, "h1", "h2")?.starts_with("alive")))?;
    lab.lab(&["start", "h3"])?;
    wait_until("h2 says that somebody speaks as it", || {
        let rows: Vec<Diagnosis> =
            serde_json::from_slice(&lab.try_vxmesh("h2", &["--format", "json", "doctor"])?.stdout)?;
        Ok(rows.iter().any(|row| row.check == "identity" && row.health == Health::Fail))
    })?;
    // They overrule each other for as long as both run, and each says so once.
    let said = lab.log("h2")?;
    let told = said.matches("another agent speaks as this node").count();
    ensure!(told == 1 && !said.contains("is answered"), "{said}");
    lab.lab(&["kill", "h3"])?;
    let start = Instant::now();
    let own = "alive 10.213.0.2";
    wait_until("h1 knows where h2 is", || Ok(vtep_of(&lab, "h1", "h2")? == own))?;
    wait_until("h1 reaches it", || reaches(&lab, "h1", "one", &two))?;
    tell(&format!("reached {:?} after the copy ended", start.elapsed()));
    // While two spoke as one, h2 had a part in the network and had none.
    let drops = &["unknown_index", "no_session", "not_a_member", "source_unknown", "fdb_unknown"];
    lab.finish(Allowed { drops, warnings: QUARREL })
}

#[test]
fn what_an_older_data_directory_does_not_know_is_removed() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vxmesh("h1", &["network", "create", "blue", "--subnet", "10.88.0.0/29"])?;
    lab.sh(
        "h1",
        "ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up",
    )?;
    let macvlan = ["network", "create", "--driver", "macvlan", "-o", "parent=up0"];
    lab.vxmesh("h1", &[&macvlan[..], &["--subnet", "10.89.0.0/24", "beside"]].concat())?;
    let kept = run_sandbox(&lab, "h1", "kept")?;
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "cp -a /var/lib/vxmesh /var/lib/snapshot")?;
    lab.lab(&["start", "h1"])?;
    let lost = run_sandbox(&lab, "h1", "lost")?;
    lab.vxmesh("h1", &["network", "connect", "beside", "lost"])?;
    let sandbox: Sandbox = lab.json("h1", &["sandbox", "inspect", "lost"])?;
    let pid = sandbox.pid.context("it does not run")?;
    let macvlans = format!("nsenter --net=/proc/{pid}/ns/net ip -o link show type macvlan | wc -l");
    ensure!(lab.sh("h1", &macvlans)? == "1", "it is not in both networks");
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "rm -rf /var/lib/vxmesh && cp -a /var/lib/snapshot /var/lib/vxmesh")?;
    lab.lab(&["start", "h1"])?;
    ensure!(lab.sh("h1", "ls /run/vxmesh/sandbox")? == "kept", "the lost one is pinned");
    ensure!(lab.sh("h1", "ls /run/vxmesh/etc")? == "kept", "files of the lost one are left");
    ensure!(lab.sh("h1", &macvlans)? == "0", "an interface of the lost one is left");
    let warned = lab.log("h1")?;
    ensure!(warned.contains("removed a sandbox that this node's data does not know"), "{warned}");
    let lost_row = || {
        let rows: Vec<Diagnosis> =
            serde_json::from_slice(&lab.try_vxmesh("h1", &["--format", "json", "doctor"])?.stdout)?;
        Ok::<_, anyhow::Error>(rows.into_iter().find(|row| row.check == "sandboxes"))
    };
    // Whoever looks sees them as long as they live, after a restart, too.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    let row = lost_row()?.context("doctor does not name the processes")?;
    ensure!(row.found.contains("sandbox lost") && row.found.contains(&pid.to_string()), "{row:?}");
    lab.sh("h1", &format!("kill -9 {pid}"))?;
    wait_until("they have ended", || Ok(lost_row()?.is_none()))?;
    // Its addresses are free, and nobody has them any more.
    let ports = "ip netns exec $(ls /run/vxmesh/netns) true 2>/dev/null; \
                 nsenter --net=/run/vxmesh/netns/$(ls /run/vxmesh/netns) ip -o link | grep -c ' v[0-9a-f]*@'";
    ensure!(lab.sh("h1", ports)? == "1", "a cable is left");
    let next = run_sandbox(&lab, "h1", "next")?;
    ensure!(next.ips != kept.ips, "{next:?}");
    ensure!(reaches(&lab, "h1", "kept", &next)?, "{next:?} after {lost:?}");
    let warnings = &["this node's data does not know"];
    lab.finish(Allowed { warnings, drops: UNDERWAY })
}
