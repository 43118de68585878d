//! Attaching an endpoint.
//!
//! ```text
//! unlocked : addresses, perhaps of other nodes
//! locked   : name and MAC are free -> row "attaching" in the store -> the network's namespace
//! unlocked : published -> in the tables of all who are connected
//! locked   : cable -> row "attached"
//! ```
//!
//! Where the host is not locked, many endpoints are attached at once. The row keeps name, MAC and
//! the network's namespace for its endpoint meanwhile; who removes it removes what there is of the
//! endpoint, and whoever locks the host again looks for it.

use std::sync::Arc;

use ipnet::IpNet;
use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    object::{self, NetworkState},
    record::Claim,
};

use super::{
    endpoints::gone,
    hosting::Hosted,
    mesh::{Mesh, conflict, store_failed},
};
use crate::{
    api::{self, ApiError, AttachSpec, AttachmentKey, ErrorCode},
    host::endpoints::{Engine, Stored},
    services,
    store::Table,
};

/// Whose an endpoint is beside its user's.
pub(super) enum Whose {
    /// Nobody else's.
    Own,
    /// A container engine's, under this id.
    Engine(Engine, EndpointId),
    /// A container runtime's, which calls it so.
    Runtime(AttachmentKey),
}

impl Mesh {
    /// Plugs a new endpoint in and tells the mesh.
    pub(super) async fn attach(
        self: &Arc<Self>,
        spec: AttachSpec,
    ) -> Result<api::Endpoint, ApiError> {
        // Into sandboxes of ours leads `network connect`, which keeps their routes and names in
        // step.
        let spec = AttachSpec { sandbox: None, ..spec };
        let (id, network) = self.usable_network(&spec.network)?;
        if let Some(name) = &spec.name {
            self.end_if_vanished(|other| other.network == id && other.name == *name).await;
        }
        let endpoint = if self.is_local(id) {
            // Nobody else is told of it or asked.
            let mut hosted = self.lock_host().await?;
            self.attach_stored(&mut hosted, spec, 0).await?
        } else {
            // Before other nodes are asked for addresses that a refusal would put back.
            self.check_unique(id, spec.name.as_ref(), spec.mac)?;
            self.member
                .objects
                .read(|set| services::check_names(set, id, spec.name.as_ref(), &spec.aliases))?;
            let ips = self.allocate(&network, id, &spec.ips).await?;
            match self.begin(id, spec, &ips, Whose::Own).await {
                Ok(endpoint) => self.attach_begun(endpoint).await?,
                Err(error) => {
                    ips.iter().for_each(|ip| self.member.addresses.put_back(id, *ip));
                    return Err(error);
                }
            }
        };
        endpoint.row(self.member.me).ok_or_else(|| gone("the endpoint is gone"))
    }

    /// The same for a container engine, with addresses that it holds: its end of the cable stays on
    /// the host for it to move.
    pub(super) async fn attach_for(
        self: &Arc<Self>,
        engine: (Engine, EndpointId),
        spec: AttachSpec,
        ips: &[IpNet],
    ) -> Result<Stored, ApiError> {
        let (id, _network) = self.usable_network(&spec.network)?;
        let endpoint = self.begin(id, spec, ips, Whose::Engine(engine.0, engine.1)).await?;
        self.attach_begun(endpoint).await
    }

    pub(super) async fn attach_begun(
        self: &Arc<Self>,
        mut endpoint: Stored,
    ) -> Result<Stored, ApiError> {
        if let Err(error) = self.complete(&mut endpoint).await {
            // Also when the agent stops. A row that is gone took along what there was.
            let mut hosted = self.hosted.lock().await;
            self.silence(&hosted, &endpoint).await;
            self.withdraw(endpoint.network, endpoint.id);
            if self.is_stored(&endpoint).unwrap_or(true) {
                self.undo(&mut hosted, &endpoint).await;
            }
            return Err(error);
        }
        Ok(endpoint)
    }

