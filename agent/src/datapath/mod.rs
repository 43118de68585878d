//! The data path's shell: the data socket, the TAPs and the threads between them.
//!
//! ```text
//! thread     one per  waits on                        owns
//! out-N      CPU      its queues of the TAPs, a bell  frames that wait, a train of datagrams for each lane
//! in-N       CPU      data socket, stop               its socket, a batch of datagram buffers
//! in-sparse  agent    the socket of sparse flows      as in-N
//! session    agent    its queue, timers               the Noise sessions
//! plain-in   agent    plain socket, stop              a batch of datagram buffers; only while a plain network is here
//! ```
//!
//! What they share is [`Shared`]: snapshots and atomics, no lock on the way of a frame. Decisions
//! are `vxmesh_proto`'s.

mod announce;
pub mod backend;
mod deliveries;
pub mod device;
pub mod drops;
mod gso;
mod inbound;
mod lanes;
pub mod offload;
mod offloads;
mod outbound;
mod overruns;
pub mod plain;
pub mod port;
mod sessions;
pub mod steering;
pub mod tap;
mod train;
pub mod udp;
mod waiter;
mod workers;

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::SocketAddr,
    num::NonZero,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, Builder, JoinHandle},
    time::Instant,
};

use arc_swap::ArcSwap;
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use tokio::sync::oneshot;
use tracing::{debug, error, info};
use vxmesh_proto::{
    addr::{NetworkId, NodeId, Vni},
    flow::Lane,
    frame::{Frame, Segments, ecn::Ecn, vnet},
    path::{Watch, announce::Announcement},
    reason::DropReason,
    session::{
        Config, Entropy, IndexTable, NoEntropy, Peer, PeerConfig, Probe, Sessions, SetPeerError,
    },
};

use self::{
    device::Device,
    drops::{DropKey, Drops},
    offloads::Offloads,
    port::{Port, Table},
    sessions::SessionInput,
    steering::Queues,
    udp::UdpIo,
    waiter::Bulk,
    workers::Workers,
};

/// Threads of either direction: one for each CPU, but no more than this, since each has half a
/// megabyte of buffers and its socket up to [`udp::SOCKET_BUFFER`] in the kernel.
const MAX_THREADS: usize = 8;

/// What all threads of the data path see.
struct Shared {
    /// The data socket of the first threads, and of all where the port cannot be shared.
    udp: UdpIo,
    /// Those of the other threads, in either direction.
    others: Vec<UdpIo>,
    /// The socket of sparse flows, if the kernel tells their datagrams from others.
    sparse: Option<UdpIo>,
    bulk: Bulk,
    drops: Arc<Drops>,
    offloads: Arc<Offloads>,
    index: Arc<IndexTable>,
    /// Who gets the frames of a number. Of two networks in conflict over it only one is here.
    ports: ArcSwap<HashMap<Vni, Arc<Port>>>,
    sessions: SyncSender<SessionInput>,
    stop: EventFd,
}

impl Shared {
    fn to_sessions(&self, input: SessionInput) {
        if let Err(TrySendError::Full(_input)) = self.sessions.try_send(input) {
            self.drops.unknown(DropReason::SessionQueueFull);
        }
    }

    /// The data socket of a thread with this number.
    fn socket(&self, number: usize) -> &UdpIo {
        number.checked_sub(1).and_then(|other| self.others.get(other)).unwrap_or(&self.udp)
    }

    /// From where a thread sends the datagrams of a lane.
    fn sender(&self, lane: Lane, number: usize) -> &UdpIo {
        match (lane, &self.sparse) {
            (Lane::Sparse, Some(sparse)) => sparse,
            (Lane::Sparse, None) | (Lane::Bulk, _) => self.socket(number),
        }
    }

    /// Sends a sealed datagram, or counts why it did not go. True if it went.
    fn send(&self, to: SocketAddr, datagram: &[u8], peer: Option<NodeId>) -> bool {
        let sent = self.udp.send(to, datagram, None, Ecn::NotEct);
        if let Err(error) = &sent {
            self.not_sent(to, error, peer, 1);
        }
        sent.is_ok()
    }

    /// Counts packets that did not go.
    fn not_sent(&self, to: SocketAddr, error: &io::Error, peer: Option<NodeId>, count: u64) {
        debug!(%to, %error, "datagram not sent");
        self.drops.add(DropKey::of(refused_because(error)).with_peer(peer), count);
    }

    /// Writes a frame to a network's TAP, or counts why it was not taken. True if it was.
    fn deliver(&self, port: &Port, frame: &[u8]) -> bool {
        deliver(&self.drops, port, frame)
    }
}

/// The counter of datagrams that the underlay did not take.
fn refused_because(error: &io::Error) -> DropReason {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMSGSIZE) => DropReason::UnderlayTooBig,
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN) => {
            DropReason::UnderlayUnreachable
        }
        _ if error.kind() == io::ErrorKind::WouldBlock => DropReason::UnderlayFull,
        _ => DropReason::UnderlayError,
    }
}

