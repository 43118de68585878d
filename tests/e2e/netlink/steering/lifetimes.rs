//! How long the kernel knows a flow: what the agent hands to the backend, and what that answers,
//! says how long.

use anyhow::{Context, Result, ensure};
use vxmesh::netlink::netns::Netns;
use vxmesh_tests::topology::{ok, wait_until};

use super::{ACK, BACKEND, CLIENT, FIN, Packet, RST, SYN, Site, mac};

/// In seconds.
const SHORT: u64 = 15;
const DATAGRAMS: u64 = 180;
const CLOSING: u64 = 240;
const ESTABLISHED: u64 = 3 * 3600;

/// Seconds for which the kernel still knows the flow from this port of the client.
fn left(netns: &Netns, ipv4: bool, port: u16) -> Result<Option<u64>> {
    let set = if ipv4 { "flows" } else { "flows6" };
    let said = ok(netns, &format!("nft -j list set bridge vxmesh_services {set}"))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let sets = said["nftables"].as_array().context("no list")?;
    let elements = sets.iter().find_map(|it| it["set"]["elem"].as_array());
    let of_port = |elem: &&serde_json::Value| elem["elem"]["val"]["concat"][2] == port;
    let found = elements.and_then(|elements| elements.iter().find(of_port));
    found.map(|it| it["elem"]["expires"].as_u64().context("no time")).transpose()
}

/// Who sends the next packet of a connection.
#[derive(Clone, Copy)]
enum Sender {
    Client,
    Backend,
}
use Sender::{Backend, Client};

/// What a connection does, what its packets are, and how long it is known behind the last one.
type Connection = (&'static str, &'static [(Sender, u8)], u64);

const CONNECTIONS: [Connection; 8] = [
    ("begins", &[(Client, SYN)], SHORT),
    ("established", &[(Client, SYN), (Backend, SYN | ACK), (Client, ACK)], ESTABLISHED),
    ("reset by the client", &[(Client, SYN), (Client, ACK), (Client, RST)], SHORT),
    ("reset by the backend", &[(Client, SYN), (Client, ACK), (Backend, RST)], SHORT),
    ("half closed by the client", &[(Client, ACK), (Client, FIN | ACK)], CLOSING),
    (
        "closed by the client",
        &[(Client, ACK), (Client, FIN | ACK), (Backend, FIN | ACK), (Client, ACK)],
        SHORT,
    ),
    (
        "closed by the backend",
        &[(Client, ACK), (Backend, FIN | ACK), (Client, ACK), (Client, FIN | ACK), (Backend, ACK)],
        SHORT,
    ),
    (
        "begun anew on the port of one that ended",
        &[(Client, ACK), (Backend, FIN | ACK), (Client, FIN | ACK), (Client, SYN), (Client, ACK)],
        ESTABLISHED,
    ),
];

/// The packet went through the rules: another one that came later did.
fn passed(site: &Site, ipv4: bool, sender: Sender, marker: u16) -> Result<()> {
    let probe = Packet::datagram(ipv4, marker, b"PROBE");
    site.hand(&probe)?;
    wait_until("a later packet is known", || {
        Ok(left(site.overlay.netns(), ipv4, marker)?.is_some())
    })?;
    if matches!(sender, Backend) {
        let seen = site.led(ipv4, b"PROBE-BACK").len();
        let back = Packet { payload: b"PROBE-BACK", ..probe.back() };
        site.send(&site.backend, &back, (mac(BACKEND), mac(CLIENT)))?;
        wait_until("a later answer is led", || Ok(site.led(ipv4, b"PROBE-BACK").len() > seen))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_is_known_as_long_as_it_lives() -> Result<()> {
    let mut site = Site::open().await?;
    site.guarded.steer(Some(site.macs))?;
    // The test alone speaks for the backend.
    ok(&site.backend.netns, "nft add table inet deaf")?;
    let chain = "nft add chain inet deaf in { type filter hook input priority 0 ; policy drop ; }";
    ok(&site.backend.netns, chain)?;
    for ipv4 in [true, false] {
        let mut marker = 6000;
        for ((what, packets, time), client) in CONNECTIONS.into_iter().zip(5000..) {
            let from_client = Packet::datagram(ipv4, client, b"");
            for (sender, flags) in packets {
                let packet = Packet { tcp: Some(*flags), ..from_client };
                match sender {
                    Client => site.hand(&packet)?,
                    Backend => {
                        site.send(&site.backend, &packet.back(), (mac(BACKEND), mac(CLIENT)))?;
                    }
                }
                marker += 1;
                passed(&site, ipv4, *sender, marker)?;
            }
            let left = left(site.overlay.netns(), ipv4, client)?.context(what)?;
            // A loaded machine may be slow, but not so slow that one becomes the next.
            ensure!(left <= time && left + 60 > time, "{what}: known for {left} s");
        }
        let left = left(site.overlay.netns(), ipv4, marker)?.context("datagrams")?;
        ensure!(left <= DATAGRAMS && left + 60 > DATAGRAMS, "datagrams: known for {left} s");
    }
    Ok(())
}
