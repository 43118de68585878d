//! Who holds the mesh's CA key: only they admit nodes, renew certificates and remove nodes.
//!
//! ```text
//! issuer ── grant_issuer {key} ──> node : keeps the key, certifies itself as an issuer, tells everybody, answers
//! issuer ── withdraw_issuer ─────> node : certifies itself without, tells everybody, wipes the key, answers
//! ```
//!
//! A node takes the key from an issuer only, and an issuer gives it only where its own user says
//! so: whoever holds it is the mesh.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tracing::{info, warn};
use vxmesh_proto::{
    addr::{Name, NodeId},
    control::{Blob, Refusal, RefusalCode, Request},
    object::{ObjectId, ObjectSet},
};
use zeroize::Zeroizing;

use super::{
    doctor::check,
    mesh::{Mesh, conflict, failed},
    sync::refusal,
};
use crate::{
    admin::resolve,
    api::{ApiError, Diagnosis, Health, Issuer, LeaveSpec, Node},
    control::{ControlError, Namesake},
    identity::{IdentityError, LIFETIME, date, unix_now},
    lock::lock,
};

/// How long a node may take to write the key down and tell everybody.
const GRANTED: Duration = Duration::from_secs(10);
/// How long it waits for nodes that do not answer.
const TOLD: Duration = Duration::from_secs(1);
/// A certificate is renewed with a fifth of its life left; one with less has missed that.
const OVERDUE: u64 = 6 * 24 * 3600;

pub(super) fn named(issuers: &[Node]) -> String {
    let names: Vec<String> =
        issuers.iter().map(|issuer| format!("{} ({})", issuer.name, issuer.state)).collect();
    names.join(", ")
}

impl Mesh {
    /// Members that hold the CA's key, this node among them.
    pub(super) fn issuers(&self) -> Vec<Node> {
        let mut nodes = self.node_list();
        nodes.retain(|node| node.issuer && !node.is_gone());
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    pub(super) fn issuer_rows(&self, nodes: &[Node]) -> Vec<Issuer> {
        let issuers = nodes.iter().filter(|node| node.issuer && !node.is_gone());
        let row = |node: &Node| Issuer {
            id: node.id,
            name: node.name.clone(),
            state: node.state.clone(),
        };
        issuers.map(row).collect()
    }

    /// Where this node takes joins.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        let port = self.config.control_port;
        self.member.location.own().iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }

    /// When this node's certificate ends, in unix seconds.
    pub(super) fn certificate_end(&self) -> Option<u64> {
        let der = self.member.control.get()?.certificate();
        self.member.issuing.ca.member(&der).map(|member| member.not_after)
    }

    /// A member that has this name; one that is up, if there is any.
    pub(super) fn namesake(&self, name: &Name) -> Option<Namesake> {
        let nodes = self.node_list();
        let same = nodes.iter().filter(|node| node.name == *name && !node.is_gone());
        let found = same.max_by_key(|node| node.state == "alive")?;
        Some(Namesake { node: found.id, up: found.state == "alive" })
    }

    /// Why this node cannot make a token, and who can.
    pub(super) fn check_issuer(&self) -> Result<(), ApiError> {
        if self.credentials.is_issuer() {
            return Ok(());
        }
        let issuers = self.issuers();
        self.check_has_issuer(&issuers)?;
        let first = issuers.iter().max_by_key(|issuer| issuer.state == "alive");
        let first = first.map_or("it", |issuer| issuer.name.as_str());
        Err(conflict(
            format!(
                "this node does not hold the mesh's CA key; who does: {}; without them {}",
                named(&issuers),
                self.end()
            ),
            format!("run `vxmesh token create` on {first}"),
        ))
    }

    /// Says what is left to do where nobody holds the key.
    fn check_has_issuer(&self, issuers: &[Node]) -> Result<(), ApiError> {
        if !issuers.is_empty() {
            return Ok(());
        }
        Err(conflict(
            format!(
                "no node holds the mesh's CA key: nobody can join any more, and {}",
                self.end()
            ),
            "bring back a node that had it and did not leave (`vxmesh restore` of a backup), or make a new mesh",
        ))
    }

    fn end(&self) -> String {
        match self.certificate_end() {
            Some(end) => format!("this node is a member until {}", date(end)),
            None => "certificates are not renewed".to_owned(),
        }
    }