/// Writes a frame to a network's TAP, or counts why it was not taken. True if it was.
fn deliver<T>(drops: &Drops, port: &Port<T>, frame: &[u8]) -> bool {
    let taken = port.device().send(&vnet::PLAIN, &[IoSlice::new(frame)]);
    if let Err(error) = &taken {
        debug!(network = %port.id(), %error, "frame not delivered");
        drops.add(DropKey::of(DropReason::TapError).in_network(port.id()), 1);
    }
    taken.is_ok()
}

/// Writes a frame packet by packet. What is not taken is counted.
fn cut<T>(drops: &Drops, port: &Port<T>, frame: &Frame<'_>, watch: &mut impl Watch) {
    match Segments::of(frame) {
        Ok(segments) => {
            let mut packet = Vec::new();
            for index in 0..segments.count() {
                packet.resize(segments.frame_len(index), 0);
                segments.write(index, &mut packet);
                let _taken = deliver(drops, port, &packet);
            }
        }
        Err(reason) => watch.drop(reason, frame.bytes()),
    }
}

/// Why the data path did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The port is taken or forbidden.
    #[error(
        "cannot open the data port {port}: {source}; is another agent running? --data-port chooses another"
    )]
    Bind {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// A thread or an event descriptor could not be had.
    #[error("cannot start the data path: {0}; are there processes and file descriptors left?")]
    Thread(#[from] io::Error),
}

/// The running data path. It ends when this is dropped.
pub struct Dataplane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    workers: Workers,
    /// All networks with a TAP here, also those that another has the number of.
    ports: Mutex<HashMap<NetworkId, Arc<Port>>>,
    local_addr: SocketAddr,
    plain: plain::Plain,
}

