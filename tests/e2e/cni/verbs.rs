//! Each verb in each version, and what comes in another order than it should.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vxmesh_tests::lab::{Allowed, Lab, UNDERWAY, wait_until};

use super::{Call, address, call, refused};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn conf(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "pods", "type": "vxmesh-cni", "network": "app" })
}

#[test]
fn a_container_is_put_into_a_network_and_taken_out_in_every_version() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vxmesh("h1", &["network", "create", "app", "--subnet", "10.77.0.0/24"])?;
    for host in ["h1", "h2"] {
        lab.sh(host, "ip netns add a; ip netns add b")?;
    }
    let there = Call {
        args: "IgnoreUnknown=1;K8S_POD_NAME=There",
        ..Call::new("ADD", "t", "/run/netns/b")
    };
    call(&lab, "h2", there, &conf("1.1.0"))?;
    lab.named("h1", &["there"])?;
    let peer = address(&lab, "h2", "there")?;
    for version in VERSIONS {
        let conf = conf(version);
        let add = Call::new("ADD", "c0ffee", "/run/netns/a");
        let result = call(&lab, "h1", add, &conf)?;
        ensure!(result["cniVersion"] == version, "{result}");
        ensure!(result["ips"][0]["version"].is_string() == (version < "1.0.0"), "{result}");
        ensure!(result["interfaces"][0]["sandbox"] == "/run/netns/a", "{result}");
        let own = result["ips"][0]["address"].as_str().context("no address")?.to_owned();
        let inside = lab.sh("h1", "ip netns exec a ip -o addr show eth0")?;
        ensure!(inside.contains(&own), "{own} is not in {inside}");
        // The same once more has the same answer.
        ensure!(call(&lab, "h1", add, &conf)? == result);
        let ping = format!("ip netns exec a ping -c 1 -W 5 {peer}");
        lab.sh("h1", &ping)?;
        wait_until("a name of the other host", || {
            let said = lab.sh("h1", "ip netns exec a dig +short there @10.77.0.1")?;
            Ok(said.trim() == peer)
        })?;
        let mut known = conf.clone();
        known["prevResult"] = result.clone();
        let check = Call { command: "CHECK", ..add };
        if version == "0.3.1" {
            refused(&lab, "h1", check, &known, (1, &["0.4.0"]))?;
        } else {
            ensure!(call(&lab, "h1", check, &known)?.is_null());
            known["prevResult"]["ips"][0]["address"] = json!("10.77.0.250/24");
            refused(&lab, "h1", check, &known, (100, &[&own]))?;
        }
        // Without a namespace, and twice.
        for netns in ["/run/netns/a", "", "/run/netns/gone"] {
            call(&lab, "h1", Call::new("DEL", "c0ffee", netns), &conf)?;
        }
        lab.named("h2", &["there"])?;
        lab.sh("h1", "! ip netns exec a ip link show eth0 2>/dev/null")?;
        if version != "0.3.1" {
            refused(&lab, "h1", check, &conf, (3, &["c0ffee", "eth0"]))?;
        }
    }
    call(&lab, "h2", Call::new("DEL", "t", ""), &conf("1.1.0"))?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}

#[test]
fn what_no_runtime_says_ends_all_the_same() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vxmesh("h1", &["network", "create", "app", "--subnet", "10.77.0.0/24"])?;
    lab.sh("h1", "for n in a b c d; do ip netns add $n; done")?;
    let conf = conf("1.1.0");
    let add = |id, netns| call(&lab, "h1", Call::new("ADD", id, netns), &conf);
    // Of one name, which only one of them has.
    let web = Call { args: "K8S_POD_NAME=web", ..Call::new("ADD", "aaa", "/run/netns/a") };
    call(&lab, "h1", web, &conf)?;
    call(&lab, "h1", Call { container: "bbb", netns: "/run/netns/b", ..web }, &conf)?;
    ensure!(lab.endpoint_names("h1")? == ["web", "web-h1"], "{:?}", lab.endpoint_names("h1")?);
    // Its namespace goes, and nobody says so.
    lab.sh("h1", "ip netns del a")?;
    lab.named("h1", &["web-h1"])?;
    // The same container in another namespace: its last life ended without a word.
    let again = call(&lab, "h1", Call { container: "bbb", netns: "/run/netns/c", ..web }, &conf)?;
    lab.named("h1", &["web"])?;
    // It has the address again that it gives back, and the MAC.
    let ip = address(&lab, "h1", "web")?;
    call(&lab, "h1", Call::new("DEL", "bbb", ""), &conf)?;
    let args = format!("K8S_POD_NAME=web;IP={ip}");
    let other = Call { args: &args, ..Call::new("ADD", "ccc", "/run/netns/d") };
    refused(&lab, "h1", other, &conf, (100, &["was released a moment ago"]))?;
    let same = Call { container: "bbb", netns: "/run/netns/c", ..other };
    ensure!(call(&lab, "h1", same, &conf)? == again);

    // GC removes those of its own configuration that it does not name.
    add("ddd", "/run/netns/d")?;
    let mut other = conf.clone();
    other["name"] = json!("others");
    call(&lab, "h1", Call::new("ADD", "eee", "/run/netns/b"), &other)?;
    lab.named("h1", &["ddd", "eee", "web"])?;
    let mut kept = conf.clone();
    refused(&lab, "h1", Call::new("GC", "", ""), &kept, (7, &["valid-attachments"]))?;
    kept["cni.dev/valid-attachments"] = json!([{ "containerID": "ddd", "ifname": "eth0" }]);
    call(&lab, "h1", Call::new("GC", "", ""), &kept)?;
    lab.named("h1", &["ddd", "eee"])?;

    // What lived through the agent's restart is the same container afterwards.
    lab.lab(&["kill", "h1"])?;
    let status = Call::new("STATUS", "", "");
    let away: &[&str] = &["no agent answers", "`vxmesh agent`", "the key `socket`"];
    refused(&lab, "h1", status, &conf, (51, away))?;
    refused(&lab, "h1", Call::new("ADD", "x", "/run/netns/a"), &conf, (11, away))?;
    refused(&lab, "h1", Call::new("DEL", "ddd", ""), &conf, (11, away))?;
    let versions =
        call(&lab, "h1", Call::new("VERSION", "", "dummy"), &json!({ "cniVersion": "1.0.0" }))?;
    ensure!(versions["supportedVersions"] == json!(VERSIONS), "{versions}");
    lab.sh("h1", "ip netns del b")?;
    lab.lab(&["start", "h1"])?;
    lab.named("h1", &["ddd"])?;
    call(&lab, "h1", Call::new("CHECK", "ddd", "/run/netns/d"), &conf)?;
    call(&lab, "h1", Call::new("DEL", "ddd", ""), &conf)?;
    lab.named("h1", &[])?;
    let warnings = &["endpoint not adopted; it is removed"];
    lab.finish(Allowed { drops: UNDERWAY, warnings })
}

