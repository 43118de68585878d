//! Nodes whose clock is wrong: certificates for another time are refused and named, objects are
//! not.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use ring::signature::Ed25519KeyPair;
use vxmesh::{
    api::{Network as Listed, Node},
    identity::{Certified, Credentials, unix_now},
    objects::unix_ms,
};
use vxmesh_proto::{
    control::{Request, Response},
    object::{Content, Draft, Hlc, Network, Subnet},
};
use vxmesh_tests::{
    caller::ask,
    lab::{Allowed, Lab, wait_until},
};

use super::foreign::{credentials, refused, shown, told};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// A certificate for a host's own keys, from the mesh's own CA, by a clock that shows this time.
fn issued(issuer: &Credentials, node: &Credentials, at: u64) -> Result<Vec<u8>> {
    let own = Certified {
        ed25519_public: node.identity.ed25519_public(),
        noise_public: *node.identity.noise_public(),
        aes: true,
        issuer: node.is_issuer(),
    };
    Ok(issuer.ca().context("no CA key")?.issue(&own, at)?)
}

#[test]
fn a_certificate_for_another_time_is_refused() -> Result<()> {
    let lab = Lab::up(2)?;
    let (issuer, member) = (credentials(&lab, "h1")?, credentials(&lab, "h2")?);
    lab.lab(&["kill", "h2"])?;
    let now = unix_now();
    let mut shown = shown(&member);
    for at in [now + 2 * HOUR, now + 900 * DAY, now - 31 * DAY, now - 900 * DAY] {
        shown.chain[0] = issued(&issuer, &member, at)?;
        refused(&lab, &shown, &Request::Ping, "check the clocks, or join again")?;
    }
    shown.chain[0] = issued(&issuer, &member, now)?;
    let answer = ask(&lab.host("h2")?, "10.213.0.1:7760".parse()?, &shown, &Request::Ping)?;
    ensure!(answer == Response::Pong, "{answer:?}");

    // An agent that has such a certificate says so itself, and the files stay as they are.
    let file = lab.path("h2", "/var/lib/vxmesh/identity/node.der")?;
    let tomorrow = issued(&issuer, &member, now + DAY)?;
    fs::write(&file, &tomorrow)?;
    lab.lab(&["start", "h2"])?;
    let warning = "other nodes will refuse this one";
    ensure!(
        told(&lab, "h2", &["WARN", warning, "check the clocks"])?.len() == 1,
        "it says nothing"
    );
    wait_until("the other agent refuses it", || {
        let words = ["refused a certificate", "check the clocks", "10.213.0.2:7760"];
        Ok(!told(&lab, "h1", &words)?.is_empty())
    })?;
    ensure!(fs::read(&file)? == tomorrow, "it was written");
    lab.finish(Allowed { warnings: &[warning], ..Allowed::default() })
}

/// As after an `init` while the host's clock was ahead.
#[test]
fn an_issuer_with_a_certificate_from_tomorrow_makes_another_and_lets_others_in() -> Result<()> {
    let lab = Lab::up(2)?;
    let token: serde_json::Value = lab.json("h1", &["token", "create"])?;
    let token = token["token"].as_str().context("no token")?;
    lab.vxmesh("h2", &["leave"])?;
    lab.lab(&["kill", "h1"])?;
    let issuer = credentials(&lab, "h1")?;
    let file = lab.path("h1", "/var/lib/vxmesh/identity/node.der")?;
    let tomorrow = issued(&issuer, &issuer, unix_now() + DAY)?;
    fs::write(&file, &tomorrow)?;
    lab.lab(&["start", "h1"])?;
    wait_until("it has another certificate", || Ok(fs::read(&file)? != tomorrow))?;
    lab.vxmesh("h2", &["join", "--token", token, "10.213.0.1"])?;
    lab.finish(Allowed { warnings: &["other nodes will refuse this one"], ..Allowed::default() })
}

