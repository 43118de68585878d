//! Who holds the key of the mesh's CA ([`Issuers`]).

use std::{collections::BTreeSet, sync::Mutex};

use arc_swap::ArcSwap;
use vxmesh_proto::{addr::NodeId, succession::Succession};

/// The members that hold the CA's key.
#[derive(Debug, Default)]
pub(crate) struct Issuers {
    /// The others, as their certificates say.
    pub(crate) others: ArcSwap<BTreeSet<NodeId>>,
    /// Whether this one may give the key up.
    pub(crate) succession: Mutex<Succession>,
}