#[test]
fn what_cannot_be_is_refused_in_cni_s_own_words() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.sh("h1", "ip netns add a")?;
    let add = Call::new("ADD", "c1", "/run/netns/a");
    let status = Call::new("STATUS", "", "");
    let plain = conf("1.1.0");
    refused(&lab, "h1", add, &plain, (7, &["no network `app`", "vxmesh network create app"]))?;
    refused(&lab, "h1", status, &plain, (50, &["vxmesh network create app"]))?;
    lab.vxmesh("h1", &["network", "create", "app", "--subnet", "10.77.0.0/24"])?;
    lab.vxmesh("h1", &["network", "create", "-d", "bridge", "here"])?;
    ensure!(call(&lab, "h1", status, &plain)?.is_null());
    let with = |key: &str, value: Value| {
        let mut conf = conf("1.0.0");
        conf[key] = value;
        conf
    };
    let ports = json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80 }] });
    for (conf, code, words) in [
        (with("network", json!("here")), 7, &["`here`", "one host"][..]),
        (with("netwrk", json!("app")), 2, &["netwrk", "network, socket"]),
        (with("ipam", json!({ "type": "host-local" })), 2, &["`ipam`"]),
        (with("runtimeConfig", ports), 2, &["`portMappings`", "`portmap`"]),
        (with("runtimeConfig", json!({ "ips": ["10.9.0.1"] })), 7, &["10.9.0.1", "10.77.0.0/24"]),
        (with("socket", json!("/run/none.sock")), 11, &["/run/none.sock"]),
        (with("cniVersion", json!("2.0.0")), 1, &["2.0.0", "1.1.0"]),
    ] {
        refused(&lab, "h1", add, &conf, (code, words))?;
    }
    let gone = Call { netns: "/run/netns/none", ..add };
    refused(&lab, "h1", gone, &conf("1.0.0"), (7, &["/run/netns/none"]))?;
    ensure!(lab.endpoint_names("h1")?.is_empty(), "{:?}", lab.endpoint_names("h1")?);
    let said = lab.try_vxmesh("h1", &["cni"])?;
    ensure!(String::from_utf8_lossy(&said.stdout).contains("CNI_COMMAND is not set"));

    // One that leads nowhere has no way out and no routes.
    lab.vxmesh("h1", &["network", "create", "inner", "--internal", "--subnet", "10.6.0.0/24"])?;
    let inner = call(&lab, "h1", add, &with("network", json!("inner")))?;
    ensure!(inner["routes"] == json!([]) && inner["ips"][0].get("gateway").is_none(), "{inner}");
    wait_until("names are answered there, too", || {
        Ok(lab
            .sh("h1", "ip netns exec a dig +short +time=1 c1 @10.6.0.1 || true")?
            .contains("10.6.0."))
    })?;
    // Without a mesh nothing is there, and a container ends all the same.
    lab.vxmesh("h1", &["leave", "--force"])?;
    refused(&lab, "h1", add, &conf("1.0.0"), (100, &["belongs to no mesh"]))?;
    call(&lab, "h1", Call { command: "DEL", ..add }, &conf("1.0.0"))?;
    lab.finish(Allowed { drops: UNDERWAY, warnings: &["gossip ended"] })
}
