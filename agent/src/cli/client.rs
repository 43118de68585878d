//! The client of the admin API: one HTTP/1.1 request with a JSON answer over the agent's unix
//! socket.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use crate::api::{ApiError, ErrorBody, ErrorCode};

/// A local agent accepts at once unless it hangs.
const CONNECT: Duration = Duration::from_secs(5);
/// The agent's own limits, such as for an address out of another node's block, are shorter.
const ANSWER: Duration = Duration::from_secs(60);
/// What only looks is answered out of memory, or after a few seconds of asking other nodes.
const LOOK: Duration = Duration::from_secs(15);
/// A table of a hundred thousand endpoints has some 30 MB.
const ANSWER_LEN: usize = 256 * 1024 * 1024;

/// Knows where the agent listens.
#[derive(Clone, Debug)]
pub(super) struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the agent at this socket.
    pub(super) const fn new(socket: PathBuf) -> Self {
        Self { socket, patience: ANSWER }
    }

    /// The same client, waiting this long for answers.
    pub(super) fn with_patience(&self, patience: Duration) -> Self {
        Self { socket: self.socket.clone(), patience }
    }

    /// The socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether an agent listens; an error if that cannot be known.
    pub(super) async fn finds_agent(&self) -> Result<bool, ApiError> {
        match self.connect().await {
            Ok(_) => Ok(true),
            Err(why) if is_absence(&why) => Ok(false),
            Err(why) => Err(self.unreachable(&why)),
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: impl AsRef<str>,
    ) -> Result<T, ApiError> {
        let patience = if self.patience == ANSWER { LOOK } else { self.patience };
        self.with_patience(patience).call(Method::GET, path.as_ref(), Bytes::new()).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(
        &self,
        path: impl AsRef<str>,
    ) -> Result<T, ApiError> {
        self.call(Method::DELETE, path.as_ref(), Bytes::new()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: impl AsRef<str>,
        spec: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(spec).map_err(|why| broken("cannot be written", &why))?;
        self.call(Method::POST, path.as_ref(), body.into()).await
    }

    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        path: impl AsRef<str>,
        spec: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(spec).map_err(|why| broken("cannot be written", &why))?;
        self.call(Method::PATCH, path.as_ref(), body.into()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ApiError> {
        let stream = self.connect().await.map_err(|why| self.unreachable(&why))?;
        let exchange = exchange(stream, method.clone(), path, body);
        let (status, body) = timeout(self.patience, exchange).await.map_err(|_elapsed| {
            let hint = if method == Method::GET {
                "it hangs or is stopped (`ps -o stat= -C vxmesh` shows T): look into its log, or restart it"
            } else {
                "look into its log; the call may still be carried out"
            };
            let socket = self.socket.display();
            let patience = self.patience.as_secs();
            let what = format!("the agent on {socket} did not answer within {patience} s");
            ApiError::new(ErrorCode::Unreachable, what, hint)
        })??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|why| broken("cannot be read", &why));
        }
        let error = serde_json::from_slice::<ErrorBody>(&body);
        Err(error
            .map_or_else(|why| broken(format_args!("has status {status}"), &why), |it| it.error))
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        timeout(CONNECT, UnixStream::connect(&self.socket)).await?
    }

    fn unreachable(&self, why: &io::Error) -> ApiError {
        let socket = self.socket.display();
        let (message, hint) = match why.kind() {
            ErrorKind::PermissionDenied => {
                (format!("permission denied on the agent's socket {socket}"), "run this as root")
            }
            _ if is_absence(why) => (
                format!("no agent answers on {socket}"),
                "start one with `vxmesh agent`, or name its socket with --socket",
            ),
            _ => (format!("cannot connect to the agent on {socket}: {why}"), "look into its log"),
        };
        ApiError::new(ErrorCode::Unreachable, message, hint)
    }
}

/// One segment of a path, percent-encoded (RFC 3986 section 2.1).
pub(super) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), ApiError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "vxmesh")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|why| broken("cannot be asked for", &why))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|why| broken_off(&why))?;
    let talk = async {
        let answer = sender.send_request(request).await.map_err(|why| broken_off(&why))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LEN).collect().await;
        let body = body.map_err(|why| broken("broke off", &why))?;
        Ok((status, body.to_bytes()))
    };
    let mut connection = std::pin::pin!(connection);
    let mut talk = std::pin::pin!(talk);
    // The connection may end first, which is no failure once the answer is whole.
    tokio::select! {
        answer = &mut talk => answer,
        ended = &mut connection => match ended {
            Ok(()) => talk.await,
            Err(why) => Err(broken_off(&why)),
        },
    }
}

fn is_absence(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// The agent was there and went away: its restart looks like this.
fn broken_off(why: &hyper::Error) -> ApiError {
    ApiError::new(
        ErrorCode::Unreachable,
        format!("the agent broke off the call: {why}"),
        "it may have stopped or restarted; see `vxmesh status` and its log",
    )
}

fn broken(what: impl fmt::Display, why: &impl fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::Failed,
        format!("the agent's answer {what}: {why}"),
        "the command line and the agent may be of different versions; see `vxmesh version` and `vxmesh status`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hold_nothing_that_a_path_understands() {
        for (text, encoded) in [
            ("web-1", "web-1"),
            ("02:00:00:00:00:01", "02:00:00:00:00:01"),
            ("a/b?c#d%e f", "a%2Fb%3Fc%23d%25e%20f"),
            ("\u{e4}", "%C3%A4"),
        ] {
            assert_eq!(segment(text), encoded);
        }
    }

    #[test]
    fn a_closed_door_is_not_an_absent_agent() {
        let client = Client::new("/run/x.sock".into());
        let denied = client.unreachable(&ErrorKind::PermissionDenied.into());
        assert_eq!(denied.message, "permission denied on the agent's socket /run/x.sock");
        assert_eq!(denied.hint, "run this as root");
        let absent = client.unreachable(&ErrorKind::ConnectionRefused.into());
        assert_eq!(absent.message, "no agent answers on /run/x.sock");
        assert_eq!((denied.code, absent.code), (ErrorCode::Unreachable, ErrorCode::Unreachable));
    }

    #[tokio::test]
    async fn an_agent_that_is_stopped_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        // The kernel accepts in its place, and nobody answers.
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(socket).with_patience(Duration::from_millis(50));
        let error = client.get::<serde_json::Value>("/v1/status").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unreachable);
        assert!(error.message.contains("did not answer within"), "{error:?}");
        assert!(error.hint.contains("stopped"), "{error:?}");
    }
}
