//! What happens on this host to what the agent made, learned as it happens.
//!
//! ```text
//! netlink, mounts, ends of processes ──> Dirty: what may be different ──> look: what is (`mend`, `vanished`)
//! ```
//!
//! Events only say where to look; what is found there decides. So events of the agent's own changes
//! cost a look and cause no change, and one that was lost costs time, never the truth: all is
//! looked at when the kernel says that it lost some, and once a minute where it tells nothing at
//! all. What it tells nobody is looked at by the clock ([`Turn`]): some settings and what rules
//! counted, before somebody flushes these.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, mem,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use nix::errno::Errno;
use tokio::sync::Notify;
use tracing::{debug, warn};
use vxmesh_proto::addr::{EndpointId, MacAddr, Name, NetworkId};

use crate::{
    lock::lock,
    netlink::{
        overlay::{Plug, port_name},
        watch::{Change, Event, Heard, Mounts, Watch},
    },
};

/// How often settings are looked at that change without a word, and what failed is tried again.
pub(crate) const SETTINGS: Duration = Duration::from_secs(5);
/// A minute of these: where the kernel tells nothing, all is looked at after it, else the settings
/// inside of every network.
const MINUTE: usize = 12;
/// After so many minutes each network was looked at whole, so that a change that was misunderstood
/// does not stay.
const ROUND: usize = 10;
/// Routes that are looked at one by one; more are all.
const ROUTES: usize = 256;

/// Why an endpoint is gone whose interface is not where it was.
pub(crate) const INTERFACE_AWAY: &str = "its interface was deleted or moved away";

/// An endpoint that is plugged in here.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its port in the network's namespace.
    pub(crate) port: String,
    pub(crate) mac: MacAddr,
    pub(crate) netns: PathBuf,
    /// Which namespace that was.
    pub(crate) identity: (u64, u64),
    /// Its number.
    pub(crate) number: Option<i32>,
    /// Whether the end of the process that it is named after is waited for.
    pub(crate) process: bool,
    /// Whether it is known how to hear of it.
    pub(crate) heard: bool,
}

impl Place {
    /// That of an endpoint as it is now. The namespace has no identity where there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn of(plug: &Plug) -> io::Result<Self> {
        let netns = plug.netns.clone().unwrap_or_default();
        let identity = match fs::metadata(&netns) {
            Ok(now) => (now.dev(), now.ino()),
            Err(error) if is_gone(&error) => (0, 0),
            Err(error) => return Err(error),
        };
        let (port, mac) = (port_name(plug.id), plug.mac);
        Ok(Self { port, mac, netns, identity, number: None, process: false, heard: false })
    }
}

/// Whether an error says that there is nothing. `ESRCH` is what /proc says of a process that just
/// ended.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ESRCH].map(|errno| errno as i32);
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

/// Where events come from.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Networks' namespaces by number.
    pub(crate) networks: BTreeMap<i32, NetworkId>,
    pub(crate) endpoints: BTreeMap<EndpointId, Place>,
    /// The host's ends of uplinks.
    pub(crate) uplinks: BTreeMap<String, NetworkId>,
    /// The same by the numbers of interfaces.
    pub(crate) uplink_numbers: BTreeMap<u32, NetworkId>,
}

impl Places {
    fn knows(&self, namespace: Option<i32>) -> bool {
        namespace.is_none_or(|number| {
            self.networks.contains_key(&number)
                || self.endpoints.values().any(|place| place.number == Some(number))
        })
    }
}

/// Whose turn it is to be looked at by the clock. Networks take turns, so that many cost no more at
/// a time than a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn(usize);

impl Turn {
    /// Whether the settings inside of the network at this place, and what its rules counted, are
    /// looked at.
    pub(crate) fn is_for_settings(self, place: usize) -> bool {
        self.0 % MINUTE == place % MINUTE
    }

    /// Whether the network at this place is looked at whole.
    pub(crate) fn is_for_all(self, place: usize) -> bool {
        self.0.is_multiple_of(MINUTE) && self.0 / MINUTE % ROUND == place % ROUND
    }
}

