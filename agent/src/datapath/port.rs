//! One network's place in the data path: its snapshot, its TAP, its name in the drop counters.

use std::sync::Arc;

use arc_swap::ArcSwap;
use vxmesh_proto::{
    addr::{NetworkId, NodeId, Vni},
    path::{Watch, plain::PlainTable},
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

    /// Counts the frames that go no further on the way out, by the endpoint that sent them if it is
    /// known.
    pub(super) fn watch_out<'a>(&'a self, drops: &'a Drops) -> impl Watch {
        self.watch(drops, |key, frame| key.with_endpoint(self.table().sender_of(frame)))
    }

    /// The same on the way in, by the peer that they came from.
    pub(super) fn watch_in<'a>(&'a self, drops: &'a Drops, from: NodeId) -> impl Watch {
        self.watch(drops, move |key, _frame| key.with_peer(from))
    }

    /// The same of frames that are about to be delivered: put together, they may be of several
    /// peers.
    pub(super) fn watch_delivery<'a>(&'a self, drops: &'a Drops) -> impl Watch {
        self.watch(drops, |key, _frame| key)
    }
}

impl PlainPort {
    /// A plain network with this first snapshot.
    #[must_use]
    pub fn plain(table: Arc<PlainTable>, device: Box<dyn Device>) -> Self {
        let (id, vni) = (table.spec().id, table.spec().vni);
        Self { id, vni, table: ArcSwap::new(table), device }
    }

    /// Counts the frames that go no further on the way out, by the endpoint that sent them if it is
    /// known.
    pub(super) fn watch_out<'a>(&'a self, drops: &'a Drops) -> impl Watch {
        self.watch(drops, |key, frame| key.with_endpoint(self.table().table().sender_of(frame)))
    }

    /// The same on the way in. Who sent a frame in clear was not authenticated.
    pub(super) fn watch_in<'a>(&'a self, drops: &'a Drops) -> impl Watch {
        self.watch(drops, |key, _frame| key)
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

    fn watch<'a>(
        &self,
        drops: &'a Drops,
        blame: impl Fn(DropKey, &[u8]) -> DropKey + 'a,
    ) -> impl Watch {
        let id = self.id;
        drops.watch(move |reason, frame| blame(DropKey::of(reason).in_network(id), frame))
    }
}
