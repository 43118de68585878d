//! The routes of the admin API: each reads its request, makes one call of [`Backend`] and writes
//! the answer as JSON.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State,
        rejection::BytesRejection,
    },
    http::{Method, StatusCode, Uri, request::Parts},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Backend;
use crate::api::{
    Address, ApiError, AttachSpec, AttachmentKey, AttachmentSpec, AttachmentsKept, Connection,
    DnsQuery, DnsRecord, EndpointSpec, ErrorBody, ErrorCode, ExtendSpec, FlowQuery, HealthWord,
    InitSpec, JoinSpec, LeaveSpec, Located, NetworkSpec, NetworkUpdate, NodeSpec, SandboxEnded,
    SandboxSpec, SandboxStarted, ServiceSpec, ServiceUpdate, TokenSpec,
};

/// Largest request body. The largest request has a few dozen addresses and labels; 1 MiB is far
/// above any.
const BODY_LEN: usize = 1024 * 1024;

type Agent = State<Arc<dyn Backend>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// The whole API on top of `backend`.
pub fn router(backend: Arc<dyn Backend>) -> Router {
    Router::new()
        .merge(membership())
        .merge(objects())
        .merge(attachments())
        .merge(services())
        .merge(sandboxes())
        .merge(views())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LEN))
        .with_state(backend)
}

fn membership() -> Router<Arc<dyn Backend>> {
    let init = async |State(agent): Agent, Spec(spec): Spec<InitSpec>| {
        to_the_end(async move { agent.init(spec).await }).await
    };
    let join = async |State(agent): Agent, Spec(spec): Spec<JoinSpec>| {
        to_the_end(async move { agent.join(spec).await }).await
    };
    let leave = async |State(agent): Agent, Spec(spec): Spec<LeaveSpec>| {
        to_the_end(async move { agent.leave(spec).await }).await
    };
    let backup = async |State(agent): Agent| agent.backup().await.map(Json);
    let tokens = async |State(agent): Agent| agent.tokens().await.map(Json);
    let create = async |State(agent): Agent, Spec(spec): Spec<TokenSpec>| {
        to_the_end(async move { agent.token_create(spec).await }).await
    };
    let revoke = async |State(agent): Agent, Ref(token): Ref| {
        to_the_end(async move { agent.token_revoke(&token).await }).await
    };
    Router::new()
        .route("/v1/init", post(init))
        .route("/v1/join", post(join))
        .route("/v1/leave", post(leave))
        .route("/v1/backup", get(backup))
        .route("/v1/tokens", get(tokens).post(create))
        .route("/v1/tokens/{reference}", delete(revoke))
}

fn objects() -> Router<Arc<dyn Backend>> {
    let networks = async |State(agent): Agent| agent.networks().await.map(Json);
    let network = async |State(agent): Agent, Ref(net): Ref| agent.network(&net).await.map(Json);
    let create = async |State(agent): Agent, Spec(spec): Spec<NetworkSpec>| {
        to_the_end(async move { agent.network_create(spec).await }).await
    };
    let extend = async |State(agent): Agent, Ref(net): Ref, Spec(spec): Spec<ExtendSpec>| {
        to_the_end(async move { agent.network_extend(&net, spec).await }).await
    };
    let change = async |State(agent): Agent, Ref(net): Ref, Spec(spec): Spec<NetworkUpdate>| {
        to_the_end(async move { agent.network_update(&net, spec).await }).await
    };
    let rm = async |State(agent): Agent, Ref(net): Ref, query: Queried<RemoveQuery>| {
        let Query(query) = query.map_err(|why| bad_request(why.body_text()))?;
        to_the_end(async move { agent.network_rm(&net, query.force).await }).await
    };
    let endpoints = async |State(agent): Agent| agent.endpoints().await.map(Json);
    let endpoint = async |State(agent): Agent, Ref(ep): Ref| agent.endpoint(&ep).await.map(Json);
    let attach = async |State(agent): Agent, Spec(spec): Spec<AttachSpec>| {
        to_the_end(async move { agent.endpoint_attach(spec).await }).await
    };
    let update = async |State(agent): Agent, Ref(ep): Ref, Spec(spec): Spec<EndpointSpec>| {
        to_the_end(async move { agent.endpoint_update(&ep, spec).await }).await
    };
    let detach = async |State(agent): Agent, Ref(ep): Ref| {
        to_the_end(async move { agent.endpoint_detach(&ep).await }).await
    };
    let pools = async |State(agent): Agent| agent.pools().await.map(Json);
    let trust = async |State(agent): Agent| agent.trust_pools().await.map(Json);
    let pool = async |State(agent): Agent, Ref(net): Ref| agent.network_pools(&net).await.map(Json);
    Router::new()
        .route("/v1/ipam", get(pools).post(trust))
        .route("/v1/ipam/{reference}", get(pool))
        .route("/v1/networks", get(networks).post(create))
        .route("/v1/networks/{reference}", get(network).patch(change).delete(rm))
        .route("/v1/networks/{reference}/extend", post(extend))
        .route("/v1/endpoints", get(endpoints).post(attach))
        .route("/v1/endpoints/{reference}", get(endpoint).patch(update).delete(detach))
}

