//! Every command against the real admin API: what it asks, what it prints, how it fails.

use std::{os::unix::net::UnixListener, process::Stdio};

use crate::world::*;
use serde_json::{Value, json, to_value};
use vxmesh::api::{ApiError, ErrorCode};

/// Words, the call that they must cause with its spec, and the object that they must print.
type Case = (&'static [&'static str], &'static str, Value, Value);

fn views() -> Vec<Case> {
    let null = Value::Null;
    vec![
        (&["status"], "status", null.clone(), to_value(status()).unwrap()),
        (&["node", "ls"], "nodes", null.clone(), to_value(nodes()).unwrap()),
        (&["node", "inspect", "h2"], "nodes", null.clone(), to_value(&nodes()[1]).unwrap()),
        (&["peer", "ls"], "peers", null.clone(), to_value(peers()).unwrap()),
        (&["peer", "inspect", "h2"], "nodes", null.clone(), to_value(&peers()[0]).unwrap()),
        (&["network", "ls"], "networks", null.clone(), to_value(networks()).unwrap()),
        (
            &["network", "inspect", "a1"],
            "networks",
            null.clone(),
            to_value(&networks()[0]).unwrap(),
        ),
        (
            &["ipam", "ls"],
            "pools",
            null.clone(),
            to_value([&network_pools().pools[0].pool]).unwrap(),
        ),
        (
            &["ipam", "inspect", "red"],
            "network_pools",
            json!("red"),
            to_value(network_pools()).unwrap(),
        ),
        (&["service", "ls"], "services", null.clone(), to_value([service()]).unwrap()),
        (&["service", "inspect", "d4"], "services", null.clone(), to_value(service()).unwrap()),
        (&["endpoint", "ls"], "endpoints", null.clone(), to_value(endpoints()).unwrap()),
        (
            &["endpoint", "inspect", "web"],
            "endpoints",
            null.clone(),
            to_value(&endpoints()[0]).unwrap(),
        ),
        (&["sandbox", "ls"], "sandboxes", null.clone(), json!([])),
        (&["doctor"], "doctor", null.clone(), to_value(diagnoses()).unwrap()),
        (&["drops"], "drops", null.clone(), to_value(drops()).unwrap()),
        (&["map", "ls"], "map", null.clone(), to_value(map_rows()).unwrap()),
        (&["map", "diff", "h2"], "map_diff", json!("h2"), to_value(map_differences()).unwrap()),
        (&["token", "ls"], "tokens", null, to_value(tokens()).unwrap()),
        (
            &["dns", "query", "web", "--network", "red", "--type", "aaaa"],
            "dns_query",
            json!({ "name": "web", "query": { "network": "red", "type": "AAAA" } }),
            to_value([dns_record()]).unwrap(),
        ),
        (
            &["dns", "query", "fd00::2"],
            "dns_query",
            json!({ "name": "fd00::2", "query": { "network": null, "type": null } }),
            to_value([dns_record()]).unwrap(),
        ),
        (&["locate", "fd00:0::9"], "locate", json!("fd00::9"), to_value(&locations()[2]).unwrap()),
        (
            &["locate", "02-00-00-00-00-01"],
            "locate",
            json!("02:00:00:00:00:01"),
            to_value(&locations()[0]).unwrap(),
        ),
        (
            &["locate", "10.1.0.2", "--network", "red"],
            "locate",
            json!("10.1.0.2"),
            to_value(&locations()[0]).unwrap(),
        ),
    ]
}

