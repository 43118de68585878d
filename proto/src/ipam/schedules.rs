//! I12 by simulation: random schedules of allocation, transfer, loss, restart, leaving and removal
//! against a model that knows all. Node 0 issues removals; `object::RollCall` says when it may
//! reclaim, and this models it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use proptest::prelude::*;

use super::{
    tests::{NOWHERE, blocks, node, subnet},
    *,
};
use crate::{addr::NodeId, limits::ADDRESS_QUARANTINE, tables::tests::now};

/// What a node keeps through a restart.
#[derive(Default)]
struct Disk {
    transfers: BTreeSet<Transfer>,
    reclaims: BTreeSet<Transfer>,
    /// Who left or was removed, as far as this node has heard.
    gone: BTreeSet<usize>,
    used: BTreeSet<IpAddr>,
    /// What was released, and when.
    released: BTreeMap<IpAddr, Instant>,
}

/// Nodes that share one subnet over a network that loses, delays and parts.
struct Mesh {
    subnet: Subnet,
    initial: Vec<(IpNet, NodeId)>,
    pools: Vec<Pool>,
    disks: Vec<Disk>,
    /// Those that left: they give nothing out any more.
    left: BTreeSet<usize>,
    /// Those that were removed; they go on until they hear of it.
    removed: BTreeSet<usize>,
    /// Who had nothing to tell node 0, and which departures it knew then.
    heard: BTreeMap<usize, BTreeSet<usize>>,
    now: Instant,
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    AllocateStatic(usize, u8),
    Release(usize, prop::sample::Index),
    /// One node asks another for space, now or in advance; the answer arrives or not.
    Ask(usize, usize, bool, bool),
    /// One node hears some of what another knows.
    Gossip(usize, usize, prop::sample::Index),
    /// One node asks another for one address; the answer arrives or not.
    AskAddress(usize, usize, u8, bool),
    Restart(usize),
    /// One node hands everything to another, which hears of it or not, and is gone.
    Leave(usize, usize, bool),
    /// Node 0 removes one.
    Remove(usize),
    /// Node 0 and another compare all that they know.
    Compare(usize),
    /// Node 0 takes what removed nodes own, if it may.
    Reclaim,
    Wait(u64),
}

const NODES: usize = 5;

fn step() -> impl Strategy<Value = Step> {
    let n = 0..NODES;
    prop_oneof![
        6 => n.clone().prop_map(Step::Allocate),
        2 => (n.clone(), any::<u8>()).prop_map(|(n, ip)| Step::AllocateStatic(n, ip)),
        3 => (n.clone(), any::<prop::sample::Index>()).prop_map(|(n, i)| Step::Release(n, i)),
        4 => (n.clone(), n.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(a, b, now, ok)| Step::Ask(a, b, now, ok)),
        3 => (n.clone(), n.clone(), any::<prop::sample::Index>()).prop_map(|(a, b, i)| Step::Gossip(a, b, i)),
        3 => (n.clone(), n.clone(), any::<u8>(), any::<bool>())
            .prop_map(|(a, b, ip, ok)| Step::AskAddress(a, b, ip % 40, ok)),
        1 => n.clone().prop_map(Step::Restart),
        1 => (n.clone(), n.clone(), any::<bool>()).prop_map(|(a, b, ok)| Step::Leave(a, b, ok)),
        1 => n.clone().prop_map(Step::Remove),
        5 => n.prop_map(Step::Compare),
        2 => Just(Step::Reclaim),
        1 => (0u64..90).prop_map(Step::Wait),
    ]
}

impl Mesh {
    fn new(cidr: &str, split: bool) -> Self {
        let subnet = subnet(cidr);
        let ids = (0..NODES).map(|n| node(u8::try_from(n).unwrap()));
        let initial = if split { first_split(&subnet, node(0), ids.clone()) } else { Vec::new() };
        let pools = ids
            .map(|me| {
                let ownership = Ownership::new(&subnet, node(0), initial.clone());
                Pool::new(subnet.clone(), ownership, me)
            })
            .collect();
        let disks = (0..NODES).map(|_| Disk::default()).collect();
        let (left, removed, heard) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Self { subnet, initial, pools, disks, left, removed, heard, now: now() }
    }

    /// Whether a node takes what another says.
    fn listens(&self, n: usize, to: usize) -> bool {
        let gone = &self.disks[n].gone;
        n != to && !self.left.contains(&n) && !gone.contains(&to) && !gone.contains(&n)
    }

    /// Members as node 0 knows them, without itself.
    fn members(&self) -> impl Iterator<Item = usize> {
        (1..NODES).filter(|n| !self.disks[0].gone.contains(n))
    }

