//! Frames of one network that the kernel lost on this host, at the interfaces of the network's
//! namespace ([`Losses`]). The agent sees none of them.
//!
//! ```text
//! tap0         does not give away : the agent did not read fast enough
//! v..., nodep  does not take in   : a frame is larger than the port's MTU, or too many wait (net.core.netdev_max_backlog)
//!              does not give away : the other end is down or does not take it
//! uplink0      either
//! ```
//!
//! What the bridge does not take in is left out: frames of protocols that the host does not speak.

use std::collections::BTreeMap;

use vxmesh_proto::{addr::EndpointId, reason::DropReason};

use super::{
    link::{Link, LinkError, Links},
    overlay::{NODE_PORT, Overlay, TAP},
};
use crate::gateway::uplink::INSIDE;

/// What the kernel lost, and at whose interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its counter.
    pub reason: DropReason,
    /// Whose cable it is, if it is an endpoint's.
    pub endpoint: Option<EndpointId>,
    /// How many frames.
    pub count: u64,
}

/// What the kernel counted at the interfaces of one network.
#[derive(Debug)]
pub struct Losses {
    links: Links,
    seen: BTreeMap<u32, (u64, u64)>,
}

impl Losses {
    /// From now on; what was lost before the agent came is not its matter.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn watch(overlay: &Overlay) -> Result<Self, LinkError> {
        let mut losses = Self { links: overlay.links().clone(), seen: BTreeMap::new() };
        let _before = losses.take(&overlay.links().known().await?);
        Ok(losses)
    }

    /// What was lost since the last time.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn next(&mut self) -> Result<Vec<Loss>, LinkError> {
        let links = self.links.list().await?;
        self.seen.retain(|index, _| links.iter().any(|link| link.index == *index));
        Ok(self.take(&links))
    }

    fn take(&mut self, links: &[Link]) -> Vec<Loss> {
        let mut all = Vec::new();
        // A port that is taken down belongs to an endpoint that goes.
        for link in links.iter().filter(|link| link.up) {
            let (rx, tx) = self.seen.insert(link.index, link.dropped).unwrap_or_default();
            let more = (link.dropped.0.saturating_sub(rx), link.dropped.1.saturating_sub(tx));
            let endpoint = link.alias.as_deref().and_then(|alias| alias.parse().ok());
            let both = more.0 + more.1;
            let found = match (link.name.as_str(), endpoint) {
                (TAP, _) => [Some((DropReason::TapFull, more.1)), None],
                (NODE_PORT, _) => [Some((DropReason::NodeOverrun, both)), None],
                (INSIDE, _) => [Some((DropReason::UplinkOverrun, both)), None],
                (_, Some(_)) => [
                    Some((DropReason::PortOverrun, more.0)),
                    Some((DropReason::SandboxOverrun, more.1)),
                ],
                (_, None) => continue,
            };
            let found = found.into_iter().flatten().filter(|(_, count)| *count > 0);
            all.extend(found.map(|(reason, count)| Loss { reason, endpoint, count }));
        }
        all
    }
}