fn membership_changes() -> Vec<Case> {
    let member = to_value(membership()).unwrap();
    let token = json!({ "id": "k7", "token": "VXMTKN-1-a-b", "expires_at": 3601,
        "servers": ["10.213.0.1:7760", "[fd13::1]:7760"], "member_until": 7200,
        "issuers": [{ "id": node_id(1), "name": "h1", "state": "alive" }] });
    vec![
        (&["init"], "init", json!({}), member.clone()),
        (
            &["join", "--token", "t", "h1", "[fd00::1]:7"],
            "join",
            json!({ "token": "t", "servers": ["h1", "[fd00::1]:7"] }),
            member,
        ),
        (
            &["token", "create"],
            "token_create",
            json!({ "ttl_s": 3600, "uses": null }),
            token.clone(),
        ),
        (
            &["token", "create", "--ttl", "2h 30m", "--uses", "3"],
            "token_create",
            json!({ "ttl_s": 9000, "uses": 3 }),
            token,
        ),
        (&["token", "revoke", "k"], "token_revoke", json!("k"), to_value(&tokens()[0]).unwrap()),
    ]
}

#[test]
fn who_leaves_is_asked_only_at_a_terminal_and_told_what_went_wrong() {
    let agent = TestAgent::start();
    for (words, force, yes) in [
        (&["leave"] as &[&str], false, false),
        (&["leave", "--yes"], false, true),
        (&["leave", "-y"], false, true),
        (&["leave", "--force"], true, false),
    ] {
        let said = agent.say(words);
        assert_eq!(said.stdout, format!("left mesh {}\n", node_id(9)));
        assert_eq!((said.status, said.stderr.as_str()), (0, "warning: nobody heard it\n"));
        let asked = json!({ "force": force, "yes": yes });
        assert_eq!(agent.world.calls(), [("leave".to_owned(), asked)], "{words:?}");
    }
    let said = agent.say_json(&["leave"]);
    let warning: Value = serde_json::from_str(&said.stderr).unwrap();
    assert_eq!(warning["warning"]["message"], "nobody heard it");
}

fn removals() -> Vec<Case> {
    let node = to_value(&nodes()[1]).unwrap();
    vec![
        (
            &["node", "update", "h2", "--issuer"],
            "node_update",
            json!({ "node": "h2", "spec": { "issuer": true } }),
            node.clone(),
        ),
        (
            &["node", "update", "h2", "--issuer=false"],
            "node_update",
            json!({ "node": "h2", "spec": { "issuer": false } }),
            node.clone(),
        ),
        (
            &["node", "update", "h2", "--label", "zone=west"],
            "node_update",
            json!({ "node": "h2", "spec": { "zone": "west" } }),
            node.clone(),
        ),
        (
            &["node", "drain", "h2"],
            "node_update",
            json!({ "node": "h2", "spec": { "drain": true } }),
            node.clone(),
        ),
        (
            &["node", "drain", "h2", "--undo"],
            "node_update",
            json!({ "node": "h2", "spec": { "drain": false } }),
            node.clone(),
        ),
        (&["node", "rm", "h2"], "node_rm", json!("h2"), node.clone()),
        (&["node", "rm", "h2", "--force"], "node_rm", json!("h2 by force"), node),
    ]
}

fn extensions() -> Vec<Case> {
    let network = to_value(&networks()[0]).unwrap();
    vec![
        (
            &["network", "extend", "red", "--subnet", "10.2.0.0/24", "--ip-range", "10.2.0.0/25"],
            "network_extend",
            json!({ "network": "red", "spec": { "subnets": ["10.2.0.0/24"], "gateways": [],
                    "ip_ranges": ["10.2.0.0/25"], "aux_addresses": {} } }),
            network.clone(),
        ),
        (
            &["network", "update", "red", "-o", "dns_rate=20", "--opt", "multicast_rate="],
            "network_update",
            json!({ "network": "red",
                    "update": { "options": { "dns_rate": "20", "multicast_rate": "" } } }),
            network,
        ),
    ]
}

