//! Who can admit nodes: never lost without a word, and more than one if the user wants it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use vxmesh_tests::lab::Allowed;

use super::doctor;
use crate::{
    churn::world::{Lab, wait_until},
    removal::{HOSTS, id, refused, state},
};

const CA_KEY: &str = "/var/lib/vxmesh/identity/ca.key";

/// The names of the nodes that hold the CA key, as a host's `status` tells them.
fn issuers(lab: &Lab, host: &str) -> Result<Vec<String>> {
    let status = lab.json(host, &["status"])?;
    ensure!(status["certificate_left_s"].as_u64().is_some(), "{status}");
    let rows = status["issuers"].as_array().context("no issuers")?;
    let name = |row: &Value| format!("{} {}", row["name"], row["state"]).replace('"', "");
    let mut names: Vec<String> = rows.iter().map(name).collect();
    names.sort();
    Ok(names)
}

fn all_say(lab: &Lab, hosts: &[&str], expected: &[&str]) -> Result<()> {
    for host in hosts {
        wait_until(&format!("{host} says who holds the CA key: {expected:?}"), || {
            Ok(issuers(lab, host)? == expected)
        })?;
    }
    Ok(())
}

/// What `doctor` says of the issuers: how it is, and what was found.
fn diagnosis(lab: &Lab, host: &str) -> Result<(String, String)> {
    let (rows, _status) = doctor(lab, host, "issuers")?;
    let row = rows.first().context("no such row")?;
    Ok((row["health"].to_string().replace('"', ""), row["found"].to_string()))
}

fn joins(lab: &Lab, host: &str, issuer: &str, server: &str) -> Result<()> {
    let token = lab.json(issuer, &["token", "create", "--uses", "1"])?;
    let token = token["token"].as_str().context("no token")?;
    lab.vx(host, &["join", "--token", token, server])?;
    Ok(())
}

#[test]
fn the_ca_key_is_never_lost_without_a_word() -> Result<()> {
    let lab = Lab::up(3)?;
    all_say(&lab, &HOSTS, &["h1 alive"])?;
    let says = ["only node with the mesh's CA key", "h2", "h3", "node update --issuer", "backup"];
    refused(&lab, "h1", &["leave"], &says)?;
    refused(&lab, "h1", &["leave", "--yes"], &says)?;
    refused(&lab, "h1", &["node", "update", "h1", "--issuer=false"], &says)?;
    let says = ["h1 (alive)", "member until 20", "vxmesh token create` on h1"];
    refused(&lab, "h2", &["token", "create"], &says)?;
    let made = lab.json("h1", &["token", "create"])?;
    ensure!(made["issuers"][0]["name"] == "h1" && made["member_until"].is_u64(), "{made}");
    refused(&lab, "h2", &["node", "update", "h2", "--issuer"], &["does not hold", "h1 (alive)"])?;
    ensure!(diagnosis(&lab, "h3")?.0 == "ok", "{:?}", diagnosis(&lab, "h3")?);

    // A second one: it admits by itself, and the first may go.
    lab.vx("h1", &["node", "update", "h2", "--issuer"])?;
    ensure!(lab.sh("h2", &format!("stat -c %a {CA_KEY}"))?.trim() == "600", "it is open");
    all_say(&lab, &HOSTS, &["h1 alive", "h2 alive"])?;
    lab.vx("h2", &["node", "update", "h1", "--issuer=false"])?;
    ensure!(lab.sh("h1", &format!("ls {CA_KEY} || true"))?.is_empty(), "the key is still there");
    all_say(&lab, &HOSTS, &["h2 alive"])?;
    refused(&lab, "h1", &["token", "create"], &["h2 (alive)"])?;
    lab.vx("h2", &["node", "update", "h1", "--issuer"])?;
    lab.vx("h1", &["leave"])?;
    all_say(&lab, &["h2", "h3"], &["h2 alive"])?;
    // h3 has no key and asks h2.
    joins(&lab, "h1", "h2", "10.213.0.3")?;
    lab.lab(&["kill", "h2"])?;
    all_say(&lab, &["h1", "h3"], &["h2 dead"])?;
    let (health, found) = diagnosis(&lab, "h3")?;
    ensure!(health == "warn" && found.contains("h2 (dead)"), "{found}");
    refused(&lab, "h3", &["token", "create"], &["h2 (dead)"])?;
    lab.lab(&["start", "h2"])?;
    all_say(&lab, &HOSTS, &["h2 alive"])?;

    // Whoever leaves unheard is told so, and the new issuer removes it.
    let third = id(&lab, "h3")?;
    lab.lab(&["cut", "h3"])?;
    let left = lab.try_vx("h3", &["leave"])?;
    let said = String::from_utf8_lossy(&left.stderr);
    ensure!(left.status.success() && said.contains("no other node heard"), "{said}");
    ensure!(
        said.contains("h1") && said.contains("h2") && said.contains("vxmesh node rm"),
        "{said}"
    );
    for host in ["h1", "h2"] {
        wait_until("it is dead", || Ok(state(&lab, host, &third)? == "dead"))?;
    }
    lab.vx("h1", &["node", "rm", "h3"])?;
    wait_until("it is removed", || Ok(state(&lab, "h2", &third)? == "removed"))?;

    refused(&lab, "h2", &["leave"], &["only node with the mesh's CA key", "(h1)"])?;
    lab.vx("h2", &["leave", "--force"])?;
    all_say(&lab, &["h1"], &[])?;
    let (health, found) = diagnosis(&lab, "h1")?;
    ensure!(health == "fail" && found.contains("nobody can join"), "{found}");
    refused(&lab, "h1", &["token", "create"], &["nobody can join any more", "member until 20"])?;
    ensure!(lab.json("h1", &["node", "ls", "--all"])?.to_string().contains("\"state\":\"left\""));
    lab.finish(Allowed {
        warnings: &["no other node heard that this one leaves"],
        // Its peers seal with the key of its last life until they know better.
        drops: &["unknown_index"],
    })
}

