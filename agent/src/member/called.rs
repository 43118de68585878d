//! What a node is called where there is no row of it: in the log.

use vxmesh_proto::{
    addr::{Name, NodeId},
    object::{Content, ObjectId},
    record::{Claim, Key},
};

use super::Member;

impl Member {
    /// The name that it tells, or told when it became a member; else the beginning of its id.
    pub(crate) fn name_of(&self, node: NodeId) -> String {
        let told = self.gossip.get().and_then(|gossip| {
            gossip.with_directory(|directory| {
                match directory.get(node, Key::Node)?.record.claim() {
                    Claim::Node(claim) => Some(claim.name.clone()),
                    Claim::Endpoint(_) | Claim::Gone => None,
                }
            })
        });
        let stored = || {
            self.objects.read(|set| match set.get(&ObjectId::Member(node))?.content() {
                Content::Member(member) => member.name.clone(),
                _ => None,
            })
        };
        told.or_else(stored).as_ref().map_or_else(|| node.short(), Name::to_string)
    }
}
