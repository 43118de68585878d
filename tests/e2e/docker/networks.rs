//! Networks of engines: made, joined, refused, and removed.

use anyhow::{Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::lab::{Allowed, Lab, UNDERWAY, wait_until};

use super::{doctor, engines, reaches, refused, run, serve};

const SOCKET: &str = "/run/docker/plugins/vxmesh.sock";
const MAKE: &str = "network create -d vxmesh --ipam-driver vxmesh";

fn networks(lab: &Lab, host: &str) -> Result<Vec<String>> {
    let all: Vec<Network> = lab.get(host, "/v1/networks")?;
    Ok(all.iter().map(|network| network.name.to_string()).collect())
}

#[test]
fn a_network_is_made_joined_and_removed() -> Result<()> {
    let lab = Lab::up(2)?;
    let engines @ [one, two] = &engines(&lab)?;
    // Without a name of its own it goes with the engine's.
    let id =
        one.docker(&lab, &format!("{MAKE} --ipv6 --subnet 10.8.0.0/24 --subnet fd08::/64 own"))?;
    let own = format!("docker-{}", id.get(..12).unwrap_or_default());
    ensure!(networks(&lab, "h1")? == [own.clone()], "{:?}", networks(&lab, "h1")?);
    let join = format!("{MAKE} --ipv6 --ipam-opt network={own} joined");
    wait_until("h2 knows it", || Ok(networks(&lab, "h2")? == [own.clone()]))?;
    two.docker(&lab, &join)?;
    let a = run(&lab, two, "there", "--network joined")?;
    run(&lab, one, "here", "--network own")?;
    wait_until("both versions reach", || {
        let ask = "inspect there -f '{{.NetworkSettings.Networks.joined.GlobalIPv6Address}}'";
        let v6 = two.docker(&lab, ask)?;
        Ok(reaches(&lab, one, "here", &a) && reaches(&lab, one, "here", &v6))
    })?;
    one.docker(&lab, "rm -f here")?;
    // Others use it.
    one.docker(&lab, "network rm own")?;
    ensure!(networks(&lab, "h2")? == [own.clone()], "it is gone: {:?}", networks(&lab, "h2")?);
    two.docker(&lab, "rm -f there")?;
    two.docker(&lab, "network rm joined")?;
    lab.vxmesh("h1", &["network", "rm", &own])?;
    // The last one takes it along.
    one.docker(&lab, &format!("{MAKE} alone"))?;
    ensure!(networks(&lab, "h1")?.len() == 1, "{:?}", networks(&lab, "h1")?);
    one.docker(&lab, "network rm alone")?;
    ensure!(networks(&lab, "h1")?.is_empty(), "{:?}", networks(&lab, "h1")?);

    // An internal one leads nowhere, and a container can be in both.
    one.docker(&lab, &format!("{MAKE} --internal --subnet 10.6.0.0/24 -o network=inner inner"))?;
    one.docker(&lab, &format!("{MAKE} --subnet 10.7.0.0/24 -o network=outer outer"))?;
    run(&lab, one, "both", "--network inner")?;
    one.docker(&lab, "network connect outer both")?;
    let routes = one.docker(&lab, "exec both /bin/busybox ip route")?;
    ensure!(routes.contains("default via 10.7.0.1") && !routes.contains("via 10.6"), "{routes}");
    ensure!(!routes.contains("172."), "an interface of a bridge of Docker's own: {routes}");
    one.docker(&lab, "network disconnect inner both")?;
    lab.named("h1", &["both"])?;
    one.docker(&lab, "rm -f both")?;
    engines.iter().try_for_each(|engine| engine.stop(&lab))?;
    lab.finish(Allowed::default())
}

/// `vxmesh network create --docker`: nobody types the same on each host.
#[test]
fn the_mesh_puts_a_network_on_every_engine() -> Result<()> {
    let lab = Lab::up(2)?;
    let engines @ [one, two] = &engines(&lab)?;
    let output = lab.try_vxmesh("h1", &["network", "create", "x", "--docker", "-d", "bridge"])?;
    ensure!(!output.status.success() && networks(&lab, "h1")?.is_empty(), "{output:?}");
    let subnets = ["--subnet", "10.79.0.0/24", "--subnet", "fd79::/64"];
    lab.vxmesh("h1", &[&["network", "create", "all", "--docker"][..], &subnets].concat())?;
    let has = |engine: &vxmesh_tests::engine::Engine| -> Result<bool> {
        Ok(!engine.docker(&lab, "network ls -q --filter name=all")?.is_empty())
    };
    wait_until("both engines have it", || Ok(has(one)? && has(two)?))?;
    run(&lab, one, "here", "--network all")?;
    let b = run(&lab, two, "there", "--network all --ip 10.79.0.50")?;
    ensure!(b == "10.79.0.50", "{b}");
    wait_until("it is reached", || Ok(reaches(&lab, one, "here", &b)))?;
    ensure!(doctor(&lab, "h1")?.0, "{:?}", doctor(&lab, "h1")?);
    // A network of another kind with its name stays what it is, and that is said.
    one.docker(&lab, "network create taken")?;
    lab.vxmesh("h2", &["network", "create", "taken", "--docker"])?;
    wait_until("h2 has it", || Ok(!two.docker(&lab, "network ls -qf name=taken")?.is_empty()))?;
    wait_until("h1 says why not", || Ok(lab.log("h1")?.contains("taken already exists")))?;
    one.docker(&lab, "rm -f here")?;
    two.docker(&lab, "rm -f there")?;
    for name in ["all", "taken"] {
        lab.vxmesh("h1", &["network", "rm", name])?;
    }
    wait_until("it goes with the mesh's", || Ok(!has(one)? && !has(two)?))?;
    ensure!(!one.docker(&lab, "network ls -qf name=taken")?.is_empty(), "a user's network went");
    engines.iter().try_for_each(|engine| engine.stop(&lab))?;
    let warnings = &["Docker does not make the network"];
    lab.finish(Allowed { drops: UNDERWAY, warnings })
}

#[test]
fn what_cannot_be_is_refused_in_docker_s_own_words() -> Result<()> {
    let lab = Lab::up(2)?;
    let engines @ [one, two] = &engines(&lab)?;
    one.docker(&lab, &format!("{MAKE} --subnet 10.77.0.0/24 -o network=app -o vni=77 app"))?;
    wait_until("h2 knows it", || Ok(networks(&lab, "h2")? == ["app"]))?;
    for (flags, words) in [
        ("-o netwrk=app", &["no option `netwrk`", "network, vni"][..]),
        ("--subnet 10.9.0.0/24 -o network=app", &["10.77.0.0/24", "10.9.0.0/24"]),
        ("--subnet 10.77.0.0/24 --gateway 10.77.0.9 -o network=app", &["10.77.0.1", "10.77.0.9"]),
        ("--ipam-opt network=app -o vni=9", &["77", "not 9"]),
        ("--ipam-opt network=app -o network=other", &["said twice", "app", "other"]),
        ("--ipam-opt network=app --internal", &["internal", "false", "true"]),
        ("--ipam-opt network=app -o mtu=1300", &["MTU", "1300"]),
        ("--subnet 10.9.0.0/24 -o network=new -o vni=77", &["77"]),
    ] {
        refused(&lab, two, &format!("{MAKE} {flags} x"), words)?;
    }
    let plain = "network create -d vxmesh x";
    refused(&lab, two, plain, &["--ipam-driver vxmesh"])?;
    refused(&lab, two, &format!("{plain} --ipam-driver null"), &["--ipam-driver vxmesh"])?;
    ensure!(two.docker(&lab, "network ls -q --filter driver=vxmesh")?.is_empty());
    ensure!(networks(&lab, "h2")? == ["app"]);

    two.docker(&lab, &format!("{MAKE} --ipam-opt network=app app"))?;
    // The mesh removes it while an engine has it.
    lab.vxmesh("h1", &["network", "rm", "app"])?;
    wait_until("h2 knows", || Ok(networks(&lab, "h2")?.is_empty()))?;
    refused(&lab, two, "run --rm --network app box:1 true", &["removed from the mesh"])?;
    let (is_well, said) = doctor(&lab, "h2")?;
    ensure!(!is_well && said.contains("removed the network that Docker calls `app`"), "{said}");
    two.docker(&lab, "network rm app")?;
    // Without a mesh there is none.
    lab.vxmesh("h2", &["leave", "--force"])?;
    refused(&lab, two, &format!("{MAKE} x"), &["belongs to no mesh", "vxmesh init"])?;
    engines.iter().try_for_each(|engine| engine.stop(&lab))?;
    lab.finish(Allowed { drops: &[], warnings: &["gossip ended"] })
}

/// What the engine forgot while nobody answered it: as if it had asked for all of it itself.
#[test]
fn what_the_engine_does_not_know_ends() -> Result<()> {
    let lab = Lab::up(2)?;
    let [one, two] = &engines(&lab)?;
    for engine in [one, two] {
        engine.docker(&lab, &format!("{MAKE} --subnet 10.77.0.0/24 -o network=app app"))?;
    }
    run(&lab, one, "stays", "--network app --ip 10.77.0.5")?;
    let call = |path: &str, body: &str| -> Result<serde_json::Value> {
        let said = ask(&lab, path, body)?;
        ensure!(!said.contains("Err"), "{path}: {said}");
        Ok(serde_json::from_str(&said)?)
    };
    let network = "f".repeat(64);
    let asked = r#"{"Pool":"10.77.0.0/24","Options":{"network":"app"},"V6":false}"#;
    let pool = call("IpamDriver.RequestPool", asked)?["PoolID"].clone();
    let data = r#"[{"AddressSpace":"vxmesh","Pool":"10.77.0.0/24"}]"#;
    let made = format!(r#"{{"NetworkID":"{network}","IPv4Data":{data}}}"#);
    call("NetworkDriver.CreateNetwork", &made)?;
    let asked = format!(r#"{{"PoolID":{pool},"Address":"10.77.0.9"}}"#);
    let of = format!(r#""NetworkID":"{network}","EndpointID":"e""#);
    let begin = format!(r#"{{{of},"Interface":{{"Address":"10.77.0.9/24"}}}}"#);
    let said = ask(&lab, "NetworkDriver.CreateEndpoint", &begin)?;
    ensure!(said.contains("10.77.0.9/24 is not held"), "{said}");
    call("IpamDriver.RequestAddress", &asked)?;
    call("NetworkDriver.CreateEndpoint", &begin)?;
    let joined = call("NetworkDriver.Join", &format!("{{{of}}}"))?;
    ensure!(joined["Gateway"] == "10.77.0.1", "{joined}");
    // The same once more has the same answer.
    ensure!(call("NetworkDriver.Join", &format!("{{{of}}}"))? == joined);
    let held = "--network app --ip 10.77.0.9";
    refused(&lab, two, &format!("run --rm {held} box:1 true"), &["10.77.0.9"])?;
    ensure!(lab.endpoint_names("h1")?.len() == 2, "{:?}", lab.endpoint_names("h1")?);

    let (is_well, said) = doctor(&lab, "h1")?;
    let lost = [&format!("network {}", &network[..12])[..], "its endpoint e"];
    ensure!(!is_well && lost.iter().all(|words| said.contains(words)), "{said}");

    lab.lab(&["kill", "h1"])?;
    lab.lab(&["start", "h1"])?;
    lab.named("h2", &["stays"])?;
    let taken = format!("run --rm {held} box:1 /bin/busybox true");
    wait_until("its address is given back", || {
        let output = one.try_docker(&lab, &taken)?;
        Ok(String::from_utf8_lossy(&output.stderr).contains("10.77.0.9 was released a moment ago"))
    })?;
    run(&lab, one, "next", "--network app")?;
    ensure!(reaches(&lab, one, "next", "10.77.0.5"), "what stays does not");
    one.docker(&lab, "rm -f stays next")?;
    one.stop(&lab)?;
    two.stop(&lab)?;
    let drops = &[UNDERWAY, &["unknown_index"]].concat();
    lab.finish(Allowed { drops, ..Allowed::default() })
}

/// What the agent of h1 answers a call of an engine.
fn ask(lab: &Lab, path: &str, body: &str) -> Result<String> {
    lab.sh("h1", &format!("curl -sS -X POST -d '{body}' --unix-socket {SOCKET} http://x/{path}"))
}

#[test]
fn the_socket_is_there_while_the_agent_is() -> Result<()> {
    let lab = Lab::up(1)?;
    ensure!(lab.sh("h1", &format!("ls {SOCKET} 2>&1 || true"))?.contains("No such file"));
    serve(&lab, "h1")?;
    ensure!(lab.sh("h1", &format!("stat -c %a {SOCKET}"))?.trim() == "600");
    // One that a killed agent left is replaced.
    lab.lab(&["kill", "h1"])?;
    lab.sh("h1", &format!("test -S {SOCKET}"))?;
    lab.lab(&["start", "h1"])?;
    ensure!(ask(&lab, "Plugin.Activate", "")?.contains("NetworkDriver"));
    for (path, body, words) in [
        ("NetworkDriver.Join", "", "was lost"),
        ("NetworkDriver.Join", "{", "cannot be used"),
        ("NetworkDriver.Join", r#"{"NetworkID":7}"#, "cannot be used"),
        ("NetworkDriver.Join", r#"{"NetworkID":"a","EndpointID":"b"}"#, "does not know"),
        ("IpamDriver.RequestAddress", r#"{"PoolID":"x"}"#, "does not know"),
        ("NetworkDriver.Nonsense", "{}", "does not know the call"),
    ] {
        let said = ask(&lab, path, body)?;
        let keys = said.contains("\"Err\":") && said.contains("\"Error\":");
        ensure!(keys && said.contains(words), "{path} {body}: {said}");
    }
    lab.finish(Allowed::default())
}
