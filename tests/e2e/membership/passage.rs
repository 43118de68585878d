//! `doctor` asks the other side what passes, and says where it does not; a translation on the way
//! is told.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use vxmesh_tests::lab::{Allowed, Options};

use super::doctor;
use crate::churn::world::{Lab, ip, wait_until};

/// When the translation of these tests forgets a quiet flow, in seconds; agents send every 20.
const FORGETS: u64 = 23;

/// Drops what comes to this port from outside without a flow of this host's own.
fn close(lab: &Lab, host: &str, rule: &str) -> Result<()> {
    lab.sh(host, &format!(
        "nft add table inet shut; nft 'add chain inet shut in {{ type filter hook input priority 0; }}'; \
         nft 'add rule inet shut in {rule} drop'"
    ))?;
    Ok(())
}

/// Waits until `doctor` says this of a peer, and ends as it must.
fn says(lab: &Lab, host: &str, health: &str, words: &[&str]) -> Result<()> {
    wait_until(&format!("{host} says {health} {words:?}"), || {
        let (rows, status) = doctor(lab, host, "peers")?;
        let said = |row: &serde_json::Value| {
            let text = format!("{} {}", row["found"], row["hint"]);
            row["health"] == json!(health) && words.iter().all(|words| text.contains(words))
        };
        Ok(rows.iter().any(said) && status == Some(i32::from(health == "fail")))
    })
    .map(drop)
}

#[test]
fn doctor_says_which_port_is_blocked_and_where() -> Result<()> {
    let lab = Lab::up(2)?;
    says(&lab, "h1", "ok", &["control ok, data ok", "h2"])?;
    says(&lab, "h2", "ok", &["control ok, data ok", "h1"])?;
    close(&lab, "h2", "udp dport 7761")?;
    says(&lab, "h1", "fail", &["h2: data blocked", "UDP 7761", "on h2:", "7761/udp"])?;
    says(&lab, "h2", "fail", &["h1: data blocked", "of this host", "on this host:", "7761/udp"])?;
    lab.sh("h2", "nft delete table inet shut")?;
    says(&lab, "h1", "ok", &["control ok, data ok"])?;
    // The connection that is up goes on; nobody could begin another.
    close(&lab, "h2", "udp dport 7760 ct state new")?;
    says(&lab, "h1", "warn", &["h2: control blocked", "UDP 7760", "on h2:"])?;
    says(&lab, "h2", "warn", &["control of this host blocked", "on this host:"])?;
    lab.sh("h2", "nft delete table inet shut")?;
    says(&lab, "h2", "ok", &["control ok, data ok"])?;
    lab.finish(Allowed::default())
}

#[test]
fn doctor_says_in_which_direction_two_of_three_are_cut() -> Result<()> {
    let lab = Lab::up(3)?;
    says(&lab, "h1", "ok", &["control ok, data ok", "h2", "h3"])?;
    // What h1 sends is lost on its way to h2; h3 hears both, so both stay alive.
    close(&lab, "h2", "ip saddr 10.213.0.1")?;
    lab.sh("h2", "nft add rule inet shut in ip6 saddr fd13::1 drop")?;
    let (deaf, side) = ("h2 does not hear this node", "on h2: `ufw allow 7760/udp");
    says(&lab, "h1", "fail", &["cut in one direction", deaf, "this node hears h2", side])?;
    let (deaf, side) = ("this node does not hear h1", "on this host: `ufw allow 7760/udp");
    says(&lab, "h2", "fail", &["cut in one direction", deaf, "h1 hears this node", side])?;
    lab.sh("h2", "nft delete table inet shut")?;
    says(&lab, "h1", "ok", &["control ok, data ok", "h2", "h3"])?;
    lab.finish(Allowed { drops: &["unknown_index", "no_session"], ..Allowed::default() })
}

fn pings(lab: &Lab, host: &str, sandbox: &str, to: &str) -> Result<bool> {
    let ping = ["exec", sandbox, "--", "ping", "-c1", "-W1", to];
    Ok(lab.try_vx(host, &ping)?.status.success())
}

