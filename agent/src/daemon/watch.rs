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
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use nix::errno::Errno;
use tokio::{sync::Notify, time::Instant};
use tracing::{debug, warn};
use vxmesh_proto::addr::{EndpointId, MacAddr, NetworkId};

use super::{
    endpoints::Stored,
    mesh::{Mesh, lock},
    vanished::INTERFACE_AWAY,
};
use crate::netlink::{
    overlay::port_name,
    watch::{Change, Event, Heard, Mounts, Watch},
};

/// Changes seldom come alone; what follows within this time is looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// After a look that put something back, the next one waits: another program may insist.
const PAUSE: Duration = Duration::from_millis(500);
/// How often settings are looked at that change without a word, and what failed is tried again.
const SETTINGS: Duration = Duration::from_secs(5);
/// A minute of these: where the kernel tells nothing, all is looked at after it, else the settings
/// inside of every network.
const MINUTE: usize = 12;
/// After so many minutes each network was looked at whole, so that a change that was misunderstood
/// does not stay.
const ROUND: usize = 10;
/// Routes that are looked at one by one; more are all.
const ROUTES: usize = 256;

/// An endpoint that is plugged in here.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its port in the network's namespace.
    pub(super) port: String,
    pub(super) mac: MacAddr,
    pub(super) netns: PathBuf,
    /// Which namespace that was.
    pub(super) identity: (u64, u64),
    /// Its number.
    pub(super) number: Option<i32>,
    /// Whether the end of the process that it is named after is waited for.
    pub(super) process: bool,
    /// Whether it is known how to hear of it.
    pub(super) heard: bool,
}

impl Place {
    /// That of an endpoint as it is now. The namespace has no identity where there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn of(endpoint: &Stored) -> io::Result<Self> {
        let netns = endpoint.plug().netns;
        let identity = match fs::metadata(&netns) {
            Ok(now) => (now.dev(), now.ino()),
            Err(error) if is_gone(&error) => (0, 0),
            Err(error) => return Err(error),
        };
        let (port, mac) = (port_name(endpoint.id), endpoint.mac);
        Ok(Self { port, mac, netns, identity, number: None, process: false, heard: false })
    }
}

/// Whether an error says that there is nothing. `ESRCH` is what /proc says of a process that just
/// ended.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ESRCH].map(|errno| errno as i32);
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

/// Where events come from.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Networks' namespaces by number.
    pub(super) networks: BTreeMap<i32, NetworkId>,
    pub(super) endpoints: BTreeMap<EndpointId, Place>,
    /// The host's ends of uplinks.
    pub(super) uplinks: BTreeMap<String, NetworkId>,
    /// The same by the numbers of interfaces.
    pub(super) uplink_numbers: BTreeMap<u32, NetworkId>,
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
pub(super) struct Turn(usize);

impl Turn {
    /// Whether the settings inside of the network at this place, and what its rules counted, are
    /// looked at.
    pub(super) fn is_for_settings(self, place: usize) -> bool {
        self.0 % MINUTE == place % MINUTE
    }

    /// Whether the network at this place is looked at whole.
    pub(super) fn is_for_all(self, place: usize) -> bool {
        self.0.is_multiple_of(MINUTE) && self.0 / MINUTE % ROUND == place % ROUND
    }
}

