//! Flows to services as `vxmesh flows` shows them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::{EndpointId, Name, NetworkId};

/// How many flows are shown if nobody says how many.
pub const FLOWS_SHOWN: usize = 1000;
/// How many are shown at most.
pub const MOST_FLOWS_SHOWN: usize = 10_000;

/// `vxmesh flows`: a flow that the node that answers remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The network that it is in.
    pub network: NetworkId,
    /// The service that has the VIP; nothing if none has it any more, or if the client asks the
    /// backend itself and only has another port there.
    pub service: Option<Name>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom the client asked.
    pub vip: SocketAddr,
    /// The endpoint that answers.
    pub endpoint: EndpointId,
    /// Its name, while it is known.
    pub name: Option<Name>,
    /// Where it is asked.
    pub backend: SocketAddr,
    /// The port that the backend sees at the client, where it is not the client's own.
    pub seen_port: Option<u16>,
    /// `half-open`: the client spoke, and nobody has answered; `answered`: the backend accepts a
    /// connection, and the client has not confirmed it; `established`; `closing`: one end has
    /// nothing more to say; `closed`: its place is another flow's as soon as one needs it.
    pub state: String,
    /// Seconds since its last packet.
    pub idle_s: u64,
}

/// The flows that were asked for, those that were used last first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// As many of them as were to be shown.
    pub flows: Vec<Flow>,
    /// How many there are.
    pub total: u64,
}

/// Which flows are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// Those of this service only: id, beginning of an id, or name.
    #[serde(default)]
    pub service: Option<String>,
    /// Those of this network only: id, beginning of an id, or name.
    #[serde(default)]
    pub network: Option<String>,
    /// How many at most.
    #[serde(default)]
    pub limit: Option<usize>,
}
