//! An issuer that gives the CA's key up while another one promises to keep it.

use std::time::Instant;

use tracing::debug;
use vxmesh_proto::{
    addr::NodeId,
    control::{Refusal, RefusalCode, Request},
};

use super::{
    issuers::named,
    mesh::{Mesh, conflict},
    sync::refusal,
};
use crate::{api::ApiError, lock::lock};

/// This node gives the key up; dropped before that is done, it keeps it.
#[derive(Debug)]
pub(super) struct Going<'a>(&'a Mesh);

impl Drop for Going<'_> {
    fn drop(&mut self) {
        lock(&self.0.member.issuing.succession).stay();
    }
}

impl Mesh {
    /// Has another issuer that is up promise to keep the key. Nothing where there is no other one,
    /// or no key here.
    pub(super) async fn find_successor(&self) -> Result<Option<Going<'_>>, ApiError> {
        let mut others = self.issuers();
        others.retain(|node| !node.is_self && node.state == "alive");
        if !self.credentials.is_issuer() || others.is_empty() {
            return Ok(None);
        }
        let refused = || {
            conflict(
                format!("no other node promises to keep the mesh's CA key ({})", named(&others)),
                "another one may be giving it up at this moment: look at `vxmesh node ls`, and try again in 30 seconds",
            )
        };
        if !lock(&self.member.issuing.succession).ask(Instant::now()) {
            return Err(refused());
        }
        let going = Going(self);
        for node in &others {
            match self.have(node, &Request::KeepIssuer).await {
                Ok(()) if lock(&self.member.issuing.succession).commit() => return Ok(Some(going)),
                Ok(()) => break,
                Err(error) => debug!(node = %node.id, why = error.message, "it does not promise"),
            }
        }
        Err(refused())
    }

    /// An issuer wants to give the key up, and counts on this one.
    pub(super) fn promised(&self, from: NodeId) -> Result<(), Refusal> {
        self.check_from_issuer(from)?;
        let keeps = self.credentials.is_issuer()
            && lock(&self.member.issuing.succession).promise(from, self.member.me, Instant::now());
        if keeps {
            return Ok(());
        }
        Err(refusal(RefusalCode::Conflict, "this node does not keep the mesh's CA key"))
    }
}