fn attachments() -> Router<Arc<dyn Backend>> {
    let add = async |State(agent): Agent, Spec(spec): Spec<AttachmentSpec>| {
        to_the_end(async move { agent.attachment_add(spec).await }).await
    };
    let check = async |State(agent): Agent, Spec(key): Spec<AttachmentKey>| {
        // It may end what has gone.
        to_the_end(async move { agent.attachment(key).await }).await
    };
    let remove = async |State(agent): Agent, Spec(key): Spec<AttachmentKey>| {
        to_the_end(async move { agent.attachment_rm(key).await }).await
    };
    let keep = async |State(agent): Agent, Spec(kept): Spec<AttachmentsKept>| {
        to_the_end(async move { agent.attachments_keep(kept).await }).await
    };
    Router::new()
        .route("/v1/attachments", post(add))
        .route("/v1/attachments/check", post(check))
        .route("/v1/attachments/remove", post(remove))
        .route("/v1/attachments/keep", post(keep))
}

fn services() -> Router<Arc<dyn Backend>> {
    let list = async |State(agent): Agent| agent.services().await.map(Json);
    let one =
        async |State(agent): Agent, Ref(service): Ref| agent.service(&service).await.map(Json);
    let create = async |State(agent): Agent, Spec(spec): Spec<ServiceSpec>| {
        to_the_end(async move { agent.service_create(spec).await }).await
    };
    let update = async |State(agent): Agent, Ref(service): Ref, Spec(spec): Spec<ServiceUpdate>| {
        to_the_end(async move { agent.service_update(&service, spec).await }).await
    };
    let rm = async |State(agent): Agent, Ref(service): Ref| {
        to_the_end(async move { agent.service_rm(&service).await }).await
    };
    let health = async |State(agent): Agent, Ref(service): Ref, Spec(word): Spec<HealthWord>| {
        to_the_end(async move { agent.service_health(&service, word).await }).await
    };
    Router::new()
        .route("/v1/services", get(list).post(create))
        .route("/v1/services/{reference}", get(one).patch(update).delete(rm))
        .route("/v1/services/{reference}/health", post(health))
}

fn sandboxes() -> Router<Arc<dyn Backend>> {
    let list = async |State(agent): Agent, query: Queried<SandboxQuery>| -> Answer<_> {
        let Query(query) = query.map_err(|why| bad_request(why.body_text()))?;
        let mut all = agent.sandboxes().await?;
        if query.all {
            all.extend(agent.sandboxes_ended().await?);
        }
        Ok(Json(all))
    };
    let one = async |State(agent): Agent, Ref(name): Ref| agent.sandbox(&name).await.map(Json);
    let create = async |State(agent): Agent, Spec(spec): Spec<SandboxSpec>| {
        to_the_end(async move { agent.sandbox_create(spec).await }).await
    };
    let started = async |State(agent): Agent, Ref(name): Ref, Spec(spec): Spec<SandboxStarted>| {
        to_the_end(async move { agent.sandbox_started(&name, spec).await }).await
    };
    let ended = async |State(agent): Agent, Ref(name): Ref, Spec(spec): Spec<SandboxEnded>| {
        to_the_end(async move { agent.sandbox_ended(&name, spec).await }).await
    };
    let rm = async |State(agent): Agent, Ref(name): Ref| {
        to_the_end(async move { agent.sandbox_rm(&name).await }).await
    };
    let connect = async |State(agent): Agent, Ref(name): Ref, Spec(spec): Spec<Connection>| {
        to_the_end(async move { agent.sandbox_connect(&name, spec).await }).await
    };
    let disconnect = async |State(agent): Agent, Refs(name, network): Refs| {
        to_the_end(async move { agent.sandbox_disconnect(&name, &network).await }).await
    };
    Router::new()
        .route("/v1/sandboxes/{reference}/networks", post(connect))
        .route("/v1/sandboxes/{reference}/networks/{network}", delete(disconnect))
        .route("/v1/sandboxes", get(list).post(create))
        .route("/v1/sandboxes/{reference}", get(one).delete(rm))
        .route("/v1/sandboxes/{reference}/started", post(started))
        .route("/v1/sandboxes/{reference}/ended", post(ended))
}

