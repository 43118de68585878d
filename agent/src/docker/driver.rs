//! The network driver: what each call of the engine does.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Instant};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use vxmesh_proto::addr::{Name, NetworkId};

use super::{
    Agent, Node,
    endpoint::{create_endpoint, delete_endpoint, join, leave, publish, unpublish},
    ipam::{GLOBAL_SPACE, LOCAL_SPACE, release_pool},
    network::delete_network,
    wire::OfEndpoint,
    wish::Wish,
};
use crate::{
    api::{ApiError, ErrorCode, Network},
    lock::lock,
    store::StoreError,
};

/// Calls about endpoints that may be under way at once.
const AT_ONCE: usize = 32;

/// Addresses, and when they were given back.
pub(super) type GivenBack = BTreeMap<(NetworkId, IpAddr), Instant>;

/// The driver, and what it waits for.
pub(crate) struct Driver {
    agent: Arc<dyn Agent>,
    /// Held while a pool is read and written.
    pub(super) pools: Mutex<()>,
    /// Held during a call about an endpoint, one for some of them.
    endpoints: [Mutex<()>; AT_ONCE],
    given_back: std::sync::Mutex<GivenBack>,
}

impl Driver {
    pub(crate) fn new(agent: Arc<dyn Agent>) -> Self {
        let endpoints = std::array::from_fn(|_| Mutex::default());
        Self { agent, pools: Mutex::default(), endpoints, given_back: Default::default() }
    }

    /// Answers a call; the error is for who called the engine.
    pub(crate) async fn call(&self, method: &str, body: &[u8]) -> Result<Value, ApiError> {
        match method {
            "Plugin.Activate" => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
            "NetworkDriver.GetCapabilities" => {
                Ok(json!({ "Scope": "local", "ConnectivityScope": "global" }))
            }
            "IpamDriver.GetCapabilities" => {
                Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false }))
            }
            "IpamDriver.GetDefaultAddressSpaces" => Ok(json!({
                "LocalDefaultAddressSpace": LOCAL_SPACE,
                "GlobalDefaultAddressSpace": GLOBAL_SPACE,
            })),
            // What other nodes there are the mesh knows.
            "NetworkDriver.DiscoverNew" | "NetworkDriver.DiscoverDelete" => Ok(json!({})),
            "NetworkDriver.EndpointOperInfo" => Ok(json!({ "Value": {} })),
            "NetworkDriver.AllocateNetwork" | "NetworkDriver.FreeNetwork" => Err(usage(
                "networks of a swarm need the managed plug-in",
                "make the network without --scope swarm, on each host that shall have it",
            )),
            _ => {
                let node = self.agent.node().await?;
                self.call_member(&*node, method, body).await
            }
        }
    }

    /// The same for calls that need a mesh.
    async fn call_member(
        &self,
        node: &dyn Node,
        method: &str,
        body: &[u8],
    ) -> Result<Value, ApiError> {
        match method {
            "IpamDriver.RequestPool" => self.request_pool(node, read(body)?).await,
            "IpamDriver.ReleasePool" => release_pool(node, &read(body)?),
            "IpamDriver.RequestAddress" => self.request_address(node, read(body)?).await,
            "IpamDriver.ReleaseAddress" => self.release_address(node, &read(body)?).await,
            "NetworkDriver.CreateNetwork" => self.create_network(node, read(body)?).await,
            "NetworkDriver.DeleteNetwork" => delete_network(node, &read(body)?).await,
            "NetworkDriver.CreateEndpoint"
            | "NetworkDriver.Join"
            | "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity"
            | "NetworkDriver.Leave"
            | "NetworkDriver.DeleteEndpoint" => {
                self.call_endpoint(node, method, &read(body)?).await
            }
            _ => Err(usage(
                format!("the driver does not know the call {method}"),
                "use another version of the engine or of vxmesh",
            )),
        }
    }

    /// The same for calls about an endpoint, while no other call about it is under way: the engine
    /// asks for the end of one whose beginning it does not wait for any more.
    async fn call_endpoint(
        &self,
        node: &dyn Node,
        method: &str,
        asked: &OfEndpoint,
    ) -> Result<Value, ApiError> {
        let [first, ..] = &self.endpoints;
        let at = usize::from(asked.endpoint.bytes().fold(0u8, u8::wrapping_add)) % AT_ONCE;
        let _alone = self.endpoints.get(at).unwrap_or(first).lock().await;
        match method {
            "NetworkDriver.CreateEndpoint" => create_endpoint(node, asked),
            "NetworkDriver.Join" => join(node, asked).await,
            "NetworkDriver.ProgramExternalConnectivity" => publish(node, asked).await,
            "NetworkDriver.RevokeExternalConnectivity" => unpublish(node, asked).await,
            "NetworkDriver.Leave" => leave(node, asked).await,
            _ => delete_endpoint(node, asked).await,
        }
    }

    /// The addresses that the engine gave back, as long as they rest.
    pub(super) fn given_back(&self) -> std::sync::MutexGuard<'_, GivenBack> {
        lock(&self.given_back)
    }

    /// The network of the mesh that a wish names, if there is one.
    pub(super) async fn joined(&self, node: &dyn Node, wish: &Wish) -> Option<Network> {
        if wish.network.is_none() && wish.vni.is_none() {
            return None;
        }
        let networks = node.networks(wish.network.as_ref().map(Name::as_str)).await;
        networks.into_iter().filter(|network| network.state != "conflict").find(|network| {
            match &wish.network {
                Some(name) => network.name == *name,
                None => network.vni == wish.vni,
            }
        })
    }
}

/// Reads what the engine sent.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // An engine whose call was broken repeats it without what it said.
    if body.is_empty() {
        return Err(ApiError::new(
            ErrorCode::Failed,
            "the call before this one was lost",
            "do it again",
        ));
    }
    serde_json::from_slice(body)
        .map_err(|why| usage(format!("the engine says what cannot be used: {why}"), "see its log"))
}

/// An answer as JSON.
pub(super) fn answer<T: Serialize>(answer: &T) -> Result<Value, ApiError> {
    serde_json::to_value(answer)
        .map_err(|why| ApiError::new(ErrorCode::Failed, why.to_string(), "this is a defect"))
}

pub(super) fn usage(message: impl Into<String>, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Usage, message, hint)
}

pub(super) fn conflict(message: String, hint: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message, hint)
}

pub(super) fn not_found(message: &str, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, message, hint)
}

pub(super) fn store_failed(error: StoreError) -> ApiError {
    ApiError::new(ErrorCode::Failed, error.to_string(), "see `vxmesh doctor`")
}