fn service_changes() -> Vec<Case> {
    const CREATE: &[&str] = &[
        "service",
        "create",
        "shop",
        "--network",
        "red",
        "--port",
        "http=80:8080",
        "-p",
        "53/udp",
        "--backend",
        "web,db",
        "--selector",
        "app=shop",
        "--vip",
        "10.1.0.3",
        "--lb",
        "rr",
        "--weight",
        "db=0",
        "--prefer=zone",
        "--sticky=10m",
        "--health",
        "http:/well",
        "--health-interval",
        "5s",
        "--drain",
        "1m",
    ];
    const UPDATE: &[&str] = &[
        "service",
        "update",
        "shop",
        "--add-port",
        "81",
        "--rm-port",
        "80",
        "--add-backend",
        "c",
        "--rm-backend",
        "db",
        "--weight",
        "web=3",
        "--lb",
        "maglev",
        "--prefer",
        "any",
        "--health",
        "tcp",
        "--health-fall",
        "1",
        "--drain",
        "5s",
    ];
    let shop = to_value(service()).unwrap();
    vec![
        (
            CREATE,
            "service_create",
            json!({ "name": "shop", "network": "red", "ports": ["http=80:8080/tcp", "53/udp"],
                    "backends": ["db", "web"], "selector": { "app": "shop" },
                    "mode": "vip", "vips": ["10.1.0.3"], "lb": "rr", "weights": { "db": 0 },
                    "prefer": "zone", "sticky_s": 600, "drain_ms": 60_000,
                    "check": { "path": "/well", "interval_ms": 5000, "timeout_ms": 1000,
                               "rise": 2, "fall": 3 } }),
            shop.clone(),
        ),
        (
            UPDATE,
            "service_update",
            json!({ "service": "shop",
                    "update": { "add_ports": ["81/tcp"], "remove_ports": ["80/tcp"],
                                "add_backends": ["c"], "remove_backends": ["db"],
                                "weights": { "web": 3 }, "lb": "maglev", "prefer": "any",
                                "check": { "path": null, "interval_ms": 2000,
                                           "timeout_ms": 1000, "rise": 2, "fall": 1 },
                                "drain_ms": 5000 } }),
            shop,
        ),
    ]
}

fn backend_changes() -> Vec<Case> {
    let shop = to_value(service()).unwrap();
    vec![
        (&["service", "rm", "shop"], "service_rm", json!("shop"), shop.clone()),
        (
            &["service", "update", "shop", "--health", "none"],
            "service_update",
            json!({ "service": "shop", "update": changed("no_check", json!(true)) }),
            shop.clone(),
        ),
        (
            &["service", "update", "shop", "--sticky", "none"],
            "service_update",
            json!({ "service": "shop", "update": changed("no_sticky", json!(true)) }),
            shop.clone(),
        ),
        (
            &["service", "drain", "shop", "web"],
            "service_update",
            json!({ "service": "shop", "update": changed("drain", json!(["web"])) }),
            shop.clone(),
        ),
        (
            &["service", "drain", "shop", "web", "--undo"],
            "service_update",
            json!({ "service": "shop", "update": changed("undrain", json!(["web"])) }),
            shop.clone(),
        ),
        (
            &["service", "health", "shop", "web", "down", "--ttl", "3s"],
            "service_health",
            json!({ "service": "shop",
                    "word": { "backend": "web", "up": false, "ttl_ms": 3000 } }),
            shop,
        ),
    ]
}

/// A change of a service in which one thing is said.
fn changed(what: &str, value: Value) -> Value {
    let mut update = to_value(vxmesh::api::ServiceUpdate::default()).unwrap();
    update[what] = value;
    update
}

