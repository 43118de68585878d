//! A lab with agents, its questions as JSON, and work inside a sandbox.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// A machine under load is slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

fn vxmesh() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let path = own.ancestors().nth(2).context("no target directory")?.join("vxmesh");
    ensure!(path.is_file(), "{} is missing: run `cargo build -p vxmesh` first", path.display());
    Ok(path)
}

#[expect(clippy::disallowed_methods, reason = "tests start programs")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// A lab that goes with the test, however that ends.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) name: String,
}

impl Lab {
    pub(crate) fn up(hosts: u8) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("c{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { name };
        lab.lab(&["up", "--hosts", &hosts.to_string()])?;
        Ok(lab)
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        let mut command = command(vxmesh()?);
        command.args(["lab", "--name", &self.name]).args(args).stdin(Stdio::null());
        Ok(command.output()?)
    }

    pub(crate) fn lab(&self, args: &[&str]) -> Result<String> {
        printed(args, &self.run(args)?)
    }

    pub(crate) fn try_vx(&self, host: &str, args: &[&str]) -> Result<Output> {
        self.run(&[&["exec", host, "--", "vxmesh"], args].concat())
    }

    pub(crate) fn vx(&self, host: &str, args: &[&str]) -> Result<String> {
        printed(args, &self.try_vx(host, args)?)
    }

    pub(crate) fn sh(&self, host: &str, script: &str) -> Result<String> {
        self.lab(&["exec", host, "--", "sh", "-c", script])
    }

    /// The rows or the object that a command prints.
    pub(crate) fn json(&self, host: &str, args: &[&str]) -> Result<Value> {
        let text = self.vx(host, &[&["--format", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} printed {text}"))
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

    pub(crate) fn dir(&self) -> PathBuf {
        Path::new("/run/vxmesh-lab").join(&self.name)
    }

    pub(crate) fn pid(&self, host: &str, which: &str) -> Result<i32> {
        let record = fs::read(self.dir().join(host).join(format!("{which}.json")))?;
        let record: Value = serde_json::from_slice(&record)?;
        Ok(i32::try_from(record["pid"].as_i64().context("no pid")?)?)
    }

    /// Where a file of a host is on this machine.
    pub(crate) fn path(&self, host: &str, path: &str) -> Result<PathBuf> {
        Ok(format!("/proc/{}/root{path}", self.pid(host, "holder")?).into())
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

impl Drop for Lab {
    fn drop(&mut self) {
        let removed = self.lab(&["down"]);
        // A second panic would hide the first.
        assert!(
            std::thread::panicking() || removed.is_ok(),
            "lab {} is left: {removed:?}",
            self.name
        );
    }
}

fn printed(args: &[&str], output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{args:?}: {output:?}");
    Ok(String::from_utf8(output.stdout.clone())?.trim_end().to_owned())
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

/// Tells a figure to whoever runs the tests.
pub(crate) fn tell(line: &str) {
    // There may be nobody to read it.
    drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{line}\n")));
}