    /// Whether the endpoints of a node are admitted by anybody.
    fn is_admitted(&self, n: usize) -> bool {
        let listeners = (0..NODES).filter(|m| !self.removed.contains(m) && *m != n);
        !self.removed.contains(&n) || listeners.into_iter().any(|m| self.listens(m, n))
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Allocate(n)
            | Step::AllocateStatic(n, _)
            | Step::Release(n, _)
            | Step::Ask(n, ..)
            | Step::AskAddress(n, ..)
            | Step::Restart(n)
            | Step::Leave(n, ..)
                if self.left.contains(n) || self.disks[*n].gone.contains(n) => {}
            Step::Allocate(n) => {
                if let Ok(ip) = self.pools[*n].allocate(NOWHERE, self.now) {
                    self.use_address(*n, ip);
                }
            }
            Step::AllocateStatic(n, last) => {
                let ip = IpAddr::from([10, 0, 0, *last]);
                if self.pools[*n].allocate_static(ip, NOWHERE, self.now).is_ok() {
                    self.use_address(*n, ip);
                }
            }
            Step::Release(n, index) => {
                let used: Vec<_> = self.disks[*n].used.iter().copied().collect();
                if !used.is_empty() {
                    let ip = used[index.index(used.len())];
                    self.disks[*n].used.remove(&ip);
                    self.disks[*n].released.insert(ip, self.now);
                    self.pools[*n].release(ip, self.now);
                }
            }
            Step::Ask(from, to, now, arrives) => {
                let to_id = node(u8::try_from(*to).unwrap());
                let need = if *now { Need::Now } else { Need::InAdvance };
                if !self.listens(*from, *to) {
                } else if let Ok(gift) = self.pools[*from].give(to_id, need, NOWHERE, self.now) {
                    self.disks[*from].transfers.extend(gift.iter().copied());
                    if *arrives && self.listens(*to, *from) {
                        self.learn(*to, gift);
                    }
                }
            }
            Step::Gossip(from, to, index) if self.listens(*to, *from) => {
                let gone = self.disks[*from].gone.clone();
                self.disks[*to].gone.extend(gone);
                let known: Vec<_> = self.disks[*from].transfers.iter().copied().collect();
                let skip = if known.is_empty() { 0 } else { index.index(known.len()) };
                self.learn(*to, known.into_iter().skip(skip));
                if self.disks[*from].reclaims.len() > skip {
                    self.reclaim(*to, self.disks[*from].reclaims.clone());
                }
            }
            Step::Gossip(..) => {}
            Step::Restart(n) => self.restart(*n),
            Step::AskAddress(from, to, last, arrives) => {
                let to_id = node(u8::try_from(*to).unwrap());
                let ip = IpAddr::from([10, 0, 0, *last]);
                if !self.listens(*from, *to) {
                    return;
                }
                let given = self.pools[*from].give_address(ip, to_id, NOWHERE, self.now);
                if let Ok(transfer) = given {
                    self.disks[*from].transfers.insert(transfer);
                    if *arrives && self.listens(*to, *from) {
                        self.learn(*to, [transfer]);
                    }
                }
            }
            Step::Leave(..) | Step::Remove(_) | Step::Compare(_) | Step::Reclaim => {
                self.depart(step);
            }
            Step::Wait(seconds) => self.now += Duration::from_secs(*seconds),
        }
    }

    fn restart(&mut self, n: usize) {
        let me = node(u8::try_from(n).unwrap());
        let ownership = Ownership::new(&self.subnet, node(0), self.initial.clone());
        let mut pool = Pool::new(self.subnet.clone(), ownership, me);
        pool.extend(self.disks[n].transfers.iter().copied());
        pool.reclaim(self.disks[n].reclaims.iter().copied());
        self.disks[n].used.iter().for_each(|ip| pool.adopt(*ip));
        for (ip, at) in &self.disks[n].released {
            pool.rest(*ip, *at + ADDRESS_QUARANTINE);
        }
        self.pools[n] = pool;
    }

    fn depart(&mut self, step: &Step) {
        match step {
            Step::Leave(n, heir, arrives) => {
                let enough = self.left.len() + self.removed.len() < NODES - 2;
                if *n != 0 && enough && self.listens(*heir, *n) {
                    self.leave(*n, *heir, *arrives);
                }
            }
            Step::Remove(n) => {
                let enough = self.left.len() + self.removed.len() < NODES - 2;
                if *n != 0 && enough && !self.left.contains(n) {
                    self.removed.insert(*n);
                    self.disks[0].gone.insert(*n);
                }
            }
            Step::Compare(n) => self.compare(*n),
            Step::Reclaim => {
                let gone = &self.disks[0].gone;
                let heard = |n| self.heard.get(&n).is_some_and(|heard| heard.is_superset(gone));
                if self.members().all(heard) {
                    let removed: BTreeSet<_> =
                        self.removed.iter().map(|n| node(u8::try_from(*n).unwrap())).collect();
                    let taken = self.pools[0].reclaimable(|node| removed.contains(&node));
                    self.reclaim(0, taken);
                }
            }
            _ => {}
        }
    }

    fn use_address(&mut self, n: usize, ip: IpAddr) {
        let members = self.disks.iter().enumerate();
        let members = members.filter(|(n, _)| !self.left.contains(n) && !self.removed.contains(n));
        for (node, disk) in members {
            let rests =
                disk.released.get(&ip).is_some_and(|at| self.now < *at + ADDRESS_QUARANTINE);
            assert!(!rests, "{n} gives {ip}, which {node} released a moment ago");
        }
        self.disks[n].used.insert(ip);
    }

    fn leave(&mut self, n: usize, heir: usize, arrives: bool) {
        let (me, to) = (node(u8::try_from(n).unwrap()), node(u8::try_from(heir).unwrap()));
        self.disks[n].used.clear();
        let own = self.pools[n].ownership().blocks().filter(|b| b.owner == me);
        let words: Vec<_> =
            own.map(|b| Transfer { block: b.cidr, from: me, to, epoch: b.epoch + 1 }).collect();
        self.learn(n, words.iter().copied());
        if arrives {
            self.learn(heir, words);
        }
        self.left.insert(n);
        self.disks[n].gone.insert(n);
        self.disks[heir].gone.extend(arrives.then_some(n));
    }

    fn compare(&mut self, n: usize) {
        if !self.listens(0, n) || !self.listens(n, 0) {
            return;
        }
        let (mine, theirs) = (&self.disks[0], &self.disks[n]);
        let silent = theirs.gone == mine.gone
            && theirs.transfers.is_subset(&mine.transfers)
            && theirs.reclaims.is_subset(&mine.reclaims);
        if silent {
            self.heard.insert(n, mine.gone.clone());
        }
        for (from, to) in [(n, 0), (0, n)] {
            let Disk { transfers, reclaims, gone, .. } = &self.disks[from];
            let (transfers, reclaims, gone) = (transfers.clone(), reclaims.clone(), gone.clone());
            self.disks[to].gone.extend(gone);
            self.learn(to, transfers);
            self.reclaim(to, reclaims);
        }
    }

    fn reclaim(&mut self, n: usize, reclaims: impl IntoIterator<Item = Transfer>) {
        let reclaims: Vec<_> = reclaims.into_iter().collect();
        self.disks[n].reclaims.extend(reclaims.iter().copied());
        self.pools[n].reclaim(reclaims);
    }

    fn learn(&mut self, n: usize, transfers: impl IntoIterator<Item = Transfer>) {
        let transfers: Vec<_> = transfers.into_iter().collect();
        self.disks[n].transfers.extend(transfers.iter().copied());
        self.pools[n].extend(transfers);
    }

    /// Every address that is in use, once for each node that gave it.
    fn check(&self) {
        let mut given: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let admitted: Vec<_> = (0..NODES).filter(|n| self.is_admitted(*n)).collect();
        for (n, disk) in self.disks.iter().enumerate().filter(|(n, _)| admitted.contains(n)) {
            for ip in &disk.used {
                assert_eq!(given.insert(*ip, n), None, "{ip} was given twice");
                assert!(self.subnet.is_assignable(*ip), "{ip}");
            }
            let strays = self.pools[n].strays().filter(|ip| disk.used.contains(ip)).count();
            assert_eq!(strays, 0, "nobody contradicts itself");
        }
        let mut owned: Vec<_> = admitted
            .into_iter()
            .flat_map(|n| {
                let me = node(u8::try_from(n).unwrap());
                self.pools[n].ownership().cidrs().filter(move |(owner, _)| *owner == me)
            })
            .map(|(_, cidr)| (cidr.first, cidr.last()))
            .collect();
        owned.sort_unstable();
        for pair in owned.windows(2) {
            assert!(pair[0].1 < pair[1].0, "two nodes believe to own one address: {pair:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// I12: no two admitted endpoints hold one address.
    #[test]
    fn i12_no_address_is_given_twice(
        steps in prop::collection::vec(step(), 0..120),
        cidr in prop::sample::select(vec!["10.0.0.0/24", "10.0.0.0/27", "10.0.0.0/29"]),
        split: bool,
    ) {
        let mut mesh = Mesh::new(cidr, split);
        for step in &steps {
            mesh.run(step);
            mesh.check();
        }
        // When all have heard all, they agree (I11).
        let all: BTreeSet<_> = mesh.disks.iter().flat_map(|d| d.transfers.iter().copied()).collect();
        let taken: BTreeSet<_> = mesh.disks.iter().flat_map(|d| d.reclaims.iter().copied()).collect();
        for n in 0..NODES {
            mesh.learn(n, all.iter().copied());
            mesh.reclaim(n, taken.iter().copied());
        }
        mesh.check();
        // Nothing is lost: every address has one owner, and what is in use is its user's.
        let sizes = mesh.pools[0].ownership().cidrs().map(|(_, cidr)| cidr.size());
        prop_assert_eq!(sizes.sum::<u128>(), mesh.subnet.block().size());
        for (n, disk) in mesh.disks.iter().enumerate().filter(|(n, _)| !mesh.removed.contains(n)) {
            let me = node(u8::try_from(n).unwrap());
            for ip in &disk.used {
                let owner = mesh.pools[0].ownership().block_at(*ip).map(|block| block.owner);
                prop_assert_eq!(owner, Some(me), "{} is in use", ip);
            }
        }
        for n in 1..NODES {
            prop_assert_eq!(blocks(mesh.pools[n].ownership()), blocks(mesh.pools[0].ownership()));
        }
    }
}