fn object_changes() -> Vec<Case> {
    let network = to_value(&networks()[0]).unwrap();
    let endpoint = to_value(&endpoints()[0]).unwrap();
    vec![
        (
            &[
                "network",
                "create",
                "red",
                "--subnet",
                "10.1.0.0/24",
                "--subnet",
                "fd00::/64",
                "--gateway",
                "10.1.0.9",
                "--ip-range",
                "10.1.0.128/25",
                "--aux-address",
                "printer=10.1.0.7",
                "--mtu",
                "1400",
                "--vni",
                "42",
                "--dns",
                "192.0.2.53",
                "--label",
                "a=b",
                "--label",
                "c=",
            ],
            "network_create",
            json!({ "name": "red", "driver": "overlay", "options": {},
                    "subnets": ["10.1.0.0/24", "fd00::/64"], "gateways": ["10.1.0.9"],
                    "ip_ranges": ["10.1.0.128/25"], "aux_addresses": { "printer": "10.1.0.7" }, "encrypted": true, "vteps": [], "mtu": 1400,
                    "vni": 42, "dns": ["192.0.2.53"], "internal": false, "ipv4": null, "ipv6": null, "isolated": false,
                    "labels": { "a": "b", "c": "" } }),
            network.clone(),
        ),
        (&["network", "rm", "red"], "network_rm", json!("red"), network.clone()),
        (&["network", "rm", "red", "--force"], "network_rm", json!("red by force"), network),
        (
            &[
                "endpoint",
                "attach",
                "red",
                "--netns",
                "blue",
                "--name",
                "web",
                "--alias",
                "www,w3",
                "--ip",
                "10.1.0.5",
                "--ip",
                "fd00::5",
                "--mac",
                "02:00:00:00:00:05",
                "--ifname",
                "net0",
                "--label",
                "k=v",
            ],
            "endpoint_attach",
            json!({ "network": "red", "netns": "/run/netns/blue", "name": "web", "aliases": ["www", "w3"],
                    "ips": ["10.1.0.5", "fd00::5"], "mac": "02:00:00:00:00:05", "ifname": "net0",
                    "labels": { "k": "v" }, "sandbox": null }),
            endpoint.clone(),
        ),
        (
            &["endpoint", "attach", "red", "--pid", "77"],
            "endpoint_attach",
            json!({ "network": "red", "netns": "/proc/77/ns/net", "name": null, "aliases": [], "ips": [], "mac": null,
                    "ifname": null, "labels": {}, "sandbox": null }),
            endpoint.clone(),
        ),
        (&["endpoint", "detach", "c3c3"], "endpoint_detach", json!("c3c3"), endpoint),
    ]
}

fn connections() -> Vec<Case> {
    let endpoint = to_value(&endpoints()[0]).unwrap();
    let labels = json!({ "labels": { "a": "b" }, "remove_labels": ["k"] });
    vec![
        (
            &["endpoint", "update", "c3c3", "--label", "a=b", "--rm-label", "k"],
            "endpoint_update",
            json!({ "endpoint": "c3c3", "spec": labels }),
            endpoint.clone(),
        ),
        (
            &["network", "connect", "red", "web"],
            "sandbox_connect",
            json!(["web", { "network": "red" }]),
            endpoint.clone(),
        ),
        (
            &[
                "network",
                "connect",
                "red",
                "web",
                "--ip",
                "10.1.0.5,fd00::5",
                "--mac",
                "02:00:00:00:00:05",
                "--alias",
                "www",
                "--ifname",
                "net0",
                "--gw-priority",
                "-2",
            ],
            "sandbox_connect",
            json!(["web", { "network": "red", "ips": ["10.1.0.5", "fd00::5"], "mac": "02:00:00:00:00:05",
                            "aliases": ["www"], "ifname": "net0", "gw_priority": -2 }]),
            endpoint.clone(),
        ),
        (
            &["network", "disconnect", "red/1", "web"],
            "sandbox_disconnect",
            json!(["web", "red/1"]),
            endpoint,
        ),
    ]
}

