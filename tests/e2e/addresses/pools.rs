//! What a pool gives out and what it says.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use vxmesh_tests::lab::Allowed;

use crate::churn::world::{Lab, ip, wait_until};

/// Fails with this status and says this.
fn refused(lab: &Lab, host: &str, args: &[&str], status: i32, says: &[&str]) -> Result<()> {
    let output = lab.try_vx(host, args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(status), "{args:?}: {output:?}");
    for words in says {
        ensure!(said.contains(words), "{args:?} does not say {words:?}: {said}");
    }
    Ok(())
}

fn knows(lab: &Lab, host: &str, network: &str) -> Result<()> {
    wait_until("the network is known", || {
        Ok(lab.find(host, &["network", "ls"], "name", network)?.is_some())
    })
    .map(drop)
}

fn v4(address: &str) -> Result<u32> {
    match address.parse()? {
        IpAddr::V4(v4) => Ok(v4.to_bits()),
        IpAddr::V6(v6) => anyhow::bail!("{v6} is no IPv4 address"),
    }
}

#[test]
fn addresses_are_chosen_in_the_range_and_reserved_ones_given_to_nobody() -> Result<()> {
    let lab = Lab::up(2)?;
    let create = [
        "network",
        "create",
        "office",
        "--subnet",
        "10.77.0.0/24",
        "--subnet",
        "fd77::/64",
        "--ip-range",
        "10.77.0.64/28",
        "--aux-address",
        "printer=10.77.0.70",
        "--gateway",
        "10.77.0.254",
    ];
    let made = lab.json("h1", &create)?;
    assert_eq!(made["subnets"][0]["ip_range"], "10.77.0.64/28", "{made}");
    assert_eq!(made["subnets"][0]["aux_addresses"], json!({ "printer": "10.77.0.70" }));
    knows(&lab, "h2", "office")?;
    let (first, last) = (v4("10.77.0.64")?, v4("10.77.0.79")?);
    for n in 0..4 {
        for host in ["h1", "h2"] {
            let made = lab.attach(host, "office", &format!("e{n}-{host}"))?;
            let got = ip(&made)?.to_string();
            ensure!((first..=last).contains(&v4(&got)?) && got != "10.77.0.70", "{got}");
        }
    }
    // By name it may be anywhere in the subnet, wherever that is asked.
    lab.sh("h2", "ip netns add named")?;
    let named = ["endpoint", "attach", "office", "--netns", "named", "--ip", "10.77.0.200"];
    assert_eq!(ip(&lab.json("h2", &named)?)?.to_string(), "10.77.0.200");
    lab.sh("h2", "ip netns add other")?;
    let wanted = |address: &'static str| {
        ["endpoint", "attach", "office", "--netns", "other", "--ip", address]
    };
    for (address, status, says) in [
        ("10.77.0.70", 2, "reserved for `printer`"),
        ("10.77.0.254", 2, "cannot be given"),
        ("10.77.0.200", 4, "in use by endpoint"),
        ("10.78.0.1", 2, "in no subnet"),
    ] {
        refused(&lab, "h2", &wanted(address), status, &[address, says])?;
    }
    let pools = lab.json("h2", &["ipam", "inspect", "office"])?;
    let pool = &pools["pools"][0];
    // Nine endpoints, and each host's own address.
    assert_eq!(
        (&pool["ip_range"], &pool["used"]),
        (&json!("10.77.0.64/28"), &json!(11)),
        "{pools}"
    );
    for (args, status, says) in [
        (&["--ip-range", "10.79.0.0/28"] as &[&str], 2, "10.79.0.0/28"),
        (&["--subnet", "10.79.0.0/24", "--aux-address", "x=10.80.0.1"], 2, "10.80.0.1 of `x`"),
        (&["--subnet", "10.79.0.0/24", "--aux-address", "x"], 2, "NAME=IP"),
        (&["--subnet", "10.79.0.0/24", "--subnet", "10.79.0.0/25"], 2, "overlap"),
        (&["--subnet", "10.79.0.1/24"], 2, "write 10.79.0.0/24"),
    ] {
        refused(&lab, "h1", &[&["network", "create", "bad"], args].concat(), status, &[says])?;
    }
    lab.finish(Allowed::default())
}

