//! Sandboxes in networks: connected and disconnected while their command runs.
//!
//! ```text
//! connect    : endpoint attached -> routes, names, published ports follow                        undone backwards
//! disconnect : names withdrawn -> a second -> store "attaching" -> routes, names, published ports follow -> withdraw -> endpoint unplugged
//! ```
//!
//! Which network has the default route, is asked first for names and leads to published ports is
//! one order (`vxmesh_proto::sandbox`), made anew from the store after each change. A disconnection
//! that the agent's end cuts short is completed by the next start, because an endpoint that is
//! "attaching" is undone there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tracing::warn;
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId},
    object,
    record::Claim,
    sandbox::{self, Connected, default_routes},
};

use super::{
    hosting::Hosted,
    mesh::{Mesh, failed},
    sandboxes::Stored,
};
use crate::{
    admin::resolve,
    api::{self, ApiError, AttachSpec, Connection, ErrorCode, SandboxNetwork},
    host::endpoints::Stored as StoredEndpoint,
    netlink::{link::Links, netns::Netns, overlay::OverlayError},
};

/// The networks of each sandbox, in order.
pub(super) type AllConnected = BTreeMap<String, Vec<Connected>>;

/// The networks of a sandbox as the API shows them.
pub(super) fn network_rows(connected: &[Connected]) -> Vec<SandboxNetwork> {
    let gateways = |endpoint: EndpointId| {
        let led = default_routes(connected).filter(move |route| route.endpoint == endpoint);
        led.map(|route| route.gateway).collect::<Vec<IpAddr>>()
    };
    let row = |it: &Connected| SandboxNetwork {
        network: it.network,
        endpoint: it.endpoint,
        gw_priority: it.gw_priority,
        default_gateways: gateways(it.endpoint),
    };
    connected.iter().map(row).collect()
}

/// The names of interfaces for these connections: those that were asked for, and for the others the
/// first that are left.
pub(super) fn ifnames(connections: &[Connection]) -> Result<Vec<String>, ApiError> {
    let mut taken = BTreeSet::new();
    for ifname in connections.iter().filter_map(|connection| connection.ifname.clone()) {
        if let Some(twice) = taken.replace(ifname) {
            let message = format!("two networks shall have the interface {twice}");
            return Err(ApiError::new(ErrorCode::Usage, message, "give each a name of its own"));
        }
    }
    let mut free = (0u32..).map(|n| format!("eth{n}")).filter(|name| !taken.contains(name));
    let names = connections.iter().map(|one| one.ifname.clone().or_else(|| free.next()));
    Ok(names.flatten().collect())
}

impl Mesh {
    /// The networks of all sandboxes of this node.
    pub(super) fn all_connected(&self) -> Result<AllConnected, ApiError> {
        let mut networks: BTreeMap<NetworkId, Option<object::Network>> = BTreeMap::new();
        let mut all = AllConnected::new();
        for endpoint in self.endpoint_rows()?.iter() {
            let Some(sandbox) = endpoint.sandbox.as_ref().filter(|_| endpoint.is_attached()) else {
                continue;
            };
            let network = networks.entry(endpoint.network).or_insert_with(|| {
                self.network_object(endpoint.network).map(|(network, _state)| network)
            });
            let connected = self.connected_by(endpoint, network.as_ref());
            all.entry(sandbox.clone()).or_default().push(connected);
        }
        all.values_mut().for_each(|connected| sandbox::sort(connected));
        Ok(all)
    }

    /// An endpoint's part in its network.
    pub(super) fn connected_by(
        &self,
        endpoint: &StoredEndpoint,
        network: Option<&object::Network>,
    ) -> Connected {
        let gateways = |network: &object::Network| {
            let reachable: &[object::Subnet] =
                if network.internal { &[] } else { &network.subnets };
            reachable.iter().map(|subnet| subnet.gateway).collect()
        };
        // Those that the user named, where the network has none of ours.
        let routers = self.macvlan_of(endpoint.network).map(|macvlan| macvlan.gateways);
        Connected {
            endpoint: endpoint.id,
            network: endpoint.network,
            name: network.map(|network| network.name.clone()),
            gw_priority: endpoint.gw_priority,
            ips: endpoint.ips.clone(),
            gateways: routers.or_else(|| network.map(gateways)).unwrap_or_default(),
        }
    }