#[test]
fn every_command_asks_for_what_it_says_and_prints_the_answer() {
    let agent = TestAgent::start();
    let cases = views().into_iter().chain(membership_changes()).chain(object_changes());
    let cases = cases.chain(extensions()).chain(removals()).chain(connections());
    let cases = cases.chain(service_changes()).chain(backend_changes());
    for (words, call, spec, answer) in cases {
        assert_eq!(agent.say_json(words).json(), answer, "{words:?}");
        let calls = agent.world.calls();
        assert_eq!(calls.first(), Some(&(call.to_owned(), spec)), "{words:?}");
        let said = agent.say(words);
        let joining = "asking h1, [fd00::1]:7 to let this node in\n";
        let next = "on the next host: vxmesh join --token";
        let made = format!(
            "for each other host, `vxmesh token create --uses 1` here prints a token; then {next} TOKEN 10.213.0.1\n"
        );
        let token = format!("{next} VXMTKN-1-a-b 10.213.0.1 fd13::1\n{TOKEN_IS_VALID}");
        let progress = match words {
            ["join", ..] => joining,
            ["init"] => &made,
            ["token", "create", ..] => &token,
            _ => "",
        };
        assert_eq!((said.status, said.stderr.as_str()), (0, progress), "{words:?}");
        assert!(
            said.stdout.ends_with('\n') && said.stdout.trim() == said.stdout.trim_end(),
            "{words:?}"
        );
        agent.world.calls();
    }
}

#[test]
fn references_are_sent_as_they_are_whatever_they_contain() {
    let agent = TestAgent::start();
    for reference in ["a/b", "../status", "a b?c=d#e", "%2f", "ä", "."] {
        let said = agent.say_json(&["endpoint", "detach", reference]);
        assert_eq!(said.status, 3, "{reference}: {}", said.stderr);
        assert_eq!(agent.world.calls()[0], ("endpoint_detach".into(), json!(reference)));
    }
}

#[test]
fn tables_have_short_ids_names_and_no_borders() {
    let agent = TestAgent::start();
    let expected = [
        "ID             NAME   DRIVER    SCOPE   VNI   MTU    STATE    SUBNETS",
        "a10101010101   red    overlay   mesh    1     1390   active   10.1.0.0/24",
        "b20202020202   twin   overlay   mesh    2     1390   active   10.1.0.0/24",
        "b20303030303   twin   overlay   mesh    3     1390   active   10.1.0.0/24",
        "",
    ];
    assert_eq!(agent.say(&["network", "ls"]).stdout, expected.join("\n"));

    let endpoints = agent.say(&["endpoint", "ls"]).stdout;
    let row: Vec<&str> = endpoints.lines().nth(1).unwrap().split("   ").collect();
    let known =
        ["c3c3c3c3c3c3", "web", "red", "h1", "02:00:00:00:00:01", "10.1.0.2/24, fd00::2/64"];
    assert_eq!(
        row.iter().map(|cell| cell.trim()).filter(|cell| !cell.is_empty()).collect::<Vec<_>>(),
        known
    );

    let peers = agent.say(&["peer", "ls"]).stdout;
    for word in ["h2", "1.234 ms", "1m 15s", "12 kB", "999 B"] {
        assert!(peers.contains(word), "{peers}");
    }
    let sandboxes = agent.say(&["sandbox", "ls"]).stdout;
    assert_eq!(sandboxes, "NAME   STATE   PID   NETWORKS   PORTS   COMMAND\n");

    let node = agent.say(&["node", "inspect", "h3"]).stdout;
    let expected = format!(
        "id:       {}\nname:     h3\nvtep:     -\nstate:    dead\nself:     false\nissuer:   false\ndrained:  false\nzone:     -\n",
        node_id(3)
    );
    assert_eq!(node, expected);
}

