use std::{
    io::IoSlice,
    os::fd::BorrowedFd,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{channel, sync_channel},
    },
};

use arc_swap::ArcSwap;
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

/// Gives so many super-frames of one flow, and then it is gone.
#[derive(Debug)]
struct Going(AtomicUsize);

impl Device for Going {
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
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        match left {
            0 => Err(io::Error::from_raw_os_error(EBADFD)),
            _ => Ok(Received { vnet: vnet::PLAIN, len: 60_000 }),
        }
    }

    fn send(&self, _vnet: &[u8; vnet::LEN], _parts: &[IoSlice<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn accepts(&self) -> Accepts {
        Accepts::default()
    }

    fn grants(&self) -> Grants {
        Grants { backend: Backend::TunTap, offloads: Vec::new() }
    }

    fn stop(&self) {}
}

fn port(frames: usize) -> Arc<Port> {
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
    Arc::new(Port::new(Arc::new(table), Box::new(Going(AtomicUsize::new(frames)))))
}

fn outbound_worker() -> Outbound {
    let (sessions, _queue) = sync_channel(1);
    let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
    let shared = Shared {
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
    };
    let (_orders, inbox) = channel();
    let inbox = Inbox { orders: inbox, bell: Arc::new(event()) };
    Outbound::new(Arc::new(shared), 0, inbox).unwrap()
}

#[test]
fn i4_frames_that_wait_when_their_tap_goes_are_counted() {
    let mut worker = outbound_worker();
    let port = port(3);
    let lost = DropKey::of(DropReason::TapError).in_network(port.id());
    worker.join(port, 0);
    assert_eq!(worker.take(0, false), 3);
    assert_eq!(worker.shared.drops.rows(), [(lost, 3)]);
    assert_eq!(worker.spare.lent, (0, 0), "their room is free again");
    assert!(worker.turns.is_empty());
}
