//! What a node that has just joined or started cannot know yet. Whoever wants to change something
//! waits for it, a few seconds at most; who looks sees what is known.

use std::time::Duration;

use tokio::time::sleep;
use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::addr::NodeId;

use super::mesh::Mesh;
use crate::{
    api::{ApiError, ErrorCode},
    lock::lock,
};

/// How long after the start members are waited for: who was not heard of until then is missing for
/// good reason.
const SETTLES: Duration = Duration::from_secs(5);
/// How often is looked whether something is known by now.
const LOOK: Duration = Duration::from_millis(50);

/// What a node knows of the others.
#[derive(Clone, Copy, Debug)]
struct Acquaintance {
    /// Since its start.
    age: Duration,
    /// Whether it knows where others are.
    has_others: bool,
    /// Whether it compared objects with one of them.
    has_met: bool,
    /// Whether all members that it knows are up.
    hears_all: bool,
}

impl Acquaintance {
    /// Whether it is likely to know more in a moment.
    fn grows(self) -> bool {
        let is_stranger = self.has_others && !self.has_met;
        self.age < SETTLES && (is_stranger || !self.hears_all)
    }
}

impl Mesh {
    /// Whether every member was heard of, or was given the time to be.
    pub(super) fn is_settled(&self, gossip: &Gossip) -> bool {
        self.host.name_servers.age() >= SETTLES || self.member.hears_all(gossip)
    }

    /// Whether this node started so short a time ago that it may hear of others any moment.
    pub(super) fn is_settling(&self) -> bool {
        let others =
            || lock(&self.member.location.known).keys().any(|node| *node != self.member.me);
        let acquaintance = Acquaintance {
            age: self.host.name_servers.age(),
            has_others: others(),
            has_met: self.member.sync.has_met(),
            hears_all: self.member.gossip.get().is_none_or(|gossip| self.is_settled(gossip)),
        };
        acquaintance.grows()
    }

    /// What is found, for which a node that has just started waits until others told of it.
    pub(super) async fn once_known<T>(
        &self,
        find: impl Fn() -> Result<T, ApiError> + Send,
    ) -> Result<T, ApiError> {
        loop {
            let is_settling = self.is_settling();
            match find() {
                Err(error) if is_settling && error.code == ErrorCode::NotFound => {}
                found => return found,
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until this node knows what others have made, so that nothing gets a name that is
    /// taken.
    pub(super) async fn once_met(&self) {
        while !self.member.sync.has_met() && self.is_settling() {
            sleep(LOOK).await;
        }
    }

    /// Whether another node is up; one of which nothing was heard yet is waited for.
    pub(super) async fn is_up_soon(&self, node: NodeId) -> bool {
        loop {
            let is_settling = self.is_settling();
            let is_up = self.member.live_nodes().contains(&node);
            if is_up || !is_settling {
                return is_up;
            }
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_just_joined_is_about_to_know_more() {
        let of = |age, has_others, has_met, hears_all| {
            let age = Duration::from_secs(age);
            Acquaintance { age, has_others, has_met, hears_all }.grows()
        };
        for (grows, has_others, has_met, hears_all) in [
            // It knows nobody but itself as a member, and where to ask.
            (true, true, false, true),
            (true, true, true, false),
            (true, true, false, false),
            (false, true, true, true),
            // It made the mesh.
            (false, false, false, true),
        ] {
            assert_eq!(of(0, has_others, has_met, hears_all), grows);
            assert!(!of(5, has_others, has_met, hears_all), "who is away is not waited for");
        }
    }
}
