//! What the log says of nodes and networks, in step with what is believed (`crate::member`).

use vxmesh_proto::object::ObjectSet;

use super::mesh::Mesh;
use crate::lock::lock;

impl Mesh {
    /// Says in the log what changed among nodes and networks.
    pub(super) fn tell_changes(&self) {
        let Some(gossip) = self.member.gossip.get() else { return };
        let hash = self.member.objects.read(ObjectSet::content_hash);
        let up = gossip.with_directory(|directory| directory.up().collect());
        let causes = (hash, self.local_networks.ids(), up);
        lock(&self.member.logged.states).tell(causes, || (self.node_list(), self.network_list()));
    }
}