    /// Writes an endpoint down. After a failure nothing is written, and the addresses are still the
    /// caller's.
    pub(super) async fn begin(
        self: &Arc<Self>,
        id: NetworkId,
        spec: AttachSpec,
        ips: &[IpNet],
        whose: Whose,
    ) -> Result<Stored, ApiError> {
        let _host = self.lock_host().await?;
        let _usable = self.usable_network(&id.to_string())?;
        let mut endpoint = self.draft(id, spec)?;
        endpoint.ips = ips.to_vec();
        match whose {
            Whose::Own => {}
            Whose::Engine(engine, own) => {
                // It may have given them back meanwhile.
                if let Some(ip) = self.unleased(id, ips)?.first() {
                    return Err(gone(&format!("{ip} is not held any more")));
                }
                (endpoint.engine, endpoint.id) = (Some(engine), own);
            }
            Whose::Runtime(key) => {
                self.check_no_attachment(&key)?;
                endpoint.attachment = Some(key);
            }
        }
        self.save(&endpoint)?;
        Ok(endpoint)
    }

    async fn complete(self: &Arc<Self>, endpoint: &mut Stored) -> Result<(), ApiError> {
        {
            let mut hosted = self.lock_host().await?;
            let network = self.check_begun(endpoint)?;
            self.prepare(&mut hosted, &network, endpoint).await?;
        }
        // All tables know it before its first frame: none is refused, and whoever asks for it gets
        // an answer.
        self.announce(&Claim::Endpoint(endpoint.claim())).await?;
        let hosted = self.lock_host().await?;
        let _network = self.check_begun(endpoint)?;
        self.plug_in(&hosted, endpoint).await
    }

    /// Refuses to go on with what somebody removed while the host was not locked.
    fn check_begun(&self, endpoint: &Stored) -> Result<object::Network, ApiError> {
        if !self.is_stored(endpoint)? {
            return Err(gone("the endpoint was removed while it was attached"));
        }
        let (network, _state) = self
            .network_object(endpoint.network)
            .ok_or_else(|| gone("the network was removed while the endpoint was attached"))?;
        Ok(network)
    }

    /// Whether nobody removed it.
    pub(super) fn is_stored(&self, endpoint: &Stored) -> Result<bool, ApiError> {
        let id = endpoint.id.to_string();
        let stored = self.store.get::<Stored>(Table::Endpoints, &id).map_err(store_failed)?;
        Ok(stored.is_some())
    }

    /// The same with the host locked all the time, for an endpoint that is one of several changes.
    pub(super) async fn attach_stored(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        spec: AttachSpec,
        gw_priority: i32,
    ) -> Result<Stored, ApiError> {
        let (id, network) = self.usable_network(&spec.network)?;
        let mut endpoint = self.draft(id, spec.clone())?;
        endpoint.gw_priority = gw_priority;
        endpoint.ips = self.allocate(&network, id, &spec.ips).await?;
        if let Err(error) = self.attach_locked(hosted, &network, &mut endpoint).await {
            self.silence(hosted, &endpoint).await;
            self.withdraw(endpoint.network, endpoint.id);
            self.undo(hosted, &endpoint).await;
            return Err(error);
        }
        Ok(endpoint)
    }

    async fn attach_locked(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        network: &object::Network,
        endpoint: &mut Stored,
    ) -> Result<(), ApiError> {
        self.save(endpoint)?;
        if let Some(macvlan) = self.macvlan_of(endpoint.network) {
            return self.plug_macvlan(&macvlan, network, endpoint).await;
        }
        self.prepare(hosted, network, endpoint).await?;
        self.announce(&Claim::Endpoint(endpoint.claim())).await?;
        self.plug_in(hosted, endpoint).await
    }

    /// A network in which endpoints can be.
    pub(super) fn usable_network(
        &self,
        reference: &str,
    ) -> Result<(NetworkId, object::Network), ApiError> {
        self.check_member()?;
        let row = self.find_network(reference)?;
        let (network, state) = self.network_object(row.id).ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, "the network is gone", "see `vxmesh network ls`")
        })?;
        if let NetworkState::Conflict { with } = state {
            let message = format!(
                "network `{}` forwards nothing: {} has its name or VNI and is older",
                row.name,
                with.short()
            );
            return Err(conflict(message, "remove one of the two"));
        }
        Ok((row.id, network))
    }
}
