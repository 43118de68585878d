//! The admin API as a program in any language sees it, and its socket.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
    thread,
};

use crate::world::*;
use serde_json::{Value, json};
use vxmesh::{
    admin::{self, ApiSocket},
    api::{ErrorBody, ErrorCode},
};

/// One request by hand; gives status and body.
fn http(socket: &Path, head: &str, body: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    // A server that refuses the body may close before it has read all of it.
    stream.write_all(body).unwrap_or_default();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn every_refusal_is_a_json_error() {
    let agent = TestAgent::start();
    let spec = |extra: &str| format!("{{\"name\":\"x\"{extra}}}").into_bytes();
    for (head, body, status, word) in [
        ("GET /", Vec::new(), 404, "no `/`"),
        ("GET /v2/status", Vec::new(), 404, "/v2/status"),
        ("GET /v1/networks/", Vec::new(), 404, "/v1/networks/"),
        ("DELETE /v1/status", Vec::new(), 405, "DELETE"),
        ("PUT /v1/networks", Vec::new(), 405, "PUT"),
        ("POST /v1/networks", b"{".to_vec(), 400, "EOF"),
        ("POST /v1/networks", b"[]".to_vec(), 400, "invalid length"),
        ("POST /v1/networks", b"\xff\xfe".to_vec(), 400, "request is wrong"),
        ("POST /v1/networks", Vec::new(), 400, "missing field `name`"),
        ("POST /v1/networks", spec(",\"colour\":1"), 400, "unknown field `colour`"),
        ("POST /v1/networks", spec(",\"vni\":0"), 400, "VNI"),
        ("POST /v1/networks", spec(",\"mtu\":-1"), 400, "-1"),
        ("POST /v1/networks", vec![b' '; 1024 * 1024 + 1], 400, "length limit"),
        ("POST /v1/sandboxes/x/started", b"{\"pid\":\"1\"}".to_vec(), 400, "u32"),
        ("POST /v1/sandboxes/x/started", b"{\"pid\":1}".to_vec(), 400, "incarnation"),
        ("GET /v1/sandboxes?all=perhaps", Vec::new(), 400, "all"),
        ("GET /v1/networks/%ff", Vec::new(), 400, "UTF-8"),
        ("GET /v1/locate/nowhere", Vec::new(), 400, "nowhere"),
        ("GET /v1/locate/10.0.0.1?colour=1", Vec::new(), 400, "colour"),
        ("GET /v1/networks/nothing", Vec::new(), 404, "`nothing`"),
        ("GET /v1/networks/twin", Vec::new(), 409, "2 networks"),
    ] {
        let (got, body) = http(&agent.socket(), head, &body);
        let ErrorBody { error } = serde_json::from_str(&body).expect(&body);
        assert_eq!(got, status, "{head}: {body}");
        assert!(error.message.contains(word), "{head}: {body}");
        assert!(!error.hint.is_empty(), "{head}: {body}");
    }
    let changes = ["network_create", "sandbox_started"];
    assert!(!agent.world.calls().iter().any(|(call, _)| changes.contains(&call.as_str())));
}

#[test]
fn bodies_up_to_the_limit_are_read() {
    let agent = TestAgent::start();
    let mut body = br#"{"ttl_s":1}"#.to_vec();
    body.resize(1024 * 1024, b' ');
    assert_eq!(http(&agent.socket(), "POST /v1/tokens", &body).0, 200);
    assert_eq!(agent.world.calls()[0].1, json!({ "ttl_s": 1, "uses": null }));
}

#[test]
fn a_call_without_a_body_is_one_with_an_empty_object() {
    let agent = TestAgent::start();
    let (status, body) = http(&agent.socket(), "POST /v1/init", b"");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, answer), (200, serde_json::to_value(membership()).unwrap()));
}

#[test]
fn a_change_goes_on_when_its_client_goes_away() {
    let agent = TestAgent::start();
    agent.world.hold_creation();
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    let body = r#"{"networks":[{"network":"red"}],"command":["x"]}"#;
    let length = body.len();
    write!(
        stream,
        "POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    wait_for("the call", || !agent.world.calls().is_empty());
    drop(stream);
    // The server has seen the client go once it has served another one.
    assert_eq!(http(&agent.socket(), "GET /v1/status", b"").0, 200);
    assert!(agent.world.sandbox_list().is_empty());
    agent.world.release_creation();
    wait_for("the sandbox", || agent.world.sandbox_list().len() == 1);
}

#[test]
fn the_socket_is_for_its_owner_and_group_and_leaves_with_its_agent() {
    let mut agent = TestAgent::start();
    let mode = fs::metadata(agent.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    let run = agent.socket().parent().unwrap().to_owned();
    assert_eq!(fs::read_dir(&run).unwrap().count(), 1);
    agent.pause();
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
}

#[test]
fn a_dead_agents_socket_is_replaced() {
    let mut agent = TestAgent::start();
    agent.pause();
    drop(UnixListener::bind(agent.socket()).unwrap());
    assert!(UnixStream::connect(agent.socket()).is_err());
    agent.resume();
    assert_eq!(agent.say(&["status"]).status, 0);
}

#[test]
fn a_live_agents_socket_and_what_is_no_socket_are_refused() {
    let agent = TestAgent::start();
    let plain = file(agent.dir.path(), "plain", "text");
    let bind = |path: &Path| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ApiSocket::bind(path, 0o660)).unwrap_err()
    };
    for path in [agent.socket(), plain.clone().into()] {
        let error = bind(&path);
        assert_eq!(error.code, ErrorCode::Conflict);
        assert!(error.message.contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read_to_string(plain).unwrap(), "text");
    assert_eq!(agent.say(&["status"]).status, 0);

    let long = agent.dir.path().join("x".repeat(120));
    assert_eq!(bind(&long).code, ErrorCode::Failed);
    assert!(!long.exists());
}

#[test]
fn a_successors_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime.block_on(ApiSocket::bind(&path, 0o660)).unwrap();
    fs::remove_file(&path).unwrap();
    let second = runtime.block_on(ApiSocket::bind(&path, 0o660)).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn stopping_waits_for_calls_but_not_forever() {
    let mut agent = TestAgent::start();
    agent.world.hold_creation();
    let socket = agent.socket();
    let call = thread::spawn(move || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        write!(stream, "POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\n")
            .unwrap();
        write!(stream, "{:30}", r#"{"networks":[],"command":[]}"#).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer)
    });
    let world = Arc::clone(&agent.world);
    wait_for("the call", || !world.calls().is_empty());
    agent.pause();
    agent.world.release_creation();
    // The call was broken off: no answer, or a reset.
    assert!(call.join().unwrap().map_or(true, |answer| answer.is_empty()));
    drop(admin::router(world));
}
