//! `doctor` asks the other side what passes, and says where it does not; a translation on the way
//! is told.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use vxmesh_tests::lab::{Allowed, Options};

use super::doctor;
use crate::churn::world::{Lab, wait_until};

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
    lab.finish(Allowed {
        warnings: &["no other node heard that this one leaves"],
        // What h2 sent when it had left.
        drops: &["unknown_peer"],
    })
}
