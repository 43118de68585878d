//! The Docker engine of this host, asked over its socket: where the network namespace of a
//! container is, and who is in a network.
//!
//! ```text
//! GET /networks             -> 200 [{"Id","Name"}]
//! GET /networks/ID          -> 200 {"Containers":{"ID":{"Name","EndpointID"}}}
//! GET /events               -> 200 {"Type","Action","Actor":{"ID","Attributes"}}, as it happens
//! POST /networks/create     -> 201; DELETE /networks/ID -> 204
//! GET /containers/NAME/json -> 200 {"Name","State":{"Pid","Running"},"ResolvConfPath","Config":{"Hostname"}} | 404 {"message"}
//! ```
//!
//! Of the engine's API (docs.docker.com/reference/api/engine) only what every version has is used,
//! without a version in the path. Nothing is changed there but networks that it shall have
//! (`super::offer`).

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tokio::{
    net::UnixStream,
    task::JoinSet,
    time::{error::Elapsed, timeout},
};

/// Where the engine listens unless it is told otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// An engine that works answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// To make a network it calls its drivers, who may wait for the mesh.
const MAKES: Duration = Duration::from_secs(60);
/// The description of a container has some 10 KB.
const ANSWER_LEN: usize = 4 << 20;

/// Why a container's namespace is not known.
#[derive(Debug, Error)]
pub enum DockerError {
    /// Nobody listens.
    #[error("no Docker engine answers on {SOCKET}: {0}")]
    Absent(#[source] io::Error),
    /// The engine knows no such container.
    #[error("there is no container `{0}`")]
    NoContainer(String),
    /// It has no process.
    #[error("container `{0}` is not running")]
    NotRunning(String),
    /// It answers what cannot be used.
    #[error("the Docker engine: {0}")]
    Engine(String),
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its network namespace.
    pub netns: PathBuf,
    /// The directory of the `resolv.conf` and `hosts` that its programs see.
    pub etc: Option<PathBuf>,
    /// Its hostname.
    pub hostname: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: State,
    #[serde(default)]
    resolv_conf_path: PathBuf,
    #[serde(default)]
    config: ContainerConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerConfig {
    #[serde(default)]
    hostname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    pid: u32,
}

/// The running container of this name or id, which holds only what both have: letters, digits, `_`,
/// `.` and `-`.
///
/// # Errors
/// There is no engine, no such container, or it does not run.
pub async fn container(name: &str) -> Result<Container, DockerError> {
    let (status, body) = get(&format!("/containers/{name}/json")).await?;
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(DockerError::NoContainer(name.to_owned())),
        other => return Err(DockerError::Engine(format!("it answers {other}"))),
    }
    parse(name, &body)
}

/// What the engine says of one of its networks; nothing if it has none of this id.
pub(super) async fn describe_network(id: &str) -> Result<Option<Bytes>, DockerError> {
    match get(&format!("/networks/{id}")).await? {
        (StatusCode::OK, body) => Ok(Some(body)),
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (other, _) => Err(DockerError::Engine(format!("it answers {other}"))),
    }
}

fn parse(name: &str, body: &[u8]) -> Result<Container, DockerError> {
    let container: Inspected =
        serde_json::from_slice(body).map_err(|error| DockerError::Engine(error.to_string()))?;
    if !container.state.running || container.state.pid == 0 {
        return Err(DockerError::NotRunning(name.to_owned()));
    }
    let etc = container.resolv_conf_path.parent().map(Path::to_path_buf);
    let complete = |etc: &PathBuf| ["resolv.conf", "hosts"].iter().all(|it| etc.join(it).is_file());
    Ok(Container {
        netns: format!("/proc/{}/ns/net", container.state.pid).into(),
        etc: etc.filter(complete),
        hostname: Some(container.config.hostname).filter(|name| !name.is_empty()),
    })
}

/// The names of the engine's networks that a filter finds, by id. Its value holds letters, `-` and
/// `.` only.
pub(super) async fn describe_networks(
    filter: &str,
    value: &str,
) -> Result<BTreeMap<String, String>, DockerError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listed {
        id: String,
        name: String,
    }
    // {"driver":["vxmesh"]}
    let path = format!("/networks?filters=%7B%22{filter}%22%3A%5B%22{value}%22%5D%7D");
    let (status, body) = get(&path).await?;
    if status != StatusCode::OK {
        return Err(DockerError::Engine(format!("it answers {status}")));
    }
    let all: Vec<Listed> = serde_json::from_slice(&body).map_err(|error| broken(&error))?;
    Ok(all.into_iter().map(|network| (network.id, network.name)).collect())
}