    /// Endpoints of sandboxes here whose default route of an IP version (whether IPv4) is another
    /// network's, and which.
    pub(crate) fn routed_elsewhere(&self) -> BTreeMap<(EndpointId, bool), Name> {
        let mut elsewhere = BTreeMap::new();
        for connected in self.all_connected().unwrap_or_default().values() {
            for route in default_routes(connected) {
                let (by, others): (Vec<_>, Vec<_>) =
                    connected.iter().partition(|it| it.endpoint == route.endpoint);
                let Some(by) = by.first().and_then(|it| it.name.as_ref()) else { continue };
                let key = |it: &Connected| (it.endpoint, route.gateway.is_ipv4());
                elsewhere.extend(others.into_iter().map(|it| (key(it), by.clone())));
            }
        }
        elsewhere
    }

    /// The networks of a sandbox.
    pub(super) fn connected(&self, sandbox: &Name) -> Result<Vec<Connected>, ApiError> {
        Ok(self.all_connected()?.remove(sandbox.as_str()).unwrap_or_default())
    }

    /// Attaches a sandbox's endpoint in a network.
    pub(super) async fn attach_sandbox(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
        connection: &Connection,
    ) -> Result<StoredEndpoint, ApiError> {
        let spec = AttachSpec {
            network: connection.network.clone(),
            netns: sandbox.netns().display().to_string(),
            name: Some(sandbox.name.clone()),
            aliases: connection.aliases.clone(),
            ips: connection.ips.clone(),
            mac: connection.mac,
            ifname: connection.ifname.clone(),
            labels: sandbox.labels.clone(),
            sandbox: Some(sandbox.name.to_string()),
        };
        self.attach_stored(hosted, spec, connection.gw_priority).await
    }

