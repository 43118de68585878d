//! The network configuration, as the runtime hands it to the plug-in ([`Config`]).

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::{CniError, Code};

/// Keys that the specification has, and those that are our own. Runtimes put others in under
/// `cni.dev/`.
const KEYS: &[&str] = &[
    "args",
    "capabilities",
    "cniVersion",
    "dns",
    "name",
    "network",
    "prevResult",
    "runtimeConfig",
    "socket",
    "type",
];
/// Those that somebody writes down.
const OWN: &str = "network, socket, dns and capabilities";

/// A network configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config(Map<String, Value>);

impl Config {
    /// Reads one.
    pub(crate) fn read(text: &[u8]) -> Result<Self, CniError> {
        serde_json::from_slice(text).map(Self).map_err(|why| {
            CniError::new(
                Code::Decode,
                format!("the network configuration cannot be read: {why}"),
                "the runtime hands it over on stdin: look at its files, mostly in /etc/cni/net.d",
            )
        })
    }

    /// A text under a key, if there is one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// The version that is spoken, if one is said.
    pub(crate) fn version(&self) -> Option<&str> {
        self.text("cniVersion")
    }

    /// Its name.
    pub(super) fn name(&self) -> Result<&str, CniError> {
        self.text("name").ok_or_else(|| {
            CniError::new(
                Code::Config,
                "the network configuration has no name",
                "set its key `name`",
            )
        })
    }

    /// Name or id of the network of the mesh.
    pub(super) fn network(&self) -> Result<&str, CniError> {
        self.text("network").map_or_else(|| self.name(), Ok)
    }

    /// Where the agent listens, if it is said.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        self.text("socket").map(PathBuf::from)
    }

    /// What other plug-ins of the list made before this one.
    pub(super) fn previous(&self) -> Option<&Map<String, Value>> {
        self.0.get("prevResult").and_then(Value::as_object)
    }

    /// The list under a key, or else an error.
    pub(super) fn list<T: DeserializeOwned>(&self, key: &str) -> Result<Vec<T>, CniError> {
        self.0.get(key).map_or_else(|| Ok(Vec::new()), |value| decode(key, value))
    }

    /// Whether there is such a key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_null())
    }

    /// What is under a key as an object.
    pub(super) fn object(&self, key: &str) -> Option<&Map<String, Value>> {
        self.0.get(key).and_then(Value::as_object)
    }

    /// What the runtime says under one of its capabilities, unless that is nothing.
    pub(super) fn runtime<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CniError> {
        let value = self.object("runtimeConfig").and_then(|all| all.get(key));
        value.filter(|value| !is_nothing(value)).map(|value| decode(key, value)).transpose()
    }

    /// Refuses what would be overlooked.
    pub(super) fn check(&self) -> Result<(), CniError> {
        if self.0.get("ipam").is_some_and(|ipam| !is_nothing(ipam)) {
            return Err(CniError::new(
                Code::Unsupported,
                "the network configuration has the key `ipam`, and vxmesh gives addresses itself",
                "remove `ipam`; `vxmesh network create --subnet` and `--ip-range` say which addresses",
            ));
        }
        for key in ["network", "socket"] {
            if self.0.get(key).is_some_and(|value| !value.is_string()) {
                return Err(CniError::new(
                    Code::Config,
                    format!("`{key}` of the network configuration is no text"),
                    "write it in quotes, or leave it out",
                ));
            }
        }
        let is_known = |key: &&String| {
            KEYS.contains(&key.as_str()) || key.starts_with("cni.dev/") || *key == "ipam"
        };
        match self.0.keys().find(|key| !is_known(key)) {
            Some(key) => Err(CniError::new(
                Code::Unsupported,
                format!("the network configuration has an unknown key `{key}`"),
                format!("remove it; the keys of this plug-in are {OWN}"),
            )),
            None => Ok(()),
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn decode<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T, CniError> {
    T::deserialize(value).map_err(|why| {
        CniError::new(
            Code::Decode,
            format!("`{key}` of the network configuration cannot be read: {why}"),
            "write it as CNI's conventions have it",
        )
    })
}

/// An address, which may have the length of a prefix behind it.
pub(super) fn address(text: &str) -> Result<IpAddr, CniError> {
    let ip = text.parse().or_else(|_form| text.parse::<IpNet>().map(|ip| ip.addr()));
    ip.map_err(|_form| {
        CniError::new(
            Code::Config,
            format!("`{text}` is no IP address"),
            "write it like 10.0.0.5, 10.0.0.5/24 or fd00::5",
        )
    })
}
