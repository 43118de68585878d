//! Frontend, application and database: who is in two networks reaches both, and is no way from one
//! to the other.

use anyhow::{Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    outside::{self, sh},
    traffic::{Echo, ask_tcp, ask_udp, ping},
};

use super::{connect, disconnect, inspect, ip, leads_by, routers, run};

#[test]
fn the_application_reaches_both_sides_and_the_frontend_no_database() -> Result<()> {
    let lab = Lab::up(3)?;
    let outside = outside::Outside::join(&lab)?;
    let front = lab.network("h1", "front")?;
    lab.vxmesh("h1", &["network", "create", "back", "--internal"])?;
    let back: vxmesh::api::Network = lab.json("h1", &["network", "inspect", "back"])?;
    wait_until("h3 has it", || {
        Ok(lab.try_vxmesh("h3", &["network", "inspect", "back"])?.status.success())
    })?;
    let web = lab.sandbox("h1", "front", "web")?;
    let app =
        run(&lab, "h2", "app", &["--network", "front", "--network", "name=back,alias=backend"])?;
    let db = lab.sandbox("h3", "back", "db")?;
    // The first network that was named has eth0; by name `back` is the first, and it has no
    // gateway.
    leads_by(&app.netns, &front)?;
    ensure!(routers(&db.netns)?.is_empty(), "an internal network leads nowhere");
    let shown = inspect(&lab, &app)?;
    let networks: Vec<_> = shown.networks.iter().map(|it| it.network).collect();
    ensure!(networks == [back.id, front.id], "{shown:?}");
    ensure!(shown.networks[0].default_gateways.is_empty(), "{shown:?}");
    ensure!(shown.networks[1].default_gateways.len() == 2, "{shown:?}");
    let ends: Vec<vxmesh::api::Endpoint> = lab.get("h2", "/v1/endpoints")?;
    let of = |network| ends.iter().find(|end| end.network == network && end.name.as_str() == "app");
    let (in_front, in_back) = (of(front.id), of(back.id));
    ensure!(in_front.is_some_and(|end| end.ifname.as_deref() == Some("eth0")), "{ends:?}");
    let in_back = in_back.filter(|end| end.ifname.as_deref() == Some("eth1"));
    let (Some(in_front), Some(in_back)) = (in_front, in_back) else { anyhow::bail!("{ends:?}") };
    let echo = (Echo::start(&web.netns)?, Echo::start(&db.netns)?, Echo::start(&app.netns)?);
    for ipv4 in [true, false] {
        for (from, to) in [
            (&app, ip(&web.endpoint, ipv4)?),
            (&app, ip(&db.endpoint, ipv4)?),
            (&web, ip(in_front, ipv4)?),
            (&db, ip(in_back, ipv4)?),
        ] {
            ping(&from.netns, to, 3)?;
            ask_tcp(&from.netns, to)?;
            ask_udp(&from.netns, to)?;
        }
        // Neither by the gateway nor by the application, whatever the frontend's routes say.
        let (to, by) = (ip(&db.endpoint, ipv4)?, ip(in_front, ipv4)?);
        ensure!(sh(&web.netns, &format!("ping -n -c 1 -W 1 {to}")).is_err(), "by the gateway");
        sh(&web.netns, &format!("ip route add {to} via {by}"))?;
        sh(
            &db.netns,
            &format!("ip route add {} via {}", ip(&web.endpoint, ipv4)?, ip(in_back, ipv4)?),
        )?;
        ensure!(
            sh(&web.netns, &format!("ping -n -c 2 -i 0.2 -W 1 {to}")).is_err(),
            "by the application"
        );
    }
    drop(echo);
    for to in [outside::IPV4, outside::IPV6] {
        ping(&app.netns, to, 1)?;
    }
    drop(outside);
    // The database's own network goes away under it, and comes back.
    disconnect(&lab, &app, "back")?;
    ensure!(sh(&app.netns, "ip -o link show eth1").is_err(), "the interface stayed");
    leads_by(&app.netns, &front)?;
    connect(&lab, &app, "back", &["--ifname", "db0"])?;
    ping(&app.netns, ip(&db.endpoint, true)?, 1)?;
    lab.finish(Allowed {
        drops: &["fdb_unknown", "not_local", "source_unknown", "fdb_unknown", "not_local"],
        ..Allowed::default()
    })
}
