//! What the kernel lost in the networks that are here, beside the agent ([`LossCounters`]).

use std::collections::BTreeMap;

use tokio::sync::Mutex;
use tracing::debug;
use vxmesh_proto::addr::NetworkId;

use crate::{
    datapath::drops::{DropKey, Drops},
    netlink::{losses::Losses, overlay::Overlay},
};

/// What is lost in each network that is here.
#[derive(Debug, Default)]
pub(crate) struct LossCounters {
    networks: Mutex<BTreeMap<NetworkId, Losses>>,
}

impl LossCounters {
    /// Counts what is lost in a network from now on.
    pub(crate) async fn watch(&self, id: NetworkId, overlay: &Overlay) {
        match Losses::watch(overlay).await {
            Ok(losses) => drop(self.networks.lock().await.insert(id, losses)),
            Err(error) => debug!(network = %id, %error, "the kernel's counters cannot be read"),
        }
    }

    /// Counts nothing more in a network, whose namespace goes.
    pub(crate) async fn unwatch(&self, id: NetworkId) {
        drop(self.networks.lock().await.remove(&id));
    }

    /// Adds what the kernel lost to the counters of the data path: in one network, or in all.
    pub(crate) async fn count(&self, drops: &Drops, of: Option<NetworkId>) {
        let mut all = self.networks.lock().await;
        for (id, losses) in all.iter_mut().filter(|(id, _)| of.is_none_or(|of| of == **id)) {
            match losses.next().await {
                Ok(lost) => lost.into_iter().for_each(|loss| {
                    let key = DropKey::of(loss.reason).in_network(*id);
                    drops.add(key.with_endpoint(loss.endpoint), loss.count);
                }),
                Err(error) => debug!(network = %id, %error, "the kernel's counters cannot be read"),
            }
        }
    }
}
