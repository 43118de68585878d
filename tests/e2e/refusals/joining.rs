//! Joins that must not be: each is refused for its own reason, and neither side keeps anything of
//! it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{judge, refused};
use vxmesh_tests::lab::Allowed;

use crate::churn::world::{Lab, wait_until};

/// The hint of every token that the issuer does not take.
const ANOTHER: &str = "make another with `vxmesh token create`";
/// Where a join without an agent would leave its files.
const FRESH: &str = "/var/lib/fresh";

/// A new token and its id.
fn token(lab: &Lab, args: &[&str]) -> Result<(String, String)> {
    let made = lab.json("h1", &[&["token", "create"], args].concat())?;
    let text = |field: &str| made[field].as_str().map(ToOwned::to_owned).context("no such field");
    Ok((text("token")?, text("id")?))
}

/// The token with the character at this place from its end replaced by another of the same
/// alphabet.
fn altered(token: &str, from_end: usize) -> String {
    let mut characters: Vec<char> = token.chars().collect();
    if let Some(character) = characters.iter_mut().rev().nth(from_end) {
        *character = if *character == 'a' { 'b' } else { 'a' };
    }
    characters.into_iter().collect()
}

/// What the issuer knows of tokens, with the uses that they have left, and of nodes.
fn issuer(lab: &Lab) -> Result<(Value, Vec<Value>)> {
    let nodes = lab.json("h1", &["node", "ls"])?;
    let nodes = nodes.as_array().context("no list")?;
    let known =
        nodes.iter().map(|node| Value::from_iter([node["id"].clone(), node["state"].clone()]));
    Ok((lab.json("h1", &["token", "ls"])?, known.collect()))
}

/// A join that fails with this status and these words, by the agent and by the command alone, and
/// leaves both sides as they were.
fn no_join(lab: &Lab, token: &str, server: &str, status: i32, says: &[&str]) -> Result<()> {
    let before = issuer(lab)?;
    refused(lab, "h2", &["join", "--token", token, server], status, says)?;
    ensure!(lab.json("h2", &["status"])?["state"] == "uninitialised", "half a member");
    ensure!(lab.sh("h2", "ls -A /var/lib/vxmesh")? == "state.redb", "files are left");
    ensure!(lab.json("h2", &["node", "ls"]).is_err(), "it knows the mesh");
    ensure!(issuer(lab)? == before, "the issuer gave something: {before:?}");
    Ok(())
}

/// The same without an agent on the joiner's host.
fn no_join_alone(lab: &Lab, token: &str, status: i32, says: &[&str]) -> Result<()> {
    let before = issuer(lab)?;
    let join = ["--socket", "/run/none.sock", "join", "--data-dir", FRESH, "--token", token];
    refused(lab, "h2", &[join.as_slice(), &["10.213.0.1"]].concat(), status, says)?;
    ensure!(
        lab.sh("h2", &format!("find {FRESH} -type f 2>/dev/null || true"))?.is_empty(),
        "files"
    );
    ensure!(issuer(lab)? == before, "the issuer gave something: {before:?}");
    Ok(())
}

fn two_hosts_of_which_one_is_alone() -> Result<Lab> {
    let lab = Lab::up(2)?;
    lab.vx("h2", &["leave"])?;
    wait_until("h1 knows that h2 left", || {
        Ok(lab.find("h1", &["node", "ls", "--all"], "state", "left")?.is_some())
    })?;
    Ok(lab)
}

