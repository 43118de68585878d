//! Beside what else a host does with packets: other firewalls, users who flush rules, flows that
//! began before.

mod bridges;
mod docker;
mod firewalld;
mod flows;
mod idle;
mod lifecycle;
mod mend;
mod repair;
mod theirs;
mod ufw;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vxmesh_tests::{
    lab::{Lab, Plugged, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, sh},
    traffic::ping,
};

use crate::{
    egress::{PORT, host_ip, ip_of},
    publish::{at, publish},
};

/// A network of two hosts whose first sandbox, on h1, is published.
struct Site {
    lab: Lab,
    outside: Outside,
    a: Plugged,
    b: Plugged,
}

impl Site {
    /// In a lab of two hosts.
    fn on(lab: Lab) -> Result<Self> {
        let outside = Outside::join(&lab)?;
        lab.network("h1", "blue")?;
        let a = publish(&lab, "h1", "blue", "a", &["8080:80"])?;
        let b = lab.sandbox("h2", "blue", "b")?;
        Ok(Self { lab, outside, a, b })
    }

    /// Out, in with the client's address, and through the mesh; within a while, since others have
    /// just changed rules.
    fn works(&self, what: &str) -> Result<()> {
        let Self { outside, a, b, .. } = self;
        for (ipv4, to) in [(true, outside::IPV4), (false, outside::IPV6)] {
            let out = || call_tcp(&a.netns, at(to, PORT), &outside.netns, PORT);
            wait_until(&format!("{what}: out"), || Ok(out().is_ok()))?;
            ensure!(out()? == host_ip(1, ipv4)?, "{what}: another source");
            let published = at(host_ip(1, ipv4)?, 8080);
            let seen = call_tcp(&outside.netns, published, &a.netns, 80);
            ensure!(seen.context(what.to_owned())? == to, "{what}: another client");
            let to = ip_of(a, ipv4)?;
            wait_until(&format!("{what}: mesh"), || Ok(ping(&b.netns, to, 1).is_ok()))?;
        }
        Ok(())
    }

    /// What `doctor` says about whether agents are let in: how it is, what was found, what to type.
    fn incoming(&self) -> Result<[String; 3]> {
        let rows: Vec<Value> = self.lab.json("h1", &["doctor"])?;
        let row = rows.iter().find(|row| row.get("check").is_some_and(|name| name == "incoming"));
        let row = row.context("doctor does not say")?;
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok([text("health"), text("found"), text("hint")])
    }

    /// Types what `doctor` says, until it is content.
    fn obey(&self, path: &str) -> Result<()> {
        for _each in 0..4 {
            let [health, found, hint] = self.incoming()?;
            if health == "ok" {
                return Ok(());
            }
            ensure!(health == "warn" && found.contains("7760, 7761"), "{health}: {found}");
            let (_why, typed) = hint.split_once(": ").context(hint.clone())?;
            self.lab.sh("h1", &format!("PATH={path}:$PATH; {typed}"))?;
        }
        ensure!(self.incoming()?[0] == "ok", "{:?}", self.incoming()?);
        Ok(())
    }

    /// Removes the sandbox on h1, after which the rules there are these, in any order: others write
    /// theirs anew meanwhile.
    fn leaves(&self, rules: &str) -> Result<()> {
        self.lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
        let now = saved(&self.lab.host("h1")?)?;
        let sorted = |rules: &str| {
            let mut lines: Vec<String> = rules.lines().map(ToOwned::to_owned).collect();
            lines.sort();
            lines
        };
        ensure!(sorted(&now) == sorted(rules), "before:\n{rules}\nafter:\n{now}");
        Ok(())
    }
}

/// All rules of a host, without what is counted.
fn saved(host: &NetNs) -> Result<String> {
    sh(host, "nft -s list ruleset | sed -E 's/counter packets [0-9]+ bytes [0-9]+/counter/'")
}
