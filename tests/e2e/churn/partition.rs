//! Both sides of a partition go on, and agree when it ends; a dead node's rows are hidden, not
//! forgotten (I11, I12).

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use vxmesh_tests::lab::{Allowed, UNDERWAY};

use super::world::{Lab, ip, tell, wait_until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

#[test]
fn i11_i12_both_sides_of_a_partition_agree_after_it() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    wait_until("h3 knows it", || {
        Ok(lab.find("h3", &["network", "ls"], "name", "blue")?.is_some())
    })?;
    lab.run_sandbox("h1", "blue", "before1")?;
    lab.run_sandbox("h3", "blue", "before3")?;
    lab.lab(&["cut", "h3"])?;
    let mut older = Vec::new();
    for host in ["h1", "h3"] {
        // One name on both sides, one number on both sides, and one of each side's own.
        let both = lab.json(host, &["network", "create", "both"])?;
        let own = format!("own-{host}");
        lab.vx(host, &["network", "create", &own])?;
        let numbered =
            lab.json(host, &["network", "create", &format!("number-{host}"), "--vni", "77"])?;
        older.push((both["id"].clone(), numbered["id"].clone()));
        for (network, name) in [("blue", "same"), ("both", "twin"), (&own, "mine")] {
            lab.run_sandbox(host, network, &format!("{name}-{host}"))?;
        }
        // In one network two endpoints may get one name, on two sides.
        lab.attach(host, "blue", "dup")?;
    }
    for (host, other) in [("h1", "h3"), ("h3", "h1")] {
        wait_until("the cut is noticed", || {
            Ok(lab
                .find(host, &["node", "ls"], "name", other)?
                .is_some_and(|row| row["state"] == "dead"))
        })?;
    }
    lab.lab(&["heal"])?;
    let known = || {
        let all = HOSTS.iter().map(|host| lab.json(host, &["endpoint", "ls"]));
        let all = all.collect::<Result<Vec<Value>>>()?;
        Ok(all.iter().all(|rows| rows.as_array().map(Vec::len) == Some(10)))
    };
    let took = wait_until("all hosts know all endpoints", known)?;
    let agreed = wait_until("all pairs agree", || lab.agree(&HOSTS))?;
    tell(&format!("healed: all known after {took:?}, all pairs agree {agreed:?} later"));

    let networks = lab.json("h2", &["network", "ls"])?;
    let state = |id: &Value| {
        let rows = networks.as_array().into_iter().flatten();
        rows.filter(|row| row["id"] == *id).map(|row| row["state"].clone()).next()
    };
    let [(both1, number1), (both3, number3)] = older.as_slice() else { panic!("two sides") };
    assert_eq!([state(both1), state(number1)], [Some(json!("active")), Some(json!("active"))]);
    assert_eq!([state(both3), state(number3)], [Some(json!("conflict")), Some(json!("conflict"))]);
    for own in ["own-h1", "own-h3"] {
        assert!(lab.find("h2", &["network", "ls"], "name", own)?.is_some(), "{own}");
    }
    // Two networks have the name by now. It means the older one, on every host, and so does a name
    // of endpoints.
    for host in HOSTS {
        let both = lab.json(host, &["network", "inspect", "both"])?;
        assert_eq!(both["id"], *both1, "{host}");
        let dup = lab.json(host, &["endpoint", "inspect", "dup"])?;
        assert_eq!(dup["conflict"], Value::Null, "{host}: {dup}");
        let rows = lab.json(host, &["endpoint", "ls"])?;
        let rows = rows.as_array().context("no rows")?;
        let marked: Vec<&Value> = rows.iter().filter(|row| !row["conflict"].is_null()).collect();
        assert_eq!(marked.len(), 1, "{marked:?}");
        assert_eq!([&marked[0]["name"], &marked[0]["conflict"]], [&json!("dup"), &dup["id"]]);
        if host == "h2" {
            continue;
        }
        let asked = format!("dig +short +tries=1 dup A; dig +short +tries=1 {}", short(marked[0])?);
        let asker = format!("same-{host}");
        let answer = lab.vx(host, &["exec", &asker, "--", "sh", "-c", &asked])?;
        let wanted = [ip(&dup)?.to_string(), ip(marked[0])?.to_string()];
        assert_eq!(answer.lines().collect::<Vec<_>>(), wanted, "{host}");
    }
    no_address_twice(&lab.json("h2", &["map", "ls"])?)?;

    // Traffic crosses the healed cut.
    let far = lab.find("h1", &["endpoint", "ls"], "name", "same-h3")?.context("not known")?;
    let address = ip(&far)?.to_string();
    wait_until("the other side is reached", || {
        let ping = ["exec", "same-h1", "--", "ping", "-c1", "-W1", &address];
        Ok(lab.try_vx("h1", &ping)?.status.success())
    })?;
    let warnings = &["two endpoints were given one name"];
    lab.finish(Allowed { warnings, ..Allowed::default() })
}