fn views() -> Router<Arc<dyn Backend>> {
    let status = async |State(agent): Agent| agent.status().await.map(Json);
    let nodes = async |State(agent): Agent| agent.nodes().await.map(Json);
    let node = async |State(agent): Agent, Ref(node): Ref| agent.node(&node).await.map(Json);
    let remove = async |State(agent): Agent, Ref(node): Ref, query: Queried<RemoveQuery>| {
        let Query(query) = query.map_err(|why| bad_request(why.body_text()))?;
        to_the_end(async move { agent.node_rm(&node, query.force).await }).await
    };
    let update = async |State(agent): Agent, Ref(node): Ref, Spec(spec): Spec<NodeSpec>| {
        to_the_end(async move { agent.node_update(&node, spec).await }).await
    };
    let peers = async |State(agent): Agent| agent.peers().await.map(Json);
    let peer = async |State(agent): Agent, Ref(node): Ref| agent.peer(&node).await.map(Json);
    let drops = async |State(agent): Agent| agent.drops().await.map(Json);
    let flows = async |State(agent): Agent, query: Queried<FlowQuery>| -> Answer<_> {
        let Query(query) = query.map_err(|why| bad_request(why.body_text()))?;
        agent.flows(query).await.map(Json)
    };
    let doctor = async |State(agent): Agent| agent.doctor().await.map(Json);
    let map = async |State(agent): Agent| agent.map().await.map(Json);
    let diff = async |State(agent): Agent, Ref(node): Ref| agent.map_diff(&node).await.map(Json);
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{reference}", get(node).patch(update).delete(remove))
        .route("/v1/peers", get(peers))
        .route("/v1/peers/{reference}", get(peer))
        .route("/v1/drops", get(drops))
        .route("/v1/flows", get(flows))
        .route("/v1/doctor", get(doctor))
        .route("/v1/locate/{reference}", get(locate))
        .route("/v1/dns/{reference}", get(dns_query))
        .route("/v1/map", get(map))
        .route("/v1/map/diff/{reference}", get(diff))
}

/// What stands behind the question mark, or why it cannot be read.
type Queried<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxQuery {
    #[serde(default)]
    all: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocateQuery {
    network: Option<String>,
}

async fn dns_query(
    State(agent): Agent,
    Ref(name): Ref,
    query: Result<Query<DnsQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<DnsRecord>> {
    let Query(query) = query.map_err(|why| bad_request(why.body_text()))?;
    agent.dns_query(&name, query).await.map(Json)
}

async fn locate(
    State(agent): Agent,
    Ref(address): Ref,
    query: Queried<LocateQuery>,
) -> Answer<Located> {
    let Query(query) = query.map_err(|why| bad_request(why.body_text()))?;
    let address: Address = address.parse()?;
    let endpoints = agent.locate(address).await?.into_iter().map(Located::Endpoint);
    let mut found: Vec<Located> = endpoints.collect();
    if let Address::Ip(ip) = address {
        let services = agent.services().await?.into_iter();
        let its = services.filter(|service| service.vips.contains(&ip));
        found.extend(its.map(|service| Located::Service(service.into())));
    }
    if let Some(network) = query.network {
        let network = agent.network(&network).await?;
        found.retain(|located| located.network() == network.id);
    }
    match found.len() {
        0 => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("no endpoint and no service has the address {address}"),
            "see `vxmesh map ls` and `vxmesh service ls` for all addresses that this node knows",
        )),
        1 => found.pop().map(Json).ok_or_else(|| bad_request("empty answer")),
        several => Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{several} networks have the address {address}"),
            format!("choose one with --network: {}", networks_of(&found)),
        )),
    }
}

fn networks_of(found: &[Located]) -> String {
    let names: Vec<String> = found.iter().map(|located| located.network().short()).collect();
    names.join(", ")
}

/// Carries a change to its end even if the client goes away, which drops the handler's own future.
async fn to_the_end<T: Serialize + Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Answer<T> {
    let done = tokio::spawn(change).await;
    done.unwrap_or_else(|why| {
        tracing::error!("an admin call broke off: {why}");
        Err(ApiError::new(
            ErrorCode::Failed,
            "the agent broke off this call",
            "its log says why; please report it",
        ))
    })
    .map(Json)
}

/// The reference in the path, percent-decoded.
struct Ref(String);

impl<S: Send + Sync> FromRequestParts<S> for Ref {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(reference)| Self(reference)).map_err(|why| bad_request(why.body_text()))
    }
}

/// Two references in the path, percent-decoded.
struct Refs(String, String);

impl<S: Send + Sync> FromRequestParts<S> for Refs {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        path.map(|Path((one, other))| Self(one, other)).map_err(|why| bad_request(why.body_text()))
    }
}

/// The request's body as JSON, whatever its content type says; an empty body stands for `{}`.
struct Spec<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Spec<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|why: BytesRejection| bad_request(why.body_text()))?;
        let json = if body.is_empty() { b"{}".as_slice() } else { &body };
        serde_json::from_slice(json).map(Self).map_err(|why| bad_request(why.to_string()))
    }
}

async fn unknown_route(uri: Uri) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("the admin API has no `{}`", uri.path()),
        "the command line and the agent may be of different versions; see `vxmesh version` and `vxmesh status`",
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let error = bad_request(format!("`{}` does not take {method}", uri.path()));
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorBody { error })).into_response()
}

fn bad_request(why: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::Usage,
        format!("the request is wrong: {why}"),
        "the requests and their fields are those of the `Spec` types in the API's documentation",
    )
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.code {
            ErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Usage => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(ErrorBody { error: self })).into_response()
    }
}
