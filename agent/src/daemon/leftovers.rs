//! What is on this host and in no row of the state: the data directory is older than the host,
//! because a snapshot was put back or the directory was lost.
//!
//! It is removed when the agent starts, with a line in the log. Listing it instead would need what
//! only the lost rows said: whose it is, under which name and for how long. Left alone, it would
//! speak with addresses that this node gives away again. Processes are not ended: nobody here
//! started them. They go on without a network; the log names them, and `doctor` while they live.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tracing::{debug, warn};
use vxmesh_proto::addr::{EndpointId, NetworkId};

use super::{
    doctor::check,
    hosting::Hosted,
    mesh::{Mesh, store_failed},
};
use crate::{
    api::{ApiError, Diagnosis, Health},
    netlink::{macvlan, netns::Netns, overlay::Overlay},
    sandbox::process::Process,
    store::Table,
};

/// Processes that are named for one sandbox.
const NAMED: usize = 8;
/// Where the store has the processes of lost sandboxes, by the names of these.
const LOST: &str = "lost_processes";

type Lost = BTreeMap<String, Vec<Process>>;

impl Mesh {
    /// Removes cables, networks' namespaces and sandboxes that no row of the state knows. What
    /// cannot be removed is told.
    pub(super) async fn remove_leftovers(&self, hosted: &Hosted) -> Result<(), ApiError> {
        let endpoints = self.stored_endpoints()?;
        let known: BTreeSet<EndpointId> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        for (network, overlay) in &hosted.overlays {
            let plugged = overlay.plugged().await?;
            for endpoint in plugged.into_iter().filter(|endpoint| !known.contains(endpoint)) {
                overlay.detach(endpoint).await?;
                let (network, endpoint) = (self.network_name(*network), endpoint.short());
                warn!(%network, %endpoint, "unplugged an interface that this node's data does not know; its data is older than this host");
            }
        }
        let networks = endpoints.iter().map(|endpoint| endpoint.network);
        let nodes = self.stored_nodes()?;
        let led = nodes.iter().map(|node| node.network).filter(|id| self.leads_clients(*id));
        let networks: BTreeSet<String> = networks
            .chain(hosted.overlays.keys().copied())
            .chain(led)
            .map(|network: NetworkId| network.short())
            .collect();
        for path in unknown(&self.run_dir().join("netns"), &networks) {
            match Overlay::sweep_path(&path).await {
                Ok(()) => {
                    warn!(path = %path.display(), "removed a network's namespace that this node's data does not know");
                }
                Err(error) => {
                    warn!(path = %path.display(), %error, "a network's namespace that this node's data does not know is not removed");
                }
            }
        }
        self.remove_lost_sandboxes(&known).await
    }

    async fn remove_lost_sandboxes(&self, known: &BTreeSet<EndpointId>) -> Result<(), ApiError> {
        let sandboxes = self.stored_sandboxes()?;
        let sandboxes = sandboxes.iter().map(|sandbox| sandbox.name().to_string()).collect();
        for path in unknown(&self.run_dir().join("etc"), &sandboxes) {
            match fs::remove_dir_all(&path) {
                Ok(()) => debug!(path = %path.display(), "removed files of a lost sandbox"),
                Err(error) => {
                    warn!(path = %path.display(), %error, "files of a sandbox that this node's data does not know are not removed");
                }
            }
        }
        for path in unknown(&self.run_dir().join("sandbox"), &sandboxes) {
            // Its other interfaces went with the networks' ends of their cables.
            if let Err(error) = macvlan::sweep_sandbox(&path, known).await {
                warn!(path = %path.display(), %error, "interfaces of a sandbox that this node's data does not know are not removed");
            }
            let ids = processes_in(&path);
            let processes = named(&ids);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Before the namespace goes, by which the next start would find them.
            if let Err(error) = self.keep_lost(&name, &ids) {
                warn!(sandbox = %name, %error, "`doctor` will not name processes of a sandbox that this node's data does not know");
            }
            match Netns::remove(&path) {
                Ok(()) => {
                    warn!(sandbox = %name, %processes, "removed a sandbox that this node's data does not know; its processes go on without a network");
                }
                Err(error) => {
                    warn!(sandbox = %name, %error, "a sandbox that this node's data does not know is not removed");
                }
            }
        }
        Ok(())
    }

    /// Notes the processes of a sandbox that is lost.
    fn keep_lost(&self, name: &str, ids: &[u32]) -> Result<(), ApiError> {
        let processes: Vec<Process> = ids.iter().filter_map(|id| Process::look(*id)).collect();
        if processes.is_empty() {
            return Ok(());
        }
        let mut lost = self.lost()?;
        let known = lost.entry(name.to_owned()).or_default();
        known.extend(processes);
        known.dedup_by_key(|process| process.pid());
        self.store.put(Table::Meta, LOST, &lost).map_err(store_failed)
    }

    /// Processes of lost sandboxes that live.
    fn lost(&self) -> Result<Lost, ApiError> {
        let mut lost: Lost =
            self.store.get(Table::Meta, LOST).map_err(store_failed)?.unwrap_or_default();
        lost.values_mut().for_each(|processes| processes.retain(Process::is_alive));
        lost.retain(|_name, processes| !processes.is_empty());
        Ok(lost)
    }

    /// Sandboxes that this node's data does not know, while processes of them live.
    pub(super) fn lost_diagnoses(&self) -> Vec<Diagnosis> {
        let row = |(name, processes): (String, Vec<Process>)| {
            let ids: Vec<u32> = processes.iter().filter_map(Process::pid).collect();
            check(
                "sandboxes",
                Health::Warn,
                format!(
                    "processes of sandbox {name}, which this node's data does not know, still run, without a network: {}",
                    named(&ids)
                ),
                "end them, and run what is needed anew: the data directory is older than this host",
            )
        };
        self.lost().unwrap_or_default().into_iter().map(row).collect()
    }
}

/// The first of them, for people to read.
fn named(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().take(NAMED).map(ToString::to_string).collect();
    ids.join(" ")
}

/// Files of a directory whose names are not among these.
fn unknown(directory: &Path, known: &BTreeSet<String>) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let unknown =
        entries.filter(|entry| entry.file_name().to_str().is_none_or(|name| !known.contains(name)));
    unknown.map(|entry| entry.path()).collect()
}

/// The processes in a network namespace.
fn processes_in(netns: &Path) -> Vec<u32> {
    let Ok(pin) = fs::metadata(netns) else { return Vec::new() };
    let is_in = |process: &PathBuf| {
        let own = fs::metadata(process.join("ns/net"));
        own.is_ok_and(|own| (own.dev(), own.ino()) == (pin.dev(), pin.ino()))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let numbered = all.filter(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.parse::<u32>().is_ok())
    });
    numbered.filter(is_in).filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_knows_are_unknown() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["web", "db"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let known = BTreeSet::from(["web".to_owned()]);
        assert_eq!(unknown(directory.path(), &known), [directory.path().join("db")]);
        assert_eq!(unknown(&directory.path().join("none"), &known), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_processes_of_a_namespace_are_found() {
        let found = processes_in(Path::new("/proc/self/ns/net"));
        assert!(found.contains(&std::process::id()), "{found:?}");
        assert_eq!(processes_in(Path::new("/nowhere")), [0_u32; 0]);
        assert_eq!(named(&[1; 9]), "1 1 1 1 1 1 1 1");
    }
}
