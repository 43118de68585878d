//! Streams through super-frames, and between hosts of which only one has them.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use ring::digest::{SHA256, digest};
use vxmesh::api::Status;
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, wait_until},
    traffic::{payload, ping},
};

/// More than fits all buffers on the way, so that super-frames of full size come.
const LEN: usize = 24 << 20;
const PORT: u16 = 4444;

/// Sends a stream from one sandbox to another and compares the digests.
fn stream(from: &Plugged, to: &Plugged, ip: IpAddr) -> Result<()> {
    let listener = to.netns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))?;
    let sent = payload(LEN);
    let receiver = thread::spawn(move || -> Result<Vec<u8>> {
        let mut got = Vec::new();
        listener.accept()?.0.read_to_end(&mut got)?;
        Ok(got)
    });
    let stream = from.netns.run(|| Ok(TcpStream::connect(SocketAddr::new(ip, PORT))?));
    let mut stream = stream.with_context(|| format!("TCP to {ip}"))?;
    stream.write_all(&sent)?;
    drop(stream);
    let got = receiver.join().map_err(|_panic| anyhow!("the receiver panicked"))??;
    ensure!(got.len() == sent.len(), "{ip}: {} of {LEN} bytes came", got.len());
    let digests = [&sent, &got].map(|bytes| digest(&SHA256, bytes).as_ref().to_vec());
    ensure!(digests[0] == digests[1], "{ip}: other bytes came");
    Ok(())
}

/// Segments that a sandbox's kernel refused for their checksum; it looks at each, for its interface
/// does not.
fn checksum_errors(lab: &Lab, of: &Plugged) -> Result<u64> {
    let netns = &of.sandbox.netns;
    let table = lab.sh(&of.host, &format!("nsenter --net={netns} cat /proc/net/snmp"))?;
    let mut rows = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (rows.next().context("no TCP")?, rows.next().context("no TCP")?);
    let mut cells = names.split_whitespace().zip(values.split_whitespace());
    let (_, errors) = cells.find(|(name, _)| *name == "InCsumErrors").context("no InCsumErrors")?;
    Ok(errors.parse()?)
}

fn is_driven_by(lab: &Lab, host: &str, backend: &str) -> Result<()> {
    let status: Status = lab.json(host, &["status"])?;
    let datapath = status.datapath.context("no data path")?;
    ensure!(datapath.backend == backend && datapath.refused == 0, "{host}: {datapath:?}");
    Ok(())
}

fn both_ways(lab: &Lab, a: &Plugged, b: &Plugged) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        for ip in &to.endpoint.ips {
            ping(&from.netns, ip.addr(), 1)?;
            stream(from, to, ip.addr())?;
        }
        ensure!(checksum_errors(lab, to)? == 0, "{} got wrong checksums", to.host);
    }
    Ok(())
}

#[test]
fn streams_arrive_whole_with_and_without_super_frames() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let b = lab.sandbox("h2", "blue", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    for plugged in [&a, &b] {
        let off = format!("nsenter --net={} ethtool -K eth0 rx off", plugged.sandbox.netns);
        lab.sh(&plugged.host, &off)?;
    }
    is_driven_by(&lab, "h1", "offload")?;
    is_driven_by(&lab, "h2", "offload")?;
    both_ways(&lab, &a, &b)?;

    lab.lab(&["kill", "h2"])?;
    let started = lab.command(&["start", "h2"])?.env("VXMESH_TAP", "tun-tap").output()?;
    ensure!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    is_driven_by(&lab, "h2", "tun-tap")?;
    for ip in &b.endpoint.ips {
        wait_until("h2 is back", || Ok(ping(&a.netns, ip.addr(), 1).is_ok()))?;
    }
    both_ways(&lab, &a, &b)?;
    is_driven_by(&lab, "h1", "offload")?;
    // Of a stream that goes frame by frame more may wait than a queue holds, where the machine is
    // busy: TCP is told so by the loss, and what arrives is compared above.
    let drops = &["unknown_index", "no_session", "queue_full"];
    lab.finish(Allowed { drops, ..Allowed::default() })
}
