//! What runtimes send, as it was seen of podman 4.3.1, `ctr` 1.6.20 and libcni 1.1.2 and 1.3.0, and
//! what they are answered. The whole way, with real runtimes, is in tests/e2e/cni.

use serde_json::{Value, json};

use super::{version::Version, *};
use crate::api::{Attachment, AttachmentKey, AttachmentSpec};

/// A recorded call: who, the variables, what was on stdin.
#[derive(serde::Deserialize)]
struct Call {
    caller: String,
    env: std::collections::BTreeMap<String, String>,
    stdin: Value,
}

fn recorded() -> Vec<Call> {
    serde_json::from_str(include_str!("recorded.json")).unwrap()
}

fn request(env: &[(&str, &str)], stdin: &Value) -> Result<Request, CniError> {
    let variable = |name: &str| {
        env.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
    };
    let env = Environment::read(variable)?;
    Request::new(env, Config::read(stdin.to_string().as_bytes())?)
}

impl Call {
    fn request(&self) -> Request {
        let env: Vec<(&str, &str)> =
            self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        request(&env, &self.stdin).unwrap_or_else(|error| panic!("{}: {error}", self.caller))
    }
}

/// A container in a network of both IP versions, or an internal one.
fn attachment(internal: bool) -> Attachment {
    let id = "c8f2817a52132dc2a29d955977583659";
    serde_json::from_value(json!({
        "endpoint": {
            "id": "18e57d3ce22d18e57d3ce22d18e57d3c", "name": "p1", "network": id,
            "node": "dmoihuqpznphai5s3qwdlemmvm", "sandbox": "/run/netns/a", "ifname": "eth0",
            "mac": "d6:f8:31:ff:d4:6d", "ips": ["10.77.0.4/24", "fd77::4/64"], "aliases": [],
            "incarnation": 1,
        },
        "network": {
            "id": id, "name": "app", "driver": "overlay", "scope": "mesh", "vni": 77,
            "encrypted": true, "mtu": 1390, "state": "active", "internal": internal,
            "subnets": [
                { "cidr": "10.77.0.0/24", "gateway": "10.77.0.1" },
                { "cidr": "fd77::/64", "gateway": "fd77::1" },
            ],
        },
    }))
    .unwrap()
}

const ADD: &[(&str, &str)] = &[
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "b6faad49d6c03cb4e260d39383ba7016"),
    ("CNI_NETNS", "/run/netns/a"),
    ("CNI_IFNAME", "eth0"),
];

fn conf(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "app", "type": "vxmesh-cni" })
}