/// What may be different from what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dirty {
    /// Everything.
    pub(super) all: bool,
    /// The host's rules and settings.
    pub(super) host: bool,
    /// What the kernel tells nobody: settings of the host's ends of uplinks, and of the networks
    /// whose turn it is. What failed before, too.
    pub(super) turn: Option<Turn>,
    /// This host's addresses.
    pub(super) moved: bool,
    /// This machine goes on from an image of its memory.
    pub(super) restored: bool,
    /// Links of the host upon which there may be interfaces of endpoints.
    pub(super) parents: bool,
    /// Links of the host that went, whether they are back or not.
    pub(super) lost: BTreeSet<String>,
    /// Namespaces that endpoints are plugged into.
    pub(super) endpoints: bool,
    /// Subnets of networks.
    pub(super) subnets: bool,
    /// The pins of networks' namespaces.
    pub(super) pins: bool,
    pub(super) networks: BTreeSet<NetworkId>,
    /// Rules in networks' namespaces.
    pub(super) rules: BTreeSet<NetworkId>,
    /// Routes of the host.
    pub(super) routes: Vec<IpNet>,
    /// Ports whose links are different.
    pub(super) ports: BTreeSet<String>,
    /// Endpoints whose cable ended here, and not in the sandbox.
    pub(super) cut: BTreeSet<EndpointId>,
    /// Endpoints of which the kernel said that they are gone, and how.
    pub(super) gone: BTreeMap<EndpointId, &'static str>,
    /// Endpoints whose cable was away at the look before, when nobody had said yet at which end it
    /// was cut.
    pub(super) awaited: BTreeSet<EndpointId>,
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it is about more than what networks and the host are looked at for by themselves.
    pub(super) fn is_about_places(&self) -> bool {
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
            Change::Rules | Change::Setting => self.host = true,
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

/// The watcher's state.
#[derive(Debug, Default)]
pub(super) struct Watching {
    pub(super) dirty: Mutex<Dirty>,
    /// Whether the kernel tells what happens.
    hears: AtomicBool,
    /// Whether this host may have other addresses.
    moved: AtomicBool,
    pub(super) wake: Notify,
    pub(super) places: Mutex<Places>,
    /// Tasks that wait for the ends of processes.
    pub(super) processes: Mutex<BTreeMap<EndpointId, tokio::task::AbortHandle>>,
    /// What was put back of a network, and what could not be.
    pub(super) mended: Mutex<BTreeMap<NetworkId, Mended>>,
}

/// How it is with the links of a network.
#[derive(Clone, Debug, Default)]
pub(super) struct Mended {
    pub(super) times: u64,
    pub(super) fault: Option<String>,
    /// Whether it is that of an endpoint's cable alone.
    pub(super) is_of_endpoint: bool,
    /// Whether the log has the fault.
    pub(super) told: bool,
}

impl Watching {
    /// Has something looked at soon.
    pub(super) fn mark(&self, edit: impl FnOnce(&mut Dirty)) {
        edit(&mut lock(&self.dirty));
        self.wake.notify_one();
    }

    /// Whether the kernel tells nothing of what happens.
    pub(super) fn is_deaf(&self) -> bool {
        !self.hears.load(Ordering::Relaxed)
    }

    /// Whether this host may have other addresses since this was asked last.
    pub(super) fn take_moved(&self) -> bool {
        self.moved.swap(false, Ordering::AcqRel) || self.is_deaf()
    }

    /// Notes that this host may have other addresses.
    pub(super) fn note_moved(&self) {
        self.moved.store(true, Ordering::Release);
    }

    /// Whether the rules of all networks are to be looked at, else those of which.
    pub(super) fn rules(&self) -> (bool, BTreeSet<NetworkId>) {
        let dirty = lock(&self.dirty);
        (dirty.all, dirty.rules.clone())
    }

    /// Notes where an endpoint that came, goes or is different is plugged in.
    pub(super) fn place(&self, endpoint: &Stored) {
        match Place::of(endpoint) {
            Ok(place) if endpoint.is_attached() => {
                lock(&self.places).endpoints.entry(endpoint.id).or_insert(place);
            }
            Ok(_) => {
                lock(&self.places).endpoints.remove(&endpoint.id);
            }
            Err(error) => {
                debug!(endpoint = %endpoint.name, %error, "its namespace cannot be looked at");
            }
        }
        self.mark(|dirty| {
            dirty.ports.insert(port_name(endpoint.id));
        });
    }

    /// Listens no more to the namespace of a network, which goes. One that is made for the network
    /// again, before anybody looks, has another number and is to be listened to anew.
    pub(super) fn forget(&self, network: NetworkId) {
        lock(&self.places).networks.retain(|_, id| *id != network);
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

impl Mesh {
    /// Hears of changes until the agent stops.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        tokio::spawn(Arc::clone(&self).look_on());
        tokio::select! {
            () = self.hear() => {}
            _ = stop.changed() => {}
        }
        for (_, task) in mem::take(&mut *lock(&self.watching.processes)) {
            task.abort();
        }
    }

    async fn hear(&self) {
        let opened = Watch::open().and_then(|watch| Ok((watch, Mounts::open()?)));
        let (watch, mounts) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!(%error, "the kernel does not tell of changes; they are looked for once a minute");
                return std::future::pending().await;
            }
        };
        self.watching.hears.store(true, Ordering::Relaxed);
        // What happened before is looked at, too.
        self.watching.mark(|dirty| dirty.all = true);
        loop {
            let is_asked = |number| lock(&self.watching.places).knows(number);
            let failed = tokio::select! {
                heard = watch.hear(is_asked) => match heard {
                    Ok(heard) => {
                        self.watching.note(heard);
                        continue;
                    }
                    Err(error) => error,
                },
                changed = mounts.changed() => match changed {
                    Ok(()) => {
                        self.watching.mark(|dirty| {
                            (dirty.endpoints, dirty.pins) = (true, true);
                        });
                        continue;
                    }
                    Err(error) => error,
                },
            };
            debug!(error = %failed, "an event was not heard");
            self.watching.mark(|dirty| dirty.all = true);
            tokio::time::sleep(SETTINGS).await;
        }
    }

    /// Looks where something may be different. What was begun is not cut short by the agent's end.
    async fn look_on(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        let mut ticks = 0usize;
        let mut tick = tokio::time::interval_at(Instant::now() + SETTINGS, SETTINGS);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.watching.wake.notified() => tokio::time::sleep(SETTLE).await,
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    let mut dirty = lock(&self.watching.dirty);
                    dirty.turn = Some(Turn(ticks));
                    dirty.host = true;
                    dirty.all |= self.watching.is_deaf() && ticks.is_multiple_of(MINUTE);
                }
                _ = stop.changed() => return,
            }
            let mut dirty = mem::take(&mut *lock(&self.watching.dirty));
            if mem::take(&mut dirty.restored) {
                self.outlive_image().await;
            }
            if dirty.is_empty() {
                continue;
            }
            if dirty.all || dirty.moved {
                self.watching.note_moved();
                self.kick();
            }
            let (all, begun) = (dirty.all, Instant::now());
            if self.look(dirty).await || all {
                // Where more happens than can be heard, looking at everything takes a tenth of the
                // time at most.
                let rest = if all { begun.elapsed() * 10 } else { Duration::ZERO };
                tokio::time::sleep(rest.clamp(PAUSE, 4 * PAUSE)).await;
            }
        }
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
