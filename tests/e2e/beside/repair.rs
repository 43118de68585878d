//! Rules that a user flushes while there is traffic.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use vxmesh::api::Endpoint;
use vxmesh_tests::{
    lab::{Allowed, Lab, tell, wait_until},
    netns::NetNs,
    outside::{self, Outside, sh},
    traffic::udp_to,
};

use crate::{
    egress::{PORT, host_ip},
    publish::publish,
};

/// Between a flush and the first answer; the aim is two seconds, and other tests are at work beside
/// this one.
const LIMIT: Duration = Duration::from_secs(10);
/// All rules, without what they note themselves, in an order that does not tell which table was put
/// back first.
const RULES: &str = "nft list tables | sort | while read -r _ family name; do nft -s list table $family $name; done | sed '/set blamed {/,/^\t}/d'";

#[test]
fn flushed_rules_are_put_back_while_there_is_traffic() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    let network = lab.network("h1", "blue")?;
    let host = lab.host("h1")?;
    let a = publish(&lab, "h1", "blue", "a", &["8080:80/udp"])?;
    let inside = lab.inner("h1", &format!("/run/vxmesh/netns/{}", network.id.short()))?;
    let servers = Servers::start(&a.netns, &outside.netns)?;
    for (place, netns) in [("the host", &host), ("the network", &inside)] {
        let before = sh(netns, RULES)?;
        let talk = Talk::start(&a.netns, &outside.netns)?;
        talk.works("before", &servers)?;
        sh(netns, "nft flush ruleset")?;
        // What begins now begins without rules, and may not stay so.
        let begun = Talk::start(&a.netns, &outside.netns)?;
        let flushed = Instant::now();
        talk.works(place, &servers)?;
        begun.works(place, &servers)?;
        let took = flushed.elapsed();
        tell(&format!("whole again {took:?} after a flush of {place}'s rules"));
        ensure!(took < LIMIT, "{place}: {took:?}");
        let same = wait_until("the rules are the same", || Ok(sh(netns, RULES)? == before));
        same.with_context(|| {
            let now = sh(netns, RULES).unwrap_or_default();
            format!("{place}, before:\n{before}\nnow:\n{now}")
        })?;
    }
    let diagnoses: Vec<Value> = lab.json("h1", &["doctor"])?;
    let found = |check: &str| {
        let of = |row: &&Value| row.get("check").and_then(Value::as_str) == Some(check);
        let rows: Vec<_> = diagnoses.iter().filter(of).map(ToString::to_string).collect();
        rows.join("\n")
    };
    ensure!(found("rules").contains("put back; repairs: 1"), "{diagnoses:?}");
    ensure!(found("network blue").contains("put back; repairs: 1"), "{diagnoses:?}");
    lab.finish(Allowed::default())
}

#[test]
fn the_hosts_rules_are_put_back_while_a_node_leaves() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.network("h1", "blue")?;
    // A command that does not end when it is asked to, so that leaving takes seconds.
    let command = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"];
    let run = [&["run", "-d", "--name", "stubborn", "--network", "blue"][..], &command].concat();
    wait_until("h2 has the network", || Ok(lab.try_vxmesh("h2", &run)?.status.success()))?;
    let is_known = || {
        let rows: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
        Ok(rows.iter().any(|row| row.name.as_str() == "stubborn"))
    };
    wait_until("h1 knows the endpoint", is_known)?;
    thread::scope(|scope| {
        let leaving = scope.spawn(|| lab.try_vxmesh("h2", &["leave", "--yes"]));
        wait_until("it is on its way", || Ok(!is_known()?))?;
        lab.sh("h2", "nft delete table inet vxmesh")?;
        let begun = Instant::now();
        wait_until("the host is closed again", || {
            Ok(lab.sh("h2", "nft list tables")?.contains("table inet vxmesh"))
        })?;
        tell(&format!("whole again {:?} after the rules went while a node left", begun.elapsed()));
        ensure!(!leaving.is_finished(), "it left so soon that this shows nothing");
        let left = leaving.join().map_err(|_panic| anyhow!("it panicked"))??;
        ensure!(left.status.success(), "{left:?}");
        ensure!(!lab.sh("h2", "nft list tables")?.contains("vxmesh"), "rules are left");
        Ok(())
    })?;
    lab.finish(Allowed::default())
}

/// Who answers outside, and behind the published port.
struct Servers([UdpSocket; 2]);

impl Servers {
    fn start(sandbox: &NetNs, outside: &NetNs) -> Result<Self> {
        let open = |netns: &NetNs, port: u16| {
            let socket = netns.run(|| Ok(UdpSocket::bind(("0.0.0.0", port))?))?;
            socket.set_nonblocking(true)?;
            Ok::<_, anyhow::Error>(socket)
        };
        Ok(Self([open(outside, PORT)?, open(sandbox, 80)?]))
    }
}

/// Two flows, out of a network and into it, that keep their ports.
struct Talk([UdpSocket; 2]);

impl Talk {
    fn start(sandbox: &NetNs, outside: &NetNs) -> Result<Self> {
        let open = |netns: &NetNs, to, port| {
            let socket = netns.run(|| udp_to(to, port))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok::<_, anyhow::Error>(socket)
        };
        Ok(Self([open(sandbox, outside::IPV4, PORT)?, open(outside, host_ip(1, true)?, 8080)?]))
    }

    fn works(&self, what: &str, servers: &Servers) -> Result<()> {
        for (client, server) in self.0.iter().zip(&servers.0) {
            let mut buffer = [0; 8];
            // Each call is another, so that an old answer is none.
            let mut call = 0u64;
            wait_until(what, || {
                call += 1;
                // Where nothing leads the kernel says so with the next call.
                drop(client.send(&call.to_be_bytes()));
                while let Ok((_len, from)) = server.recv_from(&mut buffer) {
                    // Without rules it is somebody to whom there is no route.
                    drop(server.send_to(&buffer, from));
                }
                Ok(client.recv(&mut buffer).is_ok() && buffer == call.to_be_bytes())
            })?;
        }
        Ok(())
    }
}