    /// `doctor`: who admits nodes, and how long this node is a member without them.
    pub(super) fn issuer_diagnosis(&self) -> Diagnosis {
        let issuers = self.issuers();
        let left = self.certificate_end().map_or(0, |end| end.saturating_sub(unix_now()));
        let row = |health, found: String, hint: &str| check("issuers", health, found, hint);
        if issuers.is_empty() {
            let found =
                format!("no node holds the mesh's CA key: nobody can join, and {}", self.end());
            return row(
                Health::Fail,
                found,
                "bring back a node that had it and did not leave (`vxmesh restore` of a backup), or make a new mesh before that day",
            );
        }
        let found =
            format!("{}; this node's certificate ends {}", named(&issuers), self.end_date());
        if left < OVERDUE {
            let health = if left == 0 { Health::Fail } else { Health::Warn };
            let hint =
                "it should have been renewed: see that an issuer is reachable, and the agent's log";
            return row(health, found, hint);
        }
        match issuers.iter().any(|issuer| issuer.state == "alive") {
            true => row(Health::Ok, found, ""),
            false => row(
                Health::Warn,
                found,
                "nobody can join until one of them is back; if it is lost, `vxmesh restore` its backup",
            ),
        }
    }

    fn end_date(&self) -> String {
        self.certificate_end().map_or_else(|| "at an unknown time".to_owned(), date)
    }

    /// `doctor`: members that have one name.
    pub(super) fn name_diagnoses(&self) -> Vec<Diagnosis> {
        let mut nodes = self.node_list();
        nodes.retain(|node| !node.is_gone());
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let same = nodes.chunk_by(|a, b| a.name == b.name).filter(|same| same.len() > 1);
        same.map(|same| {
            let ids: Vec<String> =
                same.iter().map(|node| format!("{} ({})", node.id, node.state)).collect();
            let found = format!("{} nodes are called {}: {}", same.len(), same[0].name, ids.join(", "));
            check(
                "names",
                Health::Warn,
                found,
                "use ids; give one another name in its agent.toml, or remove it with `vxmesh node rm` if it is gone for good",
            )
        })
        .collect()
    }

    /// `node update --issuer`
    pub(super) async fn set_issuer(
        self: &Arc<Self>,
        reference: &str,
        issuer: bool,
    ) -> Result<Node, ApiError> {
        self.check_member()?;
        let row = resolve::one(&self.node_list(), reference).cloned()?;
        let issuers = self.issuers();
        if !self.credentials.is_issuer() {
            self.check_has_issuer(&issuers)?;
            return Err(conflict(
                "this node does not hold the mesh's CA key, and gives and takes it nowhere"
                    .to_owned(),
                format!("run it on a node that does: {}", named(&issuers)),
            ));
        }
        if row.issuer == issuer {
            return Ok(row);
        }
        if row.state != "alive" {
            return Err(conflict(
                format!("node `{}` is {}", row.name, row.state),
                match issuer {
                    true => "the key goes to a node that is up: start its agent".to_owned(),
                    false => format!(
                        "it keeps the key while it is away: start its agent, or remove it with `vxmesh node rm {}`",
                        row.name
                    ),
                },
            ));
        }
        match (row.is_self, issuer, self.credentials.ca()) {
            (true, false, _) => self.withdraw_own().await?,
            (false, true, Some(ca)) => {
                let key = Blob(ca.pkcs8().to_vec());
                self.have(&row, &Request::GrantIssuer { key }).await?;
                info!(node = %row.name, id = %row.id.short(), "gave the mesh's CA key to a node");
            }
            (false, false, _) => {
                self.have(&row, &Request::WithdrawIssuer).await?;
                info!(node = %row.name, id = %row.id.short(), "took the mesh's CA key from a node");
            }
            (_, true, _) => {}
        }
        // Its new certificate came before its answer.
        self.reconcile().await;
        resolve::one(&self.node_list(), &row.id.to_string()).cloned()
    }

    pub(super) async fn have(&self, row: &Node, request: &Request) -> Result<(), ApiError> {
        let Some(control) = self.member.control.get() else {
            return Err(failed("the agent is starting", "try again"));
        };
        match control.request(row.id, request, GRANTED).await {
            Ok(_done) => Ok(()),
            Err(ControlError::Refused(Refusal { message, .. })) => {
                Err(conflict(message, format!("node {} refused it", row.name)))
            }
            Err(error) => Err(ApiError {
                hint: format!(
                    "look whether `vxmesh node ls` shows {} as an issuer, and try again",
                    row.name
                ),
                ..ApiError::from(error)
            }),
        }
    }

