//! What the environment of a call says: `CNI_*`.

use std::net::IpAddr;

use vxmesh_proto::addr::MacAddr;

use super::{
    config::address,
    error::{CniError, Code},
};

/// The environment of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(super) command: String,
    pub(super) container: String,
    pub(super) netns: String,
    pub(super) ifname: String,
    pub(super) args: Vec<(String, String)>,
}

impl Environment {
    /// Reads it out of variables.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let command = variable("CNI_COMMAND").filter(|command| !command.is_empty());
        let Some(command) = command else {
            return Err(CniError::new(
                Code::Environment,
                "CNI_COMMAND is not set",
                "this is a plug-in that container runtimes call; see docs/cni.md",
            ));
        };
        let text = |name| variable(name).unwrap_or_default();
        let args = text("CNI_ARGS");
        let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        Ok(Self {
            command,
            container: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            ifname: text("CNI_IFNAME"),
            args: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        })
    }

    /// What must be said, or else which variable is missing.
    pub(super) fn said<'a>(&self, name: &str, value: &'a str) -> Result<&'a str, CniError> {
        if !value.is_empty() {
            return Ok(value);
        }
        Err(CniError::new(
            Code::Environment,
            format!("{name} is not set for {}", self.command),
            "this is the runtime's to say; see its log",
        ))
    }

    /// What CNI_ARGS say under a key.
    pub(super) fn arg(&self, key: &str) -> Option<&str> {
        let mut args = self.args.iter();
        args.find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    /// The addresses of `IP=`, which may be several.
    pub(super) fn ips(&self) -> Result<Vec<IpAddr>, CniError> {
        let ips = self.arg("IP").into_iter().flat_map(|ips| ips.split(','));
        ips.filter(|ip| !ip.is_empty()).map(address).collect()
    }

    /// The address of `MAC=`.
    pub(super) fn mac(&self) -> Result<Option<MacAddr>, CniError> {
        let Some(text) = self.arg("MAC") else { return Ok(None) };
        text.parse().map(Some).map_err(|why| {
            CniError::new(Code::Environment, format!("MAC={text}: {why}"), "give another MAC")
        })
    }
}
