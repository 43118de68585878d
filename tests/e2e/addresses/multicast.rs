//! How much an endpoint may send to everybody is an option of its network that can be changed, and
//! `doctor` says when it is met.

use std::net::UdpSocket;

use anyhow::{Result, ensure};
use vxmesh::api::{Diagnosis, Health, Network};
use vxmesh_tests::lab::{Allowed, Lab, Plugged, wait_until};

const PACKETS: usize = 1500;

/// Has a sandbox send many packets to a group; how many were not carried.
fn flood(lab: &Lab, from: &Plugged) -> Result<u64> {
    let before = lab.dropped("h1", "flood_limited")?;
    let socket = from.netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("239.1.2.3:9")?;
        Ok(socket)
    })?;
    for _ in 0..PACKETS {
        socket.send(b"to everybody")?;
    }
    // What comes behind it has passed the agent, too.
    let echo = lab.drops("h1")?;
    ensure!(!echo.is_empty(), "the agent counts nothing");
    Ok(lab.dropped("h1", "flood_limited")? - before)
}

#[test]
fn a_limit_of_multicast_can_be_changed_and_the_doctor_names_it() -> Result<()> {
    let lab = Lab::up(2)?;
    let create = ["network", "create", "wide", "-o", "multicast_rate=9000"];
    let wide: Network = lab.json("h1", &create)?;
    ensure!(wide.options.get("multicast_rate").is_some_and(|rate| rate == "9000"), "{wide:?}");
    lab.network("h1", "narrow")?;
    let mut all = Vec::new();
    for (network, host, name) in
        [("wide", "h1", "a"), ("wide", "h2", "b"), ("narrow", "h1", "c"), ("narrow", "h2", "d")]
    {
        wait_until("the host lists the network", || {
            let networks: Vec<Network> = lab.get(host, "/v1/networks")?;
            Ok(networks.iter().any(|listed| listed.name.as_str() == network))
        })?;
        all.push(lab.sandbox(host, network, name)?);
    }
    lab.all_know(&all.iter().map(|plugged| &plugged.endpoint).collect::<Vec<_>>())?;
    let lost = flood(&lab, &all[0])?;
    ensure!(lost == 0, "{lost} of {PACKETS} are lost although the network allows for them");
    let met = || -> Result<Option<Diagnosis>> {
        let said: Vec<Diagnosis> = lab.get("h1", "/v1/doctor")?;
        Ok(said.into_iter().find(|row| row.hint.contains("multicast_rate")))
    };
    ensure!(met()?.is_none(), "nothing was limited");
    // A busy machine may send no faster than the limit for once.
    wait_until("the limit is met", || Ok(flood(&lab, &all[2])? > 0))?;
    wait_until("the doctor names it", || {
        let Some(row) = met()? else { return Ok(false) };
        ensure!(row.check == "network narrow" && row.health == Health::Warn, "{row:?}");
        Ok(row.found.contains("endpoint c "))
    })?;
    // From the other host, while they are in it.
    let update = ["network", "update", "narrow", "-o", "multicast_rate=9000"];
    let narrow: Network = lab.json("h2", &update)?;
    wait_until("the host heard of it", || {
        let networks: Vec<Network> = lab.get("h1", "/v1/networks")?;
        Ok(networks
            .iter()
            .any(|listed| listed.name == narrow.name && listed.options == narrow.options))
    })?;
    wait_until("what it allows now is carried", || Ok(flood(&lab, &all[2])? == 0))?;
    drop(all);
    lab.finish(Allowed { drops: &["flood_limited"], warnings: &[] })
}
