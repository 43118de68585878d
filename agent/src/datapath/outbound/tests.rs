use std::{
    io::IoSlice,
    os::fd::BorrowedFd,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{channel, sync_channel},
    },
};

use arc_swap::ArcSwap;
use etherparse::PacketBuilder;
use nix::{
    libc::EBADFD,
    sys::eventfd::{EfdFlags, EventFd},
};
use vxmesh_proto::{
    addr::{MacAddr, NetworkId, Vni},
    frame::coalesce::Accepts,
    tables::{Gateway, NetworkSpec, NetworkTable},
};

use super::*;
use crate::datapath::{
    backend::{Backend, Grants},
    device::Device,
    drops::{DropKey, Drops},
    udp::UdpIo,
    waiter::Bulk,
};

/// Gives so many super-frames of one flow, and then it is gone. Of what it is given it keeps
/// whether it is a super-frame, and the last byte.
#[derive(Debug, Default)]
struct Fake {
    left: AtomicUsize,
    given: Arc<Mutex<Vec<(bool, u8)>>>,
}

impl Device for Fake {
    fn queues(&self) -> usize {
        1
    }

    fn queue(&self, _queue: usize) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wait(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn recv(&self, _queue: usize, _buffer: &mut [u8]) -> io::Result<Received> {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        match left {
            0 => Err(io::Error::from_raw_os_error(EBADFD)),
            _ => Ok(Received { vnet: vnet::PLAIN, len: 60_000 }),
        }
    }

    fn send(&self, vnet: &[u8; vnet::LEN], parts: &[IoSlice<'_>]) -> io::Result<()> {
        let is_super = *vnet != vnet::PLAIN;
        let last = parts.last().and_then(|part| part.last()).copied().unwrap_or_default();
        self.given.lock().unwrap().push((is_super, last));
        Ok(())
    }

    fn accepts(&self) -> Accepts {
        Accepts { tcp4: true, tcp6: true, udp: true }
    }

    fn grants(&self) -> Grants {
        Grants { backend: Backend::Offload, offloads: Vec::new() }
    }

    fn stop(&self) {}
}

fn port(frames: usize) -> Arc<Port> {
    port_of(Fake { left: AtomicUsize::new(frames), ..Fake::default() })
}

fn port_of(device: Fake) -> Arc<Port> {
    let spec = NetworkSpec {
        id: NetworkId::from_random([1; 16]),
        vni: Vni::new(42).unwrap(),
        mtu: 1390,
        gateway: Gateway { mac: MacAddr([2; 6]), ips: Vec::new() },
        subnets: Vec::new(),
        isolated: false,
        limits: Default::default(),
    };
    let table = NetworkTable::new(spec, 7, Instant::now());
    Arc::new(Port::new(Arc::new(table), Box::new(device)))
}

fn event() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap()
}

fn shared() -> Shared {
    let (sessions, _queue) = sync_channel(1);
    Shared {
        udp: UdpIo::bind(0).unwrap(),
        others: Vec::new(),
        sparse: None,
        bulk: Bulk::new(),
        drops: Arc::new(Drops::default()),
        offloads: Arc::default(),
        index: Arc::default(),
        ports: ArcSwap::default(),
        sessions,
        stop: event(),
    }
}

fn outbound_worker() -> Outbound {
    let (_orders, inbox) = channel();
    let inbox = Inbox { orders: inbox, bell: Arc::new(event()) };
    Outbound::new(Arc::new(shared()), 0, inbox).unwrap()
}

#[test]
fn i4_frames_that_wait_when_their_tap_goes_are_counted() {
    let mut worker = outbound_worker();
    let port = port(3);
    let lost = DropKey::of(DropReason::TapError).in_network(port.id());
    worker.join(port, 0, 1);
    assert_eq!(worker.take(0, false), 3);
    assert_eq!(worker.shared.drops.rows(), [(lost, 3)]);
    assert_eq!(worker.spare.lent, (0, 0), "their room is free again");
    assert!(worker.turns.is_empty());
}

fn datagram(len: usize, last: u8) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder = builder.ipv6([1; 16], [2; 16], 64).udp(1000, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![last; len]).unwrap();
    frame
}

#[test]
fn what_goes_back_is_put_together_and_stays_in_order() {
    let (shared, taken, other) = (shared(), Arc::default(), Arc::default());
    let port = port_of(Fake { given: Arc::clone(&taken), ..Fake::default() });
    let beside = port_of(Fake { given: Arc::clone(&other), ..Fake::default() });
    let mut here = Deliveries::default();
    let mut push = |port: &Arc<Port>, len, last| {
        let mut bytes = datagram(len, last);
        let frame = Frame::plain(&mut bytes);
        here.push(&shared, port, (&frame, &vnet::PLAIN), &mut ());
    };
    push(&port, 100, 1);
    push(&port, 100, 2);
    assert!(taken.lock().unwrap().is_empty(), "more may come");
    // One that is too large to be kept does not overtake them, nor is it overtaken.
    push(&port, 4000, 3);
    push(&port, 100, 4);
    push(&beside, 100, 5);
    assert_eq!(*taken.lock().unwrap(), [(true, 2), (false, 3), (false, 4)]);
    assert!(other.lock().unwrap().is_empty());
    here.flush(&shared);
    here.flush(&shared);
    assert_eq!(*other.lock().unwrap(), [(false, 5)]);
    assert_eq!(shared.drops.rows(), []);
}
