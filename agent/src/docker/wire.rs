//! What the engine sends and is answered (libnetwork's remote driver protocol), as far as it is
//! used. Keys that are not here are ignored: newer engines add some.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use vxmesh_proto::addr::MacAddr;

/// Options under which those of the user are.
pub(super) const GENERIC: &str = "com.docker.network.generic";
/// Whether the network is without a way out.
pub(super) const INTERNAL: &str = "com.docker.network.internal";
/// The ports of the host that lead to the container.
pub(super) const PORT_MAP: &str = "com.docker.network.portmap";
/// What an address is asked for, and the value for a gateway's.
pub(super) const ADDRESS_TYPE: &str = "RequestAddressType";
pub(super) const GATEWAY: &str = "com.docker.network.gateway";

/// Free-form options, of any type.
pub(super) type Options = BTreeMap<String, Value>;

/// The engine says `null` where it has no options, and "" where it has no address.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

pub(super) fn if_any<'de, D: Deserializer<'de>, T: std::str::FromStr>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    T::Err: std::fmt::Display,
{
    let text: String = or_default(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|why| serde::de::Error::custom(format!("{text:?}: {why}")))
}

/// `IpamDriver.RequestPool`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestPool {
    #[serde(default, deserialize_with = "if_any")]
    pub(super) pool: Option<IpNet>,
    #[serde(default, deserialize_with = "if_any")]
    pub(super) sub_pool: Option<IpNet>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) options: Options,
    #[serde(default, rename = "V6")]
    pub(super) is_ipv6: bool,
}

/// Its answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Pool {
    #[serde(rename = "PoolID")]
    pub(super) id: String,
    pub(super) pool: IpNet,
    pub(super) data: Options,
}

/// `IpamDriver.ReleasePool`
#[derive(Debug, Deserialize)]
pub(super) struct ReleasePool {
    #[serde(rename = "PoolID")]
    pub(super) id: String,
}

/// `IpamDriver.RequestAddress`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestAddress {
    #[serde(rename = "PoolID")]
    pub(super) pool: String,
    #[serde(default, deserialize_with = "if_any")]
    pub(super) address: Option<IpAddr>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) options: Options,
}

/// Its answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Address {
    pub(super) address: IpNet,
    pub(super) data: Options,
}

/// `IpamDriver.ReleaseAddress`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReleaseAddress {
    #[serde(rename = "PoolID")]
    pub(super) pool: String,
    pub(super) address: IpAddr,
}

/// `NetworkDriver.CreateNetwork`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) options: Options,
    #[serde(default, rename = "IPv4Data", deserialize_with = "or_default")]
    pub(super) ipv4: Vec<PoolData>,
    #[serde(default, rename = "IPv6Data", deserialize_with = "or_default")]
    pub(super) ipv6: Vec<PoolData>,
}

/// A pool of a network that is made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolData {
    #[serde(default)]
    pub(super) address_space: String,
    pub(super) pool: IpNet,
}

/// A call about a network alone.
#[derive(Debug, Deserialize)]
pub(super) struct OfNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
}

/// A call about an endpoint.
#[derive(Debug, Deserialize)]
pub(super) struct OfEndpoint {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
    #[serde(default, rename = "Interface", deserialize_with = "or_default")]
    pub(super) interface: Interface,
    #[serde(default, rename = "Options", deserialize_with = "or_default")]
    pub(super) options: Options,
}

/// What an endpoint has; in an answer only what the engine did not say itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Interface {
    #[serde(default, deserialize_with = "if_any")]
    pub(super) address: Option<IpNet>,
    #[serde(default, rename = "AddressIPv6", deserialize_with = "if_any")]
    pub(super) address_ipv6: Option<IpNet>,
    #[serde(default, deserialize_with = "if_any")]
    pub(super) mac_address: Option<MacAddr>,
}

impl Interface {
    pub(super) fn ips(&self) -> Vec<IpNet> {
        self.address.into_iter().chain(self.address_ipv6).collect()
    }
}

/// What `NetworkDriver.Join` is answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Joined {
    pub(super) interface_name: InterfaceName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gateway: Option<IpAddr>,
    #[serde(rename = "GatewayIPv6", skip_serializing_if = "Option::is_none")]
    pub(super) gateway_ipv6: Option<IpAddr>,
    pub(super) static_routes: Vec<StaticRoute>,
    /// Or the engine gives the container an interface on a bridge of its own beside.
    pub(super) disable_gateway_service: bool,
}

/// Which link of the host it is, and how it is called in the container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub(super) src_name: String,
    pub(super) dst_prefix: &'static str,
}

/// A subnet on the link itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StaticRoute {
    pub(super) destination: IpNet,
    pub(super) route_type: u8,
}

impl StaticRoute {
    pub(super) const fn on_link(destination: IpNet) -> Self {
        Self { destination, route_type: 1 }
    }
}
