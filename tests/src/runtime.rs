//! Real container runtimes on hosts of a lab, which call the plug-in of the Container Network
//! Interface: podman and containerd, with all of their state in the host ([`Podman`],
//! [`Containerd`]).

use std::process::Output;

use anyhow::Result;

use crate::{engine::remove_groups, lab::Lab};

/// Shows a host the machine's control groups: its own view of /sys has none.
const GROUPS: &str = "umount /sys; mkdir -p /run/cg; mount --rbind /sys/fs/cgroup /run/cg
mount -t sysfs none /sys; mount --rbind /run/cg /sys/fs/cgroup";

/// The files of containers, made of nothing but busybox.
const FILES: &str = r#"set -e; mkdir -p /run/image/bin /run/image/dev /run/image/etc /run/image/proc /run/image/sys
cd /run/image; box=$(command -v busybox); cp $box bin/busybox; ln -sf busybox bin/sh
for lib in $(ldd $box 2>/dev/null | grep -o '/[^ ]*'); do cp --parents $lib .; done"#;

const PODMAN: &str = r#"set -e; mkdir -p /run/pod/bin /run/pod/net.d; cd /run/pod
ln -sf $(command -v vxmesh) bin/vxmesh-cni
cat > containers.conf <<'EOF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["/run/pod/bin", "/usr/lib/cni"]
network_config_dir = "/run/pod/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "/run/pod/tmp"
EOF
cat > podman <<'EOF'
#!/bin/sh
export CONTAINERS_CONF=/run/pod/containers.conf
exec podman --root /run/pod/root --runroot /run/pod/runroot --storage-driver vfs --log-level error "$@"
EOF
chmod +x podman; tar c -C /run/image . > image.tar
./podman import image.tar box:1"#;

/// podman on a host of a lab.
#[derive(Debug)]
pub struct Podman {
    host: &'static str,
    groups: String,
}

impl Podman {
    /// Gives a host podman, with the image `box:1` and this configuration of a network.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn new(lab: &Lab, host: &'static str, network: &str) -> Result<Self> {
        let podman = Self { host, groups: format!("{}-{host}", lab.name()) };
        lab.sh(host, GROUPS)?;
        lab.sh(host, FILES)?;
        lab.sh(host, PODMAN)?;
        lab.sh(host, &format!("cat > /run/pod/net.d/10.conflist <<'EOF'\n{network}\nEOF"))?;
        Ok(podman)
    }

    /// Starts a container that does nothing else than this.
    ///
    /// # Errors
    /// It does not start.
    pub fn run(&self, lab: &Lab, name: &str, flags: &str, command: &str) -> Result<String> {
        let words = self.words(name, flags, command);
        self.podman(lab, &words)
    }

    /// What becomes of a container's start.
    ///
    /// # Errors
    /// It cannot be tried.
    pub fn try_run(&self, lab: &Lab, name: &str, flags: &str, command: &str) -> Result<Output> {
        let script = script(&self.words(name, flags, command));
        lab.exec(self.host, &["sh", "-c", &script])
    }

    fn words(&self, name: &str, flags: &str, command: &str) -> String {
        let groups = &self.groups;
        format!(
            "run -d --cgroup-parent /{groups} --name {name} {flags} box:1 /bin/busybox {command}"
        )
    }

    /// What a command of podman prints.
    ///
    /// # Errors
    /// It fails.
    pub fn podman(&self, lab: &Lab, words: &str) -> Result<String> {
        Ok(lab.sh(self.host, &script(words))?.trim_end().to_owned())
    }
}

fn script(words: &str) -> String {
    format!("/run/pod/podman {words}")
}

impl Drop for Podman {
    fn drop(&mut self) {
        remove_groups(&self.groups);
    }
}

/// With the mount point of /etc that podman's package brings, and none in /opt.
const CONTAINERD: &str = r#"set -e; mkdir -p /run/ctr/cni/net.d; cd /run/ctr
mount --bind /run/ctr/cni /etc/cni; mount -t tmpfs none /opt; mkdir -p /opt/cni/bin
ln -s $(command -v vxmesh) /opt/cni/bin/vxmesh-cni
cat > config.toml <<'EOF'
version = 2
root = "/run/ctr/root"
state = "/run/ctr/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/ctr/ctr.sock"
EOF
setsid -f sh -c 'echo $$ > pid; exec containerd -c /run/ctr/config.toml >>log 2>&1 </dev/null'
for n in $(seq 300); do ctr -a /run/ctr/ctr.sock version >/dev/null 2>&1 && exit 0; sleep 0.1; done
tail log; exit 1"#;

/// containerd on a host of a lab.
#[derive(Debug)]
pub struct Containerd {
    host: &'static str,
    groups: String,
}

impl Containerd {
    /// Starts it on a host with this configuration of a network.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(lab: &Lab, host: &'static str, network: &str) -> Result<Self> {
        // Its namespace is the control group, too, and the first part of what plug-ins are told.
        let containerd = Self { host, groups: lab.name().to_owned() };
        lab.sh(host, GROUPS)?;
        lab.sh(host, FILES)?;
        lab.sh(host, CONTAINERD)?;
        lab.sh(host, &format!("cat > /etc/cni/net.d/10.conflist <<'EOF'\n{network}\nEOF"))?;
        Ok(containerd)
    }

    /// Starts a container that does nothing.
    ///
    /// # Errors
    /// It does not start.
    pub fn run(&self, lab: &Lab, name: &str) -> Result<()> {
        let words = format!("run -d --cni --rootfs /run/image {name} /bin/busybox sleep 3600");
        self.ctr(lab, &words).map(drop)
    }

    /// What a command of `ctr` prints.
    ///
    /// # Errors
    /// It fails.
    pub fn ctr(&self, lab: &Lab, words: &str) -> Result<String> {
        lab.sh(self.host, &format!("ctr -a /run/ctr/ctr.sock -n {} {words}", self.groups))
    }

    /// Stops it.
    ///
    /// # Errors
    /// It does not stop.
    pub fn stop(&self, lab: &Lab) -> Result<()> {
        let script = "pid=$(cat /run/ctr/pid); kill $pid; for n in $(seq 300); do \
                      kill -0 $pid 2>/dev/null || exit 0; sleep 0.1; done; exit 1";
        lab.sh(self.host, script).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        remove_groups(&self.groups);
    }
}
