//! `vxmesh doctor`: what the agent says of itself; without an agent, what can be seen from outside.

use super::{Failure, Outcome, args::Global, client, output::Output, words::Words};
use crate::{
    api::{ApiError, Diagnosis, ErrorCode, Health},
    config::{Config, RawConfig},
    daemon,
};

/// Asks the agent how it is. Where none answers that is told as any command does, after what the
/// host shows.
pub(super) async fn doctor(global: &Global, output: Output) -> Outcome {
    let client = client(global)?;
    let words = |all: &[Diagnosis], words: &Words| output.list(all, words);
    match client.get::<Vec<Diagnosis>>("/v1/doctor").await {
        Ok(all) => {
            words(&all, &Words::learn(&client, output).await)?;
            Ok(u8::from(all.iter().any(|one| one.health == Health::Fail)))
        }
        Err(error) => {
            if error.code == ErrorCode::Unreachable {
                words(&without_agent(global, &error)?, &Words::default())?;
            }
            Err(Failure::from(error))
        }
    }
}

fn without_agent(global: &Global, error: &ApiError) -> Result<Vec<Diagnosis>, ApiError> {
    let config = Config::load(global.config.as_deref(), RawConfig::default())?;
    let agent = Diagnosis {
        check: "agent".to_owned(),
        health: Health::Fail,
        found: error.message.clone(),
        hint: error.hint.clone(),
    };
    let mut all = vec![agent];
    all.extend(daemon::diagnose_host(&config.data_dir));
    Ok(all)
}
