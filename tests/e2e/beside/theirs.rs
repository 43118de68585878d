//! Rules of users: what is said about an address holds, and what only drops the unknown does not
//! keep networks from passing.

use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::Value;
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    netns::NetNs,
    outside::{Outside, sh},
};

use crate::{
    egress::{STRICT, host_ip},
    publish::{at, publish},
};

/// A user's word, in a chain that lets everything else through, and in one that does not.
const WORD: &str = "nft -f - <<'EOF'
table inet mine {
    chain forward {
        type filter hook forward priority 5;
        ip saddr 10.213.0.200 counter drop
        ip6 saddr fd13::200 counter drop
    }
}
EOF
nft add rule ip filter FORWARD ip saddr 192.0.2.7 drop";

/// Whether the agent has looked: its rules are the last ones again.
const LAST: &str = "nft list chain ip filter FORWARD | grep -v } | tail -n 2 | grep -c vxmesh || :";

fn connects(client: &NetNs, to: SocketAddr) -> Result<bool> {
    client.run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()))
}

/// What `doctor` says about what is in the way.
fn said(lab: &Lab, check: &str) -> Result<String> {
    let output = lab.try_vxmesh("h1", &["--format", "json", "doctor"])?;
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let rows = rows.iter().filter(|row| row.get("check").and_then(Value::as_str) == Some(check));
    Ok(rows.map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_users_rule_about_an_address_holds() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let h1 = lab.host("h1")?;
    sh(&h1, STRICT)?;
    let a = publish(&lab, "h1", "blue", "a", &["8080:80"])?;
    let _server = a.netns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))?))?;
    let doors = [at(host_ip(1, true)?, 8080), at(host_ip(1, false)?, 8080)];
    let open = |what: &str| {
        doors.iter().try_for_each(|to| wait_until(what, || connects(&outside.netns, *to)))
    };
    open("beside chains that drop the unknown")?;
    sh(&h1, WORD)?;
    wait_until("the agent has looked", || Ok(sh(&h1, LAST)? == "2"))?;
    for to in doors {
        ensure!(!connects(&outside.netns, to)?, "{to} answers whom the user shut out");
    }
    let rules = sh(&h1, "nft list table inet mine")?;
    ensure!(!rules.contains("packets 0 ") && !rules.contains("vxm"), "{rules}");
    sh(&h1, "nft flush chain inet mine forward")?;
    open("without the user's rule")?;
    sh(
        &h1,
        "nft add rule inet mine forward ip saddr 192.0.2.7 drop; nft add rule inet mine forward counter drop",
    )?;
    open("before a last rule that drops all")?;

    // Of what is not at that hook doctor tells.
    for (chain, rule, check, says) in [
        ("prerouting priority -300", "iifname \"vxm*\" notrack", "passing", "notrack"),
        ("prerouting priority -150", "iifname \"vxm*\" drop", "passing", "by the name"),
        ("postrouting priority -150; policy drop", "tcp dport 1 accept", "passing", "none of its"),
        ("output priority 0; policy drop", "tcp dport 1 accept", "outgoing", "7760, 7761"),
    ] {
        let chain = format!("chain of {{\ntype filter hook {chain}\n{rule}\n}}");
        sh(&h1, &format!("printf '%s\\n' 'table inet way {{' '{chain}' '}}' | nft -f -"))?;
        let said = said(&lab, check)?;
        ensure!(said.contains(says) && said.contains("inet way of"), "{chain}: {rule}: {said}");
        sh(&h1, "nft delete table inet way")?;
    }
    ensure!(!said(&lab, "passing")?.contains("way") && said(&lab, "outgoing")?.is_empty());
    lab.finish(Allowed::default())
}
