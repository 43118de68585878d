//! What a sandbox has instead of networks: `none`, `host`, `sandbox:NAME`, `container:NAME`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::Name;

use super::{ApiError, Connection, ErrorCode};

/// Whose network namespace a sandbox has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Mode {
    /// One of its own with nothing but the loopback interface.
    None,
    /// The host's.
    Host,
    /// That of another sandbox of this host.
    Sandbox(Name),
    /// That of a container of this host's Docker engine, by its name or id.
    Container(String),
}

impl Mode {
    /// Whether a word means a mode and no network: no network can have this name.
    #[must_use]
    pub fn is_mode(word: &str) -> bool {
        matches!(word, "none" | "host") || word.contains(':')
    }

    /// The mode that `--network` means, if it means no networks.
    ///
    /// # Errors
    /// It means both, more than one mode, one that there is not, or says more of one than its name.
    pub fn of(networks: &[Connection]) -> Result<Option<Self>, ApiError> {
        let Some(named) = networks.iter().find(|it| Self::is_mode(&it.network)) else {
            return Ok(None);
        };
        let usage = |message: String, hint| ApiError::new(ErrorCode::Usage, message, hint);
        let mode = named.network.parse().map_err(|why| {
            usage(why, "write none, host, sandbox:NAME, container:NAME or the names of networks")
        })?;
        if networks.len() > 1 {
            return Err(usage(
                format!("`{mode}` cannot be combined with other networks"),
                "give it alone, or name networks only",
            ));
        }
        if *named != Connection::to(&named.network) {
            return Err(usage(
                format!("`--network {mode}` has no endpoint: --ip, --mac and --alias are of none"),
                "leave them out, or name a network",
            ));
        }
        Ok(Some(mode))
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "host" => Ok(Self::Host),
            Some(("sandbox", name)) => {
                name.parse().map(Self::Sandbox).map_err(|why| format!("`{text}`: {why}"))
            }
            Some(("container", name)) if is_container(name) => Ok(Self::Container(name.to_owned())),
            Some(("container", name)) => Err(format!("`{name}` is not the name of a container")),
            _ => Err(format!("there is no `--network {text}`")),
        }
    }
}

/// What Docker takes as the name or id of a container.
fn is_container(name: &str) -> bool {
    let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    (1..=255).contains(&name.len()) && name.bytes().all(known) && !name.starts_with(['.', '-', '_'])
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Sandbox(name) => write!(f, "sandbox:{name}"),
            Self::Container(name) => write!(f, "container:{name}"),
        }
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Option<Mode>, String> {
        let networks: Vec<Connection> = words.iter().map(|word| Connection::to(*word)).collect();
        Mode::of(&networks).map_err(|error| error.message)
    }

    #[test]
    fn words_are_modes_or_networks() {
        assert_eq!(of(&["blue", "green"]), Ok(None));
        for text in ["none", "host", "sandbox:web", "container:web_1.x"] {
            assert_eq!(of(&[text]).unwrap().unwrap().to_string(), text);
        }
        let wish = Connection { ifname: Some("eth5".into()), ..Connection::to("host") };
        assert!(Mode::of(&[wish]).is_err());
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for words in [
            ["host", "blue"].as_slice(),
            &["blue", "none"],
            &["none", "none"],
            &["sandbox:"],
            &["sandbox:A b"],
            &["container:"],
            &["container:../x"],
            &["service:web"],
            &["host:1"],
        ] {
            assert!(of(words).is_err(), "{words:?}");
        }
    }
}
