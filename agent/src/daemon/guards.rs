//! The guarded ports of the networks that are here, as the running member has them kept
//! (`crate::host::guards`).

use std::collections::BTreeSet;

use vxmesh_proto::{addr::NetworkId, object};

use super::mesh::{Mesh, failed};
use crate::{
    api::ApiError, firewall::FirewallError, host::endpoints::Stored, lock::lock,
    netlink::overlay::Overlay,
};

fn refused(error: FirewallError) -> ApiError {
    failed(error, "no sandbox is plugged in unguarded: does the kernel have nf_tables for bridges?")
}

impl Mesh {
    /// Guards the ports of a network that comes to this host, those of the agent's last life among
    /// them.
    pub(super) fn guard_network(
        &self,
        overlay: &Overlay,
        id: NetworkId,
        network: &object::Network,
    ) -> Result<(), ApiError> {
        let stored = self.stored_endpoints()?;
        let attached = stored.iter().filter(|other| other.network == id && other.is_attached());
        let ports = attached.map(|endpoint| (endpoint.id, endpoint.port()));
        self.host.guards.open(overlay.netns(), (id, network.isolated), ports).map_err(refused)
    }

    /// Lets an endpoint speak; before its port is there.
    pub(super) fn guard_port(&self, endpoint: &Stored) -> Result<(), ApiError> {
        self.host.guards.admit(endpoint.network, endpoint.id, endpoint.port()).map_err(refused)
    }

    /// Lets the rules of a network go, whose namespace goes.
    pub(super) fn unguard_network(&self, id: NetworkId) {
        self.count_refused(|_place, other| other == id);
        self.host.guards.close(id);
    }

    /// Has the kernel lead the answers of services' backends on this host to the agent.
    pub(super) fn steer(&self, id: NetworkId, is_backend_here: bool, has_services: bool) -> bool {
        let is_settled = || self.host.name_servers.names.snapshot().settled;
        self.host.guards.steer(id, is_backend_here, has_services, is_settled)
    }

    /// Puts back what somebody took away in these networks, and says in which of their namespaces
    /// anybody changed rules.
    pub(super) fn keep_guards(&self, is_asked: impl Fn(&NetworkId) -> bool) -> BTreeSet<NetworkId> {
        self.host.guards.mend(is_asked, |id| match self.network_object(id) {
            Some((network, _state)) => network.name.to_string(),
            None => id.to_string(),
        })
    }

    /// Somebody had taken away the counters of what a network routes: they count from zero.
    pub(super) fn counters_replaced(&self, id: NetworkId) {
        self.host.guards.count_anew(id);
    }

    /// Adds what the rules of these networks refused to the counters of the data path.
    pub(super) fn count_refused(&self, is_asked: impl Fn(usize, NetworkId) -> bool) {
        let endpoints = self.endpoint_rows().unwrap_or_default();
        let endpoints = endpoints.iter().map(|endpoint| endpoint.id);
        self.host.guards.count(self.host.plane.drops(), is_asked, endpoints);
    }

    /// The same of the host's own table, while there is one: on a thread of the host's namespace.
    pub(super) fn count_on_host(&self) {
        lock(&self.host.on_host).count(self.host.plane.drops());
    }
}
