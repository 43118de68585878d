//! Where this node is, and where others were reached ([`Location`]).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use vxmesh_proto::{addr::NodeId, control::MemberInfo};

use super::Member;
use crate::lock::lock;

/// Addresses of nodes on the underlay.
#[derive(Debug)]
pub(crate) struct Location {
    /// Those that others reach this node at.
    own: ArcSwap<Vec<IpAddr>>,
    /// Where nodes were reached before their own claims were known.
    pub(crate) known: Mutex<BTreeMap<NodeId, SocketAddr>>,
    /// Whether members are being looked for where the configuration says.
    seeking: AtomicBool,
}

impl Location {
    /// That of a node with these addresses, which knows no other yet.
    pub(crate) fn new(own: Vec<IpAddr>) -> Self {
        let (known, seeking) = (Mutex::default(), AtomicBool::new(false));
        Self { own: ArcSwap::from_pointee(own), known, seeking }
    }

    /// The addresses that others reach this node at.
    pub(crate) fn own(&self) -> Arc<Vec<IpAddr>> {
        self.own.load_full()
    }

    /// This node has other addresses.
    pub(crate) fn set_own(&self, own: Vec<IpAddr>) {
        self.own.store(Arc::new(own));
    }

    /// Where a node says that its control port is.
    pub(crate) fn of(&self, node: NodeId) -> Option<SocketAddr> {
        lock(&self.known).get(&node).copied()
    }

    /// Whether nobody looked for members yet; whoever gets that does it now.
    pub(crate) fn begin_to_seek(&self) -> bool {
        !self.seeking.swap(true, Ordering::AcqRel)
    }

    /// Members may be looked for again.
    pub(crate) fn end_to_seek(&self) {
        self.seeking.store(false, Ordering::Release);
    }
}

impl Member {
    /// Keeps where a node was reached, until its own claim says better.
    pub(crate) fn remember_addr(&self, node: NodeId, addr: SocketAddr) {
        if node != self.me {
            lock(&self.location.known).entry(node).or_insert(addr);
            self.keeper.kick();
        }
    }

    /// What a newcomer is told of the others.
    pub(crate) fn member_infos(&self) -> Vec<MemberInfo> {
        let addrs = lock(&self.location.known);
        let info = |(node, addr): (&NodeId, &SocketAddr)| MemberInfo {
            node: *node,
            certificate: Default::default(),
            addrs: vec![*addr],
        };
        addrs.iter().map(info).collect()
    }
}
