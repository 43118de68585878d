//! What a namespace had when the agent took it over: [`Look`]. A step of [`Links`] that would write
//! what is so already writes nothing as long as there is one.
//!
//! ```text
//! look      : all that is there, in a few dumps
//! a step    : as it is to be -> nothing; else it is written, and the look with all it said is gone
//! look away : at the end of the take-over, from when on every step asks the kernel again
//! ```
//!
//! What a look does not have is asked of the kernel: it may have come since.

use std::{collections::BTreeMap, net::IpAddr, sync::PoisonError};

use ipnet::IpNet;
use rtnetlink::packet_route::neighbour::NeighbourState;
use vxmesh_proto::addr::MacAddr;

use super::{
    link::{Link, LinkError, Links},
    overlay::SWITCHED_SETTINGS,
    route::Route,
    whole::{State, fdb},
};

/// What was found.
#[derive(Debug)]
pub(super) struct Look {
    state: State,
    /// The entries of bridges' tables.
    fdb: Vec<(u32, MacAddr, NeighbourState)>,
    /// Settings by their paths.
    settings: BTreeMap<String, String>,
}

impl Look {
    /// An interface.
    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.state.link(name)
    }

    /// Whether all this is true of an interface.
    pub(super) fn is(&self, name: &str, so: impl FnOnce(&Link) -> bool) -> bool {
        self.link(name).is_some_and(so)
    }

    /// Whether it is a port of the bridge.
    pub(super) fn is_port_of(&self, name: &str, bridge: &str) -> bool {
        let bridge = self.link(bridge).map(|bridge| bridge.index);
        self.is(name, |link| link.master.is_some() && link.master == bridge)
    }

    /// Whether a bridge has this entry in its table.
    pub(super) fn has_entry(&self, name: &str, mac: MacAddr, state: NeighbourState) -> bool {
        self.is(name, |link| self.fdb.contains(&(link.index, mac, state)))
    }

    /// Whether an interface has an address for good.
    pub(super) fn has_address(&self, name: &str, address: &IpNet) -> bool {
        self.is(name, |link| self.state.has_lasting_address(link, address))
    }

    /// The addresses of an interface.
    pub(super) fn addresses(&self, name: &str) -> Option<Vec<IpNet>> {
        let link = self.link(name)?;
        Some(self.state.addresses_of(link).collect())
    }

    /// Whether an interface has these addresses and no others but link-local ones.
    pub(super) fn has_just(&self, name: &str, wanted: &[IpNet]) -> bool {
        let kernels =
            |ip: &IpNet| matches!(ip.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        let is_wanted = |ip: &IpNet| kernels(ip) || wanted.contains(ip);
        wanted.iter().all(|ip| self.has_address(name, ip))
            && self.addresses(name).is_some_and(|found| found.iter().all(is_wanted))
    }

    /// Whether there is this route of ours: by which router, and with which source.
    pub(super) fn has_route(
        &self,
        destination: IpNet,
        (router, source): (Option<IpAddr>, Option<IpAddr>),
        name: &str,
    ) -> bool {
        self.is(name, |link| {
            let wanted = (destination, Some(link.index), router, source, true);
            let is_it = |it: &Route| {
                (it.destination, it.interface, it.router, it.source, it.ours) == wanted
                    && it.has_usual_metric()
            };
            self.state.routes.iter().any(is_it)
        })
    }

    /// Whether there is a route to here, whoever made it.
    pub(super) fn leads_to(&self, to: IpNet) -> bool {
        self.state.routes.iter().any(|route| route.destination == to)
    }

    /// Whether there is a default route of an IP version, of whatever metric.
    pub(super) fn leads_on(&self, ipv4: bool) -> bool {
        self.state.leads_on(ipv4)
    }

    /// Whether the settings are these.
    pub(super) fn has_settings<'a>(
        &self,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> bool {
        settings
            .into_iter()
            .all(|(path, value)| self.settings.get(path).is_some_and(|is| is == value))
    }

    /// Whether no frame that is switched comes to rules for packets.
    pub(super) fn shows_packets_no_frames(&self) -> bool {
        let is = |path| self.settings.get(path).map(String::as_str);
        SWITCHED_SETTINGS.into_iter().all(|(path, value)| is(path).is_none_or(|is| is == value))
    }
}

impl Links {
    /// Has what is there now stand for what the kernel would say, until some of it is written or
    /// [`look_away`](Self::look_away). These are settings that were read there.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(crate) async fn look(&self, settings: BTreeMap<String, String>) -> Result<(), LinkError> {
        let state = State::of(self).await?;
        self.keep(Look { state, fdb: Vec::new(), settings });
        Ok(())
    }

    /// The same, and what is in the tables of bridges.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(super) async fn look_at_bridge(
        &self,
        settings: BTreeMap<String, String>,
    ) -> Result<(), LinkError> {
        let (fdb, state) = (fdb(self).await?, State::of(self).await?);
        self.keep(Look { state, fdb, settings });
        Ok(())
    }

    /// Every interface, or those that were seen.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(super) async fn known(&self) -> Result<Vec<Link>, LinkError> {
        match self.seen(|look| Some(look.state.links().to_vec())) {
            Some(links) => Ok(links),
            None => self.list().await,
        }
    }

    fn keep(&self, look: Look) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }

    /// From now on the kernel is asked.
    pub(crate) fn look_away(&self) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Asks the kernel about an interface of this name, which comes anew.
    pub(super) fn overlook(&self, name: &str) {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = look.as_mut() {
            look.state.overlook(name);
        }
    }

    /// Whether there is a look, and this is true of it.
    pub(super) fn sees(&self, so: impl FnOnce(&Look) -> bool) -> bool {
        self.seen(|look| so(look).then_some(())).is_some()
    }

    /// Something of the look, if there is one.
    pub(super) fn seen<T>(&self, what: impl FnOnce(&Look) -> Option<T>) -> Option<T> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(what)
    }

    /// Whether the settings of the namespace were found to be these.
    pub(crate) fn sees_settings(&self, settings: &[(String, &str)]) -> bool {
        let settings = settings.iter().map(|(path, value)| (path.as_str(), *value));
        self.sees(|look| look.has_settings(settings))
    }
}
