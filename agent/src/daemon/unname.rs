//! How an endpoint loses its names before its link, so that who was just led to it still reaches
//! it.
//!
//! So it is wherever somebody takes an endpoint away that works: `network disconnect`,
//! `endpoint detach`, `sandbox rm`, `leave`. Where the command or the namespace is gone, the names
//! go at once.
//!
//! Nor do services send it new connections from then on. One that a service has by its labels keeps
//! those that it has: it says that it fails, for all services at once, and for as many as there is
//! room for by themselves, which older versions understand, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{join_all, try_join_all};
use tracing::warn;
use vxmesh_proto::{
    addr::{EndpointId, NetworkId, ServiceId},
    limits::CLAIM_CHECKS,
    record::{Claim, EVERY_SERVICE, EndpointClaim},
};

use super::mesh::Mesh;
use crate::{
    api::ApiError,
    host::endpoints::Stored,
    lock::lock,
    netlink::{
        callers::{Callers, callers},
        netns::Netns,
    },
    services::selecting,
};

/// From the end of a name to the end of the link: longer than a resolver's answer and a handshake
/// are on their way.
const LEAD: Duration = Duration::from_secs(1);
/// How much longer the link stays while somebody is connected who came after the name went: whoever
/// was led there last is to have an answer, on a busy machine too.
const ANSWERS: Duration = Duration::from_secs(4);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);

impl Mesh {
    /// Takes the names of endpoints away everywhere and waits until who asked for them before is
    /// connected. Their links work meanwhile.
    pub(super) async fn take_names(self: &Arc<Self>, endpoints: &[Stored]) -> Result<(), ApiError> {
        let rows = self.endpoint_list();
        let others = rows.iter().filter(|row| endpoints.iter().all(|it| it.id != row.id));
        let others: BTreeSet<NetworkId> = others.map(|row| row.network).collect();
        // Where there is nobody else, nobody has asked.
        let is_asked = |it: &&Stored| it.is_attached() && others.contains(&it.network);
        let asked: Vec<&Stored> = endpoints.iter().filter(is_asked).collect();
        if asked.is_empty() || self.member.departed().is_some() {
            return Ok(());
        }
        let places: BTreeSet<PathBuf> = asked.iter().filter_map(|it| it.plug().netns).collect();
        let connected = connected_to(places.clone()).await;
        lock(&self.host.pending.unnamed).extend(asked.iter().map(|endpoint| endpoint.id));
        let claims: Vec<Claim> =
            asked.iter().map(|endpoint| Claim::Endpoint(nameless(endpoint.claim()))).collect();
        try_join_all(claims.iter().map(|claim| self.announce(claim))).await?;
        tokio::time::sleep(LEAD).await;
        let end = Instant::now() + ANSWERS;
        while Instant::now() < end && !connected_to(places.clone()).await.is_subset(&connected) {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The same for endpoints that go in any case.
    pub(super) async fn take_names_if_possible(self: &Arc<Self>, endpoints: &[Stored]) {
        if let Err(error) = self.take_names(endpoints).await {
            warn!(%error, "names are not taken away before what they lead to");
        }
    }

    /// Ends what [`take_names`](Self::take_names) began: an endpoint that is still there has its
    /// names again.
    pub(super) async fn settle_names(
        self: &Arc<Self>,
        endpoints: &[Stored],
    ) -> Result<(), ApiError> {
        let taken: BTreeSet<EndpointId> = {
            let mut unnamed = lock(&self.host.pending.unnamed);
            endpoints.iter().map(|it| it.id).filter(|id| unnamed.remove(id)).collect()
        };
        let stays = |it: &&Stored| taken.contains(&it.id) && matches!(self.is_stored(it), Ok(true));
        let claims: Vec<Claim> = endpoints
            .iter()
            .filter(stays)
            .map(|endpoint| Claim::Endpoint(endpoint.claim()))
            .collect();
        let told = join_all(claims.iter().map(|claim| self.announce(claim))).await;
        told.into_iter().collect()
    }

    /// What this node says of an endpoint that is in a network of this host.
    pub(super) fn local_claim(&self, endpoint: &Stored) -> EndpointClaim {
        let claim = endpoint.claim();
        if self.is_going(endpoint.id) { nameless(claim) } else { claim }
    }

    /// Whether an endpoint is about to go, and has its last words said.
    pub(crate) fn is_going(&self, endpoint: EndpointId) -> bool {
        lock(&self.host.pending.unnamed).contains(&endpoint)
    }

    /// What the others are told of an endpoint's health: first that for which there may be no room.
    pub(super) fn health_told(&self, endpoint: &EndpointClaim) -> Vec<BTreeMap<String, bool>> {
        if !self.is_going(endpoint.id) {
            return vec![self.services.health_of(endpoint.id)];
        }
        last_words(&self.member.objects.read(|set| selecting(set, endpoint)))
    }
}

/// That an endpoint works for none of its services any more, at length and in short.
fn last_words(services: &[ServiceId]) -> Vec<BTreeMap<String, bool>> {
    if services.is_empty() {
        return vec![BTreeMap::new()];
    }
    let for_all = BTreeMap::from([(EVERY_SERVICE.to_owned(), false)]);
    let each = services.iter().map(|service| (service.short(), false));
    vec![for_all.clone().into_iter().chain(each.take(CLAIM_CHECKS - 1)).collect(), for_all]
}

/// Who is connected to servers in these namespaces; nobody where that cannot be seen.
async fn connected_to(places: BTreeSet<PathBuf>) -> BTreeSet<(PathBuf, String)> {
    let look = move || {
        let of = |place: &PathBuf| Netns::open(place).ok().and_then(|netns| callers(&netns).ok());
        let found = places.into_iter().map(|place| (of(&place).unwrap_or_default(), place));
        found
            .flat_map(|(found, place): (Callers, PathBuf)| {
                found.into_iter().map(move |ends| (place.clone(), ends))
            })
            .collect()
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// The same endpoint under the name that one gets if nobody gives it one: nobody asks for that.
fn nameless(claim: EndpointClaim) -> EndpointClaim {
    let name = format!("ep-{}", claim.id.short()).parse().unwrap_or(claim.name);
    EndpointClaim { name, aliases: Vec::new(), ..claim }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_for_all_services_however_many_there_are() {
        assert_eq!(last_words(&[]), [BTreeMap::new()], "nothing else is sent for it");
        for count in [1, 15, 16, 100u8] {
            let services: Vec<_> = (0..count).map(|n| ServiceId::from_random([n; 16])).collect();
            let [long, short] = &last_words(&services)[..] else { panic!("{count}") };
            assert_eq!(*short, [(EVERY_SERVICE.to_owned(), false)].into(), "{count}");
            assert_eq!(long.len(), CLAIM_CHECKS.min(usize::from(count) + 1));
            for words in [long, short] {
                assert_eq!(words.get(EVERY_SERVICE), Some(&false));
                assert!(words.values().all(|is| !is));
            }
        }
    }
}
