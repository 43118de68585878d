//! Sandboxes: network namespaces that this agent makes for `vxmesh run`.
//!
//! The command line starts the command and stays with it, or leaves a supervisor that does; the
//! agent owns namespace and endpoints. Whoever stays with the command is the sandbox's keeper.
//!
//! ```text
//! row with its keeper (`run`) -> namespace, endpoints -> keeper: the supervisor -> the command starts -> row with the command
//!   -> `run -d` says 0                                                              what is not in the row yet did not say 0
//! rm : row "removing", from then on nothing starts -> names withdrawn -> a second -> keeper and command end
//!   -> endpoints, namespace, row go
//! end: exit.json -> endpoints, namespace go -> in one transaction: row goes, row of the ended one comes      see `ended`
//! ```
//!
//! An agent that starts leaves a sandbox alone whose keeper or command runs; what else it finds is
//! ended, or started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use vxmesh_proto::{addr::Name, sandbox::Connected};

use super::{
    conflicts::{check_hosts, check_name},
    connections::{ifnames, network_rows},
    hosting::Hosted,
    mesh::{Mesh, failed, store_failed},
    modes::{Shared, Source, check_mode},
};
use crate::{
    admin::resolve,
    api::{
        self, ApiError, Connection, Detached, ErrorCode, HostEntry, Mode, SandboxSpec,
        SandboxStarted,
    },
    config::Config,
    dns::{self, EtcFiles},
    gateway::publish::Held,
    host::published::Published,
    netlink::{netns::Netns, overlay::OverlayError},
    objects::unix_ms,
    records::Records,
    sandbox::process::{Process, ProcessError},
    store::Table,
};

/// A sandbox as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) name: Name,
    #[serde(default)]
    incarnation: u64,
    pub(super) netns: PathBuf,
    process: Option<Process>,
    /// Who stays with the command: `run`, or the supervisor.
    #[serde(default)]
    keeper: Option<Process>,
    /// Whether that is a supervisor.
    #[serde(default)]
    supervised: bool,
    /// How often a command was started.
    #[serde(default)]
    starts: u32,
    /// Set once it is being removed: nothing starts in it any more.
    #[serde(default)]
    pub(super) removing: bool,
    #[serde(default)]
    hostname: Option<String>,
    /// Of all its endpoints, also of those that it gets later.
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) detached: Option<Detached>,
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

    /// Whether its command was not started yet.
    pub(super) const fn is_being_made(&self) -> bool {
        self.starts == 0 && self.process.is_none() && !self.removing
    }

    /// Whether its command was started.
    pub(super) const fn has_process(&self) -> bool {
        self.process.is_some()
    }

    pub(super) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What its programs are told is the host's name; the host's own otherwise.
    pub(super) fn hostname(&self) -> Option<&str> {
        self.hostname.as_deref()
    }

    /// Whether its command or somebody who waits for that runs.
    pub(super) fn is_kept(&self) -> bool {
        [&self.process, &self.keeper].into_iter().flatten().any(Process::is_alive)
    }

    /// Who stays with it: its keeper, or the command while there is none.
    pub(super) fn stays(&self) -> Option<&Process> {
        [&self.keeper, &self.process].into_iter().flatten().find(|process| process.is_alive())
    }

    /// Whether its command runs.
    pub(super) fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_alive)
    }

    /// Whether its command runs and nobody waits for its end.
    pub(super) fn is_unsupervised(&self) -> bool {
        self.is_running() && self.keeper.as_ref().is_some_and(|keeper| !keeper.is_alive())
    }

    /// What a user calls its keeper.
    pub(super) const fn keeper_word(&self) -> &'static str {
        if self.supervised { "its supervisor" } else { "its `vxmesh run`" }
    }

    /// With the supervisor that the agent started.
    pub(super) fn with_keeper(self, keeper: Option<Process>) -> Self {
        Self { keeper, supervised: true, ..self }
    }

    /// Whether an agent that starts has to start its command again.
    pub(super) fn starts_again(&self, data_dir: &Path) -> bool {
        let restarts = self.detached.as_ref().is_some_and(|detached| !detached.restart.is_no());
        restarts
            && self.has_started()
            && !self.removing
            && !self.is_kept()
            && self.records(data_dir).end().is_none()
    }

    /// Whether a command was ever started in it.
    pub(super) const fn has_started(&self) -> bool {
        self.starts > 0
    }

    /// Whether whoever made it ended without starting anything in it.
    pub(super) fn is_abandoned(&self) -> bool {
        let ended = || self.keeper.as_ref().is_some_and(|keeper| !keeper.is_alive());
        self.starts == 0 && !self.removing && ended()
    }

    /// Where its supervisor keeps what outlives the command.
    pub(super) fn records(&self, data_dir: &Path) -> Records {
        Records::of(data_dir, &self.name, self.incarnation)
    }

    fn state(&self) -> &'static str {
        let runs = |process: &Option<Process>| process.as_ref().is_some_and(Process::is_alive);
        if self.removing {
            "removing"
        } else if self.is_unsupervised() {
            "unsupervised"
        } else if self.is_running() {
            "running"
        } else if self.detached.is_some() && self.starts > 0 && runs(&self.keeper) {
            "restarting"
        } else if self.starts == 0 && self.process.is_none() {
            "created"
        } else {
            "exited"
        }
    }

    pub(super) fn row(&self, config: &Config, connected: &[Connected]) -> api::Sandbox {
        let records = || self.records(&config.data_dir).directory().display().to_string();
        api::Sandbox {
            name: self.name.clone(),
            netns: self.netns.display().to_string(),
            pid: self.process.as_ref().and_then(Process::pid),
            state: self.state().to_owned(),
            exit_status: None,
            ended_at: None,
            command: self.command.clone(),
            incarnation: self.incarnation,
            endpoints: connected.iter().map(|it| it.endpoint).collect(),
            networks: network_rows(connected),
            etc: self.etc(&config.run_dir).map(|etc| etc.display().to_string()),
            published: self.published.iter().flat_map(|one| one.rows(connected)).collect(),
            mode: self.mode.as_ref().map(|shared| shared.mode.clone()),
            warnings: Vec::new(),
            hostname: self.hostname.clone(),
            labels: self.labels.clone(),
            records: self.detached.as_ref().map(|_| records()),
            detached: self.detached.clone(),
            restarts: self.starts.saturating_sub(1),
        }
    }
}