    /// Only an issuer gives the key and takes it.
    pub(super) fn check_from_issuer(&self, from: NodeId) -> Result<(), Refusal> {
        if self.member.issuing.others.load().contains(&from) {
            return Ok(());
        }
        Err(refusal(
            RefusalCode::NotMember,
            "only a node that holds the mesh's CA key may say this",
        ))
    }

    /// An issuer gives this node the CA's key.
    pub(super) async fn granted(
        self: &Arc<Self>,
        from: NodeId,
        key: Zeroizing<Vec<u8>>,
    ) -> Result<(), Refusal> {
        self.check_from_issuer(from)?;
        let mesh = Arc::clone(self);
        let taken = tokio::task::spawn_blocking(move || {
            mesh.credentials.take_ca_key(&mesh.config.data_dir, &key)
        });
        let refused =
            |error: &dyn std::fmt::Display| refusal(RefusalCode::Failed, error.to_string());
        match taken.await {
            Ok(Ok(())) => {}
            Ok(Err(error @ IdentityError::Crypto(_))) => {
                return Err(refusal(RefusalCode::Malformed, error.to_string()));
            }
            Ok(Err(error)) => return Err(refused(&error)),
            Err(error) => return Err(refused(&error)),
        }
        info!(from = %self.node_name(from), "this node holds the mesh's CA key now: it admits nodes and renews certificates");
        self.certify(true).await
    }

    /// An issuer takes the CA's key from this node.
    pub(super) async fn withdrawn(self: &Arc<Self>, from: NodeId) -> Result<(), Refusal> {
        self.check_from_issuer(from)?;
        self.withdraw_own().await.map_err(|error| refusal(RefusalCode::Conflict, error.message))
    }

    /// Forgets the CA's key, unless nobody else who is up has it.
    async fn withdraw_own(self: &Arc<Self>) -> Result<(), ApiError> {
        if !self.credentials.is_issuer() {
            return Ok(());
        }
        self.check_other_issuer(&self.issuers())?;
        let _going = self.find_successor().await?;
        // Whoever takes addresses of removed nodes back after this node knows what it took.
        let _no_reclaim = self.member.allocation.reclaiming.lock().await;
        self.certify(false)
            .await
            .map_err(|refused| failed(refused.message, "see the agent's log"))?;
        let mesh = Arc::clone(self);
        let forgot = tokio::task::spawn_blocking(move || {
            mesh.credentials.forget_ca_key(&mesh.config.data_dir)
        });
        match forgot.await {
            Ok(forgot) => forgot.map_err(ApiError::from)?,
            Err(error) => return Err(failed(error, "see the agent's log")),
        }
        info!("this node does not hold the mesh's CA key any more");
        Ok(())
    }

    /// Makes the certificate say whether this node issues others, and tells everybody.
    async fn certify(self: &Arc<Self>, issuer: bool) -> Result<(), Refusal> {
        let refused =
            |error: &dyn std::fmt::Display| refusal(RefusalCode::Failed, error.to_string());
        let Some(control) = self.member.control.get() else {
            return Err(refusal(RefusalCode::Failed, "the agent is starting"));
        };
        control.certify(issuer).await.map_err(|error| refused(&error))?;
        let (mesh, certificate) = (Arc::clone(self), control.certificate());
        let published = tokio::task::spawn_blocking(move || mesh.publish_member(&certificate));
        published.await.map_err(|error| refused(&error))?;
        let own = self
            .member
            .objects
            .read(|set| set.get(&ObjectId::Member(self.member.me)).map(|it| it.text().to_string()));
        self.member.tell(own.as_slice(), |_node| true, TOLD).await;
        Ok(())
    }

