//! A connection to a service goes on while the agent of its client is killed and started.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Network, Service};
use vxmesh_tests::lab::{Allowed, Lab, tell, wait_until};

use super::settled;

const LEN: usize = 40_000_000;
/// What is read before the agent is killed.
const BEFORE: usize = 4_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or_default()
}

#[test]
fn a_download_goes_on_after_the_agent_of_the_client_was_killed() -> Result<()> {
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

    let listener = server.netns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080))?))?;
    let sent = thread::spawn(move || -> Result<()> {
        let (mut stream, _client) = listener.accept()?;
        let data: Vec<u8> = (0..LEN).map(byte).collect();
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream.write_all(&data)?)
    });
    let vip = web.vips[0];
    let mut stream = client.netns.run(|| Ok(TcpStream::connect((vip, 80))?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut data = vec![0; BEFORE];
    stream.read_exact(&mut data)?;
    lab.lab(&["kill", "h1"])?;
    let begun = Instant::now();
    lab.lab(&["start", "h1"])?;
    stream.read_to_end(&mut data).context("it broke off")?;
    ensure!(data.len() == LEN, "{} of {LEN} bytes came", data.len());
    ensure!(data.iter().enumerate().all(|(at, it)| *it == byte(at)), "other bytes came");
    sent.join().ok().context("the server panicked")??;
    tell(&format!("the rest of {LEN} bytes came {:.1?} after the agent's end", begun.elapsed()));
    // And a new one, with all that the agent knows by itself.
    settled(&lab, "web", 1)?;
    let listener = server.netns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080))?))?;
    client.netns.run(|| Ok(TcpStream::connect((vip, 80))?))?;
    drop(listener);
    let allowed =
        ["backend_unknown", "flow_unknown", "fdb_unknown", "vni_unknown", "unknown_index"];
    lab.finish(Allowed { drops: &allowed, ..Allowed::default() })
}
