//! Streams over a bad cable, over jumbo packets and over small ones.

use std::{sync::atomic::Ordering, thread};

use anyhow::{Context, Result, ensure};
use vxmesh_proto::limits::{DEFAULT_MTU, MAX_MTU, MIN_MTU};
use vxmesh_tests::{
    cable::BadCable,
    lab::{Allowed, Lab, Plugged, tell},
    stream,
};

use super::{lab, no_checksum_errors, pair};

/// Headers of IPv6 and UDP.
const HEADERS: u16 = 48;
/// What the tunnel adds to an inner packet.
const OVERHEAD_V4: u16 = 82;
const OVERHEAD_V6: u16 = 102;
const DATAGRAMS: usize = 4000;

/// TCP over both IP versions at once, then datagrams, one way and the other.
fn streams(lab: &Lab, a: &Plugged, b: &Plugged, mtu: u16) -> Result<()> {
    let len = stream::long();
    let longest = usize::from(mtu - HEADERS);
    for (from, to) in [(a, b), (b, a)] {
        let times = thread::scope(|scope| {
            let ips = to.endpoint.ips.iter().map(|ip| ip.addr());
            let tcp: Vec<_> = ips
                .map(|ip| (ip, scope.spawn(move || stream::tcp(&from.netns, &to.netns, ip, len))))
                .collect();
            let mut times = Vec::new();
            for (ip, stream) in tcp {
                let panicked = |_| anyhow::anyhow!("the stream to {ip} panicked");
                times.push(stream.join().map_err(panicked)??);
            }
            anyhow::Ok(times)
        })?;
        for ip in &to.endpoint.ips {
            stream::udp(&from.netns, &to.netns, ip.addr(), DATAGRAMS, longest)?;
        }
        no_checksum_errors(lab, to)?;
        no_checksum_errors(lab, from)?;
        tell(&format!("{} -> {}: {} MB each in {times:.1?}", from.host, to.host, len >> 20));
    }
    Ok(())
}

#[test]
fn streams_arrive_whole_over_a_cable_that_loses_doubles_and_reorders() -> Result<()> {
    let lab = lab(1500, "dual")?;
    let (a, b) = pair(&lab, DEFAULT_MTU)?;
    let cable = BadCable::between(&lab)?;
    streams(&lab, &a, &b, DEFAULT_MTU)?;
    let fates = cable.fates();
    for (what, fate) in
        [("lost", &fates.lost), ("doubled", &fates.doubled), ("overtaken", &fates.overtaken)]
    {
        let (count, seen) = (fate.load(Ordering::Relaxed), fates.seen.load(Ordering::Relaxed));
        tell(&format!("{count} of {seen} packets were {what}"));
        ensure!(count > seen / 200, "the cable is too good: {count} of {seen} packets were {what}");
    }
    // What came twice was opened once.
    let replays = lab.dropped("h1", "replay")? + lab.dropped("h2", "replay")?;
    ensure!(replays > 0, "nothing that came twice was dropped");
    drop(cable);
    lab.finish(Allowed { drops: &["replay"], ..Allowed::default() })
}

#[test]
fn streams_arrive_whole_over_a_jumbo_underlay() -> Result<()> {
    over(9000, "v6", MAX_MTU)
}

#[test]
fn streams_arrive_whole_over_the_smallest_underlay_that_a_network_fits() -> Result<()> {
    over(MIN_MTU + OVERHEAD_V4, "v4", MIN_MTU)?;
    over(MIN_MTU + OVERHEAD_V6, "v6", MIN_MTU)
}

fn over(underlay: u16, version: &'static str, mtu: u16) -> Result<()> {
    let lab = lab(underlay, version)?;
    let (a, b) = pair(&lab, mtu)?;
    streams(&lab, &a, &b, mtu)?;
    lab.finish(Allowed::default()).with_context(|| format!("underlay {version}, MTU {underlay}"))
}
