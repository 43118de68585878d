//! A real Docker engine on a lab's host, started before and after the agent's networks. Its policy
//! for what is forwarded is DROP, and bridged frames pass its rules, too (`br_netfilter`).

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    netns::NetNs,
    outside::{self, Outside, sh},
};

use super::{Site, saved};

/// The engine, with the machine's control groups below the directory of its own that it gets, and
/// nothing of /etc.
const START: &str = r#"cat > /run/engine.sh <<'EOS'
set -e
umount /sys; mkdir -p /run/cg /run/etc-docker; mount --rbind /sys/fs/cgroup /run/cg
mount -t sysfs none /sys; mount --rbind /run/cg /sys/fs/cgroup; mount --bind /run/etc-docker /etc/docker
exec dockerd -H unix:///run/docker.sock --cgroup-parent "/$1" --storage-driver vfs >>/run/dockerd.log 2>&1 </dev/null
EOS
setsid -f unshare -m sh /run/engine.sh NAME
for n in $(seq 300); do docker -H unix:///run/docker.sock version >/dev/null 2>&1 && exit 0; sleep 0.1; done
tail /run/dockerd.log; exit 1"#;

/// A container that says hello at port 90, published as 9090, made of nothing but busybox.
const CONTAINER: &str = r#"set -e; D="docker -H unix:///run/docker.sock"; mkdir -p /run/image/bin; cd /run/image
box=$(command -v busybox); cp $box bin/busybox; ln -sf busybox bin/sh
for lib in $(ldd $box 2>/dev/null | grep -o '/[^ ]*'); do cp --parents $lib .; done
tar c . | $D import - box:1 >/dev/null
$D run -d --name box --restart always --stop-signal KILL -p 9090:90 box:1 /bin/busybox nc -ll -p 90 -e /bin/busybox echo hello >/dev/null"#;

const STOP: &str = "kill $(cat /run/docker.pid); for n in $(seq 300); do [ -e /run/docker.pid ] || exit 0; sleep 0.1; done; exit 1";

/// The control groups of an engine; they would outlive it.
struct Groups(String);

impl Drop for Groups {
    fn drop(&mut self) {
        let Ok(all) = fs::read_dir("/sys/fs/cgroup") else { return };
        let roots =
            all.flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        roots.for_each(|root| remove(&root.join(&self.0)));
    }
}

fn remove(group: &PathBuf) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // One that is not there, or whose last process is just ending.
    drop(wait_until("a control group goes", || {
        Ok(!group.exists() || fs::remove_dir(group).is_ok())
    }));
}

fn start(lab: &Lab, host: &str) -> Result<()> {
    lab.sh(host, &START.replace("NAME", lab.name()))?;
    Ok(())
}

/// The container is reached from everywhere, and reaches the outside.
fn engine_works(lab: &Lab, host: &str, clients: &[(&NetNs, &str)], what: &str) -> Result<()> {
    for (client, to) in clients {
        let call = format!("busybox nc -w 2 {to} 9090 </dev/null");
        wait_until(&format!("{what}: {to}"), || {
            Ok(sh(client, &call).is_ok_and(|said| said == "hello"))
        })?;
    }
    let ping = format!(
        "docker -H unix:///run/docker.sock exec box /bin/busybox ping -c 1 -W 1 {}",
        outside::IPV4
    );
    wait_until(&format!("{what}: out of the container"), || Ok(lab.sh(host, &ping).is_ok()))
}

#[test]
fn docker_and_networks_work_side_by_side_in_any_order() -> Result<()> {
    let lab = Lab::up(2)?;
    let _groups = Groups(lab.name().to_owned());
    start(&lab, "h1")?;
    lab.sh("h1", CONTAINER)?;
    let h1 = lab.host("h1")?;
    let before = saved(&h1)?;
    let site = Site::on(lab)?;
    let lab = &site.lab;
    let all_works = |what: &str| {
        site.works(what)?;
        let clients = [
            (&site.outside.netns, "10.213.0.1"),
            (&site.a.netns, "10.213.0.1"),
            (&h1, "127.0.0.1"),
        ];
        engine_works(lab, "h1", &clients, what)
    };
    all_works("after Docker")?;
    let shown = lab.vxmesh("h1", &["doctor"])?;
    ensure!(shown.contains("two rules each in ip filter FORWARD"), "{shown}");
    // A port that Docker publishes is taken, and nothing is left of the attempt.
    let run =
        ["run", "-d", "--name", "x", "--network", "blue", "--publish", "9090:80", "--", "true"];
    let output = lab.try_vxmesh("h1", &run)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && said.contains("port 9090/tcp"), "{output:?}");

    let restart = || lab.sh("h1", STOP).and_then(|_| start(lab, "h1"));
    restart()?;
    all_works("after a restart of Docker")?;
    lab.lab(&["kill", "h1"])?;
    restart()?;
    lab.lab(&["start", "h1"])?;
    all_works("after a restart of both")?;
    site.leaves(&before)?;
    engine_works(lab, "h1", &[(&site.outside.netns, "10.213.0.1")], "alone again")?;
    lab.sh("h1", "docker -H unix:///run/docker.sock rm -f box")?;
    lab.sh("h1", STOP)?;
    // What was sealed for the agent before.
    site.lab.finish(Allowed { drops: &["unknown_index"], warnings: &[] })
}

#[test]
fn what_docker_needs_stays_when_the_node_leaves() -> Result<()> {
    let lab = Lab::up(2)?;
    let _groups = Groups(lab.name().to_owned());
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let h1 = lab.host("h1")?;
    start(&lab, "h1")?;
    lab.sh("h1", CONTAINER)?;
    let clients = [(&outside.netns, "10.213.0.1"), (&a.netns, "10.213.0.1")];
    engine_works(&lab, "h1", &clients, "beside a network")?;
    lab.vxmesh("h1", &["leave", "--force"])?;
    ensure!(sh(&h1, "sysctl -n net.ipv4.ip_forward")? == "1", "forwarding is off");
    engine_works(&lab, "h1", &[(&outside.netns, "10.213.0.1")], "after leaving")?;
    let rules = saved(&h1)?;
    ensure!(!rules.contains("vxm") && rules.contains("DOCKER"), "{rules}");
    lab.sh("h1", "docker -H unix:///run/docker.sock rm -f box")?;
    lab.sh("h1", STOP)?;
    lab.finish(Allowed { drops: &[], warnings: &["gossip ended"] })
}
