//! Networks of the driver `macvlan` on this host: their parents, and their endpoints, which have no
//! namespace of the network and no way out of their own: the router is outside.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use vxmesh_proto::{addr::NetworkId, object, record::Claim};

use super::{
    adopt::NotAdopted,
    mesh::{Mesh, conflict},
    networks::usage,
};
use crate::{
    api::{ApiError, Driver, NetworkSpec},
    host::endpoints::Stored,
    netlink::macvlan::{self, MacvlanError, Mode, Parent},
};

/// The names of the driver's options.
const PARENT: &str = "parent";
const MODE: &str = "macvlan_mode";

/// What a network of this driver has beside what all have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Macvlan {
    pub(super) parent: Parent,
    mode: Mode,
    /// Routers that the user named.
    pub(super) gateways: Vec<IpAddr>,
}

/// What an error says about an endpoint of the last life.
fn unplugged(error: MacvlanError) -> NotAdopted {
    match error {
        MacvlanError::Other(error) => error.into(),
        error => ApiError::from(error).into(),
    }
}

impl Macvlan {
    /// What the user asks for, if it is a network of this driver.
    pub(super) fn of(spec: &NetworkSpec) -> Result<Option<Self>, ApiError> {
        if spec.driver != Driver::Macvlan {
            return Ok(None);
        }
        let Some(parent) = spec.options.get(PARENT) else {
            return Err(usage(
                "driver macvlan needs a parent".to_owned(),
                "name an interface of this host with -o parent=IF, or a VLAN on it with -o parent=IF.VID",
            ));
        };
        let hint = "write -o parent=IF or -o parent=IF.VID";
        let parent = parent.parse().map_err(|why: String| usage(why, hint))?;
        let mode = spec.options.get(MODE).map(|mode| mode.parse()).transpose();
        let mode = mode.map_err(|why: String| usage(why, "the default is bridge"))?;
        let gateways = if spec.internal { Vec::new() } else { spec.gateways.clone() };
        Ok(Some(Self { parent, mode: mode.unwrap_or_default(), gateways }))
    }

    /// As the API shows it.
    pub(super) fn options(&self) -> BTreeMap<String, String> {
        let options = [(PARENT, self.parent.to_string()), (MODE, self.mode.to_string())];
        options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Refuses to share a parent where one of the two networks wants it alone.
    pub(super) fn check_beside(&self, name: &str, other: &Self) -> Result<(), ApiError> {
        if self.parent != other.parent || ![self.mode, other.mode].contains(&Mode::Passthru) {
            return Ok(());
        }
        Err(conflict(
            format!("network `{name}` has {} already", self.parent),
            "in mode passthru nobody else uses the parent: choose another, or remove that network first",
        ))
    }

    /// The MTU of the network: that of the parent, or a smaller one.
    pub(super) async fn mtu(&self, wanted: Option<u16>) -> Result<u16, ApiError> {
        let largest = u16::try_from(self.parent.look().await?.mtu).unwrap_or(u16::MAX);
        match wanted {
            Some(mtu) if mtu > largest => Err(usage(
                format!("{} carries {largest}, not {mtu}", self.parent),
                "choose a smaller --mtu, or leave it out",
            )),
            wanted => Ok(wanted.unwrap_or(largest)),
        }
    }
}

impl Mesh {
    /// What a network of this driver has, if it is one.
    pub(super) fn macvlan_of(&self, id: NetworkId) -> Option<Macvlan> {
        self.local_networks.get(id)?.macvlan
    }

    /// Plugs in an endpoint whose row is in the store.
    pub(super) async fn plug_macvlan(
        self: &Arc<Self>,
        macvlan: &Macvlan,
        network: &object::Network,
        endpoint: &mut Stored,
    ) -> Result<(), ApiError> {
        if macvlan.mode == Mode::Passthru {
            let others = self.stored_endpoints()?;
            let in_it =
                |other: &&Stored| other.network == endpoint.network && other.id != endpoint.id;
            if let Some(other) = others.iter().find(in_it) {
                return Err(conflict(
                    format!("endpoint `{}` has {} to itself", other.name, macvlan.parent),
                    "in mode passthru a network has one endpoint: detach that one first",
                ));
            }
            // The kernel gives it the parent's, whatever is asked for.
            if let Some(mac) = macvlan.parent.ensure().await?.mac {
                endpoint.mac = mac;
            }
        }
        self.announce(&Claim::Endpoint(endpoint.claim())).await?;
        let wanted = (macvlan.mode, network.mtu);
        let ifname = macvlan.parent.attach(wanted, &macvlan.gateways, &endpoint.plug()).await?;
        endpoint.set_ifname(ifname);
        self.set_attached(endpoint, true)?;
        self.register_new(None, endpoint).await;
        Ok(())
    }

    /// Takes over what the last life of the agent plugged in.
    pub(super) async fn adopt_macvlan(
        &self,
        macvlan: &Macvlan,
        network: &object::Network,
        endpoint: &Stored,
    ) -> Result<(), NotAdopted> {
        let plug = endpoint.plug();
        // The number of a process may be another's by now: then the interface tells.
        if plug.netns.as_ref().is_some_and(|netns| netns.starts_with("/proc")) {
            let there = macvlan.parent.find(&plug).await.map_err(unplugged)?;
            return there.map(drop).ok_or(NotAdopted::Gone("its sandbox is gone"));
        }
        // Without the parent the sandbox has to do without until that is back.
        let wanted = (macvlan.mode, network.mtu);
        let attached = macvlan.parent.attach(wanted, &macvlan.gateways, &plug).await;
        attached.map(drop).map_err(unplugged)
    }

    /// Parents of networks that this host lacks, for `doctor`.
    pub(super) async fn missing_parents(&self) -> Vec<(String, String)> {
        let mut missing = Vec::new();
        for (row, macvlan) in self.local_networks.macvlans() {
            let fault = match macvlan.parent.look().await {
                Err(error) => error.to_string(),
                Ok(link) if !link.up => format!("the interface {} is down", macvlan.parent),
                Ok(_) => continue,
            };
            missing.push((row.network.name.to_string(), fault));
        }
        missing
    }

    /// Removes the VLANs of networks that are gone, for the start: the last life of the agent may
    /// have ended in between.
    pub(super) async fn sweep_parents(&self) {
        let macvlans = self.local_networks.macvlans();
        let parents: Vec<Parent> = macvlans.into_iter().map(|(_, it)| it.parent).collect();
        match macvlan::sweep(&parents).await {
            Ok(swept) if swept.is_empty() => {}
            Ok(swept) => info!(links = swept.join(" "), "removed VLANs of networks that are gone"),
            Err(error) => warn!(%error, "VLANs of networks that are gone may be left"),
        }
    }

    /// Removes the VLANs that were made for networks of this host, for `leave`.
    pub(super) async fn release_parents(&self) {
        for (_, macvlan) in self.local_networks.macvlans() {
            if let Err(error) = macvlan.parent.release().await {
                warn!(parent = %macvlan.parent, %error, "the VLAN's link stays");
            }
        }
    }
}
