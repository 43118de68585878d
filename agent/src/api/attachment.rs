//! What container runtimes attach through the Container Network Interface, and ask of it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::{Alias, MacAddr, Name};

use super::{Endpoint, Network};

/// By what a runtime names an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentKey {
    /// The name of the runtime's network configuration.
    pub config: String,
    /// The runtime's id of the container.
    pub container: String,
    /// The interface in the container.
    pub ifname: String,
}

/// A container that shall be in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentSpec {
    /// What it is called afterwards: the same key again has the same answer.
    pub key: AttachmentKey,
    /// Name or id of the network.
    pub network: String,
    /// Absolute path of the container's network namespace.
    pub netns: String,
    /// The names that the endpoint may have, the best first; `ep-` and its short id if it can have
    /// none of them.
    #[serde(default)]
    pub names: Vec<Name>,
    /// Other names of it.
    #[serde(default)]
    pub aliases: Vec<Alias>,
    /// Wanted addresses, one per IP version at most; the others are chosen.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Wanted MAC address.
    #[serde(default)]
    pub mac: Option<MacAddr>,
}

/// A container that is in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// The network.
    pub network: Network,
}

/// All attachments of a network configuration that are still wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentsKept {
    /// The name of the runtime's network configuration.
    pub config: String,
    /// Container and interface of each.
    pub valid: Vec<(String, String)>,
}
