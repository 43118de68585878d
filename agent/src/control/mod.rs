//! The control plane: authenticated QUIC between the nodes of a mesh (docs/protocol.md, "Control").
//!
//! ```text
//! UDP 7760  QUIC v1 (RFC 9000), TLS 1.3 with certificates on both sides, ALPN vxmesh/1
//!   bidirectional stream : one request, one response           [`Control::request`]
//!   one-way stream       : gossip bytes or pushed records      [`Control::send_gossip`], [`Control::push`]
//!   datagram             : gossip bytes that fit
//! ```
//!
//! Two nodes share one connection, whoever dialed it. A caller without a certificate may join and
//! nothing else. This module moves messages; what they mean is the [`Service`]'s business, except
//! for joining and renewal, which it does itself. It refuses what is too large, too many at once,
//! or of another mesh.
//!
//! Reading order: [`tls`] (who is let in), [`link`] (one connection), [`peers`] (all of them),
//! [`outbox`] (what waits for one), [`admission`] (the issuer's side of joining), [`join`] (the
//! joiner's).

mod admission;
mod endpoint;
pub mod join;
pub mod knock;
mod limits;
mod link;
mod outbox;
mod peers;
mod probe;
mod tls;

#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;
use vxmesh_proto::{
    addr::{Name, NodeId},
    control::{CodecError, MemberInfo, Push, Refusal, Request, Response},
};

pub use self::{limits::JoinLimits, peers::PeerState};
use crate::{
    identity::{Credentials, IdentityError, Member},
    store::Store,
};

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node, as its certificate says.
    pub node: NodeId,
    /// Where its packets come from.
    pub addr: SocketAddr,
}

/// A node that has joined through this one.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// What its certificate says.
    pub member: Member,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Its name.
    pub name: Name,
    /// Where it will listen for control.
    pub addr: SocketAddr,
}

/// A member that has the name of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namesake {
    /// Who.
    pub node: NodeId,
    /// Whether it is up.
    pub up: bool,
}

/// What the rest of the agent does with messages. The calls without `async` must not block.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// A member asks. Joins and renewals do not come here.
    async fn handle(&self, from: Caller, request: Request) -> Response;

    /// Gossip bytes came from a member.
    fn handle_gossip(&self, from: Caller, bytes: Bytes);

    /// A member pushed signed records.
    fn handle_push(&self, from: Caller, push: Push);

    /// Members to tell a newcomer of; this node is added by the control plane.
    fn members(&self) -> Vec<MemberInfo>;

    /// Members that hold the CA's key, as far as is known.
    fn issuers(&self) -> Vec<NodeId> {
        Vec::new()
    }

    /// A member that has this name; one that is up, if there is any.
    fn namesake(&self, _name: &Name) -> Option<Namesake> {
        None
    }

    /// What a node is called in the log and to users.
    fn name_of(&self, node: NodeId) -> String {
        node.short()
    }

    /// This node let someone into the mesh.
    fn handle_newcomer(&self, newcomer: Newcomer);

    /// A connection with a member came to be; its certificate proves the keys.
    fn handle_connected(&self, member: &Member, certificate: &[u8], addr: SocketAddr);

    /// The last connection with a member ended.
    fn handle_disconnected(&self, node: NodeId);

    /// This node's certificate was renewed.
    fn handle_renewed(&self, certificate: &[u8]);

    /// The CA's word that this node, or the one at the other end, was removed: then nothing is
    /// served.
    fn removal(&self, _node: NodeId) -> Option<String> {
        None
    }

    /// A connection ended with the CA's word that somebody was removed; it is to be checked.
    fn handle_removal(&self, _from: NodeId, _word: String) {}
}

/// What the control plane needs to start.
#[derive(Debug)]
pub struct ControlConfig {
    /// Keys and membership.
    pub credentials: Arc<Credentials>,
    /// Where the credentials live; a renewed certificate goes there.
    pub data_dir: PathBuf,
    /// Where the join tokens are.
    pub store: Arc<Store>,
    /// Address to bind: unspecified means both IP versions where the host has them.
    pub bind: SocketAddr,
    /// Address that other nodes are told, where the user gave one.
    pub advertise: Option<IpAddr>,
    /// How many joins are served.
    pub join_limits: JoinLimits,
}

/// Why a message did not get through, or was answered with a refusal.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket cannot be had.
    #[error(
        "cannot open the control port {addr}: {source}; is another agent running? --control-port chooses another"
    )]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS refused our own keys or settings.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// No connection, and none came up in time.
    #[error("node {0} is not connected")]
    NotConnected(NodeId),
    /// No answer in time.
    #[error("node {0} did not answer within {1:?}")]
    Timeout(NodeId, Duration),
    /// The connection broke.
    #[error("the connection to node {node} broke: {reason}")]
    Broken {
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// The message is too large, or the answer is none.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The other side said no.
    #[error("refused: {}", .0.message)]
    Refused(Refusal),
    /// Keys or certificate could not be made or kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The control plane was stopped.
    #[error("the control plane was stopped")]
    Stopped,
}

