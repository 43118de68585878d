//! Endpoints: what a sandbox gets, what is refused, and that nothing is left of what failed or
//! went.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::Value;
use vxmesh::netlink::{
    netns::Netns,
    overlay::{Overlay, Plug},
};
use vxmesh_proto::addr::EndpointId;
use vxmesh_tests::topology::{Sandbox, Topology, ok, wait_until};

use super::{host, inside, mac, plug, port, sandbox, settles, spec, state};

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_of_one_host_talk_and_the_bridge_learns_nothing() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let a = sandbox(&topology, &overlay, 11).await?;
    let b = sandbox(&topology, &overlay, 12).await?;
    for (from, to) in [(&a, 12), (&b, 11), (&a, 1), (&b, 1)] {
        assert!(from.pings(&format!("10.10.0.{to}"))?, "{to}");
        assert!(from.pings(&format!("fd10::{to}"))?, "{to}");
    }
    // An address that the bridge was not told of gets no answer: it is neither learned nor flooded
    // to.
    let stranger = mac(0x55);
    ok(&b.netns, &format!("ip link set eth0 address {stranger}"))?;
    assert!(!b.pings("10.10.0.1")?);

    let netns = inside(&topology, "h1")?;
    let rows: Vec<Value> = serde_json::from_str(&ok(&netns, "bridge -j fdb show br br0")?)?;
    for row in &rows {
        // A learned row has an empty state.
        assert!(row["state"] == "permanent" || row["state"] == "static", "{row}");
        assert_ne!(row["mac"], stranger.to_string());
    }
    for number in [11, 12] {
        let own = |row: &&Value| row["mac"] == mac(number).to_string();
        let row = rows.iter().find(own).context("no row")?;
        assert_eq!((&row["ifname"], &row["state"]), (&port(number).into(), &"static".into()));
    }
    let link: Value = serde_json::from_str(&ok(&a.netns, "ip -j link show eth0")?)?;
    assert_eq!((&link[0]["mtu"], &link[0]["address"]), (&1390.into(), &mac(11).to_string().into()));
    Ok(())
}

/// Plugs in, fails for the expected reason, and changes nothing.
async fn fails(overlay: &Overlay, watched: [&Netns; 2], plug: Plug, says: &str) -> Result<()> {
    let before = [state(watched[0])?, state(watched[1])?];
    let failed = overlay.attach(&plug).await.err();
    let message = failed.with_context(|| format!("{plug:?}"))?.to_string();
    assert!(message.contains(says), "{message}");
    settles(watched[0], &before[0], says)?;
    settles(watched[1], &before[1], says)
}

