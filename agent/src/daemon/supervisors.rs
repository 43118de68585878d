//! Supervisors that the agent starts: of sandboxes whose command and supervisor ended with the
//! host, or were killed.
//!
//! This is the only program that the agent starts, and it is the agent's own binary (decision 24).

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
};

use tracing::{info, warn};

use super::{
    mesh::{Mesh, failed},
    modes::Source,
    sandboxes::Stored,
};
use crate::{api::ApiError, netlink::netns::Netns, sandbox::process::Process};

impl Mesh {
    /// Makes the namespaces anew of sandboxes that are started again after the host was: before
    /// their endpoints are adopted, which then are plugged in as they were, with their names and
    /// addresses.
    pub(super) async fn repin_sandboxes(&self) -> Result<(), ApiError> {
        let mut sandboxes = self.stored_sandboxes()?;
        // One that shares a namespace comes after its owner.
        sandboxes.sort_by_key(|sandbox| sandbox.mode.is_some());
        for sandbox in sandboxes.iter().filter(|it| it.starts_again(&self.config.data_dir)) {
            if !matches!(Netns::open(sandbox.netns()), Err(error) if error.is_absence()) {
                continue;
            }
            let source = match &sandbox.mode {
                None => Ok(Source::New),
                Some(shared) => self.namespace_of(&shared.mode).await.map(|(_, source)| source),
            };
            let pinned = match source {
                Ok(source) => source.pin(sandbox.netns()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = pinned {
                warn!(sandbox = %sandbox.name, %error, "the sandbox is not started again");
            }
        }
        Ok(())
    }

    /// Starts the supervisor of a sandbox whose namespace and endpoints are there.
    pub(super) fn supervise(&self, sandbox: &Stored) -> Result<(), ApiError> {
        let cannot = |error| failed(format!("cannot start a supervisor: {error}"), "try again");
        #[expect(
            clippy::disallowed_methods,
            reason = "the one program that the agent starts: itself"
        )]
        let mut supervisor = Command::new("/proc/self/exe");
        supervisor.arg0("vxmesh").arg("supervise").arg("--socket").arg(&self.config.socket);
        supervisor.arg("--sandbox").arg(sandbox.name.as_str());
        supervisor.arg("--incarnation").arg(sandbox.incarnation().to_string()).arg("--again");
        supervisor.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = supervisor.spawn().map_err(cannot)?;
        // Noted at once: an agent that starts just after this one must not start another.
        let noted = Stored::clone(sandbox).with_keeper(Process::look(child.id()));
        // Somebody has to take its exit status when it ends.
        let reaper = thread::Builder::new().name("supervisor".into());
        reaper.spawn(move || drop(child.wait())).map_err(cannot)?;
        self.save_sandbox(&noted)?;
        info!(sandbox = %sandbox.name, "sandbox is started again");
        Ok(())
    }
}