    /// `network connect`
    pub(super) async fn connect_sandbox(
        self: &Arc<Self>,
        reference: &str,
        connection: Connection,
    ) -> Result<api::Endpoint, ApiError> {
        let mut hosted = self.lock_host().await?;
        let sandbox = self.find_sandbox(reference)?;
        let network = self.find_network(&connection.network)?;
        if let Some(shared) = &sandbox.mode {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("sandbox `{}` runs with --network {}", sandbox.name, shared.mode),
                "only a sandbox that has networks can get another",
            ));
        }
        if self.endpoints_of(&sandbox.name)?.iter().any(|own| own.network == network.id) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("sandbox `{}` is in network `{}` already", sandbox.name, network.name),
                "see `vxmesh sandbox inspect`; disconnect it first to change what it is there",
            ));
        }
        let endpoint = self.attach_sandbox(&mut hosted, &sandbox, &connection).await?;
        if let Err(error) = self.settle(&mut hosted, &sandbox).await {
            // What kept it from being in step may keep it still; out of the network it is in any
            // case.
            if let Err(undo) = self.undo_connection(&mut hosted, &sandbox, endpoint).await {
                warn!(sandbox = %sandbox.name, error = %undo, "a half-made connection is not wholly undone");
            }
            return Err(error);
        }
        drop(hosted);
        self.reconcile().await;
        resolve::one(&self.endpoint_list(), &endpoint.id.to_string()).cloned()
    }

    /// `network disconnect`
    pub(super) async fn disconnect_sandbox(
        self: &Arc<Self>,
        reference: &str,
        network: &str,
    ) -> Result<api::Endpoint, ApiError> {
        let (sandbox, endpoint) = {
            let _host = self.lock_host().await?;
            self.find_connection(reference, network)?
        };
        let (id, row) = (endpoint.id, endpoint.row(self.member.me));
        let endpoint = [endpoint];
        let left = match self.take_names(&endpoint).await {
            Ok(()) => self.leave_found(&sandbox, network, id).await,
            Err(error) => Err(error),
        };
        let settled = self.settle_names(&endpoint).await;
        self.reconcile().await;
        left.and(settled)?;
        row.ok_or_else(|| {
            let message = format!("sandbox `{}` was not wholly in the network", sandbox.name);
            ApiError::new(ErrorCode::NotFound, message, "what there was of it is removed")
        })
    }

    /// Takes a sandbox out of a network by an endpoint that was found before; it may be gone by
    /// now.
    async fn leave_found(
        self: &Arc<Self>,
        sandbox: &Stored,
        network: &str,
        id: EndpointId,
    ) -> Result<(), ApiError> {
        let mut hosted = self.lock_host().await?;
        let (sandbox, endpoint) = self.find_connection(sandbox.name.as_str(), network)?;
        if endpoint.id == id {
            self.leave_network(&mut hosted, &sandbox, endpoint).await
        } else {
            Err(failed("the sandbox left the network and came back meanwhile", "try again"))
        }
    }

    /// A sandbox and its endpoint in a network.
    fn find_connection(
        &self,
        reference: &str,
        network: &str,
    ) -> Result<(Stored, StoredEndpoint), ApiError> {
        let sandbox = self.find_sandbox(reference)?;
        let network = self.find_network(network)?;
        let own = self.endpoints_of(&sandbox.name)?;
        let endpoint = own.into_iter().find(|own| own.network == network.id).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("sandbox `{}` is not in network `{}`", sandbox.name, network.name),
                "see `vxmesh sandbox inspect`",
            )
        })?;
        Ok((sandbox, endpoint))
    }

    async fn undo_connection(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
        mut endpoint: StoredEndpoint,
    ) -> Result<(), ApiError> {
        self.set_attached(&mut endpoint, false)?;
        let settled = self.settle(hosted, sandbox).await;
        self.silence(hosted, &endpoint).await;
        self.withdraw_everywhere(endpoint.network, endpoint.id).await;
        self.unplug(hosted, &endpoint).await?;
        settled
    }

    /// Takes a sandbox out of a network; if that fails, it is in it as before, unless only the
    /// network's own end failed.
    async fn leave_network(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
        mut endpoint: StoredEndpoint,
    ) -> Result<(), ApiError> {
        self.set_attached(&mut endpoint, false)?;
        let Err(error) = self.unplug_from(hosted, sandbox, &endpoint).await else { return Ok(()) };
        // Without its row its addresses may be another's by now, and it is out of the network in
        // any case.
        if !matches!(self.is_stored(&endpoint), Ok(true)) {
            return Err(error);
        }
        self.set_attached(&mut endpoint, true)?;
        let mut back = self.announce(&Claim::Endpoint(endpoint.claim())).await;
        if back.is_ok() {
            back = self.mend_cable(hosted, &endpoint).await;
        }
        if back.is_ok() {
            back = self.settle(hosted, sandbox).await;
        }
        if let Err(undo) = back {
            warn!(sandbox = %sandbox.name, error = %undo, "a disconnection that failed is not wholly undone");
        }
        Err(error)
    }

    /// Brings the cable of an endpoint that stays to what it was.
    async fn mend_cable(&self, hosted: &Hosted, endpoint: &StoredEndpoint) -> Result<(), ApiError> {
        match hosted.overlays.get(&endpoint.network) {
            Some(overlay) => Ok(overlay.attach(&endpoint.plug()).await.map(drop)?),
            None => Ok(()),
        }
    }

    async fn unplug_from(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
        endpoint: &StoredEndpoint,
    ) -> Result<(), ApiError> {
        // What goes out by another network from now on is not to be interrupted by what follows.
        self.settle(hosted, sandbox).await?;
        self.silence(hosted, endpoint).await;
        // Nobody is led to it any more when its interface goes.
        self.withdraw_everywhere(endpoint.network, endpoint.id).await;
        self.unplug(hosted, endpoint).await
    }

    /// Brings in step what a sandbox's networks decide together: default routes, names, published
    /// ports. What fails keeps nothing else from being done.
    pub(super) async fn settle(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
    ) -> Result<(), ApiError> {
        let connected = self.connected(&sandbox.name)?;
        let routed = self.route_sandbox(sandbox, &connected).await;
        self.reconcile().await;
        let named = self.name_sandbox(sandbox).inspect_err(|_told| self.host.name_servers.owe());
        let published = self.sync_published(hosted, sandbox, &connected);
        routed.and(named).and(published)
    }

    /// Settles sandboxes whose endpoints came or went without them: what fails is told.
    pub(super) async fn settle_all(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandboxes: &BTreeSet<String>,
    ) {
        let stored = self.stored_sandboxes().unwrap_or_default();
        for sandbox in stored.iter().filter(|it| sandboxes.contains(it.name.as_str())) {
            if let Err(error) = self.settle(hosted, sandbox).await {
                warn!(sandbox = %sandbox.name, %error, "the sandbox does not follow its networks");
            }
        }
    }

    /// Gives every sandbox its default routes: for the start.
    pub(super) async fn adopt_routes(&self) -> Result<(), ApiError> {
        let all = self.all_connected()?;
        for sandbox in &self.stored_sandboxes()? {
            let connected = all.get(sandbox.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            if let Err(error) = self.route_sandbox(sandbox, connected).await {
                warn!(sandbox = %sandbox.name, %error, "the sandbox's default routes are not looked at");
            }
        }
        Ok(())
    }

    /// Gives these sandboxes their default routes anew.
    pub(super) async fn route_sandboxes(&self, names: &BTreeSet<String>) -> Result<(), ApiError> {
        if names.is_empty() {
            return Ok(());
        }
        let all = self.all_connected()?;
        for sandbox in self.stored_sandboxes()?.iter().filter(|it| names.contains(it.name.as_str()))
        {
            let connected = all.get(sandbox.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            self.route_sandbox(sandbox, connected).await?;
        }
        Ok(())
    }

    async fn route_sandbox(
        &self,
        sandbox: &Stored,
        connected: &[Connected],
    ) -> Result<(), ApiError> {
        // The routes are the host's, or another sandbox's.
        if sandbox.mode.is_some() {
            return Ok(());
        }
        let netns = match Netns::open(sandbox.netns()) {
            // Its end, or a start that was cut off: there is nobody to give routes to.
            Err(error) if error.is_absence() => return Ok(()),
            netns => netns.map_err(OverlayError::from)?,
        };
        let inside = Links::open(&netns).map_err(OverlayError::from)?;
        let endpoints = self.endpoints_of(&sandbox.name)?;
        for ipv4 in [true, false] {
            let by = sandbox::default_route(connected, ipv4).and_then(|route| {
                let endpoint = endpoints.iter().find(|own| own.id == route.endpoint)?;
                Some((route.gateway, endpoint.ifname()?))
            });
            inside.set_default_route(ipv4, by).await.map_err(OverlayError::from)?;
        }
        Ok(())
    }

    /// A sandbox's endpoints as the store has them, half-made ones among them.
    pub(super) fn endpoints_of(&self, sandbox: &Name) -> Result<Vec<StoredEndpoint>, ApiError> {
        let mut endpoints = self.stored_endpoints()?;
        endpoints.retain(|endpoint| endpoint.sandbox.as_deref() == Some(sandbox.as_str()));
        Ok(endpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(ifnames: &[Option<&str>]) -> Vec<Connection> {
        let one = |ifname: &Option<&str>| Connection {
            ifname: ifname.map(ToOwned::to_owned),
            ..Connection::to("blue")
        };
        ifnames.iter().map(one).collect()
    }

    #[test]
    fn interfaces_that_were_asked_for_are_left_to_those_who_asked() {
        for (asked, named_as) in [
            ([None, None, None], ["eth0", "eth1", "eth2"]),
            ([None, Some("eth0"), None], ["eth1", "eth0", "eth2"]),
            ([Some("net"), None, Some("eth1")], ["net", "eth0", "eth1"]),
        ] {
            assert_eq!(ifnames(&named(&asked)).unwrap(), named_as, "{asked:?}");
        }
        let twice = ifnames(&named(&[Some("a"), None, Some("a")])).unwrap_err();
        assert_eq!((twice.code, twice.message.contains("interface a")), (ErrorCode::Usage, true));
    }
}
