//! What the engine tells as it happens: `GET /events`, one line of JSON for each ([`Events`]).

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Incoming};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::engine::{DockerError, ask, broken};

/// With `{"event":["start","rename","health_status","kill","die","connect"]}`.
const PATH: &str = "/events?filters=%7B%22event%22%3A%5B%22start%22%2C%22rename%22%2C%22health_status%22%2C%22kill%22%2C%22die%22%2C%22connect%22%5D%7D";
/// Longest line that is read: a container has all its labels in it.
const LINE_LEN: usize = 1 << 20;

/// What the engine tells, until it ends.
pub(super) struct Events {
    body: Incoming,
    buffer: BytesMut,
    /// Whether the buffer begins within a line that was too long.
    is_cut: bool,
    _connection: JoinSet<()>,
}

impl Events {
    pub(super) async fn open() -> Result<Self, DockerError> {
        let (answer, connection) = ask(Method::GET, PATH, Bytes::new()).await?;
        if answer.status() != StatusCode::OK {
            return Err(DockerError::Engine(format!("it answers {}", answer.status())));
        }
        let body = answer.into_body();
        Ok(Self { body, buffer: BytesMut::new(), is_cut: false, _connection: connection })
    }

    /// The next one about a container; nothing once the engine ends.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, DockerError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let is_whole = !std::mem::take(&mut self.is_cut);
                if let Some(event) = Event::parse(&line).filter(|_| is_whole) {
                    return Ok(Some(event));
                }
            }
            if self.buffer.len() > LINE_LEN {
                self.buffer.clear();
                self.is_cut = true;
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// Something happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) container: String,
    pub(super) what: Happening,
}

/// What it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// It was sent this signal.
    Signalled(i32),
    /// It begins or ends.
    BegunOrEnded,
    /// Its name, its health or its networks changed.
    Changed,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidEvent {
    #[serde(rename = "Type")]
    of: String,
    action: String,
    actor: SaidActor,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidActor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    attributes: SaidAttributes,
}

#[derive(Default, Deserialize)]
struct SaidAttributes {
    #[serde(default)]
    container: String,
    #[serde(default)]
    signal: String,
}

impl Event {
    /// What a line says, if that is about a container.
    fn parse(line: &[u8]) -> Option<Self> {
        let SaidEvent { of, action, actor } = serde_json::from_slice(line).ok()?;
        let SaidActor { id, attributes } = actor;
        let (container, what) = match (of.as_str(), action.as_str()) {
            ("container", "kill") => {
                // A label of the container may stand in its place.
                let signal = attributes.signal.parse();
                (id, signal.map_or(Happening::Changed, Happening::Signalled))
            }
            ("container", "start" | "die") => (id, Happening::BegunOrEnded),
            ("container", _) => (id, Happening::Changed),
            ("network", _) => (attributes.container, Happening::Changed),
            _ => return None,
        };
        (!container.is_empty()).then_some(Self { container, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_to_containers_is_read() {
        let told = |of: &str, action: &str, attributes: &str| {
            let line = format!(
                r#"{{"status":"x","id":"c0ffee","Type":"{of}","Action":"{action}","Actor":{{"ID":"c0ffee","Attributes":{attributes}}},"scope":"local"}}"#
            );
            Event::parse(line.as_bytes()).map(|event| (event.container, event.what))
        };
        let own = |what| Some(("c0ffee".to_owned(), what));
        let kill = told("container", "kill", r#"{"image":"x","name":"web","signal":"15"}"#);
        assert_eq!(kill, own(Happening::Signalled(15)));
        assert_eq!(told("container", "die", "{}"), own(Happening::BegunOrEnded));
        let health = told("container", "health_status: healthy", r#"{"name":"web"}"#);
        assert_eq!(health, own(Happening::Changed));
        let connect = told("network", "connect", r#"{"container":"bee","name":"app"}"#);
        assert_eq!(connect, Some(("bee".to_owned(), Happening::Changed)));
        assert_eq!(told("network", "create", "{}"), None);
        assert_eq!(told("image", "pull", "{}"), None);
        for odd in [&b""[..], b"7", b"{}", br#"{"Type":"container","Action":"kill"}"#] {
            assert_eq!(Event::parse(odd), None);
        }
    }
}
