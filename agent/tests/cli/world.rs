//! An agent whose admin API is real and whose world is a few objects in memory, and the built
//! program to talk to it.
//!
//! Its sandboxes are real network namespaces, so that `run` and `exec` do what they do on a host.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, gettid},
};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use vxmesh::{
    admin::{self, ApiSocket, Backend, resolve},
    api::*,
    identity::backup::Backup,
};
use vxmesh_proto::addr::EndpointId;

pub(crate) use crate::objects::*;

/// Generous: the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The built program with these words; the environment says nothing about vxmesh.
pub(crate) fn vxmesh(words: &[&str]) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the built program is what is tested")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_vxmesh"));
    for variable in ["CONFIG", "DATA_DIR", "SOCKET", "LOG"] {
        command.env_remove(format!("VXMESH_{variable}"));
    }
    command.args(words).stdin(Stdio::null());
    command
}

/// What a command said.
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        assert_eq!((self.status, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// The error in JSON form: code, message, hint.
    pub(crate) fn error(&self) -> ApiError {
        assert_eq!(self.stdout, "");
        let body: ErrorBody = serde_json::from_str(&self.stderr).expect(&self.stderr);
        body.error
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("it was killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Waits until `condition` holds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The admin API of a [`World`] on a socket of its own.
pub(crate) struct TestAgent {
    pub(crate) world: Arc<World>,
    pub(crate) dir: TempDir,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl TestAgent {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Self { world: Arc::default(), dir, running: None };
        agent.resume();
        agent
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/api.sock")
    }

    pub(crate) fn resume(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let (socket, world) = (self.socket(), Arc::clone(&self.world));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let socket = ApiSocket::bind(&socket, 0o660).await.unwrap();
                ready.send(()).unwrap();
                let stopped = async { drop(stopped.await) };
                socket.serve(admin::router(world), stopped).await.unwrap();
            });
        });
        is_ready.recv_timeout(DEADLINE).unwrap();
        self.running = Some((stop, thread));
    }

    pub(crate) fn pause(&mut self) {
        let (stop, thread) = self.running.take().unwrap();
        stop.send(()).unwrap();
        thread.join().unwrap();
        assert!(!self.socket().exists());
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = vxmesh(words);
        command.env("VXMESH_SOCKET", self.socket());
        command
    }

    pub(crate) fn say(&self, words: &[&str]) -> Said {
        self.command(words).output().unwrap().into()
    }

    pub(crate) fn say_json(&self, words: &[&str]) -> Said {
        self.say(&[&["--format", "json"], words].concat())
    }
}

impl TestAgent {
    /// The supervisors of sandboxes of this agent.
    pub(crate) fn supervisors(&self) -> Vec<u32> {
        let socket = self.socket().to_str().unwrap().to_owned();
        let processes = std::fs::read_dir("/proc").unwrap().map_while(Result::ok);
        let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_supervisor = |pid: &u32| {
            let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.starts_with("vxmesh\0supervise\0") && words.contains(&socket)
        };
        numbers.filter(is_supervisor).collect()
    }
}

/// Leaves no process behind: those of a good test end by themselves.
impl Drop for TestAgent {
    fn drop(&mut self) {
        if thread::panicking() {
            let commands = self.world.sandbox_list().into_iter().filter_map(|it| it.pid);
            for pid in self.supervisors().into_iter().chain(commands) {
                let pid = Pid::from_raw(i32::try_from(pid).unwrap());
                kill(pid, Signal::SIGKILL).unwrap_or_default();
            }
        } else if self.running.is_some() {
            wait_for("the end of the supervisors", || self.supervisors().is_empty());
            self.pause();
        }
    }
}

/// A few objects, and what was asked of them.
pub(crate) struct World {
    calls: Mutex<Vec<(String, Value)>>,
    sandboxes: Mutex<Vec<Held>>,
    ended: Mutex<Vec<Sandbox>>,
    /// Whether sandboxes are gone when their command is told.
    pub(crate) forget_sandboxes: AtomicBool,
    /// What supervisors keep.
    records: TempDir,
    /// While it has no permit, `sandbox_create` waits.
    creation: tokio::sync::Semaphore,
    /// What every call fails with, when set.
    pub(crate) failure: Mutex<Option<ApiError>>,
}