#[test]
fn default_pools_are_cut_into_subnets_and_overlaps_are_told() -> Result<()> {
    let lab = Lab::up(1)?;
    let made = lab.json("h1", &["network", "create", "one"])?;
    let cidr = made["subnets"][0]["cidr"].as_str().context("no subnet")?.to_owned();
    ensure!(cidr.ends_with("/20") && made["subnets"][1]["cidr"].as_str().is_some(), "{made}");
    ensure!(made.get("warnings").is_none(), "{made}");
    // The lab's underlay is 10.213.0.0/24 on eth0.
    let over = ["network", "create", "over", "--subnet", "10.213.0.0/16", "--subnet", &cidr];
    let warned = lab.json("h1", &over)?["warnings"].to_string();
    ensure!(warned.contains("eth0") && warned.contains("`one`"), "{warned}");
    let inspected = lab.json("h1", &["network", "inspect", "one"])?["warnings"].to_string();
    ensure!(inspected.contains("`over`"), "{inspected}");
    // It works all the same.
    let web = lab.run_sandbox("h1", "over", "web")?;
    ensure!(ip(&web)?.to_string().starts_with("10.213."), "{web}");

    lab.lab(&["kill", "h1"])?;
    lab.sh(
        "h1",
        "echo 'default_pools = [{ base = \"172.30.0.0/23\", size = 24 }]' > /etc/vxmesh/agent.toml",
    )?;
    lab.lab(&["start", "h1"])?;
    for n in 0..2 {
        let made = lab.json("h1", &["network", "create", &format!("small{n}")])?;
        let cidr = made["subnets"][0]["cidr"].as_str().context("no subnet")?;
        ensure!(cidr.starts_with("172.30.") && cidr.ends_with(".0/24"), "{cidr}");
    }
    refused(&lab, "h1", &["network", "create", "small2"], 4, &["default pools", "--subnet"])
}