/// Both look at the same moment, see the other one, and would go.
#[test]
fn of_two_issuers_that_leave_at_once_one_stays() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.vx("h1", &["node", "update", "h2", "--issuer"])?;
    all_say(&lab, &HOSTS, &["h1 alive", "h2 alive"])?;
    let lab_ref = &lab;
    let left = std::thread::scope(|scope| -> Result<Vec<bool>> {
        let leave =
            |host| scope.spawn(move || Ok(lab_ref.try_vx(host, &["leave"])?.status.success()));
        let both = ["h1", "h2"].map(leave);
        let joined = both.map(|it| it.join().unwrap_or_else(|why| std::panic::resume_unwind(why)));
        joined.into_iter().collect()
    })?;
    ensure!(left.iter().filter(|left| **left).count() <= 1, "both left");
    wait_until("somebody has the key", || {
        let said = issuers(&lab, "h3")?;
        Ok(!said.is_empty() && said.iter().all(|issuer| issuer.ends_with("alive")))
    })?;
    ensure!(diagnosis(&lab, "h3")?.0 == "ok", "{:?}", diagnosis(&lab, "h3")?);
    lab.finish(Allowed::default())
}

/// Two nodes of one name: refused while the first is up; told while it is away, and shown.
#[test]
fn nodes_of_one_name_are_told_and_names_outlive_agents() -> Result<()> {
    let lab = Lab::up(3)?;
    let token = lab.json("h1", &["token", "create"])?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    lab.lab(&["kill", "h3"])?;
    // Of a host whose agent does not run, what it knew is told.
    let status = lab.try_vx("h3", &["--format", "json", "status"])?;
    ensure!(status.status.code() == Some(5), "{status:?}");
    let known: Value = serde_json::from_slice(&status.stdout)?;
    let mesh = lab.json("h1", &["status"])?["mesh_id"].clone();
    ensure!(known["state"] == "stopped" && known["mesh_id"] == mesh, "{known}");
    ensure!(known["nodes"] == 3 && known["issuers"][0]["name"] == "h1", "{known}");
    for (check, says) in [("nodes", "3 members"), ("issuers", "h1; this node is a member until 20")]
    {
        let (rows, status) = doctor(&lab, "h3", check)?;
        ensure!(
            status == Some(5) && rows.iter().any(|row| row.to_string().contains(says)),
            "{rows:?}"
        );
    }
    let third = id_of(&lab, "h3")?;
    wait_until("it is dead", || Ok(state(&lab, "h1", &third)? == "dead"))?;
    // Its name is known to whoever starts after its death.
    for host in ["h1", "h2"] {
        lab.lab(&["kill", host])?;
        lab.lab(&["start", host])?;
    }
    for host in ["h1", "h2"] {
        let row = lab.find(host, &["node", "ls"], "name", "h3")?.context("its name is lost")?;
        ensure!(row["state"] == "dead" && row["id"] == third, "{row}");
    }
    let (first, second) = (id_of(&lab, "h1")?, id_of(&lab, "h2")?);
    wait_until("they meet again", || {
        Ok(state(&lab, "h1", &second)? == "alive" && state(&lab, "h2", &first)? == "alive")
    })?;
    lab.vx("h2", &["leave"])?;
    wait_until("h1 knows that h2 left", || {
        Ok(lab.find("h1", &["node", "ls", "--all"], "state", "left")?.is_some())
    })?;
    for (name, status, says) in [
        ("h1", 1, &["has the name `h1` and is up", "--name"] as &[&str]),
        ("h3", 0, &["has the name `h3`, too", "vxmesh node rm"]),
    ] {
        let join = format!(
            "mkdir -p /etc/vxmesh; echo 'name = \"{name}\"' > /etc/vxmesh/agent.toml; \
             vxmesh --socket /run/none.sock join --token {token} 10.213.0.1 2>&1; echo \"status $?\""
        );
        let said = lab.sh("h2", &join)?;
        ensure!(said.contains(&format!("status {status}")), "{said}");
        for words in says {
            ensure!(said.contains(words), "{words}: {said}");
        }
    }
    lab.lab(&["kill", "h2"])?;
    lab.lab(&["start", "h2"])?;
    wait_until("doctor names both", || {
        let output = lab.try_vx("h1", &["--format", "json", "doctor"])?;
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        let row = rows.iter().find(|row| row["check"] == "names");
        Ok(row.is_some_and(|row| {
            row["health"] == json!("warn") && row.to_string().contains("are called h3")
        }))
    })?;
    lab.finish(Allowed { drops: &["unknown_index"], ..Allowed::default() })
}

/// The id of a node whose agent may be gone, as the first host lists it.
fn id_of(lab: &Lab, name: &str) -> Result<Value> {
    Ok(lab.find("h1", &["node", "ls"], "name", name)?.context("not listed")?["id"].clone())
}
