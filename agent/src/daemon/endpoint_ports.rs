//! Published ports of endpoints that a container engine has: they lead to that endpoint alone, and
//! go with it.
//!
//! ```text
//! publish   : ports held -> store -> rules inside -> the host's rules        undone backwards
//! unpublish : store -> rules; nothing of it is left to do if nothing is published
//! ```

use std::sync::Arc;

use tracing::warn;
use vxmesh_proto::addr::EndpointId;

use super::{
    endpoints::gone,
    hosting::Hosted,
    mesh::{Mesh, failed},
    publish::Publisher,
};
use crate::{
    api::{ApiError, Connection},
    firewall::clients::Clients,
    gateway::publish::{Held, Publish},
    host::endpoints::Stored,
};

impl Mesh {
    /// Leads ports of this host to an endpoint, and no others: of each list the first that is free.
    pub(super) async fn publish_endpoint(
        self: &Arc<Self>,
        id: EndpointId,
        wanted: &[Vec<Publish>],
    ) -> Result<(), ApiError> {
        if wanted.is_empty() {
            // Docker says this of every container, and one without ports needs no way in.
            return self.unpublish_endpoint(id).await;
        }
        let mut hosted = self.lock_host().await?;
        let mut endpoint = self.stored_endpoint(id)?;
        if self.are_published(&hosted, &endpoint, wanted) {
            return Ok(());
        }
        let connection =
            Connection { network: endpoint.network.to_string(), ..Connection::default() };
        let first = |candidates: &Vec<Publish>| match candidates.as_slice() {
            [one] => Some(*one),
            // Two may be asked for out of one range.
            [one, ..] => Some(Publish { port: None, ..*one }),
            [] => None,
        };
        let first: Vec<Publish> = wanted.iter().filter_map(first).collect();
        self.check_ports(&hosted, &[connection], &first)?;
        if !endpoint.published.is_empty() {
            endpoint.published.clear();
            self.keep_endpoint_ports(&mut hosted, &endpoint, Vec::new())?;
        }
        let mut chosen = Vec::new();
        for candidates in wanted {
            chosen.push(self.hold_first(candidates)?);
        }
        let (asked, held): (Vec<Publish>, Vec<Held>) = chosen.into_iter().unzip();
        endpoint.published = self.numbered(asked.into_iter().zip(&held), &Clients::default())?;
        let kept = self.keep_endpoint_ports(&mut hosted, &endpoint, held);
        if kept.is_err() {
            endpoint.published.clear();
            if let Err(error) = self.keep_endpoint_ports(&mut hosted, &endpoint, Vec::new()) {
                warn!(endpoint = %endpoint.name, %error, "its published ports are not wholly gone; it is tried again");
            }
        }
        kept
    }

    /// Takes back all ports that lead to an endpoint; none is fine, and no endpoint, too.
    pub(super) async fn unpublish_endpoint(
        self: &Arc<Self>,
        id: EndpointId,
    ) -> Result<(), ApiError> {
        let mut hosted = self.lock_host().await?;
        let Ok(mut endpoint) = self.stored_endpoint(id) else { return Ok(()) };
        if endpoint.published.is_empty() {
            return Ok(());
        }
        endpoint.published.clear();
        self.keep_endpoint_ports(&mut hosted, &endpoint, Vec::new())
    }

    /// Takes back the ports of an endpoint that is no longer in the store.
    pub(super) fn give_up_endpoint_ports(&self, hosted: &mut Hosted, endpoint: &Stored) {
        hosted.ways.held.remove(&Publisher::Endpoint(endpoint.id));
        if endpoint.published.is_empty() {
            return;
        }
        if let Err(error) = self.sync_way(hosted, endpoint.network) {
            warn!(endpoint = %endpoint.name, %error, "its published ports are not wholly gone; it is tried again");
        }
    }

    /// An endpoint that is wholly there.
    pub(super) fn stored_endpoint(&self, id: EndpointId) -> Result<Stored, ApiError> {
        let mut endpoints = self.stored_endpoints()?;
        endpoints.retain(|endpoint| endpoint.id == id && endpoint.is_attached());
        endpoints.pop().ok_or_else(|| gone("the endpoint is gone"))
    }

    /// Whether what is wanted is there already: it is asked for again after a broken call.
    fn are_published(&self, hosted: &Hosted, endpoint: &Stored, wanted: &[Vec<Publish>]) -> bool {
        let is_one_of = |(published, wanted): (Publish, &Vec<Publish>)| {
            // Where any port would do, the one that was chosen is the one that is wanted.
            wanted
                .iter()
                .any(|one| Publish { port: one.port.or(published.port), ..*one } == published)
        };
        let published = endpoint.published.iter().map(|it| it.wanted());
        endpoint.published.len() == wanted.len()
            && published.zip(wanted).all(is_one_of)
            && hosted.ways.held.contains_key(&Publisher::Endpoint(endpoint.id))
    }

    fn hold_first(&self, candidates: &[Publish]) -> Result<(Publish, Held), ApiError> {
        let mut last = failed("no port of the host was named", "name one");
        for publish in candidates {
            match self.hold_port(publish) {
                Ok(held) => return Ok((*publish, held)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn keep_endpoint_ports(
        &self,
        hosted: &mut Hosted,
        endpoint: &Stored,
        held: Vec<Held>,
    ) -> Result<(), ApiError> {
        self.save(endpoint)?;
        hosted.ways.held.insert(Publisher::Endpoint(endpoint.id), held);
        self.sync_way(hosted, endpoint.network)
    }
}