#[test]
fn what_a_command_made_is_one_line_that_scripts_can_use() {
    let agent = TestAgent::start();
    let token = agent.say(&["token", "create"]);
    assert_eq!(token.stdout, "VXMTKN-1-a-b\n");
    let line = "on the next host: vxmesh join --token VXMTKN-1-a-b 10.213.0.1 fd13::1";
    assert_eq!(token.stderr, format!("{line}\n{TOKEN_IS_VALID}"));
    assert_eq!(agent.say(&["network", "create", "red"]).stdout, format!("{}\n", networks()[0].id));
    assert_eq!(
        agent.say(&["endpoint", "attach", "red", "--pid", "1"]).stdout,
        format!("{}\n", endpoints()[0].id)
    );
    assert_eq!(agent.say(&["version"]).stdout, format!("vxmesh {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(
        vxmesh(&["version", "--format", "json"]).output().map(Said::from).unwrap().json(),
        json!({ "version": env!("CARGO_PKG_VERSION") })
    );
}

#[test]
fn each_kind_of_failure_has_its_exit_status_and_both_forms() {
    let agent = TestAgent::start();
    let kinds = [
        ErrorCode::Failed,
        ErrorCode::Usage,
        ErrorCode::NotFound,
        ErrorCode::Conflict,
        ErrorCode::Unreachable,
    ];
    for (code, status) in kinds.into_iter().zip(1..) {
        let error = ApiError::new(code, "it is so", "do thus");
        *agent.world.failure.lock().unwrap() = Some(error.clone());
        let said = agent.say(&["status"]);
        assert_eq!((said.status, said.stdout.as_str()), (status, ""));
        assert_eq!(said.stderr, "error: it is so\nhint: do thus\n");
        let said = agent.say_json(&["status"]);
        assert_eq!((said.status, said.error()), (status, error));
    }
}

#[test]
fn what_is_not_there_is_3_and_what_is_ambiguous_is_4() {
    let agent = TestAgent::start();
    for (words, status, code) in [
        (["node", "inspect", "h9"].as_slice(), 3, ErrorCode::NotFound),
        (&["peer", "inspect", "h1"], 3, ErrorCode::NotFound),
        (&["peer", "inspect", "h3"], 3, ErrorCode::NotFound),
        (&["network", "rm", "nothing"], 3, ErrorCode::NotFound),
        (&["node", "rm", "nothing"], 3, ErrorCode::NotFound),
        (&["network", "inspect", "twin"], 4, ErrorCode::Conflict),
        (&["network", "inspect", "b2"], 4, ErrorCode::Conflict),
        (&["sandbox", "rm", "none"], 3, ErrorCode::NotFound),
        (&["token", "revoke", "x"], 3, ErrorCode::NotFound),
        (&["locate", "10.9.9.9"], 3, ErrorCode::NotFound),
        (&["locate", "10.1.0.2"], 4, ErrorCode::Conflict),
        (&["locate", "10.1.0.2", "--network", "nothing"], 3, ErrorCode::NotFound),
        (&["locate", "fd00::9", "--network", "red"], 3, ErrorCode::NotFound),
    ] {
        let said = agent.say_json(words);
        assert_eq!((said.status, said.error().code), (status, code), "{words:?}: {}", said.stderr);
        assert!(!said.error().hint.is_empty());
    }
    let hint = agent.say_json(&["network", "inspect", "twin"]).error().hint;
    for network in &networks()[1..] {
        assert!(hint.contains(&network.id.to_string()), "{hint}");
    }
}

#[test]
fn wrong_words_are_2_in_both_forms() {
    for words in [
        ["frobnicate"].as_slice(),
        &[],
        &["node"],
        &["token", "create", "--ttl", "soon"],
        &["token", "create", "--ttl", "1ms"],
        &["token", "create", "--uses", "0"],
        &["join", "--token", "t"],
        &["join", "--token", "t", "--token-file", "f", "h1"],
        &["join", "--token", "t", "h1:99999"],
        &["network", "create", "Bad_Name"],
        &["network", "create", "x", "--subnet", "10.0.0.0/33"],
        &["network", "create", "x", "--vni", "16777215"],
        &["network", "create", "x", "--label", "novalue"],
        &["endpoint", "attach", "x"],
        &["endpoint", "attach", "x", "--netns", "a", "--pid", "1"],
        &["endpoint", "attach", "x", "--pid", "0"],
        &["endpoint", "attach", "x", "--netns", "a", "--mac", "zz"],
        &["endpoint", "update", "web"],
        &["endpoint", "update", "web", "--label", "novalue"],
        &["run", "--", "true"],
        &["run", "--network", "x"],
        &["run", "--network", "x", "--log", "f", "--", "true"],
        &["run", "--network", "x", "--restart", "always", "true"],
        &["run", "-d", "--network", "x", "--restart", "sometimes", "true"],
        &["run", "--network", "x", "--hostname", "a b", "true"],
        &["run", "--network", "x", "-e", "=1", "true"],
        &["exec", "box"],
        &["locate", "nowhere"],
        &["network", "rm", ""],
        &["run", "--network", "a,,b", "--", "true"],
        &["agent", "--init", "--join", "h1", "--token-file", "/t"],
        &["agent", "--join", "h1"],
        &["agent", "--control-port", "70000"],
        &["status", "--format", "yaml"],
        &["status", "--socket", ""],
    ] {
        let said: Said = vxmesh(words).output().unwrap().into();
        assert_eq!((said.status, said.stdout.as_str()), (2, ""), "{words:?}");
        let lines: Vec<&str> = said.stderr.lines().collect();
        assert!(
            matches!(lines[..], [error, hint] if error.starts_with("error: ") && hint.starts_with("hint: ")),
            "{words:?}: {}",
            said.stderr
        );
        if words.contains(&"--format") {
            continue;
        }
        let said: Said = vxmesh(&[&["--format=json"], words].concat()).output().unwrap().into();
        assert_eq!((said.status, said.error().code), (2, ErrorCode::Usage), "{words:?}");
    }
}

#[test]
fn the_words_of_a_command_in_a_sandbox_are_not_ours() {
    let said: Said =
        vxmesh(&["run", "--nonsense", "--", "x", "--format", "json"]).output().unwrap().into();
    assert_eq!(said.status, 2);
    assert!(said.stderr.starts_with("error: "), "{}", said.stderr);
}

#[test]
fn help_is_a_result() {
    for words in [["--help"].as_slice(), &["-V"], &["node", "--help"], &["run", "-h"]] {
        let said: Said = vxmesh(words).output().unwrap().into();
        assert_eq!((said.status, said.stderr.as_str()), (0, ""), "{words:?}");
        assert!(!said.stdout.is_empty());
    }
}

#[test]
fn no_agent_is_5() {
    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for socket in [dir.path().join("missing.sock"), dead] {
        let socket = socket.to_str().unwrap();
        let said: Said = vxmesh(&["--socket", socket, "--format", "json", "node", "ls"])
            .output()
            .unwrap()
            .into();
        let error = said.error();
        assert_eq!((said.status, error.code), (5, ErrorCode::Unreachable));
        assert_eq!(error.message, format!("no agent answers on {socket}"));
        assert!(error.hint.contains("vxmesh agent"), "{}", error.hint);
    }
}

#[test]
fn an_agent_that_breaks_off_or_talks_nonsense_is_an_error() {
    for (answer, status) in [
        ("", 5),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", 1),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 1),
        ("HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno", 1),
        ("SSH-2.0-nonsense\r\n", 5),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = std::io::Read::read(&mut stream, &mut request).unwrap();
            assert!(read > 0);
            std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        });
        let words = ["--socket", socket.to_str().unwrap(), "--format", "json", "status"];
        let said: Said = vxmesh(&words).output().unwrap().into();
        server.join().unwrap();
        assert_eq!(said.status, status, "{answer}: {}", said.stderr);
        assert!(!said.error().message.is_empty());
    }
}