/// What the engine says of a container; nothing if it has none of this id.
pub(super) async fn describe_container(id: &str) -> Result<Option<Bytes>, DockerError> {
    match get(&format!("/containers/{id}/json")).await? {
        (StatusCode::OK, body) => Ok(Some(body)),
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (other, _) => Err(DockerError::Engine(format!("it answers {other}"))),
    }
}

/// Has the engine make a network, as `docker network create` does.
pub(super) async fn make_network(asked: &Value) -> Result<(), DockerError> {
    let body = Bytes::from(asked.to_string());
    changed(timeout(MAKES, send(Method::POST, "/networks/create", body)).await)
}

/// Has the engine remove one that no container is in.
pub(super) async fn remove_network(id: &str) -> Result<(), DockerError> {
    let path = format!("/networks/{id}");
    changed(timeout(MAKES, send(Method::DELETE, &path, Bytes::new())).await)
}

/// Whether the engine did what it was asked; otherwise why not, in its words.
fn changed(
    answer: Result<Result<(StatusCode, Bytes), DockerError>, Elapsed>,
) -> Result<(), DockerError> {
    #[derive(Default, Deserialize)]
    struct Refusal {
        #[serde(default)]
        message: String,
    }
    match answer.unwrap_or_else(|_elapsed| Err(silent()))? {
        (status, _) if status.is_success() => Ok(()),
        (status, body) => {
            let said: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            let why = if said.message.is_empty() { status.to_string() } else { said.message };
            Err(DockerError::Engine(why))
        }
    }
}

async fn get(path: &str) -> Result<(StatusCode, Bytes), DockerError> {
    let answer = timeout(PATIENCE, send(Method::GET, path, Bytes::new())).await;
    answer.unwrap_or_else(|_elapsed| Err(silent()))
}

fn silent() -> DockerError {
    DockerError::Engine("it does not answer".to_owned())
}

async fn send(method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), DockerError> {
    let (answer, _connection) = ask(method, path, body).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_LEN).collect().await;
    Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
}

/// The beginning of an answer. The rest comes as long as the connection is kept.
pub(super) async fn ask(
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(Response<Incoming>, JoinSet<()>), DockerError> {
    let stream = UnixStream::connect(SOCKET).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => {
            DockerError::Absent(error)
        }
        _ => broken(&error),
    })?;
    let request = Request::builder().method(method).uri(path).header(header::HOST, "docker");
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
    let request = request.map_err(|error| broken(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let mut running = JoinSet::new();
    // Whoever waits for the answer is told why it ends.
    running.spawn(connection.map(drop));
    let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
    Ok((answer, running))
}

pub(super) fn broken(error: &dyn std::fmt::Display) -> DockerError {
    DockerError::Engine(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_container_has_a_namespace() {
        let running = br#"{"Id":"x","State":{"Status":"running","Running":true,"Pid":42},"Config":{"Hostname":"box"},"ResolvConfPath":"/nowhere/resolv.conf"}"#;
        let container = parse("web", running).unwrap();
        assert_eq!(container.netns, Path::new("/proc/42/ns/net"));
        assert_eq!(container.etc, None, "files that are not there");
        assert_eq!(container.hostname.as_deref(), Some("box"));
        let stopped = br#"{"State":{"Running":false,"Pid":0},"ResolvConfPath":""}"#;
        assert!(matches!(parse("web", stopped), Err(DockerError::NotRunning(_))));
        for odd in [b"".as_slice(), b"[]", b"{}", br#"{"State":7}"#] {
            assert!(matches!(parse("web", odd), Err(DockerError::Engine(_))));
        }
    }
}
