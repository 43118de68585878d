//! What the engine sends over the socket of a plug-in: each call is a POST of JSON.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tracing::info;

use super::{Agent, driver::Driver};
use crate::api::{ApiError, ErrorCode};

/// Where the engine looks for a driver of this name.
pub(crate) const PLUGIN_SOCKET: &str = "/run/docker/plugins/vxmesh.sock";

/// What the engine takes as an answer.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// Largest call: one with some hundred ports has some 10 KB.
const BODY_LEN: usize = 1024 * 1024;

/// All calls of the engine.
pub(crate) fn router(agent: Arc<dyn Agent>) -> Router {
    Router::new()
        .fallback(call)
        .layer(DefaultBodyLimit::max(BODY_LEN))
        .with_state(Arc::new(Driver::new(agent)))
}

async fn call(State(driver): State<Arc<Driver>>, uri: Uri, body: Bytes) -> Response {
    let method = uri.path().trim_start_matches('/').to_owned();
    // To its end, also if the engine goes away meanwhile: what is half done nobody would undo.
    let done = tokio::spawn(async move {
        let answer = driver.call(&method, &body).await;
        answer.inspect_err(|error| info!(method, %error, "a call of Docker is refused"))
    });
    let answer = done.await.unwrap_or_else(|error| {
        Err(ApiError::new(ErrorCode::Failed, error.to_string(), "see the agent's log"))
    });
    let body = answer.unwrap_or_else(|error| refusal(&error));
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}

/// Network drivers say an error under the one key, IPAM drivers under the other.
fn refusal(error: &ApiError) -> Value {
    let text = format!("vxmesh: {error}");
    json!({ "Err": text, "Error": text })
}
