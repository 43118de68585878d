//! What is on this host and in no row of the state: the data directory is older than the host,
//! because a snapshot was put back or the directory was lost.
//!
//! It is removed when the agent starts, with a line in the log. Listing it instead would need what
//! only the lost rows said: whose it is, under which name and for how long. Left alone, it would
//! speak with addresses that this node gives away again. Processes are not ended: nobody here
//! started them. They go on without a network, and the log names them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tracing::{debug, warn};
use vxmesh_proto::addr::{EndpointId, NetworkId};

use super::{hosting::Hosted, mesh::Mesh};
use crate::{
    api::ApiError,
    netlink::{macvlan, netns::Netns, overlay::Overlay},
};

/// Processes that the log names for one sandbox.
const NAMED: usize = 8;

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
                let (network, endpoint) = (self.network_name(*network), endpoint.short());
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
            let processes = processes_in(&path);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
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
}

/// Files of a directory whose names are not among these.
fn unknown(directory: &Path, known: &BTreeSet<String>) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let unknown =
        entries.filter(|entry| entry.file_name().to_str().is_none_or(|name| !known.contains(name)));
    unknown.map(|entry| entry.path()).collect()
}

/// The processes in a network namespace, for people to read.
fn processes_in(netns: &Path) -> String {
    let Ok(pin) = fs::metadata(netns) else { return String::new() };
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
    let ids: Vec<String> = numbered
        .filter(is_in)
        .take(NAMED)
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    ids.join(" ")
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
        let own = std::process::id().to_string();
        let found = processes_in(Path::new("/proc/self/ns/net"));
        let count = found.split(' ').count();
        assert!(found.split(' ').any(|id| id == own) || count == NAMED, "{found}");
        assert_eq!(processes_in(Path::new("/nowhere")), "");
    }
}
