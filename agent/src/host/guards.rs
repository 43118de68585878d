//! The guarded ports of the networks that are here: what a sandbox may say, and what was refused
//! (`crate::firewall::guard`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use tracing::{debug, info, warn};
use vxmesh_proto::{
    addr::{EndpointId, NetworkId},
    lb::{service_mac, service_source_mac},
};

use crate::{
    datapath::drops::{DropKey, Drops},
    firewall::{
        FirewallError,
        guard::{Port, Rules},
        guarded::GuardedPorts,
        services::Macs,
        table::TableId,
    },
    lock::lock,
    netlink::{netns::Netns, overlay::port_name},
    reconcile::tables::gateway_mac,
};

/// The guarded ports of each network that is here. Changed by who changes the host.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    networks: Mutex<BTreeMap<NetworkId, GuardedPorts>>,
}

impl Guards {
    /// Guards the ports of a network that comes to this host, those of the agent's last life among
    /// them.
    pub(crate) fn open(
        &self,
        netns: &Netns,
        (id, isolated): (NetworkId, bool),
        ports: impl IntoIterator<Item = (EndpointId, Port)>,
    ) -> Result<(), FirewallError> {
        let ports = ports.into_iter().map(|(endpoint, port)| (port_name(endpoint), port)).collect();
        let rules = Rules { gateway: gateway_mac(id), isolated };
        let guarded = GuardedPorts::open(netns, rules, ports)?;
        lock(&self.networks).insert(id, guarded);
        Ok(())
    }

    /// Lets an endpoint speak; before its port is there.
    pub(crate) fn admit(
        &self,
        network: NetworkId,
        endpoint: EndpointId,
        port: Port,
    ) -> Result<(), FirewallError> {
        let mut networks = lock(&self.networks);
        let guarded = networks.get_mut(&network);
        guarded.map_or(Ok(()), |guarded| guarded.admit(port_name(endpoint), port))
    }

    /// Forgets an endpoint whose port is gone.
    pub(crate) fn forget(&self, network: NetworkId, endpoint: EndpointId) {
        if let Some(guarded) = lock(&self.networks).get_mut(&network)
            && let Err(error) = guarded.forget(&port_name(endpoint))
        {
            // It lets nobody in: the port is gone, and its name never comes again.
            debug!(%endpoint, %error, "the keys of a port stay");
        }
    }

    /// Lets the rules of a network go, whose namespace goes.
    pub(crate) fn close(&self, id: NetworkId) {
        lock(&self.networks).remove(&id);
    }

    /// Has the kernel lead the answers of services' backends on this host to the agent, if there
    /// are such backends, and on while there are services: one that comes back has connections yet.
    /// Whether it does. What the last life of this agent led goes on until it is known
    /// (`is_settled`) that it has ended.
    pub(crate) fn steer(
        &self,
        id: NetworkId,
        is_backend_here: bool,
        has_services: bool,
        is_settled: impl Fn() -> bool,
    ) -> bool {
        let steers = || lock(&self.networks).get(&id).is_some_and(GuardedPorts::is_steered);
        let wanted = is_backend_here || (has_services && steers());
        if !wanted && !is_settled() {
            return false;
        }
        let macs = Macs { service: service_mac(id), source: service_source_mac(id) };
        let mut networks = lock(&self.networks);
        let Some(guarded) = networks.get_mut(&id) else { return false };
        match guarded.steer(wanted.then_some(macs)) {
            Ok(()) => wanted,
            Err(error) => {
                warn!(network = %id.short(), %error, "services do not reach their backends on this host; it is tried again");
                false
            }
        }
    }

    /// Puts back what somebody took away in these networks, and says in which of their namespaces
    /// anybody changed rules. `name` is what the log calls a network.
    pub(crate) fn mend(
        &self,
        is_asked: impl Fn(&NetworkId) -> bool,
        name: impl Fn(NetworkId) -> String,
    ) -> BTreeSet<NetworkId> {
        let mut networks = lock(&self.networks);
        let changed = |(id, guarded): (&NetworkId, &mut GuardedPorts)| {
            mend(guarded, || name(*id)).then_some(*id)
        };
        networks.iter_mut().filter(|(id, _)| is_asked(id)).filter_map(changed).collect()
    }

    /// Somebody had taken away the counters of what a network routes: they count from zero.
    pub(crate) fn count_anew(&self, id: NetworkId) {
        if let Some(guarded) = lock(&self.networks).get_mut(&id) {
            guarded.count_anew(TableId::default());
        }
    }

    /// Adds what the rules of these networks refused to the counters of the data path. `endpoints`
    /// are those of this host.
    pub(crate) fn count(
        &self,
        drops: &Drops,
        is_asked: impl Fn(usize, NetworkId) -> bool,
        endpoints: impl IntoIterator<Item = EndpointId>,
    ) {
        let ports: BTreeMap<String, EndpointId> =
            endpoints.into_iter().map(|endpoint| (port_name(endpoint), endpoint)).collect();
        for (place, (id, guarded)) in lock(&self.networks).iter_mut().enumerate() {
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
                if let Some(key) = DropKey::named(&reason) {
                    drops.add(key.in_network(*id).with_endpoint(endpoint), count);
                }
            }
        }
    }
}

/// Puts back what somebody took away. Whether anybody changed a rule in the namespace.
fn mend(guarded: &mut GuardedPorts, name: impl Fn() -> String) -> bool {
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
