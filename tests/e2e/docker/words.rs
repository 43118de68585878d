//! What containers say of themselves: other names, labels, services, and whether they work.

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Endpoint, Service};
use vxmesh_tests::{
    engine::Engine,
    lab::{Allowed, Lab, UNDERWAY, wait_until},
};

use super::{engines, reaches, run};

const MAKE: &str = "network create -d vxmesh --ipam-driver vxmesh --subnet 10.77.0.0/24 \
                    -o network=app";
const FLAGS: &str = "--network app --dns 10.77.0.1";

fn endpoint(lab: &Lab, name: &str) -> Result<Option<Endpoint>> {
    let all: Vec<Endpoint> = lab.get("h2", "/v1/endpoints")?;
    Ok(all.into_iter().find(|endpoint| endpoint.name.as_str() == name))
}

fn has_alias(lab: &Lab, name: &str, alias: &str) -> Result<bool> {
    let endpoint = endpoint(lab, name)?;
    Ok(endpoint.is_some_and(|it| it.aliases.iter().any(|own| own.as_str() == alias)))
}

/// Which container answers for a service.
fn answer(lab: &Lab, engine: &Engine, to: &str) -> Option<String> {
    engine.docker(lab, &format!("exec call /bin/busybox nc -w 2 {to}")).ok()
}

/// Starts a container that says its name at port 8080 to who comes.
fn server(lab: &Lab, engine: &Engine, name: &str, flags: &str) -> Result<()> {
    let serve = format!("/bin/busybox nc -ll -p 8080 -e /bin/busybox echo {name}");
    engine.docker(lab, &format!("run -d --name {name} {FLAGS} {flags} box:1 {serve}")).map(drop)
}

/// How many backends of the service `shop` there are, and how many are ready.
fn backends(lab: &Lab, host: &str) -> Result<(usize, usize)> {
    let all: Vec<Service> = lab.get(host, "/v1/services")?;
    let Some(shop) = all.iter().find(|it| it.name.as_str() == "shop") else { return Ok((0, 0)) };
    let ready = shop.backends.iter().filter(|it| it.state == "ready");
    Ok((shop.backends.len(), ready.count()))
}

#[test]
fn containers_have_their_names_and_labels_in_the_mesh() -> Result<()> {
    let lab = Lab::up(2)?;
    // A name server of the host, which need not even be there for the names of the mesh.
    lab.sh("h2", "echo nameserver 192.0.2.53 > /etc/resolv.conf")?;
    let [one, two] = &engines(&lab)?;
    one.docker(&lab, &format!("{MAKE} app"))?;
    two.docker(&lab, &format!("{MAKE} app"))?;
    run(&lab, two, "call", "--network app")?;
    let flags = format!("{FLAGS} --network-alias site --label tier=front");
    let id =
        one.docker(&lab, &format!("run -d --name web {flags} box:1 /bin/busybox sleep 3600"))?;
    let short = id.get(..12).context("no id")?;
    wait_until("its other names are known", || has_alias(&lab, "web", "site"))?;
    ensure!(has_alias(&lab, "web", short)?, "no short id");
    let labels = endpoint(&lab, "web")?.map(|it| it.labels).unwrap_or_default();
    ensure!(labels.get("tier").map(String::as_str) == Some("front"), "{labels:?}");
    for name in ["web", "site", short, "site.app"] {
        ensure!(reaches(&lab, two, "call", name), "no ping of {name}");
    }
    // A container that asks whom its user named is not led elsewhere.
    run(&lab, two, "apart", "--network app --dns 192.0.2.54")?;
    ensure!(!reaches(&lab, two, "apart", "web"), "a question went to another server");
    two.docker(&lab, "rm -f apart")?;
    one.docker(&lab, "rename web www")?;
    lab.named("h2", &["call", "www"])?;
    wait_until("it is reached by its new name", || Ok(reaches(&lab, two, "call", "www")))?;
    // Also what happened while the agent was away is seen.
    lab.lab(&["kill", "h1"])?;
    one.docker(&lab, "rename www again")?;
    lab.lab(&["start", "h1"])?;
    lab.named("h2", &["again", "call"])?;
    one.docker(&lab, "rm -f again")?;
    two.docker(&lab, "rm -f call")?;
    one.stop(&lab)?;
    two.stop(&lab)?;
    let drops = &[UNDERWAY, &["unknown_index"]].concat();
    lab.finish(Allowed { drops, ..Allowed::default() })
}

#[test]
fn a_label_makes_containers_the_backends_of_a_service() -> Result<()> {
    let lab = Lab::up(2)?;
    let [one, two] = &engines(&lab)?;
    one.docker(&lab, &format!("{MAKE} app"))?;
    two.docker(&lab, &format!("{MAKE} app"))?;
    run(&lab, two, "call", FLAGS)?;
    let label = "--label vxmesh.service=shop:80:8080";
    server(&lab, one, "near", label)?;
    server(&lab, two, "far", label)?;
    wait_until("both are ready", || Ok(backends(&lab, "h2")? == (2, 2)))?;
    let mut seen = std::collections::BTreeSet::new();
    wait_until("both answer", || {
        seen.extend(answer(&lab, two, "shop 80"));
        Ok(seen.len() == 2)
    })?;
    ensure!(seen.iter().eq(["far", "near"]), "{seen:?}");

    // A container's own check is its health: it begins without, fails and passes.
    let check = "--health-cmd 'test -e /run/works' --health-interval 500ms --health-retries 1";
    server(&lab, one, "checked", &format!("{label} --tmpfs /run {check}"))?;
    wait_until("it is there and not ready", || Ok(backends(&lab, "h2")? == (3, 2)))?;
    one.docker(&lab, "exec checked /bin/busybox touch /run/works")?;
    wait_until("it is ready", || Ok(backends(&lab, "h2")? == (3, 3)))?;
    one.docker(&lab, "exec checked /bin/busybox rm /run/works")?;
    wait_until("it is not", || Ok(backends(&lab, "h2")? == (3, 2)))?;
    // The word stands while the agent is away and after.
    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    wait_until("all are there", || Ok(backends(&lab, "h1")? == (3, 2)))?;
    one.docker(&lab, "rm -f checked")?;

    // One that is being stopped gets no new connections, while it still runs.
    one.docker(&lab, "kill -s HUP near")?;
    two.docker(&lab, "stop -t 30 far >/dev/null 2>&1 &")?;
    wait_until("it is not ready any more", || Ok(backends(&lab, "h1")?.1 <= 1))?;
    for _ in 0..20 {
        let said = answer(&lab, two, "shop 80");
        ensure!(said.as_deref() == Some("near"), "{said:?}");
    }
    one.docker(&lab, "rm -f near")?;
    two.docker(&lab, "rm -f far call")?;
    one.stop(&lab)?;
    two.stop(&lab)?;
    let drops = &[UNDERWAY, &["unknown_index", "backend_unknown"]].concat();
    lab.finish(Allowed { drops, ..Allowed::default() })
}
