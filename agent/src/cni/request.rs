//! A call of a runtime ([`Request`]).

use std::path::PathBuf;

use serde::Deserialize;

use super::{
    args::Environment,
    config::Config,
    error::{CniError, Code},
    result::check_shapes,
    version::Version,
    wish::wish,
};
use crate::api::{AttachmentKey, AttachmentSpec, AttachmentsKept};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Say which versions are spoken.
    Version,
    /// Say whether containers can be added to this network.
    Status { network: String },
    /// Put a container into a network.
    Add(AttachmentSpec),
    /// See whether it is as it was.
    Check(AttachmentKey),
    /// Take it out.
    Del(AttachmentKey),
    /// Take all out that are not these.
    Gc(AttachmentsKept),
}

/// A call.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The version in which it is answered; `VERSION` is asked in any.
    pub(super) version: Version,
    pub(super) env: Environment,
    pub(super) config: Config,
    pub(crate) action: Action,
}

/// An attachment that is still wanted.
#[derive(Debug, Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// What the attachments of `GC` are listed under.
const VALID: &str = "cni.dev/valid-attachments";

impl Request {
    /// Understands a call.
    pub(crate) fn new(env: Environment, config: Config) -> Result<Self, CniError> {
        if env.command == "VERSION" {
            return Ok(Self { version: Version::V1_1_0, env, config, action: Action::Version });
        }
        // What says none is of a version before all that are spoken.
        let version = config.version().unwrap_or("0.1.0").parse();
        // Whatever is written there, a container can end.
        let version: Version =
            if env.command == "DEL" { version.unwrap_or(Version::V1_1_0) } else { version? };
        let since = match env.command.as_str() {
            "STATUS" | "GC" => Version::V1_1_0,
            "CHECK" => Version::V0_4_0,
            _ => Version::V0_3_1,
        };
        if version < since {
            return Err(CniError::new(
                Code::Version,
                format!("version {version} of CNI has no {}", env.command),
                format!("set cniVersion of the configuration to {since}"),
            ));
        }
        let action = match env.command.as_str() {
            "STATUS" => {
                config.check()?;
                Action::Status { network: config.network()?.to_owned() }
            }
            "ADD" => {
                check_shapes(&config)?;
                Action::Add(wish(&env, &config, key(&env, &config)?)?)
            }
            "CHECK" => {
                env.said("CNI_NETNS", &env.netns)?;
                Action::Check(key(&env, &config)?)
            }
            "DEL" => Action::Del(key(&env, &config)?),
            "GC" => Action::Gc(kept(&config)?),
            other => {
                return Err(CniError::new(
                    Code::Environment,
                    format!("CNI_COMMAND is `{other}`"),
                    "it must be ADD, DEL, CHECK, STATUS, GC or VERSION",
                ));
            }
        };
        Ok(Self { version, env, config, action })
    }

    /// The version that the caller said.
    pub(crate) fn asked(&self) -> Option<&str> {
        self.config.version()
    }

    /// Where the agent listens, if it is said.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        self.config.socket()
    }
}

fn key(env: &Environment, config: &Config) -> Result<AttachmentKey, CniError> {
    Ok(AttachmentKey {
        config: config.name()?.to_owned(),
        container: env.said("CNI_CONTAINERID", &env.container)?.to_owned(),
        ifname: env.said("CNI_IFNAME", &env.ifname)?.to_owned(),
    })
}

fn kept(config: &Config) -> Result<AttachmentsKept, CniError> {
    // Without the key nothing would be valid, and all of it be removed.
    if !config.has(VALID) {
        return Err(CniError::new(
            Code::Config,
            format!("GC without `{VALID}`"),
            "the runtime says which attachments are valid; see its log",
        ));
    }
    let valid: Vec<Valid> = config.list(VALID)?;
    let valid = valid.into_iter().map(|it| (it.container, it.ifname)).collect();
    Ok(AttachmentsKept { config: config.name()?.to_owned(), valid })
}
