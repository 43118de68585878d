//! Who is in the mesh, and how one comes in and goes.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::{Name, NodeId};

/// `vxmesh init`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitSpec {}

/// `vxmesh join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinSpec {
    /// The join token; without one, a member looks for its mesh there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Servers to try, `HOST[:PORT]`, in order.
    pub servers: Vec<String>,
}

/// What `init`, `join` and `leave` answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Membership {
    /// The mesh.
    pub mesh_id: NodeId,
    /// This node.
    pub node_id: NodeId,
    /// What the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `vxmesh leave`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveSpec {
    /// Also if the mesh's only CA key in reach goes with this node.
    #[serde(default)]
    pub force: bool,
    /// Also if sandboxes run here or endpoints are plugged in.
    #[serde(default)]
    pub yes: bool,
}

/// `vxmesh node update`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Whether it shall hold the mesh's CA key; as it is otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<bool>,
    /// Whether the backends of services on it get no new connections; as it is otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<bool>,
    /// The zone that it is in; in none if it is empty, as it is otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// A node that holds the mesh's CA key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuer {
    /// Who.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// `alive`, `dead`.
    pub state: String,
}

/// `vxmesh token create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSpec {
    /// Seconds until it expires.
    pub ttl_s: u64,
    /// Joins it admits; without limit otherwise.
    #[serde(default)]
    pub uses: Option<u32>,
}

/// The answer to `token create`: the only time that the token itself is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenCreated {
    /// Its id, for `token revoke`.
    pub id: String,
    /// The token.
    pub token: String,
    /// Unix seconds.
    pub expires_at: u64,
    /// Where the node that made it takes joins.
    #[serde(default)]
    pub servers: Vec<SocketAddr>,
    /// Who holds the CA's key and admits nodes with it.
    #[serde(default)]
    pub issuers: Vec<Issuer>,
    /// When the certificate of the node that made it ends, in unix seconds; it is renewed while an
    /// issuer is reachable.
    #[serde(default)]
    pub member_until: Option<u64>,
}

/// `vxmesh token ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// Joins left; nothing means no limit.
    pub uses_left: Option<u32>,
    /// `valid`, `expired`, `used`.
    pub state: String,
}