impl std::fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataplane").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Opens the data port in the calling thread's network namespace and starts the threads.
    ///
    /// # Errors
    /// The port is taken, or the system gives no thread.
    pub fn start(port: u16, config: Config) -> Result<Self, StartError> {
        let udp = UdpIo::bind(port).map_err(|source| StartError::Bind { port, source })?;
        let local_addr = udp.local_addr()?;
        let count = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
        let (others, sparse) = match lanes::share(&udp, count) {
            Ok((others, sparse)) => (others, Some(sparse)),
            Err(error) => {
                info!(%error, "the data port is not shared; one thread receives");
                (Vec::new(), None)
            }
        };
        let sessions =
            Sessions::new(config, Box::new(SystemEntropy(SystemRandom::new())), Instant::now());
        let (drops, offloads) = (Arc::new(Drops::default()), Arc::new(Offloads::default()));
        let plain = plain::Plain::new(Arc::clone(&drops), Arc::clone(&offloads));
        let (inputs, queue) = sync_channel(sessions::QUEUE);
        let shared = Arc::new(Shared {
            udp,
            others,
            sparse,
            bulk: Bulk::new(),
            drops,
            offloads,
            index: sessions.index_table(),
            ports: ArcSwap::default(),
            sessions: inputs,
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(io::Error::from)?,
        });
        let workers = Workers::start(&shared, count)?;
        let (threads, ports) = (Vec::new(), Mutex::default());
        let mut plane = Self { shared, threads, workers, ports, local_addr, plain };
        let shared = Arc::clone(&plane.shared);
        plane.threads.push(
            Builder::new()
                .name("session".into())
                .spawn(move || sessions::run(sessions, &queue, &shared))?,
        );
        for number in 0..=plane.shared.others.len() {
            let shared = Arc::clone(&plane.shared);
            plane.receive(format!("in-{number}"), move || {
                inbound::run(&shared, shared.socket(number))
            })?;
        }
        if plane.shared.sparse.is_some() {
            let shared = Arc::clone(&plane.shared);
            plane.receive("in-sparse".into(), move || {
                shared.sparse.as_ref().map_or(Ok(()), |socket| inbound::run(&shared, socket))
            })?;
        }
        Ok(plane)
    }

    fn receive(
        &mut self,
        name: String,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let receive = move || {
            if let Err(error) = run() {
                error!(%error, "the data socket failed; restart the agent");
            }
        };
        self.threads.push(Builder::new().name(name).spawn(receive)?);
        Ok(())
    }

    /// Where sealed frames are received.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The plain networks of this host.
    #[must_use]
    pub const fn plain(&self) -> &plain::Plain {
        &self.plain
    }

    /// Brings the counters up to date with what came and was not taken in time.
    pub fn count_overruns(&self) {
        let Shared { udp, others, sparse, drops, .. } = &*self.shared;
        let sockets = [udp].into_iter().chain(others).chain(sparse);
        sockets.for_each(|socket| socket.count_overruns(drops));
        self.plain.count_overruns();
    }

    /// The counters of frames that were not delivered.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.shared.drops
    }

    /// What the kernel granted the data socket.
    pub fn underlay_offloads(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.shared.udp.offloads()
    }

    /// How often an offload was switched off because it was refused at work.
    #[must_use]
    pub fn refused_offloads(&self) -> u64 {
        self.shared.offloads.refused()
    }

    /// Adds a peer or takes over what its records say by now.
    ///
    /// # Errors
    /// Its key cannot be used, or the data path has stopped.
    pub async fn set_peer(&self, config: PeerConfig) -> Result<Arc<Peer>, SetPeerFailed> {
        let (answer, answered) = oneshot::channel();
        self.tell(SessionInput::SetPeer(config, answer)).await;
        answered.await.map_err(|_closed| SetPeerFailed::Stopped)?.map_err(SetPeerFailed::from)
    }

    /// Ends the sessions with a node at once.
    pub async fn remove_peer(&self, node: NodeId) {
        self.tell(SessionInput::RemovePeer(node)).await;
    }

    /// Begins a handshake with a peer unless there is a key.
    pub async fn want(&self, node: NodeId) {
        self.tell(SessionInput::Wanted(node)).await;
    }

    /// Begins a handshake with every peer that there is a session with: it shows them where this
    /// node is by now.
    pub async fn show_place(&self) {
        self.tell(SessionInput::Moved).await;
    }

    /// Uses no key any more that there was before this host stood still, or in an image from which
    /// it goes on, and makes new ones.
    pub async fn start_over(&self) {
        self.tell(SessionInput::Restored).await;
    }

    /// Sends a peer something that shows whether packets pass; a handshake where there is no key.
    pub async fn probe(&self, node: NodeId, probe: Probe) {
        self.tell(SessionInput::Probe(node, probe)).await;
    }

    /// Control inputs are not lost when the queue is full: they wait, off the threads of the
    /// runtime.
    async fn tell(&self, input: SessionInput) {
        if let Err(TrySendError::Full(input)) = self.shared.sessions.try_send(input) {
            let queue = self.shared.sessions.clone();
            let sent = tokio::task::spawn_blocking(move || queue.send(input).is_ok()).await;
            debug!(sent = sent.unwrap_or(false), "the session thread is busy");
        }
    }

    /// The queues of a network's TAP.
    #[must_use]
    pub fn queues(&self) -> Queues {
        Queues::read_by(self.workers.count())
    }

    /// Connects a network's TAP and has its frames carried.
    pub fn connect(&self, table: Arc<Table>, device: Box<dyn Device>) {
        let port = Arc::new(Port::new(table, device));
        self.workers.connect(&port);
        self.edit_ports(|ports| ports.insert(port.vni(), Arc::clone(&port)));
        self.ports().insert(port.id(), port);
    }

    /// Gives the workers of a network a new snapshot; without its TAP there is none to give it to.
    pub fn publish(&self, table: Arc<Table>) {
        if let Some(port) = self.ports().get(&table.spec().id) {
            port.publish(table);
        }
    }

    /// Tells the local endpoints of a network, and this node itself, which MACs these addresses
    /// have by now.
    pub fn announce(&self, network: NetworkId, news: &[Announcement]) {
        if let Some(port) = self.ports().get(&network) {
            announce::announce(&self.shared.drops, port, news);
        }
    }

    /// Says which networks get the frames that come with their number: of those that claim one
    /// number the active one.
    pub fn serve(&self, is_active: impl Fn(NetworkId) -> bool) {
        let all = self.ports();
        let served = || all.values().filter(|port| is_active(port.id()));
        let ports = self.shared.ports.load();
        let same = |port: &Arc<Port>| ports.get(&port.vni()).is_some_and(|is| is.id() == port.id());
        if ports.len() != served().count() || !served().all(same) {
            let served = served().map(|port| (port.vni(), Arc::clone(port)));
            self.shared.ports.store(Arc::new(served.collect()));
        }
    }

    /// Gives a network's TAP up.
    pub fn disconnect(&self, network: NetworkId) {
        let Some(port) = self.ports().remove(&network) else { return };
        self.edit_ports(|ports| ports.retain(|_vni, other| other.id() != network));
        self.workers.disconnect(network);
        // Last: the TAP goes with it, and no thread that carries frames is to wait for that.
        drop(port);
    }

    fn edit_ports<R>(&self, edit: impl Fn(&mut HashMap<Vni, Arc<Port>>) -> R) {
        self.shared.ports.rcu(|ports| {
            let mut ports = HashMap::clone(ports);
            edit(&mut ports);
            ports
        });
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, HashMap<NetworkId, Arc<Port>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        let networks: Vec<NetworkId> = self.ports().keys().copied().collect();
        for network in networks {
            self.disconnect(network);
        }
        if let Err(error) = self.shared.stop.write(1) {
            error!(%error, "the data path cannot be told to stop");
            return;
        }
        // The thread may have ended.
        drop(self.shared.sessions.send(SessionInput::Stop));
        self.threads.drain(..).for_each(join);
    }
}

fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        error!(thread = name, "a thread of the data path panicked");
    }
}

/// Why a node did not become a peer.
#[derive(Debug, Error)]
pub enum SetPeerFailed {
    /// Its key cannot be used.
    #[error(transparent)]
    Refused(#[from] SetPeerError),
    /// The data path has stopped.
    #[error("the data path has stopped")]
    Stopped,
}

/// Random bytes of the operating system for the sessions.
struct SystemEntropy(SystemRandom);

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        self.0.fill(out).map_err(|_unspecified| NoEntropy)
    }
}
