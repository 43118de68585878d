//! `node rm`: a node is removed by the CA's word, nobody deals with it any more, and its addresses
//! come back.
//!
//! ```text
//! any member ── remove_node ──> issuer : signs with the CA's key, keeps, tells everybody who is connected
//! each node  : no connection, session, record or certificate for it from then on (control, peers, world)
//! issuer     : compares objects with each member that is left; when none has anything to tell, reclaims
//!              what the removed node owns (proto::object::RollCall, I12)
//! the node   : whoever it meets ends the connection with that word; it keeps its sandboxes and waits for `leave`
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use vxmesh_proto::{
    addr::{NetworkId, NodeId},
    control::{Refusal, RefusalCode, Request},
    ipam::Transfer,
    object::{self, Content, Draft, Removal},
};

use super::{
    mesh::{Mesh, conflict, failed},
    sync::refusal,
};
use crate::{
    admin::resolve,
    api::{ApiError, ErrorCode, Node},
    control::ControlError,
    lock::lock,
    objects::PublishError,
};

/// How long an issuer may take to remove a node, and to tell the others.
const REMOVED: Duration = Duration::from_secs(10);
/// How long the issuer waits for nodes that do not answer; they hear of it when they do.
const TOLD: Duration = Duration::from_secs(1);
/// Endpoints that a refusal names.
const NAMED: usize = 5;

impl Mesh {
    /// Removes a node here, where the CA's key is, or has an issuer do it.
    pub(super) async fn remove_node(
        self: &Arc<Self>,
        reference: &str,
        force: bool,
    ) -> Result<Node, ApiError> {
        self.check_member()?;
        let row = resolve::one(&self.node_list(), reference).cloned()?;
        self.check_removal(&row, force)?;
        if self.credentials.is_issuer() {
            self.issue_removal(&row).await?;
        } else {
            self.have_removed(&row, force).await?;
        }
        // What the issuer did comes here by its push, mostly before its answer.
        let removed = resolve::one(&self.node_list(), &row.id.to_string()).cloned();
        Ok(Node { state: "removed".to_owned(), ..removed.unwrap_or(row) })
    }