/// The beginning of an id, which is a name.
fn short(row: &Value) -> Result<String> {
    let id = row["id"].as_str().context("no id")?;
    Ok(id.chars().take(12).collect())
}

fn no_address_twice(rows: &Value) -> Result<()> {
    let mut seen = BTreeSet::new();
    for row in rows.as_array().context("no rows")? {
        for ip in row["ips"].as_array().context("no addresses")? {
            assert!(
                seen.insert((row["network"].to_string(), ip.to_string())),
                "{ip} twice: {rows}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_dead_nodes_rows_are_hidden_and_come_back_with_it() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    wait_until("h3 knows it", || {
        Ok(lab.find("h3", &["network", "ls"], "name", "blue")?.is_some())
    })?;
    let web = lab.run_sandbox("h3", "blue", "web")?;
    let address = ip(&web)?;
    let located = |host: &str| -> Result<Option<i32>> {
        Ok(lab.try_vx(host, &["locate", &address.to_string()])?.status.code())
    };
    let state = |host: &str| -> Result<Value> {
        let row = lab.find(host, &["node", "ls"], "name", "h3")?;
        Ok(row.context("h3 is forgotten")?["state"].clone())
    };
    wait_until("h1 and h2 locate it", || {
        Ok(located("h1")? == Some(0) && located("h2")? == Some(0))
    })?;
    lab.lab(&["kill", "h3"])?;
    for host in ["h1", "h2"] {
        let took = wait_until("it is dead", || Ok(state(host)? == "dead"))?;
        tell(&format!("{host} shows a killed host as dead, {took:?} after it began to look"));
        assert_eq!(located(host)?, Some(3), "not found");
        assert_eq!(lab.json(host, &["map", "ls"])?, json!([]));
    }
    // Death frees nothing: its addresses are nobody's to give, and the refusal says whose.
    let next = match address {
        std::net::IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() + 9).to_string(),
        std::net::IpAddr::V6(_) => return Err(anyhow::anyhow!("the first address is IPv4")),
    };
    for (wanted, says) in
        [(address.to_string(), "in use"), (next, "node h3, which is not reachable")]
    {
        let run = ["run", "--network", "blue", "--ip", &wanted, "--", "true"];
        let output = lab.try_vx("h1", &run)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(says), "{said}");
    }
    lab.lab(&["start", "h3"])?;
    for host in ["h1", "h2"] {
        let took = wait_until("it is alive", || Ok(state(host)? == "alive"))?;
        let rows = wait_until("its rows are back", || Ok(located(host)? == Some(0)))?;
        tell(&format!("{host}: alive again after {took:?}, its rows {rows:?} later"));
    }
    wait_until("the hosts agree", || lab.agree(&HOSTS))?;
    lab.finish(Allowed::default())
}

#[test]
fn a_network_goes_only_by_force_while_a_dead_node_is_in_it_which_is_unplugged_later() -> Result<()>
{
    let lab = Lab::up(2)?;
    lab.vx("h1", &["network", "create", "blue"])?;
    wait_until("h2 knows it", || {
        Ok(lab.find("h2", &["network", "ls"], "name", "blue")?.is_some())
    })?;
    let [a, b] = ["a", "b"].map(|name| lab.attach("h2", "blue", name));
    a?;
    let other = ip(&b?)?.to_string();
    let ping = || -> Result<bool> {
        let ping =
            format!("ip netns exec a ping -c1 -W1 {other} >/dev/null && echo yes || echo no");
        Ok(lab.sh("h2", &ping)? == "yes")
    };
    wait_until("they reach each other", ping)?;
    wait_until("h1 knows them", || {
        Ok(lab.json("h1", &["endpoint", "ls"])?.as_array().map(Vec::len) == Some(2))
    })?;
    let refused = |args: &[&str], says: &str| -> Result<()> {
        let output = lab.try_vx("h1", args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains(says), "{said}");
        Ok(())
    };
    refused(&["network", "rm", "blue", "--force"], "a (on h2)")?;
    lab.lab(&["cut", "h2"])?;
    wait_until("it is dead", || {
        let row = lab.find("h1", &["node", "ls"], "name", "h2")?;
        Ok(row.is_some_and(|row| row["state"] == "dead"))
    })?;
    refused(&["network", "rm", "blue"], "a (on h2, which is dead)")?;
    lab.vx("h1", &["network", "rm", "blue", "--force"])?;
    assert!(ping()?, "h2 has not heard of it");
    lab.lab(&["heal"])?;
    wait_until("h2 unplugs its endpoints", || {
        Ok(lab.json("h2", &["endpoint", "ls"])? == json!([]) && lab.pins("h2")?.is_empty())
    })?;
    assert_eq!(lab.sh("h2", "ip -n a -o link | wc -l")?, "1", "only lo is left");
    // What the endpoints sent while they were unplugged.
    lab.finish(Allowed { drops: UNDERWAY, warnings: &["its network was deleted"] })
}