/// What may be different from what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// Everything.
    pub(crate) all: bool,
    /// The host's rules and settings.
    pub(crate) host: bool,
    /// What the kernel tells nobody: settings of the host's ends of uplinks, and of the networks
    /// whose turn it is. What failed before, too.
    pub(crate) turn: Option<Turn>,
    /// This host's addresses.
    pub(crate) moved: bool,
    /// This machine goes on from an image of its memory.
    pub(crate) restored: bool,
    /// Links of the host upon which there may be interfaces of endpoints.
    pub(crate) parents: bool,
    /// Links of the host that went, whether they are back or not.
    pub(crate) lost: BTreeSet<String>,
    /// Namespaces that endpoints are plugged into.
    pub(crate) endpoints: bool,
    /// Subnets of networks.
    pub(crate) subnets: bool,
    /// The pins of networks' namespaces.
    pub(crate) pins: bool,
    pub(crate) networks: BTreeSet<NetworkId>,
    /// Rules in networks' namespaces.
    pub(crate) rules: BTreeSet<NetworkId>,
    /// Routes of the host.
    pub(crate) routes: Vec<IpNet>,
    /// Ports whose links are different.
    pub(crate) ports: BTreeSet<String>,
    /// Endpoints whose cable ended here, and not in the sandbox.
    pub(crate) cut: BTreeSet<EndpointId>,
    /// Endpoints of which the kernel said that they are gone, and how.
    pub(crate) gone: BTreeMap<EndpointId, &'static str>,
    /// Endpoints whose cable was away at the look before, when nobody had said yet at which end it
    /// was cut.
    pub(crate) awaited: BTreeSet<EndpointId>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it is about more than what networks and the host are looked at for by themselves.
    pub(crate) fn is_about_places(&self) -> bool {
        self.all
            || self.endpoints
            || self.parents
            || self.subnets
            || !self.networks.is_empty()
            || !self.ports.is_empty()
            || !self.gone.is_empty()
    }

    /// Takes an event in; the order of events tells at which end a cable was cut.
    fn note(&mut self, places: &Places, event: Event) {
        let Some(number) = event.namespace else { return self.note_host(places, event.change) };
        if let Some(network) = places.networks.get(&number) {
            match &event.change {
                Change::Rules => {
                    self.rules.insert(*network);
                    return;
                }
                Change::Link(name) => {
                    self.ports.insert(name.clone());
                }
                Change::LinkGone { name, .. } => {
                    self.ports.insert(name.clone());
                    let of_port = places.endpoints.iter().find(|(_, place)| place.port == *name);
                    self.cut.extend(
                        of_port.map(|(id, _)| *id).filter(|id| !self.gone.contains_key(id)),
                    );
                }
                _ => {}
            }
            self.networks.insert(*network);
            return;
        }
        let in_it = places.endpoints.iter().filter(|(_, place)| place.number == Some(number));
        match event.change {
            Change::Link(_) => self.ports.extend(in_it.map(|(_, place)| place.port.clone())),
            Change::LinkGone { mac, .. } => {
                for (id, place) in in_it {
                    self.ports.insert(place.port.clone());
                    if mac == Some(place.mac) && !self.cut.contains(id) {
                        self.gone.insert(*id, INTERFACE_AWAY);
                    }
                }
            }
            _ => {}
        }
    }

    fn note_host(&mut self, places: &Places, change: Change) {
        let is_gone = matches!(change, Change::LinkGone { .. });
        match change {
            Change::Route(to) if self.routes.len() < ROUTES => self.routes.push(to),
            Change::Route(_) => self.all = true,
            Change::Address(index) => {
                (self.host, self.moved) = (true, true);
                self.networks.extend(places.uplink_numbers.get(&index));
            }
            Change::Link(name) | Change::LinkGone { name, .. } => {
                // Interfaces of endpoints may be upon it.
                (self.host, self.parents, self.moved) = (true, true, true);
                self.networks.extend(places.uplinks.get(&name));
                if is_gone && self.lost.len() < ROUTES {
                    self.lost.insert(name);
                }
            }
            Change::Setting(of) => {
                self.host = true;
                let uplink = of.and_then(|index| places.uplink_numbers.get(&index));
                self.networks.extend(uplink);
            }
            Change::Rules => self.host = true,
            Change::BridgeFilter => {
                self.host = true;
                self.networks.extend(places.networks.values());
            }
            Change::Restored => self.restored = true,
            Change::NamespaceGone(number) => {
                let in_it = places.endpoints.iter();
                let in_it = in_it.filter(|(_, place)| place.number == Some(number));
                self.gone.extend(in_it.map(|(id, _)| (*id, "its namespace is gone")));
            }
            Change::Fdb | Change::PolicyRules => {}
        }
    }
}

/// What hears of changes.
#[derive(Debug)]
pub(crate) struct Ears {
    watch: Watch,
    mounts: Mounts,
}

