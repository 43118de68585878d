//! No address of nodes that are up is stranded, whoever wants it and however many share the subnet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    tests::{node, subnet},
    *,
};
use crate::{
    addr::NodeId,
    limits::{ADDRESS_QUARANTINE, BLOCK_EVERY},
    tables::tests::now,
};

/// Nodes that hear of each other at once.
struct Mesh {
    pools: Vec<Pool>,
    places: BTreeMap<NodeId, usize>,
    used: BTreeSet<IpAddr>,
    now: Instant,
}

impl Mesh {
    /// Of the nodes only the first `live` were there when the subnet was made; the others ask for
    /// blocks when they come.
    fn new(cidr: &str, nodes: u8, live: u8) -> Self {
        let subnet = subnet(cidr);
        let initial = first_split(&subnet, node(0), (0..live).map(node));
        let ownership = Ownership::new(&subnet, node(0), initial);
        let pool = |n| Pool::new(subnet.clone(), ownership.clone(), node(n));
        let pools = (0..nodes).map(pool).collect();
        let places = (0..nodes).map(|n| (node(n), n.into())).collect();
        let mut mesh = Self { pools, places, used: BTreeSet::new(), now: now() };
        for n in 0..usize::from(nodes) {
            if !mesh.pools[n].has_block() {
                // Whoever finds none to spare asks again when it needs one.
                let _none_to_spare = mesh.ask(n, Need::InAdvance);
            }
        }
        mesh
    }

    /// One asks the others, who has most first.
    fn ask(&mut self, n: usize, need: Need) -> Result<(), Vec<Withheld>> {
        let me = node(u8::try_from(n).unwrap());
        let mut refusals = Vec::new();
        for holder in self.pools[n].holders(&self.used) {
            match self.pools[self.places[&holder.node]].give(me, need, &self.used, self.now) {
                Ok(_gift) => {
                    let known = self.pools[self.places[&holder.node]].ownership.clone();
                    self.pools.iter_mut().for_each(|pool| pool.ownership = known.clone());
                    return Ok(());
                }
                Err(why) => refusals.push(why),
            }
        }
        Err(refusals)
    }

    fn attach(&mut self, n: usize) -> Result<(), Vec<Withheld>> {
        loop {
            if let Ok(ip) = self.pools[n].allocate(&self.used, self.now) {
                assert!(self.used.insert(ip), "{ip} was given twice (I12)");
                return Ok(());
            }
            self.ask(n, Need::Now)?;
        }
    }

    fn detach(&mut self, ip: IpAddr) {
        self.used.remove(&ip);
        self.pools.iter_mut().for_each(|pool| pool.release(ip, self.now));
    }

    /// The addresses that may be chosen.
    fn size(&self) -> usize {
        let subnet = self.pools[0].subnet();
        let odd = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if matches!(ip.octets()[3], 0 | 255));
        subnet.cidr().hosts().filter(|ip| subnet.is_assignable(*ip) && !odd(ip)).count()
    }
}

#[test]
fn all_addresses_can_be_used_at_once_by_one_or_by_all_in_turn() {
    for (cidr, nodes, live) in [
        ("10.0.0.0/25", 3, 3),
        ("10.0.0.0/24", 30, 30),
        ("10.0.0.0/26", 20, 1),
        ("10.0.0.0/28", 5, 5),
        ("10.0.0.0/29", 2, 1),
        ("10.0.0.0/29", 12, 12),
        ("10.0.0.0/30", 3, 3),
        ("10.0.0.0/23", 3, 2),
        ("fd00::/121", 7, 7),
    ] {
        for by_turns in [false, true] {
            for last in [0, usize::from(nodes) - 1] {
                let mut mesh = Mesh::new(cidr, nodes, live);
                let size = mesh.size();
                for n in 0..size {
                    let who = if by_turns { n % usize::from(nodes) } else { last };
                    let got = mesh.attach(who);
                    assert_eq!(got, Ok(()), "{cidr}, {nodes} nodes: {n} of {size} for {who}");
                    // An address for an endpoint a tenth of a second: no fast machine.
                    mesh.now += Duration::from_millis(if size > 300 { 100 } else { 0 });
                }
                assert_eq!(mesh.attach(last), Err(Vec::new()), "{cidr}: nobody has any");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After any use, what is refused while somebody has addresses is refused for a moment.
    #[test]
    fn nothing_is_stranded_after_any_use(
        steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..150),
        cidr in prop::sample::select(vec!["10.0.0.0/24", "10.0.0.0/25", "10.0.0.0/27", "10.0.0.0/29"]),
        (nodes, live) in (1u8..16).prop_flat_map(|nodes| (Just(nodes), 1..=nodes)),
        last in any::<prop::sample::Index>(),
    ) {
        let mut mesh = Mesh::new(cidr, nodes, live);
        let size = mesh.size();
        for (index, attach) in steps {
            if attach {
                // Whether it is to be had depends on what rests.
                let _perhaps = mesh.attach(index.index(nodes.into()));
            } else if !mesh.used.is_empty() {
                let ip = mesh.used.iter().copied().nth(index.index(mesh.used.len())).unwrap();
                mesh.detach(ip);
            }
            mesh.now += Duration::from_millis(100);
        }
        mesh.now += ADDRESS_QUARANTINE;
        while mesh.used.len() < size {
            match mesh.attach(last.index(nodes.into())) {
                Ok(()) => {}
                Err(refusals) => {
                    prop_assert!(refusals.contains(&Withheld::TooOften), "{:?}", refusals);
                    mesh.now += BLOCK_EVERY;
                }
            }
        }
    }
}
