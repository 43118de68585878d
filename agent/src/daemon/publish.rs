//! Published ports of this node's sandboxes.
//!
//! ```text
//! publish : ports held -> sandbox and endpoints -> store -> rules inside -> the host's rules      undone backwards
//! start   : rules come from the store; ports are held again
//! ```
//!
//! Rules hold while the agent is away. A port that another program took meanwhile leads to the sandbox all the same, and is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::warn;
use vxmesh_proto::addr::{EndpointId, Name, NetworkId};

use super::{
    endpoints::Hosted,
    mesh::{Mesh, failed},
    sandboxes,
};
use crate::{
    api::{self, ApiError, ErrorCode},
    firewall::{
        host::Port,
        network::{Entrance, entrance},
        rule::Protocol,
    },
    gateway::{
        publish::{self, Held, HoldError, PORTS, Publish},
        uplink::Uplink,
    },
};

/// Ports of the host that are held, by sandbox.
pub(super) type HeldPorts = BTreeMap<Name, Vec<Held>>;

/// A published port as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Published {
    protocol: Protocol,
    ip: Option<IpAddr>,
    port: u16,
    sandbox_port: u16,
    endpoint: EndpointId,
    network: NetworkId,
    /// The port of the uplink: what the host's rules and those inside have in common.
    inner: u16,
}

impl Published {
    pub(super) fn row(&self) -> api::Published {
        api::Published {
            protocol: self.protocol,
            ip: self.ip,
            port: self.port,
            sandbox_port: self.sandbox_port,
            endpoint: self.endpoint,
        }
    }

    /// The uplink's addresses that lead on: of the IP versions that the host's side and the sandbox have.
    fn entrances(&self, uplink: &Uplink, ips: &[IpAddr]) -> Vec<Entrance> {
        let asked = |ip: &IpAddr| self.ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
        let at = uplink.ips().into_iter().filter(asked);
        at.filter_map(|ip| entrance(self.protocol, (ip, self.inner), ips, self.sandbox_port))
            .collect()
    }
}

impl From<HoldError> for ApiError {
    fn from(error: HoldError) -> Self {
        let (code, hint) = match &error {
            HoldError::Taken { .. } => {
                (ErrorCode::Conflict, "choose another port, or leave it out: `--publish :PORT`")
            }
            HoldError::NotHere(_) => (ErrorCode::Usage, "see `ip address`"),
            HoldError::NoneFree => (ErrorCode::Conflict, "name a port"),
            HoldError::Io(_) => (ErrorCode::Failed, "the agent needs root; nothing was changed"),
        };
        Self::new(code, error.to_string(), hint)
    }
}

