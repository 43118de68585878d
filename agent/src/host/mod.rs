//! This host, as the agent keeps it ([`Host`]): the data path, rules of the firewall, guarded
//! ports, servers of names, what the kernel counts and what it tells.
//!
//! Nothing in here knows the rest of the agent: `daemon` calls it.

pub(crate) mod endpoints;
pub(crate) mod guards;
pub(crate) mod losses;
pub(crate) mod names;
pub(crate) mod published;
pub(crate) mod reach;
pub(crate) mod rules;
pub(crate) mod table;
pub(crate) mod watch;

use std::{collections::BTreeMap, sync::Mutex};

use vxmesh_proto::addr::NetworkId;

use self::{
    endpoints::Pending, guards::Guards, losses::LossCounters, names::NameServers, reach::Reach,
    rules::OnHost, table::Local, watch::Watching,
};
use crate::datapath::{Dataplane, backend::Grants};

/// What is known of this host, and kept on it.
pub(crate) struct Host {
    pub(crate) plane: Dataplane,
    /// What the TAPs of this host can do, if that could be found out.
    pub(crate) grants: Option<Grants>,
    /// Of the choices that flows are spread by.
    pub(crate) seed: u64,
    /// Networks with a TAP here. Written by reconciliation and by attaching and detaching.
    pub(crate) locals: Mutex<BTreeMap<NetworkId, Local>>,
    pub(crate) guards: Guards,
    /// The host's own table.
    pub(crate) on_host: Mutex<OnHost>,
    pub(crate) losses: LossCounters,
    pub(crate) name_servers: NameServers,
    pub(crate) watching: Watching,
    pub(crate) pending: Pending,
    pub(crate) reach: Reach,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("plane", &self.plane).finish_non_exhaustive()
    }
}

impl Host {
    /// A host of which nothing is known yet but its data path.
    pub(crate) fn new(plane: Dataplane, grants: Option<Grants>) -> Self {
        Self {
            plane,
            grants,
            seed: rand::random(),
            locals: Mutex::default(),
            guards: Guards::default(),
            on_host: Mutex::default(),
            losses: LossCounters::default(),
            name_servers: NameServers::default(),
            watching: Watching::default(),
            pending: Pending::default(),
            reach: Reach::default(),
        }
    }
}
