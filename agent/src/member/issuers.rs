//! Who holds the key of the mesh's CA ([`Issuers`]).

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use vxmesh_proto::{addr::NodeId, succession::Succession};

use super::peers::Ca;

/// The members that hold the CA's key.
#[derive(Debug)]
pub(crate) struct Issuers {
    /// Checks certificates.
    pub(crate) ca: Arc<Ca>,
    /// The others, as their certificates say.
    pub(crate) others: ArcSwap<BTreeSet<NodeId>>,
    /// Whether this one may give the key up.
    pub(crate) succession: Mutex<Succession>,
}

impl Issuers {
    /// Those of a mesh with this CA; no other is known yet.
    pub(crate) fn new(ca: Arc<Ca>) -> Self {
        Self { ca, others: ArcSwap::default(), succession: Mutex::default() }
    }
}
