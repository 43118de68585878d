//! The threads that carry frames out: [`Workers`], one for each CPU. Of each network's TAP each has
//! a queue, as far as there are some.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::error;
use vxmesh_proto::addr::NetworkId;

use super::{Shared, join, outbound::Outbound, port::Port};

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// To read this queue of the network's TAP. The flows of a sender are spread over so many.
    Connect { port: Arc<Port>, queue: usize, spread: usize },
    /// To give the network up, and with it the sender.
    Disconnect(NetworkId, Sender<()>),
    /// To end.
    Stop,
}

/// What a worker hears: orders, and a bell that rings for them.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) orders: Receiver<Order>,
    pub(super) bell: Arc<EventFd>,
}

/// All of them. They end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    orders: Sender<Order>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts so many.
    pub(super) fn start(shared: &Arc<Shared>, count: usize) -> io::Result<Self> {
        let mut workers = Self::default();
        for number in 0..count {
            let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let bell = Arc::new(bell);
            let (orders, inbox) = channel();
            let inbox = Inbox { orders: inbox, bell: Arc::clone(&bell) };
            let outbound = Outbound::new(Arc::clone(shared), number, inbox)?;
            let thread = Builder::new().name(format!("out-{number}")).spawn(move || {
                if let Err(error) = outbound.run() {
                    error!(%error, "a thread that carries frames out failed; restart the agent");
                }
            })?;
            workers.0.push(Worker { orders, bell, thread: Some(thread) });
        }
        Ok(workers)
    }

    /// How many there are.
    pub(super) const fn count(&self) -> usize {
        self.0.len()
    }

    /// Has the network's frames carried. Queues of small networks are not all the first worker's.
    pub(super) fn connect(&self, port: &Arc<Port>) {
        let first = usize::try_from(port.vni().get()).unwrap_or_default();
        let queues = port.device().queues();
        let spread = queues.min(self.count());
        for queue in 0..queues {
            if let Some(worker) = self.0.get((first + queue) % self.0.len().max(1)) {
                worker.tell(Order::Connect { port: Arc::clone(port), queue, spread });
            }
        }
    }

    /// Returns when nobody reads the network's TAP any more.
    pub(super) fn disconnect(&self, network: NetworkId) {
        let (given_up, wait) = channel();
        for worker in &self.0 {
            worker.tell(Order::Disconnect(network, given_up.clone()));
        }
        drop(given_up);
        // Nobody says anything: each drops its end.
        let _disconnected = wait.recv();
    }
}

impl Worker {
    fn tell(&self, order: Order) {
        // A worker that failed said so.
        let told = self.orders.send(order).is_ok();
        if told && let Err(errno) = self.bell.write(1) {
            error!(%errno, "a thread that carries frames out cannot be told what to do");
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &self.0 {
            worker.tell(Order::Stop);
        }
        self.0.iter_mut().filter_map(|worker| worker.thread.take()).for_each(join);
    }
}
