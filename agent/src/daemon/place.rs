//! Where this node is, and where to look for others when nobody is where they were.
//!
//! ```text
//! this host has other addresses  -> the claim is told again; connections and sessions begin anew from there
//! a member is not connected      -> the servers of the key `peers`, and what was named to join, are resolved and met:
//!                                   whoever of the mesh answers tells where it is now, and where it knows others to be
//! ```

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};
use vxmesh_gossip::membership::Gossip;
use vxmesh_proto::record::Claim;

use super::{
    doctor::check,
    mesh::{Mesh, own_addresses},
};
use crate::{
    api::{ApiError, Diagnosis, ErrorCode, Health},
    control::{Control, join},
    netlink,
};

/// How often the servers of the configuration are looked up while somebody is missing.
const SEEK_EVERY: Duration = Duration::from_secs(5);

/// How long after it was heard last `doctor` tells of an agent that speaks as this node.
const TWIN_TOLD: Duration = Duration::from_secs(600);

/// A copy that was not heard for this long has ended, or was overruled.
const TWIN_SILENT: Duration = Duration::from_secs(2);

impl Mesh {
    /// Tells the others where this node is, if that changed; whether it did.
    pub(super) fn follow_host(&self, gossip: &Gossip) -> bool {
        let addrs = own_addresses(&self.config);
        if addrs == *self.member.location.own() || addrs.is_empty() {
            return false;
        }
        info!(?addrs, "this host has other addresses");
        self.member.location.set_own(addrs);
        match gossip.publish(&Claim::Node(self.node_claim())) {
            Ok(record) => self.member.spread(&record),
            Err(error) => warn!(%error, "the new addresses are not told"),
        }
        true
    }

    /// Speaks with everybody from where this node is now. What they send to its old address is
    /// lost, the old connections too.
    pub(super) async fn show_place(&self) {
        if let Some(control) = self.member.control.get() {
            control.redial();
        }
        self.host.plane.show_place().await;
    }

    /// Begins sessions anew once a copy of this node has fallen silent: others have keys with the
    /// copy.
    pub(super) async fn overrule(&self, gossip: &Gossip, overruled: &mut Option<Instant>) {
        let silent = |at: &Instant| at.elapsed() >= TWIN_SILENT && Some(*at) != *overruled;
        if let Some(heard) = gossip.later_life().filter(silent) {
            *overruled = Some(heard);
            self.host.plane.show_place().await;
        }
    }

    /// Looks for members where the user said that some are, while one is missing.
    pub(super) fn seek_soon(self: &Arc<Self>) {
        let missing =
            |control: &Control| control.peers().iter().any(|peer| peer.wanted && !peer.connected);
        let servers = self.config.peers.iter().chain(&self.credentials.membership.servers);
        let servers: Vec<String> = servers.cloned().collect();
        if servers.is_empty() || !self.member.control.get().is_some_and(missing) {
            return;
        }
        if !self.member.location.begin_to_seek() {
            return;
        }
        let mesh = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = mesh.meet(&servers).await {
                debug!(%error, "no member is at the servers that are known");
            }
            tokio::time::sleep(SEEK_EVERY).await;
            mesh.member.location.end_to_seek();
        });
    }

    /// Connects with the members at these servers, `HOST[:PORT]`, whoever they are.
    ///
    /// # Errors
    /// No member of this mesh is there.
    pub(super) async fn meet(&self, servers: &[String]) -> Result<(), ApiError> {
        let Some(control) = self.member.control.get() else { return Ok(()) };
        let looked_up = servers.iter().map(|server| async move {
            join::resolve(server).await.map_err(|error| error.to_string())
        });
        let looked_up = futures_util::future::join_all(looked_up).await;
        let mut faults: Vec<String> = looked_up.iter().filter_map(|it| it.clone().err()).collect();
        let addrs: BTreeSet<SocketAddr> = looked_up.into_iter().flatten().flatten().collect();
        let own = self.member.location.own();
        let met =
            addrs.into_iter().filter(|addr| !own.contains(&addr.ip())).map(|addr| async move {
                control.meet(addr).await.map_err(|reason| format!("{addr}: {reason}"))
            });
        let mut found = 0;
        for met in futures_util::future::join_all(met).await {
            match met {
                Ok(node) => {
                    debug!(%node, "met a member");
                    found += 1;
                }
                Err(fault) => faults.push(fault),
            }
        }
        if found > 0 {
            return Ok(());
        }
        let hint = "name a host where an agent of this mesh runs now; to join another mesh, `vxmesh leave` first";
        let found = format!("no member of this mesh was found ({})", faults.join("; "));
        Err(ApiError::new(ErrorCode::Failed, found, hint))
    }

    /// Whether others can reach this node where it says it is.
    pub(super) fn place_diagnoses(&self) -> Vec<Diagnosis> {
        let mut all: Vec<Diagnosis> = self.twin_diagnosis().into_iter().collect();
        let addrs = self.member.location.own();
        if addrs.is_empty() {
            let hint = "give one with --advertise";
            all.push(check("addresses", Health::Fail, "none that others can reach", hint));
            return all;
        }
        let shown: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        all.push(check("addresses", Health::Ok, shown.join(", "), ""));
        let here = netlink::all_addresses();
        let elsewhere = self.config.advertise.iter().filter(|ip| !here.contains(ip));
        all.extend(elsewhere.map(|ip| {
            check(
                "addresses",
                Health::Warn,
                format!("{ip} is advertised, and no interface of this host has it"),
                "right behind a translation that keeps ports; else change `advertise` or --advertise and restart the agent",
            )
        }));
        all
    }

    /// Another agent that was lately heard to speak as this node.
    fn twin_diagnosis(&self) -> Option<Diagnosis> {
        let heard = self.member.gossip.get()?.later_life()?.elapsed();
        (heard < TWIN_TOLD).then(|| {
            check(
                "identity",
                Health::Fail,
                format!("another agent spoke as this node {} s ago", heard.as_secs()),
                "a copy of this node's data directory was started: stop that agent and remove the copy; \
                 each host joins by itself",
            )
        })
    }
}
