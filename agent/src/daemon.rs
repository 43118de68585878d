//! The running agent: builds everything, holds it together, stops it in order.

use crate::{
    api::{ApiError, ErrorCode},
    config::Config,
};

/// Runs the agent until it is told to stop.
pub async fn run(config: Config) -> Result<(), ApiError> {
    std::future::ready(Err(ApiError::new(
        ErrorCode::Failed,
        format!("this build cannot run an agent in {}", config.data_dir.display()),
        "use a build with the daemon in it",
    )))
    .await
}
