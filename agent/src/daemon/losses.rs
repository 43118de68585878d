//! What the kernel lost in the networks that are here, beside the agent (`crate::netlink::losses`).

use tracing::debug;
use vxmesh_proto::addr::NetworkId;

use super::mesh::Mesh;
use crate::{
    datapath::drops::DropKey,
    netlink::{losses::Losses, overlay::Overlay},
};

impl Mesh {
    /// Counts what is lost in a network from now on.
    pub(super) async fn watch_losses(&self, id: NetworkId, overlay: &Overlay) {
        match Losses::watch(overlay).await {
            Ok(losses) => drop(self.losses.lock().await.insert(id, losses)),
            Err(error) => debug!(network = %id, %error, "the kernel's counters cannot be read"),
        }
    }

    /// Counts nothing more in a network, whose namespace goes.
    pub(super) async fn unwatch_losses(&self, id: NetworkId) {
        drop(self.losses.lock().await.remove(&id));
    }

    /// Adds what the kernel lost to the counters of the data path: in one network, or in all.
    pub(super) async fn count_losses(&self, of: Option<NetworkId>) {
        let mut all = self.losses.lock().await;
        for (id, losses) in all.iter_mut().filter(|(id, _)| of.is_none_or(|of| of == **id)) {
            match losses.next().await {
                Ok(lost) => lost.into_iter().for_each(|loss| {
                    let key = DropKey::of(loss.reason).in_network(*id);
                    self.plane.drops().add(key.with_endpoint(loss.endpoint), loss.count);
                }),
                Err(error) => debug!(network = %id, %error, "the kernel's counters cannot be read"),
            }
        }
    }
}
