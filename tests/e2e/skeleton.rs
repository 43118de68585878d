//! The tunnel alone: two data paths with static keys and tables, without agents, gossip or control.
//! What a member with a valid session can do when it lies, and that each of its frames ends in the
//! counter that names it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use vxmesh::datapath::{Dataplane, port::Table, tap::Tap};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, Vni},
    reason::DropReason,
    session::{Config, Peer, PeerConfig, Psk, noise::public_key},
    tables::{NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate},
};
use vxmesh_tests::{
    lab::DATA_PORT,
    netns::NetNs,
    pair::{MAC_A, MAC_B, endpoint, spec, table},
    topology::{Capture, Sandbox, Topology, ok, wait_until},
    traffic::{send_datagrams, send_frames},
};

/// Of the endpoint on a third host, which is known to both but never runs: 10.0.0.12.
const MAC_C: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0c]);
const IP_C: [u8; 4] = [10, 0, 0, 12];
/// Of nobody but in the tables of a liar.
const MAC_NOBODY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0d]);
/// What fits a tunnel over an underlay of 1500 bytes.
const MTU: u16 = 1390;
const FORGED: &[u8; 16] = b"FORGED-BYTES-ALL";

/// A host, its data path, and a sandbox whose interface is the TAP itself.
struct Host {
    plane: Dataplane,
    peer: Arc<Peer>,
    host: Sandbox,
    sandbox: Sandbox,
}

fn private(at: usize) -> [u8; 32] {
    [u8::try_from(at).unwrap_or_default() + 1; 32]
}

fn node(at: usize) -> NodeId {
    NodeId::of_public_key(&private(at))
}

fn config(at: usize) -> Result<Config> {
    Ok(Config {
        static_private: private(at).into(),
        aes: true,
        mesh: NodeId::of_public_key(b"mesh"),
        psk: Psk { epoch: 1, key: [7; 32] },
        previous_psk: None,
        boot_id: [u8::try_from(at)?; 8],
        wall_at_start: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?,
        key_limits: None,
    })
}

fn peer(at: usize) -> Result<PeerConfig> {
    let addr: SocketAddr = format!("10.213.0.{}:{DATA_PORT}", at + 1).parse()?;
    let noise_public = public_key(&private(at));
    Ok(PeerConfig { id: node(at), noise_public, addr: Some(addr), aes: true })
}

/// The two hosts of the pair on one cable, the second one first heard of by the first.
async fn pair(topology: &Topology) -> Result<[Host; 2]> {
    let hosts = [topology.sandbox("h1")?, topology.sandbox("h2")?];
    let sandboxes = [topology.sandbox("s1")?, topology.sandbox("s2")?];
    let h2 = hosts[1].path.to_str().context("an odd path")?;
    ok(&hosts[0].netns, "ip link add eth0 type veth peer name eth1")?;
    // `ip` takes the name of a namespace below /run/netns, or the file of one.
    ok(&hosts[0].netns, &format!("ip link set eth1 netns {h2}"))?;
    ok(&hosts[1].netns, "ip link set eth1 name eth0")?;
    let mut made = Vec::new();
    for (at, (host, sandbox)) in hosts.into_iter().zip(sandboxes).enumerate() {
        ok(&host.netns, &format!("ip addr add 10.213.0.{}/24 dev eth0", at + 1))?;
        ok(&host.netns, "ip link set eth0 up")?;
        let config = config(at)?;
        let plane = host.netns.run(|| Ok(Dataplane::start(DATA_PORT, config)))??;
        let peer = plane.set_peer(peer(1 - at)?).await?;
        let tap = sandbox.netns.run(|| Tap::open("eth0"))?;
        let row = endpoint::<()>(node(at), at, Place::Local);
        ok(&sandbox.netns, &format!("ip link set eth0 address {} mtu {MTU}", row.mac))?;
        for ip in row.ips {
            let len = if ip.is_ipv4() { "24" } else { "64 nodad" };
            ok(&sandbox.netns, &format!("ip addr add {ip}/{len} dev eth0"))?;
        }
        ok(&sandbox.netns, "ip link set eth0 up")?;
        made.push((Host { plane, peer, host, sandbox }, tap));
    }
    // When all interfaces are up: what comes for one that is down is lost.
    let connect = |(at, (host, tap)): (usize, (Host, Tap))| {
        let table = table(&nodes(), at, Arc::clone(&host.peer), Instant::now());
        host.plane.connect(Arc::new(table), Box::new(tap));
        Ok(host)
    };
    let made = made.into_iter().enumerate().map(connect).collect::<Result<Vec<_>>>()?;
    made.try_into().map_err(|_hosts| anyhow::anyhow!("two hosts were made"))
}

