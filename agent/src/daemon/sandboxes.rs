//! Sandboxes: network namespaces that this agent makes for `vxmesh run`.
//!
//! The command line starts the command and stays with it (or leaves a supervisor); the agent owns namespace and endpoints. A
//! sandbox whose process is gone is collected when the agent starts, because its supervisor may have ended meanwhile.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use vxmesh_proto::{addr::Name, sandbox::Connected};

use super::{
    conflicts::check_name,
    connections::{ifnames, network_rows},
    hosting::Hosted,
    mesh::{Mesh, failed, store_failed},
    modes::{Shared, Source, check_mode},
    publish::Published,
};
use crate::{
    admin::resolve,
    api::{self, ApiError, Connection, ErrorCode, HostEntry, Mode, SandboxSpec},
    dns::{self, EtcFiles},
    gateway::publish::Held,
    netlink::{netns::Netns, overlay::OverlayError},
    objects::unix_ms,
    store::Table,
};

/// How long a command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// A sandbox as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) name: Name,
    #[serde(default)]
    incarnation: u64,
    pub(super) netns: PathBuf,
    process: Option<Process>,
    command: Vec<String>,
    #[serde(default)]
    dns: Vec<IpAddr>,
    #[serde(default)]
    hosts: Vec<HostEntry>,
    #[serde(default)]
    pub(super) published: Vec<Published>,
    /// Whose namespace it has, where it is in no network.
    #[serde(default)]
    pub(super) mode: Option<Shared>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    pid: i32,
    /// Clock ticks since boot, field 22 of proc_pid_stat(5).
    started: u64,
}

