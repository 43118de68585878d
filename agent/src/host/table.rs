//! The snapshot of a network that has a TAP here, and what it was made of ([`Local`]).
//!
//! I10: a network's kind is settled once, when its TAP is opened, by the type of its snapshot.

use std::{collections::BTreeSet, sync::Arc};

use vxmesh_proto::{
    path::{announce::Heard, plain::PlainTable},
    tables::{NetworkSpec, RowKey},
};

use crate::{datapath::port::Table, reconcile::admit::Claims};

/// A network that has a TAP here.
pub(crate) struct Local {
    pub(crate) table: LocalTable,
    pub(crate) claims: Claims,
    /// Claims to a MAC that a claim of another node has, so that each is reported once.
    pub(crate) rivals: BTreeSet<RowKey>,
    /// What its endpoints were told of others' addresses.
    pub(crate) heard: Heard,
}

impl Local {
    /// Nothing was heard of others.
    pub(crate) fn new(table: LocalTable, claims: Claims) -> Self {
        Self { table, claims, rivals: BTreeSet::new(), heard: Heard::default() }
    }
}

/// The snapshot of a network that is here.
pub(crate) enum LocalTable {
    /// Its frames are sealed for peers.
    Sealed(Arc<Table>),
    /// Its frames are sent to addresses, in clear.
    Plain(Arc<PlainTable>),
}

impl LocalTable {
    pub(crate) fn spec(&self) -> &NetworkSpec {
        match self {
            Self::Sealed(table) => table.spec(),
            Self::Plain(plain) => plain.spec(),
        }
    }
}
