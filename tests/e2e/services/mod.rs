//! Services: a VIP whose connections are spread over sandboxes on other hosts.

mod at_once;
mod clients;
mod deaths;
mod faults;
mod floods;
mod forged;
mod health;
mod ingress;
mod ingress_node;
mod life;
mod local;
mod paths;
mod restart;
mod skeleton;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Endpoint, Network, Sandbox, Service};
use vxmesh_tests::lab::{Lab, wait_until};

/// A sandbox whose web server answers with its name and the client's address.
pub(crate) fn who(lab: &Lab, dir: &Path, host: &str, name: &str) -> Result<Endpoint> {
    let bin = dir.join(name).join("cgi-bin");
    std::fs::create_dir_all(&bin)?;
    let script = format!(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho {name} $REMOTE_ADDR\n"
    );
    let path = bin.join("who");
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let home = dir.join(name);
    let home = home.to_str().context("odd path")?;
    let run = ["run", "-d", "--name", name, "--network", "blue", "--label", "app=web", "--"];
    let serve = ["busybox", "httpd", "-f", "-p", "[::]:8080", "-h", home];
    let sandbox: Sandbox = lab.json(host, &[&run[..], &serve].concat())?;
    let id = sandbox.endpoints.first().context("a sandbox without endpoints")?;
    lab.get(host, &format!("/v1/endpoints/{id}"))
}

/// Network blue on three hosts: web2 and web3 on the last two, and a client on the first.
pub(crate) fn backends_on_two_hosts(lab: &Lab, dir: &Path) -> Result<()> {
    let create = ["network", "create", "blue"];
    let subnets = ["--subnet", "10.71.0.0/24", "--subnet", "fd71::/64"];
    let _blue: Network = lab.json("h1", &[&create[..], &subnets].concat())?;
    for (host, name) in [("h2", "web2"), ("h3", "web3")] {
        wait_until("the network is there", || {
            Ok(lab.try_vxmesh(host, &["network", "inspect", "blue"])?.status.success())
        })?;
        who(lab, dir, host, name)?;
    }
    lab.vxmesh("h1", &["run", "-d", "--name", "c", "--network", "blue", "sleep", "1000"])?;
    Ok(())
}

/// One answer through a service, from a sandbox.
pub(crate) fn ask(lab: &Lab, host: &str, client: &str, version: &str) -> Result<String> {
    let url = "http://web/cgi-bin/who";
    let curl = ["exec", client, "--", "curl", version, "-sS", "-m", "5", url];
    Ok(lab.vxmesh(host, &curl)?.trim().to_owned())
}

/// How often each backend answered, all of them with this address of the client.
pub(crate) fn answers(
    lab: &Lab,
    (host, client): (&str, &str),
    version: &str,
    times: usize,
) -> Result<BTreeMap<String, usize>> {
    let asked = format!(
        "for i in $(seq {times}); do curl {version} -sS -m 5 http://web/cgi-bin/who || echo lost; done"
    );
    let text = lab.vxmesh(host, &["exec", client, "--", "sh", "-c", &asked])?;
    let mut answers = BTreeMap::new();
    for line in text.lines() {
        // The server has one socket for both versions.
        let line = line.replace("[::ffff:", "").replace(['[', ']'], "");
        *answers.entry(line).or_insert(0) += 1;
    }
    ensure!(answers.values().sum::<usize>() == times, "{text}");
    Ok(answers)
}

/// Waits until all hosts show so many backends.
pub(crate) fn settled(lab: &Lab, name: &str, backends: usize) -> Result<()> {
    wait_until("all hosts know the service and its backends", || {
        let mut knows = true;
        for host in lab.hosts() {
            let services: Vec<Service> = lab.get(host, "/v1/services")?;
            let service = services.iter().find(|service| service.name.as_str() == name);
            let is_ready = service.is_some_and(|service| {
                service.state == "active"
                    && service.backends.iter().filter(|it| it.state == "ready").count() == backends
            });
            knows &= is_ready;
        }
        Ok(knows)
    })
}
