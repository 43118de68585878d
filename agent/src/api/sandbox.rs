//! Sandboxes and the ports that lead to them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use vxmesh_proto::{
    addr::{EndpointId, Name},
    restart::RestartPolicy,
    special_names::taken_for,
};

use super::{Connection, Mode, SandboxNetwork};
use crate::{
    firewall::{clients::Clients, rule::Protocol},
    gateway::publish::Publish,
};

/// `vxmesh sandbox ls|inspect`: a network namespace made for `vxmesh run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its name, unique on this node.
    pub name: Name,
    /// Path of its network namespace.
    pub netns: String,
    /// Process that runs its command, once there is one.
    pub pid: Option<u32>,
    /// `created`, `running`, `restarting` (the command ended and is started again), `unsupervised`
    /// (the command runs, and who waited for its end was killed), `exited`, `removing`.
    pub state: String,
    /// How the command ended, as a shell tells it; nothing if nobody saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<u8>,
    /// When it ended, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// The command.
    pub command: Vec<String>,
    /// Grows with each new sandbox of this node, by which it is told from another one of its name.
    #[serde(default)]
    pub incarnation: u64,
    /// Its endpoints, in the order of its networks.
    pub endpoints: Vec<EndpointId>,
    /// Its networks: the highest `gw_priority` first, then by name. So they have the default routes
    /// and are asked for names.
    #[serde(default)]
    pub networks: Vec<SandboxNetwork>,
    /// Directory of the `resolv.conf` and `hosts` that its programs see.
    #[serde(default)]
    pub etc: Option<String>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
    /// Whose namespace it has, where it is in no network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// What does not work of what it was made with, when it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Its hostname; the host's otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Free-form labels: of all its endpoints, also of those that it gets later.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether a supervisor stays with the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<Detached>,
    /// Where its supervisor keeps the command's output and end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<String>,
    /// How often the command was started again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
}

const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a sandbox needs whose command runs without a command line that waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detached {
    /// What is done when the command has ended.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Whether nothing of the sandbox stays when it has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
    /// The file that the output is appended to; one of the agent's otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How the command begins.
    #[serde(default, skip_serializing_if = "Begin::is_default")]
    pub begin: Begin,
}

/// How a command begins: what it sees beside its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Variables that are set, each `NAME=VALUE`; the others are those of who starts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The directory; that of who starts it otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The user, `NAME|UID[:GROUP|GID]`; that of who starts it otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl Begin {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A port of the host that leads to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address; all of them otherwise.
    pub ip: Option<IpAddr>,
    /// The host's port.
    pub port: u16,
    /// The sandbox's port.
    pub sandbox_port: u16,
    /// The endpoint, in the network that has the sandbox's default route; none while no network has
    /// it.
    pub endpoint: Option<EndpointId>,
    /// Whom it is for.
    #[serde(default, skip_serializing_if = "Clients::are_all")]
    pub clients: Clients,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => write!(f, "{}", SocketAddr::new(ip, self.port))?,
            None => write!(f, "*:{}", self.port)?,
        }
        write!(f, "->{}/{}", self.sandbox_port, self.protocol.as_str())?;
        if self.endpoint.is_none() { f.write_str(" (leads nowhere)") } else { Ok(()) }
    }
}

/// Makes a sandbox with an endpoint in each network; its command is started by the caller.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Its name; chosen otherwise.
    #[serde(default)]
    pub name: Option<Name>,
    /// The networks, and what it shall be in each.
    #[serde(default)]
    pub networks: Vec<Connection>,
    /// Instead of networks: whose namespace it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Name servers for names that are not the mesh's; those of its networks otherwise.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Names that get an address in its /etc/hosts.
    #[serde(default)]
    pub hosts: Vec<HostEntry>,
    /// Ports to publish: they lead through the networks that have the default routes.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// Whom these are for.
    #[serde(default, skip_serializing_if = "Clients::are_all")]
    pub clients: Clients,
    /// The command, for `sandbox ls`.
    pub command: Vec<String>,
    /// Its hostname; its name otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Hostname>,
    /// Free-form labels of all its endpoints.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The process that stays with the sandbox: while it runs, an agent that starts does not take
    /// the sandbox for a leftover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<u32>,
    /// For a command in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<Detached>,
}

/// What `hostname` says in a sandbox: a host's name that no program takes for something else, and
/// that the kernel holds (`__NEW_UTS_LEN`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

impl FromStr for Hostname {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_host(text) {
            return Err("use letters, digits and -, with dots between labels".into());
        }
        if text.len() > 63 {
            return Err("it has more than 63 characters".into());
        }
        match taken_for(text) {
            Some(what) => Err(format!("programs take it for {what}")),
            None => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<String> for Hostname {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|why| format!("`{text}` cannot be a hostname: {why}"))
    }
}

impl From<Hostname> for String {
    fn from(name: Hostname) -> Self {
        name.0
    }
}

fn is_host(name: &str) -> bool {
    let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(known);
    name.len() <= 253 && name.split('.').all(label)
}

/// A name and its address, written `NAME:IP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostEntry {
    /// The name: labels of letters, digits, `-` and `_` with dots between.
    pub name: String,
    /// The address.
    pub ip: IpAddr,
}

impl FromStr for HostEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, ip) = text.split_once(':').ok_or("write NAME:IP")?;
        if !is_host(name) {
            return Err(format!("`{name}` is not a host's name"));
        }
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        let ip = ip.parse().map_err(|_fault| format!("`{ip}` is not an IP address"))?;
        Ok(Self { name: name.into(), ip })
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.ip)
    }
}

impl TryFrom<String> for HostEntry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HostEntry> for String {
    fn from(entry: HostEntry) -> Self {
        entry.to_string()
    }
}

/// Tells the agent which processes a sandbox has.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxStarted {
    /// The command's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The process that stays with the sandbox from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<u32>,
    /// Which sandbox of this name is meant.
    pub incarnation: u64,
}

/// Tells the agent that a sandbox's command has ended for good.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxEnded {
    /// Which sandbox of this name is meant.
    pub incarnation: u64,
    /// How it ended, as a shell tells it.
    pub exit_status: Option<u8>,
    /// When, in Unix seconds.
    pub ended_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostnames_are_names_that_mean_the_sandbox() {
        for good in ["web", "web-1.example", &"a".repeat(63)] {
            assert!(good.parse::<Hostname>().is_ok(), "{good}");
        }
        for bad in ["", "10", "0x10", "localhost", "a\nb", "a b", "a..b", &"a".repeat(64)] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad:?}");
        }
    }
}
