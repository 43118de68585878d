//! Bad input of every kind: the exit status of its kind, a message that says what is wrong, and nothing half done.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::churn::world::{Lab, ip, wait_until};

/// Fails with this status and says this.
fn refused(lab: &Lab, host: &str, args: &[&str], status: i32, says: &[&str]) -> Result<()> {
    judge(args, &lab.try_vx(host, args)?, status, says)
}

fn judge(what: &[&str], output: &Output, status: i32, says: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(status), "{what:?}: {output:?}");
    for words in says {
        ensure!(said.contains(words), "{what:?} does not say {words:?}: {said}");
    }
    Ok(())
}

fn token(lab: &Lab, args: &[&str]) -> Result<(String, String)> {
    let made = lab.json("h1", &[&["token", "create"], args].concat())?;
    let text = |field: &str| made[field].as_str().map(ToOwned::to_owned).context("no such field");
    Ok((text("token")?, text("id")?))
}

#[test]
fn nobody_joins_without_a_good_token() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h2", &["leave"])?;
    let join = |token: &str, status, says: &str| {
        refused(&lab, "h2", &["join", "--token", token, "10.213.0.1"], status, &[says])?;
        ensure!(lab.json("h2", &["status"])?["state"] == "uninitialised", "half a member");
        ensure!(lab.sh("h2", "ls -A /var/lib/vxmesh")? == "state.redb", "files are left");
        Ok(())
    };
    let (good, _) = token(&lab, &[])?;
    join("nonsense", 2, "not a join token")?;
    let mut secret = good.clone().into_bytes();
    if let Some(last) = secret.iter_mut().rev().nth(3) {
        *last = if *last == b'a' { b'b' } else { b'a' };
    }
    join(&String::from_utf8(secret)?, 1, "token")?;
    let parts: Vec<&str> = good.splitn(4, '-').collect();
    let digest: String = parts.get(2).context("no digest")?.chars().rev().collect();
    let other_ca = [parts[0], parts[1], &digest, parts[3]].join("-");
    let output = lab.try_vx("h2", &["join", "--token", &other_ca, "10.213.0.1"])?;
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");

    let (short, _) = token(&lab, &["--ttl", "1s"])?;
    wait_until("it expires", || {
        Ok(lab.json("h1", &["token", "ls"])?.to_string().contains("expired"))
    })?;
    join(&short, 1, "expired")?;
    let (revoked, id) = token(&lab, &[])?;
    lab.vx("h1", &["token", "revoke", &id])?;
    join(&revoked, 1, "token")?;
    refused(&lab, "h2", &["join", "--token", &good, "10.213.0.99"], 1, &["10.213.0.99"])?;

    let (once, _) = token(&lab, &["--uses", "1"])?;
    lab.vx("h2", &["join", "--token", &once, "10.213.0.1"])?;
    refused(&lab, "h2", &["join", "--token", &good, "10.213.0.1"], 4, &["member", "leave"])?;
    refused(&lab, "h2", &["init"], 4, &["member", "leave"])?;
    refused(&lab, "h2", &["token", "create"], 4, &["CA key"])?;
    lab.vx("h2", &["leave"])?;
    join(&once, 1, "token")?;
    Ok(())
}

