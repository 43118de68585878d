//! Owns what is said about the hosts of a lab.

use super::{disk::LabDir, name::HostName, output::HostStatus};
use crate::api::ApiError;

/// One row per host of the plan, from what is on disk.
pub(super) fn status(lab: &LabDir) -> Result<Vec<HostStatus>, ApiError> {
    let plan = lab.plan()?;
    HostName::first(plan.hosts)
        .map(|name| {
            let dir = lab.host(name);
            Ok(HostStatus {
                host: name.to_string(),
                netns: lab.name().host_netns(name),
                pid: dir.agent()?.filter(|agent| agent.is_alive()).map(|agent| agent.pid),
                socket: dir.socket().display().to_string(),
                data_dir: dir.data_dir().display().to_string(),
                addrs: plan.addresses(name),
            })
        })
        .collect()
}