#[test]
fn the_socket_is_that_of_flag_then_environment_then_file() {
    let (agent, other) = (TestAgent::start(), TestAgent::start());
    let [right, wrong] = [&agent, &other].map(|it| it.socket().to_str().unwrap().to_owned());
    let config = file(agent.dir.path(), "a.toml", &format!("socket = \"{right}\""));
    let run_dir = file(
        agent.dir.path(),
        "b.toml",
        &format!("run_dir = \"{}/run\"", agent.dir.path().display()),
    );
    let bad = file(agent.dir.path(), "c.toml", "socket = 1");
    let mut by_file = vxmesh(&["status", "--config", &config]);
    let mut by_run_dir = vxmesh(&["status"]);
    by_run_dir.env("VXMESH_CONFIG", &run_dir);
    let mut by_environment = vxmesh(&["status", "--config", &bad]);
    by_environment.env("VXMESH_SOCKET", &right);
    let mut by_flag = vxmesh(&["status", "--socket", &right]);
    by_flag.env("VXMESH_SOCKET", &wrong).env("VXMESH_CONFIG", &bad);
    for command in [&mut by_file, &mut by_run_dir, &mut by_environment, &mut by_flag] {
        let said: Said = command.output().unwrap().into();
        assert_eq!((said.status, said.stderr.as_str()), (0, ""), "{command:?}");
        assert_eq!(agent.world.calls().len(), 1, "{command:?}");
        assert!(other.world.calls().is_empty(), "{command:?}");
    }
}

