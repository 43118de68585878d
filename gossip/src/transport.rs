//! Chitchat's way out, and the only way in: each peer is a socket pair on the loopback interface,
//! and what comes out of it goes through a [`Pipe`] to the authenticated peer.
//!
//! ```text
//! chitchat - UdpTransport 127.0.0.1:x <-> 127.0.0.1:y connected to x, one per peer - Pipe - QUIC
//! ```
//!
//! Chitchat keeps its codec to itself: only its own `UdpTransport` turns envelopes into bytes. The
//! sockets here give them to us by its public interface alone. Datagrams to x from anywhere but the
//! sockets of peers are dropped. Nothing here leaves the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::{
    ChitchatEnvelope,
    transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpTransport},
};
use tokio::task::AbortHandle;
use vxmesh_proto::addr::NodeId;

use crate::{address, limits::MESSAGE_LEN};

/// The way to other agents: authenticated, one message at a time, allowed to lose some.
pub trait Pipe: Send + Sync + 'static {
    /// Sends at most [`MESSAGE_LEN`] bytes to a node, or drops them; never waits.
    fn send(&self, to: NodeId, bytes: Bytes);
}

/// The loopback sockets of one run of chitchat.
pub struct Loopback {
    me: NodeId,
    pipe: Arc<dyn Pipe>,
    inner: OnceLock<SocketAddr>,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    by_node: BTreeMap<NodeId, Link>,
    by_addr: BTreeMap<SocketAddr, NodeId>,
}

struct Link {
    socket: UdpSocket,
    addr: SocketAddr,
    reader: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl fmt::Debug for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loopback").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Loopback {
    /// Sockets of this node that lead into this pipe.
    #[must_use]
    pub fn new(me: NodeId, pipe: Arc<dyn Pipe>) -> Arc<Self> {
        Arc::new(Self { me, pipe, inner: OnceLock::new(), links: Mutex::default() })
    }

    /// Gives chitchat a message of a peer; `guard` has judged it.
    ///
    /// # Errors
    /// Its queue is full, or there are no sockets left. The message is lost, as gossip may be.
    pub fn deliver(self: &Arc<Self>, from: NodeId, bytes: &[u8]) -> io::Result<()> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        self.link(&mut links, from)?.socket.send(bytes).map(drop)
    }

    /// Closes the sockets of nodes that are no longer members.
    pub fn retain(&self, members: &BTreeSet<NodeId>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.by_node.retain(|node, _link| members.contains(node));
        links.by_addr.retain(|_addr, node| members.contains(node));
    }

    fn addr_of(self: &Arc<Self>, node: NodeId) -> io::Result<SocketAddr> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.link(&mut links, node)?.addr)
    }

    fn node_at(&self, addr: SocketAddr) -> Option<NodeId> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.by_addr.get(&addr).copied()
    }

    fn link<'a>(self: &Arc<Self>, links: &'a mut Links, node: NodeId) -> io::Result<&'a Link> {
        use std::collections::btree_map::Entry::{Occupied, Vacant};
        match links.by_node.entry(node) {
            Occupied(link) => Ok(link.into_mut()),
            Vacant(vacant) => {
                let link = vacant.insert(self.open_link(node)?);
                links.by_addr.insert(link.addr, node);
                Ok(link)
            }
        }
    }

    fn open_link(self: &Arc<Self>, node: NodeId) -> io::Result<Link> {
        let inner = *self.inner.get().ok_or(io::ErrorKind::NotConnected)?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(inner)?;
        socket.set_nonblocking(true)?;
        let reading = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        let reader = tokio::spawn(read_link(reading, node, Arc::clone(&self.pipe))).abort_handle();
        Ok(Link { addr: socket.local_addr()?, socket, reader })
    }
}

async fn read_link(socket: tokio::net::UdpSocket, node: NodeId, pipe: Arc<dyn Pipe>) {
    while socket.readable().await.is_ok() {
        // Held only while there is something to read: there may be hundreds of peers.
        let mut buffer = vec![0; MESSAGE_LEN];
        // An error is a datagram that chitchat refused to take earlier (ECONNREFUSED), or a wrong
        // alarm.
        if let Ok(len) = socket.try_recv(&mut buffer) {
            buffer.truncate(len);
            buffer.shrink_to_fit();
            pipe.send(node, Bytes::from(buffer));
        }
    }
}

/// The transport that chitchat opens.
#[derive(Debug)]
pub struct LoopbackTransport(pub Arc<Loopback>);

#[async_trait]
impl Transport for LoopbackTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let inner = UdpTransport.open((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let addr = inner.local_addr()?;
        if self.0.inner.set(addr).is_err() {
            return Err(io::Error::from(io::ErrorKind::AddrInUse).into());
        }
        Ok(Box::new(LoopbackSocket { inner, loopback: Arc::clone(&self.0) }))
    }
}

struct LoopbackSocket {
    inner: Box<dyn Socket>,
    loopback: Arc<Loopback>,
}

#[async_trait]
impl Socket for LoopbackSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        self.inner.local_addr()
    }

    async fn send(
        &mut self,
        to: SocketAddr,
        envelope: ChitchatEnvelope,
    ) -> anyhow::Result<SendOutcome> {
        let node =
            address::to_node(to).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        // Chitchat takes an earlier life of this node for a peer, and its address is ours.
        if node == self.loopback.me {
            return Ok(SendOutcome { num_bytes_sent: 0 });
        }
        let addr = self.loopback.addr_of(node)?;
        self.inner.send(addr, envelope).await
    }

    // Cancel-safe, as chitchat demands: nothing happens between the inner call and the return.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            let outcome = self.inner.recv().await?;
            if let Some(node) = self.loopback.node_at(outcome.from_addr) {
                return Ok(RecvOutcome { from_addr: address::of_node(node), ..outcome });
            }
        }
    }
}
