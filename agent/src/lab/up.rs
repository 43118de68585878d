//! Owns the making of a lab: all of it or nothing.

use super::{
    agents,
    disk::LabDir,
    down, holder,
    interrupt::Interrupt,
    name::{HostName, LabName},
    output::Output,
    plan::Plan,
    wire,
};
use crate::api::ApiError;

/// Makes a lab; a failure or an interrupt removes what it made.
pub(super) async fn up(
    name: &LabName,
    plan: &Plan,
    agents: bool,
    interrupt: &Interrupt,
    out: &mut dyn Output,
) -> Result<(), ApiError> {
    let (lab, _lock) = LabDir::create(name)?;
    let Err(mut error) = build(&lab, plan, agents, interrupt, out).await else { return Ok(()) };
    out.progress(&format!("removing what was made of lab {name}"));
    if let Err(left) = down::remove(name, Some(lab)).await {
        error.message = format!("{}; and it could not be undone: {}", error.message, left.message);
        error.hint = format!("remove the rest: vxmesh lab --name {name} down");
    }
    Err(error)
}

async fn build(
    lab: &LabDir,
    plan: &Plan,
    agents: bool,
    interrupt: &Interrupt,
    out: &mut dyn Output,
) -> Result<(), ApiError> {
    lab.fill(plan)?;
    wire::make(lab.name(), plan).await?;
    for name in HostName::first(plan.hosts) {
        interrupt.check()?;
        let netns = wire::make_host_netns(lab.name(), name)?;
        holder::start(lab.name(), name, &lab.host(name), &netns)?;
        wire::plug(lab.name(), plan, name).await?;
        wire::introduce(lab.name(), plan, name).await?;
    }
    out.progress(&format!("{}: {} hosts are up", lab.name(), plan.hosts));
    interrupt.check()?;
    if agents { agents::start_all(lab, plan, interrupt, out).await } else { Ok(()) }
}