pub(super) fn sandbox_gone(name: &Name) -> ApiError {
    let message = format!("sandbox `{name}` is gone");
    ApiError::new(ErrorCode::NotFound, message, "see `vxmesh sandbox ls`")
}

impl Stored {
    /// Whether this is the sandbox that somebody speaks of, and he may: a supervisor that runs is
    /// not replaced by another.
    fn takes(&self, started: &SandboxStarted, keeper: Option<&Process>) -> bool {
        let replaces = keeper.is_some() && self.keeper.as_ref() != keeper;
        let is_kept = self.starts > 0 && self.keeper.as_ref().is_some_and(Process::is_alive);
        self.incarnation == started.incarnation && !self.removing && !(replaces && is_kept)
    }

    /// Ends the command, and the supervisor, which passes SIGTERM on and starts nothing more. Who
    /// waits for a command in the foreground ends by itself.
    pub(super) async fn end_processes(&self) -> Result<(), ProcessError> {
        let supervisor = self.keeper.as_ref().filter(|_| self.supervised);
        let supervisor = supervisor.filter(|it| it.is_alive());
        let Some(supervisor) = supervisor else {
            return match &self.process {
                Some(process) => process.end().await,
                None => Ok(()),
            };
        };
        supervisor.signal(Signal::SIGTERM)?;
        if let Some(process) = &self.process
            && !process.ends().await
        {
            process.kill().await?;
        }
        if supervisor.ends().await { Ok(()) } else { supervisor.kill().await }
    }
}

fn not_one(reference: &str) -> ApiError {
    let message = format!("there is no sandbox `{reference}`");
    ApiError::new(ErrorCode::NotFound, message, "see `vxmesh sandbox ls`")
}

impl Mesh {
    pub(super) fn stored_sandboxes(&self) -> Result<Vec<Stored>, ApiError> {
        Ok(self.sandbox_rows()?.to_vec())
    }

    /// The same for who only reads them.
    pub(super) fn sandbox_rows(&self) -> Result<Arc<Vec<Stored>>, ApiError> {
        self.rows.sandboxes.rows(&self.store).map_err(store_failed)
    }