/// The watcher's state.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    pub(crate) dirty: Mutex<Dirty>,
    /// Whether the kernel tells what happens.
    hears: AtomicBool,
    /// Whether this host may have other addresses.
    moved: AtomicBool,
    pub(crate) wake: Notify,
    pub(crate) places: Mutex<Places>,
    /// Tasks that wait for the ends of processes.
    pub(crate) processes: Mutex<BTreeMap<EndpointId, tokio::task::AbortHandle>>,
    /// What was put back of a network, and what could not be.
    pub(crate) mended: Mutex<BTreeMap<NetworkId, Mended>>,
}

/// How it is with the links of a network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mended {
    pub(crate) times: u64,
    pub(crate) fault: Option<String>,
    /// What was put back last.
    pub(crate) last: String,
    /// Whether it is that of an endpoint's cable alone.
    pub(crate) is_of_endpoint: bool,
    /// Whether the log has the fault.
    pub(crate) told: bool,
}

impl Watching {
    /// Has something looked at soon.
    pub(crate) fn mark(&self, edit: impl FnOnce(&mut Dirty)) {
        edit(&mut lock(&self.dirty));
        self.wake.notify_one();
    }

    /// Takes what may be different; it is looked at by whoever takes it.
    pub(crate) fn take(&self) -> Dirty {
        mem::take(&mut *lock(&self.dirty))
    }

    /// Notes that it is time to look at what the kernel tells nobody: the `ticks`th of
    /// [`SETTINGS`].
    pub(crate) fn tick(&self, ticks: usize) {
        let mut dirty = lock(&self.dirty);
        dirty.turn = Some(Turn(ticks));
        dirty.host = true;
        dirty.all |= self.is_deaf() && ticks.is_multiple_of(MINUTE);
    }

    /// Waits for the ends of processes no more.
    pub(crate) fn stop(&self) {
        for (_, task) in mem::take(&mut *lock(&self.processes)) {
            task.abort();
        }
    }

    /// Whether the kernel tells nothing of what happens.
    pub(crate) fn is_deaf(&self) -> bool {
        !self.hears.load(Ordering::Relaxed)
    }

    /// Whether this host may have other addresses since this was asked last.
    pub(crate) fn take_moved(&self) -> bool {
        self.moved.swap(false, Ordering::AcqRel) || self.is_deaf()
    }

    /// Notes that this host may have other addresses.
    pub(crate) fn note_moved(&self) {
        self.moved.store(true, Ordering::Release);
    }

    /// Whether the rules of all networks are to be looked at, else those of which.
    pub(crate) fn rules(&self) -> (bool, BTreeSet<NetworkId>) {
        let dirty = lock(&self.dirty);
        (dirty.all, dirty.rules.clone())
    }

    /// Notes where an endpoint that came, goes or is different is plugged in.
    pub(crate) fn place(&self, name: &Name, plug: &Plug, is_attached: bool) {
        match Place::of(plug) {
            Ok(place) if is_attached => {
                lock(&self.places).endpoints.entry(plug.id).or_insert(place);
            }
            Ok(_) => {
                lock(&self.places).endpoints.remove(&plug.id);
            }
            Err(error) => debug!(endpoint = %name, %error, "its namespace cannot be looked at"),
        }
        self.mark(|dirty| {
            dirty.ports.insert(port_name(plug.id));
        });
    }

    /// Listens no more to the namespace of a network, which goes. One that is made for the network
    /// again, before anybody looks, has another number and is to be listened to anew.
    pub(crate) fn forget(&self, network: NetworkId) {
        lock(&self.places).networks.retain(|_, id| *id != network);
    }

    /// Listens to what happens from now on. Needs a tokio runtime.
    pub(crate) fn listen(&self) -> Option<Ears> {
        let opened = Watch::open().and_then(|watch| Ok(Ears { watch, mounts: Mounts::open()? }));
        match opened {
            Ok(ears) => {
                self.hears.store(true, Ordering::Relaxed);
                // What happened before is looked at, too.
                self.mark(|dirty| dirty.all = true);
                Some(ears)
            }
            Err(error) => {
                warn!(%error, "the kernel does not tell of changes; they are looked for once a minute");
                None
            }
        }
    }

    /// Hears of changes as long as this is awaited.
    pub(crate) async fn hear(&self, ears: Option<Ears>) {
        let Some(Ears { watch, mounts }) = ears else { return std::future::pending().await };
        loop {
            let is_asked = |number| lock(&self.places).knows(number);
            let failed = tokio::select! {
                heard = watch.hear(is_asked) => match heard {
                    Ok(heard) => {
                        self.note(heard);
                        continue;
                    }
                    Err(error) => error,
                },
                changed = mounts.changed() => match changed {
                    Ok(()) => {
                        self.mark(|dirty| {
                            (dirty.endpoints, dirty.pins) = (true, true);
                        });
                        continue;
                    }
                    Err(error) => error,
                },
            };
            debug!(error = %failed, "an event was not heard");
            self.mark(|dirty| dirty.all = true);
            tokio::time::sleep(SETTINGS).await;
        }
    }