/// A running control plane. Clones are handles to the same one.
#[derive(Clone)]
pub struct Control {
    inner: Arc<endpoint::Inner>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("node", &self.inner.node_id())
            .field("addr", &self.local_addr())
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Opens the port and serves it until [`Self::stop`]. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The port cannot be opened, or the credentials do not make a TLS identity.
    pub fn start(config: ControlConfig, service: Arc<dyn Service>) -> Result<Self, ControlError> {
        Ok(Self { inner: endpoint::Inner::start(config, service)? })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    /// Nodes to keep a connection with, and where they are. Others are dropped once idle.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = (NodeId, SocketAddr)>) {
        self.inner.peers().set_wanted(peers.into_iter().collect());
    }

    /// Asks a node and waits for its answer, and first for a connection if it is one of the peers.
    /// A refusal is an error.
    ///
    /// # Errors
    ///
    /// No connection, no answer in time, or a refusal.
    pub async fn request(
        &self,
        node: NodeId,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, ControlError> {
        self.inner.peers().request(node, request, timeout).await
    }

    /// Sends gossip bytes; what does not fit the queue pushes out the oldest, and without a
    /// connection everything is dropped. Whether it was queued.
    pub fn send_gossip(&self, node: NodeId, bytes: Bytes) -> bool {
        self.inner.peers().send_gossip(node, bytes)
    }

    /// Sends signed records to a peer, now or as soon as it is connected. Whether it was queued.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`]: send it in parts.
    pub fn push(&self, node: NodeId, push: &Push) -> Result<bool, ControlError> {
        self.inner.peers().push(node, push)
    }

    /// When this node's own certificate ends, in unix seconds; renewals are seen.
    #[must_use]
    pub fn certificate_end(&self) -> u64 {
        self.inner.certificate_end()
    }

    /// Every peer that is wanted or connected.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerState> {
        self.inner.peers().states()
    }

    /// The round trip time of the connection with a node, if there is one.
    #[must_use]
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.inner.peers().round_trip(node)
    }

    /// What the certificate of a connected peer says.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<Member> {
        self.inner.peers().member(node)
    }

    /// Ends the connections with a node; a peer that is still wanted is dialed again.
    pub fn disconnect(&self, node: NodeId) {
        self.inner.peers().disconnect(node);
    }

    /// Connects with the member at this address, whoever it is, unless there is a connection with
    /// it already.
    ///
    /// # Errors
    /// Nobody answers there, or no member of this mesh.
    pub async fn meet(&self, addr: SocketAddr) -> Result<NodeId, String> {
        let inner = &self.inner;
        if let Some(peer) = self.peers().iter().find(|it| it.connected && it.addr == Some(addr)) {
            return Ok(peer.node);
        }
        let (connection, member, der) = inner.dial_as(tls::ANY_MEMBER, addr).await?;
        let node = member.node_id;
        if node == inner.node_id() {
            connection.close(link::CLOSE_DISCONNECTED, b"this is me");
            return Err("it is this node itself".to_owned());
        }
        // It may have been found in another way meanwhile: then that connection stays.
        if self.peers().iter().any(|peer| peer.connected && peer.node == node) {
            connection.close(link::CLOSE_SUPERSEDED, b"superseded");
            return Ok(node);
        }
        let inner = Arc::clone(inner);
        tokio::spawn(async move { inner.peers().adopt(connection, true, member, &der).await });
        Ok(node)
    }

    /// Ends all connections and dials anew: this host is elsewhere, and what others send to its old
    /// address is lost.
    pub fn redial(&self) {
        self.inner.peers().redial();
    }

    /// Ends the connections with a node because it, or this one, was removed, and says so.
    pub fn expel(&self, node: NodeId, word: &str) {
        self.inner.peers().expel(node, word);
    }

    /// This node's current certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        self.inner.certificate()
    }

    /// Gets a certificate with a new lifetime from an issuer, keeps it and uses it for new
    /// connections.
    ///
    /// # Errors
    ///
    /// No issuer is connected, or it refuses.
    pub async fn renew(&self) -> Result<(), ControlError> {
        let issuer = self.inner.config().credentials.is_issuer();
        self.inner.renew(issuer).await
    }

    /// Makes this node's certificate say whether it holds the CA's key. It must hold it at this
    /// moment.
    ///
    /// # Errors
    ///
    /// The certificate cannot be made or kept.
    pub async fn certify(&self, issuer: bool) -> Result<(), ControlError> {
        self.inner.renew(issuer).await
    }

    /// Says goodbye to all peers and serves nobody any more; the port is free when the last handle
    /// is gone.
    pub async fn stop(&self) {
        self.inner.stop().await;
    }
}