fn nodes() -> [NodeId; 2] {
    [node(0), node(1)]
}

fn plug(plane: &Dataplane, sandbox: &Sandbox, ifname: &str, table: Table) -> Result<()> {
    let tap = sandbox.netns.run(|| Tap::open(ifname))?;
    plane.connect(Arc::new(table), Box::new(tap));
    Ok(())
}

/// What was lost at a host, by reason; what needs no tunnel is not.
fn lost(host: &Host) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for (key, count) in host.plane.drops().rows() {
        if !key.reason.is_benign() {
            *counts.entry(key.reason.as_str()).or_default() += count;
        }
    }
    counts
}

fn counted(reason: &str, at: &Host, expected: &BTreeMap<&'static str, u64>) -> Result<()> {
    wait_until(reason, || Ok(lost(at) == *expected))
        .with_context(|| format!("{:?} instead of {expected:?}", lost(at)))
}

fn pings(from: &Host) -> Result<()> {
    let to =
        if from.peer.id() == node(1) { ["10.0.0.11", "fd00::b"] } else { ["10.0.0.10", "fd00::a"] };
    for ip in to {
        ensure!(from.sandbox.pings(ip)?, "no answer of {ip}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_namespaces_ping_through_tap_vxlan_and_noise() -> Result<()> {
    let topology = Topology::new()?;
    let [a, b] = pair(&topology).await?;
    let wire = Capture::start(&topology, &b.sandbox.netns, "eth0", "icmp[icmptype] == icmp-echo")?;
    // Frames that come before there is a key wait for it: the first ping is not lost.
    pings(&a)?;
    pings(&b)?;
    let ping = "ping -n -q -c 20 -i 0.01 -s 1362 -M do 10.0.0.11";
    let said = ok(&a.sandbox.netns, ping)?;
    ensure!(said.contains("20 received"), "{said}");
    ensure!(lost(&a).is_empty() && lost(&b).is_empty(), "{:?} {:?}", lost(&a), lost(&b));
    // One of ours, 20 of the series, and the one that b sent.
    ensure!(wire.stop()?.len() == 1 + 1 + 20, "each ping is seen once");
    // What was sent is counted after the call that sent it, so the answer may be there before.
    wait_until("what is sealed is opened", || {
        let [a, b] = [&a.peer, &b.peer];
        Ok(a.tx_bytes() == b.rx_bytes() && b.tx_bytes() == a.rx_bytes())
    })
}

fn udp(from: MacAddr, ip: [u8; 4], to: MacAddr) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from.0, to.0).ipv4(ip, [10, 0, 0, 11], 64);
    builder.udp(7, 7).write(&mut bytes, &FORGED.repeat(8))?;
    Ok(bytes)
}

fn liars_row(mac: MacAddr, last: u8, place: Place<Arc<Peer>>, of: usize) -> Row<Arc<Peer>> {
    let key = RowKey { node: node(of), endpoint: EndpointId::from_random([last; 16]) };
    Row { key, mac, ips: vec![[10, 0, 0, last].into()], rank: 0, router: false, place }
}

/// What a data path believes when nobody checks it.
fn lies(a: &Host, row: Row<Arc<Peer>>) -> Table {
    let table = table(&nodes(), 0, Arc::clone(&a.peer), Instant::now());
    table.apply([TableUpdate::Put(row)])
}

