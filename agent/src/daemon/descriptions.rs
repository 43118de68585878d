//! What containers of an engine say of themselves: how their endpoints are called, and the services
//! of which they are backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tracing::{debug, info};
use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    limits::CLAIM_NAMES,
    record::Claim,
};

use super::mesh::Mesh;
use crate::{
    api::{ApiError, Preference, Service, ServiceMode, ServiceSpec, ServiceUpdate},
    docker::{Description, ServiceLabel, is_selector},
    firewall::clients::Clients,
    host::endpoints::Stored,
    services,
};

impl Mesh {
    /// Says how an endpoint is called from now on. A name that somebody has it does not get.
    pub(super) async fn describe_endpoint(
        self: &Arc<Self>,
        id: EndpointId,
        wanted: Description,
    ) -> Result<(), ApiError> {
        let _hosted = self.lock_host().await?;
        let before = self.stored_endpoint(id)?;
        let endpoint = self.described(&before, wanted);
        if endpoint == before {
            return Ok(());
        }
        // Names come before labels where a record has no place for all.
        let short = Stored { labels: BTreeMap::new(), ..endpoint.clone() };
        let shortest = Stored { aliases: Vec::new(), ..short.clone() };
        let mut refused = Ok(());
        for endpoint in [endpoint, short, shortest] {
            refused = self.announce(&Claim::Endpoint(endpoint.claim())).await;
            match &refused {
                Ok(()) => return self.save(&endpoint),
                Err(error) => info!(endpoint = %endpoint.name, %error, "it says too much"),
            }
        }
        refused
    }

    fn described(&self, before: &Stored, wanted: Description) -> Stored {
        let mut endpoint = before.clone();
        let is_free = |name: &_| self.check_unique(before.network, Some(name), None).is_ok();
        let is_no_service = |name: Option<&_>, alias: &[_]| {
            self.member
                .objects
                .read(|set| services::check_names(set, before.network, name, alias))
                .is_ok()
        };
        if !wanted.names.contains(&before.name) {
            let mut names = wanted.names.into_iter();
            if let Some(name) = names.find(|name| is_free(name) && is_no_service(Some(name), &[])) {
                info!(endpoint = %before.name, %name, "a container has another name");
                endpoint.name = name;
            }
        }
        endpoint.aliases = wanted.aliases;
        endpoint.aliases.retain(|alias| {
            alias.as_str() != endpoint.name.as_str()
                && is_no_service(None, std::slice::from_ref(alias))
        });
        endpoint.aliases.truncate(CLAIM_NAMES);
        endpoint.labels = wanted.labels;
        endpoint
    }

    /// Makes a service that endpoints name themselves, or gives it the ports that it lacks.
    pub(super) async fn offer_service(
        self: &Arc<Self>,
        network: NetworkId,
        wanted: &ServiceLabel,
    ) -> Result<(), ApiError> {
        let mut all = self.services.list(self);
        all.retain(|it| it.network == network && it.name == wanted.name);
        // Several hosts may have made it at once: one of these has the name.
        let younger = all.iter().filter(|it| it.state == "conflict" && is_selector(&it.selector));
        if all.len() > 1 {
            for service in younger {
                self.services.remove(self, &service.id.to_string()).await?;
            }
        }
        let known = all.into_iter().find(|it| it.state != "conflict");
        let (key, value) = wanted.selector();
        let Some(known) = known else {
            let spec = ServiceSpec {
                name: wanted.name.clone(),
                network: network.to_string(),
                ports: wanted.ports.clone(),
                backends: BTreeSet::new(),
                selector: [(key, value)].into(),
                mode: ServiceMode::default(),
                vips: Vec::new(),
                lb: None,
                weights: BTreeMap::new(),
                prefer: Preference::default(),
                sticky_s: None,
                check: None,
                drain_ms: None,
                published: Vec::new(),
                clients: Clients::default(),
            };
            self.services.create(self, spec).await?;
            info!(service = %wanted.name, "a container has made the service");
            return Ok(());
        };
        let mut missing = wanted.ports.clone();
        missing.retain(|port| !known.ports.contains(port));
        // One that somebody made for others chooses by itself.
        if missing.is_empty() || !is_selector(&known.selector) {
            return Ok(());
        }
        let update = ServiceUpdate { add_ports: missing, ..ServiceUpdate::default() };
        self.services.update(self, &known.id.to_string(), &update).await?;
        Ok(())
    }

    /// Removes the services of a network that its containers had made.
    pub(super) async fn remove_offered(self: &Arc<Self>, network: NetworkId) {
        let is_offered = |it: &Service| it.network == network && is_selector(&it.selector);
        for service in self.services.list(self).into_iter().filter(is_offered) {
            if let Err(error) = self.services.remove(self, &service.id.to_string()).await {
                debug!(service = %service.name, %error, "it stays");
            }
        }
    }
}
