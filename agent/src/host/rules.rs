//! Rules of the firewall as they are kept, on the host and inside each network: written where they
//! differ, and flows that rules of before began are forgotten.
//!
//! The kernel numbers its rulesets, one count for each namespace, and every change of anybody
//! raises it. Only where it differs from when all was last found in place is anything looked at.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use tracing::{debug, info, warn};
use vxmesh_proto::addr::{MacAddr, NodeId};

use crate::{
    datapath::drops::{DropKey, Drops},
    firewall::{
        FirewallError,
        counted::Counted,
        flows,
        foreign::{self, ForeignChain},
        host,
        table::{self, Table},
    },
    gateway::{sysctl, uplink},
    netlink::overlay::Overlay,
};

/// A table that is kept in the kernel.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// What it is meant to be, and the number of the kernel's ruleset when it last was found so.
    known: Option<(Arc<Table>, u32)>,
    /// How often somebody else had changed it.
    repairs: u64,
}

impl Kept {
    /// Puts the table in place of what is there, where that differs, and says whether its counters
    /// begin anew. `forget` is done after new rules, `others` after every change of anybody; all is
    /// done again until it succeeds.
    pub(crate) fn keep(
        &mut self,
        wanted: Arc<Table>,
        forget: impl FnOnce() -> Result<usize, FirewallError>,
        others: impl FnOnce() -> Result<(), FirewallError>,
    ) -> Result<bool, FirewallError> {
        // Asked for first: a change from here on is seen the next time, also our own.
        let generation = table::generation()?;
        let known = self.known.take_if(|(table, at)| *at != generation || *table != wanted);
        if self.known.is_some() {
            return Ok(false);
        }
        let written = !wanted.is_in_place()?;
        let mut new_counters = false;
        if written {
            new_counters = wanted.replace()?;
            if known.as_ref().is_some_and(|(table, _)| *table == wanted) {
                self.repairs += 1;
                info!("somebody changed the table inet vxmesh; it is as before");
            }
        }
        if written || known.is_none() {
            match forget() {
                Ok(_count) => {}
                Err(error) => warn!(%error, "flows that began before go on as they did"),
            }
        }
        others()?;
        self.known = Some((wanted, generation));
        Ok(new_counters)
    }

    /// How often somebody else had changed it.
    pub(crate) const fn repairs(&self) -> u64 {
        self.repairs
    }
}

/// The host's own table. It is kept also while somebody else changes the host, and so is no part
/// of what is locked then.
#[derive(Debug, Default)]
pub(crate) struct OnHost {
    pub(crate) kept: Kept,
    /// What it shall be.
    pub(crate) rules: Option<HostRules>,
    /// Chains of others that have rules of ours.
    pub(crate) admitted: Vec<ForeignChain>,
    /// What it counted, while it is there.
    pub(crate) counted: Option<Counted>,
    /// Why it was not put back.
    pub(crate) fault: Option<String>,
}

impl OnHost {
    /// Puts it in place, where there is one to be. Flows of this node that it leads elsewhere are
    /// forgotten.
    pub(crate) fn keep(&mut self, node: NodeId) -> Result<(), FirewallError> {
        let Some(HostRules { ports, table, .. }) = &self.rules else { return Ok(()) };
        let forget = || forget_on_host(node, ports);
        let admit = || {
            self.admitted = foreign::admit(uplink::ALL)?;
            Ok(())
        };
        if self.kept.keep(Arc::clone(table), forget, admit)? {
            self.counted = None;
        }
        self.counted.get_or_insert_default();
        Ok(())
    }

    /// Adds what it counted to the counters of the data path, while it is there: on a thread of the
    /// host's namespace.
    pub(crate) fn count(&mut self, drops: &Drops) {
        match self.counted.as_mut().map(Counted::more) {
            Some(Ok(dropped)) => {
                for (reason, count) in dropped {
                    if let Some(key) = DropKey::named(&reason) {
                        drops.add(key, count);
                    }
                }
            }
            Some(Err(error)) => {
                debug!(%error, "the counters of the host's rules cannot be read");
            }
            None => {}
        }
    }
}