/// Attaches e0, e1 and so on until it is refused; their names and what the refusal says.
fn fill(lab: &Lab, host: &str, network: &str) -> Result<(Vec<String>, String)> {
    let mut names = Vec::new();
    loop {
        let name = format!("e{}", names.len());
        lab.sh(host, &format!("ip netns add {name}"))?;
        let attach = ["endpoint", "attach", network, "--netns", &name, "--name", &name];
        let output = lab.try_vx(host, &attach)?;
        if !output.status.success() {
            return Ok((names, String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        names.push(name);
    }
}

/// The name servers of old and new gateways answer endpoints of old and new subnets.
fn names_follow(lab: &Lab, network: &Value, far: &Value) -> Result<()> {
    let answer = ip(far)?.to_string();
    for (from, subnet) in [("e0", 0), ("e0", 1), ("new", 0), ("new", 1)] {
        let gateway = network["subnets"][subnet]["gateway"].as_str().context("no gateway")?;
        let dig = format!("ip netns exec {from} dig +short +tries=1 +time=1 @{gateway} far A");
        wait_until(&format!("{from} gets a name from {gateway}"), || {
            let output = lab.exec("h1", &["sh", "-c", &dig])?;
            Ok(String::from_utf8_lossy(&output.stdout).trim() == answer)
        })?;
    }
    Ok(())
}

/// What comes from a new subnet leaves, by either host.
fn ways_follow(lab: &Lab) -> Result<()> {
    for (host, from) in [("h1", "new"), ("h2", "far")] {
        for to in ["10.213.0.1", "10.213.0.2"] {
            let ping = format!("ip netns exec {from} ping -n -c1 -W1 {to} > /dev/null");
            wait_until(&format!("{from} reaches {to}"), || {
                Ok(lab.exec(host, &["sh", "-c", &ping])?.status.success())
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_network_grows_while_endpoints_are_in_it() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "tiny", "--subnet", "10.77.0.0/29"])?;
    knows(&lab, "h2", "tiny")?;
    let (names, refusal) = fill(&lab, "h1", "tiny")?;
    // Of five one is this host's own, and another is with h2.
    ensure!((3..=4).contains(&names.len()), "{names:?}: {refusal}");
    ensure!(refusal.contains("network extend tiny"), "{refusal}");

    refused(&lab, "h2", &["network", "extend", "tiny"], 2, &["--subnet"])?;
    refused(
        &lab,
        "h2",
        &["network", "extend", "nowhere", "--subnet", "10.78.0.0/24"],
        3,
        &["nowhere"],
    )?;
    for overlapping in ["10.77.0.0/29", "10.77.0.0/16", "10.77.0.4/30"] {
        let extend = ["network", "extend", "tiny", "--subnet", overlapping];
        refused(&lab, "h2", &extend, 4, &["overlaps 10.77.0.0/29"])?;
    }
    let grown = lab.json("h2", &["network", "extend", "tiny", "--subnet", "10.78.0.0/24"])?;
    assert_eq!(grown["subnets"].as_array().map(Vec::len), Some(2), "{grown}");
    wait_until("h1 has the new subnet", || {
        let row = lab.find("h1", &["network", "ls"], "name", "tiny")?.context("no network")?;
        Ok(row["subnets"] == grown["subnets"])
    })?;
    // At once, on both hosts; and old and new reach each other, both ways.
    let new = lab.attach("h1", "tiny", "new")?;
    let far = lab.attach("h2", "tiny", "far")?;
    for made in [&new, &far] {
        ensure!(ip(made)?.to_string().starts_with("10.78.0."), "{made}");
    }
    let old = lab.find("h1", &["endpoint", "ls"], "name", "e0")?.context("e0 is gone")?;
    let ping = |host: &str, from: &str, to: &Value| -> Result<bool> {
        let script = format!(
            "ip netns exec {from} ping -c1 -W1 {} > /dev/null && echo yes || echo no",
            ip(to)?
        );
        Ok(lab.sh(host, &script)? == "yes")
    };
    wait_until("old and new on one host", || ping("h1", "e0", &new))?;
    wait_until("old to new across hosts", || ping("h1", "e1", &far))?;
    wait_until("new to old across hosts", || ping("h2", "far", &old))?;
    names_follow(&lab, &grown, &far)?;
    ways_follow(&lab)?;

    // Two hosts extend at once, apart from each other.
    lab.lab(&["cut", "h2"])?;
    lab.vx("h1", &["network", "extend", "tiny", "--subnet", "10.80.0.0/24"])?;
    lab.vx("h2", &["network", "extend", "tiny", "--subnet", "10.81.0.0/24"])?;
    lab.vx("h1", &["network", "extend", "tiny", "--subnet", "10.90.0.0/24"])?;
    lab.vx("h2", &["network", "extend", "tiny", "--subnet", "10.90.0.128/25"])?;
    lab.lab(&["heal"])?;
    let cidrs = |host: &str| -> Result<Vec<String>> {
        let row = lab.find(host, &["network", "ls"], "name", "tiny")?.context("no network")?;
        let rows = row["subnets"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().map(|row| row["cidr"].as_str().unwrap_or_default().to_owned()).collect())
    };
    let expected = ["10.77.0.0/29", "10.78.0.0/24", "10.80.0.0/24", "10.81.0.0/24", "10.90.0.0/24"];
    for host in ["h1", "h2"] {
        wait_until("all subnets are known", || Ok(cidrs(host)? == expected))?;
    }
    let pools = lab.json("h2", &["ipam", "inspect", "tiny"])?;
    let rows = pools["pools"].as_array().context("no pools")?;
    let states: Vec<_> = rows.iter().map(|row| (&row["cidr"], &row["state"])).collect();
    ensure!(states.contains(&(&json!("10.90.0.128/25"), &json!("conflict"))), "{states:?}");

    // They outlive a restart of everybody.
    for host in ["h1", "h2"] {
        lab.lab(&["kill", host])?;
    }
    lab.lab(&["start", "h1"])?;
    lab.lab(&["start", "h2"])?;
    assert_eq!(cidrs("h1")?, expected);
    wait_until("it works again", || ping("h2", "far", &old))?;
    // What was sent to an agent that had no tables yet, or from one that had not heard the other.
    lab.finish(Allowed {
        drops: &["not_a_member", "fdb_unknown"],
        warnings: &["names are not served on the gateway", "no full way out"],
    })
}

#[test]
fn released_addresses_rest_and_taken_ones_name_their_holder() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue", "--subnet", "10.77.0.0/24"])?;
    knows(&lab, "h2", "blue")?;
    let web = lab.attach("h1", "blue", "web")?;
    let address = ip(&web)?.to_string();
    lab.sh("h2", "ip netns add other")?;
    let asked: [&str; 7] = ["endpoint", "attach", "blue", "--netns", "other", "--ip", &address];
    refused(
        &lab,
        "h2",
        &asked,
        4,
        &[&format!("{address} is in use by endpoint `web` on node h1")],
    )?;
    lab.vx("h1", &["endpoint", "detach", "web"])?;
    let again: [&str; 7] = ["endpoint", "attach", "blue", "--netns", "web", "--ip", &address];
    let rests = [&format!("{address} was released a moment ago") as &str, "s more"];
    refused(&lab, "h1", &again, 4, &rests)?;
    wait_until("h2 knows that it is gone, and asks its owner", || {
        let said = lab.try_vx("h2", &asked)?;
        ensure!(said.status.code() == Some(4), "{said:?}");
        Ok(String::from_utf8_lossy(&said.stderr).contains(rests[0]))
    })?;
    // The agent remembers it.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    refused(&lab, "h1", &again, 4, &rests)?;
    let pools = lab.json("h1", &["ipam", "inspect", "blue"])?;
    let resting = &pools["pools"][0]["resting_addresses"];
    ensure!(
        resting[0]["ip"] == address.as_str() && resting[0]["rest_s"].as_u64() <= Some(60),
        "{pools}"
    );
    let next = lab.json("h1", &["endpoint", "attach", "blue", "--netns", "web"])?;
    ensure!(ip(&next)?.to_string() != address, "{next}");
    lab.finish(Allowed::default())
}

#[test]
fn death_frees_nothing_and_leaving_hands_blocks_back() -> Result<()> {
    let lab = Lab::up(3)?;
    wait_until("h1 sees all alive", || {
        let nodes = lab.json("h1", &["node", "ls"])?;
        let nodes = nodes.as_array().into_iter().flatten();
        Ok(nodes.filter(|node| node["state"] == "alive").count() == 3)
    })?;
    lab.vx("h1", &["network", "create", "blue", "--subnet", "10.77.0.0/24"])?;
    for host in ["h2", "h3"] {
        knows(&lab, host, "blue")?;
    }
    let id = |host: &str| -> Result<Value> { Ok(lab.json(host, &["status"])?["node_id"].clone()) };
    let (second, third) = (id("h2")?, id("h3")?);
    let held = |owner: &Value| -> Result<Value> {
        let pools = lab.json("h1", &["ipam", "ls"])?;
        let owners = pools[0]["owners"].as_array().cloned().unwrap_or_default();
        Ok(owners.into_iter().find(|row| row["node"] == *owner).unwrap_or_default())
    };
    ensure!(held(&third)?["free"].as_u64() > Some(0), "every node has a part at once");
    lab.lab(&["kill", "h3"])?;
    wait_until("it is dead and holds what it held", || {
        let row = held(&third)?;
        Ok(row["state"] == "dead" && row["free"].as_u64() > Some(0))
    })?;
    let before = lab.json("h1", &["ipam", "ls"])?[0]["free"].clone();
    lab.vx("h2", &["leave", "--yes"])?;
    wait_until("what left holds nothing", || Ok(held(&second)?.is_null()))?;
    // What was handed over rests, as soon as the heir hears why.
    let now = lab.json("h1", &["ipam", "ls"])?[0].clone();
    let all = now["free"].as_u64().zip(now["resting"].as_u64()).map(|(free, rests)| free + rests);
    ensure!(all == before.as_u64(), "something is lost of {before}: {now}");
    wait_until("it rests", || {
        Ok(lab.json("h1", &["ipam", "ls"])?[0]["resting"].as_u64() > Some(0))
    })?;
    lab.finish(Allowed::default())
}
