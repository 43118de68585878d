//! The other nodes as this one reaches them: their keys from certificates, their addresses from
//! their claims, the session and the control connection that follow from both.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;
use vxmesh_proto::{
    addr::NodeId,
    limits::{DEFAULT_MTU, MAX_MTU},
    object::{Certifier, Content, ObjectSet},
    record::NodeClaim,
    session::{Peer, PeerConfig},
};

use crate::{
    api,
    datapath::Dataplane,
    identity::certificate::{self, Member},
};

/// Inner packets grow by this much on an IPv4 underlay, by 20 bytes more on IPv6
/// (docs/protocol.md).
const OVERHEAD_V4: u16 = 82;
const OVERHEAD_V6: u16 = 102;

/// Checks certificates against the mesh CA. Their time does not matter here: what a member signed
/// stays signed.
#[derive(Debug)]
pub(crate) struct Ca(pub(crate) Vec<u8>);

impl Ca {
    pub(crate) fn member(&self, certificate: &[u8]) -> Option<Member> {
        certificate::verify_at_its_own_time(certificate, &self.0).ok()
    }
}

impl Certifier for Ca {
    fn certified_key(&self, certificate: &[u8]) -> Option<[u8; 32]> {
        self.member(certificate).map(|member| member.ed25519_public)
    }

    fn ca_key(&self) -> Option<[u8; 32]> {
        certificate::authority_key(&self.0).ok()
    }
}

/// Members other than `me` with their certificates, those that left or were removed not among them;
/// none if `me` was.
pub(crate) fn members(objects: &ObjectSet, ca: &Ca, me: NodeId) -> BTreeMap<NodeId, Member> {
    if objects.is_removed(me) {
        return BTreeMap::new();
    }
    let open = objects.objects().filter(|object| !object.closed() && object.author() != me);
    let open = open.filter(|object| !objects.is_removed(object.author()));
    open.filter_map(|object| match object.content() {
        Content::Member(member) => Some((object.author(), ca.member(&member.certificate)?)),
        _ => None,
    })
    .collect()
}

/// Members that are gone for good: they left, or were removed.
pub(crate) fn left_members(objects: &ObjectSet) -> BTreeSet<NodeId> {
    let closed = objects.objects().filter(|object| object.closed());
    let left = closed.filter(|object| matches!(object.content(), Content::Member(_)));
    let removed = objects.removals().map(|(removal, _object)| removal.node);
    left.map(|object| object.author()).chain(removed).collect()
}

/// The first address of a family that this node has, too.
pub(crate) fn reachable(addrs: &[SocketAddr], own: &[IpAddr]) -> Option<SocketAddr> {
    let same_family = |addr: &&SocketAddr| own.iter().any(|own| own.is_ipv4() == addr.is_ipv4());
    addrs.iter().find(same_family).copied()
}

struct Known {
    peer: Arc<Peer>,
    config: PeerConfig,
}

/// The peers of the data path.
#[derive(Default)]
pub(crate) struct Peers {
    known: Mutex<BTreeMap<NodeId, Known>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("count", &self.lock().len()).finish()
    }
}

impl Peers {
    /// The handle of a peer.
    pub(crate) fn get(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.lock().get(&node).map(|known| Arc::clone(&known.peer))
    }

    /// Whether an authenticated packet of it came within this time.
    pub(crate) fn heard_within(&self, node: NodeId, time: Duration) -> bool {
        let heard = self.get(node).and_then(|peer| peer.last_received());
        heard.is_some_and(|at| at.elapsed() < time)
    }

    /// Brings the data path's peers in step with members and their claims.
    pub(crate) async fn follow(
        &self,
        plane: &Dataplane,
        members: &BTreeMap<NodeId, Member>,
        claims: &BTreeMap<NodeId, NodeClaim>,
        own: &[IpAddr],
    ) {
        let gone: Vec<NodeId> =
            self.lock().keys().filter(|node| !members.contains_key(node)).copied().collect();
        for node in gone {
            plane.remove_peer(node).await;
            self.lock().remove(&node);
        }
        for (node, member) in members {
            let addr = claims.get(node).and_then(|claim| reachable(&claim.vteps, own));
            let noise_public = member.noise_public;
            let config = PeerConfig { id: *node, noise_public, addr, aes: member.aes };
            if self.lock().get(node).is_some_and(|known| same(&known.config, &config)) {
                continue;
            }
            match plane.set_peer(config.clone()).await {
                Ok(peer) => {
                    self.lock().insert(*node, Known { peer, config });
                }
                Err(error) => warn!(node = %node.short(), %error, "node cannot be a peer"),
            }
        }
    }

    /// The rows of `peer ls`, with the round trips of the connections that there are.
    pub(crate) fn rows(&self, rtts: &BTreeMap<NodeId, Duration>) -> Vec<api::Peer> {
        let now = Instant::now();
        let row = |(node, known): (&NodeId, &Known)| {
            let peer = &known.peer;
            let addr = peer.addr();
            let rtt = rtts.get(node).copied().or_else(|| peer.rtt());
            api::Peer {
                node_id: *node,
                addr,
                state: peer.state(now).as_str().to_owned(),
                cipher: peer.cipher(now).map(|suite| suite.as_str().to_owned()),
                rtt_us: rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(api::MOST)),
                mtu: addr.map_or(DEFAULT_MTU, path_mtu),
                key_age_s: peer.key_age(now).map(|age| age.as_secs()),
                rx_bytes: peer.rx_bytes(),
                tx_bytes: peer.tx_bytes(),
            }
        };
        self.lock().iter().map(row).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same(a: &PeerConfig, b: &PeerConfig) -> bool {
    (a.id, a.noise_public, a.addr, a.aes) == (b.id, b.noise_public, b.addr, b.aes)
}

/// What the kernel's route to an address carries, less what the tunnel adds.
fn path_mtu(addr: SocketAddr) -> u16 {
    let overhead = if addr.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
    crate::netlink::route_mtu(addr)
        .map_or(DEFAULT_MTU, |mtu| mtu.saturating_sub(overhead).min(MAX_MTU))
}
