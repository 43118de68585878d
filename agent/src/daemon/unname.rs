//! How an endpoint loses its names before its link, so that who was just led to it still reaches it.

use std::{sync::Arc, time::Duration};

use vxmesh_proto::record::{Claim, EndpointClaim};

use super::{
    endpoints::Stored,
    mesh::{Mesh, lock},
};
use crate::api::ApiError;

/// From the end of a name to the end of the link: longer than a resolver's answer and a handshake are on their way.
const LEAD: Duration = Duration::from_secs(1);

impl Mesh {
    /// Takes the names of an endpoint away everywhere and waits until who asked for them before is connected. Its link
    /// works meanwhile.
    pub(super) async fn take_names(self: &Arc<Self>, endpoint: &Stored) -> Result<(), ApiError> {
        lock(&self.unnamed).insert(endpoint.id);
        self.announce(&Claim::Endpoint(nameless(endpoint.claim()))).await?;
        tokio::time::sleep(LEAD).await;
        Ok(())
    }

    /// What this node says of an endpoint that is in a network of this host.
    pub(super) fn local_claim(&self, endpoint: &Stored) -> EndpointClaim {
        let claim = endpoint.claim();
        if lock(&self.unnamed).contains(&endpoint.id) { nameless(claim) } else { claim }
    }
}

/// The same endpoint under the name that one gets if nobody gives it one: nobody asks for that.
fn nameless(claim: EndpointClaim) -> EndpointClaim {
    let name = format!("ep-{}", claim.id.short()).parse().unwrap_or(claim.name);
    EndpointClaim { name, aliases: Vec::new(), ..claim }
}