    pub(super) fn save_sandbox(&self, sandbox: &Stored) -> Result<(), ApiError> {
        self.store.put(Table::Sandboxes, sandbox.name.as_str(), sandbox).map_err(store_failed)
    }

    /// The sandboxes of this node.
    pub(super) fn sandbox_list(&self) -> Result<Vec<api::Sandbox>, ApiError> {
        let all = self.all_connected()?;
        let row = |sandbox: &Stored| {
            let connected = all.get(sandbox.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            sandbox.row(&self.config, connected)
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
        check_end(spec.detached.as_ref())?;
        check_hosts(&spec.hosts)?;
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
        let hostname = match &mode {
            None => Some(name.to_string()),
            Some(shared) if shared.mode == Mode::None => Some(name.to_string()),
            Some(shared) => shared.hostname.clone(),
        };
        let mut sandbox = Stored {
            name,
            // Whoever asks stays until there is a supervisor or the command has ended.
            keeper: spec.keeper.and_then(Process::look),
            supervised: false,
            starts: 0,
            removing: false,
            hostname: spec.hostname.clone().map(String::from).or(hostname),
            labels: spec.labels.clone(),
            detached: spec.detached.clone(),
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
            if let Err(undo) = self.clear(&mut hosted, &sandbox, None).await {
                warn!(sandbox = %sandbox.name, error = %undo, "a half-made sandbox is not wholly undone");
            }
            return Err(error);
        }
        let warnings = self.closed_ways(&hosted, &spec.networks);
        drop(hosted);
        self.reconcile().await;
        let row = sandbox.row(&self.config, &self.connected(&sandbox.name)?);
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
        if sandbox.detached.is_some() {
            let made = sandbox.records(&self.config.data_dir).make();
            made.map_err(|error| failed(error, "see that the data directory can be written"))?;
        }
        source.pin(&sandbox.netns).await?;
        for (connection, ifname) in spec.networks.iter().zip(ifnames(&spec.networks)?) {
            let connection = Connection { ifname: Some(ifname), ..connection.clone() };
            self.attach_sandbox(hosted, sandbox, &connection).await?;
        }
        self.publish(hosted, sandbox, (&spec.publish, &spec.clients), held)?;
        self.settle(hosted, sandbox).await?;
        // An ended one of this name is not in its way.
        self.forget_ended(&sandbox.name)
    }

    /// Notes which processes a sandbox has.
    pub(super) fn start_sandbox(
        self: &Arc<Self>,
        reference: &str,
        started: &SandboxStarted,
    ) -> Result<api::Sandbox, ApiError> {
        let name: Name = reference.parse().map_err(|_fault| not_one(reference))?;
        let process = started.pid.and_then(Process::look);
        let keeper = started.keeper.and_then(Process::look);
        // In one transaction: a sandbox that is removed meanwhile has no process any more that its
        // removal does not end.
        let noted = self.store.write(|txn| {
            let there = txn.get::<Stored>(Table::Sandboxes, name.as_str())?;
            let Some(mut sandbox) = there.filter(|it| it.takes(started, keeper.as_ref())) else {
                return Ok(None);
            };
            if keeper.is_some() {
                sandbox.keeper.clone_from(&keeper);
                sandbox.supervised = true;
            }
            if started.pid.is_some() {
                sandbox.starts = sandbox.starts.saturating_add(1);
                // One that is over already is one that need not be known.
                sandbox.process.clone_from(&process);
            }
            txn.put(Table::Sandboxes, name.as_str(), &sandbox)?;
            Ok(Some(sandbox))
        });
        let sandbox = noted.map_err(store_failed)?.ok_or_else(|| sandbox_gone(&name))?;
        if sandbox.starts == 1 && started.pid.is_some() {
            info!(sandbox = %name, "sandbox started");
        }
        if sandbox.has_started() {
            self.watch_keeper(&sandbox);
        }
        Ok(sandbox.row(&self.config, &self.connected(&name)?))
    }

    /// Ends a sandbox's processes and removes the sandbox, or what is known of one that has ended.
    pub(super) async fn remove_sandbox(
        self: &Arc<Self>,
        reference: &str,
    ) -> Result<api::Sandbox, ApiError> {
        let sandbox = match self.find_sandbox(reference) {
            Err(error) if error.code == ErrorCode::NotFound => {
                return self.remove_ended(reference)?.ok_or(error);
            }
            found => found?,
        };
        let Some(sandbox) = self.begin_removal(&sandbox)? else {
            return Err(sandbox_gone(&sandbox.name));
        };
        let row = sandbox.row(&self.config, &self.connected(&sandbox.name)?);
        let mut endpoints = self.endpoints_of(&sandbox.name)?;
        // What does not run reaches nobody, with or without a name.
        endpoints.retain(|_| sandbox.is_running());
        self.take_names_if_possible(&endpoints).await;
        let removed = self.end_and_clear(&sandbox).await;
        let settled = self.settle_names(&endpoints).await;
        self.reconcile().await;
        removed.and(settled)?;
        Ok(row)
    }

    async fn end_and_clear(self: &Arc<Self>, sandbox: &Stored) -> Result<(), ApiError> {
        sandbox.end_processes().await?;
        let mut hosted = self.lock_host().await?;
        // Another removal may be done by now; whoever comes second must not take a new one of that
        // name.
        let current = self.stored_sandboxes()?.into_iter().find(|other| other.name == sandbox.name);
        if current.is_some_and(|current| current.incarnation == sandbox.incarnation) {
            self.clear(&mut hosted, sandbox, None).await?;
            info!(sandbox = %sandbox.name, "sandbox removed");
        }
        Ok(())
    }

    /// Writes down that a sandbox is being removed: from now on nothing starts in it. What its row
    /// says then is all there is.
    pub(super) fn begin_removal(&self, sandbox: &Stored) -> Result<Option<Stored>, ApiError> {
        let name = sandbox.name.as_str();
        let marked = self.store.write(|txn| {
            let there = txn.get::<Stored>(Table::Sandboxes, name)?;
            let Some(mut there) = there.filter(|it| it.incarnation == sandbox.incarnation) else {
                return Ok(None);
            };
            there.removing = true;
            txn.put(Table::Sandboxes, name, &there)?;
            Ok(Some(there))
        });
        marked.map_err(store_failed)
    }

    /// Takes a sandbox away whose processes have ended; what is to be known of it afterwards is
    /// kept.
    pub(super) async fn clear(
        self: &Arc<Self>,
        hosted: &mut Hosted,
        sandbox: &Stored,
        ended: Option<&api::Sandbox>,
    ) -> Result<(), ApiError> {
        let own = self.endpoints_of(&sandbox.name)?;
        let networks = own.iter().map(|endpoint| endpoint.network).collect();
        for endpoint in &own {
            self.detach_stored(hosted, endpoint.id).await?;
        }
        // Its sockets would keep the namespace, unnamed.
        self.host.name_servers.close(&sandbox.name);
        EtcFiles::of(&self.run_dir(), &sandbox.name)
            .remove()
            .map_err(|error| failed(error, "see the agent's log"))?;
        Netns::remove(&sandbox.netns).map_err(OverlayError::from)?;
        let name = sandbox.name.as_str();
        let moved = self.store.write(|txn| {
            if let Some(ended) = ended {
                txn.put(Table::Ended, name, ended)?;
            }
            txn.delete(Table::Sandboxes, name)
        });
        moved.map_err(store_failed)?;
        self.unpublish(hosted, sandbox, &networks);
        if ended.is_none() && sandbox.detached.is_some() {
            let removed = sandbox.records(&self.config.data_dir).remove();
            removed.map_err(|error| failed(error, "see the agent's log"))?;
        }
        Ok(())
    }

    /// Ends and removes every sandbox, for `leave`.
    pub(super) async fn clear_sandboxes(
        self: &Arc<Self>,
        hosted: &mut Hosted,
    ) -> Result<(), ApiError> {
        for sandbox in self.stored_sandboxes()? {
            if let Some(sandbox) = self.begin_removal(&sandbox)? {
                sandbox.end_processes().await?;
                self.clear(hosted, &sandbox, None).await?;
            }
        }
        self.forget_all_ended()
    }
}

/// A sandbox that goes with its command cannot start it again.
fn check_end(detached: Option<&Detached>) -> Result<(), ApiError> {
    match detached {
        Some(Detached { restart, remove: true, .. }) if !restart.is_no() => Err(ApiError::new(
            ErrorCode::Usage,
            "a sandbox that is removed when its command ends does not start it again",
            "leave --rm or --restart out",
        )),
        _ => Ok(()),
    }
}
