//! A real Docker engine on a host of a lab ([`Engine`]).

use std::{fs, path::PathBuf, process::Output};

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::lab::{Lab, wait_until};

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

/// The image `box:1`, made of nothing but busybox.
const IMAGE: &str = r#"set -e; D="docker -H unix:///run/docker.sock"; mkdir -p /run/image/bin; cd /run/image
box=$(command -v busybox); cp $box bin/busybox; ln -sf busybox bin/sh
for lib in $(ldd $box 2>/dev/null | grep -o '/[^ ]*'); do cp --parents $lib .; done
tar c . | $D import - box:1 >/dev/null"#;

const STOP: &str = "kill $(cat /run/docker.pid); for n in $(seq 300); do [ -e /run/docker.pid ] || exit 0; sleep 0.1; done; exit 1";

/// A Docker engine. What its containers leave in the machine's control groups goes with this; stop
/// the containers before.
#[derive(Debug)]
pub struct Engine {
    host: &'static str,
    groups: String,
}

impl Engine {
    /// Starts one that has the image `box:1`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(lab: &Lab, host: &'static str) -> Result<Self> {
        let engine = Self { host, groups: format!("{}-{host}", lab.name()) };
        engine.start_again(lab)?;
        lab.sh(host, IMAGE)?;
        Ok(engine)
    }

    /// Starts it after [`Self::stop`].
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&self, lab: &Lab) -> Result<()> {
        lab.sh(self.host, &START.replace("NAME", &self.groups)).map(drop)
    }

    /// Stops it, and its containers but those that are kept alive.
    ///
    /// # Errors
    /// It does not stop.
    pub fn stop(&self, lab: &Lab) -> Result<()> {
        lab.sh(self.host, STOP).map(drop)
    }

    /// What a command of `docker` prints.
    ///
    /// # Errors
    /// It fails.
    pub fn docker(&self, lab: &Lab, script: &str) -> Result<String> {
        Ok(lab.sh(self.host, &command(script))?.trim_end().to_owned())
    }

    /// What becomes of a command of `docker`.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn try_docker(&self, lab: &Lab, script: &str) -> Result<Output> {
        lab.exec(self.host, &["sh", "-c", &command(script)])
    }
}

fn command(script: &str) -> String {
    format!("docker -H unix:///run/docker.sock {script}")
}

impl Drop for Engine {
    fn drop(&mut self) {
        remove_groups(&self.groups);
    }
}

/// Removes the control groups of this name from the machine, and ends who is in them.
pub(crate) fn remove_groups(name: &str) {
    let Ok(all) = fs::read_dir("/sys/fs/cgroup") else { return };
    let roots = all.flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
    roots.for_each(|root| remove(&root.join(name)));
}

fn remove(group: &PathBuf) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // One that is not there, or whose last process is just ending. After a failed test containers
    // still run in it.
    drop(wait_until("a control group goes", || {
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let ids = processes.lines().filter_map(|line| line.parse().ok()).filter(|id| *id > 0);
        ids.for_each(|id| {
            // It may have ended just now.
            let _gone = kill(Pid::from_raw(id), Signal::SIGKILL);
        });
        Ok(!group.exists() || fs::remove_dir(group).is_ok())
    }));
}
