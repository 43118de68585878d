//! The guarded ports of the networks that are here: what a sandbox may say, and what was refused
//! (`crate::firewall::guard`).

use std::collections::{BTreeMap, BTreeSet};

use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    lb::{service_mac, service_source_mac},
    object,
    reason::DropReason,
};

use super::{
    endpoints::Stored,
    mesh::{Mesh, failed, lock},
};
use crate::{
    api::ApiError,
    datapath::drops::DropKey,
    firewall::{
        FirewallError, counted::Counted, guard::Rules, guarded::GuardedPorts, services::Macs,
        table::TableId,
    },
    netlink::overlay::{Overlay, port_name},
    reconcile::tables::gateway_mac,
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
        let ports: BTreeMap<_, _> = attached.map(|e| (port_name(e.id), e.port())).collect();
        let rules = Rules { gateway: gateway_mac(id), isolated: network.isolated };
        let guarded = GuardedPorts::open(overlay.netns(), rules, ports).map_err(refused)?;
        lock(&self.guards).insert(id, guarded);
        Ok(())
    }

    /// Lets an endpoint speak; before its port is there.
    pub(super) fn guard_port(&self, endpoint: &Stored) -> Result<(), ApiError> {
        let mut guards = lock(&self.guards);
        let guarded = guards.get_mut(&endpoint.network);
        guarded
            .map_or(Ok(()), |guarded| guarded.admit(port_name(endpoint.id), endpoint.port()))
            .map_err(refused)
    }

    /// Forgets an endpoint whose port is gone.
    pub(super) fn unguard_port(&self, network: NetworkId, endpoint: EndpointId) {
        if let Some(guarded) = lock(&self.guards).get_mut(&network)
            && let Err(error) = guarded.forget(&port_name(endpoint))
        {
            // It lets nobody in: the port is gone, and its name never comes again.
            debug!(%endpoint, %error, "the keys of a port stay");
        }
    }

    /// Lets the rules of a network go, whose namespace goes.
    pub(super) fn unguard_network(&self, id: NetworkId) {
        self.count_refused(|_place, other| other == id);
        lock(&self.guards).remove(&id);
    }

    /// Has the kernel lead the answers of services' backends on this host to the agent, if there
    /// are such backends, and on while there are services: one that comes back has connections yet.
    /// Whether it does.
    pub(super) fn steer(&self, id: NetworkId, is_backend_here: bool, has_services: bool) -> bool {
        let steers = || lock(&self.guards).get(&id).is_some_and(GuardedPorts::is_steered);
        let wanted = is_backend_here || (has_services && steers());
        // What the last life of this agent led goes on until it is known that it has ended.
        if !wanted && !self.name_servers.names.snapshot().settled {
            return false;
        }
        let macs = Macs { service: service_mac(id), source: service_source_mac(id) };
        let mut guards = lock(&self.guards);
        let Some(guarded) = guards.get_mut(&id) else { return false };
        match guarded.steer(wanted.then_some(macs)) {
            Ok(()) => wanted,
            Err(error) => {
                warn!(network = %id, %error, "services do not reach their backends on this host; it is tried again");
                false
            }
        }
    }

    /// Puts back what somebody took away in these networks, and says in which of their namespaces
    /// anybody changed rules.
    pub(super) fn keep_guards(&self, is_asked: impl Fn(&NetworkId) -> bool) -> BTreeSet<NetworkId> {
        let mut guards = lock(&self.guards);
        let changed = |(id, guarded): (&NetworkId, &mut GuardedPorts)| {
            self.keep_guard(*id, guarded).then_some(*id)
        };
        guards.iter_mut().filter(|(id, _)| is_asked(id)).filter_map(changed).collect()
    }

    fn keep_guard(&self, id: NetworkId, guarded: &mut GuardedPorts) -> bool {
        let name = || match self.network_object(id) {
            Some((network, _state)) => network.name.to_string(),
            None => id.to_string(),
        };
        match guarded
            .is_stale()
            .and_then(|stale| if stale { guarded.mend().map(Some) } else { Ok(None) })
        {
            Ok(None) => return false,
            Ok(Some(true)) => {
                info!(network = %name(), "the rules for the network's ports were changed, and are back");
            }
            Ok(Some(false)) => {}
            Err(error) => {
                warn!(network = %name(), %error, "the network's ports are not guarded as they should be");
            }
        }
        true
    }

    /// Somebody had taken away the counters of what a network routes: they count from zero.
    pub(super) fn counters_replaced(&self, id: NetworkId) {
        if let Some(guarded) = lock(&self.guards).get_mut(&id) {
            guarded.count_anew(TableId::default());
        }
    }

    /// Adds what the rules of these networks refused to the counters of the data path.
    pub(super) fn count_refused(&self, is_asked: impl Fn(usize, NetworkId) -> bool) {
        let endpoints = self.endpoint_rows().unwrap_or_default();
        let ports: BTreeMap<String, EndpointId> =
            endpoints.iter().map(|endpoint| (port_name(endpoint.id), endpoint.id)).collect();
        for (place, (id, guarded)) in lock(&self.guards).iter_mut().enumerate() {
            if !is_asked(place, *id) {
                continue;
            }
            let dropped = match guarded.dropped() {
                Ok(dropped) => dropped,
                Err(error) => {
                    debug!(network = %id, %error, "the rules' counters cannot be read");
                    continue;
                }
            };
            for ((reason, port), count) in dropped {
                let endpoint = port.and_then(|port| ports.get(&port).copied());
                self.count_dropped(&reason, (Some(*id), endpoint), count);
            }
        }
    }

    /// The same of the host's own table, while there is one: on a thread of the host's namespace.
    pub(super) fn count_on_host(&self) {
        match lock(&self.on_host).counted.as_mut().map(Counted::more) {
            Some(Ok(dropped)) => {
                for (reason, count) in dropped {
                    self.count_dropped(&reason, (None, None), count);
                }
            }
            Some(Err(error)) => {
                debug!(%error, "the counters of the host's rules cannot be read");
            }
            None => {}
        }
    }

    fn count_dropped(
        &self,
        name: &str,
        (network, endpoint): (Option<NetworkId>, Option<EndpointId>),
        count: u64,
    ) {
        if let Some(reason) = DropReason::ALL.iter().find(|reason| reason.as_str() == name) {
            let key = DropKey::of(*reason).in_network(network).with_endpoint(endpoint);
            self.plane.drops().add(key, count);
        }
    }
}
