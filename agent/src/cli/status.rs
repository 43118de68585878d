//! `vxmesh status`: what the agent says of itself; without an agent, what its data directory says.

use super::{Failure, Outcome, args::Global, client, output::Output};
use crate::{
    api::{ErrorCode, Status},
    config::{Config, RawConfig},
    daemon::LastKnown,
};

/// Asks the agent. Where none answers that is told as any command does, after what was known when
/// it ran last.
pub(super) async fn status(global: &Global, output: Output) -> Outcome {
    let error = match client(global)?.get::<Status>("/v1/status").await {
        Ok(status) => {
            output.object(&status)?;
            return Ok(0);
        }
        Err(error) => error,
    };
    if error.code == ErrorCode::Unreachable
        && let Ok(config) = Config::load(global.config.as_deref(), RawConfig::default())
        && let Ok(Some(known)) = LastKnown::of(&config.data_dir)
        && let Some(status) = known.status(&config)
    {
        output.object(&status)?;
    }
    Err(Failure::from(error))
}
