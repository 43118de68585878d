//! Names of endpoints and services that were given twice at the same time, as the log has them
//! ([`Conflicts`]).
//!
//! Where two nodes gave one before they heard of each other, the older has it on all nodes:
//! `vxmesh_proto::dns` decides.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::{info, warn};
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId},
    dns::{NamesTable, Rival},
};

use crate::lock::lock;

/// What was told of conflicts.
#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    endpoints: Mutex<BTreeMap<EndpointId, Rival>>,
    /// Whether endpoints are called otherwise than when their sandboxes' files were written.
    renamed: AtomicBool,
}

impl Conflicts {
    /// Whether endpoints are called otherwise since this was asked last.
    pub(crate) fn take_renamed(&self) -> bool {
        self.renamed.swap(false, Ordering::AcqRel)
    }

    /// Says once of each endpoint's name that it was given twice, and once that this is over.
    pub(crate) fn report(&self, tables: &BTreeMap<NetworkId, Arc<NamesTable>>) {
        let rivals = tables.values().flat_map(|table| {
            table.rivals().iter().map(|rival| (rival.key.endpoint, (rival.clone(), table.domain())))
        });
        let rivals: BTreeMap<EndpointId, (Rival, &Name)> = rivals.collect();
        let mut told = lock(&self.endpoints);
        let before = told.clone();
        told.retain(|id, _| rivals.contains_key(id));
        for (id, rival) in before.iter().filter(|(id, _)| !rivals.contains_key(id)) {
            info!(name = %rival.name, endpoint = %id.short(), "the name is no longer given twice");
        }
        for (id, (rival, network)) in rivals {
            if told.insert(id, rival.clone()).is_none() {
                let (name, has) = (&rival.name, rival.holder.endpoint.short());
                if rival.with_service {
                    warn!(
                        %name, %network, id = %id.short(), %has,
                        "an endpoint and a service were given one name at the same time: the older has it, the other is found by its id"
                    );
                    continue;
                }
                warn!(
                    %name, %network, endpoint = %id.short(), %has,
                    "two endpoints were given one name at the same time: the older has it, the other is found by its id"
                );
            }
        }
        if *told != before {
            self.renamed.store(true, Ordering::Release);
        }
    }
}
