//! Plain networks (RFC 7348): their TAPs, the plain port, and the threads between them.
//!
//! ```text
//! thread    one per        waits on            owns
//! out-VNI   plain network  TAP, stop           a frame buffer, a train of datagrams
//! plain-in  agent          plain socket, stop  a batch of datagram buffers
//! ```
//!
//! The port is open only while a plain network is on this host. It is often taken: by the kernel's
//! vxlan device of Docker or flannel. Then plain networks are without it, say so, and it is tried
//! again; others are not concerned.
//!
//! I10: this is the only module that sends frames in clear. What it sends comes from a
//! [`PlainPort`], whose snapshot is made for plain networks only; the workers of encrypted networks
//! have no handle on it.

mod inbound;
mod outbound;
mod socket;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{error, info, warn};
use vxmesh_proto::{
    addr::{NetworkId, Vni},
    limits::PLAIN_PORT,
    path::{announce::Announcement, plain::PlainTable},
};

use self::socket::Sockets;
use super::{
    announce::announce, device::Device, drops::Drops, join, offloads::Offloads,
    outbound::tap_failed, port::PlainPort,
};

/// What the threads of plain networks see.
struct Shared {
    drops: Arc<Drops>,
    offloads: Arc<Offloads>,
    sockets: ArcSwapOption<Sockets>,
    /// Who gets the frames of a number.
    ports: ArcSwap<HashMap<Vni, Arc<PlainPort>>>,
    /// The numbers of encrypted networks, whose frames are refused in clear.
    sealed: ArcSwap<HashMap<Vni, NetworkId>>,
    /// What flows are spread by.
    seed: u64,
}

/// The plain networks of this host.
pub struct Plain {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    workers: HashMap<NetworkId, Worker>,
    reader: Option<Reader>,
    fault: Option<String>,
}

/// A network's TAP and the thread that reads it.
struct Worker {
    port: Arc<PlainPort>,
    thread: JoinHandle<()>,
}

/// The thread that reads the plain port.
struct Reader {
    stop: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain").field("open", &self.shared.sockets.load().is_some()).finish()
    }
}

impl Plain {
    pub(super) fn new(drops: Arc<Drops>, offloads: Arc<Offloads>) -> Self {
        let shared = Shared {
            drops,
            offloads,
            sockets: ArcSwapOption::empty(),
            ports: ArcSwap::default(),
            sealed: ArcSwap::default(),
            seed: rand::random(),
        };
        Self { shared: Arc::new(shared), state: Mutex::default() }
    }

    /// Connects a network's TAP, starts its worker, and opens the port if this is the first.
    ///
    /// # Errors
    /// The system gives no thread. A port that is taken is no error: see [`Self::fault`].
    pub fn connect(&self, table: Arc<PlainTable>, device: Box<dyn Device>) -> io::Result<()> {
        let port = Arc::new(PlainPort::plain(table, device));
        let vni = port.vni();
        let worker = outbound::Outbound::new(Arc::clone(&self.shared), Arc::clone(&port));
        let thread = Builder::new().name(format!("out-{vni}")).spawn(move || {
            if let Err(error) = worker.run() {
                tap_failed(vni, &error);
            }
        })?;
        let mut state = self.lock();
        let mut ports = HashMap::clone(&self.shared.ports.load());
        ports.insert(vni, Arc::clone(&port));
        self.shared.ports.store(Arc::new(ports));
        state.workers.insert(port.id(), Worker { port, thread });
        self.open(&mut state);
        Ok(())
    }

    /// Gives the workers of a network a new snapshot.
    pub fn publish(&self, table: Arc<PlainTable>) {
        if let Some(worker) = self.lock().workers.get(&table.spec().id) {
            worker.port.publish(table);
        }
    }

    /// Tells the local endpoints of a network, and this node itself, which MACs these addresses
    /// have by now.
    pub fn announce(&self, network: NetworkId, news: &[Announcement]) {
        if let Some(worker) = self.lock().workers.get(&network) {
            announce(&self.shared.drops, &worker.port, news);
        }
    }

    /// Says which networks get the frames that come with their number, and which numbers are
    /// encrypted networks'. Tries again to open the port, if it is wanted and not open.
    pub fn serve(
        &self,
        is_active: impl Fn(NetworkId) -> bool,
        sealed: impl FnOnce() -> HashMap<Vni, NetworkId>,
    ) {
        let mut state = self.lock();
        if state.workers.is_empty() {
            return;
        }
        let ports = state.workers.values().filter(|worker| is_active(worker.port.id()));
        let ports = ports.map(|worker| (worker.port.vni(), Arc::clone(&worker.port)));
        self.shared.ports.store(Arc::new(ports.collect()));
        self.shared.sealed.store(Arc::new(sealed()));
        self.open(&mut state);
    }

    /// Stops a network's worker, gives its TAP up, and closes the port after the last.
    pub fn disconnect(&self, network: NetworkId) {
        let mut state = self.lock();
        let Some(Worker { port, thread }) = state.workers.remove(&network) else { return };
        let mut ports = HashMap::clone(&self.shared.ports.load());
        ports.retain(|_vni, other| other.id() != network);
        self.shared.ports.store(Arc::new(ports));
        port.device().stop();
        join(thread);
        if state.workers.is_empty() {
            self.close(&mut state);
        }
    }

    /// Brings the counters up to date with what came and was not taken in time.
    pub(super) fn count_overruns(&self) {
        if let Some(sockets) = &*self.shared.sockets.load() {
            sockets.listener().count_overruns(&self.shared.drops);
        }
    }

    /// Why the plain port is not open although a network needs it.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    /// Whether a plain network is on this host.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.lock().workers.is_empty()
    }

    fn open(&self, state: &mut State) {
        if state.reader.is_some() {
            return;
        }
        match self.start_reader() {
            Ok(reader) => {
                info!(port = PLAIN_PORT, "the plain port is open");
                state.reader = Some(reader);
                state.fault = None;
            }
            Err(error) => {
                let fault = format!("cannot open UDP port {PLAIN_PORT}: {error}");
                if state.fault.as_ref() != Some(&fault) {
                    warn!(%error, port = PLAIN_PORT, "plain networks are without their port; trying again");
                }
                state.fault = Some(fault);
            }
        }
    }

    fn start_reader(&self) -> io::Result<Reader> {
        let sockets = Arc::new(Sockets::open()?);
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let stop = Arc::new(stop);
        let thread = {
            let (shared, sockets, stop) =
                (Arc::clone(&self.shared), Arc::clone(&sockets), Arc::clone(&stop));
            Builder::new().name("plain-in".into()).spawn(move || {
                if let Err(error) = inbound::run(&shared, &sockets, &stop) {
                    error!(%error, "the plain socket failed; restart the agent");
                }
            })?
        };
        self.shared.sockets.store(Some(sockets));
        Ok(Reader { stop, thread })
    }

    fn close(&self, state: &mut State) {
        self.shared.sockets.store(None);
        state.fault = None;
        let Some(Reader { stop, thread }) = state.reader.take() else { return };
        match stop.write(1) {
            Ok(_) => join(thread),
            Err(error) => error!(%error, "the reader of the plain port cannot be told to stop"),
        }
        info!(port = PLAIN_PORT, "the plain port is closed");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let networks: Vec<NetworkId> = self.lock().workers.keys().copied().collect();
        for network in networks {
            self.disconnect(network);
        }
    }
}