#[test]
fn a_wrong_configuration_is_2_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), "x.toml", "log = \"info\"\ncolour = 1\n");
    for words in [["status"].as_slice(), &["agent"], &["init"]] {
        let words = [&["--config", &config, "--format", "json"], words].concat();
        let said: Said = vxmesh(&words).output().unwrap().into();
        let error = said.error();
        assert_eq!((said.status, error.code), (2, ErrorCode::Usage), "{words:?}");
        assert!(
            error.message.starts_with(&format!("{config} line 2: `colour`: unknown field")),
            "{error}"
        );
    }
    let said: Said = vxmesh(&["agent", "--data-port", "7760"]).output().unwrap().into();
    assert_eq!(said.status, 2);
    assert!(said.stderr.contains("control_port and data_port"), "{}", said.stderr);
}

#[test]
fn a_reader_that_goes_away_ends_the_output_quietly() {
    let agent = TestAgent::start();
    let mut child = agent
        .command(&["node", "ls"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let said: Said = child.wait_with_output().unwrap().into();
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
}

#[test]
fn a_full_disk_is_an_error() {
    let agent = TestAgent::start();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let said: Said = agent.command(&["node", "ls"]).stdout(full).output().unwrap().into();
    assert_eq!(said.status, 1);
    assert!(said.stderr.starts_with("error: cannot write the result"), "{}", said.stderr);
}

#[test]
fn init_and_join_work_without_an_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (data, socket) = (dir.path().join("data"), dir.path().join("none.sock"));
    let say = |words: &[&str]| -> Said {
        let mut command = vxmesh(&[&["--format", "json"], words].concat());
        command.env("VXMESH_SOCKET", &socket).env("VXMESH_DATA_DIR", &data).output().unwrap().into()
    };
    let token = file(dir.path(), "token", "VXMTKN-1-nonsense\n");
    for (words, status) in [
        (["join", "--token", "nonsense", "h1"].as_slice(), 2),
        (&["join", "h1"], 2),
        (&["join", "--token-file", &token, "h1"], 2),
        (&["join", "--token-file", "/nowhere", "h1"], 2),
    ] {
        assert_eq!(say(words).status, status, "{words:?}");
        assert!(!data.exists(), "{words:?}");
    }
    let made = say(&["init"]).json();
    assert_eq!(made["mesh_id"].as_str().unwrap().len(), 26);
    assert_eq!(made["node_id"].as_str().unwrap().len(), 26);
    let again = say(&["init"]);
    assert_eq!((again.status, again.error().code), (4, ErrorCode::Conflict));
    let token = format!("VXMTKN-1-{}-{}", "a".repeat(52), "a".repeat(26));
    let join = say(&["join", "--token", &token, "127.0.0.1:9"]);
    assert_eq!((join.status, join.error().code), (4, ErrorCode::Conflict), "{}", join.stderr);
}
