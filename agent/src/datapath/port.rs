//! One network's place in the data path: its snapshot, its TAP, its name in the drop counters.

use std::sync::Arc;

use arc_swap::ArcSwap;
use vxmesh_proto::{
    addr::{EndpointId, NetworkId, NodeId, Vni},
    path::plain::PlainTable,
    reason::DropReason,
    session::Peer,
    tables::NetworkTable,
};

use super::{
    device::Device,
    drops::{DropKey, Drops},
};

/// The snapshot of an encrypted network that workers read.
pub type Table = NetworkTable<Arc<Peer>>;

/// A network that has a TAP on this host. What may be done with its frames is a matter of its
/// snapshot's type (I10).
#[derive(Debug)]
pub struct Port<T = Table> {
    id: NetworkId,
    vni: Vni,
    table: ArcSwap<T>,
    device: Box<dyn Device>,
}

/// A plain network that has a TAP on this host.
pub type PlainPort = Port<PlainTable>;

impl Port {
    /// An encrypted network with this first snapshot.
    #[must_use]
    pub fn new(table: Arc<Table>, device: Box<dyn Device>) -> Self {
        let (id, vni) = (table.spec().id, table.spec().vni);
        Self { id, vni, table: ArcSwap::new(table), device }
    }
}

impl PlainPort {
    /// A plain network with this first snapshot.
    #[must_use]
    pub fn plain(table: Arc<PlainTable>, device: Box<dyn Device>) -> Self {
        let (id, vni) = (table.spec().id, table.spec().vni);
        Self { id, vni, table: ArcSwap::new(table), device }
    }
}

impl<T> Port<T> {
    /// Replaces the snapshot; workers see it with their next frame.
    pub fn publish(&self, table: Arc<T>) {
        self.table.store(table);
    }

    /// The number on the wire.
    #[must_use]
    pub const fn vni(&self) -> Vni {
        self.vni
    }

    /// The network.
    #[must_use]
    pub const fn id(&self) -> NetworkId {
        self.id
    }

    pub(super) fn table(&self) -> arc_swap::Guard<Arc<T>> {
        self.table.load()
    }

    pub(super) fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// Counts a frame of which no endpoint of this host is known.
    pub(super) fn dropped(&self, drops: &Drops, reason: DropReason, peer: Option<NodeId>) {
        let key = DropKey::of(reason).in_network(self.id);
        drops.add(key.with_peer(peer), 1);
    }

    /// Counts a frame that an endpoint of this host sent, if it is known.
    pub(super) fn dropped_of(
        &self,
        drops: &Drops,
        reason: DropReason,
        endpoint: Option<EndpointId>,
    ) {
        let key = DropKey::of(reason).in_network(self.id);
        drops.add(key.with_endpoint(endpoint), 1);
    }
}