/// A network of one's own making that only the liar, or both, have; b knows no other member.
fn other_network(id: u8, vni: u32) -> Result<NetworkSpec> {
    Ok(NetworkSpec { id: NetworkId::from_random([id; 16]), vni: Vni::try_from(vni)?, ..spec() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lies_gets_nothing_through() -> Result<()> {
    let topology = Topology::new()?;
    let [a, b] = pair(&topology).await?;
    pings(&a)?;
    // The true third host, whose endpoint only its own frames may come from.
    let third = b.plane.set_peer(peer(2)?).await?;
    let c = Row {
        ips: vec![IP_C.into()],
        ..liars_row(MAC_C, 12, Place::Remote(Arc::clone(&third)), 2)
    };
    b.plane.publish(Arc::new(
        table(&nodes(), 1, Arc::clone(&b.peer), Instant::now())
            .apply([TableUpdate::Put(c), TableUpdate::PutMember(node(2), third)]),
    ));
    for (ifname, id, vni, at_b) in [("eth1", 8, 800, false), ("eth2", 9, 900, true)] {
        let network = NetworkTable::new(other_network(id, vni)?, 1, Instant::now());
        if at_b {
            plug(&b.plane, &b.sandbox, ifname, network.clone())?;
        }
        let rows = [
            TableUpdate::Put(endpoint(node(0), 0, Place::Local)),
            TableUpdate::Put(endpoint(node(1), 1, Place::Remote(Arc::clone(&a.peer)))),
        ];
        plug(&a.plane, &a.sandbox, ifname, network.apply(rows))?;
        ok(&a.sandbox.netns, &format!("ip link set {ifname} up"))?;
    }

    let inside = Capture::start(&topology, &b.sandbox.netns, "any", "")?;
    let wire = Capture::start(&topology, &b.host.netns, "eth0", "dst host 10.213.0.2")?;
    let mut expected = lost(&b);
    ensure!(expected.is_empty(), "{expected:?}");
    let own_ip = [10, 0, 0, 10];
    let c_is_here = Row { ips: vec![IP_C.into()], ..liars_row(MAC_C, 13, Place::Local, 0) };
    let mut a_is_c = endpoint(node(0), 0, Place::Local);
    a_is_c.ips.push(IP_C.into());
    let nobody_is_there = liars_row(MAC_NOBODY, 14, Place::Remote(Arc::clone(&a.peer)), 1);
    let cases = [
        (DropReason::SourceNotOwned, "eth0", &c_is_here, udp(MAC_C, IP_C, MAC_B)?),
        (DropReason::SourceNotOwned, "eth0", &c_is_here, udp(MAC_C, IP_C, MacAddr::BROADCAST)?),
        (DropReason::IpSpoofed, "eth0", &a_is_c, udp(MAC_A, IP_C, MAC_B)?),
        (DropReason::NotLocal, "eth0", &nobody_is_there, udp(MAC_A, own_ip, MAC_NOBODY)?),
        (DropReason::VniUnknown, "eth1", &a_is_c, udp(MAC_A, own_ip, MAC_B)?),
        (DropReason::NotAMember, "eth2", &a_is_c, udp(MAC_A, own_ip, MAC_B)?),
    ];
    for (reason, ifname, lie, frame) in cases {
        a.plane.publish(Arc::new(lies(&a, lie.clone())));
        send_frames(&NetNs::open(&a.sandbox.path)?, ifname, &[frame])?;
        *expected.entry(reason.as_str()).or_default() += 1;
        counted(reason.as_str(), &b, &expected).with_context(|| format!("{:?}", lost(&a)))?;
    }

    // What somebody on the way does with the datagrams of a true sender.
    pings(&a)?;
    let sealed = |frames: &[Vec<u8>]| {
        let mut datagrams = frames.iter().filter_map(|frame| frame.get(14 + 20 + 8..));
        datagrams.rfind(|datagram| datagram.first() == Some(&4)).map(<[u8]>::to_vec)
    };
    wait_until("a sealed frame is seen", || Ok(sealed(&wire.frames()?).is_some()))?;
    let datagram = sealed(&wire.stop()?).context("a sealed frame")?;
    // A number that was not used yet: what the window does not refuse, the tag does.
    let mut unused = datagram.clone();
    *unused.get_mut(11).context("a counter")? ^= 1;
    let cut = |len: usize| unused.get(..len).map(<[u8]>::to_vec).unwrap_or_default();
    let cases = [
        (DropReason::Replay, datagram.clone()),
        (DropReason::AuthFailed, unused.clone()),
        (DropReason::AuthFailed, cut(datagram.len() - 1)),
        (DropReason::BadLength, cut(20)),
    ];
    for (reason, datagram) in cases {
        let to = format!("10.213.0.2:{DATA_PORT}").parse()?;
        send_datagrams(&NetNs::open(&a.host.path)?, to, &[datagram])?;
        *expected.entry(reason.as_str()).or_default() += 1;
        counted(reason.as_str(), &b, &expected)?;
    }
    pings(&a)?;
    pings(&b)?;
    let forged = |frame: &Vec<u8>| frame.windows(FORGED.len()).any(|bytes| bytes == FORGED);
    ensure!(!inside.stop()?.iter().any(forged), "a forged frame arrived");
    ensure!(lost(&b) == expected, "{:?}", lost(&b));
    Ok(())
}
