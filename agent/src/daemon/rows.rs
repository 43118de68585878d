//! What the store has of this node, as it was read last ([`Rows`]).

use super::{gateway, sandboxes};
use crate::{
    host::endpoints,
    store::{Cached, Table},
};

/// Tables that are looked at often and seldom changed.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) endpoints: Cached<endpoints::Stored>,
    pub(super) sandboxes: Cached<sandboxes::Stored>,
    pub(super) nodes: Cached<gateway::Node>,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            endpoints: Cached::new(Table::Endpoints),
            sandboxes: Cached::new(Table::Sandboxes),
            nodes: Cached::new(Table::Gateways),
        }
    }
}
