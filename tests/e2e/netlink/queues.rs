//! Frames of one flow are all in one queue of a TAP, and flows of one sandbox in all queues of its
//! share.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vxmesh::datapath::{
    backend::Backend,
    device::{Device, MAX_SUPER_FRAME},
    steering::Queues,
};
use vxmesh_tests::topology::{Topology, ok, wait_until};

use super::{Sandbox, host, mac, sandbox};

const QUEUES: Queues = Queues { workers: 2, shares: 4 };
const FLOWS: u16 = 32;
/// The port of what is sent until it arrives.
const FIRST: u16 = 19_998;
/// More than a packet holds, so that its last part has no ports.
const LONG: usize = 3000;

/// What was seen of a flow: in which queues, and how many packets.
type Flows = BTreeMap<(bool, u16), (BTreeSet<usize>, usize)>;

/// Puts down in which queue each packet was.
fn drain(tap: &dyn Device, flows: &mut Flows) -> Result<()> {
    let mut buffer = vec![0; MAX_SUPER_FRAME];
    for queue in 0..QUEUES.count() {
        while let Ok(received) = tap.recv(queue, &mut buffer) {
            let packet = SlicedPacket::from_ethernet(&buffer[..received.len])?;
            let (is_ipv4, is_part) = match &packet.net {
                Some(NetSlice::Ipv4(ip)) => (true, ip.header().is_fragmenting_payload()),
                Some(NetSlice::Ipv6(ip)) => (false, ip.is_payload_fragmented()),
                _ => continue,
            };
            let port = match &packet.transport {
                _ if is_part => 0,
                Some(TransportSlice::Udp(udp)) => udp.source_port(),
                _ => continue,
            };
            let (queues, packets) = flows.entry((is_ipv4, port)).or_default();
            queues.insert(queue);
            *packets += 1;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_stay_in_one_queue_and_use_all() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let tap = overlay.open_tap(Backend::Offload, QUEUES).await?;
    assert_eq!(tap.queues(), QUEUES.count());
    assert!(tap.grants().offloads.contains(&"multi_queue"));
    // Each is in a share of its own.
    let mut used = BTreeSet::new();
    for number in [11, 12, 13] {
        let here = sandbox(&topology, &overlay, number).await?;
        let of = queues_of(&here, tap.as_ref())?;
        ensure!(of.iter().all(|queue| used.insert(*queue)), "{number}: {of:?} of {used:?}");
    }
    overlay.remove().await?;
    Ok(())
}

/// The queues in which a sandbox's flows are, each in one, and all of them the same by both IP
/// versions.
fn queues_of(a: &Sandbox, tap: &dyn Device) -> Result<BTreeSet<usize>> {
    let afar = mac(0x99);
    let mut flows = Flows::new();
    for to in ["10.10.0.99", "fd10::99"] {
        ok(&a.netns, &format!("ip neigh replace {to} lladdr {afar} dev eth0 nud permanent"))?;
        let to = SocketAddr::new(to.parse::<IpAddr>()?, 9);
        let sockets = a.netns.run(|| {
            let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            // As connect(2) gives them.
            let even = (0..FLOWS).map(|number| 20_000 + 2 * number);
            even.map(|port| UdpSocket::bind((any, port))).collect::<std::io::Result<Vec<_>>>()
        })?;
        // The kernel spreads carriers a little later, and until then loses what is sent.
        let first = a.netns.run(|| {
            let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            UdpSocket::bind((any, FIRST))
        })?;
        wait_until("the way to the TAP is open", || {
            first.send_to(b"first", to)?;
            drain(tap, &mut flows)?;
            Ok(flows.contains_key(&(to.is_ipv4(), FIRST)))
        })?;
        // A busy machine loses some in front of the TAP, and then others of the flow are sent.
        wait_until("ten datagrams of each flow are in the TAP", || {
            let came = |port: u16| flows.get(&(to.is_ipv4(), port)).map_or(0, |(_, count)| *count);
            let mut missing = false;
            for socket in &sockets {
                if came(socket.local_addr()?.port()) < 10 {
                    missing = true;
                    socket.send_to(b"one of ten", to)?;
                }
            }
            if came(0) < 30 {
                missing = true;
                sockets.first().context("no socket")?.send_to(&[7; LONG], to)?;
            }
            drain(tap, &mut flows)?;
            Ok(!missing)
        })?;
    }
    let split: Vec<_> = flows.iter().filter(|(_, (queues, _))| queues.len() > 1).collect();
    ensure!(split.is_empty(), "in two queues: {split:?}");
    flows.retain(|(_, port), _| *port != FIRST);
    let used = |is_ipv4| {
        let of = flows.iter().filter(move |((ipv4, _), _)| *ipv4 == is_ipv4);
        of.flat_map(|(_, (queues, _))| queues.clone()).collect::<BTreeSet<usize>>()
    };
    ensure!(used(true).len() == QUEUES.workers, "{:?}", used(true));
    ensure!(used(true) == used(false), "{:?}, {:?}", used(true), used(false));
    Ok(used(true))
}
