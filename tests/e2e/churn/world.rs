//! A lab whose answers are looked at as JSON, and work inside a sandbox.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    ops::Deref,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use vxmesh_tests::lab::{self, Allowed};
pub(crate) use vxmesh_tests::lab::{DEADLINE, tell};

/// A lab that goes with the test, however that ends.
#[derive(Debug)]
pub(crate) struct Lab(lab::Lab);

impl Deref for Lab {
    type Target = lab::Lab;

    fn deref(&self) -> &lab::Lab {
        &self.0
    }
}

impl Lab {
    pub(crate) fn up(hosts: u8) -> Result<Self> {
        Ok(Self(lab::Lab::up(hosts)?))
    }

    pub(crate) fn with(options: lab::Options) -> Result<Self> {
        Ok(Self(lab::Lab::with(options)?))
    }

    /// The checks that end every test, with what this one caused on purpose.
    pub(crate) fn finish(self, allowed: Allowed<'_>) -> Result<()> {
        self.0.finish(allowed)
    }

    pub(crate) fn try_vx(&self, host: &str, args: &[&str]) -> Result<Output> {
        self.try_vxmesh(host, args)
    }

    pub(crate) fn vx(&self, host: &str, args: &[&str]) -> Result<String> {
        self.vxmesh(host, args)
    }

    /// The rows or the object that a command prints.
    pub(crate) fn json(&self, host: &str, args: &[&str]) -> Result<Value> {
        self.0.json(host, args)
    }

    /// The row of a list whose field has this value.
    pub(crate) fn find(
        &self,
        host: &str,
        list: &[&str],
        field: &str,
        value: &str,
    ) -> Result<Option<Value>> {
        let rows = self.json(host, list)?;
        Ok(rows.as_array().and_then(|rows| rows.iter().find(|row| row[field] == value)).cloned())
    }

    pub(crate) fn run_sandbox(&self, host: &str, network: &str, name: &str) -> Result<Value> {
        self.vx(host, &["run", "-d", "--name", name, "--network", network, "--", "sleep", "1000"])?;
        self.find(host, &["endpoint", "ls"], "sandbox", name)?.context("no endpoint")
    }

    pub(crate) fn attach(&self, host: &str, network: &str, name: &str) -> Result<Value> {
        self.sh(host, &format!("ip netns add {name}"))?;
        self.json(host, &["endpoint", "attach", network, "--netns", name, "--name", name])
    }

    /// Every pair of hosts sees the same map, all see the same networks.
    pub(crate) fn agree(&self, hosts: &[&str]) -> Result<bool> {
        let first = self.json(hosts[0], &["network", "ls"])?;
        for host in hosts {
            if self.json(host, &["network", "ls"])? != first {
                return Ok(false);
            }
            for other in hosts.iter().filter(|other| *other != host) {
                // A node that was away may not answer yet.
                let output = self.try_vx(host, &["--format", "json", "map", "diff", other])?;
                if !output.status.success() || output.stdout.trim_ascii() != b"[]" {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Process of a host: its `holder` or its `agent`.
    pub(crate) fn pid(&self, host: &str, which: &str) -> Result<i32> {
        let record = fs::read(self.dir(host).join(format!("{which}.json")))?;
        let record: Value = serde_json::from_slice(&record)?;
        Ok(i32::try_from(record["pid"].as_i64().context("no pid")?)?)
    }

    /// A namespace by its path inside a host.
    pub(crate) fn netns(&self, host: &str, path: &str) -> Result<File> {
        Ok(File::open(self.path(host, path)?)?)
    }

    /// Namespaces of networks and sandboxes on a host.
    pub(crate) fn pins(&self, host: &str) -> Result<BTreeSet<String>> {
        let list =
            self.sh(host, "cd /run/vxmesh; ls netns sandbox 2>/dev/null | grep -v : || true")?;
        Ok(list.split_whitespace().map(ToOwned::to_owned).collect())
    }
}

/// The first address of an endpoint.
pub(crate) fn ip(endpoint: &Value) -> Result<std::net::IpAddr> {
    let cidr = endpoint["ips"][0].as_str().context("no address")?;
    Ok(cidr.split('/').next().unwrap_or(cidr).parse()?)
}

/// Does work inside a network namespace, on a thread that ends with it.
pub(crate) fn inside<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits and tells how long it took.
pub(crate) fn wait_until(
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(start.elapsed())
}
