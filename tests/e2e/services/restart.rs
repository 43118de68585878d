//! A connection to a service goes on while the agent of its client, or of its backend, is killed
//! and started.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Network, Service};
use vxmesh_tests::{
    lab::{Allowed, Lab, tell, wait_until},
    traffic::listen,
};

use super::settled;

const LEN: usize = 40_000_000;
/// What is read before the agent is killed.
const BEFORE: usize = 4_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or_default()
}

#[test]
fn a_download_goes_on_after_the_agent_of_either_end_was_killed() -> Result<()> {
    let lab = Lab::up(2)?;
    let create = ["network", "create", "blue", "--subnet", "10.73.0.0/24"];
    let _blue: Network = lab.json("h1", &create)?;
    wait_until("h2 knows the network", || {
        Ok(!lab.get::<Vec<Network>>("h2", "/v1/networks")?.is_empty())
    })?;
    let server = lab.sandbox("h2", "blue", "b")?;
    let client = lab.sandbox("h1", "blue", "c")?;
    lab.all_know(&[&server.endpoint, &client.endpoint])?;
    let make = ["service", "create", "web", "--network", "blue", "--backend", "b"];
    let web: Service = lab.json("h1", &[&make[..], &["--port", "80:8080"]].concat())?;
    settled(&lab, "web", 1)?;

    let vip = web.vips[0];
    // The agent of the client, and that of the backend.
    for host in ["h1", "h2"] {
        let listener = server.netns.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, 8080))?))?;
        let sent = thread::spawn(move || -> Result<()> {
            let (mut stream, _client) = listener.accept()?;
            let data: Vec<u8> = (0..LEN).map(byte).collect();
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream.write_all(&data)?)
        });
        let mut stream = None;
        wait_until("the service answers", || {
            stream = client.netns.run(|| Ok(TcpStream::connect((vip, 80)).ok()))?;
            Ok(stream.is_some())
        })?;
        let mut stream = stream.context("no connection")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut data = vec![0; BEFORE];
        stream.read_exact(&mut data)?;
        lab.lab(&["kill", host])?;
        let begun = Instant::now();
        lab.lab(&["start", host])?;
        stream.read_to_end(&mut data).with_context(|| format!("{host} anew: it broke off"))?;
        ensure!(data.len() == LEN, "{host} anew: {} of {LEN} bytes came", data.len());
        let is_right = data.iter().enumerate().all(|(at, it)| *it == byte(at));
        ensure!(is_right, "{host} anew: other bytes came");
        sent.join().ok().context("the server panicked")??;
        let took = begun.elapsed();
        tell(&format!(
            "{host} anew: the rest of {LEN} bytes came {took:.1?} after the agent's end"
        ));
        settled(&lab, "web", 1)?;
    }
    // And a new one, with all that the agent knows by itself.
    let listener = server.netns.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, 8080))?))?;
    client.netns.run(|| Ok(TcpStream::connect((vip, 80))?))?;
    drop(listener);
    let early = ["fdb_unknown", "vni_unknown", "unknown_index", "unknown_peer"];
    let allowed = [&["backend_unknown", "flow_unknown"], &early[..]].concat();
    lab.finish(Allowed { drops: &allowed, ..Allowed::default() })
}
