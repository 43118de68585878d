//! A published port of this host as the store keeps it ([`Published`]), and the ways by which it
//! leads to a sandbox or to an endpoint of a container engine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use vxmesh_proto::{
    addr::EndpointId,
    sandbox::{Connected, DefaultRoute, default_routes},
};

use crate::{
    api,
    firewall::{clients::Clients, network::Entrance, rule::Protocol},
    gateway::{publish::Publish, uplink::Uplink},
};

/// A published port as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) protocol: Protocol,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) sandbox_port: u16,
    /// The port of the uplink, of whatever network: what the host's rules and those inside have in
    /// common.
    pub(crate) inner: u16,
    /// Who is led there.
    #[serde(default, skip_serializing_if = "Clients::are_all")]
    pub(crate) clients: Clients,
}

impl Published {
    /// One row, or one for each IP version where they lead by different networks.
    pub(crate) fn rows(&self, connected: &[Connected]) -> Vec<api::Published> {
        let routes = self.routes(connected);
        let row = |ip: Option<IpAddr>, endpoint: Option<EndpointId>| api::Published {
            protocol: self.protocol,
            ip,
            port: self.port,
            sandbox_port: self.sandbox_port,
            endpoint,
            clients: self.clients.clone(),
        };
        match routes.as_slice() {
            [one, other] if one.endpoint != other.endpoint => {
                let any = |route: &DefaultRoute| match route.ip {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                routes.iter().map(|route| row(Some(any(route)), Some(route.endpoint))).collect()
            }
            routes => vec![row(self.ip, routes.first().map(|route| route.endpoint))],
        }
    }

    /// As it was asked for.
    pub(crate) const fn wanted(&self) -> Publish {
        Publish {
            protocol: self.protocol,
            ip: self.ip,
            port: Some(self.port),
            sandbox_port: self.sandbox_port,
        }
    }

    /// The ways to the sandbox, of the IP versions that the host's side has.
    pub(crate) fn routes(&self, connected: &[Connected]) -> Vec<DefaultRoute> {
        let asked =
            |route: &DefaultRoute| self.ip.is_none_or(|ip| ip.is_ipv4() == route.ip.is_ipv4());
        default_routes(connected).filter(asked).collect()
    }

    /// The address and port of an uplink from which a way leads on.
    pub(crate) fn entrance(&self, uplink: &Uplink, route: &DefaultRoute) -> Option<Entrance> {
        let at = uplink.ips().into_iter().find(|ip| ip.is_ipv4() == route.ip.is_ipv4())?;
        Some(Entrance {
            protocol: self.protocol,
            at: (at, self.inner).into(),
            to: (route.ip, self.sandbox_port).into(),
        })
    }
}