/// What the host's table is made of. The store and the objects say what is published, and where it
/// leads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MadeOf {
    /// How often something had been written to the store.
    pub(crate) writes: u64,
    /// The hash of the objects.
    pub(crate) objects: String,
    /// How often ports that lead to services changed.
    pub(crate) host_ports: u64,
    pub(crate) uplinks: Vec<host::Uplink>,
    pub(crate) closed: host::Closed,
}

/// The host's table as it shall be.
#[derive(Debug)]
pub(crate) struct HostRules {
    pub(crate) made_of: MadeOf,
    pub(crate) ports: Vec<host::Port>,
    pub(crate) table: Arc<Table>,
}

impl HostRules {
    /// That with these published ports.
    pub(crate) fn of(made_of: MadeOf, ports: Vec<host::Port>) -> Self {
        let MadeOf { uplinks, closed, .. } = &made_of;
        let table = Arc::new(host::table(uplink::ALL, uplinks, &ports, closed));
        Self { made_of, ports, table }
    }
}

/// Has the kernel forget the host's flows that go elsewhere by now.
pub(crate) fn forget_on_host(node: NodeId, ports: &[host::Port]) -> Result<usize, FirewallError> {
    let own = addresses();
    let is_local = |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
    let is_uplink = |ip| uplink::is_inside(node, ip);
    flows::forget(|flow| host::is_stale(flow, is_uplink, is_local, ports))
}

/// Addresses on which something is published and that the host does not have now.
pub(crate) fn away(ports: &[host::Port]) -> BTreeSet<IpAddr> {
    let mut published: BTreeSet<IpAddr> = ports.iter().filter_map(host::Port::own).collect();
    published.retain(|ip| !ip.is_loopback());
    if !published.is_empty() {
        let own = addresses();
        published.retain(|ip| !own.contains(ip));
    }
    published
}

/// The host's addresses; none if it does not tell.
fn addresses() -> Vec<IpAddr> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    getifaddrs().into_iter().flatten().filter_map(address).collect()
}

/// What stays closed, of what was noted before the host forwarded.
pub(crate) fn closed(noted: &sysctl::Found) -> host::Closed {
    let open = |ipv4| noted.is_closed(ipv4).then(|| noted.open(ipv4));
    let own = bridges_ask().then(own_macs);
    host::Closed { ipv4: open(true), ipv6: open(false), own }
}

/// Whether frames that a bridge switches come to rules for packets.
fn bridges_ask() -> bool {
    ["iptables", "ip6tables"].iter().any(|family| {
        let asked =
            std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"));
        asked.is_ok_and(|value| value.trim() == "1")
    })
}

/// The MACs by which others call this host; uplinks are nobody's neighbours.
fn own_macs() -> BTreeSet<MacAddr> {
    let mac = |interface: nix::ifaddrs::InterfaceAddress| {
        let mac = interface.address?.as_link_addr()?.addr()?;
        let others = !uplink::is_uplink(&interface.interface_name) && mac != [0; 6];
        others.then_some(MacAddr(mac))
    };
    getifaddrs().into_iter().flatten().filter_map(mac).collect()
}

/// Has the kernel forget the flows of addresses that nobody has any more.
pub(crate) fn forget_addresses(overlay: &Overlay, ips: &[IpNet]) {
    let gone = |flow: &flows::Flow| ips.iter().any(|ip| flow.touches(ip.addr()));
    match overlay.netns().run(|| Ok(flows::forget(gone))) {
        Ok(Ok(_count)) => {}
        Ok(Err(error)) => {
            warn!(%error, "what is still on its way may reach the addresses' next owner");
        }
        // The namespace has gone with all it knew.
        Err(_gone) => {}
    }
}