fn spec(request: &Request) -> AttachmentSpec {
    match &request.action {
        Action::Add(spec) => spec.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_recorded_call_is_understood() {
    let calls = recorded();
    assert!(calls.len() >= 12, "{}", calls.len());
    for call in &calls {
        let request = call.request();
        let env = |name: &str| call.env.get(name).cloned().unwrap_or_default();
        let key = AttachmentKey {
            config: call.stdin["name"].as_str().unwrap_or_default().to_owned(),
            container: env("CNI_CONTAINERID"),
            ifname: env("CNI_IFNAME"),
        };
        match &request.action {
            Action::Version => assert_eq!(env("CNI_COMMAND"), "VERSION"),
            Action::Status { network } => assert_eq!(*network, key.config),
            Action::Add(spec) => assert_eq!((&spec.key, &spec.netns), (&key, &env("CNI_NETNS"))),
            Action::Check(own) | Action::Del(own) => assert_eq!(*own, key),
            Action::Gc(kept) => {
                assert_eq!(kept.valid, [("keep-1".to_owned(), "eth0".to_owned())]);
            }
        }
    }
}

#[test]
fn podman_s_names_aliases_and_addresses_are_found() {
    let calls = recorded();
    let adds = || calls.iter().filter(|it| it.caller == "podman").map(Call::request);
    let mut specs = adds().filter(|it| matches!(it.action, Action::Add(_))).map(|it| spec(&it));
    let first = specs.next().unwrap();
    let names: Vec<&str> = first.names.iter().map(|name| name.as_str()).collect();
    assert_eq!(names, ["p1", "b6faad49d6c0"]);
    assert_eq!(first.aliases.iter().map(|it| it.as_str()).collect::<Vec<_>>(), ["b6faad49d6c0"]);
    assert!(first.ips.is_empty() && first.mac.is_none());
    let second = specs.next().unwrap();
    assert_eq!(second.ips, ["10.66.0.77".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(second.mac, Some("02:11:22:33:44:55".parse().unwrap()));
    let aliases: Vec<&str> = second.aliases.iter().map(|it| it.as_str()).collect();
    assert_eq!(aliases, ["7e63f76c5fbb", "www"]);
}

#[test]
fn a_result_is_in_the_version_of_the_configuration() {
    for version in Version::ALL {
        let request = request(ADD, &conf(&version.to_string())).unwrap();
        let result = result(&request, &attachment(false)).unwrap();
        let mut ips = json!([
            { "address": "10.77.0.4/24", "gateway": "10.77.0.1", "interface": 0 },
            { "address": "fd77::4/64", "gateway": "fd77::1", "interface": 0 },
        ]);
        let mut interface =
            json!({ "name": "eth0", "mac": "d6:f8:31:ff:d4:6d", "sandbox": "/run/netns/a" });
        if version < Version::V1_0_0 {
            (ips[0]["version"], ips[1]["version"]) = (json!("4"), json!("6"));
        }
        if version == Version::V1_1_0 {
            interface["mtu"] = json!(1390);
        }
        let expected = json!({
            "cniVersion": version.to_string(), "interfaces": [interface], "ips": ips,
            "routes": [
                { "dst": "0.0.0.0/0", "gw": "10.77.0.1" }, { "dst": "::/0", "gw": "fd77::1" },
            ],
            "dns": { "nameservers": ["10.77.0.1", "fd77::1"] },
        });
        assert_eq!(result, expected, "{version}");
    }
    let request = request(ADD, &conf("1.0.0")).unwrap();
    let inner = result(&request, &attachment(true)).unwrap();
    assert_eq!(inner["routes"], json!([]));
    assert_eq!(inner["ips"][0], json!({ "address": "10.77.0.4/24", "interface": 0 }));
}

#[test]
fn a_result_stands_behind_that_of_plug_ins_before() {
    let mut conf = conf("1.0.0");
    conf["prevResult"] = json!({
        "cniVersion": "1.0.0", "interfaces": [{ "name": "lo", "sandbox": "/run/netns/a" }],
        "ips": [{ "address": "127.0.0.1/8", "interface": 0 }], "routes": null, "own": 1,
        "dns": { "nameservers": ["9.9.9.9"] },
    });
    let asked = request(ADD, &conf).unwrap();
    let merged = result(&asked, &attachment(false)).unwrap();
    assert_eq!(merged["interfaces"][1]["name"], "eth0");
    assert_eq!(merged["ips"][1]["interface"], 1);
    assert_eq!(merged["ips"][0]["interface"], 0);
    assert_eq!(merged["routes"].as_array().unwrap().len(), 2);
    assert_eq!(merged["dns"]["nameservers"], json!(["9.9.9.9", "10.77.0.1", "fd77::1"]));
    assert_eq!(merged["own"], 1);
    conf["prevResult"]["ips"] = json!(7);
    assert_eq!(request(ADD, &conf).unwrap_err().code, Code::Decode);
}

#[test]
fn name_servers_are_those_that_are_said() {
    let mut conf = conf("1.0.0");
    conf["dns"] = json!({ "nameservers": ["10.0.0.53"], "search": ["corp"], "domain": "corp" });
    let servers = |conf: &Value| {
        let asked = request(ADD, conf).unwrap();
        result(&asked, &attachment(false)).unwrap()["dns"].clone()
    };
    assert_eq!(servers(&conf), conf["dns"]);
    conf["runtimeConfig"] = json!({ "dns": { "servers": ["9.9.9.9"], "searches": ["a", "b"] } });
    let said = servers(&conf);
    assert_eq!((&said["nameservers"], &said["search"]), (&json!(["9.9.9.9"]), &json!(["a", "b"])));
}

#[test]
fn check_compares_with_what_was_answered() {
    let env = [&[("CNI_COMMAND", "CHECK")], &ADD[1..]].concat();
    let mut conf = conf("0.4.0");
    let asked = request(&env, &conf).unwrap();
    assert_eq!(asked.check(&attachment(false)), Ok(()));
    conf["prevResult"] = result(&request(ADD, &conf).unwrap(), &attachment(false)).unwrap();
    assert_eq!(request(&env, &conf).unwrap().check(&attachment(false)), Ok(()));
    conf["prevResult"]["ips"][1]["address"] = json!("fd77::9/64");
    let error = request(&env, &conf).unwrap().check(&attachment(false)).unwrap_err();
    assert!(error.message.contains("fd77::4/64"), "{error}");
    let elsewhere: Vec<(&str, &str)> = env
        .iter()
        .map(|(name, value)| (*name, if *name == "CNI_NETNS" { "/run/netns/b" } else { value }))
        .collect();
    conf.as_object_mut().unwrap().remove("prevResult");
    let error = request(&elsewhere, &conf).unwrap().check(&attachment(false)).unwrap_err();
    assert!(error.message.contains("/run/netns/b"), "{error}");
}

#[test]
fn what_cannot_be_done_is_refused_with_what_to_do() {
    let with = |key: &str, value: Value| {
        let mut conf = conf("1.0.0");
        conf[key] = value;
        conf
    };
    let runtime = |key: &str, value: Value| with("runtimeConfig", json!({ key: value }));
    let port = json!([{ "hostPort": 80, "containerPort": 80, "protocol": "tcp" }]);
    for (conf, code, words) in [
        (conf("0.2.0"), Code::Version, "0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (with("cniVersion", json!(null)), Code::Version, "0.1.0"),
        (with("netwrk", json!("app")), Code::Unsupported, "unknown key `netwrk`"),
        (with("network", json!(7)), Code::Config, "`network`"),
        (with("ipam", json!({ "type": "host-local" })), Code::Unsupported, "remove `ipam`"),
        (with("name", json!("")), Code::Config, "no name"),
        (runtime("portMappings", port), Code::Unsupported, "`portmap`"),
        (runtime("bandwidth", json!({ "ingressRate": 1 })), Code::Unsupported, "`bandwidth`"),
        (
            runtime("ipRanges", json!([[{ "subnet": "10.1.0.0/16" }]])),
            Code::Unsupported,
            "--ip-range",
        ),
        (runtime("ips", json!(["10.0.0"])), Code::Config, "10.0.0"),
        (runtime("ips", json!("10.0.0.1")), Code::Decode, "`ips`"),
        (runtime("mac", json!("02:00")), Code::Config, "02:00"),
        (runtime("aliases", json!({ "app": ["a b"] })), Code::Config, "a b"),
    ] {
        let error = request(ADD, &conf).unwrap_err();
        assert!(error.code == code && error.to_string().contains(words), "{conf}: {error:?}");
    }
    // What is nothing asks for nothing.
    for nothing in [json!([]), json!({}), json!(null)] {
        request(ADD, &runtime("portMappings", nothing.clone())).unwrap();
        request(ADD, &runtime("bandwidth", nothing)).unwrap();
    }
    for (missing, rest) in [("CNI_CONTAINERID", 1), ("CNI_NETNS", 2), ("CNI_IFNAME", 3)] {
        let env: Vec<_> =
            ADD.iter().enumerate().filter(|(at, _)| *at != rest).map(|(_, it)| *it).collect();
        let error = request(&env, &conf("1.0.0")).unwrap_err();
        assert!(error.code == Code::Environment && error.message.contains(missing), "{error}");
    }
    assert_eq!(request(&[], &conf("1.0.0")).unwrap_err().code, Code::Environment);
    let odd = [&[("CNI_COMMAND", "ADDD")], &ADD[1..]].concat();
    assert_eq!(request(&odd, &conf("1.0.0")).unwrap_err().code, Code::Environment);
    assert_eq!(Config::read(b"[]").unwrap_err().code, Code::Decode);
}

#[test]
fn a_container_can_always_end() {
    let env = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", ""),
        ("CNI_IFNAME", "eth0"),
    ];
    let mut conf = conf("0.3.1");
    conf["netwrk"] = json!(1);
    conf["runtimeConfig"] = json!({ "portMappings": [{}], "ips": 7 });
    conf["prevResult"] = json!("odd");
    let key = AttachmentKey {
        config: "app".to_owned(),
        container: "c1".to_owned(),
        ifname: "eth0".to_owned(),
    };
    assert_eq!(request(&env, &conf).unwrap().action, Action::Del(key.clone()));
    for version in [json!("9.9.9"), json!(7), Value::Null] {
        conf["cniVersion"] = version;
        assert_eq!(request(&env, &conf).unwrap().action, Action::Del(key.clone()));
    }
}

#[test]
fn what_no_answer_can_be_made_of_is_refused_before_anything_is_plugged_in() {
    for (key, odd) in [
        ("prevResult", json!({ "ips": 7 })),
        ("prevResult", json!({ "dns": { "search": "a" } })),
        ("runtimeConfig", json!({ "dns": [1] })),
    ] {
        let mut conf = conf("1.0.0");
        conf[key] = odd;
        assert!(request(ADD, &conf).is_err(), "{conf}");
    }
}

#[test]
fn verbs_have_their_first_version() {
    for (verb, version, is_there) in [
        ("CHECK", "0.3.1", false),
        ("CHECK", "0.4.0", true),
        ("STATUS", "1.0.0", false),
        ("STATUS", "1.1.0", true),
        ("GC", "1.0.0", false),
    ] {
        let env = [&[("CNI_COMMAND", verb)], &ADD[1..]].concat();
        let asked = request(&env, &conf(version));
        assert_eq!(asked.is_ok(), is_there, "{verb} {version}: {asked:?}");
    }
    // Without the list nothing would be valid.
    let error = request(&[("CNI_COMMAND", "GC")], &conf("1.1.0")).unwrap_err();
    assert!(error.message.contains("valid-attachments"), "{error}");
    let versions = versions(Some("1.0.0"));
    assert_eq!(versions["cniVersion"], "1.0.0");
    assert_eq!(versions["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}

#[test]
fn an_error_is_one_of_cni() {
    use crate::api::{ApiError, ErrorCode};
    let away = ApiError::new(
        ErrorCode::Unreachable,
        "no agent answers on /run/vxmesh/api.sock",
        "start one with `vxmesh agent`, or name its socket with --socket",
    );
    let error = CniError::from(away).json(Some("0.4.0"));
    assert_eq!((&error["cniVersion"], &error["code"]), (&json!("0.4.0"), &json!(11)));
    assert!(error["msg"].as_str().unwrap().contains("no agent answers"));
    let details = error["details"].as_str().unwrap();
    assert!(
        details.contains("`vxmesh agent`") && details.contains("the key `socket`"),
        "{details}"
    );
}