    /// Refuses what would leave the mesh without an issuer that is up.
    fn check_other_issuer(&self, issuers: &[Node]) -> Result<(), ApiError> {
        let others: Vec<Node> = issuers.iter().filter(|node| !node.is_self).cloned().collect();
        if !self.credentials.is_issuer() || others.iter().any(|node| node.state == "alive") {
            return Ok(());
        }
        let mut left = self.node_list();
        left.retain(|node| !node.is_self && !node.is_gone());
        left.sort_by(|a, b| a.name.cmp(&b.name));
        if left.is_empty() {
            return Err(conflict(
                "this is the last node of its mesh: the mesh, its networks and its CA key go with it, and tokens admit nobody any more".to_owned(),
                "give up the mesh with --force; a backup does not bring it back",
            ));
        }
        let away = match others.is_empty() {
            true => String::new(),
            false => format!(" in reach ({} has it, too)", named(&others)),
        };
        let names: Vec<&str> = left.iter().map(|node| node.name.as_str()).collect();
        let heir = left
            .iter()
            .max_by_key(|node| node.state == "alive")
            .map_or("NODE", |node| node.name.as_str());
        Err(conflict(
            format!(
                "this is the only node with the mesh's CA key{away}: without it nobody can join or be removed, and the other nodes ({}) \
                 are members only until their certificates end, {} at the latest",
                names.join(", "),
                date(unix_now().saturating_add(LIFETIME)),
            ),
            format!(
                "make another first: `vxmesh node update --issuer {heir}`; with --force the key is lost for good, also if there is a backup: a node that left does not come back"
            ),
        ))
    }

    /// Refuses a `leave` that costs more than the user may know. Otherwise what it ends.
    pub(super) fn check_leave(&self, spec: LeaveSpec) -> Result<Option<String>, ApiError> {
        if !spec.force && self.member.departed().is_none() {
            self.check_other_issuer(&self.issuers())?;
        }
        let here = self.plugged_here()?;
        match here {
            Some(here) if !spec.force && !spec.yes => Err(conflict(
                format!("this node has {here}; leaving ends and unplugs them"),
                "use --yes if that is meant",
            )),
            here => Ok(here),
        }
    }

    /// The sandboxes that run here and the other endpoints, if there are any.
    fn plugged_here(&self) -> Result<Option<String>, ApiError> {
        let sandboxes = self.sandbox_list()?;
        let running = sandboxes.iter().filter(|sandbox| sandbox.state != "exited");
        let running: Vec<&str> = running.map(|sandbox| sandbox.name.as_str()).collect();
        let endpoints = self.endpoint_list();
        let others = endpoints.iter().filter(|endpoint| {
            let of_sandbox =
                sandboxes.iter().any(|sandbox| sandbox.endpoints.contains(&endpoint.id));
            endpoint.node == self.member.me && !of_sandbox
        });
        let others: Vec<&str> = others.map(|endpoint| endpoint.name.as_str()).collect();
        let named = [("sandboxes", running), ("endpoints", others)];
        let named = named.iter().filter(|(_, names)| !names.is_empty());
        let named: Vec<String> =
            named.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        Ok((!named.is_empty()).then(|| named.join(" and ")))
    }

    /// Whether it is this node that takes back what a removed node owned. If two issuers did, each
    /// would own it for a moment (I12): so it is the one that removed it, or the first of all if
    /// that one is no issuer any more.
    pub(super) fn reclaims(&self, set: &ObjectSet, removed: NodeId) -> bool {
        let Some(removal) = set.get(&ObjectId::Removed(removed)) else { return false };
        let issuing = self.member.issuing.others.load();
        match removal.author() {
            author if author == self.member.me => self.credentials.is_issuer(),
            author if issuing.contains(&author) => false,
            _ => {
                self.credentials.is_issuer() && issuing.iter().all(|other| self.member.me < *other)
            }
        }
    }

    /// What to say if nobody, or not everybody, heard that this node leaves.
    pub(super) fn unheard(&self, heard: usize) -> Vec<String> {
        let mut others = self.node_list();
        others.retain(|node| !node.is_self && !node.is_gone());
        let mut names: Vec<String> = others.iter().map(|node| node.name.to_string()).collect();
        if names.is_empty() {
            // It has not heard of any by name yet.
            let addrs = lock(&self.member.location.known);
            names = addrs
                .keys()
                .filter(|node| **node != self.member.me)
                .map(ToString::to_string)
                .collect();
        }
        names.sort();
        if names.is_empty() || heard > 0 {
            return Vec::new();
        }
        warn!("no other node heard that this one leaves");
        vec![format!(
            "no other node heard that this one left ({}): they show it as dead and keep its addresses for it; run `vxmesh node rm {}` there",
            names.join(", "),
            self.member.me
        )]
    }
}
