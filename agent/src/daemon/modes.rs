//! Sandboxes without networks of their own: whose namespace they get, and what of it stays with
//! them.
//!
//! Each has its own pin of the namespace that it shares, so the namespace outlives its owner for as
//! long as somebody shares it; the owner's endpoints and name server do not.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::Name;

use super::mesh::{Mesh, store_failed};
use crate::{
    api::{ApiError, ErrorCode, Mode, SandboxSpec},
    docker,
    netlink::{link::Links, netns::Netns, overlay::OverlayError},
    store::Table,
};

/// The namespace of the thread that asks.
const HERE: &str = "/proc/thread-self/ns/net";

/// Whose namespace a sandbox has, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shared {
    pub(super) mode: Mode,
    /// The owner's files for /etc.
    pub(super) etc: Option<PathBuf>,
    /// The owner's hostname; the host's otherwise.
    #[serde(default)]
    pub(super) hostname: Option<String>,
}

/// Where a sandbox's namespace comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// It is made.
    New,
    /// It is made, and its loopback interface works.
    Loopback,
    /// It is there.
    Of(PathBuf),
}

impl Source {
    /// Pins the namespace at a path.
    pub(super) async fn pin(&self, path: &Path) -> Result<(), ApiError> {
        match self {
            Self::New => {
                let netns = Netns::create(path).map_err(OverlayError::from)?;
                // A new namespace takes after the host, which may forward; a sandbox between two
                // networks is no way from one to the other.
                for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                    netns.sysctl(setting, "0").map_err(OverlayError::from)?;
                }
            }
            Self::Loopback => {
                let netns = Netns::create(path).map_err(OverlayError::from)?;
                let links = Links::open(&netns).map_err(OverlayError::from)?;
                links.bring_up("lo").await.map_err(OverlayError::from)?;
            }
            Self::Of(from) => Netns::share(from, path).map(drop).map_err(OverlayError::from)?,
        }
        Ok(())
    }
}

/// Refuses what is said of endpoints that there will not be.
pub(super) fn check_mode(spec: &SandboxSpec) -> Result<(), ApiError> {
    let Some(mode) = &spec.mode else { return Ok(()) };
    let own_files = *mode == Mode::None;
    let own_hostname = own_files || *mode == Mode::Host;
    let refused = [
        (!spec.networks.is_empty(), "other networks"),
        (!spec.publish.is_empty(), "--publish"),
        (!spec.dns.is_empty(), "--dns"),
        (!own_files && !spec.hosts.is_empty(), "--add-host"),
        (!own_hostname && spec.hostname.is_some(), "--hostname"),
    ];
    let Some((_, what)) = refused.into_iter().find(|(given, _)| *given) else { return Ok(()) };
    Err(ApiError::new(
        ErrorCode::Usage,
        format!("`--network {mode}` cannot be combined with {what}"),
        "leave one of them out",
    ))
}

impl Mesh {
    /// Where the namespace of a mode is. Nothing is changed.
    pub(super) async fn namespace_of(&self, mode: &Mode) -> Result<(Shared, Source), ApiError> {
        let mode = mode.clone();
        Ok(match &mode {
            Mode::None => (Shared { mode, etc: None, hostname: None }, Source::Loopback),
            Mode::Host => (Shared { mode, etc: None, hostname: None }, Source::Of(HERE.into())),
            Mode::Sandbox(name) => {
                let owner = self.owner(name)?;
                let hostname = owner.hostname().map(ToOwned::to_owned);
                let source = Source::Of(owner.netns().to_owned());
                (Shared { etc: owner.etc(&self.run_dir()), hostname, mode }, source)
            }
            Mode::Container(name) => {
                let container = docker::container(name).await?;
                let (etc, hostname) = (container.etc, container.hostname);
                (Shared { mode, etc, hostname }, Source::Of(container.netns))
            }
        })
    }

    fn owner(&self, name: &Name) -> Result<super::sandboxes::Stored, ApiError> {
        let owner: Option<super::sandboxes::Stored> =
            self.store.get(Table::Sandboxes, name.as_str()).map_err(store_failed)?;
        owner.ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("there is no sandbox `{name}` on this node"),
                "see `vxmesh sandbox ls`, here and on the other nodes",
            )
        })
    }
}