#[test]
fn nobody_joins_without_a_good_token() -> Result<()> {
    let lab = two_hosts_of_which_one_is_alone()?;
    let (good, _) = token(&lab, &["--uses", "3"])?;
    let h1 = "10.213.0.1";
    no_join(
        &lab,
        "nonsense",
        h1,
        2,
        &["this is not a join token", "hint: one begins with VXMTKN-1-"],
    )?;
    let cut = &good[..good.len() - 1];
    no_join(&lab, cut, h1, 2, &["damaged or cut off", "hint: copy the whole line"])?;

    // The mesh sees at most five failed joins of one host in a minute; the two above never came to
    // it.
    let unknown =
        ["does not know this join token", "its last part is wrong", "hint: copy it again", ANOTHER];
    let mistyped = altered(&good, 3);
    no_join(&lab, &mistyped, h1, 1, &unknown)?;
    no_join_alone(&lab, &mistyped, 1, &unknown)?;
    let (short, _) = token(&lab, &["--ttl", "1s"])?;
    wait_until("it expires", || {
        Ok(lab.json("h1", &["token", "ls"])?.to_string().contains("expired"))
    })?;
    no_join(&lab, &short, h1, 1, &["the join token has expired", "hint:", ANOTHER])?;
    let (revoked, id) = token(&lab, &[])?;
    lab.vx("h1", &["token", "revoke", &id])?;
    no_join(
        &lab,
        &revoked,
        h1,
        1,
        &["does not know this join token", "it was revoked", "hint:", ANOTHER],
    )?;

    // The digest of the CA has no part in the secret: the server is not even asked.
    let other_mesh = [
        "10.213.0.1:7760 does not belong to the mesh of this token",
        "another digest",
        "hint: check host and token",
    ];
    let other_ca = altered(&good, good.len() - "VXMTKN-1-".len() - 1);
    no_join(&lab, &other_ca, h1, 1, &other_mesh)?;
    no_join_alone(&lab, &other_ca, 1, &other_mesh)?;
    no_join(
        &lab,
        &good,
        "10.213.0.99",
        1,
        &["10.213.0.99:7760 does not answer", "hint: is an agent running"],
    )?;

    let (once, _) = token(&lab, &["--uses", "1"])?;
    lab.vx("h2", &["join", "--token", &once, h1])?;
    refused(
        &lab,
        "h2",
        &["join", "--token", &good, h1],
        4,
        &["member", "hint: run `vxmesh leave`"],
    )?;
    refused(&lab, "h2", &["init"], 4, &["member", "hint: run `vxmesh leave`"])?;
    refused(&lab, "h2", &["token", "create"], 4, &["CA key", "hint:"])?;
    lab.vx("h2", &["leave"])?;
    wait_until("h1 knows that h2 left", || {
        let nodes = lab.json("h1", &["node", "ls", "--all"])?;
        Ok(nodes.as_array().into_iter().flatten().filter(|node| node["state"] == "left").count()
            == 2)
    })?;
    no_join(&lab, &once, h1, 1, &["the join token has no uses left", "hint:", ANOTHER])?;
    // After all of this a good one is good, and only this takes a use.
    lab.vx("h2", &["join", "--token", &good, h1])?;
    ensure!(lab.json("h1", &["token", "ls"])?.to_string().contains("\"uses_left\":2"));

    let log = lab.log("h1")?;
    for words in
        ["join token was made", "join token was revoked", "join was refused", "node joined"]
    {
        ensure!(log.contains(words), "the log does not say `{words}`: {log}");
    }
    ensure!(!log.contains(&good), "the log has a secret");
    // Each of h2's lives left, and no list of who is there is longer for it.
    only_two_are_listed(&lab)?;
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    only_two_are_listed(&lab)?;
    lab.finish(Allowed { drops: &["unknown_index"], ..Allowed::default() })
}

fn only_two_are_listed(lab: &Lab) -> Result<()> {
    wait_until("h2 is alive", || {
        Ok(lab.find("h1", &["node", "ls"], "name", "h2")?.is_some_and(|it| it["state"] == "alive"))
    })?;
    let nodes = lab.json("h1", &["node", "ls"])?;
    let all = nodes.as_array().context("no list")?;
    let mut names: Vec<_> = all.iter().map(|node| node["name"].as_str()).collect();
    names.sort_unstable();
    ensure!(names == [Some("h1"), Some("h2")], "{nodes}");
    Ok(())
}

#[test]
fn members_of_two_meshes_do_not_mix() -> Result<()> {
    let lab = two_hosts_of_which_one_is_alone()?;
    lab.vx("h2", &["init"])?;
    // h1 remembers where the node was that left; neither believes the other's certificate.
    let (foreign, _) = token(&lab, &[])?;
    lab.vx("h2", &["leave", "--force"])?;
    lab.vx("h2", &["init"])?;
    let join = ["join", "--token", &foreign, "10.213.0.1"];
    judge(&join, &lab.try_vx("h2", &join)?, 4, &["member", "hint: run `vxmesh leave`"])?;
    lab.vx("h2", &["leave", "--force"])?;
    // A server of another mesh than the token's: the joiner's own, which has none.
    no_join(&lab, &foreign, "10.213.0.2", 1, &["10.213.0.2:7760 does not answer", "hint:"])?;
    lab.vx("h2", &["init"])?;
    let nodes = lab.json("h1", &["node", "ls"])?;
    let alive = nodes.as_array().into_iter().flatten().filter(|node| node["state"] == "alive");
    ensure!(alive.count() == 1, "{nodes}");
    ensure!(lab.json("h2", &["node", "ls"])?.as_array().map(Vec::len) == Some(1));
    lab.finish(Allowed::default())
}
