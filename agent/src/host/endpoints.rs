//! Endpoints of this host that are neither wholly there nor gone ([`Pending`]).

use std::{collections::BTreeSet, sync::Mutex};

use vxmesh_proto::addr::EndpointId;

/// Endpoints that somebody has to come back to.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Those that lost their names and are about to lose their links.
    pub(crate) unnamed: Mutex<BTreeSet<EndpointId>>,
    /// Those of the last life that could not be adopted yet.
    pub(crate) unadopted: Mutex<BTreeSet<EndpointId>>,
    /// The hash of objects, and how often something had been written, when no endpoint was left
    /// over.
    pub(crate) tidy: Mutex<Option<(String, u64)>>,
}
