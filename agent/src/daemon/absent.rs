//! What this host knew of its mesh when its agent ran last, read in the data directory while none
//! answers: [`LastKnown`]. Nothing is written there.

use std::path::Path;

use serde_json::Value;
use vxmesh_proto::{
    addr::{Name, NetworkId, NodeId},
    object::{Content, NetworkState, ObjectSet},
};

use super::doctor::{certificate_state, check};
use crate::{
    api::{Diagnosis, Health, Issuer, Status},
    config::Config,
    identity::{Credentials, IdentityError, certificate::verify_at_its_own_time, date, unix_now},
    member::peers::Ca,
    objects::unix_ms,
    store::{Store, StoreError, Table},
};

/// The state of who may be up or not.
const UNKNOWN: &str = "unknown";

/// The identity and the state of a node that does not run.
#[derive(Debug)]
pub struct LastKnown {
    credentials: Credentials,
    /// What the state holds of the mesh, or why it cannot be read.
    state: Result<State, StoreError>,
}

#[derive(Debug)]
struct State {
    members: Vec<Member>,
    /// Networks, and whether an older one puts them aside.
    networks: Vec<(NetworkId, Name, bool)>,
    endpoints: usize,
    /// Whether this node was removed from the mesh.
    is_removed: bool,
}

/// A member that neither left nor was removed.
#[derive(Debug)]
struct Member {
    id: NodeId,
    name: String,
    issuer: bool,
}

impl LastKnown {
    /// What is in the data directory; nothing if this host belongs to no mesh.
    ///
    /// # Errors
    /// The identity is damaged, or open to others.
    pub fn of(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        // Without the directory nothing is loaded: a join that is at work there must not be
        // disturbed.
        if !data_dir.join("identity").is_dir() {
            return Ok(None);
        }
        let Some(credentials) = Credentials::load(data_dir)? else { return Ok(None) };
        let state = Store::copy(&data_dir.join("state.redb"));
        let state = state.and_then(|store| State::of(&store, &credentials));
        Ok(Some(Self { credentials, state }))
    }

    /// As the agent would say it, but that only what the mesh agreed on is counted; nothing where
    /// an agent that hangs has the state.
    #[must_use]
    pub fn status(&self, config: &Config) -> Option<Status> {
        let state = self.state.as_ref().ok()?;
        let own = self.own();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: if state.is_removed { "removed" } else { "stopped" }.to_owned(),
            mesh_id: Some(self.credentials.membership.mesh_id),
            node_id: Some(self.credentials.identity.node_id()),
            name: config.name.clone(),
            control_addr: None,
            vtep: None,
            uptime_s: 0,
            nodes: 0,
            nodes_alive: 0,
            networks: 0,
            endpoints: 0,
            issuer: self.credentials.is_issuer(),
            conflicts: 0,
            certificate_left_s: own.map(|end| end.saturating_sub(unix_now())).ok(),
            issuers: Vec::new(),
            datapath: None,
        };
        status.nodes = state.members.len();
        status.networks = state.networks.len();
        status.endpoints = state.endpoints;
        status.conflicts = state.networks.iter().filter(|(.., aside)| *aside).count();
        let issuer = |member: &Member| {
            let name = member.name.parse().or_else(|_| member.id.as_str().parse()).ok()?;
            Some(Issuer { id: member.id, name, state: UNKNOWN.to_owned() })
        };
        let issuers = state.members.iter().filter(|member| member.issuer);
        status.issuers = issuers.filter_map(issuer).collect();
        Some(status)
    }

    /// As rows of `doctor`.
    #[must_use]
    pub fn diagnoses(&self) -> Vec<Diagnosis> {
        let row = |what: &str, health, found: String, hint: &str| {
            check(what, health, format!("when the agent ran last: {found}"), hint)
        };
        let mesh = self.credentials.membership.mesh_id;
        let mut all = vec![check("mesh", Health::Ok, mesh.to_string(), "")];
        all.push(match self.own() {
            Ok(end) => certificate_state(end.saturating_sub(unix_now())),
            Err(why) => check("certificate", Health::Fail, why, "join the mesh again"),
        });
        let state = match &self.state {
            Ok(state) => state,
            Err(error) => {
                all.push(check("state", Health::Fail, error.to_string(), "see the message"));
                return all;
            }
        };
        let names = |members: Vec<&Member>| {
            members.iter().map(|member| member.name.clone()).collect::<Vec<_>>().join(", ")
        };
        let members = names(state.members.iter().collect());
        let found = format!("{} members: {members}", state.members.len());
        all.push(row("nodes", Health::Ok, found, ""));
        let issuers: Vec<&Member> = state.members.iter().filter(|it| it.issuer).collect();
        let end = self.own().map_or_else(
            |_why| String::new(),
            |end| format!("; this node is a member until {}", date(end)),
        );
        all.push(if issuers.is_empty() {
            let found = format!("no node held the mesh's CA key: nobody can join{end}");
            row("issuers", Health::Fail, found, "`vxmesh restore` the backup of one that had it")
        } else {
            row("issuers", Health::Ok, format!("{}{end}", names(issuers)), "")
        });
        let aside = state.networks.iter().filter(|(.., aside)| *aside);
        all.extend(aside.map(|(id, name, _)| {
            let found =
                format!("{} forwards nothing: an older network has its name or number", id.short());
            let hint = format!("start the agent, and remove one of the two: {}", id.short());
            row(&format!("network {name}"), Health::Warn, found, &hint)
        }));
        all
    }

    /// When this node's certificate ends.
    fn own(&self) -> Result<u64, String> {
        let membership = &self.credentials.membership;
        let own = verify_at_its_own_time(&membership.certificate, &membership.ca);
        own.map(|member| member.not_after).map_err(|why| why.to_string())
    }
}

impl State {
    fn of(store: &Store, credentials: &Credentials) -> Result<Self, StoreError> {
        let ca = Ca(credentials.membership.ca.clone());
        let mut set = ObjectSet::new(credentials.membership.mesh_id);
        let mut stored: Vec<(String, String)> = store.list(Table::Objects)?;
        // Keys of members check the rest.
        stored.sort_by_key(|(id, _text)| !id.starts_with("member/"));
        for (_id, text) in stored {
            // What is not admitted is reported by the agent when it starts.
            let _merged = set.restore(&text, &ca, unix_ms());
        }
        let member = |object: &vxmesh_proto::object::Object| match object.content() {
            Content::Member(member) if !object.closed() && !set.is_removed(object.author()) => {
                let id = object.author();
                let name = member.name.as_ref().map_or_else(|| id.short(), Name::to_string);
                let issuer = ca.member(&member.certificate).is_some_and(|it| it.issuer);
                Some(Member { id, name, issuer })
            }
            _ => None,
        };
        let members = set.objects().filter_map(|object| member(object)).collect();
        let networks = set.networks().into_iter();
        let networks = networks.filter_map(|(id, object, state)| match object.content() {
            Content::Network(network) => {
                Some((id, network.name.clone(), state != NetworkState::Active))
            }
            _ => None,
        });
        let networks = networks.collect();
        let endpoints = store.list::<Value>(Table::Endpoints)?.len();
        let is_removed = set.is_removed(credentials.identity.node_id());
        Ok(Self { members, networks, endpoints, is_removed })
    }
}