/// A sandbox and the thread that keeps its namespace.
struct Held {
    sandbox: Sandbox,
    keeper: Option<mpsc::Sender<()>>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            calls: Mutex::default(),
            sandboxes: Mutex::default(),
            ended: Mutex::default(),
            forget_sandboxes: AtomicBool::new(false),
            records: tempfile::tempdir().unwrap(),
            creation: tokio::sync::Semaphore::new(1),
            failure: Mutex::default(),
        }
    }
}

impl World {
    pub(crate) fn hold_creation(&self) {
        assert_eq!(self.creation.forget_permits(1), 1);
    }

    pub(crate) fn release_creation(&self) {
        self.creation.add_permits(1);
    }

    /// The calls since the last time, with their specs.
    pub(crate) fn calls(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    pub(crate) fn sandbox_list(&self) -> Vec<Sandbox> {
        self.held().iter().map(|held| held.sandbox.clone()).collect()
    }

    /// A sandbox as a newer `run` of the same name would make it.
    pub(crate) fn replace_sandbox(&self, name: &str) {
        let mut held = self.held();
        let old = held.iter_mut().find(|held| held.sandbox.name.as_str() == name).unwrap();
        old.sandbox.incarnation += 1;
        old.sandbox.pid = None;
    }

    /// Takes a sandbox away as another `sandbox rm` would.
    pub(crate) fn drop_sandbox(&self, name: &str) {
        self.held().retain(|held| held.sandbox.name.as_str() != name);
    }

    pub(crate) fn set_pid(&self, name: &str, pid: Option<u32>) {
        let mut held = self.held();
        held.iter_mut().find(|held| held.sandbox.name.as_str() == name).unwrap().sandbox.pid = pid;
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.sandboxes.lock().unwrap()
    }

    fn asked(&self, call: &str, spec: impl Serialize) -> Result<(), ApiError> {
        self.calls.lock().unwrap().push((call.into(), serde_json::to_value(spec).unwrap()));
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Backend for World {
    async fn status(&self) -> Result<Status, ApiError> {
        self.asked("status", ())?;
        Ok(status())
    }

    async fn init(&self, spec: InitSpec) -> Result<Membership, ApiError> {
        self.asked("init", spec)?;
        Ok(membership())
    }

    async fn join(&self, spec: JoinSpec) -> Result<Membership, ApiError> {
        self.asked("join", spec)?;
        Ok(membership())
    }

    async fn leave(&self, spec: LeaveSpec) -> Result<Membership, ApiError> {
        self.asked("leave", spec)?;
        Ok(Membership { warnings: vec!["nobody heard it".into()], ..membership() })
    }

    async fn backup(&self) -> Result<Backup, ApiError> {
        self.asked("backup", ())?;
        Err(ApiError::new(ErrorCode::Conflict, "nothing to keep", "make a mesh"))
    }

    async fn token_create(&self, spec: TokenSpec) -> Result<TokenCreated, ApiError> {
        self.asked("token_create", spec)?;
        Ok(TokenCreated {
            id: "k7".into(),
            token: "VXMTKN-1-a-b".into(),
            expires_at: 3601,
            servers: vec!["10.213.0.1:7760".parse().unwrap(), "[fd13::1]:7760".parse().unwrap()],
            issuers: vec![Issuer {
                id: node_id(1),
                name: "h1".parse().unwrap(),
                state: "alive".into(),
            }],
            member_until: Some(7200),
        })
    }

    async fn tokens(&self) -> Result<Vec<Token>, ApiError> {
        self.asked("tokens", ())?;
        Ok(tokens())
    }

    async fn token_revoke(&self, reference: &str) -> Result<Token, ApiError> {
        self.asked("token_revoke", reference)?;
        resolve::one(&tokens(), reference).cloned()
    }

    async fn nodes(&self) -> Result<Vec<Node>, ApiError> {
        self.asked("nodes", ())?;
        Ok(nodes())
    }

    async fn peers(&self) -> Result<Vec<Peer>, ApiError> {
        self.asked("peers", ())?;
        Ok(peers())
    }

    async fn node_update(&self, reference: &str, spec: NodeSpec) -> Result<Node, ApiError> {
        self.asked("node_update", json!({ "node": reference, "spec": spec }))?;
        self.node(reference).await
    }

    async fn node_rm(&self, reference: &str, force: bool) -> Result<Node, ApiError> {
        let asked = if force { format!("{reference} by force") } else { reference.to_owned() };
        self.asked("node_rm", asked)?;
        self.node(reference).await
    }

    async fn networks(&self) -> Result<Vec<Network>, ApiError> {
        self.asked("networks", ())?;
        Ok(networks())
    }

    async fn network_create(&self, spec: NetworkSpec) -> Result<Network, ApiError> {
        self.asked("network_create", spec)?;
        Ok(networks().swap_remove(0))
    }

    async fn network_extend(&self, reference: &str, spec: ExtendSpec) -> Result<Network, ApiError> {
        self.asked("network_extend", json!({ "network": reference, "spec": spec }))?;
        self.network(reference).await
    }

    async fn network_update(
        &self,
        reference: &str,
        update: NetworkUpdate,
    ) -> Result<Network, ApiError> {
        self.asked("network_update", json!({ "network": reference, "update": update }))?;
        self.network(reference).await
    }

    async fn network_rm(&self, reference: &str, force: bool) -> Result<Network, ApiError> {
        let asked = if force { format!("{reference} by force") } else { reference.to_owned() };
        self.asked("network_rm", asked)?;
        self.network(reference).await
    }

    async fn services(&self) -> Result<Vec<Service>, ApiError> {
        self.asked("services", ())?;
        Ok(vec![service()])
    }

    async fn service_create(&self, spec: ServiceSpec) -> Result<Service, ApiError> {
        self.asked("service_create", spec)?;
        Ok(service())
    }

    async fn service_update(
        &self,
        reference: &str,
        update: ServiceUpdate,
    ) -> Result<Service, ApiError> {
        self.asked("service_update", json!({ "service": reference, "update": update }))?;
        Ok(service())
    }

    async fn service_health(&self, reference: &str, word: HealthWord) -> Result<Service, ApiError> {
        self.asked("service_health", json!({ "service": reference, "word": word }))?;
        Ok(service())
    }

    async fn service_rm(&self, reference: &str) -> Result<Service, ApiError> {
        self.asked("service_rm", reference)?;
        Ok(service())
    }

    async fn pools(&self) -> Result<Vec<AddressPool>, ApiError> {
        self.asked("pools", ())?;
        Ok(network_pools().pools.into_iter().map(|detail| detail.pool).collect())
    }

    async fn trust_pools(&self) -> Result<Vec<AddressPool>, ApiError> {
        self.pools().await
    }

    async fn network_pools(&self, reference: &str) -> Result<NetworkPools, ApiError> {
        self.asked("network_pools", reference)?;
        self.network(reference).await?;
        Ok(network_pools())
    }

    async fn endpoints(&self) -> Result<Vec<Endpoint>, ApiError> {
        self.asked("endpoints", ())?;
        Ok(endpoints())
    }

    async fn endpoint_attach(&self, spec: AttachSpec) -> Result<Endpoint, ApiError> {
        self.asked("endpoint_attach", spec)?;
        Ok(endpoints().swap_remove(0))
    }

    async fn endpoint_update(
        &self,
        reference: &str,
        spec: EndpointSpec,
    ) -> Result<Endpoint, ApiError> {
        self.asked("endpoint_update", json!({ "endpoint": reference, "spec": spec }))?;
        self.endpoint(reference).await
    }

    async fn endpoint_detach(&self, reference: &str) -> Result<Endpoint, ApiError> {
        self.asked("endpoint_detach", reference)?;
        self.endpoint(reference).await
    }

    async fn attachment_add(&self, spec: AttachmentSpec) -> Result<Attachment, ApiError> {
        self.asked("attachment_add", &spec)?;
        let endpoint = endpoints().swap_remove(0);
        let network = self.network(&spec.network).await?;
        Ok(Attachment { endpoint, network })
    }

    async fn attachment(&self, key: AttachmentKey) -> Result<Attachment, ApiError> {
        self.asked("attachment", &key)?;
        let endpoint = endpoints().swap_remove(0);
        let network = self.network(&endpoint.network.to_string()).await?;
        Ok(Attachment { endpoint, network })
    }

    async fn attachment_rm(&self, key: AttachmentKey) -> Result<Vec<Endpoint>, ApiError> {
        self.asked("attachment_rm", &key)?;
        Ok(Vec::new())
    }

    async fn attachments_keep(&self, kept: AttachmentsKept) -> Result<Vec<Endpoint>, ApiError> {
        self.asked("attachments_keep", &kept)?;
        Ok(Vec::new())
    }

    async fn sandboxes(&self) -> Result<Vec<Sandbox>, ApiError> {
        self.asked("sandboxes", ())?;
        Ok(self.sandbox_list())
    }

    async fn sandboxes_ended(&self) -> Result<Vec<Sandbox>, ApiError> {
        Ok(self.ended.lock().unwrap().clone())
    }

    async fn sandbox_create(&self, spec: SandboxSpec) -> Result<Sandbox, ApiError> {
        self.asked("sandbox_create", &spec)?;
        let _permit = self.creation.acquire().await.unwrap();
        let (netns, keeper) = new_netns();
        let mut held = self.held();
        let number = u8::try_from(held.len() + 1).unwrap();
        let name = spec.name.unwrap_or_else(|| name(&format!("box{number}")));
        let records = self.records.path().join(name.as_str());
        let records = records.to_str().unwrap().to_owned();
        if spec.detached.is_some() {
            std::fs::create_dir_all(&records).unwrap();
        }
        let sandbox = Sandbox {
            hostname: spec.hostname.map(String::from).or_else(|| Some(name.to_string())),
            name,
            netns,
            pid: None,
            state: "created".into(),
            exit_status: None,
            ended_at: None,
            records: spec.detached.is_some().then_some(records),
            detached: spec.detached,
            restarts: 0,
            command: spec.command,
            incarnation: u64::from(number),
            endpoints: vec![EndpointId::from_random([number; 16])],
            labels: spec.labels,
            networks: Vec::new(),
            etc: None,
            published: Vec::new(),
            mode: spec.mode,
            warnings: Vec::new(),
        };
        held.push(Held { sandbox: sandbox.clone(), keeper: Some(keeper) });
        Ok(sandbox)
    }

    async fn sandbox_started(
        &self,
        reference: &str,
        started: SandboxStarted,
    ) -> Result<Sandbox, ApiError> {
        self.asked("sandbox_started", json!({ "sandbox": reference, "started": started }))?;
        let mut all = self.held();
        if started.pid.is_some() && self.forget_sandboxes.load(Ordering::Relaxed) {
            all.retain(|held| held.sandbox.name.as_str() != reference);
        }
        let held = find(&mut all, reference, started.incarnation)?;
        if let Some(pid) = started.pid {
            held.sandbox.pid = Some(pid);
            held.sandbox.state = "running".into();
        }
        Ok(held.sandbox.clone())
    }

    async fn sandbox_ended(
        &self,
        reference: &str,
        ended: SandboxEnded,
    ) -> Result<Sandbox, ApiError> {
        self.asked("sandbox_ended", json!({ "sandbox": reference, "ended": ended }))?;
        let mut all = self.held();
        let _there = find(&mut all, reference, ended.incarnation)?;
        let at = all.iter().position(|held| held.sandbox.name.as_str() == reference).unwrap();
        let mut sandbox = all.swap_remove(at).sandbox;
        sandbox.state = "exited".into();
        sandbox.pid = None;
        (sandbox.exit_status, sandbox.ended_at) = (ended.exit_status, Some(ended.ended_at));
        if sandbox.detached.as_ref().is_some_and(|detached| !detached.remove) {
            self.ended.lock().unwrap().push(sandbox.clone());
        }
        Ok(sandbox)
    }

    async fn sandbox_rm(&self, reference: &str) -> Result<Sandbox, ApiError> {
        self.asked("sandbox_rm", reference)?;
        let sandbox = self.sandbox(reference).await?;
        let mut held = self.held();
        let Some(at) = held.iter().position(|held| held.sandbox.name == sandbox.name) else {
            self.ended.lock().unwrap().retain(|ended| ended.name != sandbox.name);
            return Ok(sandbox);
        };
        let gone = held.swap_remove(at);
        drop(gone.keeper);
        if let Some(pid) = gone.sandbox.pid {
            // It may have ended by itself.
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap_or_default();
        }
        Ok(gone.sandbox)
    }

    async fn sandbox_connect(
        &self,
        reference: &str,
        connection: Connection,
    ) -> Result<Endpoint, ApiError> {
        self.asked("sandbox_connect", json!([reference, connection]))?;
        Ok(endpoints().swap_remove(0))
    }

    async fn sandbox_disconnect(
        &self,
        reference: &str,
        network: &str,
    ) -> Result<Endpoint, ApiError> {
        self.asked("sandbox_disconnect", json!([reference, network]))?;
        Ok(endpoints().swap_remove(0))
    }

    async fn doctor(&self) -> Result<Vec<Diagnosis>, ApiError> {
        self.asked("doctor", ())?;
        Ok(diagnoses())
    }

    async fn drops(&self) -> Result<Vec<DropRow>, ApiError> {
        self.asked("drops", ())?;
        Ok(drops())
    }

    async fn flows(&self, query: FlowQuery) -> Result<Flows, ApiError> {
        self.asked("flows", query)?;
        Ok(flows())
    }

    async fn locate(&self, address: Address) -> Result<Vec<Location>, ApiError> {
        self.asked("locate", address.to_string())?;
        let mut found = locations();
        found.retain(|location| match address {
            Address::Mac(mac) => location.mac == mac,
            Address::Ip(ip) => location.ips.contains(&ip),
        });
        Ok(found)
    }

    async fn dns_query(&self, name: &str, query: DnsQuery) -> Result<Vec<DnsRecord>, ApiError> {
        self.asked("dns_query", json!({ "name": name, "query": query }))?;
        Ok(vec![dns_record()])
    }

    async fn map(&self) -> Result<Vec<MapRow>, ApiError> {
        self.asked("map", ())?;
        Ok(map_rows())
    }

    async fn map_diff(&self, reference: &str) -> Result<Vec<MapDiffRow>, ApiError> {
        self.asked("map_diff", reference)?;
        Ok(map_differences())
    }
}

fn find<'a>(
    all: &'a mut [Held],
    reference: &str,
    incarnation: u64,
) -> Result<&'a mut Held, ApiError> {
    let is_it = |held: &&mut Held| {
        held.sandbox.name.as_str() == reference && held.sandbox.incarnation == incarnation
    };
    let gone = || ApiError::new(ErrorCode::NotFound, "the sandbox is gone", "run another");
    all.iter_mut().find(is_it).ok_or_else(gone)
}

/// The path of a new network namespace, which lives until the sender is dropped.
fn new_netns() -> (String, mpsc::Sender<()>) {
    let (keeper, kept) = mpsc::channel();
    let (path, made) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("make network namespaces: run the tests as root");
        let thread = format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid());
        path.send(thread).unwrap();
        // Ends with an error, as the sender is dropped and sends nothing.
        kept.recv().unwrap_or_default();
    });
    (made.recv_timeout(DEADLINE).expect("make network namespaces: run the tests as root"), keeper)
}

/// Writes a file and gives its path.
pub(crate) fn file(dir: &Path, file: &str, text: &str) -> String {
    let path = dir.join(file);
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}