    fn check_removal(&self, row: &Node, force: bool) -> Result<(), ApiError> {
        let name = &row.name;
        if row.is_self {
            return Err(conflict(
                format!("`{name}` is this node"),
                "a node goes by itself with `vxmesh leave`",
            ));
        }
        match row.state.as_str() {
            "removed" => {
                Err(conflict(format!("node `{name}` was removed already"), "nothing is to be done"))
            }
            "alive" if !force => {
                let endpoints = self.endpoint_list();
                let own = endpoints.iter().filter(|endpoint| endpoint.node == row.id);
                let names: Vec<String> = own.map(|endpoint| endpoint.name.to_string()).collect();
                let has = match names.len() {
                    0 => "without endpoints".to_owned(),
                    count if count <= NAMED => format!("with endpoints {}", names.join(", ")),
                    count => {
                        let (shown, more) = (names.iter().take(NAMED), count - NAMED);
                        let shown: Vec<&str> = shown.map(String::as_str).collect();
                        format!("with endpoints {} and {more} more", shown.join(", "))
                    }
                };
                Err(conflict(
                    format!("node `{name}` is up, {has}"),
                    "run `vxmesh leave` there; or use --force, which cuts it off at once and for good",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Asks the issuers in turn.
    async fn have_removed(&self, row: &Node, force: bool) -> Result<(), ApiError> {
        let Some(control) = self.member.control.get() else {
            return Err(failed("the agent is starting", "try again"));
        };
        let request = Request::RemoveNode { node: row.id, force };
        let issuers = self.issuers();
        for issuer in issuers.iter().filter(|issuer| issuer.state == "alive") {
            return match control.request(issuer.id, &request, REMOVED).await {
                Ok(_done) => Ok(()),
                Err(ControlError::Refused(Refusal { code, message })) => {
                    let code = match code {
                        RefusalCode::Conflict => ErrorCode::Conflict,
                        RefusalCode::NotFound => ErrorCode::NotFound,
                        _ => ErrorCode::Failed,
                    };
                    Err(ApiError::new(code, message, format!("node {} refused it", issuer.name)))
                }
                Err(ControlError::NotConnected(_)) => continue,
                Err(error) => Err(error.into()),
            };
        }
        let names: Vec<String> =
            issuers.iter().map(|issuer| format!("{} ({})", issuer.name, issuer.state)).collect();
        Err(conflict(
            format!(
                "only a node with the mesh's CA key can remove another, and none is reachable: {}",
                names.join(", ")
            ),
            "run it there, or bring that node back",
        ))
    }

    /// A member asks this node to remove another.
    pub(super) async fn removal_asked(
        self: &Arc<Self>,
        node: NodeId,
        force: bool,
    ) -> Result<(), Refusal> {
        let refused = |error: ApiError| {
            let code = match error.code {
                ErrorCode::Conflict => RefusalCode::Conflict,
                ErrorCode::NotFound => RefusalCode::NotFound,
                _ => RefusalCode::Failed,
            };
            refusal(code, error.message)
        };
        if !self.credentials.is_issuer() {
            return Err(refusal(
                RefusalCode::NoIssuer,
                "this node does not hold the mesh's CA key",
            ));
        }
        self.check_member().map_err(refused)?;
        let row = resolve::one(&self.node_list(), &node.to_string()).cloned().map_err(refused)?;
        self.check_removal(&row, force).map_err(refused)?;
        self.issue_removal(&row).await.map_err(refused)
    }

    async fn issue_removal(self: &Arc<Self>, row: &Node) -> Result<(), ApiError> {
        let (mesh, removal) = (Arc::clone(self), Removal { node: row.id, name: row.name.clone() });
        let issued =
            tokio::task::spawn_blocking(move || mesh.sign_issued(Content::Removed(removal)));
        let text = match issued.await {
            Ok(Ok(text)) => text,
            Ok(Err(PublishError::Overtaken)) => return Ok(()),
            Ok(Err(error)) => return Err(failed(error, "see the agent's log")),
            Err(error) => return Err(failed(error, "see the agent's log")),
        };
        info!(node = %row.name, id = %row.id.short(), "node removed");
        // First itself: the connection ends with the next look at the objects.
        self.member.push_objects([text.clone()]);
        self.member.tell(&[text], |node| node != row.id, TOLD).await;
        self.member.keeper.kick();
        self.reclaim_soon();
        Ok(())
    }

    /// Signs with the CA's key, and writes it down before anybody hears of it.
    fn sign_issued(&self, content: Content) -> Result<String, PublishError> {
        let Some(ca) = self.credentials.ca() else {
            return Err(PublishError::Refused(object::Refused::Certificate));
        };
        let sign =
            self.member.objects.publish_with::<PublishError>(ca.signing_key(), |_set, hlc| {
                Ok(Draft::new(hlc, content))
            });
        Ok(sign?.text().to_string())
    }

    /// Looks whether addresses of removed nodes can be had back, unless that is being done. Whether
    /// there are some.
    pub(super) fn reclaim_soon(self: &Arc<Self>) -> bool {
        if !self.credentials.is_issuer() || self.reclaimable().is_empty() {
            return false;
        }
        let mesh = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(_one_at_a_time) = mesh.member.allocation.reclaiming.try_lock() else { return };
            mesh.reclaim().await;
        });
        true
    }

    fn reclaimable(&self) -> Vec<(NetworkId, Transfer)> {
        self.member
            .objects
            .read(|set| self.member.addresses.reclaimable(|node| self.reclaims(set, node)))
    }

    async fn reclaim(self: &Arc<Self>) {
        let Some(control) = self.member.control.get() else { return };
        let missing = || {
            self.member
                .objects
                .read(|set| lock(&self.member.allocation.roll).missing(set, self.member.me))
        };
        let connected =
            |node: &NodeId| control.peers().iter().any(|peer| peer.node == *node && peer.connected);
        // The first round may bring and take what they differ in; the second then finds nothing.
        for _round in 0..2 {
            let calls = missing().into_iter().filter(connected).map(|node| self.sync_with(node));
            futures_util::future::join_all(calls).await;
        }
        if !missing().is_empty() || self.is_stopping() || self.member.departed().is_some() {
            return;
        }
        self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
        let mesh = Arc::clone(self);
        let signed = tokio::task::spawn_blocking(move || mesh.sign_reclaims()).await;
        match signed {
            Ok(texts) if texts.is_empty() => {}
            Ok(texts) => {
                info!(blocks = texts.len(), "took back the addresses of removed nodes");
                self.member.tell(&texts, |_node| true, TOLD).await;
                self.member.keeper.kick();
            }
            Err(error) => warn!(%error, "addresses of removed nodes are not taken back"),
        }
    }

    fn sign_reclaims(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for (network, transfer) in self.reclaimable() {
            let Transfer { block: cidr, from, to, epoch } = transfer;
            let content = Content::Reclaim(object::Transfer { network, cidr, from, to, epoch });
            match self.sign_issued(content) {
                Ok(text) => texts.push(text),
                Err(PublishError::Overtaken) => {}
                // What keeps one from being signed keeps the others, and is the same at the next
                // look, a second later.
                Err(error) => {
                    if self.member.logged.unreclaimed.is_first() {
                        let network = self.network_name(network);
                        warn!(%network, %cidr, %error, "addresses of removed nodes are not taken back yet; it is tried again");
                    }
                    break;
                }
            }
        }
        if !texts.is_empty() {
            self.member.logged.unreclaimed.reset();
        }
        self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
        texts
    }
}
