//! What a node says of itself to services: its zone, and whether its backends are drained.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::task::block_in_place;
use vxmesh_gossip::directory::Directory;
use vxmesh_proto::{
    addr::{Name, NodeId},
    control::{Request, Response},
    object::ObjectSet,
    record::{Claim, Key, NodeClaim},
};

use super::{ServiceError, Services, lock};
use crate::{
    admin::resolve,
    api,
    daemon::Mesh,
    objects::unix_ms,
    store::{Store, StoreError, Table},
};

/// Where it is kept.
const KEY: &str = "place";
/// How long another node may take to change.
const ANSWER: Duration = Duration::from_secs(5);

/// A node as services see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlace {
    /// Since when its backends get no new connections, in Unix milliseconds.
    pub drained: Option<u64>,
    /// The zone that it is in.
    pub zone: Option<Name>,
}

/// All nodes of which something is known.
pub type Places = BTreeMap<NodeId, NodePlace>;

impl Services {
    /// What this node says.
    pub(crate) fn place(&self) -> NodePlace {
        lock(&self.place).clone()
    }

    /// Changes it, and tells the mesh.
    pub(crate) fn set_place(
        &self,
        mesh: &Mesh,
        change: impl FnOnce(&mut NodePlace),
    ) -> Result<(), StoreError> {
        let written = block_in_place(|| {
            let mut place = lock(&self.place);
            let mut next = place.clone();
            change(&mut next);
            mesh.store.put(Table::Meta, KEY, &next)?;
            *place = next.clone();
            Ok(next)
        });
        let NodePlace { drained, zone } = written?;
        mesh.member.republish(Key::Node, |claim| match claim {
            Claim::Node(claim) => Some(Claim::Node(NodeClaim { drained, zone, ..claim.clone() })),
            Claim::Endpoint(_) | Claim::Gone => None,
        });
        Ok(())
    }

    /// What this node said in its last life.
    pub(super) fn load_place(store: &Store) -> Result<NodePlace, StoreError> {
        Ok(store.get(Table::Meta, KEY)?.unwrap_or_default())
    }

    /// Forgets it: another mesh is another matter.
    pub(crate) fn forget_place(store: &Store) -> Result<(), StoreError> {
        store.delete(Table::Meta, KEY).map(drop)
    }

    /// Changes what a node says, here or by asking it.
    pub(crate) async fn update_node(
        &self,
        mesh: &Arc<Mesh>,
        reference: &str,
        (drain, zone): (Option<bool>, Option<String>),
    ) -> Result<api::Node, ServiceError> {
        mesh.check_member()?;
        let row = resolve::one(&mesh.node_list(), reference).cloned()?;
        if row.is_self {
            self.change_place(mesh, drain, zone.as_deref())?;
        } else {
            zone.as_deref().map(zone_of).transpose()?;
            let request = Request::ChangePlace { drain, zone };
            let control = mesh.member.control.get().ok_or(ServiceError::Starting)?;
            match control.request(row.id, &request, ANSWER).await {
                Ok(Response::Done) => {}
                Ok(_) => {
                    return Err(ServiceError::NodeSilent(row.name, "it does not know how".into()));
                }
                Err(error) => return Err(ServiceError::NodeSilent(row.name, error.to_string())),
            }
        }
        Ok(row)
    }

    /// The same for this node, also where another asks.
    pub(crate) fn change_place(
        &self,
        mesh: &Mesh,
        drain: Option<bool>,
        zone: Option<&str>,
    ) -> Result<(), ServiceError> {
        let zone = zone.map(zone_of).transpose()?;
        let changed = self.set_place(mesh, |place| {
            match drain {
                Some(true) => place.drained = place.drained.or_else(|| Some(unix_ms())),
                Some(false) => place.drained = None,
                None => {}
            }
            if let Some(zone) = zone {
                place.zone = zone;
            }
        });
        changed.map_err(ServiceError::Store)
    }
}

/// The zone with this name; none if that is empty.
fn zone_of(name: &str) -> Result<Option<Name>, ServiceError> {
    (!name.is_empty()).then(|| name.parse()).transpose().map_err(ServiceError::Zone)
}

/// What all nodes say.
pub(crate) fn places(mesh: &Mesh) -> Places {
    let members: Vec<NodeId> = mesh.member.objects.read(|set| ObjectSet::members(set).collect());
    let of = |directory: &Directory| {
        let place = |node: NodeId| match directory.get(node, Key::Node)?.record.claim() {
            Claim::Node(claim) => {
                let (drained, zone) = (claim.drained, claim.zone.clone());
                Some((node, NodePlace { drained, zone }))
            }
            Claim::Endpoint(_) | Claim::Gone => None,
        };
        members.into_iter().filter_map(place).collect()
    };
    mesh.member.gossip.get().map(|gossip| gossip.with_directory(of)).unwrap_or_default()
}