/// I8.
#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_that_fails_leaves_nothing() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let a = topology.sandbox("a")?;
    // `lo` comes up with the first endpoint and stays.
    ok(&a.netns, "ip link set lo up")?;
    let netns = inside(&topology, "h1")?;
    let watched = [&a.netns, &netns];
    let good = || plug(10, 11, &a);

    // The kernel gives no interface a multicast address: a late step fails.
    let mut bad = good()?;
    bad.ips.push("ff02::99/64".parse()?);
    fails(&overlay, watched, bad, "cannot give an address to eth0").await?;
    for (ifname, says) in [
        ("lo", "already an interface lo"),
        ("", "is not a name"),
        ("sixteen-letters.", "is not a name"),
        ("a/b", "is not a name"),
        ("all", "is not a name"),
    ] {
        fails(&overlay, watched, Plug { ifname: Some(ifname.into()), ..good()? }, says).await?;
    }

    let (file, fifo) = (topology.path().join("file"), topology.path().join("fifo"));
    fs::write(&file, "")?;
    mkfifo(&fifo, Mode::S_IRUSR)?;
    let own = topology.run_dir("h1").join("netns").join(spec(10)?.id.short());
    for (path, says) in [
        ("/proc/self/ns/net".into(), "is not a sandbox"),
        (own, "is not a sandbox"),
        ("/proc/self/ns/mnt".into(), "is not a network namespace"),
        (file, "is not a network namespace"),
        (fifo, "is not a network namespace"),
        (PathBuf::from("/nowhere"), "cannot open"),
    ] {
        fails(&overlay, watched, Plug { netns: Some(path), ..good()? }, says).await?;
    }

    for even in (0..64).step_by(2) {
        ok(&a.netns, &format!("ip link add eth{even} type veth peer eth{}", even + 1))?;
    }
    fails(&overlay, watched, good()?, "eth0 to eth63 are in use").await?;
    let named = Plug { ifname: Some("overlay-1.2".into()), ..good()? };
    assert_eq!(overlay.attach(&named).await?, "overlay-1.2");
    assert!(a.pings("10.10.0.1")?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn detaching_is_fine_whatever_is_left_of_the_sandbox() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let a = sandbox(&topology, &overlay, 11).await?;
    let b = sandbox(&topology, &overlay, 12).await?;
    let [one, two] = [11, 12].map(|number| EndpointId::from_random([number; 16]));
    for _ in 0..2 {
        overlay.detach(one).await?;
        assert_eq!(a.interfaces()?, ["lo"]);
        assert_eq!(overlay.plugged().await?, [two]);
    }
    // The kernel takes its time to end a namespace; detaching must not mind when.
    let Sandbox { path, netns } = b;
    Netns::remove(&path)?;
    drop(netns);
    for _ in 0..2 {
        overlay.detach(two).await?;
        assert!(overlay.plugged().await?.is_empty());
    }
    // Without detaching the cable goes with the sandbox.
    let c = sandbox(&topology, &overlay, 13).await?;
    Netns::remove(&c.path)?;
    drop(c);
    let netns = inside(&topology, "h1")?;
    wait_until("the cable is gone", || Ok(!state(&netns)?.contains(&port(13))))?;
    overlay.detach(EndpointId::from_random([13; 16])).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_may_come_back_elsewhere() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let a = sandbox(&topology, &overlay, 11).await?;
    let b = topology.sandbox("b")?;
    let moved = plug(10, 11, &b)?;
    assert_eq!(overlay.attach(&moved).await?, "eth0");
    assert_eq!(
        (a.interfaces()?, b.interfaces()?),
        (vec!["lo".into()], vec!["eth0".into(), "lo".into()])
    );
    assert!(b.pings("10.10.0.1")?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sandbox_in_two_networks_keeps_its_first_default_route() -> Result<()> {
    let topology = Topology::new()?;
    let run_dir = topology.run_dir("h1");
    let first = Overlay::ensure(&run_dir, spec(10)?).await?;
    let second = Overlay::ensure(&run_dir, spec(20)?).await?;
    let a = topology.sandbox("a")?;
    assert_eq!(first.attach(&plug(10, 11, &a)?).await?, "eth0");
    assert_eq!(second.attach(&plug(20, 11, &a)?).await?, "eth1");
    for to in ["10.10.0.1", "fd10::1", "10.20.0.1", "fd20::1"] {
        assert!(a.pings(to)?, "{to}");
    }
    assert_eq!(defaults(&a)?, ["10.10.0.1", "fd10::1"]);

    // Someone else's default route counts too, whatever its metric.
    let b = topology.sandbox("b")?;
    for line in [
        "ip link add up0 type veth peer up1",
        "ip link set up1 up",
        "ip link set up0 up",
        "ip address add 192.0.2.2/24 dev up0",
        "ip address add 2001:db8::2/64 dev up0 nodad",
        "ip route add default via 192.0.2.1 metric 100",
        "ip route add default via 2001:db8::1 metric 50",
    ] {
        ok(&b.netns, line)?;
    }
    first.attach(&plug(10, 12, &b)?).await?;
    assert_eq!(defaults(&b)?, ["192.0.2.1", "2001:db8::1"]);
    Ok(())
}

/// The gateways of its default routes.
fn defaults(sandbox: &Sandbox) -> Result<Vec<String>> {
    let mut gateways = Vec::new();
    for line in ["ip -j -4 route show default", "ip -j -6 route show default"] {
        let routes: Vec<Value> = serde_json::from_str(&ok(&sandbox.netns, line)?)?;
        gateways
            .extend(routes.iter().filter_map(|route| Some(route["gateway"].as_str()?.to_owned())));
    }
    Ok(gateways)
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_that_an_engine_switched_off_comes_on() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let a = topology.sandbox("a")?;
    a.netns.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
    a.netns.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    overlay.attach(&plug(10, 11, &a)?).await?;
    assert!(a.pings("fd10::1")? && a.pings("10.10.0.1")?);
    Ok(())
}