    fn note(&self, heard: Heard) {
        let places = lock(&self.places);
        self.mark(|dirty| match heard {
            Heard::Events(events) => {
                events.into_iter().for_each(|event| dirty.note(&places, event));
            }
            Heard::Lost => dirty.all = true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> (Places, EndpointId, NetworkId) {
        let (endpoint, network) =
            (EndpointId::from_random([1; 16]), NetworkId::from_random([2; 16]));
        let mut places = Places::default();
        places.networks.insert(7, network);
        places.uplinks.insert("vxm1".into(), network);
        places.uplink_numbers.insert(3, network);
        let place = Place {
            port: "v1".into(),
            mac: MacAddr([2; 6]),
            netns: PathBuf::new(),
            identity: (0, 0),
            number: Some(8),
            process: false,
            heard: true,
        };
        places.endpoints.insert(endpoint, place);
        (places, endpoint, network)
    }

    fn noted(places: &Places, events: &[(Option<i32>, Change)]) -> Dirty {
        let mut dirty = Dirty::default();
        for (namespace, change) in events {
            dirty.note(places, Event { namespace: *namespace, change: change.clone() });
        }
        dirty
    }

    #[test]
    fn a_cable_ended_where_it_was_cut_first() {
        let (places, endpoint, _) = places();
        let here = (Some(7), Change::LinkGone { name: "v1".into(), mac: Some(MacAddr([9; 6])) });
        let there = (Some(8), Change::LinkGone { name: "eth0".into(), mac: Some(MacAddr([2; 6])) });
        let dirty = noted(&places, &[here.clone(), there.clone()]);
        assert_eq!((dirty.cut.len(), dirty.gone.len()), (1, 0));
        let dirty = noted(&places, &[there, here]);
        assert_eq!((dirty.cut.len(), dirty.gone.contains_key(&endpoint)), (0, true));
        let dirty = noted(&places, &[(None, Change::NamespaceGone(8))]);
        assert!(dirty.gone.contains_key(&endpoint));
    }

    #[test]
    fn only_what_an_event_is_about_is_looked_at() {
        let (places, _, network) = places();
        for (namespace, change, is_network) in [
            (Some(7), Change::Fdb, true),
            (Some(7), Change::Address(1), true),
            (Some(7), Change::PolicyRules, true),
            (None, Change::PolicyRules, false),
            (Some(7), Change::Rules, false),
            (Some(8), Change::Address(1), false),
            (None, Change::Address(3), true),
            (None, Change::Setting(Some(3)), true),
            (None, Change::Setting(Some(4)), false),
            (None, Change::Setting(None), false),
            (Some(7), Change::Setting(None), true),
            (None, Change::Address(4), false),
            (None, Change::Link("vxm1".into()), true),
            (None, Change::Link("eth0".into()), false),
            (None, Change::Fdb, false),
        ] {
            let dirty = noted(&places, &[(namespace, change.clone())]);
            assert_eq!(dirty.networks.contains(&network), is_network, "{change:?}");
            assert!(!dirty.all, "{change:?}");
        }
        assert!(noted(&places, &[(None, Change::Fdb)]).is_empty());
    }

    #[test]
    fn every_network_has_its_turn_once() {
        let turns = |of: fn(Turn, usize) -> bool, place, ticks: usize| {
            (1..=ticks).filter(|tick| of(Turn(*tick), place)).count()
        };
        for place in 0..100 {
            assert_eq!(turns(Turn::is_for_settings, place, MINUTE), 1, "{place}");
            assert_eq!(turns(Turn::is_for_all, place, ROUND * MINUTE), 1, "{place}");
        }
        let at_once = |tick| (0..100).filter(|place| Turn(tick).is_for_all(*place)).count();
        assert_eq!((1..=ROUND * MINUTE).map(at_once).max(), Some(10));
    }

    #[test]
    fn a_flood_of_routes_is_bounded() {
        let (places, ..) = places();
        let route = (None, Change::Route("10.0.0.0/8".parse().unwrap()));
        let dirty = noted(&places, &vec![route; 2 * ROUTES]);
        assert_eq!((dirty.routes.len(), dirty.all), (ROUTES, true));
    }
}
