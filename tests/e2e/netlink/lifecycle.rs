//! One network from nothing to nothing, with crashes and failures between.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use vxmesh::{
    datapath::{backend::Backend, steering::Queues},
    netlink::{
        link::Links,
        netns::Netns,
        overlay::{NodePlug, Overlay, OverlayError, Plug},
        watch::{Change, Event, Heard, Watch},
    },
};
use vxmesh_proto::addr::EndpointId;
use vxmesh_tests::topology::{Sandbox, Topology, Wire, interfaces, ok, wait_until};

use super::{host, inside, mac, plug, port, sandbox, settled, settles, spec, state};

#[tokio::test(flavor = "multi_thread")]
async fn ensuring_twice_changes_nothing() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let wire = Wire::open(overlay.open_tap(Backend::TunTap, Queues::ONE).await?);
    let a = sandbox(&topology, &overlay, 11).await?;
    let netns = inside(&topology, "h1")?;
    let before = (settled(&netns)?, settled(&a.netns)?);
    let again = host(&topology, "h1").await?;
    assert_eq!(again.attach(&plug(10, 11, &a)?).await?, "eth0");
    assert_eq!((state(&netns)?, state(&a.netns)?), before);
    wire.cut()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_is_mended() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let a = sandbox(&topology, &overlay, 11).await?;
    let netns = inside(&topology, "h1")?;
    let before = settled(&netns)?;
    let port = port(11);
    for line in [
        "ip link set br0 down".to_owned(),
        "ip link set br0 mtu 1280 address 02:00:00:00:00:99".to_owned(),
        "ip address flush dev br0".to_owned(),
        "sysctl -w net.ipv4.ip_forward=0".to_owned(),
        "sysctl -w net.ipv6.conf.all.forwarding=0".to_owned(),
        format!("ip link set {port} nomaster"),
        format!("ip link set {port} down"),
        format!("bridge link set dev {port} learning on flood on"),
        format!("bridge fdb del {} dev {port} master", mac(11)),
        format!("bridge fdb replace {} dev {port} master dynamic", mac(11)),
        format!("ip link set {port} alias somebody"),
        format!("ip link set {port} mtu 1400"),
        "ip address add 10.11.0.1/16 dev br0".to_owned(),
        "ip address change 10.10.0.1/16 dev br0 valid_lft 3600 preferred_lft 3600".to_owned(),
        "ip address change fd10::1/64 dev br0 valid_lft forever preferred_lft 0".to_owned(),
        "ip link set lo down".to_owned(),
        "sysctl -w net.ipv6.conf.default.disable_ipv6=0".to_owned(),
    ] {
        ok(&netns, &line).context(line.clone())?;
        assert_ne!(state(&netns)?, before, "{line}");
        host(&topology, "h1").await?.attach(&named(&a)?).await?;
        settles(&netns, &before, &line)?;
        assert!(a.pings("10.10.0.1")? && a.pings("fd10::1")?, "{line}");
    }
    let mask = || {
        let said = ok(&netns, &format!("ip -d link show {port}"))?;
        let mut words = said.split_whitespace().skip_while(|word| *word != "group_fwd_mask");
        anyhow::Ok(words.nth(1).map(ToOwned::to_owned))
    };
    let meant = mask()?;
    ok(&netns, &format!("ip link set {port} type bridge_slave group_fwd_mask 0"))?;
    assert_ne!(mask()?, meant);
    host(&topology, "h1").await?.attach(&named(&a)?).await?;
    assert_eq!(mask()?, meant);
    Ok(())
}

/// The kernel tells routes of one destination apart by their metrics: ours is not there while
/// another one is.
#[tokio::test(flavor = "multi_thread")]
async fn a_route_of_another_metric_is_not_ours() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let node = NodePlug {
        mac: mac(77),
        ips: Vec::new(),
        vips: BTreeSet::from(["10.10.0.99".parse()?, "fd10::99".parse()?]),
        error_sources: Vec::new(),
    };
    overlay.set_node(&node).await?;
    let netns = inside(&topology, "h1")?;
    let route = |version: &str, vip: &str| ok(&netns, &format!("ip {version} route show {vip}"));
    for (version, vip) in [("-4", "10.10.0.99"), ("-6", "fd10::99")] {
        let ours = route(version, vip)?;
        assert!(ours.contains("node0"), "{ours}");
        ok(&netns, &format!("ip {version} route del {vip} dev node0"))?;
        ok(&netns, &format!("ip {version} route add {vip} dev node0 proto 118 metric 2000"))?;
        host(&topology, "h1").await?.set_node(&node).await?;
        let now = route(version, vip)?;
        assert!(now.lines().any(|line| ours.contains(line.trim())), "{ours} {now}");
    }
    Ok(())
}

/// As the agent's store has it: with the name of its interface.
fn named(a: &Sandbox) -> Result<Plug> {
    Ok(Plug { ifname: Some("eth0".to_owned()), ..plug(10, 11, a)? })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_in_a_sandbox_is_mended() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let a = sandbox(&topology, &overlay, 11).await?;
    let before = settled(&a.netns)?;
    for line in [
        "ip address del 10.10.0.11/16 dev eth0",
        "ip address del fd10::11/64 dev eth0",
        "ip link set eth0 down",
        "ip link set lo down",
        "ip route del default",
        "ip -6 route del default",
        "sysctl -w net.ipv6.conf.eth0.disable_ipv6=1",
    ] {
        ok(&a.netns, line).context(line)?;
        assert_ne!(state(&a.netns)?, before, "{line}");
        host(&topology, "h1").await?.attach(&named(&a)?).await?;
        settles(&a.netns, &before, line)?;
        assert!(a.pings("10.10.0.1")? && a.pings("fd10::1")?, "{line}");
    }
    Ok(())
}

