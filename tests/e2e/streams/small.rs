//! Small frames of all lengths: those that wait at the same time share sealed datagrams, and come
//! out as they went in.

use std::thread;

use anyhow::{Result, ensure};
use etherparse::{SlicedPacket, TransportSlice};
use vxmesh_proto::{
    limits::{DATA_PORT, DEFAULT_MTU},
    session::wire::{DataHeader, FLAG_AGGREGATE},
};
use vxmesh_tests::{
    capture::Capture,
    lab::{Allowed, tell},
    stream,
};

use super::{lab, no_checksum_errors, pair};

/// Of these up to a tenth is on the way at a time: with those of all flows no more than may wait.
const DATAGRAMS: usize = 1500;
/// The longest payload.
const LONGEST: usize = 200;

/// Whether a packet of the underlay is a sealed list of packets, or begins with one.
fn is_shared(packet: &[u8]) -> bool {
    let Ok(sliced) = SlicedPacket::from_ethernet(packet) else { return false };
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { return false };
    let header = DataHeader::parse(udp.payload());
    udp.destination_port() == DATA_PORT
        && header.is_ok_and(|header| header.flags & FLAG_AGGREGATE != 0)
}

#[test]
fn small_frames_share_datagrams_and_arrive_as_they_were() -> Result<()> {
    let lab = lab(1500, "v4")?;
    let (a, b) = pair(&lab, DEFAULT_MTU)?;
    let capture = Capture::start(&lab.host("h2")?, "eth0")?;
    // Flows of both IP versions at once, so that lengths and headers differ from frame to frame.
    thread::scope(|scope| {
        let ips = b.endpoint.ips.iter().chain(&b.endpoint.ips).map(|ip| ip.addr());
        let flows: Vec<_> = ips
            .map(|ip| {
                let (a, b) = (&a.netns, &b.netns);
                scope.spawn(move || stream::udp(a, b, ip, DATAGRAMS, LONGEST))
            })
            .collect();
        for flow in flows {
            flow.join().map_err(|_panic| anyhow::anyhow!("a flow panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let packets = capture.stop()?;
    let shared = packets.iter().filter(|packet| is_shared(packet)).count();
    tell(&format!("{shared} of {} packets on the underlay are shared ones", packets.len()));
    ensure!(shared > 0, "no small frames shared a datagram");
    no_checksum_errors(&lab, &b)?;
    lab.finish(Allowed::default())
}
