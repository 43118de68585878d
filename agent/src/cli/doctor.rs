//! `vxmesh doctor`: what the agent says of itself; without an agent, what can be seen from outside.

use super::{
    Failure, Outcome,
    args::{DoctorOf, Global},
    client,
    output::Output,
    words::Words,
};
use crate::{
    api::{ApiError, Diagnosis, ErrorCode, Health},
    config::{Config, RawConfig},
    daemon,
};

/// Asks the agent how it is. Where none answers that is told as any command does, after what the
/// host shows.
pub(super) async fn doctor(global: &Global, output: Output, of: DoctorOf) -> Outcome {
    let client = client(global)?;
    let words = |all: &[Diagnosis], words: &Words| output.list(all, words);
    match client.get::<Vec<Diagnosis>>("/v1/doctor").await {
        Ok(mut all) => {
            if of.docker {
                all.retain(|one| one.check == "docker");
                if all.is_empty() {
                    return Err(no_driver().into());
                }
            }
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

fn no_driver() -> ApiError {
    let message = "the agent of this host is not the driver of a Docker engine, or in no mesh";
    let hint = "set `docker = true` in agent.toml and start it again; see docs/docker.md";
    ApiError::new(ErrorCode::Conflict, message, hint)
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