#[test]
fn a_blocked_data_port_is_told_and_counted_on_both_sides() -> Result<()> {
    let lab = Lab::up(2)?;
    close(&lab, "h2", "udp dport 7761")?;
    lab.network("h1", "blue")?;
    let one = ip(&lab.run_sandbox("h1", "blue", "one")?)?.to_string();
    let two = ip(&lab.run_sandbox("h2", "blue", "two")?)?.to_string();
    let sides = [("h1", "one", &two), ("h2", "two", &one)];
    wait_until("both logs say it, and both count what is lost", || {
        let mut all = true;
        for (host, sandbox, other) in sides {
            ensure!(!pings(&lab, host, sandbox, other)?, "it came through");
            let told = lab.log(host)?.contains("nothing on the data port");
            all &= told && lab.dropped(host, "no_session")? > 0;
        }
        Ok(all)
    })?;
    lab.sh("h2", "nft delete table inet shut")?;
    wait_until("they reach each other", || pings(&lab, "h1", "one", &two))?;
    for (host, ..) in sides {
        wait_until("the log says it", || Ok(lab.log(host)?.contains("the data port answers")))?;
    }
    let warnings = &["nothing on the data port", "peer does not answer handshakes"];
    lab.finish(Allowed { drops: &["no_session"], warnings })
}

#[test]
fn an_address_that_is_told_to_others_and_not_there_is_named() -> Result<()> {
    let lab = Lab::up(1)?;
    // The lab has its agents say where they are.
    lab.sh("h1", "ip address del 10.213.0.1/24 dev eth0")?;
    wait_until("doctor names it", || {
        let (rows, _status) = doctor(&lab, "h1", "addresses")?;
        let found = "10.213.0.1 is advertised, and no interface of this host has it";
        Ok(rows.iter().any(|row| row["health"] != "ok" && row["found"] == found))
    })?;
    lab.finish(Allowed::default())
}

#[test]
fn a_node_behind_a_translation_is_told_so() -> Result<()> {
    let lab = Lab::with(Options { hosts: 2, underlay: "v4", ..Options::default() })?;
    lab.vx("h2", &["leave"])?;
    // The router of h2 is h2 itself: what it sends comes from an address that it does not have, and
    // nobody begins with it.
    let mac = lab.sh("h2", "cat /sys/class/net/eth0/address")?;
    lab.sh(
        "h1",
        &format!("ip neigh add 10.213.0.77 lladdr {} dev eth0 nud permanent", mac.trim()),
    )?;
    lab.sh("h2", "nft add table ip nat; nft 'add chain ip nat post { type nat hook postrouting priority 100; }'; \
                  nft 'add rule ip nat post ip saddr 10.213.0.2 udp dport 7760-7761 snat to 10.213.0.77'")?;
    close(&lab, "h2", "udp dport 7760-7761 ct state new")?;
    let token = lab.json("h1", &["token", "create"])?;
    let token = token["token"].as_str().context("no token")?;
    let joined = lab.try_vx("h2", &["join", "--token", token, "10.213.0.1"])?;
    let said = String::from_utf8_lossy(&joined.stderr);
    ensure!(joined.status.success() && said.contains("sees this node at 10.213.0.77"), "{said}");
    ensure!(said.contains("NAT") && said.contains("--advertise 10.213.0.77"), "{said}");
    wait_until("doctor says it", || {
        let (rows, _status) = doctor(&lab, "h2", "nat")?;
        Ok(rows
            .iter()
            .any(|row| row["found"].to_string().contains("h1 sees this node at 10.213.0.77")))
    })?;
    wait_until("the log says it", || Ok(lab.log("h2")?.contains("behind a translation (NAT)")))?;
    stays_reached(&lab)?;
    lab.finish(Allowed {
        warnings: &["no other node heard that this one leaves"],
        // What h2 sent when it had left, and what waited for a way to it.
        drops: &["unknown_peer", "no_session"],
    })
}

/// h2 is reached from outside of the translation after nothing was sent for longer than that
/// remembers.
fn stays_reached(lab: &Lab) -> Result<()> {
    let timeouts = ["udp_timeout", "udp_timeout_stream"]
        .map(|name| format!("net.netfilter.nf_conntrack_{name}={FORGETS}"));
    lab.sh("h2", &format!("sysctl -qw {}", timeouts.join(" ")))?;
    lab.network("h1", "blue")?;
    lab.run_sandbox("h1", "blue", "one")?;
    let two = ip(&lab.run_sandbox("h2", "blue", "two")?)?.to_string();
    wait_until("it is reached", || pings(lab, "h1", "one", &two))?;
    let quiet = Instant::now();
    wait_until("a quiet flow is forgotten", || {
        Ok(quiet.elapsed() > Duration::from_secs(FORGETS + 3))
    })?;
    ensure!(pings(lab, "h1", "one", &two)?, "the way was not kept open");
    Ok(())
}