/// Looking changes nothing, and so an agent that starts says nothing to the kernel.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_is_not_written_again() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let node = NodePlug {
        mac: mac(77),
        ips: vec!["10.10.0.77/16".parse()?, "fd10::77/64".parse()?],
        vips: BTreeSet::new(),
        error_sources: Vec::new(),
    };
    overlay.set_node(&node).await?;
    let a = sandbox(&topology, &overlay, 11).await?;
    let netns = inside(&topology, "h1")?;
    let before = (settled(&netns)?, settled(&a.netns)?);
    let runtime = tokio::runtime::Handle::current();
    let watches = [&netns, &a.netns].map(|netns| {
        netns.run(|| {
            let _context = runtime.enter();
            Watch::open()
        })
    });
    let again = host(&topology, "h1").await?;
    again.set_node(&node).await?;
    again.attach(&named(&a)?).await?;
    assert_eq!((state(&netns)?, state(&a.netns)?), before);
    // What was said before this comes before it.
    for (netns, watch) in [&netns, &a.netns].into_iter().zip(watches) {
        ok(netns, "ip link set lo alias last")?;
        let heard = watch?.hear(|namespace| namespace.is_none()).await?;
        let last = Event { namespace: None, change: Change::Link("lo".to_owned()) };
        assert_eq!(heard, Heard::Events(vec![last]));
    }
    Ok(())
}

/// I9.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_adopts_what_a_killed_one_left() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let wire = Wire::open(overlay.open_tap(Backend::TunTap, Queues::ONE).await?);
    let a = sandbox(&topology, &overlay, 11).await?;
    let b = sandbox(&topology, &overlay, 12).await?;
    let netns = inside(&topology, "h1")?;
    let before = settled(&a.netns)?;
    // A second agent on the network has to wait for the end of the first.
    let second = overlay.open_tap(Backend::TunTap, Queues::ONE).await;
    assert!(matches!(&second, Err(OverlayError::Tap(_))), "{second:?}");
    drop((overlay, wire));
    wait_until("the TAP is gone", || Ok(!interfaces(&netns)?.contains(&"tap0".to_owned())))?;
    assert!(a.pings("10.10.0.12")? && b.pings("fd10::11")?, "without an agent");

    let overlay = host(&topology, "h1").await?;
    let mut plugged = overlay.plugged().await?;
    plugged.sort();
    assert_eq!(plugged, [11, 12].map(|number| EndpointId::from_random([number; 16])));
    let wire = Wire::open(overlay.open_tap(Backend::TunTap, Queues::ONE).await?);
    settles(&a.netns, &before, "adopted")?;
    assert!(a.pings("fd10::12")? && b.pings("10.10.0.11")?, "with the new agent");
    ok(&a.netns, "ip neigh replace 10.10.0.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent")?;
    wait_until("the new TAP gets frames for afar", || {
        a.pings("10.10.0.99")?;
        Ok(wire.seen(0).iter().any(|frame| frame.starts_with(&mac(0x99).0)))
    })
}

/// I8.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_fails_half_way_leaves_nothing() -> Result<()> {
    let topology = Topology::new()?;
    let mut bad = spec(10)?;
    // The kernel gives no interface a multicast address: the last step fails.
    bad.gateways.push("ff02::99/64".parse()?);
    let failed = Overlay::ensure(&topology.run_dir("h1"), bad.clone()).await;
    let message = failed.err().context("it must fail")?.to_string();
    assert!(message.contains("br0") && message.contains("address"), "{message}");
    assert!(topology.mounts()?.is_empty());
    assert!(inside(&topology, "h1").is_err());

    // What was there before stays.
    let overlay = host(&topology, "h1").await?;
    let a = sandbox(&topology, &overlay, 11).await?;
    let before = settled(&inside(&topology, "h1")?)?;
    assert!(Overlay::ensure(&topology.run_dir("h1"), bad).await.is_err());
    settles(&inside(&topology, "h1")?, &before, "a failed change")?;
    assert!(a.pings("10.10.0.1")?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_leaves_nothing() -> Result<()> {
    let topology = Topology::new()?;
    let overlay = host(&topology, "h1").await?;
    let wire = Wire::open(overlay.open_tap(Backend::TunTap, Queues::ONE).await?);
    let a = sandbox(&topology, &overlay, 11).await?;
    let netns = inside(&topology, "h1")?;
    // A cable that a crash left before it was labelled.
    let links = Links::open(&netns)?;
    links.create_veth("vhalf", ("half", mac(13)), &a.netns, 1500).await?;
    assert_eq!(interfaces(&netns)?, ["br0", "lo", "tap0", &port(11), "vhalf"]);
    wire.cut()?;
    overlay.remove().await?;
    assert_eq!(interfaces(&netns)?, ["lo"]);
    assert_eq!(a.interfaces()?, ["lo"]);
    assert_eq!(topology.mounts()?, vec![a.path.clone()]);

    // A cable ends with the namespace of either end: this one tells when the network's has gone.
    links.create_veth("canary", ("witness", mac(14)), &a.netns, 1500).await?;
    assert_eq!(a.interfaces()?, ["lo", "witness"]);
    drop((links, netns));
    wait_until("nothing holds the namespace", || Ok(a.interfaces()? == ["lo"]))?;

    let anew = host(&topology, "h1").await?;
    anew.attach(&plug(10, 11, &a)?).await?;
    assert!(a.pings("fd10::1")?);
    anew.remove().await?;
    Netns::remove(&a.path)?;
    assert!(topology.mounts()?.is_empty());
    Ok(())
}