/// A network that a member signed at this time of its clock.
fn network(member: &Credentials, name: &str, vni: u32, at: Hlc) -> Result<Request> {
    let network = Network {
        name: name.parse()?,
        creator: member.identity.node_id(),
        driver: "overlay".parse()?,
        vni: vni.try_into()?,
        encrypted: true,
        vteps: Vec::new(),
        mtu: 1390,
        subnets: vec![Subnet::whole("10.9.0.0/16".parse()?, "10.9.0.1".parse()?)],
        internal: false,
        isolated: false,
        limits: Default::default(),
        dns: Vec::new(),
        labels: BTreeMap::new(),
        blocks: Vec::new(),
    };
    let pair = Ed25519KeyPair::from_pkcs8(member.identity.pkcs8())?;
    let text = Draft::new(at, Content::Network(network)).sign(&pair, member.membership.mesh_id)?;
    Ok(Request::ObjectsPush { objects: vec![text.to_string()] })
}

#[test]
fn what_a_clock_far_ahead_signed_is_admitted_and_moves_nobody() -> Result<()> {
    let lab = Lab::up(3)?;
    let member = credentials(&lab, "h2")?;
    lab.lab(&["kill", "h2"])?;
    let names = |host: &str| {
        let networks: Vec<Listed> = lab.get(host, "/v1/networks")?;
        let mut names: Vec<String> = networks.iter().map(|it| it.name.to_string()).collect();
        names.sort();
        anyhow::Ok(names)
    };
    for (name, vni, ahead) in [("soon", 77, 90), ("later", 78, 9 * DAY)] {
        let at = Hlc::at(unix_ms() + ahead * 1000);
        let request = network(&member, name, vni, at)?;
        let answer = ask(&lab.host("h2")?, "10.213.0.1:7760".parse()?, &shown(&member), &request)?;
        ensure!(answer == Response::Done, "{answer:?}");
    }
    // Also after a restart, and on a host that hears of it from another.
    wait_until("h1 has both", || Ok(names("h1")? == ["later", "soon"]))?;
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    for host in ["h1", "h3"] {
        wait_until("the networks are there", || Ok(names(host)? == ["later", "soon"]))?;
    }
    // What is made and removed by right clocks counts at once.
    lab.vxmesh("h1", &["network", "create", "now"])?;
    for name in ["soon", "later"] {
        lab.vxmesh("h1", &["network", "rm", name])?;
    }
    wait_until("h3 follows", || Ok(names("h3")? == ["now"]))?;
    lab.finish(Allowed::default())
}

/// Faketime names what it shares by the number of a process, which other hosts of this machine
/// have, too.
fn share_alone(lab: &Lab) -> Result<()> {
    lab.sh("h2", "mount -t tmpfs none /dev/shm").map(drop)
}

/// A joiner's program sees another time by faketime, which answers in the kernel's place.
fn join_at(lab: &Lab, offset: &str, token: &str) -> Result<std::process::Output> {
    let joiner = ["faketime", "--exclude-monotonic", "-f", offset, "vxmesh"];
    let words = joiner.into_iter().chain(["join", "--token", token, "10.213.0.1"]);
    lab.exec("h2", &words.collect::<Vec<_>>())
}

#[test]
fn a_joiner_with_a_wrong_clock_is_told_and_its_token_is_kept() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vxmesh("h2", &["leave"])?;
    lab.lab(&["kill", "h2"])?;
    share_alone(&lab)?;
    let token: serde_json::Value = lab.json("h1", &["token", "create", "--uses", "1"])?;
    let token = token["token"].as_str().context("no token")?;
    let join = ["join", "--token", token, "10.213.0.1"];
    // The server's certificate is not valid yet by this clock, so nobody there can be asked.
    let says = ["10.213.0.1:7760 has a bad certificate", "valid from", "hint: compare the clocks"];
    super::judge(&join, &join_at(&lab, "-2h", token)?, 1, &says)?;
    for (offset, says) in [("+2h", "ahead of"), ("-30m", "behind")] {
        let says = ["this host's clock is", says, "10.213.0.1:7760", "set the clock"];
        super::judge(&join, &join_at(&lab, offset, token)?, 1, &says)?;
        ensure!(lab.sh("h2", "ls -A /var/lib/vxmesh")? == "state.redb", "files are left");
    }
    // Two minutes are no reason to stay outside.
    let joined = join_at(&lab, "+2m", token)?;
    ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    lab.finish(Allowed::default())
}