#[test]
fn members_of_two_meshes_do_not_mix() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h2", &["leave"])?;
    lab.vx("h2", &["init"])?;
    // h1 remembers where the node was that left; neither believes the other's certificate.
    let (foreign, _) = token(&lab, &[])?;
    lab.vx("h2", &["leave"])?;
    lab.vx("h2", &["init"])?;
    refused(&lab, "h2", &["join", "--token", &foreign, "10.213.0.1"], 4, &["member"])?;
    lab.vx("h2", &["leave"])?;
    // A server of another mesh than the token's.
    refused(&lab, "h2", &["join", "--token", &foreign, "10.213.0.2"], 1, &["10.213.0.2"])?;
    lab.vx("h2", &["init"])?;
    let nodes = lab.json("h1", &["node", "ls"])?;
    let alive = nodes.as_array().into_iter().flatten().filter(|node| node["state"] == "alive");
    assert_eq!(alive.count(), 1, "{nodes}");
    assert_eq!(lab.json("h2", &["node", "ls"])?.as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_by_name() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    let web = lab.run_sandbox("h1", "blue", "web")?;
    let before = (lab.json("h1", &["endpoint", "ls"])?, lab.pins("h1")?);
    let taken = ip(&web)?.to_string();
    for (args, status, says) in [
        (&["network", "create", "x", "--mtu", "1279"] as &[&str], 2, "1280 to 8894"),
        (&["network", "create", "x", "--mtu", "9001"], 2, "1280 to 8894"),
        (&["network", "create", "x", "--subnet", "10.0.0.0/33"], 2, "10.0.0.0/33"),
        (
            &["network", "create", "x", "--subnet", "10.1.0.0/16", "--gateway", "10.2.0.1"],
            2,
            "10.2.0.1",
        ),
        (&["network", "create", "X y"], 2, "X y"),
        (&["network", "create", "blue"], 4, "blue"),
        (&["network", "create", "x", "--colour", "red"], 2, "--colour"),
        (&["network", "rm", "blue"], 4, "web"),
        (&["network", "rm", "nowhere"], 3, "nowhere"),
        (&["network", "inspect", "nowhere"], 3, "nowhere"),
        (&["node", "inspect", "h9"], 3, "h9"),
        (&["map", "diff", "h9"], 3, "h9"),
        (&["endpoint", "inspect", "nobody"], 3, "nobody"),
        (&["endpoint", "detach", "nobody"], 3, "nobody"),
        (&["endpoint", "detach", "web"], 4, "sandbox rm"),
        (&["sandbox", "rm", "nobody"], 3, "nobody"),
        (&["locate", "10.255.255.1"], 3, "10.255.255.1"),
        (&["locate", "here"], 2, "here"),
        (&["endpoint", "attach", "blue", "--pid", "1"], 2, "not a sandbox"),
        (&["endpoint", "attach", "blue", "--netns", "nowhere"], 3, "nowhere"),
        (&["endpoint", "attach", "blue"], 2, "--netns"),
        (&["run", "--name", "web", "--network", "blue", "--", "true"], 125, "web"),
        (&["run", "--network", "blue", "--ip", &taken, "--", "true"], 125, "in use"),
        (&["run", "--network", "blue", "--ip", "192.0.2.1", "--", "true"], 125, "in no subnet"),
        (&["run", "--network", "nowhere", "--", "true"], 125, "nowhere"),
        (&["--socket", "/nowhere/x.sock", "status"], 5, "/nowhere/x.sock"),
        (&["agent"], 4, "answers"),
        (&["agent", "--socket", "/run/vxmesh/2.sock"], 1, "in use by another agent"),
    ] {
        refused(&lab, "h1", args, status, &[says, "hint:"]).or_else(|error| {
            // The parser of the words has its own form.
            refused(&lab, "h1", args, status, &[says]).map_err(|_other| error)
        })?;
    }
    let output = lab.try_vx("h1", &["--format", "json", "network", "rm", "nowhere"])?;
    let error: Value = serde_json::from_slice(&output.stderr)?;
    assert_eq!(error["error"]["code"], "not_found", "{error}");
    assert_eq!((lab.json("h1", &["endpoint", "ls"])?, lab.pins("h1")?), before);

    // The address of a node that is there comes from that node.
    let far = lab.run_sandbox("h2", "blue", "far")?;
    let std::net::IpAddr::V4(far) = ip(&far)? else { anyhow::bail!("the first is IPv4") };
    let wanted = std::net::Ipv4Addr::from_bits(far.to_bits() + 9).to_string();
    let run = ["run", "--network", "blue", "--ip", &wanted, "--", "ip", "-o", "addr"];
    assert!(lab.vx("h1", &run)?.contains(&wanted));
    Ok(())
}

#[test]
fn a_small_subnet_ends_with_a_word() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "tiny", "--subnet", "10.77.0.0/29"])?;
    lab.sh("h1", "ip netns add plain")?;
    let mut addresses = Vec::new();
    // Eight addresses without network, broadcast and gateway.
    let refusal = loop {
        let output = lab.try_vx(
            "h1",
            &["--format", "json", "endpoint", "attach", "tiny", "--netns", "plain"],
        )?;
        if !output.status.success() {
            break output;
        }
        let made: Value = serde_json::from_slice(&output.stdout)?;
        addresses.push(ip(&made)?);
        ensure!(addresses.len() <= 5, "{addresses:?}");
    };
    let says = ["10.77.0.0/29", "h1 (alive) holds", "ipam inspect"];
    judge(&["attach"], &refusal, 4, &says)?;
    let pools = lab.json("h1", &["ipam", "inspect", "tiny"])?;
    let pool = &pools["pools"][0];
    assert_eq!((pool["used"].clone(), pool["free"].clone()), (json!(5), json!(0)), "{pools}");
    refused(&lab, "h1", &["ipam", "inspect", "nowhere"], 3, &["nowhere"])?;
    assert_eq!(addresses.len(), 5, "all of it was to be had: {addresses:?}");
    Ok(())
}

#[test]
fn an_agent_that_cannot_trust_its_files_does_not_start() -> Result<()> {
    let lab = Lab::up(1)?;
    let state = "/var/lib/vxmesh/state.redb";
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", "cp -a /var/lib/vxmesh /var/lib/saved")?;
    for (damage, says) in [
        (format!("printf 'no database' > {state}"), "damaged"),
        (format!("truncate -s 5000 {state}"), "damaged"),
        ("chmod 755 /var/lib/vxmesh/identity".to_owned(), "identity"),
        ("chmod 644 /var/lib/vxmesh/identity/*".to_owned(), "identity"),
        ("echo 'colour = 1' > /etc/vxmesh/agent.toml".to_owned(), "colour"),
    ] {
        lab.sh("h1", &damage)?;
        let snapshot = "find /var/lib/vxmesh -type f -exec sha256sum {} + | sort; stat -c '%a %n' /var/lib/vxmesh/identity";
        let before = lab.sh("h1", snapshot)?;
        let output = lab.try_vx("h1", &["agent"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{damage}: {output:?}");
        assert!(said.contains(says) && said.contains("hint:"), "{damage}: {said}");
        assert_eq!(lab.sh("h1", snapshot)?, before, "{damage}: the files are as they were");
        assert_eq!(lab.sh("h1", "ls /sys/class/net | sort | xargs; ls /run/vxmesh")?, "eth0 lo");
        lab.sh("h1", "rm -rf /var/lib/vxmesh /etc/vxmesh/*; cp -a /var/lib/saved /var/lib/vxmesh")?;
    }
    lab.lab(&["start", "h1"])?;
    assert_eq!(lab.json("h1", &["status"])?["state"], json!("ready"));
    Ok(())
}
