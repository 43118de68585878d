//! What control and gossip ask of the rest of the agent.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tracing::debug;
use vxmesh_gossip::{membership::World, transport::Pipe};
use vxmesh_proto::{
    addr::{Name, NodeId},
    control::{MemberInfo, Push, Refusal, RefusalCode, Request, Response},
    object::{KeyRing, ObjectId},
};

use super::mesh::Mesh;
use crate::{
    control::{Caller, Namesake, Newcomer, Service},
    identity::Member,
};

/// A peer whose packets came within this time is not dead: two keepalive intervals of a busy
/// session would be 20 s, but a killed host must be noticed, and whoever has traffic is heard every
/// moment.
const HEARD: Duration = Duration::from_secs(3);

/// The agent as its control plane and its gossip see it. Weak, because the agent owns both.
#[derive(Clone, Debug)]
pub(super) struct Outlook {
    pub(super) mesh: Weak<Mesh>,
}

impl KeyRing for Outlook {
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]> {
        // Who left has no say any more: its records go, whoever still holds copies.
        let member = ObjectId::Member(node);
        let mesh = self.mesh.upgrade()?;
        mesh.member.objects.read(|set| {
            // A removed node goes on with what is on its own host.
            let gone = set.is_removed(node) && node != mesh.member.me;
            let member = set.get(&member).filter(|member| !member.closed() && !gone);
            member.and_then(|_| set.public_key(node))
        })
    }
}

impl World for Outlook {
    fn members(&self) -> Vec<NodeId> {
        self.mesh
            .upgrade()
            .map(|mesh| {
                mesh.member.objects.read(|set| match set.is_removed(mesh.member.me) {
                    true => vec![mesh.member.me],
                    false => set.members().collect(),
                })
            })
            .unwrap_or_default()
    }

    fn heard_recently(&self, node: NodeId) -> bool {
        self.mesh.upgrade().is_some_and(|mesh| mesh.member.peers.heard_within(node, HEARD))
    }
}

impl Pipe for Outlook {
    fn send(&self, to: NodeId, bytes: Bytes) {
        if let Some(control) =
            self.mesh.upgrade().and_then(|mesh| mesh.member.control.get().cloned())
        {
            // Gossip is made for loss; the control plane counts it.
            let _queued = control.send_gossip(to, bytes);
        }
    }
}

#[async_trait]
impl Service for Outlook {
    async fn handle(&self, from: Caller, request: Request) -> Response {
        let Some(mesh) = self.mesh.upgrade() else {
            return Response::refuse(RefusalCode::Failed, "the agent is stopping");
        };
        match mesh.answer(from, request).await {
            Ok(response) => response,
            Err(Refusal { code, message }) => Response::refuse(code, message),
        }
    }

    fn handle_gossip(&self, from: Caller, bytes: Bytes) {
        if let Some(mesh) = self.mesh.upgrade()
            && let Some(gossip) = mesh.member.gossip.get()
        {
            gossip.handle_bytes(from.node, &bytes);
        }
    }

    fn handle_push(&self, from: Caller, push: Push) {
        let Some(mesh) = self.mesh.upgrade() else { return };
        let node = from.node;
        if push.objects.is_empty() {
            return mesh.member.take_records(node, &push.records);
        }
        // Objects are written to disk, and records may need the keys that come with them.
        let Ok(permit) = Arc::clone(&mesh.member.sync.pushes).try_acquire_owned() else {
            return debug!(%node, "too many pushes at once; the objects are compared later");
        };
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            mesh.member.take_objects(node, &push.objects);
            mesh.member.take_records(node, &push.records);
        });
    }

    fn members(&self) -> Vec<MemberInfo> {
        self.mesh.upgrade().map(|mesh| mesh.member.member_infos()).unwrap_or_default()
    }

    fn issuers(&self) -> Vec<NodeId> {
        self.mesh
            .upgrade()
            .map(|mesh| mesh.member.issuing.others.load().iter().copied().collect())
            .unwrap_or_default()
    }

    fn namesake(&self, name: &Name) -> Option<Namesake> {
        self.mesh.upgrade()?.namesake(name)
    }

    fn handle_newcomer(&self, newcomer: Newcomer) {
        debug!(node = %newcomer.member.node_id, name = %newcomer.name, "a node joined");
        if let Some(mesh) = self.mesh.upgrade() {
            mesh.member.remember_addr(newcomer.member.node_id, newcomer.addr);
        }
    }

    fn handle_connected(&self, member: &Member, _certificate: &[u8], addr: std::net::SocketAddr) {
        if let Some(mesh) = self.mesh.upgrade() {
            let node = member.node_id;
            debug!(%node, %addr, "connected");
            tokio::spawn(async move { Arc::clone(&mesh).greet(node).await });
        }
    }

    fn name_of(&self, node: NodeId) -> String {
        self.mesh.upgrade().map_or_else(|| node.short(), |mesh| mesh.node_name(node))
    }

    fn handle_disconnected(&self, node: NodeId) {
        debug!(%node, "disconnected");
    }

    fn removal(&self, node: NodeId) -> Option<String> {
        let mesh = self.mesh.upgrade()?;
        mesh.member.removal_of(node).or_else(|| mesh.member.removal_of(mesh.member.me))
    }

    fn handle_removal(&self, from: NodeId, word: String) {
        if let Some(mesh) = self.mesh.upgrade() {
            tokio::task::spawn_blocking(move || mesh.member.take_objects(from, &[word]));
        }
    }

    fn handle_renewed(&self, certificate: &[u8]) {
        if let Some(mesh) = self.mesh.upgrade() {
            let certificate = certificate.to_vec();
            tokio::task::spawn_blocking(move || mesh.publish_member(&certificate));
        }
    }
}