/// Starts the agent of h2 as on a host whose clock is off.
fn start_at(lab: &Lab, offset: &str) -> Result<()> {
    let agent = "echo $$ >/run/agent.pid; exec vxmesh agent";
    let faked = format!("faketime --exclude-monotonic -f {offset} sh -c '{agent}'");
    lab.sh("h2", &format!("setsid -f {faked} >>/run/agent.log 2>&1 </dev/null"))?;
    wait_until("they are alive to each other", || {
        let is_alive = |host: &str, other: &str| {
            let nodes = lab.json::<Vec<Node>>(host, &["node", "ls"]).unwrap_or_default();
            nodes.iter().any(|node| node.name.as_str() == other && node.state == "alive")
        };
        Ok(is_alive("h1", "h2") && is_alive("h2", "h1"))
    })
}

fn stop(lab: &Lab) -> Result<()> {
    let gone = "while kill -0 $pid 2>/dev/null; do sleep 0.1; done";
    lab.sh("h2", &format!("pid=$(cat /run/agent.pid) && kill $pid && {gone}")).map(drop)
}

/// What it makes is there for others, and what others remove is gone for it; also when its clock is
/// set back, and when it is right again.
#[test]
fn an_agent_whose_clock_is_minutes_off_is_a_member_like_others() -> Result<()> {
    let lab = Lab::up(2)?;
    let names = |host: &str| {
        let networks: Vec<Listed> = lab.get(host, "/v1/networks")?;
        anyhow::Ok(networks.iter().map(|it| it.name.to_string()).collect::<Vec<_>>())
    };
    let passes_on = |name: &str| {
        for (maker, other) in [("h1", "h2"), ("h2", "h1")] {
            lab.vxmesh(maker, &["network", "create", name])?;
            wait_until("the other has it", || Ok(names(other)? == [name]))?;
            lab.vxmesh(other, &["network", "rm", name])?;
            wait_until("it is removed", || Ok(names(maker)?.is_empty()))?;
        }
        anyhow::Ok(())
    };
    lab.lab(&["kill", "h2"])?;
    share_alone(&lab)?;
    for (offset, says) in [("+2m", "ahead of that of h1"), ("-2m", "behind that of h1")] {
        start_at(&lab, offset)?;
        passes_on("wrong")?;
        let said = lab.try_vxmesh("h2", &["doctor"])?.stdout;
        let said = String::from_utf8_lossy(&said);
        ensure!(said.contains(says), "{said}");
        stop(&lab)?;
    }
    lab.lab(&["start", "h2"])?;
    passes_on("right")?;
    // A handshake by the clock that was set back looks old, and is answered by one of h1's own.
    lab.finish(Allowed { warnings: &["this host's clock is"], drops: &["replayed_handshake"] })
}

/// What it signed while its clock was ahead keeps it from nothing once that is right.
#[test]
fn a_node_whose_clock_was_hours_ahead_does_all_when_it_is_right() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.vxmesh("h1", &["node", "update", "h2", "--issuer"])?;
    lab.lab(&["kill", "h2"])?;
    share_alone(&lab)?;
    let signs = |subnet: &str| {
        lab.vxmesh("h2", &["network", "extend", "ahead", "--subnet", subnet])?;
        lab.vxmesh("h2", &["token", "create"])
    };
    start_at(&lab, "+2h")?;
    lab.vxmesh("h2", &["network", "create", "ahead", "--subnet", "10.9.0.0/24"])?;
    signs("10.9.1.0/24")?;
    stop(&lab)?;
    lab.lab(&["start", "h2"])?;
    signs("10.9.2.0/24")?;
    wait_until("h1 has all subnets", || {
        let networks: Vec<Listed> = lab.get("h1", "/v1/networks")?;
        Ok(networks.first().is_some_and(|network| network.subnets.len() == 3))
    })?;
    let is = |at: &str, of: &str, state: &str| {
        let nodes: Vec<Node> = lab.json(at, &["node", "ls", "--all"])?;
        anyhow::Ok(nodes.iter().any(|node| node.name.as_str() == of && node.state == state))
    };
    lab.lab(&["kill", "h3"])?;
    wait_until("h3 is dead", || is("h2", "h3", "dead"))?;
    lab.vxmesh("h2", &["node", "rm", "h3"])?;
    wait_until("h3 is removed", || is("h1", "h3", "removed"))?;
    lab.vxmesh("h2", &["leave"])?;
    wait_until("h2 left", || is("h1", "h2", "left"))?;
    lab.finish(Allowed {
        warnings: &["this host's clock is"],
        drops: &["replayed_handshake", "unknown_index"],
    })
}