impl Mesh {
    /// Checks what shall be published for a sandbox in these networks and holds the ports. Nothing is changed yet.
    pub(super) fn hold_ports(
        &self,
        hosted: &Hosted,
        networks: &[String],
        wanted: &[Publish],
    ) -> Result<Vec<Held>, ApiError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let usage = |message: String, hint: &str| ApiError::new(ErrorCode::Usage, message, hint);
        if wanted.len() > PORTS {
            return Err(usage(
                format!("{} ports are too many", wanted.len()),
                "publish 256 at most",
            ));
        }
        let networks: Vec<api::Network> =
            networks.iter().map(|name| self.find_network(name)).collect::<Result<_, _>>()?;
        let Some(network) = networks.iter().find(|network| !network.internal) else {
            return Err(usage(
                "nothing can be published from internal networks alone".to_owned(),
                "add a network that is not internal",
            ));
        };
        for ip in wanted.iter().filter_map(|publish| publish.ip) {
            let has = |subnet: &api::Subnet| subnet.cidr.addr().is_ipv4() == ip.is_ipv4();
            if !network.subnets.iter().any(has) {
                let message = format!("network `{}` has no subnet of {ip}'s version", network.name);
                return Err(usage(message, "publish on an address of the other IP version"));
            }
        }
        if let Some(fault) = hosted.ways.fault_of(network.id) {
            return Err(failed(
                format!("network `{}`: {fault}", network.name),
                "see `vxmesh doctor`",
            ));
        }
        let held = wanted.iter().map(|publish| {
            publish::hold(publish.protocol, publish.ip, publish.port).map_err(ApiError::from)
        });
        held.collect()
    }

    /// Leads held ports to a sandbox whose endpoints are plugged in.
    pub(super) fn publish(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &mut sandboxes::Stored,
        wanted: &[Publish],
        held: Vec<Held>,
    ) -> Result<(), ApiError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let endpoints = self.stored_endpoints()?;
        let routed = sandbox.endpoints.iter().find_map(|id| {
            let endpoint = endpoints.iter().find(|endpoint| endpoint.id == *id)?;
            hosted.ways.is_open(endpoint.network).then_some(endpoint)
        });
        let endpoint = routed
            .ok_or_else(|| failed("the sandbox has no network with a way out", "try again"))?;
        let mut taken: BTreeSet<(Protocol, u16)> = self
            .published()?
            .iter()
            .filter(|other| other.network == endpoint.network)
            .map(|other| (other.protocol, other.inner))
            .collect();
        for (publish, held) in wanted.iter().zip(&held) {
            let protocol = publish.protocol;
            // Mostly the host's own port; two addresses of the host may have it for two sandboxes.
            let mut candidates = std::iter::once(held.port).chain(1..=u16::MAX);
            let inner = candidates.find(|inner| taken.insert((protocol, *inner)));
            sandbox.published.push(Published {
                protocol,
                ip: publish.ip,
                port: held.port,
                sandbox_port: publish.sandbox_port,
                endpoint: endpoint.id,
                network: endpoint.network,
                inner: inner
                    .ok_or_else(|| failed("no port of the uplink is left", "publish less"))?,
            });
        }
        hosted.ways.held.insert(sandbox.name.clone(), held);
        self.save_sandbox(sandbox)?;
        self.sync_way(hosted, endpoint.network)
    }

    /// Takes the ports of a sandbox back that is no longer in the store.
    pub(super) fn unpublish(&self, hosted: &mut Hosted, sandbox: &sandboxes::Stored) {
        hosted.ways.held.remove(&sandbox.name);
        let networks: BTreeSet<NetworkId> =
            sandbox.published.iter().map(|published| published.network).collect();
        for network in networks {
            if let Err(error) = self.sync_way(hosted, network) {
                warn!(sandbox = %sandbox.name, %error, "its published ports are not wholly gone; it is tried again");
            }
        }
    }

    /// Holds the ports of sandboxes of the agent's last life.
    pub(super) fn adopt_ports(&self, hosted: &mut Hosted) -> Result<(), ApiError> {
        for sandbox in self.stored_sandboxes()? {
            let mut held = Vec::new();
            for Published { protocol, ip, port, .. } in &sandbox.published {
                match publish::hold(*protocol, *ip, Some(*port)) {
                    Ok(port) => held.push(port),
                    Err(error) => {
                        warn!(sandbox = %sandbox.name, %error, "the published port leads to the sandbox, but another program has it, too");
                    }
                }
            }
            hosted.ways.held.insert(sandbox.name.clone(), held);
        }
        Ok(())
    }

    fn published(&self) -> Result<Vec<Published>, ApiError> {
        Ok(self.stored_sandboxes()?.into_iter().flat_map(|sandbox| sandbox.published).collect())
    }

    /// All published ports of this node.
    pub(super) fn published_rows(&self) -> Vec<api::Published> {
        self.published().unwrap_or_default().iter().map(Published::row).collect()
    }

    /// What leads from a network's uplink to its sandboxes.
    pub(super) fn entrances(
        &self,
        network: NetworkId,
        uplink: &Uplink,
    ) -> Result<Vec<Entrance>, ApiError> {
        let ips = self.endpoint_ips()?;
        let published = self.published()?;
        let here = published.iter().filter(|published| published.network == network);
        Ok(here
            .flat_map(|published| {
                let ips = ips.get(&published.endpoint).map(Vec::as_slice).unwrap_or_default();
                published.entrances(uplink, ips)
            })
            .collect())
    }

    /// What leads from the host's ports to uplinks.
    pub(super) fn host_ports(
        &self,
        uplink: impl Fn(NetworkId) -> Option<Uplink>,
    ) -> Result<Vec<Port>, ApiError> {
        let ips = self.endpoint_ips()?;
        let port = |published: Published| {
            let uplink = uplink(published.network)?;
            let ips = ips.get(&published.endpoint).map(Vec::as_slice).unwrap_or_default();
            let to: Vec<SocketAddr> =
                published.entrances(&uplink, ips).into_iter().map(|entrance| entrance.at).collect();
            let Published { protocol, ip, port, .. } = published;
            Some(Port { protocol, ip, port, to })
        };
        Ok(self.published()?.into_iter().filter_map(port).collect())
    }

    fn endpoint_ips(&self) -> Result<BTreeMap<EndpointId, Vec<IpAddr>>, ApiError> {
        let endpoints = self.stored_endpoints()?.into_iter();
        Ok(endpoints.map(|one| (one.id, one.ips.iter().map(IpNet::addr).collect())).collect())
    }
}