impl Process {
    fn look(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self { pid, started: started(pid)? })
    }

    fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows it is numbers, the state first.
    let (_name, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

impl Stored {
    pub(super) const fn name(&self) -> &Name {
        &self.name
    }

    pub(super) fn netns(&self) -> &Path {
        &self.netns
    }

    /// Who answers its questions about names outside the mesh, if the user said so.
    pub(super) fn dns(&self) -> &[IpAddr] {
        &self.dns
    }

    /// What the user added to its /etc/hosts.
    pub(super) fn hosts(&self) -> &[HostEntry] {
        &self.hosts
    }

    /// Whether it has files and a name server of its own.
    pub(super) const fn names_itself(&self) -> bool {
        match &self.mode {
            None => true,
            Some(shared) => matches!(shared.mode, Mode::None),
        }
    }

    /// Where the files are that its programs see in /etc; they see the host's otherwise.
    pub(super) fn etc(&self, run_dir: &Path) -> Option<PathBuf> {
        if self.names_itself() {
            return Some(EtcFiles::of(run_dir, &self.name).directory().to_path_buf());
        }
        self.mode.as_ref()?.etc.clone()
    }

    /// Whether its command was started.
    pub(super) const fn has_process(&self) -> bool {
        self.process.is_some()
    }

    fn row(&self, run_dir: &Path, connected: &[Connected]) -> api::Sandbox {
        let alive = self.process.is_some_and(Process::is_alive);
        let state = match self.process {
            None => "created",
            Some(_) if alive => "running",
            Some(_) => "exited",
        };
        api::Sandbox {
            name: self.name.clone(),
            netns: self.netns.display().to_string(),
            pid: self.process.and_then(|process| u32::try_from(process.pid).ok()),
            state: state.to_owned(),
            command: self.command.clone(),
            incarnation: self.incarnation,
            endpoints: connected.iter().map(|it| it.endpoint).collect(),
            networks: network_rows(connected),
            etc: self.etc(run_dir).map(|etc| etc.display().to_string()),
            published: self.published.iter().flat_map(|one| one.rows(connected)).collect(),
            mode: self.mode.as_ref().map(|shared| shared.mode.clone()),
            warnings: Vec::new(),
        }
    }
}

fn sandbox_gone(name: &Name) -> ApiError {
    let message = format!("sandbox `{name}` is gone");
    ApiError::new(ErrorCode::NotFound, message, "see `vxmesh sandbox ls`")
}

impl Mesh {
    pub(super) fn stored_sandboxes(&self) -> Result<Vec<Stored>, ApiError> {
        let rows = self.store.list::<Stored>(Table::Sandboxes).map_err(store_failed)?;
        Ok(rows.into_iter().map(|(_name, sandbox)| sandbox).collect())
    }

    pub(super) fn save_sandbox(&self, sandbox: &Stored) -> Result<(), ApiError> {
        self.store.put(Table::Sandboxes, sandbox.name.as_str(), sandbox).map_err(store_failed)
    }

    /// The sandboxes of this node.
    pub(super) fn sandbox_list(&self) -> Result<Vec<api::Sandbox>, ApiError> {
        let (run_dir, all) = (self.run_dir(), self.all_connected()?);
        let row = |sandbox: &Stored| {
            let connected = all.get(sandbox.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            sandbox.row(&run_dir, connected)
        };
        Ok(self.stored_sandboxes()?.iter().map(row).collect())
    }

    pub(super) fn find_sandbox(&self, reference: &str) -> Result<Stored, ApiError> {
        let rows = self.sandbox_list()?;
        let name = resolve::one(&rows, reference)?.name.clone();
        let stored = self.store.get(Table::Sandboxes, name.as_str()).map_err(store_failed)?;
        stored.ok_or_else(|| sandbox_gone(&name))
    }

    /// Makes a namespace with an endpoint in each network. A failure leaves nothing behind.
    pub(super) async fn create_sandbox(
        self: &Arc<Self>,
        spec: SandboxSpec,
    ) -> Result<api::Sandbox, ApiError> {
        let mut hosted = self.lock_host().await?;
        let name = match spec.name.clone() {
            Some(name) => name,
            None => format!("sb-{:08x}", rand::random::<u32>())
                .parse()
                .map_err(|error| failed(error, "give a name with --name"))?,
        };
        if self.stored_sandboxes()?.iter().any(|other| other.name == name) {
            let message = format!("there is a sandbox `{name}` on this node already");
            return Err(ApiError::new(
                ErrorCode::Conflict,
                message,
                "choose another name, or remove that one first",
            ));
        }
        check_name(Some(&name), &[])?;
        check_mode(&spec)?;
        if spec.networks.is_empty() && spec.mode.is_none() {
            return Err(ApiError::new(
                ErrorCode::Usage,
                "a sandbox needs a network",
                "name one with --network",
            ));
        }
        self.check_networks(&spec.networks)?;
        if spec.dns.len() > dns::SERVERS {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("{} name servers are too many", spec.dns.len()),
                "give three --dns at most",
            ));
        }
        // What cannot be published is known before anything is changed.
        let held = self.hold_ports(&hosted, &spec.networks, &spec.publish)?;
        let (mode, source) = match &spec.mode {
            Some(mode) => {
                self.namespace_of(mode).await.map(|(mode, source)| (Some(mode), source))?
            }
            None => (None, Source::New),
        };
        let netns = self.run_dir().join("sandbox").join(name.as_str());
        let mut sandbox = Stored {
            name,
            incarnation: self.store.next_incarnation(unix_ms()).map_err(store_failed)?,
            netns,
            process: None,
            command: spec.command.clone(),
            dns: spec.dns.clone(),
            hosts: spec.hosts.clone(),
            published: Vec::new(),
            mode,
        };
        self.save_sandbox(&sandbox)?;
        if let Err(error) = self.furnish(&mut hosted, &mut sandbox, &spec, (held, source)).await {
            if let Err(undo) = self.clear(&mut hosted, &sandbox).await {
                warn!(sandbox = %sandbox.name, error = %undo, "a half-made sandbox is not wholly undone");
            }
            return Err(error);
        }
        let warnings = self.closed_ways(&hosted, &spec.networks);
        drop(hosted);
        self.reconcile().await;
        let row = sandbox.row(&self.run_dir(), &self.connected(&sandbox.name)?);
        Ok(api::Sandbox { warnings, ..row })
    }

    /// Each network once.
    fn check_networks(&self, connections: &[Connection]) -> Result<(), ApiError> {
        let mut seen = BTreeSet::new();
        for connection in connections {
            let network = self.find_network(&connection.network)?;
            if !seen.insert(network.id) {
                return Err(ApiError::new(
                    ErrorCode::Usage,
                    format!("network `{}` is named twice", network.name),
                    "a sandbox has one endpoint in a network; more names are an --alias",
                ));
            }
        }
        ifnames(connections).map(drop)
    }

    async fn furnish(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &mut Stored,
        spec: &SandboxSpec,
        (held, source): (Vec<Held>, Source),
    ) -> Result<(), ApiError> {
        source.pin(&sandbox.netns).await?;
        for (connection, ifname) in spec.networks.iter().zip(ifnames(&spec.networks)?) {
            let connection = Connection { ifname: Some(ifname), ..connection.clone() };
            self.attach_sandbox(hosted, sandbox, &connection).await?;
        }
        self.publish(hosted, sandbox, &spec.publish, held)?;
        self.settle(hosted, sandbox).await
    }

    /// Notes which process runs in a sandbox.
    pub(super) fn start_sandbox(
        &self,
        reference: &str,
        pid: u32,
    ) -> Result<api::Sandbox, ApiError> {
        let name = self.find_sandbox(reference)?.name;
        let gone = || {
            ApiError::new(
                ErrorCode::NotFound,
                format!("there is no process {pid}"),
                "start the command first",
            )
        };
        let process = Process::look(pid).ok_or_else(gone)?;
        // In one transaction, so that a sandbox that is removed meanwhile does not come back.
        let noted = self.store.write(|txn| {
            let Some(mut sandbox) = txn.get::<Stored>(Table::Sandboxes, name.as_str())? else {
                return Ok(None);
            };
            sandbox.process = Some(process);
            txn.put(Table::Sandboxes, name.as_str(), &sandbox)?;
            Ok(Some(sandbox))
        });
        let sandbox = noted.map_err(store_failed)?.ok_or_else(|| sandbox_gone(&name))?;
        Ok(sandbox.row(&self.run_dir(), &self.connected(&name)?))
    }

    /// Ends a sandbox's process and removes the sandbox.
    pub(super) async fn remove_sandbox(
        self: &Arc<Self>,
        reference: &str,
    ) -> Result<api::Sandbox, ApiError> {
        let sandbox = self.find_sandbox(reference)?;
        if let Some(process) = sandbox.process {
            end(process).await?;
        }
        let mut hosted = self.lock_host().await?;
        // Its supervisor removes it, too; whoever comes second must not take a new one of that name.
        let current = self.stored_sandboxes()?.into_iter().find(|other| other.name == sandbox.name);
        let row = sandbox.row(&self.run_dir(), &self.connected(&sandbox.name)?);
        if current.is_some_and(|current| current.incarnation == sandbox.incarnation) {
            self.clear(&mut hosted, &sandbox).await?;
        }
        drop(hosted);
        self.reconcile().await;
        Ok(row)
    }

    async fn clear(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
    ) -> Result<(), ApiError> {
        let own = self.endpoints_of(&sandbox.name)?;
        let networks = own.iter().map(|endpoint| endpoint.network).collect();
        for endpoint in &own {
            self.detach_stored(hosted, endpoint.id).await?;
        }
        // Its sockets would keep the namespace, unnamed.
        self.name_servers.close(&sandbox.name);
        EtcFiles::of(&self.run_dir(), &sandbox.name)
            .remove()
            .map_err(|error| failed(error, "see the agent's log"))?;
        Netns::remove(&sandbox.netns).map_err(OverlayError::from)?;
        self.store.delete(Table::Sandboxes, sandbox.name.as_str()).map_err(store_failed)?;
        self.unpublish(hosted, sandbox, &networks);
        Ok(())
    }

    /// Removes sandboxes whose process is gone; those without a process are from a `run` that was cut short.
    pub(super) async fn collect_sandboxes(self: &Arc<Self>) -> Result<(), ApiError> {
        let mut hosted = self.host.lock().await;
        for sandbox in self.stored_sandboxes()? {
            if !sandbox.process.is_some_and(Process::is_alive) {
                info!(sandbox = %sandbox.name, "its process is gone; the sandbox is removed");
                self.clear(&mut hosted, &sandbox).await?;
            }
        }
        Ok(())
    }

    /// Ends and removes every sandbox, for `leave`.
    pub(super) async fn clear_sandboxes(
        self: &Arc<Self>,
        hosted: &mut Hosted,
    ) -> Result<(), ApiError> {
        for sandbox in self.stored_sandboxes()? {
            if let Some(process) = sandbox.process {
                end(process).await?;
            }
            self.clear(hosted, &sandbox).await?;
        }
        Ok(())
    }
}

/// SIGTERM, and SIGKILL if that does not do.
async fn end(process: Process) -> Result<(), ApiError> {
    let pid = Pid::from_raw(process.pid);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if !process.is_alive() {
            return Ok(());
        }
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                return Err(failed(
                    format!("cannot end process {pid}: {errno}"),
                    "end it yourself",
                ));
            }
        }
        let gone = async {
            while process.is_alive() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(GRACE, gone).await.is_ok() {
            return Ok(());
        }
    }
    Err(failed(format!("process {pid} does not end"), "see what it waits for with `ps`"))
}
